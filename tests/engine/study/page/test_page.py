"""The page without a browser: its numbers, what it shows of runs, its size, and that all text is text."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import re
import shlex
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from engine.runs.folder import RunFolder
from engine.runs.records.metrics import metrics_of
from engine.settings.layers import load_settings
from engine.study.compare import differences, outputs
from engine.study.page import mistakes
from engine.study.page.charts import static_svg
from engine.study.page.curves import MOST, rows_of, thinned
from engine.study.page.figure import figures
from engine.study.page.page import page, write_page
from engine.study.page.run_parts import differing_settings, first_runs, recipes, runs_of
from engine.study.pareto.front import front
from engine.wording import NOT_COUNTED
from models.settings import UserError
from tests.engine.study.page.html import read
from tests.engine.study.page.made_points import EVIL, point, points
from tests.engine.study.run_folders import write_run

WITH_SEEDS = {"scores_percent", "folders"}  # what the JSON has of each row besides its record


@pytest.fixture(scope="module")
def made():
    """The page of points without runs."""
    return read(page(points(), command=f"tools/compare.py {EVIL}", plan=EVIL, title=EVIL))


@pytest.fixture(scope="module")
def of_runs(runs):
    """The page of real runs."""
    return read(page(runs))


def cells(table):
    return [
        [cell.text for part in row.parts if not isinstance(part, str) for cell in [part]] for row in table.all("tr")
    ]


@pytest.mark.parametrize("cost", [0.53, 1.2e-5, 0.0])
def test_rows_of_one_cost_have_an_axis_with_ticks_around_it(cost):
    """Not one tick, rounded to a number that is no row's cost."""
    drawn = static_svg(figures([point("a", [0.9], cost), point("b", [0.8], cost)])["gmacs"])
    ticks = [
        float(text.replace("\u2212", "-")) for text in re.findall(r">([\u2212]?\d[\d.]*(?:e-?\d+)?)</text>", drawn)
    ]
    ticks = [tick for tick in ticks if tick < 2]  # those of accuracy are larger
    assert len(ticks) >= 3 and min(ticks) <= cost <= max(ticks)


def test_table_is_that_of_the_tool(made, tmp_path):
    """The records are those of tools/compare.py --json, and the cells are those of the table that it prints."""
    outputs.write_json(points(), tmp_path / "table.json")
    written = json.loads((tmp_path / "table.json").read_text())["rows"]
    own = made.json("records")
    assert len(own) == 5 and [set(row) - set(record) for row, record in zip(written, own)] == [WITH_SEEDS] * 5
    assert [{key: row[key] for key in record} for row, record in zip(written, own)] == own
    columns, rows = outputs.table(points())
    head, *shown = cells(made.all("table", id="rows")[0])
    assert head == [column.title for column in columns] and shown == rows


def test_table_has_the_numbers_of_the_points(made):
    head, *rows = cells(made.all("table", id="rows")[0])
    for row, record, source in zip(rows, made.json("records"), points(), strict=True):
        shown = dict(zip(head, row))
        assert record["score_percent"] == 100 * source.score and record["gmacs"] == source.costs["gmacs"]
        score = [float(number) for number in shown["test top-1, %"].split(" ± ")]
        numbers = [source.score] if source.spread is None else [source.score, source.spread]
        assert score == pytest.approx([100 * number for number in numbers], abs=0.005)
        gmacs = source.costs["gmacs"]
        assert shown["GMACs"] == NOT_COUNTED if gmacs is None else float(shown["GMACs"]) == pytest.approx(gmacs)


def test_figure_has_the_numbers_of_the_points():
    drawn = {row["name"]: row for row in _values(figures(points())["gmacs"]) if "name" in row}
    assert [*drawn] == [source.name for source in points()[:4]]
    for source in points()[:4]:
        row = drawn[source.name]
        assert (row["x"], row["score"]) == (source.costs["gmacs"], 100 * source.score)
        if source.spread is not None:
            assert row["high"] - row["low"] == pytest.approx(200 * source.spread)


def test_differences_and_notes_are_shown():
    pairs = differences.differences(points())
    document = read(page(points(), pairs=pairs, notes=[f"left out: {EVIL}"]))
    table = document.all("section", id="differences")[0].all("table")[0]
    assert cells(table)[1:] == differences.table(pairs)[1]
    assert f"left out: {EVIL}" in document.all("section", id="table")[0].text


def test_rows_without_test_images_are_not_drawn():
    untested = dataclasses.replace(points()[0], name="untested", scores={})
    document = read(page([*points(), untested]))
    assert len(document.all("table", id="rows")[0].all("tr")) == 7
    assert "2 rows without" in document.all("span", id="missing")[0].text


