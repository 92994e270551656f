"""Facility location: submodular, as good as its bound says, and equal to a plain loop in all its forms."""

from itertools import combinations
from math import e

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from engine.cost.macs import measure
from models import MODELS, build
from models.merging import MERGERS, MergeContext
from models.merging.methods.facility_location import chosen_form, facility_location
from models.merging.methods.selection import DENSE, SPARSE, TIE, select
from models.settings import check

seeds = st.integers(0, 2**32 - 1)


def drawn(seed: int, patches: int, batch: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """A metric (B, N, 4) and sizes (B, N) of 1 to 5."""
    rng = np.random.default_rng(seed)
    metric = torch.from_numpy(rng.standard_normal((batch, patches, 4)).astype(np.float32))
    return metric, torch.from_numpy(rng.integers(1, 6, (batch, patches)).astype(np.float32))


def similarities(metric: torch.Tensor) -> torch.Tensor:
    unit = F.normalize(metric, dim=-1)
    return (unit @ unit.transpose(1, 2) + 1) / 2


def value(similarity: np.ndarray, size: np.ndarray, chosen) -> float:
    """F(S) as it is defined."""
    total = 0.0
    for i in range(len(size)):
        total += size[i] * max((similarity[i, j] for j in chosen), default=0.0)
    return total


def first_best(candidates, worth, size) -> int:
    """The first that is worth the most, or as much to within the tie that the method states."""
    most = max(worth(j) for j in candidates)
    return next(j for j in candidates if worth(j) >= most - TIE * size.sum())


def greedy_by_the_book(similarity, size, count):
    chosen = []
    for _ in range(count):
        left = [j for j in range(len(size)) if j not in chosen]
        chosen.append(first_best(left, lambda j: value(similarity, size, [*chosen, j]), size))
    return sorted(chosen)


def elimination_by_the_book(similarity, size, count):
    chosen = list(range(len(size)))
    while len(chosen) > count:
        chosen.remove(first_best(chosen, lambda j: value(similarity, size, [k for k in chosen if k != j]), size))
    return chosen


BY_THE_BOOK = {"greedy": greedy_by_the_book, "elimination": elimination_by_the_book}


@pytest.mark.parametrize("kernels", [SPARSE, DENSE], ids=["sparse", "dense"])
@pytest.mark.parametrize("form", BY_THE_BOOK)
@settings(max_examples=40, deadline=None)
@given(seed=seeds, patches=st.integers(1, 12), data=st.data())
def test_both_kernels_equal_a_plain_loop(kernels, form, seed, patches, data):
    count = data.draw(st.integers(1, patches))
    metric, size = drawn(seed, patches, batch=2)
    similarity = similarities(metric)
    arguments = (similarity.numpy(), size.numpy()) if kernels is SPARSE else (similarity, size)
    kept = np.asarray(kernels[form](*arguments, count))
    for image in range(2):
        exact, weight = similarity[image].double().numpy(), size[image].double().numpy()
        assert kept[image].tolist() == BY_THE_BOOK[form](exact, weight, count)


@pytest.mark.parametrize("kernels", [SPARSE, DENSE], ids=["sparse", "dense"])
@pytest.mark.parametrize("form", ["greedy", "elimination", "stochastic"])
def test_rounding_decides_nothing(kernels, form):
    """Patches that are each other's nearest tie exactly; a batch of another size rounds in another way."""
    for seed in range(50):
        similarity = similarities(drawn(seed, 24, batch=2)[0])
        rounded = similarity * (1 + 1e-7 * torch.randn(2, 24, 24, generator=torch.Generator().manual_seed(seed)))
        kept = []
        for matrix in (similarity, rounded):
            arguments = (matrix, torch.ones(2, 24))
            if kernels is SPARSE:
                kept.append(select(*arguments, 15, form).tolist())
            else:
                kept.append(DENSE[form](*arguments, 15).tolist())
        assert kept[0] == kept[1], seed


@pytest.mark.parametrize("dense", [False, True])
@settings(max_examples=40, deadline=None)
@given(seed=seeds, patches=st.integers(2, 9), data=st.data())
def test_forward_greedy_reaches_its_bound(dense, seed, patches, data):
    """At least 1 - 1/e of the best set of the same size, found by looking at all of them."""
    count = data.draw(st.integers(1, patches - 1))
    metric, size = drawn(seed, patches)
    similarity, weight = similarities(metric)[0].numpy(), size[0].numpy()
    best = max(value(similarity, weight, chosen) for chosen in combinations(range(patches), count))
    given_similarity = similarities(metric)
    kept = DENSE["greedy"](given_similarity, size, count) if dense else select(given_similarity, size, count, "greedy")
    assert value(similarity, weight, kept[0].tolist()) >= (1 - 1 / e) * best


@settings(max_examples=60, deadline=None)
@given(seed=seeds, patches=st.integers(2, 10), data=st.data())
def test_the_function_is_monotone_and_submodular(seed, patches, data):
    """For A within B and j outside: adding j never hurts, and helps A at least as much as B."""
    metric, size = drawn(seed, patches)
    similarity, weight = similarities(metric)[0].double().numpy(), size[0].double().numpy()
    order = data.draw(st.permutations(range(patches)))
    b = data.draw(st.integers(0, patches - 1))
    a = data.draw(st.integers(0, b))
    small, large, j = order[:a], order[:b], order[b]
    to_small = value(similarity, weight, [*small, j]) - value(similarity, weight, small)
    to_large = value(similarity, weight, [*large, j]) - value(similarity, weight, large)
    assert to_small >= to_large - 1e-9 and to_large >= -1e-9


@pytest.mark.parametrize("form", ["elimination", "stochastic"])
@pytest.mark.parametrize("patches, count", [(64, 56), (64, 32), (196, 138)])
def test_the_other_forms_are_worth_about_what_greedy_is(form, patches, count):
    """No bound is claimed for them: this is what they reach, on images' worth of smooth and of random metrics."""
    rng = torch.Generator().manual_seed(0)
    side = round(patches**0.5)
    smooth = F.interpolate(torch.randn(4, 8, 4, 4, generator=rng), size=(side, side), mode="bilinear").flatten(2)
    for metric in (smooth.transpose(1, 2), torch.randn(4, patches, 8, generator=rng)):
        similarity, size = similarities(metric), torch.ones(4, patches)
        worth = {}
        for name in ("greedy", form):
            kept = select(similarity, size, count, name)
            worth[name] = sum(value(similarity[i].numpy(), size[i].numpy(), kept[i].tolist()) for i in range(4))
        assert worth[form] > 0.99 * worth["greedy"]


@pytest.mark.parametrize("form", ["greedy", "elimination", "stochastic"])
@settings(max_examples=30, deadline=None)
@given(seed=seeds, patches=st.integers(2, 12), data=st.data())
def test_every_other_patch_joins_the_selected_one_most_similar_to_it(form, seed, patches, data):
    r = data.draw(st.integers(1, patches - 1))
    metric, size = drawn(seed, patches)
    answer = facility_location(metric, r, MergeContext(size), form)
    kept = select(similarities(metric), size, patches - r, form)[0].tolist()
    assert answer.index[0, kept].tolist() == list(range(patches - r)), "the selected stay, in order"
    similarity = similarities(metric)[0]
    for i in set(range(patches)) - set(kept):
        nearest = similarity[i, kept].max()
        torch.testing.assert_close(similarity[i, kept[answer.index[0, i]]], nearest, atol=1e-6, rtol=0)


def test_size_makes_a_patch_count_for_many():
    """Three patches at right angles: the two that stay are the two that stand for most."""
    metric = torch.eye(3)[None]
    for sizes, kept in (([1.0, 5.0, 3.0], [1, 2]), ([4.0, 1.0, 2.0], [0, 2])):
        for form in ("greedy", "elimination"):
            assert select(similarities(metric), torch.tensor([sizes]), 2, form).tolist() == [kept]


@pytest.mark.parametrize("form", ["greedy", "elimination"])
@settings(max_examples=20, deadline=None)
@given(seed=seeds, patches=st.integers(2, 12), data=st.data())
def test_with_attention_a_patch_counts_size_times_attention(form, seed, patches, data):
    r = data.draw(st.integers(0, patches - 1))
    metric, size = drawn(seed, patches, batch=2)
    attention = torch.from_numpy(np.random.default_rng(seed).dirichlet(np.ones(patches), 2).astype(np.float32))
    answer = facility_location(metric, r, MergeContext(size, attention), form=form, importance="attention")
    weight = size * attention / attention.mean(1, keepdim=True)
    other = facility_location(metric, r, MergeContext(weight), form=form)
    assert torch.equal(answer.index, other.index)


def test_no_attention_at_all_is_equal_attention():
    """As where the class token attends to itself alone, and the shares of the patches are below what float32 holds."""
    metric, size = drawn(0, 9)
    answer = facility_location(metric, 4, MergeContext(size, torch.zeros(1, 9)), importance="attention")
    assert torch.equal(answer.index, facility_location(metric, 4, MergeContext(size)).index)


def test_attention_is_asked_for_by_the_option_alone():
    plain = MERGERS["facility_location"]
    assert plain.attends is None and plain.bind(importance="attention").attends == "class"
    assert plain.bind(form="greedy").attends is None and MERGERS["topk"].bind(prune=True).attends == "class"


@pytest.mark.parametrize("name", ["vit", "hybrid"])
def test_attention_is_counted_and_its_formula_agrees(name):
    merge = {"method": "facility_location", "r": 6, "importance": "attention"}
    model = {"name": name, "img_size": 96, "embed_dim": 192, "num_heads": 3, "depth": 4, "num_classes": 10}
    with_attention, without = (
        check(MODELS[name][0], {**model, "merge": {**merge, "importance": importance}}, "model")
        for importance in ("attention", "size")
    )
    more = measure(build(with_attention), settings=with_attention).macs - measure(build(without), settings=without).macs
    assert more == sum((37 - 6 * block) * 192 for block in range(4))


def test_of_equal_patches_forward_selects_the_lower_and_elimination_drops_it():
    equal = similarities(torch.ones(1, 6, 2)), torch.ones(1, 6)
    assert select(*equal, 4, "greedy").tolist() == [[0, 1, 2, 3]]
    assert select(*equal, 4, "elimination").tolist() == [[2, 3, 4, 5]]


@pytest.mark.parametrize(
    ("form", "patches", "r", "expected"),
    [
        ("auto", 196, 13, "elimination"),
        ("auto", 196, 98, "greedy"),
        ("auto", 196, 150, "greedy"),
        ("auto", 4096, 40, "stochastic"),
        ("greedy", 4096, 40, "greedy"),
    ],
)
def test_auto_takes_the_form_with_fewer_steps(form, patches, r, expected):
    assert chosen_form(form, patches, r) == expected


def test_selection_is_one_operator_to_the_compiler():
    """No graph break, and no loop unrolled."""
    metric, size = drawn(0, 16, batch=2)
    compiled = torch.compile(facility_location, fullgraph=True, backend="eager")
    answers = [f(metric, 5, MergeContext(size)).index for f in (compiled, facility_location)]
    assert torch.equal(*answers)
    torch.library.opcheck(select, (similarities(metric), size, 7, "greedy"))
