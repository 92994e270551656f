"""timm's and torchvision's models behind our interface: `timm:NAME` and `torchvision:NAME`.

They are the libraries' own modules, with the libraries' parameter names. What the engine asks of any model is added as
plain attributes: `img_size`, `in_chans`, `num_classes`, and `head_names`, the names of the modules that classify.
"""

from __future__ import annotations

import os
from itertools import islice
from typing import Any, Literal, NamedTuple

import timm
import torch
import torchvision
from pydantic import Field, model_validator
from timm.models import get_pretrained_cfg, is_model
from torch import nn

from .heads import Head, new_head
from .merging.settings import AnySettings, MergeSettings
from .merging.wrapping import wrap
from .settings import ModelSettings, UserError, nearest

LIBRARIES = ("timm", "torchvision")
Option = bool | int | float | str | list[int] | list[float] | None
# What our settings say, and what would give another thing than a model that classifies, or download: no `options`.
OURS = {
    "img_size": "img_size",
    "image_size": "img_size",
    "in_chans": "in_chans",
    "num_classes": "num_classes",
    "weights": "weights",
    "pretrained": "weights",
    "checkpoint_path": "weights",
    "pretrained_cfg": "weights",
    "pretrained_cfg_overlay": "weights",
    "cache_dir": "weights",
    "progress": "weights",
}
TUPLES = ("features_only", "aux_logits")  # options that make `forward` return more than logits


class _Refused(Exception):
    """The library's own refusal of an image size, or of options."""


class Metadata(NamedTuple):
    """What weights say of the images that they take."""

    img_size: int
    mean: tuple[float, ...]  # of pixels in [0, 1]
    std: tuple[float, ...]


def _also_with_arch(schema: dict[str, Any]) -> None:
    """In files a name may be `timm:resnet18`; see split_name."""
    schema["pattern"] = f"^{schema.pop('const')}(:.+)?$"


