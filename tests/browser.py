"""The distribution's Chromium without a window, for tests of pages. It finds no host but this one,
so that nothing is downloaded."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "--headless=new",
    "--no-sandbox",  # root has none
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-background-networking",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--window-size=1280,900",
)


@contextmanager
def open_browser() -> Iterator[Any]:
    """Starts the browser. Where there is none the tests are skipped, except on a server that sets CI=true: there they
    fail."""
    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if None in programs:
        reason = "no chromium and chromedriver; on Debian: apt install chromium chromium-driver"
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(programs[1]))
    try:
        yield driver
    finally:
        driver.quit()


def messages(driver: Any) -> list[str]:
    """What pages wrote to the browser's log since the last call: scripts' errors and warnings, refused requests."""
    return [entry["message"] for entry in driver.get_log("browser")]


def requested(driver: Any) -> list[str]:
    """The addresses that pages requested since the last call, without those whose content is in the address."""
    entries = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    sent = [entry["params"] for entry in entries if entry["method"] == "Network.requestWillBeSent"]
    return [url for one in sent if not (url := one["request"]["url"]).startswith(("data:", "blob:"))]


def open_file(driver: Any, file: Path, wait_for: str) -> None:
    """Opens a file and waits until something matches a CSS selector."""
    driver.get(file.as_uri())
    until(driver, lambda: driver.find_elements("css selector", wait_for))


def until(driver: Any, true: Any) -> Any:
    """Waits until a function returns something true, and returns it. Elements may be replaced meanwhile."""
    from selenium.common.exceptions import StaleElementReferenceException
    from selenium.webdriver.support.ui import WebDriverWait

    replaced = (StaleElementReferenceException, IndexError)
    return WebDriverWait(driver, 30, ignored_exceptions=replaced).until(lambda _: true())


def emulate(driver: Any, *, width: int = 1280, dark: bool = False) -> None:
    """Sets the width of the window, pixels, and whether the system prefers dark pages."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
