"""DynamicViT: its equations in loops, what masks and losses do in training, and where training meets evaluation."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from engine.cost.macs import measure
from engine.runs.restore import load_run
from engine.tasks import ONE_LABEL
from engine.train.experiment import run_experiment
from engine.train.loop.objective import Objective
from models import build_model
from models.interface import merging_losses
from models.merging import MERGERS, MergeContext, initial_tokens, log_size, merge, size_bias, unmerge, unwrap, wrap
from models.merging.methods.dynamicvit import FAINT, masked
from models.merging.wrapping import blocks_of
from models.registry import MODELS
from models.settings import UserError, check
from models.settings.vit import ViTSettings
from tests.engine.train.loop.test_trainer import assert_same_run, run_until
from tests.engine.train.tuned_runs import VIT, settings_of
from tests.marks import mostly_slow
from tests.models.merging.test_mixtures import layer_norm, learned
from tests.models.merging.wrapped_models import built, images

SMALL = {"img_size": 32, "patch_size": 4, "embed_dim": 32, "depth": 3, "num_heads": 4, "num_classes": 10}
DYNAMICVIT = MERGERS["dynamicvit"]
FP32 = torch.autocast("cpu", enabled=False)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def model(name: str = "vit", **merge: object) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_model(name, **SMALL, merge={"method": "dynamicvit", **merge})


def predicted_by_the_book(x, decisions, predictor):
    """pi: local features, the mean of the global ones over the patches that are kept, an MLP, a softmax."""

    def linear(layer, values):
        return values @ layer.weight.detach().double().numpy().T + layer.bias.detach().double().numpy()

    def gelu(values):
        return F.gelu(torch.from_numpy(values)).numpy()

    inner = gelu(linear(predictor.embed, layer_norm(x, predictor.norm)))
    half = inner.shape[1] // 2
    whole = sum(d * u for d, u in zip(decisions, inner[:, half:], strict=True)) / sum(decisions)
    pi = []
    for local in inner[:, :half]:
        z = np.concatenate([local, whole])
        for layer in (predictor.fc1, predictor.fc2):
            z = gelu(linear(layer, z))
        e = np.exp(linear(predictor.fc3, z))
        pi.append(e / e.sum())
    return np.array(pi)


@pytest.mark.parametrize(("patches", "r"), [(2, 1), (9, 4), (12, 11)])
@pytest.mark.parametrize("prune", [True, False])
def test_evaluation_equals_the_paper(patches, r, prune):
    """The most probable stay, in their order; the others are dropped, or fused by probability."""
    predictor, x = learned(DYNAMICVIT, 6, patches - r), draw(1, patches, 6, seed=patches)
    pi = predicted_by_the_book(x[0].double().numpy(), np.ones(patches), predictor)
    kept = sorted(np.argsort(-pi[:, 1], kind="stable")[: patches - r - (not prune)])
    others = [i for i in range(patches) if i not in kept]
    size = torch.arange(1.0, patches + 1)[None]
    tokens = initial_tokens(x)._replace(size=size)
    out, after = merge(x, tokens, x, r, DYNAMICVIT.bind(prune=prune), 0, pooling=predictor)
    expected, sizes = x[0, kept], size[0, kept]
    if not prune:
        weight = torch.from_numpy(pi[others, 1]).float()
        expected = torch.cat([expected, (weight[:, None] * x[0, others]).sum(0, keepdim=True) / weight.sum()])
        sizes = torch.cat([sizes, size[0, others].sum(0, keepdim=True)])
    torch.testing.assert_close(out[0], expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(after.size[0], sizes)
    assert after.index[0, kept].tolist() == list(range(len(kept)))


def test_training_equals_the_paper():
    """Two blocks: decisions multiply, the share that is left learns to be the requested one, attention is masked."""
    x, tokens, decisions = draw(2, 1 + 10, 6), None, np.ones((2, 10))
    tokens = initial_tokens(x)
    for block, (r, left) in enumerate([(3, 7), (2, 5)]):
        predictor = learned(DYNAMICVIT, 6, left, seed=block)
        pi = np.stack([predicted_by_the_book(x[i, 1:].double().numpy(), decisions[i], predictor) for i in range(2)])
        torch.manual_seed(block)
        gumbel = -torch.empty(2, 10, 2).exponential_().log().double().numpy()
        decisions = decisions * (np.log(pi) + gumbel).argmax(-1)
        assert 0 < decisions.sum() < decisions.size
        torch.manual_seed(block)
        out, tokens = masked(x, tokens, x, r, 1, predictor, ratio_weight=3.0)
        assert out is x and tokens.soft.active == 1 + left
        torch.testing.assert_close(tokens.soft.kept[:, 1:], torch.from_numpy(decisions).float())
        ratio = np.mean([(left / 10 - d.sum() / 10) ** 2 for d in decisions])
        assert tokens.soft.losses[block].item() == pytest.approx(3 * ratio, rel=1e-5)
    torch.testing.assert_close(tokens.size[:, 1:], torch.from_numpy(FAINT + (1 - FAINT) * decisions).float())

    scores, policy = draw(2, 11, 11, seed=5), torch.cat([torch.ones(2, 1), torch.from_numpy(decisions).float()], dim=1)
    weight = scores.exp() * policy[:, None]
    expected = weight / weight.sum(-1, keepdim=True)
    torch.testing.assert_close((scores + size_bias(tokens)[:, 0]).softmax(-1), expected, atol=1e-4, rtol=1e-4)


def test_attention_tells_dropped_patches_what_they_would_have_been_worth():
    """The gradient by the decisions is that of the mask as a factor, for kept and for dropped patches."""
    x, predictor = draw(3, 1 + 8, 6), learned(DYNAMICVIT, 6, 4)
    torch.manual_seed(0)
    _, tokens = masked(x, initial_tokens(x), x, 4, 1, predictor)
    kept, scores, values = tokens.soft.kept, draw(3, 9, seed=1), draw(3, 9, seed=2)
    assert (kept[:, 1:] < 0.5).any() and (kept[:, 1:] > 0.5).any()
    value = ((scores + log_size(tokens)).softmax(-1) * values).sum()
    (found,) = torch.autograd.grad(value, kept, retain_graph=True)
    policy = (FAINT + (1 - FAINT) * kept.detach()).requires_grad_()
    weight = scores.exp() * policy
    (expected,) = torch.autograd.grad((weight / weight.sum(-1, keepdim=True) * values).sum(), policy)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)
    value.backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in predictor.parameters())


@pytest.mark.parametrize("fill", [0.0, 0.7])
def test_degenerate_tokens_and_a_mask_of_nothing_are_finite(fill, monkeypatch):
    """If all are dropped the class token is left; equal patches are kept from the first."""
    x = torch.full((2, 1 + 5, 4), fill, requires_grad=True)
    predictor = learned(DYNAMICVIT, 4, 2)
    out, tokens = merge(x, initial_tokens(x), x, 3, DYNAMICVIT, 1, pooling=predictor)
    assert torch.equal(out, x[:, :3]) and (tokens.size == 1).all()
    monkeypatch.setattr(F, "gumbel_softmax", lambda log_pi, hard: (log_pi * 0).softmax(-1) * 0 + log_pi * 0)
    tokens = initial_tokens(x)
    for r in (2, 1):
        x, tokens = masked(x, tokens, x, r, 1, predictor)
    assert (tokens.soft.kept[:, 1:] == 0).all() and tokens.soft.share[:, :, 1:].isfinite().all()
    (log_size(tokens).sum() + sum(tokens.soft.losses)).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in predictor.parameters())


# In models


class Best:
    """Draws what evaluation keeps: the most probable of those that are left."""

    def __init__(self, removed: list[int]) -> None:
        self.removed, self.before = iter(removed), None

    def __call__(self, log_pi: torch.Tensor, hard: bool) -> torch.Tensor:
        score = log_pi[..., 1] if self.before is None else log_pi[..., 1].masked_fill(self.before == 0, -torch.inf)
        left = int((score[0] > -torch.inf).sum()) - next(self.removed)
        best = score.topk(left).indices
        self.before = torch.zeros_like(score).scatter(1, best, 1.0)
        return torch.stack([1 - self.before, self.before], dim=-1)


@pytest.mark.parametrize("name", ["vit", "hybrid", "conformer"])
def test_a_mask_computes_what_pruning_computes(name, monkeypatch):
    """Logits and the map of a training step are those of evaluation, if it draws the patches that evaluation keeps."""
    sizes = {**SMALL, "stem_stride": 1, "base_channel": 8, "channel_ratio": 1} if name == "conformer" else SMALL
    torch.manual_seed(0)
    net = build_model(name, **sizes, merge={"method": "dynamicvit", "r": [20, 0, 24]})
    for module in net.modules():
        if isinstance(module, torch.nn.Linear):  # so that patches differ, and no head is zero
            torch.nn.init.normal_(module.weight, std=0.2)
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    pictures = draw(2, 3, 32, 32, seed=1)
    monkeypatch.setattr(F, "gumbel_softmax", Best([20, 24]))
    with torch.no_grad():
        trained, pruned = net(pictures), net.eval()(pictures)
    torch.testing.assert_close(trained, pruned, atol=2e-3, rtol=2e-3)
    assert net.trace(pictures).size.shape == (2, 1 + 20) and pruned.std() > 0.1


def test_the_losses_of_every_block_are_added_to_the_objective():
    """Once each, in training alone; r=0 has none."""
    net, pictures, labels = model(r=[8, 0, 4], ratio_weight=5.0), draw(4, 3, 32, 32), torch.arange(4)
    torch.manual_seed(1)
    with merging_losses(net) as losses:
        logits = net(pictures)
    assert len(losses) == 2 and all(loss > 0 for loss in losses)
    torch.manual_seed(1)
    loss, _ = Objective(net, ONE_LABEL, FP32)(pictures, labels)
    torch.testing.assert_close(loss, F.cross_entropy(logits, labels) + sum(losses) / 2)
    with merging_losses(net.eval()) as losses:
        net(pictures)
    assert not losses


@pytest.mark.parametrize("autocast", [False, True])
def test_every_predictor_of_a_hybrid_learns(autocast):
    hybrid, pictures = model("hybrid", r=[20, 0, 24]), draw(2, 3, 32, 32)
    assert [block.merge.pooling is None for block in hybrid.vit.blocks] == [False, True, False]
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        Objective(hybrid, ONE_LABEL, torch.autocast("cpu", enabled=autocast))(pictures, torch.tensor([1, 2]))[
            0
        ].backward()
    for block in (hybrid.vit.blocks[0], hybrid.vit.blocks[2]):
        assert all(p.grad.isfinite().all() and p.grad.any() for p in block.merge.pooling.parameters())
    hybrid.eval()
    hybrid.schedule = [5, 0, 50]  # other numbers in the same blocks are fine
    assert hybrid.trace(pictures).size.shape == (2, 1 + 9)
    hybrid.schedule = [0, 5, 0]
    with pytest.raises(UserError, match=r"merge.r = 5: .* in a block where it has learned nothing"):
        hybrid(pictures)


@pytest.mark.parametrize("prune", [True, False])
@pytest.mark.parametrize("name", ["vit", "hybrid"])
def test_its_cost_is_the_formulas(name, prune):
    merge_section = {"method": "dynamicvit", "r": [20, 0, 24], "prune": prune}
    net = build_model(name, **SMALL, merge=merge_section)
    settings = check(MODELS[name][0], {"name": name, **SMALL, "merge": merge_section})
    cost = measure(net, settings=settings)
    assert cost.by_kind == {kind: cost.formula.get(kind, 0) for kind in cost.by_kind}
    assert cost.by_kind["product"] == prune * (20 * 44 + 24 * 20) * 32
    plain = measure(build_model(name, **SMALL, merge={**merge_section, "method": "random", "prune": None}))
    predictor = 32 * 32 + 32 * 16 + 16 * 8 + 8 * 2
    assert cost.by_kind["linear"] - plain.by_kind["linear"] == (64 + 44) * predictor


@pytest.mark.parametrize(
    "family", mostly_slow(["deit", "beit_both", "eva02", "torchvision", "average"], ["deit", "torchvision"])
)
def test_a_wrapped_model_meets_a_budget_learns_and_keeps_what_it_learned(family):
    net = wrap(built(family), "dynamicvit", target_ratio=1.3)  # fails if the cost is not as predicted
    plan, before = list(blocks_of(net).plan), [layer.pooling for layer in blocks_of(net).merging]
    net.train()
    with merging_losses(net) as losses:
        out = net(images())
    (out.square().sum() + sum(losses)).backward()
    assert out.isfinite().all() and len(losses) == len(plan) and all(plan)
    assert all(p.grad.isfinite().all() and p.grad.any() for part in before for p in part.parameters())
    wrap(net, "dynamicvit", r=[n - 1 for n in plan[:-1]] + [0], prune=False)
    after = [layer.pooling for layer in blocks_of(net).merging]
    assert after[:-1] == before[:-1] and after[-1] is None and net.eval()(images()).isfinite().all()
    assert not any("pooling" in name for name in unwrap(net).state_dict())


def test_a_dropped_patch_is_shown_as_the_most_similar_kept_one(monkeypatch):
    """In training as in evaluation, also if that one is dropped by a later block."""
    x = torch.tensor([[[4.0, 1.0], [4.0, 0.9], [-5.0, 1.0], [3.0, 3.0]]])
    keep = iter([[1.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]])
    monkeypatch.setattr(
        F, "gumbel_softmax", lambda log_pi, hard: torch.tensor(next(keep))[None, :, None].expand(-1, -1, 2)
    )
    predictor, tokens, shown = learned(DYNAMICVIT, 2, 2), initial_tokens(x), [[0, 0, 2, 3], [3, 3, 2, 3]]
    for index in shown:
        _, tokens = masked(x, tokens, x, 1, 0, predictor)
        assert tokens.index.tolist() == [index]
        torch.testing.assert_close(unmerge(x, tokens), x[:, index])
    assert tokens.size[0].tolist() == pytest.approx([FAINT, FAINT, 1, 1])


def test_planted_patches_are_learned():
    """A task that 8 of 32 patches decide: by gradient through the mask alone, these are kept."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    predictor = DYNAMICVIT.pooling(8, 8)
    optimizer = torch.optim.Adam(predictor.parameters(), lr=0.01)

    def planted(count):
        x = torch.randn(count, 32, 8, generator=generator)
        marked = torch.rand(count, 32, generator=generator).argsort(1) < 8
        x[..., 0] = torch.where(marked, 2.0, -2.0)
        return x, marked

    for _ in range(150):
        x, marked = planted(16)
        _, tokens = masked(x, initial_tokens(x), x, 24, 0, predictor)
        seen = (log_size(tokens).softmax(-1).unsqueeze(-1) * x[..., 1:]).sum(1)
        target = (marked.unsqueeze(-1) * x[..., 1:]).sum(1) / 8
        error = (seen - target).square().mean() + tokens.soft.losses[0]
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
    x, marked = planted(8)
    answer = DYNAMICVIT.assign(x, 24, MergeContext(torch.ones(8, 32), pooling=predictor))
    assert torch.equal(answer.weight > 0, marked)
    assert tokens.soft.kept.mean().item() == pytest.approx(8 / 32, abs=0.05), "training keeps what was asked for"


