"""tools/flops.py: its table, its breakdown by modules, its JSON file, and its errors."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from engine.cost.table import COLUMNS
from models.settings import UserError
from tests.processes import finish
from tests.tools.tables import read_markdown
from tools import flops

ROOT = Path(__file__).parents[2]
# 2 x 2 patches and a class token, 5 tokens of width 8; one patch is merged away in the first block
MERGING = """\
name: merging
model: {name: vit, img_size: 8, patch_size: 4, in_chans: 1, embed_dim: 8, depth: 2, num_heads: 2, num_classes: 10,
        merge: {method: tome, r: [1, 0]}}
data: {name: digits}
"""
PLAIN = MERGING.replace("merging", "plain").replace("method: tome", "method: none")
# stem; qkv, projection, MLP of both blocks, head; attention; 2 x 2 matches over 4 channels
MERGING_MACS = 512 + (4 * 5 * 64 + 8 * 4 * 64) + (4 * 4 * 64 + 8 * 4 * 64) + 80 + 2 * 25 * 8 + 2 * 16 * 8 + 16
PLAIN_MACS = 512 + 2 * (12 * 5 * 64 + 2 * 25 * 8) + 80
KEYS = ["name", "params", "gmacs", "gflops", "activations", "tokens"]


@pytest.fixture
def configs(tmp_path: Path) -> list[str]:
    paths = [tmp_path / "merging.yaml", tmp_path / "plain.yaml"]
    for path, text in zip(paths, (MERGING, PLAIN), strict=True):
        path.write_text(text)
    return [str(path) for path in paths]


def test_table(configs: list[str], capsys: pytest.CaptureFixture) -> None:
    flops.main(["--cfg", *configs, "model.embed_dim=64"])
    header, merging, plain = read_markdown(capsys.readouterr().out)
    assert header == [column.title for column, _ in COLUMNS] and "1 MAC = 2 FLOPs" in header[4]
    assert [merging[0], merging[-1]] == ["merging", "2x4"]
    assert [plain[0], plain[-1]] == ["plain", "2x5"]
    for row in (merging, plain):
        assert row[2] == row[3]  # counted, by formula
        assert float(row[4]) == pytest.approx(2 * float(row[2]), abs=1e-4)


def test_tiny_models_have_significant_digits(configs: list[str], capsys: pytest.CaptureFixture) -> None:
    flops.main(["--cfg", *configs])
    _, merging, _ = read_markdown(capsys.readouterr().out)
    assert float(merging[2]) == pytest.approx(MERGING_MACS / 1e9, rel=0.005) and merging[2] == "0.00000766"


def test_an_assumed_number_of_classes_is_said(configs: list[str], capsys: pytest.CaptureFixture) -> None:
    flops.main(["--cfg", *configs])
    assert "assumed" not in capsys.readouterr().out
    unknown = Path(configs[0])
    body = unknown.read_text().replace(", num_classes: 10", "").replace("{name: digits}", "{name: npz, path: x.npz}")
    unknown.write_text(body)
    flops.main(["--cfg", *configs])
    lines = [line for line in capsys.readouterr().out.splitlines() if "assumed" in line]
    assert lines == ["number of classes not given, assumed: 1000 for merging; set model.num_classes=N"]


def test_norms_stand_below_the_table(configs: list[str], capsys: pytest.CaptureFixture) -> None:
    flops.main(["--cfg", configs[0]])
    assert "apart from these, merging, M by fvcore's estimate: layer_norm" in capsys.readouterr().out


def test_json(configs: list[str], tmp_path: Path) -> None:
    path = tmp_path / "cost.json"
    flops.main(["--json", str(path), "--cfg", *configs])
    merging, plain = json.loads(path.read_text())
    assert list(merging) == list(plain) == KEYS
    assert merging["name"] == "merging" and merging["tokens"] == [4, 4]
    assert merging["gmacs"] == MERGING_MACS / 1e9 and merging["gflops"] == 2 * MERGING_MACS / 1e9
    assert plain["gmacs"] == PLAIN_MACS / 1e9 and plain["tokens"] == [5, 5]
    block = 2 * 16 + 3 * 64 + 24 + 64 + 8 + 2 * 8 * 32 + 32 + 8
    assert merging["params"] == plain["params"] == 16 * 8 + 8 + 8 + 5 * 8 + 2 * block + 16 + 8 * 10 + 10
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cost.json", "merging.yaml", "plain.yaml"]


def test_by_module(configs: list[str], capsys: pytest.CaptureFixture) -> None:
    flops.main(["--cfg", configs[0], "--by-module"])
    broken_down = {row[0]: row[1:] for row in read_markdown(capsys.readouterr().out.split("\n\n")[0])}
    assert broken_down["(all)"][1:] == [f"{MERGING_MACS:,}", "100.00 %"]
    assert broken_down["patch_embed.proj"][:2] == ["136", "512"]
    assert broken_down["blocks.0"][1] == f"{4 * 5 * 64 + 8 * 4 * 64 + 400 + 16:,}"
    assert "blocks.0.attn" not in broken_down


def test_by_module_deeper(configs: list[str], capsys: pytest.CaptureFixture) -> None:
    flops.main(["--cfg", configs[0], "--by-module", "--depth", "4"])
    broken_down = {row[0]: row[1:] for row in read_markdown(capsys.readouterr().out.split("\n\n")[0])}
    assert broken_down["blocks.0.attn.qkv"][:2] == [f"{24 * 8 + 24}", f"{5 * 8 * 24}"]
    assert not any(path.endswith("act") for path in broken_down)  # neither parameters nor MACs


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--by-module"], "--by-module: breaks down one model, not 2"),
        (["--depth", "0"], "--depth 0: must be at least 1"),
    ],
)
def test_impossible_options(configs: list[str], options: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        flops.main(["--cfg", *configs, *options])


def test_overrides_on_either_side_of_the_files(configs: list[str], tmp_path: Path) -> None:
    path = tmp_path / "cost.json"
    flops.main(["model.num_heads=1", "--cfg", configs[0], "model.merge.r=0", "--json", str(path), "name=other"])
    (row,) = json.loads(path.read_text())
    assert row["name"] == "other" and row["tokens"] == [5, 5]


def test_command_and_its_mistakes(configs: list[str], tmp_path: Path) -> None:
    done = finish("flops.py", "--cfg", configs[0], cwd=ROOT)
    assert done.returncode == 0 and "merging" in done.stdout
    wrong = finish("flops.py", "--cfg", configs[0], "--json", str(tmp_path / "cost.json"), "model.depht=3", cwd=ROOT)
    assert wrong.returncode == 2 and wrong.stdout == ""
    assert re.fullmatch(r"error: .*depht.*depth\?.*\n", wrong.stderr)
    assert not (tmp_path / "cost.json").exists()


@pytest.mark.slow
def test_a_method_that_is_added_is_counted(tmp_path):
    """The example of docs/merging.md, added as the page says to a copy of the project: a file and an entry."""
    page = (ROOT / "docs" / "merging.md").read_text()
    example = next(block for block in page.split("```python")[1:] if "def first(" in block).split("```")[0]
    for part in ("models", "engine", "tools", "configs"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "models/merging/methods/first.py").write_text(example)
    for path, before, line in (
        ("models/merging/methods/__init__.py", "MERGERS: dict[str, Merger] = {\n", '    "first": FIRST,\n'),
        ("models/merging/methods/__init__.py", "from .grid import", "from .first import FIRST\n"),
    ):
        text = (tmp_path / path).read_text()
        assert text.count(before) == 1
        added = line + before if before.startswith("from") else before + line
        (tmp_path / path).write_text(text.replace(before, added))
    done = subprocess.run(
        [sys.executable, "tools/flops.py", "--cfg", "digits/vit", "model.merge.method=first", "merge.target_ratio=1.5"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "digits_vit" in done.stdout


def test_a_model_that_cannot_be_counted(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "lstm.yaml").write_text(
        "name: lstm\nmodel: {name: 'timm:sequencer2d_s', img_size: 32, num_classes: 3, options: "
        "{layers: [1, 1, 1, 1], embed_dims: [16, 16, 16, 16], hidden_sizes: [4, 4, 4, 4]}}\ndata: {name: digits}\n"
    )
    (tmp_path / "plain.yaml").write_text(PLAIN)
    configs = [str(tmp_path / name) for name in ("lstm.yaml", "plain.yaml")]
    flops.main(["--cfg", *configs, "--json", str(tmp_path / "cost.json")])
    out = capsys.readouterr().out
    _, lstm, plain = read_markdown(out)[:3]
    assert lstm[2] == lstm[4] == lstm[5] == "not counted" and float(lstm[1]) > 0 and float(plain[2]) > 0
    assert "not counted, lstm: aten::lstm (8 times)" in out
    record, counted = json.loads((tmp_path / "cost.json").read_text())
    assert record["gmacs"] is record["gflops"] is record["activations"] is None and record["params"] > 0
    assert record["not_counted"] == "aten::lstm (8 times)" and list(counted) == KEYS
    with pytest.raises(UserError, match=r"--by-module: lstm is not counted: aten::lstm \(8 times\); omit it"):
        flops.main(["--cfg", configs[0], "--by-module"])
