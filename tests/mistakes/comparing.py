"""Mistakes in comparing runs."""

from __future__ import annotations

import json
from pathlib import Path

from tests.engine.study.run_folders import write_run
from tests.mistakes.mistake import Hidden, Mistake


def _runs(folder: Path) -> None:
    write_run(folder, "one", 0, 0.9)
    write_run(folder, "two", 0, 0.8, "model.depth=6")


def _unfinished(folder: Path) -> None:
    (write_run(folder, "run", 0, 0.9) / "results.json").unlink()


def _study(folder: Path) -> None:
    (folder / "study" / "runs").mkdir(parents=True)
    (folder / "study" / "study.yaml").write_text("{}")
    write_run(folder / "study" / "runs", "good", 0, 0.9)
    (write_run(folder / "study" / "runs", "bad", 1, 0.9) / "results.json").write_text("{")


def _old_sweep(folder: Path) -> None:
    (folder / "sweep.json").write_text(json.dumps([{"value": 4, "top1": 0.5}]))


def _without_altair(folder: Path) -> Hidden:
    _runs(folder)
    return Hidden("altair")


MISTAKES: list[Mistake] = [
    Mistake(
        "A run to compare that is not finished",
        "tools/compare.py run",
        "run: not a finished run (no results.json); finish it with --resume run",
        _unfinished,
    ),
    Mistake(
        "A damaged run among those of a study",
        "tools/compare.py study",
        "left out: study/runs/bad/results.json: ...",
        _study,
        code=0,
    ),
    Mistake(
        "A sweep of an older version",
        "tools/compare.py sweep.json",
        "sweep.json: does not say which run was evaluated, as an older version wrote it; write it again with "
        "tools/eval.py --sweep KEY=[...] --json FILE",
        _old_sweep,
    ),
    Mistake(
        "A figure over a cost that no row has",
        "tools/compare.py one two --pareto pareto.png --cost ms",
        "--cost ms: no row has ms per image and a score; use gmacs or memory_mib or params_m",
        _runs,
    ),
    Mistake(
        "A figure in a format that is not written",
        "tools/compare.py one two --pareto pareto.pdf",
        "--pareto pareto.pdf: must end with .png or .svg",
        _runs,
    ),
    Mistake(
        "A page in a file that browsers do not take for one",
        "tools/compare.py one two --html page.pdf",
        "--html page.pdf: must end with .html",
        _runs,
    ),
    Mistake(
        "A page without the libraries that draw it",
        "tools/compare.py one two --html page.html",
        "--html: needs altair; pip install -e '.[page]'",
        _without_altair,
    ),
    Mistake(
        "The table over a file of a run",
        "tools/compare.py one two --json one/results.json",
        "--json one/results.json: is a file of a run; give another name",
        _runs,
    ),
    Mistake(
        "An axis without its figure",
        "tools/compare.py one two --cost ms",
        "--cost ms: the axis of --pareto, which is not given; add it",
        _runs,
    ),
]
