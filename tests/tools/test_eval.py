"""Evaluating a run with other merging than it was trained with: one way, or a sweep into a table."""

from __future__ import annotations

import json
import re
import sys

import pytest
import torch

from engine.cli import cli
from engine.data.loading.loader import eval_batches
from engine.files import write_json_atomic
from engine.machine import pick_autocast
from engine.measure.ensembles import evaluate_run
from engine.runs.restore import load_run
from engine.settings.schema import RunSettings
from engine.study.compare.reading import read
from engine.train.experiment import run_experiment
from models.settings import check
from tests.engine.conftest import TINY
from tests.engine.data.conftest import save_image
from tests.tools.runs import TIMM, folder_run, many_labels_run
from tests.tools.tables import read_markdown
from tools import eval as tool

pytestmark = pytest.mark.precision


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that was trained for any budget from 0 to 8."""
    folder = tmp_path_factory.mktemp("any")
    model = {**TINY["model"], "merge": {"method": "tome", "r": {"train": [0, 8]}}}
    train = {"epochs": 1, "batch_size": 128}
    run_experiment(check(RunSettings, {**TINY, "name": "any", "model": model, "train": train}), folder)
    return folder


@pytest.fixture
def tell(run, capsys, monkeypatch):
    """Exit code, stdout and stderr of the tool on that run."""

    def call(*args: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["eval.py", "--run", str(run), *args])
        code = cli(tool.main)
        return code, *capsys.readouterr()

    return call


def test_as_trained_it_is_compared(run, tell, tmp_path):
    code, out, _ = tell("--json", str(tmp_path / "a.json"))
    assert code == 0 and out.endswith(": the same\n") and "merging is not" not in out
    results = json.loads((run / "results.json").read_text())
    assert results["removed"] == [4, 4]  # the middle
    written = json.loads((tmp_path / "a.json").read_text())
    assert written["overrides"] == [] and (written["split"], written["weights"], written["tta"]) == (
        "test",
        "best",
        None,
    )
    of_classes = ("class_accuracy", "class_images", "worst_class", "worst_class_score", "worst_class_images")
    assert written["evaluated"] == [
        {
            "runs": [str(run)],
            "images": results["test_images"],
            "loss": results["test_loss"],
            "top1": results["test_top1"],
            "top5": results["test_top5"],
            "balanced_accuracy": results["test_balanced_accuracy"],
            **{key: results[key] for key in of_classes},
        }
    ]


def test_a_difference_is_said_when_all_is_written(run, tell, tmp_path):
    results = json.loads((run / "results.json").read_text())
    write_json_atomic(run / "results.json", {**results, "test_top1": 0.5, "test_interval": [0.4, 0.6]})
    code, out, err = tell("--json", str(tmp_path / "a.json"), "--plot", str(tmp_path / "a.png"))
    write_json_atomic(run / "results.json", results)
    assert code == 2 and "the same" not in out and "results.json says 50.00 %: not the same; other data" in err
    assert json.loads((tmp_path / "a.json").read_text())["evaluated"][0]["top1"] == results["test_top1"]
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_what_may_not_be_written_is_found_first(run, tell, tmp_path, monkeypatch):
    monkeypatch.setattr(tool, "evaluate", lambda args: pytest.fail("too late"))
    for args, words in (
        (["--json", "."], "--json .: is a folder; give a file in it, such as evaluated.json"),
        (["--plot", str(tmp_path / "no" / "a.png")], "there is no folder"),
        (["--json", str(run / "results.json")], "is a file of the run itself; give another name"),
        (["--json", str(tmp_path / "a"), "--plot", str(tmp_path / "a")], "a: is the file of --json"),
    ):
        code, out, err = tell(*args)
        assert (code, out) == (2, "") and words in err and err.count("\n") == 1


def test_data_that_are_not_those_of_training_are_said(tmp_path, caplog):
    folder = folder_run(tmp_path, TIMM)
    for override in ("data.cache=none", "data.fit=squash", "data.workers=0"):  # the same images, read otherwise
        load_run(folder, [override])
    assert "WARNING" not in caplog.text
    (tmp_path / "images").rename(tmp_path / "moved")
    moved = f"data.path={tmp_path / 'moved'}"
    load_run(folder, [moved])
    assert "WARNING" not in caplog.text
    load_run(folder, [moved, "split.test_seed=3"])
    assert "the split differs from training: the model may have seen images that test it now" in caplog.text
    caplog.clear()
    save_image(tmp_path / "moved" / "a" / "0.png", 99, (40, 40))
    load_run(folder, [moved])
    assert "was trained on other images, labels or pixels than those read now" in caplog.text


@pytest.mark.parametrize(
    ("change", "description"),
    [
        ("merge.r=2", "tome, tokens removed by each block: [2, 2]; "),
        ("merge.method=pool", "pool, tokens removed by each block: [0, 0]; "),
        ("merge.keep={rate: 0.5, blocks: [2]}", "tome, tokens removed by each block: [0, 8]; "),
    ],
)
def test_with_other_merging_it_says_what_was_evaluated(run, tell, change, description):
    code, out, _ = tell(change)
    assert code == 0 and "results.json" not in out
    assert f"merging differs from training: {description}" in out and out.endswith(" GMACs\n")
    other = load_run(run, [change])
    assert f"top1 {100 * evaluate_run(other, 'test').metrics['top1']:.2f} %" in out


def test_a_number_that_depends_on_the_image_is_counted_over_the_images(run, tell, tmp_path):
    code, out, _ = tell("merge.threshold=0.9")
    assert code == 0 and "merging differs from training: tome, tokens left after each block, mean of " in out
    line = re.search(r"(\S+ GMACs), mean of (\d+) images \(standard deviation \S+, \S+ to \S+\)\n", out)
    images = len(load_run(run).data.test)
    assert line and int(line[2]) == images
    file = tmp_path / "rows.json"
    code, out, _ = tell("--sweep", "merge.threshold=[0.9, 1]", "--json", str(file))
    assert code == 0 and f"0.9: {line[0].strip()}" in out and " ± " in out
    rows = json.loads(file.read_text())
    assert rows[0]["gmacs"] < rows[1]["gmacs"] and rows[0]["removed"] == []
    assert [row["gmacs_of_images"]["images"] for row in rows] == [images] * 2
    assert rows[0]["tokens"] == rows[0]["gmacs_of_images"]["tokens"][-1]


def test_a_sweep_is_a_table_a_file_and_a_picture(run, tell, tmp_path):
    files = tmp_path / "rows.json", tmp_path / "curve.png"
    code, out, err = tell(
        "--sweep", "merge.r=[0, 4, {first: 8, last: 0}, [1, 2]]", "--json", str(files[0]), "--plot", str(files[1])
    )
    assert code == 0 and err == ""
    head, *cells = read_markdown(out)
    assert head == ["merge.r", "tokens left", "GMACs", "top-1, %", "loss", "images/s"]
    assert [row[0] for row in cells] == ["0", "4", '{"first": 8, "last": 0}', "[1, 2]"]
    assert [int(row[1]) for row in cells] == [17, 9, 9, 14]
    rows = json.loads(files[0].read_text())
    for row, shown in zip(rows, cells):
        alone = load_run(run, [f"merge.r={json.dumps(row['value'])}"])
        evaluation = evaluate_run(alone, "test")
        assert (row["top1"], row["loss"]) == (evaluation.metrics["top1"], evaluation.loss)
        assert row["removed"] == alone.model.schedule and row["images_per_second"] > 0
        assert float(shown[2]) == pytest.approx(row["gmacs"], abs=1e-4)
        assert float(shown[3]) == pytest.approx(100 * row["top1"], abs=0.01)
    assert rows[1]["gmacs"] < rows[3]["gmacs"] < rows[0]["gmacs"]
    assert rows[1]["gmacs"] == json.loads((run / "results.json").read_text())["gmacs"]
    assert files[1].read_bytes().startswith(b"\x89PNG")
    check_comparison(run, files[0], rows)


def check_comparison(run, file, rows):
    """A sweep beside the run that it evaluated: its budgets are a line, and its images are the run's."""
    trained, *swept = read([run, file]).points
    budgets = [None, "r = 4", "r = 8 to 0", "r = 1, 2"]
    assert [(point.method, point.budget) for point in swept] == [(budget and "tome", budget) for budget in budgets]
    assert len({point.line for point in swept}) == 1 and None not in {point.line for point in swept}
    for point, row in zip(swept, rows, strict=True):
        (outcome,) = (read_it() for read_it in point.outcomes.values())
        assert outcome.correct.mean() == pytest.approx(point.score) == pytest.approx(row["top1"])
        assert (point.costs["gmacs"], point.costs["ms"]) == (row["gmacs"], 1000 / row["images_per_second"])
    (own,) = (read_it() for read_it in trained.outcomes.values())
    again = swept[1].outcomes["seed 0"]()  # the middle of the range that it was trained with
    assert own.images == again.images and (own.correct == again.correct).all()


