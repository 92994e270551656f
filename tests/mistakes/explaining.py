"""Mistakes in what is to be explained."""

from __future__ import annotations

import socket
from pathlib import Path

from tests.engine.study.zeroshot.conftest import make_files
from tests.mistakes.mistake import Hidden, Mistake
from tests.tools.colours import COLOURS, colour_run, save_colour

CNN = {"name": "cnn", "img_size": 8, "width": 4, "depths": [1]}
EVALUATE = "tools/explain.py --evaluate small.yaml --out out"
EXPLAIN = "tools/explain.py --run run --images photo.png --out out"


def _vit(folder: Path) -> None:
    colour_run(folder / "run")
    save_colour(folder / "photo.png", COLOURS["1"])


def _cnn(folder: Path) -> None:
    colour_run(folder / "run", model=CNN, sharp=0)
    save_colour(folder / "photo.png", COLOURS["1"])


def _pretrained(folder: Path) -> None:
    make_files(folder)


def _broken(folder: Path) -> None:
    colour_run(folder / "run")
    (folder / "photo.png").write_bytes(b"not an image")


def _port_in_use(folder: Path) -> socket.socket:
    return socket.create_server(("127.0.0.1", 8765))


def _without_gradio(folder: Path) -> Hidden:
    colour_run(folder / "run")
    return Hidden("gradio")


MISTAKES: list[Mistake] = [
    Mistake(
        "A class that the run does not have",
        f"{EXPLAIN} --target 3",
        "--target 3: no such class; the run has 0 to 2: 1, 10, 2",
        _vit,
    ),
    Mistake(
        "A misspelt method", f"{EXPLAIN} --method gradcan", "--method gradcan: unknown; did you mean gradcam?", _vit
    ),
    Mistake(
        "Attention rollout of a model without attention",
        f"{EXPLAIN} --method rollout",
        "its attention cannot be followed: CNN is not a model that wrap supports; wrap takes timm's VisionTransformer, "
        "timm's Beit, timm's Eva, torchvision's VisionTransformer, and transformers' ViT, DeiT, DINOv2, DINOv3, CLIP "
        "and SigLIP",
        _cnn,
    ),
    Mistake(
        "What was merged, of a model that merges nothing",
        f"{EXPLAIN} --method merge",
        "the model merges no tokens in any block; turn merging on with merge.method=tome merge.r=8",
        _vit,
    ),
    Mistake(
        "LIME over merged regions, of a model that merges nothing",
        f"{EXPLAIN} --method lime lime.segments=clusters",
        "segments = clusters: the model merges no tokens; use slic",
        _vit,
    ),
    Mistake("An image that is none", EXPLAIN, "--images photo.png: cannot be read (...); leave it out", _broken),
    Mistake(
        "An option that a method does not have",
        f"{EXPLAIN} gradcam.at=map rollout.at=map",
        "rollout.at: not an option of rollout; known: none",
        _vit,
    ),
    Mistake(
        "A page without the library that serves it",
        "tools/explore.py --run run --port 0",
        "tools/explore.py: needs gradio; pip install -e '.[explore]'",
        _without_gradio,
    ),
    Mistake(
        "A page at a port that another program uses",
        "tools/explore.py --run run --port 8765",
        "--port 8765: in use; give another, or 0 for one that is free",
        _port_in_use,
    ),
    Mistake(
        "A page at an address that is another machine's",
        "tools/explore.py --run run --host 192.0.2.1",
        "--host 192.0.2.1: not an address of this machine; give 127.0.0.1",
    ),
    Mistake(
        "A budget that is not in GMACs",
        f"{EXPLAIN} --budgets unmerged half",
        "--budgets half: give unmerged, trained, or GMACs of one image, as in 0.8",
        _vit,
    ),
    Mistake(
        "Budgets of a model that cannot merge",
        f"{EXPLAIN} --budgets unmerged",
        "--budgets: run is a cnn, which cannot merge tokens; leave --budgets out",
        _cnn,
    ),
    Mistake(
        "A measure of explanations that does not exist",
        f"{EVALUATE} --measure insertion",
        "--measure insertion: unknown; known: areas, road, infidelity",
        _pretrained,
    ),
]
