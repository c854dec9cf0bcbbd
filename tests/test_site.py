"""The build command: the whole course at quick effort as a site, and what it says when a notebook fails."""

import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from urllib.parse import unquote, urldefrag

import nbformat
import pytest

from helpers import browser, course, settings

LOCAL = ("file:", "data:", "blob:")


def build(root, *options, **environment):
    """Run the build command in a copy of the course; return the finished process."""
    return subprocess.run(
        [sys.executable, "-m", "helpers", "build", "--effort", "quick", *options],
        cwd=root,
        env={**os.environ, "COURSE_WEIGHTS": "stand-in", **environment},
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )


def copy_course(target, *, notebooks):
    """Copy what the build command needs."""
    no_outputs = shutil.ignore_patterns("exports", "__pycache__", ".ipynb_checkpoints")
    for name in ("helpers", "data", "notebooks"):
        shutil.copytree(settings.ROOT / name, target / name, ignore=no_outputs)
    if not notebooks:
        for path in (target / "notebooks").glob("*.ipynb"):
            path.unlink()
    return target


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
def site(tmp_path_factory):
    """Build the whole course once; return the process and the site's folder."""
    root = copy_course(tmp_path_factory.mktemp("course"), notebooks=True)
    for path in (root / "notebooks").glob("*.ipynb"):  # without outputs, so that stored ones cannot pass for new
        book = course.read(path)
        for cell in book.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
        course.write(path, book)
    return build(root), root / "_build" / "html"


@pytest.fixture(scope="module")
def pages(site):
    """Parse every page."""
    found = {}
    for path in site[1].glob("*.html"):
        found[path.name] = Links()
        found[path.name].feed(path.read_text("utf-8"))
    return found


def test_the_whole_course_builds_without_a_complaint(site):
    done, folder = site
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    books = [path.stem for path in course.notebooks()]
    for number, name in enumerate(books, start=1):
        assert re.search(rf"\[{number}/{len(books)}\] {name} … done in \d+ s", done.stdout), "no progress line"
        assert re.search(rf"passed  {name}  [\d.]+ s", done.stdout), "missing from the list at the end"
        assert (folder / f"{name}.html").exists()


def test_pages_link_only_to_what_is_there(site, pages):
    folder = site[1]
    for name, page in pages.items():
        for link in page.links + page.loaded:
            if re.match(r"(https?:|mailto:|data:|javascript:)", link):
                continue
            target, anchor = urldefrag(link)
            target = unquote(target.split("?")[0]) or name
            assert (folder / target).exists(), f"{name} points to {target}, which is not there"
            if anchor and target in pages:
                assert unquote(anchor) in pages[target].ids, f"{name} points to {link}, and there is no such place"


def test_pages_load_nothing_from_elsewhere(pages):
    for name, page in pages.items():
        outside = [link for link in page.loaded if re.match(r"(https?:)?//", link)]
        assert outside == [], f"{name} would ask the network for {outside}"


@pytest.mark.skipif(bool(browser.missing_browser()), reason=browser.missing_browser())
def test_pages_open_in_a_browser_without_network_error_or_missing_picture(site):
    from playwright.sync_api import sync_playwright

    folder, trouble = site[1], []
    with sync_playwright() as playwright, browser.launch(playwright) as chromium:
        tab = chromium.new_page(viewport={"width": 390, "height": 844})  # a phone: nothing may stick out
        tab.on("console", lambda message: trouble.append(message.text) if message.type == "error" else None)
        tab.on("pageerror", lambda error: trouble.append(str(error)))
        tab.on("request", lambda asked: trouble.append(asked.url) if not asked.url.startswith(LOCAL) else None)
        for page in sorted(folder.glob("*.html")):
            tab.goto(page.as_uri())
            broken = tab.evaluate(
                "Array.from(document.images).filter((one) => !one.naturalWidth).map((one) => one.src)"
            )
            nameless = tab.evaluate("Array.from(document.images).filter((one) => !one.alt).map((one) => one.src)")
            wide = tab.evaluate("document.scrollingElement.scrollWidth - innerWidth")
            assert (broken, nameless, trouble) == ([], [], []), page.name
            assert wide <= 1, f"{page.name} is {wide} px wider than a phone"


