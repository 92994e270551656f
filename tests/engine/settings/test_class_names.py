"""Names of classes as keys of settings: any text, in files, in overrides and in run folders."""

import unicodedata

import pytest

from engine.settings.layers import load_settings, to_yaml
from models.settings import UserError

NAMES = {"10": 2.0, "Caf\u00e9 au lait": 3.0, "high-grade": 4.0, "null": 5.0, "a: b": 6.0, "set #2": 7.0, "v1.0": 8.0}
TEXT = "{10: 2, Caf\u00e9 au lait: 3, high-grade: 4, null: 5, 'a: b': 6, set #2: 7, v1.0: 8}"
QUOTED = TEXT.replace("set #2", "'set #2'")
FILE = "name: a\nmodel: {name: lenet5}\ndata: {name: digits}\n"


def test_they_are_read_from_files_and_overrides_and_written_back(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text(f"{FILE}train: {{class_weights: {QUOTED}}}\n", encoding="utf-8")
    settings = load_settings(str(file))
    assert settings.train.class_weights == NAMES
    file.write_text(FILE)
    assert load_settings(str(file), [f"train.class_weights={TEXT}"]) == settings
    file.write_text(to_yaml(settings), encoding="utf-8")
    assert load_settings(str(file)) == settings
    apart = unicodedata.normalize("NFD", TEXT)
    kept = load_settings(str(file), [f"train.class_weights={apart}"]).train.class_weights
    assert unicodedata.normalize("NFD", "Caf\u00e9 au lait") in kept, "as it was written"


def test_other_keys_are_letters_digits_and_underscores(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text(f"{FILE}train: {{class-weights: {{a: 1}}}}\n")
    with pytest.raises(UserError, match="a.yaml:4: 'class-weights' is not a key"):
        load_settings(str(file))
    file.write_text(FILE)
    for text in ("{? [a] : 2}", "{a: {b c: 2}}"):
        with pytest.raises(UserError, match="is not a key"):
            load_settings(str(file), [f"train.class_weights={text}"])
    with pytest.raises(UserError, match="10 stands here twice"):
        load_settings(str(file), ["train.class_weights={10: 1, '10': 2}"])
