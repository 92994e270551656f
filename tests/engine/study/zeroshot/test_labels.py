"""Which of a model's classes the classes of images are."""

import pytest

from engine.study.zeroshot.labels import class_numbers
from models.settings import UserError


def test_by_imagenets_ids():
    assert class_numbers(["n01440764", "n02102040", "n03888257"], 1000) == [0, 217, 701]


def test_by_names_whatever_their_spelling():
    assert class_numbers(["Tench", "english_springer", "cassette player", "tinca TINCA"][:3], 1000) == [0, 217, 482]


def test_other_sets_of_imagenets_classes_have_other_numbers():
    (number,) = class_numbers(["n01440764"], 21841)
    assert number not in (0, None) and class_numbers(["n01440764"], 11821) != [0]


def test_in_the_models_order_where_the_numbers_are_equal():
    assert class_numbers(["cat", "dog", "eel"], 3) == [0, 1, 2]


def test_a_thousand_ids_are_taken_by_id_not_by_order():
    """Sorted folders of ids are in ImageNet's order, but names are not."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    ids = sorted(info.label_names())
    assert class_numbers(ids, 1000) == list(range(1000))
    assert class_numbers(ids[::-1], 1000) == list(range(999, -1, -1))


@pytest.mark.parametrize(
    "lines, expected",
    [
        ("a,n02102040\nb,0\n", None),  # all of one kind
        ("a,217\nb,0\n", [217, 0]),
        ("a,n02102040\nb,tench\n", [217, 0]),
        ('a,"tench, Tinca tinca"\nb,n02102040\nunused,5\n', [0, 217]),
    ],
)
def test_a_mapping_file(tmp_path, lines, expected):
    file = tmp_path / "map.csv"
    file.write_text(lines)
    if expected is None:
        with pytest.raises(UserError, match="'0' is none of ImageNet's classes"):
            class_numbers(["a", "b"], 1000, str(file))
    else:
        assert class_numbers(["a", "b"], 1000, str(file)) == expected


@pytest.mark.parametrize(
    "classes, count, mapping, message",
    [
        (["cat", "dog"], 1000, None, "data.path: 'cat' is none of ImageNet's classes"),
        (["tenhc", "n01440764"], 1000, None, "did you mean tench"),
        (["tench", "n01440764"], 1000, None, "data.path: 'n01440764' is the same class of the model as another"),
        (["cat", "dog"], 7, None, "2 classes of images and a model of 7; give classes=FILE.csv"),
        (["cat", "dog"], 1000, "cat,0\n", "has no line for dog; add CLASS,TARGET"),
        (["cat"], 1000, "cat\n", "a line without a comma, 'cat'"),
        (["cat"], 1000, "cat,1000\n", "'1000': the model has no class of this number; use 0 to 999"),
        (["cat", "dog"], 10, "cat,0\ndog,217\n", "'217': the model has no class of this number; use 0 to 9"),
        (["crane", "dog"], 1000, None, "'crane' is none of ImageNet's classes, or several"),
    ],
)
def test_mistakes(tmp_path, classes, count, mapping, message):
    file = tmp_path / "map.csv"
    if mapping is not None:
        file.write_text(mapping)
    with pytest.raises(UserError) as raised:
        class_numbers(classes, count, "auto" if mapping is None else str(file))
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_a_mapping_file_that_is_not_there():
    with pytest.raises(UserError, match="classes = 'gone.csv': cannot be read"):
        class_numbers(["a"], 10, "gone.csv")
