"""Draws the picture of a preflight (tools/data.py check --out): the images of each class, and the sizes of images."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from matplotlib.figure import Figure

from engine.data.check.preflight import Report
from engine.figures.drawing import save_figure
from engine.wording import shown
from models.settings import UserError

LABELS = 120  # largest number of classes whose names fit below the bars
COLOURS = {"train": "#1f77b4", "val": "#ff7f0e", "test": "#2ca02c"}


def picture(report: Report) -> Figure:
    """Draws the number of images of each class as bars, split by split, and the widths and heights of all images."""
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
    count_of_size = Counter((facts.width, facts.height) for facts in report.facts)
    if count_of_size:
        widths, heights = zip(*count_of_size)
        areas = [6 + 120 * count / len(report.facts) for count in count_of_size.values()]
        sizes.scatter(widths, heights, areas, alpha=0.5, lw=0)
    sizes.set(xlabel="width, pixels", ylabel="height, pixels")
    sizes.set_xlim(left=0)
    sizes.set_ylim(bottom=0)
    sizes.set_title(f"sizes of {len(report.facts):,} images", fontsize=9, color="0.35")
    for axes in (bars, sizes):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, axis="y" if axes is bars else "both")
        axes.set_axisbelow(True)
    return figure


def save_picture(report: Report, folder: Path) -> Path:
    """Writes the picture of a report as check.png into a folder, which is created if it is missing.

    Raises:
        UserError: the folder cannot be created, or the file cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {folder}: cannot be created ({error.strerror}); give another folder") from None
    save_figure(picture(report), folder / "check.png")
    return folder / "check.png"


def _short(name: str) -> str:
    """Returns a name for a tick: shortened, and with dollar signs escaped, which matplotlib reads as mathematics."""
    name = shown(name).replace("$", r"\$")
    return name if len(name) <= 24 else name[:23] + "…"
