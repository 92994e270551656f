"""Plans for tests, whose runs take a second or two each."""

from __future__ import annotations

from pathlib import Path

from engine.study.plan.reading import Plan, read_plan

TINY = """
name: tiny
cfg: digits/lenet5
set:
  split: {part: 0.2}
  train: {epochs: 2, batch_size: 16}
  device: cpu
  threads: 1
"""


def write_plan(folder: Path, text: str, name: str = "plan.yaml") -> Path:
    file = folder / name
    file.write_text(text)
    return file


def plan_of(folder: Path, text: str, *arguments: str) -> Plan:
    return read_plan(str(write_plan(folder, text)), arguments)
