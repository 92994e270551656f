"""Refuses weights with which a model would compute something else than the one that they are of.

A file may fill every parameter of a model and still be another network's: with more blocks, normalised queries and
keys, or tokens that the model does not have. A file may also lack a part of a block.
"""

from __future__ import annotations

import re

import torch
from torch import nn

from ..hybrid import Hybrid
from ..merging.layer import MergeLayer
from ..settings import UserError
from ..stem import PatchStem
from ..vit import VisionTransformer
from .blocks import absent_blocks
from .caveats import USUAL_HEAD
from .convert import first_conv
from .files import State
from .fit import HEADS, Fit, best_fit, heads_of
from .report import Report, few
from .takers import takers

# First parts of names that stand beside a network for its training alone: decoders, projections, losses, counters.
TRAINING = (
    "decoder",
    "mask_token",
    "lm_head",
    "predictor",
    "projector",
    "projection_head",
    "dino_head",
    "ibot_head",
    "criterion",
    "loss",
    "optimizer",
    "logit_scale",
    "logit_bias",
    "prototypes",
    "queue",
    "AuxLogits",
    "aux1",
    "aux2",
    "n_averaged",
    "neck",  # of mmpretrain: what self-supervised training puts behind the backbone
    "target_generator",
)
COUNTERS = ("total_ops", "total_params", "position_ids")  # last parts of names: of profilers, and of Hugging Face


def demand_same_function(fit: Fit, model: nn.Module, state: State) -> None:
    """Checks that the weights make the model compute what they were trained for, up to its head.

    Args:
        fit: what of the file fits. Where a part of the file's head does not, its head is left out of `fit`.
        model: the model.
        state: the content of the file.

    Raises:
        UserError: the weights have another number of image channels or are not finite; less than half of the
            parameters before the head would be loaded; or a weight of the file, or of the model, that changes what is
            computed has no counterpart.
    """
    key, report = f"model.weights = {fit.report.source!r}", fit.report
    _check_channels(key, report, first_conv(model))
    _check_adapters(key, state)
    if report.share < 0.5:
        lost = {"missing": report.with_shapes(report.missing), "unexpected": report.unexpected}
        details = "; ".join(f"{len(names)} {what} ({few(names, 3)})" for what, names in lost.items() if names)
        raise UserError(
            f"{key}: fits {report.share:.0%} of the model's parameters before the head: {details}; "
            f"give weights of the same architecture, or {_advice(fit, model, state)}"
        )
    _leave_out_half_a_head(fit, model)
    if misfits := _misfits(fit, model):
        raise UserError(
            f"{key}: {misfits}, so that the model would compute something else; {_advice(fit, model, state)}"
        )
    for name, value in fit.tensors.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise UserError(f"{key}: {name} contains values that are not finite; give other weights")


def without_place(fit: Fit) -> list[str]:
    """Returns the names of the file's weights that the model lacks, of those that change what is computed."""
    counters = {
        name for name, value in fit.reading.after.items() if value.numel() == 1 and not value.is_floating_point()
    }
    apart = {*fit.reading.outside, *counters, *(name for name in fit.report.unexpected if _is_apart(name))}
    return [name for name in fit.report.unexpected if name not in apart]


def incomplete(fit: Fit, model: nn.Module) -> list[str]:
    """Returns the names of the model's weights that the file lacks, and without which it is not the file's network.

    A block that is missing as a whole is not among them if one that equals it is loaded (see `absent_blocks`), nor is
    what the model has beyond the networks of such files: merging that learns, a hybrid's convolutional half if nothing
    of it is loaded.
    """
    alone = isinstance(model, Hybrid) and not any(name.startswith("conv_head.") for name in fit.tensors)
    part = "vit." if alone else fit.reading.part
    merging = tuple(f"{path}." for path, module in model.named_modules() if isinstance(module, MergeLayer))
    beyond = merging + absent_blocks(model, set(fit.tensors))
    return [
        name
        for name in fit.report.missing
        if name.startswith(part) and not (beyond and name.startswith(beyond)) and not _is_own_stem(name, model)
    ]


def _is_apart(name: str) -> bool:
    """Returns whether a name in a file is that of a head, or of something that only training uses."""
    first = re.split(r"[./]", name)[0]
    return (
        name.startswith(tuple(f"{head}." for head in HEADS))
        or first == "pre_logits"
        or any(first == word or first.startswith(f"{word}_") for word in TRAINING)
        or name.endswith(COUNTERS)
    )


def _is_own_stem(name: str, model: nn.Module) -> bool:
    """Returns whether a name belongs to a convolutional stem, which keeps its initial weights beside a ViT's blocks."""
    own = isinstance(model, Hybrid) and not isinstance(model.vit.patch_embed, PatchStem)
    return own and name.startswith("vit.patch_embed.")


