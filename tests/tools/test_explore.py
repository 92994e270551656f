"""tools/explore.py in a real browser: upload, slider, method, what is no image; and how it begins and ends."""

from __future__ import annotations

import re
import signal
import socket
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.browser import messages, open_browser, requested, until
from tests.processes import ENVIRONMENT, Process, finish
from tests.tools.colours import COLOURS, VIT, colour_run, save_colour
from tools import explore

# Its import takes six seconds, which processes that only collect these tests are spared.
pytestmark = pytest.mark.skipif(find_spec("gradio") is None, reason="the extra explore is not installed")

MERGED = {**VIT, "img_size": 16, "merge": {"method": "tome", "r": 16}}
PNG, JPEG = b"\x89PNG", b"\xff\xd8\xff\xe0"
EVIL = "<b onclick='alert(1)'>bold"


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def answers(port: int) -> bool:
    with socket.socket() as one:
        one.settimeout(1)
        return one.connect_ex(("127.0.0.1", port)) == 0


class Served:
    """The tool, which serves a page, and in the end is told to stop."""

    def __init__(self, folder: Path, run: Path) -> None:
        self.port, self.temporary = free_port(), folder / "temporary"
        self.temporary.mkdir()
        self.url = f"http://127.0.0.1:{self.port}/"
        args = ["--run", str(run), "--port", str(self.port), "--max-mb", "1", "--max-megapixels", "1"]
        environment = {**ENVIRONMENT, "TMPDIR": str(self.temporary), "GRADIO_SHARE": "True"}  # is not listened to
        self.process = Process("explore.py", *args, cwd=folder, environment=environment)
        deadline = time.monotonic() + 90
        while not self.process.printed() and self.process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)

    def images(self) -> list[Path]:
        """The images that are in temporary files, whatever their names."""
        (folder,) = self.temporary.glob("hybridmerge-explore-*")
        return [path for path in folder.rglob("*") if path.is_file() and path.read_bytes()[:4] in (PNG, JPEG)]

    def ends(self, number: int, code: int) -> None:
        """It ends by a signal without a word, and nothing stays."""
        assert list(self.temporary.iterdir())
        self.process.send_signal(number)
        out, err = self.process.communicate(30)
        assert (self.process.returncode, err) == (code, "")
        assert out == f"vit, run run: {self.url}  (Ctrl-C ends)\n"
        assert not list(self.temporary.iterdir()) and not answers(self.port)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("explore")
    save_colour(folder / "green.png", COLOURS["10"], size=(40, 30))
    (folder / "text.jpg").write_text("Dear reader,\n" * 20)
    (folder / "cut.png").write_bytes((folder / "green.png").read_bytes()[:900])
    Image.fromarray(np.zeros((1001, 1000, 3), np.uint8)).save(folder / "wide.png")
    (folder / "heavy.png").write_bytes(np.random.default_rng(0).bytes(2**20 + 1))
    colour_run(folder / "run", {EVIL: COLOURS["1"], "green": COLOURS["10"], "blue": COLOURS["2"]}, MERGED)
    return folder


@pytest.fixture(scope="module")
def served(folder):
    one = Served(folder, folder / "run")
    with one.process:
        yield one
        one.ends(signal.SIGTERM, 143)


@pytest.fixture(scope="module")
def browser():
    with open_browser() as driver:
        yield driver


@pytest.fixture
def page(browser, served):
    messages(browser), requested(browser)
    browser.get(served.url)
    until(browser, lambda: find(browser, "#budget input[type=range]"))
    yield browser
    assert all(url.startswith(served.url) for url in requested(browser))  # the page needs no network


def find(driver, selector):
    return driver.find_elements("css selector", selector)


def text(driver, selector):
    return [element.text for element in find(driver, selector)]


def upload(driver, file):
    find(driver, "#file input[type=file]")[0].send_keys(str(file))


def regions(driver):
    """The number of tokens that the page says there are."""
    found = re.search(r"(\d+) tokens? of 64 patches", "".join(text(driver, "#regions figcaption")))
    return found and int(found[1])


def costs(driver):
    """GMACs, and milliseconds."""
    shown = text(driver, ".numbers dd")
    return float(shown[0].split()[0]), float(shown[1].split()[0])


def move(driver, key, times=1):
    """Moves the slider by the keys of the keyboard: HOME, END, ARROW_LEFT."""
    from selenium.webdriver.common.keys import Keys

    find(driver, "#budget input[type=range]")[0].send_keys(getattr(Keys, key) * times)


