"""Merging methods against loops that follow their papers line by line, and on clusters planted for them to find."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score

from models.merging import MERGERS, MergeContext
from models.merging.contract import Assignment
from models.merging.methods.kmedoids import joined, moved

Shares = dict[int, float]  # the patches that an output patch is made of, and the share of each in its mean


class Seen(NamedTuple):
    """What a method's loops may look at beside the metric (N, D)."""

    size: np.ndarray  # (N,)
    attention: np.ndarray  # (N,)
    depth: float


def assign(name: str, metric: np.ndarray, r: int, seen: Seen, **options: object) -> Assignment:
    """The method's answer for one image."""
    size, attention = (torch.from_numpy(values).float()[None] for values in (seen.size, seen.attention))
    context = MergeContext(size, attention, depth=seen.depth)
    return MERGERS[name].bind(**options).assign(torch.from_numpy(metric).float()[None], r, context)


def plain(patches: int, depth: float = 0.0) -> Seen:
    """All patches of size 1 and of the same attention."""
    return Seen(np.ones(patches), np.full(patches, 1 / (patches + 1)), depth)


def shares_of(answer: Assignment, size: np.ndarray) -> list[Shares]:
    """What each output patch is made of."""
    mass = size if answer.weight is None else size * answer.weight[0].double().numpy()
    index = answer.index[0].numpy()
    groups = [np.flatnonzero(index == i).tolist() for i in range(answer.count)]
    return [{i: mass[i] / mass[group].sum() for i in group} for group in groups]


def mean_by(mass: np.ndarray, groups: list[list[int]]) -> list[Shares]:
    return [{i: mass[i] / sum(mass[j] for j in group) for i in group} for group in groups]


def unit(metric: np.ndarray) -> np.ndarray:
    return np.stack([vector / np.linalg.norm(vector) for vector in metric])


def highest(score: dict[int, float], count: int) -> list[int]:
    """The keys of the highest scores, best first, the lower key first where they tie."""
    return sorted(score, key=lambda i: (-score[i], i))[:count]


def tome_by_the_book(metric: np.ndarray, r: int, seen: Seen, kth: int) -> list[Shares]:
    """Bolya et al., section 3: the five steps."""
    v, patches = unit(metric), range(len(metric))
    destinations = [i for i in patches if i % kth == 0]  # 1. partition in two
    sources = [i for i in patches if i % kth]
    partner, strength = {}, {}
    for s in sources:  # 2. an edge from each source to its most similar destination
        similarity = [v[s] @ v[d] for d in destinations]
        partner[s], strength[s] = destinations[int(np.argmax(similarity))], max(similarity)
    merged = highest(strength, r)  # 3. keep the r strongest edges
    groups = [[s] for s in sources if s not in merged]  # 4. merge what is connected; 5. put the two sets together
    return mean_by(seen.size, groups + [[d] + [s for s in merged if partner[s] == d] for d in destinations])


def tofu_by_the_book(metric: np.ndarray, r: int, seen: Seen, prune_until: float, norm: bool) -> list[Shares]:
    """Kim et al.: the matching of Bolya et al.; early blocks drop what later ones merge. test_tofu.py has the norms."""
    merged = tome_by_the_book(metric, r, seen, kth=2)
    if seen.depth >= prune_until:
        return merged
    return [{i: float(len(group) == 1 or i % 2 == 0) for i in group} for group in merged]


def pitome_by_the_book(metric: np.ndarray, r: int, seen: Seen) -> list[Shares]:
    """Tran et al., section 3: energy, the 2r highest, in turn to A and B, each of A to its most similar in B."""
    v, patches = unit(metric), range(len(metric))
    margin = 0.9 - 0.9 * seen.depth
    energy = {}
    for i in patches:
        terms = []
        for j in patches:
            x = v[i] @ v[j]
            terms.append(x if x >= margin else 1.0 * (np.exp(x - margin) - 1))
        energy[i] = sum(terms) / len(terms)
    order = highest(energy, len(metric))
    a, b = order[: 2 * r][0::2], order[: 2 * r][1::2]
    groups = {j: [j] for j in b}
    for i in a:
        groups[b[int(np.argmax([v[i] @ v[j] for j in b]))]].append(i)
    return mean_by(seen.size, [[i] for i in order[2 * r :]] + list(groups.values()))


