"""Rows are what the model predicts, are evaluated once, and cost what tools/flops.py counts."""

import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file as read_tensors
from safetensors.torch import save_file

from engine.cost.macs import measure
from engine.data.loading.loader import resized
from engine.study.zeroshot import each, evaluate, fingerprints
from engine.study.zeroshot.evaluate import evaluate_rows
from engine.study.zeroshot.report import compared, notes, table, write_outputs
from engine.study.zeroshot.timing import time_rows
from models.merging import wrap
from models.settings import UserError
from tests.engine.study.zeroshot.conftest import CLASSES


def plain_model(folder):
    model = timm.create_model("test_vit", img_size=64)
    model.load_state_dict(read_tensors(folder / "vit.safetensors"))
    return model.eval()


def files_of(images):
    """The files of the images, in the current folder."""
    return [f"images/{name}" for name in images.names]


def plain_predictions(model, names, size=None):
    """Predictions by nothing but timm, in the order of `names`, of images that are resized to `size` pixels."""
    cfg = model.pretrained_cfg
    pixels = torch.stack([torch.from_numpy(np.array(Image.open(name))) for name in names]).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(cfg[key])[:, None, None] for key in ("mean", "std"))
    with torch.inference_mode():
        return model(resized((pixels - mean) / std, size)).argmax(-1).numpy()


def test_rows_are_what_timm_and_wrap_predict(load, session_files, tmp_path):
    images, rows = evaluate_rows(load(), tmp_path, report=lambda line: None)
    assert [row.name for row in rows] == ["unmerged", "tome, r = 0", "tome, r = 4", "dpc_knn, r = 0", "dpc_knn, r = 4"]
    model = plain_model(session_files.parent)
    unmerged = plain_predictions(model, files_of(images))
    assert (rows[0].predictions == unmerged).all() and len(set(unmerged)) > 1
    assert (rows[1].predictions == unmerged).all() and (rows[3].predictions == unmerged).all()  # r = 0
    for row, method in ((rows[2], "tome"), (rows[4], "dpc_knn")):
        wrap(model, method=method, r=4)
        assert (row.predictions == plain_predictions(model, files_of(images))).all()
        assert (row.predictions != unmerged).any()  # something was merged
    assert rows[2].removed == [4, 4, 4, 2, 1, 0] and rows[4].removed == [4, 4, 4, 3, 0, 0]


def test_what_has_to_be_trained_is_said_and_drawn_alike_in_any_order(load, tmp_path):
    said = []
    _, rows = evaluate_rows(load("methods=[sit, patchmerger]"), tmp_path / "one", report=said.append)
    assert said[-1] == "note: sit, patchmerger: has to be trained; what it learns was drawn at random here"
    _, others = evaluate_rows(load("methods=[patchmerger]"), tmp_path / "other", report=said.append)
    assert rows[-1].name == others[-1].name == "patchmerger, r = 4" and rows[-1].removed == others[-1].removed
    assert (rows[-1].predictions == others[-1].predictions).all()
    assert (rows[-1].predictions != rows[0].predictions).any()


def test_a_row_whose_number_of_tokens_depends_on_the_image(load, session_files, tmp_path):
    """It predicts what the images have alone, and its cost is the mean of theirs, never a fixed one."""
    settings = load("methods=[tome]", "budgets=[{threshold: 0.5}]")
    images, rows = evaluate_rows(settings, tmp_path, report=(lines := []).append)
    model = wrap(plain_model(session_files.parent), threshold=0.5)
    alone = np.concatenate([plain_predictions(model, [name]) for name in files_of(images)])
    row, spread = rows[1], rows[1].gmacs_spread
    assert (row.predictions == alone).all() and row.removed == [] and row.budget == "threshold 0.5"
    assert spread.images == 18 and spread.least < row.gmacs < spread.most < rows[0].gmacs and spread.std > 0
    assert "GMACs, mean of 18 images (standard deviation " in lines[1] and "mean" not in lines[0]
    found = compared(images, rows)
    _, cells = table(found)
    assert " ± " in cells[1][1] and " ± " not in cells[0][1]
    assert notes(rows) == [f"tome, threshold 0.5: {row.costs.in_words()}"]
    write_outputs(tmp_path, settings, images, found)
    assert notes(rows)[0] in (tmp_path / "table.md").read_text()
    of_file = json.loads((tmp_path / "zeroshot.json").read_text())["rows"][1]
    assert of_file["gmacs"] == row.gmacs and of_file["gmacs_spread"]["images"] == 18
    _, again = evaluate_rows(settings, tmp_path, report=lambda line: None)
    assert again[1] == row
    assert list(time_rows(settings, images, rows, 1)) == ["unmerged", "tome, threshold 0.5"]


