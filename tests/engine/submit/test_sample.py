"""Sample files read, submissions written and checked, ids matched with images, and what a spreadsheet would compute."""

from __future__ import annotations

import csv
import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.submit.cells import guarded, is_formula, number, unguarded
from engine.submit.images import find_images, images_of, match, natural, spelled
from engine.submit.sample import Sample, read_sample
from engine.submit.submission import write
from engine.submit.validate import Report, class_folders, validate
from models.settings import UserError
from tests.engine.data.conftest import save_image

FILES = ["1.jpg", "2.jpg", "10.jpg"]
SAMPLE = Sample("sample.csv", ["ID", "Label"], 0, FILES)


def text_file(path: Path, *lines: str, end: str = "\n", start: bytes = b"") -> Path:
    path.write_bytes(start + "".join(line + end for line in lines).encode())
    return path


def cells(path: Path, separator: str = ",") -> list[list[str]]:
    with open(path, newline="") as file:
        return list(csv.reader(file, delimiter=separator))


def problems(path: Path, *lines: str, sample: Sample = SAMPLE, **known) -> list[str]:
    return validate(text_file(path, *lines), sample, **known).problems


def test_separators_byte_order_marks_and_line_ends(tmp_path):
    plain = read_sample(text_file(tmp_path / "a.csv", "ID,Label", "1.jpg,x", "2.jpg,y"))
    assert (plain.columns, plain.ids, plain.ids_at, plain.labels) == (["ID", "Label"], FILES[:2], 0, ("x", "y"))
    for separator in ",;\t":
        lines = [line.replace(",", separator) for line in ("ID,Label", "1.jpg,x", "2.jpg,y")]
        for end, start in (("\n", b""), ("\r\n", b"\xef\xbb\xbf"), ("\r\n", b""), ("\n", b"\xef\xbb\xbf")):
            read = read_sample(text_file(tmp_path / "b.csv", *lines, end=end, start=start))
            assert read.separator == separator and (read.columns, read.ids) == (plain.columns, plain.ids)


def test_the_column_of_ids_is_the_one_that_names_images(tmp_path):
    path = text_file(tmp_path / "a.csv", "Label,ID", "1,1.jpg", "1,2.jpg", "1,10.jpg")
    read = read_sample(path, lambda cells: spelled(cells, FILES)[1])  # the label 1 is the stem of 1.jpg
    assert (read.ids_at, read.ids, read.others) == (1, FILES, ["Label"])
    assert read_sample(path).ids_at == 1, "without images: where no text is there twice"


def test_what_is_asked_for():
    one = Sample("s", ["id", "label"], 0, FILES, labels=("cat",))
    assert not one.asks_for_probabilities(["cat", "dog"], many=False)
    each = Sample("s", ["dog", "id", "cat"], 1, FILES, numeric=True)
    assert each.asks_for_probabilities(["cat", "dog"], many=False)
    with pytest.raises(UserError, match=r"not one for each of the 2 classes: 1 are not classes \('dog'\), 1 classes "):
        each.asks_for_probabilities(["cat", "cow"], many=False)
    with pytest.raises(UserError, match="column 'dog' is one of 2 classes and holds numbers"):
        Sample("s", ["id", "dog"], 0, FILES, ",", ("0.5",), numeric=True).asks_for_probabilities(
            ["cat", "dog"], many=False
        )
    assert not Sample("s", ["id", "1"], 0, FILES, labels=("2",), numeric=True).asks_for_probabilities(
        ["1", "2"], many=False
    )


