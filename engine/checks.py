"""A preflight's report, in words and as a picture."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from statistics import median

from matplotlib.figure import Figure

from engine.data.findings import Finding
from engine.data.preflight import Report

ITEMS = 20  # of a warning; of an error all are named
LABELS = 120  # classes that a picture can name
COLOURS = {"train": "#1f77b4", "val": "#ff7f0e", "test": "#2ca02c"}


def words(report: Report, width: int | None = None) -> Iterator[str]:
    """The lines of a report: counts of each class, what the images are like, findings and what to do.

    Args:
        width: of a line of the table; None: the terminal's.
    """
    yield (f"{report.where}: {len(report.classes)} classes; "
           + ", ".join(f"{count:,} images {_of(split)}" for split, count in report.images.items()))  # fmt: skip
    yield ""
    yield from table(report, width or shutil.get_terminal_size((120, 24)).columns)
    yield ""
    yield from summary(report)
    for note in report.notes:
        yield f"note: {note}"
    for finding in report.findings:
        yield from _said(finding)


def table(report: Report, width: int = 120) -> Iterator[str]:
    """Images of each class by split, in as many columns, filled from above, as fit into the width."""
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
    """Sizes, formats and modes of the images that can be read, and the smallest and largest class."""
    counts = report.counts["train"]
    if counts:
        yield f"classes    {min(counts):,} to {max(counts):,} training images, median {median(counts):g}"
    if report.facts:
        sides = [[known.width for known in report.facts], [known.height for known in report.facts]]
        least, middle, most = (" x ".join(f"{of(side):g}" for side in sides) for of in (min, median, max))
        yield f"pixels     {least} to {most}, median {middle} (width x height, each for itself)"
        for title, values in (("formats", "format"), ("modes", "mode")):
            met = Counter(getattr(known, values) for known in report.facts).most_common()
            yield f"{title:<11}" + ", ".join(f"{count:,} {value}" for value, count in met)


def picture(report: Report) -> Figure:
    """Bars of the images of each class, splits on top of each other, and the images' widths and heights."""
    classes = len(report.classes)
    figure = Figure(figsize=(min(max(9.0, 5.5 + 0.13 * classes), 17), 4.6), layout="constrained")
    bars, sizes = figure.subplots(1, 2, width_ratios=(figure.get_figwidth() - 4.2, 4.2))
    below = [0] * classes
    for split, counts in report.counts.items():
        bars.bar(range(classes), counts, 0.8 if classes <= LABELS else 1.0, below, label=split, color=COLOURS[split])
        below = [before + count for before, count in zip(below, counts)]
    named = classes <= LABELS
    bars.set_xticks(range(classes) if named else [], [_short(name) for name in report.classes] if named else [])
    crowded = sum(len(_short(name)) + 2 for name in report.classes) > 45
    bars.tick_params("x", rotation=90 if crowded else 0, labelsize=6 if classes > 40 else 8, length=0)
    bars.set(ylabel="images", xlim=(-0.7, max(classes, 1) - 0.3), xlabel="" if named else f"{classes} classes")
    bars.set_title(f"images of each class, {sum(below):,} in all", fontsize=9, color="0.35")
    if len(report.counts) > 1:
        bars.legend(frameon=False, fontsize=8)
    met = Counter((known.width, known.height) for known in report.facts)
    if met:
        widths, heights = zip(*met)
        sizes.scatter(widths, heights, [6 + 120 * count / len(report.facts) for count in met.values()], alpha=0.5, lw=0)
    sizes.set(xlabel="width, pixels", ylabel="height, pixels")
    sizes.set_xlim(left=0), sizes.set_ylim(bottom=0)
    sizes.set_title(f"sizes of {len(report.facts):,} images", fontsize=9, color="0.35")
    for axes in (bars, sizes):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, axis="y" if axes is bars else "both")
        axes.set_axisbelow(True)
    return figure


def shown(name: str) -> str:
    """A name as it can stand on a terminal: one that has line ends or other such characters is quoted."""
    return name if name.isprintable() else repr(name)


def _said(finding: Finding) -> Iterator[str]:
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


def _short(name: str) -> str:
    """A name for a tick: cut where it is long, and nothing in it that would be taken for mathematics."""
    name = shown(name).replace("$", r"\$")
    return name if len(name) <= 24 else name[:23] + "…"
