import ctypes
import errno
import gc
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from threading import Timer
from types import SimpleNamespace

import pytest
import torch

import engine.data.loading.workers as workers_module
from engine.data import SplitSettings, build_data
from engine.data.arrays import Data
from engine.data.loading.loader import TrainLoader, eval_batches
from engine.data.loading.workers import Reader, killed_workers_as_errors
from engine.data.settings import AugmentSettings
from engine.data.sources.folder import FolderSettings
from engine.train.loop.signals import Stopped, Stopping
from models.settings import UserError, check
from tests.engine.data.conftest import save_image
from tests.processes import said_by

PLAIN = AugmentSettings()
CLONE_NEWNS = 0x20000  # of Linux: mounts of its own
STRONG = {"transforms": [{"name": "RandomResizedCrop"}, {"name": "RandAugment"}, {"name": "RandomErasing"}]}


@pytest.fixture
def images(tmp_path) -> Path:
    for i in range(30):
        save_image(tmp_path / "images" / "ab"[i % 2] / f"{i}.png", i, (20 + i, 24))
    return tmp_path / "images"


def data_of(path: Path, cache: str) -> Data:
    return build_data(FolderSettings(path=str(path), size=16, cache=cache), SplitSettings(), 0)


def batches(data: Data, augment: AugmentSettings, workers: int, epoch: int = 0, start: int = 0) -> list[torch.Tensor]:
    loader = TrainLoader(data.train, 4, augment, data.mean, data.std, 0, None, workers)
    with closing(loader):
        return [images for images, _ in loader.epoch(epoch, start)]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return len(one) == len(other) > 0 and all(a.equal(b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("cache", ["memory", "none"])
def test_batches_do_not_depend_on_the_number_of_processes(images, cache):
    data, augment = data_of(images, cache), check(AugmentSettings, STRONG)
    expected = batches(data, augment, 0)
    for workers in (1, 2):
        loader = TrainLoader(data.train, 4, augment, data.mean, data.std, 0, None, workers)
        assert same([x for x, _ in loader.epoch(0)], expected)
        next(loader.epoch(1))  # left in the middle
        assert same([x for x, _ in loader.epoch(0, start=2)], expected[2:])  # entered there
    assert not same(batches(data, augment, 0, epoch=1), expected)


def test_images_left_in_files_are_those_in_memory(images):
    kept, left = data_of(images, "memory"), data_of(images, "none")
    for augment in (PLAIN, AugmentSettings(flip=True, scale=0.5, erase=0.5)):
        assert same(batches(kept, augment, 0), batches(left, augment, 2))
    assert (kept.mean, kept.std) == (left.mean, left.std)
    for one, other in ((kept.train, left.train), (kept.val, left.val), (kept.test, left.test)):
        assert one.paths == other.paths and one.labels.equal(other.labels)
        assert list(one.digests()) == list(other.digests())
        pairs = zip(eval_batches(one, 4, kept.mean, kept.std), eval_batches(other, 4, kept.mean, kept.std), strict=True)
        assert all(a.equal(b) and x.equal(y) for (a, x), (b, y) in pairs)
    index = torch.tensor([3, 0, 3])
    assert kept.train.take(index).read(torch.tensor([1])).equal(left.train.take(index).read(torch.tensor([1])))


def test_transforms_see_the_whole_image_only_if_it_is_left_in_its_file(images):
    augment = check(AugmentSettings, {"transforms": [{"name": "CenterCrop"}]})
    whole, cached = (batches(data_of(images, cache), augment, 0) for cache in ("none", "memory"))
    assert not same(whole, cached)  # the middle of 24 pixels' height, and all of it brought to 16


def test_the_global_generator_is_left_alone(images):
    data, augment = data_of(images, "none"), check(AugmentSettings, STRONG)
    for workers in (0, 2):
        torch.manual_seed(5)
        batches(data, augment, workers)
        assert torch.rand(1).equal(torch.manual_seed(5) and torch.rand(1))


def test_a_file_that_goes_missing_is_named(images):
    data = data_of(images, "none")
    gone = data.train.paths[7]
    os.unlink(gone)
    for workers in (0, 2):
        with pytest.raises(UserError, match=r"can no longer be read \(No such file or directory\); put it back") as e:
            batches(data, check(AugmentSettings, STRONG), workers)
        assert repr(gone) in str(e.value) and "\n" not in str(e.value)
    with pytest.raises(UserError, match="put them back"):
        data.train.read(torch.tensor([7]))


def test_a_killed_process_is_said_and_none_is_left_behind(images):
    data, augment = data_of(images, "none"), check(AugmentSettings, STRONG)
    loader = TrainLoader(data.train, 4, augment, data.mean, data.std, 0, None, 1)
    gc.collect()  # loaders of other tests that an exception has held
    before, running = _children(), loader.epoch(0)
    next(running)
    (worker,) = set(_children()) - set(before)
    said = pytest.raises(UserError, match=r"data.workers: .* was killed .*data.workers=1, or 0")
    with said, killed_workers_as_errors(), closing(loader):
        os.kill(worker, signal.SIGKILL)
        for epoch in range(50):
            list(loader.epoch(epoch))
    before = _children()
    list(TrainLoader(data.train, 4, augment, data.mean, data.std, 0, None, 2).epoch(0))
    list(loader.epoch(0))  # it starts others
    loader.close()
    gc.collect()
    deadline = time.monotonic() + 10
    while set(_children()) - set(before) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not set(_children()) - set(before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_to_all_processes_leave_the_workers_at_work(images, number):
    data, augment = data_of(images, "none"), check(AugmentSettings, STRONG)
    loader = TrainLoader(data.train, 4, augment, data.mean, data.std, 0, None, 1)
    gc.collect()
    before, running = _children(), loader.epoch(0)
    with closing(loader):
        first = next(running)[0]
        (worker,) = set(_children()) - set(before)
        subprocess.run(["kill", f"-{number.value}", str(worker)], check=True)  # from another process
        rest = [x for x, _ in running]
        again = [x for x, _ in loader.epoch(0)]  # by the same process, which has the signal behind it
        assert same([first, *rest], again) and worker in _children()
    assert worker not in _children()


def test_a_process_ends_when_this_one_tells_it_to(images):
    data = data_of(images, "none")
    loader = TrainLoader(data.train, 4, PLAIN, data.mean, data.std, 0, None, 1)
    gc.collect()
    before, running = _children(), loader.epoch(0)
    next(running)
    (worker,) = set(_children()) - set(before)
    os.kill(worker, signal.SIGTERM)
    assert _gone(worker)
    loader.close()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)"),
            "/dev/shm (",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), "or more shared memory (docker run --shm-size=1g)"),
        (OSError(errno.EMFILE, "Too many open files"), "need more open files than are allowed; use ulimit -n 4096"),
        (OSError("AF_UNIX path too long"), "cannot be set up (af_unix path too long; are /dev/shm and TMPDIR right?)"),
    ],
)
def test_a_batch_that_cannot_be_shared_is_one_line(images, monkeypatch, error, words):
    """It is shared in the worker's main thread: torch would do it in another one, whose errors are printed and lost."""

    def refused(batch):
        raise error

    pickler = SimpleNamespace(dumps=refused)
    monkeypatch.setattr(workers_module, "ForkingPickler", pickler)  # in the forked processes as well
    data = data_of(images, "none")
    with pytest.raises(UserError, match=r"^data.workers = 2: [^\n]*data.workers=0[^\n]*$") as caught:
        batches(data, PLAIN, 2)
    assert words in str(caught.value)
    assert len(batches(data, PLAIN, 0)) > 1  # as the advice says


