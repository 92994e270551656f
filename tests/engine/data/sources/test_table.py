import logging
import os
from pathlib import Path

import pytest
import torch

from engine.data import DATASETS, SplitSettings, build_data, load_raw
from engine.settings.layers import load_settings
from engine.tasks import MANY_LABELS, ONE_LABEL
from models.settings import UserError, check
from tests.engine.data.conftest import files, read_image, save_image

ONE = "path,label\na.png,cat\nb.png,dog\nc.png,cat\nd.png,dog\n"
FLAGS = "path,red,round\na.png,1,0\nb.png,0,1\nc.png,1,1\nd.png,0,0\n"
LISTS = "path,labels\na.png,red\nb.png,round\nc.png, red ; round\nd.png,\n"
MANY = torch.tensor([[1.0, 0], [0, 1], [1, 1], [0, 0]])


@pytest.fixture
def write(tmp_path):
    """Writes a table beside four images."""
    for seed, name in enumerate("abcd"):
        save_image(tmp_path / f"{name}.png", seed)

    def write(text: str, encoding: str = "utf-8") -> Path:
        path = tmp_path / "table.csv"
        path.write_bytes(text.encode(encoding))
        return path

    return write


def load(path: Path, **options):
    settings = check(DATASETS["csv"][0], {"name": "csv", "path": str(path), "size": 8, **options}, "data")
    return load_raw(settings)


def error_of(path: Path, **options) -> str:
    """The one line that a user sees."""
    with pytest.raises(UserError) as caught:
        load(path, **options)
    line = str(caught.value)
    assert "\n" not in line and line.startswith(f"data.path = {str(path)!r}: ")
    return line


def test_one_label(write, tmp_path):
    raw = load(write(ONE))
    assert raw.classes == ["cat", "dog"] and raw.test is None and raw.val is None and raw.task is ONE_LABEL
    assert raw.train.labels.dtype == torch.int64 and raw.train.labels.tolist() == [0, 1, 0, 1]
    for name, image in zip("abcd", raw.train.images):
        assert image.equal(torch.tensor(read_image(tmp_path / f"{name}.png", files(8, "crop"))).permute(2, 0, 1))


@pytest.mark.parametrize("text", [FLAGS, LISTS, FLAGS.replace(",1", ",1.0")])
def test_many_labels(write, text, caplog):
    raw = load(write(text), labels="many")
    assert raw.classes == ["red", "round"] and raw.task is MANY_LABELS
    assert raw.train.labels.dtype == torch.float32 and raw.train.labels.equal(MANY)
    assert ("1 of 4 images have no label" in caplog.text) == (text == LISTS)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_separators_byte_order_marks_and_line_ends(write, encoding, separator, end):
    text = ONE.replace("cat", "Ærø").replace(",", separator).replace("\n", end) + end
    raw = load(write(text, encoding))
    assert raw.classes == ["dog", "Ærø"] and raw.train.labels.tolist() == [1, 0, 1, 0]
    quoted = LISTS.replace(", red ; round", ',"red;round"').replace("d.png,", 'd.png,""').replace(",", separator)
    assert load(write(quoted.replace("\n", end), encoding), labels="many").train.labels.equal(MANY)


def test_predictions_guarded_against_spreadsheets_have_the_labels_that_were_predicted(write):
    rows = ["path,label,note", "a.png,=x,", "b.png,'=x,", "c.png,-y,", 'd.png,"\'-y",']
    raw = load(write("\n".join(rows)))
    assert raw.classes == ["-y", "=x"] and raw.train.labels.tolist() == [1, 1, 0, 0]
    raw = load(write("path,labels\na.png,=x;b\nb.png,'=x;b\nc.png,b\n"), labels="many")
    assert raw.classes == ["=x", "b"] and raw.train.labels.tolist() == [[1, 1], [1, 1], [0, 1]]
    assert load(write("path,'=x,b\na.png,1,0\nb.png,0,1\n"), labels="many").classes == ["=x", "b"]


