"""The contract between models and the engine: what a model may offer beyond logits, and how to ask any model for it.

Every model is an `nn.Module` that maps images (B, C, H, W) to logits (B, classes). Whatever else it offers is declared
by one of the protocols below. A model offers it by having these members; no base class and no registration is needed.
The functions below ask a model of ours or of another library, wrapped or not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from .merging.contract import Grid, Removal
from .merging.layer import MergeLayer, hooked
from .merging.schedule import fixed_removals
from .merging.settings import MergeSettings
from .merging.tokens import Tokens, unmerge
from .merging.wrapping import MergingBlocks, base_model, blocks_of, trace
from .merging.wrapping.families import family_of
from .settings import ModelSettings, UserError
from .vit import VisionTransformer


@runtime_checkable
class MergingModel(Protocol):
    """A model whose transformer blocks may merge tokens.

    Attributes:
        schedule: the number of patches that each block removes; Adaptive where it depends on the image.
        grid: rows and columns of the patches before merging; None for a model of images of any size.
    """

    schedule: list[Removal]
    grid: Grid | None

    def tokens_per_block(self) -> list[int]:
        """The number of tokens that leave each block, prefix tokens included; empty where it depends on the image."""

    def trace(self, images: Tensor) -> Tokens:
        """Runs images (B, C, H, W) through the model. Returns the state of the tokens after the last block."""


@runtime_checkable
class SeveralHeads(Protocol):
    """A model that is trained with one loss for each of its heads. Its `forward` returns the sum of their logits."""

    def forward_heads(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images (B, C, H, W) -> logits (B, classes) of each head."""


@runtime_checkable
class NamedHeads(Protocol):
    """A model that names its classification layers.

    Attributes:
        head_names: paths of the layers that are replaced when the number of classes changes.
    """

    head_names: tuple[str, ...]


@runtime_checkable
class ExemptFromWeightDecay(Protocol):
    """A model or part of one with parameters that weight decay must not apply to (timm's convention)."""

    def no_weight_decay(self) -> Iterable[str]:
        """Names of these parameters."""


@runtime_checkable
class LayerGroups(Protocol):
    """A model that says which parameters form a layer (timm's convention), for learning rates that decay with depth."""

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Regular expressions for the names of parameters, by group of layers."""


@runtime_checkable
class SettingsWithMerging(Protocol):
    """Settings of models that can merge tokens: they have a `merge:` section, or null in place of it."""

    merge: MergeSettings | None


@runtime_checkable
class SettingsWithArchitecture(Protocol):
    """Settings of a model of another library, where `arch` is its name there."""

    arch: str


def model_name(settings: ModelSettings) -> str:
    """A model's name as written in a settings file: `hybrid`, `timm:resnet18`."""
    if isinstance(settings, SettingsWithArchitecture):
        return f"{settings.name}:{settings.arch}"
    return settings.name


def merge_settings(settings: object) -> MergeSettings | None:
    """The `merge:` section of a model's settings; None where there is none."""
    return settings.merge if isinstance(settings, SettingsWithMerging) else None


def without_merging(settings: ModelSettings) -> ModelSettings:
    """Returns the settings of the same model without merging."""
    if not isinstance(settings, SettingsWithMerging) or settings.merge is None:
        return settings
    ours = model_name(settings) == settings.name
    changed: dict[str, Any] = {"merge": MergeSettings(method="none") if ours else None}
    return settings.model_copy(update=changed)


def merging_method(settings: ModelSettings) -> str | None:
    """The name of the merging method, possibly "none"; None for settings without a `merge:` section."""
    merge = merge_settings(settings)
    return None if merge is None else merge.method


def as_merging_model(model: nn.Module) -> MergingModel | None:
    """The model as a MergingModel: itself, or a view of a wrapped model; None for models that do not merge tokens."""
    if isinstance(model, MergingModel):
        return model
    blocks = _wrapped_blocks(model)
    return None if blocks is None else WrappedModel(model, blocks)


