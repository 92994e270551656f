"""From files, what they inherit, and overrides to one tree of settings."""

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
from engine.settings.layers import CONFIGS, load_settings, to_yaml
from models.merging.settings import AnySettings, LinearSettings, MergeSettings
from models.settings import Settings, check
from models.settings.hybrid import HybridSettings
from models.settings.lenet5 import LeNet5Settings
from models.settings.vit import ViTSettings
from tests.engine.settings.settings_files import BODY, QUICK, RUNS, refusal, write

# Reading a file


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train:\n  lr: 1\n  lr: 2\n", [":3: lr stands here twice", "line 2"]),
        ("train:\n\tlr: 1\n", [":2: ", "spaces"]),
        ("name: a\nx: !!python/object/apply:os.system [ls]\n", [":2: ", "!!python/object/apply:os.system"]),
        ("a: 1\nb: &x [1]\n", [":2: anchors"]),
        ("", [":1: holds nothing", "key: value"]),
        ("# nothing but this\n", [":1: holds nothing"]),
        ("- a\n- b\n", [":1: holds a list", "key: value"]),
        ("lr", [":1: holds a single value"]),
        (b"a: 1\nb: \xff\xfe\n", [":2: not UTF-8"]),
        (bytes(range(256)), [":2: not UTF-8"]),
        (BODY.encode("utf-16"), [":1: not UTF-8"]),
        (b"\0" * 100, [":1: ", "not allowed"]),
    ],
)
def test_a_text_that_is_no_settings_file_is_refused_with_its_line(tmp_path, text, words):
    line = refusal(write(tmp_path, "bad.yaml", text))
    assert line.startswith(str(tmp_path / "bad.yaml:"))
    for word in words:
        assert word in line


def test_windows_line_ends_a_byte_order_mark_and_comments_are_read(tmp_path):
    text = b"\xef\xbb\xbf# comment\r\n" + BODY.replace("\n", "\r\n").encode()
    assert load_settings(write(tmp_path, "a.yaml", text)).name == "a"


def test_a_file_that_cannot_be_read_is_named(body, monkeypatch):
    def refuse(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert refusal(body) == f"{body}: cannot be read: permission denied"


# Finding the file


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.relative_to(CONFIGS).as_posix())
def test_every_config_is_found_by_name_from_anywhere(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = path.relative_to(CONFIGS).as_posix()
    assert load_settings(name) == load_settings(name.removesuffix(".yaml")) == load_settings(str(path))


def test_a_file_here_comes_before_a_name_under_configs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "hybrid_merge.yaml", BODY)
    assert load_settings("hybrid_merge.yaml").name == "a"
    assert load_settings("hybrid_merge").name == "hybrid_merge"


@pytest.mark.parametrize(
    ("cfg", "words"),
    [
        ("hybrd_merge", ["'hybrd_merge'", "did you mean hybrid_merge?"]),
        ("configs/digits/hybird.yaml", ["digits/hybrid"]),
        ("digits", ["digits/vit"]),
        ("qqq", ["known: ", "cifar100/hybrid", "vit_b16"]),
        ("", ["known: "]),
        ("\0", ["known: "]),
        ("a" * 5000, ["known: "]),
        ("a\nb", ["known: "]),
        (".", ["known: "]),
    ],
)
def test_an_unknown_name_gets_the_nearest(cfg, words):
    line = refusal(cfg)
    for word in words:
        assert word in line
    assert "base/" not in line


# base:


def test_base_files_are_merged_deeply_and_later_ones_win(tmp_path):
    write(tmp_path, "low/one.yaml", "seed: 1\ntrain: {lr: 0.1, epochs: 5, betas: [0.5, 0.6]}\n")
    write(tmp_path, "low/two.yaml", "base: one.yaml\nseed: 2\ntrain: {lr: 0.2}\n")
    write(tmp_path, "three.yaml", "train: {weight_decay: 0.3}\nlog: {images: 3}\n")
    top = write(tmp_path, "top.yaml", f"base: [low/two.yaml, three.yaml]\n{BODY}train: {{betas: [0.7, 0.8]}}\n")
    run = load_settings(top, ["log.images=4"])
    assert (run.seed, run.train.lr, run.train.epochs, run.train.betas) == (2, 0.2, 5, [0.7, 0.8])
    assert (run.train.weight_decay, run.log.images) == (0.3, 4)


def test_another_mode_of_fine_tuning_drops_what_only_the_old_one_has(tmp_path):
    cfg = write(tmp_path, "a.yaml", BODY + "finetune: {mode: full, layer_decay: 0.8}\n")
    assert load_settings(cfg, ["finetune.mode=head"]).finetune.model_dump(exclude_none=True) == {"mode": "head"}
    assert load_settings(cfg, ["finetune.mode=lora", "finetune.rank=4"]).finetune.layer_decay is None
    assert load_settings(cfg, ["finetune.mode=full"]).finetune.layer_decay == 0.8
    assert "layer_decay" in refusal(cfg, "finetune.mode=head", "finetune.layer_decay=0.5")


