"""Variants are run in turn, one that cannot be run says why, and training steps change no weights."""

import copy
import os
import signal

import pytest
import torch
from torch import nn

from engine.cost.speed.model import memory
from engine.cost.speed.model.benchmark import measure
from engine.cost.speed.model.calls import images_of, prepare
from engine.cost.speed.model.candidates import Candidate, candidates
from engine.cost.speed.model.variants import UNMERGED, Asked, Variant, variants
from engine.settings.models import load_models
from models.settings import UserError

CPU = torch.device("cpu")
VIT = ["model.img_size=32", "model.patch_size=8", "model.embed_dim=32", "model.depth=2", "model.num_heads=2"]


@pytest.fixture(scope="module")
def models():
    return candidates(load_models("vit", [*VIT, "merge.r=3"], ["tome", "topk"]))


def test_models_differ_in_merging_alone(models):
    assert list(models) == [UNMERGED, "tome", "topk"]
    weights = models[UNMERGED].model.state_dict()
    for candidate in models.values():
        assert all(torch.equal(candidate.model.state_dict()[name], value) for name, value in weights.items())
    assert models[UNMERGED].gmacs > models["tome"].gmacs > 0
    assert models[UNMERGED].settings.merge.method == "none"


def test_training_steps_leave_the_model_as_it_is(models):
    settings, model = models["tome"].settings, models["tome"].model
    before = copy.deepcopy(model.state_dict())
    images = images_of(settings, 3, CPU)
    variant = Variant("tome", "train", 3, "eager", "fp32", "auto")
    step, seen = prepare(variant, model, images)
    step()
    step()
    assert seen == "fused"
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_steps_run_in_their_precision_with_gradients_only_in_training():
    seen = []

    class Model(nn.Linear):
        def forward(self, images):
            logits = super().forward(images.mean((2, 3)))
            seen.append((logits.dtype, logits.requires_grad, self.training))
            return logits

    for step, precision in (("forward", "fp32"), ("forward", "bf16"), ("train", "bf16")):
        call, _ = prepare(Variant("-", step, 2, "eager", precision, "auto"), Model(3, 2), torch.zeros(2, 3, 4, 4))
        seen.clear()
        call()
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        assert seen == [(dtype, step == "train", step == "train")]


def test_what_cannot_be_run_says_why_and_the_rest_is_timed(models):
    class Broken(nn.Module):
        def forward(self, images):
            if len(images) > 1:
                raise RuntimeError("no kernel for this\nand much more")
            return images.mean((2, 3))

    both = {UNMERGED: Candidate(models[UNMERGED].settings, Broken(), 1.0), "tome": models["tome"]}
    wanted = variants(both, Asked((1, 2)), CPU)
    rows = measure(both, wanted, 2, CPU)
    assert [row.failed for row in rows] == [None, None, "no kernel for this", None]
    assert [len(row.ms) for row in rows] == [2, 2, 0, 2]
    with pytest.raises(UserError, match=r"unmerged, forward, batch 2, eager, fp32: cannot be run: no kernel for this$"):
        measure(both, wanted[2:3], 2, CPU)


def test_the_share_of_merging_is_measured_in_passes_of_its_own(models):
    unmerged, tome, _ = measure(models, variants(models, Asked((2,)), CPU), 3, CPU)
    assert len(tome.merging_ms) == len(tome.clocked_ms) >= 3 and not unmerged.merging_ms
    assert all(0 < part < whole for part, whole in zip(tome.merging_ms, tome.clocked_ms, strict=True))
    assert not any(module._forward_hooks for module in models["tome"].model.modules())


@pytest.mark.slow
def test_memory_grows_with_the_batch(models):
    """Of a process of its own: this one, which has held more, does not count."""
    held = torch.ones(2**28)  # 1 GiB
    del held
    asked = [Variant("tome", "train", size, "eager", "fp32", "auto") for size in (1, 2048)]
    small, large = (memory.peak_of(memory.Job(one, models["tome"].settings, "cpu", 1)) for one in asked)
    images = 2048 * 3 * 32 * 32 * 4 / 2**20  # MiB
    assert small + images < large
    assert small < 1024


def _killed(job):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_is_killed_is_a_line(models, monkeypatch):
    monkeypatch.setattr(memory, "_run", _killed)
    job = memory.Job(Variant("tome", "forward", 7, "eager", "fp32", "auto"), models["tome"].settings, "cpu", 1)
    (row,) = measure(models, [job.variant], 1, CPU, memory=True)
    assert len(row.ms) == 1 and row.failed is None, "its times are not lost"
    assert row.peak_mib is None and row.peak_failed == "batch size 7: its process was killed; use a smaller one"


@pytest.mark.slow
def test_more_compiled_variants_than_torch_keeps_of_one_function(models):
    """torch.compile gives up on a function that it has compiled eight times, and would run it uncompiled."""
    compiled = []

    def backend(graph, inputs):
        compiled.append(inputs)
        return graph.forward

    sizes = range(1, 12)
    real = torch.compile
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", lambda model, **options: real(model, backend=backend, **options))
        for size in sizes:
            images = images_of(models[UNMERGED].settings, size, CPU)
            call, _ = prepare(Variant("", "forward", size, "compiled", "fp32", "auto"), models[UNMERGED].model, images)
            call()
            call()
    assert len(compiled) == len(sizes)