@pytest.mark.parametrize(
    ("theirs", "spelled"),
    [
        (["cat", "dog 1", "x-y"], True),
        (["Cat", "DOG_01", "X Y"], True),
        (["X Y", "Dog  1", "cat"], True),
        (["Cat", "Dog 1"], False),  # not all: what the third would be is not known
        (["Cat", "Dog 1", "X Y", "x_y"], False),
        (["Cat", "Dog 2", "X Y"], False),
        (["Cat", "Dog1", "X Y"], False),
        (["cat"], False),
    ],
)
def test_names_are_spelled_as_in_the_sample(tmp_path, theirs, spelled):
    classes = ["cat", "dog 1", "x-y"]
    labels = Sample("s", ["id", "label"], 0, FILES, labels=tuple(theirs))
    columns = Sample("s", ["id", *theirs], 0, FILES, numeric=True)
    for sample in (labels, columns):
        found = sample.spelling(classes)
        assert set(found) == set(classes) and set(found.values()) == set(theirs if spelled else classes)
    if spelled:
        assert all(found[name][0].casefold() == name[0] for name in classes)
        assert columns.asks_for_probabilities(classes, many=False)
        rows = ["id,label", *(f"{name},{found['cat']}" for name in FILES)]
        assert not problems(tmp_path / "a.csv", *rows, sample=labels, classes=classes)
        rows[1] = f"{FILES[0]},Dogs"
        assert "1 labels are unknown: 'Dogs'" in problems(tmp_path / "a.csv", *rows, sample=labels, classes=classes)[0]
    elif len(theirs) > 1:
        with pytest.raises(UserError, match="not one for each of the 3 classes"):
            columns.asks_for_probabilities(classes, many=False)


@pytest.mark.parametrize(
    ("classes", "theirs"),
    [(["a", "A"], ("A", "a")), (["-1", "0"], ("1", "0")), (["1.05", "2"], ("1.5", "2")), (["1_1", "2"], ("11", "2"))],
)
def test_names_that_are_two(classes, theirs):
    found = Sample("s", ["id", "l"], 0, FILES, labels=theirs).spelling(classes)
    assert found == {name: name for name in classes}


def test_many_names_are_spelled_as_in_the_sample():
    sample = Sample("s", ["id", "labels"], 0, FILES, labels=("", "Cat", "Cat; DOG"))
    assert sample.spelling(["cat", "dog"], many=True) == {"cat": "Cat", "dog": "DOG"}
    assert not sample.asks_for_probabilities(["cat", "dog"], many=True)
    assert sample.spelling(["cat", "dog"]) == {"cat": "cat", "dog": "dog"}, "one label: two cells are no class"


def test_many_labels_are_joined_by_semicolons():
    fits = Sample("s", ["id", "labels"], 0, FILES, labels=("", "cat", "cat; dog"))
    assert not fits.asks_for_probabilities(["cat", "dog"], many=True)
    with pytest.raises(UserError, match="has 'cat dog', which is not names joined by ;"):
        Sample("s", ["id", "l"], 0, FILES, labels=("cat dog",)).asks_for_probabilities(["cat", "dog"], many=True)
    with pytest.raises(UserError, match="joined by ;, which these labels contain: 'a;b'"):
        fits.asks_for_probabilities(["a;b", "cat", "dog"], many=True)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["ID", "1.jpg"], "a single column, 'ID'"),
        (["ID|Label", "1.jpg|x"], "a single column, 'ID.Label'; .* separated by commas, semicolons or tabs"),
        (["ID,Label"], "1 rows; a header and a row for each image are needed"),
        (["ID,Label", "1.jpg,x", "1.jpg,x", "2.jpg,x"], "2 rows have the same ID as another"),
        (["ID,Label", "1.jpg,x", ",x"], "1 rows have no ID"),
        (["ID,Label", "1.jpg"], "1 rows do not have the header's 2 cells"),
    ],
)
def test_samples_that_are_none(tmp_path, lines, words):
    with pytest.raises(UserError, match=words):
        read_sample(text_file(tmp_path / "a.csv", *lines), lambda cells: spelled(cells, FILES)[1])


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
    assert find_images(tmp_path / "test") == ["1.png"] and "1 links to folders are not followed: 'part2'" in caplog.text


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
    with pytest.raises(UserError, match=f"1 names begin or end with a blank, .*{name!r}; rename them"):
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
    with pytest.raises(UserError, match="1 names begin or end with a blank"):
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
    with pytest.raises(UserError, match=r"1 ids name more than one image, by path.*: '1' \(1.jpg, 1.png\)"):
        match(Sample("s", ["id", "l"], 0, ["1", "2"]), ["1.jpg", "1.png", "2.jpg"], [tmp_path])
    (tmp_path / "3.jpg.txt").write_text("no image")
    with pytest.raises(UserError, match="1 ids are files in .* that are not images: '3.jpg.txt'"):
        match(Sample("s", ["id", "l"], 0, ["1.jpg", "3.jpg.txt"]), ["1.jpg"], [tmp_path])
    (tmp_path / "test").mkdir()
    for strange in ("y" * 300, "../3.jpg.txt", str(tmp_path / "3.jpg.txt"), "3.jpg.txt\0"):
        with pytest.raises(UserError, match="1 of 2 ids have no image in"):
            match(Sample("s", ["id", "l"], 0, ["1.jpg", strange]), ["1.jpg"], [tmp_path / "test"])


