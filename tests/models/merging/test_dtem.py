"""DTEM: its soft form against the paper's equations in loops, what it conserves, and where it meets the hard form."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from engine.cost.macs import measure
from models import build_model
from models.merging import MERGERS, initial_tokens, log_size, merge, size_bias, unmerge
from models.merging.layer import Attended, Scores
from models.merging.methods.dtem import NEAREST, SPREAD, grouped, soften
from models.settings import UserError, check
from models.settings.vit import ViTSettings

SMALL = {"img_size": 32, "patch_size": 4, "embed_dim": 32, "depth": 3, "num_heads": 4, "num_classes": 10}
DTEM = MERGERS["dtem"]


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def images(count: int = 2) -> torch.Tensor:
    return draw(count, 3, 32, 32, seed=1)


def soft_twice(x, metrics, removed=(3, 2), prefix=1, temperature=0.1):
    """Two blocks that merge and do nothing else."""
    tokens, start = initial_tokens(x), x
    for metric, r in zip(metrics, removed, strict=True):
        x, tokens = soften(x, tokens, metric, r, prefix, temperature)
    return start, x, tokens


def grouped_by_the_book(sources, destinations, r, temperature):
    """The successive softmax over all pairs, each source's nearest destinations alone, in loops."""
    unit_a = [vector / np.linalg.norm(vector) for vector in sources]
    unit_b = [vector / np.linalg.norm(vector) for vector in destinations]
    score = np.array([[a @ b / SPREAD for b in unit_b] for a in unit_a])
    pairs = [(a, b) for a in range(len(score)) for b in np.argsort(-score[a])[:NEAREST]]
    total = np.zeros_like(score)
    for _ in range(r):
        weight = {pair: np.exp(score[pair] / temperature) for pair in pairs}
        p = np.zeros_like(score)
        for pair in pairs:
            p[pair] = weight[pair] / sum(weight.values())
        total += p
        for a, b in pairs:
            score[a, b] += np.log(1 - p[a].sum())
    return total / np.maximum(total.sum(1, keepdims=True), 1)


@pytest.mark.parametrize(("r", "temperature"), [(1, 0.1), (3, 0.1), (3, 1.0), (6, 0.3)])
def test_grouping_equals_the_paper(r, temperature):
    sources, destinations = draw(6, 5).double(), draw(7, 5, seed=1).double()
    group, taken = grouped(sources[None], destinations[None], r, temperature)
    expected = grouped_by_the_book(sources.numpy(), destinations.numpy(), r, temperature)
    np.testing.assert_allclose(group[0].numpy(), expected, atol=1e-9)
    assert taken.sum().item() == pytest.approx(r) and (group.sum(-1) <= 1 + 1e-9).all()


def test_grouping_has_the_right_gradient():
    a, b = draw(2, 4, 3).double().requires_grad_(), draw(2, 5, 3, seed=1).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: grouped(a, b, 2, 1.0)[0], (a, b))


def test_merging_equals_the_paper():
    """Effective sizes of a first merge weigh in the second; places by hand."""
    x, metrics = draw(1, 8, 3), draw(2, 1, 8, 4, seed=1)
    x, tokens = soften(x, initial_tokens(x), metrics[0], 2, 1)  # 7 patches: sources 1, 3, 5, destinations 0, 2, 4, 6
    size, active = tokens.size[0].double(), tokens.soft.active
    assert active == 6
    after, merged = soften(x, tokens, metrics[1], 1, 1)
    sources, destinations = [2, 4], [1, 3, 5]
    s = grouped_by_the_book(*(metrics[1][0, i].double().numpy() for i in (sources, destinations)), 1, 0.1)
    masses, means = {}, {}
    for j, b in enumerate(destinations):
        masses[b] = size[b] + sum(s[i, j] * size[a] for i, a in enumerate(sources))
        given = sum(s[i, j] * size[a] * x[0, a].double() for i, a in enumerate(sources))
        means[b] = (size[b] * x[0, b].double() + given) / masses[b]
    for i, a in enumerate(sources):
        masses[a], means[a] = size[a] * (1 - s[i].sum()), x[0, a].double()
    stays, goes = sources if s[0].sum() < s[1].sum() else sources[::-1]
    order = [stays, *destinations, goes]
    torch.testing.assert_close(merged.size[0, 1:6], torch.stack([masses[t] for t in order]).float())
    torch.testing.assert_close(after[0, 1:6], torch.stack([means[t] for t in order]).float())
    assert torch.equal(after[0, [0, 6, 7]], x[0, [0, 6, 7]])  # the class token, and what went before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_nothing_is_lost_and_tokens_are_means_by_shares(dtype):
    start, x, tokens = soft_twice(draw(3, 12, 4).to(dtype), draw(2, 3, 12, 5, seed=1))
    assert x.shape == start.shape and x.dtype == dtype and tokens.soft.active == 12 - 5
    share = tokens.soft.share
    assert share.dtype == tokens.size.dtype == torch.float32 and (share >= 0).all()
    torch.testing.assert_close(share.sum(2), torch.ones(3, 12))
    torch.testing.assert_close(share.sum(1), tokens.size)
    mass = {torch.float32: 1e-5, torch.bfloat16: 5e-2, torch.float16: 5e-3}[dtype]
    torch.testing.assert_close(x.float() * tokens.size[..., None], share.mT @ start.float(), atol=mass, rtol=mass)
    # the class token is itself alone
    assert torch.equal(x[:, 0], start[:, 0])
    assert torch.equal(share[:, 0], F.one_hot(torch.zeros(3, dtype=torch.long), 12).float())
    assert torch.equal(share[:, :, 0], share[:, 0])
    # maps and attention
    torch.testing.assert_close(unmerge(x.float(), tokens, 1), share[:, 1:] @ x.float())
    assert tokens.merged and torch.equal(size_bias(tokens)[:, 0, 0], log_size(tokens))
    assert torch.equal(tokens.index, share.argmax(-1))


