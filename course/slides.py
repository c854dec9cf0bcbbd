"""A deck of slides of each notebook, which opens from disk, without a network."""

import copy
import re
import shutil
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import nbformat
from nbconvert import SlidesExporter
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell, new_notebook

from course import notebooks
from helpers import settings

FRAME = (1280, 720)  # a slide's width and height, in CSS pixels
LEAD_WORDS = 45  # of prose on a slide; what is longer goes to the presenter's notes, but for its first sentence
MOST_LINES, LINE = 22, 100  # of code and print on one slide; characters of a line
EXERCISES = "## Exercises\n\nIn the notebook: each has a cell that checks your answer."
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
    """Make a deck of a notebook with its stored outputs; return it, an .html file beside the files that decks share.

    A heading begins a slide, code stands below the prose before it if both fit, each picture and table has a slide of
    its own. Exercises stay in the notebook, and so do cells with the metadata ``slideshow.slide_type`` "skip".
    """
    notebooks.copy_figures(out)
    for part in ("dist", "plugin/notes"):  # sphinx-revealjs brings reveal.js; its Sphinx extension is not used
        reveal = files("sphinx_revealjs") / "_static" / "revealjs" / part
        shutil.copytree(str(reveal), out / "reveal" / part, dirs_exist_ok=True)
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


def _deck(nb: NotebookNode) -> NotebookNode:
    """Return the notebook's cells as slides, up to the exercises; the last cell says what comes next."""
    deck = new_notebook(metadata=nb.metadata)
    opening = [cell for cell in nb.cells if cell.cell_type == "code"][:2]  # imports and settings
    for cell in nb.cells[:-1]:
        if cell.cell_type == "markdown":
            lesson, *exercises = re.split(r"(?m)^## Exercises$", notebooks.GENERATED.sub("", cell.source), maxsplit=1)
            deck.cells += _prose(lesson.strip())
            if exercises:  # on paper and screen, not on the wall
                deck.cells.append(_slide(new_markdown_cell(EXERCISES), "slide"))
                break
        elif cell not in opening and cell.metadata.get("slideshow", {}).get("slide_type") != "skip":
            deck.cells += _code(cell, lead=deck.cells[-1])
    deck.cells += _prose(notebooks.GENERATED.sub("", nb.cells[-1].source), "slide")
    return deck


def _prose(source: str, kind: str | None = None) -> Iterator[NotebookNode]:
    """Make a slide of each heading and what follows it; long text stands in the notes, its first sentence above."""
    for part in filter(str.strip, re.split(r"(?m)^(?=#{1,3} |After this notebook you can$)", source)):
        heading, _, text = part.partition("\n") if part.startswith("#") else ("", "", part)
        is_drawn = text.strip().startswith(("![", "- ", "|", "1. ", "```", "After this"))  # a picture, list or table
        long = len(text.split()) > LEAD_WORDS and not is_drawn
        shown = re.split(r"(?<=[.?!:])\s+(?=[A-Z*`])", text.strip(), maxsplit=1)[0] if long else text.strip()
        kind_here = kind or ("slide" if re.match(r"##? ", heading) else "subslide")
        yield _slide(new_markdown_cell(f"{heading}\n\n{shown}".strip()), kind_here)
        if long:
            yield _slide(new_markdown_cell(text.strip()), "notes")


def _code(cell: NotebookNode, lead: NotebookNode) -> Iterator[NotebookNode]:
    """Make a slide of the code, unless it is hidden, with what it prints, and one of each picture or table."""
    streams = [output for output in cell.outputs if output.output_type == "stream"]
    printed = [output for output in streams if output.text.strip()]  # a line's end may come as an output of its own
    shown = [output for output in cell.outputs if output.output_type != "stream"]
    is_hidden, lines = cell.metadata.get("jupyter", {}).get("source_hidden"), _lines(cell.source)
    if is_hidden or lines + sum(_lines(output.text) for output in printed) > MOST_LINES:
        shown, printed = printed + shown, []
    if not is_hidden:
        below = lead.cell_type == "markdown" and _lines(lead.source) + lines <= MOST_LINES // 2
        yield _slide(cell, "-" if below else "subslide", outputs=printed)
    for output in shown:
        yield _slide(cell, "subslide", outputs=[output], transient={"remove_source": True})


def _lines(text: str) -> int:
    return sum(1 + len(line) // LINE for line in text.splitlines())


def _slide(cell: NotebookNode, kind: str, *, outputs: list[NotebookNode] | None = None, **more: Any) -> NotebookNode:
    cell = copy.deepcopy(cell)
    if alt := cell.metadata.get("mystnb", {}).get("image", {}).get("alt"):
        more["alt"] = alt  # where nbconvert looks for it
    cell.metadata = nbformat.from_dict({"slideshow": {"slide_type": kind}, **more})
    cell["id"] = new_markdown_cell().id  # several slides come from one cell
    if cell.cell_type == "code":
        cell.outputs = outputs or []
    return cell
