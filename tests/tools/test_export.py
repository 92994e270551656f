"""tools/export.py on a finished run."""

import json

import pytest

from engine.experiment import run_experiment
from engine.export import load
from engine.run import open_run
from models.settings import UserError
from tools import export


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A digits run of one epoch, made once."""
    from engine.config import load_settings

    folder = tmp_path_factory.mktemp("run") / "digits"
    settings = load_settings("digits/hybrid", ["train.epochs=1", "split.part=0.2", "train.batch_size=32"])
    with open_run(folder):
        run_experiment(settings, folder)
    return folder


def test_a_run_becomes_a_checked_file(run, capsys):
    export.main(["--run", str(run), "--to", "onnx", "merge.r=2"])
    out = capsys.readouterr().out
    assert "checked on 64 test images, in batches of 1 and 16" in out and "[2, 2, 2, 2] by tome" in out
    _, metadata = load(run / "model.onnx")
    assert metadata["classes"] == [str(i) for i in range(10)] and metadata["removed"] == [2, 2, 2, 2]
    assert metadata["input"] == [1, 8, 8] and json.dumps(metadata)


def test_exported_goes_where_it_is_told(run, tmp_path, capsys):
    export.main(["--run", str(run), "--to", "exported", "--out", str(tmp_path / "m.pt2")])
    assert (tmp_path / "m.pt2").is_file() and "same prediction     64 of 64" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--to", "onnx", "merge.method=facility_location"], "'facility_location': ONNX has no operator for"),
        (["--to", "onnx", "merge.metod=tome"], "model.merge.metod: unknown key; did you mean method?"),
    ],
)
def test_mistakes_are_one_line(run, arguments, words):
    with pytest.raises(UserError, match=words):
        export.main(["--run", str(run), *arguments])


def test_a_folder_that_is_no_run_is_named(tmp_path):
    with pytest.raises(UserError, match="not a run folder"):
        export.main(["--run", str(tmp_path), "--to", "onnx"])
