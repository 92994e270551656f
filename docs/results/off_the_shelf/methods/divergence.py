#!/usr/bin/env python3
"""tools/zeroshot.py, and how far each row's class probabilities are from the unmerged model's.

  python docs/results/off_the_shelf/methods/divergence.py --cfg deit_tiny_methods data.path=DIR out=DIR ...

The arguments are the tool's. After a row has been evaluated, `divergence.txt` in its folder `out` gets a line: the mean
Kullback-Leibler divergence from the unmerged model over the images, and its standard error. Rows that the tool
evaluated earlier and does not evaluate again get no line.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[4]))
from engine.study.zeroshot import each
from tools.zeroshot import main

if __name__ == "__main__":
    out = Path(next(word for word in sys.argv if word.startswith("out=")).removeprefix("out="))
    kept = out / "unmerged.pt"  # to continue
    evaluated = each._evaluated

    def with_divergence(*args: Any) -> Any:
        logits: list[torch.Tensor] = []
        hook = args[1].register_forward_hook(lambda module, given, output: logits.append(output.float()))
        row = evaluated(*args)
        hook.remove()
        batches = [batch for batch in logits if len(batch) > 1]  # counting calls the model with single images
        found = torch.cat(batches).log_softmax(-1)
        if row.merge is None:
            torch.save(found, kept)
        unmerged = torch.load(kept)
        divergence = (unmerged.exp() * (unmerged - found)).sum(-1)
        error = divergence.std() / len(divergence) ** 0.5
        with (out / "divergence.txt").open("a") as file:
            file.write(f"{row.name:50} {divergence.mean():.4f} ± {error:.4f}\n")
        return row

    each._evaluated = with_divergence
    main(sys.argv[1:])
