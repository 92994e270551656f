"""The settings of distillation: from which teacher a run learns beside its labels, and how much."""

from __future__ import annotations

import os
from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from models.settings import Settings
from models.settings.zoo import LIBRARIES, current_weights

SELF = "self"  # the run's own model before training, without merging


def is_hub_name(teacher: str) -> bool:
    """Whether a teacher is a pretrained model of a library, such as timm:NAME, and not a run."""
    library, colon, _ = teacher.partition(":")
    return bool(colon) and library in LIBRARIES


def is_run(teacher: str | None) -> bool:
    """Whether a teacher is a run, given by its folder."""
    return teacher is not None and teacher != SELF and not is_hub_name(teacher)


def _teacher(value: str) -> str:
    """Makes the path of a run absolute; gives names on hubs their present form."""
    return os.path.abspath(os.path.expanduser(value)) if is_run(value) else current_weights(value)


TeacherName = Annotated[str, Field(min_length=1), AfterValidator(_teacher)]


class DistillSettings(Settings):
    """What a run learns from its teacher."""

    logits: float = Field(
        0.5,
        ge=0,
        le=1,
        description="share of the loss that compares logits with the teacher's; the labels have the rest",
    )
    temperature: float = Field(
        1.0, gt=0, le=1000, description="both models' logits are divided by it; the loss is multiplied by its square"
    )
    tokens: float = Field(
        0.0,
        ge=0,
        le=1e6,
        description="weight of the mean squared difference between the last block's tokens, each normalised; a merged "
        "token is compared with the teacher's token of each of its patches",
    )

    @model_validator(mode="after")
    def _teaches(self) -> DistillSettings:
        if not self.logits and not self.tokens:
            raise ValueError("logits = 0 beside tokens = 0: nothing is learned from the teacher; set one of them")
        return self
