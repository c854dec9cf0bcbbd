"""Decks, handouts, the book and pictures hold the course, fit their frame and need no network."""

import re
import shutil
import subprocess
from html import unescape

import nbformat
import pytest
from courses import BOOKS, code_cells, make, printed, tags
from PIL import Image

from course import handout, notebooks, run, slides
from helpers import __main__ as command
from helpers import plots, settings
from notebooks.lessons import chromium

needs_browser = pytest.mark.skipif(bool(chromium.missing()), reason=chromium.missing())
LOCAL = ("file:", "data:", "blob:", "about:")
READABLE = 0.7  # the least zoom of a slide with code: 13 px on a wall of 720


@pytest.fixture(scope="module")
def decks(tmp_path_factory):
    """Return the decks of all notebooks."""
    out = tmp_path_factory.mktemp("slides")
    return [slides.slides(path, out) for path in BOOKS]


def test_deck_holds_the_course_and_not_the_solutions(decks):
    for deck, path in zip(decks, BOOKS, strict=True):
        lesson = notebooks.read(path)
        shown = unescape(re.sub(r"<[^>]+>", "", deck.read_text("utf-8")))
        assert re.split("[,`]", notebooks.question(path))[0] in shown
        at = next(at for at, cell in enumerate(lesson.cells) if re.search(r"(?m)^## Exercises$", cell.source))
        pictures = sum(any(kind in output.get("data", {}) for kind in ("image/png", "image/jpeg"))
                       for cell in lesson.cells[:at] for output in cell.get("outputs", ()))  # fmt: skip
        assert deck.read_text("utf-8").count("<img") >= pictures
        assert shown.count("In the notebook: each has a cell that checks your answer.") == 1
        lines = {True: set(), False: set()}  # of cells whose source is hidden, and of the others
        for cell in code_cells(lesson):
            asked = tags(cell) & {"exercise", "check", "solution"}
            hidden = asked or cell.metadata.get("jupyter", {}).get("source_hidden")
            lines[bool(hidden)] |= {line for line in cell.source.splitlines() if len(line) > 40}
        assert lines[True]
        seen = (lines[True] - lines[False]) & set(shown.splitlines())
        assert not seen, f"{deck.name} shows what is hidden"


def test_slide_types_decide_and_without_them_headings_and_lengths_do(tmp_path):
    path = make(tmp_path / "07_small.ipynb", "IMPORTS", "SETTINGS", "short", "x = 1\n" * 24, "kept", "told", "left out")
    lesson = notebooks.read(path)
    lesson.cells[3:3] = [nbformat.v4.new_markdown_cell("## Two\n\n" + "Words here. " * 40)]
    _, long, kept, told, left = lesson.cells[4:9]
    long.outputs = [nbformat.v4.new_output("stream", text="printed")]
    kept.metadata["slideshow"] = {"slide_type": "fragment"}
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
        ("fragment", "kept"),
        ("subslide", "told"),
        ("slide", "The end."),
    ]
    hidden = [cell.metadata.get("transient", {}).get("remove_source", False) for cell in slides._deck(lesson).cells]
    assert hidden == [False] * 6 + [True, False, True, False]


def test_deck_asks_no_network_and_describes_its_pictures(decks):
    for deck in decks:
        pictures = re.findall(r"<img[^>]*>", deck.read_text("utf-8"))
        assert [tag[-80:] for tag in pictures if not re.search(r'alt="[^"]', tag)] == []
        loaded = re.findall(r'<(?:script|link|img)[^>]+?(?:src|href)="([^"]+)"', deck.read_text("utf-8"))
        assert loaded
        for link in loaded:
            assert link.startswith("data:") or (deck.parent / link).exists(), f"{deck.name} loads {link}"
    styles = (decks[0].parent / "reveal" / "dist" / "theme" / "white.css").read_text("utf-8")
    assert not re.search(r"url\(['\"]?https?:", styles)