def test_workers_that_die_by_the_signal_are_closed_without_an_error(images, monkeypatch):
    """Torch would raise an error in this process."""
    monkeypatch.setattr(workers_module, "_begin", dies_by_the_signal)
    data = data_of(images, "none")
    for _ in range(3):
        assert len(batches(data, PLAIN, 2)) > 1


def dies_by_the_signal(_: int) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # workers are born deaf to it


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="needs a /dev/shm of its own")
def test_shared_memory_that_is_too_small_is_one_line(images):
    """A real /dev/shm: the queues fit, the batches do not."""
    said = said_by(lambda: read_all(images))
    if said.startswith("no /dev/shm"):
        pytest.skip(said)
    assert said.startswith("data.workers = 2: ") and "/dev/shm (0.00781 MiB" in said and said.count("\n") == 1


def read_all(images: Path) -> None:
    """Prints the error of reading with two processes where /dev/shm is 8 KiB."""
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNS):
        return print(f"no /dev/shm of its own: {os.strerror(ctypes.get_errno())}")
    for mount in (["--make-rprivate", "/"], ["-t", "tmpfs", "-o", "size=8k", "tmpfs", "/dev/shm"]):
        done = subprocess.run(["mount", *mount], capture_output=True, text=True)
        if done.returncode:
            return print(f"no /dev/shm of its own: {done.stderr}")
    try:
        batches(data_of(images, "none"), PLAIN, 2)
    except UserError as error:
        print(error)


