"""Where weights come from: files that are not what they say, run folders, hubs; nothing in a file is ever run."""

import io
import os
import pickle
import tracemalloc
import zipfile
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import torchvision
from timm.models import _hub as timm_hub

from models import UserError, build_model
from models.weights import files, load_weights
from tests.models.weight_files import google, our_vit, random, same, timm_vit


def refused(source, *words):
    """The one line by which weights are refused."""
    with pytest.raises(UserError) as caught:
        load_weights(our_vit(), str(source))
    line = str(caught.value)
    assert "\n" not in line and all(word in line for word in words), line
    assert line.startswith("model.weights = ")
    return line


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".tar", ".ckpt"])
def test_a_pickle_is_refused_and_not_run(tmp_path, suffix, zipped):
    path, mark = tmp_path / f"evil{suffix}", tmp_path / "run"
    if zipped:
        torch.save({"model": timm_vit().state_dict(), "extra": Evil(mark)}, path)
    else:
        path.write_bytes(pickle.dumps(Evil(mark)))
    refused(path, "none of it was run")
    assert not mark.exists()


def test_a_pickle_in_numpy_is_refused_and_not_run(tmp_path):
    mark = tmp_path / "run"
    np.savez(tmp_path / "evil.npz", **{"embedding/kernel": np.array([Evil(mark)], dtype=object)})
    refused(tmp_path / "evil.npz", "cannot be read", "allow_pickle=False")
    assert not mark.exists()


