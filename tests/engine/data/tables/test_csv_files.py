"""CSV files as spreadsheets and people write them."""

from __future__ import annotations

import pytest

from engine.data.tables.csv_files import read_table
from models.settings import UserError

CELLS = [["id", "label"], ["1.jpg", "cat"], ["2.jpg", "dog"]]


def table(tmp_path, text: str | bytes, **options):
    path = tmp_path / "table.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_table(path, "table.csv", **options)


@pytest.mark.parametrize(
    "text",
    [
        '"id", "label"\n"1.jpg", "cat"\n"2.jpg", "dog"\n',
        '"id",  "label"\n1.jpg, cat\n 2.jpg,"dog"\n',
        '"id" , "label"\n"1.jpg" ,"cat" \n"2.jpg", "dog"\n',
        "sep=;\nid;label\n1.jpg;cat\n2.jpg;dog\n",
        '\ufeff"sep=;"\r\n"id";"label"\r\n1.jpg;cat\r\n2.jpg;dog\r\n',
        "SEP=\t\nid\tlabel\n1.jpg\tcat\n2.jpg\tdog\n",
        "\nsep=,\n\nid,label\n\n1.jpg,cat\n2.jpg,dog\n",
        "id,label\n1.jpg,\u00a0cat\u200b\n\ufeff2.jpg,\u202adog \n",
        "id,label\r1.jpg,cat\r2.jpg,dog\r",
    ],
)
def test_what_people_mean(tmp_path, text):
    found = table(tmp_path, text)
    assert [found.columns, *found.rows] == CELLS


def test_a_first_line_that_names_the_separator(tmp_path):
    found = table(tmp_path, "sep=;\nid;a,b\n1;x\n2;\n")
    assert found.columns == ["id", "a,b"] and found.separator == ";" and found.announced
    assert found.lines == [3, 4], "as an editor counts"
    assert not table(tmp_path, "id,sep=;\n1,x\n").announced
    with pytest.raises(UserError, match="the first line names '|'; separate cells by commas, semicolons or tabs"):
        table(tmp_path, "sep=|\nid|label\n1|x\n")


def test_cells_are_read_unchanged_where_that_is_asked(tmp_path):
    found = table(tmp_path, 'id," label"\n1, "x"\n2,\u200by \n', strip=False)
    assert found.columns == ["id", " label"] and found.rows == [["1", ' "x"'], ["2", "\u200by "]]


@pytest.mark.parametrize("separator", [",", ";"])
def test_text_within_quotation_marks_is_kept(tmp_path, separator):
    """Also where another cell has a blank after its closing quotation mark, which is removed."""
    cells = [f'say "x" {separator} y', 'the "end" \nand', '" " ']
    rows = [separator.join((f'"{i}" ', '"' + cell.replace('"', '""') + '" ')) for i, cell in enumerate(cells)]
    found = table(tmp_path, "\r\n".join([f'"id"{separator}"label"', *rows]))
    assert [label.strip() for _, label in found.rows] == [cell.strip() for cell in cells]
    assert [name for name, _ in found.rows] == ["0", "1", "2"]


def test_a_quotation_mark_after_a_blank_that_is_part_of_a_name(tmp_path):
    assert table(tmp_path, 'id,label\n1, "red" car\n').rows == [["1", '"red" car']]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("id,é\n1,é\n".encode("utf-16"), "not UTF-8 but UTF-16; save"),
        ("id,e\n1,é\n".encode("cp1252"), r"not UTF-8 \(byte 7\), in line 2"),
        (b"PK\x03\x04\0\0", "not a text file but an archive, such as a workbook"),
        ("é,e\u0301\n1,2\n".encode(), "a column twice"),
    ],
)
def test_files_that_are_none(tmp_path, data, words):
    with pytest.raises(UserError, match=words):
        table(tmp_path, data)
