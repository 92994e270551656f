"""Planted compositions: the class of every pixel is that of the photograph that it shows."""

import numpy as np
import pytest
import torch
from PIL import Image

from engine.data.masks.planted import PlantedSettings, draw_region, load_planted
from models.settings import UserError, check

CLASSES = 5


def make_photographs(folder, each=5, classes=CLASSES, size=(40, 30)):
    """Plain photographs: red says which class, green which photograph."""
    for number in range(classes):
        (folder / f"c{number}").mkdir(parents=True)
        for photograph in range(each):
            colour = (40 * number, 10 * (number * each + photograph), 7)
            Image.new("RGB", size, colour).save(folder / f"c{number}" / f"{photograph}.png")
    return folder


def planted(folder, **keys):
    return load_planted(check(PlantedSettings, {"path": str(folder), "size": 24, "train": 12, "test": 8, **keys}))


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    return make_photographs(tmp_path_factory.mktemp("planted"))


def test_masks_say_what_pixels_show(photographs):
    data = planted(photographs)
    assert data.classes == [f"c{number}" for number in range(CLASSES)]
    for part, count in ((data.train, 12), (data.test, 8)):
        assert part.images.shape == (count, 3, 24, 24) and part.masks.shape == (count, 24, 24)
        assert torch.equal(part.images[:, 0], 40 * part.masks)
        for image, mask in zip(part.images, part.masks, strict=True):
            shown = image[1].unique()
            assert len(shown) == len(mask.unique()) <= 5  # a photograph of each class, and at most four objects
    assert set(data.train.masks.unique().tolist()) == set(range(CLASSES))


def test_tests_show_other_photographs(photographs):
    data = planted(photographs, train=40, test=40)
    train, test = (set(part.images[:, 1].unique().tolist()) for part in (data.train, data.test))
    assert len(train) == 15 and len(test) == 10 and not train & test  # 3 and 2 of each class, all of them shown


def test_the_folder_s_own_test_set_is_used(tmp_path):
    make_photographs(tmp_path / "train", 1)
    for folder in make_photographs(tmp_path / "val", 1).iterdir():
        (folder / "0.png").unlink()
        Image.new("RGB", (20, 20), (40 * int(folder.name[1]), 200, 7)).save(folder / "1.png")
    data = planted(tmp_path)
    assert set(data.test.images[:, 1].unique().tolist()) == {200} and data.train.images[:, 1].max() < 200


def test_a_composition_depends_on_its_number_alone(photographs):
    few, many, other = planted(photographs, train=3), planted(photographs), planted(photographs, seed=1)
    assert torch.equal(few.train.images, many.train.images[:3]) and torch.equal(few.train.masks, many.train.masks[:3])
    assert few.fingerprint() != many.fingerprint() == planted(photographs).fingerprint() != other.fingerprint()
    assert not torch.equal(many.train.masks[0], many.train.masks[1])
    assert not torch.equal(many.train.masks[:8], many.test.masks)


def test_as_many_objects_as_asked_for(photographs):
    # One is never hidden; of two, one may lie on the other, or hide it.
    assert {len(mask.unique()) for mask in planted(photographs, objects=[1, 1]).train.masks} == {2}
    counts = [len(mask.unique()) for mask in planted(photographs, objects=[2, 4], train=40).train.masks]
    assert set(counts) == {3, 4, 5} or set(counts) == {2, 3, 4, 5}


def test_regions_are_ellipses_and_polygons_inside_the_image():
    filled = []
    for place in range(60):
        (left, top), shape = draw_region(100, (0, 0), place)
        inside = np.asarray(shape) > 0
        height, width = inside.shape
        assert 30 <= width <= 60 and 30 <= height <= 60 and left + width <= 100 and top + height <= 100
        assert min(left, top) >= 0 and not inside[0, 0] and inside[height // 2, width // 2]
        filled.append(inside.mean())
    ellipses = np.isclose(filled, np.pi / 4, atol=0.03)
    assert 15 < ellipses.sum() < 45 and min(filled) > 0.25


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"objects": [2, 5]}, "data.objects = [2, 5]: up to 5 objects and a background are of different classes"),
        ({"held_out": 0.01, "each": 1}, "no photograph of class 'c0' for the test compositions"),
    ],
)
def test_mistakes(tmp_path, keys, message):
    folder = make_photographs(tmp_path / "images", keys.pop("each", 2))
    with pytest.raises(UserError) as raised:
        planted(folder, **keys)
    assert message in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("objects", [[0, 2], [3, 2]])
def test_objects_are_the_fewest_and_the_most(objects):
    with pytest.raises(UserError, match="the fewest and the most"):
        check(PlantedSettings, {"path": "x", "objects": objects})
