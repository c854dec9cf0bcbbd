"""helpers.course: reading, linking, running and storing notebooks, tried on small notebooks of our own."""

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError, DeadKernelError

from helpers import settings
from helpers.course import notebooks

OPENING = """# 00 · A title

**A question?**

After this notebook you can

- do this;
- and
  that.

**Needs:** nothing."""


def make(path, *code, title=OPENING):
    cells = [nbformat.v4.new_markdown_cell(title), *map(nbformat.v4.new_code_cell, code)]
    book = nbformat.v4.new_notebook(cells=[*cells, nbformat.v4.new_markdown_cell("The end.")])
    notebooks.write(path, book)
    return path


@pytest.fixture
def small_course(tmp_path, monkeypatch):
    """A course of three notebooks, two helpers and a table, in a folder of its own."""
    for folder in ("notebooks", "helpers", "data/weights"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.setattr(settings, "ROOT", tmp_path)
    monkeypatch.setattr(settings, "NOTEBOOKS", tmp_path / "notebooks")
    monkeypatch.setattr(settings, "DATA", tmp_path / "data")
    monkeypatch.setattr(settings, "WEIGHTS", tmp_path / "data" / "weights")
    (tmp_path / "helpers" / "outer.py").write_text("from helpers import inner\n")
    (tmp_path / "helpers" / "inner.py").write_text("x = 1\n")
    (tmp_path / "helpers" / "other.py").write_text("y = 1\n")
    (tmp_path / "data" / "table.csv").write_text("a\n1\n")
    (tmp_path / "README.md").write_text("# R\n\n<!-- notebooks: table -->\n<!-- end of notebooks -->\n")
    monkeypatch.setattr(course, "TEACHING", tmp_path / "notebooks" / "teaching.md")
    notebooks.TEACHING.write_text("# T\n\n<!-- goals: list -->\n<!-- end of goals -->\n")
    for number in range(3):
        make(tmp_path / "notebooks" / f"0{number}_book.ipynb", "from helpers import outer, elsewhere\nprint(1)")
    return tmp_path


def test_choose_takes_numbers_and_refuses_unknown_ones(small_course):
    assert [path.name for path in notebooks.choose(["01", "02"])] == ["01_book.ipynb", "02_book.ipynb"]
    assert len(notebooks.choose([])) == 3
    with pytest.raises(ValueError, match=r"'07'.*00, 01, 02"):
        notebooks.choose(["07"])


@pytest.mark.parametrize(
    ("file", "text", "changes"),
    [
        ("helpers/outer.py", "from helpers import inner  # new\n", True),
        ("helpers/inner.py", "x = 2\n", True),
        ("helpers/other.py", "y = 2\n", False),
        ("data/table.csv", "a\n2\n", True),
        ("data/table.csv", "a\r\n1\r\n", False),
        ("data/weights/resnet18-standin-00000000.pth", "", True),
    ],
)
def test_source_hash_follows_what_the_outputs_depend_on(small_course, file, text, changes):
    path = notebooks.notebooks()[0]
    before = notebooks.source_hash(path)
    (small_course / file).write_bytes(text.encode())
    assert (notebooks.source_hash(path) != before) == changes


def test_source_hash_looks_at_code_not_at_prose(small_course):
    path = notebooks.notebooks()[0]
    before = notebooks.source_hash(path)
    book = notebooks.read(path)
    book.cells[0].source += "\nMore words."
    notebooks.write(path, book)
    assert notebooks.source_hash(path) == before
    book.cells[1].source += "\nprint(2)"
    notebooks.write(path, book)
    assert notebooks.source_hash(path) != before


def test_generated_lines_link_forward_and_back_and_are_stable(small_course):
    assert notebooks.refresh_generated() == [
        "00_book.ipynb",
        "01_book.ipynb",
        "02_book.ipynb",
        "README.md",
        "teaching.md",
    ]
    first, middle, last = (notebooks.read(path).cells[-1].source for path in notebooks.notebooks())
    assert "00 →" not in first and "[01 →](01_book.ipynb)" in first
    assert "[← 00](00_book.ipynb)" in middle and "[02 →](02_book.ipynb)" in middle and "(index.md)" in middle
    assert "→" not in last.split("contents")[1]
    assert "[00 · A title](notebooks/00_book.ipynb) | A question?" in (small_course / "README.md").read_text("utf-8")
    teaching = notebooks.TEACHING.read_text("utf-8")
    assert "**[00 · A title](00_book.ipynb)**, not measured yet\n\n- do this;\n- and that.\n" in teaching
    assert notebooks.refresh_generated() == [], "a second refresh changed something"


def test_store_keeps_outputs_time_and_hash(small_course):
    path = make(notebooks.notebooks()[0], "a = 20\nprint(a + 1)")
    notebooks.store_outputs(path)
    book = notebooks.read(path)
    assert book.cells[1].outputs[0].text == "21\n"
    assert book.cells[1].execution_count == 1
    assert book.metadata.course.source_hash == notebooks.source_hash(path)
    assert book.metadata.course.effort == "standard"
    notebooks.refresh_generated()
    assert f"{book.metadata.course.seconds:.0f} s measured" in notebooks.read(path).cells[0].source


def test_a_failing_cell_leaves_the_file_as_it_was(small_course):
    path = make(notebooks.notebooks()[0], "print('new')", "raise RuntimeError('on purpose')")
    before = path.read_bytes()
    with pytest.raises(CellExecutionError, match="on purpose"):
        notebooks.store_outputs(path)
    assert path.read_bytes() == before
    assert not list(path.parent.glob("*.part"))


def test_a_killed_kernel_is_called_by_its_name(small_course):
    path = make(notebooks.notebooks()[0], "import os, signal\nos.kill(os.getpid(), signal.SIGTERM)\nos._exit(1)")
    with pytest.raises(DeadKernelError):
        notebooks.run(path)


def test_run_takes_the_folder_it_is_given(small_course):
    path = make(notebooks.notebooks()[0], "from pathlib import Path\nprint(Path.cwd().name)")
    assert notebooks.run(path).cells[1].outputs[0].text == "notebooks\n"
    assert notebooks.run(path, folder=small_course).cells[1].outputs[0].text == f"{small_course.name}\n"
