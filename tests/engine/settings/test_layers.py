"""Settings checked, written out again, described to editors; and the frame of the tools."""

import json
import os
import re
import sys
from typing import Literal

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, create_model

from engine.cli import cli
from engine.data.sources.digits import DigitsSettings
from engine.data.sources.npz import NpzSettings
from engine.settings.changes import changed_on_resume, goes_on
from engine.settings.layers import CONFIGS, load_settings, to_yaml
from engine.settings.schema import RunSettings, TrainSettings, one_of, schema
from engine.settings.yaml12 import parse
from models import MODELS
from models.settings import Settings, UserError, check
from tests.engine.settings.settings_files import BODY, QUICK, refusal, write
from tests.paths import OF_RUNS, RUNS

# What is checked


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("train.lrr=1", "train.lrr: unknown key; did you mean lr?"),
        ("trian.lr=1", "trian: unknown key; did you mean train?"),
        ("model.name=vitt", "model.name = 'vitt': unknown; did you mean vit?"),
        ("data.name=cifar", "data.name = 'cifar': unknown; did you mean cifar10 or cifar100?"),
        ("model.merge.method=tomee", "model.merge.method = 'tomee': did you mean tome"),
        ("train.lr=1e-3x", "train.lr = '1e-3x': should be a valid number"),
        ("train.lr='1e-3'", "train.lr = '1e-3': should be a valid number"),
        ("train.lr=true", "train.lr = True: should be a valid number"),
        ("train.epochs=true", "train.epochs = True: should be a valid integer"),
        ("train.epochs=1.5", "train.epochs = 1.5: should be a valid integer"),
        ("augment.flip=no", "augment.flip = 'no': use true or false"),
        ("augment.flip=1", "augment.flip = 1: use true or false"),
        ("train.lr=0", "train.lr = 0: must be greater than 0"),
        ("train.lr=-1e-3", "train.lr = -0.001: must be greater than 0"),
        ("train.lr=.inf", "train.lr = inf: should be a finite number"),
        ("train.lr=1e999", "train.lr = inf: should be a finite number"),
        ("train.lr=.nan", "train.lr = nan: should be a finite number"),
        ("train.batch_size=0", "train.batch_size = 0: must be at least 1"),
        ("train.epochs=0", "train.epochs = 0: must be at least 1"),
        ("train.accumulate=0", "train.accumulate = 0: must be at least 1"),
        ("train.weight_decay=-1", "train.weight_decay = -1: must be at least 0"),
        ("train.momentum=1", "train.momentum = 1: must be at least 0 and less than 1"),
        ("train.betas=[0.9, 1]", "train.betas.1 = 1: should be less than 1"),
        ("train.betas=[0.9]", "train.betas = [0.9]: must have at least 2 entries, not 1"),
        ("train.betas=[0.9, 0.9, 0.9]", "train.betas = [0.9, 0.9, 0.9]: must have at most 2 entries, not 3"),
        ("train.betas=0.9", "train.betas = 0.9: should be a valid list"),
        ("train.label_smoothing=1", "train.label_smoothing = 1: must be at least 0 and less than 1"),
        ("train.clip_norm=0", "train.clip_norm = 0: must be greater than 0"),
        ("train.ema=1", "train.ema = 1: must be at least 0 and less than 1"),
        ("train.optimizer=adam", "train.optimizer = 'adam': did you mean adamw? (adamw, sgd)"),
        ("train.schedule=step", "train.schedule = 'step': known: cosine, linear"),
        ("train.warmup_epochs=11", "train.warmup_epochs = 11.0: must be at most train.epochs = 10"),
        ("train.min_lr=1", "train.min_lr = 1.0: must be less than train.lr = 0.001"),
        ("train=null", "train = None: must be a section"),
        ("train.lr.x=1", "train.lr = {'x': 1}: should be a valid number"),
        ("split.val=1", "split.val = 1: must be at least 0 and less than 1"),
        ("split.part=0", "split.part = 0: must be greater than 0 and at most 1"),
        ("augment.erase=1.5", "augment.erase = 1.5: must be at least 0 and at most 1"),
        ("augment.crop=-1", "augment.crop = -1: must be at least 0"),
        ("model.drop_path_rate=1.5", "model.drop_path_rate = 1.5: must be at least 0 and less than 1"),
        ("model.merge={method: tome, r: -1}", "model.merge.r = -1: must not be negative"),
        ("model.merge={method: tome, r: [1, 2]}", "model.merge.r has 2 entries"),
        ("model.num_heads=7", "model.embed_dim = 768: not divisible by num_heads 7"),
        ("seed=-1", "seed = -1: must be at least 0 and less than 4294967296"),
        ("threads=0", "threads = 0: must be at least 1"),
        ("device=gpu", "device = 'gpu': must be auto, cpu, cuda, cuda:N or mps"),
        ("device=cuda:x", "device = 'cuda:x': must be"),
        ("name=a/b", "name = 'a/b': must be"),
        ("name=..", "name = '..': must be"),
        ("name= a", "name = ' a': must be"),
        ("name=a\0", "name = 'a\\x00': must be"),
        ("out=\0", "out = '\\x00': must be"),
        ("checkpoint.every_steps=-1", "checkpoint.every_steps = -1: must be at least 0"),
        ("log.every_steps=0", "log.every_steps = 0: must be at least 1"),
    ],
)
def test_a_wrong_setting_is_named_with_value_and_fix(body, override, line):
    assert refusal(body, override).startswith(line)


