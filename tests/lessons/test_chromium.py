"""The browser that is here starts; where none is, the message says what to do."""

import pytest

from notebooks.lessons import chromium


@pytest.mark.skipif(bool(chromium.missing()), reason=chromium.missing())
def test_what_is_not_missing_starts_and_shows_a_page():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright, chromium.launch(playwright) as browser:
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


@pytest.mark.parametrize("lacks", ["Playwright", "browser"])
def test_what_is_missing_is_said_with_its_remedy(monkeypatch, tmp_path, lacks):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("PLAYWRIGHT_BROWSERS_PATH", "/nowhere")
    if lacks == "Playwright":
        (tmp_path / "playwright.py").write_text("raise ImportError")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    lack = chromium.missing.__wrapped__()  # without its cache
    if lacks == "Playwright":
        assert "pip install playwright" in lack
    else:  # on a machine where Chrome lies in its usual place, nothing is missing
        assert lack == "" or "no browser: install Chromium, Chrome or Edge" in lack
