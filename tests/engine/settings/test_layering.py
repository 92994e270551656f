"""Layers of settings are merged; what a layer supersedes goes."""

import copy
import os
from pathlib import Path
from typing import ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import create_model

from engine.data.sources.npz import NpzSettings
from engine.settings import layers as config
from engine.settings.layers import load_settings, to_yaml
from models.merging.settings import AnySettings, LinearSettings, MergeSettings
from models.settings import Settings, check
from models.settings.hybrid import HybridSettings
from models.settings.vit import ViTSettings
from tests.engine.settings.settings_files import QUICK, refusal, write


def tree():
    return st.recursive(
        st.none() | st.integers() | st.lists(st.integers(), max_size=2),
        lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
        max_leaves=8,
    )


@QUICK
@given(st.dictionaries(st.sampled_from("abc"), tree()), st.dictionaries(st.sampled_from("abc"), tree()))
def test_merging_changes_neither_side_and_the_upper_wins(below, above):
    before = copy.deepcopy((below, above))
    merged = config.layered(below, above, ())
    assert (below, above) == before
    assert config.layered(merged, above, ()) == merged, "what is above is there already"
    assert config.layered(below, {}, ()) == below and config.layered({}, above, ()) == above
    assert merged.keys() == below.keys() | above.keys()


@pytest.mark.parametrize("budget", ["target_gmacs", "target_ratio", "target_ms", "threshold"])
def test_without_merging_no_budget_is_left_to_be_met(budget, tmp_path):
    text = f"base: {config.CONFIGS}/cifar10/hybrid.yaml\nmodel: {{merge: {{{budget}: 1.0, kth: 3}}}}\n"
    merge = load_settings(write(tmp_path, "one.yaml", text), ["merge.method=none"]).model.merge
    assert merge == check(MergeSettings, {"method": "none"})


def test_a_number_of_tokens_is_kept_for_the_method_that_comes_back(tmp_path):
    write(tmp_path, "one.yaml", f"base: {config.CONFIGS}/cifar10/hybrid.yaml\nmodel: {{merge: {{method: none}}}}\n")
    two = write(tmp_path, "two.yaml", "base: one.yaml\nmodel: {merge: {method: tome}}\n")
    assert load_settings(two).model.merge == check(MergeSettings, {"method": "tome", "r": 8})


def test_a_threshold_goes_with_the_methods_that_have_one(tmp_path):
    text = f"base: {config.CONFIGS}/cifar10/hybrid.yaml\nmodel: {{merge: {{method: topk, threshold: 0.9}}}}\n"
    one = write(tmp_path, "one.yaml", text)
    assert load_settings(one, ["merge.method=atc"]).model.merge.threshold == 0.9
    assert load_settings(one, ["merge.method=pitome"]).model.merge == check(MergeSettings, {"method": "pitome"})


def test_another_name_drops_what_only_the_old_one_knows():
    run = load_settings("cifar10/hybrid", ["model.name=vit", "data.name=npz", "data.path=x.npz"])
    assert isinstance(run.model, ViTSettings) and run.model.merge.r == 8 and run.model.embed_dim == 96
    assert run.data == NpzSettings(path="x.npz")
    assert refusal("cifar10/vit", "data.root=x", "data.name=npz", "data.path=x").startswith("data.root: unknown key")


def test_a_child_file_drops_them_too_and_may_come_back(tmp_path):
    write(tmp_path, "one.yaml", "name: a\nmodel: {name: hybrid, cnn: {depth: 7}, depth: 3}\ndata: {name: npz, path: x}")
    write(tmp_path, "two.yaml", "base: one.yaml\nmodel: {name: vit}\ndata: {name: cifar10, root: y}\n")
    two = load_settings(str(tmp_path / "two.yaml"))
    assert two.model == ViTSettings(depth=3, num_classes=10) and two.data.root == os.path.abspath("y")
    three = load_settings(write(tmp_path, "three.yaml", "base: two.yaml\nmodel: {name: hybrid}\n"))
    assert three.model == HybridSettings(depth=3, num_classes=10), "the base's cnn went with the first hybrid"


