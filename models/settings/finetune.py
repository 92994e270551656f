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
    """Parts of a model that begin to learn together."""

    parts: list[str] = Field(min_length=1, description='names of modules or parameters, such as "blocks.11"; "head"')
    epoch: int = Field(0, ge=0, description="the epoch before which they begin to learn; 0: at once")
    lr: float = Field(gt=0, description="their learning rate where the schedule is at its height")


class FinetuneSettings(Settings):
    """What of a model learns."""

    keys_by_choice: ClassVar = {"mode": OF_MODE}

    mode: Literal["head", "gradual", "full", "lora"] = Field(
        description="the head alone; groups from the head down; everything; adapters of low rank, and the head"
    )
    cache: Literal["auto", "memory", "disk", "none"] | None = Field(
        None, description="head: where the frozen part's features are kept while nothing is augmented; null: auto"
    )
    groups: list[GroupSettings] | None = Field(None, description="gradual: what begins to learn when, and how fast")
    layer_decay: float | None = Field(
        None, gt=0, le=1, description="full: factor on the learning rate for each layer further from the head; null: 1"
    )
    rank: int | None = Field(None, ge=1, le=4096, description="lora: rank of the adapters; null: 8")
    alpha: float | None = Field(None, gt=0, description="lora: their scale is alpha / rank; null: 16")
    dropout: float | None = Field(None, ge=0, lt=1, description="lora: dropout before the adapters; null: 0")
    targets: list[str] | None = Field(
        None, min_length=1, description="lora: names, or last parts of names, of modules; null: attention's projections"
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
