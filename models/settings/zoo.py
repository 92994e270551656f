"""Settings of timm's and torchvision's models, `timm:NAME` and `torchvision:NAME`, checked against their lists.

The image size, mean and standard deviation are those of the weights, from the library's metadata.
"""

from __future__ import annotations

import logging
import os
from functools import cache
from typing import Any, Literal, NamedTuple

from pydantic import Field, model_validator

from ..merging.settings import AnySettings, MergeSettings
from . import ModelSettings, UserError, nearest

log = logging.getLogger("hybridmerge")

Head = Literal["linear", "mlp", "power"]
LIBRARIES = ("timm", "torchvision")
Option = bool | int | float | str | list[int] | list[float] | None
# Constructor arguments that are not allowed in `options`, and the key of ours to use instead.
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


class Metadata(NamedTuple):
    """The images that pretrained weights were trained on."""

    img_size: int
    mean: tuple[float, ...]  # of pixels in [0, 1]
    std: tuple[float, ...]


def _also_with_arch(schema: dict[str, Any]) -> None:
    """Lets the JSON schema accept names such as `timm:resnet18`; see split_name."""
    schema["pattern"] = f"^{schema.pop('const')}(:.+)?$"


class ZooSettings(ModelSettings):
    """A model of another library. `img_size` defaults to the size that the weights were trained at."""

    arch: str = Field(min_length=1, description="the model's name in its library, as in timm:NAME")
    head: Head = Field(
        "linear",
        description="linear: the library's own classifier; mlp: dropout, linear to head_dim, ReLU, dropout, linear; "
        "power: signed roots of the features, standardised, dropout, linear",
    )
    head_dim: int = Field(512, gt=0, le=65536, description="hidden width of the mlp head")
    head_dropout: float = Field(0.5, ge=0, lt=1, description="dropout of the mlp and power heads")
    options: dict[str, Option] = Field({}, description="keyword arguments of the library's constructor")
    merge: MergeSettings | None = Field(None, description="token merging, for ViTs that support it; null: none")

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
        weights = current_weights(values.get("weights")) if isinstance(values.get("weights"), str) else None
        values = {**values, "arch": cls.current_name(values["arch"])}
        if not values["arch"] or values.get("img_size") is not None:
            return values
        return {**values, "img_size": cls.metadata(values["arch"], weights).img_size}

    @model_validator(mode="after")
    def _can_be(self) -> ZooSettings:
        self.metadata(self.arch, self.weights)  # raises where a name does not exist
        for key in self.options:
            if key in OURS:
                raise ValueError(f"options.{key} = {self.options[key]!r}: not allowed here; use model.{OURS[key]}")
            if key in TUPLES:
                raise ValueError(f"options.{key}: the model would return more than logits; omit it")
        if self.merge is not None and isinstance(self.merge.r, AnySettings):
            raise ValueError(
                f"merge.r = {{train: {self.merge.r.train}}}: is drawn for each step in our own models, not in "
                f"{self.name}'s; give a number, a list or {{first: n, last: n}}"
            )
        return self

    @classmethod
    def current_name(cls, arch: str) -> str:
        """Returns the name that the library has given to a model since; `arch` if it is still that."""
        return arch

    @classmethod
    def metadata(cls, arch: str, weights: str | None) -> Metadata:
        """Returns what is known about the weights `weights`, or about the library's default weights for `arch`.

        Raises:
            ValueError: the model or the weights do not exist.
        """
        raise NotImplementedError


