"""What a plan means: rows, seeds, folds, the order of layers, and what is refused, on one line with file and key."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from engine.settings.layers import load_settings
from engine.study.plan.reading import PLAN_FILE, as_overrides, read_plan
from engine.study.plan.rows import planned_runs
from models.settings import UserError
from tests.engine.study.plans import TINY, plan_of, write_plan


def titles(plan) -> list[str]:
    return [run.title for run in planned_runs(plan)]


def test_rows_times_values_times_seeds_times_folds(tmp_path):
    text = """
    name: s
    configs: [digits/hybrid]
    rows: {small: {cfg: digits/vit, set: {model: {embed_dim: 32}}}}
    vary: {train.lr: [1e-3, 0.01], train.epochs: [1, 2]}
    seeds: [3, 1]
    folds: 2
    """
    runs = planned_runs(plan_of(tmp_path, text))
    assert len(runs) == len({run.title for run in runs}) == 2 * 4 * 2 * 2
    assert runs[0].title == "digits_hybrid_lr0.001_epochs1_s3_f0" and runs[1].title.endswith("_f1")
    assert [run.seed for run in runs] == [3] * 16 + [1] * 16  # every row has its first result early
    small = next(run for run in runs if run.row == "small_lr0.01_epochs2").settings
    assert (small.model.name, small.model.embed_dim, small.train.lr, small.train.epochs) == ("vit", 32, 0.01, 2)
    assert (small.split.folds, small.split.fold, small.out) == (2, 0, "runs/s/runs")
    assert small.name == "small_lr0.01_epochs2_s3"  # folds share a folder


def test_each_run_is_what_its_command_says(tmp_path):
    text = """
    name: s
    configs: [digits/hybrid]
    set: {train: {class_weights: balanced, steps: null}, augment.flip: true}
    vary: {merge.r: [[8, 4, 2, 0], 2], model.merge.method: [tome, grid]}
    seeds: 2
    folds: 3
    """
    for run in planned_runs(plan_of(tmp_path, text)):
        cfg, overrides = run.command[1], run.command[2:]
        again = load_settings(cfg, overrides).model_copy(update={"name": run.settings.name, "out": run.settings.out})
        assert again == run.settings


def test_the_command_line_is_over_rows_and_rows_over_the_base(tmp_path):
    text = TINY + "rows: {a: {set: {train.lr: 0.5}}, b: {}}\n"
    a, b = planned_runs(plan_of(tmp_path, text, "train.epochs=7", "seeds=[4]", "out=elsewhere", "threads=2"))
    assert (a.settings.train.lr, b.settings.train.lr) == (0.5, 2e-3)
    assert a.settings.train.epochs == b.settings.train.epochs == 7
    assert a.settings.train.batch_size == b.settings.train.batch_size == 16
    assert (a.seed, a.settings.out, a.settings.threads) == (4, "elsewhere/runs", 2)


def test_folds(tmp_path):
    base = TINY + "set: {split.folds: 4}\n".replace("set:", "rows: {a: {set:").replace("}\n", "}}}\n")
    assert titles(plan_of(tmp_path, base)) == [f"a_s0_f{fold}" for fold in range(4)]  # the config's own, all of them
    assert titles(plan_of(tmp_path, base + "folds: [2, 0]\n")) == ["a_s0_f2", "a_s0_f0"]
    assert titles(plan_of(tmp_path, base, "split.fold=3")) == ["a_s0_f3"]


def test_configs_beside_the_plan_are_found_from_anywhere(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "mine.yaml").write_text("name: mine\nmodel: {name: lenet5}\ndata: {name: digits}\n")
    write_plan(tmp_path / "sub", "name: s\nconfigs: [mine.yaml, digits/vit]\n")
    monkeypatch.chdir(tmp_path)
    assert titles(read_plan("sub/plan.yaml")) == ["mine_s0", "digits_vit_s0"]


def test_a_study_folder_stands_for_the_plan_in_it(tmp_path):
    plan = plan_of(tmp_path, TINY, "seeds=2")
    (tmp_path / PLAN_FILE).write_text(plan.record)
    again = read_plan(str(tmp_path))
    assert again.settings.cfg == "digits/lenet5" and plan.command in (tmp_path / PLAN_FILE).read_text()
    assert again.record.count("# started as") == 1


def test_a_study_folder_goes_on_as_it_was_started_from_anywhere(tmp_path, monkeypatch):
    """Neither `out=`, nor the overrides, nor the folder of the configs is forgotten: no run is repeated."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "mine.yaml").write_text("name: mine\nmodel: {name: lenet5}\ndata: {name: digits}\n")
    write_plan(tmp_path / "sub", "name: s\nconfigs: [mine.yaml]\n")
    monkeypatch.chdir(tmp_path)
    first = read_plan("sub/plan.yaml", ["out=my study", "train.epochs=3", "seeds=[4, 5]", "jobs=2"])
    (tmp_path / "my study").mkdir()
    (tmp_path / "my study" / PLAN_FILE).write_text(first.record)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = read_plan("../my study", ["seeds=[5]"])
    assert again.folder.resolve() == tmp_path / "my study"
    [run] = planned_runs(again)
    assert (run.seed, run.settings.train.epochs, again.settings.jobs) == (5, 3, 2)
    (tmp_path / "my study" / PLAN_FILE).write_text(again.record)
    third = read_plan("../my study", ["train.epochs=9"])
    [run] = planned_runs(third)
    assert (run.seed, run.settings.train.epochs) == (5, 9)
    assert third.command == "tools/study.py '../my study' jobs=2 'seeds=[5]' train.epochs=9"
    assert read_plan("../my study", ["name=t"]).folder == Path("runs/t")
    assert read_plan(f"../my study/{PLAN_FILE}").folder == again.folder


