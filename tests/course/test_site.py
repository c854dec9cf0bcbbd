"""The build command: the whole course at quick effort as a site, and what it says when a notebook fails."""

import base64
import html
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from urllib.parse import unquote, urldefrag

import nbformat
import pytest

from helpers import __main__ as command
from helpers import settings, webpage
from helpers.course import notebooks, publish

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
        book = notebooks.read(path)
        for cell in book.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
        notebooks.write(path, book)
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
    books = [path.stem for path in notebooks.notebooks()]
    for number, name in enumerate(books, start=1):
        assert re.search(rf"\[{number}/{len(books)}\] {name} … done in \d+ s", done.stdout), "no progress line"
        assert re.search(rf"passed  {name}  [\d.]+ s", done.stdout), "missing from the list at the end"
        assert (folder / f"{name}.html").exists()
    together = re.search("Side by side, a core for each: (.*)", done.stdout)
    for name in together[1].split(", ") if together else ():
        assert re.search(rf"passed  {name}  [\d.]+ s \(side by side with others\)", done.stdout), done.stdout
    assert "from the cache" not in done.stdout, "nothing can come from a cache that was empty"


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


@pytest.fixture(scope="module")
def chromium():
    """Start a browser for all tests that open pages."""
    if lack := webpage.missing_browser():
        pytest.skip(lack)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright, webpage.launch(playwright) as running:
        yield running


@pytest.fixture
def tab(chromium):
    """Open a tab; its list ``trouble`` collects errors and what it asks the network for."""
    tab = chromium.new_page()
    tab.trouble = []
    tab.on("console", lambda message: tab.trouble.append(message.text) if message.type == "error" else None)
    tab.on("pageerror", lambda error: tab.trouble.append(str(error)))
    tab.on("request", lambda asked: tab.trouble.append(asked.url) if not asked.url.startswith(LOCAL) else None)
    yield tab
    tab.close()


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


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("screen", publish.SCREENS)
def test_pages_open_without_network_error_or_missing_picture(site, tab, screen, scheme):
    tab.set_viewport_size({"width": publish.SCREENS[screen], "height": 844})
    tab.emulate_media(color_scheme=scheme)
    for page in sorted(site[1].glob("*.html")):
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
def test_a_search_finds_the_notebook(site, tab):
    tab.goto((site[1] / "search.html").as_uri() + "?q=quantization")
    tab.wait_for_selector("#search-results ul.search li a[href*='10_int8_quantization']", state="visible")
    tab.goto((site[1] / "search.html").as_uri() + "?q=brontosaurus")
    tab.wait_for_function("document.querySelector('.search-summary')?.innerText.includes('did not match')")
    assert tab.locator("#search-results ul.search li").count() == 0
    assert tab.trouble == []


def test_notebooks_can_be_downloaded(site, pages):
    folder = site[1]
    for path in notebooks.notebooks():
        downloads = [link for link in pages[f"{path.stem}.html"].links if link.endswith(".ipynb")]
        assert downloads, f"{path.stem}.html offers no notebook"
        nbformat.validate(nbformat.read(folder / downloads[0], as_version=4))


def test_the_cat_is_named_on_the_page(site):
    page = (site[1] / "03_single_image_inference.html").read_text("utf-8")
    assert "tabby" in page and "虎斑猫" in page
    assert "STAND-IN" in page


def alt(cell):
    """Return the alternative text of a cell's pictures, None if it has none."""
    return cell.metadata.get("mystnb", {}).get("image", {}).get("alt")


@pytest.mark.parametrize("path", notebooks.notebooks(), ids=lambda path: path.stem)
def test_every_picture_of_a_cell_has_a_text_of_its_own(path):
    cells = [cell for cell in notebooks.read(path).cells if cell.cell_type == "code"]
    for cell in cells:
        if any(kind.startswith("image/") for output in cell.outputs for kind in output.get("data", {})):
            assert alt(cell), f"metadata mystnb.image.alt should say what this cell draws:\n{cell.source}"
    texts = [alt(cell) for cell in cells if alt(cell)]
    twice = {text for text in texts if texts.count(text) > 1}
    assert not twice, f"two cells of one notebook say the same of their pictures: {twice}"


