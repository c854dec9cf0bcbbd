"""Pictures of the site's pages, to proofread by eye."""

import itertools
import shutil
from pathlib import Path
from typing import Any, Literal

from notebooks.lessons import chromium

SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
SCREENS = {"desktop": 1280, "phone": 390}  # widths in CSS pixels
STRIP = 3000  # height of one picture of a long page, in CSS pixels; browsers draw nothing above about 16,000


def pictures(site: Path, out: Path) -> list[Path]:
    """Take pictures of every page of the site, at desktop and phone width, light and dark.

    They replace what is in ``out``: strips of the pages, ``NAME-desktop-dark-02.png``.
    """
    pages = sorted(site.glob("*.html"))
    if not pages:
        raise FileNotFoundError(f"There is no site in {site}: python -m course build makes one.")
    if lack := chromium.missing():
        raise chromium.BrowserError(f"Pictures of pages are taken by a browser: {lack}")
    from playwright.sync_api import sync_playwright

    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    taken = []
    with sync_playwright() as playwright, chromium.launch(playwright) as browser:
        for (screen, width), scheme in itertools.product(SCREENS.items(), SCHEMES):
            tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
            for page in pages:
                tab.goto(page.as_uri())
                height = tab.evaluate("document.documentElement.scrollHeight")
                for number, top in enumerate(range(0, height, STRIP), start=1):
                    taken.append(out / f"{page.stem}-{screen}-{scheme}-{number:02d}.png")
                    strip: Any = {"x": 0, "y": top, "width": width, "height": min(STRIP, height - top)}
                    tab.screenshot(path=taken[-1], full_page=True, clip=strip)
    return taken
