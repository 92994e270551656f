"""The page's layout in gradio, and its server. Nothing but this module imports gradio, and only when it serves."""

from __future__ import annotations

import errno
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from engine.explain.exploring.looking import Explorer
from engine.explain.exploring.merging import WHOLE
from engine.explain.exploring.rendering import EMPTY, STYLE, answer, fault, note, pictures
from engine.explain.exploring.upload import Limits, take
from models.settings import UserError

KEPT = 3600  # seconds that an image is kept in memory after the page last used it
FONTS = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}  # none is downloaded
BUDGET = f"Multiply-adds, in % of those without merging. {WHOLE}: nothing is merged. Further left, more is."


@contextmanager
def served(explorer: Explorer, limits: Limits, host: str, port: int) -> Iterator[str]:
    """Serves the page while the context lasts; uploads are in a folder that is removed at its end.

    Args:
        explorer: of the model.
        limits: of uploads.
        host: the address to listen on.
        port: of `free_port`.

    Yields:
        The page's address.
    """
    with tempfile.TemporaryDirectory(prefix="hybridmerge-explore-", ignore_cleanup_errors=True) as folder:
        gradio = _gradio(folder, host)
        page = build(explorer, limits)
        try:
            try:
                _, address, _ = page.launch(
                    server_name=host,
                    server_port=port,
                    share=False,
                    inbrowser=False,
                    quiet=True,
                    prevent_thread_lock=True,
                    ssr_mode=False,
                    run_history=False,
                    footer_links=[],
                    max_file_size=limits.bytes,
                    theme=gradio.themes.Base(**FONTS),
                    css=STYLE,
                )
            except OSError:  # it was free before the model was loaded
                raise UserError(f"--port {port}: in use; give another, or 0 for one that is free") from None
            yield address
        finally:
            page.close(verbose=False)


def build(explorer: Explorer, limits: Limits) -> Any:
    """Builds the page, a `gradio.Blocks`."""
    import gradio as gr

    merging, title = explorer.merging, explorer.subject.title
    methods, can = merging.methods, bool(merging.methods)
    least = explorer.least(methods[0]) if can else 0
    without = "" if can else f"This model cannot merge tokens: {merging.why_not}."
    with gr.Blocks(title=f"HybridMerge: {title}", analytics_enabled=False, delete_cache=(60, 60)) as page:
        gr.Markdown(f"## What merging does\n{title}")
        image = gr.State(None, time_to_live=KEPT)
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                most = f"at most {limits.megabytes} MB and {limits.megapixels} megapixels"
                file = gr.File(label=f"Image, {most}", type="filepath", elem_id="file", height=170)
                method = gr.Dropdown(
                    methods, value=methods[0] if can else None, label="Merging method", interactive=can, info=without
                )
                budget = gr.Slider(
                    least,
                    WHOLE,
                    merging.start,
                    step=1,
                    label="Merge budget",
                    info=BUDGET if can else without,
                    interactive=can and least < WHOLE,
                    elem_id="budget",
                    buttons=[],
                )
                explainer = gr.Dropdown(explorer.explainers, value=explorer.explainer, label="Heat map")
            with gr.Column(scale=3):
                said, figures, numbers = gr.HTML(EMPTY, elem_id="said"), gr.HTML(), gr.HTML()
        controls, shown = [method, budget, explainer], [said, figures, numbers]
        handlers = _Handlers(explorer, limits)
        quiet = {
            "show_progress": "minimal",
            "concurrency_id": "model",
            "concurrency_limit": 1,
            "api_visibility": "private",
        }
        file.upload(handlers.upload, [file, *controls], [file, image, *shown], **quiet)
        method.input(handlers.method, [image, *controls], [budget, *shown], trigger_mode="always_last", **quiet)
        for control in (budget, explainer):
            control.input(handlers.look, [image, *controls], shown, trigger_mode="always_last", **quiet)
    return page


class _Image(NamedTuple):
    """The image that a page shows: pixels, uint8 (C, H, W), and what they are of."""

    pixels: Tensor
    words: str


class _Handlers:
    """What happens when something on the page is changed. A mistake becomes a line on the page."""

    def __init__(self, explorer: Explorer, limits: Limits) -> None:
        self._explorer, self._limits = explorer, limits

    def upload(self, file: str, method: str, percent: int, explainer: str) -> tuple[Any, ...]:
        """The file is read and deleted; the page forgets its name, so that the next one can be dropped."""
        subject = self._explorer.subject
        try:
            rgb, words = take(Path(file), subject.reading, self._limits)
        except UserError as error:
            return None, None, fault(str(error)), "", ""
        image = _Image(subject.pixels(rgb), words)
        return None, image, *self.look(image, method, percent, explainer)

    def method(self, image: _Image | None, method: str, percent: int, explainer: str) -> tuple[Any, ...]:
        """Another method reaches other budgets."""
        import gradio as gr

        least = self._explorer.least(method)
        slider = {"minimum": least, "interactive": least < WHOLE}
        if percent < least:  # otherwise it stays where it may have been moved meanwhile
            slider["value"] = percent = least
        return gr.update(**slider), *self.look(image, method, percent, explainer)

    def look(self, image: _Image | None, method: str, percent: int, explainer: str) -> tuple[Any, ...]:
        if image is None:
            return EMPTY, "", ""
        try:
            seen = self._explorer.look(image.pixels, method, int(percent), explainer)
        except UserError as error:
            return fault(str(error)), "", ""
        return note(image.words), pictures(seen, explainer), answer(seen)


def _gradio(folder: str, host: str) -> Any:
    """Imports gradio so that it sends nothing, asks nobody, and keeps uploads in a folder."""
    for key in [key for key in os.environ if key.startswith("GRADIO_")]:  # such as GRADIO_SHARE
        del os.environ[key]
    os.environ.update(GRADIO_TEMP_DIR=folder, GRADIO_ANALYTICS_ENABLED="False", HF_HUB_OFFLINE="1")
    for key in ("NO_PROXY", "no_proxy"):  # gradio asks its own server whether it is there
        os.environ[key] = ",".join(filter(None, [os.environ.get(key), "127.0.0.1", "localhost", host]))
    import gradio

    return gradio


def free_port(host: str, port: int) -> int:
    """Checks that the server can listen there. Returns the port; for port 0 one that is free.

    Raises:
        UserError: the port is in use, or the address is not this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError):
        raise UserError(f"--host {host}: no such address; give 127.0.0.1, or an address of this machine") from None
    with socket.socket(family, kind, protocol) as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind(address)
        except PermissionError:
            raise UserError(f"--port {port}: not allowed to this user; give one from 1024 on") from None
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise UserError(f"--port {port}: in use; give another, or 0 for one that is free") from None
            raise UserError(f"--host {host}: not an address of this machine; give 127.0.0.1") from None
        found: int = tried.getsockname()[1]
        return found
