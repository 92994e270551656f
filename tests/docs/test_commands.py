"""Every command that the documents show is one that the tools accept; those that need no data or weights are run."""

from __future__ import annotations

import importlib
import re
import sys

import pytest

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
HEADER = re.compile(r"^# *(tools/\S.*(?:\\\n# .*)*)", re.MULTILINE)


@pytest.mark.parametrize("text", SHELL)
def test_commands_in_documents(text, tmp_path, monkeypatch, capsys):
    found = commands(text, tmp_path)
    assert found, "the block calls a tool, but none was seen"
    monkeypatch.chdir(tmp_path)
    for tool, *arguments in found:
        check(tool, arguments)


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: str(path.relative_to(CONFIGS)))
def test_commands_in_configs(path, tmp_path, monkeypatch, capsys):
    lines = (re.sub(r"\n# *", "\n", match) for match in HEADER.findall(path.read_text()))
    text = "\n".join(re.sub(r"  +\(.*", "", line) for line in lines)
    if path.parent.name == "base" and not text:
        pytest.skip("a base file may have no command of its own")
    found = commands(text, tmp_path)
    assert found, f"{path} opens with its command"
    monkeypatch.chdir(tmp_path)
    for tool, *arguments in found:
        check("train.py" if tool == "flops.py" else tool, arguments)  # costs are counted by tests of their own


def check(tool: str, arguments: list[str]) -> None:
    """Training resolves its settings, costs are counted, all other tools parse their arguments."""
    module = importlib.import_module(f"tools.{tool.removesuffix('.py')}")
    if tool == "train.py" and "--resume" not in arguments:
        module.main([*arguments, "--print"])
    elif tool == "flops.py" and "zoo" not in " ".join(arguments):
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