def seen(driver, name):
    """Whether a picture is there, with pixels in it."""
    return driver.execute_script(f"const i = document.querySelector('#{name} img'); return i ? i.naturalWidth : 0") > 99


def source(driver, name):
    return find(driver, f"#{name} img")[0].get_attribute("src")


def test_upload_slider_and_method(page, served, folder):
    upload(page, folder / "green.png")
    until(page, lambda: all(seen(page, name) for name in ("photograph", "regions", "heat")))
    assert "green.png, 40 × 30 pixels" in text(page, "#said")[0]
    assert text(page, ".classes td")[0] == "green" and EVIL in text(page, ".classes td")
    assert regions(page) == 32  # as the run was trained: 16 in each of two blocks
    start, picture, photograph = costs(page), source(page, "regions"), source(page, "photograph")
    move(page, "END")
    until(page, lambda: regions(page) == 64)
    assert costs(page)[0] > start[0] and costs(page)[1] > 0
    assert source(page, "regions") != picture and source(page, "photograph") == photograph
    move(page, "HOME")
    until(page, lambda: regions(page) == 16)  # half of them in each block
    move(page, "END")
    until(page, lambda: regions(page) == 64)
    choose(page, "Merging method", "pitome")
    move(page, "ARROW_LEFT", 30)
    until(page, lambda: re.search(r"\b(69|7[01])\.\d %", text(page, ".numbers dd")[0]))
    assert costs(page)[0] < 0.75 * float(re.search(r"of ([\d.]+) without", text(page, ".numbers dd")[0])[1])
    choose(page, "Heat map", "occlusion")
    until(page, lambda: "occlusion" in text(page, "#heat figcaption")[0])
    assert not served.images() and not find(page, ".toast-body")


def choose(driver, label, value):
    from selenium.webdriver.common.keys import Keys

    field = find(driver, f'input[aria-label="{label}"]')[0]
    field.click()
    field.send_keys(Keys.CONTROL, "a")
    field.send_keys(value, Keys.ENTER)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("text.jpg", "text.jpg: cannot be read (not JPEG, PNG"),
        ("cut.png", "cut.png: cannot be read ("),
        ("wide.png", "wide.png: 1000 x 1001 pixels, more than 1 million; give a smaller image"),
    ],
)
def test_what_is_no_image_is_said_and_the_next_image_is_read(page, served, folder, name, says):
    upload(page, folder / name)
    until(page, lambda: find(page, ".fault"))
    assert text(page, ".fault")[0].startswith(says) and not find(page, "#photograph")
    upload(page, folder / "green.png")
    until(page, lambda: seen(page, "heat"))
    assert not find(page, ".fault") and not served.images()


def test_a_file_that_is_too_large_is_refused(page, served, folder):
    upload(page, folder / "heavy.png")
    until(page, lambda: any("exceed the maximum allowed size of 1" in words for words in text(page, ".toast-body")))
    assert not served.images() and not list(served.temporary.rglob("heavy.png"))


def test_it_listens_to_this_machine_alone(served):
    assert {address for address, port in listening() if port == served.port} == {"0100007F"}  # 127.0.0.1


def listening() -> list[tuple[str, int]]:
    """Addresses and ports that are listened to, as Linux knows them."""
    table = Path("/proc/net/tcp")
    if not table.exists():
        pytest.skip("no /proc/net/tcp")
    rows = [line.split() for line in table.read_text().splitlines()[1:]]
    return [(row[1].split(":")[0], int(row[1].split(":")[1], 16)) for row in rows if row[3] == "0A"]


def test_a_port_that_is_in_use_is_one_line(served, folder):
    done = finish("explore.py", "--run", str(folder / "run"), "--port", str(served.port), cwd=folder)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == f"error: --port {served.port}: in use; give another, or 0 for one that is free\n"


@pytest.mark.slow
def test_it_ends_when_it_is_told_to(folder):
    with tempfile.TemporaryDirectory(dir=folder) as inside:
        served = Served(Path(inside), folder / "run")
        with served.process:
            served.ends(signal.SIGINT, 130)


def test_a_model_and_a_run_do_not_go_together(capsys):
    for args in ([], ["--run", "run", "--model", "timm:x"], ["--model", "timm:x"], ["--run", "run", "--port", "70000"]):
        with pytest.raises(SystemExit, match="2"):
            explore.main(args)
        assert ": error: " in capsys.readouterr().err.splitlines()[-1]
