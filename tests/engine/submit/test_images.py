"""Test images are found, and matched with the ids of a sample."""

from __future__ import annotations

import logging
import os

import pytest

from engine.data.reading import decode
from engine.submit.images import find_images, images_of, match, natural, spelled
from engine.submit.sample import Sample
from models.settings import UserError
from tests.engine.data.conftest import files, save_image
from tests.engine.submit.text_files import FILES, SAMPLE


def test_by_content_in_natural_order(tmp_path):
    for name in ("10.png", "2.png", "sub/3.png", "1.png", ".hidden.png", ".cache/4.png", "._1.png"):
        save_image(tmp_path / name, 0)
    (tmp_path / "2.png").rename(tmp_path / "2")
    (tmp_path / "readme.txt").write_text("BMW is no bitmap")
    (tmp_path / "5.JPG").write_bytes(b"")  # to be found unreadable, not to be passed over
    assert find_images(tmp_path) == ["1.png", "2", "5.JPG", "10.png", "sub/3.png"]


def test_links_to_folders_are_said(tmp_path, caplog):
    save_image(tmp_path / "more" / "2.png", 0)
    save_image(tmp_path / "test" / "1.png", 0)
    (tmp_path / "test" / "part2").symlink_to(tmp_path / "more")
    assert find_images(tmp_path / "test") == ["1.png"]
    assert f"1 link to a folder is not followed: '{tmp_path / 'test' / 'part2'}'" in caplog.text


def test_nothing_is_left_out_quietly(tmp_path, caplog):
    """Every image is found, those that cannot be read included; what is no image is said."""
    for name in ("1.jpg", "2.jp2", "3.ppm", "4.tga"):
        save_image(tmp_path / name, 0)
    (tmp_path / "5.ico").write_bytes(b"\0\0\1\0\1\0\x10\x10\0\0\1\0\x20\0\x63\0\0\0\x16\0\0\0" + bytes(99))
    (tmp_path / "6.jxl").write_bytes(b"\xff\x0a\xfa")
    (tmp_path / "IM0007").write_bytes(bytes(128) + b"DICM")
    save_image(tmp_path / "@eaDir" / "1.jpg" / "SYNOPHOTO_THUMB_M.jpg", 0)
    save_image(tmp_path / ".8.jpg", 0)
    (tmp_path / "notes.txt").touch()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "gone").symlink_to("nowhere")
    found = find_images(tmp_path)
    assert found == ["1.jpg", "2.jp2", "3.ppm", "4.tga", "5.ico", "6.jxl", "IM0007"]
    bad = decode([tmp_path / name for name in found], files(8))[1]
    assert list(bad) == [4, 5, 6] and all(why.endswith("; convert it to JPEG or PNG") for why in bad.values())
    for said in (
        "1 file is not an image and is ignored: 1 .txt",
        "1 broken link is ignored",
        "1 file cannot be opened and is ignored",
        "1 hidden name is ignored: '.8.jpg'",
        "1 leftover of storage systems is ignored: '@eaDir'",
    ):
        assert caplog.text.count(f"--images {tmp_path}: {said}") == 1


def test_training_images_among_those_to_predict_are_said(tmp_path, caplog):
    for name in ("Training", "Testing"):
        save_image(tmp_path / name / "1.png", 0)
    assert find_images(tmp_path) == ["Testing/1.png", "Training/1.png"]
    assert "holds 'Training' and 'Testing', and the images of both are predicted" in caplog.text


def test_folders_without_images(tmp_path):
    save_image(tmp_path / "a.png", 0)
    (tmp_path / "empty").mkdir()
    for folder, words in (("a.png", "is a file"), ("no", "not found"), ("empty", "no image in it")):
        with pytest.raises(UserError, match=words):
            find_images(tmp_path / folder)


@pytest.mark.parametrize("name", [" a.png", "a .png", "a.png ", "sub/ a.png"])
def test_names_that_a_csv_would_change(tmp_path, name):
    save_image(tmp_path / "b c.png", 0)
    assert find_images(tmp_path) == ["b c.png"]
    (tmp_path / name).parent.mkdir(exist_ok=True)
    save_image(tmp_path / "1.png", 0).rename(tmp_path / name)
    with pytest.raises(UserError, match=f"1 name begins or ends with a blank, .*{name!r}; rename them"):
        find_images(tmp_path)


def test_files_and_folders_together(tmp_path):
    photo = save_image(tmp_path / "photo.jpg", 0)
    save_image(tmp_path / "test" / "10.png", 0), save_image(tmp_path / "test" / "sub" / "2.png", 0)
    assert images_of([photo]) == {"photo.jpg": photo}
    both = images_of([photo, tmp_path / "test"])
    assert list(both) == ["10.png", "photo.jpg", "sub/2.png"] and all(path.is_file() for path in both.values())
    assert images_of([tmp_path / "test"]) == {
        "10.png": tmp_path / "test/10.png",
        "sub/2.png": tmp_path / "test/sub/2.png",
    }
    with pytest.raises(
        UserError, match=r"'10.png' is also the name of .*test/10.png, .*; give the folder that holds both"
    ):
        images_of([tmp_path / "test", save_image(tmp_path / "other" / "10.png", 1)])
    with pytest.raises(UserError, match="photo.jpg is given twice; give it once"):
        images_of([photo, photo])
    with pytest.raises(UserError, match="10.png is given twice; give it once"):
        images_of([tmp_path / "test", tmp_path / "other" / ".." / "test" / "10.png"])
    with pytest.raises(UserError, match="no.jpg: not found; give image files, or the folder that holds them"):
        images_of([photo, tmp_path / "no.jpg"])
    with pytest.raises(UserError, match="1 name begins or ends with a blank"):
        images_of([save_image(tmp_path / " b.png", 0)])


