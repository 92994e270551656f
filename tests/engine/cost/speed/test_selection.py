"""The plain loop that facility location is timed beside."""

import torch

from engine.cost.speed.selection import plain_loop, similarity
from models.merging.methods.selection import select


def test_the_plain_loop_selects_what_ours_selects():
    metric = torch.randn(12, 8, generator=torch.Generator().manual_seed(0))
    similarities = similarity(metric)
    kept = select(torch.from_numpy(similarities)[None], torch.ones(1, 12), 5, "greedy")
    assert sorted(plain_loop(similarities, 5)) == kept[0].tolist()