def test_attention_weighs_by_what_is_left():
    """softmax(scores + bias) is the mean by size x exp(score), for tokens of next to no size as well."""
    _, x, tokens = soft_twice(draw(2, 12, 4), draw(2, 2, 12, 5, seed=1), temperature=1e-3)
    assert (tokens.size < 1e-6).any() and size_bias(tokens).isfinite().all()
    scores = draw(2, 12, 12, seed=2)
    weight = scores.exp() * tokens.size[:, None]
    expected = (weight / weight.sum(-1, keepdim=True)) @ x
    torch.testing.assert_close((scores + size_bias(tokens)[:, 0]).softmax(-1) @ x, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("patches", [8, 13])
def test_towards_temperature_zero_it_is_the_hard_form(patches):
    """Over two blocks: the tokens that stay have its order, its sizes and its means, and the others have nothing."""
    x, metrics = draw(4, 1 + patches, 6), draw(2, 4, 1 + patches, 16, seed=1)
    hard, state, soft, tokens = x, initial_tokens(x), x, initial_tokens(x)
    for metric, r in zip(metrics, (3, 2), strict=True):
        hard, state = merge(hard, state, metric[:, : hard.shape[1]], r, DTEM, prefix=1)
        soft, tokens = soften(soft, tokens, metric, r, 1, temperature=1e-4)
        left = tokens.soft.active
        assert left == hard.shape[1]
        torch.testing.assert_close(tokens.size[:, :left], state.size)
        torch.testing.assert_close(soft[:, :left], hard)
        assert (tokens.size[:, left:] < 1e-6).all() and torch.equal(tokens.index, state.index)


def test_what_was_merged_away_takes_no_part_any_more():
    x, metrics = draw(2, 12, 4), draw(2, 2, 12, 5, seed=1)
    _, first, before = soft_twice(x, metrics[:1], removed=(3,))
    _, second, after = soft_twice(x, metrics)
    assert before.soft.active == 9 and after.soft.active == 7
    assert torch.equal(first[:, 9:], second[:, 9:]) and torch.equal(before.size[:, 9:], after.size[:, 9:])
    assert not torch.equal(before.size[:, :9], after.size[:, :9])


def test_images_do_not_see_each_other():
    x, metrics = draw(3, 12, 4), draw(2, 3, 12, 5, seed=1)
    _, together, state = soft_twice(x, metrics)
    for image in range(3):
        _, alone, own = soft_twice(x[image : image + 1], metrics[:, image : image + 1])
        torch.testing.assert_close(alone[0], together[image])
        torch.testing.assert_close(own.soft.share[0], state.soft.share[image])


@pytest.mark.parametrize("fill", ["zero", "equal"])
@pytest.mark.parametrize("patches", [2, 3, 9])
def test_degenerate_tokens_are_finite(fill, patches):
    """As many as can go, by temperatures that leave nothing of them."""
    x = torch.full((2, 1 + patches, 4), 0.0 if fill == "zero" else 0.7, requires_grad=True)
    for temperature in (0.1, 1e-3):
        out, tokens = soften(x, initial_tokens(x), x * 2, patches // 2, 1, temperature)
        (out.sum() + log_size(tokens).sum()).backward()
        assert out.isfinite().all() and x.grad.isfinite().all() and (tokens.size >= 0).all()
        torch.testing.assert_close(tokens.size.sum(1), torch.full((2,), 1.0 + patches))


# In a model


def test_in_training_it_is_soft_and_every_head_learns():
    """In a hybrid, whose map hears of the last block's merging as well."""
    hybrid = build_model("hybrid", **SMALL, merge={"method": "dtem", "r": 8})
    torch.nn.init.normal_(hybrid.conv_head.fc.weight)
    _, tokens = hybrid.forward_features(images())
    assert tokens.soft.active == 65 - 24 and tokens.size.shape[1] == 65
    for autocast in (False, True):
        hybrid.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            logits = hybrid(images())
        F.cross_entropy(logits.float(), torch.tensor([1, 2])).backward()
        for name, parameter in hybrid.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().sum() > 0, name


def test_the_embedding_is_decoupled():
    """Through the metric no gradient goes into the tokens: it is that of the same shares as constants."""
    vit = build_model("vit", **SMALL, merge={"method": "dtem", "r": 8})
    layer, x = vit.blocks[0].merge, draw(2, 65, 32)
    source = x.clone().requires_grad_()
    out, _ = layer(x, initial_tokens(x), 8, Attended(source, lambda: Scores(source, source, None)))
    assert out.requires_grad and torch.autograd.grad(out.sum(), source, allow_unused=True) == (None,)


@torch.no_grad()
@pytest.mark.parametrize(("name", "training"), [("vit", "tome"), ("vit", "dtem"), ("hybrid", "dtem")])
def test_at_test_it_is_tome_on_the_learned_metric_and_weights_serve_both(name, training):
    trained = build_model(name, **SMALL, merge={"method": training, "metric": "learned", "r": 8}).eval()
    if name == "hybrid":
        torch.nn.init.normal_(trained.conv_head.fc.weight)
    for method in ("dtem", "tome", "random"):
        other = build_model(name, **SMALL, merge={"method": method, "metric": "learned", "r": 8}).eval()
        other.load_state_dict(trained.state_dict(), strict=True)
        assert torch.equal(other(images()), trained(images())) == (method != "random")
    _, tokens = trained.forward_features(images())
    assert tokens.soft is None and tokens.size.shape[1] == 65 - 24


def test_the_head_learns_from_no_other_method():
    vit = build_model("vit", **SMALL, merge={"method": "tome", "metric": "learned", "r": 8})
    vit(images()).sum().backward()
    assert all(block.merge.head.weight.grad is None for block in vit.blocks)


def test_its_cost_at_test_is_the_formulas():
    settings = check(ViTSettings, {"name": "vit", **SMALL, "merge": {"method": "dtem", "r": 9}})
    model = build_model(**settings.model_dump())
    cost = measure(model, settings=settings)
    assert cost.by_kind == {kind: cost.formula.get(kind, 0) for kind in cost.by_kind}
    assert cost.by_kind["product"] == (32 * 32 + 27 * 28 + 23 * 23) * 8
    plain = check(ViTSettings, {"name": "vit", **SMALL, "merge": {"method": "tome", "r": 9}})
    heads = (65 + 56 + 47) * 32 * 8
    assert cost.by_kind["linear"] - measure(build_model(**plain.model_dump())).by_kind["linear"] == heads


def test_the_soft_form_compiles_whole():
    """Without a graph break. The hard form does as all methods do."""
    torch._dynamo.reset()
    x, metric = draw(2, 12, 4), draw(2, 12, 5, seed=1)
    compiled = torch.compile(
        lambda x, metric: soften(x, initial_tokens(x), metric, 2, 1), fullgraph=True, backend="eager"
    )
    torch.testing.assert_close(compiled(x, metric)[0], soften(x, initial_tokens(x), metric, 2, 1)[0])


@torch.no_grad()
def test_it_exports():
    vit = build_model("vit", **{**SMALL, "depth": 1}, merge={"method": "dtem", "r": 8}).eval()
    exported = torch.export.export(vit, (images(),))
    torch.testing.assert_close(exported.module()(images()), vit(images()))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"metric": "keys"}, ["model.merge.metric", "'keys'", "dtem"]),
        ({"metric": "tokens"}, ["model.merge.metric", "'tokens'", "dtem"]),
        ({"prop_attn": False}, ["model.merge.prop_attn", "false", "dtem"]),
    ],
)
def test_mistakes_are_said_in_one_line(options, words):
    with pytest.raises(UserError) as error:
        build_model("vit", **SMALL, merge={"method": "dtem", **options})
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)
