"""Run folders written by version 0.1 still evaluate, predict, resume and compare."""

from __future__ import annotations

import csv
import io
import json
import shutil
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from engine.measure.ensembles import evaluate_run, load_folds
from engine.runs.folder import RunFolder
from engine.runs.restore import load_run
from tests.golden.runs_0_1.draw import COUNT, draw
from tests.paths import ROOT
from tests.quiet import end_log
from tools import compare as compare_tool
from tools import predict as predict_tool
from tools import train as train_tool

OLD = ROOT / "tests" / "golden" / "runs_0_1"
FINISHED = ("hybrid", "folds/fold0", "folds/fold1", "lora", "labels")


@pytest.fixture
def runs(tmp_path) -> Path:
    """Copies of the run folders."""
    return Path(shutil.copytree(OLD, tmp_path / "runs"))


def moved(name: str, folder: Path) -> list[str]:
    """Overrides that say where the data and the starting weights of a run are now."""
    if name == "labels":
        return [f"data.path={draw(folder / 'images')}"]
    return [f"model.weights={folder / 'runs' / 'hybrid'}"] if name == "lora" else []


def run_tool(tool, *args: object) -> str:
    with redirect_stdout(io.StringIO()) as printed:
        tool.main([str(arg) for arg in args])
    end_log()
    return printed.getvalue()


@pytest.mark.parametrize("name", FINISHED)
def test_it_evaluates_as_its_results_say(runs, name, tmp_path, caplog):
    run = load_run(runs / name, moved(name, tmp_path))
    evaluation = evaluate_run(run, "test")
    assert run.results is not None and run.as_trained and evaluation.n == run.results.test_images
    assert evaluation.score == pytest.approx(run.results.test_score, abs=1.01 / evaluation.n)  # another processor
    assert evaluation.loss == pytest.approx(run.results.test_loss, rel=1e-3)
    assert "WARNING" not in caplog.text  # the images and the split are those of training


def test_all_folds_evaluate_on_their_own_images(runs):
    report = json.loads((runs / "folds" / "folds.json").read_text())
    scores = [evaluate_run(run, "test").score for _, run in load_folds(runs / "folds")]
    assert scores == pytest.approx([fold["test_top1"] for fold in report["fold"]], abs=1.01 / 898)


@pytest.mark.parametrize("name", ["hybrid", "folds", "lora", "labels"])
def test_it_predicts(runs, name, tmp_path):
    draw(tmp_path / "images")
    out = tmp_path / "out.csv"
    run_tool(predict_tool, "--run", runs / name, "--images", tmp_path / "images", "--out", out, *moved(name, tmp_path))
    rows = list(csv.reader(out.open()))
    assert rows[0] == ["ID", "Label"] and len(rows) == COUNT + 1


def test_it_resumes_to_the_end_of_the_run_that_was_not_stopped(runs):
    whole, stopped = RunFolder(runs / "hybrid"), RunFolder(runs / "stopped")
    assert not stopped.is_finished
    run_tool(train_tool, "--resume", stopped.path)
    resumed, uninterrupted = stopped.read_results(), whole.read_results()
    assert resumed.steps == uninterrupted.steps and resumed.data_sha256 == uninterrupted.data_sha256
    assert resumed.to_json().keys() > json.loads((OLD / "hybrid" / "results.json").read_text()).keys()
    steps = [[json.loads(line)["step"] for line in run.metrics_file.open()] for run in (stopped, whole)]
    assert steps[0] == steps[1]
    # The same to the last bit on the processor that wrote them; training on another one drifts.
    assert resumed.test_score == pytest.approx(uninterrupted.test_score, abs=0.03)
    assert resumed.test_loss == pytest.approx(uninterrupted.test_loss, rel=0.05)


def test_finished_runs_are_not_run_again(runs):
    before = (runs / "hybrid" / "results.json").read_bytes()
    assert "test accuracy" in run_tool(train_tool, "--resume", runs / "hybrid")
    assert "all images" in run_tool(train_tool, "--resume", runs / "folds")
    assert (runs / "hybrid" / "results.json").read_bytes() == before


def test_they_compare(runs):
    table = run_tool(compare_tool, *(runs / name for name in ("hybrid", "folds", "lora", "labels")))
    rows = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("|")]
    assert rows[2:6] == ["hybrid", "folds", "lora", "labels"]
    balanced, worst = RunFolder(runs / "hybrid").read_results().test_metrics["balanced_accuracy"], "worst class, %"
    accuracies = json.loads((OLD / "hybrid" / "results.json").read_text())["class_accuracy"]
    assert balanced == pytest.approx(sum(accuracies.values()) / 10) and worst in table
    name = min(accuracies, key=accuracies.__getitem__)
    line = next(line for line in table.splitlines() if line.startswith("| hybrid "))
    cells = [cell.strip() for cell in line.split("|")]
    assert {f"{100 * balanced:.2f}", name, f"{100 * accuracies[name]:.2f}"} <= set(cells)


def test_results_keep_every_number(runs):
    for name in FINISHED:
        written = json.loads((runs / name / "results.json").read_text())
        results = RunFolder(runs / name).read_results()
        assert written.items() <= results.to_json().items()
