"""How faithful explanations stay as tokens are merged: methods x ways of merging, over images of a folder.

A comparison has the settings of tools/zeroshot.py: a pretrained model, images, and ways of merging.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from engine.data.loading.loader import Normalise, resized
from engine.explain.faithful.areas import centre_map, random_map
from engine.explain.faithful.measures import MEASURES, Batch, Score
from engine.files import replacing, writing
from engine.machine import pick_device
from engine.study.zeroshot.each import merged, pretrained
from engine.study.zeroshot.fingerprints import of_merging, of_values
from engine.study.zeroshot.images import labelled_images
from engine.study.zeroshot.settings import ZeroshotSettings
from models.explain import EXPLAINERS, explain
from models.merging.settings import MergeSettings
from models.settings import UserError, nearest

TO_BEAT: dict[str, Callable[[int], Tensor]] = {"random map": random_map, "centre blob": centre_map}
BATCH = 4
COUNT = 500  # images, unless another number is asked for


@dataclass(frozen=True)
class Plan:
    """What is evaluated.

    Attributes:
        settings: the model, the images and the ways of merging.
        methods: keys of EXPLAINERS.
        options: of the methods.
        images: how many images at most, evenly spaced over the folder; they are held in memory.
        steps: steps of the curves.
        measures: keys of MEASURES.
    """

    settings: ZeroshotSettings
    methods: Sequence[str]
    options: Mapping[str, Mapping[str, Any]]
    images: int
    steps: int
    measures: Sequence[str] = ("areas",)

    @property
    def scores(self) -> list[Score]:
        """What is measured, in the order of columns."""
        return [score for name in self.measures for score in MEASURES[name].scores]


class Pair(NamedTuple):
    """One way of merging and one method."""

    way: str
    method: str
    scores: np.ndarray  # (images, scores of the plan)
    start: float  # mean probability of the explained class, with nothing deleted


def evaluate(plan: Plan, out: Path, report: Callable[[str], None] = print) -> list[Pair]:
    """Evaluates every way of merging with every method, and the two maps to beat.

    What is in `out/areas` and the other measures' folders is not computed again; a file is named by everything that
    decides its numbers.

    Raises:
        UserError: of the settings, the model, its weights, the images, the methods and the measures.
    """
    settings = plan.settings
    for method in plan.methods:
        if method not in EXPLAINERS:
            raise UserError(f"--method {method}: cannot be evaluated; known: {', '.join(EXPLAINERS)}")
    for name in plan.measures:
        if name not in MEASURES:
            raise UserError(f"--measure {name}: unknown; {nearest(name, list(MEASURES))}")
    device = pick_device(settings.device)
    model, weights = pretrained(settings, device)
    images, fingerprint = _images(plan)
    ways = _merging(settings)
    total, pairs = len(ways) * (len(plan.methods) + len(TO_BEAT)), []
    for way, merge in ways.items():
        given = None if merge is None else merge.model_dump(mode="json", exclude_defaults=True)
        merged(model, way, merge)
        for method in (*TO_BEAT, *plan.methods):
            options = dict(plan.options.get(method, {}))
            decided = weights, fingerprint, given, of_merging(), method, options
            files = {name: out / MEASURES[name].folder / _file(plan, name, decided, images) for name in plan.measures}
            if missing := {name: file for name, file in files.items() if not file.exists()}:
                _compute(model, images, method, options, plan.steps, missing)
            pairs.append(_pair(way, method, files))
            means = zip(plan.scores, pairs[-1].scores.mean(0), strict=True)
            said = ", ".join(f"{score.title} {mean:.3f}" for score, mean in means)
            report(f"{len(pairs)}/{total}  {way}, {method}: {said}")
    return pairs


def _file(plan: Plan, measure: str, decided: tuple[Any, ...], images: Tensor) -> str:
    """The name of the file of one measure's numbers."""
    return f"{of_values(*decided, *MEASURES[measure].decided_by(plan.steps), len(images))[:16]}.npz"


def _merging(settings: ZeroshotSettings) -> dict[str, MergeSettings | None]:
    """The ways of merging by name. All explanations are of images of one size, so that their areas can be compared."""
    ways = settings.ways()
    if (name := next((name for name, way in ways.items() if way.size is not None), None)) is not None:
        raise UserError(
            f"{name!r}: has another image size, and explanations are compared at one; give sizes=[] or omit it"
        )
    return {name: way.merge for name, way in ways.items()}


def _images(plan: Plan) -> tuple[Tensor, str]:
    """The images that are evaluated, normalised (N, C, H, W), and a fingerprint of all that there are."""
    found = labelled_images(plan.settings)
    count = len(found.targets)
    wanted = min(plan.images, count)
    chosen = torch.arange(wanted) * count // wanted
    normalise, parts, start = Normalise(found.mean, found.std), [], 0
    for split in found.splits:
        inside = chosen[(chosen >= start) & (chosen < start + len(split))] - start
        if len(inside):
            parts.append(resized(normalise(split.read(inside)), found.resize))
        start += len(split)
    return torch.cat(parts), found.fingerprint


def _compute(
    model: nn.Module, all_images: Tensor, method: str, options: dict[str, Any], steps: int, files: Mapping[str, Path]
) -> None:
    """Explains all images once, and writes the numbers of each measure to its file."""
    device = next(model.parameters()).device
    found: dict[str, list[Tensor]] = {name: [] for name in files}
    starts = []
    to_beat = TO_BEAT[method](len(all_images)) if method in TO_BEAT else None
    for start in range(0, len(all_images), BATCH):
        images = all_images[start : start + BATCH].to(device)
        if to_beat is not None:  # of all images at once: a random map of its own for each
            maps = to_beat[start : start + BATCH].to(device)
            with torch.inference_mode():
                logits = model(images)
            target = logits.argmax(1)
        else:
            maps, target, logits, _ = explain(model, images, method, **options)
        starts.append(logits.softmax(1).gather(1, target.unsqueeze(1)).squeeze(1).cpu())
        for name, scores in found.items():
            scores.append(MEASURES[name].compute(Batch(model, images, maps, target, start, steps)).cpu())
    probability = np.array(float(torch.cat(starts).mean()))
    for name, file in files.items():
        with writing(file.parent):
            file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as stream:
            np.savez(stream, start=probability, **{MEASURES[name].folder: torch.cat(found[name]).double().numpy()})


def _pair(way: str, method: str, files: Mapping[str, Path]) -> Pair:
    """What the files of each measure say."""
    scores = []
    for name, file in files.items():
        with np.load(file) as arrays:
            scores.append(arrays[MEASURES[name].folder])
            start = float(arrays["start"])
    return Pair(way, method, np.concatenate(scores, axis=1), start)
