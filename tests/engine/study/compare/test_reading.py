"""What is read into points: runs, sweeps, studies; and what is left out with a note."""

import json
import shutil
from functools import partial

import pytest

from engine.measure.paired import mcnemar
from engine.runs.folder import RunFolder
from engine.study.compare.reading import PLAN, read
from engine.study.origin import alike_but_for_budget
from models.settings import UserError
from tests.engine.study.run_folders import write_run


@pytest.fixture
def make_run(tmp_path):
    """Writes a finished run folder; see `write_run`."""
    return partial(write_run, tmp_path)


def merging(run, removed):
    """Gives a run folder the number of patches that each block removed."""
    results = RunFolder(run).read_results()
    RunFolder(run).write_results(results.model_copy(update={"removed": removed}))
    return run


def test_budgets_of_one_model_are_a_line(make_run):
    runs = [
        merging(make_run("vit_r0_s0", 0, 0.9, "merge.r=0"), [0, 0, 0, 0]),
        merging(make_run("vit_r2_s0", 0, 0.85, "merge.r=2"), [2, 2, 2, 2]),
        merging(make_run("vit_r2_s1", 1, 0.87, "merge.r=2"), [2, 2, 2, 2]),
        merging(make_run("vit_keep", 0, 0.8, "merge.keep.rate=0.7", "merge.keep.blocks=[2, 3]"), [0, 5, 3, 0]),
        merging(make_run("vit_random", 0, 0.5, "merge.r=2", "merge.method=random"), [2, 2, 2, 2]),
    ]
    points = read(runs).points
    how = [(point.method, point.budget) for point in points]
    assert how == [(None, None), ("tome", "r = 2"), ("tome", "keep 0.7 at 2, 3"), ("random", "r = 2")]
    assert [point.line for point in points] == ["vit", "vit", "vit", None]
    assert points[1].scores == {"seed 0": 0.85, "seed 1": 0.87} and points[1].score == pytest.approx(0.86)
    assert points[0].costs == {"gmacs": 0.5, "memory_mib": 300.0, "params_m": 2.0, "saved_mib": None}
    assert points[1].folders == tuple(runs[1:3])


@pytest.mark.parametrize(
    "override, words",
    [
        ("merge.r={first: 4, last: 0}", "r = 4 to 0"),
        ("merge.r=[1, 2, 0, 4]", "r = 1, 2, 0, 4"),
        ("merge.target_ratio=1.5", "1.5 times fewer MACs"),
        ("merge.target_gmacs=0.002", "0.002 GMACs"),
        ("merge.r={train: [0, 3]}", "r = 1, trained with 0 to 3"),
        ("merge={method: tome, r: 3, first_block: 2}", "r = 3 from block 2"),
        ("merge={method: tome, r: 3, blocks: [3, 1]}", "r = 3 in blocks 1, 3"),
    ],
)
def test_budgets_in_words(make_run, override, words):
    (point,) = read([merging(make_run("run", 0, 0.9, override), [1, 1, 1, 1])]).points
    assert (point.method, point.budget) == ("tome", words)


def test_names_are_unique_and_runs_without_test_images_have_no_score(make_run, tmp_path):
    (tmp_path / "other").mkdir()
    one, other = make_run("vit", 0, 0.9), write_run(tmp_path / "other", "vit", 0, 0.8, "model.depth=6")
    results = RunFolder(other).read_results()
    RunFolder(other).write_results(results.model_copy(update={"test_images": 0, "test_metrics": {"top1": None}}))
    points = read([one, other]).points
    assert [(point.name, point.score, point.spread) for point in points] == [
        ("vit", 0.9, None),
        ("vit (2)", None, None),
    ]


def make_study(tmp_path):
    """A study with a finished, an unfinished, a damaged and a strange folder, and the same run twice."""
    study = tmp_path / "study"
    (study / "runs").mkdir(parents=True)
    (study / PLAN).write_text("{}")
    good = write_run(study / "runs", "a_good", 0, 0.9)
    (write_run(study / "runs", "b_unfinished", 1, 0.9) / "results.json").unlink()
    (write_run(study / "runs", "c_damaged", 2, 0.9) / "results.json").write_text('{"name": "c_dam')
    (write_run(study / "runs", "d_settings", 3, 0.9) / "settings.yaml").write_text("model: {name: [")
    (study / "runs" / "e_strange").mkdir()
    shutil.copytree(good, study / "runs" / "f_again")
    write_run(study / "runs", "g_other", 0, 0.8, "model.depth=6")
    (study / "sweeps").mkdir()
    (study / "sweeps" / "h.json").write_text("[]")
    return study


def test_a_study_names_what_it_leaves_out(tmp_path):
    study = make_study(tmp_path)
    comparison = read([study])
    assert [point.name for point in comparison.points] == ["a_good", "g_other"]
    names = ["h.json", "b_unfinished", "c_damaged", "d_settings", "e_strange", "f_again"]
    assert len(comparison.notes) == len(names)
    for name, note in zip(names, comparison.notes, strict=True):
        assert note.startswith("left out: ") and name in note
    assert comparison.folders == [study / "runs" / "a_good", study / "runs" / "g_other"]


