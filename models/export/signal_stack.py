"""Keeps the memory on which signals are handled, which OpenVINO replaces."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class SignalStack(ctypes.Structure):
    """`stack_t` of Linux's sigaltstack(2): where it lies, flags, and its bytes."""

    _fields_ = [("pointer", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]


def signal_stack() -> SignalStack:
    """Returns the alternate signal stack of this thread. Linux only."""
    stack = SignalStack()
    ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack))
    return stack


@contextmanager
def signal_stack_kept() -> Iterator[None]:
    """A block after which this thread handles signals on the stack that it had before.

    Each model that OpenVINO (2026.4) compiles gives the thread a signal stack of its own, and gives back the one before
    when it is deleted. Where models are deleted in the order in which they were made, that one has gone, and the next
    signal that Python handles, such as the end of a process of a DataLoader, ends the program.
    """
    if not sys.platform.startswith("linux"):
        yield
        return
    before = signal_stack()
    try:
        yield
    finally:
        ctypes.CDLL(None).sigaltstack(ctypes.byref(before), None)
