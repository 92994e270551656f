#!/usr/bin/env python3
"""Which first block, metric and importance lose least: divergence from the unmerged model, on training images.

  python docs/results/off_the_shelf/divergence.py imagenette/train WEIGHTS [ROWS]

The mean Kullback-Leibler divergence of the class probabilities from those of the unmerged DeiT-Tiny distinguishes ways
of merging with far fewer images than accuracy does. Its rows chose what the study then tests on other images. bf16,
images 51 to 100 of each class folder, one thread. ROWS: only rows whose name contains this text.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
from models.merging import wrap
from models.merging.wrapping import schedule_of

FIRST, LAST, BATCH = 50, 100, 50
BLOCKS = {1.0: (4, 5, 6), 0.9: (3, 4, 5), 0.8: (2, 3, 4), 0.7: (1, 2, 3)}  # GMACs -> first blocks to try
OTHERS = {1.0: 4, 0.9: 4, 0.8: 3, 0.7: 2}  # GMACs -> first block of the other methods


def rows() -> dict[str, dict]:
    """The ways of merging, by name."""
    found = {}
    for gmacs, blocks in BLOCKS.items():
        budget = {"target_gmacs": gmacs}
        for first in blocks:
            ours = {"method": "facility_location", "importance": "attention", **budget, "first_block": first}
            found[f"{gmacs} G from {first}, facility location by attention"] = ours
            found[f"{gmacs} G from {first}, facility location by attention, tokens"] = {**ours, "metric": "tokens"}
        late = {**budget, "first_block": OTHERS[gmacs]}
        for method in ("tome", "mctf", "facility_location", "grid"):
            found[f"{gmacs} G from {OTHERS[gmacs]}, {method}"] = {"method": method, **late}
        for method in ("tome", "mctf"):
            found[f"{gmacs} G from {OTHERS[gmacs]}, {method}, tokens"] = {"method": method, "metric": "tokens", **late}
        for method in ("tome", "mctf", "facility_location"):
            found[f"{gmacs} G from 1, {method}"] = {"method": method, **budget}
    return found


def main(images: str, weights: str, only: str = "") -> None:
    torch.set_num_threads(1)
    model = timm.create_model("deit_tiny_patch16_224").eval()
    model.load_state_dict(load_file(weights))
    files = [file for folder in sorted(Path(images).iterdir()) for file in sorted(folder.iterdir())[FIRST:LAST]]
    pixels = torch.stack([torch.from_numpy(np.array(Image.open(file).convert("RGB"))) for file in files])
    mean, std = (torch.tensor(model.pretrained_cfg[key])[:, None, None] for key in ("mean", "std"))

    def log_probabilities() -> torch.Tensor:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            batches = [(batch.permute(0, 3, 1, 2) / 255 - mean) / std for batch in pixels.split(BATCH)]
            return torch.cat([model(batch).float() for batch in batches]).log_softmax(-1)

    unmerged = log_probabilities()
    for name, merge in rows().items():
        if only in name:
            wrap(model, **merge)
            merged = log_probabilities()
            divergence = (unmerged.exp() * (unmerged - merged)).sum(-1)
            error = divergence.std() / len(files) ** 0.5
            agreement = (merged.argmax(-1) == unmerged.argmax(-1)).float().mean()
            print(f"{name:55} {divergence.mean():.4f} ± {error:.4f}  {100 * agreement:.1f} %  {schedule_of(model)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
