"""One thing that users get wrong: how to do it, and what they are told."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Mistake:
    """A command with a mistake in it, or in the files that it reads.

    Args:
        title: what the user did or has, as the document words it: "Two splits taken for classes".
        command: what the user types, such as "tools/data.py check brain". It runs in an empty folder.
        says: the line that the user reads, without "error: ", or a warning that ends up in the log. What depends on the
            machine is written as "...".
        make: puts the files that the command needs into the folder, which is the current one; what it returns is
            kept until the command has ended. None: there are none.
        code: the exit code: 2 for an error, 0 where the user is warned and the command goes on.
    """

    title: str
    command: str
    says: str
    make: Callable[[Path], object] | None = None
    code: int = 2


class Hidden:
    """Makes a library look as if it was not installed, until this is deleted."""

    def __init__(self, name: str) -> None:
        self.name, self.module = name, sys.modules.get(name)
        sys.modules[name] = None

    def __del__(self) -> None:
        del sys.modules[self.name]
        if self.module is not None:
            sys.modules[self.name] = self.module
