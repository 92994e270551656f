"""The comparison of runs: grouping, averaging, and what it refuses."""

import json
import shutil

import pytest

from engine.runs.folder import RunFolder
from engine.settings.layers import load_settings, to_yaml
from engine.study.table import compare
from models.settings import UserError
from tests.results import results_of
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
    assert wide.top1 == pytest.approx(92) and wide.spread == pytest.approx(2 * 2**0.5)  # sample standard deviation
    assert wide.images_per_second == 100.5 and deep.spread is None


def test_table_and_picture(make_run, tmp_path, capsys):
    picture = tmp_path / "curves.png"
    tool.main([str(make_run("one", 0, 0.9)), "--plot", str(picture)])
    head, _, row = capsys.readouterr().out.splitlines()
    assert head.startswith("| run") and [cell.strip() for cell in row.split("|")[1:4]] == ["one", "1", "90.00"]
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
