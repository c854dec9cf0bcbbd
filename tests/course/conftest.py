"""One run of the whole course at quick effort, which all tests share; a small course of our own; a browser."""

import os
import shutil
import sys

import nbformat
import pytest
from courses import ASK, REFUSED, Built, build, copy_course, make, wrong_answers

from course import notebooks, paper
from helpers import settings
from notebooks.lessons import chromium, webpage


@pytest.fixture(scope="session")
def course(tmp_path_factory):
    """Build the whole course once, in a folder with spaces and Chinese; wrong answers are tried after each lesson.

    A reader's odd files lie in ``data/images``: no lesson may stop at them.
    """
    root = copy_course(tmp_path_factory.mktemp("built") / "my course 课程")
    for path in (root / "notebooks").glob("*.ipynb"):
        nb = notebooks.read(path)
        for number, answer in wrong_answers(nb):
            source = ASK.format(answer=answer, number=number, refused=REFUSED)
            nb.cells.append(nbformat.v4.new_code_cell(source, metadata={"tags": ["remove-cell", "asked"]}))
        notebooks.write(path, nb)
    wanted = [webpage.RUNTIME / name for files in webpage.FILES.values() for name in files]
    for file in [*wanted, settings.EXPORTS / "paddle" / "digits_paddle.onnx"]:
        if file.exists():  # fetched earlier, or not
            copy = root / file.relative_to(settings.ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
    readers = root / "data" / "images"
    readers.mkdir(exist_ok=True)
    (readers / "IMG_0001.jpg").write_bytes(b"\0\0\0\x18ftypheic" + bytes(99))  # a HEIC by another name
    if os.name == "posix" and sys.platform != "darwin":  # where file names are bytes
        (readers / os.fsdecode("空白.png".encode("gbk"))).write_bytes(b"no picture")
    return Built(root, build(root))


@pytest.fixture
def browser():
    """Start a browser; one a test, as the commands start their own and Playwright allows one at a time."""
    if lack := chromium.missing():
        pytest.skip(lack)
    with paper.browser() as running:
        yield running


@pytest.fixture
def small_course(tmp_path):
    """A course of two notebooks that run in a moment, with the real commands."""
    root = copy_course(tmp_path / "course", lessons=False)
    make(root / "notebooks" / "00_counts.ipynb", "import time\nprint('ran at', time.time_ns())")
    make(root / "notebooks" / "01_second.ipynb", "1 + 1", "print('fine')")
    for page in (root / "notebooks").glob("*.md"):
        page.unlink()
    (root / "notebooks" / "index.md").write_text("# Small\n\n```{toctree}\n:glob:\n\n0*\n```\n", encoding="utf-8")
    return root
