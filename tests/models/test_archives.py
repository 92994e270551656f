"""What files take in memory is known without unpacking them."""

import io
import zipfile

import numpy as np
import pytest

from models import UserError, archives, build_model
from models.archives import array_sizes, available_memory, in_words, memory_limit, unpacked_size


def header(shape, descr="|u1", write=np.lib.format.write_array_header_1_0):
    """The bytes of an .npy file's header, for an array of any size."""
    file = io.BytesIO()
    write(file, {"descr": descr, "fortran_order": False, "shape": shape})
    return file.getvalue()


def npz(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize("write", [np.lib.format.write_array_header_1_0, np.lib.format.write_array_header_2_0])
def test_sizes_of_arrays_are_those_of_their_headers(tmp_path, write):
    arrays = {"a.npy": header((10**6,), write=write) + bytes(10**6), "b.npy": header((2, 3), "<f8") + bytes(48)}
    path = npz(tmp_path / "a.npz", arrays)
    assert array_sizes(path) == {"a": 10**6, "b": 48}
    assert array_sizes(path, ["b"]) == {"b": 48}
    assert path.stat().st_size < 10_000 and unpacked_size(path) > 10**6


def test_every_format_of_numpy(tmp_path):
    np.savez(tmp_path / "a.npz", names=np.array(["Ærø"]), fields=np.zeros(5, [("Ærø", "<f8")]), none=np.zeros((0, 9)))
    assert array_sizes(tmp_path / "a.npz") == {"names": 12, "fields": 40, "none": 0}


def test_a_header_that_claims_more_than_the_file_holds(tmp_path):
    path = npz(tmp_path / "a.npz", {"a.npy": header((10**9, 10**9)) + b"x"})
    with pytest.raises(ValueError, match="a: has a header for 1 EB and holds 1 bytes"):
        array_sizes(path)


def test_the_memory_of_a_container(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(archives, "CGROUP", tmp_path)
    (tmp_path / "meminfo").write_text("MemTotal:  9000 kB\nMemAvailable:    5000 kB\n")
    assert available_memory() == 5000 * 1024
    (tmp_path / "memory.max").write_text("max\n")
    assert available_memory() == 5000 * 1024
    (tmp_path / "memory.max").write_text("3000000\n")
    (tmp_path / "memory.stat").write_text("anon 1000000\nfile 1999999\n")
    assert available_memory() == 2_000_000 and memory_limit() == 3_000_000


def test_a_model_that_is_larger_than_the_container(tmp_path, monkeypatch):
    """The machine's memory would hold it; the system would kill the process."""
    monkeypatch.setattr(archives, "CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text(f"{10**6}\n")
    with pytest.raises(UserError, match=r"embed_dim = 256: .* take 6.49 MB of memory, and there are 1 MB; use"):
        build_model("vit", embed_dim=256, num_heads=4, depth=2, num_classes=3)
    (tmp_path / "memory.max").write_text(f"{10**8}\n")
    build_model("vit", embed_dim=256, num_heads=4, depth=2, num_classes=3)


def test_sizes_in_words():
    assert [in_words(n) for n in (5, 35_000_000, 8_700_000_000)] == ["5 bytes", "35 MB", "8.7 GB"]