def test_a_base_that_two_files_share_is_no_circle(tmp_path):
    write(tmp_path, "low.yaml", "seed: 1\n")
    for name in ("left.yaml", "right.yaml"):
        write(tmp_path, name, "base: low.yaml\n")
    assert load_settings(write(tmp_path, "top.yaml", f"base: [left.yaml, right.yaml]\n{BODY}")).seed == 1


def test_a_circle_of_bases_is_named_file_by_file(tmp_path):
    a = write(tmp_path, "a.yaml", "base: sub/b.yaml\n")
    write(tmp_path, "sub/b.yaml", "base: [../c.yaml]\n")
    write(tmp_path, "c.yaml", "base: a.yaml\n")
    line = refusal(a)
    assert [Path(part).name for part in line.split(": ")[0].split(" -> ")] == ["a.yaml", "b.yaml", "c.yaml", "a.yaml"]
    assert "circle" in line
    assert "circle" in refusal(write(tmp_path, "self.yaml", "base: self.yaml\n"))


def test_a_missing_base_is_named_with_the_files_that_led_there(tmp_path):
    write(tmp_path, "b.yaml", "base: nowhere.yaml\n")
    line = refusal(write(tmp_path, "a.yaml", "base: b.yaml\n"))
    assert [Path(part).name for part in line.split(": ")[0].split(" -> ")] == ["a.yaml", "b.yaml", "nowhere.yaml"]


@pytest.mark.parametrize("base", ["3", "null", "{a: 1}", "[1]", "[a, [b]]", '"\\0"', "''", "."])
def test_a_base_that_is_no_file_is_refused(tmp_path, base):
    assert "base" in refusal(write(tmp_path, "a.yaml", f"base: {base}\n{BODY}"))


def test_an_error_in_a_base_names_that_file(tmp_path):
    write(tmp_path, "low.yaml", "a: 1\na: 2\n")
    assert "low.yaml:2: " in refusal(write(tmp_path, "top.yaml", f"base: low.yaml\n{BODY}"))


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


# Another model or dataset over a base's


def test_another_name_drops_what_only_the_old_one_knows():
    run = load_settings("hybrid_merge", ["model.name=vit", "data.name=npz", "data.path=x.npz"])
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
    assert refusal("hybrid_merge", *overrides).startswith("model.cnn: unknown key")


def test_a_key_that_neither_knows_is_not_dropped_quietly(tmp_path):
    write(tmp_path, "one.yaml", "name: a\nmodel: {name: hybrid, dpeth: 3}\ndata: {name: digits}\n")
    top = write(tmp_path, "two.yaml", "base: one.yaml\nmodel: {name: vit}\n")
    assert refusal(top) == "model.dpeth: unknown key; did you mean depth?"


def test_a_key_of_the_old_one_above_the_new_name_is_an_error(tmp_path):
    write(tmp_path, "one.yaml", "base: zero.yaml\nmodel: {name: vit}\n")
    write(tmp_path, "zero.yaml", "name: a\nmodel: {name: hybrid}\ndata: {name: digits}\n")
    top = write(tmp_path, "two.yaml", "base: one.yaml\nmodel: {stem: conv}\n")
    assert refusal(top).startswith("model.stem: unknown key")


# Overrides


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


# One way to say how many tokens go, over another


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
    assert load_settings("hybrid_merge", overrides).model.merge == check(MergeSettings, {"method": "tome", **merge})


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
    path = write(tmp_path, "settings.yaml", to_yaml(load_settings("hybrid_merge", [stored])))
    assert load_settings(path, ["merge.r=5"]).model.merge.r == 5
    assert load_settings(path, ["merge.method=random", "merge.target_ratio=1.3"]).model.merge == check(
        MergeSettings, {"method": "random", "target_ratio": 1.3}
    )


def test_two_budgets_in_one_layer_or_a_stranger_s_option_stay_errors(tmp_path):
    said = "model.merge.target_gmacs = 1.0: cannot be combined with merge.r = 4; give one of them"
    assert refusal("hybrid_merge", "merge.r=4", "merge.target_gmacs=1") == said
    assert refusal("hybrid_merge", "merge.prune=true") == "model.merge.prune = True: tome has no such option, topk has"
    assert refusal("hybrid_merge", "merge.method=tome", "merge.prune=true").startswith("model.merge.prune = True")
    assert refusal("hybrid_merge", "merge.method=nothing", "merge.kth=3").startswith("model.merge.method = 'nothing'")
    assert refusal("hybrid_merge", "merge=3").startswith("model.merge = 3: must be a section")
    assert refusal("hybrid_merge", "merge.x=3").startswith("model.merge.x: unknown key")


