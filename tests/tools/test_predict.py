"""From a run folder and a folder of images to a submission, through real files; and the mistakes on the way."""

from __future__ import annotations

import csv
import os
import sys

import pytest

from engine.cli import cli
from tests.tools.colours import BLUE, COLOURS, GREEN, RED, colour_run, save_colour
from tools import data as data_tool
from tools import predict as tool

pytestmark = pytest.mark.precision

NAMES = ["1", "10", "2"]
TRUTH = {f"{i}.png": NAMES[i % 3] for i in range(12)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run and its test images, which are not changed."""
    made = tmp_path_factory.mktemp("predict")
    colour_run(made / "run")
    for i, (name, label) in enumerate(TRUTH.items()):
        save_colour(made / "test" / name, COLOURS[label], seed=i)
    return made


@pytest.fixture
def tell(capsys, monkeypatch, caplog, folder, tmp_path):
    """Exit code, stdout and stderr of the tool, which writes out.csv into `tmp_path`."""

    def line(*args):
        monkeypatch.setattr(sys, "argv", ["predict.py", *map(str, args)])
        code = cli(tool.main)
        return code, *capsys.readouterr()

    def call(*args, run=folder / "run", images=folder / "test", out=tmp_path / "out.csv"):
        return line("--run", run, "--images", images, "--out", out, *args)

    call.line, call.log = line, lambda: caplog.text
    return call


def rows(path, separator=","):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file, delimiter=separator))


def sample(path, *lines, start=b"", end="\n"):
    path.write_bytes(start + "".join(line + end for line in lines).encode())
    return path


def test_without_a_sample_names_stand_in_natural_order(tell, tmp_path):
    code, out, err = tell()
    assert (code, err) == (0, "")
    assert rows(tmp_path / "out.csv") == [["ID", "Label"], *([f"{i}.png", NAMES[i % 3]] for i in range(12))]
    assert "12 rows, 3 of 3 labels" in out and "read back and valid" in out and "12 images by 1 model in " in out


def test_labels_are_names_not_places_in_a_list(tell, tmp_path, folder):
    """Classes 1, 10, 2 of one run, 2, 10, 1 of another: each file gets its colour's name from both, and together."""
    other = colour_run(tmp_path / "other", {"2": BLUE, "10": GREEN, "1": RED}, seed=3)
    for args in ((), ("--run", other), ("--run", other, "--weights", "1,5", "--tta", "flip,crops")):
        assert tell(*args)[0] == 0 and dict(rows(tmp_path / "out.csv")[1:]) == TRUTH
    assert tell(run=other)[0] == 0 and dict(rows(tmp_path / "out.csv")[1:]) == TRUTH


def test_the_same_letters_in_other_bytes(tell, tmp_path):
    """The run's classes are composed, files and sample decomposed, as in an archive from macOS, and the reverse."""
    composed, decomposed = ["Bär", "Äff", "x"], ["Ba\u0308r", "A\u0308ff", "x"]
    for classes, theirs, there in ((composed, decomposed, composed), (decomposed, composed, decomposed)):
        run = colour_run(tmp_path / f"run{len(classes[0])}", dict(zip(classes, COLOURS.values())))
        images = tmp_path / f"test{len(classes[0])}"
        for i, name in enumerate(there):
            save_colour(images / f"{name}.png", list(COLOURS.values())[i], seed=i)
        lines = ['"ID", "Label"', *(f'"{name}.png", "{theirs[0]}"' for name in theirs)]
        file = sample(tmp_path / "sample.csv", *lines)
        code, out, err = tell("--sample", file, run=run, images=images)
        assert (code, err) == (0, "") and "names are spelled as in" in out
        assert rows(tmp_path / "out.csv") == [["ID", "Label"], *([f"{name}.png", name] for name in theirs)]


def test_a_sample_in_two_forms(tell, tmp_path):
    run = colour_run(tmp_path / "run", dict(zip(["Bär", "Öl", "x"], COLOURS.values())))
    lines = [f"{name},{label}" for name, label in zip(TRUTH, ["Bär", "Ba\u0308r", *["x"] * 10])]
    code, out, err = tell("--sample", sample(tmp_path / "sample.csv", "ID,Label", *lines), run=run)
    assert (code, err) == (0, "") and r"labels in two of Unicode's forms: 'B\xe4r' and 'Ba\u0308r'" in out
    assert "not classes of the run" not in out and rows(tmp_path / "out.csv")[1] == ["0.png", "Bär"]


def test_a_single_file_and_several(tell, tmp_path, folder):
    """The tool is also for one's own photograph; an override after the files is no file."""
    code, out, err = tell(images=folder / "test" / "4.png")
    assert (code, err) == (0, "") and rows(tmp_path / "out.csv") == [["ID", "Label"], ["4.png", "10"]]
    assert "1 image by 1 model in " in out
    photo = save_colour(tmp_path / "mine" / "photo.jpg", BLUE)
    line = ["--run", folder / "run", "--out", tmp_path / "out.csv", "--images", photo, folder / "test", "merge.r=2"]
    code, out, err = tell.line(*line)
    assert code == 0 and dict(rows(tmp_path / "out.csv")[1:]) == {**TRUTH, "photo.jpg": "2"}
    assert "merging differs from training" in tell.log()
    path = sample(tmp_path / "sample.csv", "ID,Label", "photo,1")
    assert tell("--sample", path, images=photo)[0] == 0 and rows(tmp_path / "out.csv")[1:] == [["photo", "2"]]
    photo.write_bytes(b"no image")
    code, _, err = tell(images=photo)
    assert code == 2 and err.splitlines()[-1].startswith("error: --images: 1 of 1 images cannot be read: ")
    with pytest.raises(SystemExit, match="2"):
        tell.line("--run", folder / "run", "--out", tmp_path / "out.csv", "--images", "merge.r=2")


def test_names_of_the_sample(tell, tmp_path):
    lines = ["ID,Label", *(f"{i},{('01', '10', '02')[i % 3]}" for i in range(12))]
    code, out, err = tell("--sample", sample(tmp_path / "sample.csv", *lines))
    assert (code, err) == (0, "") and "names are spelled as in" in out and "such as '01' for '1'" in out
    said = dict(rows(tmp_path / "out.csv")[1:])
    assert said == {str(i): {"1": "01", "10": "10", "2": "02"}[TRUTH[f"{i}.png"]] for i in range(12)}


def test_the_samples_form_is_followed(tell, tmp_path):
    """Order of rows and columns, separator, ids without extension; not its byte order mark and line ends."""
    lines = ["Kind;Picture", "1;7", "1;11", "10;0", *(f"2;{i}" for i in (10, 9, 8, 6, 5, 4, 3, 2, 1))]
    path = sample(tmp_path / "sample.csv", *lines, start=b"\xef\xbb\xbf", end="\r\n")
    code, _, err = tell("--sample", path)
    assert (code, err) == (0, "")
    written = rows(tmp_path / "out.csv", ";")
    assert written[0] == ["Kind", "Picture"]
    assert [row[1] for row in written[1:]] == ["7", "11", "0", "10", "9", "8", "6", "5", "4", "3", "2", "1"]
    assert all(row[0] == TRUTH[f"{row[1]}.png"] for row in written[1:])
    raw = (tmp_path / "out.csv").read_bytes()
    assert raw.startswith(b"Kind;") and b"\r" not in raw


def test_a_column_for_each_class_gets_probabilities(tell, tmp_path):
    path = sample(tmp_path / "sample.csv", "id,2,1,10", *(f"{name},0.3,0.3,0.4" for name in TRUTH))
    assert tell("--sample", path)[0] == 0
    header, *body = rows(tmp_path / "out.csv")
    assert header == ["id", "2", "1", "10"]
    for name, *values in body:
        values = list(map(float, values))
        assert sum(values) == pytest.approx(1, abs=1e-7)
        assert header[1:][values.index(max(values))] == TRUTH[name]
    path = sample(tmp_path / "sample.csv", "id,2,1,11", *(f"{name},0.3,0.3,0.4" for name in TRUTH))
    code, _, err = tell("--sample", path)
    assert code == 2 and "1 is not a class ('11'), 1 class has none ('10')" in err


def test_probabilities_and_the_most_probable(tell, tmp_path):
    p, out = tmp_path / "p.csv", tmp_path / "out.csv"
    assert tell("--probabilities", p)[0] == 0
    header, *body = rows(p)
    assert header == ["ID", *NAMES] and [row[0] for row in body] == list(TRUTH)
    whole = {row[0]: dict(zip(NAMES, row[1:])) for row in body}
    assert tell("--probabilities", p, "--top-k", 2)[0] == 0
    header, *body = rows(p)
    assert header == ["ID", "label1", "probability1", "label2", "probability2"]
    for name, first, value, second, less in body:
        assert first == TRUTH[name] and (value, less) == (whole[name][first], whole[name][second])
        assert float(value) > float(less)
    assert dict(rows(out)[1:]) == TRUTH


def test_a_class_that_a_spreadsheet_would_compute(tell, tmp_path, monkeypatch, capsys, caplog):
    run = colour_run(tmp_path / "run", {"=cmd()": RED, "10": GREEN, "2": BLUE})
    path = sample(tmp_path / "sample.csv", "ID,Label", *(f"{name},2" for name in TRUTH))
    p = tmp_path / "p.csv"
    assert tell("--sample", path, "--probabilities", p, run=run)[0] == 0
    assert "would be computed by a spreadsheet" in caplog.text and "apostrophe" in caplog.text
    raw = (tmp_path / "out.csv").read_text()
    assert '0.png,"\'=cmd()"\n1.png,10\n' in raw and '"\'=cmd()"' in p.read_text().splitlines()[0]

    def validate(*args):
        line = [str(tmp_path / "out.csv"), "--sample", str(path), "--run", str(run), *args]
        monkeypatch.setattr(sys, "argv", ["data.py", "validate", *line])
        return cli(data_tool.main), capsys.readouterr().out

    assert validate()[0] == 0
    assert tell("--sample", path, "--formulas", "keep", run=run)[0] == 0
    assert '0.png,"=cmd()"\n' in (tmp_path / "out.csv").read_text()
    code, out = validate()
    assert code == 2 and "wrong: 4 cells would be computed by a spreadsheet: '=cmd()' (line 2)" in out
    assert validate("--formulas", "keep")[0] == 0


@pytest.mark.parametrize(
    ("labels", "said"), [(("cat",), True), (("1", "cat"), True), (("1", "10"), False), (("",), False)]
)
def test_labels_of_the_sample_that_are_no_classes_are_said(tell, tmp_path, labels, said):
    lines = (f"{name},{labels[i % len(labels)]}" for i, name in enumerate(TRUTH))
    code, out, _ = tell("--sample", sample(tmp_path / "sample.csv", "ID,Label", *lines))
    assert code == 0 and said == ("note" in out)
    assert said == ("has labels such as 'cat', which are not classes of the run" in out)


def test_ids_of_other_images_are_not_taken_for_labels(tell, tmp_path):
    """Labels are numbers, as the images' names are: what is wrong are the ids."""
    path = sample(tmp_path / "sample.csv", "id,label", *(f"{i:04}.jpg,{NAMES[i % 3]}" for i in range(12)))
    code, _, err = tell("--sample", path)
    assert code == 2 and "column 'id': 12 of 12 ids have no image" in err


def test_many_labels(tell, tmp_path, folder):
    data = {"name": "csv", "path": "no.csv", "labels": "many"}
    results = {"thresholds": {"1": 0.5, "10": 0.5, "2": 1.0}}
    run = colour_run(tmp_path / "run", data=data, results=results)
    assert tell(run=run)[0] == 0
    expected = {name: "" if label == "2" else label for name, label in TRUTH.items()}
    assert dict(rows(tmp_path / "out.csv")[1:]) == expected
    path = sample(tmp_path / "sample.csv", "ID,Labels", *(f"{i}.png,{'' if i else '02;01;10'}" for i in range(12)))
    code, out, err = tell("--sample", path, run=run)
    assert (code, err) == (0, "") and "such as '01' for '1'" in out
    theirs = {name: {"1": "01"}.get(label, label) for name, label in expected.items()}
    assert dict(rows(tmp_path / "out.csv")[1:]) == theirs and "01" in theirs.values()
    assert tell("--run", folder / "run", run=run)[2].startswith("error: --run ")


def test_bad_images_are_all_named_and_nothing_is_written(tell, tmp_path, caplog):
    for i, (name, label) in enumerate(TRUTH.items()):
        save_colour(tmp_path / "test" / name, COLOURS[label], seed=i)
    bad = ("2.png", "3.png", "8.png", "11.png")
    for name in bad:
        path = tmp_path / "test" / name
        path.write_bytes(path.read_bytes()[:60])
    (tmp_path / "out.csv").write_text("old")
    code, out, err = tell("--probabilities", tmp_path / "p.csv", images=tmp_path / "test")
    assert code == 2 and out == "" and err.splitlines()[-1].startswith("error: --images: 4 of 12 images cannot be read")
    assert all(f"{name}' (" in caplog.text for name in bad)
    assert (tmp_path / "out.csv").read_text() == "old" and not (tmp_path / "p.csv").exists()


def test_images_that_the_sample_does_not_name(tell, tmp_path, caplog):
    path = sample(tmp_path / "sample.csv", "ID,Label", *(f"{name},1" for name in list(TRUTH)[2:]))
    code, _, err = tell("--sample", path)
    assert code == 2 and "2 images have no row in" in err and not (tmp_path / "out.csv").exists()
    assert tell("--sample", path, "--extra", "ignore")[0] == 0 and "left out" in caplog.text
    assert dict(rows(tmp_path / "out.csv")[1:]) == {name: TRUTH[name] for name in list(TRUTH)[2:]}


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--weights", "1,2"], "--weights: 2 numbers for 1 run; give one for each --run"),
        (["--weights", "a"], "--weights a: write numbers with commas between them"),
        (["--weights", "-1"], "--weights -1: must be numbers greater than 0"),
        (["--tta", "turn"], "--tta turn: turn is unknown; use flip, crops"),
        (["--top-k", "2"], "--top-k 2: limits what --probabilities holds"),
        (["--top-k", "0"], "--top-k 0: must be 1 or more"),
        (["--top-k", "4", "--probabilities", "OUT/p.csv"], "--top-k 4: there are 3 classes"),
        (["--out", "OUT"], ": is a folder; give a file in it"),
        (["--out", "OUT/no/a.csv"], ": there is no folder "),
        (["--probabilities", "OUT/out.csv"], ": is the file of --out; give another"),
        (["--sample", "OUT/no.csv"], "no.csv: No such file"),
        (["--images", "OUT/no"], "--images OUT/no: not found"),
        (["--run", "OUT/no"], "no: not a run folder"),
        (["merge.r=-2"], "model.merge.r = -2: must not be negative"),
        (["mrge.r=2"], "mrge: unknown key"),
    ],
)
def test_mistakes_are_one_line(tell, tmp_path, args, words):
    code, out, err = tell(*(arg.replace("OUT", str(tmp_path)) for arg in args))
    assert (code, out) == (2, "") and err.startswith("error: ") and err.count("\n") == 1
    assert words.replace("OUT", str(tmp_path)) in err and not list(tmp_path.iterdir())


