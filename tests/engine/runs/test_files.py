"""The order in which a file is replaced, which decides what a loss of power leaves."""

from __future__ import annotations

import os

import pytest

from models.files import replacing


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="/proc names what is synced")
def test_the_content_is_on_the_disk_before_the_name_and_the_name_before_the_end(tmp_path, monkeypatch):
    done, replace = [], os.replace
    monkeypatch.setattr(os, "fsync", lambda number: done.append(os.readlink(f"/proc/self/fd/{number}")))
    monkeypatch.setattr(os, "replace", lambda part, path: (done.append(f"to {path}"), replace(part, path)))
    path = tmp_path / "last.pt"
    with replacing(path) as file:
        file.write(b"weights")
    assert path.read_bytes() == b"weights"
    assert done == [str(tmp_path / ".last.pt.tmp"), f"to {path}", str(tmp_path)]