@pytest.mark.parametrize("name", ["b_unfinished", "c_damaged", "d_settings", "e_strange"])
def test_what_is_given_by_itself_must_be_readable(tmp_path, name):
    study = make_study(tmp_path)
    for paths in ([study / "runs" / name], [study, tmp_path / name]):
        if paths[-1].parent == tmp_path:
            shutil.move(study / "runs" / name, paths[-1])
        with pytest.raises(UserError, match=name):
            read(paths)


def write_sweep(run, *values, split="test", **origin):
    """Writes the sweep of merge.r of a run, whose scores do not matter here."""
    settings = RunFolder(run).settings
    origin = {"run": settings.name, "folder": str(run), "key": "merge.r", "model": "vit", "data": "digits", **origin}
    origin |= {"seed": 0, "fold": None, "split": split, "images": 10, "merging": "tome", "params": 9, "saved_mib": 1.0}
    origin |= {"trained": "a", "line": origin.get("line", alike_but_for_budget(settings)), "right": None}
    rows = [
        {"value": r, "metric": "top1", "top1": 0.5, "gmacs": 1 / r, "images_per_second": 9.0}
        | {"origin": {**origin, "evaluated": f"{r}", "budget": f"r = {r}"}}
        for r in values
    ]
    file = run.with_suffix(".json")
    file.write_text(json.dumps(rows))
    return file


@pytest.mark.parametrize("further, joined", [({}, True), ({"split": "val"}, False), ({"line": "other"}, False)])
def test_a_run_is_on_the_line_of_its_sweep(make_run, further, joined):
    run = merging(make_run("vit", 0, 0.9, "merge.r=2"), [2, 2, 2, 2])
    other = make_run("other", 1, 0.9, "merge.r=2", "model.depth=6")
    of_run, of_other, *swept = (point.line for point in read([run, other, write_sweep(run, 4, 6, **further)]).points)
    assert swept[0] is not None and len(set(swept)) == 1
    assert (of_run == swept[0]) == joined and of_other is None


def test_an_empty_study_is_refused(tmp_path):
    (tmp_path / PLAN).write_text("{}")
    with pytest.raises(UserError, match="no finished run and no sweep; run the study first"):
        read([tmp_path])
    (tmp_path / "runs").mkdir()
    (write_run(tmp_path / "runs", "unfinished", 1, 0.9) / "results.json").unlink()
    with pytest.raises(UserError, match=r"nothing to compare; left out: .*unfinished"):
        read([tmp_path])


def write_predictions(run, predicted, labels="0123456789"):
    """Predictions of ten images, and results with the names of the classes."""
    rows = [f"{i},{label},{guess},0.5" for i, (label, guess) in enumerate(zip(labels, predicted, strict=True))]
    RunFolder(run).predictions_file.write_text("image,label,predicted,probability\n" + "\n".join(rows) + "\n")
    results = RunFolder(run).read_results()
    classes = dict.fromkeys("0123456789", 1.0)
    changed = {"class_accuracy": classes, "class_images": dict.fromkeys(classes, 1), "test_images": 10}
    RunFolder(run).write_results(results.model_copy(update=changed))


def test_predictions_are_outcomes(make_run):
    one, other = make_run("one", 0, 0.9), make_run("other", 0, 0.8, "model.depth=6")
    write_predictions(one, "0123456780")
    write_predictions(other, "0123459990")
    a, b = (point.outcomes["seed 0"]() for point in read([one, other]).points)
    assert a.images == b.images and a.images[3] == "3 (3)"
    assert a.correct.tolist() == [True] * 9 + [False]
    assert mcnemar(a.correct, b.correct).only_a == 3
    write_predictions(other, "0123459990", labels="0123456798")  # other images at the same positions
    a, b = (point.outcomes["seed 0"]() for point in read([one, other]).points)
    assert a.images != b.images


@pytest.mark.parametrize(
    "text, says",
    [
        ("{", "damaged, not JSON"),
        ("[]", "not the rows of a sweep"),
        ('[{"value": 4, "top1": 0.5}]', "as an older version wrote it"),
        ('[{"value": 4, "gmacs": 1, "images_per_second": 3, "origin": {}}]', "'metric' is missing"),
    ],
)
def test_files_that_are_not_sweeps(tmp_path, text, says):
    file = tmp_path / "sweep.json"
    with pytest.raises(UserError, match="cannot be read, no such file"):
        read([file])
    file.write_text(text)
    with pytest.raises(UserError, match=says) as caught:
        read([file])
    assert str(caught.value).startswith(f"{file}: ") and "--sweep" in str(caught.value)
    with pytest.raises(UserError, match="not the rows of a sweep"):
        file.write_text(json.dumps({"rows": []}))
        read([file])
