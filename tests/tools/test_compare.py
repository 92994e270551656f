"""The comparison of runs: grouping, averaging, and what it refuses."""

import json
import shutil

import pytest

from engine.runs.folder import RunFolder
from engine.runs.results import Results
from engine.settings.layers import load_settings, to_yaml
from engine.study.curves import curves
from engine.study.table import COLUMNS, compare, table
from models.settings import UserError
from tests.results import results_of
from tests.tools.tables import read_markdown
from tools import compare as tool


@pytest.fixture
def make_run(tmp_path):
    """Writes a run folder as training leaves it."""

    def make(name: str, seed: int, top1: float, *overrides: str):
        folder = tmp_path / name
        folder.mkdir()
        settings = load_settings("digits/vit", [f"name={name}", f"seed={seed}", *overrides])
        (folder / "settings.yaml").write_text(to_yaml(settings))
        results = results_of(name=name, seed=seed, test_metrics={"top1": top1}, images_per_second=100 + seed)
        RunFolder(folder).write_results(results)
        lines = [{"step": s, "train/loss": 2.0 / s, "train/accuracy": 0.1 * s} for s in (1, 2, 3, 4)]
        lines += [{"step": s, "val/loss": 2.5 / s, "val/top1": 0.1 * s} for s in (2, 4)]
        (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
        return folder

    return make


def test_seeds_are_one_row_and_other_settings_another(make_run):
    a, b = make_run("wide_s0", 0, 0.90), make_run("wide_s1", 1, 0.94)
    c = make_run("deep", 0, 0.5, "model.depth=6")
    wide, deep = compare([a, c, b])
    assert (wide.name, wide.seeds, deep.name, deep.seeds) == ("wide", [0, 1], "deep", [0])
    assert wide.value("test_score") == pytest.approx(0.92)
    assert wide.spread("test_score") == pytest.approx(0.02 * 2**0.5)  # sample standard deviation
    assert wide.value("images_per_second") == 100.5 and deep.spread("test_score") is None


def test_table_and_picture(make_run, tmp_path, capsys):
    picture = tmp_path / "curves.png"
    tool.main([str(make_run("one", 0, 0.9)), "--plot", str(picture)])
    head, row = read_markdown(capsys.readouterr().out)
    assert head[:3] == ["run", "seeds", "test top-1, %"] and row[:3] == ["one", "1", "90.00"]
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_many_labels_are_drawn_by_mean_average_precision(make_run, tmp_path, monkeypatch, capsys):
    run, other = make_run("many", 0, 0.9), make_run("one", 0, 0.9, "model.depth=6")
    for file in (run / "metrics.jsonl", run / "results.json"):
        file.write_text(file.read_text().replace("top1", "map"))
    results = json.loads((run / "results.json").read_text())
    (run / "results.json").write_text(json.dumps({**results, "metric": "map"}))
    drawn = []
    monkeypatch.setattr("engine.figures.drawing.save_figure", lambda figure, path: drawn.append(figure))
    tool.main([str(run), "--plot", "x.png"])
    assert "test mAP, %" in capsys.readouterr().out
    training, validation = drawn[0].axes[1].lines
    assert list(validation.get_ydata()) == pytest.approx([20, 40]) and len(training.get_ydata()) == 2
    assert drawn[0].axes[1].get_ylabel() == "mAP, %" and "share of labels that are right" in drawn[0].get_suptitle()
    tool.main([str(other), str(run), "--plot", "x.png"])
    assert drawn[1].axes[1].get_ylabel() == "top-1 or mAP, %" and len(drawn[1].axes[1].lines) == 4
    tool.main([str(other), "--plot", "x.png"])
    assert drawn[2].axes[1].get_ylabel() == "top-1, %" and "labels" not in drawn[2].get_suptitle()


def test_columns_are_fields_of_results():
    fields = {*Results.model_fields, "test_score"}
    assert set(COLUMNS) <= fields


def test_cells(make_run):
    run, other = make_run("a_s0", 0, 0.90), make_run("a_s1", 1, 0.94)
    for folder in (run, other):
        results = RunFolder(folder).read_results()
        tiny = {"gmacs": 2.5e-5, "trained_share": 0.125, "method": "lora"}
        RunFolder(folder).write_results(results.model_copy(update=tiny))
    columns, (cells,) = table(compare([run, other]))
    row = dict(zip([column.title for column in columns], cells, strict=True))
    assert row["run"] == "a" and row["seeds"] == "2" and row["test top-1, %"] == "92.00 ± 2.83"
    assert (row["GMACs"], row["trained, %"], row["method"]) == ("0.0000250", "12.50", "lora")
    assert (row["params, M"], row["saved, MiB"]) == ("2.000", "-")


def test_captions_say_augmented_of_runs_that_augment(make_run):
    plain = make_run("plain", 0, 0.9, "augment={crop: 0, scale: 0.0, flip: false, erase: 0.0}")
    augmented = make_run("augmented", 0, 0.9, "augment.flip=true")
    assert "augmented" not in curves([plain]).get_suptitle()
    assert "augmented" in curves([plain, augmented]).get_suptitle()


def test_what_is_refused(make_run, tmp_path):
    run = make_run("one", 0, 0.9)
    with pytest.raises(UserError, match="not a run folder"):
        compare([tmp_path])
    unfinished = make_run("unfinished", 1, 0.9)
    (unfinished / "results.json").unlink()
    with pytest.raises(UserError, match="not a finished run"):
        compare([run, unfinished])
    twin = tmp_path / "twin"
    shutil.copytree(run, twin)
    with pytest.raises(UserError, match="seed 0 of this kind is given twice"):
        compare([run, twin])
    (run / "metrics.jsonl").write_text('{"step": 1, "train/loss": 1.0}\n')
    with pytest.raises(UserError, match="no epoch with validation"):
        tool.main([str(run), "--plot", str(tmp_path / "x.png")])
    assert not (tmp_path / "x.png").exists()
