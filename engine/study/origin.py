"""`Origin`: which run a row of a sweep evaluated, and how, so that the row can be compared with other models."""

from __future__ import annotations

from hashlib import sha256

from pydantic import Field

from engine.measure.evaluate import Evaluation
from engine.runs.records.record import Amount, Count, Record
from engine.runs.restore import FinishedRun
from engine.settings.schema import RunSettings
from engine.study.compare.budgets import merging_of
from engine.study.table import kind_of
from models.interface import model_name, removed_per_block


class Origin(Record):
    """The run and the evaluation behind one row of a sweep, as tools/eval.py --json writes them."""

    run: str = Field(description="the run's name")
    folder: str = Field(description="the run folder, as it was given")
    key: str = Field(description="the key that was swept, such as merge.r")
    model: str = Field(description="the network's name")
    data: str = Field(description="the dataset's name")
    seed: int = Field(description="of the training")
    fold: Count | None = Field(description="the fold that tested the run; None without k-fold")
    split: str = Field(description="the images: test or val")
    images: Count = Field(description="number of images")
    merging: str | None = Field(description="the merging method; None where nothing is merged")
    budget: str | None = Field(description="how much is merged, in words")
    params: Count = Field(description="number of parameters")
    saved_mib: Amount | None = Field(description="size of best.pt, MiB")
    trained: str = Field(description="equal for runs that were trained alike, but for seed and fold")
    evaluated: str = Field(description="equal for rows that were evaluated alike")
    line: str = Field(description="equal for rows that were trained alike and differ only in the budget")
    right: str | None = Field(
        description="a digit for each image, in the order of the split: 1 if its class was predicted right; None for "
        "many labels"
    )


def origin_of(key: str, run: FinishedRun, split: str, settings: RunSettings, evaluation: Evaluation) -> Origin:
    """Returns the origin of a row.

    Args:
        key: the key that was swept.
        run: the run, restored with one value of the key.
        split: the images.
        settings: the run's settings with this value, in which a target is not solved.
        evaluation: of the run on these images, with logits where there is one class for each image.
    """
    method, budget = merging_of(settings.model, removed_per_block(run.model))
    right = None
    if evaluation.logits is not None:
        correct = run.data.task.correct(evaluation.logits, getattr(run.data, split).labels)
        right = "".join("1" if one else "0" for one in correct.bool().tolist())
    best = run.run.checkpoint("best")
    return Origin(
        run=settings.name,
        folder=str(run.run),
        key=key,
        model=model_name(settings.model),
        data=settings.data.name,
        seed=settings.seed,
        fold=settings.split.fold,
        split=split,
        images=evaluation.n,
        merging=method,
        budget=budget,
        params=sum(p.numel() for p in run.model.parameters()),
        saved_mib=best.stat().st_size / 2**20 if best.is_file() else None,
        trained=_digest(kind_of(run.run.settings)),
        evaluated=_digest(kind_of(settings)),
        line=alike_but_for_budget(settings),
        right=right,
    )


def alike_but_for_budget(settings: RunSettings) -> str:
    """Returns a text that is equal for settings that differ only in the seed, the fold and how much is merged."""
    return _digest(kind_of(settings, any_budget=True))


def _digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()[:16]
