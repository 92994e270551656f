#!/usr/bin/env python3
"""Top-1 of DeiT-Tiny in every runtime, merged and unmerged, on labelled images: writes accuracy.json.

  python docs/results/runtimes/accuracy.py IMAGES CALIBRATION WEIGHTS

IMAGES and CALIBRATION are folders of class folders named by ImageNet's ids; int8 is calibrated on CALIBRATION, whose
images must not be among IMAGES. Rows that are in accuracy.json already are not measured again.
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
from engine.files import write_json_atomic
from engine.machine import device_name, pick_autocast, versions
from engine.settings.layers import load_file
from engine.study.zeroshot.each import pretrained
from engine.study.zeroshot.images import batches, labelled_images
from engine.study.zeroshot.settings import ZeroshotSettings
from models.export import convert_onnx, export_model, load
from models.merging import wrap

CPU = torch.device("cpu")
BATCH = 25  # divides the number of images, so that every batch is of the size that is compiled for
MERGING = {"method": "tome", "r": 13}
OUT = Path(__file__).with_name("accuracy.json")
Run = Callable[[Tensor], Tensor]  # images (B, C, H, W) -> logits (B, classes)


def images_of(folder: str, weights: str) -> tuple[Tensor, Tensor, nn.Module]:
    """All images of a folder, normalised, (N, 3, 224, 224); the model's class of each; and the model, unmerged."""
    values = [f"data.path={folder}", "data.crop_pct=1", f"model.weights={weights}"]
    settings = load_file(ZeroshotSettings, "deit_tiny", values, "zeroshot")
    found = labelled_images(settings)
    return torch.cat([batch for batch, _ in batches(found, 50)]), found.targets, pretrained(settings, CPU)[0]


def ways(model: nn.Module, images: Tensor, calibration: Tensor, folder: Path) -> Iterator[tuple[str, str, Run]]:
    """Every runtime and precision that the benchmark times, and the model in it. Files are made when they are asked
    for."""
    for runtime in ("eager", "compiled"):
        for precision in ("fp32", "bf16"):
            call = torch.compile(copy.deepcopy(model), dynamic=False) if runtime == "compiled" else model
            yield runtime, precision, in_precision(call, precision)
    fp32 = folder / "model.onnx"
    export_model(model, "onnx", fp32, images[:: len(images) // 64])
    yield "onnx", "fp32", load(fp32)[0]
    convert_onnx(fp32, folder / "int8.onnx", calibration)
    yield "onnx", "int8", load(folder / "int8.onnx")[0]
    convert_onnx(fp32, folder / "model.xml")
    for precision in ("fp32", "bf16"):
        yield "openvino", precision, load(folder / "model.xml", precision=precision)[0]
    convert_onnx(fp32, folder / "int8.xml", calibration)
    yield "openvino", "int8", load(folder / "int8.xml")[0]


def in_precision(call: Run, precision: str) -> Run:
    """A model under autocast, or in fp32."""

    def run(images: Tensor) -> Tensor:
        with pick_autocast(precision, CPU):
            return call(images).float()

    return run


@torch.inference_mode()
def predictions(run: Run, images: Tensor) -> list[int]:
    """The predicted class of every image."""
    return torch.cat([run(part).argmax(1) for part in images.split(BATCH)]).tolist()


def main(folder: str, calibrating: str, weights: str) -> None:
    images, targets, model = images_of(folder, weights)
    calibration = images_of(calibrating, weights)[0]
    record = json.loads(OUT.read_text()) if OUT.exists() else {"rows": []}
    record |= {
        "images": len(images),
        "calibration": len(calibration),
        "merging": MERGING,
        "machine": device_name(CPU),
        "versions": versions() | {name: version(name) for name in ("onnxruntime", "openvino", "nncf")},
        "targets": " ".join(map(str, targets.tolist())),
    }
    for method in ("unmerged", "tome"):
        if method == "tome":
            wrap(model, **MERGING)
        done = {(row["runtime"], row["precision"]) for row in record["rows"] if row["method"] == method}
        if len(done) == 9:
            continue
        with TemporaryDirectory() as files:
            for runtime, precision, run in ways(model, images, calibration, Path(files)):
                if (runtime, precision) in done:
                    continue
                predicted = predictions(run, images)
                right = sum(one == other for one, other in zip(predicted, targets.tolist()))
                print(f"{method:9} {runtime:9} {precision:5} {100 * right / len(images):.1f} %", flush=True)
                row = {"method": method, "runtime": runtime, "precision": precision}
                record["rows"].append(row | {"predicted": " ".join(map(str, predicted))})
                write_json_atomic(OUT, record)


if __name__ == "__main__":
    main(*sys.argv[1:])
