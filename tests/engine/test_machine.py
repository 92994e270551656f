"""Device, precision, seeds: what is picked, and what is refused."""

import subprocess
import sys

import pytest
import torch

from engine import machine as runtime
from models.settings import UserError
from tests.paths import ROOT
from tests.processes import said_by

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["cuda:77", "mps", "tpu", "meta"])
def test_a_device_that_is_not_here_is_refused(name, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UserError, match=f"device = '{name}'"):
        runtime.pick_device(name)


def test_auto_without_accelerator_is_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert runtime.pick_device("auto") == CPU


@pytest.mark.parametrize(
    ("precision", "native", "enabled"),
    [("fp32", True, False), ("bf16", False, True), ("auto", True, True), ("auto", False, False)],
)
def test_precision(precision, native, enabled, monkeypatch):
    monkeypatch.delenv("HYBRIDMERGE_PRECISION")
    monkeypatch.setattr(runtime, "has_bf16", lambda device: native)
    weight = torch.ones(2, 2)
    autocast = runtime.pick_autocast(precision, CPU)
    for _ in range(2):  # it can be entered again
        with autocast:
            assert (weight @ weight).dtype == (torch.bfloat16 if enabled else torch.float32)


@pytest.mark.parametrize(
    ("precision", "variable", "enabled"),
    [("auto", "fp32", False), ("auto", "bf16", True), ("fp32", "bf16", False), ("bf16", "fp32", True)],
)
@pytest.mark.parametrize("native", [True, False])
def test_the_environment_decides_what_auto_means(precision, variable, enabled, native, monkeypatch):
    monkeypatch.setattr(runtime, "has_bf16", lambda device: native)
    monkeypatch.setenv("HYBRIDMERGE_PRECISION", variable)
    assert runtime.pick_autocast(precision, CPU)._enabled == enabled


def test_an_unknown_precision_in_the_environment_is_refused(monkeypatch):
    monkeypatch.setenv("HYBRIDMERGE_PRECISION", "fp16")
    with pytest.raises(UserError, match="HYBRIDMERGE_PRECISION = 'fp16': must be fp32 or bf16"):
        runtime.pick_autocast("auto", CPU)


def test_bf16_on_mps_is_refused():
    with pytest.raises(UserError, match="train.precision"):
        runtime.pick_autocast("bf16", torch.device("mps"))


def test_draws_are_a_function_of_seed_and_step():
    def draw(seed, step):
        runtime.seed_step(seed, step)
        return torch.rand(4).tolist()

    assert draw(3, 7) == draw(3, 7)
    assert len({tuple(draw(seed, step)) for seed in (0, 1, 2**31) for step in range(5)}) == 15


def test_images_go_channels_last_and_keep_their_values():
    images = torch.randn(2, 3, 4, 5)
    moved = runtime.to_device(images, CPU)
    assert torch.equal(moved, images) and moved.is_contiguous(memory_format=torch.channels_last)


def test_memory_versions_and_device_are_said():
    assert runtime.peak_memory(CPU) > 50  # MiB: torch alone takes more
    assert runtime.versions().keys() >= {"python", "torch", "timm"}
    assert runtime.device_name(CPU).startswith("cpu (")


def say_peaks() -> None:
    """Prints the peak in MiB before 512 MiB are held, meanwhile, in a process that is started then, when they are
    freed, and when it was reset."""
    before = runtime.peak_memory(CPU)
    held = torch.ones(2**27)  # 512 MiB
    grown = runtime.peak_memory(CPU)
    code = "import torch; from engine.machine import peak_memory; print(peak_memory(torch.device('cpu')))"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    del held
    kept = runtime.peak_memory(CPU)
    runtime.reset_peak_memory(CPU)
    print(before, grown, float(child), kept, runtime.peak_memory(CPU))


def test_the_peak_memory_is_that_of_the_process_since_it_was_reset():
    """Measured in a fork of this process, whose own peak stays as it is."""
    before, grown, child, kept, reset = map(float, said_by(say_peaks).split())
    assert min(grown, kept) > before + 500
    assert child < before + 100  # not the peak of the process that started it
    assert reset < kept - 400
