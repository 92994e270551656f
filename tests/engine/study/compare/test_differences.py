"""Differences between rows: which pairs are tested, against scipy and statsmodels, and what is said about them."""

from itertools import combinations

import numpy as np
import pytest
from scipy.stats import ttest_rel
from statsmodels.stats.contingency_tables import mcnemar as of_statsmodels
from statsmodels.stats.multitest import multipletests

from engine.measure.paired import sign_flips
from engine.study.compare.differences import differences, explanation, table
from engine.study.points import Outcome, Point
from models.settings import UserError

GENERATOR = np.random.default_rng(0)
IMAGES = tuple(f"{i}.png" for i in range(400))


def point(name, scores, outcomes=None, metric="top1"):
    outcomes = {key: (lambda own=own: own) for key, own in (outcomes or {}).items()}
    return Point(name, "vit", None, None, metric, scores, {}, outcomes=outcomes)


def seeds(*scores):
    return {f"seed {i}": score for i, score in enumerate(scores)}


def right(accuracy, images=IMAGES):
    return Outcome(images, GENERATOR.random(len(images)) < accuracy)


def test_over_seeds():
    rows = {"a": (0.90, 0.92, 0.91, 0.95), "b": (0.88, 0.90, 0.90, 0.90), "c": (0.70, 0.71, 0.74, 0.72)}
    pairs = differences([point(name, seeds(*scores)) for name, scores in rows.items()])
    expected = [ttest_rel(rows[a], rows[b]) for a, b in combinations(rows, 2)]
    assert [(pair.a, pair.b) for pair in pairs] == [("a", "b"), ("a", "c"), ("b", "c")]
    corrected = multipletests([test.pvalue for test in expected], method="holm")[1]
    for pair, test, p in zip(pairs, expected, corrected, strict=True):
        assert pair.seeds.n == 4 and pair.images is None
        assert pair.seeds.p == pytest.approx(test.pvalue) and pair.p_seeds == pytest.approx(p)
        assert (pair.seeds.low, pair.seeds.high) == pytest.approx(tuple(test.confidence_interval()))
        assert pair.more_than_noise == (p < 0.05)
    assert [pair.more_than_noise for pair in pairs] == [False, True, True]
    assert pairs[0].difference == pytest.approx(np.mean(rows["a"]) - np.mean(rows["b"]))


def test_only_common_seeds_are_paired():
    a = point("a", {"seed 0": 0.9, "seed 1": 0.92, "seed 5": 0.1})
    b = point("b", {"seed 1": 0.9, "seed 0": 0.8})
    (pair,) = differences([a, b])
    assert pair.seeds.n == 2 and pair.difference == pair.seeds.mean == pytest.approx(0.06)
    (pair,) = differences([a, point("c", {"seed 7": 0.9})])
    assert pair.seeds is None and pair.more_than_noise is None and pair.difference == pytest.approx(0.64 - 0.9)
    assert table([pair])[1][0][3:] == ["-"] * 5


def test_over_images_is_mcnemar():
    outcomes = {"a": right(0.9), "b": right(0.6), "c": right(0.58)}
    pairs = differences([point(name, seeds(own.correct.mean()), {"seed 0": own}) for name, own in outcomes.items()])
    ps = []
    for pair in pairs:
        a, b = outcomes[pair.a].correct, outcomes[pair.b].correct
        ps.append(of_statsmodels([[(a & b).sum(), (a & ~b).sum()], [(~a & b).sum(), (~a & ~b).sum()]]).pvalue)
        assert pair.images.p == pytest.approx(ps[-1], rel=1e-6) and pair.times == 1 and pair.seeds.p is None
        assert pair.images.mean == pytest.approx(a.mean() - b.mean())
        assert pair.images.low < pair.images.mean < pair.images.high
    assert [pair.p_images for pair in pairs] == pytest.approx(multipletests(ps, method="holm")[1], rel=1e-6)
    assert [pair.more_than_noise for pair in pairs] == [True, True, False]


