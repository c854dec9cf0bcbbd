"""The whole course, with its stored outputs, as one PDF: contents, notebooks, solutions."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from course import build
from helpers import settings
from notebooks.lessons import chromium

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


def pdf(out: Path) -> Path:
    """Print the course on A4, return the file; BrowserError without a browser, RuntimeError if Sphinx complains."""
    if lack := chromium.missing():
        raise chromium.BrowserError(f"The PDF is printed by a browser: {lack}")
    from playwright.sync_api import sync_playwright

    out.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        sync_playwright() as playwright,
        chromium.launch(playwright) as browser,
    ):
        on_paper(browser, single_page(Path(folder))).pdf(
            path=out,
            format="A4",
            print_background=True,
            outline=True,
            tagged=True,
            display_header_footer=True,
            header_template="<span></span>",
            footer_template='<p class="pageNumber" style="font-size: 8px; width: 100%; text-align: center"></p>',
            margin={"top": "16mm", "bottom": "16mm", "left": "15mm", "right": "15mm"},
        )
    return out


def single_page(folder: Path) -> Path:
    """Render the course as one web page; return it."""
    styles = ["course.css", "print.css"]
    choices = {"html_theme": "basic", "html_theme_options": {}, "html_css_files": styles, "html_js_files": []}
    if complaints := build.render({}, folder, builder="singlehtml", **choices):
        raise RuntimeError(f"Sphinx complains: {complaints}")
    return folder / "index.html"


def on_paper(browser: "Browser", page: Path) -> "Page":
    """Open the page as wide as it is printed, so that what is too wide for the paper is found and made smaller."""
    tab = browser.new_page(viewport={"width": 680, "height": 1000})  # of an A4 page between its margins, in CSS pixels
    tab.emulate_media(media="print")
    tab.goto(page.as_uri())
    tab.evaluate((settings.NOTEBOOKS / "_static" / "print.js").read_text(encoding="utf-8"))
    return tab