def dpc_knn_by_the_book(metric: np.ndarray, r: int, seen: Seen, neighbours: int) -> list[Shares]:
    """Du et al.; Zeng et al., section 3.2: density, distance to the denser, centres, nearest centre."""
    patches = range(len(metric))
    distance = [[np.linalg.norm(metric[i] - metric[j]) / np.sqrt(metric.shape[1]) for j in patches] for i in patches]
    density, score = {}, {}
    for i in patches:
        nearest = sorted(distance[i][j] for j in patches if j != i)[:neighbours]
        density[i] = np.exp(-sum(d**2 for d in nearest) / len(nearest)) if nearest else 1.0
    for i in patches:
        denser = [j for j in patches if (-density[j], j) < (-density[i], i)]
        delta = min(distance[i][j] for j in denser) if denser else max(distance[i])
        score[i] = density[i] * delta
    centres = sorted(highest(score, len(metric) - r))
    groups = {c: [c] for c in centres}
    for i in patches:
        if i not in centres:
            groups[min(centres, key=lambda c: (distance[i][c], c))].append(i)
    return mean_by(seen.size, list(groups.values()))


def kmedoids_by_the_book(metric: np.ndarray, r: int, seen: Seen, iterations: int, importance: str) -> list[Shares]:
    """Marin et al.: the most significant are medoids; patches join the nearest, and medoids move to the middle."""
    patches = range(len(metric))
    distance = [[float(np.linalg.norm(metric[i] - metric[j]) ** 2) for j in patches] for i in patches]
    w = seen.attention if importance == "attention" else seen.size
    significance = dict(enumerate(w))
    if importance == "size":
        significance = {i: w[i] * min((distance[i][j] for j in range(i)), default=np.inf) for i in patches}
    medoids = sorted(highest(significance, len(metric) - r))

    def clusters() -> list[list[int]]:
        groups = {m: [m] for m in medoids}
        for i in patches:
            if i not in medoids:
                groups[min(medoids, key=lambda m: (distance[i][m], m))].append(i)
        return list(groups.values())

    for _ in range(iterations):
        cost = [{j: sum(w[i] * distance[i][j] for i in group) for j in sorted(group)} for group in clusters()]
        medoids = sorted(min(each, key=each.__getitem__) for each in cost)
    return mean_by(seen.size, clusters())


def atc_by_the_book(metric: np.ndarray, r: int, seen: Seen, linkage: str) -> list[Shares]:
    """Haurum et al.: r times the two closest clusters join, by the cosine distances of their members."""
    v = unit(metric)
    of_pairs = {"average": np.mean, "complete": np.max, "single": np.min}[linkage]
    clusters = [[i] for i in range(len(metric))]  # in the order of their first patches
    for _ in range(r):
        pairs = [(a, b) for a in range(len(clusters)) for b in range(a + 1, len(clusters))]
        far = [of_pairs([1 - v[i] @ v[j] for i in clusters[a] for j in clusters[b]]) for a, b in pairs]
        a, b = pairs[int(np.argmin(far))]
        clusters[a] += clusters.pop(b)
    return mean_by(seen.size, clusters)


def topk_by_the_book(
    metric: np.ndarray, r: int, seen: Seen, prune: bool, importance: str = "attention"
) -> list[Shares]:
    """Liang et al., section 3: the most attended stay; the others are one mean by attention, or are dropped."""
    patches = range(len(metric))
    kept = sorted(highest(dict(enumerate(seen.attention)), len(metric) - r - (not prune)))
    others = [i for i in patches if i not in kept]
    if not prune:
        return [{i: 1.0} for i in kept] + mean_by(seen.attention, [others])
    v = unit(metric)
    groups = {i: {i: 1.0} for i in kept}
    for i in others:  # in no mean; shown where it is most similar
        groups[max(kept, key=lambda j: v[i] @ v[j])][i] = 0.0
    return list(groups.values())