@pytest.mark.parametrize("overrides", [["model.name=vit", "model.cnn.depth=2"], ["model.cnn=null", "model.name=vit"]])
def test_a_key_beside_the_new_name_must_be_its_own(overrides):
    assert refusal("cifar10/hybrid", *overrides).startswith("model.cnn: unknown key")


def test_a_key_that_neither_knows_is_not_dropped_quietly(tmp_path):
    write(tmp_path, "one.yaml", "name: a\nmodel: {name: hybrid, dpeth: 3}\ndata: {name: digits}\n")
    top = write(tmp_path, "two.yaml", "base: one.yaml\nmodel: {name: vit}\n")
    assert refusal(top) == "model.dpeth: unknown key; did you mean depth?"


def test_a_key_of_the_old_one_above_the_new_name_is_an_error(tmp_path):
    write(tmp_path, "one.yaml", "base: zero.yaml\nmodel: {name: vit}\n")
    write(tmp_path, "zero.yaml", "name: a\nmodel: {name: hybrid}\ndata: {name: digits}\n")
    top = write(tmp_path, "two.yaml", "base: one.yaml\nmodel: {stem: conv}\n")
    assert refusal(top).startswith("model.stem: unknown key")


@pytest.mark.parametrize(
    ("overrides", "merge"),
    [
        (["model.merge.target_gmacs=0.05"], {"target_gmacs": 0.05}),
        (["merge.target_ratio=1.2"], {"target_ratio": 1.2}),
        (["merge.keep={rate: 0.7, blocks: [2]}"], {"keep": {"rate": 0.7, "blocks": [2]}}),
        (["merge.r={train: [0, 8]}"], {"r": {"train": [0, 8]}}),
        (["merge={r: 3, method: pool}"], {"r": 3, "method": "pool"}),
        (["merge.keep=null"], {"r": 8}),
        (["merge.target_gmacs=0.05", "merge.r=0"], {"r": 0, "target_gmacs": 0.05}),
    ],
)
def test_a_budget_takes_the_place_of_the_file_s(overrides, merge):
    assert load_settings("cifar10/hybrid", overrides).model.merge == check(MergeSettings, {"method": "tome", **merge})


def test_a_budget_goes_when_a_layer_above_names_another(tmp_path):
    one = "name: a\nmodel: {name: vit, merge: {method: topk, prune: true, target_gmacs: 9.0}}\ndata: {name: digits}\n"
    write(tmp_path, "one.yaml", one)
    two = write(tmp_path, "two.yaml", "base: one.yaml\nmodel: {merge: {r: {first: 9, last: 0}}}\n")
    text = "base: two.yaml\nmodel: {merge: {r: {train: [0, 4]}, method: tome, kth: 3}}\n"
    three = write(tmp_path, "three.yaml", text)
    assert load_settings(two).model.merge == check(
        MergeSettings, {"method": "topk", "prune": True, "r": {"first": 9, "last": 0}}
    )
    assert load_settings(three).model.merge == check(
        MergeSettings, {"method": "tome", "kth": 3, "r": {"train": [0, 4]}}
    )
    assert load_settings(two, ["merge.r.last=2"]).model.merge.r == LinearSettings(first=9, last=2)
    assert load_settings(two, ["merge.r=0"]).model.merge.r == 0
    # what says nothing of it leaves it be
    assert load_settings(three, ["merge.prop_attn=false"]).model.merge.r == AnySettings(train=[0, 4])
    assert load_settings(three, ["merge.kth=5"]).model.merge.kth == 5


@pytest.mark.parametrize(
    "stored",
    ["merge.target_gmacs=0.05", "merge.keep={rate: 0.5, blocks: [1]}", "merge.kth=3", "merge.r={train: [0, 4]}"],
)
def test_a_written_file_s_budget_and_options_are_dropped_too(tmp_path, stored):
    path = write(tmp_path, "settings.yaml", to_yaml(load_settings("cifar10/hybrid", [stored])))
    assert load_settings(path, ["merge.r=5"]).model.merge.r == 5
    assert load_settings(path, ["merge.method=random", "merge.target_ratio=1.3"]).model.merge == check(
        MergeSettings, {"method": "random", "target_ratio": 1.3}
    )


