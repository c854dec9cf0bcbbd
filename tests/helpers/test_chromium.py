"""helpers/chromium.py: the browser that is here starts; where none is, the message says what to do."""

import pytest

from notebooks.lessons import chromium


@pytest.fixture(autouse=True)
def forget():
    """Ask anew in each test, and let the other tests ask anew after these."""
    chromium.missing.cache_clear()
    yield
    chromium.missing.cache_clear()


@pytest.mark.skipif(bool(chromium.missing()), reason=chromium.missing())
def test_what_is_not_missing_starts_and_shows_a_page():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright, chromium.launch(playwright, flags=["--lang=de"]) as browser:
        page = browser.new_page()
        page.set_content("<title>Here</title>")
        assert page.title() == "Here"


def test_a_command_that_does_not_start_is_passed_over(monkeypatch, tmp_path):
    from playwright.sync_api import sync_playwright

    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(chromium, "_places", lambda: iter([{"executable_path": str(broken)}, {"channel": "no-such"}]))
    with sync_playwright() as playwright, pytest.raises(chromium.BrowserError, match="no browser: install Chromium"):
        chromium.launch(playwright)


def test_what_is_missing_is_said_with_its_remedy(monkeypatch):
    monkeypatch.setattr(chromium, "find_spec", lambda name: None)
    assert "pip install playwright" in chromium.missing()
    chromium.missing.cache_clear()
    monkeypatch.undo()
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("PLAYWRIGHT_BROWSERS_PATH", "/nowhere")
    lack = chromium.missing()  # on a machine where Chrome lies in its usual place, nothing is
    assert lack == "" or "no browser: install Chromium, Chrome or Edge" in lack
