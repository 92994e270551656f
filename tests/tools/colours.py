"""Run folders made by hand, whose models tell plain colours apart: nothing is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from engine.data.loading.loader import Normalise
from engine.runs.checkpoints import checkpoint
from engine.runs.checkpoints.weights import built
from engine.runs.folder import RunFolder
from engine.settings.schema import RunSettings
from models.settings import check
from tests.results import results_of

RED, GREEN, BLUE = (220, 40, 40), (40, 220, 40), (40, 40, 220)
COLOURS = {"1": RED, "10": GREEN, "2": BLUE}  # names as folders sort them, not as people count
MEAN, STD = (0.4, 0.5, 0.45), (0.2, 0.25, 0.3)
VIT = {"name": "vit", "img_size": 8, "patch_size": 2, "embed_dim": 16, "depth": 2, "num_heads": 2}
FOLDER = {"name": "folder", "path": "not/there"}
# A settings file for a folder of colours beside it, which trains in a second.
SETTINGS = """
name: colours
threads: 1
device: cpu
model: {name: vit, img_size: 8, patch_size: 4, embed_dim: 8, depth: 1, num_heads: 2}
data: {name: folder, path: images, workers: 0}
split: {val: 0, test: 0.25}
train: {epochs: 1, batch_size: 4, precision: fp32}
log: {images: 0}
"""


def save_colour(path: Path, colour: Sequence[int], seed: int = 0, size: tuple[int, int] = (14, 10), **how) -> Path:
    """A file of nearly one colour, in the format that its name says, or that `format` says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(-25, 26, (size[1], size[0], 3))
    Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8)).save(path, **how)
    return path


def colour_run(
    folder: Path,
    colours: Mapping[str, Sequence[int]] = COLOURS,
    model: Mapping = VIT,
    results: Mapping | None = None,
    seed: int = 0,
    sharp: float = 4.0,
    **sections,
) -> Path:
    """A run folder of a model that knows these colours, in this order of its classes, by their names.

    Args:
        folder: is made.
        colours: by name.
        model: its settings, without the number of classes.
        results: fields of `Results` that matter to the test.
        seed: of the weights before the head.
        sharp: how sure the model is.
        sections: other settings.
    """
    model = {"in_chans": 3, **model, "num_classes": len(colours)}
    tree = {"name": "run", "threads": 1, "device": "cpu", "model": model, "data": FOLDER, **sections}
    tree["train"] = {"precision": "fp32", "batch_size": 4, **tree.get("train", {})}
    settings = check(RunSettings, tree)
    net = built(settings.model_copy(update={"seed": seed})).eval()
    head = net.get_submodule(net.head_names[0])
    size, channels = settings.model.img_size, settings.model.in_chans
    plain = torch.tensor(list(colours.values()), dtype=torch.uint8)[:, :channels, None, None].expand(-1, -1, size, size)
    mean, std = MEAN[:channels], STD[:channels]
    seen = []
    hook = head.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    with torch.no_grad():
        net(Normalise(mean, std)(plain))
        hook.remove()
        features = seen[0].flatten(1)  # (K, D)
        away = features - features.mean(dim=0)
        away = sharp * away / away.norm(dim=1).square().mean()
        head.weight.copy_(away)
        head.bias.copy_(-(away * features).sum(dim=1) / 2 - (away * features.mean(dim=0)).sum(dim=1) / 2)
    folder.mkdir(parents=True)
    run = RunFolder(folder)
    run.write_settings(settings)
    state = {"model": dict(net.state_dict()), "partial": False, "frozen": None, "classes": list(colours)}
    checkpoint.save(run.checkpoint("best"), {**state, "mean": list(mean), "std": list(std), "step": 1})
    run.write_results(results_of(**{"fold": settings.split.fold, **(results or {})}))
    return folder