def test_images_in_another_order_are_matched_and_other_images_are_not_compared():
    a, order = right(0.9), GENERATOR.permutation(len(IMAGES))
    shuffled = Outcome(tuple(IMAGES[i] for i in order), a.correct[order])
    other = right(0.5, tuple(f"other {i}" for i in range(400)))
    rows = [point(name, seeds(0.9), {"seed 0": own}) for name, own in (("a", a), ("b", shuffled), ("c", other))]
    pairs = differences(rows)
    assert pairs[0].images.mean == 0 and pairs[0].images.p == 1 and pairs[0].more_than_noise is False
    assert pairs[1].images is None and pairs[1].more_than_noise is None


def test_seeds_on_the_same_images_count_each_image_once():
    a, b = ({f"seed {i}": right(accuracy) for i in range(3)} for accuracy in (0.80, 0.75))
    scores = [{name: own.correct.mean() for name, own in outcomes.items()} for outcomes in (a, b)]
    (pair,) = differences([point("a", scores[0], a), point("b", scores[1], b)])
    stacked = [np.stack([own.correct for own in outcomes.values()]) for outcomes in (a, b)]
    assert pair.times == 3 and pair.images.n == 400
    assert pair.images.p == pytest.approx(sign_flips(*stacked))
    assert pair.images.mean == pytest.approx(pair.difference) == pytest.approx(stacked[0].mean() - stacked[1].mean())


def test_folds_are_tested_on_all_their_images_together():
    parts = [tuple(f"{fold}-{i}" for i in range(100)) for fold in range(3)]
    a, b = ({f"seed 0, fold {i}": right(p, images) for i, images in enumerate(parts)} for p in (0.9, 0.7))
    scores = [{name: own.correct.mean() for name, own in outcomes.items()} for outcomes in (a, b)]
    (pair,) = differences([point("a", scores[0], a), point("b", scores[1], b)])
    assert (pair.times, pair.images.n, pair.seeds.n) == (1, 300, 3)


def test_predictions_that_cannot_be_read_are_named():
    def damaged():
        raise UserError("a/predictions.csv: damaged")

    a = Point("a", "vit", None, None, "top1", seeds(0.9), {}, outcomes={"seed 0": damaged})
    notes = []
    pairs = differences([a, *(point(name, seeds(0.8), {"seed 0": right(0.8)}) for name in "bc")], notes.append)
    assert notes == ["not used for differences over images: a/predictions.csv: damaged"]
    assert [pair.images is None for pair in pairs] == [True, True, False]


def test_other_metrics_are_not_compared_and_equal_differences_decide_nothing():
    assert differences([point("a", seeds(0.9)), point("b", seeds(0.9), metric="map"), point("c", {})]) == []
    (pair,) = differences([point("a", seeds(0.9, 0.8)), point("b", seeds(0.8, 0.7))])
    assert pair.seeds.p is None and pair.more_than_noise is None
    assert "say nothing about other trainings" in explanation([pair])[-1]


def test_json_and_table_agree():
    a, b = ({"seed 0": right(0.9), "seed 1": right(0.9)} for _ in range(2))
    pair = differences([point("a", seeds(0.9, 0.92), a), point("b", seeds(0.88, 0.91), b)])[0]
    values, (cells,) = pair.to_json(), table([pair])[1]
    assert values["over_images"]["times"] == 2 and values["over_seeds"]["n"] == 2
    seed, image = values["over_seeds"], values["over_images"]
    assert cells == [
        "a", "b", f"{values['difference_percent']:+.2f}",
        f"{seed['low_percent']:+.2f} to {seed['high_percent']:+.2f}", f"{seed['p_holm']:.4f}",
        f"{image['low_percent']:+.2f} to {image['high_percent']:+.2f}", f"{image['p_holm']:.4f}", "no",
    ]  # fmt: skip
