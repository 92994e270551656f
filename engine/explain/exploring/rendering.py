"""What the page shows, as HTML: names of classes and files are text in it, whatever characters they have."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

from PIL import Image
from torch import Tensor

from engine.explain.exploring.looking import PASSES, Seen
from engine.wording import NOT_COUNTED, counted, fixed
from models.explain import EXPLAINERS

EMPTY = '<p class="hint">Drop an image on the left. Nothing leaves this computer, and the file is not kept.</p>'
STYLE = """
footer { display: none !important; }
.gradio-container { max-width: 1280px !important; margin: auto; }
#budget input[type=number] { pointer-events: none; border: 0; background: none; }  /* shows; the slider is moved */
.pictures { display: flex; flex-wrap: wrap; gap: 16px; }
.pictures figure { flex: 1 1 220px; max-width: 448px; margin: 0; }
.pictures img { width: 100%; display: block; }
.pictures figcaption { font-size: 14px; padding-top: 6px; }
.pictures b, .numbers b { font-weight: 600; }
.answer { display: flex; flex-wrap: wrap; gap: 32px; margin-top: 8px; }
.answer > * { flex: 1 1 260px; }
.classes { border-collapse: collapse; }
.classes, .classes tr, .classes td { border: 0 !important; }
.classes td { padding: 3px 8px 3px 0 !important; }
.classes .bar { width: 40%; }
.classes .bar i { display: block; height: 9px; background: #b2182b; }
.classes td:last-child { text-align: right; white-space: nowrap; }
.numbers { margin: 0; }
.numbers dt { font-size: 14px; opacity: 0.75; margin-top: 6px; }
.numbers dd { margin: 0; font-size: 18px; }
.numbers small { font-size: 13px; opacity: 0.75; }
.fault { color: #b2182b; font-weight: 600; }
.hint { opacity: 0.75; }
.dark .fault { color: #ff8a80; }
"""


def fault(message: str) -> str:
    """A user's mistake, on one line."""
    return f'<p class="fault" role="alert">{escape(" ".join(message.splitlines()))}</p>'


def note(text: str) -> str:
    """A remark, such as what was read."""
    return f'<p class="hint" role="status">{escape(text)}</p>'


def pictures(seen: Seen, explainer: str) -> str:
    """The photograph, the regions that are left of it, and the explanation."""
    figures = [_figure("photograph", seen.photograph, "<b>Photograph</b>, as the model sees it")]
    if seen.regions is not None and seen.patches is not None and seen.left is not None:
        left = f"<b>Regions</b>: {counted(seen.left, 'token')} of {counted(seen.patches, 'patch')}"
        words = f"{left}, after the last block. Each has the mean colour of its patches; lines separate tokens."
        figures.append(_figure("regions", seen.regions, words))
    signed = EXPLAINERS[explainer].signed
    key = "red: for the class, blue: against it" if signed else "the brighter, the more relevant"
    words = f"<b>Heat map</b>: {escape(explainer)}, for {escape(seen.top[0][0])}; {escape(seen.note or key)}"
    figures.append(_figure("heat", seen.heat, words))
    return f'<div class="pictures">{"".join(figures)}</div>'


def answer(seen: Seen) -> str:
    """The most likely classes, and what the answer costs."""
    return f'<div class="answer">{_classes(seen.top)}{_numbers(seen)}</div>'


def _classes(top: Sequence[tuple[str, float]]) -> str:
    rows = [
        f'<tr><td>{escape(name)}</td><td class="bar"><i style="width:{100 * value:.1f}%"></i></td>'
        f"<td>{100 * value:.1f} %</td></tr>"
        for name, value in top
    ]
    return f'<table class="classes">{"".join(rows)}</table>'


def _numbers(seen: Seen) -> str:
    gmacs, whole = seen.budget.gmacs, seen.whole.gmacs
    cost = NOT_COUNTED
    if gmacs is not None and whole:
        cost = f"{fixed(gmacs, 3)} GMACs"
        if seen.regions is not None:
            cost += f" <small>{100 * gmacs / whole:.1f} % of {fixed(whole, 3)} without merging</small>"
    how = f"median of {PASSES} passes of this image, {escape(seen.device)}"
    time = f"{fixed(seen.milliseconds, 1)} ms <small>{how}</small>"
    entries = {"Multiply-adds": cost, "Forward pass": time}
    if any(seen.budget.removed):
        removed = ", ".join(map(str, seen.budget.removed))
        entries["Tokens that each block merges away"] = f"<small>{removed}</small>"
    body = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in entries.items())
    return f'<dl class="numbers">{body}</dl>'


def _figure(name: str, picture: Tensor, caption: str) -> str:
    """A picture, uint8 (H, W, 3), inside the page itself: it never is a file."""
    file = io.BytesIO()
    Image.fromarray(picture.numpy()).save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    image = f'<img alt="{name}" src="data:image/png;base64,{data}">'
    return f'<figure id="{name}">{image}<figcaption>{caption}</figcaption></figure>'
