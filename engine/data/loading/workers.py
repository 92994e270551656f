"""Worker processes that read and transform images in the background, so that training steps do not wait for them."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import parent_process
from multiprocessing.reduction import ForkingPickler
from threading import Thread

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info
from torch.utils.data._utils.signal_handling import _remove_worker_pids
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter
from torchvision.transforms.v2.functional import pil_to_tensor

from engine.data.arrays import Split
from engine.data.augmentation.transforms import compose, keys, transformed
from engine.data.images import to_square
from engine.data.loading.limits import demand_files, limit_in_words
from engine.data.reading import Files
from models.settings import Settings, UserError

MOST = 8  # default largest number of processes
PATIENCE = 1.0  # seconds that processes have to end when they are told to


class Reader(Dataset):
    """Reads batches of images by (epoch, draw), transformed with random numbers keyed by (seed, epoch, draw).

    The draw i + N r is image i of N, see `engine.data.loading.order`.

    Args:
        split: images in memory or in files.
        transforms: settings from engine.data.augmentation.transforms; None: images as in evaluation.
        seed: the run's seed.

    Raises:
        UserError: the output of the transforms does not have the split's size.
    """

    def __init__(self, split: Split, transforms: Sequence[Settings] | None, seed: int) -> None:
        self.split, self.seed = split, seed
        self.compose = None if transforms is None else compose(transforms, split.shape, whole=isinstance(split, Files))

    def __getitems__(self, keys_of_batch: Sequence[tuple[int, int]]) -> Tensor | UserError:
        """Returns uint8 (B, C, H, W), or the error that an image cannot be read, whose text would be lost if raised."""
        epoch, draws = keys_of_batch[0][0], [draw for _, draw in keys_of_batch]
        index = [draw % len(self.split) for draw in draws]
        try:
            return torch.stack(self._read(index) if self.compose is None else self._transformed(epoch, draws, index))
        except UserError as error:
            return error

    def _read(self, index: list[int]) -> list[Tensor]:
        """Returns images as in evaluation."""
        split = self.split
        if not isinstance(split, Files):
            return list(split.read(torch.tensor(index)))
        squares = (to_square(split.whole(i), split.settings) for i in index)
        return [torch.from_numpy(np.array(square)).permute(2, 0, 1) for square in squares]  # torch wants to own it

    def _transformed(self, epoch: int, draws: list[int], index: list[int]) -> list[Tensor]:
        if isinstance(self.split, Files):
            images = (pil_to_tensor(self.split.whole(i)) for i in index)
        else:
            images = self._read(index)
        seeds = keys(self.seed, epoch, np.array(draws))
        return [transformed(image, self.compose, seed) for image, seed in zip(images, seeds)]


class Workers:
    """Worker processes that run a Reader and stay alive from epoch to epoch; with 0 of them it runs in this process."""

    def __init__(self, reader: Reader, count: int | None) -> None:
        self.count = min(own_processors(), MOST) if count is None else count
        self._keys = _Keys()
        worker_options = {}
        if self.count:
            # A forked process shares the images in memory; forking is safe with the system's libraries only on Linux.
            context = "fork" if sys.platform == "linux" else None
            worker_options = {"worker_init_fn": _begin, "multiprocessing_context": context, "persistent_workers": True}
        # A generator of its own, because the loader draws a number at the start of each epoch.
        self._loader = _Loader(
            reader,
            batch_sampler=self._keys,
            num_workers=self.count,
            collate_fn=_shared if self.count else _unchanged,
            generator=torch.Generator(),
            **worker_options,
        )

    def batches(self, epoch: int, chosen: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yields the images of each batch of draws, int64 (B,), as uint8 (B, C, H, W).

        Raises:
            UserError: an image can no longer be read; or the system has no room for the processes, their batches in
                shared memory, or their files.
        """
        self._keys.batches = [[(epoch, i) for i in index.tolist()] for index in chosen]
        with self._system_limits_as_errors():
            for images in self._loader:
                if isinstance(images, UserError):
                    raise images
                yield images

    def close(self) -> None:
        """Stops the processes, also those that hang; the next epoch would start new ones."""
        running, self._loader._iterator = self._loader._iterator, None
        if running is None:
            return
        running.forget()  # before any of them is killed
        processes = running._workers
        for process in processes:
            process.terminate()
        deadline = time.monotonic() + PATIENCE
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))
        for process in processes:
            if process.is_alive():
                process.kill()
                process.join(PATIENCE)
        running._shutdown_workers()  # otherwise the rest lives as long as the iterator, which a traceback may keep

    @contextmanager
    def _system_limits_as_errors(self) -> Iterator[None]:
        """Turns errors of the system that limit the number of processes into a UserError."""
        try:
            yield
        except (OSError, RuntimeError) as error:
            if not self.count or isinstance(error, ConnectionError) or (limit := limit_in_words(error)) is None:
                raise  # a killed process also ends a connection
            raise UserError(f"data.workers = {self.count}: {limit}") from error


