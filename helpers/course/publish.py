"""The same notebooks in other clothes: a slide deck, a handout without solutions, a PDF, pictures to proofread.

Nothing here is taught in a notebook; ``python -m helpers`` and the tests use it. All work without a network.
"""

import base64
import copy
import io
import itertools
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stderr
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import nbformat
from nbconvert import SlidesExporter
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell, new_notebook
from PIL import Image

from helpers import settings, webpage
from helpers.course import notebooks

if TYPE_CHECKING:  # Playwright is needed only for the PDF and the pictures
    from playwright.sync_api import Browser, Page

LONGEST_LEAD = 45  # words of prose above a slide's code; the rest becomes the presenter's notes
MOST_LINES = 25  # of code on a slide
EXERCISES = re.compile(r"(?m)^## Exercises$")
FRAME = (1280, 720)  # a slide's width and height, in CSS pixels
PAPER = {"width": 680, "height": 1000}  # of an A4 page between its margins, in CSS pixels
SCREENS = {"desktop": 1280, "phone": 390}  # widths in CSS pixels
STRIP = 3000  # height of one picture of a long page, in CSS pixels; browsers draw nothing above about 16,000

# nbconvert's own deck takes require.js, jQuery and MathJax from the network; this one needs reveal.js only.
DECK = """
{%- extends 'index.html.j2' -%}
{% block html_head_js %}{% endblock %}
{% block html_head_js_mathjax %}{% endblock %}
{% block html_head_css %}<link rel="stylesheet" href="slides.css">{% endblock %}
{% block footer_js %}
<script src="reveal/dist/reveal.js"></script>
<script src="reveal/plugin/notes/notes.js"></script>
<script src="slides.js"></script>
{% endblock footer_js %}
"""


def slides(path: Path, out: Path) -> Path:
    """Make a deck of a notebook with its stored outputs; it opens from disk, without a network.

    A section becomes a column of slides: its heading, then one slide for each cell's code and one for its picture or
    table; long code is cut at blank lines. The prose before a cell is its lead if short, and stands in the presenter's
    notes (key S). Exercises stay in the notebook.

    Args:
        path: the notebook.
        out: the folder that gets the deck, and the files that decks share.
    Returns:
        The deck, an .html file.
    """
    out.mkdir(parents=True, exist_ok=True)
    package = find_spec("sphinx_revealjs")  # brings reveal.js; its Sphinx extension is not used
    reveal = Path(package.origin).parent / "_static" / "revealjs"
    for part in ("dist", "plugin/notes"):
        shutil.copytree(reveal / part, out / "reveal" / part, dirs_exist_ok=True)
    shutil.copytree(settings.NOTEBOOKS / "figures", out / "figures", dirs_exist_ok=True, ignore=_scripts)
    for name in ("slides.css", "slides.js"):
        shutil.copyfile(settings.NOTEBOOKS / "_static" / name, out / name)
    exporter = SlidesExporter(raw_template=DECK, embed_images=True)
    exporter.reveal_theme = "white"  # its font lies beside it; the default theme fetches one
    exporter.reveal_url_prefix = "reveal"
    exporter.reveal_width, exporter.reveal_height = map(str, FRAME)
    resources = {"metadata": {"path": str(path.parent), "name": notebooks.title(path)}}
    html, _ = exporter.from_notebook_node(_deck(notebooks.read(path)), resources=resources)
    deck = out / f"{path.stem}.html"
    deck.write_text(html, encoding="utf-8")
    return deck


def handout(path: Path, out: Path, *, force: bool = False) -> Path:
    """Copy a notebook without its solutions: places to fill in, and the cells that check an answer.

    Args:
        path: the notebook.
        out: a folder directly under the course's root, from where the cells find ``helpers``.
        force: overwrite a handout that somebody has worked in.
    Returns:
        The handout, an .ipynb file.
    Raises:
        FileExistsError: if the file is there and holds something else, perhaps somebody's answers.
    """
    book = notebooks.read(path)
    book.cells = [cell for cell in book.cells if "solution" not in cell.metadata.get("tags", ())]
    for cell in book.cells:
        if cell.cell_type == "markdown":  # the page of contents is not handed out
            cell.source = re.sub(r"\[([^\]]*)\]\(index\.md\)", r"\1", notebooks.GENERATED.sub("", cell.source))
    book.metadata.pop("course", None)  # the stored run's hash is that of the whole notebook
    made = out / path.name
    if made.exists() and not force and notebooks.read(made) != book:
        raise FileExistsError(
            f"{made} differs from a fresh handout. It may hold answers, which would be lost: move it away first, or "
            "overwrite it with --force."
        )
    out.mkdir(parents=True, exist_ok=True)
    shutil.copytree(settings.NOTEBOOKS / "figures", out / "figures", dirs_exist_ok=True, ignore=_scripts)
    notebooks.write(made, book)
    return made


