"""A folder of images and masks: which belong together, what their values mean, and what is refused."""

import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from engine.data.masks.folder import MaskFolderSettings, load_mask_folder
from models.settings import UserError, check

VALUES = np.random.default_rng(0).integers(0, 3, (10, 20, 30)).astype(np.uint8)  # of ten masks
VALUES[:, 5:8, 6:9] = 255


def save(folder, values, name, mode="P"):
    """An image whose red is 60 times the class, and its mask."""
    for kind in ("images", "masks"):
        (folder / kind / name).parent.mkdir(parents=True, exist_ok=True)
    red = np.where(values == 255, 250, 60 * values).astype(np.uint8)
    Image.fromarray(np.stack([red, red * 0, red * 0], -1)).save(folder / "images" / f"{name}.bmp")
    mask = Image.fromarray(values)
    if mode == "P":
        mask.putpalette([*range(256)] * 3)  # of all values: with fewer colours Pillow saves fewer bits
    mask.save(folder / "masks" / f"{name}.png")


def read(folder, **keys):
    return load_mask_folder(check(MaskFolderSettings, {"path": str(folder), "size": 20, **keys}))


@pytest.fixture
def folder(tmp_path):
    for number, values in enumerate(VALUES):
        save(tmp_path, values, f"{number}", "P" if number % 2 else "L")
    return tmp_path


def red_of(part):
    return torch.where(part.masks == 255, 250, 60 * part.masks.int()).to(torch.uint8)


def test_masks_are_cropped_as_images_are(folder):
    data = read(folder)  # the square in the middle of 30 x 20 pixels, not resized
    assert (len(data.train), len(data.test), data.classes) == (6, 4, ["0", "1", "2"])
    for part in (data.train, data.test):
        assert torch.equal(part.images[:, 0], red_of(part))
        for name, mask in zip(part.names, part.masks, strict=True):
            number = int(name.removeprefix("images/").removesuffix(".bmp"))
            assert np.array_equal(mask.numpy(), VALUES[number][:, 5:25])
    other = read(folder, seed=1)
    assert set(other.train.names) != set(data.train.names) and not set(data.train.names) & set(data.test.names)


@pytest.mark.parametrize("keys", [{"size": 10}, {"size": 33, "fit": "squash"}])
def test_resized_masks_have_no_values_in_between(folder, keys):
    """Of regions that are large enough, the middle is what the image shows."""
    values = np.zeros((20, 30), np.uint8)
    values[:, 15:] = 2
    for number in range(10):
        save(folder, values, f"{number}")
    data = read(folder, **keys)
    assert set(data.train.masks.unique().tolist()) == {0, 2}
    far = [0, 1, -2, -1]  # columns away from the border between the two
    assert torch.equal(data.train.images[:, 0][..., far], red_of(data.train)[..., far])


def test_splits_are_folders_and_classes_have_names(tmp_path):
    for number, part in enumerate(["training", "training", "val", "test", "test"]):
        save(tmp_path, VALUES[number], f"{part}/{number}")
    data = read(tmp_path, classes=["sky", "road", "tree"])
    assert data.classes == ["sky", "road", "tree"]
    assert data.train.names == ("images/training/0.bmp", "images/training/1.bmp")
    assert data.test.names == ("images/test/3.bmp", "images/test/4.bmp")


def remove(name):
    return lambda folder: (folder / name).unlink()


def replace(name, pixels, **how):
    return lambda folder: Image.fromarray(pixels).save(folder / name, **how)


BAD_INPUTS = [
    (remove("masks/3.png"), {}, "no mask of the same name for 'images/3.bmp' (1 of 10); add it"),
    (remove("images/3.bmp"), {}, "no image of the same name for 'masks/3.png' (1 of 10); add it"),
    (lambda folder: [path.unlink() for path in folder.rglob("*.bmp")], {}, "no images in "),
    (lambda folder: (folder / "masks").rename(folder / "labels"), {}, "no folder 'masks' in it; expected PATH/images"),
    (replace("masks/3.png", VALUES[0][:10]), {}, "masks/3.png' (30 x 10 pixels, its image has 30 x 20); repair them"),
    (replace("masks/3.png", np.zeros((20, 30, 3), np.uint8)), {}, "its pixels are RGB, no classes' numbers"),
    (replace("masks/3.png", np.zeros((20, 30), np.uint16)), {}, "its pixels are I;16, no classes' numbers"),
    (replace("masks/3.png", VALUES[0], format="JPEG"), {}, "not a PNG file, whose values are exact"),
    (lambda folder: (folder / "masks/3.png").write_bytes(b""), {}, "1 of 10 images cannot be read"),
    (lambda folder: (folder / "images/3.bmp").write_bytes(b"BM"), {}, "1 of 10 images cannot be read"),
    (replace("images/3.jpg", np.zeros((20, 30, 3), np.uint8)), {}, "images/3 is the name of two files; rename one"),
    (lambda folder: None, {"classes": ["a", "b"]}, "10 masks have values up to 2, and data.classes names 0 to 1: "),
    (lambda folder: None, {"held_out": 0.01}, "data.held_out = 0.01: of 10 images none is left"),
]


@pytest.mark.parametrize("spoil, keys, message", BAD_INPUTS, ids=range(len(BAD_INPUTS)))
def test_bad_inputs(folder, spoil, keys, message):
    spoil(folder)
    with pytest.raises(UserError) as raised:
        read(folder, **keys)
    assert message in str(raised.value) and "\n" not in str(raised.value)
    assert str(raised.value).startswith("data.")


def test_masks_without_any_class(tmp_path):
    for number in range(3):
        save(tmp_path, np.full((20, 30), 255, np.uint8), f"{number}")
    with pytest.raises(UserError, match="every pixel of every mask is 255, which is ignored"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ([255], [0, 1], "the masks of its training images have no class; give masks with two classes or more"),
        ([1, 255], [0, 1], "the masks of its training images have the single class 1; give"),
        ([0, 1], [255], "every pixel of the test images' masks is 255, which is ignored; label some"),
    ],
)
def test_a_part_without_classes(train, test, message, tmp_path):
    for part, values in (("train", train), ("test", test)):
        save(tmp_path, np.resize(np.array(values, np.uint8), (20, 30)), f"{part}/1")
    with pytest.raises(UserError) as raised:
        read(tmp_path)
    assert message in str(raised.value)


def test_two_classes_of_one_name(folder):
    with pytest.raises(UserError, match="two classes have one name; give each its own"):
        read(folder, classes=["a", "b", "a"])


def test_grey_of_four_bits_is_refused(folder):
    """Pillow would read 1 as 17, and does not save such files."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = b"".join(b"\0" + bytes([0x12] * 15) for _ in range(20))  # 30 pixels: 1, 2, 1, 2, ...
    header = struct.pack(">IIBBBBB", 30, 20, 4, 0, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (folder / "masks/3.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    assert np.asarray(Image.open(folder / "masks/3.png")).max() == 34
    with pytest.raises(UserError, match="grey of fewer than 8 bits; save it with 8"):
        read(folder)