# Runs


def test_a_run_resumes_with_moving_average_and_accumulation_to_the_same_bits(tmp_path, monkeypatch):
    merge_section = {"method": "dynamicvit", "r": 3, "ratio_weight": 4.0}
    settings = settings_of(
        model={**VIT, "merge": merge_section},
        train={"ema": 0.9, "accumulate": 2, "epochs": 1},
        split={"val": 0.1, "part": 0.15},
        checkpoint={"every_steps": 2},
    )
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir(), parts.mkdir()
    run_experiment(settings, whole)
    run_until(monkeypatch, 3, settings, parts)
    run_experiment(settings, parts, resume=True)
    assert_same_run(whole, parts)
    net = load_run(whole, overrides=["merge.r=2"]).model
    assert [block.merge.pooling is not None for block in net.blocks] == [True, True]
    assert net.tokens_per_block() == [15, 13]
    with pytest.raises(UserError, match=r"merge.method or merge.r is not that of training"):
        load_run(parts, overrides=["merge.method=patchmerger"])
    assert load_run(parts, overrides=["merge.method=tome"]).model.tokens_per_block() == [14, 11]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"metric": "keys"}, "merge.metric = 'keys': dynamicvit compares the tokens; omit the key"),
        ({"prop_attn": False}, "merge.prop_attn = false: dynamicvit learns through it; use true"),
        ({"r": {"train": [2, 4]}}, r"merge.r.train = \[2, 4\]: dynamicvit learns one number of tokens; give r=n"),
        ({"ratio_weight": -1}, "merge.ratio_weight = -1"),
    ],
)
def test_mistakes_are_said_in_one_line(options, words):
    with pytest.raises(UserError, match=words) as error:
        check(ViTSettings, {"name": "vit", **SMALL, "merge": {"method": "dynamicvit", "r": 3, **options}})
    assert "\n" not in str(error.value)


def test_more_removals_keep_fewer_of_the_same_patches():
    """The order does not depend on r; images do not see each other."""
    x, predictor = draw(3, 12, 6), learned(DYNAMICVIT, 6, 1)
    context = MergeContext(torch.ones(3, 12), pooling=predictor)
    kept = [DYNAMICVIT.assign(x, r, context).weight > 0 for r in range(1, 12)]
    assert all((fewer <= more).all() for more, fewer in pairwise(kept))
    alone = [DYNAMICVIT.assign(x[i : i + 1], 5, MergeContext(torch.ones(1, 12), pooling=predictor)) for i in range(3)]
    assert torch.equal(torch.cat([answer.weight > 0 for answer in alone]), kept[4])