def test_images_that_no_id_names(tmp_path, caplog):
    with pytest.raises(UserError, match=r"2 images have no row in sample.csv: 'x.jpg', 'y.jpg'; .*--extra ignore"):
        match(SAMPLE, ["x.jpg", *FILES, "y.jpg"], [tmp_path])
    with caplog.at_level(logging.WARNING, "hybridmerge"):
        assert match(SAMPLE, ["x.jpg", *FILES], [tmp_path], ignore_extra=True) == FILES
    assert "1 images have no row" in caplog.text and "left out" in caplog.text


def test_what_is_one():
    formulas = ["=1+1", "+a", "-a", "@a", "\ta", "\ra", "-1+2", "=cmd()", " =a", "＝a", "-", "+1x"]
    assert all(map(is_formula, formulas))
    assert not any(map(is_formula, ["", "a", "-1", "+1.5", "-.5e-3", "1e5", "a=b", "'=a", "3-4"]))


@given(st.text(alphabet="'=+-@\t\r\n a1", max_size=6))
def test_the_apostrophe_comes_off_again(cell):
    assert unguarded(guarded(cell)) == cell and not is_formula(guarded(cell))


def test_written_guarded_and_quoted_or_kept(tmp_path, caplog):
    path, rows = tmp_path / "out.csv", [["=cmd()"], ["-3"], ["'=a"]]
    sample = Sample("s", ["@ID", "Label"], 0, ["-a.jpg", "+2", "3"])
    with caplog.at_level(logging.WARNING, "hybridmerge"):
        write(path, sample, rows)
    assert path.read_text() == '"\'@ID",Label\n"\'-a.jpg","\'=cmd()"\n+2,-3\n3,"\'\'=a"\n'
    assert "4 texts would be computed by a spreadsheet" in caplog.text and "'=cmd()'" in caplog.text
    classes = ["=cmd()", "-3", "'=a"]
    assert validate(path, sample, classes, many=False).problems == []
    assert read_sample(path).ids == sample.ids and read_sample(path).columns == sample.columns

    write(path, sample, rows, keep_formulas=True)
    assert cells(path) == [["@ID", "Label"], ["-a.jpg", "=cmd()"], ["+2", "-3"], ["3", "'=a"]]
    (said,) = validate(path, sample, classes, many=False).problems[:1]
    assert said.startswith("3 cells would be computed by a spreadsheet: '@ID' (line 1), '-a.jpg' (line 2), '=cmd")


@given(
    st.lists(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=8),
        min_size=3,
        max_size=3,
    ),
    st.sampled_from(",;\t"),
)
def test_any_name_comes_back(tmp_path_factory, names, separator):
    sample = Sample("s", ["ID", "Label"], 0, FILES, separator)
    path = tmp_path_factory.mktemp("any") / "out.csv"
    write(path, sample, [[name] for name in names])
    read = cells(path, separator)
    assert [unguarded(row[1]) for row in read[1:]] == names and [row[0] for row in read[1:]] == FILES


def test_columns_of_the_sample(tmp_path):
    write(tmp_path / "out.csv", Sample("s", ["b", "id", "a"], 1, FILES[:2], ";"), [["x", "y;z"], ["u", "v"]])
    assert (tmp_path / "out.csv").read_bytes() == b'b;id;a\nx;1.jpg;"y;z"\nu;2.jpg;v\n'


