"""What a CUDA device computes, beside the CPU. `make test-cuda` runs these tests; without a device they are skipped."""

import json
import signal
import subprocess
import sys
import time

import pytest
import torch
from torch.nn import functional as F

from engine.data.arrays import Arrays
from engine.data.loading.loader import TrainLoader, eval_batches
from engine.data.settings import AugmentSettings
from models.explain import EXPLAINERS, explain
from models.merging import MERGERS, initial_tokens, merge, wrap
from tests.models.tuned_models import MODELS, model_of
from tests.paths import ROOT

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
QUICK = ["log.images=0", "log.every_steps=5"]


@pytest.fixture(autouse=True)
def exact():
    """Products in fp32, not in TF32."""
    switches = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [switch.allow_tf32 for switch in switches]
    for switch in switches:
        switch.allow_tf32 = False
    yield
    for switch, allowed in zip(switches, before):
        switch.allow_tf32 = allowed


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("name", MERGERS)
def test_methods_merge_the_same_patches(name, batch):
    """In float64, where no two similarities are so close that rounding decides."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, 1 + 64, 24, generator=generator, dtype=torch.float64)
    attention = torch.rand(batch, 1 + 64, generator=generator).softmax(-1)
    merger, results = MERGERS[name], []
    r = 48 if merger.shrink is not None else 16
    pooling = None if merger.pooling is None else merger.pooling(24, 64 - r)
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        inputs, seen = x.to(device), attention.to(device)
        learned = None if pooling is None else pooling.to(device)
        results.append(merge(inputs, initial_tokens(inputs, (8, 8)), inputs, r, merger, 1, seen, pooling=learned))
    (out, tokens), (out_cuda, tokens_cuda) = results
    if name == "random":  # another generator draws
        assert tokens_cuda.size.sum().item() == tokens.size.sum().item()
        return
    assert torch.equal(tokens_cuda.index.cpu(), tokens.index)
    error = 1e-6 if pooling is None else 1e-4  # what is learned computes in fp32
    torch.testing.assert_close(out_cuda.cpu(), out, atol=error, rtol=error)


@pytest.mark.parametrize(
    ("name", "merging"),
    [
        (name, merging)
        for name in MODELS
        for merging in (None, "tome", "facility_location")
        if merging is None or not name.startswith("res")  # convolutions have no tokens
    ],
)
def test_models_answer_and_learn_alike(name, merging):
    options = {"merge": {"method": merging, "r": 3}} if merging else {}
    model = model_of(name, **options).eval()
    images, answers = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1)), []
    for device in ("cpu", "cuda"):
        model.to(device).zero_grad()
        logits = model(images.to(device))
        F.cross_entropy(logits, torch.arange(4, device=device) % 5).backward()
        gradient = torch.cat([p.grad.flatten().cpu() for p in model.parameters() if p.grad is not None])
        answers.append((logits.detach().cpu(), gradient))
    for on_cuda, on_cpu in zip(*reversed(answers)):
        torch.testing.assert_close(on_cuda, on_cpu, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", [name for name in EXPLAINERS if name not in ("lime", "rise")])
def test_explanations_are_the_same(name):
    model = wrap(model_of("timm"), "tome", r=3).eval()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    found = [explain(model.to(device), images.to(device), name).relevance.cpu() for device in ("cpu", "cuda")]
    torch.testing.assert_close(found[1], found[0], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", ["lime", "rise"])
def test_drawn_explanations_repeat(name):
    model = model_of("timm").cuda().eval()
    image, options = torch.randn(1, 3, 32, 32).cuda(), {"lime": {"samples": 50}, "rise": {"samples": 50}}[name]
    first, second = (explain(model, image, name, **options).relevance for _ in range(2))
    torch.testing.assert_close(first, second, atol=1e-4, rtol=1e-3)


def test_images_are_normalised_and_resized_on_the_device():
    pixels = torch.randint(0, 256, (40, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    arrays = Arrays(pixels, torch.arange(40) % 5)
    augment, mean, std = AugmentSettings(crop=2, flip=True, erase=0.5), (0.5,) * 3, (0.25,) * 3
    devices = [None, torch.device("cuda")]
    for loaded in (
        [next(TrainLoader(arrays, 32, augment, mean, std, 0, 24, device=device).epoch(0)) for device in devices],
        [next(eval_batches(arrays, 32, mean, std, 24, device)) for device in devices],
    ):
        (images, labels), (on_cuda, on_cuda_labels) = loaded
        assert on_cuda.is_cuda and torch.equal(labels, on_cuda_labels)
        torch.testing.assert_close(on_cuda.cpu(), images, atol=1e-4, rtol=1e-4)


def start(*args, cwd):
    code = [sys.executable, str(ROOT / "tools" / "train.py"), *args]
    return subprocess.Popen(code, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("cfg", ["digits/hybrid", "digits/conformer"])
def test_training_learns(cfg, precision, tmp_path):
    args = ["--cfg", cfg, *QUICK, f"train.precision={precision}", "train.epochs=6", "name=run"]
    process = start(*args, cwd=tmp_path)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    results = json.loads((tmp_path / "runs/run/results.json").read_text())
    assert results["test_top1"] > 0.5, results  # by chance 0.1


def test_a_stopped_run_goes_on(tmp_path):
    """With images mixed, resumed after SIGTERM: as many steps, and nearly the same loss (sums have no fixed order)."""
    args = [
        "--cfg",
        "digits/hybrid",
        *QUICK,
        "split.part=0.2",
        "train.epochs=6",
        "augment.mixup=0.2",
        "train.precision=fp32",
    ]
    whole = start(*args, "name=whole", cwd=tmp_path)
    out, _ = whole.communicate(timeout=300)
    assert whole.returncode == 0, out
    stopped = start(*args, "name=parts", "checkpoint.every_steps=1", cwd=tmp_path)
    last = tmp_path / "runs/parts/last.pt"
    while not last.exists() and stopped.poll() is None:
        time.sleep(0.02)
    stopped.send_signal(signal.SIGTERM)
    out, _ = stopped.communicate(timeout=120)
    assert stopped.returncode in (143, 0), out  # 0: it ended before
    resumed = start("--resume", "runs/parts", cwd=tmp_path)
    out, _ = resumed.communicate(timeout=300)
    assert resumed.returncode == 0 or "finished" in out, out
    ours, other = (json.loads((tmp_path / "runs" / name / "results.json").read_text()) for name in ("parts", "whole"))
    assert ours["steps"] == other["steps"]
    assert ours["test_loss"] == pytest.approx(other["test_loss"], rel=0.05)
