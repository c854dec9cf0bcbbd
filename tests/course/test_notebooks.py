"""The notebooks as readers get them: stored outputs fresh and clean, and one run of each at quick effort."""

import itertools
import re
import sys
import warnings

import pytest
from courses import NOTEBOOKS, REFUSED, build, code_cells, copy_course, printed, tags, wrong_answers

from course import notebooks
from helpers import settings
from notebooks.lessons import webpage

MAX_KIB = 400
LONGEST_CELL = 25  # visible lines
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def is_hidden(cell):
    """Whether a reader sees a cell's source on asking only: in JupyterLab, and on the site."""
    folded = cell.metadata.get("jupyter", {}).get("source_hidden", False)
    return bool(folded and tags(cell) & {"hide-input", "hide-cell", "remove-cell", "remove-input"})


def complaints(nb):
    """List what a reader should never meet in the outputs of a notebook."""
    cells = code_cells(nb)
    found = []
    if [cell.execution_count for cell in cells] != list(range(1, len(cells) + 1)):
        found.append("execution counts are not 1..n: not one clean run")
    for number, cell in enumerate(cells, start=1):
        for output in cell.outputs:
            if output.output_type == "error":
                found.append(f"cell [{number}] ends in {output.ename}: {output.evalue}")
            if output.output_type == "stream" and output.name == "stderr":
                found.append(f"cell [{number}] writes on stderr: {output.text[:200]}")
            if any("widget" in kind or "latex" in kind for kind in output.get("data", {})):
                found.append(f"cell [{number}] shows a widget or TeX, which need what readers may not have")
    return found


@each_notebook
def test_stored_outputs_are_clean(path):
    assert complaints(notebooks.read(path)) == []
    assert path.stat().st_size <= MAX_KIB * 1024, f"{path.stat().st_size // 1024} KiB, more than {MAX_KIB}"


@each_notebook
def test_stored_outputs_are_fresh(path):
    nb = notebooks.read(path)
    if not nb.metadata.language_info.version.startswith("{}.{}.".format(*sys.version_info)):
        pytest.skip("each Python words a syntax tree in its own way, so hashes compare within one version")
    stored = nb.metadata.get("course", {})
    reach = notebooks.reach(path)
    assert stored.get("source_hash") == reach.hash(), (
        f"what it runs or reads changed after the stored run: python -m course store --only {path.name[:2]}"
    )
    if stored.get("modules_hash") != reach.modules_hash():
        warnings.warn(f"{path.name}: modules that it imports changed, but nothing that it calls", stacklevel=1)
    assert stored["effort"] == "standard"
    assert notebooks.minutes(path) in nb.cells[0].source, "the time shown is not that of the stored run"


@each_notebook
def test_structure(path):
    nb = notebooks.read(path)
    first, text = nb.cells[0].source, "\n".join(cell.source for cell in nb.cells)
    assert first.startswith(f"# {path.name[:2]} · ")
    assert re.search(r"^\*\*.+\?\*\*$", first, re.MULTILINE), "the first cell asks no question in bold"
    for word in ("After this notebook you can", "**Needs:**"):
        assert word in first, f"{word!r} is missing from the first cell"
    assert len(notebooks.goals(path)) >= 3
    assert "## Recap" in text and "## Exercises" in text
    assert "machine.versions_line()" in code_cells(nb)[0].source
    assert re.search(r"^[A-Z_]+ = ", code_cells(nb)[1].source, re.MULTILINE), "no settings in capitals"
    links = notebooks.navigation(path)
    assert first.endswith(links) and nb.cells[-1].source.endswith(links), "run python -m course store"
    prose = "\n".join(cell.source for cell in nb.cells if cell.cell_type == "markdown")
    levels = [len(marks) for marks in re.findall(r"(?m)^(#+) \S", re.sub(r"(?ms)^```.*?^```", "", prose))]
    assert levels[0] == 1 and levels.count(1) == 1, "the contents pane should begin with the one title"
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels)), f"a level is left out: {levels}"


@each_notebook
def test_a_conclusion_is_a_sentence_not_code(path):
    """Hidden, one click away: cells that word a sentence, and from 04 on imports and settings."""
    cells = code_cells(notebooks.read(path))
    known_by_now = cells[:2] if path.name >= "04" else []
    bare = [cell for cell in cells if "Markdown(" in cell.source or cell in known_by_now]
    seen = [cell.source[:200] for cell in bare if not is_hidden(cell)]
    hint = 'hide their source: "jupyter": {"source_hidden": true}, "tags": ["hide-input"]'
    assert not seen, "\n…\n".join([hint, *seen])
    lines = {
        cell.source[:80]: len(list(filter(str.strip, cell.source.splitlines())))
        for cell in cells
        if not is_hidden(cell)
    }
    assert {start: count for start, count in lines.items() if count > LONGEST_CELL} == {}, "cells too long to take in"


