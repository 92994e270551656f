"""tools/data.py check: what it prints and draws, its exit code, and that it leaves what it looks at alone."""

import sys

import pytest
from PIL import Image

from engine.cli import cli
from engine.data.check import text as report_text
from engine.data.check.preflight import Report
from engine.data.images import Facts
from engine.figures.check import LABELS, picture
from tests.engine.data.check.test_preflight import contents
from tests.engine.data.conftest import save_image
from tests.engine.data.sources.test_folder import fill
from tools import data


@pytest.fixture
def tell(monkeypatch, capsys):
    """Runs the tool; returns its exit code, what it printed, and its errors."""

    def tell(*arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["data.py", "check", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "100")
        code = cli(data.main)
        return (code, *capsys.readouterr())

    return tell


def test_a_sound_folder(tmp_path, tell):
    fill(tmp_path / "set", {"ant": 5, "bee": 6})
    before = contents(tmp_path)
    code, said, errors = tell(tmp_path / "set")
    assert (code, errors) == (0, "") and contents(tmp_path) == before
    assert "2 classes; 11 images to train on" in said and "ant        5" in said
    assert "5 to 6 training images, median 5.5" in said and "12 x 9 to 12 x 9" in said
    assert "formats    11 PNG" in said and "modes      11 RGB" in said
    assert said.endswith("training can start: data.name=folder\n") and "warning" not in said


def test_errors_end_with_code_2_and_one_line(tmp_path, tell):
    root = fill(tmp_path / "set", {"ant": 5, "bee": 5, "bare": 0})
    for i in range(30):
        (root / "ant" / f"x{i}.jpg").touch()
    (root / "bee" / "0.png").write_bytes((root / "ant" / "0.png").read_bytes())
    before = contents(tmp_path)
    code, said, errors = tell(root)
    assert code == 2 and contents(tmp_path) == before and "can start" not in said
    assert (
        errors.count("\n") == 1 and "training cannot start: 1 class folder holds no images; 30 of 40 images" in errors
    )
    for i in range(30):
        assert said.count(f"{str(root / 'ant' / f'x{i}.jpg')!r} (empty file)") == 1
    assert "error: 1 class folder holds no images; fill or remove them\n    'bare'\n" in said
    assert "warning: 1 image is a copy of an image with another label; keep each once, where it belongs" in said


def test_long_warnings_are_cut(tmp_path, tell):
    root = fill(tmp_path / "set", {"ant": 5, "bee": 5})
    for i in range(25):
        save_image(root / "ant" / f"same{i}.png", 0)
    code, said, _ = tell(root)
    assert code == 0 and "25 train images are copies of others" in said and "    and 5 more\n" in said


def test_settings_change_what_is_an_error(tmp_path, tell):
    root = fill(tmp_path / "set", {"ant": 6, "bee": 6})
    (root / "ant" / "x.jpg").touch()
    assert tell(root)[0] == 2 and tell(root, "data.on_error=skip")[0] == 0
    code, said, _ = tell(root, "data.max_pixels=100")
    assert code == 2 and "(12 x 9 pixels, more than data.max_pixels)" in said
    assert "data.max_pixel: unknown key; did you mean max_pixels" in tell(root, "data.max_pixel=9")[2]
    code, _, errors = tell(root, "train.lr=1")
    assert code == 2 and "train: not a setting of the data" in errors


def test_settings_may_follow_an_option(tmp_path, tell):
    fill(tmp_path / "set", {"ant": 5, "bee": 6})
    code, said, errors = tell(tmp_path / "set", "--kind", "folder", "data.fit=squash")
    assert (code, errors) == (0, "") and "training can start" in said
    assert tell(tmp_path / "set", "--kind", "folder", "data.fit=no")[0] == 2


def test_a_competition(tmp_path, tell):
    fill(tmp_path / "train", {"1": 5, "10": 5, "2": 5})
    save_image(tmp_path / "test" / "0.png", 90)
    (tmp_path / "sample_submission.csv").write_text("ID,Label\n0.png,3\n")
    code, said, _ = tell(tmp_path)
    assert code == 0 and "15 images to train on, 1 image without labels" in said
    assert "1 label in 'sample_submission.csv' not among the label folders" in said
    assert "1 labels" not in tell(tmp_path, "--kind", "folder")[1]


def test_a_source_that_is_not_there(tmp_path, tell):
    code, said, errors = tell(tmp_path / "none")
    assert (code, said) == (2, "") and "not found; expected PATH/CLASS/*.jpg" in errors and errors.count("\n") == 1


def test_the_picture(tmp_path, tell):
    fill(tmp_path / "set" / "train", {"ant": 5, "$x$": 6, "new\nline": 5})
    fill(tmp_path / "set" / "test", {"ant": 1}, 30)
    code, said, _ = tell(tmp_path / "set", "--out", tmp_path / "new" / "place")
    assert code == 0 and "'new\\nline'" in said
    picture = Image.open(tmp_path / "new" / "place" / "check.png")
    assert picture.format == "PNG" and picture.width > 500
    assert [path.name for path in (tmp_path / "new" / "place").iterdir()] == ["check.png"]
    (tmp_path / "file").touch()
    code, _, errors = tell(tmp_path / "set", "--out", tmp_path / "file")
    assert code == 2 and "--out" in errors


def report(classes: int) -> Report:
    names = [f"class {i}" for i in range(classes)]
    facts = [Facts("JPEG", "RGB", 30, 20 + i % 9, False) for i in range(classes)]
    return Report("here", names, {"train": list(range(classes))}, {"train": classes}, facts, [], [])


def test_a_hundred_classes_stay_readable():
    lines = list(report_text.table(report(100), 100))
    assert max(map(len, lines)) <= 100 and len(lines) == 1 + 20
    assert lines[0].split() == ["class", "train"] * 5
    assert lines[1].split()[:6] == ["class", "0", "0", "class", "20", "20"]
    assert sum(line.count("class ") for line in lines[1:]) == 100
    assert len(list(report_text.table(report(3), 10))) == 4  # narrower than a column: one of them


@pytest.mark.parametrize("classes", [1, 9, 60, 100, 300])
def test_bars_are_named_while_they_can_be(classes):
    figure = picture(report(classes))
    bars = figure.axes[0]
    assert len(bars.patches) == classes and [bar.get_height() for bar in bars.patches] == list(range(classes))
    assert len(bars.get_xticklabels()) == (classes if classes <= LABELS else 0)
