"""The numbers of a comparison agree in the table, CSV, Markdown and JSON."""

import csv
import json

import pytest

from engine.runs.folder import RunFolder
from engine.study.compare.columns import key_of
from engine.study.compare.differences import differences
from engine.study.compare.outputs import records, table, write_csv, write_json, write_markdown
from engine.study.compare.reading import read
from engine.study.points import Point
from engine.tables import markdown
from tests.engine.study.run_folders import write_run
from tests.tools.tables import read_markdown


@pytest.fixture
def points(tmp_path):
    runs = [write_run(tmp_path, f"vit_s{seed}", seed, score) for seed, score in ((0, 1 / 3), (1, 0.4), (2, 0.41))]
    runs.append(write_run(tmp_path, "=deep, it", 0, 0.5, "model.depth=6"))
    results = RunFolder(runs[-1]).read_results()
    RunFolder(runs[-1]).write_results(results.model_copy(update={"gmacs": None, "saved_mib": 1 / 7}))
    zero_shot = Point(
        "deit, tome", "timm:deit", "tome", "r = 8", "top1", {"seed 0": 0.684}, {"gmacs": 0.9, "ms": 10 / 3},
        extra={"agreement, %": 97.123456, "images/s": 300}, spreads={"agreement, %": 0.5},
    )  # fmt: skip
    return [*read(runs).points, zero_shot]


def test_all_files_have_the_same_numbers(points, tmp_path):
    write_csv(points, tmp_path / "t.csv")
    pairs = differences(points)
    write_json(points, tmp_path / "t.json", ["left out: x"], pairs)
    write_markdown(points, tmp_path / "t.md", ["left out: x"])
    with (tmp_path / "t.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    of_json = json.loads((tmp_path / "t.json").read_text())
    assert of_json["notes"] == ["left out: x"] and of_json["differences"] == [pair.to_json() for pair in pairs]
    for row, record, own in zip(rows, of_json["rows"], records(points), strict=True):
        assert {key: record[key] for key in own} == own
        for key, value in own.items():
            if isinstance(value, str):
                assert row[key].removeprefix("'") == value
            else:
                assert (float(row[key]) if row[key] else None) == value
    text = (tmp_path / "t.md").read_text()
    assert text == markdown(*table(points)) + "\n\nleft out: x\n"
    head, *cells = read_markdown(text.partition("\n\n")[0])
    by_title = [dict(zip(head, row, strict=True)) for row in cells]
    for row, record in zip(by_title, of_json["rows"], strict=True):
        spread = record["score_std_percent"]
        expected = f"{record['score_percent']:.2f}" + ("" if spread is None else f" ± {spread:.2f}")
        assert row["test top-1, %"] == expected
        assert row["parameters, M"] == ("-" if record["params_m"] is None else f"{record['params_m']:.3f}")


def test_values_have_full_precision_and_units(points):
    vit, deep, zero_shot = records(points)
    assert vit["score_percent"] == pytest.approx(100 * (1 / 3 + 0.4 + 0.41) / 3, abs=1e-12)
    assert (vit["metric"], vit["images"], vit["repetitions"], vit["params_m"]) == ("top1", 100, 3, 2.0)
    assert (deep["name"], deep["gmacs"], deep["saved_mib"]) == ("=deep, it", None, 1 / 7)
    assert (zero_shot["agreement_percent"], zero_shot["agreement_std_percent"]) == (97.123456, 0.5)
    assert (zero_shot["ms_per_image"], zero_shot["images_per_s"], zero_shot["training"]) == (10 / 3, 300, None)


def test_the_table_leaves_out_what_no_row_has(points):
    columns, cells = table(points)
    titles = [column.title for column in columns]
    assert titles[:6] == ["run", "seeds", "test top-1, %", "model", "merging", "budget"]
    assert "balanced, %" not in titles
    rows = [dict(zip(titles, row, strict=True)) for row in cells]
    assert [row["GMACs"] for row in rows] == ["0.5000", "not counted", "0.9000"]
    assert (rows[2]["agreement, %"], rows[2]["images/s"], rows[2]["training"]) == ("97.12 ± 0.50", "300", "-")
    columns, _ = table(points[:1])
    assert not {"merging", "budget", "data", "ms per image"} & {column.title for column in columns}


def test_cells_that_spreadsheets_would_compute_are_guarded(points, tmp_path):
    write_csv(points, tmp_path / "t.csv")
    assert '"\'=deep, it"' in (tmp_path / "t.csv").read_text()


def test_keys_of_titles():
    keys = {"images/s": "images_per_s", "agreement, %": "agreement_percent", "trained, M": "trained_m"}
    assert {title: key_of(title) for title in keys} == keys
