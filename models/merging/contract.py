"""The contract of a merging method: what it sees, what it returns, and what its entry in MERGERS declares."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from inspect import signature
from typing import Any, Literal, NamedTuple, get_type_hints

from torch import Tensor, nn

Grid = tuple[int, int]  # rows and columns of patches


class MergeContext(NamedTuple):
    """What a method may use besides the metric. Patches only: prefix tokens are protected outside the methods."""

    size: Tensor  # (B, N) float32: how many input patches each patch stands for
    attention: Tensor | None = (
        None  # (B, N) float32: see Merger.attention, values; None for methods that do not request it
    )
    grid: Grid | None = None  # rows and columns, as long as the patches form a grid in row order
    depth: float = 0.0  # the block's number divided by the number of blocks: 0 in the first block
    position: Tensor | None = None  # (B, N, 2) float32: see Merger.position; None for methods that do not request it
    pooling: nn.Module | None = None  # the learned part: see Merger.pooling; None for methods without one


class Assignment(NamedTuple):
    """What a method returns: patch i becomes part of output patch `index[:, i]`; there are `count` output patches."""

    index: Tensor  # type: ignore[assignment]  # (B, N) int64; hides tuple.index
    count: int  # type: ignore[assignment]  # hides tuple.count
    weight: Tensor | None = None  # (B, N) float32: means are weighted by size x weight; 0 drops the patch and its mass
    grid: Grid | None = None  # rows and columns of the output patches, where they form a grid in row order
    keep_norm: bool = False  # a mean is scaled to the greatest norm among its members


class Mixture(NamedTuple):
    """What a method returns in place of an Assignment if each output patch is a combination of all N patches.

    Output patch j is sum_i weight_ji x_i. Where the patches go, for sizes, maps and pictures, is a statement of its
    own: patch i goes to output patch j by share_ij. The two agree, so that each output patch is the mean of what it
    received, if weight_ji = share_ij size_i / sum_k share_kj size_k (`sinkhorn`); otherwise they do not (`patchmerger`,
    `sit`).
    """

    weight: Tensor  # (B, M, N) float32, not negative: rows sum to one
    share: Tensor  # (B, N, M) float32, not negative: rows sum to one


class Adaptive(NamedTuple):
    """In a schedule in place of r: how many patches a block removes depends on the image (Merger.adaptive)."""

    value: float  # what decides it: a threshold, as the method defines it, or a number of samples


Removal = int | Adaptive  # what a block removes: so many patches, or as many as the image has to remove


class Counts(NamedTuple):
    """The numbers that the multiply-adds (MACs) of one matching depend on. B = 1."""

    patches: int  # N, before merging
    removed: int  # r
    prefix: int  # prefix tokens
    metric_dim: int  # width of the metric
    embed_dim: int  # width of a token


@dataclass(frozen=True)
class Option:
    """A setting that a method adds to the `merge:` section, declared in the method's signature.

    `kth: Annotated[int, Option("every kth patch is a destination", least=2)] = 2` makes `merge.kth` a setting that this
    method alone accepts, an integer of at least 2 with the default 2.
    """

    description: str
    least: int | None = None
    most: int | None = None


Attention = Literal["class", "all", "keys"] | None
Answer = Assignment | Mixture
Assign = Callable[..., Answer]  # (metric (B, N, D) float32, r, context, **options)


def half(patches: int, **options: Any) -> int:
    """The most that bipartite matching can remove: every source."""
    return patches // 2


def all_but_one(patches: int, **options: Any) -> int:
    """The most that a method can remove that may merge any patch with any other."""
    return max(patches - 1, 0)


def no_macs(counts: Counts, **options: Any) -> int:
    """MACs of a method that compares no patches by matrix products."""
    return 0


def halves_macs(counts: Counts, **options: Any) -> int:
    """MACs of comparing one half of the patches with the other half."""
    return counts.patches // 2 * -(-counts.patches // 2) * counts.metric_dim


def all_pairs_macs(counts: Counts, **options: Any) -> int:
    """MACs of comparing every patch with every patch, itself included."""
    return counts.patches**2 * counts.metric_dim


def importance_macs(counts: Counts, importance: str) -> int:
    """MACs of what patches count by: attention from the class token to all tokens; "keys": the mean key, and each
    patch's product with it; otherwise none."""
    tokens = {"attention": counts.patches + counts.prefix, "keys": 2 * counts.patches}
    return tokens.get(importance, 0) * counts.embed_dim


