"""tools/bench.py runs every measurement and prints it. How fast things are is for benchmarks, not for tests."""

import re

import pytest
import torch

from engine.cost.speed import speedup
from engine.cost.speed.attention import ATTENTIONS
from engine.cost.speed.means import MEANS
from engine.settings.layers import load_settings
from models.formulas import formula_macs
from models.merging import MERGERS
from models.settings import UserError
from tests.tools.tables import read_markdown
from tools import bench


@pytest.fixture
def threads():
    """The benchmark sets torch's threads for its process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_data(threads, capsys, monkeypatch):
    monkeypatch.setattr(bench, "IMAGES", 1000)
    bench.main(["--data", "--repeats", "2"])
    line = capsys.readouterr().out.splitlines()[-1]
    low, median, high = (
        int(re.search(rf"{word} ([\d,]+)", line).group(1).replace(",", "")) for word in ("min", "median", "max")
    )
    assert 0 < low <= median <= high


@pytest.mark.parametrize("workers", ["0", "1"])
def test_files(workers, threads, capsys, monkeypatch):
    for name, value in (("FILES", 40), ("SIDE", 40), ("SIZE", 32)):
        monkeypatch.setattr(bench, name, value)
    bench.main(["--files", "--repeats", "1", "--batch-size", "8", "--workers", workers])
    lines = capsys.readouterr().out.splitlines()[-3:]
    assert [line.split(" images/s")[0].strip() for line in lines] == [
        "plain DataLoader",
        "decoded anew",
        "kept at 32 px",
    ]
    assert all("over plain: median" in line for line in lines[1:])


def test_attention(threads, capsys, monkeypatch):
    monkeypatch.setattr(bench, "HEADS", ((1, 1, 4, 8),))
    bench.main(["--attention", "--repeats", "1"])
    assert capsys.readouterr().out.count("median") == len(ATTENTIONS)


def test_merging(threads, capsys, monkeypatch):
    monkeypatch.setattr(bench, "TOKENS", (((1, 17, 64), 4),))
    bench.main(["--merging", "--repeats", "1"])
    titles, *rows = read_markdown(capsys.readouterr().out)
    assert titles[0] == "method" and [row[0] for row in rows] == list(MERGERS)
    removed = {row[0]: int(row[1]) for row in rows}
    assert removed.pop("none") == 0 and removed.pop("pool") == 12 and set(removed.values()) == {4}


def test_means(threads, capsys, monkeypatch):
    monkeypatch.setattr(bench, "TOKENS", (((1, 9, 16), 2),))
    bench.main(["--means", "--train", "--repeats", "1"])
    assert capsys.readouterr().out.count("median") == 2 * len(MEANS)


def test_selection(threads, capsys, monkeypatch):
    monkeypatch.setattr(bench, "SELECTION", (2, 12, 5))
    bench.main(["--selection", "--repeats", "1"])
    out = capsys.readouterr().out
    assert all(name in out for name in ("ours, greedy", "ours, elimination", "ours, stochastic", "plain loop"))


@pytest.mark.parametrize("train", [[], ["--train"]])
def test_speedup(threads, capsys, train):
    """The MAC ratio is that of the counts; times are positive, and merging's share is a share."""
    bench.main(["--speedup", "digits/hybrid", "model.merge.r=2", "--batch-size", "2", "--repeats", "2", *train])
    out = capsys.readouterr().out
    settings = load_settings("digits/hybrid", ["model.merge.r=2"]).model
    plain = load_settings("digits/hybrid", ["model.merge.method=none"]).model
    ratio = sum(formula_macs(plain).values()) / sum(formula_macs(settings).values())
    assert f"MAC ratio     {ratio:.3f}" in out and out.count("median") == (4 if train else 5)
    if not train:
        share = float(re.search(r"forward pass +median ([\d.]+)", out).group(1))
        assert 0 < share < 100


def test_speedup_of_another_librarys_model(threads, capsys):
    """The MAC ratio is traced where there is no formula."""
    model = ["model.name=timm:test_vit", "model.img_size=64", "model.options={depth: 2}", "model.weights=null"]
    bench.main(["--speedup", "zoo/vit_b16_224", *model, "merge.r=4", "--batch-size", "2", "--repeats", "1"])
    out = capsys.readouterr().out
    assert float(re.search(r"MAC ratio +([\d.]+)", out).group(1)) > 1 and out.count("median") == 5


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("digits/lenet5", "model.name = 'lenet5': has no tokens to merge; measure a ViT, such as"),
        ("zoo/resnet18", "model.name = 'torchvision:resnet18': cannot merge .*ResNet convolves"),
        (
            "zoo/vit_b16_224",
            "model.merge: missing, so that timm:vit_base_patch16_224.augreg_in21k_ft_in1k does not merge; add ",
        ),
        ("digits/vit merge.method=none", "model.merge.method = 'none': there is no merging to measure"),
    ],
)
def test_a_model_that_does_not_merge_is_refused(threads, arguments, line):
    with pytest.raises(UserError, match=line):
        bench.main(["--speedup", *arguments.split()])


@pytest.mark.parametrize(
    ("method", "train", "notes"), [("dtem", ["--train"], 1), ("dtem", [], 0), ("tome", ["--train"], 0)]
)
def test_a_method_that_learns_with_all_tokens_is_not_timed_in_silence(
    threads, capsys, monkeypatch, method, train, notes
):
    measured = speedup.Speedup(1.5, [1.0], [1.0], [1.0], [1.0])
    monkeypatch.setattr(speedup, "measure_speedup", lambda *_, **__: measured)
    bench.main(["--speedup", "digits/hybrid", f"merge.method={method}", *train])
    out = capsys.readouterr().out
    assert out.count(f"merging does not shorten a training step of {method}") == notes == out.count("note:")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            "--merging --batch-size 4",
            "--batch-size: has no effect on --merging; leave it out (it applies to --speedup, --data, --files)",
        ),
        ("--merging --batch-size 0", "--batch-size: has no effect on --merging"),
        ("--merging --train", "--train: has no effect on --merging"),
        (
            "--merging model.merge.r=2",
            "model.merge.r=2: has no effect on --merging; leave it out (it applies to --speedup)",
        ),
        ("--means merge.r=2", "merge.r=2: has no effect on --means"),
        ("--means --precision fp32", "--precision: has no effect on --means"),
        ("--selection --device cpu", "--device: has no effect on --selection"),
        ("--attention --batch-size 8", "--batch-size: has no effect on --attention"),
        ("--data --train", "--train: has no effect on --data"),
        ("--data a=1 b=2", "a=1 b=2: has no effect on --data"),
    ],
)
def test_what_would_have_no_effect_is_refused(capsys, arguments, line):
    with pytest.raises(SystemExit, match="2"):
        bench.main(arguments.split())
    assert f"error: {line}" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(("option", "value"), [("--batch-size", "0"), ("--batch-size", "50001"), ("--repeats", "-1")])
def test_a_wrong_argument_is_one_line(capsys, option, value):
    with pytest.raises(SystemExit, match="2"):
        bench.main(["--data", option, value])
    assert f"{option} {value}: must be from 1" in capsys.readouterr().err.splitlines()[-1]
