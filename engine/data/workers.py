"""Worker processes that read and transform images in the background, so that training steps do not wait for them."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Thread

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2.functional import pil_to_tensor

from engine.data.arrays import Split
from engine.data.images import to_square
from engine.data.reading import Files
from engine.data.transforms import compose, keys, transformed
from models.settings import Settings, UserError

MOST = 8  # default largest number of processes


class Reader(Dataset):
    """Reads batches of images by (epoch, draw), transformed with random numbers keyed by (seed, epoch, draw).

    The draw i + N r is image i of N, see `engine.data.order`.

    Args:
        split: images in memory or in files.
        transforms: settings from engine.data.transforms; None: images as in evaluation.
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
        return [torch.from_numpy(square).permute(2, 0, 1) for square in squares]

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
        self.count = min(processors(), MOST) if count is None else count
        self._keys = _Keys()
        worker_options = {}
        if self.count:
            # A forked process shares the images in memory; forking is safe with the system's libraries only on Linux.
            context = "fork" if sys.platform == "linux" else None
            worker_options = {"worker_init_fn": _begin, "multiprocessing_context": context, "persistent_workers": True}
        # A generator of its own, because the loader draws a number at the start of each epoch.
        self._loader = DataLoader(
            reader,
            batch_sampler=self._keys,
            num_workers=self.count,
            collate_fn=_unchanged,
            generator=torch.Generator(),
            **worker_options,
        )

    def batches(self, epoch: int, chosen: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yields the images of each batch of draws, int64 (B,), as uint8 (B, C, H, W).

        Raises:
            UserError: an image can no longer be read.
        """
        self._keys.batches = [[(epoch, i) for i in index.tolist()] for index in chosen]
        for images in self._loader:
            if isinstance(images, UserError):
                raise images
            yield images

    def close(self) -> None:
        """Stops the processes; the next epoch would start new ones."""
        running, self._loader._iterator = self._loader._iterator, None
        if running is not None:
            running._shutdown_workers()  # otherwise they live as long as the iterator, which a traceback may keep alive


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


def _unchanged(batch: Tensor | UserError) -> Tensor | UserError:
    return batch


def _begin(_: int) -> None:
    """Sets up a worker process: one thread, and signals are ignored, because the main process stops the workers.

    Ctrl-C, `timeout`, systemd and batch systems send signals to all processes at once. The main process then still
    needs batches, to finish its step and save.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if hasattr(signal, "sigwaitinfo"):  # Linux
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        Thread(target=_exit_on_sigterm_from, args=(os.getppid(),), daemon=True).start()
    torch.set_num_threads(1)


def _exit_on_sigterm_from(process: int) -> None:
    """Waits for SIGTERM from one process, ignoring those from others, and exits."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != process:
        pass
    os._exit(0)
