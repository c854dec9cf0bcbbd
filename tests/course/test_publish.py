"""helpers/publish.py: decks, handouts and the book hold the course, fit their frame and need no network."""

import re
import shutil
import subprocess
from html import escape, unescape

import nbformat
import pytest
from PIL import Image

from helpers import __main__ as command
from helpers import plots, settings, webpage
from helpers.course import notebooks, publish

needs_browser = pytest.mark.skipif(bool(webpage.missing_browser()), reason=webpage.missing_browser())
BOOKS = notebooks.notebooks()
LOCAL = ("file:", "data:", "blob:", "about:")
READABLE = 0.7  # the least zoom of a slide with code: 13 px on a wall of 720


def tags(cell):
    return set(cell.metadata.get("tags", ()))


@pytest.fixture(scope="module")
def decks(tmp_path_factory):
    """Return the decks of all notebooks."""
    out = tmp_path_factory.mktemp("slides")
    return [publish.slides(path, out) for path in BOOKS]


def test_deck_holds_the_course_and_not_the_solutions(decks):
    for deck, path in zip(decks, BOOKS, strict=True):
        html, book = deck.read_text("utf-8"), notebooks.read(path)
        assert re.split("[,`]", notebooks.question(path))[0] in html
        pictures = sum(
            "image/png" in str(o) or "image/jpeg" in str(o) for c in book.cells for o in c.get("outputs", ())
        )
        assert html.count("<img") >= pictures
        assert '<aside class="notes">' in html, "no notes for the presenter"
        assert html.count("Exercises</h2>") == 1 or html.count('id="Exercises"') == 1, "the exercises are not announced"
        assert "<strong>1.</strong>" not in html and "<strong>2.</strong>" not in html, "an exercise is on the wall"
        for cell in book.cells:
            if tags(cell) & {"check", "solution"}:
                assert escape(cell.source.splitlines()[-1]) not in html


def test_deck_asks_no_network(decks):
    for deck in decks:
        loaded = re.findall(r'<(?:script|link|img)[^>]+?(?:src|href)="([^"]+)"', deck.read_text("utf-8"))
        assert loaded
        for link in loaded:
            assert link.startswith("data:") or (deck.parent / link).exists(), f"{deck.name} loads {link}"
    styles = (decks[0].parent / "reveal" / "dist" / "theme" / "white.css").read_text("utf-8")
    assert not re.search(r"url\(['\"]?https?:", styles)


@needs_browser
def test_every_slide_is_in_its_frame_and_not_blank(decks):
    from playwright.sync_api import sync_playwright

    width, height = publish.FRAME
    with sync_playwright() as playwright, webpage.launch(playwright) as chromium:
        tab = chromium.new_page(viewport={"width": width, "height": height})
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
                assert zoom >= READABLE or not has_code, (
                    f"{where} is shrunk to {zoom:.2f}: part its code by a blank line"
                )
                tab.evaluate("Reveal.next()")
        assert trouble == []


@needs_browser
def test_key_s_opens_the_presenters_notes(decks):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright, webpage.launch(playwright) as chromium:
        tab = chromium.new_page()
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
def test_every_exercise_is_solved_by_its_solution_and_by_nothing_else(path):
    """The stored run says so: the check before an answer, and the solution that calls it."""
    cells = [cell for cell in notebooks.read(path).cells if cell.cell_type == "code"]
    kinds = {kind: [cell for cell in cells if kind in tags(cell)] for kind in ("exercise", "check", "solution")}
    assert len(kinds["exercise"]) == len(kinds["check"]) == len(kinds["solution"]) >= 2
    for number, (check, solution) in enumerate(zip(kinds["check"], kinds["solution"], strict=True), start=1):
        assert "No answer yet." in str(check.outputs) and "is right" not in str(check.outputs)
        assert f"Exercise {number} is right" in str(solution.outputs)


@pytest.mark.parametrize("path", BOOKS, ids=lambda path: path.stem)
def test_handout_has_the_questions_and_no_solution(path, tmp_path):
    made = publish.handout(path, tmp_path / "handout")
    book, whole = nbformat.read(made, as_version=4), notebooks.read(path)
    nbformat.validate(book)
    left_out = [cell for cell in whole.cells if "solution" in tags(cell)]
    assert len(book.cells) == len(whole.cells) - len(left_out)
    for cell in left_out:
        assert cell.source not in str(book)
    for picture in re.findall(r"\]\((figures/[^)]+)\)", str(book)):
        assert (made.parent / picture).exists()
    assert "index.md" not in str(book), "a link to a page that is not handed out"
    publish.handout(path, tmp_path / "handout")  # nobody has worked in it: it may be made again