def test_all_text_is_text(made):
    assert made.all("h1")[0].text == EVIL and made.all("title")[0].text == EVIL
    assert EVIL in made.all("pre")[0].text
    assert [script.attributes.get("id") for script in made.all("script")] == ["records", "figures", None, None]
    assert made.json("records")[3]["name"] == EVIL


def test_readable_without_scripts(made):
    """The table and a picture of the figure are in the HTML."""
    place = made.all("div", id="chart")[0]
    assert place.all("svg") and EVIL in place.all("svg")[0].text


def test_requests_nothing(made):
    policy = made.all("meta", **{"http-equiv": "Content-Security-Policy"})[0].attributes["content"]
    assert policy.startswith("default-src 'none';")
    for element in (*made.all("img"), *made.all("script"), *made.all("link"), *made.all("a")):
        address = element.attributes.get("src") or element.attributes.get("href") or ""
        assert address.startswith(("data:", "#", "")) and "//" not in address


def test_front_is_drawn():
    spec = figures(points())["gmacs"]
    stairs = next(rows for rows in spec["datasets"].values() if "name" not in rows[0])
    assert [row["x"] for row in stairs] == [point.costs["gmacs"] for point in front(points())]


def test_a_figure_for_each_known_cost():
    assert [*figures(points())] == ["gmacs", "params_m"]
    assert figures([point("uncounted", [0.9], None, costs={"params_m": None})]) == {}


def test_a_page_without_costs_has_a_table():
    document = read(page([point("uncounted", [0.9], None, costs={"params_m": None})]))
    assert not document.all("div", id="chart") and len(document.all("table", id="rows")) == 1


def test_one_family_is_coloured_by_method():
    methods = [point(str(method), [0.9], 1.0 + i, method=method) for i, method in enumerate(("tome", "grid", None))]
    assert {row["group"] for row in _values(figures(methods)["gmacs"]) if "group" in row} == {
        "tome",
        "grid",
        "no merging",
    }
    assert {row["group"] for row in _values(figures(points())["gmacs"]) if "group" in row} == {"hybrid", EVIL}


def _values(spec):
    return [row for rows in spec["datasets"].values() for row in rows]


# Of runs


def test_ten_runs_stay_small(ten_runs):
    text = page(ten_runs)
    assert len(text.encode()) < 5_000_000
    document = read(text)
    assert len(document.all("table", **{"class": "confusion"})) == 10
    assert len(document.all("ul", **{"class": "wrong"})) == 10


def test_pictures_end_with_their_room(ten_runs, monkeypatch):
    monkeypatch.setattr(mistakes, "PICTURES", 1)
    shown = mistakes.mistakes_of(runs_of(ten_runs))
    assert [bool(one.wrong) for one in shown] == [True] + [False] * 9 and all(one.cells for one in shown)


def test_confusion_matrices_count_the_test_images(runs, of_runs):
    matrices = [cells(table)[1:] for table in of_runs.all("table", **{"class": "confusion"})]
    folders = [RunFolder(path) for one in runs for path in one.folders]
    for matrix, run in zip(matrices, folders, strict=True):
        numbers = np.array([[int(cell or 0) for cell in row[1:]] for row in matrix])
        results = run.read_results()
        assert numbers.sum() == results.test_images
        assert numbers.trace() / numbers.sum() == pytest.approx(results.test_score, abs=1e-6)
        assert numbers.sum(1).tolist() == list(results.class_images.values())
        assert [row[0] for row in matrix] == list(results.class_images)


def test_wrong_images_are_the_most_confident_mistakes(runs, of_runs):
    """The pixels are those of the digits of scikit-learn."""
    from engine.data import build_data
    from engine.measure.predictions import read_predictions

    run = RunFolder(runs[0].folders[0])
    settings, results = run.settings, run.read_results()
    read_back = read_predictions(run.predictions_file, list(results.class_accuracy))
    wrong = np.flatnonzero(read_back.labels != read_back.predicted)
    most = wrong[np.argmax(read_back.probabilities[wrong])]
    shown = of_runs.all("ul", **{"class": "wrong"})[0].all("li")[0]
    uri = shown.all("img")[0].attributes["src"]
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,")))))
    expected = build_data(settings.data, settings.split, settings.seed).test.images[most, 0].numpy()
    assert np.array_equal(pixels, expected)
    classes = [str(digit) for digit in range(10)]
    true, predicted = shown.all("span")
    assert true.text == classes[read_back.labels[most]]
    assert predicted.text.startswith(f"as {classes[read_back.predicted[most]]}, ")