@QUICK
@given(tree(), tree(), st.sampled_from(["r", "keep", "method", "kth"]))
def test_layers_of_anything_are_put_together(below, above, key):
    layers = [{"model": {"merge": {key: value, "r": value}}} for value in (below, above)]
    before = copy.deepcopy(layers)
    merged = config.layered(*layers)["model"]["merge"]
    assert layers == before
    assert merged[key] == above or isinstance(above, dict)


# Rules that settings classes declare


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


# Recipes of fine-tuning, and what the data say


@pytest.mark.parametrize(("mode", "lr"), [("head", 1e-3), ("lora", 2e-4), ("full", 5e-5)])
def test_each_mode_of_fine_tuning_has_a_learning_rate_of_its_own_by_default(tmp_path, mode, lr):
    path = write(tmp_path, "a.yaml", BODY + f"finetune: {{mode: {mode}}}\n")
    assert load_settings(path).train.lr == load_settings("zoo/squeezenet", [f"finetune.mode={mode}"]).train.lr == lr
    assert load_settings(path, ["train.lr=0.3"]).train.lr == 0.3
    stored = write(tmp_path, "settings.yaml", to_yaml(load_settings(path)))
    assert load_settings(stored) == load_settings(path)


def test_a_file_s_own_learning_rate_wins_over_the_recipe(tmp_path):
    path = write(tmp_path, "a.yaml", BODY + "finetune: {mode: head}\ntrain: {lr: 0.2, warmup_epochs: 1}\n")
    assert (load_settings(path).train.lr, load_settings(path).train.warmup_epochs) == (0.2, 1)
    assert load_settings(path, ["finetune=null"]).train.lr == 0.2


def augmentation(cfg, *overrides):
    """What is switched on under `augment:`."""
    return load_settings(cfg, overrides).augment.model_dump(exclude_defaults=True)


def test_a_head_learns_from_images_as_they_are_and_the_other_modes_augment_lightly(tmp_path):
    assert augmentation("zoo/squeezenet", "finetune.mode=head") == {}
    for mode in ("lora", "full"):
        assert augmentation("zoo/squeezenet", f"finetune.mode={mode}") == {"scale": 0.5, "flip": True}
    gradual = "finetune={mode: gradual, groups: [{parts: [head], lr: 1e-3}]}"
    assert augmentation("zoo/squeezenet", gradual) == {"scale": 0.5, "flip": True}
    assert augmentation("zoo/squeezenet", "finetune=null") == {}
    stored = write(tmp_path, "settings.yaml", to_yaml(load_settings("zoo/squeezenet", ["finetune.mode=head"])))
    assert augmentation(stored, "finetune.mode=full") == {}, "a run folder says all"


def test_augmentation_of_a_file_replaces_that_of_the_recipe_and_the_command_line_changes_single_keys(tmp_path):
    path = write(tmp_path, "a.yaml", BODY + "finetune: {mode: full}\naugment: {crop: 1}\n")
    assert augmentation(path) == {"crop": 1}
    path = write(tmp_path, "a.yaml", BODY + "finetune: {mode: full}\naugment: {}\n")
    assert augmentation(path) == {}
    assert augmentation("zoo/squeezenet", "augment.flip=false", "augment.erase=0.25") == {"scale": 0.5, "erase": 0.25}
    listed = augmentation("zoo/squeezenet", "augment.transforms=[{name: RandomHorizontalFlip}]")
    assert [entry["name"] for entry in listed["transforms"]] == ["RandomHorizontalFlip"] and len(listed) == 1


def test_the_number_of_classes_is_the_dataset_s_where_it_is_published(tmp_path):
    for name, classes in (("digits/hybrid", 10), ("hybrid_merge", 10), ("cifar100/vit", 100), ("transfer/dtd_vit", 47)):
        assert load_settings(name).model.num_classes == classes
    assert load_settings("zoo/squeezenet").model.num_classes is None, "the images say how many"
    assert load_settings("hybrid_merge", ["data.name=npz", "data.path=x.npz"]).model.num_classes is None
    assert load_settings("hybrid_merge", ["model.num_classes=7"]).model.num_classes == 7
    body = write(tmp_path, "a.yaml", BODY)
    assert load_settings(body).with_classes(3).model.num_classes == 10
    assert load_settings("zoo/squeezenet").with_classes(3).model.num_classes == 3


def test_a_model_without_a_number_of_classes_has_the_usual_one():
    assert (ViTSettings().num_classes, ViTSettings().classes, ViTSettings(num_classes=7).classes) == (None, 1000, 7)
    assert LeNet5Settings().classes == 10
