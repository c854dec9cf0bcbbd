"""The notebooks as files: which there are, how they link to each other, and whether their stored outputs are fresh."""

import ast
import hashlib
import re
from pathlib import Path

import nbformat
from IPython.core.inputtransformer2 import TransformerManager

from helpers import settings

README_TABLE = re.compile(r"(<!-- notebooks: .*?-->\n).*?(<!-- end of notebooks -->)", re.DOTALL)
GOALS_LIST = re.compile(r"(<!-- goals: .*?-->\n).*?(<!-- end of goals -->)", re.DOTALL)
GENERATED = re.compile(r"\n*<!-- generated -->.*\Z", re.DOTALL)


def notebooks() -> list[Path]:
    """Return the course's notebooks in order."""
    return sorted(settings.NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))


def choose(numbers: list[str]) -> list[Path]:
    """Return the notebooks with these numbers ("03"), all for an empty list; ValueError if a number fits none."""
    books = notebooks()
    numbers = [number.zfill(2) for number in numbers]  # "3" means "03"
    for number in numbers:
        if not any(book.name.startswith(number) for book in books):
            names = ", ".join(book.name[:2] for book in books)
            raise ValueError(f"No notebook starts with {number!r}; there are {names}.")
    return [book for book in books if not numbers or book.name.startswith(tuple(numbers))]


def read(path: Path) -> nbformat.NotebookNode:
    """Read a notebook, in notebook format 4."""
    return nbformat.read(path, as_version=4)


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
    return [" ".join(item.split()) for item in re.split(r"(?m)^- ", found[1]) if item.strip()]


def code(path: Path) -> list[ast.Module]:
    """Return a notebook's code as a syntax tree a cell: no comments, no docstrings of its functions."""
    cells = [cell.source for cell in read(path).cells if cell.cell_type == "code"]
    as_python = TransformerManager().transform_cell  # IPython's own commands, too
    return [_plain(as_python(source)) for source in cells]


def _plain(source: str, *, module: bool = False) -> ast.Module:
    """Parse code and take its docstrings away; a cell's first string is shown, a module's is not (``module``)."""
    tree = ast.parse(source)
    documented = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, *((ast.Module,) if module else ()))
    for node in ast.walk(tree):
        if isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return tree


def _imported(tree: ast.Module) -> set[Path]:
    """Return the files of ``helpers`` that code imports, those of the packages around them included."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    found = set()
    for parts in (name.split(".") for name in names):
        for end in range(1, len(parts) + 1 if parts[0] == "helpers" else 0):
            place = settings.ROOT.joinpath(*parts[:end])
            found |= {file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()}
    return found


def helpers_used(path: Path) -> dict[Path, ast.Module]:
    """Return the files of ``helpers`` that a notebook imports, and those that these import, with their plain code."""
    waiting, seen = set().union(*map(_imported, code(path))), {}
    while waiting:
        file = waiting.pop()
        seen[file] = _plain(file.read_text(encoding="utf-8"), module=True)
        waiting |= _imported(seen[file]) - seen.keys()
    return seen


def source_hash(path: Path) -> str:
    """Return the SHA-256 of all that a notebook's outputs depend on: its code, the helpers it uses, the course's data.

    Comments, docstrings and line ends do not count, nor do a notebook's prose and metadata.
    """
    used = helpers_used(path)
    parts = [ast.unparse(tree) for tree in [*code(path), *(used[file] for file in sorted(used))]]
    files = [page for file in used if (page := file.with_suffix(".html")).exists()]
    files += [table for table in settings.DATA.glob("results/*.csv") if any(table.name in part for part in parts)]
    files += [*settings.DATA.glob("*.csv"), *settings.DATA.glob("article/*.csv")]
    parts += [file.read_text(encoding="utf-8") for file in sorted(files)]  # with \n as line ends
    parts += sorted(weights.name for weights in settings.WEIGHTS.glob("*-standin-*.pth"))  # a name holds its hash
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def runs_alone(path: Path) -> bool:
    """Whether a notebook measures speed and wants the machine for itself, as its metadata ``course.alone`` says."""
    return bool(read(path).metadata.get("course", {}).get("alone"))


def write(path: Path, book: nbformat.NotebookNode) -> None:
    """Write a notebook so that an interrupted write leaves the old file."""
    nbformat.validate(book)
    part = path.with_suffix(".part")
    part.write_text(nbformat.writes(book) + "\n", encoding="utf-8", newline="\n")
    part.replace(path)


def navigation(path: Path) -> str:
    """Return the line of links: previous, contents, next."""
    books = notebooks()
    at = books.index(path)
    links = [f"[← {books[at - 1].name[:2]}]({books[at - 1].name})"] if at > 0 else []
    links.append("[contents](index.md)")
    links += [f"[{books[at + 1].name[:2]} →]({books[at + 1].name})"] if at + 1 < len(books) else []
    return " · ".join(links)


def minutes(path: Path) -> str:
    """Return a notebook's measured run time in words, as of its last stored run."""
    course = read(path).metadata.get("course", {})
    if "seconds" not in course:
        return "not measured yet"
    seconds = course["seconds"]
    amount = "under a minute" if seconds < 55 else f"about {round(seconds / 60)} min"
    cores = f"{course['cores']} core" + "s" * (course["cores"] > 1)
    return f"{amount} ({seconds:.0f} s measured on {cores}, {course['effort']} effort)"


def refresh_generated() -> list[str]:
    """Write the generated lines of every notebook and the README's table; return the names of the files changed."""
    changed = []
    for path in notebooks():
        book = read(path)
        first, last = book.cells[0], book.cells[-1]
        links = navigation(path)
        wanted = {id(first): f"\n\n<!-- generated -->\n**Time:** {minutes(path)}.\n\n{links}"}
        wanted[id(last)] = f"\n\n<!-- generated -->\n{links}"
        before = nbformat.writes(book)
        for cell in (first, last):
            cell.source = GENERATED.sub("", cell.source) + wanted[id(cell)]
        if nbformat.writes(book) != before:
            write(path, book)
            changed.append(path.name)
    teaching = settings.NOTEBOOKS / "teaching.md"
    pages = ((settings.ROOT / "README.md", README_TABLE, readme_table()), (teaching, GOALS_LIST, goals_list()))
    for page, marks, part in pages:
        text = page.read_text(encoding="utf-8")
        new = marks.sub(lambda found, part=part: found[1] + part + found[2], text)
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
        parts += [f"**[{title(path)}]({path.name})**, {minutes(path)}\n"]
        parts += [*(f"- {goal}" for goal in goals(path)), ""]
    return "\n" + "\n".join(parts) + "\n"