@pytest.mark.parametrize("key", ["name", "model", "data"])
def test_what_has_no_default_is_asked_for(tmp_path, key):
    text = "".join(line for line in BODY.splitlines(keepends=True) if not line.startswith(key))
    assert refusal(write(tmp_path, "a.yaml", text)) == f"{key}: missing; it has no default"


@pytest.mark.parametrize("device", ["auto", "cpu", "mps", "cuda", "cuda:0", "cuda:11"])
@pytest.mark.parametrize("name", ["a", "hybrid merge v1.2", "été", "-x", "a" * 60])
def test_names_and_devices_that_are_fine(body, device, name):
    run = load_settings(body, [f"device={device}", f"name={name}"])
    assert (run.device, run.name) == (device, name)


def test_defaults_are_as_documented(body):
    run = load_settings(body)
    assert run.train == TrainSettings(
        epochs=10,
        batch_size=128,
        accumulate=1,
        optimizer="adamw",
        lr=1e-3,
        weight_decay=0.05,
        momentum=0.9,
        betas=[0.9, 0.999],
        schedule="cosine",
        warmup_epochs=0.0,
        min_lr=0.0,
        label_smoothing=0.0,
        clip_norm=1.0,
        precision="auto",
        ema=0.0,
    )
    assert (run.out, run.seed, run.device, run.threads, run.data) == ("runs", 0, "auto", None, DigitsSettings())
    assert (run.checkpoint.every_steps, run.log.every_steps, run.log.images) == (0, 20, 16)


# A choice by name


class Lone(Settings):
    name: Literal["lone"] = "lone"
    size: int = Field(1, ge=0)


@pytest.mark.parametrize("extra", [{}, {"vit": MODELS["vit"]}])
def test_a_table_of_one_is_a_choice_too(extra):
    cls = create_model("Whole", __base__=Settings, part=(one_of({"lone": (Lone, None), **extra}), ...))
    assert check(cls, {"part": {"name": "lone", "size": 2}}).part == Lone(size=2)
    with pytest.raises(UserError, match=r"part\.size = -1: must be at least 0"):
        check(cls, {"part": {"name": "lone", "size": -1}})
    with pytest.raises(UserError, match=r"part\.name = 'lonee'.*lone"):
        check(cls, {"part": {"name": "lonee"}})


# Out again


def unit(**bounds):
    return st.floats(0, 1, **bounds)


texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=20)
runs = st.fixed_dictionaries(
    {
        "name": texts.filter(lambda text: re.fullmatch(r"[^\s/\\.\x00-\x1f][^/\\\x00-\x1f]*", text)),
        "out": texts,
        "seed": st.integers(0, 2**32 - 1),
        "threads": st.none() | st.integers(1, 64),
        "model": st.fixed_dictionaries(
            {
                "name": st.just("hybrid"),
                "drop_path_rate": unit(exclude_max=True),
                "qkv_bias": st.booleans(),
                "cnn": st.none() | st.fixed_dictionaries({"depth": st.integers(1, 9)}),
                "merge": st.fixed_dictionaries(
                    {
                        "method": st.just("tome"),
                        "r": st.integers(0, 9) | st.lists(st.integers(0, 9), min_size=12, max_size=12),
                    }
                ),
            }
        )
        | st.just({"name": "vit"}),
        "data": st.fixed_dictionaries({"name": st.just("npz"), "path": texts}) | st.just({"name": "digits"}),
        "train": st.fixed_dictionaries(
            {
                "lr": st.floats(0, 1000, exclude_min=True),
                "epochs": st.integers(1, 10**9),
                "betas": st.lists(unit(exclude_max=True), min_size=2, max_size=2),
                "clip_norm": st.none() | unit(exclude_min=True),
                "optimizer": st.sampled_from(["adamw", "sgd"]),
            }
        ),
    }
)


@QUICK
@given(runs)
def test_settings_survive_yaml(tmp_path, values):
    run = check(RunSettings, values)
    text = to_yaml(run)
    assert load_settings(write(tmp_path, "a.yaml", text)) == run.with_classes(run.data.published_classes)
    assert to_yaml(check(RunSettings, yaml.safe_load(text))) == text, "YAML 1.1 reads the same"


def test_a_written_file_can_still_be_overridden(tmp_path):
    path = write(tmp_path, "settings.yaml", to_yaml(load_settings("cifar10/vit")))
    run = load_settings(path, ["data.name=npz", "data.path=x.npz", "train.lr=1e-4"])
    assert run.data == NpzSettings(path="x.npz") and run.train.lr == 1e-4


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.lr=1", ["train.lr = 1.0", "0.002"]),
        ("train.epochs=31", ["train.epochs = 31"]),
        ("model.cnn=null", ["model.cnn"]),
        ("seed=1", ["seed = 1", "0"]),
        ("model.name=vit", ["model.name = 'vit'", "'hybrid'"]),
        ("device=cpu", []),
        ("threads=1", []),
        ("log.images=3", []),
        ("checkpoint.every_steps=3", []),
        ("out=x", []),
    ],
)
def test_a_resumed_run_may_change_only_what_computes_nothing(override, words):
    before = load_settings("digits/hybrid")
    changed = changed_on_resume(before, load_settings("digits/hybrid", [override]))
    assert bool(changed) == bool(words)
    for word in words:
        assert word in changed


@pytest.mark.parametrize(
    ("begun", "resumed", "key"),
    [
        ("train.epochs=20", "train.epochs=30", "train.epochs"),
        ("train.steps=20", "train.steps=30", "train.steps"),
        ("train.steps=20", "train.epochs=30", ""),  # without an effect: nothing is trained, and the test would repeat
        ("train.epochs=20", "train.steps=30", ""),
    ],
)
def test_a_run_goes_on_only_by_what_measures_its_length(begun, resumed, key):
    overrides = ["train.warmup_epochs=0", begun]
    stored, given = (load_settings("digits/hybrid", [*overrides, *more]) for more in ([], [resumed]))
    assert bool(changed_on_resume(stored, given, may_go_on=True)) != bool(key)
    assert goes_on(stored, given) == (f"{key} = 30, started with 20" if key else "")


# The schema


@pytest.fixture(scope="module")
def validator():
    document = json.loads(json.dumps(schema()))
    jsonschema.Draft202012Validator.check_schema(document)
    return jsonschema.Draft202012Validator(document)


@pytest.mark.parametrize("path", OF_RUNS, ids=lambda path: path.relative_to(CONFIGS).as_posix())
def test_the_schema_takes_every_config_and_what_it_resolves_to(validator, path):
    validator.validate(parse(path.read_text()))
    if path in RUNS:
        validator.validate(parse(to_yaml(load_settings(str(path)))))


