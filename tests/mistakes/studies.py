"""Mistakes in the plan of a study, and in what it is given."""

from __future__ import annotations

from pathlib import Path

from engine.runs.lock import Lock, take_lock
from tests.mistakes.mistake import Mistake

PLAN = "name: mine\nconfigs: [digits/vit]\n"


def _plan(text: str):
    def write(folder: Path) -> None:
        (folder / "plan.yaml").write_text(text)

    return write


def _in_progress(folder: Path) -> Lock:
    _plan(PLAN)(folder)
    study = folder / "runs" / "mine"
    study.mkdir(parents=True)
    (study / "study.yaml").write_text(PLAN)
    return take_lock(study, resume=True)


def _other_files(folder: Path) -> None:
    _plan(PLAN)(folder)
    (folder / "thesis").mkdir()
    (folder / "thesis" / "thesis.tex").touch()


MISTAKES: list[Mistake] = [
    Mistake(
        "Several seeds for one run",
        "tools/train.py --cfg digits/vit seed=[0,1]",
        "seed=[0,1]: a run has one value of seed; tools/study.py trains a run for each of several",
    ),
    Mistake(
        "A plan where a config is expected",
        "tools/train.py --cfg plan.yaml",
        "plan.yaml: is the plan of a study, of several runs; start it with tools/study.py plan.yaml",
        _plan(PLAN),
    ),
    Mistake(
        "A config where a plan is expected",
        "tools/study.py digits/vit",
        "...digits/vit.yaml: holds the settings of one run; name it under configs: in a plan, or train it alone",
    ),
    Mistake(
        "A key that plans do not have",
        "tools/study.py plan.yaml --dry-run",
        "plan.yaml: seed: unknown key; did you mean seeds or sweep?",
        _plan(PLAN + "seed: [0, 1]\n"),
    ),
    Mistake(
        "A setting of a row that does not exist",
        "tools/study.py plan.yaml --dry-run",
        "plan.yaml: row 'wide': model.embed_dims: unknown key; did you mean embed_dim?",
        _plan("name: mine\nrows: {wide: {cfg: digits/vit, set: {model.embed_dims: 128}}}\n"),
    ),
    Mistake(
        "Two rows that are the same run",
        "tools/study.py plan.yaml --dry-run",
        "plan.yaml: slow_s0 and named_s0 have the same settings; take one out",
        _plan(
            "name: mine\ncfg: digits/vit\nrows: {slow: {set: {train.lr: 1e-4}}, named: {set: {train: {lr: 1e-4}}}}\n"
        ),
    ),
    Mistake(
        "A row whose name is no folder's",
        "tools/study.py plan.yaml --dry-run",
        "plan.yaml: rows: 'lr 1/2': names a folder; no slash, no dot or blank at its start",
        _plan("name: mine\ncfg: digits/vit\nrows: {lr 1/2: {set: {train.lr: 0.5}}}\n"),
    ),
    Mistake(
        "A sweep that a model cannot be evaluated with",
        "tools/study.py plan.yaml --dry-run",
        "plan.yaml: sweep: row 'digits_vit': model.merge.rr: unknown key; did you mean r?",
        _plan(PLAN + "sweep: merge.rr=[0, 4]\n"),
    ),
    Mistake(
        "A search for a setting that does not exist",
        "tools/study.py plan.yaml --dry-run",
        "plan.yaml: search.space: no values are allowed, since train.lrr: unknown key; did you mean lr?",
        _plan(PLAN + "search: {trials: 30, space: {train.lrr: [1e-3, 1e-4]}}\n"),
    ),
    Mistake(
        "A study in a folder with other files",
        "tools/study.py plan.yaml out=thesis",
        "thesis: holds files, but no study (study.yaml); give the study another name= or out=",
        _other_files,
    ),
    Mistake(
        "Two studies in one folder",
        "tools/study.py plan.yaml",
        "runs/mine: in use by process ...; wait for it or stop it, or use another name=",
        _in_progress,
    ),
]
