"""The pictures of the documentation: a report as a page (wide, narrow, light, dark) and its first sheet.

`python docs/render.py report.html` writes docs/img/report-*.png with the system's chromium, driven by
Playwright, and docs/img/sheet.png with Pillow; `--compare compare.html` the same of that page. Without chromium the
pictures stay as they are. `--sheet docs/img/NAME.png` writes one picture only: the first two pairs of every sheet.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from base64 import b64decode
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

HERE = Path(__file__).parent
WIDTHS = (1280, 390)
SCHEMES = ("light", "dark")
# Nothing may reach out: the picture must depend on the file alone.
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run",
    "--disable-component-update", "--disable-sync", "--disable-quic",
]  # fmt: skip


class Sheets(HTMLParser):
    """Collects the embedded images of a report: one list of (base, edited) per sheet."""

    def __init__(self) -> None:
        super().__init__()
        self.sheets: list[list[list[Image.Image]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if values.get("class") == "sheet":
            self.sheets.append([])
        elif tag == "figure" and self.sheets:
            self.sheets[-1].append([])
        elif tag == "img" and self.sheets and (values.get("src") or "").startswith("data:image/png;base64,"):
            data = b64decode((values["src"] or "").partition(",")[2])
            self.sheets[-1][-1].append(Image.open(BytesIO(data)).convert("RGB"))


def small(picture: Image.Image, path: Path) -> None:
    """A PNG of 256 colours: a third of the bytes, which every clone carries."""
    picture.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def pages(source: Path, name: str, out: Path, height: int) -> list[Path]:
    """Screenshots `name`-WIDTH-SCHEME.png of a page, at most `height` pixels tall."""
    browser_path = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser_path is None:
        print("expected the system's chromium, found none; install it; the pages stay as they are")
        return []
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        print("expected the package playwright, found none; install efface[dev]; the pages stay as they are")
        return []
    written = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=FLAGS)
        for width in WIDTHS:
            for scheme in SCHEMES:
                page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
                page.goto(source.resolve().as_uri())
                tall = min(int(page.evaluate("document.documentElement.scrollHeight")), height)
                path = out / f"{name}-{width}-{scheme}.png"
                area = page.screenshot(full_page=True, clip={"x": 0, "y": 0, "width": width, "height": tall})
                small(Image.open(BytesIO(area)), path)
                page.close()
                written.append(path)
        browser.close()
    return written


def sheet(report: Path, path: Path, each: bool = False, across: int = 10, size: int = 128) -> Path | None:
    """One picture, the base model's images above the edited one's: the first two sheets of the report, or with `each`
    the first two pairs of every sheet."""
    parser = Sheets()
    parser.feed(report.read_text(encoding="utf-8"))
    whole = [[pair for pair in pairs if len(pair) == 2] for pairs in parser.sheets]
    rows = [list(row) for row in zip(*(w[:2] for w in whole if len(w) > 1), strict=True)] if each else whole[:2]
    rows = [row[:across] for row in rows if row]
    if not rows:
        print("expected a report with sheets, found none; the contact sheet stays as it is")
        return None
    gap, margin, font = 4, 64, ImageFont.load_default(13)
    band = 2 * size + gap + 20
    columns = max(len(row) for row in rows)
    picture = Image.new("RGB", (margin + columns * (size + gap) - gap, len(rows) * band - 20), "white")
    draw = ImageDraw.Draw(picture)
    for r, row in enumerate(rows):
        for line, label in enumerate(("base", "edited")):
            top = r * band + line * (size + gap)
            draw.text((margin - 10, top + size // 2), label, fill="#444444", font=font, anchor="rm")
            for c, pair in enumerate(row):
                enlarged = max(pair[line].size) < size
                how = Image.Resampling.NEAREST if enlarged else Image.Resampling.LANCZOS
                picture.paste(pair[line].resize((size, size), how), (margin + c * (size + gap), top))
    small(picture, path)
    return path


def main() -> int:
    parser = argparse.ArgumentParser(description="Draws the pictures of the documentation from a report.")
    parser.add_argument("report", type=Path, help="a report.html")
    parser.add_argument("--compare", type=Path, help="a compare.html")
    parser.add_argument("--sheet", type=Path, metavar="FILE", help="write only this picture of every sheet")
    parser.add_argument("--out", type=Path, default=HERE / "img", help="folder of the pictures")
    parser.add_argument("--height", type=int, default=2400, help="cut pages at this many pixels")
    options = parser.parse_args()
    sources = {"report": options.report} | ({"compare": options.compare} if options.compare else {})
    for source in sources.values():
        if not source.is_file():
            print(f"expected a page, found nothing at {source}; run `efface audit` or `efface compare` first")
            return 2
    if options.sheet:
        print(sheet(options.report, options.sheet, each=True))
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    drawn = [p for name, source in sources.items() for p in pages(source, name, options.out, options.height)]
    for path in [sheet(options.report, options.out / "sheet.png", across=8), *drawn]:
        if path is not None:
            print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