def test_what_is_wrong_never_takes_the_name(tmp_path):
    path = text_file(tmp_path / "out.csv", "old")
    with pytest.raises(UserError, match="not written: two; three"):
        write(path, SAMPLE, [["a"]] * 3, check=lambda file: Report(["two", "three"], []))
    assert path.read_text() == "old\n" and [p.name for p in tmp_path.iterdir()] == ["out.csv"]


def test_the_file_is_judged_as_it_stands_on_disk(tmp_path):
    seen = []
    write(tmp_path / "out.csv", SAMPLE, [["a"]] * 3, check=lambda p: seen.append(p.read_text()) or Report([], []))
    assert seen == ["ID,Label\n1.jpg,a\n2.jpg,a\n10.jpg,a\n"] == [(tmp_path / "out.csv").read_text()]


GOOD = ["ID,Label", "1.jpg,a", "2.jpg,b", "10.jpg,a"]


def test_what_is_right(tmp_path):
    report = validate(text_file(tmp_path / "a.csv", *GOOD), SAMPLE, ["a", "b", "c"], many=False)
    assert report == Report([], [], "3 rows, 2 of 3 labels; most often 'a' (2), least 'b' (1)")


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([*GOOD[:3]], ["1 ids are missing: '10.jpg'"]),
        ([*GOOD, "7.jpg,a"], ["1 ids are not in the sample: '7.jpg'"]),
        ([*GOOD, "2.jpg,b"], ["1 ids are more than once: '2.jpg'"]),
        (["ID,Label", "1,a", "2,b", "10,a"], ["3 ids are missing", "spell them as the sample does"]),
        ([GOOD[0], GOOD[1], GOOD[3], GOOD[2]], ["not in the sample's order from line 3 on: '10.jpg', where"]),
        (["ID,Label", "1.jpg,a", "2.jpg,B", "10.jpg,2.0"], ["2 labels are unknown: 'B' (1 rows), '2.0'"]),
        (["ID,Label", "1.jpg,a", "2.jpg,", "10.jpg,b"], ["1 rows have no label: line 3"]),
        (["ID,Label", "1.jpg,a", "2.jpg,=b", "10.jpg,b"], ["1 cells would be computed", "1 labels are unknown"]),
        (["Id,Label", *GOOD[1:]], ["columns are missing: 'ID'; the header has 'Id', 'Label'", "not in the sample"]),
        (["Label,ID", "a,1.jpg", "b,2.jpg", "a,10.jpg"], ["columns are not in the order ID, Label"]),
        (["ID,Label,x", "1.jpg,a,", "2.jpg,b,", "10.jpg,a,"], ["1 columns are not in the sample: 'x'"]),
        ([line.replace(",", ";") for line in GOOD], ["separated by semicolons, the sample's by commas"]),
        (GOOD[1:], ["2 of the sample's columns are missing"]),
        (["ID,Label", "1.jpg"], ["1 rows do not have the header's 2 cells (line 2)"]),
        ([], ["0 rows"]),
    ],
)
def test_each_kind_of_mistake(tmp_path, lines, words):
    found = problems(tmp_path / "a.csv", *lines, classes=["a", "b"], many=False)
    for word in words:
        assert any(word in line for line in found), found
    assert all("\n" not in line for line in found)


def test_every_mistake_is_said(tmp_path):
    lines = ["ID,Label", "1.jpg,a", "1.jpg,c", "2.jpg,", "7.jpg,=x"]
    assert len(problems(tmp_path / "a.csv", *lines, classes=["a", "b"], many=False)) == 6


def test_files_that_are_no_tables(tmp_path):
    path = tmp_path / "a.csv"
    assert "No such file" in validate(path, SAMPLE).problems[0]
    path.write_bytes("ID,Label\n1.jpg,é\n".encode("latin-1"))
    assert "not UTF-8" in validate(path, SAMPLE).problems[0]