def small_notebook(path, *code):
    cells = [nbformat.v4.new_markdown_cell(f"# {path.name[:2]} · Small\n\n**Small?**")]
    cells += map(nbformat.v4.new_code_cell, code)
    book = nbformat.v4.new_notebook(cells=cells)
    book.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebooks.write(path, book)


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
    measures = "open('../data/results/own.jsonl', 'a').write('a row\\n')"  # as 04 and 05 do
    clock = "import time\nprint('ran at', time.time_ns())"
    small_notebook(small_site / "notebooks" / "00_counts.ipynb", clock, measures)
    done = build(small_site)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "from the cache" not in done.stdout
    first = ran_at(small_site)
    done = build(small_site)
    assert ran_at(small_site) == first, "it ran again although nothing changed but the results that it added itself"
    assert done.stdout.count("s (from the cache)") == 2, done.stdout
    with (small_site / "helpers" / "settings.py").open("a") as file:
        file.write("# changed\n")
    assert build(small_site).returncode == 0
    second = ran_at(small_site)
    assert second != first, "a helper changed and the old output was shown"
    assert build(small_site, COURSE_LABELS="chinese").returncode == 0
    assert ran_at(small_site) != second, "a setting changed and the old output was shown"


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("helpers/labels.py", 0),
        ("helpers/webpage.html", 0),
        ("data/sample_photos.csv", 0),
        ("data/article/chips.csv", 0),
        ("data/images/mine.jpg", 0),
        ("data/results/a-friend.jsonl", 1),
    ],
)
def test_the_cache_is_tied_to_all_that_a_page_depends_on(tmp_path, monkeypatch, file, line):
    copy_course(tmp_path, notebooks=False)
    monkeypatch.setattr(settings, "ROOT", tmp_path)
    for name, folder in (("NOTEBOOKS", "notebooks"), ("DATA", "data")):
        monkeypatch.setattr(settings, name, tmp_path / folder)
    for name, folder in (("IMAGES", "images"), ("WEIGHTS", "weights")):
        monkeypatch.setattr(settings, name, tmp_path / "data" / folder)
    before = command._fingerprint().splitlines()
    with (tmp_path / file).open("ab") as changed:
        changed.write(b"\n")
    after = command._fingerprint().splitlines()
    assert [old != new for old, new in zip(before, after, strict=True)] == [line == 0, line == 1]


def test_a_picture_is_described_by_its_cell_or_else_by_its_section(small_site):
    dot = base64.b64encode((small_site / "notebooks" / "figures" / "overview.png").read_bytes()).decode()
    cells = [nbformat.v4.new_markdown_cell("# 00 · Small"), *map(nbformat.v4.new_code_cell, ("'a'", "'b'"))]
    for cell in cells[1:]:
        cell.outputs = [nbformat.v4.new_output("display_data", {"image/png": dot})]
    cells[1].metadata["mystnb"] = {"image": {"alt": "Line plot of this against that."}}
    book = nbformat.v4.new_notebook(cells=cells, metadata={"language_info": {"name": "python"}})
    notebooks.write(small_site / "notebooks" / "00_counts.ipynb", book)
    done = build(small_site, "--only", "01")
    assert done.returncode == 0, done.stdout + done.stderr
    page = html.unescape((small_site / "_build" / "html" / "00_counts.html").read_text("utf-8"))
    found = re.findall(r'<img alt="([^"]*)"[^>]*_images', page)
    assert found == ["Line plot of this against that.", "Picture drawn by the cell above, in section “00 · Small”"]


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (["1 + 1", "raise RuntimeError('on purpose')"], r"in code cell \[2\]: RuntimeError: on purpose"),
        (
            ["import os\nos.write(2, b'last words')\nos._exit(1)"],
            "in an unknown cell: the kernel died",
        ),
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
    if "died" in says:  # Sphinx began anew after that
        log = (small_site / "_build" / "kernels.log").read_text("utf-8")
        assert "last words" in log, f"what the kernel said before it died is lost; kept: {log}"


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
