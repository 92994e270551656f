import gc
import os
import signal
import subprocess
import time
from contextlib import closing
from pathlib import Path

import pytest
import torch

from engine.data import SplitSettings, build_data
from engine.data.arrays import Data
from engine.data.loader import TrainLoader, eval_batches
from engine.data.settings import AugmentSettings
from engine.data.sources.folder import FolderSettings
from engine.data.workers import killed_workers_as_errors
from models.settings import UserError, check
from tests.engine.data.conftest import save_image

PLAIN = AugmentSettings()
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
