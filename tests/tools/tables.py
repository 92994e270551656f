"""Reads the tables that tools print into a pipe."""

from __future__ import annotations


def read_markdown(text: str) -> list[list[str]]:
    """The titles and the rows of the Markdown table in a text, without the rule between them."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return [row for row in cells if not set("".join(row)) <= set("-:")]