def test_notebooks_can_be_downloaded_and_searched(site, pages):
    folder = site[1]
    index = (folder / "searchindex.js").read_text("utf-8")
    for path in course.notebooks():
        downloads = [link for link in pages[f"{path.stem}.html"].links if link.endswith(".ipynb")]
        assert downloads, f"{path.stem}.html offers no notebook"
        nbformat.validate(nbformat.read(folder / downloads[0], as_version=4))
        assert path.stem in index


def test_the_cat_is_named_on_the_page(site):
    page = (site[1] / "03_single_image_inference.html").read_text("utf-8")
    assert "tabby" in page and "虎斑猫" in page
    assert "STAND-IN" in page


def small_notebook(path, *code):
    cells = [nbformat.v4.new_markdown_cell(f"# {path.name[:2]} · Small\n\n**Small?**")]
    cells += map(nbformat.v4.new_code_cell, code)
    book = nbformat.v4.new_notebook(cells=cells)
    book.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    course.write(path, book)


@pytest.fixture
def small_site(tmp_path):
    """A course of two notebooks that run in a moment."""
    root = copy_course(tmp_path / "course", notebooks=False)
    small_notebook(root / "notebooks" / "00_counts.ipynb", "import time\nprint('ran at', time.time_ns())")
    small_notebook(root / "notebooks" / "01_second.ipynb", "1 + 1", "print('fine')")
    (root / "notebooks" / "teaching.md").unlink()
    (root / "notebooks" / "index.md").write_text("# Small\n\n```{toctree}\n:glob:\n\n0*\n```\n", encoding="utf-8")
    return root


def ran_at(root):
    return re.search(r"ran at (\d+)", (root / "_build" / "html" / "00_counts.html").read_text("utf-8"))[1]


def test_unchanged_notebooks_come_from_the_cache_and_changed_helpers_drop_it(small_site):
    assert build(small_site).returncode == 0
    first = ran_at(small_site)
    assert build(small_site).returncode == 0
    assert ran_at(small_site) == first, "it ran again although nothing changed"
    with (small_site / "helpers" / "settings.py").open("a") as file:
        file.write("# changed\n")
    assert build(small_site).returncode == 0
    second = ran_at(small_site)
    assert second != first, "a helper changed and the old output was shown"
    assert build(small_site, COURSE_LABELS="chinese").returncode == 0
    assert ran_at(small_site) != second, "a setting changed and the old output was shown"


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (["1 + 1", "raise RuntimeError('on purpose')"], r"in code cell \[2\]: RuntimeError: on purpose"),
        (["import os\nos._exit(1)"], "in an unknown cell: the kernel died"),
    ],
    ids=["a cell raises", "the kernel dies"],
)
def test_a_failing_notebook_is_named_and_the_others_still_run(small_site, code, says):
    small_notebook(small_site / "notebooks" / "00_counts.ipynb", *code)
    done = build(small_site)
    assert done.returncode == 1
    assert "00_counts … FAILED" in done.stdout
    assert re.search(rf"FAILED  00_counts  {says}", done.stdout), done.stdout
    assert re.search(r"passed  01_second", done.stdout)


def test_a_cell_that_writes_on_stderr_fails_the_build(small_site):
    small_notebook(small_site / "notebooks" / "00_counts.ipynb", "import sys\nprint('oh', file=sys.stderr)")
    done = build(small_site)
    assert done.returncode == 1
    assert "00_counts" in done.stderr and "stderr" in done.stderr


def test_only_runs_what_was_asked_for(small_site):
    done = build(small_site, "--only", "01")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "00_counts …" not in done.stdout and "passed  00_counts" not in done.stdout
    assert "not run, shown with the outputs stored by the authors: 00_counts" in done.stdout
    page = (small_site / "_build" / "html" / "00_counts.html").read_text("utf-8")
    assert re.search(r"ran at \d", page) is None, "it ran all the same"


def test_an_unknown_number_is_refused_in_one_line(small_site):
    done = build(small_site, "--only", "77")
    assert done.returncode == 2
    assert done.stderr.strip().splitlines() == ["error: No notebook starts with '77'; there are 00, 01."]
