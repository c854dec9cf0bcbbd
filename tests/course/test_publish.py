"""Decks, handouts, the PDF and pictures hold the course, fit their frame and need no network."""

import re
import shutil
import subprocess
from html import unescape

import nbformat
import pytest
from courses import NOTEBOOKS, code_cells, make, pictures, printed, tags
from PIL import Image

from course import __main__ as command
from course import notebooks, paper, run, slides
from helpers import plots, settings
from notebooks.lessons import chromium

needs_browser = pytest.mark.skipif(bool(chromium.missing()), reason=chromium.missing())
LOCAL = ("file:", "data:", "blob:", "about:")
READABLE = 0.7  # the least zoom of a slide with code: 13 px on a wall of 720
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def decks(tmp_path_factory):
    """Return the decks of all notebooks."""
    out = tmp_path_factory.mktemp("slides")
    return [slides.slides(path, out) for path in NOTEBOOKS]


def test_decks_hold_the_course_not_the_solutions_and_ask_no_network(decks):
    for deck, path in zip(decks, NOTEBOOKS, strict=True):
        page, lesson = deck.read_text("utf-8"), notebooks.read(path)
        shown = unescape(re.sub(r"<[^>]+>", "", page))
        assert re.split("[,`]", notebooks.question(path))[0] in shown
        at = next(at for at, cell in enumerate(lesson.cells) if re.search(r"(?m)^## Exercises$", cell.source))
        assert page.count("<img") >= sum(pictures(cell) for cell in lesson.cells[:at])
        assert shown.count("In the notebook: each has a cell that checks your answer.") == 1
        lines = {True: set(), False: set()}  # of cells whose source is hidden, and of the others
        for cell in code_cells(lesson):
            hidden = tags(cell) & {"exercise", "check", "solution"} or cell.metadata.get("jupyter", {}).get(
                "source_hidden"
            )
            lines[bool(hidden)] |= {line for line in cell.source.splitlines() if len(line) > 40}
        seen = (lines[True] - lines[False]) & set(shown.splitlines())
        assert lines[True] and not seen, f"{deck.name} shows what is hidden"
        nameless = [tag[-80:] for tag in re.findall(r"<img[^>]*>", page) if not re.search(r'alt="[^"]', tag)]
        loaded = re.findall(r'<(?:script|link|img)[^>]+?(?:src|href)="([^"]+)"', page)
        missing = [one[:80] for one in loaded if not one.startswith("data:") and not (deck.parent / one).exists()]
        assert (nameless, missing) == ([], []) and loaded
    styles = (decks[0].parent / "reveal" / "dist" / "theme" / "white.css").read_text("utf-8")
    assert not re.search(r"url\(['\"]?https?:", styles)


def test_headings_and_lengths_make_slides(tmp_path):
    path = make(tmp_path / "07_small.ipynb", "IMPORTS", "SETTINGS", "short", "x = 1\n" * 24, "told", "left out")
    lesson = notebooks.read(path)
    lesson.cells[3:3] = [nbformat.v4.new_markdown_cell("## Two\n\n" + "Words here. " * 40)]
    long, told, left = lesson.cells[5:8]
    long.outputs = [nbformat.v4.new_output("stream", text="printed")]
    told.metadata["jupyter"] = {"source_hidden": True}
    told.outputs = [nbformat.v4.new_output("display_data", {"text/markdown": "**So it is.**"})]
    told.outputs.append(nbformat.v4.new_output("stream", text="\n"))  # no slide of its own: it would be blank
    left.metadata["slideshow"] = {"slide_type": "skip"}
    made = [(cell.metadata.slideshow.slide_type, cell.source.split("\n")[0]) for cell in slides._deck(lesson).cells]
    assert made == [
        ("slide", "# 07 · Small"),
        ("subslide", "After this notebook you can"),
        ("slide", "## Two"),
        ("notes", "Words here. Words here." + " Words here." * 38),
        ("-", "short"),
        ("subslide", "x = 1"),
        ("subslide", "x = 1"),  # what it prints
        ("subslide", "told"),
        ("slide", "The end."),
    ]
    hidden = [cell.metadata.get("transient", {}).get("remove_source", False) for cell in slides._deck(lesson).cells]
    assert hidden == [False] * 6 + [True, True, False]