@dataclass(frozen=True)
class Merger:
    """An entry of MERGERS: a method, and what the rest of the code has to know about it.

    Args:
        assign: the method, (metric, r, context, **options) -> Assignment or Mixture.
        most: (patches, **options) -> the largest r that the method can remove.
        macs: (counts, **options) -> multiply-adds of one matching, attention scores included. The cost of a model is
            counted once by these formulas and once by tracing, and the two must agree. None: models that use this
            method have no formula, and settings with a budget are refused.
        attention: what `context.attention` is: the share of attention that each patch receives, averaged over the
            heads, from the class token or from all tokens. Fused attention never computes it, so it is computed
            separately, and costs include it. "keys": no attention, but how far the patch's keys are from the mean, see
            `distinctness` in layer.py; it needs no class token. A function of the method's options where these decide.
        values: whether that attention is multiplied by the norm of the patch's value, of all heads together.
        position: whether the method needs `context.position`: the mean row and column, in patches, of the input patches
            that each patch stands for. Unlike `context.grid` it is known after every merge.
        shrink: for methods that keep a grid: the grid after removing at most r patches. They remove what it allows.
        metric: what the method compares patches by, unless the settings choose another metric.
        soft: what it does instead during training: (x, tokens, metric, r, prefix, **options) -> x and its soft state,
            see dtem.py; with `pooling`, this is an argument too. Losses that the state holds are added to the run's.
        pooling: for methods with a part that learns: (width of a token, M) -> a new module, that part for M output
            patches. It is `context.pooling`. Methods without a soft form return a Mixture.
        sized: whether M is in the shapes of its parameters, so that a block can leave no other number of patches than
            it was built for.
        linear: (counts) -> multiply-adds of the linear layers in it.
        adaptive: the form in which the number removed depends on the image: (metric (1, N, D) float32 of one image,
            value, context, **options) -> Assignment, to as many output patches as this image keeps. It multiplies as
            often as `macs` says, also where it removes nothing. None: the method has no such form.
        threshold: what the value of `adaptive` is in the settings, merge.threshold, in words; "": the method takes no
            threshold.

    Attributes:
        options: the method's own options and their values.
        attends: what `context.attention` is, with these options.
        learns: whether the method has to be trained.
    """

    assign: Assign
    most: Callable[..., int] = all_but_one
    macs: Callable[..., int] | None = None
    attention: Attention | Callable[..., Attention] = None
    values: bool = False
    position: bool = False
    shrink: Callable[[Grid, int], Grid] | None = None
    metric: Literal["keys", "tokens", "learned"] = "keys"
    soft: Callable[..., Any] | None = None
    pooling: Callable[[int, int], nn.Module] | None = None
    sized: bool = True
    linear: Callable[[Counts], int] = no_macs
    adaptive: Callable[..., Assignment] | None = None
    threshold: str = ""
    options: Mapping[str, Any] = field(init=False)
    attends: Attention = field(init=False)

    def __post_init__(self) -> None:
        parameters = list(signature(self.assign).parameters.values())[3:]
        object.__setattr__(self, "options", {parameter.name: parameter.default for parameter in parameters})
        attention = self.attention(**self.options) if callable(self.attention) else self.attention
        object.__setattr__(self, "attends", attention)

    @property
    def learns(self) -> bool:
        return self.metric == "learned" or self.pooling is not None

    @property
    def mixes(self) -> bool:
        """Whether it returns a Mixture, so that states are soft in evaluation too."""
        return self.pooling is not None and self.soft is None

    @property
    def samples(self) -> bool:
        """Whether r says, with these options, how many samples are drawn, so that the number removed depends on the
        image."""
        return bool(self.options.get("adaptive"))

    def at_most(self, patches: int) -> int:
        """The largest r that the method can remove from so many patches, with its options as they are."""
        return self.most(patches, **self.options)

    def bind(self, **options: Any) -> Merger:
        """The same method with other values for some of its options."""
        adaptive, soft = (form and partial(form, **options) for form in (self.adaptive, self.soft))
        return replace(self, assign=partial(self.assign, **options), adaptive=adaptive, soft=soft)


def declared_options(method: Assign) -> dict[str, tuple[Any, Option]]:
    """The options that a method declares in its signature: name -> (type, Option)."""
    declared = {}
    for name, annotation in get_type_hints(method, include_extras=True).items():
        for option in getattr(annotation, "__metadata__", ()):
            if isinstance(option, Option):
                declared[name] = (annotation.__origin__, option)
    return declared