def test_empty_lines_before_the_header(write):
    assert load(write("\n\npath;label\na.png;cat\nb.png;dog\n")).classes == ["cat", "dog"]


def test_splits_of_its_own(write):
    rows = ["path,split,label", "a.png,train,x", "b.png,Test,x", "c.png,train,y", "d.png,val,y"]
    raw = load(write("\n".join(rows)))
    assert [part.labels.tolist() for part in (raw.train, raw.val, raw.test)] == [[0, 1], [1], [0]]
    many = load(
        write("path,split,p,q\na.png,train,1,0\nb.png,test,1,1\nc.png,train,0,1\nd.png,train,0,0"), labels="many"
    )
    assert many.val is None and many.test.labels.tolist() == [[1, 1]] and many.train.labels.tolist()[2] == [0, 0]


def test_paths_start_from_a_folder_and_their_column_may_be_anywhere(write, tmp_path):
    save_image(tmp_path / "pictures" / "deep" / "e.jpg", 9)
    save_image(tmp_path / "pictures" / "f.jpg", 10)
    raw = load(write("label,path\nx,deep/e.jpg\ny,f.jpg\n"), images=str(tmp_path / "pictures"))
    assert raw.train.labels.tolist() == [0, 1]
    raw = load(write(f"file,label\n{tmp_path / 'a.png'},x\nb.png,y\n"))
    assert raw.train.labels.tolist() == [0, 1]


def test_numbers_of_rows_are_not_taken_for_paths_without_extension(tmp_path):
    for i in range(4):
        save_image(tmp_path / "im" / f"{i}.png", i)
    rows = [f"{row},{image}.png,{'xy'[image % 2]}" for row, image in enumerate((3, 0, 2, 1))]
    table, images = tmp_path / "table.csv", str(tmp_path / "im")
    for header in ("Unnamed: 0,file,label", "id,file,label"):
        table.write_text("\n".join([header, *rows]))
        said = error_of(table, images=images)
        assert (
            f"columns {header.split(',')[0]!r} and 'file' both name images; call the column of the paths path" in said
        )
    table.write_text("\n".join([",file,label", *rows]))
    assert "column 1 of 3 has no name" in error_of(table, images=images)
    table.write_text("\n".join(["index,path,label", *rows]))  # as the errors say
    source = load(table, images=images)
    assert source.classes == ["x", "y"] and source.train.labels.tolist() == [1, 0, 0, 1]


@pytest.mark.parametrize(
    "header, rows, said",
    [
        ("lesion_id,image_id,label", ["H1,a,x", "H1,b,y", "H2,c,x"], "column 'image_id', not 'lesion_id'"),
        ("Unnamed: 0,file,label", ["0,gone/1.png,x", "1,gone/2.png,y", "2,gone/0.png,x"], "column 'file', not"),
    ],
)
def test_another_column_than_the_first_names_the_images(write, header, rows, said):
    assert said in error_of(write("\n".join([header, *rows])))