LOOK = """(async () => {
    await fitted;  // once its pictures are there
    const slide = Reveal.getCurrentSlide();
    const boxes = Array.from(slide.querySelectorAll("*"), (one) => one.getBoundingClientRect());
    const seen = boxes.filter((box) => box.width && box.height);
    return [Math.min(...seen.map((box) => box.left)), Math.min(...seen.map((box) => box.top)),
            Math.max(...boxes.map((box) => box.right)), Math.max(...boxes.map((box) => box.bottom)),
            slide.innerText.trim().length, slide.querySelectorAll("img, svg").length,
            Array.from(slide.querySelectorAll("img")).filter((one) => !one.naturalWidth).length,
            Number(slide.style.zoom), Boolean(slide.querySelector(".highlight")), Reveal.getSlideNotes()];
})()"""


@pytest.mark.slow
@pytest.mark.browser
def test_every_slide_is_in_its_frame_and_not_blank(decks, browser):
    width, height = slides.FRAME
    tab = browser.new_page(viewport={"width": width, "height": height})
    trouble, noted = [], 0
    # Chromium's own remark on a font from disk, where a machine has no network at all, is no trouble of ours.
    tab.on("console", lambda message: trouble.append(message.text) if "Slow network" not in message.text else None)
    tab.on("pageerror", lambda error: trouble.append(str(error)))
    tab.on("request", lambda asked: trouble.append(asked.url) if not asked.url.startswith(LOCAL) else None)
    for deck in decks:
        tab.goto(deck.as_uri())
        tab.wait_for_function("document.documentElement.dataset.ready === 'yes'")
        count = tab.evaluate("Reveal.getTotalSlides()")
        assert count > 20, deck.name
        for number in range(count):
            left, top, right, bottom, text, images, broken, zoom, has_code, notes = tab.evaluate(LOOK)
            where = f"{deck.name}, slide {number + 1}"
            assert (text or images) and not broken, f"{where} is blank, or {broken} pictures are broken"
            assert left >= -1 and top >= -1, f"{where} begins outside: {left:.0f}, {top:.0f}"
            assert right <= width + 1 and bottom <= height + 1, f"{where} runs off: {right:.0f} × {bottom:.0f}"
            assert zoom >= READABLE or not has_code, f"{where} is shrunk to {zoom:.2f}: part its code by a blank line"
            noted += bool(notes)
            tab.evaluate("Reveal.next()")
    assert trouble == [] and noted > 20, "no slide has notes for who speaks"


@each_notebook
def test_handout_has_the_questions_and_no_solution(path, tmp_path):
    made = notebooks.handout(path, tmp_path / "handout")
    copy, whole = nbformat.read(made, as_version=4), notebooks.read(path)
    nbformat.validate(copy)
    left_out = code_cells(whole, "solution")
    assert len(copy.cells) == len(whole.cells) - len(left_out)
    assert [cell for cell in left_out if cell.source in str(copy)] == []
    for picture in re.findall(r"\]\((figures/[^)]+)\)", str(copy)):
        assert (made.parent / picture).exists()
    assert ".md)" not in str(copy), "a link to a page that is not handed out"
    notebooks.handout(path, tmp_path / "handout")  # nobody has worked in it: it may be made again


def test_handout_runs_and_with_answers_in_it_is_not_overwritten(tmp_path, capsys, monkeypatch):
    for part in ("helpers", "notebooks/lessons", "data"):  # a handout lies in a folder beside these
        ignored = shutil.ignore_patterns("exports", "__pycache__")
        shutil.copytree(settings.ROOT / part, tmp_path / part, ignore=ignored)
    monkeypatch.setattr(settings, "ROOT", tmp_path)
    monkeypatch.setattr(run, "KERNELS_LOG", tmp_path / "kernels.log")
    monkeypatch.setenv("COURSE_EFFORT", "quick")
    assert command.main(["handout", "00"]) == 0
    (made,) = (tmp_path / "handout").glob("00_*.ipynb")
    checks = code_cells(run.run(made).nb, "check")
    assert checks and all(printed(cell) == "No answer yet.\n" for cell in checks)
    fresh, copy = made.read_bytes(), notebooks.read(made)
    code_cells(copy, "exercise")[0].source = "my_answer = 30"
    notebooks.write(made, copy)
    worked_in = made.read_bytes()
    assert command.main(["handout", "00"]) == 2
    assert "It may hold answers" in capsys.readouterr().err and made.read_bytes() == worked_in
    assert command.main(["handout", "00", "--force"]) == 0
    assert made.read_bytes() == fresh


