"""The benchmark runs and says what it measured; how fast is for benchmarks, not for tests."""

import re

import pytest
import torch

from engine.cost import speed as benchmark
from engine.cost.formulas import formula_macs
from engine.settings.layers import load_settings
from models.merging import MERGERS
from models.merging.methods.selection import select
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
    assert capsys.readouterr().out.count("median") == len(benchmark.ATTENTIONS)


def test_every_attention_is_the_same_attention():
    """The forms that are compared differ in speed alone."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, 5, 16, generator=generator) for _ in range(3))
    bias = torch.rand(2, 1, 1, 5, generator=generator)
    wanted = ((q @ k.mT) / 4 + bias).softmax(-1) @ v
    for name, (dtype, attend) in benchmark.ATTENTIONS.items():
        if "no bias" not in name:
            out = attend(q.to(dtype), k.to(dtype), v.to(dtype), bias).float()
            torch.testing.assert_close(out, wanted, atol=1e-5 if dtype == torch.float32 else 0.03, rtol=0.02)


def test_merging(threads, capsys, monkeypatch):
    monkeypatch.setattr(bench, "TOKENS", (((1, 17, 64), 4),))
    bench.main(["--merging", "--repeats", "1"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [line.split()[1] for line in lines] == ["method", *MERGERS]
    removed = {line.split(" | ")[0].lstrip("| "): int(line.split(" | ")[1]) for line in lines[1:]}
    assert removed.pop("none") == 0 and removed.pop("pool") == 12 and set(removed.values()) == {4}


def test_means(threads, capsys, monkeypatch):
    monkeypatch.setattr(bench, "TOKENS", (((1, 9, 16), 2),))
    bench.main(["--means", "--train", "--repeats", "1"])
    assert capsys.readouterr().out.count("median") == 2 * len(benchmark.MEANS)


def test_every_mean_is_the_same_mean():
    x, size = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([[1.0, 2, 3, 1, 1, 2]] * 2)
    index = torch.tensor([[0, 1, 1, 0, 2, 1], [2, 2, 2, 0, 1, 1]])
    first, *others = (mean(x, size, index, 3) for mean in benchmark.MEANS.values())
    for other in others:
        torch.testing.assert_close(other, first)


def test_selection(threads, capsys, monkeypatch):
    monkeypatch.setattr(bench, "SELECTION", (2, 12, 5))
    bench.main(["--selection", "--repeats", "1"])
    out = capsys.readouterr().out
    assert all(name in out for name in ("ours, greedy", "ours, elimination", "ours, stochastic", "plain loop"))


def test_the_plain_loop_selects_what_ours_selects():
    metric = torch.randn(12, 8, generator=torch.Generator().manual_seed(0))
    similarity = benchmark._similarity(metric)
    kept = select(torch.from_numpy(similarity)[None], torch.ones(1, 12), 5, "greedy")
    assert sorted(benchmark._plain_loop(similarity, 5)) == kept[0].tolist()


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


@pytest.mark.parametrize(
    ("method", "train", "notes"), [("dtem", ["--train"], 1), ("dtem", [], 0), ("tome", ["--train"], 0)]
)
def test_a_method_that_learns_with_all_tokens_is_not_timed_in_silence(
    threads, capsys, monkeypatch, method, train, notes
):
    names = ("unmerged", "merged", "merging", "inside")
    monkeypatch.setattr(benchmark, "speedup", lambda *_: (1.5, {name: [1.0] for name in names}))
    bench.main(["--speedup", "digits/hybrid", f"merge.method={method}", *train])
    out = capsys.readouterr().out
    assert out.count(f"merging does not shorten a training step of {method}") == notes == out.count("note:")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            "--merging --batch-size 4",
            "--batch-size: --merging has no use for it; leave it out (it is of --speedup, --data, --files)",
        ),
        ("--merging --batch-size 0", "--batch-size: --merging has no use for it"),
        ("--merging --train", "--train: --merging has no use for it"),
        (
            "--merging model.merge.r=2",
            "model.merge.r=2: --merging has no use for it; leave it out (it is of --speedup)",
        ),
        ("--means merge.r=2", "merge.r=2: --means has no use for it"),
        ("--means --precision fp32", "--precision: --means has no use for it"),
        ("--selection --device cpu", "--device: --selection has no use for it"),
        ("--attention --batch-size 8", "--batch-size: --attention has no use for it"),
        ("--data --train", "--train: --data has no use for it"),
        ("--data a=1 b=2", "a=1 b=2: --data has no use for it"),
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
