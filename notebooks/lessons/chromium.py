"""Start a browser without a window: Chromium, Chrome or Edge, whichever is installed.

Used in notebooks/11_one_file_many_engines.ipynb, which drives a page with it, and by the PDF, the pictures and tests.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

from helpers import settings

if TYPE_CHECKING:  # Playwright is needed only to drive a page, and this module is also imported without it
    from playwright.sync_api import Browser, Playwright

QUIET = ["--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync"]


class BrowserError(RuntimeError):
    """A browser could not be started or driven; the message says why and what to do."""


@cache
def missing() -> str:
    """Return what is lacking to drive a browser, "" if nothing; found out by starting one, in another process."""
    command = [sys.executable, "-m", "notebooks.lessons.chromium"]
    tried = subprocess.run(command, cwd=settings.ROOT, capture_output=True, text=True, timeout=60, check=False)
    return "" if tried.returncode == 0 else (tried.stderr.strip().splitlines() or [f"exit code {tried.returncode}"])[-1]


def launch(playwright: "Playwright") -> "Browser":
    """Start the first browser that starts: the system's Chromium, Playwright's own, Chrome, Edge.

    Args:
        playwright: what ``playwright.sync_api.sync_playwright`` gives.
    Raises:
        BrowserError: if none starts.
    """
    from playwright.sync_api import Error

    # A browser's sandbox refuses to run for the root user, whom containers often have.
    as_root = ["--no-sandbox"] if getattr(os, "geteuid", lambda: 1)() == 0 else []
    why = ""
    for place in _places():
        try:
            return playwright.chromium.launch(args=[*QUIET, *as_root], **place)
        except Error as error:
            why = error.message.splitlines()[0]
    raise BrowserError(f"no browser: install Chromium, Chrome or Edge, or run: playwright install chromium ({why})")


def _places() -> Iterator[dict[str, Any]]:
    yield from ({"executable_path": path} for name in ("chromium", "chromium-browser") if (path := shutil.which(name)))
    yield {}  # what `playwright install chromium` fetched
    yield from ({"channel": channel} for channel in ("chrome", "msedge"))  # Playwright knows where they lie


if __name__ == "__main__":
    try:
        from playwright.sync_api import sync_playwright

        with sync_playwright() as started, launch(started):
            pass
    except ImportError:
        sys.exit("Playwright is not installed: python -m pip install playwright")
    except BrowserError as error:
        sys.exit(str(error))
