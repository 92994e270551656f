"""tools/export.py on a finished run: a checked file, or one line and no file."""

from __future__ import annotations

import dataclasses
import sys

import pytest
import torch
from torch import nn

from engine import export
from engine.cli import cli
from engine.data.loading.loader import eval_batches
from engine.export import sample_images
from engine.runs.restore import load_run
from engine.settings.schema import RunSettings
from engine.train.experiment import run_experiment
from models.export import FORMATS, LEAST_TORCH, Agreement, close, formats, load, program_of
from models.settings import check
from tests.engine.conftest import TINY
from tests.tools.runs import TIMM, folder_run
from tools import export as tool

pytestmark = pytest.mark.skipif(torch.__version__ < LEAST_TORCH, reason=f"needs torch {LEAST_TORCH}")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder, made once."""
    folder = tmp_path_factory.mktemp("run")
    run_experiment(check(RunSettings, {**TINY, "train": {"epochs": 2, "batch_size": 16, "lr": 0.01}}), folder)
    return folder


@pytest.fixture
def tell(run, capsys, monkeypatch):
    """Exit code, stdout and stderr of the tool on that run; and that nothing else was written into its folder."""

    def call(*args: str, new: tuple[str, ...] = ()) -> tuple[int, str, str]:
        before = {entry.name for entry in run.iterdir()}
        monkeypatch.setattr(sys, "argv", ["export.py", "--run", str(run), *args])
        code = cli(tool.main)
        assert {entry.name for entry in run.iterdir()} - before == set(new)
        return code, *capsys.readouterr()

    return call


def test_a_run_becomes_a_checked_onnx_file(run, tell):
    code, out, err = tell("--to", "onnx", "merge.r=2", new=("model.onnx",))
    assert code == 0 and err == ""
    lines = dict(line.split(None, 1) for line in out.splitlines())
    assert out.startswith("checked on 64 test images, in batches of 1 and 16\n")
    assert lines["same"].split() == ["prediction", "64", "of", "64"] and "[2, 2] by tome" in lines["tokens"]
    assert lines["file"].startswith(f"{run / 'model.onnx'}  ")

    runtime, metadata = load(run / "model.onnx")
    other = load_run(run, ["merge.r=2"])
    images = sample_images(other.data, 20)
    assert close(runtime(images), other.model.eval()(images).detach()).all()
    of_model, of_file = export.scores(other, run / "model.onnx")  # which the tool says of a file in int8
    assert of_model.n == of_file.n == len(other.data.test) and of_model.score == of_file.score
    assert metadata["classes"] == [str(i) for i in range(10)] and metadata["input"] == [1, 8, 8]
    assert metadata["method"] == "tome" and metadata["removed"] == [2, 2] and metadata["weights"] == "best"
    assert metadata["mean"] == pytest.approx(other.data.mean) and metadata["std"] == pytest.approx(other.data.std)


@pytest.mark.slow
def test_a_run_becomes_an_int8_file_of_openvino(run, tell, monkeypatch):
    """Calibrated on training images; its accuracy is measured on all test images, beside the model's."""
    pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    monkeypatch.setattr(export, "MOST_IMAGES", 16)
    code, out, err = tell("--to", "openvino", "--int8", "merge.r=2", new=("model_int8.xml", "model_int8.bin"))
    assert code == 0 and err == ""
    lines = dict(line.split(None, 1) for line in out.splitlines())
    restored, (runtime, metadata) = load_run(run, ["merge.r=2"]), load(run / "model_int8.xml")
    data, model = restored.data, restored.model.eval()
    images, labels = next(eval_batches(data.test, len(data.test), data.mean, data.std))
    shares = [100 * (logits.argmax(1) == labels).float().mean() for logits in (runtime(images), model(images))]
    assert lines["accuracy"] == f"{shares[0]:.2f} % of {len(labels)} test images in int8, {shares[1]:.2f} % in fp32"
    assert metadata["precision"] == "int8" and "allowed" not in out
    assert not close(runtime(images), model(images).detach()).all(), "it is no file in fp32"


