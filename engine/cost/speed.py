"""Time, measured: attention, merging by method, selection, and the speed-up that merging gives.

All times are milliseconds of single calls, after one call that is not timed; a GPU is waited for. What is compared is
timed in turns, so that a machine that slows down slows all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.cost.budget import solve
from engine.cost.formulas import formula_macs
from engine.machine import pick_autocast
from models import build
from models.merging import (
    MERGERS,
    Assignment,
    MergeContext,
    Merger,
    Tokens,
    apply_assignment,
    effective_schedule,
    initial_tokens,
    size_bias,
    unmerge,
)
from models.merging.layer import MergeLayer, attention_received
from models.merging.methods.facility_location import facility_location
from models.merging.settings import MergeSettings
from models.settings import Settings

HEAD_DIM = 64  # of --merging's shapes


def timed(calls: dict[str, Callable[[], object]], repeats: int, device: torch.device) -> dict[str, list[float]]:
    """Milliseconds of each of `repeats` calls of each function, taken in turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            _wait(device)
            start = time.perf_counter()
            call()
            _wait(device)
            if turn:
                times[name].append(1e3 * (time.perf_counter() - start))
    return times


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))


def _mask_free(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """The bias as one more column, q' = [q, 1 / scale], k' = [k, bias], filled up with zeros to a multiple of 8."""
    scale, width = q.shape[-1] ** -0.5, q.shape[-1]
    column = bias.squeeze(-2).unsqueeze(-1).expand(-1, q.shape[1], -1, -1)
    fill = 8 - (width + 1) % 8
    q = F.pad(torch.cat([q, torch.full_like(column, 1 / scale).to(q.dtype)], -1), (0, fill))
    k = F.pad(torch.cat([k, column.to(k.dtype)], -1), (0, fill))
    return F.scaled_dot_product_attention(q, k, F.pad(v, (0, 1 + fill)), scale=scale)[..., :width]


# name -> precision of queries, keys and values (B, heads, T, head_dim), and what is done with them and the size bias
ATTENTIONS: dict[str, tuple[torch.dtype, Callable[..., Tensor]]] = {
    "fp32": (torch.float32, _attend),
    "fp32, no bias": (torch.float32, lambda q, k, v, bias: F.scaled_dot_product_attention(q, k, v)),
    "fp32, mask-free": (torch.float32, _mask_free),
    "bf16": (torch.bfloat16, _attend),
    "bf16, no bias": (torch.bfloat16, lambda q, k, v, bias: F.scaled_dot_product_attention(q, k, v)),
    "bf16, mask-free": (torch.bfloat16, _mask_free),
    "fp32 inside bf16 (ours)": (
        torch.bfloat16,
        lambda q, k, v, bias: _attend(q.float(), k.float(), v.float(), bias).to(q.dtype),
    ),
}


def attention_times(
    shape: tuple[int, int, int, int], repeats: int, device: torch.device, train: bool
) -> dict[str, list[float]]:
    """Each of ATTENTIONS at a shape (B, heads, T, head_dim): forward, or forward and backward."""
    generator = torch.Generator().manual_seed(0)
    bias = torch.rand(shape[0], 1, 1, shape[2], generator=generator).to(device)
    calls = {}
    for name, (dtype, attend) in ATTENTIONS.items():
        inputs = [torch.randn(shape, generator=generator).to(device, dtype).requires_grad_(train) for _ in range(3)]

        def call(attend: Callable[..., Tensor] = attend, inputs: list[Tensor] = inputs) -> None:
            out = attend(*inputs, bias)
            if train:
                out.backward(torch.ones_like(out))

        calls[name] = call
    return timed(calls, repeats, device)


def merging_times(
    name: str, shape: tuple[int, int, int], r: int, repeats: int, device: torch.device
) -> tuple[int, dict[str, list[float]]]:
    """What one merge costs by itself: tokens (B, T, C) with a class token, fp32, attention heads of width 64.

    Every method is timed on keys: dtem too, as at test but without its learned head.

    Returns:
        How many tokens went, and times of `match` (attention scores included, where the method asks for them), `merge`,
        `unmerge`, and fused `attention` with the size bias, over the tokens that are left.
    """
    merger, (batch, count, channels) = MERGERS[name], shape
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).to(device)
    q, k, v = (
        torch.randn(batch, channels // HEAD_DIM, count, HEAD_DIM, generator=generator).to(device) for _ in range(3)
    )
    side = round((count - 1) ** 0.5)
    r = effective_schedule([r], count - 1, merger, (side, side))[0]
    tokens = initial_tokens(x, (side, side))
    with torch.no_grad():
        assignment = _match(merger, tokens, q, k, r)
        merged, after = apply_assignment(x, tokens, assignment, prefix=1)
        left, bias = merged.shape[1], size_bias(after)
        calls = {
            "match": lambda: _match(merger, tokens, q, k, r),
            "merge": lambda: apply_assignment(x, tokens, assignment, prefix=1),
            "unmerge": lambda: unmerge(merged, after),
            "attention": lambda: F.scaled_dot_product_attention(
                q[:, :, :left], k[:, :, :left], v[:, :, :left], attn_mask=bias
            ),
        }
        return r, timed(calls, repeats, device)


def _match(merger: Merger, tokens: Tokens, q: Tensor, k: Tensor, r: int) -> Assignment:
    attention = None if merger.attention is None else attention_received(q, k, None, merger.attention)[:, 1:]
    context = MergeContext(tokens.size[:, 1:], attention, tokens.grid)
    return merger.assign(k.mean(1)[:, 1:], r, context)


def _by_scatter(x: Tensor, size: Tensor, index: Tensor, count: int) -> Tensor:
    """Sums along dimension 1, then a division."""
    total = size.new_zeros(size.shape[0], count).scatter_add(1, index, size)
    weighted = x.float() * size.unsqueeze(-1)
    sums = weighted.new_zeros(x.shape[0], count, x.shape[2])
    sums = sums.scatter_add(1, index.unsqueeze(-1).expand_as(x), weighted)
    return (sums / total.unsqueeze(-1)).to(x.dtype)


def _by_one_hot(x: Tensor, size: Tensor, index: Tensor, count: int) -> Tensor:
    """A product with the matrix of shares."""
    total = size.new_zeros(size.shape[0], count).scatter_add(1, index, size)
    share = (size / total.gather(1, index)).to(x.dtype)
    return x.new_zeros(x.shape[0], count, x.shape[1]).scatter(1, index.unsqueeze(1), share.unsqueeze(1)) @ x


def _by_rows(x: Tensor, size: Tensor, index: Tensor, count: int) -> Tensor:
    tokens = Tokens(index, size)
    return apply_assignment(x, tokens, Assignment(index, count), prefix=0)[0]


# name -> the size-weighted mean of x (B, T, C), size (B, T), by index (B, T) into `count` tokens
MEANS: dict[str, Callable[[Tensor, Tensor, Tensor, int], Tensor]] = {
    "index_add of rows (ours)": _by_rows,
    "scatter_add": _by_scatter,
    "one-hot product": _by_one_hot,
}


def mean_times(
    shape: tuple[int, int, int], r: int, dtype: torch.dtype, repeats: int, device: torch.device, train: bool
) -> dict[str, list[float]]:
    """Each of MEANS on tokens (B, T, C), of which tome takes r away: forward, or forward and backward."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).to(device, dtype).requires_grad_(train)
    size = torch.randint(1, 5, shape[:2], generator=generator).float().to(device)
    metric = torch.randn(*shape[:2], HEAD_DIM, generator=generator).to(device)
    index, count, *_ = MERGERS["tome"].assign(metric, r, MergeContext(size))

    def call(mean: Callable[[Tensor, Tensor, Tensor, int], Tensor]) -> None:
        out = mean(x, size, index, count)
        if train:
            out.backward(torch.ones_like(out))

    return timed({name: lambda mean=mean: call(mean) for name, mean in MEANS.items()}, repeats, device)


def selection_times(batch: int, patches: int, kept: int, repeats: int) -> dict[str, list[float]]:
    """Milliseconds per image of choosing `kept` of `patches` by facility location, similarities included, on a CPU.

    Ours takes the whole batch at once; a plain loop in NumPy and, where it is installed, submodlib's lazy greedy take
    one image.
    """
    metric = torch.randn(batch, patches, HEAD_DIM, generator=torch.Generator().manual_seed(0))
    context = MergeContext(torch.ones(batch, patches))
    calls: dict[str, Callable[[], object]] = {
        f"ours, {form}": lambda form=form: facility_location(metric, patches - kept, context, form)
        for form in ("greedy", "elimination", "stochastic")
    }
    times = {name: [ms / batch for ms in values] for name, values in timed(calls, repeats, metric.device).items()}
    single = {"plain loop": lambda: _plain_loop(_similarity(metric[0]), kept)}
    try:
        from submodlib import FacilityLocationFunction

        single["submodlib, lazy greedy"] = lambda: FacilityLocationFunction(
            n=patches, mode="dense", sijs=_similarity(metric[0]), separate_rep=False
        ).maximize(budget=kept, optimizer="LazyGreedy", show_progress=False)
    except ImportError:
        pass
    return {**times, **timed(single, repeats, metric.device)}


def _similarity(metric: Tensor):
    unit = F.normalize(metric, dim=-1)
    return ((unit @ unit.T + 1) / 2).numpy()


def _plain_loop(similarity, kept: int) -> list[int]:
    """Forward greedy, with every gain computed anew in each step."""
    best, chosen = 0 * similarity[0], []
    for _ in range(kept):
        gains = [(similarity[j] - best).clip(min=0).sum() if j not in chosen else -1 for j in range(len(similarity))]
        chosen.append(max(range(len(gains)), key=gains.__getitem__))
        best = similarity[chosen[-1]].clip(min=best)
    return chosen


def speedup(
    settings: Settings, batch_size: int, precision: str, train: bool, repeats: int, device: torch.device
) -> tuple[float, dict[str, list[float]]]:
    """A model's forward pass, or training step without the optimizer, with its merging and without, in turns.

    Args:
        settings: a model's; its merging is what is measured.
        precision: "fp32" or "bf16" (autocast).

    Returns:
        The MAC ratio, unmerged over merged; and times: `unmerged`, `merged`, and `merging`, the part of the last spent
        matching and merging (measured in passes of its own; not while training).
    """
    settings = solve(settings)
    plain = settings.model_copy(update={"merge": MergeSettings(method="none")})
    merged, unmerged = build(settings).to(device), build(plain).to(device)
    unmerged.load_state_dict(merged.state_dict(), strict=False)  # a learned metric head is all that it may lack
    images = torch.randn(batch_size, settings.in_chans, settings.img_size, settings.img_size, device=device)
    autocast = pick_autocast(precision, device)
    spent = []

    def forward(model: nn.Module) -> None:
        model.eval()
        with torch.inference_mode(), autocast:
            model(images)

    def step(model: nn.Module) -> None:
        model.train()
        with autocast:
            logits = model(images)
        logits.float().square().mean().backward()

    def inside() -> None:
        with _clocked(merged, spent, device):
            forward(merged)

    run = step if train else forward
    calls = {"unmerged": lambda: run(unmerged), "merged": lambda: run(merged)}
    times = timed(calls if train else {**calls, "inside": inside}, repeats, device)
    if not train:
        blocks = len(spent) // (repeats + 1)
        times["merging"] = [sum(spent[i : i + blocks]) for i in range(blocks, len(spent), blocks)]
    ratio = sum(formula_macs(plain).values()) / sum(formula_macs(settings).values())
    return ratio, times


@contextmanager
def _clocked(model: nn.Module, spent: list[float], device: torch.device):
    """Inside, each merge of the model adds its milliseconds to `spent`."""
    starts: list[float] = []

    def before(*_: object) -> None:
        _wait(device)
        starts.append(time.perf_counter())

    def after(*_: object) -> None:
        _wait(device)
        spent.append(1e3 * (time.perf_counter() - starts.pop()))

    layers = [module for module in model.modules() if isinstance(module, MergeLayer)]
    handles = [layer.register_forward_pre_hook(before) for layer in layers]
    handles += [layer.register_forward_hook(after) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