def test_images_of_another_size_are_what_timm_predicts_for_them(load, session_files, tmp_path):
    """The model of timm for 48 px, its position embedding resized by timm, on images resized as everywhere here."""
    images, rows = evaluate_rows(load("methods=[tome]", "sizes=[48, 32]"), tmp_path, report=lambda line: None)
    assert [row.name for row in rows[:4]] == ["unmerged", "48 px", "32 px", "tome, r = 0"]
    model = timm.create_model("test_vit", img_size=64)
    model.load_state_dict(read_tensors(session_files.parent / "vit.safetensors"))
    model.set_input_size(img_size=48)
    expected = plain_predictions(model.eval(), files_of(images), 48)
    assert (rows[1].predictions == expected).all() and (rows[1].predictions != rows[0].predictions).any()
    assert rows[0].gmacs > rows[1].gmacs > rows[2].gmacs and rows[1].method is None
    _, alone = evaluate_rows(load("methods=[]", "budgets=[]", "sizes=[32]"), tmp_path, report=lambda line: None)
    assert (alone[1].predictions == rows[2].predictions).all() and len(list((tmp_path / "rows").iterdir())) == 5


def test_a_merged_row_of_larger_images(load, session_files, tmp_path):
    """Merged, they cost what unmerged ones of the model's own size cost."""
    row = "rows={'tome at 80 px, cost of 64': {method: tome, target_gmacs: TARGET, img_size: 80}}"
    _, (own, *_) = evaluate_rows(load("methods=[tome]", "budgets=[{r: 0}]"), tmp_path, report=lambda line: None)
    settings = load("methods=[]", "budgets=[]", "sizes=[80]", row.replace("TARGET", f"{own.gmacs:.6f}"))
    images, (_, larger, merged) = evaluate_rows(settings, tmp_path, report=lambda line: None)
    model = timm.create_model("test_vit", img_size=64)
    model.load_state_dict(read_tensors(session_files.parent / "vit.safetensors"))
    model.set_input_size(img_size=80)
    assert (larger.predictions == plain_predictions(model.eval(), files_of(images), 80)).all()
    wrap(model, method="tome", r=merged.removed)
    assert (merged.predictions == plain_predictions(model, files_of(images), 80)).all()
    assert sum(merged.removed) and abs(merged.gmacs / own.gmacs - 1) < 0.005 and larger.gmacs > 1.2 * own.gmacs
    times = time_rows(settings, images, [larger, merged], rounds=2)
    assert {name: len(values) for name, values in times.items()} == {larger.name: 2, merged.name: 2}


def test_a_row_of_milliseconds_belongs_to_its_machine(load, tmp_path, monkeypatch):
    """Another machine merges more or less to be as fast; the row of one is not taken for that of the other."""
    settings = load("methods=[tome]", "budgets=[{r: 4}, {target_ms: 1e9}]")
    files = []
    for machine in ("cpu (one)", "cpu (one)", "cpu (another)"):
        monkeypatch.setattr(each, "device_name", lambda device, machine=machine: machine)
        evaluate_rows(settings, tmp_path, report=lambda line: None)
        files.append(len(list((tmp_path / "rows").iterdir())))
    assert files == [3, 3, 4]


def test_targets_follow_the_folders(load, tmp_path):
    images, _ = evaluate_rows(load("methods=[tome]", "budgets=[{r: 1}]"), tmp_path, report=lambda line: None)
    assert [CLASSES[name.split("/")[0]] for name in images.names] == images.targets.tolist()


