"""What it costs to merge inside cells alone, as Swin's windows need it, in a pretrained model: DeiT-Tiny.

PYTHONPATH=. python docs/results/swin/cells_in_deit.py IMAGES WEIGHTS

DeiT-Tiny merges once, to half of its tokens: anywhere in the image, or inside the cells that windows of 7 and these
shifted by 3 have in common, as many in each cell of one shape. IMAGES holds a folder for each class, named by its
WordNet ID; WEIGHTS is a file of timm's deit_tiny_patch16_224.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import timm
import torch
from off_the_shelf import interval
from PIL import Image
from timm.data import ImageNetInfo
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torch.nn import functional as F
from windows import Cells

from models.merging import Assignment, MergeContext, Merger, wrap
from models.merging.wrapping import blocks_of
from models.merging.wrapping.cost import count

GRID, LEFT = (14, 14), 100  # 25 tokens of each window of 7 x 7


def inside_cells(inner: Merger, window: int = 7, shift: int = 3) -> Merger:
    """A method that merges inside cells, as many in each cell of one shape as MergedStage does."""
    cells = Cells(GRID, window, shift)
    number = torch.arange(GRID[0] * GRID[1]).view(1, *GRID, 1)
    places = cells.split(number).flatten(0, 2)[..., 0].split(cells.counts, 1)  # by cell shape: (windows, patches)

    def assign(metric: Tensor, r: int, context: MergeContext) -> Assignment:
        index, before = torch.zeros(metric.shape[:2], dtype=torch.int64), 0
        for place in places:
            part = metric[:, place].flatten(0, 1)
            answer = inner.assign(part, place.shape[1] // 2, MergeContext(torch.ones(part.shape[:2])))
            first = before + answer.count * torch.arange(len(place)).view(1, -1, 1)
            index[:, place.flatten()] = (answer.index.unflatten(0, (-1, len(place))) + first).flatten(1)
            before += answer.count * len(place)
        assert metric.shape[1] - before == r
        return Assignment(index, before)

    return Merger(assign)


def loaded(folder: Path) -> tuple[Tensor, Tensor]:
    """Images (N, 3, 224, 224) and the numbers of their classes among ImageNet's 1,000."""
    info = ImageNetInfo()
    classes = {name: number for number, name in enumerate(info.label_names())}
    files = [(path, classes[path.parent.name]) for path in sorted(folder.glob("n*/*"))]
    pixels = np.stack([np.asarray(Image.open(path).convert("RGB").resize((224, 224))) for path, _ in files])
    mean, std = (torch.tensor(each)[:, None, None] for each in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div(255).sub(mean).div(std)
    return x, torch.tensor([label for _, label in files])


@torch.inference_mode()
def right(model: nn.Module, images: Tensor, labels: Tensor, size: int) -> list[bool]:
    """Which images the model classifies correctly."""
    if size < 224:
        images = F.interpolate(images, (size, size), mode="bicubic", antialias=True)
    out: list[bool] = (torch.cat([model(part).argmax(1) for part in images.split(50)]) == labels).tolist()
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=Path)
    parser.add_argument("weights", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    images, labels = loaded(given.images)

    def model() -> nn.Module:
        return timm.create_model("deit_tiny_patch16_224", checkpoint_path=str(given.weights)).eval()

    rows: dict[str, tuple[nn.Module, int]] = {"unmerged": (model(), 224)}
    for method, blocks in (("tome", (1, 4, 7)), ("facility_location", (4,))):
        for block in blocks:
            r = [GRID[0] * GRID[1] - LEFT if number == block else 0 for number in range(1, 13)]
            rows[f"`{method}` in block {block}, anywhere"] = (wrap(model(), method, r), 224)
            inside = wrap(model(), method, r)
            for layer in blocks_of(inside).layers():
                layer.merger = inside_cells(layer.merger)
            rows[f"`{method}` in block {block}, inside cells"] = (inside, 224)
    for size in (192, 176):
        small = model()
        small.set_input_size((size, size))
        rows[f"{size} px"] = (small, size)
    print("| | GMACs | top-1 | difference |\n|---|---|---|---|")
    before = None
    for name, (each, size) in rows.items():
        answers = right(each, images, labels, size)
        before = answers if before is None else before
        macs, share = count(each, (3, size, size)) / 1e9, 100 * sum(answers) / len(answers)
        print(f"| {name} | {macs:.2f} | {share:.1f} % | {interval(answers, before)} |", flush=True)


if __name__ == "__main__":
    main()
