"""Pictures of the site's pages and of every plot, to proofread by eye.

Nothing here is taught in a notebook; ``python -m helpers pictures`` and the tests use it.
"""

import base64
import itertools
import shutil
from pathlib import Path

from helpers import chromium
from helpers.course import notebooks

SCREENS = {"desktop": 1280, "phone": 390}  # widths in CSS pixels
STRIP = 3000  # height of one picture of a long page, in CSS pixels; browsers draw nothing above about 16,000


def pictures(site: Path, out: Path) -> list[Path]:
    """Take pictures of every page of the site, at desktop and phone width, light and dark, and of every plot.

    Args:
        site: the folder of a built site.
        out: the folder for the pictures; what an earlier run left there goes.
    Returns:
        The pictures: strips of the pages, ``NAME-desktop-dark-02.png``, and the stored plots, ``NAME-plot-01.png``.
    Raises:
        FileNotFoundError: if there is no site.
        BrowserError: if there is no browser.
    """
    pages = sorted(site.glob("*.html"))
    if not pages:
        raise FileNotFoundError(f"There is no site in {site}: python -m helpers build makes one.")
    if lack := chromium.missing():
        raise chromium.BrowserError(f"Pictures of pages are taken by a browser: {lack}")
    from playwright.sync_api import sync_playwright

    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    taken = []
    with sync_playwright() as playwright, chromium.launch(playwright) as browser:
        for (screen, width), scheme in itertools.product(SCREENS.items(), ("light", "dark")):
            tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
            for page in pages:
                tab.goto(page.as_uri())
                height = tab.evaluate("document.documentElement.scrollHeight")
                for number, top in enumerate(range(0, height, STRIP), start=1):
                    taken.append(out / f"{page.stem}-{screen}-{scheme}-{number:02d}.png")
                    strip = {"x": 0, "y": top, "width": width, "height": min(STRIP, height - top)}
                    tab.screenshot(path=taken[-1], full_page=True, clip=strip)
    for path in notebooks.notebooks():
        outputs = [output for cell in notebooks.read(path).cells for output in cell.get("outputs", ())]
        plots = [
            (kind, output.data[f"image/{kind}"])
            for output in outputs
            for kind in ("png", "jpeg")
            if f"image/{kind}" in output.get("data", {})
        ]
        for number, (kind, plot) in enumerate(plots, start=1):
            taken.append(out / f"{path.stem}-plot-{number:02d}.{kind}")
            taken[-1].write_bytes(base64.b64decode(plot))
    return taken