@pytest.mark.browser
def test_every_slide_is_in_its_frame_and_not_blank(decks, browser):
    width, height = slides.FRAME
    tab = browser.new_page(viewport={"width": width, "height": height})
    trouble = []
    tab.on("console", lambda message: trouble.append(message.text))
    tab.on("pageerror", lambda error: trouble.append(str(error)))
    tab.on("request", lambda asked: trouble.append(asked.url) if not asked.url.startswith(LOCAL) else None)
    for deck in decks:
        tab.goto(deck.as_uri())
        tab.wait_for_function("document.documentElement.dataset.ready === 'yes'")
        count = tab.evaluate("Reveal.getTotalSlides()")
        assert count > 20, deck.name
        for number in range(count):
            left, top, right, bottom, text, pictures, broken, zoom, has_code = tab.evaluate(
                """(async () => {
                    await fitted;  // once its pictures are there
                    const slide = Reveal.getCurrentSlide();
                    const boxes = Array.from(slide.querySelectorAll("*"), (one) => one.getBoundingClientRect());
                    const seen = boxes.filter((box) => box.width && box.height);
                    return [Math.min(...seen.map((box) => box.left)), Math.min(...seen.map((box) => box.top)),
                            Math.max(...boxes.map((box) => box.right)), Math.max(...boxes.map((box) => box.bottom)),
                            slide.innerText.trim().length, slide.querySelectorAll("img, svg").length,
                            Array.from(slide.querySelectorAll("img")).filter((one) => !one.naturalWidth).length,
                            Number(slide.style.zoom), Boolean(slide.querySelector(".highlight"))];
                })()"""
            )
            where = f"{deck.name}, slide {number + 1}"
            assert text or pictures, f"{where} is blank"
            assert not broken, f"{where}: {broken} pictures are broken"
            assert left >= -1 and top >= -1, f"{where} begins outside: {left:.0f}, {top:.0f}"
            assert right <= width + 1 and bottom <= height + 1, f"{where} runs off: {right:.0f} × {bottom:.0f}"
            assert zoom >= READABLE or not has_code, f"{where} is shrunk to {zoom:.2f}: part its code by a blank line"
            tab.evaluate("Reveal.next()")
    assert trouble == []
    tab.close()


@pytest.mark.browser
def test_key_s_opens_the_presenters_notes(decks, browser):
    with browser.new_context() as context:
        tab = context.new_page()
        tab.goto(decks[0].as_uri())
        tab.wait_for_function("document.documentElement.dataset.ready === 'yes'")
        while not (notes := tab.evaluate("Reveal.getSlideNotes()")):
            assert not tab.evaluate("Reveal.isLastSlide()"), "no slide has notes"
            tab.evaluate("Reveal.next()")
        words = unescape(re.sub(r"<[^>]+>", "", notes)).split()[:4]
        with tab.expect_popup() as opened:
            tab.keyboard.press("s")
        opened.value.wait_for_function(
            "words => words.every((one) => document.querySelector('.speaker-controls-notes').innerText.includes(one))",
            arg=words,
        )


@pytest.mark.parametrize("path", BOOKS, ids=lambda path: path.stem)
def test_handout_has_the_questions_and_no_solution(path, tmp_path):
    made = handout.handout(path, tmp_path / "handout")
    copy, whole = nbformat.read(made, as_version=4), notebooks.read(path)
    nbformat.validate(copy)
    left_out = [cell for cell in whole.cells if "solution" in tags(cell)]
    assert len(copy.cells) == len(whole.cells) - len(left_out)
    for cell in left_out:
        assert cell.source not in str(copy)
    for picture in re.findall(r"\]\((figures/[^)]+)\)", str(copy)):
        assert (made.parent / picture).exists()
    assert ".md)" not in str(copy), "a link to a page that is not handed out"
    handout.handout(path, tmp_path / "handout")  # nobody has worked in it: it may be made again


