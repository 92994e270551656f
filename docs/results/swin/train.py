"""A small Swin on Imagenette, from scratch: merged inside its windows, and siblings of equal cost that do not merge.

PYTHONPATH=. python docs/results/swin/train.py FOLDER WORK --epochs 5

FOLDER holds train/ and val/ with a folder for each class; WORK receives the images as arrays and a JSON for each model.
Its first stage has the form of the third one of Swin at 224 px, where half of its multiply-adds or more are: windows,
shifted in every second block, and its second stage is one window. All models see the same images in the same order.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from timm.models import SwinTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from windows import staged

from models.merging.wrapping.cost import count

SIZE, BATCH = 96, 64
MODELS = {
    "unmerged": {},
    "merged": {"merge": True},
    "narrower": {"embed_dim": 54},
    "smaller images": {"img_size": 80, "window_size": 5},
}


def built(
    img_size: int = SIZE,
    window_size: int = 6,
    embed_dim: int = 64,
    depths: tuple[int, int] = (4, 2),
    merge: bool = False,
) -> nn.Module:
    """A Swin of two stages with patches of 8 x 8 pixels."""
    torch.manual_seed(0)
    model = SwinTransformer(
        img_size=img_size,
        patch_size=8,
        embed_dim=embed_dim,
        depths=depths,
        num_heads=(2, 4),
        window_size=window_size,
        num_classes=10,
        drop_path_rate=0.0,
    )
    return staged(model, (1,)) if merge else model


def arrays(folder: Path, work: Path, split: str) -> tuple[Tensor, Tensor]:
    """Images (N, 3, SIZE, SIZE) uint8 and labels (N,)."""
    file = work / f"{split}.npz"
    if not file.exists():
        classes = sorted(path.name for path in (folder / split).iterdir())
        files = sorted((folder / split).glob("*/*"))
        images = np.stack([np.asarray(Image.open(path).convert("RGB").resize((SIZE, SIZE))) for path in files])
        labels = np.array([classes.index(path.parent.name) for path in files])
        np.savez(file, images=images.transpose(0, 3, 1, 2), labels=labels)
    loaded = np.load(file)
    return torch.from_numpy(loaded["images"]), torch.from_numpy(loaded["labels"])


def prepared(images: Tensor, size: int, generator: torch.Generator | None = None) -> Tensor:
    """uint8 -> normalised float of this size; with a generator, mirrored and cropped by chance first."""
    x = images.float().div(255).sub(torch.tensor([0.47, 0.46, 0.43])[:, None, None]).div(0.28)
    if generator is not None:
        x = torch.where(torch.rand(len(x), 1, 1, 1, generator=generator) < 0.5, x.flip(-1), x)
        padded = F.pad(x, (8, 8, 8, 8), mode="reflect")
        top, left = torch.randint(0, 17, (2, len(x)), generator=generator).tolist()
        x = torch.stack([image[:, i : i + SIZE, j : j + SIZE] for image, i, j in zip(padded, top, left, strict=True)])
    return x if size == SIZE else F.interpolate(x, (size, size), mode="bicubic", antialias=True)


def train(model: nn.Module, size: int, images: Tensor, labels: Tensor, epochs: int, lr: float = 2e-3) -> float:
    """Trains by AdamW with one cycle of the rate, in bf16. Returns CPU seconds."""
    steps = epochs * (len(images) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.05)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.2)
    generator, began = torch.Generator().manual_seed(0), time.process_time()
    model.train()
    for step in range(steps):
        if step % (len(images) // BATCH) == 0:
            order = torch.randperm(len(images), generator=generator)
        rows = order[step % (len(images) // BATCH) * BATCH :][:BATCH]
        x = prepared(images[rows], size, generator)
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(model(x).float(), labels[rows], label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        cycle.step()
        if step % 50 == 0:
            print(f"step {step} of {steps}, loss {loss:.3f}, {time.process_time() - began:.0f} s", flush=True)
    return time.process_time() - began


@torch.no_grad()
def result(model: nn.Module, size: int, images: Tensor, labels: Tensor) -> dict[str, object]:
    """What is written for a model: its accuracy and cost, and which images it classifies correctly, in fp32."""
    model.eval()
    answers = torch.cat([model(prepared(part, size)).argmax(1) for part in images.split(250)])
    right: list[bool] = (answers == labels).tolist()
    return {"accuracy": 100 * sum(right) / len(right), "macs": count(model, (3, size, size)), "right": right}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    learn, test = (arrays(given.folder, given.work, split) for split in ("train", "val"))
    for name in given.models:
        options = MODELS[name]
        size, model = int(options.get("img_size", SIZE)), built(**options)
        seconds = train(model, size, *learn, given.epochs)
        row = {**result(model, size, *test), "epochs": given.epochs, "cpu_seconds": seconds}
        (given.work / f"{name.replace(' ', '_')}.json").write_text(json.dumps(row))
        torch.save(model.state_dict(), given.work / f"{name.replace(' ', '_')}.pt")
        print(name, f"{row['accuracy']:.1f} %, {row['macs'] / 1e6:.1f} M multiply-adds", flush=True)


if __name__ == "__main__":
    main()
