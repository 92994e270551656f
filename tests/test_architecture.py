"""The shape of the code: who may import whom, how long files and functions may be."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.paths import ROOT

# Rooms of engine/ from the ground up. A room may import from those below it and from its own floor's left neighbours
# only where `SAME_FLOOR` says so; files at engine's root are in `EVERYWHERE` or have a floor of their own.
FLOORS = (
    ("data", "launch"),
    ("settings", "cost"),
    ("runs",),
    ("measure",),
    ("figures", "submit"),
    ("train", "study"),
    ("explain",),
)
EVERYWHERE = {"cli", "files", "machine", "tables", "tasks", "wording"}  # import nothing of the rooms
ON_TOP = {"export"}
LONGEST_FILE, LONGEST_FUNCTION, MEDIAN_FILE = 300, 60, 150


def modules() -> dict[str, Path]:
    """Every module of the project's own code by its dotted name."""
    found = {}
    for top in ("engine", "models", "tools"):
        for path in sorted((ROOT / top).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(name: str, *, top_level: bool = False) -> list[tuple[str, str]]:
    """(module, name) of everything that a module imports from the project; `name` is "" for a module itself."""
    path = MODULES[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = []
    tree = ast.parse(path.read_text())
    for node in tree.body if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, "") for alias in node.names if alias.name in MODULES]
        if isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join(above + ([node.module] if node.module else []))
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                if inner in MODULES:
                    found.append((inner, ""))
                elif base in MODULES:
                    found.append((base, alias.name))
    return found


def floor(name: str) -> int:
    """The floor of a module of engine/: 0 for what is used everywhere."""
    room = name.split(".")[1] if "." in name else ""
    if room in EVERYWHERE or not room:
        return 0
    if room in ON_TOP:
        return len(FLOORS) + 1
    return 1 + next(i for i, rooms in enumerate(FLOORS) if room in rooms)


@pytest.mark.parametrize("name", [n for n in MODULES if n.startswith("engine.")])
def test_engine_imports_go_down(name):
    for other, _ in imports(name):
        if other.startswith("engine."):
            same_room = other.split(".")[1] == name.split(".")[1]
            below_all = floor(name) == floor(other) == 0  # those may import each other, and none of the rooms
            assert same_room or below_all or floor(other) < floor(name), f"{name} imports {other}"


@pytest.mark.parametrize("name", MODULES)
def test_nothing_imports_upwards(name):
    order = ("models", "engine", "tools")
    own = order.index(name.split(".")[0])
    for other, _ in imports(name):
        assert order.index(other.split(".")[0]) <= own, f"{name} imports {other}"
        assert not other.startswith("tools") or name == other, f"{name} imports a tool"


@pytest.mark.parametrize("name", [n for n in MODULES if n.split(".")[0] == "models"])
def test_models_import_each_other_relatively(name):
    """As a library the package has another name, `hybridmerge`."""
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.ImportFrom) and not node.level:
            assert node.module.split(".")[0] not in ("models", "engine", "tools"), f"{name}, line {node.lineno}"


def test_no_circles():
    """Among imports that run when a module is imported."""
    state: dict[str, int] = {}

    def visit(name: str, chain: tuple[str, ...]) -> None:
        assert state.get(name) != 1, f"a circle: {' -> '.join((*chain, name))}"
        if name in state:
            return
        state[name] = 1
        for other, _ in imports(name, top_level=True):
            if other != name:
                visit(other, (*chain, name))
        state[name] = 2

    for name in MODULES:
        visit(name, ())


@pytest.mark.parametrize("name", MODULES)
def test_no_private_name_crosses_a_module(name):
    for other, imported in imports(name):
        assert not imported.startswith("_"), f"{name} imports {imported} of {other}"


@pytest.mark.parametrize("name", MODULES)
def test_files_and_functions_are_short(name):
    text = MODULES[name].read_text()
    assert len(text.splitlines()) <= LONGEST_FILE, f"{MODULES[name]} has {len(text.splitlines())} lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = node.end_lineno - node.lineno + 1
            assert lines <= LONGEST_FUNCTION, f"{name}.{node.name} has {lines} lines"


def test_half_of_the_files_are_short():
    lengths = sorted(len(path.read_text().splitlines()) for path in MODULES.values())
    assert lengths[len(lengths) // 2] <= MEDIAN_FILE