class WrappedModel:
    """A wrapped model of another library, seen as a MergingModel.

    Args:
        model: the model.
        blocks: its blocks.
    """

    def __init__(self, model: nn.Module, blocks: MergingBlocks) -> None:
        self._model, self._blocks = model, blocks

    @property
    def schedule(self) -> list[Removal]:
        return self._blocks.schedule()

    @schedule.setter
    def schedule(self, schedule: list[Removal]) -> None:
        self._blocks.plan = schedule

    @property
    def grid(self) -> Grid | None:
        return self._blocks.layout()[0]

    def tokens_per_block(self) -> list[int]:
        return self._blocks.tokens_per_block()

    def trace(self, images: Tensor) -> Tokens:
        return trace(self._model, images)[1]


def removed_per_block(model: nn.Module) -> list[int]:
    """The number of patches that each transformer block merges away; empty for models that do not merge tokens, and
    where the number depends on the image."""
    merging = as_merging_model(model)
    return [] if merging is None else fixed_removals(merging.schedule)


def depends_on_image(model: nn.Module) -> bool:
    """Whether the number of patches that a model merges away depends on the image, and with it its cost."""
    merging = as_merging_model(model)
    return merging is not None and bool(merging.schedule) and not fixed_removals(merging.schedule)


def tokens_per_block(model: nn.Module) -> list[int]:
    """The number of tokens that leave each transformer block, prefix included; empty where it is not known."""
    merging = as_merging_model(model)
    return [] if merging is None or merging.grid is None else merging.tokens_per_block()


def trace_tokens(model: nn.Module, images: Tensor) -> tuple[Tokens, Grid | None] | None:
    """Runs a model on images (B, C, H, W) and returns which tokens were merged.

    Returns:
        The state of the tokens after the last block, and rows and columns of the patches before merging. None for
        models that do not merge tokens.
    """
    merging = as_merging_model(model)
    return None if merging is None else (merging.trace(images), merging.grid)


@contextmanager
def last_tokens(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collects the tokens that leave the last block of a ViT while it runs in this context.

    The list's last entry is that of the last forward pass: (B, P + N, C), a part of the graph, with the token that each
    input token became part of in its place.

    Raises:
        UserError: a model whose blocks are not known.
    """
    found: list[Tensor] = []
    blocks = _wrapped_blocks(model)
    if blocks is not None:
        last, read = blocks.unmerge, _result
    else:
        last, read = _last_block(model)
    with hooked([last], lambda module, inputs, output: found.append(read(output))):
        yield found


@contextmanager
def merging_losses(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collects what the merging of a model adds to the loss while it runs in training mode in this context.

    After a forward pass the list holds its losses, scalars of the graph: none, or one for each block that removes
    patches by a method with a loss of its own. Their mean is added to the run's loss.
    """
    layers = [module for module in model.modules() if isinstance(module, MergeLayer) and module.merger.soft is not None]
    found: list[Tensor] = []

    def read(module: nn.Module, inputs: Any, output: tuple[Tensor, Tokens]) -> None:
        _, tokens = output
        found[:] = found if tokens.soft is None else tokens.soft.losses

    with hooked(layers, read):
        yield found


def _last_block(model: nn.Module) -> tuple[nn.Module, Callable[[Any], Tensor]]:
    """The last block of a model that is not wrapped, and how its output is read."""
    vit = getattr(model, "vit", model)
    if isinstance(vit, VisionTransformer):
        return vit.blocks[-1], lambda output: unmerge(*output)
    try:
        vit = base_model(model)
        return list(vit.get_submodule(family_of(vit).blocks).children())[-1], _result
    except UserError:
        raise UserError(
            f"the last block's tokens of {type(model).__name__} are not known, only those of vit, hybrid and the ViTs "
            "that wrap takes"
        ) from None


def _result(output: Any) -> Tensor:
    result: Tensor = output[0] if isinstance(output, tuple) else output
    return result


def _wrapped_blocks(model: nn.Module) -> MergingBlocks | None:
    try:
        family_of(model)
        return blocks_of(model)
    except UserError:
        return None