@pytest.mark.slow
@needs_browser
@pytest.mark.browser
def test_the_pdf_holds_every_notebook_and_nothing_runs_off(browser, tmp_path):
    tab = paper.on_paper(browser, paper.single_page(tmp_path / "page"))
    contents = tab.inner_text("nav.book-contents")
    assert [path.name for path in NOTEBOOKS if notebooks.title(path).replace("`", "") not in contents] == []
    assert tab.evaluate("Array.from(document.images).every((one) => one.complete && one.naturalWidth > 0)")
    assert tab.evaluate("document.querySelectorAll('details:not([open])').length") == 0
    assert tab.evaluate("document.querySelectorAll('.tag_hide-input .cell_input').length") == 0, "left out on paper"
    clipped = tab.evaluate(
        """Array.from(document.querySelectorAll("table, img, pre")).filter((one) =>
            one.getBoundingClientRect().right > document.body.getBoundingClientRect().right + 1 ||
            (one.tagName === "PRE" && one.scrollWidth > one.clientWidth + 1)
        ).map((one) => one.innerText.slice(0, 80) || one.alt)"""
    )
    assert not clipped, f"it runs off the page: {clipped}"


@pytest.mark.slow
@needs_browser
def test_the_pdf_command_prints_it(tmp_path, capsys):
    assert command.main(["pdf", "--out", str(tmp_path / "course.pdf")]) == 0
    assert "course.pdf" in capsys.readouterr().out
    made = (tmp_path / "course.pdf").read_bytes()
    assert made.startswith(b"%PDF")
    assert len(re.findall(rb"/Type\s*/Page\b", made)) > 5 * len(NOTEBOOKS), "pages are missing"
    if not plots.cjk_font() or not shutil.which("pdftotext"):
        pytest.skip("the PDF is there; without a Chinese font and pdftotext its Chinese is not looked for")
    text = subprocess.run(["pdftotext", tmp_path / "course.pdf", "-"], capture_output=True, check=True).stdout.decode()
    assert "虎斑猫" in text, "its Chinese cannot be read"


PAGE = """<!doctype html><meta name="color-scheme" content="light dark"><title>A page</title>
<body style="margin: 0; height: 3500px">"""


@needs_browser
def test_pictures_show_a_page_whole_at_both_widths_light_and_dark(tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "page.html").write_text(PAGE, encoding="utf-8")
    taken = {path.name: path for path in paper.pictures(tmp_path / "site", tmp_path / "pictures")}
    for screen, width in paper.SCREENS.items():
        for scheme, is_right in (("light", lambda grey: grey > 200), ("dark", lambda grey: grey < 60)):
            strips = [Image.open(taken[f"page-{screen}-{scheme}-{number:02d}.png"]) for number in (1, 2)]
            assert [strip.size for strip in strips] == [(width, paper.STRIP), (width, 500)]
            assert is_right(strips[0].convert("L").getpixel((100, 100)))


def test_what_needs_a_browser_or_a_site_says_so(monkeypatch, tmp_path, capsys):
    assert command.main(["pictures", "--site", str(tmp_path)]) == 2
    assert "python -m course build makes one" in capsys.readouterr().err
    monkeypatch.setattr(chromium, "missing", lambda: "no browser: none of chromium is on the PATH")
    assert command.main(["pdf", "--out", str(tmp_path / "course.pdf")]) == 2
    assert "needs a browser: no browser" in capsys.readouterr().err
