"""Models whose parameters are split over the processes: FSDP2, PyTorch's `fully_shard`.

Rajbhandari, Rasley, Ruwase, He: ZeRO: Memory Optimizations Toward Training Trillion Parameter Models. 2020. Zhao et
al.: PyTorch FSDP. 2023. Each process keeps an equal part of every parameter, of its gradient and of what the optimizer
knows of it. A block's parameters are gathered before it runs, and freed after it.

Checkpoints hold whole tensors, so that they can be read without the processes that wrote them: `gathered` and `part_of`
are the way out and back.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from models.settings import UserError


def shard(model: nn.Module, device: torch.device, size: int) -> None:
    """Splits the parameters of a model over all processes, in place, block by block, and moves them to the device.

    Args:
        model: the model, equal in all processes, on any device. Its parameters become others of the same names.
        device: of this process.
        size: the number of processes.

    Raises:
        UserError: a parameter that cannot be split.
    """
    # These imports take seconds, which most programs do not need.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    from models.interface import SeveralHeads
    from models.merging.wrapping import MergingBlocks
    from models.repeated import repeated

    if scalars := [name for name, parameter in model.named_parameters() if parameter.ndim == 0]:
        raise UserError(f"train.parallel = 'fsdp': {scalars[0]} is a single number, which cannot be split; use ddp")
    model.to(memory_format=torch.contiguous_format)  # fully_shard takes no other
    mesh = init_device_mesh(device.type, (size,))
    blocks = repeated(model)
    for block in blocks:
        fully_shard(block, mesh=mesh)
    for container in [module for module in model.modules() if isinstance(module, MergingBlocks)]:
        for name in container.names:  # the container calls a block's equations, not the block
            block = container.get_submodule(name)
            block.run_gathered = MethodType(_run, block)  # which `models.merging.wrapping.families` looks for
            register_fsdp_forward_method(block, "run_gathered")
        container.around = partial(_around, container.around)
    fully_shard(model, mesh=mesh)
    if isinstance(model, SeveralHeads):
        register_fsdp_forward_method(model, "forward_heads")
    model.to(device)  # buffers


def _run(block: nn.Module, run: Callable[..., Any], *args: Any, **options: Any) -> Any:
    return run(*args, **options)


def _around(inner: Callable[..., Any], block: Any, run: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Runs a block with its parameters gathered; see `MergingBlocks.around`."""
    return block.run_gathered(partial(inner, block, run), *args, **options)


def is_split(tensor: Tensor) -> bool:
    """Whether a tensor lies in parts in the processes: a DTensor, whose import takes a second."""
    return hasattr(tensor, "device_mesh")


def is_sharded(module: nn.Module) -> bool:
    """Whether the parameters of a module are split over processes."""
    return any(is_split(parameter) for parameter in module.parameters())


def whole(tensor: Tensor) -> Tensor:
    """Returns a tensor of which each process has a part as one, in all of them; any other as it is."""
    if not is_split(tensor):
        return tensor
    return tensor.detach().full_tensor()


def gathered(state: Any, keep: bool) -> Any:
    """Returns nested dicts, lists and tuples with whole tensors on the CPU in place of those that are split.

    All processes call it together, one tensor after the other, so that a device never holds two whole ones.

    Args:
        state: the same structure in each process.
        keep: whether this process needs the result; otherwise it has None for those tensors.
    """
    if isinstance(state, Tensor):
        if not is_split(state):
            return state
        full = whole(state)
        return full.cpu() if keep else None
    if isinstance(state, dict):
        return type(state)((key, gathered(value, keep)) for key, value in state.items())
    if isinstance(state, list | tuple):
        return type(state)(gathered(value, keep) for value in state)
    return state


def part_of(tensor: Tensor, like: Tensor) -> Tensor:
    """Returns this process's part of a whole tensor, split as another one; the tensor itself if that one is whole.

    Every process has the whole tensor: nothing is sent.
    """
    if not is_split(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = like.device_mesh, like.placements
    part: Tensor = distribute_tensor(tensor.to(like.device), mesh, placements, src_data_rank=None)
    return part.clone()  # the part alone: it may be a view of the whole


def optimizer_part(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Returns the state dict of an optimizer with this process's parts of the tensors that belong to split parameters.

    Args:
        state: whole, as returned by `gathered`.
        optimizer: which is to load it.

    Raises:
        AttributeError, KeyError, TypeError: it is no such state.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if not any(map(is_split, parameters)):
        return state

    def of_parameter(value: Any, parameter: Tensor) -> Any:
        split = isinstance(value, Tensor) and value.shape == parameter.shape
        return part_of(value, parameter) if split else value

    parts = {
        number: {key: of_parameter(value, parameters[number]) for key, value in values.items()}
        for number, values in state["state"].items()
    }
    return {**state, "state": parts}