def test_a_sweep_of_many_labels_goes_by_mean_average_precision(tmp_path, monkeypatch, capsys):
    folder = many_labels_run(tmp_path, {**TINY["model"], "in_chans": 3})
    drawn = []
    monkeypatch.setattr("engine.figures.drawing.save_figure", lambda figure, path: drawn.append(figure))
    monkeypatch.setattr(sys, "argv", ["eval.py", "--run", str(folder), "--sweep", "merge.r=[0, 3]", "--plot", "a.png"])
    assert cli(tool.main) == 0
    head, *rows = read_markdown(capsys.readouterr().out)
    assert head == ["merge.r", "tokens left", "GMACs", "mAP, %", "loss", "images/s"] and len(rows) == 2
    score = f"{100 * json.loads((folder / 'results.json').read_text())['test_map']:.2f}"
    assert rows[1][3] == score
    assert drawn[0].axes[0].get_ylabel() == "mAP, %"
    assert f"{drawn[0].axes[0].lines[0].get_ydata()[0]:.2f}" == score  # fewer MACs come first


def test_thresholds_of_a_run_of_many_labels(tmp_path, monkeypatch, capsys):
    """Each label is predicted from the run's own threshold on, whichever weights or images are evaluated."""
    folder = many_labels_run(tmp_path, {**TINY["model"], "in_chans": 3})
    stored = json.loads((folder / "results.json").read_text())
    assert set(stored["thresholds"]) == {"odd", "second"}

    def f1(thresholds: dict[str, float] | None, *args: str) -> dict[str, str]:
        changed = {key: value for key, value in stored.items() if key != "thresholds"}
        write_json_atomic(folder / "results.json", changed | ({"thresholds": thresholds} if thresholds else {}))
        monkeypatch.setattr(sys, "argv", ["eval.py", "--run", str(folder), *args])
        assert cli(tool.main) == 0
        return dict(re.findall(r"  (f1[\w' ]*?) ([\d.]+) %", capsys.readouterr().out))

    run = load_run(folder)
    for split in ("val", "test"):
        arrays = getattr(run.data, split)
        size = run.settings.train.batch_size
        batches = eval_batches(arrays, size, run.data.mean, run.data.std, run.data.resize)
        with torch.inference_mode(), pick_autocast(run.settings.train.precision, torch.device("cpu")):
            scores = torch.cat([run.model.eval()(images) for images, _ in batches]).float().sigmoid()
        middle = {name: float(column.median()) for name, column in zip(run.data.classes, scores.T)}
        for thresholds in (stored["thresholds"], middle, {"odd": 0.0, "second": 1.0}):
            predicted = scores >= torch.tensor([thresholds[name] for name in run.data.classes])
            hits = (predicted * arrays.labels).sum(0)
            each = 2 * hits / (predicted.sum(0) + arrays.labels.sum(0))
            printed = f1(thresholds, "--split", split)
            assert float(printed["f1 at the run's thresholds"]) == pytest.approx(100 * float(each.mean()), abs=0.01)
        half = f1(dict.fromkeys(run.data.classes, 0.5), "--split", split)
        assert half["f1"] == half["f1 at the run's thresholds"]
    assert set(f1(None)) == {"f1"}, "a run without validation images has none"
    monkeypatch.setattr(sys, "argv", ["eval.py", "--run", str(folder), "--plot", str(tmp_path / "a.png")])
    assert cli(tool.main) == 2 and "many labels have no confusion matrix" in capsys.readouterr().err