def test_costs_are_those_of_flops(load, session_files, tmp_path):
    _, rows = evaluate_rows(
        load("methods=[tome]", "budgets=[{keep: {rate: 0.5, blocks: [2]}}, {target_ratio: 1.2}]"),
        tmp_path,
        report=lambda line: None,
    )
    model = plain_model(session_files.parent)
    model.img_size, model.in_chans = 64, 3
    whole = measure(model).gmacs
    wrap(model, method="tome", keep={"rate": 0.5, "blocks": [2]})
    assert [rows[0].gmacs, rows[1].gmacs] == [whole, measure(model).gmacs]
    assert rows[0].gmacs / rows[2].gmacs == pytest.approx(1.2, rel=0.005)


@pytest.fixture
def arrays(tmp_path):
    """Six images of 32 x 32 pixels, uint8 (6, 3, 32, 32), which are in images.npz, and as grey images in grey.npz."""
    pixels = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    for name, images in (("images", pixels), ("grey", pixels[..., 0])):
        split = {f"{part}_images": images[rows] for part, rows in (("train", slice(3)), ("test", slice(3, None)))}
        split |= {f"{part}_labels": np.arange(3)[:, None] for part in ("train", "test")}
        np.savez(tmp_path / f"{name}.npz", **split, class_names=np.array(list(CLASSES)))
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def of_arrays(folder, name="images"):
    return ["data.name=npz", f"data.path={folder / name}.npz", "methods=[tome]", "budgets=[{r: 2}]"]


def test_arrays_are_resized_to_what_the_model_takes(load, session_files, tmp_path, arrays):
    settings = load(*of_arrays(tmp_path), "data.resize=64")
    images, rows = evaluate_rows(settings, tmp_path, report=lambda line: None)
    assert images.targets.tolist() == list(CLASSES.values()) * 2
    model = plain_model(session_files.parent)
    mean, std = (torch.tensor(model.pretrained_cfg[key])[:, None, None] for key in ("mean", "std"))
    with torch.inference_mode():
        logits = model(resized((arrays / 255 - mean) / std, 64))
    assert (rows[0].predictions == logits.argmax(-1).numpy()).all()


@pytest.mark.parametrize(
    "name, overrides, message",
    [
        ("images", [], "data.resize: images are 32 x 32, the model takes 64 x 64; set data.resize=64"),
        ("images", ["data.resize=48"], "data.resize: images are 48 x 48, the model takes 64 x 64; set data.resize=64"),
        ("grey", ["data.resize=64"], "data: images have 1 channels, the model takes 3"),
    ],
)
def test_images_that_the_model_does_not_take(load, tmp_path, arrays, name, overrides, message):
    with pytest.raises(UserError, match=message):
        evaluate_rows(load(*of_arrays(tmp_path, name), *overrides), tmp_path, report=lambda line: None)


def test_a_row_is_evaluated_once_whatever_it_is_called(load, tmp_path, monkeypatch):
    _, before = evaluate_rows(load("methods=[tome]"), tmp_path, report=lambda line: None)
    calls = []
    true = evaluate.predictions
    monkeypatch.setattr(evaluate, "predictions", lambda *args: calls.append(1) or true(*args))
    _, after = evaluate_rows(load("methods=[tome]", "name=other", "batch_size=7"), tmp_path, report=lambda line: None)
    assert after == before and not calls
    named = "rows={four: {method: tome, r: 4}}"
    _, rows = evaluate_rows(load("methods=[]", "budgets=[]", named), tmp_path, report=lambda line: None)
    assert not calls and rows[1].predicted == before[2].predicted and rows[1].name == "four"
    evaluate_rows(load("methods=[tome]", "budgets=[{r: 3}]"), tmp_path, report=lambda line: None)
    assert len(calls) == 1


