"""Fingerprints of what decides a row: settings, weights, images, and the code that merges."""

from __future__ import annotations

import ast
import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import models.merging


def of_values(*values: Any) -> str:
    """Returns a fingerprint of values that can be written as JSON."""
    text = json.dumps(values, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def of_weights(state: dict[str, Tensor]) -> str:
    """Returns a fingerprint of the names, shapes and values of a state dict."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@cache
def of_merging() -> str:
    """Returns a fingerprint of the code of models/merging: what it does, without comments, docstrings and layout."""
    digest = hashlib.sha256()
    for file in sorted(Path(models.merging.__file__).parent.rglob("*.py")):
        digest.update(_meaning(file.read_text(encoding="utf-8")).encode())
    return digest.hexdigest()


def _meaning(source: str) -> str:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            del node.body[0]
    return ast.dump(tree)
