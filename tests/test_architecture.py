"""The shape of the code: who may import whom, how long files and functions may be.

Each rule is one test of all modules, which lists those that break it: a test for each would be a fifth of all tests.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

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
TEXTS = {name: path.read_text() for name, path in MODULES.items()}


@cache
def tree(name: str) -> ast.Module:
    return ast.parse(TEXTS[name])


def imports(name: str, *, top_level: bool = False) -> list[tuple[str, str]]:
    """(module, name) of everything that a module imports from the project; `name` is "" for a module itself."""
    path = MODULES[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = []
    for node in tree(name).body if top_level else ast.walk(tree(name)):
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


def test_engine_imports_go_down():
    wrong = []
    for name in MODULES:
        for other, _ in imports(name) if name.startswith("engine.") else ():
            if other.startswith("engine."):
                same_room = other.split(".")[1] == name.split(".")[1]
                below_all = floor(name) == floor(other) == 0  # those may import each other, and none of the rooms
                if not (same_room or below_all or floor(other) < floor(name)):
                    wrong.append(f"{name} imports {other}")
    assert not wrong


def test_nothing_imports_upwards():
    order, wrong = ("models", "engine", "tools"), []
    for name in MODULES:
        own = order.index(name.split(".")[0])
        for other, _ in imports(name):
            if order.index(other.split(".")[0]) > own or (other.startswith("tools") and name != other):
                wrong.append(f"{name} imports {other}")
    assert not wrong


def test_models_import_each_other_relatively():
    """As a library the package has another name, `hybridmerge`."""
    tops = ("models", "engine", "tools")
    assert not [
        f"{name}, line {node.lineno}"
        for name in MODULES
        if name.split(".")[0] == "models"
        for node in ast.walk(tree(name))
        if isinstance(node, ast.ImportFrom) and not node.level and node.module.split(".")[0] in tops
    ]


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


def test_no_private_name_crosses_a_module():
    assert not [
        f"{name} imports {imported} of {other}"
        for name in MODULES
        for other, imported in imports(name)
        if imported.startswith("_")
    ]


def test_files_and_functions_are_short():
    long = []
    for name, text in TEXTS.items():
        if (lines := len(text.splitlines())) > LONGEST_FILE:
            long.append(f"{MODULES[name]} has {lines} lines")
        functions = [node for node in ast.walk(tree(name)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
        for node in functions:
            if (lines := node.end_lineno - node.lineno + 1) > LONGEST_FUNCTION:
                long.append(f"{name}.{node.name} has {lines} lines")
    assert not long


def test_half_of_the_files_are_short():
    lengths = sorted(len(text.splitlines()) for text in TEXTS.values())
    assert lengths[len(lengths) // 2] <= MEDIAN_FILE
