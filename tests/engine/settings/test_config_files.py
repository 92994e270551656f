"""Settings files are found and read, with the files that they inherit from."""

from pathlib import Path

import pytest

from engine.settings.layers import CONFIGS, load_settings
from tests.engine.settings.settings_files import BODY, refusal, write
from tests.paths import RUNS


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


def test_a_large_file_is_refused_before_it_is_read(tmp_path):
    path = write(tmp_path, "a.yaml", BODY)
    with open(path, "r+b") as file:
        file.truncate(10**11)  # sparse
    assert refusal(path) == f"{path}: longer than 250,000 bytes, which no settings are; give a settings file"


def test_numbers_are_texts_where_a_text_is_wanted(tmp_path):
    write(tmp_path, "1.yaml", BODY)
    run = load_settings(write(tmp_path, "b.yaml", "base: 1.yaml\nname: 2024\nout: 010\nseed: 010\n"))
    assert (run.name, run.out, run.seed) == ("2024", "010", 10)
    assert refusal(write(tmp_path, "c.yaml", "base: 1.yaml\nname:\n")) == "name = None: should be a valid string"
    assert f"{tmp_path}/7: the last is no file" in refusal(write(tmp_path, "d.yaml", "base: 7\n"))
