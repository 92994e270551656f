"""Rows of tools/segment.py: what is fitted and measured, that it is done once, and what is written."""

import json

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file as read_tensors

from engine.cost.macs import traced_macs
from engine.data.loading.loader import resized
from engine.data.masks import load_masked
from engine.measure.segmentation import mean_iou, paired_images, pixel_accuracy, pixel_counts
from engine.settings.layers import CONFIGS, load_file
from engine.study.segment import evaluate
from engine.study.segment.evaluate import evaluate_rows
from engine.study.segment.probe import fit_linear, patch_shares
from engine.study.segment.settings import SegmentSettings
from engine.study.segment.subject import batches
from engine.study.zeroshot.each import pretrained
from models.merging import wrap
from models.settings import UserError
from tools import segment


def quietly(line):
    pass


def by_hand(settings, folder, merge=None, size=64):
    """The counts of a row by timm, wrap and the probe's parts."""
    model = timm.create_model("test_vit", img_size=64)
    model.load_state_dict(read_tensors(folder / "vit.safetensors"))
    model.set_input_size(img_size=size)
    if merge:
        wrap(model, **merge)
    data = load_masked(settings.data.model_copy(update={"size": 64}))
    mean, std = (torch.tensor(model.pretrained_cfg[key])[:, None, None] for key in ("mean", "std"))
    shown = [resized((part.images / 255 - mean) / std, size) for part in (data.train, data.test)]
    maps, side = [model.eval().forward_features(images)[:, 1:].detach() for images in shown], size // 16
    shares = patch_shares(data.train.masks, 4, side, side).flatten(0, 2)
    weight, bias = fit_linear(maps[0].flatten(0, 1), shares, 1e-3, 200)
    logits = (maps[1] @ weight.T + bias).mT.unflatten(2, (side, side))
    predicted = torch.nn.functional.interpolate(logits, (64, 64), mode="bilinear").argmax(1)
    return pixel_counts(predicted, data.test.masks, 4).numpy()


@pytest.mark.parametrize("blocks", [pytest.param([6], marks=pytest.mark.slow), [2, 4]])
def test_the_cost_of_a_threshold_is_the_mean_of_the_test_images(load, tmp_path, blocks):
    """Each image's cost as it is traced from pixels to logits, through the blocks that are run alone."""
    given = ("methods=[tome]", "budgets=[{threshold: 0.9}]", "data.test=3", f"probe.blocks={blocks}")
    settings, lines = load(*given), []
    subject, rows = evaluate_rows(settings, tmp_path, lines.append)
    way = settings.ways()["tome, threshold 0.9"]
    model = wrap(pretrained(settings, torch.device("cpu"))[0], "tome", threshold=0.9)
    segmenter = evaluate.fitted(settings, subject, model, way)
    images, _ = next(batches(settings, subject, subject.images.test, None))
    alone = [sum(traced_macs(segmenter, image).values()) / 1e9 for image in images.split(1)]
    assert rows[1].gmacs == pytest.approx(np.mean(alone), rel=1e-3) and rows[1].gmacs < rows[0].gmacs
    spread = rows[1].gmacs_spread
    assert (spread.least, spread.most) == pytest.approx((min(alone), max(alone)), rel=1e-3) and spread.std > 0
    assert spread.images == 3 and len(spread.tokens) == max(blocks)
    assert "mean of 3 images" in lines[1] and rows[0].gmacs_spread is None


def near(counts, others):
    """Within rounding, which may turn single pixels."""
    return np.abs(counts - others).sum() < 1e-3 * others.sum()


def test_rows_are_probes_of_merged_maps(load, session_files, tmp_path):
    settings = load()
    subject, rows = evaluate_rows(settings, tmp_path, quietly)
    assert [row.name for row in rows] == ["unmerged", "tome, r = 0", "tome, r = 4"]
    assert near(rows[0].counts, by_hand(settings, session_files.parent)) and rows[1].pixels == rows[0].pixels
    assert near(rows[2].counts, by_hand(settings, session_files.parent, {"method": "tome", "r": 4}))
    total = rows[0].counts.sum(0)
    assert total[2].tolist() == [(subject.images.test.masks == number).sum() for number in range(4)]
    assert mean_iou(total) > 0.6 and 0.25 < mean_iou(rows[2].counts.sum(0)) < mean_iou(total)  # chance is 0.14
    assert rows[0].gmacs == rows[1].gmacs > rows[2].gmacs