def test_natural_order():
    assert sorted(["b1", "10.jpg", "a", "2.jpg", "a10", "a9", "02.jpg"], key=natural) == [
        "02.jpg",
        "2.jpg",
        "10.jpg",
        "a",
        "a9",
        "a10",
        "b1",
    ]


@pytest.mark.parametrize(
    ("ids", "way"),
    [
        (["x/2.jpg", "x/1.jpg"], "path"),
        (["2.jpg", "1.jpg"], "file name"),
        (["x/2", "x/1"], "path without extension"),
        (["2", "1"], "file name without extension"),
    ],
)
def test_ids_name_images_in_four_ways(tmp_path, ids, way):
    paths = ["x/1.jpg", "x/2.jpg"]
    assert spelled(ids, paths) == (way, 2)
    assert match(Sample("s", ["id", "l"], 0, ids), paths, [tmp_path]) == ["x/2.jpg", "x/1.jpg"]


def test_ids_without_an_image_or_with_several(tmp_path):
    with pytest.raises(UserError, match=r"2 of 3 ids have no image in .*: '3', '4'; of its 2 images the first"):
        match(Sample("s", ["id", "l"], 0, ["1", "3", "4"]), ["1.jpg", "2.jpg"], [tmp_path])
    with pytest.raises(UserError, match=r"1 id names more than one image, by path.*: '1' \(1.jpg, 1.png\)"):
        match(Sample("s", ["id", "l"], 0, ["1", "2"]), ["1.jpg", "1.png", "2.jpg"], [tmp_path])
    (tmp_path / "3.jpg.txt").write_text("no image")
    with pytest.raises(UserError, match="1 id is a file in .*, but no image: '3.jpg.txt'"):
        match(Sample("s", ["id", "l"], 0, ["1.jpg", "3.jpg.txt"]), ["1.jpg"], [tmp_path])
    (tmp_path / "test").mkdir()
    for strange in ("y" * 300, "../3.jpg.txt", str(tmp_path / "3.jpg.txt"), "3.jpg.txt\0"):
        with pytest.raises(UserError, match="1 of 2 ids have no image in"):
            match(Sample("s", ["id", "l"], 0, ["1.jpg", strange]), ["1.jpg"], [tmp_path / "test"])


@pytest.mark.parametrize(
    "ids, names, same",
    [
        (["1.jpg", "2.jpg"], ["1.JPG", "2.JPG"], True),
        (["1.jpg", "2.jpg", "9.jpg"], ["1.jp2", "2.jp2"], True),
        (["Img_1", "Img_2"], ["test/img_1.png", "test/img_2.png"], True),
        (["1.jpg", "8.jpg", "9.jpg"], ["1.png", "2.png"], False),
        (["img.8", "img.9"], ["img.1", "img.2"], False),
    ],
)
def test_names_in_other_case_or_of_another_type_are_said(tmp_path, ids, names, same):
    with pytest.raises(UserError) as caught:
        match(Sample("s", ["id", "l"], 0, ids), names, [tmp_path])
    assert str(caught.value).endswith("; rename the files as the sample has them") == same
    assert str(caught.value).endswith("; give the folder that the sample belongs to") != same


def test_ids_of_other_systems(tmp_path, caplog):
    names = [f"sub/e\u0301{i}.png" for i in range(3)]
    for ids in (
        [f"sub/é{i}.png" for i in range(3)],
        [rf"sub\é{i}.png" for i in range(3)],
        [f"é{i}" for i in range(3)],
        [f".\\sub\\e\u0301{i}" for i in range(3)],
    ):
        assert match(Sample("s", ["id", "l"], 0, ids), names, [tmp_path]) == names, ids
    with pytest.raises(UserError, match="1 image has several ids: .*xe9.* and .*u0301"):
        match(Sample("s", ["id", "l"], 0, ["é0", "e\u03010"]), names[:1], [tmp_path])


def test_two_images_of_one_name(tmp_path, caplog):
    both = ["é.png", "e\u0301.png"]
    for seed, name in enumerate(both):
        save_image(tmp_path / name, seed)
    assert sorted(images_of([tmp_path])) == sorted(both)
    assert "1 name of two files differs only in Unicode's form (NFC, NFD)" in caplog.text
    assert match(Sample("s", ["id", "l"], 0, both), both, [tmp_path]) == both, "equal bytes come first"
    assert images_of([tmp_path / both[0]]) == {both[0]: tmp_path / both[0]}


def test_a_folder_that_is_typed_in_other_bytes(tmp_path):
    photo = save_image(tmp_path / "te\u0301st" / "1.png", 0)
    assert images_of([tmp_path / "tést"]) == {"1.png": photo}


def test_images_that_no_id_names(tmp_path, caplog):
    with pytest.raises(UserError, match=r"2 images have no row in sample.csv: 'x.jpg', 'y.jpg'; .*--extra ignore"):
        match(SAMPLE, ["x.jpg", *FILES, "y.jpg"], [tmp_path])
    with caplog.at_level(logging.WARNING, "hybridmerge"):
        assert match(SAMPLE, ["x.jpg", *FILES], [tmp_path], ignore_extra=True) == FILES
    assert "1 image has no row" in caplog.text and "left out" in caplog.text
