"""tools/compare.py: the table and the picture of curves."""

import json
from functools import partial

import pytest

from models.settings import UserError
from tests.engine.study.run_folders import write_run
from tests.tools.tables import read_markdown
from tools import compare as tool


@pytest.fixture
def make_run(tmp_path):
    """Writes a finished run folder; see `write_run`."""
    return partial(write_run, tmp_path)


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


def test_without_validation_nothing_is_drawn(make_run, tmp_path):
    run = make_run("one", 0, 0.9)
    (run / "metrics.jsonl").write_text('{"step": 1, "train/loss": 1.0}\n')
    with pytest.raises(UserError, match="no epoch with validation"):
        tool.main([str(run), "--plot", str(tmp_path / "x.png")])
    assert not (tmp_path / "x.png").exists()
