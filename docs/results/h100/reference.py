#!/usr/bin/env python3
"""Times ViT-B/16 of timm, the same patched by the reference ToMe, wrapped by ours, and our ViT.

git clone https://github.com/facebookresearch/ToMe tome_reference   # CC-BY-NC: not a part of this project
PYTHONPATH=.:tome_reference python docs/results/h100/reference.py
PYTHONPATH=.:tome_reference python docs/results/h100/reference.py --device cpu --threads 2 --batch 4 2 --rounds 7
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable

import timm
import tome
import torch
from torch import nn
from torch.nn import functional as F

from models import build_model
from models.merging import wrap

KINDS = ("timm", "reference", "wrapped", "ours", "ours merged")
SIZES = {"embed_dim": 768, "depth": 12, "num_heads": 12, "num_classes": 1000}


def model_of(kind: str, img_size: int, r: int) -> nn.Module:
    if kind.startswith("ours"):
        merge = {"merge": {"method": "tome", "r": r}} if kind.endswith("merged") else {}
        return build_model("vit", img_size=img_size, patch_size=16, **SIZES, **merge)
    model = timm.create_model("vit_base_patch16_224", img_size=img_size)
    if kind == "reference":
        tome.patch.timm(model, prop_attn=True)
        model.r = r
    return wrap(model, "tome", r=r) if kind == "wrapped" else model


def step_of(model: nn.Module, step: str, precision: str, shape: tuple[int, ...], device: str) -> Callable[[], None]:
    images = torch.randn(shape, device=device)
    labels = torch.randint(0, 1000, shape[:1], device=device)
    autocast = torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bf16")
    model.train(step == "training")
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, fused=True)

    def forward() -> None:
        with torch.inference_mode(), autocast:
            model(images)

    def train() -> None:
        with autocast:
            loss = F.cross_entropy(model(images).float(), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return forward if step == "forward" else train


def milliseconds(call: Callable[[], None], device: str) -> float:
    if device == "cpu":
        begin = time.perf_counter()
        call()
        return 1e3 * (time.perf_counter() - begin)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end)


def main() -> None:
    warnings.filterwarnings("ignore")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--batch", type=int, nargs=2, default=[64, 32], help="images at 224 and at 384 px")
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    for img_size, r, batch in ((224, 13, args.batch[0]), (384, 40, args.batch[1])):
        for step in ("forward", "training"):
            for precision in ("fp32", "bf16"):
                torch.manual_seed(0)
                models = {kind: model_of(kind, img_size, r).to(args.device) for kind in KINDS}
                shape = (batch, 3, img_size, img_size)
                calls = {kind: step_of(model, step, precision, shape, args.device) for kind, model in models.items()}
                times = {kind: [] for kind in calls}
                for number in range(args.rounds + 3):
                    for kind, call in calls.items():
                        taken = milliseconds(call, args.device)
                        if number >= 3:  # the first rounds warm up
                            times[kind].append(taken)
                for kind, taken in times.items():
                    faster = statistics.median(a / b for a, b in zip(times["timm"], taken, strict=True))
                    said = f"{img_size} px, {step}, {precision}, {kind}: {statistics.median(taken):.2f} ms"
                    print(f"{said} ({min(taken):.2f} to {max(taken):.2f}), {faster:.3f}", flush=True)


if __name__ == "__main__":
    main()