def test_processes_that_cannot_start_leave_nothing_behind(images, monkeypatch, capfd):
    """The second of three cannot be forked; the first ends."""
    data = data_of(images, "none")
    gc.collect()
    before, fork, forked = _children(), os.fork, []

    def limited():
        if len(forked) == 1:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        forked.append(fork())
        return forked[-1]

    monkeypatch.setattr(os, "fork", limited)
    with pytest.raises(UserError, match="cannot all be started .resource temporarily unavailable.; use fewer of them"):
        batches(data, PLAIN, 3)
    gc.collect()
    assert _gone(forked[0]) and set(_children()) <= set(before)
    assert capfd.readouterr().err == ""


def test_too_few_open_files_are_raised_or_said(images):
    data, before = data_of(images, "none"), resource.getrlimit(resource.RLIMIT_NOFILE)
    opened = len(os.listdir("/dev/fd"))
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (opened + 5, before[1]))
        assert len(batches(data, PLAIN, 1)) > 1  # the soft limit is ours to raise
        # The hard one is not. A process cannot raise it again either, so that it is only said to be low here.
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(resource, "getrlimit", lambda _: (opened + 5, opened + 5))
            with pytest.raises(UserError, match="data.workers = 2: .* more open files than are allowed; use ulimit -n"):
                batches(data, PLAIN, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("how", ["stopped", "stuck"])
def test_processes_that_hang_end_with_the_loader(images, how, monkeypatch):
    """Stopped, or in a call that never returns and holds Python's lock, so that they do not hear SIGTERM."""
    monkeypatch.setattr(workers_module, "PATIENCE", 0.2)
    data = data_of(images, "none")
    loader = TrainLoader(data.train, 4, PLAIN, data.mean, data.std, 0, None, 2)
    if how == "stuck":
        monkeypatch.setattr(Reader, "_read", lambda reader, index: ctypes.PyDLL(None).sleep(60))
    gc.collect()
    before, running = set(_children()), loader.epoch(0)
    with Stopping() as stopping:
        if how == "stopped":
            next(running)
            for process in set(_children()) - before:
                os.kill(process, signal.SIGSTOP)
        Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
        with pytest.raises(Stopped):
            list(stopping.waiting(running))
        processes = set(_children()) - before
        started = time.monotonic()
        loader.close()
    assert time.monotonic() - started < 8
    assert len(processes) == 2 and not processes & set(_children())


def leave_an_orphan() -> None:
    """Ends at once, before the process that it has started begins as a worker does."""

    def orphan() -> None:
        while os.getppid() == multiprocessing.parent_process().pid:
            time.sleep(0.01)
        os.write(1, b"begins ")
        workers_module._begin(0)
        time.sleep(9)
        os.write(1, b"lives on")

    multiprocessing.get_context("fork").Process(target=orphan).start()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere workers do not wait for signals")
def test_a_process_that_begins_after_its_parent_has_ended():
    """Its parent is another by then, for whose end it would wait."""
    assert said_by(leave_an_orphan) == "begins "


def _gone(process: int) -> bool:
    deadline = time.monotonic() + 10
    while process in _children() and time.monotonic() < deadline:
        time.sleep(0.05)
    return process not in _children()


def _children() -> list[int]:
    """Processes that this one has started and that still run."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = entry.read_text().rpartition(") ")
        except OSError:
            continue
        state, parent = rest.split()[:2]
        if int(parent) == os.getpid() and state != "Z" and "resource_tracker" not in name:
            found.append(int(entry.parent.name))
    return found


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("together, own", [(None, 16), ("", 16), ("1", 16), ("4", 4), ("6", 2), ("99", 1)])
def test_processes_that_train_together_share_the_processors(monkeypatch, make_arrays, together, own):
    monkeypatch.setattr(workers_module, "processors", lambda: 16)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if together is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", together)  # as torchrun does
    reader = workers_module.Reader(make_arrays(4), None, seed=0)
    assert workers_module.Workers(reader, None).count == min(own, workers_module.MOST)
    assert workers_module.Workers(reader, 3).count == 3
