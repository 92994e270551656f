"""BatchNorm over the shares of all processes of a group."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from models.settings import UserError


class SharedBatchNorm(nn.BatchNorm2d):
    """BatchNorm whose mean and variance are those of the images of all processes, on a CPU, of equal shares.

    On CUDA torch's SyncBatchNorm computes the same, faster; it refuses tensors on a CPU. As all processes normalise by
    the same moments, gradients through the moments are added up over the processes, too.
    """

    @classmethod
    def of(cls, norm: _BatchNorm) -> SharedBatchNorm:
        """Returns a norm with the parameters, buffers and mode of another."""
        shared = cls(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        shared._parameters, shared._buffers, shared.training = norm._parameters, norm._buffers, norm.training
        return shared

    def _check_input_dim(self, input: Tensor) -> None:
        """Takes (B, C) and (B, C, ...)."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) -> the same shape and precision, computed in float32."""
        if not self.training:
            return super().forward(x)
        axes, shape = [0, *range(2, x.ndim)], [1, -1] + [1] * (x.ndim - 2)
        with torch.autocast(x.device.type, enabled=False):
            values = x.float()
            mean = _mean_of_all(values.mean(axes))
            centred = values - mean.view(shape)
            variance = _mean_of_all(centred.square().mean(axes))
            self._move(mean.detach(), variance.detach(), dist.get_world_size() * x.numel() // x.shape[1])
            out = centred * (variance + self.eps).rsqrt().view(shape)
            if self.affine:
                out = out * self.weight.view(shape) + self.bias.view(shape)
        return out.to(x.dtype)

    @torch.no_grad()
    def _move(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Moves the running statistics, the variance as an unbiased estimate from `count` values."""
        if not self.track_running_stats:
            return
        self.num_batches_tracked.add_(1)
        step = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, step)
        self.running_var.lerp_(variance * (count / max(count - 1, 1)), step)


def share_batchnorm(model: nn.Module, device: torch.device) -> nn.Module:
    """Replaces the BatchNorm layers of a model, in place, by those of all processes; names and weights stay.

    Returns:
        The model.

    Raises:
        UserError: on a CPU, a BatchNorm of another library that does more.
    """
    if device.type == "cuda":
        shared: nn.Module = convert_sync_batchnorm(model)
        return shared
    for path, norm in [(path, part) for path, part in model.named_modules() if isinstance(part, _BatchNorm)]:
        if type(norm) not in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
            raise UserError(
                f"train.sync_batchnorm = true: {path} is a {type(norm).__name__}, which on a CPU does not "
                "take the images of other processes; use GPUs, or set it to false"
            )
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, SharedBatchNorm.of(norm))
    return model


class _SumOfAll(torch.autograd.Function):
    """The sum over all processes. What each makes of it depends on the value of every one, so gradients are summed."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total


def _mean_of_all(value: Tensor) -> Tensor:
    """The mean over all processes, through which gradients pass."""
    total: Tensor = _SumOfAll.apply(value)
    return total / dist.get_world_size()
