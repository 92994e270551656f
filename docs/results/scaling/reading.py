#!/usr/bin/env python3
"""Measures how fast one core reads a folder of images and the same images in shards.

  OMP_NUM_THREADS=1 python docs/results/scaling/reading.py FOLDER 224 5

Each round is an epoch of the training loader on each, `data.cache=none`, without worker processes. Both are in the
system's cache of files, so that what differs is opening and finding files, not the disk. Rates are images for each
second of processor time, which other work on the machine does not change much.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from engine.data import AugmentSettings, SplitSettings, build_data
from engine.data.loading.loader import TrainLoader
from engine.data.shards.packing import pack
from engine.data.sources.folder import FolderSettings, find_folder
from engine.data.sources.shards import ShardSettings
from models.settings import check

AUGMENT = {"transforms": [{"name": "RandomResizedCrop", "scale": [0.35, 1.0]}, {"name": "RandomHorizontalFlip"}]}


def main(folder: str, size: int, rounds: int) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as shards:
        of_folder = FolderSettings(path=folder, size=size, cache="none")
        index = pack(find_folder(of_folder), Path(shards) / "packed", 100 * 10**6)
        of_shards = ShardSettings(path=str(Path(shards) / "packed"), size=size, cache="none")
        augment, loaders = check(AugmentSettings, AUGMENT, "augment"), {}
        for name, settings in (("folder", of_folder), ("shards", of_shards)):
            data = build_data(settings, SplitSettings(test=0, val=0), 0)
            loaders[name] = TrainLoader(data.train, 64, augment, data.mean, data.std, 0, workers=0)
        rates = {name: [] for name in loaders}
        for epoch in range(rounds + 1):  # the first warms up
            for name, loader in loaders.items():
                start = time.process_time()
                images = sum(len(labels) for _, labels in loader.epoch(epoch))
                if epoch:
                    rates[name].append(images / (time.process_time() - start))
    count, packed = sum(shard.samples for shard in index.shards), len(index.shards)
    print(f"{count} images, {packed} shards, {size} px, {rounds} rounds; images per second of one core: median (range)")
    for name, values in rates.items():
        print(f"{name:<8}{statistics.median(values):.0f} ({min(values):.0f} to {max(values):.0f})")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