class ZooSettings(ModelSettings):
    """A model of another library. `img_size` is the weights' own unless it is given."""

    arch: str = Field(min_length=1, description="the model's name in its library, as in timm:NAME")
    head: Head = Field(
        "linear",
        description="the library's classifier; mlp: dropout, linear to head_dim, ReLU, dropout, linear; "
        "power: signed roots of the features, standardised, dropout, linear",
    )
    head_dim: int = Field(512, gt=0, le=65536, description="hidden width of the mlp head")
    head_dropout: float = Field(0.5, ge=0, lt=1, description="dropout of the mlp and power heads")
    options: dict[str, Option] = Field({}, description="keyword arguments of the library's constructor")
    merge: MergeSettings | None = Field(None, description="token merging, for models that merging can be put into")

    @classmethod
    def spelled_out(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Returns `name: timm:resnet18` as `name: timm, arch: resnet18`."""
        return split_name(values)

    @model_validator(mode="before")
    @classmethod
    def _own_size(cls, values: Any) -> Any:
        """Fills in the image size that the weights were trained at."""
        if not isinstance(values, dict) or not isinstance(values.get("arch"), str):
            return values
        if not values["arch"] or values.get("img_size") is not None:
            return values
        weights = values.get("weights") if isinstance(values.get("weights"), str) else None
        return {**values, "img_size": cls.metadata(values["arch"], weights).img_size}

    @model_validator(mode="after")
    def _can_be(self) -> ZooSettings:
        self.metadata(self.arch, self.weights)  # names that there are
        for key in self.options:
            if key in OURS:
                raise ValueError(f"options.{key} = {self.options[key]!r}: is not for options; use model.{OURS[key]}")
            if key in TUPLES:
                raise ValueError(f"options.{key}: makes more than one output, and training takes logits; drop it")
        if self.merge is not None and isinstance(self.merge.r, AnySettings):
            said = f"merge.r = {{train: {self.merge.r.train}}}: is drawn for each step in our own models, not in"
            raise ValueError(f"{said} {self.name}'s; give a number, a list or {{first: n, last: n}}")
        return self

    @classmethod
    def metadata(cls, arch: str, weights: str | None) -> Metadata:
        """What the weights say that `weights` names, or else the library's default weights for `arch`.

        Raises:
            ValueError: there is no such model, or no such weights.
        """
        raise NotImplementedError


class TimmSettings(ZooSettings):
    """A model of timm: `timm:resnet18`, `timm:vit_base_patch16_384.augreg_in21k_ft_in1k`."""

    name: Literal["timm"] = Field("timm", json_schema_extra=_also_with_arch)

    @classmethod
    def metadata(cls, arch: str, weights: str | None) -> Metadata:
        named = _hub_name(weights, "timm") or arch
        for name in dict.fromkeys((arch, named)):
            key = "arch" if name == arch else "weights"
            if not is_model(name.split(".")[0]):
                raise ValueError(f"{key} = {name!r}: timm has no such model; {_near(name, timm.list_models())}")
        try:
            cfg = get_pretrained_cfg(named)
        except RuntimeError:
            tags = timm.list_pretrained(f"{named.split('.')[0]}.*")
            raise ValueError(f"{key} = {named!r}: timm has no such weights; {_near(named, tags)}") from None
        return Metadata(cfg.input_size[-1], tuple(cfg.mean), tuple(cfg.std))


class TorchvisionSettings(ZooSettings):
    """A model of torchvision: `torchvision:squeezenet1_1`; weights such as torchvision:vit_l_16.IMAGENET1K_V1."""

    name: Literal["torchvision"] = Field("torchvision", json_schema_extra=_also_with_arch)

    @classmethod
    def metadata(cls, arch: str, weights: str | None) -> Metadata:
        known = torchvision.models.list_models(module=torchvision.models)
        if arch not in known:
            raise ValueError(f"arch = {arch!r}: torchvision has no such classifier; {_near(arch, known)}")
        entries = torchvision.models.get_model_weights(arch)
        _, _, tag = (_hub_name(weights, "torchvision") or "").partition(".")
        if tag and tag not in entries.__members__:
            raise ValueError(f"weights = {weights!r}: no such weights; {nearest(tag, list(entries.__members__))}")
        transforms = (entries[tag] if tag else entries.DEFAULT).transforms()
        return Metadata(transforms.crop_size[0], tuple(transforms.mean), tuple(transforms.std))


def split_name(values: dict[str, Any]) -> dict[str, Any]:
    """`name: timm:resnet18` as `name: timm, arch: resnet18`: how the settings keep it."""
    name = values.get("name")
    library, colon, arch = name.partition(":") if isinstance(name, str) else ("", "", "")
    return {**values, "name": library, "arch": arch} if colon and library in LIBRARIES else values


def normalisation(settings: ModelSettings) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and standard deviation that the settings' weights were trained with; None where they do not say.

    Weights of a hub say; so does a file for a model of the zoo, for which the library's default weights answer.
    """
    if settings.weights is None or settings.in_chans != 3 or os.path.isdir(settings.weights):
        return None  # a folder is a run of ours, which keeps its own
    library, colon, name = settings.weights.partition(":")
    if colon and library in LIBRARIES:
        cls, arch = {"timm": TimmSettings, "torchvision": TorchvisionSettings}[library], name.partition(".")[0]
    elif isinstance(settings, ZooSettings):
        cls, arch = type(settings), settings.arch
    else:
        return None
    try:
        _, mean, std = cls.metadata(arch, settings.weights)
    except ValueError as error:
        raise UserError(f"model.weights = {settings.weights!r}: {error}") from None
    return mean, std


def build_zoo(settings: ZooSettings) -> nn.Module:
    """The library's model for the settings' image size, channels and classes, its weights drawn at random.

    Raises:
        UserError: the library refuses an option, or the model an image size (the error names sizes that work), or it
            classifies in no way that is known, or merging does not go into it.
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
    """The modules that turn features into logits: timm says which (a distilled DeiT has two), of torchvision's models
    it is the last linear layer (SqueezeNet's is a whole classifier around a convolution).

    Raises:
        UserError: a model that does not classify.
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
    """The library's constructor; transformers with a fixed grid are told the image size."""
    given, name = dict(settings.options), f"{settings.name}:{settings.arch}"
    if settings.name == "torchvision":
        if settings.in_chans != 3:
            raise UserError(f"model.in_chans = {settings.in_chans}: {name} takes 3 channels; use another model")
        if settings.arch.startswith("vit_"):
            given["image_size"] = img_size
        if settings.arch in ("googlenet", "inception_v3"):  # their auxiliary heads make `forward` return a tuple
            hub = _hub_name(settings.weights, "torchvision") is not None  # trained on pixels from -1 to 1
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
    """Whether an image of this size goes through the model to logits, tried without storage where that can be, and no
    patch is cut."""
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
    """The error for a size that does not work, with the nearest that do, and the weights' own."""
    asked = settings.img_size
    near = sorted({max(16 * round(asked / 16 + step), 16) for step in range(-4, 5)}, key=lambda size: abs(size - asked))
    works = list(islice((size for size in dict.fromkeys((own, *near)) if size != asked and _takes(settings, size)), 4))
    if not works:
        name = f"{settings.name}:{settings.arch}"
        return f"model.options = {settings.options}: {name} makes no classifier with them; correct or drop them"
    known = ", ".join(str(size) for size in sorted(works))
    return f"model.img_size = {asked}: does not go through {settings.name}:{settings.arch}; sizes that work: {known}"


def _replace_head(model: nn.Module, path: str, settings: ZooSettings) -> None:
    """Puts another classifier in place of the linear layer, or of the convolution of 1 x 1 and what pools around it."""
    old = model.get_submodule(path)
    convs = [module for module in old.modules() if isinstance(module, nn.Conv2d)]
    features = convs[0].in_channels if convs else old.in_features
    sizes = {"hidden": settings.head_dim, "dropout": settings.head_dropout, "maps": bool(convs)}
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, new_head(settings.head, features, settings.classes, **sizes))


def _hub_name(weights: str | None, library: str) -> str | None:
    """NAME of `library:NAME`."""
    prefix, colon, name = (weights or "").partition(":")
    return name if colon and prefix == library else None


def _near(word: str, known: list[str]) -> str:
    """The end of an error line, also where a thousand names are known."""
    said = nearest(word, known)
    return said if len(said) < 200 else f"known: {', '.join(known[:3])} and {len(known) - 3} more"
