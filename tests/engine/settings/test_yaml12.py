"""YAML 1.2 as plain data: what is read as what, and what is refused with its line."""

import time

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.settings.schema import RunSettings
from engine.settings.yaml12 import MAX_LENGTH, BadYAML, dump, parse

QUICK = settings(max_examples=60, deadline=None)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1E5", 1e5),
        (".5e3", 500.0),
        ("-1.5e+2", -150.0),
        ("1.", 1.0),
        ("+.5", 0.5),
        ("7", 7),
        ("-7", -7),
        ("010", 10),
        ("0", 0),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("off", "off"),
        ("n", "n"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("1_000", "1_000"),
        ("0x10", "0x10"),
        ("1e", "1e"),
        ("'1e-3'", "1e-3"),
        ('"010"', "010"),
        ("=", "="),
        ("[1, 1e1, a]", [1, 10.0, "a"]),
    ],
)
def test_values_are_read_as_yaml_1_2(text, value):
    found = parse(text)
    assert found == value and type(found) is type(value)
    assert parse(f"key: {text}")["key"] == value


def test_a_number_is_a_text_where_only_a_text_is_possible():
    text = "name: 010\nout: true\nmodel: {name: vit, weights: 1e3}\nfinetune: {targets: [1, no, a]}\nseed: 010\n"
    text += "data: {name: csv, path: 2024-01-01, images: null}\ntrain: {optimizer: 1, lr: 1e3}\n"
    assert parse(text, [RunSettings]) == {
        "name": "010",
        "out": "true",
        "model": {"name": "vit", "weights": "1e3"},
        "finetune": {"targets": ["1", "no", "a"]},
        "seed": 10,
        "data": {"name": "csv", "path": "2024-01-01", "images": None},
        "train": {"optimizer": "1", "lr": 1e3},
    }
    assert parse("name:\nout: null\n", [RunSettings]) == {"name": None, "out": None}


def test_a_dumped_text_stays_a_text_for_other_readers_too():
    texts = ["1e-3", "010", "no", "null", "~", "1:30", "2024-01-01", "true", "", " a", "a: b", "é\n\u2028", "0\x85"]
    assert parse(dump({"texts": texts})) == {"texts": texts}
    assert yaml.safe_load(dump({"texts": texts})) == {"texts": texts}


@QUICK
@given(st.text(), st.floats(allow_nan=False), st.integers(), st.booleans())
def test_any_value_survives_dump_and_parse(text, number, count, flag):
    values = {"a": [text, number, count], "b": {"c": flag, "d": None}}
    assert parse(dump(values)) == values


@pytest.mark.parametrize("text", ["", "# nothing but this\n", "---\n", "\n\n"])
def test_no_text_is_none(text):
    assert parse(text) is None


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a: 1\nb: 2\na: 3\n", 3, ["a stands here twice", "line 1"]),
        ("train:\n  lr: 1\n  lr: 2\n", 3, ["lr stands here twice", "line 2"]),
        ("train: {lr: 1, lr: 2}", 1, ["twice"]),
        ("train: {lr: 1, 'lr': 2}", 1, ["twice"]),
        ("train:\n\tlr: 1\n", 2, ["spaces"]),
        ("name: a\nx: !!python/object/apply:os.system [ls]\n", 2, ["!!python/object/apply:os.system"]),
        ("name: !!str 3\n", 1, ["!!str"]),
        ("name: !mine 3\n", 1, ["!mine"]),
        ("a: 1\nb: &x [1]\n", 2, ["anchors"]),
        ("a: &x [1]\nb: [*x, *x]\n", 1, ["anchors"]),
        ("b: *x\n", 1, ["aliases"]),
        ("a:\n  <<: {b: 1}\n", 2, ["'<<' is not a key"]),
        ("train.lr: 1\n", 1, ["'train.lr' is not a key", "nested"]),
        ("1: 2\n", 1, ["'1'"]),
        ("? [a]\n: b\n", 1, ["a list or section"]),
        ("a: [1, 2\nb: 3\n", 2, ["expected"]),
        ("a: 1\n---\na: 2\n", 2, ["document"]),
        ("a: 'b\n", 2, ["quoted"]),
        ("a: 1\nb: \x07\n", 2, ["not allowed"]),
        ('a: 1\nb: "\\UFFFFFFFF"\n', 2, ["escape"]),
        ('a: "\\U00110000"\n', 1, ["escape"]),
        ("a: " + "9" * 5000, 1, ["digits"]),
        ("a: " + "[" * 2000 + "]" * 2000, 1, ["deeper"]),
        ("".join("  " * i + "b:\n" for i in range(99)), 30, ["deeper"]),
    ],
)
def test_more_than_plain_data_is_refused_with_its_line(text, line, words):
    with pytest.raises(BadYAML) as error:
        parse(text)
    assert error.value.line == line
    assert "\n" not in error.value.problem
    for word in words:
        assert word in error.value.problem


def test_a_bomb_of_anchors_is_refused_at_once():
    lines = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 60)]
    with pytest.raises(BadYAML, match="anchors"):
        parse("\n".join(lines))


@pytest.mark.parametrize("text", ["a: " + "x" * 10**8, "a: [" + "1," * 10**6, "\n" * 10**7, "a: '" + "\n" * 10**6])
def test_a_text_longer_than_settings_are_is_refused_before_it_is_read(text):
    started = time.perf_counter()
    with pytest.raises(BadYAML, match=f"longer than {MAX_LENGTH:,} characters"):
        parse(text)
    assert time.perf_counter() - started < 0.5