@pytest.mark.slow
def test_exported_goes_where_it_is_told(tell, tmp_path):
    code, out, err = tell("--to", "exported", "--weights", "last", "--out", str(tmp_path / "m.pt2"))
    assert code == 0 and err == "" and "64 of 64" in out
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.pt2"]
    assert load(tmp_path / "m.pt2")[1]["weights"] == "last"


def test_a_convolutional_network(tmp_path, monkeypatch, capsys):
    folder = folder_run(tmp_path, {"name": "lenet5", "img_size": 32})
    monkeypatch.setattr(sys, "argv", ["export.py", "--run", str(folder), "--to", "exported"])
    assert cli(tool.main) == 0
    assert "\ntokens removed      none\n" in capsys.readouterr().out
    metadata = load(folder / "model.pt2")[1]
    assert (metadata["model"], metadata["method"], metadata["removed"]) == ("lenet5", None, [])


def test_another_librarys_model(tmp_path, monkeypatch, capsys):
    """What the tool says of it; that the files are right is tested with the engine."""
    folder, written = folder_run(tmp_path, TIMM), []

    def write(model, to, path, images, metadata, int8):
        written.append(metadata)
        path.touch()
        return Agreement(8, (1, 16), 0.0, 1.0, 0, 8)

    monkeypatch.setattr(export, "export_model", write)
    for change, removal in (([], "none"), (["merge.method=tome", "merge.r=1"], "[1, 1] by tome")):
        monkeypatch.setattr(sys, "argv", ["export.py", "--run", str(folder), "--to", "onnx", *change])
        assert cli(tool.main) == 0
        assert f"\ntokens removed      {removal}\n" in capsys.readouterr().out
    assert [(m["model"], m["method"], m["removed"]) for m in written] == [
        ("timm:test_vit", None, []),
        ("timm:test_vit", "tome", [1, 1]),
    ]


def test_a_converter_that_goes_wrong_is_no_success(tell, monkeypatch):
    """It gives a program of the right shape, and says nothing: exit code 2, one line, no file."""

    def another(program, files, metadata):
        form.save(program_of(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), (1, 8, 8)), files, metadata)

    form = FORMATS["exported"]
    monkeypatch.setitem(FORMATS, "exported", dataclasses.replace(form, save=another))
    code, out, err = tell("--to", "exported", "merge.method=none")
    assert code == 2 and out == "" and err.count("\n") == 1
    assert err.startswith("error: the file does not give the model's logits: 64 of 64 images differ by up to ")
    assert err.endswith("; nothing was written\n")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--to", "onnx", "merge.metod=tome"], "model.merge.metod: unknown key; did you mean method?"),
        (["--to", "onnx", "--weights", "last", "--out", "absent/m.onnx"], "absent/m.onnx: cannot be written"),
        (["--to", "exported", "merge.r={first: 1}"], "model.merge.r.last: missing"),
    ],
)
def test_mistakes_are_one_line(tell, tmp_path, monkeypatch, args, words):
    monkeypatch.chdir(tmp_path)
    code, out, err = tell(*args)
    assert code == 2 and out == "" and err.count("\n") == 1
    assert err.startswith(f"error: {words}")


def test_what_is_missing_is_said_before_anything_is_done(tell, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    code, _, err = tell("--to", "onnx")
    assert code == 2 and "onnxruntime" in err and err.endswith("; pip install onnx onnxscript onnxruntime\n")
    monkeypatch.setattr(formats, "LEAST_TORCH", "99.1")
    for to in FORMATS:
        code, _, err = tell("--to", to)
        assert code == 2 and err.startswith(
            f"error: to = {to!r}: needs torch 99.1 or newer, this is {torch.__version__}"
        )


def test_a_folder_that_is_no_run_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["export.py", "--run", str(tmp_path), "--to", "onnx"])
    assert cli(tool.main) == 2
    assert "not a run folder" in capsys.readouterr().err
