"""Models that are split over several processes, BatchNorm over all of them: the result of one process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine.runs.checkpoints import checkpoint
from tests.engine.launch.runs import HYBRID, assert_same, config, trained
from tests.engine.train.tuned_runs import MODES, PLAIN, VIT
from tests.processes import finish

FSDP = "train.parallel=fsdp", "train.checkpoint_activations=true"
WRAPPED = {
    "name": "timm:vit_tiny_patch16_224",
    "img_size": 8,
    "in_chans": 1,
    "options": {"patch_size": 2, "embed_dim": 16, "depth": 3, "num_heads": 2},
    "merge": {"method": "tome", "r": 3, "metric": "learned"},
}
CONFORMER = {
    "name": "conformer",
    "img_size": 8,
    "patch_size": 4,
    "in_chans": 1,
    "embed_dim": 16,
    "depth": 3,
    "num_heads": 2,
    "base_channel": 4,
    "stem_stride": 1,
    "merge": {"r": 1},
}
BATCHNORM = {**HYBRID["model"], "stem": "conv", "cnn": {"block": "residual", "depth": 1}}
SHORT = {"epochs": 1, "batch_size": 16, "ema": 0.9}


def alone_and_together(folder: Path, *overrides: str, **sections) -> tuple[Path, Path]:
    """The runs of one process and of two, to which the overrides apply alone."""
    done = finish("train.py", "--cfg", config(folder, **sections), "name=one", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "one", trained(folder, "--cfg", config(folder, **sections), "name=two", *overrides)


def test_a_model_in_parts_results_in_what_a_whole_one_does(alone, tmp_path):
    """With drawn budgets, accumulated and clipped gradients, averaged weights, mixed images; what the run leaves is
    read by one process."""
    run = trained(tmp_path, "--cfg", config(tmp_path), *FSDP)
    assert_same(alone, run)
    files = [{key: type(value) for key, value in checkpoint.load(one / "last.pt").items()} for one in (alone, run)]
    assert files[0] == files[1]
    moments = [checkpoint.load(one / "last.pt")["optimizer"]["state"] for one in (alone, run)]
    for number, values in moments[0].items():
        for key, value in values.items():
            torch.testing.assert_close(moments[1][number][key], value, atol=1e-4, rtol=1e-2)
    done = finish("eval.py", "--run", str(run), cwd=tmp_path)
    assert done.returncode == 0 and ": the same" in done.stdout, done


@pytest.mark.slow  # test_sharding takes a step of each
@pytest.mark.parametrize("model", [WRAPPED, CONFORMER])
def test_wrapped_models_and_several_heads(model, tmp_path):
    sections = {"model": model, "augment": PLAIN, "train": SHORT}
    if model is CONFORMER:  # biases before BatchNorm have no gradient but rounding, of which AdamW makes steps
        sections["train"] = {**SHORT, "sync_batchnorm": True, "optimizer": "sgd", "lr": 0.05}
    assert_same(*alone_and_together(tmp_path, *FSDP, **sections))


@pytest.mark.slow  # test_sharding adds adapters to weights in parts
@pytest.mark.parametrize("mode", ["lora", "gradual", "head"])
def test_fine_tuning_in_parts(mode, tmp_path):
    """Frozen parameters are split, too. Features are not kept: the head is a part of the model."""
    finetune = {key: value for key, value in MODES[mode].items() if key != "dropout"}
    train = {**SHORT, "epochs": 2 if mode == "gradual" else 1}
    assert_same(*alone_and_together(tmp_path, *FSDP, model=VIT, augment=PLAIN, finetune=finetune, train=train))


def test_batchnorm_of_all_processes(tmp_path):
    """Its statistics move once a step where blocks are computed twice."""
    train = {**SHORT, "sync_batchnorm": True}
    sections = {"model": BATCHNORM, "train": train}
    one, two = alone_and_together(tmp_path, "train.checkpoint_activations=true", **sections)
    assert_same(one, two)
    norms = [name for name in checkpoint.load(one / "best.pt")["model"] if name.endswith("running_var")]
    assert len(norms) == 4