def test_the_refusal_names_what_the_file_needs(tmp_path):
    torch.save({"model": {}, "args": Path("x")}, tmp_path / "args.pth")
    refused(tmp_path / "args.pth", "needs unpickling of pathlib", "safetensors")


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors", "a.npz"])
@pytest.mark.parametrize("damage", ["empty", "cut", "text"])
def test_damaged_files(tmp_path, name, damage):
    path = tmp_path / name
    if name.endswith("npz"):
        np.savez(path, **{"embedding/kernel": np.zeros((99, 9, 3, 9), "float32")})
    else:
        torch.save(timm_vit().state_dict(), path)
    whole = path.read_bytes()
    path.write_bytes({"empty": b"", "cut": whole[: len(whole) // 2], "text": b"<html>404</html>\n" * 9}[damage])
    refused(path, "empty" if damage == "empty" else "")


def test_paths_that_lead_nowhere(tmp_path):
    refused(tmp_path / "none.pth", "no such file or folder", "torchvision:NAME")
    refused("tim:vit_base_patch16_224", "no such file or folder", "timm:NAME")
    refused("x" * 5000 + ".pth", "cannot be read", "too long")
    (tmp_path / "weights.h5").write_bytes(b"x")
    refused(tmp_path / "weights.h5", "unknown suffix", ".safetensors")
    torch.save([1, 2], tmp_path / "list.pt")
    refused(tmp_path / "list.pt", "contains no named weights")
    np.savez(tmp_path / "data.npz", train_images=np.zeros((2, 4, 4), "uint8"))
    refused(tmp_path / "data.npz", "contains no named weights")


def test_a_dictionary_that_holds_itself(tmp_path):
    endless = {}
    endless["model"] = endless
    torch.save(endless, tmp_path / "endless.pt")
    refused(tmp_path / "endless.pt", "contains no named weights")


def test_names_given_twice(tmp_path):
    torch.save({"a.weight": torch.zeros(1), "module.a.weight": torch.ones(1)}, tmp_path / "twice.pt")
    refused(tmp_path / "twice.pt", "twice")


# size


def compressed(path, tensors):
    """A .pth whose records are compressed, which torch reads as well."""
    torch.save(tensors, path)
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


@pytest.mark.parametrize("suffix", [".pth", ".npz"])
def test_a_small_file_that_unpacks_to_far_more_than_the_model(tmp_path, monkeypatch, suffix):
    path = tmp_path / f"bomb{suffix}"
    if suffix == ".npz":
        np.savez_compressed(path, **{"embedding/kernel": np.zeros((10**7, 3), "float32")})
    else:
        compressed(path, {"a": torch.zeros(10**7, 3)})
    assert path.stat().st_size < 200_000
    monkeypatch.setattr(files, "SLACK", 10**6)
    tracemalloc.start()
    line = refused(path, "kB that unpack to 120 MB, and the model has 1", "kB of weights")
    assert tracemalloc.get_traced_memory()[1] < 10**7, line
    tracemalloc.stop()


def test_a_compressed_file_of_the_models_own_weights(tmp_path):
    source, model = our_vit(seed=0), our_vit(seed=1)
    compressed(tmp_path / "a.pth", source.state_dict())
    load_weights(model, str(tmp_path / "a.pth"))
    same(model, source)


@pytest.mark.parametrize("suffix", [".pth", ".npz", ".safetensors"])
def test_more_than_the_free_memory(tmp_path, monkeypatch, suffix):
    path, state = tmp_path / f"a{suffix}", our_vit().state_dict()
    if suffix == ".npz":
        np.savez(path, **google(timm_vit()))
    elif suffix == ".pth":
        torch.save(state, path)
    else:
        safetensors.torch.save_file(state, path)
    monkeypatch.setattr(files, "available_memory", lambda: 50_000)
    refused(path, "takes 1", "kB of memory, 50 kB are free; use a machine with more")


def test_an_array_that_claims_more_than_the_file_holds(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (10**9, 10**9)})
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("embedding/kernel.npy", header.getvalue())
    refused(tmp_path / "a.npz", "embedding/kernel: has a header for 4 EB and holds 0 bytes")


def test_a_tensor_that_repeats_its_values(tmp_path, monkeypatch):
    """Strides of zero: any shape, and one value in the file."""
    torch.save({"pos_embed": torch.zeros(1, 1, 32).expand(1, 10**9, 32)}, tmp_path / "a.pth")
    refused(tmp_path / "a.pth", "kB that unpack to 128 GB")


def test_storages_that_claim_more_than_the_file_holds(tmp_path):
    torch.save({"a": torch.zeros(4)}, tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        for name, content in members.items():  # 4 -> 4096 values, of the storage and of the tensor
            content = content.replace(b"K\x04tq\x07Q", b"M\x00\x10tq\x07Q")
            content = content.replace(b"K\x04\x85q\x08", b"M\x00\x10\x85q\x08")
            archive.writestr(name, content)
    refused(tmp_path / "a.pth", "cannot be read")


class Huge:
    def __reduce__(self):
        return bytearray, (10**15,)


def test_more_memory_than_there_is(tmp_path):
    (tmp_path / "a.pth").write_bytes(pickle.dumps(Huge(), protocol=2))
    refused(tmp_path / "a.pth", "takes more memory than there is")
    torch.save({"a": torch.zeros(4)}, tmp_path / "b.pth", _use_new_zipfile_serialization=False)
    old = (tmp_path / "b.pth").read_bytes()  # the number of values, 4, as a number of 6 bytes
    huge = b"\x8a\x06\x00\x00\x00\x00\x00\x40"
    (tmp_path / "b.pth").write_bytes(old.replace(b"K\x04N", huge + b"N").replace(b"K\x04t", huge + b"t"))
    refused(tmp_path / "b.pth", "takes more memory than there is")


@pytest.mark.parametrize("kind", ["meta", "sparse"])
def test_tensors_of_other_kinds(tmp_path, kind):
    value = torch.zeros(3, 3, device="meta") if kind == "meta" else torch.eye(3).to_sparse()
    torch.save({"a.weight": value}, tmp_path / "a.pth")
    refused(tmp_path / "a.pth", f"a.weight is a tensor {'without values' if kind == 'meta' else 'sparse'}")


# run folders


def test_a_run_folder(tmp_path):
    source, model = our_vit(seed=0), our_vit(seed=1)
    torch.save({"format": 1, "model": source.state_dict(), "classes": ["a"], "step": 3}, tmp_path / "best.pt")
    load_weights(model, str(tmp_path))
    same(model, source)


def test_a_folder_without_best(tmp_path):
    refused(tmp_path, "a folder without best.pt; give a finished run or a file")
    torch.save({}, tmp_path / "last.pt")
    refused(tmp_path, "a folder without best.pt", "last.pt")


def test_a_run_of_adapters(tmp_path):
    torch.save({"model": {"lora_A": torch.zeros(1)}, "partial": True}, tmp_path / "best.pt")
    refused(tmp_path, "only what its run trained")


# hubs


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No network, and an empty cache of torch.hub."""

    def fail(*args, **kwargs):
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    monkeypatch.setattr(timm_hub, "download_url_to_file", fail)
    monkeypatch.setattr(timm_hub, "hf_hub_download", fail)
    return tmp_path / "hub" / "checkpoints"


def test_torchvision_offline(offline):
    refused(
        "torchvision:vit_l_16.IMAGENET1K_SWAG_E2E_V1",
        "no route to host",
        "fetch https://download.pytorch.org/models/vit_l_16_swag",
        str(offline),
        "model.weights=FILE",
    )


def test_torchvision_from_the_folder_that_the_error_names(offline):
    source, model = (random(torchvision.models.squeezenet1_1(), seed) for seed in (0, 1))
    url = torchvision.models.SqueezeNet1_1_Weights.DEFAULT.url
    offline.mkdir(parents=True)
    torch.save(source.state_dict(), offline / url.rpartition("/")[2])
    for name in ("squeezenet1_1", "squeezenet1_1.IMAGENET1K_V1"):
        report = load_weights(model, f"torchvision:{name}")
        assert report.share == 1 and not report.missing + report.unexpected + report.replaced
    same(model, source, torch.randn(2, 3, 64, 64))


def test_torchvision_damaged_cache(offline):
    offline.mkdir(parents=True)
    url = torchvision.models.SqueezeNet1_1_Weights.DEFAULT.url
    (offline / url.rpartition("/")[2]).write_bytes(b"half")
    refused("torchvision:squeezenet1_1", "delete it")


def test_timm_offline(offline):
    refused(
        "timm:test_vit.r160_in1k",
        "no route to host",
        "model.weights=FILE",
        "https://huggingface.co/timm/test_vit.r160_in1k/resolve/main/model.safetensors",
    )


def test_timm_through_its_own_loader(monkeypatch, tmp_path):
    source, model = (random(timm.create_model("test_vit.r160_in1k"), seed) for seed in (0, 1))
    safetensors.torch.save_file(source.state_dict(), tmp_path / "model.safetensors")
    monkeypatch.setattr(timm_hub, "hf_hub_download", lambda **kwargs: str(tmp_path / "model.safetensors"))
    report = load_weights(model, "timm:test_vit.r160_in1k")
    assert report.share == 1 and not report.missing + report.unexpected + report.replaced
    same(model, source, torch.randn(2, 3, 160, 160))
    smaller = timm.create_model("test_vit.r160_in1k", num_classes=5)
    assert load_weights(smaller, "timm:test_vit.r160_in1k").replaced == ["head.weight", "head.bias"]


def test_names_that_hubs_do_not_know():
    refused("timm:vit_base_patch16_223", "did you mean", "vit_base_patch16_224")
    refused("timm:vit_base_patch16_224.augreg_in22k", "did you mean", "augreg_in21k")
    refused("timm:hf-hub:someone/something", "timm has no such model")
    refused("timm:vit_large_patch14_224", "timm has no weights for this model")
    assert len(refused("timm:zzz", "list_models()") + refused("torchvision:zzz", "list_models()")) < 200
    refused("torchvision:squeezenet1_2", "did you mean", "squeezenet1_1")
    refused("torchvision:vit_l_16.IMAGENET1K_SWAG", "did you mean", "IMAGENET1K_SWAG_E2E_V1")
    refused("torchvision:fcn_resnet50", "no such classifier")


@pytest.mark.skipif("HYBRIDMERGE_SQUEEZENET" not in os.environ, reason="HYBRIDMERGE_SQUEEZENET names no file")
def test_real_squeezenet_weights():
    path = os.environ["HYBRIDMERGE_SQUEEZENET"]
    model, strict = torchvision.models.squeezenet1_1(), torchvision.models.squeezenet1_1()
    strict.load_state_dict(torch.load(path, weights_only=True), strict=True)
    report = load_weights(model, path)
    assert report.share == 1 and not report.missing + report.unexpected + report.replaced
    same(model, strict, torch.randn(2, 3, 224, 224))
    zoo = build_model("torchvision:squeezenet1_1", num_classes=5)
    assert load_weights(zoo, path).share == 1
