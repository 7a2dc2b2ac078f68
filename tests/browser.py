"""A real browser without a network, for the tests and the benchmark of reports."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import Chrome, ChromeOptions, ChromeService

OFFLINE = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}


@contextmanager
def chromium(*, scripts: bool = True) -> Iterator[Chrome]:
    """Debian's Chromium, with the network off; the test is skipped where it is not installed."""
    binary = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("no browser: apt-get install chromium chromium-driver")
    options = ChromeOptions()
    options.binary_location = binary
    for argument in ("headless=new", "no-sandbox", "disable-gpu", "host-resolver-rules=MAP * ~NOTFOUND"):
        options.add_argument(f"--{argument}")
    if not scripts:
        options.add_experimental_option("prefs", {"profile.managed_default_content_settings.javascript": 2})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = Chrome(options, ChromeService(driver))
    try:
        browser.set_window_size(1200, 900)
        browser.execute_cdp_cmd("Network.enable", {})
        browser.execute_cdp_cmd("Network.emulateNetworkConditions", OFFLINE)
        yield browser
    finally:
        browser.quit()


def show(browser: Chrome, page: str, path: Path) -> None:
    """Write `page` to `path` and open it from there."""
    path.write_text(page, encoding="utf-8")
    browser.get(path.as_uri())


def script(browser: Chrome, text: str) -> Any:
    """What JavaScript returns in the page."""
    return browser.execute_script(text)


def console(browser: Chrome) -> list[str]:
    """What the page complained of since the last time."""
    return [str(entry["message"]) for entry in browser.get_log("browser")]  # type: ignore[no-untyped-call]