class _Loader(DataLoader):
    """A loader whose iterator leaves nothing behind if it cannot be made."""

    def _get_iterator(self) -> Iterator:
        return _Processes(self) if self.num_workers else super()._get_iterator()


class _Processes(_MultiProcessingDataLoaderIter):
    """The iterator of a loader, which starts its processes; stops those that it has started if it cannot start all."""

    def __init__(self, loader: DataLoader) -> None:
        self._workers = []
        try:
            demand_files(loader.num_workers)
            with _born_deaf():
                super().__init__(loader)
        except BaseException:
            self._shutdown = True  # otherwise torch shuts down what was never made
            for process in self._workers:
                process.terminate()
            raise

    def forget(self) -> None:
        """Ends torch's watch over the processes, which raises an error anywhere in this process if one is killed."""
        if self._worker_pids_set:
            _remove_worker_pids(id(self))
            self._worker_pids_set = False


class _Keys:
    """The batch sampler of the loader: the keys of each batch, set for each epoch."""

    def __init__(self) -> None:
        self.batches: list[list[tuple[int, int]]] = []

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


@contextmanager
def killed_workers_as_errors() -> Iterator[None]:
    """Turns the error that torch raises, at any point of the main process, when a worker is killed into a UserError."""
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError) as error:  # the last two if it was sending a batch
        if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
            raise
        raise UserError(
            "data.workers: a process that reads images was killed (out of memory, or of shared memory in "
            "/dev/shm?); continue with --resume and fewer of them, such as data.workers=1, or 0"
        ) from error


def processors() -> int:
    """Returns the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def own_processors() -> int:
    """Returns this process's part of the processors, at least 1: torchrun says how many processes share them."""
    return max(1, processors() // int(os.environ.get("LOCAL_WORLD_SIZE") or 1))


def _unchanged(batch: Tensor | UserError) -> Tensor | UserError:
    return batch


class _Shared:
    """A batch that lies in shared memory already; it arrives in the main process as the batch itself.

    Without this, the batch is copied there in a thread that the queue of results starts in the worker process. An error
    in that thread is printed and lost, and the main process waits for the batch for ever.
    """

    def __init__(self, batch: Tensor | UserError) -> None:
        self._pickled = bytes(ForkingPickler.dumps(batch))

    def __reduce__(self) -> tuple:
        return pickle.loads, (self._pickled,)


def _shared(batch: Tensor | UserError) -> _Shared | UserError:
    """Copies a batch into shared memory, in a worker process; returns the error if there is no room."""
    try:
        return _Shared(batch)
    except (OSError, RuntimeError) as error:
        limit = limit_in_words(error)
        if limit is None:
            raise
        return UserError(f"data.workers = {get_worker_info().num_workers}: {limit}")


@contextmanager
def _born_deaf() -> Iterator[None]:
    """Blocks SIGTERM where processes are forked, so that it is blocked in all of their threads from the first moment.

    Libraries such as those of trackers start threads in every forked process, before `_begin` is called there.
    """
    if not hasattr(signal, "sigtimedwait"):  # not Linux
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(_: int) -> None:
    """Sets up a worker process: one thread, and signals are ignored, because the main process stops the workers.

    Ctrl-C, closed terminals, `timeout`, systemd and batch systems send signals to all processes at once. The main
    process then still needs batches, to finish its step and save.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    if hasattr(signal, "sigtimedwait"):  # Linux
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if hasattr(signal, "sigtimedwait"):
        parent = parent_process()  # os.getppid() may be another already: this process may begin after its parent's end
        assert parent is not None and parent.pid is not None
        Thread(target=_exit_with, args=(parent.pid,), daemon=True).start()
    torch.set_num_threads(1)


def _exit_with(parent: int) -> None:
    """Ends this process when its parent sends SIGTERM or is gone; SIGTERM from others is ignored."""
    while os.getppid() == parent:
        received = signal.sigtimedwait({signal.SIGTERM}, PATIENCE)
        if received is not None and received.si_pid == parent:
            break
    os._exit(0)