def pdf(out: Path) -> Path:
    """Print the whole course, with its stored outputs, as one PDF: contents, notebooks, solutions.

    Args:
        out: the .pdf file to write.
    Raises:
        BrowserError: if there is no Chromium to print with.
        RuntimeError: if Sphinx complains; the message holds its words.
    """
    if lack := webpage.missing_browser():
        raise webpage.BrowserError(f"The PDF is printed by a browser: {lack}")
    from playwright.sync_api import sync_playwright

    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        page = _single_page(Path(folder))
        with sync_playwright() as playwright, webpage.launch(playwright) as chromium:
            _on_paper(chromium, page).pdf(
                path=out,
                format="A4",
                print_background=True,
                outline=True,
                tagged=True,
                display_header_footer=True,
                header_template="<span></span>",
                footer_template='<p class="pageNumber" style="font-size: 8px; width: 100%; text-align: center"></p>',
                margin={"top": "16mm", "bottom": "16mm", "left": "15mm", "right": "15mm"},
            )
    return out


def pictures(site: Path, out: Path) -> list[Path]:
    """Take pictures of every page of the site, at desktop and phone width, light and dark, and of every plot.

    Args:
        site: the folder of a built site.
        out: the folder for the .png files; what an earlier run left there goes.
    Returns:
        The pictures: strips of the pages, ``NAME-desktop-dark-02.png``, and the stored plots, ``NAME-plot-01.png``.
    Raises:
        FileNotFoundError: if there is no site.
        BrowserError: if there is no Chromium.
    """
    pages = sorted(site.glob("*.html"))
    if not pages:
        raise FileNotFoundError(f"There is no site in {site}: python -m helpers build makes one.")
    if lack := webpage.missing_browser():
        raise webpage.BrowserError(f"Pictures of pages are taken by a browser: {lack}")
    from playwright.sync_api import sync_playwright

    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    taken = []
    with sync_playwright() as playwright, webpage.launch(playwright) as chromium:
        for (screen, width), scheme in itertools.product(SCREENS.items(), ("light", "dark")):
            tab = chromium.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
            for page in pages:
                tab.goto(page.as_uri())
                height = tab.evaluate("document.documentElement.scrollHeight")
                for number, top in enumerate(range(0, height, STRIP), start=1):
                    taken.append(out / f"{page.stem}-{screen}-{scheme}-{number:02d}.png")
                    strip = {"x": 0, "y": top, "width": width, "height": min(STRIP, height - top)}
                    tab.screenshot(path=taken[-1], full_page=True, clip=strip)
    for path in notebooks.notebooks():
        for number, picture in enumerate(_plots(notebooks.read(path)), start=1):
            taken.append(out / f"{path.stem}-plot-{number:02d}.png")
            picture.save(taken[-1])
    return taken


def _plots(book: NotebookNode) -> Iterator[Image.Image]:
    for cell in book.cells:
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if picture := data.get("image/png") or data.get("image/jpeg"):
                yield Image.open(io.BytesIO(base64.b64decode(picture)))


def _scripts(folder: str, names: list[str]) -> set[str]:
    return {name for name in names if name.endswith(".py") or name == "__pycache__"}


def _on_paper(chromium: "Browser", page: Path) -> "Page":
    """Open the book as wide as it is printed, so that what is too wide for the paper is found and made smaller."""
    tab = chromium.new_page(viewport=PAPER)
    tab.emulate_media(media="print")
    tab.goto(page.as_uri())
    tab.evaluate((settings.NOTEBOOKS / "_static" / "print.js").read_text(encoding="utf-8"))
    return tab


def _single_page(folder: Path) -> Path:
    from sphinx.application import Sphinx
    from sphinx.util.docutils import docutils_namespace, patch_docutils

    warnings = io.StringIO()
    with patch_docutils(settings.NOTEBOOKS), docutils_namespace(), redirect_stderr(warnings):
        app = Sphinx(
            srcdir=settings.NOTEBOOKS,
            confdir=settings.NOTEBOOKS,
            outdir=folder / "html",
            doctreedir=folder / "doctrees",
            buildername="singlehtml",
            confoverrides={
                "html_theme": "basic",
                "html_theme_options": {},
                "html_css_files": ["notebooks.css", "print.css"],
            },
            status=None,
            warning=warnings,
            freshenv=True,
        )
        app.build()
    if complaints := warnings.getvalue().strip():
        raise RuntimeError(f"Sphinx complains: {complaints}")
    return folder / "html" / "index.html"


