"""Packs a data set into shards, through webdataset."""

from __future__ import annotations

import io
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from engine.data.arrays import RawData, Split
from engine.data.check.findings import Source
from engine.data.formats import READ, has_image_extension, identify
from engine.data.images import opened, reason
from engine.data.shards.layout import Index, Packed, write_index
from engine.files import writing
from engine.tasks import TASKS, Task
from models.settings import UserError

CHANNELS = (1, 3)  # grey and RGB: what image files have


def pack(data: RawData | Source, out: Path, shard_bytes: int) -> Index:
    """Writes the images and labels of each split into shards, out/train-000000.tar and so on, in their order.

    Image files are copied as they are, so that the shards have the same pixels. Images in arrays become PNG. A label
    is a number, as webdataset's `cls`; of images with many labels it is a list of names, in JSON.

    Args:
        data: a data set with its splits; images that a source has no labels for are left out.
        out: a folder that is empty or does not exist.
        shard_bytes: a shard ends with the image that makes it so large.

    Raises:
        UserError: webdataset is not installed, the folder is not empty, an image cannot be read, or images have other
            channels than grey or RGB.
    """
    try:
        import webdataset
    except ImportError:
        raise UserError("tools/data.py pack: needs webdataset; pip install -e '.[shards]'") from None
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise UserError(f"--out {out}: is not empty; give another folder")
    task, shards = data.task, []
    [kind] = [name for name, known in TASKS.items() if known is task]
    write_index(out, Index(list(data.classes), kind, []))  # so that those of an interrupted packing are not used
    for split, (count, content, labels) in _splits(data).items():
        written: Counter[str] = Counter()
        pattern = f"{out.resolve()}{os.sep}{split}-".replace("%", "%%") + "%06d.tar"
        options = {"maxcount": max(count, 1), "maxsize": shard_bytes, "verbose": 0, "encoder": False, "mtime": 0}
        with writing(out), closing(webdataset.ShardWriter(pattern, **options)) as writer:
            for i in range(count):
                stem, extension, image = content(i)
                writer.write({"__key__": f"{i:07d}{stem}", extension: image, **_label(labels[i], data.classes, task)})
                written[os.path.basename(writer.fname)] += 1
        shards += [Packed(name, split, images, (out / name).stat().st_size) for name, images in written.items()]
    index = Index(list(data.classes), kind, shards)
    write_index(out, index)
    return index


Content = Callable[[int], tuple[str, str, bytes]]  # an image's number -> end of its key, extension, and bytes


def _splits(data: RawData | Source) -> Mapping[str, tuple[int, Content, Tensor]]:
    """Returns for each split the number of its images, how to get one, and the labels."""
    if isinstance(data, Source):
        return {
            split: (len(paths), lambda i, paths=paths: _of_file(paths[i]), labels)
            for split, (paths, labels) in data.samples.items()
            if paths
        }
    splits: Iterator[tuple[str, Split | None]] = iter([("train", data.train), ("val", data.val), ("test", data.test)])
    return {
        split: (len(images), lambda i, images=images: _of_array(images, i), images.labels)
        for split, images in splits
        if images is not None and len(images)
    }


def _of_file(path: Path) -> tuple[str, str, bytes]:
    try:
        with opened(path) as file:
            kind = identify(file, path.name)
            file.seek(0)
            content = file.read()
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({reason(error)}); see tools/data.py check") from None
    suffix = path.suffix.lower()
    if not has_image_extension(suffix):
        if kind not in READ:
            raise UserError(f"{path}: not an image; see tools/data.py check")
        suffix = READ[kind][0]
    stem = re.sub(r"[^A-Za-z0-9_-]+", "_", path.name.removesuffix(path.suffix))[:60]
    return f"-{stem}", suffix[1:], content


def _of_array(split: Split, i: int) -> tuple[str, str, bytes]:
    channels = split.shape[0]
    if channels not in CHANNELS:
        raise UserError(f"images have {channels} channels; shards hold image files, which have 1 or 3")
    pixels = split.read(torch.tensor([i]))[0].numpy()
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels[0] if channels == 1 else pixels.transpose(1, 2, 0))).save(file, "PNG")
    return "", "png", file.getvalue()


def _label(label: Tensor, classes: list[str], task: Task) -> dict[str, bytes]:
    """Returns the member with a label."""
    if task.one_class:
        return {"cls": str(int(label)).encode()}
    names = [name for name, applies in zip(classes, label.tolist(), strict=True) if applies]
    return {"json": json.dumps({"labels": names}, ensure_ascii=False).encode()}