def test_the_first_column_is_clear_beside_columns_that_name_images_by_chance(write, tmp_path):
    for i in range(4):
        save_image(tmp_path / f"{i}.png", i)
    labels = load(write("image,p,q\n0,1,0\n1,1,1\n2,0,1\n3,0,0\n"), labels="many").train.labels
    assert labels.tolist() == [[1, 0], [1, 1], [0, 1], [0, 0]]
    raw = load(write("image,mask,label\na.png,b.png,x\nb.png,a.png,y\nc.png,d.png,x\n"))
    assert raw.train.labels.tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    "text, options, said",
    [
        ("path,name\na.png,x\n", {}, "the header has 'path', 'name'; data.labels = 'one' needs path and label"),
        ("path|label\na.png|x\n", {}, "data.labels=many; cells are separated by commas, semicolons or tabs"),
        ("# exported\npath,label\na.png,x\n", {}, "2 rows do not have the header's 1 cell (line 2, 3)"),
        ("path\na.png\n", {"labels": "many"}, "the header has 'path'; data.labels = 'many' needs path, and labels or"),
        (ONE, {"labels": "many"}, "4 rows have a value other than 0 or 1 in column 'label', such as 'cat'"),
        ("path,Finding Labels\na.png,Mass\n", {"labels": "many"}, "or call it labels if it has the names of labels"),
        (FLAGS.replace("0,1", "2,1"), {"labels": "many"}, "in column 'red', such as '2'; write 0 or 1"),
        (FLAGS.replace("0,1", ",1"), {"labels": "many"}, "in column 'red', such as ''"),
        (ONE.replace("b.png,dog", "b.png,"), {}, "1 row has no label (line 3)"),
        (ONE.replace("b.png", ""), {}, "1 row has no path (line 3)"),
        (ONE.replace("b.png,dog", "b.png"), {}, "1 row does not have the header's 2 cells (line 3)"),
        (ONE.replace("b.png", "no.png").replace("c.png", "not.png"), {}, "2 of 4 files are not in"),
        (ONE.replace("b.png", "a.png"), {}, "2 rows name a file that another row names"),
        (ONE.replace("b.png", "./a.png"), {}, "2 rows name a file that another row names"),
        (FLAGS.replace("b.png", "a.png"), {"labels": "many"}, "for each image, with all its labels (line 2, 3)"),
        (ONE.replace("dog", "cat"), {}, "a single label, 'cat'"),
        ("path,label,split\na.png,x,train\nb.png,y,extra\n", {}, "a split other than train, val, test (line 3)"),
        ("path,label,split\na.png,x,test\nb.png,y,test\n", {}, "no row has the split train"),
        ("path,label,split\na.png,x,train\nb.png,z,train\nc.png,y,test\n", {}, "without a training image: 'y'"),
        ("path,labels\na.png,\nb.png,\n", {"labels": "many"}, "no row has labels"),
        ("path,label,label\na.png,x,y\n", {}, "a column twice: 'label'"),
        ("path,label,\na.png,x,\n", {}, "column 3 of 3 has no name in the header; give it one, or remove it"),
        ("path,label\n", {}, "1 row; a header and a row for each image are needed"),
        ("", {}, "0 rows"),
        ("a\0b\n", {}, "not a text file"),
        ('path,label\na.png,"x"y\n', {}, "not CSV"),
    ],
)
def test_mistakes(write, text, options, said):
    assert said in error_of(write(text), **options)


@pytest.mark.parametrize(
    "paths",
    [
        ("a", "b", "c", "d"),
        ("a", "b.png", "./c", ".\\d.png"),
        (r"..\{here}\a.png", r"..\{here}\b", "../{here}/c", r".\d"),
        ("A.PNG".lower(), "b.png\u200b", "\u202ac.png", "\u00a0d.png"),
    ],
)
def test_paths_of_other_systems_and_without_the_extension(write, tmp_path, paths):
    rows = [f"{path.format(here=tmp_path.name)},{label}\n" for path, label in zip(paths, ("cat", "dog", "cat", "dog"))]
    raw = load(write("path,label\n" + "".join(rows)))
    assert [os.path.normpath(path) for path in raw.train.paths] == [str(tmp_path / f"{name}.png") for name in "abcd"]
    assert raw.train.images.equal(load(write(ONE)).train.images) and raw.train.labels.tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        (("a", "a.png"), "2 rows name a file that another row names"),
        (("e", "b"), "1 row names several files: 'e' ('e.jpg', 'e.png'); write the whole name, with the extension"),
        ((r"C:\data\a.png", "b"), "1 of 2 files are not in"),
        ((r"C:\data\a.png", "b"), "write paths relative to that folder in place of those of another computer"),
        ((r"\\server\data\a.png", "b"), "in place of those of another computer"),
        (("A.PNG", "b"), "write each path as its file is called, such as 'a.png' for 'A.PNG'"),
        (("https://example.com/a.png", "b"), "download the images, and write the paths of the files"),
    ],
)
def test_paths_that_are_not_clear_or_elsewhere(write, tmp_path, cells, said):
    for seed, name in enumerate(("e.png", "e.jpg")):
        save_image(tmp_path / name, 50 + seed)
    rows = [f"{cell},{label}\n" for cell, label in zip(cells, "xy")]
    assert said in error_of(write("path,label\n" + "".join(rows)))