def _deck(book: NotebookNode) -> NotebookNode:
    """Return the notebook's cells as slides, up to the exercises; the last cell says what comes next."""
    deck = new_notebook(metadata=book.metadata)
    for number, cell in enumerate(book.cells[:-1]):
        if cell.cell_type == "markdown":
            lesson, *exercises = EXERCISES.split(cell.source, maxsplit=1)
            deck.cells += _prose(lesson, first=number == 0)
            if exercises:  # on paper and screen, not on the wall
                text = "## Exercises\n\nIn the notebook: each has a cell that checks your answer."
                deck.cells.append(_cell(new_markdown_cell(text), "slide"))
                break
        elif cell.cell_type == "code" and number > 2:  # the imports and the settings are for the notebook
            under_a_lead = deck.cells and deck.cells[-1].cell_type == "markdown"
            deck.cells += _code(cell, "-" if under_a_lead else "subslide")
    deck.cells += _prose(book.cells[-1].source, first=False)
    return deck


def _prose(source: str, *, first: bool) -> Iterator[NotebookNode]:
    """Make slides of a text: one a heading; what comes after a heading is lead, list or notes."""
    source = notebooks.GENERATED.sub("", source)
    if source.startswith("**Next:**"):
        yield _cell(new_markdown_cell(source), "slide")
        return
    if first:  # the title and the question; what one will be able to do
        opening, _, rest = source.partition("\n\nAfter this notebook")
        yield _cell(new_markdown_cell(opening), "slide")
        yield _cell(new_markdown_cell(f"After this notebook{rest}"), "subslide")
        return
    for part in re.split(r"(?m)^(?=#{1,3} )", source):
        heading, _, text = part.partition("\n") if part.startswith("#") else ("", "", part)
        text = text.strip()
        if heading:
            shown = text if len(text.split()) <= 2 * LONGEST_LEAD else _first_sentence(text)
            yield _cell(new_markdown_cell(f"{heading}\n\n{shown}"), "slide" if heading.count("#") < 3 else "subslide")
        elif text and (_is_drawn(text) or len(text.split()) <= LONGEST_LEAD):
            yield _cell(new_markdown_cell(text), "subslide")
        elif text:
            yield _cell(new_markdown_cell(_first_sentence(text)), "subslide")
        if text:
            yield _cell(new_markdown_cell(text), "notes")


def _code(cell: NotebookNode, kind: str) -> Iterator[NotebookNode]:
    """Make slides of the code, the first below its lead if there is one, and a slide of each picture or table.

    What the code prints stands below it, or on a slide of its own if that would be too long.
    """
    printed = [output for output in cell.outputs if output.output_type == "stream"]
    if not _only_words(cell):
        pieces = _pieces(cell.source)
        lines = pieces[-1].count("\n") + sum(output.text.count("\n") for output in printed)
        for number, source in enumerate(pieces, start=1):
            code = copy.deepcopy(cell)
            code.source, code.outputs = source, printed if number == len(pieces) and lines < MOST_LINES else []
            yield _cell(code, kind if number == 1 else "subslide")
        printed = printed if lines >= MOST_LINES else []
    for output in [*printed, *(output for output in cell.outputs if output.output_type != "stream")]:
        shown = copy.deepcopy(cell)
        shown.outputs = [output]
        yield _cell(shown, "subslide", transient={"remove_source": True})


def _only_words(cell: NotebookNode) -> bool:
    """Whether code does nothing but word a conclusion; then the conclusion is enough."""
    defines = re.search(r"(?m)^(def|class) ", cell.source)
    return bool(cell.outputs) and not defines and all("text/markdown" in one.get("data", {}) for one in cell.outputs)


def _pieces(source: str) -> list[str]:
    """Cut code of many lines between its statements, where blank lines stand."""
    pieces = [""]
    for block in re.split(r"\n{2,}(?=\S)", source):
        longer = f"{pieces[-1]}\n\n{block}".strip()
        if pieces[-1] and longer.count("\n") >= MOST_LINES:
            pieces.append(block)
        else:
            pieces[-1] = longer
    return pieces


def _cell(cell: NotebookNode, kind: str, **metadata: object) -> NotebookNode:
    cell = copy.deepcopy(cell)
    cell.metadata = nbformat.from_dict({"slideshow": {"slide_type": kind}, **metadata})
    cell["id"] = new_markdown_cell().id  # several slides come from one cell
    return cell


def _is_drawn(text: str) -> bool:
    """Whether a text is mostly a picture, a list or a table."""
    return text.startswith(("![", "- ", "|", "1. ", "```"))


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=[.?!:])\s+(?=[A-Z*`])", text, maxsplit=1)[0]