@pytest.mark.parametrize("change", ["weights", "pixels", "precision"])
def test_a_row_is_evaluated_again_when_what_decides_it_changes(load, session_files, tmp_path, monkeypatch, change):
    folder, overrides = session_files.parent, ["methods=[tome]", "budgets=[{r: 4}]"]
    evaluate_rows(load(*overrides), tmp_path, report=lambda line: None)
    calls = []
    true = evaluate.predictions
    monkeypatch.setattr(evaluate, "predictions", lambda *args: calls.append(1) or true(*args))
    if change == "weights":
        state = read_tensors(folder / "vit.safetensors")
        state["head.weight"] = state["head.weight"].flip(0)  # equal sums
        save_file(state, tmp_path / "other.safetensors")
        overrides.append(f"model.weights={tmp_path / 'other.safetensors'}")
    elif change == "pixels":
        for name in CLASSES:
            (tmp_path / "images" / name).mkdir(parents=True)
            for file in sorted((folder / "images" / name).iterdir()):
                Image.open(file).rotate(90).save(tmp_path / "images" / name / file.name)
        overrides.append(f"data.path={tmp_path / 'images'}")
    else:
        overrides.append("precision=bf16")
    evaluate_rows(load(*overrides), tmp_path, report=lambda line: None)
    assert len(calls) == 2


def test_rows_of_other_code_are_noted_and_evaluated_again_on_request(load, tmp_path, monkeypatch):
    settings, lines = load("methods=[tome]", "budgets=[{r: 4}]"), []
    evaluate_rows(settings, tmp_path, report=lines.append)
    assert not any(line.startswith("note") for line in lines)
    monkeypatch.setattr(each, "of_merging", lambda: "other")
    evaluate_rows(settings, tmp_path, report=lines.append)
    assert lines[-1].startswith("note: 1 row was evaluated by another version of models/merging; --again")
    _, rows = evaluate_rows(settings, tmp_path, report=lines.append, again=True)
    assert rows[1].code == "other" and not lines[-1].startswith("note")


def test_the_codes_fingerprint_is_of_what_it_does(tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprints.models.merging, "__file__", str(tmp_path / "__init__.py"))

    def fingerprint(text):
        (tmp_path / "method.py").write_text(text)
        fingerprints.of_merging.cache_clear()
        return fingerprints.of_merging()

    first = fingerprint('"""One."""\ndef f(x):\n    """Doc."""\n    return x + 1\n')
    assert fingerprint('"""Two."""\ndef f(x):\n    # why\n    return (x + 1)\n') == first
    assert fingerprint("def f(x):\n    return x + 2\n") != first
    fingerprints.of_merging.cache_clear()


def test_a_damaged_row_is_named(load, tmp_path):
    evaluate_rows(load("methods=[tome]", "budgets=[{r: 4}]"), tmp_path, report=lambda line: None)
    (first, *_) = sorted((tmp_path / "rows").iterdir())
    whole = first.read_text()
    for broken in (whole[: len(whole) // 2], "{}", whole.replace('"key": "', '"key": "0')):
        first.write_text(broken)
        with pytest.raises(UserError, match=f"{first.name}: damaged .*; delete it"):
            evaluate_rows(load("methods=[tome]", "budgets=[{r: 4}]"), tmp_path, report=lambda line: None)
    assert json.loads(whole)["version"] == 1


@pytest.mark.parametrize(
    "override, message",
    [
        ("budgets=[{target_gmacs: 100}]", "row 'tome, 100 GMACs': merge.target_gmacs = 100.0"),
        ("model.name=timm:resnet18", "row 'tome, r = 0'"),
        ("rows={x: {method: tome, r: [1, 2]}}", "row 'x'"),
        ("model.num_classes=10", "its classifier does not fit"),
    ],
)
def test_mistakes_are_found_before_anything_is_evaluated(load, tmp_path, monkeypatch, override, message):
    monkeypatch.setattr(evaluate, "predictions", lambda *args: pytest.fail("evaluated"))
    if "resnet" in override:
        model = timm.create_model("resnet18")
        save_file(model.state_dict(), tmp_path / "resnet.safetensors")
        override_weights = [f"model.weights={tmp_path / 'resnet.safetensors'}"]
    else:
        override_weights = []
    with pytest.raises(UserError) as raised:
        evaluate_rows(load(override, *override_weights), tmp_path, report=lambda line: None)
    assert message in str(raised.value) and "\n" not in str(raised.value)
