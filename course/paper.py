"""What a browser makes of the course: one PDF of all, and pictures of the site's pages, to proofread by eye."""

import contextlib
import itertools
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from course import build
from helpers import settings
from notebooks.lessons import chromium

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
SCREENS = {"desktop": 1280, "phone": 390}  # widths in CSS pixels
STRIP = 3000  # height of one picture of a long page, in CSS pixels; browsers draw nothing above about 16,000
PAGE_NUMBER = '<p class="pageNumber" style="font-size: 8px; width: 100%; text-align: center"></p>'


@contextlib.contextmanager
def browser() -> Iterator["Browser"]:
    """Start a browser for a while; BrowserError where there is none."""
    if lack := chromium.missing():
        raise chromium.BrowserError(f"This needs a browser: {lack}")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright, chromium.launch(playwright) as running:
        yield running


def pdf(out: Path) -> Path:
    """Print the course, with its stored outputs, on A4; return the file; RuntimeError if Sphinx complains."""
    out.parent.mkdir(parents=True, exist_ok=True)
    margins = {"top": "16mm", "bottom": "16mm", "left": "15mm", "right": "15mm"}
    look: dict[str, Any] = {"format": "A4", "print_background": True, "outline": True, "tagged": True}
    look |= {"display_header_footer": True, "header_template": "<span></span>", "footer_template": PAGE_NUMBER}
    with browser() as running, tempfile.TemporaryDirectory() as folder:
        on_paper(running, single_page(Path(folder))).pdf(path=out, margin=margins, **look)  # type: ignore[arg-type]
    return out


def single_page(folder: Path) -> Path:
    """Render the course as one web page; return it."""
    styles = ["course.css", "print.css"]
    choices = {"html_theme": "basic", "html_theme_options": {}, "html_css_files": styles, "html_js_files": []}
    if complaints := build.render({}, folder, builder="singlehtml", **choices):
        raise RuntimeError(f"Sphinx complains: {complaints}")
    return folder / "index.html"


def on_paper(running: "Browser", page: Path) -> "Page":
    """Open the page as wide as it is printed, so that what is too wide for the paper is found and made smaller."""
    tab = running.new_page(viewport={"width": 680, "height": 1000})  # of an A4 page between its margins, in CSS pixels
    tab.emulate_media(media="print")
    tab.goto(page.as_uri())
    tab.evaluate((settings.NOTEBOOKS / "_static" / "print.js").read_text(encoding="utf-8"))
    return tab


def pictures(site: Path, out: Path) -> list[Path]:
    """Take pictures of every page of the site, at desktop and phone width, light and dark.

    They replace what is in ``out``: strips of the pages, ``NAME-desktop-dark-02.png``.
    """
    pages = sorted(site.glob("*.html"))
    if not pages:
        raise FileNotFoundError(f"There is no site in {site}: python -m course build makes one.")
    taken = []
    with browser() as running:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        for (screen, width), scheme in itertools.product(SCREENS.items(), SCHEMES):
            tab = running.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
            for page in pages:
                tab.goto(page.as_uri())
                height = tab.evaluate("document.documentElement.scrollHeight")
                for number, top in enumerate(range(0, height, STRIP), start=1):
                    taken.append(out / f"{page.stem}-{screen}-{scheme}-{number:02d}.png")
                    strip: Any = {"x": 0, "y": top, "width": width, "height": min(STRIP, height - top)}
                    tab.screenshot(path=taken[-1], full_page=True, clip=strip)
    return taken
