"""Tables: Markdown into a pipe, and on a terminal whole numbers whatever its width."""

from __future__ import annotations

import io

import pytest

from engine.tables import Column, groups, markdown, print_table
from engine.wording import fixed
from tests.tools.tables import read_markdown

COLUMNS = (Column("run", words=True), Column("GMACs"), Column("top-1, %"))
ROWS = [("vit", "17.5638", "81.20"), ("a|b\n[bold]", "0.5", "-")]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_pipe_gets_markdown(capsys):
    print_table(COLUMNS, ROWS)
    assert capsys.readouterr().out.splitlines() == [
        "| run            |   GMACs | top-1, % |",
        "| -------------- | ------: | -------: |",
        "| vit            | 17.5638 |    81.20 |",
        r"| 'a\|b\n[bold]' |     0.5 |        - |",
    ]


def test_markdown_is_read_back():
    titles, *rows = read_markdown(markdown(COLUMNS, [row for row in ROWS if "|" not in row[0]]))
    assert titles == ["run", "GMACs", "top-1, %"] and rows == [["vit", "17.5638", "81.20"]]


@pytest.mark.parametrize(("width", "tables"), [(200, 1), (30, 1), (25, 2)])
def test_a_terminal_gets_as_many_columns_as_fit(monkeypatch, width, tables):
    monkeypatch.setenv("COLUMNS", str(width))
    terminal = Terminal()
    print_table(COLUMNS, [("vit", "17.5638", "81.20"), ("[bold]", "0.5", "-")], terminal)
    text = terminal.getvalue()
    assert text.count("run") == tables == text.count("[bold]")
    assert all(cell in text for cell in ("17.5638", "81.20"))


def test_groups_begin_with_the_first_column_and_leave_none_out():
    assert groups([4, 4, 4, 4], 100) == [[0, 1, 2, 3]]
    assert groups([4, 4, 4, 4], 18) == [[0, 1, 2], [0, 3]]
    assert groups([4, 40, 4, 4], 18) == [[0, 1], [0, 2, 3]]
    assert groups([4, 4, 4], 1) == [[0, 1], [0, 2]]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (17.56381, "17.5638"),
        (0.0575, "0.0575"),
        (0.0089, "0.00890"),
        (4.132e-5, "0.0000413"),
        (0, "0.0000"),
        (-2e-6, "-0.00000200"),
        (float("nan"), "nan"),
    ],
)
def test_small_numbers_keep_three_digits(value, text):
    assert fixed(value, 4) == text


def test_a_closed_standard_output_is_no_error(monkeypatch):
    monkeypatch.setattr("sys.stdout", None)
    print_table([Column("name", words=True)], [["a"]])
