"""The lock of a run folder, and files that are written whole."""

import errno
import fcntl
import json
import math
import multiprocessing
import os
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from engine.files import write_json_atomic, write_text_atomic
from engine.runs.folder import RunFolder
from models.settings import UserError


def hold(folder: Path, held: Connection) -> None:
    """Takes the lock, says so, and keeps it."""
    with RunFolder(folder).lock():
        held.send("held")
        time.sleep(60)


@pytest.fixture
def closed_folder(request):
    """A folder that nothing can be written into, for root too; of mode 0o555 or the test's own."""
    with tempfile.TemporaryDirectory() as parent:  # pytest's own folders let nobody but their owner in
        folder = Path(parent, "closed")
        folder.mkdir()
        os.chmod(parent, 0o755)
        os.chmod(folder, getattr(request, "param", 0o555))
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        yield folder
        os.seteuid(user)
        os.chmod(folder, 0o755)


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


def test_a_new_folder_is_made_with_its_parents(tmp_path):
    with RunFolder(tmp_path / "runs" / "a").lock():
        assert names(tmp_path / "runs" / "a") == [".lock"]


def test_a_second_process_is_refused_until_kill_9_ends_the_first(tmp_path):
    folder = tmp_path / "run"
    context = multiprocessing.get_context("fork")
    heard, said = context.Pipe()
    holder = context.Process(target=hold, args=(folder, said))
    holder.start()
    said.close()  # so that a holder that fails is no message that never comes
    try:
        assert heard.recv() == "held"
        with pytest.raises(UserError, match=rf"run: in use by process {holder.pid} on .*name="):
            RunFolder(folder).lock(resume=True)
    finally:
        holder.kill()
        holder.join()
    RunFolder(folder).lock(resume=True).close()


def test_the_lock_outlives_the_name_it_was_given(tmp_path):
    RunFolder(tmp_path / "run").lock()
    with pytest.raises(UserError, match=f"in use by process {os.getpid()}"):
        RunFolder(tmp_path / "run").lock()


def test_closing_frees_the_folder(tmp_path):
    lock = RunFolder(tmp_path).lock()
    lock.close()
    lock.close()
    RunFolder(tmp_path).lock().close()


def test_an_existing_run_is_resumed_but_never_overwritten(tmp_path):
    with RunFolder(tmp_path).lock():
        write_text_atomic(tmp_path / "settings.yaml", "seed: 0\n")
    with pytest.raises(UserError, match="holds files already; continue that run with --resume"):
        RunFolder(tmp_path).lock()
    with RunFolder(tmp_path).lock(resume=True):  # the refusal has let go of the lock
        assert names(tmp_path) == [".lock", "settings.yaml"]


def test_a_folder_that_is_no_run_stays_untouched(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match="holds files already"):
        RunFolder(tmp_path).lock()
    assert names(tmp_path) == ["thesis.tex"]


def test_resuming_nothing_is_an_error_and_makes_nothing(tmp_path):
    with pytest.raises(UserError, match="no run to resume here"):
        RunFolder(tmp_path / "run").lock(resume=True)
    assert names(tmp_path) == []


@pytest.mark.parametrize("inside", ["", "run"])
def test_a_file_in_the_way(tmp_path, inside):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file.*: cannot be written"):
        RunFolder(tmp_path / "file" / inside).lock()


def test_a_read_only_folder(closed_folder):
    with pytest.raises(UserError, match=r"closed/run: cannot be written, permission denied; .*out="):
        RunFolder(closed_folder / "run").lock()
    with pytest.raises(UserError, match=r"closed: cannot be written, permission denied"):
        RunFolder(closed_folder).lock(resume=True)


@pytest.mark.parametrize("closed_folder", [0], indirect=True)
def test_a_folder_that_may_not_even_be_looked_into(closed_folder):
    for resume in (False, True):
        with pytest.raises(UserError, match=r"closed/run: cannot be written, permission denied"):
            RunFolder(closed_folder / "run").lock(resume=resume)


def test_a_folder_where_files_cannot_be_replaced(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(UserError, match="cannot be written, operation not permitted"):
        RunFolder(tmp_path).lock()
    monkeypatch.undo()
    RunFolder(tmp_path).lock().close()
    assert names(tmp_path) == [".lock"]


def test_a_file_system_without_locks_is_used_with_a_warning(tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    RunFolder(tmp_path).lock().close()
    assert "cannot be locked" in caplog.text


def test_text_is_replaced_whole(tmp_path):
    path = tmp_path / "note.txt"
    write_text_atomic(path, "a" * 100)
    write_text_atomic(path, "é\n")
    assert path.read_bytes() == "é\n".encode()
    assert names(tmp_path) == ["note.txt"]


def test_json_has_no_nan(tmp_path):
    write_json_atomic(tmp_path / "r.json", {"loss": math.nan, "all": [1.5, (math.inf, 2)], "name": "é"})
    text = (tmp_path / "r.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {"loss": None, "all": [1.5, [None, 2]], "name": "é"}


def test_writing_into_a_folder_that_is_gone(tmp_path):
    with pytest.raises(UserError, match=r"gone/a\.txt: cannot be written, .*its folder does not exist"):
        write_text_atomic(tmp_path / "gone" / "a.txt", "")
