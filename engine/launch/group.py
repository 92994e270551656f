"""The processes that train one model together, started by torchrun, and what they tell one another.

Every process has the whole model, or a part of it (see `engine.launch.sharding`), and computes an equal share of each
batch; `torch.distributed` averages gradients. `train.batch_size` counts the images of all processes, so that their
number changes how fast a run is and not what it results in, up to rounding. The process of rank 0 leads: it alone
writes and prints.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from engine.launch.sharding import is_sharded
from models.merging.layer import MergeLayer
from models.settings import UserError

# What torchrun, and srun with it, set for each process.
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
# gloo notices at once, by its closed connections, that a process has ended. One that waits while the first process
# downloads or draws is not to be given up.
PATIENCE = timedelta(hours=2)
# torchrun ends all processes as soon as one has failed. What has gone wrong for all is for the first one to say.
SPEAKS = 5.0  # seconds that it has for this
BEGAN = "began"  # in the store, which outlives the processes: a run folder was taken


class Group:
    """The processes of one run. A run of a single process is a group of one, in which nothing is sent.

    Args:
        rank: the number of this process, from 0.
        size: the number of processes.
        device: where tensors lie that are sent.
        store: what torchrun keeps for the processes that it starts, and starts again; None: of a single process.
    """

    def __init__(
        self, rank: int = 0, size: int = 1, device: torch.device | None = None, store: dist.Store | None = None
    ) -> None:
        self.rank, self.size, self.store = rank, size, store
        self.device = device or torch.device("cpu")
        # Whether torchrun has started the processes again after they had taken the run's folder.
        self.restarted = store is not None and store.check([BEGAN])

    @property
    def leads(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    def led(self, open_: Callable[[], AbstractContextManager[Any]]) -> AbstractContextManager[Any]:
        """Returns the context that `open_` returns in the first process, and one that does nothing in the others: a run
        folder, which this job has from then on.

        Raises:
            UserError, SystemExit: it raised UserError there; see `agreed`.
        """
        with self.agreed():
            opened = open_() if self.leads else nullcontext()
            if self.leads and self.store is not None:
                self.store.set(BEGAN, "")
        return opened

    def share(self, count: int, name: str) -> slice:
        """Returns the part of `count` images that this process computes.

        Raises:
            UserError: the images cannot be divided equally; `name` is the setting that says how many there are.
        """
        if count % self.size:
            fewer = count // self.size * self.size
            raise UserError(
                f"{name} = {count}: cannot be divided equally among {self.size} processes; use "
                f"{f'{fewer} or ' if fewer else ''}{fewer + self.size}"
            )
        return slice(self.rank, None, self.size)

    def wrap(self, module: nn.Module) -> nn.Module:
        """Returns a module whose gradients are averaged over the processes; one that is sharded does so by itself."""
        if self.size == 1 or is_sharded(module):
            return module
        ids = [self.device.index] if self.device.type == "cuda" else None
        # Only a learned metric has parameters that get no gradient in some steps: where nothing merges, for example.
        idle = any(isinstance(part, MergeLayer) and part.head is not None for part in module.modules())
        return DistributedDataParallel(module, device_ids=ids, find_unused_parameters=idle)

    def mean(self, values: Tensor) -> Tensor:
        """Returns the mean over the processes of a tensor of equal shape in each."""
        if self.size > 1:
            dist.all_reduce(values)
            values /= self.size
        return values

    def wait(self) -> None:
        """Waits until all processes have come here."""
        if self.size > 1:
            dist.barrier()

    def largest(self, value: int) -> int:
        """Returns the largest of the processes' values."""
        if self.size == 1:
            return value
        values = torch.tensor(value, device=self.device)
        dist.all_reduce(values, dist.ReduceOp.MAX)
        return int(values)

    def share_buffers(self, model: nn.Module) -> None:
        """Gives every process the first one's buffers, such as the running statistics of BatchNorm."""
        if self.size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)

    def spread(
        self, compute: Callable[[Tensor], Tensor], batches: Iterable[tuple[Tensor, Tensor]], classes: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields the logits and the labels of all batches, in order; each process computes every size-th batch.

        Where there are fewer batches than processes, some compute the last one, too: the parameters of a sharded model
        are gathered by all processes together.

        Args:
            compute: images -> logits, float32 (B, classes).
            batches: images and labels, the same in every process.
            classes: the number of logits of an image.
        """
        each = iter(batches)
        if self.size == 1:
            yield from ((compute(images), labels) for images, labels in each)
        while part := list(islice(each, self.size)):
            longest = max(len(labels) for _, labels in part)
            sent = torch.zeros(longest, classes, device=self.device)
            images, labels = part[min(self.rank, len(part) - 1)]
            sent[: len(labels)] = compute(images)
            received = [torch.empty_like(sent) for _ in range(self.size)]
            dist.all_gather(received, sent)
            for logits, (_, labels) in zip(received, part, strict=False):
                yield logits[: len(labels)], labels

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """A block after which all processes go on, or none.

        Raises:
            UserError: in the first process: a process raised it in the block.
            SystemExit: in the others: one did.
            Exception: what this process raised, if that is another error.
        """
        if self.size == 1:
            yield
            return
        error: Exception | None = None
        try:
            yield
        except Exception as raised:
            error = raised
        said: list[str | None] = [None] * self.size
        dist.all_gather_object(said, None if error is None else str(error) or type(error).__name__)
        if error is not None and not isinstance(error, UserError):
            raise error
        for rank, text in enumerate(said):
            if text is not None:
                raise self.for_all(text if said[0] is not None else f"process {rank}: {text}")

    def explained(self, error: RuntimeError) -> BaseException:
        """What a process raises for an error of torch: another process has ended, parameters without a gradient, or the
        error itself."""
        if "finished reduction" in str(error):
            said = "parameters that learn get no gradient, which several processes cannot train together"
            return self.for_all(f"{said}; train with one process, or freeze them by finetune.groups")
        if not _is_lost_connection(error):
            return error
        said = "a process of this run has ended, so that the others stop; when the reason is mended, resume the run"
        return self.for_all(f"{said}: tools/train.py --resume DIR, with torchrun or without")

    def for_all(self, text: str) -> BaseException:
        """What each process raises where all stop for one reason, which the first says."""
        return UserError(text) if self.leads else SystemExit(2)


ALONE = Group()


def unsynchronised(module: nn.Module, last: bool) -> AbstractContextManager[None]:
    """A context for the backward pass of a micro-batch: gradients are exchanged after the last of a step alone."""
    return module.no_sync() if isinstance(module, DistributedDataParallel) and not last else nullcontext()


@contextmanager
def said_once() -> Iterator[None]:
    """A block before the processes are joined, in which all of them make the same mistake: the first one says it."""
    try:
        yield
    except UserError:
        if os.environ.get("RANK", "0") != "0":
            _let_the_first_speak()
            raise SystemExit(2) from None
        raise


def _let_the_first_speak() -> None:
    """Waits before another process than the first ends. Under torchrun it is a SIGTERM that ends this wait."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        time.sleep(SPEAKS)


@contextmanager
def joined(device_name: str) -> Iterator[Group]:
    """Joins the processes that torchrun has started; without torchrun it is a group of one.

    Args:
        device_name: the setting `device`.

    Raises:
        UserError: it names a single CUDA device, where every process has its own. One that is raised inside, by another
            process than the first, names the process.
    """
    environment = {name: os.environ.get(name) for name in VARIABLES}
    size = int(environment["WORLD_SIZE"] or 1)
    if None in environment.values():
        yield ALONE
        return
    if size == 1:  # torchrun may start it again
        agent = "TORCHELASTIC_RUN_ID" in os.environ  # otherwise nothing keeps the store
        yield Group(store=next(dist.rendezvous("env://", timeout=PATIENCE))[0]) if agent else ALONE
        return
    with said_once():
        device = _own_device(device_name, size)
    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store, rank, size = next(dist.rendezvous("env://", timeout=PATIENCE))
    # The store still holds the addresses of processes that torchrun has started again.
    addresses = dist.PrefixStore(f"start {restarts}", store)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=addresses, rank=rank, world_size=size, timeout=PATIENCE)
    group = Group(rank, size, device, store)
    with _after_the_first(group):
        try:
            dist.barrier()  # before one of them says in the store that the run began
            yield group
        except UserError as error:
            raise error if group.leads else UserError(f"process {rank}: {error}") from error
        except RuntimeError as error:
            raise group.explained(error) from error
        finally:
            dist.destroy_process_group()


@contextmanager
def _after_the_first(group: Group) -> Iterator[None]:
    """A block at whose end the other processes wait, if they leave it in silence since the first says why."""
    try:
        yield
    except SystemExit as leaving:
        if leaving.code == 2 and not group.leads:
            _let_the_first_speak()
        raise


def _own_device(name: str, size: int) -> torch.device:
    """Returns the device of this process, of `size`, where the setting `device` is `name`.

    Raises:
        UserError: it names one for all, CUDA where there is none, or there are fewer GPUs than processes.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise UserError(f"device = {name!r}: each of {size} processes has its own; use auto, cuda or cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device = 'cuda': not available here; use auto or cpu")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    number, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if number >= gpus:
        raise UserError(
            f"device = {name!r}: {gpus} GPUs for more processes; use --nproc_per_node={gpus}, or device=cpu"
        )
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


def _is_lost_connection(error: RuntimeError) -> bool:
    """Whether an error of torch says that another process cannot be reached."""
    text = str(error).lower()
    return isinstance(error, dist.DistError) or any(word in text for word in ("gloo", "nccl", "connection"))
