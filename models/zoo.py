"""timm's and torchvision's models behind our interface: `timm:NAME` and `torchvision:NAME`.

They are the libraries' own modules, with the libraries' parameter names. The attributes that the engine needs of every
model are added: `img_size`, `in_chans`, `num_classes`, and `head_names`, the names of the modules that classify.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import TypeVar

import timm
import torch
import torchvision
from torch import nn

from .heads import new_head
from .merging.wrapping import wrap
from .settings import UserError
from .settings.zoo import ZooSettings, hub_name

T = TypeVar("T")


_TAKEN: set[tuple[str, int]] = set()  # settings and sizes that went through: a run builds its model several times


class _Refused(Exception):
    """The library does not accept an image size, or options."""


def build_zoo(settings: ZooSettings) -> nn.Module:
    """Builds the library's model for the image size, channels and classes in the settings, with random weights.

    Raises:
        UserError: the library does not accept an option, the model does not accept the image size (the error names
            sizes that work), no classifier is found in the model, or it does not support merging.
    """
    own = settings.metadata(settings.arch, settings.weights).img_size
    if (settings.img_size != own or settings.options) and not _takes(settings, settings.img_size):
        raise UserError(_refusal(settings, own))
    try:
        model = _create(settings, settings.img_size)
    except _Refused as error:
        raise UserError(f"model.arch = {settings.arch!r}: {settings.name} cannot build it ({error})") from None
    paths = head_paths(model)
    if not paths:
        raise UserError(f"model.arch = {settings.arch!r}: timm knows no classifier in it; choose another model")
    if settings.head != "linear":
        for path in paths:
            _replace_head(model, path, settings)
    model.img_size, model.in_chans, model.num_classes = settings.img_size, settings.in_chans, settings.classes
    model.head_names = paths
    if settings.merge is not None:
        try:
            wrap(model, **settings.merge.model_dump(exclude_defaults=True))
        except UserError as error:
            raise UserError(f"model.merge, {settings.name}:{settings.arch}: {error}") from None
    return model


def head_paths(model: nn.Module) -> tuple[str, ...]:
    """Returns the paths of the modules that turn features into logits; none where a model of timm has no classifier.

    timm names them (a distilled DeiT has two). In torchvision's models it is the last linear layer, or in SqueezeNet
    the classifier around the last convolution.
    """
    if hasattr(model, "pretrained_cfg"):  # timm
        named = model.pretrained_cfg.get("classifier") or "head"
        learn = {name for name, module in model.named_modules() if any(True for _ in module.parameters())}
        return tuple(name for name in ((named,) if isinstance(named, str) else named) if name in learn)
    last = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1]
    return (last if isinstance(model.get_submodule(last), nn.Linear) else last.rpartition(".")[0],)


def without_data(build: Callable[[], T]) -> T:
    """Calls a function that builds a model on the meta device, where tensors need no storage.

    Where a constructor reads numbers from tensors (RegNet its widths, the ViTs of older versions of timm their drop
    rates), the function is called again on the CPU. No random number is drawn.
    """
    try:
        with torch.device("meta"):
            return build()
    except RuntimeError as error:
        if not _needs_data(error):
            raise
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        return build()


def _needs_data(error: Exception) -> bool:
    """Returns whether an error is that of an operator that cannot run on the meta device."""
    return isinstance(error, NotImplementedError) or "meta tensor" in str(error)


def _create(settings: ZooSettings, img_size: int) -> nn.Module:
    """Calls the library's constructor, with the image size for transformers with a fixed grid.

    Raises:
        UserError: the library does not accept an option, or the model does not take this number of channels.
        _Refused: the library cannot build the model.
        RuntimeError: the constructor needs data on the meta device; see `without_data`.
    """
    arguments, name = dict(settings.options), f"{settings.name}:{settings.arch}"
    if settings.name == "torchvision":
        if settings.in_chans != 3:
            raise UserError(f"model.in_chans = {settings.in_chans}: {name} takes 3 channels; use another model")
        if settings.arch.startswith("vit_"):
            arguments["image_size"] = img_size
        if settings.arch in ("googlenet", "inception_v3"):  # their auxiliary heads make `forward` return a tuple
            hub = hub_name(settings.weights, "torchvision") is not None  # trained on pixels from -1 to 1
            arguments = {"init_weights": True, "transform_input": hub, **arguments, "aux_logits": False}
    try:
        if settings.name == "torchvision":
            return torchvision.models.get_model(settings.arch, weights=None, num_classes=settings.classes, **arguments)
        arguments |= {"num_classes": settings.classes, "in_chans": settings.in_chans}
        try:
            return timm.create_model(settings.arch, img_size=img_size, **arguments)
        except TypeError as error:  # convolutional networks take images of any size, and no such argument
            if "img_size" not in str(error):
                raise
            return timm.create_model(settings.arch, **arguments)
    except TypeError as error:
        reason = str(error).split("__init__() ")[-1]
        raise UserError(
            f"model.options = {settings.options}: {name} refuses them ({reason}); correct or drop it"
        ) from None
    except (ValueError, AssertionError, KeyError, AttributeError, RuntimeError, ArithmeticError) as error:
        if _needs_data(error):
            raise
        raise _Refused(" ".join(str(error).split())) from error


def _takes(settings: ZooSettings, img_size: int) -> bool:
    """Returns whether the model accepts images of this size without cutting patches."""
    asked = settings.model_dump_json(exclude={"merge", "weights"}), img_size
    if asked in _TAKEN:
        return True
    try:
        takes = without_data(lambda: _gives_logits(settings, img_size))
    except UserError:
        raise
    except (_Refused, RuntimeError, AssertionError, ValueError, TypeError, AttributeError, LookupError):
        return False
    if takes:
        _TAKEN.add(asked)
    return takes


@torch.no_grad()
def _gives_logits(settings: ZooSettings, img_size: int) -> bool:
    """Builds the model and returns whether whole patches cover the image and the output is one row of logits."""
    model = _create(settings, img_size).eval()
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", 1)
    if img_size % (patch[0] if isinstance(patch, tuple) else patch):
        return False
    logits = model(torch.zeros(1, settings.in_chans, img_size, img_size))
    return isinstance(logits, torch.Tensor) and logits.shape == (1, settings.classes)


def _refusal(settings: ZooSettings, own: int) -> str:
    """Returns the error for a size that does not work, with the nearest sizes that do, and that of the weights."""
    size = settings.img_size
    near = sorted({max(16 * round(size / 16 + step), 16) for step in range(-4, 5)}, key=lambda other: abs(other - size))
    others = [other for other in dict.fromkeys((own, *near)) if other != size]
    works = list(islice((other for other in others if _takes(settings, other)), 4))
    if not works:
        name = f"{settings.name}:{settings.arch}"
        return f"model.options = {settings.options}: {name} makes no classifier with them; correct or drop them"
    sizes = ", ".join(str(other) for other in sorted(works))
    return f"model.img_size = {size}: does not go through {settings.name}:{settings.arch}; sizes that work: {sizes}"


def _replace_head(model: nn.Module, path: str, settings: ZooSettings) -> None:
    """Replaces the linear layer, or the 1 x 1 convolution with the pooling around it, by another classifier."""
    old = model.get_submodule(path)
    convs = [module for module in old.modules() if isinstance(module, nn.Conv2d)]
    features = convs[0].in_channels if convs else old.in_features
    sizes = {"hidden": settings.head_dim, "dropout": settings.head_dropout, "maps": bool(convs)}
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, new_head(settings.head, features, settings.classes, **sizes))