def test_what_is_no_table_is_not_replaced(tell, tmp_path):
    """A test image, a checkpoint, a device: only a name was mistaken."""
    save_colour(tmp_path / "a.png", RED, seed=0)
    (tmp_path / "best.pt").write_bytes(b"PK\3\4\0\0")
    os.mkfifo(tmp_path / "pipe.csv")
    for name in ("a.png", "best.pt", "pipe.csv"):
        before = (tmp_path / name).read_bytes() if name != "pipe.csv" else None
        for args in ({"out": tmp_path / name}, {}):
            code, _, err = tell(*([] if args else ["--probabilities", tmp_path / name]), **args)
            assert code == 2 and f"{name}: exists and is not a text file" in err
        assert before is None or (tmp_path / name).read_bytes() == before
    assert (tmp_path / "pipe.csv").is_fifo()


def test_what_may_not_be_written_is_found_first(tell, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    code, _, err = tell("--run", tmp_path / "no")
    assert code == 2 and "out.csv: not writable; make it and its folder writable" in err


def test_the_sample_is_not_overwritten(tell, tmp_path):
    path = sample(tmp_path / "out.csv", "ID,Label", *(f"{name},1" for name in TRUTH))
    before = path.read_bytes()
    code, _, err = tell("--sample", path)
    assert code == 2 and "is the file of --sample" in err and path.read_bytes() == before
