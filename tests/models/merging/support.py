"""What works with what: tries it on a small model of every family, and writes the table of docs/merging.md.

python -m tests.models.merging.support
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from importlib.metadata import version

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from models import build_model
from models.explain import explain
from models.merging import MERGERS, wrap
from models.merging.wrapping import schedule_of
from models.settings import UserError
from tests.models.merging import test_huggingface, wrapped_models
from tests.models.merging.wrapped_models import PATCHES, TINY, images
from tests.paths import ROOT

DOCUMENT = ROOT / "docs" / "merging.md"
BEGIN, END = "<!-- written by python -m tests.models.merging.support -->", "<!-- end of what is written -->"
CONFORMER = {"stem_stride": 1, "base_channel": 8, "channel_ratio": 1}
EXPLAINED = ("gradcam", "rollout", "gradient_rollout")  # the others ask the model alone, and take any

Make = Callable[..., nn.Module]  # (method, adapt, **keys of the merge: section) -> a model that merges
Adapt = Callable[[nn.Module], object]  # changes a model before it is wrapped


def _not_at_all(model: nn.Module) -> None:
    """Changes nothing."""


def _ours(name: str) -> Make:
    sizes = {**TINY, "in_chans": 3, **(CONFORMER if name == "conformer" else {})}

    def make(method: str = "tome", adapt: Adapt = _not_at_all, **merge: object) -> nn.Module:
        model = build_model(name, **sizes, merge={"method": method, **(merge or {"r": 5})}).eval()
        adapt(model)
        return model

    return make


def _wrapped(build: Callable[[], nn.Module]) -> Make:
    def make(method: str = "tome", adapt: Adapt = _not_at_all, **merge: object) -> nn.Module:
        model = build()
        adapt(model)
        return wrap(model, method, **(merge or {"r": 5}))

    return make


MODELS: dict[str, Make] = {
    **{f"`{name}`": _ours(name) for name in ("vit", "hybrid", "conformer")},
    "timm: ViT, DeiT, AugReg": _wrapped(lambda: wrapped_models.built("deit")),
    "timm: DeiT, distilled": _wrapped(lambda: wrapped_models.built("distilled")),
    "timm: DeiT-3": _wrapped(lambda: wrapped_models.built("deit3")),
    "timm: ViT without a class token": _wrapped(lambda: wrapped_models.built("average")),
    "timm: ViT with registers": _wrapped(lambda: wrapped_models.built("registers")),
    "timm: BEiT": _wrapped(lambda: wrapped_models.built("beit")),
    "timm: EVA": _wrapped(lambda: wrapped_models.built("eva")),
    "timm: EVA-02": _wrapped(lambda: wrapped_models.built("eva02")),
    "timm: DINOv3": _wrapped(lambda: wrapped_models.built("dinov3")),
    "torchvision: ViT, SWAG": _wrapped(lambda: wrapped_models.built("torchvision")),
    **{
        f"transformers: {name}": _wrapped(lambda name=name: test_huggingface.built(name))
        for name in test_huggingface.MODELS
    },
}


def _works(attempt: Callable[[], object]) -> bool:
    """Whether something succeeds. What is refused says why; any other error is a mistake."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            attempt()
    except UserError:
        return False
    return True


def _yes(works: bool) -> str:
    return "yes" if works else "no"


def _all_but(names: list[str], failed: list[str]) -> str:
    if len(failed) == len(names):
        return "no"
    return "all but " + ", ".join(f"`{name}`" for name in failed) if failed else "all"


def _logits(model: nn.Module) -> Tensor:
    out = model(images())
    return out if isinstance(out, Tensor) else out[0]


def methods(make: Make) -> str:
    """Which methods merge in it."""

    def merges(method: str) -> None:
        model = make(method)
        removed = schedule_of(model) if not hasattr(model, "schedule") else model.schedule
        assert (sum(removed) > 0) == (method != "none") and _logits(model).isfinite().all()

    return _all_but([*MERGERS], [method for method in MERGERS if not _works(lambda method=method: merges(method))])


def budget(make: Make) -> str:
    """Whether a budget of multiply-adds is met."""
    return _yes(_works(lambda: _logits(make(target_ratio=1.15))))


def maps(make: Make) -> str:
    """By which interface it gives a map of every patch after any block."""
    model = make()
    if hasattr(model, "forward_intermediates"):
        found = model.forward_intermediates(images(), indices=[0, 2], intermediates_only=True)
        assert all(found_map.shape[-2:] == (4, 4) for found_map in found)
        return "`forward_intermediates`"
    if hasattr(model, "config"):
        hidden = model(images(), output_hidden_states=True).hidden_states
        assert all(states.shape[1] >= PATCHES for states in hidden)
        return "`hidden_states`"
    return "the last block's" if hasattr(model, "forward_features") or hasattr(model, "encoder") else "no"


def explanations(make: Make) -> str:
    """Which explanations follow its merging."""
    failed = [method for method in EXPLAINED if not _works(lambda method=method: explain(make(), images(), method))]
    return _all_but([*EXPLAINED], failed)


def _adapters(model: nn.Module) -> None:
    """Adds LoRA, by peft alone, to the linear layers of attention that the model calls."""
    called: list[str] = []
    hooks = [
        module.register_forward_hook(lambda *_, name=name: called.append(name))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and "att" in name
    ]
    model(images())
    for hook in hooks:
        hook.remove()
    if not called:
        raise UserError("its attention uses weights without calling a layer")
    inject_adapter_in_model(LoraConfig(r=2, target_modules=called, init_lora_weights=False), model)


def lora(make: Make) -> str:
    """Whether adapters of its attention take effect where tokens merge."""

    def learns() -> None:
        model = make(adapt=_adapters)
        _logits(model).sum().backward()
        moved = [p.grad for name, p in model.named_parameters() if "lora_" in name]
        if not moved or not all(grad is not None and grad.any() for grad in moved):
            raise UserError("no adapter takes effect")

    return _yes(_works(learns))


COLUMNS = {"methods": methods, "budgets": budget, "maps": maps, "explanations": explanations, "LoRA": lora}


def row_of(name: str) -> dict[str, str]:
    """Tries a model."""
    torch.manual_seed(0)
    return {column: find(MODELS[name]) for column, find in COLUMNS.items()}


def table() -> str:
    """Tries everything, and returns the table."""
    lines = ["| | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name in MODELS:
        lines.append("| " + " | ".join([name, *row_of(name).values()]) + " |")
        print(lines[-1], flush=True)
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "timm", "torchvision", "transformers"))
    return "\n".join([*lines, "", f"Tried with {versions}."])


def written() -> dict[str, dict[str, str]]:
    """The table as the page has it: by model and column."""
    text = DOCUMENT.read_text(encoding="utf-8")
    lines = text[text.index(BEGIN) + len(BEGIN) : text.index(END)].strip().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    if not rows:
        return {}
    return {name: dict(zip(rows[0][1:], cells, strict=True)) for name, *cells in rows[2:]}


def main() -> None:
    logging.disable()
    found = table()  # takes a minute, in which the page may change
    before, rest = DOCUMENT.read_text(encoding="utf-8").split(BEGIN)
    DOCUMENT.write_text(f"{before}{BEGIN}\n\n{found}\n\n{END}{rest.split(END)[1]}", encoding="utf-8")


if __name__ == "__main__":
    main()
