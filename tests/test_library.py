"""The wheel: what is in it, and that it works in a project that has packages `models` and `engine` of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from email.parser import Parser
from pathlib import Path
from zipfile import ZipFile

import pytest
import yaml

from models.explain import EXPLAINERS
from tests.paths import ROOT

PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
REQUIRED = {"torch", "torchvision", "timm", "einops", "pydantic", "safetensors"}

PROJECT = {
    "models/__init__.py": "from .net import WIDTH\n",
    "models/net.py": "WIDTH = 7\n",
    "engine.py": "SPEED = 9\n",
    "train.py": """
import sys
import engine
import hybridmerge
import models
import timm
import torch
from hybridmerge import UserError, build_model
from hybridmerge.export import export_model, load
from hybridmerge.merging import unwrap, wrap
from hybridmerge.merging.wrapping import schedule_of

assert (models.WIDTH, engine.SPEED) == (7, 9)
assert set(hybridmerge.__all__) <= set(dir(hybridmerge))
images = torch.randn(2, 3, 64, 64)
vit = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=3).eval()
with torch.no_grad():
    plain = vit(images)
    assert torch.equal(wrap(vit, "tome")(images), plain), "without merging nothing changes"
    assert not torch.equal(wrap(vit, "tome", r=3)(images), plain)
    assert torch.equal(unwrap(vit)(images), plain)
wrap(vit, "tome", target_ratio=1.3)
assert schedule_of(vit) != [0, 0, 0]
agreement = export_model(vit, "exported", "vit.pt2", (3, 64, 64), batch_sizes=(4,))
assert agreement.same_prediction == 16 and load("vit.pt2")[0](images).shape == (2, 1000)
assert sum(build_model("vit", img_size=64, embed_dim=96, num_heads=3, depth=4, merge={"target_ratio": 1.3}).schedule)
try:
    wrap(build_model("vit", img_size=32, embed_dim=16, num_heads=2, depth=1))
except UserError as error:
    assert "merges by itself" in str(error), error
else:
    raise AssertionError("our own models are not wrapped")
print("\\n".join(str(getattr(module, "__file__", None)) for module in list(sys.modules.values())))
print("\\n".join(sys.modules))
""",
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, so that the repository gets no build folder, and no older one gets into the wheel."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT / "models", source / "models", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("engine", "tools", "tests"):  # nothing of them may get in
        (source / name).mkdir()
        (source / name / "__init__.py").touch()
    for name in ("setup.py", "pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, source)
    subprocess.run([*PIP, "wheel", "--no-index", "--no-deps", "--no-build-isolation", "-w", out, source], check=True)
    (path,) = out.glob("*.whl")
    return path


def test_the_wheel_holds_the_library_alone(wheel):
    with ZipFile(wheel) as archive:
        names = archive.namelist()
    modules = {name for name in names if ".dist-info/" not in name}
    files = [*(ROOT / "models").rglob("*.py"), ROOT / "models" / "py.typed"]
    assert modules == {f"hybridmerge/{path.relative_to(ROOT / 'models')}" for path in files}


def test_the_wheel_requires_what_models_import_and_no_more(wheel):
    with ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(name).decode())
    assert (metadata["Name"], metadata["Version"]) == ("hybridmerge", "0.2.0")
    requirements = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    assert {line.partition(">=")[0] for line in requirements} == REQUIRED
    assert all(">=" in line for line in requirements)
    assert set(metadata.get_all("Provides-Extra")) == {
        "lora",
        "export",
        "openvino",
        "explain",
        "explore",
        "workbench",
        "page",
        "slurm",
        "shards",
        "mlflow",
        "wandb",
        "transformers",
        "search",
        "bench",
        "dev",
    }


@pytest.mark.slow
def test_it_works_in_a_project_with_packages_of_the_same_names(wheel, tmp_path):
    installed, project = tmp_path / "installed", tmp_path / "project"
    subprocess.run([*PIP, "install", "--no-index", "--no-deps", "--target", installed, wheel], check=True)
    for name, text in PROJECT.items():
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(text)
    # -S: an editable install of this repository, which site would make importable, is not there.
    libraries = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    env = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    env["PYTHONPATH"] = os.pathsep.join([str(installed), *libraries])
    command = [sys.executable, "-S", "-W", "error::UserWarning", "train.py"]
    done = subprocess.run(command, cwd=project, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert str(installed / "hybridmerge" / "__init__.py") in lines
    for folder in ("engine", "models", "tools"):
        assert not [line for line in lines if Path(line).is_relative_to(ROOT / folder)]
    assert not {"fvcore", "matplotlib", "peft", "scipy", "sklearn", "tensorboard", "torchmetrics"} & set(lines)


def test_the_citation_can_be_read():
    """Of every explanation and merging method that comes from a paper there is a reference."""
    references = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["references"]
    assert all(reference["title"] and reference["authors"] and reference["year"] for reference in references)
    notes = " ".join(reference.get("notes", "") for reference in references)
    assert not [name for name in EXPLAINERS if name not in notes]
