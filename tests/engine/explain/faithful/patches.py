"""Images on which one patch decides the class, and tiny models that have learned it in a second."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models import build_model
from tests.models.merging.wrapped_models import MODELS

SIDE, GRID = 32, 4  # pixels, and patches a side
PATCH = SIDE // GRID
NOISE, STRIPES = 0.25, 1.2
SMALL = {"img_size": SIDE, "num_classes": 2}
ENCODER = {**SMALL, "patch_size": PATCH, "embed_dim": 32, "depth": 2, "num_heads": 2}
BUILT: dict[str, Callable[[], nn.Module]] = {
    "vit": lambda: build_model("vit", **ENCODER),
    "timm": lambda: MODELS["deit"](num_classes=2, depth=2),
    "hybrid": lambda: build_model("hybrid", **ENCODER),
    "conformer": lambda: build_model(
        "conformer", **{**ENCODER, "depth": 3}, stem_stride=2, base_channel=8, channel_ratio=1
    ),
    "cnn": lambda: build_model("cnn", **SMALL, width=8, depths=[1]),
}
TRAINING = {"count": 510, "batch": 32, "steps": 80}
RATE = {"cnn": 1e-2}  # learning rates other than 3e-3


def pictures(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Noise with two tinted patches; in images of class 1, one of them has stripes.

    The other patch is there to be seen and says nothing. A blur takes the stripes away, as insertion needs it.

    Returns:
        Images (count, 3, SIDE, SIDE), classes (count,), and which cell of GRID x GRID is the deciding patch, (count,).
    """
    generator = torch.Generator().manual_seed(seed)
    images = NOISE * torch.randn(count, 3, SIDE, SIDE, generator=generator)
    labels = torch.arange(count) % 2
    cells = torch.rand(count, GRID * GRID, generator=generator).argsort(1)[:, :2]
    stripes = STRIPES * (1.0 - 2 * (torch.arange(PATCH) % 2)).expand(PATCH, PATCH)
    marks = torch.stack([torch.zeros(PATCH, PATCH), stripes])
    tint = torch.tensor([1.0, 0.0, -1.0]).view(3, 1, 1)
    for image, label, (decides, idle) in zip(images, labels, cells.tolist(), strict=True):
        for cell, mark in ((decides, marks[label]), (idle, marks[0])):
            top, left = (PATCH * place for place in divmod(cell, GRID))
            image[:, top : top + PATCH, left : left + PATCH] += tint + mark
    return images, labels, cells[:, 0]


def trained(name: str) -> nn.Module:
    """A model that tells the two classes apart, in evaluation mode.

    In the ViTs, the class token reads patches in the last block alone, so that it can be said which patch it has read,
    and is so large that what it reads hardly changes its norm: else the norm before the head, which takes the scale
    away, leaves no gradient in the very direction that decides, and methods by gradients see nothing.
    """
    torch.manual_seed(0)
    model = BUILT[name]().train()
    if name in ("vit", "timm"):
        nn.init.normal_(model.cls_token, std=10).requires_grad_(False)
        for block in model.blocks[:-1]:
            nn.init.zeros_(block.attn.proj.weight).requires_grad_(False)
            nn.init.zeros_(block.attn.proj.bias).requires_grad_(False)
    images, labels, _ = pictures(TRAINING["count"], seed=0)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=RATE.get(name, 3e-3))
    for _ in range(TRAINING["steps"]):
        chosen = torch.randint(0, len(images), (TRAINING["batch"],))
        optimizer.zero_grad()
        F.cross_entropy(model(images[chosen]), labels[chosen], label_smoothing=0.2).backward()
        optimizer.step()
    return model.eval()
