"""`RunFolder`: what it says about a folder, and what it reads once."""

import json

import pytest

from engine.runs import folder as folder_module
from engine.runs.folder import RunFolder
from engine.runs.folds import check_same_settings, finished_runs, of_fold
from models.settings import UserError
from tests.results import results_of


def test_a_folder_that_is_no_run(tmp_path):
    run = RunFolder(tmp_path)
    assert not run.is_run and not run.is_finished and run.read_results() is None
    for ask in (lambda: run.settings, lambda: run.holds_folds, lambda: run.solved_settings_with(["seed=1"])):
        with pytest.raises(UserError, match=r"not a run folder \(it has no settings.yaml\); give the folder that"):
            ask()


def test_settings_are_parsed_and_solved_once(tmp_path, tiny, monkeypatch):
    RunFolder(tmp_path).write_settings(tiny(model={"merge": {"method": "tome", "target_ratio": 1.2}}))
    calls = []
    for name in ("load_settings", "solve"):
        whole = getattr(folder_module, name)
        monkeypatch.setattr(folder_module, name, lambda *a, n=name, f=whole: calls.append(n) or f(*a))
    run = RunFolder(tmp_path)
    for _ in range(3):
        assert run.settings.model.merge.target_ratio == 1.2
        assert run.solved_settings.model.merge.r is not None and not run.holds_folds
    assert calls == ["load_settings", "solve"]
    assert run.settings_with(["merge.method=random"]) is run.settings_with(["merge.method=random"])
    assert run.settings.model.merge.method == "tome" and calls.count("load_settings") == 2


def test_settings_written_later_are_read(tmp_path, tiny):
    run = RunFolder(tmp_path)
    for seed in (1, 2):
        run.write_settings(tiny(seed=seed))
        assert run.settings == tiny(seed=seed) == RunFolder(tmp_path).settings


def test_files_of_the_run_are_its_own(tmp_path, tiny):
    run = RunFolder(tmp_path)
    assert not run.owns(run.results_file)  # anybody may have a results.json
    run.write_settings(tiny())
    assert all(run.owns(file) for file in (run.results_file, run.checkpoint("last"), run.confusion_picture))
    assert not run.owns(tmp_path / "mine.json")


def test_results_are_written_and_read_back(tmp_path):
    run, results = RunFolder(tmp_path), results_of(test_loss=float("nan"), tokens=[9, 5], class_accuracy={"a": None})
    run.write_results(results)
    assert run.is_finished and run.read_results() == results.model_copy(update={"test_loss": None})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "results.json: cannot be read; delete it and test again with --resume"),
        ("[]", "results.json: cannot be read; delete it"),
        ("\xff", "results.json: cannot be read; delete it"),
        ("{}", r"results.json: name: field required; or delete it and test again with --resume"),
        ('{"version": 99}', "results.json: version = 99: this code reads versions 1 to 2; update HybridMerge$"),
    ],
)
def test_damaged_results(tmp_path, text, message):
    run = RunFolder(tmp_path)
    run.results_file.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=message):
        run.read_results()


def test_folds(tmp_path, tiny):
    run, settings = RunFolder(tmp_path), tiny(split={"folds": 2, "val": 0.1})
    run.write_settings(settings)
    assert run.holds_folds and [fold.path.name for fold in run.folds] == ["fold0", "fold1"]
    with pytest.raises(UserError, match="fold0: has no settings.yaml; delete it"):
        check_same_settings(run)
    for number, fold in enumerate(run.folds):
        fold.path.mkdir()
        fold.write_settings(of_fold(settings, number))
        assert not fold.holds_folds and fold.folder_of_folds().path == tmp_path
    run.folds[0].write_results(results_of())
    assert run.unfinished_folds() == [1]
    with pytest.raises(UserError, match="1 of 2 folds are not finished: fold1; continue with tools/train.py --resume"):
        finished_runs(run)
    run.folds[1].write_results(results_of())
    assert finished_runs(run) == run.folds
    moved = RunFolder(run.fold(1).path.rename(tmp_path / "moved"))
    with pytest.raises(UserError, match="fold 1 of split.folds; give the folder its name fold1 again"):
        moved.folder_of_folds()


def test_a_run_without_weights_is_not_finished(tmp_path, tiny):
    run = RunFolder(tmp_path)
    run.write_settings(tiny())
    with pytest.raises(UserError, match="has no best.pt; finish the run with tools"):
        finished_runs(run)
    run.checkpoint("best").touch()
    assert finished_runs(run) == [run]


def test_the_json_of_results_has_the_keys_of_before(tmp_path):
    run = RunFolder(tmp_path)
    run.write_results(results_of(metric="map", test_metrics={"map": 0.5, "f1": 0.25}, val_score=0.75))
    values = json.loads(run.results_file.read_text())
    assert values["version"] == 2 and (values["test_map"], values["test_f1"], values["val_map"]) == (0.5, 0.25, 0.75)
    assert "thresholds" not in values and "class_accuracy" not in values and values["fold"] is None
    assert "test_metrics" not in values and "val_score" not in values
