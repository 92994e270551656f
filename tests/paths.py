"""Where things are, for the tests."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "configs"
GOLDEN = ROOT / "tests" / "golden" / "reference.npz"
# Settings files of runs, and those that they inherit from; plans of studies and of tools/zeroshot.py are other files.
OF_RUNS = sorted(
    path for path in CONFIGS.rglob("*.yaml") if path.relative_to(CONFIGS).parts[0] not in ("studies", "zeroshot")
)
RUNS = [path for path in OF_RUNS if path.relative_to(CONFIGS).parts[0] != "base"]