@each_notebook
def test_exercises_ask_check_and_then_solve(path):
    """An answer cell, then its check, then the collapsed solution: in this order a run keeps the reader's answer."""
    cells = notebooks.read(path).cells
    exercises = [at for at, cell in enumerate(cells) if "exercise" in tags(cell)]
    assert 2 <= len(exercises) <= 3
    for at in exercises:
        check, solution = cells[at + 1], cells[at + 2]
        assert "check" in tags(check) and "assert" in check.source, f"cell {at + 1} should check the answer before it"
        assert check.metadata.get("course", {}).get("wrong"), 'a wrong answer belongs to it: "course": {"wrong": ["…"]}'
        assert {"solution", "hide-cell"} <= tags(solution), f"cell {at + 2} should be the solution"
        assert solution.metadata.jupyter.source_hidden and solution.metadata.jupyter.outputs_hidden
    assert sum("solution" in tags(cell) for cell in cells) == len(exercises)


@each_notebook
def test_every_picture_of_a_cell_has_a_text_of_its_own(path):
    texts = []
    for cell in code_cells(notebooks.read(path)):
        if any(kind.startswith("image/") for output in cell.outputs for kind in output.get("data", {})):
            alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt")
            assert alt, f"metadata mystnb.image.alt should say what this cell draws:\n{cell.source}"
            texts.append(alt)
    assert len(set(texts)) == len(texts), "two cells of one notebook say the same of their pictures"


@each_notebook
def test_no_text_needs_a_typesetter_of_formulas(path):
    """MathJax comes from a network, so formulas are written in plain characters or as code."""
    cells = notebooks.read(path).cells
    texts = [cell.source for cell in cells if cell.cell_type == "markdown"]
    shown = [output.get("data", {}) for cell in cells for output in cell.get("outputs", ())]
    texts += [data["text/markdown"] for data in shown if "text/markdown" in data]
    plain = re.sub(r"(?s)```.*?```|`[^`\n]*`", "", "\n".join(texts))
    assert re.findall(r"\$[^$\n]+\$|\\[(\[]", plain) == [], "they stay dollars and backslashes without a network"


@each_notebook
def test_it_runs_alone_at_quick_effort(path, course):
    nb = course.nb(path)
    assert complaints(nb) == []
    for number, check in enumerate(code_cells(nb, "check"), start=1):
        assert printed(check) == "No answer yet.\n", f"exercise {number} does not wait for an answer"
    for number, cell in enumerate(code_cells(nb, "solution"), start=1):
        assert f"Exercise {number} is right" in printed(cell), f"its solution fails exercise {number}"


@each_notebook
def test_wrong_answers_are_refused(path, course):
    asked = code_cells(course.nb(path), "asked")
    assert len(asked) == len(wrong_answers(notebooks.read(path)))
    taken = [cell.source for cell in asked if REFUSED not in printed(cell)]
    assert not taken, "a check takes these wrong answers:\n" + "\n…\n".join(taken)


def test_no_lesson_asked_the_network(course):
    """On random weights none has to; the kernels' cables were pulled, and kept a list (see the next test)."""
    tried = course.root.parent / "tried.txt"
    assert not tried.exists(), f"a lesson asked for {tried.read_text()}"


# Before the first cell of a kernel: engines are not installed, the processor is an old one, and there is no compiler.
POOR_MACHINE = """
import importlib.util as _util, sys as _sys
_hidden = {"openvino", "cv2", "ncnn", "pnnx", "skl2onnx", "keras", "onnxslim", "nncf", "torchao"}
class _Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in _hidden:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
_find_spec = _util.find_spec
_util.find_spec = lambda name, *more: None if name.partition(".")[0] in _hidden else _find_spec(name, *more)
_sys.meta_path.insert(0, _Hidden())
import torch as _torch
_torch.cpu.get_capabilities = lambda: {"cpu_name": "An old processor"}
"""


@pytest.mark.slow
def test_what_a_machine_lacks_is_said_and_stops_nothing(tmp_path):
    """No optional engine, ONNX Runtime Web, compiler, network or labelled photos, an old processor; on any weights."""
    root = copy_course(tmp_path / "course")
    rest = {"COURSE_WEIGHTS": "auto", "CXX": "no-such-compiler", "TORCH_HOME": str(tmp_path / "no-weights-here")}
    rest["https_proxy"] = "http://127.0.0.1:9"  # for the build command itself; nobody answers there
    rest["COURSE_STAMPS"] = str(tmp_path / "no-stamps-here")
    done = build(root, "--only", "07", "09", "10", "11", startup=POOR_MACHINE, **rest)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("passed  ") == 4
    text = {path.name[:2]: path.read_text("utf-8") for path in (root / "_build" / "staged").glob("*.ipynb")}
    listed = (settings.ROOT / "requirements.txt").read_text("utf-8")
    optional = re.findall(r"^#optional ([\w-]+).*\b11\b", listed, re.MULTILINE)  # those that 11 needs
    assert len(optional) >= 5
    unnamed = [name for name in optional if not re.search(rf"pip install [\w -]*{name}\b", text["11"])]
    assert not unnamed, f"no row of 11 says how to get {unnamed}"
    assert webpage.INSTALL in text["11"] and "notebooks/lessons/paddle.py" in text["11"]
    for number, name in (("09", "openvino"), ("10", "nncf"), ("10", "torchao")):
        assert f"python -m pip install {name}" in text[number]
    assert "An old processor" in text["09"]
    assert "pytorch.org" in (tmp_path / "tried.txt").read_text(), "the cable was not pulled: nobody asked for weights"
