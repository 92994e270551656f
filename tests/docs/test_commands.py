"""Every command that the documents show is one that the tools accept; those that need no data or weights are run."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pytest

from engine.launch.slurm import options_of
from engine.settings.layers import load_settings
from tests.docs.commands import DOCUMENTS, blocks, commands
from tests.paths import CONFIGS, ROOT

SHELL = [
    pytest.param(text, id=f"{path.relative_to(ROOT)}-{i}")
    for path in DOCUMENTS
    for i, text in enumerate(blocks(path, ""))
    if re.search(r"^\s*(\.venv/bin/python )?tools/", text, re.MULTILINE)
]
PYTHON = [
    pytest.param(text, id=f"{path.relative_to(ROOT)}-{i}")
    for path in DOCUMENTS
    for i, text in enumerate(blocks(path, "python"))
    if "import timm" in text  # others continue a snippet, or are a method of their own with tests of its own
]
# Commands in a sentence, less those that show a form ([optional], this|that, FILE...), and those of the example model
# that a test of its own adds first (tests/models/test_every_model.py).
INLINE = [
    pytest.param(path, text, id=f"{path.relative_to(ROOT)}: {text}")
    for path in DOCUMENTS
    for text in dict.fromkeys(re.findall(r"`(tools/\w+\.py [^`]*-[^`]*)`", path.read_text()))
    if not re.search(r"\[(?!\d)|\||\.\.\.|\n|tiny_cnn", text)
]
HEADER = re.compile(r"^# *(tools/\S.*(?:\\\n# .*)*)", re.MULTILINE)

CONFIG_FILES = [
    path
    for path in sorted(CONFIGS.rglob("*.yaml"))
    if path.parent.name != "base" or HEADER.search(path.read_text())  # base files need no command of their own
]
# Of the configs that train on digits, those whose commands `make test` runs: our own model, and one without tokens.
RUN = [CONFIGS / "digits" / name for name in ("hybrid.yaml", "lenet5.yaml")]
assert all(path in CONFIG_FILES for path in RUN)  # a new name would leave nothing that is run


def config_commands(path: Path) -> str:
    """The commands that a config opens with, without the remarks beside them."""
    lines = (re.sub(r"\n# *", "\n", match) for match in HEADER.findall(path.read_text()))
    return "\n".join(re.sub(r"  +\(.*", "", line) for line in lines)


# What takes seconds for each, and differs in what tests of its own train and count.
LONG = [text for text in SHELL if re.search(r"digits/|flops\.py", text.values[0])] + [
    pytest.param(config_commands(path), id=path.stem) for path in CONFIG_FILES if path.parent.name == "digits"
]


@pytest.mark.parametrize("text", SHELL)
def test_commands_in_documents(text, tmp_path, monkeypatch, capsys):
    found = commands(text, tmp_path)
    assert found, "the block calls a tool, but none was seen"
    monkeypatch.chdir(tmp_path)
    for tool, *arguments in found:
        check(tool, arguments, run=False)


@pytest.mark.slow
@pytest.mark.parametrize("text", LONG)
def test_commands_that_train_or_count_are_run(text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for tool, *arguments in commands(text, tmp_path):
        check(tool, arguments)


@pytest.mark.parametrize(("path", "text"), INLINE)
def test_commands_in_sentences(path, text, tmp_path, monkeypatch, capsys):
    [(tool, *arguments)] = commands(text, tmp_path)
    monkeypatch.chdir(tmp_path)
    check(tool, arguments)


@pytest.mark.parametrize("path", CONFIG_FILES, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_commands_in_configs(path, tmp_path, monkeypatch, capsys):
    found = commands(config_commands(path), tmp_path)
    assert found, f"{path} opens with its command"
    monkeypatch.chdir(tmp_path)
    for tool, *arguments in found:
        tool = "train.py" if tool == "flops.py" else tool  # costs are counted by tests of their own
        check(tool, arguments, run=path in RUN)


def check(tool: str, arguments: list[str], run: bool = True) -> None:
    """Runs a command if it needs no data, no weights and little time.

    Digits are trained on for one short epoch, other training resolves its settings, costs are counted, pictures without
    a run are drawn. All other commands parse their arguments. Unless `run`, no digits are trained on and no costs
    counted: the settings are resolved.
    """
    module = importlib.import_module(f"tools.{tool.removesuffix('.py')}")
    if "--slurm" in arguments:
        options_of(module.parse(arguments).slurm)
    elif run and tool == "train.py" and "--resume" not in arguments and any(a.startswith("digits/") for a in arguments):
        module.main([*arguments, "train.epochs=1", "train.warmup_epochs=0", "split.part=0.1", "threads=1"])
    elif tool == "train.py" and "--resume" not in arguments:
        module.main([*arguments, "--print"])
    elif run and tool == "flops.py" and "zoo" not in " ".join(arguments):
        module.main(arguments)
    elif tool == "flops.py":
        asked = module.parse(arguments)
        assert all(load_settings(cfg, asked.overrides).model for cfg in asked.cfg)
    elif tool == "picture.py" and "--run" not in arguments:
        (Path.cwd() / "docs").mkdir(exist_ok=True)  # where the documents put theirs
        module.main(arguments)
    else:
        module.parse(arguments)


@pytest.mark.parametrize("text", PYTHON)
def test_python_in_documents(text, tmp_path, monkeypatch):
    """Snippets run as they are, but for downloads and the name that the models have in the working copy."""
    code = text.replace("pretrained=True", "pretrained=False").replace("hybridmerge", "models")
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    exec(compile("from __future__ import annotations\n" + code, "snippet", "exec"), {"__name__": "snippet"})
    assert set(sys.modules) >= before
