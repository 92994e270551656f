"""Where things are, for the tests."""

from pathlib import Path

from engine.settings.layers import OTHERS

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "configs"
GOLDEN = ROOT / "tests" / "golden" / "reference.npz"
# Settings files of runs, and those that they inherit from; plans of studies and of comparisons are other files.
OF_RUNS = sorted(path for path in CONFIGS.rglob("*.yaml") if path.relative_to(CONFIGS).parts[0] not in OTHERS)
RUNS = [path for path in OF_RUNS if path.relative_to(CONFIGS).parts[0] != "base"]
