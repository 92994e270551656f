"""Settings of fine-tuning."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from . import Settings

OF_MODE = {
    "head": ("cache",),
    "gradual": ("groups",),
    "full": ("layer_decay",),
    "lora": ("rank", "alpha", "dropout", "targets"),
}


class GroupSettings(Settings):
    """Parts of a model that are trained from the same epoch on, with the same learning rate."""

    parts: list[str] = Field(
        min_length=1, description='modules or parameters by name, such as "blocks.11"; "head" is the classifier'
    )
    epoch: int = Field(0, ge=0, le=1_000_000, description="the epoch from which they are trained, counted from 0")
    lr: float = Field(gt=0, le=1000, description="their learning rate after the warm-up")


class FinetuneSettings(Settings):
    """Which parameters are trained."""

    keys_by_choice: ClassVar = {"mode": OF_MODE}

    mode: Literal["head", "gradual", "full", "lora"] = Field(
        description="head: the classifier alone; gradual: groups, one after another; full: everything; lora: low-rank "
        "adapters and the classifier"
    )
    cache: Literal["auto", "memory", "disk", "none"] | None = Field(
        None, description="head: where features of the frozen part are kept if nothing is augmented; null: auto"
    )
    groups: list[GroupSettings] | None = Field(
        None, description="gradual: groups of parameters, with the epoch and learning rate of each"
    )
    layer_decay: float | None = Field(
        None,
        gt=0,
        le=1,
        description="full: the learning rate is multiplied by this for each layer further from the head; null: 1",
    )
    rank: int | None = Field(None, ge=1, le=4096, description="lora: rank of the adapters; null: 8")
    alpha: float | None = Field(
        None, gt=0, le=1_000_000, description="lora: the adapters are scaled by alpha / rank; null: 16"
    )
    dropout: float | None = Field(None, ge=0, lt=1, description="lora: dropout of the adapters' inputs; null: 0")
    targets: list[str] | None = Field(
        None,
        min_length=1,
        description="lora: modules that get adapters, by name or end of name; null: the attention projections",
    )

    @model_validator(mode="after")
    def _of_its_mode(self) -> FinetuneSettings:
        for mode, keys in OF_MODE.items():
            for key in keys:
                if mode != self.mode and getattr(self, key) is not None:
                    value = "" if key == "groups" else f" = {getattr(self, key)!r}"
                    raise ValueError(f"finetune.{key}{value}: {self.mode} has no such option, {mode} has")
        if self.mode == "gradual" and not self.groups:
            raise ValueError("finetune.groups: missing; gradual needs a list of {parts: [...], epoch: n, lr: x}")
        if self.mode == "gradual" and min(group.epoch for group in self.groups) > 0:
            raise ValueError("finetune.groups: nothing learns at first; give one group epoch: 0")
        return self
