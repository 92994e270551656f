"""Overrides on the command line."""

import os

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
    assert load_settings("cifar10/hybrid", ["model.cnn=null"]).model.cnn is None
    assert load_settings("cifar10/hybrid", ["model.cnn=null", "model.cnn.depth=5"]).model.cnn.depth == 5
    assert load_settings("cifar10/hybrid", ["model.cnn.depth=5", "model.cnn=null"]).model.cnn is None


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
    "text",
    [
        "2024",
        "1e3",
        "01",
        "1_000",
        "true",
        "null",
        "~",
        "set #2",
        "#1",
        "[a]",
        "{a}",
        "a: b: c",
        "- x",
        "*x",
        "&x",
        "!!python/name:os.system x",
        "@x",
        "%x",
        "`x`",
        "|",
        "> x",
        "'quoted'",
        '"quoted"',
        "an 'un\"closed",
        "C:\\new\\x41",
        "a=b",
        " blanks ",
        "two\nlines",
        "tab\tand, comma",
        "\u00e9\u2028\ue023",
    ],
)
def test_a_text_is_what_the_shell_passed(body, text):
    assert load_settings(body, [f"out={text}"]).out == text
    weights = load_settings(body, [f"model.weights=./{text}"]).model.weights
    assert weights == os.path.abspath(text)
    data = load_settings(body, ["data.name=folder", f"data.path=/{text}"]).data
    assert data.path == f"/{text}"


def test_null_leaves_out_a_text_that_may_be_left_out(tmp_path):
    top = write(tmp_path, "a.yaml", "name: a\nmodel: {name: vit, weights: w.pt}\ndata: {name: digits}\n")
    assert load_settings(top).model.weights
    for null in ("null", "~", "Null"):
        assert load_settings(top, [f"model.weights={null}"]).model.weights is None
    run = load_settings(top, ["name=null", "model.merge.metric=null"])
    assert (run.name, run.model.merge.metric) == ("null", None)


def test_one_of_several_words_may_have_blanks_around_it(body):
    assert load_settings(body, ["train.optimizer= sgd "]).train.optimizer == "sgd"
    assert refusal(body, "train.optimizer=1") == "train.optimizer = '1': known: adamw, sgd"


def test_texts_inside_lists_and_sections_are_texts(body):
    start = ["model.name=timm:resnet18", "model.options={a: 2024}", "finetune.mode=lora"]
    run = load_settings(body, [*start, "finetune.targets=[qkv, 1, 010, true, a #b]", "data={name: npz, path: /1e3 #2}"])
    assert run.finetune.targets == ["qkv", "1", "010", "true", "a #b"]
    assert run.data.path == "/1e3 #2"
    assert run.model.options == {"a": 2024}
    run = load_settings(body, ["augment.transforms=[{name: RandomHorizontalFlip}]"])
    assert run.augment.transforms[0].name == "RandomHorizontalFlip"


def test_what_is_no_text_has_no_comment_either(body):
    assert refusal(body, "train.lr=1e-3 #2") == "train.lr = '1e-3 #2': should be a valid number"
    assert refusal(body, "train.betas=[0.9 #1").startswith("'train.betas=[0.9 #1': ")


def test_a_key_that_does_not_exist_is_what_is_wrong(body):
    assert refusal(body, "train.lrr=[0.1").startswith("train.lrr: unknown key")


@pytest.mark.parametrize("item", ["train.betas=[0.9", "train={lr: 1, lr: 2}", "train.lr=!!float 1", "train.lr=*a"])
def test_an_override_that_is_no_yaml_names_itself(body, item):
    line = refusal(body, item)
    assert line.startswith(repr(item)) and "is read as YAML" in line


@pytest.mark.parametrize("item", ["name=\udcff", "data.path=a\udcff", "train.lr=\udcff"])
def test_bytes_that_are_no_text_are_refused(body, item):
    assert "no UTF-8 text" in refusal(body, item)