@pytest.mark.parametrize(
    "text",
    [
        "trian: {lr: 1}",
        "train: {lrr: 1}",
        "train: {lr: '1'}",
        "train: {lr: 0}",
        "train: {lr: true}",
        "augment: {flip: no}",
        "model: {name: vitt}",
        "model: {name: vit, cnn: null}",
        "model: {dpeth: 3}",
        "data: {name: digits, path: x}",
        "base: 3",
        "train: {optimizer: adam}",
        "train: {betas: [0.9]}",
        "device: gpu",
        "name: a/b",
    ],
)
def test_the_schema_refuses_what_loading_refuses(validator, text):
    assert not validator.is_valid(parse(text))


def test_every_setting_of_a_run_has_a_description():
    described = schema()
    for name in ("TrainSettings", "LogSettings", "CheckpointSettings"):
        assert all(entry["description"] for entry in described["$defs"][name]["properties"].values())
    assert all(entry["description"] for entry in described["properties"].values())


# Nothing but UserError


scraps = st.lists(
    st.sampled_from(
        [
            *"abz:-[]{}&*!|>%@`'\"#,? \n\t\\",
            "name",
            "train:",
            "lr",
            "base: ",
            "a.yaml",
            "1e3",
            "null",
            "- ",
            "---\n",
            "<<",
            "\\U",
            "\n  ",
            ": ",
            *BODY.splitlines(keepends=True),
        ]
    ),
    max_size=30,
).map("".join)


def loads_or_refuses(cfg, overrides=()):
    try:
        assert isinstance(load_settings(cfg, overrides), RunSettings)
    except UserError as error:
        assert len(str(error).splitlines()) == 1


@QUICK
@given(scraps | st.text(max_size=50) | scraps.map(lambda text: BODY + text))
def test_any_text_is_read_or_refused(tmp_path, text):
    loads_or_refuses(write(tmp_path, "a.yaml", text.encode("utf-8", "surrogatepass")))


@QUICK
@given(st.binary(max_size=50))
def test_any_bytes_are_read_or_refused(tmp_path, content):
    loads_or_refuses(write(tmp_path, "a.yaml", content))


@QUICK
@given(scraps | st.text(max_size=50), st.sampled_from(["", "name=", "model=", "train.lr=", "model.name="]))
def test_any_override_is_read_or_refused(text, key):
    loads_or_refuses("vit_b16", [key + text])


@QUICK
@given(st.text(max_size=50))
def test_any_name_is_found_or_refused(text):
    loads_or_refuses(text)


# The command line


@pytest.mark.parametrize(
    ("error", "code", "stderr"),
    [
        (None, 0, ""),
        (UserError("train.lr = 0:\n  too small\r\nraise it"), 2, "error: train.lr = 0:   too small raise it\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_cli_exit_codes(error, code, stderr, capfd, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["tool", "a", "b=c"])
    monkeypatch.setattr(sys, "stdout", open(os.devnull, "w"))  # noqa: SIM115
    seen = []

    def main(argv):
        seen.append(argv)
        if error:
            raise error

    assert cli(main) == code
    assert seen == [["a", "b=c"]]
    assert capfd.readouterr().err == stderr


@pytest.mark.parametrize("error", [ValueError("bug"), RuntimeError("bug"), SystemExit(143)])
def test_cli_leaves_bugs_and_exits_alone(error):
    def main(argv):
        raise error

    with pytest.raises(type(error)) as raised:
        cli(main)
    assert raised.value is error


def test_a_reader_that_leaves_early_makes_no_noise(monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as stdout:  # a BrokenPipeError as it closes would be one as Python exits
        monkeypatch.setattr(sys, "stdout", stdout)
        assert cli(lambda argv: print("short, so that nothing is written before the end")) == 141
        assert cli(lambda argv: print("long" * 100_000)) == 0, "what is left goes nowhere"
        monkeypatch.undo()