def test_values_are_written_as_on_the_command_line():
    assert as_overrides({"merge.r": [1, 2], "train": {"lr": 0.1, "steps": None}, "data.path": "a b"}) == [
        "merge.r=[1, 2]",
        "train.lr=0.1",
        "train.steps=null",
        "data.path=a b",
    ]


VIT = "name: s\nconfigs: [digits/vit]\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name: s\nconfig: [digits/vit]\n", "plan.yaml: config: unknown key; did you mean configs or cfg?"),
        ("name: s\n", "plan.yaml: configs: missing; give a list"),
        ("name: s\nname: t\n", "plan.yaml:2: name stands here twice, first on line 1"),
        ("name: s\nconfigs: [digits/vti]\n", "plan.yaml: configs: 'digits/vti': no such file"),
        (VIT + "set: {train.lrr: 1}\n", "plan.yaml: row 'digits_vit': train.lrr: unknown key"),
        (VIT + "vary: {train.lr: 0.1}\n", "plan.yaml: vary.train.lr = 0.1: should be a valid list"),
        (VIT + "vary: {seed: [1, 2]}\n", "plan.yaml: vary.seed: not here; use the plan's seeds:"),
        (VIT + "seeds: [1, 1]\n", "plan.yaml: seeds = [1, 1]: one is given twice"),
        (VIT + "folds: [0]\n", "plan.yaml: row 'digits_vit': folds = [0]: there are no folds"),
        ("name: s\nconfigs: [digits/vit, digits/vit]\n", "plan.yaml: two rows are called 'digits_vit'"),
        ("name: s\ncfg: digits/vit\nrows: {a: {}, b: {set: {device: cpu}}}\n", "a_s0 and b_s0 have the same settings"),
        ("name: s\nrows: {a: {cgf: digits/vit}}\n", "plan.yaml: rows.a.cgf: unknown key; did you mean cfg?"),
        ("name: s\nrows: {a: digits/vit}\n", "plan.yaml: rows.a = 'digits/vit': must be a section"),
        ("name: s\nrows: {a: {}}\n", "plan.yaml: rows.a.cfg: missing"),
        ("name: s\ncfg: digits/vti\n", "plan.yaml: cfg: 'digits/vti': no such file"),
        ("name: s\ncfg: digits/vit\nrows: {a/b: {}}\n", "plan.yaml: rows: 'a/b': names a folder; no slash, no dot"),
        ("name: s\ncfg: digits/vit\nrows: {..: {}}\n", "plan.yaml: rows: '..': names a folder; no slash, no dot"),
        ("name: s\ncfg: digits/vit\nrows: {%s: {}}\n" % (300 * "x"), "xxx...': a name of 300 bytes, too long"),
        ("name: a/b\ncfg: digits/vit\n", "plan.yaml: name = 'a/b': must be the study's name, which names its folder"),
        ("name: s\nmodel: {name: vit}\n", "plan.yaml: holds the settings of one run"),
    ],
)
def test_what_is_refused(tmp_path, text, says):
    with pytest.raises(UserError, match=re.escape(says)) as caught:
        planned_runs(plan_of(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_one_run_refuses_several_seeds_and_names_the_tool(tmp_path):
    (tmp_path / "run.yaml").write_text("name: a\nseed: [0, 1]\nmodel: {name: lenet5}\ndata: {name: digits}\n")
    file = str(tmp_path / "run.yaml")
    for cfg, overrides in (("digits/vit", ["seed=[0,1]"]), ("digits/vit", ["train.lr=[1,2]"]), (file, [])):
        with pytest.raises(UserError, match="tools/study.py"):
            load_settings(cfg, overrides)
    with pytest.raises(UserError, match=r"seed=1: use seeds=\[0, 1\]"):
        plan_of(tmp_path, TINY, "seed=1")
    with pytest.raises(UserError, match="start it with tools/study.py"):
        load_settings("studies/digits")
