"""Command lines are parsed before anything heavy is imported."""

import os
import subprocess
import sys

import pytest

from tests.paths import ROOT

HEAVY = (
    "torch",
    "timm",
    "torchvision",
    "torchmetrics",
    "pydantic_settings",
    "matplotlib",
    "sklearn",
    "fvcore",
    "scipy",
)
CODE = f"""
import runpy, sys
sys.argv = sys.argv[1:]
sys.path.insert(0, "tools")  # as for a script
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as error:
    print("code", error.code)
print("heavy", *(name for name in {HEAVY} if name in sys.modules))
"""


def run(*argv: str) -> list[str]:
    """The lines that a tool prints, then its exit code and the heavy libraries that it imported."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-c", CODE, *argv], cwd=ROOT, env=env, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


TOOLS = sorted(path.stem for path in (ROOT / "tools").glob("*.py") if path.stem != "start")


@pytest.mark.parametrize("tool", TOOLS)
def test_help_imports_nothing_heavy_and_has_an_example(tool):
    lines = run(f"tools/{tool}.py", "--help")
    assert lines[-2:] == ["code 0", "heavy"]
    assert any(f"tools/{tool}.py" in line for line in lines[1:])


@pytest.mark.parametrize("then", ["", pytest.param("models.build_model; models.MODELS", marks=pytest.mark.slow)])
def test_importing_the_models_package_imports_no_model(then):
    """Until the first of them is used, which takes the seconds that importing all libraries takes."""
    code = f"import sys, models; models.UserError; dir(models); assert 'torch' not in sys.modules; {then}"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_checking_settings_imports_neither_timm_nor_torchvision():
    assert run("tools/train.py", "--print", "--cfg", "cifar10/hybrid")[-1] == "heavy torch"