def test_curves_are_the_metrics_by_epoch(runs):
    run = runs_of(runs)[0]
    rows = rows_of(run)
    logged = [row for row in metrics_of(run.folder.metrics_file) if "val/loss" in row]
    validation = [row for row in rows if row["phase"] == "validation"]
    assert [row["epoch"] for row in validation] == [1, 2]
    assert [row["loss"] for row in validation] == pytest.approx([row["val/loss"] for row in logged], rel=1e-4)
    assert [row["score"] for row in validation] == pytest.approx([100 * row["val/top1"] for row in logged], rel=1e-4)
    assert any(row["phase"] == "training" for row in rows)


@pytest.mark.parametrize("count", [0, 1, MOST, MOST + 1, 10 * MOST])
def test_long_curves_are_thinned(count):
    kept = thinned(range(count), MOST)
    assert kept == sorted(set(kept)) and len(kept) == min(count, MOST)
    assert not count or (kept[0], kept[-1]) == (0, count - 1)


def test_only_settings_that_differ_are_shown(runs, of_runs):
    names, settings = differing_settings(runs_of(runs))
    assert names == ["r0", "r3"]
    assert settings == [("model.merge.r", ["0", "3"])]
    assert "model.merge.r" in of_runs.all("section", id="settings")[0].text


def test_options_of_another_model_are_not_listed_where_they_are_null(tmp_path):
    hybrid, vit = (
        write_run(tmp_path, "a", 0, 0.5),
        write_run(tmp_path, "b", 0, 0.6, "model.name=lenet5", "model.padding=2"),
    )
    rows = [point("a", [0.5], 1.0, folders=(hybrid,)), point("b", [0.6], 1.0, folders=(vit,))]
    shown = dict(differing_settings(runs_of(rows))[1])
    assert shown["model.name"] == ["vit", "lenet5"] and shown["model.depth"][1] == "-"
    assert "model.merge.keep" not in shown


def test_recipes_lead_to_the_same_settings(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = runs_of(runs)
    made = recipes(found)
    assert [len(recipe.commands) for recipe in made] == [2, 1]
    for recipe in made:
        (tmp_path / recipe.file).write_text(recipe.settings)
        of_row = [run for run in found if run.point == recipe.point]
        for command, run in zip(recipe.commands, of_row, strict=True):
            tool, option, file, *overrides = shlex.split(command)
            assert (tool, option) == ("tools/train.py", "--cfg")
            assert load_settings(file, overrides) == run.settings


def test_versions_and_machines(runs, of_runs):
    results = RunFolder(runs[0].folders[0]).read_results()
    text = of_runs.all("section", id="machines")[0].text
    assert results.device in text and f"torch {results.versions['torch']}" in text
    assert len(of_runs.all("section", id="machines")[0].all("tr")) == 2  # one machine for all runs


def test_many_runs_are_shown_by_their_first(runs):
    found = runs_of(runs)
    assert first_runs(found, 3) == found
    assert [run.title for run in first_runs(found, 2)] == ["r0_s0", "r3_s0"]
    assert len(first_runs(found, 1)) == 1


def test_a_class_may_have_any_name(runs, tmp_path):
    """Names of classes and runs come from users' folders."""
    run = RunFolder(shutil.copytree(runs[0].folders[0], tmp_path / "copy"))
    results = json.loads(run.results_file.read_text())
    for key in ("class_accuracy", "class_images", "train_class_images"):
        results[key] = {EVIL if name == "0" else name: value for name, value in results[key].items()}
    run.results_file.write_text(json.dumps(results))
    lines = run.predictions_file.read_text().splitlines()
    as_evil = [re.sub(r"^(\d+),0,", rf"\1,{EVIL},", line) for line in lines]
    as_evil = [re.sub(r"^(\d+),([^,]*),0,", rf"\1,\2,{EVIL},", line) for line in as_evil]
    run.predictions_file.write_text("\n".join(as_evil) + "\n")
    document = read(page([dataclasses.replace(runs[0], folders=(run.path,))]))
    assert document.all("table", **{"class": "confusion"})[0].all("th")[0].text == EVIL
    assert len(document.all("script")) == 4


def test_runs_that_cannot_be_read_are_left_out(runs, tmp_path):
    missing = dataclasses.replace(runs[0], folders=(tmp_path / "gone", *runs[0].folders))
    assert [run.title for run in runs_of([missing])] == ["r0_s0", "r0_s1"]


@pytest.mark.parametrize("module, package", [("altair", "altair"), ("vl_convert", "vl-convert-python")])
def test_a_missing_library_is_one_line(tmp_path, monkeypatch, module, package):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"^--html: needs {package}; pip install -e '\.\[page\]'$"):
        write_page(points(), tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()
