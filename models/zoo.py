"""timm's and torchvision's models behind our interface: `timm:NAME` and `torchvision:NAME`.

They are the libraries' own modules, with the libraries' parameter names. The attributes that the engine needs of every
model are added: `img_size`, `in_chans`, `num_classes`, and `head_names`, the names of the modules that classify.
"""

from __future__ import annotations

from itertools import islice

import timm
import torch
import torchvision
from torch import nn

from .heads import new_head
from .merging.wrapping import wrap
from .settings import UserError
from .settings.zoo import ZooSettings, hub_name


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
    paths = head_paths(model, settings)
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


def head_paths(model: nn.Module, settings: ZooSettings) -> tuple[str, ...]:
    """Returns the paths of the modules that turn features into logits.

    timm names them (a distilled DeiT has two). In torchvision's models it is the last linear layer, or in SqueezeNet
    the classifier around the last convolution.

    Raises:
        UserError: the model has no classifier.
    """
    if settings.name == "timm":
        named = model.pretrained_cfg.get("classifier") or "head"
        learn = {name for name, module in model.named_modules() if any(p.requires_grad for p in module.parameters())}
        found = tuple(name for name in ((named,) if isinstance(named, str) else named) if name in learn)
        if not found:
            raise UserError(f"model.arch = {settings.arch!r}: timm knows no classifier in it; choose another model")
        return found
    last = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1]
    return (last if isinstance(model.get_submodule(last), nn.Linear) else last.rpartition(".")[0],)


def _create(settings: ZooSettings, img_size: int) -> nn.Module:
    """Calls the library's constructor, with the image size for transformers with a fixed grid."""
    given, name = dict(settings.options), f"{settings.name}:{settings.arch}"
    if settings.name == "torchvision":
        if settings.in_chans != 3:
            raise UserError(f"model.in_chans = {settings.in_chans}: {name} takes 3 channels; use another model")
        if settings.arch.startswith("vit_"):
            given["image_size"] = img_size
        if settings.arch in ("googlenet", "inception_v3"):  # their auxiliary heads make `forward` return a tuple
            hub = hub_name(settings.weights, "torchvision") is not None  # trained on pixels from -1 to 1
            given = {"init_weights": True, "transform_input": hub, **given, "aux_logits": False}
    try:
        if settings.name == "torchvision":
            return torchvision.models.get_model(settings.arch, weights=None, num_classes=settings.classes, **given)
        given |= {"num_classes": settings.classes, "in_chans": settings.in_chans}
        try:
            return timm.create_model(settings.arch, img_size=img_size, **given)
        except TypeError as error:  # convolutional networks take images of any size, and no such argument
            if "img_size" not in str(error):
                raise
            return timm.create_model(settings.arch, **given)
    except TypeError as error:
        reason = str(error).split("__init__() ")[-1]
        said = f"model.options = {settings.options}: {name} refuses them ({reason})"
        raise UserError(f"{said}; correct or drop it") from None
    except NotImplementedError:  # a RuntimeError too, but no refusal: see _takes
        raise
    except (ValueError, AssertionError, KeyError, AttributeError, RuntimeError, ArithmeticError) as error:
        raise _Refused(" ".join(str(error).split())) from error


def _takes(settings: ZooSettings, img_size: int, device: str = "meta") -> bool:
    """Returns whether the model accepts images of this size without cutting patches.

    It is run on the meta device, which needs no storage, where its constructor allows that.
    """
    try:
        with torch.device(device), torch.no_grad():
            model = _create(settings, img_size).eval()
            patch = getattr(getattr(model, "patch_embed", None), "patch_size", 1)
            if img_size % (patch[0] if isinstance(patch, tuple) else patch):
                return False
            logits = model(torch.zeros(1, settings.in_chans, img_size, img_size))
    except UserError:
        raise
    except NotImplementedError:  # RegNet, for one, computes its widths by tensors
        return device == "meta" and _takes(settings, img_size, "cpu")
    except (_Refused, RuntimeError, AssertionError, ValueError, TypeError, AttributeError, LookupError):
        return False
    return isinstance(logits, torch.Tensor) and logits.shape == (1, settings.classes)


def _refusal(settings: ZooSettings, own: int) -> str:
    """Returns the error for a size that does not work, with the nearest sizes that do, and that of the weights."""
    asked = settings.img_size
    near = sorted({max(16 * round(asked / 16 + step), 16) for step in range(-4, 5)}, key=lambda size: abs(size - asked))
    works = list(islice((size for size in dict.fromkeys((own, *near)) if size != asked and _takes(settings, size)), 4))
    if not works:
        name = f"{settings.name}:{settings.arch}"
        return f"model.options = {settings.options}: {name} makes no classifier with them; correct or drop them"
    known = ", ".join(str(size) for size in sorted(works))
    return f"model.img_size = {asked}: does not go through {settings.name}:{settings.arch}; sizes that work: {known}"


def _replace_head(model: nn.Module, path: str, settings: ZooSettings) -> None:
    """Replaces the linear layer, or the 1 x 1 convolution with the pooling around it, by another classifier."""
    old = model.get_submodule(path)
    convs = [module for module in old.modules() if isinstance(module, nn.Conv2d)]
    features = convs[0].in_channels if convs else old.in_features
    sizes = {"hidden": settings.head_dim, "dropout": settings.head_dropout, "maps": bool(convs)}
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, new_head(settings.head, features, settings.classes, **sizes))