def test_blanks_around_cells_are_a_warning(tmp_path):
    def said(*lines):
        found = validate(text_file(tmp_path / "s.csv", *lines), SAMPLE, ["a", " b"])
        assert not found.problems
        return [line for line in found.warnings if "blanks" in line]

    assert said("ID,Label", "1.jpg,a", "2.jpg, b", "10.jpg,a") == []  # the name itself has one
    (line,) = said("ID,Label ", "1.jpg,a", "2.jpg , b", "10.jpg, a")
    assert line.startswith("3 cells have blanks around them") and "'2.jpg ' (line 3)" in line


def test_what_is_odd_is_a_warning(tmp_path):
    same = validate(text_file(tmp_path / "a.csv", *(line.replace(",b", ",a") for line in GOOD)), SAMPLE, ["a", "b"])
    assert same.problems == [] and "every row says 'a'" in same.warnings
    unknown = validate(text_file(tmp_path / "a.csv", *GOOD), SAMPLE)
    assert unknown.problems == [] and "not compared with a list of classes" in unknown.warnings[0]


def test_many_labels(tmp_path):
    lines = ["ID,Label", "1.jpg,a;b", "2.jpg,", "10.jpg,b; c"]
    assert problems(tmp_path / "a.csv", *lines, classes=["a", "b", "c"], many=True) == []
    assert "1 labels are unknown: 'c'" in problems(tmp_path / "a.csv", *lines, classes=["a", "b"], many=True)[0]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("2.jpg,0.5,0.6", "1 rows have probabilities that do not sum up to 1: line 3"),
        ("2.jpg,nan,1", "a probability that is not finite: line 3"),
        ("2.jpg,inf,0", "not finite"),
        ("2.jpg,-0.5,1.5", "outside 0 to 1"),
        ("2.jpg,x,1", "not a number"),
        ("2.jpg,,1", "not a number"),
    ],
)
def test_probabilities(tmp_path, row, words):
    sample = Sample("s", ["ID", "b", "a"], 0, FILES, numeric=True)
    lines = ["ID,b,a", "1.jpg,0.25,0.75", row, "10.jpg,1,0"]
    (said,) = problems(tmp_path / "a.csv", *lines, sample=sample, classes=["a", "b"], many=False)
    assert words in said
    lines[2] = "2.jpg,3e-1,0.7"
    report = validate(text_file(tmp_path / "a.csv", *lines), sample, ["a", "b"], many=False)
    assert report.problems == [] and "most often 'a' (2)" in report.summary


def test_two_signs_make_no_number(tmp_path):
    sample = Sample("s", ["ID", "b", "a"], 0, FILES, numeric=True)
    said = problems(tmp_path / "a.csv", "ID,b,a", "1.jpg,0.25,0.75", "2.jpg,+-inf,1", "10.jpg,1,0", sample=sample)
    assert "1 rows have a cell that is not a number: line 3" in said


def test_sums_matter_for_one_label_alone(tmp_path):
    sample = Sample("s", ["ID", "b", "a"], 0, FILES, numeric=True)
    path = text_file(tmp_path / "a.csv", "ID,b,a", *(f"{name},0.9,0.8" for name in FILES))
    assert validate(path, sample, ["a", "b"], many=True) == Report(
        [], [], "3 rows, 1 of 2 labels; most often 'b' (3), least 'b' (3)"
    )
    assert validate(path, sample).problems == [] and "do not sum up" in validate(path, sample).warnings[0]


def test_probabilities_survive_writing(tmp_path):
    values = [1e-12, 1 / 3, 2 / 3 - 1e-12]
    assert [float(number(v)) for v in values] == pytest.approx(values, rel=1e-8)


def test_names_of_class_folders(tmp_path):
    for name in ("train/10", "train/2", "train/.x", "test"):
        (tmp_path / name).mkdir(parents=True)
    assert class_folders(tmp_path) == ["2", "10"] == class_folders(tmp_path / "train")
    for folder, words in (("no", "no such folder"), ("test", "no folder in it")):
        with pytest.raises(UserError, match=words):
            class_folders(tmp_path / folder)