@pytest.mark.parametrize(("there", "here"), [("é", "e\u0301"), ("e\u0301", "é")])
def test_a_table_and_files_in_other_bytes(write, tmp_path, there, here, caplog):
    for seed, name in enumerate((f"{there}/{there}.png", f"{there}/b.png", f"{there}/c.png")):
        save_image(tmp_path / name, 60 + seed)
    rows = [f"{here}/{here}.png,{here},train", f"{there}/b,{there},train", f"{here}/c.png,x,train", f"a,{there},test"]
    raw = load(write("\n".join(["path,label,split", *rows])))
    assert raw.train.paths == tuple(str(tmp_path / there / f"{name}.png") for name in (there, "b", "c"))
    assert raw.classes == ["x", here] and raw.train.labels.tolist() == [1, 1, 0] and raw.test.labels.tolist() == [1]
    assert "1 label is written in two of Unicode's forms, and taken as one each" in caplog.text
    many = [f"a.png,{here};x", f"b.png,{there}", "c.png,x"]
    raw = load(write("\n".join(["path,labels", *many])), labels="many")
    assert raw.classes == ["x", here] and raw.train.labels.tolist() == [[1, 1], [0, 1], [1, 0]]
    assert "2 rows name a file" in error_of(write(f"path,label\n{here}/b.png,x\n{there}/b.png,y\n"))


def test_columns_and_splits_as_people_write_them(write):
    text = "Path;LABEL;Split\na.png;x;Training\nb.png;y;train_set\nc.png;x;Valid\nd.png;y;TESTING \n"
    raw = load(write(text))
    assert raw.train.labels.tolist() == [0, 1] and raw.val.labels.tolist() == [0] and raw.test.labels.tolist() == [1]
    raw = load(write("PATH,Split,Red,round\na.png,train,1,0\nb.png,train,0,1\nc.png,test,1,0\n"), labels="many")
    assert raw.classes == ["Red", "round"] and len(raw.test) == 1


def test_zero_and_one_as_programs_write_them(write):
    for yes, no in (("True", "False"), ("1.0", "0.0"), ("yes", "No"), ("TRUE", "FALSE"), ('"1,0"', '"0,00"')):
        text = FLAGS.replace(",1", ",{1}").replace(",0", ",{0}").format(no, yes)
        assert load(write(text), labels="many").train.labels.equal(MANY)
    for neither in ("nan", "-1", "0.5", "2.0", "u"):
        assert f"such as '{neither}'; write 0 or 1" in error_of(
            write(FLAGS.replace("1,0", f"{neither},0")), labels="many"
        )


@pytest.mark.parametrize("labels", ["one", "many"])
def test_a_table_without_a_header(write, labels):
    line = error_of(write("a.png,1\nb.png,0\nc.png,1\n"), labels=labels)
    column = {"one": "label", "many": "labels"}[labels]
    assert line.endswith(f"the first line names an image, 'a.png'; write a header above it: path,{column}")


def test_a_header_that_is_a_row_of_numbers(write, tmp_path):
    for i in range(1, 4):
        save_image(tmp_path / f"{i}.png", 20 + i)
    line = error_of(write("3,0,1\n2,1,0\n1,1,1\n"), labels="many")
    assert "the first line names an image, '3'; write a header above it: path,labels" in line
    assert load(write("id7,0,1\n2,1,0\n3,1,1\n"), labels="many").classes == ["0", "1"]


