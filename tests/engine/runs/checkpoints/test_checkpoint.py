"""Checkpoints: the old file or the new after any fault, and only data out of any file."""

import os
import pickle
import random
import resource
import signal
import time
import zipfile
from collections import OrderedDict, defaultdict
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from engine.runs.checkpoints import checkpoint
from engine.runs.checkpoints.seal import seal
from models.settings import UserError

STATE = {
    "step": 7,
    "model": OrderedDict(weight=torch.arange(6.0).view(2, 3), count=torch.tensor(3)),
    "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.999)}]},
    "best": None,
    "rng": [2**63, True, "text"],
}


def same(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


@contextmanager
def files_limited_to(size):
    """What a full disk does, without a disk: a write beyond `size` bytes fails with an OSError."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def path(tmp_path):
    checkpoint.save(tmp_path / "last.pt", STATE)
    return tmp_path / "last.pt"


def test_what_was_saved_comes_back(path):
    assert same(checkpoint.load(path), STATE)
    assert same(checkpoint.load(str(path)), STATE)


@pytest.mark.parametrize("mmap", [False, True])
def test_plain_torch_and_zip_tools_read_it(path, mmap):
    assert same(torch.load(path, weights_only=True, mmap=mmap), {"format": 1, **STATE})
    assert zipfile.ZipFile(path).testzip() is None


def test_equal_states_give_equal_files(path):
    checkpoint.save(path.with_name("other.pt"), STATE)
    assert path.read_bytes() == path.with_name("other.pt").read_bytes()


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"a": {"b": [1, np.float64(2.0)]}}, r"state\['a'\]\['b'\]\[1\] is a numpy.float64"),
        ({"a": np.zeros(2)}, r"state\['a'\] is a numpy.ndarray"),
        ({"a": Path("x")}, r"state\['a'\] is a pathlib"),
        ({"a": defaultdict(int)}, r"state\['a'\] is a collections.defaultdict"),
        ({"a": {(1, 2): 0}}, r"state\['a'\]: key \(1, 2\) is a builtins.tuple"),
        ({"a": nn.Linear(1, 1)}, r"state\['a'\] is a torch.nn.modules.linear.Linear"),
    ],
)
def test_what_weights_only_would_refuse_is_refused_when_saved(path, state, message):
    with pytest.raises(TypeError, match=message):
        checkpoint.save(path, state)
    assert same(checkpoint.load(path), STATE)


def test_parameters_and_models_as_they_are(path):
    model = nn.BatchNorm1d(3)
    checkpoint.save(path, {"model": model.state_dict(), "parameter": model.weight})
    assert same(checkpoint.load(path)["model"], dict(model.state_dict()))


def save_without_end(path, state):
    """Ends, at the latest, with the process that it is called in: a fork that must not go on with tests."""
    try:
        while True:
            state["step"] += 1
            for tensor in state["weights"]:
                tensor.fill_(state["step"])
            checkpoint.save(path, state)
    finally:
        os._exit(1)


def test_kill_9_while_saving_leaves_a_whole_checkpoint(tmp_path):
    """Forks save without end and are killed at odd moments."""
    path, steps = tmp_path / "last.pt", []
    state = {"step": 0, "weights": [torch.full((50_000,), 0.0) for _ in range(4)]}
    checkpoint.save(path, state)
    for _ in range(12):
        child = os.fork()
        if child == 0:
            save_without_end(path, state)
        time.sleep(random.uniform(0.02, 0.1))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        state = checkpoint.load(path)
        assert all((tensor == state["step"]).all() for tensor in state["weights"])
        steps.append(state["step"])
    assert steps == sorted(steps) and steps[-1] > 0, "no child saved anything, so nothing was tested"
    checkpoint.save(tmp_path / "last.pt", STATE)
    assert os.listdir(tmp_path) == ["last.pt"], "what the killed ones left is used up by the next"


@pytest.mark.parametrize("room", [0, 100, 20_000, 400_000])
def test_a_full_disk_keeps_the_old_checkpoint(path, room):
    with (
        files_limited_to(room),
        pytest.raises(UserError, match=r"last\.pt: cannot be written, file too large; free some space"),
    ):
        checkpoint.save(path, {"weights": torch.zeros(100_000)})  # 400,000 bytes and the archive around them
    assert same(checkpoint.load(path), STATE)
    assert os.listdir(path.parent) == ["last.pt"]


def test_ctrl_c_while_saving_stays_ctrl_c(path, monkeypatch):
    def interrupted_write(state, file):
        class File:
            written = 0

            def write(self, data):
                self.written += len(data)
                if self.written > 1000:
                    raise KeyboardInterrupt
                return len(data)

            def flush(self):
                pass

        torch_save(state, File())

    torch_save = torch.save
    monkeypatch.setattr(torch, "save", interrupted_write)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(path, {"weights": torch.zeros(1000)})
    monkeypatch.undo()
    assert same(checkpoint.load(path), STATE)
    assert os.listdir(path.parent) == ["last.pt"]


def test_a_folder_that_is_gone(tmp_path):
    with pytest.raises(UserError, match="its folder does not exist"):
        checkpoint.save(tmp_path / "gone" / "last.pt", STATE)


def test_every_flipped_byte_is_found(path):
    whole = path.read_bytes()
    for position in [*range(0, len(whole), 97), *range(len(whole) - 110, len(whole))]:
        damaged = bytearray(whole)
        damaged[position] ^= 0x10
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"last\.pt: (damaged|cut short)"):
            checkpoint.load(path)


@pytest.mark.parametrize("kept", [1, 83, 500, -200, -1])
def test_a_cut_file_is_found(path, kept):
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError, match="cut short"):
        checkpoint.load(path)


def test_files_that_are_no_checkpoints(path):
    folder = path.parent
    (folder / "empty.pt").touch()
    (folder / "text.pt").write_text("not a checkpoint " * 20)
    torch.save(STATE, folder / "plain.pt")
    os.mkfifo(folder / "pipe")
    faults = {
        "gone.pt": r"no such file; .* has empty\.pt, last\.pt, plain\.pt, \.\.\.",
        "": r"a folder; give a checkpoint file; .* has empty\.pt",
        "empty.pt": "empty; use another",
        "text.pt": "not a checkpoint of this program",
        "plain.pt": "not a checkpoint of this program",
        "pipe": "not a regular file",
    }
    for name, message in faults.items():
        with pytest.raises(UserError, match=message) as caught:
            checkpoint.load(folder / name)
        assert str(caught.value).startswith(str(folder)) and "\n" not in str(caught.value)


def sealed(path, write):
    """A file with the right digest around whatever `write` puts into it."""
    with open(path, "w+b") as file:
        write(file)
        seal(file)


class Bomb:
    def __init__(self, witness):
        self.witness = witness

    def __reduce__(self):
        return os.mkdir, (str(self.witness),)


def test_code_in_a_checkpoint_is_not_run(path):
    witness = path.with_name("witness")
    sealed(path, lambda file: torch.save({"format": 1, "bomb": Bomb(witness)}, file))
    with pytest.raises(UserError, match="more than tensors and plain values; refused"):
        checkpoint.load(path)
    path.write_bytes(pickle.dumps(Bomb(witness)))
    with pytest.raises(UserError, match="not a checkpoint"):
        checkpoint.load(path)
    assert not witness.exists()


@pytest.mark.parametrize("read", [checkpoint.load, checkpoint.peek])
def test_a_sealed_file_is_not_unpacked_to_more_than_its_size(path, read, monkeypatch):
    checkpoint.save(path, {**STATE, "model": {"weight": torch.zeros(10**6)}})
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with open(path, "r+b") as file:
        seal(file)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("unpacked"))
    if read is checkpoint.peek:
        assert read(path) == {}
    else:
        with pytest.raises(UserError, match=r"last.pt: .* kB that unpack to 4 MB, which tools/train.py did not write"):
            read(path)


def test_an_archive_of_something_else(path):
    def write(file):
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("a.txt", "a")

    sealed(path, write)
    with pytest.raises(UserError, match="cannot be read as a checkpoint"):
        checkpoint.load(path)


@pytest.mark.parametrize("state", [[1], {"model": {}}, {"format": "1"}])
def test_another_programs_state(path, state):
    sealed(path, lambda file: torch.save(state, file))
    with pytest.raises(UserError, match="not a checkpoint of this program"):
        checkpoint.load(path)


def test_a_newer_format_asks_for_an_update(path):
    sealed(path, lambda file: torch.save({"format": 2}, file))
    with pytest.raises(UserError, match="format 2, this version reads up to 1; update HybridMerge"):
        checkpoint.load(path)


def model():
    return nn.Sequential(OrderedDict(body=nn.Linear(4, 3), head=nn.Linear(3, 2)))


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes_of_wrappers_make_no_difference(prefix):
    source, target = model(), model()
    state = {prefix + name: value for name, value in source.state_dict().items()}
    checkpoint.load_model_state(target, state, "last.pt")
    assert same(dict(target.state_dict()), dict(source.state_dict()))


def test_a_wrapped_model_takes_plain_weights():
    source, target = model(), nn.DataParallel(model())
    checkpoint.load_model_state(target, source.state_dict(), "last.pt")
    assert same(dict(target.module.state_dict()), dict(source.state_dict()))


def test_a_part_that_is_called_module():
    source, target = nn.ModuleDict({"module": model()}), nn.ModuleDict({"module": model()})
    checkpoint.load_model_state(target, source.state_dict(), "last.pt")
    assert same(dict(target.state_dict()), dict(source.state_dict()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("head.bias"), r"x\.pt: the weights do not fit the model: 1 missing \(head\.bias\); use"),
        (lambda s: s.update(fc=torch.ones(1)), r"1 unexpected \(fc\)"),
        (lambda s: s.update({"head.bias": torch.ones(5)}), r"1 of another shape \(head\.bias \(5,\), .* \(2,\)\)"),
        (lambda s: s.clear(), r"4 missing \(body\.weight, body\.bias, head\.weight, \.\.\.\)"),
        (lambda s: s.update({"module.head.bias": torch.ones(2)}), "names some weights twice"),
        (lambda s: s.update({"head.bias": 3}), "not a model's weights"),
    ],
)
def test_weights_that_do_not_fit_change_nothing(change, message):
    target = model()
    before = {name: value.clone() for name, value in target.state_dict().items()}
    state = {name: torch.full_like(value, 9.0) for name, value in before.items()}
    change(state)
    with pytest.raises(UserError, match=message):
        checkpoint.load_model_state(target, state, "x.pt")
    assert same(dict(target.state_dict()), before)


@pytest.mark.parametrize("keep", [1, 2])
def test_the_checkpoint_keeps_its_name_until_the_new_one_has_it(tmp_path, monkeypatch, keep):
    """Killed after the older ones have moved on, twice: last.pt is there, and the next save does what it should."""
    path, before = tmp_path / "last.pt", [tmp_path / f"last-{i + 1}.pt" for i in range(keep)]
    for step in range(3):
        checkpoint.save(path, {"step": step}, before)

    move = os.replace
    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", lambda old, new: fail() if Path(new) == path else move(old, new))
            with pytest.raises(KeyboardInterrupt):
                checkpoint.save(path, {"step": 3}, before)
        assert [checkpoint.load(file)["step"] for file in (path, before[0])] == [2, 2]
    checkpoint.save(path, {"step": 3}, before)
    assert [checkpoint.load(file)["step"] for file in (path, before[0])] == [3, 2]
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(file.name for file in [path, *before])


def test_checkpoints_on_a_file_system_without_hard_links(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    path, before = tmp_path / "last.pt", [tmp_path / "last-1.pt"]
    for step in range(3):
        checkpoint.save(path, {"step": step}, before)
    assert [checkpoint.load(file)["step"] for file in (path, *before)] == [2, 1]


def fail():
    raise KeyboardInterrupt
