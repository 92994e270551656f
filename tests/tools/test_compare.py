"""tools/compare.py: the table and the picture of curves."""

import json
from functools import partial

import pytest

from engine.runs.folder import RunFolder
from models.settings import UserError
from tests.engine.study.page.html import read
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


def test_letters_that_the_font_lacks_are_no_warning(make_run, tmp_path, recwarn):
    runs = [str(make_run(name, 0, 0.9, f"model.depth={depth}")) for name, depth in (("图", 3), ("b", 4))]
    tool.main([*runs, "--pareto", str(tmp_path / "pareto.png"), "--plot", str(tmp_path / "curves.png")])
    assert not [str(warning.message) for warning in recwarn if "Glyph" in str(warning.message)]


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


@pytest.mark.parametrize(("option", "name"), [("--json", "runs.json"), ("--csv", "study.yaml")])
def test_the_files_that_a_study_goes_on_from_are_not_replaced(tmp_path, option, name):
    (tmp_path / "runs").mkdir()
    (tmp_path / "study.yaml").write_text("{}")
    write_run(tmp_path / "runs", "vit_s0", 0, 0.9)
    with pytest.raises(UserError, match=f"^{option} {tmp_path}/{name}: is a file of the study"):
        tool.main([str(tmp_path), option, str(tmp_path / name)])
    assert (tmp_path / "study.yaml").read_text() == "{}" and not (tmp_path / "runs.json").exists()


def test_every_output_of_a_study(tmp_path, capsys):
    """What is left out is named on the terminal and in the files, and all files are of the same rows."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "study.yaml").write_text("{}")
    for seed, score in ((0, 0.9), (1, 0.92)):
        write_run(tmp_path / "runs", f"vit_s{seed}", seed, score)
        write_run(tmp_path / "runs", f"deep_s{seed}", seed, score - 0.1 - 0.01 * seed, "model.depth=6")
    (write_run(tmp_path / "runs", "lost", 2, 0.5) / "results.json").unlink()
    files = {option: tmp_path / f"out.{option}" for option in ("csv", "markdown", "json")}
    figures = {"pareto": tmp_path / "pareto.svg", "plot": tmp_path / "curves.png"}
    options = [text for option, file in {**files, **figures}.items() for text in (f"--{option}", str(file))]
    tool.main([str(tmp_path), *options, "--over", "epoch", "--cost", "params_m"])
    out = capsys.readouterr().out
    rows, pairs = (read_markdown(part.partition("\nIntervals")[0]) for part in out.split("\n\n"))
    assert [row[:3] for row in rows[1:]] == [["deep", "2", "80.50 ± 0.71"], ["vit", "2", "91.00 ± 1.41"]]
    assert pairs[1][:3] == ["deep", "vit", "-10.50"]
    assert "left out: " in out and "lost: not a finished run" in out
    assert "lost: not a finished run" in files["markdown"].read_text()
    written = json.loads(files["json"].read_text())
    assert [row["score_percent"] for row in written["rows"]] == pytest.approx([80.5, 91])
    assert written["differences"][0]["difference_percent"] == pytest.approx(-10.5)
    assert len(written["notes"]) == 1 and files["csv"].read_text().count("\n") == 3
    assert "<svg" in figures["pareto"].read_text() and figures["plot"].read_bytes().startswith(b"\x89PNG")


def test_many_rows_are_compared_where_it_is_asked_for(make_run, capsys):
    runs = [str(make_run(f"r{depth}", 0, depth / 10, f"model.depth={depth}")) for depth in range(1, 6)]
    tool.main(runs)
    assert "more than noise" not in capsys.readouterr().out
    tool.main([*runs, "--significance"])
    assert capsys.readouterr().out.count("\n| r") == 1 + 5 + 10


def test_a_page_of_runs_of_which_one_has_no_test_images(make_run, tmp_path, capsys):
    run, untested = make_run("one", 0, 0.9), make_run("untested", 0, 0.9, "model.depth=6")
    results = RunFolder(untested).read_results()
    RunFolder(untested).write_results(results.model_copy(update={"test_images": 0, "test_metrics": {"top1": None}}))
    tool.main([str(run), str(untested), "--html", str(tmp_path / "page.html")])
    page = (tmp_path / "page.html").read_text()
    assert "90.00" in page and "untested" in page
    assert "tools/compare.py" in page and "--html" in page
    row = read_markdown(capsys.readouterr().out)[2]
    assert row[:3] == ["untested", "1", "-"]


def test_page(make_run, tmp_path, capsys):
    """Its table has the numbers of the JSON, and it names the command and the plan of a study."""
    study = tmp_path / "a study"
    (study / "runs").mkdir(parents=True)
    (study / "study.yaml").write_text("plan: <b>of two</b>\n")
    for i in range(2):
        write_run(study / "runs", f"run{i}", 0, 0.5 + 0.1 * i, f"model.depth={i + 1}")
    page, numbers = tmp_path / "page.html", tmp_path / "table.json"
    tool.main([str(study), "--html", str(page), "--json", str(numbers)])
    document, written = read(page.read_text()), json.loads(numbers.read_text())
    records = document.json("records")
    assert [{key: row[key] for key in records[0]} for row in written["rows"]] == records
    assert len(written["differences"]) == 1 and len(document.all("section", id="differences")) == 1
    commands = document.all("section", id="commands")[0].text
    assert f"tools/compare.py '{study}' --html" in commands and "plan: <b>of two</b>" in commands


def test_differences_on_the_page_are_not_printed_for_many_rows(make_run, tmp_path, capsys):
    runs = [str(make_run(f"run{i}", 0, 0.5 + 0.1 * i, f"model.depth={i + 1}")) for i in range(5)]
    tool.main([*runs, "--html", str(tmp_path / "page.html")])
    assert "more than noise" not in capsys.readouterr().out
    table = read((tmp_path / "page.html").read_text()).all("section", id="differences")[0].all("table")[0]
    assert len(table.all("tr")) == 1 + 10
