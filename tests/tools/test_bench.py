"""tools/bench.py runs every measurement and prints it. How fast things are is for benchmarks, not for tests."""

import json
import re
import statistics
import sys

import pytest
import torch
import torchvision

from engine.cost.speed.attention import FORMS, forms_on
from engine.cost.speed.means import MEANS
from engine.cost.speed.model.table import table
from engine.settings.layers import load_settings
from engine.settings.models import load_beside
from models.formulas import formula_macs
from models.merging import MERGERS
from models.settings import UserError
from tests.tools.tables import read_markdown
from tools import bench

CPU = torch.device("cpu")
TINY = ["timm:test_vit", "model.img_size=64", "model.options={depth: 2}"]


@pytest.fixture
def threads():
    """The benchmark sets torch's threads for its process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_data(threads, capsys, monkeypatch):
    monkeypatch.setattr(bench, "IMAGES", 1000)
    bench.main(["data", "--repeats", "2"])
    line = capsys.readouterr().out.splitlines()[-1]
    low, median, high = (
        int(re.search(rf"{word} ([\d,]+)", line).group(1).replace(",", "")) for word in ("min", "median", "max")
    )
    assert 0 < low <= median <= high


@pytest.mark.parametrize("workers", ["0", "1"])
def test_files(workers, threads, capsys, monkeypatch):
    for name, value in (("FILES", 40), ("SIDE", 40), ("SIZE", 32)):
        monkeypatch.setattr(bench, name, value)
    bench.main(["files", "--repeats", "1", "--batch-size", "8", "--workers", workers])
    lines = capsys.readouterr().out.splitlines()[-3:]
    assert [line.split(" images/s")[0].strip() for line in lines] == [
        "plain DataLoader",
        "decoded anew",
        "kept at 32 px",
    ]
    assert all("over plain: median" in line for line in lines[1:])


def test_attention(threads, capsys, monkeypatch):
    monkeypatch.setattr(bench, "HEADS", ((1, 1, 4, 8),))
    bench.main(["attention", "--repeats", "1"])
    out = capsys.readouterr().out
    assert out.count("median") == len(forms_on(CPU))
    assert all(f"fp32{form}, {kernel}" in out for form in FORMS for kernel in ("fused", "math"))


def test_merging(threads, capsys, monkeypatch):
    monkeypatch.setattr(bench, "TOKENS", (((1, 17, 64), 4),))
    bench.main(["merging", "--repeats", "1"])
    titles, *rows = read_markdown(capsys.readouterr().out)
    assert titles[0] == "method" and [row[0] for row in rows] == list(MERGERS)
    removed = {row[0]: int(row[1]) for row in rows}
    assert removed.pop("none") == 0 and removed.pop("pool") == 12 and set(removed.values()) == {4}


def test_means(threads, capsys, monkeypatch):
    monkeypatch.setattr(bench, "TOKENS", (((1, 9, 16), 2),))
    bench.main(["means", "--train", "--repeats", "1"])
    assert capsys.readouterr().out.count("median") == 2 * len(MEANS)


def test_selection(threads, capsys, monkeypatch):
    monkeypatch.setattr(bench, "SELECTION", (2, 12, 5))
    bench.main(["selection", "--repeats", "1"])
    out = capsys.readouterr().out
    assert all(name in out for name in ("ours, greedy", "ours, elimination", "ours, stochastic", "plain loop"))


def rows_of(out: str) -> list[dict[str, str]]:
    titles, *rows = read_markdown(out)
    return [dict(zip(titles, row, strict=True)) for row in rows]


def test_a_model_with_its_merging_and_without(threads, capsys, tmp_path):
    """The table is computed from the times in the JSON file, and each row names what was timed."""
    file = tmp_path / "speed.json"
    arguments = ["--batch-size", "1", "3", "--steps", "forward", "train", "--repeats", "3", "--json", str(file)]
    bench.main(["model", "digits/hybrid", *arguments, "merge.r=2"])
    rows = rows_of(capsys.readouterr().out)
    conditions = [(row["step"], row["batch"], row["method"]) for row in rows]
    assert conditions == [
        (step, size, method) for step in ("forward", "train") for size in "13" for method in ("unmerged", "tome")
    ]
    for row in rows:
        assert (row["runtime"], row["precision"], row["attention"], row["device"]) == ("eager", "fp32", "fused", "cpu")

    record = json.loads(file.read_text())
    assert record["model"] == "digits/hybrid" and record["overrides"] == ["merge.r=2"] and record["threads"] == 1
    assert all(len(row["ms"]) == record["repeats"] == 3 for row in record["rows"])
    columns, cells = table(record["rows"])
    assert [dict(zip([column.title for column in columns], line)) for line in cells] == rows

    merged, plain = (
        load_settings("digits/hybrid", [override]).model for override in ("merge.r=2", "merge.method=none")
    )
    ratio = sum(formula_macs(plain).values()) / sum(formula_macs(merged).values())
    for unmerged, tome, row in zip(record["rows"][::2], record["rows"][1::2], rows[1::2], strict=True):
        realised = statistics.median(before / after for before, after in zip(unmerged["ms"], tome["ms"], strict=True))
        assert row["MAC ratio"] == f"{ratio:.3f}"
        assert float(row["speed-up over MAC ratio"]) == pytest.approx(realised / ratio, abs=0.001)
        assert float(row["images/s"]) == pytest.approx(
            1000 * tome["batch_size"] / statistics.median(tome["ms"]), abs=0.06
        )
        assert (row["merging, %"] != "-") == (row["step"] == "forward")
    assert all(0 < float(row["merging, %"]) < 100 for row in rows[1:4:2])


def test_several_methods_in_a_model_of_timm(threads, capsys):
    methods = ["tome", "dpc_knn", "facility_location"]
    bench.main(["model", *TINY, "--methods", *methods, "merge.r=4", "--repeats", "1", "--batch-size", "2"])
    rows = rows_of(capsys.readouterr().out)
    assert [row["method"] for row in rows] == ["unmerged", *methods]
    assert all(float(row["MAC ratio"]) > 1 and float(row["merging, %"]) > 0 for row in rows[1:])


def test_other_models_in_the_same_rounds(threads, capsys, tmp_path):
    """By its name, at another size, or both; each is compared with the unmerged model, and none has a merging share."""
    beside = ["lenet5", "model.img_size=32", "timm:test_vit model.img_size=64 model.num_classes=10"]
    file = tmp_path / "speed.json"
    bench.main(["model", *TINY, "merge.r=4", "--repeats", "2", "--json", str(file), "--beside", *beside])
    rows = rows_of(capsys.readouterr().out)
    assert [row["method"] for row in rows] == ["unmerged", "tome", *beside]
    assert float(rows[3]["MAC ratio"]) > 3 and float(rows[2]["MAC ratio"]) > 1
    assert all(row["merging, %"] == "-" and float(row["speed-up over MAC ratio"]) > 0 for row in rows[2:])
    record = json.loads(file.read_text())["rows"]
    assert all(len(row["ms"]) == 2 and row["failed"] is None for row in record)


def test_other_models_do_not_merge_unless_asked():
    """Although their configs do."""
    texts = ["model.img_size=48", "digits/hybrid", "digits/hybrid merge.r=3"]
    own, other, merged = load_beside(texts, "cifar10/hybrid", ["merge.r=4", "model.depth=3"]).values()
    assert (own.img_size, own.depth, own.merge.method, other.merge.method) == (48, 3, "none", "none")
    assert (merged.merge.method, merged.merge.r) == ("tome", 3)


@pytest.mark.parametrize(
    ("beside", "line"),
    [
        (["lenet5", "lenet5"], "--beside 'lenet5': given twice; leave it out"),
        (["lenet5", "lenet5  "], "--beside 'lenet5  ': given twice; leave it out"),
        ([""], "--beside '': empty; leave it out"),
        (["'lenet5"], "no closing quotation; close it"),
        (["lenet6"], "'lenet6': no such file, and no such name under configs"),
        (["train.lr=3"], "train: has no effect on a model"),
    ],
)
def test_mistakes_in_other_models(threads, beside, line):
    with pytest.raises(UserError, match=line):
        bench.main(["model", *TINY, "--beside", *beside])


@pytest.mark.parametrize(
    ("arguments", "methods", "attention"),
    [
        ("digits/lenet5", ["unmerged"], "-"),
        ("lenet5", ["unmerged"], "-"),
        ("torchvision:squeezenet1_1 model.img_size=64", ["unmerged"], "-"),
        ("zoo/resnet18 model.img_size=64", ["unmerged"], "-"),
        ("digits/vit merge.method=none", ["unmerged"], "fused"),
        ("timm:test_vit model.img_size=64", ["unmerged"], "fused"),
    ],
)
def test_models_that_do_not_merge_are_timed(threads, capsys, arguments, methods, attention):
    bench.main(["model", *arguments.split(), "--repeats", "1", "--batch-size", "1"])
    rows = rows_of(capsys.readouterr().out)
    assert [row["method"] for row in rows] == methods and rows[0]["attention"] == attention
    assert "MAC ratio" not in rows[0] and float(rows[0]["GMACs"]) > 0 and float(rows[0]["images/s"]) > 0


@pytest.mark.parametrize(("native", "merged"), [(False, "native+fused"), (True, "native+blocks")])
def test_attention_and_precision_of_torchvisions_vit(native, merged, threads, capsys, monkeypatch):
    """`native`: whether the processor multiplies in bf16."""
    monkeypatch.setattr("models.attention.cpu_has_bf16", lambda: native)
    vit = torchvision.models.vision_transformer
    make = vit._vision_transformer
    narrow = {"num_layers": 2, "num_heads": 2, "hidden_dim": 32, "mlp_dim": 64}  # the same layers, fewer and thinner
    monkeypatch.setattr(vit, "_vision_transformer", lambda **options: make(**{**options, **narrow}))
    arguments = ["--attention", "auto", "math", "--precision", "fp32", "bf16", "--repeats", "1", "--batch-size", "1"]
    removed = "merge.r=[0, 2]"
    bench.main(["model", "torchvision:vit_b_16", "model.img_size=48", *arguments, removed])
    rows = rows_of(capsys.readouterr().out)
    assert [(row["precision"], row["method"], row["attention"]) for row in rows] == [
        (precision, *names)
        for precision, own in (("fp32", "native+fused"), ("bf16", merged))
        for names in (("unmerged", "native"), ("tome", own), ("unmerged", "math"), ("tome", "math"))
    ]


@pytest.mark.slow
def test_runtimes(threads, capsys):
    pytest.importorskip("onnxruntime")
    bench.main(["model", *TINY, "merge.r=4", "--runtimes", "eager", "compiled", "onnx", "--repeats", "2"])
    out = capsys.readouterr().out
    rows = rows_of(out)
    assert [row["runtime"] for row in rows] == [name for name in ("eager", "compiled", "onnx") for _ in range(2)]
    assert "not timed" not in out
    assert [row["attention"] for row in rows] == ["fused"] * 4 + ["onnx"] * 2
    assert all(float(row["images/s"]) > 0 for row in rows)


@pytest.mark.slow
def test_files_in_fp32_and_int8(threads, capsys):
    pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    arguments = ["--runtimes", "onnx", "openvino", "--precision", "fp32", "int8", "--batch-size", "2"]
    bench.main(["model", *TINY, "merge.r=4", *arguments, "--repeats", "2"])
    out = capsys.readouterr().out
    assert "not timed" not in out
    conditions = [(row["runtime"], row["precision"], row["method"], row["attention"]) for row in rows_of(out)]
    assert conditions == [
        (runtime, precision, method, runtime)
        for runtime in ("onnx", "openvino")
        for precision in ("fp32", "int8")
        for method in ("unmerged", "tome")
    ]


def test_a_runtime_that_is_not_installed_is_one_line(threads, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    line = r"^--runtimes openvino: .*openvino.*; pip install onnx onnxscript openvino$"
    with pytest.raises(UserError, match=line):
        bench.main(["model", *TINY, "merge.r=4", "--runtimes", "eager", "openvino"])


@pytest.mark.slow
def test_memory_of_each_runtime(threads, capsys):
    pytest.importorskip("onnxruntime")
    bench.main(["model", *TINY, "--runtimes", "eager", "compiled", "onnx", "--repeats", "1", "--memory"])
    rows = rows_of(capsys.readouterr().out)
    assert [row["runtime"] for row in rows] == ["eager", "compiled", "onnx"]
    assert all(float(row["peak MiB"]) > 100 for row in rows)


def test_a_method_that_learns_with_all_tokens_is_not_timed_in_silence(threads, capsys):
    arguments = ["model", "digits/hybrid", "merge.r=2", "--methods", "dtem", "tome", "--repeats", "1"]
    for steps, notes in ((["--steps", "train"], 1), ([], 0)):
        bench.main([*arguments, "--batch-size", "2", *steps])
        out = capsys.readouterr().out
        assert out.count("merging does not shorten a training step of dtem") == notes == out.count("note:")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("zoo/resnet18 merge.r=4", "torchvision:resnet18.* ResNet convolves"),
        ("zoo/vit_b16_224 merge.r=4 merge.depth=2", "model.merge.depth: unknown key"),
        ("timm:test_vit model.img_size=64 merge.method=tome", "merge.method = 'tome': removes no token; say how many"),
        ("digits/vit --attention fast", "--attention fast: unknown"),
        (
            "digits/lenet5 --attention math",
            "--attention math: has no effect on a model without attention; leave it out",
        ),
        ("digits/vit --json /no/such/folder/x.json", "--json /no/such/folder/x.json: there is no folder"),
    ],
)
def test_a_mistake_is_one_line(threads, arguments, line):
    with pytest.raises(UserError, match=line):
        bench.main(["model", *arguments.split()])


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("merging --batch-size 4", "unrecognized arguments: --batch-size 4"),
        ("merging --train", "unrecognized arguments: --train"),
        ("merging model.merge.r=2", "unrecognized arguments: model.merge.r=2"),
        ("means --precision fp32", "unrecognized arguments: --precision fp32"),
        ("selection --device cpu", "unrecognized arguments: --device cpu"),
        ("attention --batch-size 8", "unrecognized arguments: --batch-size 8"),
        ("data --train", "unrecognized arguments: --train"),
        ("data --workers 2", "unrecognized arguments: --workers 2"),
        ("data a=1 b=2", "unrecognized arguments: a=1 b=2"),
        ("model digits/vit --train", "unrecognized arguments: --train"),
        ("model digits/vit --workers 2", "unrecognized arguments: --workers 2"),
        ("data --batch-size 0", "--batch-size 0: must be from 1 to 50000"),
        ("data --batch-size 50001", "--batch-size 50001: must be from 1 to 50000"),
        ("data --repeats -1", "--repeats -1: must be at least 1"),
        ("files --batch-size 1001", "--batch-size 1001: must be from 1 to 1000"),
        ("files --workers -1", "--workers -1: must be at least 0"),
        ("model digits/vit --batch-size 4 0", "--batch-size 0: must be from 1"),
        ("model digits/vit --batch-size 4 x", "--batch-size x: must be a whole number"),
        ("model digits/vit --warmup 0", "--warmup 0: must be at least 1"),
        ("model digits/vit --methods merge.r=2", "--methods: expected at least one argument"),
        ("model digits/vit --runtimes merge.r=2", "--runtimes: expected at least one argument"),
        ("--speedup digits/vit", "argument WHAT: invalid choice"),
    ],
)
def test_a_wrong_argument_is_one_line(capsys, arguments, line):
    with pytest.raises(SystemExit, match="2"):
        bench.main(arguments.split())
    assert line in capsys.readouterr().err.splitlines()[-1]
