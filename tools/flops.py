#!/usr/bin/env python3
"""Says what models cost: tools/flops.py --cfg A.yaml [B.yaml ...] [--json FILE] [section.key=value ...].

GMACs are convolutions, linear layers, attention and matching products, for one image, as fvcore counts them and, beside
that, by formula. What fvcore estimates for norms, pooling and resizing stands apart, below the table.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C is quiet while libraries are imported, which takes seconds
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # engine/ and models/ are run from the checkout

import argparse
import re
from collections.abc import Sequence
from itertools import groupby

from torch import nn

from engine.cli import cli
from engine.cost.budget import solve
from engine.cost.macs import Complexity, measure
from engine.files import write_json_atomic
from engine.settings.layers import load_settings
from engine.settings.schema import RunSettings
from models import build
from models.settings import UserError

COLUMNS = ("model", "params M", "GMACs", "by formula", "GFLOPs (1 MAC = 2 FLOPs)", "activations M", "tokens left")
OVERRIDE = re.compile(r"\w+(\.\w+)*=")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cfg", nargs="+", required=True, help="YAML files, or their names under configs/")
    parser.add_argument("--json", metavar="FILE", help="write name, params, gmacs, gflops, activations, tokens as JSON")
    parser.add_argument("--by-module", action="store_true", help="break one model down by its modules")
    parser.add_argument("--depth", type=int, default=2, help="levels of modules that --by-module shows (default: 2)")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that win over the files'")
    args = parser.parse_intermixed_args(argv)
    # `--cfg A.yaml B.yaml a.b=c`: argparse cannot tell where the files end.
    swallowed = [item for item in args.cfg if OVERRIDE.match(item) and not Path(item).exists()]
    args.cfg = [item for item in args.cfg if item not in swallowed]
    args.overrides = swallowed + args.overrides
    if not args.cfg:
        parser.error("give --cfg at least one file")
    if args.by_module and len(args.cfg) != 1:
        raise UserError(f"--by-module: breaks one model down, not {len(args.cfg)}; give --cfg one file")
    if args.depth < 1:
        raise UserError(f"--depth {args.depth}: must be at least 1")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    all_settings = [load_settings(cfg, args.overrides) for cfg in args.cfg]
    counted = [(settings, *count(settings)) for settings in all_settings]
    rows = [(settings.name, cost) for settings, _, cost in counted]
    if args.by_module:
        _, model, cost = counted[0]
        print(table(("module", "params", "MACs", "share of MACs"), breakdown(model, cost, args.depth)), end="\n\n")
    print(table(COLUMNS, [cells(name, cost) for name, cost in rows]))
    for name, cost in rows:
        if cost.other:
            apart = ", ".join(f"{op} {n / 1e6:.3f}" for op, n in cost.other.items())
            print(f"apart from these, {name}, M by fvcore's estimate: {apart}")
    if args.json:
        write_json_atomic(args.json, [record(name, cost) for name, cost in rows])


def count(settings: RunSettings) -> tuple[nn.Module, Complexity]:
    """The model of the settings, with random weights, and its cost."""
    solved = solve(settings.model)
    model = build(solved)
    return model, measure(model, settings=solved)


def record(name: str, cost: Complexity) -> dict:
    """A model's row in the JSON file."""
    gmacs = cost.macs / 1e9
    return {
        "name": name,
        "params": cost.params,
        "gmacs": gmacs,
        "gflops": 2 * gmacs,
        "activations": cost.activations,
        "tokens": cost.tokens,
    }


def cells(name: str, cost: Complexity) -> tuple[str, ...]:
    """A model's row in the table."""
    gmacs = cost.macs / 1e9
    formula = "-" if cost.formula_macs is None else f"{cost.formula_macs / 1e9:.4f}"
    runs = [(tokens, len(list(group))) for tokens, group in groupby(cost.tokens)]
    left = " ".join(str(tokens) if n == 1 else f"{n}x{tokens}" for tokens, n in runs) or "-"
    return (
        name,
        f"{cost.params / 1e6:.3f}",
        f"{gmacs:.4f}",
        formula,
        f"{2 * gmacs:.4f}",
        f"{cost.activations / 1e6:.3f}",
        left,
    )


def breakdown(model: nn.Module, cost: Complexity, depth: int) -> list[tuple[str, ...]]:
    """Rows of path, parameters, MACs and share, `depth` levels deep; modules that have neither are left out."""
    rows = []
    for path, macs in cost.by_module.items():
        params = sum(p.numel() for p in model.get_submodule(path).parameters())
        if path.count(".") < depth and (macs or params):
            share = f"{100 * macs / cost.macs:.2f} %" if cost.macs else "-"
            rows.append((path or "(all)", f"{params:,}", f"{macs:,}", share))
    return rows


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest entry: the first and `tokens left` to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    lefts = [title in ("model", "module", "tokens left") for title in header]
    lines = [
        "  ".join(cell.ljust(width) if left else cell.rjust(width) for cell, width, left in zip(row, widths, lefts))
        for row in (header, ["-" * width for width in widths], *rows)
    ]
    return "\n".join(line.rstrip() for line in lines)


if __name__ == "__main__":
    sys.exit(cli(main))