def test_two_budgets_in_one_layer_or_a_stranger_s_option_stay_errors(tmp_path):
    said = "model.merge.target_gmacs = 1.0: cannot be combined with merge.r = 4; give one of them"
    assert refusal("cifar10/hybrid", "merge.r=4", "merge.target_gmacs=1") == said
    has = "tome has no such option, topk, ats and dynamicvit have"
    assert refusal("cifar10/hybrid", "merge.prune=true").endswith(has)
    assert refusal("cifar10/hybrid", "merge.method=tome", "merge.prune=true").startswith("model.merge.prune = True")
    assert refusal("cifar10/hybrid", "merge.method=nothing", "merge.kth=3").startswith("model.merge.method = 'nothing'")
    assert refusal("cifar10/hybrid", "merge=3").startswith("model.merge = 3: must be a section")
    assert refusal("cifar10/hybrid", "merge.x=3").startswith("model.merge.x: unknown key")


@QUICK
@given(tree(), tree(), st.sampled_from(["r", "keep", "method", "kth"]))
def test_layers_of_anything_are_put_together(below, above, key):
    layers = [{"model": {"merge": {key: value, "r": value}}} for value in (below, above)]
    before = copy.deepcopy(layers)
    merged = config.layered(*layers)["model"]["merge"]
    assert layers == before
    assert merged[key] == above or isinstance(above, dict)


class Round(Settings):
    radius: int = 0


class Square(Settings):
    side: int = 0
    turned: bool = False


class Drawing(Settings):
    alternatives: ClassVar = (("width", "share"),)
    keys_by_choice: ClassVar = {"pen": {"ink": ("colour", "blot"), "lead": ("grade",), "chalk": ("colour",)}}

    width: int | None = None
    share: float | None = None
    pen: Literal["ink", "lead", "chalk"] = "ink"
    colour: str | None = None
    blot: int | None = None
    grade: str | None = None
    shape: Round | Square = Round()
    extra: dict[str, int] = {}


@pytest.mark.parametrize(
    ("below", "above", "merged"),
    [
        ({"width": 3}, {"share": 0.5}, {"share": 0.5}),
        ({"width": 3}, {"share": None}, {"width": 3, "share": None}),
        ({"width": 3}, {"width": 4, "share": 0.5}, {"width": 4, "share": 0.5}),
        ({"colour": "red", "blot": 1}, {"pen": "lead"}, {"pen": "lead"}),
        ({"colour": "red", "blot": 1}, {"pen": "chalk"}, {"colour": "red", "pen": "chalk"}),
        ({"pen": "chalk", "grade": "HB"}, {"pen": "chalk"}, {"pen": "chalk", "grade": "HB"}),
        ({"pen": "lead", "colour": "red"}, {"pen": "ink"}, {"pen": "ink", "colour": "red"}),
        ({"colour": "red"}, {"pen": "quill"}, {"colour": "red", "pen": "quill"}),
        ({"shape": {"radius": 3}}, {"shape": {"side": 2}}, {"shape": {"side": 2}}),
        ({"shape": {"side": 3}}, {"shape": {"turned": True}}, {"shape": {"side": 3, "turned": True}}),
        ({"shape": {"side": 3}}, {"shape": {"sid": 2}}, {"shape": {"side": 3, "sid": 2}}),
        ({"shape": 1}, {"shape": {"side": 2}}, {"shape": {"side": 2}}),
        ({"extra": {"a": 1}}, {"extra": {"b": 2}}, {"extra": {"a": 1, "b": 2}}),
    ],
)
def test_layers_follow_the_rules_that_a_settings_class_declares(below, above, merged):
    assert config.layered(below, above, (Drawing,)) == merged
    assert config.layered({"a": {"b": below}}, {"a": {"b": above}}, (nested(),))["a"]["b"] == merged


def nested():
    """A settings class whose section `a.b` is a Drawing, or nothing."""
    inner = create_model("Inner", __base__=Settings, b=(Drawing | None, None))
    return create_model("Outer", __base__=Settings, a=(inner, inner()))


def test_layering_names_no_model_method_or_mode():
    source = Path(config.__file__).read_text()
    for word in ("MERGERS", "MODELS", "DATASETS", "finetune.", "target_gmacs ", '"method"', '"mode"', '"merge"]'):
        assert word not in source, word