def test_handout_with_answers_is_not_overwritten(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(settings, "ROOT", tmp_path)
    assert command.main(["handout", "00"]) == 0
    (made,) = (tmp_path / "handout").glob("00_*.ipynb")
    fresh, book = made.read_bytes(), notebooks.read(made)
    next(cell for cell in book.cells if "exercise" in tags(cell)).source = "more_without, more_with = 30, 11"
    notebooks.write(made, book)
    worked_in = made.read_bytes()
    assert command.main(["handout", "00"]) == 2
    assert "It may hold answers" in capsys.readouterr().err and made.read_bytes() == worked_in
    assert command.main(["handout", "00", "--force"]) == 0
    assert made.read_bytes() == fresh


def test_handout_runs_and_its_checks_wait_for_an_answer(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_EFFORT", "quick")
    monkeypatch.setenv("COURSE_WEIGHTS", "stand-in")
    (path,) = notebooks.choose(["12"])
    made = publish.handout(path, tmp_path / "handout")
    for part in ("helpers", "data"):  # a handout lies in a folder beside these
        ignored = shutil.ignore_patterns("exports", "__pycache__")
        shutil.copytree(settings.ROOT / part, tmp_path / part, ignore=ignored)
    ran = notebooks.run(made)
    checks = [cell for cell in ran.cells if "check" in tags(cell)]
    assert checks and all("No answer yet." in str(cell.outputs) for cell in checks)


@needs_browser
def test_the_book_holds_every_notebook(tmp_path, monkeypatch):
    from playwright.sync_api import sync_playwright

    page = publish._single_page(tmp_path)
    with sync_playwright() as playwright, webpage.launch(playwright) as chromium:
        tab = publish._on_paper(chromium, page)
        contents = tab.inner_text("nav.book-contents")
        for path in BOOKS:
            assert notebooks.title(path).replace("`", "") in contents
        assert tab.evaluate("Array.from(document.images).every((one) => one.complete && one.naturalWidth > 0)")
        assert tab.evaluate("document.querySelectorAll('details:not([open])').length") == 0
        wide = tab.evaluate(
            "Array.from(document.querySelectorAll('pre')).filter((one) => one.scrollWidth > one.clientWidth + 1).length"
        )
        assert wide == 0, "code runs off the page"
        clipped = tab.evaluate(
            """Array.from(document.querySelectorAll("table, img, pre")).filter((one) =>
                one.getBoundingClientRect().right > document.body.getBoundingClientRect().right + 1
            ).map((one) => one.innerText.slice(0, 80) || one.alt)"""
        )
        assert not clipped, f"it runs off the page: {clipped}"
    assert "虎斑猫" in page.read_text("utf-8")


def test_the_book_needs_a_browser_and_says_so(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(webpage, "missing_browser", lambda: "no browser: none of chromium is on the PATH")
    assert command.main(["pdf", "--out", str(tmp_path / "book.pdf")]) == 2
    assert "printed by a browser: no browser" in capsys.readouterr().err


@needs_browser
def test_the_pdf_command_prints_one(tmp_path, capsys):
    assert command.main(["pdf", "--out", str(tmp_path / "book.pdf")]) == 0
    book = (tmp_path / "book.pdf").read_bytes()
    assert book.startswith(b"%PDF")
    assert "book.pdf" in capsys.readouterr().out
    assert len(re.findall(rb"/Type\s*/Page\b", book)) > 10 * len(BOOKS), "pages are missing"
    if not plots.cjk_font():
        pytest.skip("the PDF is there; no Chinese font is installed here, so its Chinese is not looked for")
    if not shutil.which("pdftotext"):
        pytest.skip("the PDF is there; pdftotext (poppler-utils) is not, so its Chinese is not looked for")
    text = subprocess.run(["pdftotext", tmp_path / "book.pdf", "-"], capture_output=True, check=True).stdout.decode()
    assert "虎斑猫" in text, "its Chinese cannot be read"


PAGE = """<!doctype html><meta name="color-scheme" content="light dark"><title>A page</title>
<body style="margin: 0; height: 3500px">"""


@needs_browser
def test_pictures_show_a_page_whole_at_both_widths_light_and_dark(tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "page.html").write_text(PAGE, encoding="utf-8")
    pictures = {path.name: path for path in publish.pictures(tmp_path / "site", tmp_path / "pictures")}
    for screen, width in publish.SCREENS.items():
        for scheme, is_right in (("light", lambda grey: grey > 200), ("dark", lambda grey: grey < 60)):
            strips = [Image.open(pictures[f"page-{screen}-{scheme}-{number:02d}.png"]) for number in (1, 2)]
            assert [strip.size for strip in strips] == [(width, publish.STRIP), (width, 500)]
            assert is_right(strips[0].convert("L").getpixel((100, 100)))
    for path in BOOKS:
        plots = sum(any(kind in output.get("data", {}) for kind in ("image/png", "image/jpeg"))
                    for cell in notebooks.read(path).cells for output in cell.get("outputs", ()))  # fmt: skip
        assert sum(name.startswith(f"{path.stem}-plot-") for name in pictures) == plots


def test_pictures_of_no_site_are_refused(tmp_path, capsys):
    assert command.main(["pictures", "--site", str(tmp_path)]) == 2
    assert "python -m helpers build makes one" in capsys.readouterr().err


def test_the_teachers_page_lists_what_the_notebooks_promise():
    assert notebooks.goals_list() in notebooks.TEACHING.read_text("utf-8"), "run python -m helpers store"
    for path in BOOKS:
        assert len(notebooks.goals(path)) >= 3
