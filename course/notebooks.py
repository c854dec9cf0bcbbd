"""The notebooks as files: which there are, what they promise, the lines generated from that, copies to hand out."""

import re
import shutil
from pathlib import Path
from typing import Any

import nbformat
from IPython.core.inputtransformer2 import TransformerManager
from nbconvert.preprocessors import TagRemovePreprocessor

from course import freshness
from helpers import settings

GENERATED = re.compile(r"\n*<!-- generated -->.*\Z", re.DOTALL)
BETWEEN_MARKS = r"(?s)(<!-- {0}: .*?-->\n).*?(<!-- end of {0} -->)"


def notebooks() -> list[Path]:
    """Return the course's notebooks in order."""
    return sorted(settings.NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))


def choose(numbers: list[str]) -> list[Path]:
    """Return the notebooks with these numbers ("03" or "3"), all for none; ValueError if a number fits none."""
    there = {path.name[:2]: path for path in notebooks()}
    for number in numbers:
        if number.zfill(2) not in there:
            raise ValueError(f"No notebook starts with {number!r}; there are {', '.join(there)}.")
    return [there[number] for number in sorted({number.zfill(2) for number in numbers} or there)]


def read(path: Path) -> nbformat.NotebookNode:
    """Read a notebook, in notebook format 4."""
    return nbformat.read(path, as_version=4)


def write(path: Path, nb: nbformat.NotebookNode) -> None:
    """Write a notebook so that an interrupted write leaves the old file."""
    nbformat.validate(nb)
    part = path.with_suffix(".part")
    part.write_text(nbformat.writes(nb) + "\n", encoding="utf-8", newline="\n")
    part.replace(path)


def handout(path: Path, out: Path, *, force: bool = False) -> Path:
    """Copy a notebook without its solutions, and the pictures, to a folder beside ``helpers``; return the copy.

    FileExistsError if the file is there and holds something else, perhaps somebody's answers, unless ``force``.
    """
    nb, _ = TagRemovePreprocessor(remove_cell_tags={"solution"}).preprocess(read(path), {})
    for cell in nb.cells:
        if cell.cell_type == "markdown":  # the pages beside the notebooks are not handed out
            cell.source = re.sub(r"\[([^\]]*)\]\(\w+\.md[^)]*\)", r"\1", GENERATED.sub("", cell.source))
        cell.metadata.pop("course", None)  # wrong answers, for the tests
    nb.metadata.pop("course", None)  # the stored run's hash is that of the whole notebook
    made = out / path.name
    if made.exists() and not force and read(made) != nb:
        raise FileExistsError(
            f"{made} differs from a fresh handout. It may hold answers, which would be lost: move it away first, or "
            "overwrite it with --force."
        )
    copy_figures(out)
    write(made, nb)
    return made


def copy_figures(out: Path) -> None:
    """Copy the pictures that prose shows, not the programs that draw them, to a folder that may be new."""
    no_scripts = shutil.ignore_patterns("*.py", "__pycache__")
    shutil.copytree(settings.NOTEBOOKS / "figures", out / "figures", dirs_exist_ok=True, ignore=no_scripts)


def facts(path: Path) -> dict[str, Any]:
    """Return what a notebook's metadata say of its stored run, and whether it measures and so runs ``alone``."""
    return read(path).metadata.get("course", {})


def reach(path: Path) -> freshness.Reach:
    """Return what a notebook's code depends on; its prose and metadata do not count."""
    cells = [cell.source for cell in read(path).cells if cell.cell_type == "code"]
    as_python = TransformerManager().transform_cell  # IPython's own commands, too
    return freshness.Reach([freshness.plain(as_python(source)) for source in cells])


def title(path: Path) -> str:
    """Return a notebook's title: its first line, without the ``#``."""
    return read(path).cells[0].source.splitlines()[0].removeprefix("# ").strip()


def question(path: Path) -> str:
    """Return the question that a notebook opens with: the first line set in bold."""
    lines = read(path).cells[0].source.splitlines()
    return next(line.strip("* ") for line in lines if line.startswith("**"))


def goals(path: Path) -> list[str]:
    """Return what a reader can do after a notebook: the first list of its first cell, without the dashes."""
    found = re.search(r"(?m)^After this notebook you can\n\n((?:- .*\n?(?:  .*\n)*)+)", read(path).cells[0].source)
    return [" ".join(item.split()) for item in re.split(r"(?m)^- ", found[1] if found else "") if item.strip()]


def minutes(path: Path) -> str:
    """Return a notebook's measured run time in words, as of its last stored run."""
    stored = facts(path)
    if "seconds" not in stored:
        return "not measured yet"
    amount = "under a minute" if stored["seconds"] < 55 else f"about {round(stored['seconds'] / 60)} min"
    cores = f"{stored['cores']} core" + "s" * (stored["cores"] > 1)
    return f"{amount} ({stored['seconds']:.0f} s measured on {cores}, {stored['effort']} effort)"


def navigation(path: Path) -> str:
    """Return the line of links: previous, contents, next."""
    there = notebooks()
    at = there.index(path)
    before = [f"[← {one.name[:2]}]({one.name})" for one in there[:at][-1:]]
    after = [f"[{one.name[:2]} →]({one.name})" for one in there[at + 1 : at + 2]]
    return " · ".join([*before, "[contents](index.md)", *after])


def refresh_generated() -> list[str]:
    """Write the generated lines of every notebook, README and teacher's page; return the names of the files changed."""
    changed = []
    for path in notebooks():
        nb, links = read(path), navigation(path)
        before = nbformat.writes(nb)
        for cell, time in ((nb.cells[0], f"**Time:** {minutes(path)}.\n\n"), (nb.cells[-1], "")):
            cell.source = GENERATED.sub("", cell.source) + f"\n\n<!-- generated -->\n{time}{links}"
        if nbformat.writes(nb) != before:
            write(path, nb)
            changed.append(path.name)
    pages = ((settings.ROOT / "README.md", "notebooks", readme_table()),)
    for page, mark, part in (*pages, (settings.NOTEBOOKS / "teaching.md", "goals", goals_list())):
        text = page.read_text(encoding="utf-8")
        new = re.sub(BETWEEN_MARKS.format(mark), lambda found, part=part: found[1] + part + found[2], text)  # type: ignore[misc]
        if new != text:
            page.write_text(new, encoding="utf-8", newline="\n")
            changed.append(page.name)
    return changed


def readme_table() -> str:
    """Return the README's table of notebooks, in Markdown."""
    rows = ["| notebook | the question it answers | runs for |", "| --- | --- | --- |"]
    for path in notebooks():
        amount = minutes(path).partition(" (")[0]
        rows.append(f"| [{title(path)}](notebooks/{path.name}) | {question(path)} | {amount} |")
    return "\n".join(rows) + "\n"


def goals_list() -> str:
    """Return the teacher's list of what each notebook teaches, in Markdown."""
    parts = []
    for path in notebooks():
        parts += [f"**[{title(path)}]({path.name})**, {minutes(path)}\n", *(f"- {goal}" for goal in goals(path)), ""]
    return "\n" + "\n".join(parts) + "\n"