def diffrate_by_the_book(metric: np.ndarray, r: int, seen: Seen, pruned: float) -> list[Shares]:
    """Chen et al., section 3: sorted by attention; the last are dropped, those before them join the most similar."""
    v, order = unit(metric), highest(dict(enumerate(seen.attention)), len(metric))
    kept, removed = order[: len(metric) - r], order[len(metric) - r :]
    dropped = removed[len(removed) - int(pruned * r + 0.5) :]
    groups = {i: [i] for i in sorted(kept)}
    for i in removed:
        groups[max(sorted(kept), key=lambda j: v[i] @ v[j])].append(i)
    mass = np.array([0.0 if i in dropped else seen.size[i] for i in range(len(metric))])
    return mean_by(mass, list(groups.values()))


def mctf_by_the_book(metric: np.ndarray, r: int, seen: Seen, importance: str = "attention") -> list[Shares]:
    """Lee et al., section 3: three criteria, half of r from A to B, the rest from B to what is left of A."""
    v, a, s = unit(metric), seen.attention, seen.size
    alpha, beta = list(range(0, len(metric), 2)), list(range(1, len(metric), 2))

    def attraction(i: int, j: int) -> float:
        similarity, information, size = (v[i] @ v[j] + 1) / 2, 1 / (a[i] * a[j]), 1 / (s[i] * s[j])
        return similarity**1 * information ** (1 / 20) * size ** (1 / 40)

    groups = {i: [i] for i in range(len(metric))}
    for sources, destinations, count in ((alpha, beta, r // 2), (beta, alpha, r - r // 2)):
        if count:
            partner = {i: max(destinations, key=lambda j: attraction(i, j)) for i in sources}
            for i in highest({i: attraction(i, partner[i]) for i in sources}, count):
                groups[partner[i]] += groups.pop(i)
                sources.remove(i)
    return mean_by(a * s, [groups[i] for i in alpha + beta])


# For each method its loops, and the options to draw. A method of its own makes a line of its own.
BY_THE_BOOK: dict[str, tuple[Callable[..., list[Shares]], dict[str, st.SearchStrategy]]] = {
    "tome": (tome_by_the_book, {"kth": st.integers(2, 5)}),
    "tofu": (tofu_by_the_book, {"prune_until": st.sampled_from([0.0, 0.5, 1.0]), "norm": st.booleans()}),
    "pitome": (pitome_by_the_book, {}),
    "dpc_knn": (dpc_knn_by_the_book, {"neighbours": st.integers(1, 9)}),
    "kmedoids": (
        kmedoids_by_the_book,
        {"iterations": st.integers(0, 5), "importance": st.sampled_from(["attention", "size"])},
    ),
    "atc": (atc_by_the_book, {"linkage": st.sampled_from(["average", "complete", "single"])}),
    "topk": (topk_by_the_book, {"prune": st.booleans()}),
    "diffrate": (diffrate_by_the_book, {"pruned": st.sampled_from([0.0, 0.4, 1.0])}),
    "mctf": (mctf_by_the_book, {}),
}


@pytest.mark.parametrize("name", BY_THE_BOOK)
@settings(max_examples=80, deadline=None)
@given(patches=st.integers(2, 20), seed=st.integers(0, 2**32 - 1), data=st.data())
def test_method_equals_its_paper(name, patches, seed, data):
    by_the_book, drawn = BY_THE_BOOK[name]
    options = data.draw(st.fixed_dictionaries(drawn))
    r = data.draw(st.integers(1, MERGERS[name].bind(**options).at_most(patches)))
    rng = np.random.default_rng(seed)
    metric = rng.standard_normal((patches, 5)).astype(np.float32).astype(np.float64)
    attention = rng.dirichlet(np.ones(patches + 1))[1:] + 1e-9  # the class token has its share
    seen = Seen(rng.integers(1, 5, patches).astype(float), attention, data.draw(st.sampled_from([0.0, 0.3, 0.75])))

    answer = shares_of(assign(name, metric, r, seen, **options), seen.size)
    expected = by_the_book(metric, r, seen, **options)
    assert [sorted(group) for group in answer] == [sorted(group) for group in expected]
    assert sum(len(group) for group in answer) == patches  # none is lost, whatever N mod k
    for mine, theirs in zip(answer, expected):
        np.testing.assert_allclose([mine[i] for i in sorted(mine)], [theirs[i] for i in sorted(theirs)], rtol=1e-4)


@pytest.mark.parametrize("name", BY_THE_BOOK)
@pytest.mark.parametrize(("patches", "r"), [(2, 1), (7, 3), (40, 10), (40, 19)])
def test_equal_patches_merge_by_position(name, patches, r):
    """Everything ties; the loops take the lower position, and so does the method, however long the sort."""
    metric, seen = np.tile([1.0, 0.0, 0.0], (patches, 1)), plain(patches)
    answer = shares_of(assign(name, metric, r, seen), seen.size)
    expected = BY_THE_BOOK[name][0](metric, r, seen, **MERGERS[name].options)
    assert [sorted(group) for group in answer] == [sorted(group) for group in expected]


# Planted clusters

NO_CLAIM = {"none", "random", "pool", "grid", "topk"}  # they do not say that they merge what is similar
SIMILARITY = [name for name, merger in MERGERS.items() if name not in NO_CLAIM and merger.pooling is None]


def planted(seed: int, noise: float, clusters: int = 8, each: int = 4, dim: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Vectors around random centres, at shuffled positions, and the cluster of each."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(clusters), each))
    return rng.standard_normal((clusters, dim))[labels] + noise * rng.standard_normal((len(labels), dim)), labels


def recovered(name: str, noise: float, r: int = 16) -> float:
    """Adjusted Rand index of the groups, mean over draws: 0 by chance, 1 for the planted clusters, if r leaves as many.

    Half of the patches can go by every method; then 0.67 is what whole pairs of a cluster come to.
    """
    scores = []
    for seed in range(12):
        metric, labels = planted(seed, noise)
        scores.append(adjusted_rand_score(labels, assign(name, metric, r, plain(len(labels))).index[0]))
    return float(np.mean(scores))


@pytest.mark.parametrize("noise", [0.05, 0.2, 0.5])
@pytest.mark.parametrize("name", SIMILARITY)
def test_planted_clusters_are_found(name, noise):
    assert recovered(name, noise) > recovered("random", noise) + 0.4


def test_tome_finds_planted_pairs():
    """Patches 2i and 2i + 1 are one vector with noise: every one of them is merged with its twin."""
    rng = np.random.default_rng(0)
    twins = np.repeat(rng.standard_normal((16, 32)), 2, axis=0) + 0.05 * rng.standard_normal((32, 32))
    answer = assign("tome", twins, 16, plain(32))
    assert answer.count == 16 and torch.equal(answer.index[0, 0::2], answer.index[0, 1::2])


@pytest.mark.parametrize("noise", [0.01, 0.2])
def test_dpc_knn_finds_the_planted_clusters_themselves(noise):
    assert recovered("dpc_knn", noise, r=24) > 0.95


@pytest.mark.parametrize("importance", ["attention", "size"])
def test_kmedoids_finds_the_planted_clusters_from_a_patch_of_each(importance):
    """One patch of each cluster is attended to most; of equal sizes, those that differ from the earlier ones start."""
    for seed in range(12):
        metric, labels = planted(seed, noise=0.2)
        first = np.unique(labels, return_index=True)[1]
        attention = np.full(len(labels), 0.01)
        attention[first] = 0.05
        seen = Seen(np.ones(len(labels)), attention, 0.0)
        index = assign("kmedoids", metric, len(labels) - 8, seen, importance=importance).index[0]
        assert adjusted_rand_score(labels, index) > 0.95


def test_kmedoids_moves_medoids_to_the_middle_by_weight():
    """On a line 0, 1, 2 and a far 10: starting from 0, the three's medoid is 1; if 0 weighs enough it stays there."""
    metric = np.array([[0.0], [1.0], [2.0], [50.0], [10.0]])
    for heavy, middle in ((0.3, 1), (10.0, 0)):
        seen = Seen(np.ones(5), np.array([heavy, 0.1, 0.1, 0.2, 0.2]), 0.0)
        squared = torch.from_numpy((metric - metric.T) ** 2).float()[None]
        weight = torch.from_numpy(seen.attention).float()
        medoids = torch.tensor([[0, 3, 4]])
        cluster = joined(squared, medoids)
        assert cluster.tolist() == [[0, 0, 0, 1, 2]]
        assert moved(medoids, cluster, squared * weight[:, None]).tolist() == [[middle, 3, 4]]
        assert assign("kmedoids", metric, 2, seen).index.tolist() == [[0, 0, 0, 1, 2]]


@pytest.mark.parametrize("linkage", ["average", "complete", "single"])
@pytest.mark.parametrize("noise", [0.05, 0.2])
def test_atc_finds_the_planted_clusters_themselves(noise, linkage):
    for seed in range(12):
        metric, labels = planted(seed, noise)
        index = assign("atc", metric, len(labels) - 8, plain(len(labels)), linkage=linkage).index[0]
        assert adjusted_rand_score(labels, index) == 1.0


def test_atc_s_linkages_differ_on_a_chain():
    """A chain of 0, 10, 21 and 33 degrees, and a pair at 15 degrees: single linkage takes all of the chain first."""
    angle = np.deg2rad([0, 10, 21, 33, 170, 185])
    metric = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    for linkage, expected in (("single", [0, 0, 0, 0, 1, 2]), ("complete", [0, 0, 1, 1, 2, 2])):
        assert assign("atc", metric, 3, plain(6), linkage=linkage).index[0].tolist() == expected


@pytest.mark.parametrize("depth", [0.0, 0.5])
@pytest.mark.parametrize("seed", range(5))
def test_pitome_protects_what_stands_alone(depth, seed):
    """Six patches like no other among three clusters of eight: what merges, merges within a cluster."""
    clustered, labels = planted(seed, noise=0.1, clusters=3, each=8, dim=64)
    rng = np.random.default_rng(100 + seed)
    shuffle = rng.permutation(30)
    metric = np.concatenate([clustered, rng.standard_normal((6, 64))])[shuffle]
    labels = np.concatenate([labels, 3 + np.arange(6)])[shuffle]
    groups = shares_of(assign("pitome", metric, 12, plain(30, depth)), np.ones(30))
    alone = {i for group in groups if len(group) == 1 for i in group}
    assert set(np.flatnonzero(labels >= 3)) <= alone


def test_mctf_merges_first_what_is_least_attended_and_smallest():
    """Four pairs of equal vectors: the pair that goes first is the one without attention, or the one of least size."""
    metric = np.repeat(np.eye(4), 2, axis=0)
    for pair in range(4):
        mine = np.arange(8) // 2 == pair
        for seen in (
            Seen(np.ones(8), np.where(mine, 0.01, 0.1), 0.0),
            Seen(np.where(mine, 1.0, 5.0), np.full(8, 0.1), 0.0),
        ):
            index = assign("mctf", metric, 1, seen).index[0].tolist()
            assert index[2 * pair] == index[2 * pair + 1] and len(set(index)) == 7


def test_mctf_takes_opposite_vectors_last():
    """Patch 2 is the opposite of both others' direction: its score is 0, finite in log space or not."""
    metric = np.array([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    index = assign("mctf", metric, 2, plain(5)).index[0].tolist()
    assert index[0] == index[1] and index[2] == index[3] and len(set(index)) == 3
    opposite = assign("mctf", metric[1:3], 1, plain(2))
    assert opposite.index.tolist() == [[0, 0]] and opposite.weight.isfinite().all()


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_atc_joins_as_many_patches_of_which_one_is_not_finite(broken):
    """So that a run that diverges ends with a word on its loss, not on an index."""
    metric = torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(0))
    metric[0, 3, 1] = broken
    for r in (1, 5, 8):
        answer = MERGERS["atc"].assign(metric, r, MergeContext(torch.ones(2, 9)))
        assert answer.index[0].unique().tolist() == list(range(9 - r))
        alone = MERGERS["atc"].assign(metric[1:], r, MergeContext(torch.ones(1, 9)))
        assert torch.equal(answer.index[1:], alone.index)
