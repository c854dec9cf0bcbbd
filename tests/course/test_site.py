"""The site, as the build command makes it of the whole course: links, pictures, widths, colours, search, downloads."""

import re
from html.parser import HTMLParser
from urllib.parse import unquote, urldefrag

import nbformat
import pytest
from courses import NOTEBOOKS

from course import paper
from helpers import settings

LOCAL = ("file:", "data:", "blob:")


class Links(HTMLParser):
    """Collect a page's ids and what it links to or loads."""

    def __init__(self):
        super().__init__()
        self.ids, self.links, self.loaded = set(), [], []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.ids |= {values[key] for key in ("id", "name") if values.get(key)}
        if tag == "a" and values.get("href"):
            self.links.append(values["href"])
        for key in ("src", "href"):
            if values.get(key) and (tag != "a") and values.get("rel") not in ("canonical", "license"):
                self.loaded.append(values[key])


@pytest.fixture(scope="module")
def pages(course):
    """Parse every page."""
    found = {}
    for path in course.site.glob("*.html"):
        found[path.name] = Links()
        found[path.name].feed(path.read_text("utf-8"))
    return found


def test_the_whole_course_builds_without_a_complaint(course, pages):
    assert course.done.returncode == 0, course.done.stdout + course.done.stderr
    assert course.done.stderr == ""
    for path in NOTEBOOKS:
        assert re.search(rf"\[\d+/{len(NOTEBOOKS)}\] {path.stem} … done in \d+ s", course.done.stdout), (
            "no progress line"
        )
        assert re.search(rf"passed  {path.stem}  [\d.]+ s\n", course.done.stdout), "missing from the list at the end"
    assert "kept from" not in course.done.stdout, "nothing can be left of an earlier build"


def test_every_notebook_and_page_is_reached_from_the_front_page(pages):
    """A new notebook or page is taken in by its name alone."""
    written = [path.stem for kind in ("*.ipynb", "*.md") for path in settings.NOTEBOOKS.glob(kind)]
    linked = {urldefrag(link)[0] for link in pages["index.html"].links}
    assert [name for name in written if name != "index" and f"{name}.html" not in linked] == []


def test_pages_link_only_to_what_is_there_and_load_nothing_from_elsewhere(course, pages):
    for name, page in pages.items():
        outside = [link for link in page.loaded if re.match(r"(https?:)?//", link)]
        assert outside == [], f"{name} would ask the network for {outside}"
        for link in page.links + page.loaded:
            if re.match(r"(https?:|mailto:|data:|javascript:)", link):
                continue
            target, anchor = urldefrag(link)
            target = unquote(target.split("?")[0]) or name
            assert (course.site / target).exists(), f"{name} points to {target}, which is not there"
            if anchor and target in pages:
                assert unquote(anchor) in pages[target].ids, f"{name} points to {link}, and there is no such place"


@pytest.fixture
def tab(browser):
    """Open a tab; its list ``trouble`` collects errors and what it asks the network for."""
    tab = browser.new_page()
    tab.trouble = []
    tab.on("console", lambda message: tab.trouble.append(message.text) if message.type == "error" else None)
    tab.on("pageerror", lambda error: tab.trouble.append(str(error)))
    tab.on("request", lambda asked: tab.trouble.append(asked.url) if not asked.url.startswith(LOCAL) else None)
    yield tab
    tab.close()


@pytest.mark.browser
def test_the_error_labs_field_answers_on_its_page(course, tab):
    tab.goto((course.site / "13_error_lab.html").as_uri())
    tab.fill(".error-search textarea", "No Op registered for GridSample with domain_version of 11")
    assert tab.locator(".error-search p").count() == 2
    assert not tab.trouble


# The texts of table cells that hardly differ from what lies behind them: a contrast below 4.5, as WCAG counts it.
PALE_CELLS = """() => {
    const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
    const light = (colour) => numbers(colour).slice(0, 3).map((part) => part / 255)
        .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
        .reduce((sum, part, i) => sum + part * [0.2126, 0.7152, 0.0722][i], 0);
    const behind = (one) => {
        for (; one; one = one.parentElement) {
            const colour = getComputedStyle(one).backgroundColor;
            if ((numbers(colour)[3] ?? 1) > 0.5) return colour;
        }
        return "rgb(255, 255, 255)";
    };
    return Array.from(document.querySelectorAll("td, th")).filter((cell) => {
        const [a, b] = [light(getComputedStyle(cell).color), light(behind(cell))];
        return cell.innerText.trim() && (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05) < 4.5;
    }).map((cell) => cell.innerText);
}"""


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("screen", paper.SCREENS)
def test_pages_open_without_network_error_or_missing_picture(course, tab, screen, scheme):
    tab.set_viewport_size({"width": paper.SCREENS[screen], "height": 844})
    tab.emulate_media(color_scheme=scheme)
    for page in sorted(course.site.glob("*.html")):
        tab.goto(page.as_uri())
        broken = tab.evaluate("Array.from(document.images).filter((one) => !one.naturalWidth).map((one) => one.src)")
        nameless = tab.evaluate("Array.from(document.images).filter((one) => !one.alt).map((one) => one.src)")
        assert (broken, nameless, tab.trouble) == ([], [], []), page.name
        wide = tab.evaluate("Math.max(document.scrollingElement.scrollWidth, document.body.scrollWidth) - innerWidth")
        assert wide <= 1, f"{page.name} is {wide} px wider than the {screen}"
        assert tab.evaluate("document.documentElement.dataset.theme") == scheme, f"{page.name} is not {scheme}"
        pale = tab.evaluate(PALE_CELLS)
        assert not pale, f"{page.name}, {scheme}: {len(pale)} cells of tables cannot be read: {pale[:5]}"


@pytest.mark.browser
def test_a_search_finds_the_notebook_and_a_hidden_source_opens(course, tab):
    tab.goto((course.site / "search.html").as_uri() + "?q=quantization")
    tab.wait_for_selector("#search-results ul.search li a[href*='10_int8_quantization']", state="visible")
    tab.goto((course.site / "search.html").as_uri() + "?q=brontosaurus")
    tab.wait_for_function("document.querySelector('.search-summary')?.innerText.includes('did not match')")
    assert tab.locator("#search-results ul.search li").count() == 0
    tab.goto((course.site / "04_speed_resnet18.html").as_uri())
    folded = tab.locator(".tag_hide-input details:not([open])")
    folded.first.locator("summary").click()  # a hidden source is one click away
    assert tab.locator(".tag_hide-input details[open] pre").first.is_visible()
    assert tab.trouble == []


def test_notebooks_can_be_downloaded_and_the_cat_is_named_in_two_languages(course, pages):
    for path in NOTEBOOKS:
        downloads = [link for link in pages[f"{path.stem}.html"].links if link.endswith(".ipynb")]
        assert downloads, f"{path.stem}.html offers no notebook"
        nbformat.validate(nbformat.read(course.site / downloads[0], as_version=4))
    page = (course.site / "03_single_image_inference.html").read_text("utf-8")
    assert "tabby" in page and "虎斑猫" in page
