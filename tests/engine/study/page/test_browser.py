"""The page in a real browser: no errors, no requests; figure, hover, choice of the cost, sorting and filtering."""

from __future__ import annotations

import pytest

from engine.study.page.page import write_page
from tests.browser import emulate, messages, open_browser, open_file, requested, until
from tests.engine.study.page.made_points import EVIL, points

MARKS = "#chart g.mark-symbol.role-mark path"
DRAWN = f"#chart.vega-embed svg, {MARKS}"


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    made = tmp_path_factory.mktemp("page") / "page.html"
    write_page(points(), made, command=f"tools/compare.py {EVIL}", plan=EVIL, title=EVIL)
    return made


@pytest.fixture(scope="module")
def started():
    with open_browser() as driver:
        yield driver


@pytest.fixture
def driver(started, file):
    emulate(started)
    messages(started), requested(started)
    open_file(started, file, "#chart.vega-embed svg")
    yield started
    assert messages(started) == [] and set(requested(started)) == {file.as_uri()}


def find(driver, selector):
    return driver.find_elements("css selector", selector)


def names(driver):
    """The names of the visible rows, from top to bottom."""
    return [head.text for head in find(driver, "#rows tbody th") if head.is_displayed()]


def head(driver, key):
    return find(driver, f'#rows th[data-key="{key}"]')[0]


def choose(driver, selector, text):
    from selenium.webdriver.support.ui import Select

    Select(find(driver, selector)[0]).select_by_visible_text(text)


def test_figure_is_drawn(driver):
    svg = find(driver, "#chart svg")[0]
    assert svg.size["width"] > 900 and svg.size["height"] > 300
    marks = find(driver, MARKS)
    assert len(marks) == 4 and all(mark.size["width"] > 5 for mark in marks)  # one of the five rows has no GMACs
    # Rows with several seeds have a bar unless their scores are equal, where it has no length.
    bars = [bar.size["height"] for bar in find(driver, "#chart g.mark-rule.role-mark line")]
    assert len(bars) == 3 and sorted(height > 1 for height in bars) == [False, True, True]
    lines = find(driver, "#chart g.mark-line.role-mark path")
    assert len(lines) == 2  # the front and the budgets
    assert "1 row without GMACs" in find(driver, "#missing")[0].text


def test_hover_shows_the_numbers(driver):
    from selenium.webdriver import ActionChains

    by_height = sorted(find(driver, MARKS), key=lambda mark: mark.rect["y"])
    ActionChains(driver).move_to_element(by_height[0]).perform()
    tooltip = until(driver, lambda: find(driver, "#vg-tooltip-element.visible"))[0]
    for text in ("hybrid r=2", "91.00 ± 1.41 %", "tome", "r = 2", "10.2000", "100.000"):
        assert text in tooltip.text, tooltip.text
    ActionChains(driver).move_to_element(by_height[2]).perform()
    until(driver, lambda: EVIL in tooltip.text)  # as text
    assert not find(driver, "#vg-tooltip-element script")


def test_choice_of_the_cost(driver):
    assert "GMACs" in find(driver, "#chart svg")[0].text
    before = [mark.rect["x"] for mark in find(driver, MARKS)]
    choose(driver, "#axis", "parameters, M")
    until(driver, lambda: "parameters, M" in find(driver, "#chart svg")[0].text)
    marks = find(driver, MARKS)
    assert len(marks) == 5 and [mark.rect["x"] for mark in marks[:4]] != before
    assert find(driver, "#missing")[0].text == ""


def test_legend_fades_the_others(driver):
    from selenium.webdriver import ActionChains

    def faded():
        return [mark.get_attribute("opacity") for mark in find(driver, MARKS)]

    assert faded() == ["1"] * 4
    entry = next(entry for entry in find(driver, "#chart .role-legend-label text") if entry.text == "hybrid")
    ActionChains(driver).click(entry).perform()
    until(driver, lambda: faded() == ["1", "1", "1", "0.15"])


def test_sorts_numbers_as_numbers(driver):
    button = head(driver, "gmacs").find_element("css selector", "button")
    button.click()
    assert names(driver) == ["hybrid r=8", "hybrid r=4", EVIL, "hybrid r=2", "uncounted"]
    assert head(driver, "gmacs").get_attribute("aria-sort") == "ascending"
    button.send_keys("\ue007")  # Enter: the other direction, and what is not known stays last
    assert names(driver) == ["hybrid r=2", EVIL, "hybrid r=4", "hybrid r=8", "uncounted"]
    assert head(driver, "gmacs").get_attribute("aria-sort") == "descending"
    head(driver, "score_percent").find_element("css selector", "button").click()
    assert names(driver) == ["hybrid r=8", EVIL, "hybrid r=4", "hybrid r=2", "uncounted"]
    assert head(driver, "gmacs").get_attribute("aria-sort") is None


def test_filters(driver):
    field = find(driver, "#filter")[0]
    field.send_keys("TOME r=4")
    assert names(driver) == ["hybrid r=4"] and find(driver, "#count")[0].text == "1 of 5 rows"
    field.clear()
    field.send_keys("zzz")
    assert names(driver) == []
    field.clear()
    field.send_keys(" ")
    assert len(names(driver)) == 5 and find(driver, "#count")[0].text == "5 rows"
    choose(driver, 'select[data-key="merging"]', "-")
    assert names(driver) == [EVIL, "uncounted"]
    choose(driver, 'select[data-key="model"]', EVIL)
    assert names(driver) == [EVIL]


def test_names_are_text(driver):
    assert find(driver, "h1")[0].text == EVIL and driver.title == EVIL
    assert names(driver)[3] == EVIL
    assert len(find(driver, "script")) == 4  # two of data, Vega, and the page's own: an alert would fail every command


@pytest.mark.parametrize("width", [360, 1280])
def test_fits_the_window(driver, width):
    emulate(driver, width=width)
    until(driver, lambda: find(driver, "#chart svg")[0].size["width"] <= width)
    wide, available = driver.execute_script(
        "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    assert wide <= available <= width
    until(driver, lambda: len(find(driver, MARKS)) == 4)


def test_light_and_dark(driver):
    def colours():
        body = find(driver, "body")[0]
        label = find(driver, "#chart g.role-axis-label text")[0]
        return body.value_of_css_property("background-color"), label.value_of_css_property("fill")

    light = colours()
    emulate(driver, dark=True)
    dark = colours()
    assert light[0] == "rgba(255, 255, 255, 1)" and dark[0] != light[0]
    assert _brightness(light[1]) < 100 and _brightness(dark[1]) > 200


def _brightness(colour: str) -> float:
    return sum(map(float, colour.partition("(")[2].rstrip(")").split(",")[:3])) / 3


def test_the_page_may_request_nothing(driver):
    """The page's own policy refuses requests, whatever a library of it may try."""
    driver.execute_async_script("fetch('http://127.0.0.1:9/').then(arguments[0], arguments[0])")
    refused = messages(driver)
    assert refused and all("Content Security Policy" in line for line in refused), refused
    requested(driver)
    driver.refresh()