def test_a_row_is_evaluated_once_and_again_if_what_decides_it_changes(load, tmp_path, monkeypatch):
    few = ["data.train=4", "data.test=2", "methods=[]", "budgets=[]", "sizes=[32]"]
    _, before = evaluate_rows(load(*few), tmp_path, quietly)
    calls, true = [], evaluate.fitted
    monkeypatch.setattr(evaluate, "fitted", lambda *given: calls.append(1) or true(*given))
    _, after = evaluate_rows(load(*few, "name=other", "batch_size=5"), tmp_path, quietly)
    assert after == before and not calls
    for number, change in enumerate(["probe.l2=0.1", "data.seed=1"], 1):
        evaluate_rows(load(*few, change), tmp_path, quietly)
        assert len(calls) == 2 * number


def test_images_of_other_sizes_are_measured_at_the_size_of_the_masks(load, session_files, tmp_path):
    settings = load("sizes=[32, 96]", "rows={large: {method: tome, r: 9, img_size: 96}}", "methods=[]", "budgets=[]")
    _, (unmerged, small, large, merged) = evaluate_rows(settings, tmp_path, quietly)
    for row in (small, large, merged):
        assert (row.counts[:, 2] == unmerged.counts[:, 2]).all() and row.pixels != unmerged.pixels
    assert near(small.counts, by_hand(settings, session_files.parent, size=32))
    assert small.gmacs < unmerged.gmacs < large.gmacs and merged.gmacs < large.gmacs
    small, unmerged, large = (mean_iou(row.counts.sum(0)) for row in (small, unmerged, large))
    assert small < unmerged < large  # of plain colours: a finer grid follows borders better


def test_the_tool_writes_what_it_found(session_files, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(session_files.parent)
    out = tmp_path / "out"
    segment.main(["--cfg", "small.yaml", f"out={out}", "--time", "2"])
    segment.main(["--cfg", "small.yaml", f"out={out}"])  # keeps the times
    record = json.loads((out / "segment.json").read_text())
    with np.load(out / "counts.npz") as arrays:
        counts, names = arrays["counts"].astype(int), list(arrays["rows"])
    assert counts.shape == (3, 10, 3, 4) and names == [row["name"] for row in record["rows"]]
    lines = (out / "table.md").read_text().splitlines()
    for row, own, line in zip(record["rows"], counts, lines[2:], strict=True):
        assert row["miou"] == mean_iou(own.sum(0)) and row["pixel_accuracy"] == pixel_accuracy(own.sum(0))
        assert np.mean(row["class_ious"]) == pytest.approx(row["miou"]) and len(row["ms_per_image"]) == 2
        assert f"{100 * row['miou']:.2f}" in line
    difference = paired_images(mean_iou, counts[2], counts[0])
    assert record["rows"][2]["difference"] == difference.mean and record["rows"][0]["difference"] is None
    assert record["rows"][2]["difference_interval"] == [difference.low, difference.high]
    assert f"{100 * difference.low:+.2f} to {100 * difference.high:+.2f}" in lines[4]
    assert str(session_files.parent) not in (out / "segment.json").read_text()
    assert "mIoU" in capsys.readouterr().out


@pytest.mark.parametrize(
    "override, message",
    [
        ("data.size=32", "data.size = 32: the model takes 64 x 64; set data.size=64, or omit it"),
        ("probe.blocks=[3, 9]", "probe.blocks = [3, 9]: the model has 6 blocks"),
        ("probe.blocks=[3, 3]", "probe.blocks = [3, 3]: must be different numbers, in order"),
        ("probe.block=[3]", "probe.block: unknown key; did you mean blocks?"),
        ("data.name=folder", "data.name"),
        ("budgets=[{target_gmacs: 100}]", "row 'tome, 100 GMACs': merge.target_gmacs = 100.0"),
        ("probe.cnn={width: 8}", "probe.cnn.width: unknown key"),
        ("probe.cnn={block: plain}", "probe.cnn.block"),
    ],
)
def test_mistakes_are_found_before_anything_is_fitted(load, tmp_path, monkeypatch, override, message):
    monkeypatch.setattr(evaluate, "fitted", lambda *given: pytest.fail("fitted"))
    with pytest.raises(UserError) as raised:
        evaluate_rows(load(override), tmp_path, quietly)
    assert message in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("path", sorted((CONFIGS / "segment").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_loads_by_its_name(path):
    settings = load_file(SegmentSettings, path.stem, (), "segment")
    assert settings.name == f"segment_{path.stem}" and len(settings.ways()) > 2
    assert path.read_text().startswith(f"# tools/segment.py --cfg {path.stem} ")
