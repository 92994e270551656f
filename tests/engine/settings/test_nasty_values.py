"""No value of a setting, however nasty, is more than one line, and every number has a largest value."""

from __future__ import annotations

import random

import pytest

from engine.settings.layers import load_settings
from engine.settings.schema import RunSettings
from models.settings import Settings, UserError, check, classes_in
from tests.engine.settings.settings_files import BODY, write

NASTY = [
    *(
        "0",
        "-1",
        "1",
        "2",
        "1.5",
        "-0.5",
        "1e300",
        "-1e300",
        "1e-320",
        "1e999",
        ".inf",
        "-.inf",
        ".nan",
        "1e12",
        "1e18",
    ),
    *(
        "9223372036854775808",
        "-9223372036854775809",
        "18446744073709551616",
        "9" * 4000,
        "1000000000",
        "65536",
        "16384",
    ),
    *(
        "true",
        "false",
        "null",
        "~",
        "x",
        "''",
        "[]",
        "{}",
        "[1]",
        "[1, 2]",
        "[[1]]",
        "{a: 1}",
        "{name: x}",
        "[{name: x}]",
    ),
    *(
        "[null]",
        "{first: 1}",
        "{train: [1, 1e9]}",
        "[1e300, 2]",
        "é",
        "\u202e",
        "a" * 5000,
        "../..",
        "/",
        "~root",
        "#",
        "@",
    ),
]
STARTS = [
    "digits/hybrid",
    "digits/vit",
    "cifar10/hybrid",
    "zoo/resnet18",
    "finetune/squeezenet_gradual",
    "kaggle/beit_l384_lora",
]


def keys(cls: type[Settings] = RunSettings, prefix: str = "") -> list[str]:
    """Every key of the settings, by its dotted name, whichever model or dataset has it."""
    found = {}
    for name, field in cls.model_fields.items():
        found[prefix + name] = None
        for inner in classes_in(field.annotation):
            found |= dict.fromkeys(keys(inner, f"{prefix}{name}."))
    return list(found)


def numbers(node, path=""):
    """(path, node) of every number in a JSON schema."""
    if isinstance(node, list):
        return [found for i, entry in enumerate(node) for found in numbers(entry, f"{path}/{i}")]
    if not isinstance(node, dict):
        return []
    here = [(path, node)] if node.get("type") in ("integer", "number") else []
    return here + [found for key, entry in node.items() for found in numbers(entry, f"{path}/{key}")]


def test_every_number_has_a_largest_value():
    without = [
        path
        for path, node in numbers(RunSettings.model_json_schema())
        if not {"maximum", "exclusiveMaximum", "enum"} & node.keys() and "/options/" not in path
    ]
    assert not without


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("train.lr=1e300", "train.lr = 1e+300: must be greater than 0 and at most 1000"),
        ("train.weight_decay=1e308", "train.weight_decay = 1e+308: must be at least 0 and at most 1000"),
        ("train.epochs=1000000000000", "train.epochs = 1000000000000: must be at least 1 and at most 1000000000"),
        ("train.batch_size=1000000000", "train.batch_size = 1000000000: must be at least 1 and at most 1000000"),
        ("seed=18446744073709551616", "seed = 18446744073709551616: must be at least 0 and less than 4294967296"),
        ("model.img_size=1000000", "model.img_size = 1000000: must be greater than 0 and at most 16384"),
        ("model.embed_dim=1000000000", "model.embed_dim = 1000000000: must be greater than 0 and at most 65536"),
        ("model.merge.r=9223372036854775808", "model.merge.r = 9223372036854775808: should be less than or equal to"),
        (
            "augment.crop=100000000000000000000",
            "augment.crop = 100000000000000000000: must be at least 0 and at most 4096",
        ),
    ],
)
def test_numbers_beyond_every_use_are_named(override, says):
    with pytest.raises(UserError) as error:
        load_settings("digits/vit", [override])
    assert str(error.value).startswith(says)


def fuzz(seed: int, count: int) -> None:
    """Loads settings with random keys set to nasty values; each attempt loads, or is one line."""
    rng, known = random.Random(seed), keys()
    for _ in range(count):
        start = rng.choice(STARTS)
        items = [f"{rng.choice(known)}={rng.choice(NASTY)}" for _ in range(rng.choice([1, 1, 1, 2, 3]))]
        try:
            settings = load_settings(start, items)
            assert check(RunSettings, settings.model_dump(mode="json")) == settings, (start, items)
        except UserError as error:
            assert "\n" not in str(error) and len(str(error)) < 1000, (start, items, str(error))
        except Exception as error:
            raise AssertionError((start, items)) from error


@pytest.mark.parametrize("seed", range(3))
def test_nasty_values_of_random_keys(seed):
    fuzz(seed, 60)


def test_nasty_values_in_files(tmp_path):
    rng = random.Random(0)
    for _ in range(60):
        section, key = rng.choice([path for path in keys() if path.count(".") == 1]).split(".")
        text = (
            BODY.replace("vit}", "vit, depth: 2}")
            + f"{section if section != 'model' else 'split'}: {{{key}: {rng.choice(NASTY)}}}\n"
        )
        try:
            load_settings(write(tmp_path, "a.yaml", text))
        except UserError as error:
            assert "\n" not in str(error)
