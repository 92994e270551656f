#!/usr/bin/env python3
"""Explanations of models that learned textures first beside those from ImageNet, on test images of RSSCN7.

PYTHONPATH=. python docs/results/explain_textures/compare.py RUNS

RUNS holds the run folders textures_NAME and imagenet_NAME of the models in METHODS. Writes textures.json and
textures.png, which has maps alone, since the photographs may not be redistributed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from engine.data.loading.loader import Normalise
from engine.explain.faithful.areas import centre_map, deletion_and_insertion, on_cells, random_map
from engine.runs.restore import load_run
from models.explain import explain

HERE = Path(__file__).resolve().parent
METHODS = {"squeezenet": ["gradcam"], "deit": ["gradient_rollout"], "hybrid": ["gradient_rollout"]}
EACH, STEPS, BATCH = 3, 14, 7  # images of each class, steps of the curves, images in a batch


def chosen(labels: torch.Tensor) -> torch.Tensor:
    """The positions of EACH images of each class, spread over the test set."""
    found = []
    for label in labels.unique():
        members = (labels == label).nonzero()[:, 0]
        found.append(members[torch.linspace(0, len(members) - 1, EACH).long()])
    return torch.cat(found)


def measured(run, method: str, images: torch.Tensor, labels: torch.Tensor, beside: bool) -> dict:
    """Maps of a method and their areas; beside: those of a random map and of a blob in the centre, too."""
    maps, areas, right = [], {"method": [], **({"random": [], "centre": []} if beside else {})}, 0
    for part in torch.arange(len(images)).split(BATCH):
        found = explain(run.model, images[part], method)
        right += int((found.target == labels[part]).sum())
        maps.append(on_cells(found.relevance))
        others = {"method": found.relevance, "random": random_map(len(images))[part], "centre": centre_map(len(part))}
        for name in areas:
            curves = deletion_and_insertion(run.model, images[part], others[name], found.target, steps=STEPS)
            areas[name].append(curves.areas)
    means = {name: torch.cat(values).mean(0).tolist() for name, values in areas.items()}
    return {"maps": torch.cat(maps), "areas": means, "right": right}


def main() -> None:
    folder, rows, drawn = Path(sys.argv[1]), [], []
    for model, methods in METHODS.items():
        runs = {first: load_run(folder / f"{first}_{model}") for first in ("textures", "imagenet")}
        test = runs["textures"].data.test
        part = chosen(test.labels)
        for method in methods:
            maps = {}
            for first, run in runs.items():
                images = Normalise(run.data.mean, run.data.std)(test.read(part))
                found = measured(run, method, images, test.labels[part], method == methods[0])
                maps[first] = found["maps"]
                accuracy = json.loads((folder / f"{first}_{model}" / "results.json").read_text())["test_top1"]
                rows.append({"model": model, "first": first, "method": method, "test_top1": accuracy, **found["areas"]})
                print(model, first, method, f"{accuracy:.4f}", found["right"], found["areas"], flush=True)
            pairs = zip(maps["textures"], maps["imagenet"], strict=True)
            alike = [float(spearmanr(a.flatten(), b.flatten()).statistic) for a, b in pairs]
            rows[-1]["rank_correlation"] = rows[-2]["rank_correlation"] = sum(alike) / len(alike)
            drawn += [(f"{model}\n{first} first", maps[first][::EACH]) for first in maps]
    (HERE / "textures.json").write_text(json.dumps({"images": len(part), "rows": rows}, indent=1))
    figure = Figure(figsize=(9.5, 1.15 * len(drawn)), layout="constrained")
    axes = figure.subplots(len(drawn), 7)
    for (title, maps), line in zip(drawn, axes, strict=True):
        for values, axis in zip(maps, line, strict=True):
            axis.imshow(values, cmap="viridis")
            axis.set_xticks([])
            axis.set_yticks([])
        line[0].set_ylabel(title, fontsize=7)
    for axis, name in zip(axes[0], runs["textures"].data.classes, strict=True):
        axis.set_title(name, fontsize=8)
    figure.savefig(HERE / "textures.png", dpi=110)


if __name__ == "__main__":
    main()
