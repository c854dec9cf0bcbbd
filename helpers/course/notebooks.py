"""The notebooks as files: which there are, how they link to each other, and whether their stored outputs are fresh.

Nothing here is taught in a notebook; ``python -m helpers`` and the tests use it.
"""

import hashlib
import re
import time
from collections.abc import Iterator
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import DeadKernelError

from helpers import machine, settings

TEACHING = settings.NOTEBOOKS / "teaching.md"
README_TABLE = re.compile(r"(<!-- notebooks: .*?-->\n).*?(<!-- end of notebooks -->)", re.DOTALL)
GOALS_LIST = re.compile(r"(<!-- goals: .*?-->\n).*?(<!-- end of goals -->)", re.DOTALL)
GENERATED = re.compile(r"\n*<!-- generated -->.*\Z", re.DOTALL)


def notebooks() -> list[Path]:
    """Return the course's notebooks in order."""
    return sorted(settings.NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))


def choose(numbers: list[str]) -> list[Path]:
    """Return the notebooks whose names start with one of the given numbers ("03"); all of them for an empty list.

    Raises:
        ValueError: if a number fits no notebook.
    """
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


def _code(book: nbformat.NotebookNode) -> list[str]:
    return [cell.source for cell in book.cells if cell.cell_type == "code"]


def _helpers_imported(code: str) -> set[str]:
    names = re.findall(r"from helpers\.(\w+) import|import helpers\.(\w+)", code)
    lists = re.findall(r"from helpers import \(?([\w\s,]+)", code)
    words = {word for pair in names for word in pair} | {word for text in lists for word in re.split(r"[\s,]+", text)}
    return {word for word in words if (settings.ROOT / "helpers" / f"{word}.py").exists()}


def needs_all_cores(path: Path) -> bool:
    """Whether a notebook measures speed or describes the machine; the others may share it with each other."""
    imported = _helpers_imported("\n".join(_code(read(path))))
    return "models" not in imported or bool(imported & {"timing", "sweep", "roofline"})


def _sources(path: Path) -> Iterator[bytes]:
    """Yield all that a notebook's outputs depend on: its code, the helpers it imports and the course's data."""
    code = "\n".join(_code(read(path)))
    yield code.encode()
    waiting, seen = _helpers_imported(code), set()
    while waiting:
        name = waiting.pop()
        seen.add(name)
        module = settings.ROOT / "helpers" / f"{name}.py"
        waiting |= _helpers_imported(module.read_text(encoding="utf-8")) - seen
    for name in sorted(seen):
        yield (settings.ROOT / "helpers" / f"{name}.py").read_bytes()
    for table in sorted(settings.DATA.glob("*.csv")):
        yield table.read_bytes()
    for weights in sorted(settings.WEIGHTS.glob("*-standin-*.pth")):
        yield weights.name.encode()  # the name holds the content's hash


def source_hash(path: Path) -> str:
    """Return the SHA-256 of all that a notebook's outputs depend on; line ends do not count."""
    digest = hashlib.sha256()
    for source in _sources(path):
        digest.update(source.replace(b"\r\n", b"\n") + b"\0")
    return digest.hexdigest()


def cell_timeout_s() -> int | None:
    """Return after how many seconds a cell is given up; None at full effort, whose sweeps take hours."""
    return None if settings.effort() == "full" else 600


def run(path: Path, *, folder: Path | None = None) -> nbformat.NotebookNode:
    """Run a notebook from top to bottom in a fresh kernel; the file stays as it is.

    Args:
        path: the notebook.
        folder: the kernel's working folder; the notebook's own if not given.
    Returns:
        The notebook with its new outputs.
    Raises:
        nbclient.exceptions.CellExecutionError: if a cell fails (likewise CellTimeoutError, DeadKernelError).
    """
    book = read(path)
    resources = {"metadata": {"path": str(folder or path.parent)}}
    try:
        # A kernel that is asked to leave takes two seconds; nothing of it is needed any more.
        NotebookClient(book, timeout=cell_timeout_s(), resources=resources, shutdown_kernel="immediate").execute()
    except AssertionError as error:  # nbclient's own, while it cleans up after a kernel that was killed
        if isinstance(error.__context__, DeadKernelError):
            raise error.__context__ from None
        raise
    for cell in book.cells:
        cell.metadata.pop("execution", None)  # time stamps of every cell: a new diff each run, and nobody reads them
    return book


def store_outputs(path: Path) -> float:
    """Run a notebook and keep its outputs, its run time and its source hash; if a cell fails, the file stays as it was.

    Returns:
        The run time in seconds, the kernel's start included.
    """
    sources = source_hash(path)
    started = time.perf_counter()
    book = run(path)
    seconds = time.perf_counter() - started
    book.metadata["course"] = {
        "source_hash": sources,
        "effort": settings.effort(),
        "seconds": round(seconds, 1),
        "cores": machine.usable_cores(),
    }
    write(path, book)
    return seconds


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
    course = read(path).metadata.get("course")
    if not course:
        return "not measured yet"
    seconds = course["seconds"]
    amount = "under a minute" if seconds < 55 else f"about {max(1, round(seconds / 60))} min"
    return f"{amount} ({seconds:.0f} s measured on {course['cores']} cores, {course['effort']} effort)"


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
    pages = ((settings.ROOT / "README.md", README_TABLE, readme_table()), (TEACHING, GOALS_LIST, goals_list()))
    for page, marks, part in pages:
        text = page.read_text(encoding="utf-8")
        new = marks.sub(lambda found, part=part: found[1] + part + found[2], text)
        if new != text:
            page.write_text(new, encoding="utf-8", newline="\n")
            changed.append(page.name)
    return changed


def readme_table() -> str:
    """Return the README's table of notebooks, in Markdown."""
    rows = ["| notebook | the question it answers |", "| --- | --- |"]
    rows += [f"| [{title(path)}](notebooks/{path.name}) | {question(path)} |" for path in notebooks()]
    return "\n".join(rows) + "\n"


def goals_list() -> str:
    """Return the teacher's list of what each notebook teaches, in Markdown."""
    parts = []
    for path in notebooks():
        parts += [f"**[{title(path)}]({path.name})**, {minutes(path)}\n"]
        parts += [*(f"- {goal}" for goal in goals(path)), ""]
    return "\n" + "\n".join(parts) + "\n"