def _leave_out_half_a_head(fit: Fit, model: nn.Module) -> None:
    """Leaves the head out where the file's has more layers, such as the `pre_logits` of older ViTs."""
    halves = ("pre_logits", *(f"{head}." for head in HEADS if not head.lower().startswith("aux")))
    own = [name for name in fit.tensors if name.startswith(heads_of(model))]
    further = any(name.startswith(halves) for name in fit.report.unexpected if name not in fit.reading.outside)
    # timm's filters drop these names without a word
    places = model.state_dict().keys()
    dropped = any("pre_logits" in name.split(".") and name not in places for name in fit.reading.before)
    if own and (further or dropped):
        for name in own:
            del fit.tensors[name]
        fit.report.loaded = list(fit.tensors)
        fit.report.replaced = own + fit.report.replaced


def _misfits(fit: Fit, model: nn.Module) -> str:
    """Returns what does not fit, as the middle of an error line; "" if nothing."""
    report, heads = fit.report, heads_of(model)
    mismatched = [entry for entry in report.mismatched if not entry[0].startswith(heads)]
    mismatched = [entry for entry in mismatched if not _is_own_stem(entry[0], model)]
    names = [other for name, _, _ in mismatched for other in (name, f"{name.removesuffix('weight')}bias")]
    faults = {
        "without a place in the model": without_place(fit),
        "of another shape": report.with_shapes([name for name, old, new in mismatched if old != new]),
        "not of floating-point numbers with 16 bits or more": [name for name, old, new in mismatched if old == new],
        "missing in the file": [name for name in incomplete(fit, model) if name not in names],
    }
    return " and ".join(f"{len(names)} {fault} ({few(names, 3)})" for fault, names in faults.items() if names)


def _advice(fit: Fit, model: nn.Module, state: State) -> str:
    """Returns the end of the error line: the options, or the model, with which the weights fit."""
    if options := _options(fit, model):
        return f"use {options}"
    if not (names := takers(state, taken)):
        return "use the network that they were trained with"
    if len(names) == 1:
        return f"use model.name=timm:{names[0]}, which takes them"
    return f"use model.name=timm:{few(names, 3)}: each takes them, and only one is the network that they are of"


def _options(fit: Fit, model: nn.Module) -> str:
    """Returns the options of our transformer that follow from a ViT's weights and differ; "" if they do not suffice."""
    inner = model.vit if isinstance(model, Hybrid) else model
    found = {name: tuple(value.shape) for name, value in fit.reading.before.items()}
    needed = ("cls_token", "patch_embed.proj.weight", "blocks.0.mlp.fc1.weight")
    extra = [name for name in without_place(fit) if not name.startswith("blocks.")]
    if not isinstance(inner, VisionTransformer) or extra or any(name not in found for name in needed):
        return ""
    width = found["cls_token"][-1]
    blocks = {match[1] for name in found if (match := re.match(r"blocks\.(\d+)\.norm1\.", name))}
    parts = {name for name in found if name.startswith("blocks.0.")} - {"blocks.0.attn.qkv.bias"}
    if parts != {f"blocks.0.{name}" for name, _ in inner.blocks[0].named_parameters()} - {"blocks.0.attn.qkv.bias"}:
        return ""
    hidden = found["blocks.0.mlp.fc1.weight"][0]
    if found["blocks.0.mlp.fc2.weight"] != (width, hidden):  # a gated MLP
        return ""
    stem = inner.patch_embed.proj if isinstance(inner.patch_embed, PatchStem) else None
    of_file = {
        "embed_dim": width,
        "depth": len(blocks),
        "patch_size": found["patch_embed.proj.weight"][-1] if stem else None,
        "mlp_ratio": hidden / width,
        "qkv_bias": "blocks.0.attn.qkv.bias" in found,
    }
    own = {
        "embed_dim": inner.embed_dim,
        "depth": inner.depth,
        "patch_size": stem.kernel_size[0] if stem else None,
        "mlp_ratio": inner.blocks[0].mlp.fc1.out_features / inner.embed_dim,
        "qkv_bias": inner.blocks[0].attn.qkv.bias is not None or not of_file["qkv_bias"],
    }
    differ = [f"model.{key}={str(of_file[key]).lower()}" for key in own if of_file[key] != own[key]]
    if width != inner.embed_dim and width % USUAL_HEAD == 0:
        differ.append(f"model.num_heads={width // USUAL_HEAD}")  # of which the file says nothing
    return " ".join(differ)


def taken(model: nn.Module, state: State) -> Report | None:
    """Returns what a model takes of the weights if it has a place for all of them, and needs no others."""
    fit = best_fit("", model, state)
    return None if _misfits(fit, model) or fit.report.missing else fit.report


def _check_channels(key: str, report: Report, conv: str) -> None:
    for name, old, new in report.mismatched:
        if name == conv and len(old) == len(new) == 4 and old[0] == new[0] and old[2:] == new[2:] and old[1] != new[1]:
            also = " (or 1: they are summed)" if old[1] == 3 else ""
            raise UserError(f"{key}: {name} takes {old[1]} channels, model.in_chans = {new[1]}; use {old[1]}{also}")


def _check_adapters(key: str, state: State) -> None:
    if adapter := next((name for name in state if re.search(r"(^|\.)lora_(A|B|embedding)", name)), None):
        raise UserError(
            f"{key}: {adapter} is a LoRA adapter, and the file does not say how strongly it acts; save the model after "
            "peft's merge_and_unload()"
        )
