"""Numbers of patches that depend on the image: what is removed, and that no image sees another one's padding."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from models import build_model
from models.export import export_model
from models.merging import MERGERS, initial_tokens, log_size, merge, size_bias, unmerge, wrap
from models.merging.contract import Adaptive
from models.merging.schedule import effective_schedule, fixed_removals, tokens_left
from models.merging.tokens import merge_context
from models.merging.wrapping import trace
from models.settings import UserError
from tests.models.merging.support import MODELS

# Adaptive forms, each with a value with which images of noise differ in what is left of them.
FORMS = {
    "tome": (MERGERS["tome"], 0.5),
    "tome-kth3": (MERGERS["tome"].bind(kth=3), 0.5),
    "tofu": (MERGERS["tofu"], 0.5),
    "tofu-pruned": (MERGERS["tofu"].bind(prune_until=0.4), 0.5),
    "atc": (MERGERS["atc"], 0.4),
    "atc-single": (MERGERS["atc"].bind(linkage="single"), 0.6),
    "topk": (MERGERS["topk"], 0.9),
    "topk-pruned": (MERGERS["topk"].bind(prune=True), 0.9),
    "ats": (MERGERS["ats"].bind(adaptive=True), 12),
    "ats-pruned": (MERGERS["ats"].bind(adaptive=True, prune=True), 12),
}
EVERY = pytest.mark.parametrize(("merger", "value"), FORMS.values(), ids=FORMS.keys())
FAMILIES = [
    "`vit`",
    "`hybrid`",
    "`conformer`",
    "timm: ViT, DeiT, AugReg",
    "timm: BEiT",
    "timm: EVA-02",
    "torchvision: ViT, SWAG",
]


def noise(batch: int, patches: int = 20, prefix: int = 1) -> torch.Tensor:
    """Images whose patches differ the more, the later the image is in the batch."""
    x = torch.randn(batch, prefix + patches, 6, generator=torch.Generator().manual_seed(0))
    return x * torch.linspace(0.3, 1.5, batch)[:, None, None] + torch.tensor([1.0, 0, 0, 0, 0, 0])


def merged(x, merger, value, prefix=1, blocks=3):
    tokens = initial_tokens(x)
    for block in range(blocks):
        attention = (3 * x[..., 1]).softmax(-1)  # of padding too: a block's attention gives it none
        amount = Adaptive(value - 2 * block if merger.samples else value)
        x, tokens = merge(x, tokens, x, amount, merger, prefix, attention, depth=block / blocks)
    return x, tokens


@EVERY
@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_an_image_in_a_batch_is_what_it_is_alone(merger, value, prefix):
    x = noise(5, prefix=prefix)
    out, together = merged(x, merger, value, prefix)
    assert len(set(together.left)) > 1 and max(together.left) == out.shape[1] == together.size.shape[1]
    for image, left in enumerate(together.left):
        alone, tokens = merged(x[image : image + 1], merger, value, prefix)
        assert tokens.left == (left,) and alone.shape[1] == left
        assert torch.equal(together.index[image], tokens.index[0])
        assert torch.equal(together.size[image, :left], tokens.size[0])
        torch.testing.assert_close(out[image, :left], alone[0], atol=1e-6, rtol=0)


@EVERY
def test_padding_has_no_size_and_no_values_and_nothing_else_changes(merger, value):
    x = noise(5)
    out, tokens = merged(x, merger, value)
    assert torch.equal(out[:, :1], x[:, :1]) and (tokens.index[:, 1:] >= 1).all()
    pruned = merger.options.get("prune") or merger.options.get("prune_until")
    for image, left in enumerate(tokens.left):
        assert (tokens.size[image, :left] >= 1).all() and not tokens.size[image, left:].any()
        assert not out[image, left:].any()
        counted = torch.bincount(tokens.index[image], minlength=out.shape[1])
        assert pruned or torch.equal(counted.float(), tokens.size[image])
        assert torch.equal(unmerge(out, tokens)[image], out[image, tokens.index[image]])


@EVERY
def test_gradients_go_through_what_is_left(merger, value):
    x = noise(4).requires_grad_()
    out, tokens = merged(x, merger, value)
    (out * tokens.size[..., None]).sum().backward()
    assert x.grad.isfinite().all()
    if not (merger.options.get("prune") or merger.options.get("prune_until") or merger.options.get("norm")):
        torch.testing.assert_close(x.grad.sum((1, 2)), torch.full((4,), x.shape[1] * x.shape[2] * 1.0))


@pytest.mark.parametrize("threshold", [0.2, 0.6, 0.95])
def test_tome_merges_what_is_more_similar_than_the_threshold(threshold):
    """Written out: the sources whose best cosine is above it, as many as `tome` then merges as r."""
    x = noise(4, prefix=0)
    for image in x[:, None]:
        unit = F.normalize(image[0], dim=-1)
        best = [max(float(unit[i] @ unit[j]) for j in range(0, 20, 2)) for i in range(1, 20, 2)]
        r = sum(similarity > threshold for similarity in best)
        out, tokens = merge(image, initial_tokens(image), image, Adaptive(threshold), MERGERS["tome"], 0)
        expected, same = merge(image, initial_tokens(image), image, r, MERGERS["tome"], 0)
        assert torch.equal(out, expected) and torch.equal(tokens.index, same.index) and tokens.left == (20 - r,)


def test_topk_keeps_the_fewest_patches_that_hold_the_share():
    attention = torch.tensor([[0.1, 0.4, 0.05, 0.25, 0.2]])
    x = torch.randn(1, 5, 4, generator=torch.Generator().manual_seed(0))
    merger = MERGERS["topk"].bind(prune=True)
    for threshold, kept in ((0.3, [1]), (0.6, [1, 3]), (0.8, [1, 3, 4]), (0.94, [0, 1, 3, 4]), (0.96, [0, 1, 2, 3, 4])):
        out, _ = merge(x, initial_tokens(x), x, Adaptive(threshold), merger, 0, attention / 2)  # half is elsewhere
        assert torch.equal(out, x[:, kept])


@pytest.mark.parametrize("name", ["atc", "tome", "tofu"])
def test_planted_clusters_decide_how_many_are_left(name):
    """Images of 2, 4 and 7 kinds of patches. `atc` finds them at once, bipartite matching in a few blocks."""
    generator = torch.Generator().manual_seed(0)
    kinds = [2, 4, 7]
    labels = torch.stack([torch.randperm(32, generator=generator) % kind for kind in kinds])
    x = torch.eye(8)[labels] * (1 + torch.rand(3, 32, 1, generator=generator))
    tokens = initial_tokens(x)
    for _ in range(1 if name == "atc" else 12):
        x, tokens = merge(x, tokens, x, Adaptive(0.9), MERGERS[name], 0)
    for image, kind in enumerate(kinds):
        of_token = [set(labels[image][tokens.index[image] == token].tolist()) for token in range(tokens.left[image])]
        assert all(len(found) == 1 for found in of_token)  # no token mixes two kinds
        # What is left of bipartite matching are tokens of one half: no source has an equal destination any more.
        assert tokens.left[image] == kind if name == "atc" else tokens.left[image] <= 2 * kind


def test_padding_gets_no_attention_whether_or_not_attention_is_proportional():
    _, tokens = merged(noise(5), *FORMS["tome"])
    padding = tokens.size == 0
    assert padding.any() and torch.equal(size_bias(tokens)[:, 0, 0] == -torch.inf, padding)
    plain = size_bias(tokens, proportional=False)[:, 0, 0]
    assert torch.equal(plain == -torch.inf, padding) and not plain[~padding].any()
    assert log_size(tokens).isfinite().all()
    unpadded = tokens._replace(left=None, size=tokens.size.clamp(min=1))
    assert size_bias(unpadded, proportional=False) is None


def test_padding_masks_also_where_one_image_has_lost_nothing():
    """Then as many tokens are left as entered, and only `left` says that something has merged."""
    different = torch.eye(8)[None]
    x = torch.cat([different, different[:, :1].expand(-1, 8, -1)])
    _, tokens = merge(x, initial_tokens(x), x, Adaptive(0.9), MERGERS["tome"], 0)
    assert tokens.left == (8, 4) and tokens.merged and (size_bias(tokens)[1, 0, 0, 4:] == -torch.inf).all()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("prop_attn", [True, False])
def test_a_model_s_answer_for_an_image_does_not_depend_on_the_batch(family, prop_attn):
    torch.manual_seed(0)
    model = MODELS[family](threshold=0.97, prop_attn=prop_attn)
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    images = images * torch.tensor([0.02, 0.1, 0.5, 3.0])[:, None, None, None] + 0.5
    with torch.no_grad():
        together = model(images)
        left = (model.trace(images) if hasattr(model, "schedule") else trace(model, images)[1]).left
        assert len(set(left)) > 1, left
        for image in range(4):
            torch.testing.assert_close(model(images[image : image + 1])[0], together[image], atol=2e-5, rtol=1e-4)


def test_a_model_trains_with_padding():
    torch.manual_seed(0)
    model = build_model("hybrid", img_size=16, patch_size=4, embed_dim=16, depth=2, num_heads=2, num_classes=3,
                        merge={"threshold": 0.3}).train()  # fmt: skip
    torch.nn.init.normal_(model.conv_head.fc.weight)
    model(torch.randn(4, 3, 16, 16) * torch.tensor([0.1, 1, 2, 3])[:, None, None, None]).square().sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert all(grad is not None and grad.isfinite().all() for grad in gradients.values())
    assert gradients["conv_head.bridge.size_embed.weight"].any() and gradients["vit.blocks.0.attn.qkv.weight"].any()


def test_the_blocks_that_merge_and_the_tokens_that_are_not_known():
    model = build_model("vit", img_size=16, patch_size=4, embed_dim=16, depth=3, num_heads=2,
                        merge={"threshold": 0.5, "blocks": [2]})  # fmt: skip
    assert model.schedule == [0, Adaptive(0.5), 0] and model.tokens_per_block() == []
    assert fixed_removals(model.schedule) == [] and tokens_left(17, [2, 0]) == [15, 15]
    assert effective_schedule([4, 0, 0.5], 16, MERGERS["ats"].bind(adaptive=True)) == [Adaptive(12), 0, Adaptive(6)]
    assert effective_schedule([4, 0, 0.5], 16, MERGERS["ats"]) == [4, 0, 6]


@pytest.mark.parametrize(
    ("merge", "words"),
    [
        ({"method": "pitome", "threshold": 0.9}, "merge.threshold = 0.9: not with pitome; give r, or use tome, tofu, "),
        ({"threshold": 0.9, "r": 8}, "cannot be combined"),
        ({"threshold": 0.0, "target_gmacs": 1.0}, "cannot be combined"),
        ({"threshold": 1.5}, "threshold"),
        ({"method": "tome", "adaptive": True}, "tome has no such option, ats has"),
        ({"method": "ats", "adaptive": True, "target_ratio": 1.5}, "the cost depends on the image; give merge.r or"),
    ],
)  # fmt: skip
def test_what_has_no_meaning_is_refused(merge, words):
    with pytest.raises(UserError, match=words):
        MODELS["timm: ViT, DeiT, AugReg"](**merge)


def test_a_method_without_the_form_and_an_exported_model_are_refused():
    x = noise(1)
    with pytest.raises(UserError, match="always removes a given number"):
        merge(x, initial_tokens(x), x, Adaptive(0.5), MERGERS["pitome"], 1)
    model = wrap(MODELS["timm: ViT, DeiT, AugReg"](), threshold=0.5)
    with pytest.raises(UserError, match="depends on the image, and a compiled or exported model has fixed shapes"):
        export_model(model, "exported", "never.pt2", (3, 32, 32))


def test_a_method_sees_one_image_without_padding():
    """Of a state whose images have 5 and 3 patches."""
    seen = []

    def look(metric, value, context):
        seen.append((metric, context.size, context.attention))
        return MERGERS["tome"].assign(metric, 1, context)

    first, tokens = merged(noise(2), *FORMS["tome"], blocks=1)
    merger = MERGERS["tome"].bind()
    object.__setattr__(merger, "adaptive", look)
    attention = torch.rand(first.shape[:2])
    merge(first, tokens, first, Adaptive(0.5), merger, 1, attention)
    context = merge_context(tokens, merger, 1, attention)
    for image, (metric, size, received) in enumerate(seen):
        n = tokens.left[image] - 1
        assert torch.equal(metric[0], first[image, 1 : 1 + n]) and torch.equal(size[0], context.size[image, :n])
        assert torch.equal(received[0], attention[image, 1 : 1 + n]) and (size > 0).all()