class TimmSettings(ZooSettings):
    """A model of timm: `timm:resnet18`, `timm:vit_base_patch16_384.augreg_in21k_ft_in1k`."""

    name: Literal["timm"] = Field("timm", json_schema_extra=_also_with_arch)

    @classmethod
    def current_name(cls, arch: str) -> str:
        return current_timm_name(arch)

    @classmethod
    def metadata(cls, arch: str, weights: str | None) -> Metadata:
        import timm  # slow to import, and not needed by other models
        from timm.models import get_deprecated_models, get_pretrained_cfg, is_model

        named = hub_name(weights, "timm") or arch
        for name in dict.fromkeys((arch, named)):
            key = "arch" if name == arch else "weights"
            if not is_model(name.split(".")[0]):
                raise ValueError(f"{key} = {name!r}: timm has no such model; {_near(name, timm.list_models())}")
        try:
            cfg = get_pretrained_cfg(named)
        except RuntimeError:
            cfg = None
        if cfg is None:
            family = named.split(".")[0]
            known = timm.list_pretrained(f"{family}.*") or [get_deprecated_models().get(family) or family]
            raise ValueError(f"{key} = {named!r}: timm has no such weights; {_near(named, known)}")
        return Metadata(cfg.input_size[-1], tuple(cfg.mean), tuple(cfg.std))


class TorchvisionSettings(ZooSettings):
    """A model of torchvision: `torchvision:squeezenet1_1`; weights such as torchvision:vit_l_16.IMAGENET1K_V1."""

    name: Literal["torchvision"] = Field("torchvision", json_schema_extra=_also_with_arch)

    @classmethod
    def metadata(cls, arch: str, weights: str | None) -> Metadata:
        import torchvision  # slow to import, and not needed by other models

        known = torchvision.models.list_models(module=torchvision.models)
        if arch not in known:
            raise ValueError(f"arch = {arch!r}: torchvision has no such classifier; {_near(arch, known)}")
        entries = torchvision.models.get_model_weights(arch)
        _, _, tag = (hub_name(weights, "torchvision") or "").partition(".")
        if tag and tag not in entries.__members__:
            raise ValueError(f"weights = {weights!r}: no such weights; {nearest(tag, list(entries.__members__))}")
        transforms = (entries[tag] if tag else entries.DEFAULT).transforms()
        return Metadata(transforms.crop_size[0], tuple(transforms.mean), tuple(transforms.std))


def current_timm_name(name: str) -> str:
    """Returns timm's present name of a model that it has renamed, and logs it: tv_resnet50 is resnet50.tv_in1k."""
    from timm.models import get_deprecated_models, list_pretrained  # slow to import, not needed by other models

    current = get_deprecated_models().get(name)
    if current is None:
        return name
    # For two of them timm's list has the beginning of the tag: vit_base_patch16_224.sam for .sam_in1k.
    longer = list_pretrained(f"{current}*") if "." in current else []
    current = longer[0] if longer and current not in longer else current
    note_renamed(name, current)
    return current


@cache  # settings are checked more than once
def note_renamed(old: str, current: str) -> None:
    """Logs, once for each old name, what timm calls it now."""
    log.warning("timm:%s is an old name: it is now timm:%s, in the settings too", old, current)


def current_weights(weights: str) -> str:
    """Returns `model.weights` with the present name of a model of timm."""
    name = hub_name(weights, "timm")
    return weights if name is None else f"timm:{current_timm_name(name)}"


def split_name(values: dict[str, Any]) -> dict[str, Any]:
    """Returns settings with `name: timm:resnet18` written as `name: timm, arch: resnet18`."""
    name = values.get("name")
    library, colon, arch = name.partition(":") if isinstance(name, str) else ("", "", "")
    return {**values, "name": library, "arch": arch} if colon and library in LIBRARIES else values


def normalisation(settings: ModelSettings) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Returns the mean and standard deviation that the weights in the settings were trained with; None if unknown.

    They are known for weights from a hub. For a file, those of the library's default weights for the model are used.
    """
    if settings.weights is None or settings.in_chans != 3 or os.path.isdir(settings.weights):
        return None  # a run folder, which has statistics of its own
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


def hub_name(weights: str | None, library: str) -> str | None:
    """Returns NAME of `library:NAME`; None if the weights are not of this library."""
    prefix, colon, name = (weights or "").partition(":")
    return name if colon and prefix == library else None


def _near(word: str, known: list[str]) -> str:
    """Returns the end of an error line: the nearest names, or a few if none of very many is near."""
    hint = nearest(word, known)
    return hint if len(hint) < 200 else f"known: {', '.join(known[:3])} and {len(known) - 3} more"
