"""The table of methods and ways of merging: numbers of a direct computation, continued, and the same in every file."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file as load_weights

from engine.cli import cli
from engine.data.loading.loader import Normalise
from engine.explain.faithful import evaluation, measures
from engine.explain.faithful.areas import deletion_and_insertion
from engine.explain.faithful.evaluation import Pair, Plan, evaluate
from engine.explain.faithful.infidelity import infidelity
from engine.explain.faithful.results import interval, write_results
from engine.explain.faithful.road import road
from engine.settings.layers import load_file
from engine.study.zeroshot.each import pretrained
from engine.study.zeroshot.fingerprints import of_merging, of_values
from engine.study.zeroshot.images import labelled_images
from engine.study.zeroshot.settings import ZeroshotSettings
from engine.study.zeroshot.ways import UNMERGED
from models.explain import explain
from models.merging import wrap
from models.settings import UserError
from tests.engine.study.zeroshot.conftest import make_files
from tools import explain as tool


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """The folder of the model and its images. Tests must not change it."""
    return make_files(tmp_path_factory.mktemp("files")).parent


def plan_here() -> Plan:
    """Six of 18 images of noise, the unmerged model and tome with r = 4, two methods; from the files in this folder."""
    settings = load_file(ZeroshotSettings, "small.yaml", ["methods=[tome]", "budgets=[{r: 4}]"], "zeroshot")
    return Plan(settings, ["rollout", "gradcam"], {}, 6, 4)


@pytest.fixture
def plan(files, monkeypatch) -> Plan:
    monkeypatch.chdir(files)
    return plan_here()


class Done(NamedTuple):
    """What was evaluated, once for all tests, which must not change it."""

    out: Path
    pairs: list[Pair]


@pytest.fixture(scope="module")
def done(files, tmp_path_factory) -> Done:
    """The plan."""
    out = tmp_path_factory.mktemp("done") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(files)
        return Done(out, evaluate(plan_here(), out, lambda line: None))


def test_the_numbers_are_those_of_a_direct_computation(plan, done):
    pairs = done.pairs
    ways = [UNMERGED, "tome, r = 4"]
    methods = ["random map", "centre blob", "rollout", "gradcam"]
    assert [(pair.way, pair.method) for pair in pairs] == [(way, method) for way in ways for method in methods]

    model = timm.create_model("test_vit", img_size=64).eval()
    model.load_state_dict(load_weights("vit.safetensors"))
    wrap(model, method="tome", r=4)
    found = labelled_images(plan.settings)
    (split,) = found.splits
    pixels = split.read(torch.tensor([0, 3, 6, 9, 12, 15]))
    images = Normalise(found.mean, found.std)(pixels)  # the model is so steep that rounding merges other patches
    explained = explain(model, images, "gradcam")
    expected = deletion_and_insertion(model, images, explained.relevance, explained.target, steps=4).areas
    np.testing.assert_allclose(pairs[-1].scores, expected.numpy(), rtol=1e-4, atol=1e-6)


def test_images_of_another_size_are_refused(plan, tmp_path):
    other = replace(plan, settings=plan.settings.model_copy(update={"sizes": [48]}))
    with pytest.raises(UserError, match=r"'48 px': has another image size, .* give sizes=\[\] or omit it"):
        evaluate(other, tmp_path / "out", lambda line: None)


def test_each_image_has_a_random_map_of_its_own(plan, tmp_path, monkeypatch):
    """The numbers do not depend on how many images are computed at a time."""
    found, plan = [], replace(plan, methods=[])
    for batch in (1, 6):
        monkeypatch.setattr(evaluation, "BATCH", batch)
        found.append(evaluate(plan, tmp_path / str(batch), lambda line: None)[0].scores)
    np.testing.assert_allclose(*found, rtol=1e-4, atol=1e-6)


def test_what_is_done_is_not_done_again(plan, done, monkeypatch):
    monkeypatch.setattr(evaluation, "_compute", None)
    again = evaluate(plan, done.out, lambda line: None)
    assert all(np.array_equal(a.scores, b.scores) for a, b in zip(done.pairs, again, strict=True))
    other = Plan(plan.settings, plan.methods, {"gradcam": {"at": "tokens"}}, plan.images, plan.steps)
    with pytest.raises(TypeError):  # another option is another number
        evaluate(other, done.out, lambda line: None)


def test_table_and_json_have_the_same_numbers(plan, done, tmp_path):
    pairs = done.pairs
    (tmp_path / "out").mkdir()
    table = write_results(plan, pairs, tmp_path / "out")
    record = json.loads((tmp_path / "out" / "faithfulness.json").read_text())
    assert record["images"] == 6 and len(record["rows"]) == len(pairs)
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    for pair, row, line in zip(pairs, record["rows"], cells, strict=True):
        assert line[:2] == [pair.way, pair.method] == [row["way"], row["method"]]
        assert [float(line[2]), float(line[4])] == pytest.approx(pair.scores.mean(0), abs=6e-4)
        assert row["insertion_interval"][0] <= row["insertion"] <= row["insertion_interval"][1]
    assert record["rows"][0]["lead"] == 0 and record["rows"][2]["lead"] == pytest.approx(
        (pairs[2].scores - pairs[0].scores)[:, 1].mean()
    )
    every = {(pair.way, pair.method): pair.scores[:, 1] for pair in pairs}
    for row in record["rows"]:
        way, method = row["way"], row["method"]
        if way == "unmerged" or method == "random map":
            assert "insertion_change" not in row
            continue
        leads = [every[name, method] - every[name, "random map"] for name in (way, "unmerged")]
        low, high = row["insertion_change_interval"]
        assert row["insertion_change"] == pytest.approx((leads[0] - leads[1]).mean())
        assert low <= row["insertion_change"] <= high


def test_the_interval_is_scipys():
    scipy = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(1).normal(size=200)
    found = scipy.bootstrap((values,), np.mean, method="percentile", random_state=0).confidence_interval
    assert interval(values) == pytest.approx((found.low, found.high), abs=0.02)


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["--method", "merge"], "error: --method merge: cannot be evaluated; known: gradcam, rollout"),
        (["model.weights=missing.safetensors"], "error: model.weights = "),
        (["--measure", "road", "infidelty"], "error: --measure infidelty: unknown; did you mean infidelity?"),
        (["rollout.at=map"], "error: rollout.at: not an option of rollout; known: none"),
    ],
)
def test_mistakes_are_one_line(plan, tmp_path, monkeypatch, capsys, args, line):
    monkeypatch.setattr(sys, "argv", ["explain.py", "--evaluate", "small.yaml", "--out", str(tmp_path / "out"), *args])
    assert cli(tool.main) == 2
    error = capsys.readouterr().err
    assert error.startswith(line) and error.count("\n") == 1, error


RUN = ["--run", "a", "--images", "b", "--out", "x"]


def test_run_and_evaluate_do_not_go_together(capsys):
    for args in (
        ["--out", "x"],
        ["--evaluate", "a", "--run", "b", "--out", "x"],
        ["--run", "a", "--out", "x"],
        [*RUN, "--measure", "road"],
    ):
        with pytest.raises(SystemExit):
            tool.parse(args)
    assert capsys.readouterr().err.count("error: ") == 4


def all_measures(plan: Plan) -> Plan:
    return replace(plan, methods=["rollout"], measures=("areas", "road", "infidelity"))


@pytest.fixture(scope="module")
def continued(files, tmp_path_factory) -> tuple[Done, Done]:
    """Deletion and insertion alone, and then all measures in the same folder, for which these are not computed."""
    pytest.importorskip("captum")
    out = tmp_path_factory.mktemp("continued") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(files)
        plan = plan_here()
        first = evaluate(replace(plan, methods=["rollout"]), out, lambda line: None)
        patch.setattr(measures, "deletion_and_insertion", None)
        return Done(out, first), Done(out, evaluate(all_measures(plan), out, lambda line: None))


def test_another_measure_continues_a_folder(plan, continued):
    """Files of deletion and insertion have the names that they had before there were other measures."""
    (out, first), (_, pairs) = continued
    model, weights = pretrained(plan.settings, torch.device("cpu"))
    given = labelled_images(plan.settings).fingerprint, None, of_merging(), "rollout", {}, plan.steps, plan.images
    assert (out / "areas" / f"{of_values(weights, *given)[:16]}.npz").is_file()

    assert all(np.array_equal(a.scores, b.scores[:, :2]) for a, b in zip(first, pairs, strict=True))
    assert {path.name for path in out.iterdir()} == {"areas", "road", "infidelity"}

    found = labelled_images(plan.settings)
    images = Normalise(found.mean, found.std)(found.splits[0].read(torch.tensor([0, 3, 6, 9, 12, 15])))
    explained = explain(model, images, "rollout")
    asked = model, images, explained.relevance, explained.target
    expected = torch.cat([road(*asked), infidelity(*asked).unsqueeze(1)], dim=1)
    np.testing.assert_allclose(pairs[2].scores[:, 2:], expected.numpy(), rtol=1e-3, atol=1e-5)


def test_every_measure_has_columns_and_leads(plan, continued, tmp_path):
    plan, pairs = all_measures(plan), continued[1].pairs
    (tmp_path / "out").mkdir()
    table = write_results(plan, pairs, tmp_path / "out")
    heads = [cell.strip() for cell in table.splitlines()[0].split("|")[1:-1]]
    assert heads[2::2] == ["deletion", "insertion", "ROAD MoRF", "ROAD LeRF", "infidelity"]
    note = (tmp_path / "out" / "table.md").read_text().splitlines()[-1]
    assert note == "6 images, 4 steps. A good explanation has " + (
        "a small deletion, ROAD MoRF and infidelity, and a large insertion and ROAD LeRF."
    )
    record = json.loads((tmp_path / "out" / "faithfulness.json").read_text())
    assert record["measures"] == ["areas", "road", "infidelity"]
    row, (low, high) = record["rows"][2], record["rows"][2]["road_morf_lead_interval"]
    assert row["road_morf_lead"] == pytest.approx((pairs[2].scores - pairs[0].scores)[:, 2].mean())
    assert low <= row["road_morf_lead"] <= high and record["rows"][0]["infidelity_lead"] == 0
