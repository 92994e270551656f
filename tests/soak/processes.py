"""Real processes of the tools, forked from one that has imported everything, so that each begins at once."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from pathlib import Path

import torch
from PIL import Image

import engine.train.session  # noqa: F401, what the tools import
from engine.cli import cli
from tools import data as data_tool
from tools import train as train_tool

TOOLS = {"train": train_tool, "data": data_tool}


def start(tool: str, arguments: list[str], folder: Path) -> int:
    """Starts a tool in a folder, in a process group of its own; its output is added to `output.txt` there.

    Returns:
        The number of the process.
    """
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        os.setsid()
        os.chdir(folder)
        output = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        torch.set_num_threads(1)
        sys.argv = [tool, *arguments]
        code = cli(TOOLS[tool].main)
    except SystemExit as leaving:
        code = leaving.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def ended(process: int) -> int | None:
    """Returns the exit code of a process, negative for a signal; None while it runs."""
    done, status = os.waitpid(process, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if done else None


def finish(tool: str, arguments: list[str], folder: Path) -> None:
    """Runs a tool to its end, and stops everything if it fails."""
    _, status = os.waitpid(start(tool, arguments, folder), 0)
    if code := os.waitstatus_to_exitcode(status):
        sys.exit(f"{tool} {' '.join(arguments)}: exit code {code}\n{(folder / 'output.txt').read_text()[-3000:]}")


def group_left(process: int, seconds: float = 10) -> bool:
    """Returns whether processes of a group are still there after some seconds; ends them then."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            os.killpg(process, 0)
        except ProcessLookupError:
            return False
        time.sleep(0.05)
    os.killpg(process, signal.SIGKILL)
    return True


def make_images(folder: Path, count: int, size: tuple[int, int], classes: int = 2) -> None:
    """Writes JPEG files of noise, one class after the other."""
    for i in range(count):
        path = folder / f"class{i % classes}" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = torch.randint(0, 256, (size[1] // 8, size[0] // 8, 3), generator=torch.Generator().manual_seed(i))
        Image.fromarray(noise.byte().numpy()).resize(size, Image.Resampling.BILINEAR).save(path, quality=85)