@pytest.mark.parametrize("labels", ["one", "many"])
def test_splits_under_another_name_are_asked_about(write, labels):
    """They would be ignored, and test images would train."""
    text = "path,label,subset\na.png,x,Train\nb.png,y,train\nc.png,x,Test\n"
    line = error_of(write(text if labels == "one" else text.replace("label", "labels")), labels=labels)
    assert line.endswith("column 'subset' holds splits, such as 'Train'; call it split, or remove it")
    assert load(write(text.replace("Test", "x"))).classes == ["x", "y"]


def test_the_first_missing_files_are_named(write):
    line = error_of(write("path,label\n" + "".join(f"{i}.png,{i % 2}\n" for i in range(9))))
    assert "9 of 9 files" in line and "'0.png', '1.png', '2.png', ...; correct the paths, or set data.images" in line


def test_a_name_too_long_for_a_file_is_missing(write):
    assert "1 of 4 files are not in" in error_of(write(ONE.replace("a.png", "a" * 300)))


def test_all_missing_files_are_in_the_log(write, caplog):
    error_of(write("path,label\n" + "".join(f"{i}.png,{i % 2}\n" for i in range(9))))
    assert [record.getMessage().strip() for record in caplog.records[-9:]] == [f"'{i}.png'" for i in range(9)]


def test_the_old_name_is_unknown():
    with pytest.raises(UserError, match="data.name = 'table': unknown; .*csv"):
        load_settings("digits/vit", ["data.name=table", "data.path=x"])


def test_names_in_a_table(write, tmp_path):
    names = ("two words.png", "Ærø.png", "=cmd().png", "new\nline.png", "a,b.png", "a" * 251 + ".png")
    for seed, name in enumerate(names):
        save_image(tmp_path / name, seed)
    lines = [f'"{name}","=x{i % 2}"\n' for i, name in enumerate(names)]
    raw = load(write("path,label\n" + "".join(lines)))
    assert raw.classes == ["=x0", "=x1"] and raw.train.paths == tuple(str(tmp_path / name) for name in names)


def test_files_that_are_no_tables(write, tmp_path):
    assert "No such file" in error_of(tmp_path / "none.csv")
    assert "Is a directory" in error_of(tmp_path)
    assert "not UTF-8 (byte 11)" in error_of(write("path,label\nÆ.png,x\n", "latin-1"))
    assert "not UTF-8" in error_of(write(ONE, "utf-16"))
    assert "1 of 4 images cannot be read" in _with_a_damaged_image(write(ONE))


def _with_a_damaged_image(path: Path) -> str:
    (path.parent / "b.png").write_bytes(b"nothing")
    return error_of(path)


def test_labels_that_no_training_image_has_are_named(write, caplog):
    load(write("path,split,p,q\na.png,train,1,0\nb.png,test,1,1\n"), labels="many")
    assert "1 label has no positive training image: 'q'" in caplog.text


def test_many_labels_through_the_splits(tmp_path, caplog):
    rows = [f"{save_image(tmp_path / f'{i}.png', i).name},{i % 2},{int(i == 0)}\n" for i in range(40)]
    (tmp_path / "t.csv").write_text("path,often,once\n" + "".join(rows))
    settings = DATASETS["csv"][0](path=str(tmp_path / "t.csv"), size=8, labels="many")
    with caplog.at_level(logging.WARNING):
        data = build_data(settings, SplitSettings(test=0.25, val=0.1, part=0.5), seed=0)
    assert data.task is MANY_LABELS and (len(data.train), len(data.val), len(data.test)) == (14, 3, 10)
    assert data.test.labels.shape == (10, 2) and data.classes == ["often", "once"]
    assert "label has no positive" in caplog.text and "'once'" in caplog.text
    other = build_data(settings, SplitSettings(test=0.25, val=0.1, part=0.5), seed=1)
    assert other.test.labels.equal(data.test.labels) and other.fingerprint() != data.fingerprint()