def test_handout_with_answers_is_not_overwritten(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(settings, "ROOT", tmp_path)
    assert command.main(["handout", "00"]) == 0
    (made,) = (tmp_path / "handout").glob("00_*.ipynb")
    fresh, copy = made.read_bytes(), notebooks.read(made)
    next(cell for cell in copy.cells if "exercise" in tags(cell)).source = "my_answer = 30"
    notebooks.write(made, copy)
    worked_in = made.read_bytes()
    assert command.main(["handout", "00"]) == 2
    assert "It may hold answers" in capsys.readouterr().err and made.read_bytes() == worked_in
    assert command.main(["handout", "00", "--force"]) == 0
    assert made.read_bytes() == fresh


def test_handout_runs_and_its_checks_wait_for_an_answer(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_EFFORT", "quick")
    monkeypatch.setenv("COURSE_WEIGHTS", "random")
    (path,) = notebooks.choose(["00"])
    made = handout.handout(path, tmp_path / "handout")
    for part in ("helpers", "data"):  # a handout lies in a folder beside these
        ignored = shutil.ignore_patterns("exports", "__pycache__")
        shutil.copytree(settings.ROOT / part, tmp_path / part, ignore=ignored)
    ran = run.run(made)
    checks = [cell for cell in ran.cells if "check" in tags(cell)]
    assert checks and all(printed(cell) == "No answer yet.\n" for cell in checks)


@pytest.fixture(scope="module")
def single_page(tmp_path_factory):
    """Render the book once."""
    return book.single_page(tmp_path_factory.mktemp("book"))


@pytest.mark.browser
def test_the_book_holds_every_notebook(single_page, browser):
    tab = book.on_paper(browser, single_page)
    contents = tab.inner_text("nav.book-contents")
    for path in BOOKS:
        assert notebooks.title(path).replace("`", "") in contents
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


def test_the_book_needs_a_browser_and_says_so(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(chromium, "missing", lambda: "no browser: none of chromium is on the PATH")
    assert command.main(["pdf", "--out", str(tmp_path / "book.pdf")]) == 2
    assert "printed by a browser: no browser" in capsys.readouterr().err


@needs_browser
def test_the_pdf_command_prints_it(single_page, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(book, "single_page", lambda folder: single_page)
    assert command.main(["pdf", "--out", str(tmp_path / "book.pdf")]) == 0
    assert "book.pdf" in capsys.readouterr().out
    printed_book = (tmp_path / "book.pdf").read_bytes()
    assert printed_book.startswith(b"%PDF")
    assert len(re.findall(rb"/Type\s*/Page\b", printed_book)) > 5 * len(BOOKS), "pages are missing"
    if not plots.cjk_font() or not shutil.which("pdftotext"):
        pytest.skip("the PDF is there; without a Chinese font and pdftotext its Chinese is not looked for")
    text = subprocess.run(["pdftotext", tmp_path / "book.pdf", "-"], capture_output=True, check=True).stdout.decode()
    assert "虎斑猫" in text, "its Chinese cannot be read"


PAGE = """<!doctype html><meta name="color-scheme" content="light dark"><title>A page</title>
<body style="margin: 0; height: 3500px">"""


@needs_browser
def test_pictures_show_a_page_whole_at_both_widths_light_and_dark(tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "page.html").write_text(PAGE, encoding="utf-8")
    pictures = {path.name: path for path in pages.pictures(tmp_path / "site", tmp_path / "pictures")}
    for screen, width in pages.SCREENS.items():
        for scheme, is_right in (("light", lambda grey: grey > 200), ("dark", lambda grey: grey < 60)):
            strips = [Image.open(pictures[f"page-{screen}-{scheme}-{number:02d}.png"]) for number in (1, 2)]
            assert [strip.size for strip in strips] == [(width, pages.STRIP), (width, 500)]
            assert is_right(strips[0].convert("L").getpixel((100, 100)))
    for path in BOOKS:
        count = sum(any(kind in output.get("data", {}) for kind in ("image/png", "image/jpeg"))
                    for cell in notebooks.read(path).cells for output in cell.get("outputs", ()))  # fmt: skip
        assert sum(name.startswith(f"{path.stem}-plot-") for name in pictures) == count


def test_pictures_of_no_site_are_refused(tmp_path, capsys):
    assert command.main(["pictures", "--site", str(tmp_path)]) == 2
    assert "python -m course build makes one" in capsys.readouterr().err


def test_the_teachers_page_lists_what_the_notebooks_promise():
    assert notebooks.goals_list() in (settings.NOTEBOOKS / "teaching.md").read_text("utf-8"), (
        "run python -m course store"
    )