def test_a_run_that_merged_without_its_merging(tmp_path, monkeypatch, capsys):
    folder = folder_run(tmp_path, {**TIMM, "merge": {"r": 1}})
    monkeypatch.setattr(sys, "argv", ["eval.py", "--run", str(folder), "merge=null"])
    assert cli(tool.main) == 0
    assert "differs from training: none, tokens removed by each block: []; " in capsys.readouterr().out


@pytest.mark.parametrize("key", ["method=[none, random]", "keep.rate=[0.5, 0.9]"])
def test_any_key_of_merging_can_be_swept(run, tell, key):
    code, out, err = tell("--sweep", f"model.merge.{key}", "merge.keep.blocks=[1]" if "keep" in key else "merge.r=2")
    assert code == 0 and err == "" and len(out.splitlines()) == 4
    assert out.startswith(f"| merge.{key.split('=')[0]} ")


def test_the_data_are_loaded_once_and_a_wrong_value_is_found_first(run, tell, monkeypatch):
    from engine.runs import compatibility as finished
    from engine.study import sweep

    loads, evaluated = [], []
    load = finished.build_data
    monkeypatch.setattr(finished, "build_data", lambda *args: loads.append(1) or load(*args))
    assert tell("--sweep", "merge.r=[0, 1, 2]")[0] == 0 and len(loads) == 1
    monkeypatch.setattr(sweep, "evaluate_run", lambda *args, **kwargs: evaluated.append(1))
    code, out, err = tell("--sweep", "merge.r=[0, 1, -2]")
    assert (code, out, evaluated) == (2, "", []) and err == "error: model.merge.r = -2: must not be negative\n"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--sweep", "merge.r=4"], "no list of values"),
        (["--sweep", "merge.r=[]"], "no list of values"),
        (["--sweep", "merge.r"], "not an override"),
        (["--sweep", "train.lr=[1, 2]"], "--sweep train.lr=[1, 2]: only merging"),
        (["--sweep", "merge=[1]"], "only merging"),
        (["--sweep", "merge.rr=[1]"], "model.merge.rr: unknown key"),
        (["--sweep", "merge.target_gmacs=[9]"], "out of reach; with tome"),
        (["--split", "val", "--sweep", "merge.r=[1]", "split.val=0"], "--split val: the run has no such images"),
        (["merge.method=dtem"], "model.merge.metric = 'learned' (dtem): "),
        (["merge.method=random", "merge.metric=learned"], "has no learned metric among its weights"),
    ],
)
def test_mistakes_are_one_line(tell, args, words):
    code, out, err = tell(*args)
    assert (code, out) == (2, "") and err.startswith("error: ") and err.count("\n") == 1
    assert words in err


def test_a_run_without_test_images_has_no_record_to_compare_with(tmp_path, capsys):
    """It is evaluated on a split of its own, which it was not trained with."""
    folder = folder_run(tmp_path, TIMM)
    results = json.loads((folder / "results.json").read_text())
    unmeasured = {**results, "test_images": 0, "test_loss": None, "test_top1": None, "test_top5": None}
    write_json_atomic(folder / "results.json", unmeasured)
    tool.main(["--run", str(folder)])
    assert "results.json says" not in capsys.readouterr().out
