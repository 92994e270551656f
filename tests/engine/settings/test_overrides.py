"""Overrides on the command line."""

import pytest

from engine.settings.layers import load_settings
from tests.engine.settings.settings_files import refusal, write


def test_overrides_are_yaml_and_the_last_wins(body):
    run = load_settings(body, ["train.lr=1", "train.betas=[0.9, 0.5]", "train.lr=2e-3", "train={epochs: 3}", "name=no"])
    assert (run.train.lr, run.train.betas, run.train.epochs, run.name) == (2e-3, [0.9, 0.5], 3, "no")
    assert load_settings(body, ["out=a=b", " seed = 3 "]).out == "a=b"


def test_overrides_reach_through_a_section_that_is_null(tmp_path):
    top = write(tmp_path, "a.yaml", "name: a\nmodel: {name: hybrid, cnn: null}\ndata: {name: digits}\n")
    assert load_settings(top).model.cnn is None
    assert load_settings(top, ["model.cnn.depth=5"]).model.cnn.depth == 5
    assert load_settings("hybrid_merge", ["model.cnn=null"]).model.cnn is None
    assert load_settings("hybrid_merge", ["model.cnn=null", "model.cnn.depth=5"]).model.cnn.depth == 5
    assert load_settings("hybrid_merge", ["model.cnn.depth=5", "model.cnn=null"]).model.cnn is None


@pytest.mark.parametrize(
    "item",
    [
        "train",
        "=3",
        "train.=3",
        ".lr=3",
        "train..lr=3",
        "train.lr=",
        "train.lr= ",
        "a b=3",
        "--lr=3",
        "",
        ".".join("a" * 2000) + "=1",
    ],
)
def test_a_malformed_override_gets_an_example(body, item):
    assert refusal(body, item).endswith("write section.key=value, as in train.lr=1e-3")


@pytest.mark.parametrize(
    "item",
    [
        "name=@x",
        "train.betas=[0.9",
        "name=*a",
        "name=!!python/name:os.system x",
        "name=a: b: c",
        "train={lr: 1, lr: 2}",
        "name=\udcff",
    ],
)
def test_an_override_that_is_no_yaml_names_itself(body, item):
    line = refusal(body, item)
    assert line.startswith(repr(item)) and "quotes" in line
