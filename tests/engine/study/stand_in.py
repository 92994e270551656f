"""A stand-in for tools/train.py that takes a fraction of a second: its validation score is a function of train.lr.

It writes what a run writes, as far as studies read it: settings, metrics epoch by epoch, and results. SIGTERM leaves a
file `saved`. It imports neither torch nor the project.
"""

from __future__ import annotations

import json
from pathlib import Path

from tests.results import results_of

CODE = """
import json, math, os, pathlib, shutil, signal, sys, time
import yaml

cfg = pathlib.Path(sys.argv[sys.argv.index("--cfg") + 1])
settings = yaml.safe_load(cfg.read_text())
folder = pathlib.Path(settings["out"]) / settings["name"]
if folder.is_dir() and "--resume" not in sys.argv:
    sys.exit("error: " + str(folder) + ": holds files already")

def stop(number, frame):
    (folder / "saved").touch()
    sys.exit(128 + number)

signal.signal(signal.SIGTERM, stop)
folder.mkdir(parents=True, exist_ok=True)
shutil.copy(cfg, folder / "settings.yaml")
train, metrics = settings["train"], folder / "metrics.jsonl"
if train["lr"] >= 100:
    sys.exit("error: train.lr = " + str(train["lr"]) + ": diverged")
final = 1 - abs(math.log10(train["lr"]) + 2) / 8  # best at 0.01
done = len(metrics.read_text().splitlines()) if metrics.exists() else 0
for epoch in range(done + 1, train["epochs"] + 1):
    row = {"step": epoch, "val/loss": 1.0, "val/top1": final * epoch / train["epochs"]}
    with open(metrics, "a") as file:
        file.write(json.dumps(row) + "\\n")
    if epoch < train["epochs"]:
        time.sleep(float(os.environ.get("EPOCH_SECONDS", "0")))
results = json.loads((pathlib.Path(__file__).parent / "results.json").read_text())
results |= {"name": settings["name"], "seed": settings["seed"], "best_step": train["epochs"]}
results |= {"test_top1": 1 - final, "test_interval": None}  # the worse on validation, the better on the test images
(folder / "results.json").write_text(json.dumps(results))
"""


def install(folder: Path) -> Path:
    """Writes the stand-in into a folder of tools; returns the folder."""
    tools = folder / "tools"
    tools.mkdir()
    (tools / "train.py").write_text(CODE)
    (tools / "results.json").write_text(json.dumps(results_of(val_images=10).to_json()))
    return tools
