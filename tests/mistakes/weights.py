"""Mistakes in weights."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import torch
from timm.models.vision_transformer import VisionTransformer

from tests.mistakes.mistake import Mistake

DIGITS = {"img_size": 8, "patch_size": 2, "in_chans": 1, "embed_dim": 64, "num_heads": 2, "num_classes": 10}


def _weights(**options: object) -> None:
    """A file of weights of timm's ViT, of the size of configs/digits/vit.yaml."""
    model = VisionTransformer(**{**DIGITS, "depth": 4, **options})
    torch.save(model.state_dict(), "vit.pth")


def _distilled(folder: Path) -> None:
    model = VisionTransformer(**DIGITS, depth=4)
    torch.save({**model.state_dict(), "dist_token": torch.zeros(1, 1, 64)}, "vit.pth")


def _zeros(folder: Path) -> None:
    """Chunks of zeros, which shrink to a thousandth."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (300, 10**6)})
    with zipfile.ZipFile("vit.npz", "w", zipfile.ZIP_DEFLATED) as archive, archive.open("head/kernel.npy", "w") as file:
        file.write(header.getvalue())
        for _ in range(300):
            file.write(bytes(10**6))


MISTAKES: list[Mistake] = [
    Mistake(
        "Weights of a ViT with more blocks",
        "tools/train.py --cfg digits/vit model.weights=vit.pth",
        "model.weights = 'vit.pth': 24 without a place in the model (blocks.4.norm1.weight, blocks.4.norm1.bias, "
        "blocks.4.attn.qkv.weight, and 21 more), so that the model would compute something else; use model.depth=6",
        lambda folder: _weights(depth=6),
    ),
    Mistake(
        "Weights of a ViT that normalises queries and keys",
        "tools/train.py --cfg digits/vit model.weights=vit.pth",
        "model.weights = 'vit.pth': 16 without a place in the model (blocks.0.attn.q_norm.weight, "
        "blocks.0.attn.q_norm.bias, blocks.0.attn.k_norm.weight, and 13 more), so that the model would compute "
        "something else; use the network that they were trained with",
        lambda folder: _weights(qk_norm=True),
    ),
    Mistake(
        "Weights with a token that the model does not have",
        "tools/train.py --cfg digits/vit model.weights=vit.pth",
        "model.weights = 'vit.pth': 1 without a place in the model (dist_token), so that the model would compute "
        "something else; use the network that they were trained with",
        _distilled,
    ),
    Mistake(
        "A small archive of weights that unpacks to a size of its own",
        "tools/train.py --cfg digits/vit model.weights=vit.npz",
        "model.weights = 'vit.npz': ... kB that unpack to 300 MB, and the model has ... kB of weights; give a file of "
        "the model's weights",
        _zeros,
    ),
]
