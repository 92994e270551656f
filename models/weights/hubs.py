"""Gets weights by name from timm and torchvision through the libraries' own loaders, which download and cache them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import timm
import torch
import torchvision
from timm.models import PretrainedCfg, get_pretrained_cfg, is_model
from torch import nn

from ..settings import UserError, nearest
from ..settings.zoo import current_timm_name
from .files import State, reason, unwrap


def read_timm(name: str) -> State:
    """Returns the state dict of timm's pretrained model `name`, such as vit_base_patch16_224.augreg_in21k.

    Raises:
        UserError: the model, the tag or the weights do not exist, or the weights are not cached and cannot be
            downloaded.
    """
    what = f"model.weights = 'timm:{name}'"
    name = current_timm_name(name)
    cfg = _timm_cfg(name, what)
    try:
        model: nn.Module = timm.create_model(name, pretrained=True)
    except MemoryError:
        raise
    except Exception as error:  # the Hub's client, the network and the reader each raise their own
        raise UserError(f"{what}: not cached, and not downloaded ({reason(error)}); {_timm_fix(cfg)}") from error
    return dict(model.state_dict())


def read_torchvision(name: str) -> State:
    """Returns the state dict of torchvision's weights MODEL or MODEL.WEIGHTS, such as vit_l_16.IMAGENET1K_SWAG_E2E_V1.

    Raises:
        UserError: the model or the weights do not exist, or the weights are not cached and cannot be downloaded.
    """
    what = f"model.weights = 'torchvision:{name}'"
    arch, _, tag = name.partition(".")
    known = torchvision.models.list_models(module=torchvision.models)
    if arch not in known:
        raise UserError(f"{what}: torchvision has no such classifier; {_near(arch, known, 'torchvision.models')}")
    entries = torchvision.models.get_model_weights(arch)
    if tag and tag not in entries.__members__:
        raise UserError(f"{what}: no such weights; {nearest(tag, list(entries.__members__))}")
    weights = entries[tag or "DEFAULT"]
    try:
        content = weights.get_state_dict(progress=False, check_hash=True, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # URLError, a wrong hash (RuntimeError), a full disk, a damaged file
        raise UserError(f"{what}: {_url_fault(weights.url, error)}") from error
    return unwrap(content, what)


HUBS: dict[str, Callable[[str], State]] = {"timm": read_timm, "torchvision": read_torchvision}


def _timm_cfg(name: str, what: str) -> PretrainedCfg:
    arch = name.partition(".")[0]
    if not is_model(arch):
        raise UserError(f"{what}: timm has no such model; {_near(arch, timm.list_models(), 'timm')}")
    try:
        cfg = get_pretrained_cfg(name)
    except RuntimeError:
        raise UserError(f"{what}: no such weights; {_near(name, timm.list_pretrained(f'{arch}.*'), 'timm')}") from None
    if cfg is None or not cfg.has_weights:
        raise UserError(f"{what}: timm has no weights for this model; {_near(name, timm.list_pretrained(), 'timm')}")
    return cfg


def _timm_fix(cfg: PretrainedCfg) -> str:
    if cfg.hf_hub_id:
        file = cfg.hf_hub_filename or "model.safetensors"
        url = f"https://huggingface.co/{cfg.hf_hub_id}/resolve/main/{file}"
        home = os.environ.get("HF_HOME", "~/.cache/huggingface")
        return f"fetch {url} and give it as model.weights=FILE, or copy another machine's Hub cache to {home}"
    return f"fetch {cfg.url} into {_checkpoints()}, or give it as model.weights=FILE"


def _url_fault(url: str, error: Exception) -> str:
    cached = _checkpoints() / url.rpartition("/")[2]
    if cached.exists():
        return f"{cached} cannot be read ({reason(error)}); delete it, then fetch {url} again"
    fix = f"fetch {url} into {cached.parent}, or give it as model.weights=FILE"
    return f"not cached, and not downloaded ({reason(error)}); {fix}"


def _checkpoints() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"


def _near(name: str, known: list[str], library: str) -> str:
    """Returns the nearest names; if there are none, all names or, if these are many, the function that lists them."""
    hint = nearest(name, known)
    return hint if hint.startswith("did you mean") or len(known) <= 10 else f"{library}.list_models() lists all"
