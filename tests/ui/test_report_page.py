"""The report as a reader sees it: in the system's chromium, offline."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from efface.report.page import write
from efface.scores.tables import Loss, Rate, Row, Table
from small_report import report

pytestmark = pytest.mark.ui
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture
def page_file(tmp_path: Path) -> Path:
    cell, lost = Rate(3, 4, 0.75, 0.3, 0.95), Loss(0.0, -0.3, 0.3, 1.0, 0)
    row = Row("a rather long name of a concept", "ok", "", "", 4, cell, cell, lost, cell, cell)
    table = Table("target", "Targets", "down", (row,), row)
    return write(report("v", tables=(table,)), tmp_path, lambda key: b"")


@pytest.mark.skipif(CHROMIUM is None, reason="needs the system's chromium (Debian package chromium)")
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_never_scrolls_sideways_and_asks_the_network_for_nothing(page_file: Path, width: int, scheme: str) -> None:
    from playwright.sync_api import sync_playwright

    asked: list[str] = []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)  # pyright: ignore
        page.on("request", lambda request: asked.append(request.url))
        page.goto(page_file.as_uri())
        wide = page.evaluate("document.documentElement.scrollWidth")
        browser.close()
    assert wide <= width
    assert asked == [page_file.as_uri()]
