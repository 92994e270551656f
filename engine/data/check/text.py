"""The report of a preflight as text: a table of classes, a summary, and all findings."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from statistics import median

from engine.data.check.findings import Finding
from engine.data.check.preflight import Report
from engine.wording import counted, shown

ITEMS = 20  # largest number of items that are printed for a warning; an error's items are all printed


def report_lines(report: Report, width: int | None = None) -> Iterator[str]:
    """Yields the lines of a report: images of each class, sizes and formats, findings and what to do about them.

    Args:
        report: the report on a source.
        width: width of the table, in characters; None: the terminal's.
    """
    yield (
        f"{report.where}: {counted(len(report.classes), 'class')}; "
        + ", ".join(
            f"{count:,} {'image' if count == 1 else 'images'} {_of(split)}" for split, count in report.images.items()
        )
    )
    yield ""
    yield from table(report, width or shutil.get_terminal_size((120, 24)).columns)
    yield ""
    yield from summary(report)
    for note in report.notes:
        yield f"note: {note}"
    for finding in report.findings:
        yield from _lines(finding)


def table(report: Report, width: int = 120) -> Iterator[str]:
    """Yields a table of the images of each class and split, in as many columns as fit into the width."""
    splits = list(report.counts)
    rows = [(shown(name), *(str(report.counts[split][i]) for split in splits)) for i, name in enumerate(report.classes)]
    header = ("class", *splits)
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    across = max(1, (width + 4) // (sum(widths) + 2 * len(splits) + 4))
    height = -(-len(rows) // across)
    columns = [[header, *rows[start : start + height]] for start in range(0, len(rows), max(height, 1))]
    for i in range(height + 1):
        cells = [_row(column[i], widths) for column in columns if i < len(column)]
        yield "    ".join(cells).rstrip()


def summary(report: Report) -> Iterator[str]:
    """Yields lines about the sizes of classes, and about sizes, formats and modes of the readable images."""
    counts = report.counts["train"]
    if counts:
        yield f"classes    {min(counts):,} to {max(counts):,} training images, median {median(counts):g}"
    if report.facts:
        sides = [[facts.width for facts in report.facts], [facts.height for facts in report.facts]]
        least, middle, most = (" x ".join(f"{of(side):g}" for side in sides) for of in (min, median, max))
        yield f"pixels     {least} to {most}, median {middle} (width x height, each by itself)"
        for title, values in (("formats", "format"), ("modes", "mode")):
            frequencies = Counter(getattr(facts, values) for facts in report.facts).most_common()
            yield f"{title:<11}" + ", ".join(f"{count:,} {value}" for value, count in frequencies)


def _lines(finding: Finding) -> Iterator[str]:
    yield f"{'error' if finding.error else 'warning'}: {finding.text}" + (f"; {finding.fix}" if finding.fix else "")
    most = len(finding.items) if finding.error else ITEMS
    for item in finding.items[:most]:
        yield f"    {item}"
    if len(finding.items) > most:
        yield f"    and {len(finding.items) - most} more"


def _of(split: str) -> str:
    return {"train": "to train on", "val": "to validate on", "test": "to test on"}.get(split, "without labels")


def _row(cells: Sequence[str], widths: Sequence[int]) -> str:
    name, *counts = cells
    return "  ".join([name.ljust(widths[0]), *(count.rjust(width) for count, width in zip(counts, widths[1:]))])
