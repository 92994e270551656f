"""Prints tables: in colour on a terminal, and as Markdown into a file or a pipe."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from engine.wording import shown

if TYPE_CHECKING:
    from rich.table import Table

GAP = 3  # characters between two columns on a terminal


@dataclass(frozen=True)
class Column:
    """A column of a table: its title, and whether it holds words, which are aligned left, or numbers."""

    title: str
    words: bool = False


Cells = Sequence[str]


def print_table(columns: Sequence[Column], rows: Sequence[Cells], file: TextIO | None = None) -> None:
    """Prints a table: in colour and fitted to the width of a terminal, as Markdown into a pipe or a file.

    Args:
        columns: the columns, from left to right.
        rows: one text for each column, for each row.
        file: where to print; None: the standard output.
    """
    file = sys.stdout if file is None else file
    if file is None:  # the standard output is closed
        return
    if file.isatty():
        _print_on_terminal(columns, rows, file)
    else:
        print(markdown(columns, rows), file=file)


def markdown(columns: Sequence[Column], rows: Sequence[Cells]) -> str:
    """Returns a table as Markdown, with every column padded to its widest cell."""
    texts = [[_escaped(cell) for cell in row] for row in ([column.title for column in columns], *rows)]
    widths = [max(4, *map(len, cells)) for cells in zip(*texts, strict=True)]
    rule = ["-" * width if column.words else "-" * (width - 1) + ":" for column, width in zip(columns, widths)]
    aligned = [
        [cell.ljust(width) if column.words else cell.rjust(width) for cell, column, width in zip(row, columns, widths)]
        for row in texts
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in (aligned[0], rule, *aligned[1:]))


def _escaped(cell: str) -> str:
    """Returns a cell's text on one line, with bars escaped so that they do not end the cell."""
    return shown(cell).replace("|", "\\|")


def _print_on_terminal(columns: Sequence[Column], rows: Sequence[Cells], file: TextIO) -> None:
    """Draws the table with rich; a table that is wider than the terminal is split into several, one below the other."""
    from rich.cells import cell_len
    from rich.console import Console  # only terminals need it

    console = Console(file=file, highlight=False)
    texts = [[shown(column.title) for column in columns], *([shown(cell) for cell in row] for row in rows)]
    widths = [max(map(cell_len, cells)) for cells in zip(*texts, strict=True)]
    for number, group in enumerate(groups(widths, console.width - 2)):  # a space on either side
        if number:
            console.print()
        console.print(_drawn([columns[i] for i in group], [[row[i] for i in group] for row in texts]))


def groups(widths: Sequence[int], available: int) -> list[list[int]]:
    """Splits columns into groups that fit side by side; each group begins with column 0.

    Args:
        widths: the width of each column, in characters.
        available: the width of the terminal.
    """
    split = [[0]]
    for column in range(1, len(widths)):
        together = [*split[-1], column]
        if len(together) > 2 and sum(widths[i] for i in together) + GAP * (len(together) - 1) > available:
            split.append([0])
        split[-1].append(column)
    return split


def _drawn(columns: Sequence[Column], texts: Sequence[Cells]) -> Table:
    """Returns a rich table with bold titles, the first of `texts`; cells that do not fit are wrapped."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, header_style="bold cyan", show_edge=False)
    for column, title in zip(columns, texts[0], strict=True):
        table.add_column(Text(title), justify="left" if column.words else "right", overflow="fold")
    for row in texts[1:]:
        table.add_row(*map(Text, row))  # Text does not take brackets in a name for mark-up
    return table
