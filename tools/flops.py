#!/usr/bin/env python3
"""Counts what models cost: parameters, GMACs for one image, activations, and the tokens left after each block.

GMACs cover convolutions, linear layers, attention, and the matching of tokens. They are counted by fvcore and, for our
own models, by formula as well. fvcore's estimates for norms, pooling and resizing are printed below the table.
"""

from __future__ import annotations

if __name__ == "__main__":
    from start import prepare

    prepare()

import argparse
import logging
import sys

from engine.cli import cli, parser_of, take_overrides
from engine.tables import print_table
from models.settings import UserError

EXAMPLE = "example: tools/flops.py --cfg vit_b16 hybrid_merge model.merge.method=tome"


def parse(argv: list[str]) -> argparse.Namespace:
    parser = parser_of(__doc__, EXAMPLE)
    parser.add_argument("--cfg", nargs="+", required=True, help="YAML files, or their names under configs/")
    parser.add_argument("--json", metavar="FILE", help="write name, params, gmacs, gflops, activations, tokens as JSON")
    parser.add_argument("--by-module", action="store_true", help="break the cost of one model down by its modules")
    parser.add_argument("--depth", type=int, default=2, help="levels of modules that --by-module shows (default: 2)")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that override the files'")
    args = take_overrides(parser.parse_intermixed_args(argv), "cfg")
    if not args.cfg:
        parser.error("give --cfg at least one file")
    if args.by_module and len(args.cfg) != 1:
        raise UserError(f"--by-module: breaks down one model, not {len(args.cfg)}; give --cfg one file")
    if args.depth < 1:
        raise UserError(f"--depth {args.depth}: must be at least 1")
    return args


def main(argv: list[str]) -> None:
    args = parse(argv)
    from engine.cost import table
    from engine.files import write_json_atomic
    from engine.settings.layers import load_settings

    logging.basicConfig(format="%(message)s")
    logging.getLogger("hybridmerge").setLevel(logging.INFO)  # which r meets a budget
    all_settings = [load_settings(cfg, args.overrides) for cfg in args.cfg]  # a mistake in any is found first
    models = [table.cost_of(settings.name, settings.model) for settings in all_settings]
    if args.by_module:
        print_table(table.MODULE_COLUMNS, table.breakdown(models[0], args.depth))
        print()
    print_table(
        [column for column, _ in table.COLUMNS], [[text(model) for _, text in table.COLUMNS] for model in models]
    )
    for line in filter(None, [*map(table.other_estimates, models), *map(table.not_counted, models)]):
        print(line)
    if note := table.assumed_classes({settings.name: settings.model for settings in all_settings}):
        print(note)
    if args.json:
        write_json_atomic(args.json, [table.record(model) for model in models])


if __name__ == "__main__":
    sys.exit(cli(main))
