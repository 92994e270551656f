"""How faithful explanations stay as tokens are merged: methods x ways of merging, over images of a folder.

A comparison has the settings of tools/zeroshot.py: a pretrained model, images, and ways of merging.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from engine.data.loading.loader import Normalise, resized
from engine.explain.faithfulness import centre_map, deletion_and_insertion, random_map
from engine.files import replacing, write_json_atomic, write_text_atomic, writing
from engine.machine import pick_device
from engine.measure.paired import paired_bootstrap
from engine.study.zeroshot.evaluate import merged, pretrained
from engine.study.zeroshot.fingerprints import of_merging, of_values
from engine.study.zeroshot.images import labelled_images
from engine.study.zeroshot.settings import ZeroshotSettings
from engine.tables import Column, markdown
from engine.wording import counted
from models.explain import EXPLAINERS, explain
from models.merging.settings import MergeSettings
from models.settings import UserError

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
    """

    settings: ZeroshotSettings
    methods: Sequence[str]
    options: Mapping[str, Mapping[str, Any]]
    images: int
    steps: int


class Pair(NamedTuple):
    """One way of merging and one method."""

    way: str
    method: str
    areas: np.ndarray  # (images, 2): under deletion and insertion
    start: float  # mean probability of the explained class, with nothing deleted


def evaluate(plan: Plan, out: Path, report: Callable[[str], None] = print) -> list[Pair]:
    """Evaluates every way of merging with every method, and the two maps to beat.

    What is in `out/areas` is not computed again; a file is named by everything that decides its numbers.

    Raises:
        UserError: of the settings, the model, its weights, the images and the methods.
    """
    settings = plan.settings
    for method in plan.methods:
        if method not in EXPLAINERS:
            raise UserError(f"--method {method}: cannot be evaluated; known: {', '.join(EXPLAINERS)}")
    device = pick_device(settings.device)
    model, weights = pretrained(settings, device)
    images, fingerprint = _images(plan)
    ways = _merging(settings)
    total, pairs = len(ways) * (len(plan.methods) + len(TO_BEAT)), []
    with writing(out):
        (out / "areas").mkdir(parents=True, exist_ok=True)
    for way, merge in ways.items():
        given = None if merge is None else merge.model_dump(mode="json", exclude_defaults=True)
        merged(model, way, merge)
        for method in (*TO_BEAT, *plan.methods):
            options = dict(plan.options.get(method, {}))
            key = of_values(weights, fingerprint, given, of_merging(), method, options, plan.steps, len(images))[:16]
            file = out / "areas" / f"{key}.npz"
            if not file.exists():
                _save(file, *_curves(model, images, method, options, plan.steps))
            with np.load(file) as arrays:
                pairs.append(Pair(way, method, arrays["areas"], float(arrays["start"])))
            deletion, insertion = pairs[-1].areas.mean(0)
            report(f"{len(pairs)}/{total}  {way}, {method}: deletion {deletion:.3f}, insertion {insertion:.3f}")
    return pairs


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


def _curves(
    model: nn.Module, all_images: Tensor, method: str, options: dict[str, Any], steps: int
) -> tuple[np.ndarray, float]:
    """The areas of all images (N, 2), and the mean probability of the explained class."""
    device = next(model.parameters()).device
    areas, starts = [], []
    to_beat = TO_BEAT[method](len(all_images)) if method in TO_BEAT else None
    for start in range(0, len(all_images), BATCH):
        images = all_images[start : start + BATCH].to(device)
        if to_beat is not None:  # of all images at once: a random map of its own for each
            maps = to_beat[start : start + BATCH].to(device)
            with torch.inference_mode():
                target = model(images).argmax(1)
        else:
            maps, target, *_ = explain(model, images, method, **options)
        curves = deletion_and_insertion(model, images, maps, target, steps=steps)
        areas.append(curves.areas.cpu())
        starts.append(curves.deletion[:, 0].cpu())
    return torch.cat(areas).double().numpy(), float(torch.cat(starts).mean())


def _save(file: Path, areas: np.ndarray, start: float) -> None:
    with replacing(file) as stream:
        np.savez(stream, areas=areas, start=np.array(start))


def interval(values: np.ndarray) -> tuple[float, float]:
    """95 % bootstrap interval of a mean over images, values (N,)."""
    found = paired_bootstrap(values, np.zeros_like(values))
    assert found.low is not None and found.high is not None
    return found.low, found.high


def write_results(plan: Plan, pairs: Sequence[Pair], out: Path) -> str:
    """Writes faithfulness.json and table.md. Returns the table."""
    rows = list(_rows(pairs))
    count = len(pairs[0].areas)
    record = {"name": plan.settings.name, "images": count, "steps": plan.steps, "rows": rows}
    write_json_atomic(out / "faithfulness.json", record)
    columns = [Column("merging", words=True), Column("explanation", words=True)]
    columns += [Column("deletion"), Column("95 % interval"), Column("insertion"), Column("95 % interval")]
    cells = [
        [
            row["way"],
            row["method"],
            f"{row['deletion']:.3f}",
            _span(row["deletion_interval"]),
            f"{row['insertion']:.3f}",
            _span(row["insertion_interval"]),
        ]
        for row in rows
    ]
    table = markdown(columns, cells)
    note = (
        f"{counted(count, 'image')}, {plan.steps} steps. A good explanation has a small deletion and a large insertion."
    )
    write_text_atomic(out / "table.md", f"{table}\n\n{note}\n")
    return table


def _rows(pairs: Sequence[Pair]) -> Iterator[dict[str, Any]]:
    """Numbers of each pair; `lead` is the difference of insertion to the random map, over the same images."""
    random = {pair.way: pair.areas for pair in pairs if pair.method == "random map"}
    for pair in pairs:
        deletion, insertion = pair.areas.mean(0)
        yield {
            "way": pair.way,
            "method": pair.method,
            "probability": pair.start,
            "deletion": float(deletion),
            "deletion_interval": interval(pair.areas[:, 0]),
            "insertion": float(insertion),
            "insertion_interval": interval(pair.areas[:, 1]),
            "lead": float((pair.areas - random[pair.way])[:, 1].mean()),
            "lead_interval": interval((pair.areas - random[pair.way])[:, 1]),
        }


def _span(limits: tuple[float, float]) -> str:
    return f"{limits[0]:.3f} to {limits[1]:.3f}"
