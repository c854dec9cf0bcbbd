"""helpers.course: freshness, links, the runner and the build command, tried on small courses of our own."""

import base64
import html
import os
import re
import subprocess
import sys

import nbformat
import pytest
from courses import build, make

from course import build as builder
from course import notebooks, run
from helpers import __main__ as command
from helpers import settings

HELPERS = "import sys\nsys.path.append('..')\n"


@pytest.fixture
def here(small_course, monkeypatch):
    """The small course with helpers of its own, in this process: two notebooks, four helpers, a table."""
    places = {"ROOT": ".", "NOTEBOOKS": "notebooks", "DATA": "data", "WEIGHTS": "data/weights", "IMAGES": "data/images"}
    for name, place in places.items():
        monkeypatch.setattr(settings, name, small_course / place)
    monkeypatch.setattr(run, "WORK", small_course / "_build")
    monkeypatch.setattr(run, "KERNELS_LOG", small_course / "_build" / "kernels.log")
    monkeypatch.setattr(builder, "KERNELS_LOG", small_course / "_build" / "kernels.log")
    for name, text in {
        "outer.py": 'from helpers import (  # why\n    inner,\n)\n\n\ndef f():\n    """Doc."""\n    return 1\n',
        "inner.py": "import helpers.sub.deep\n",
        "sub/__init__.py": "",
        "sub/deep.py": "x = 1  # a comment\n",
        "sub/deep.html": "<p>",
        "other.py": "y = 1\n",
    }.items():
        (small_course / "helpers" / name).parent.mkdir(exist_ok=True)
        (small_course / "helpers" / name).write_text(text)
    (small_course / "data" / "table.csv").write_text("a\n1\n")
    (small_course / "README.md").write_text("# R\n\n<!-- notebooks: table -->\n<!-- end of notebooks -->\n")
    (small_course / "notebooks" / "teaching.md").write_text("# T\n\n<!-- goals: list -->\n<!-- end of goals -->\n")
    make(small_course / "notebooks" / "00_counts.ipynb", "from helpers import elsewhere, outer\n'shown'\nprint(1)")
    return small_course


def test_choose_takes_numbers_and_refuses_unknown_ones(here):
    assert [path.name for path in notebooks.choose(["1"])] == ["01_second.ipynb"]
    assert len(notebooks.choose([])) == 2
    with pytest.raises(ValueError, match=r"'07'.*00, 01"):
        notebooks.choose(["07"])


@pytest.mark.parametrize(
    ("file", "text", "changes"),
    [
        ("helpers/outer.py", "from helpers import inner\n\ndef f():\n    return 2\n", True),
        (
            "helpers/outer.py",
            '"""New."""\nfrom helpers import inner\ndef f():\n    # why\n    return 1\n',
            False,
        ),
        ("helpers/outer.py", "from helpers import inner\ndef f():\n    return 1\n\n", False),
        ("helpers/inner.py", "import helpers.sub.deep as deep\n", True),
        ("helpers/sub/deep.py", "x = 1\n", False),
        ("helpers/sub/deep.py", "x = 2\n", True),
        ("helpers/sub/deep.html", "<p>new", True),
        ("helpers/sub/__init__.py", "y = 2", True),
        ("helpers/other.py", "y = 2\n", False),
        ("data/table.csv", "a\n2\n", True),
        ("data/table.csv", "a\r\n1\r\n", False),
        ("data/article/new.csv", "a", True),
        ("data/weights/resnet18-standin-00000000.pth", "", True),
    ],
)
def test_source_hash_follows_what_the_outputs_depend_on(here, file, text, changes):
    path = notebooks.notebooks()[0]
    before = notebooks.source_hash(path)
    (here / file).write_bytes(text.encode())
    assert (notebooks.source_hash(path) != before) == changes


def test_source_hash_looks_at_code_not_at_prose_metadata_or_comments(here):
    path = notebooks.notebooks()[0]
    before = notebooks.source_hash(path)
    book = notebooks.read(path)
    book.cells[0].source += "\nMore words."
    book.cells[1].metadata["tags"] = ["hide-input"]
    book.cells[1].source += "  # a comment"
    book.metadata["course"] = {"alone": True}
    notebooks.write(path, book)
    assert notebooks.source_hash(path) == before
    book.cells[1].source = book.cells[1].source.replace("'shown'", "'another'")
    notebooks.write(path, book)
    assert notebooks.source_hash(path) != before


@pytest.mark.parametrize(
    ("file", "module", "counts"),
    [
        ("data/images/mine.jpg", "images", True),
        ("data/images/mine.jpg", "outer", False),
        ("data/results/a-friend.jsonl", "results", True),
        ("data/results/a-friend.jsonl", "outer", False),
        ("data/weights/own.pth", "outer", True),
    ],
)
def test_an_executed_copy_is_tied_to_a_readers_files_where_it_uses_them(here, file, module, counts):
    path = make(notebooks.notebooks()[0], f"from helpers import {module}")
    before = run.key(path, "sources")
    (here / file).parent.mkdir(exist_ok=True)
    (here / file).write_text("new")
    assert (run.key(path, "sources") != before) == counts


def test_generated_lines_link_forward_and_back_and_are_stable(here):
    assert notebooks.refresh_generated() == ["00_counts.ipynb", "01_second.ipynb", "README.md", "teaching.md"]
    first, last = (notebooks.read(path).cells[-1].source for path in notebooks.notebooks())
    assert "00 →" not in first and "[01 →](01_second.ipynb)" in first and "(index.md)" in first
    assert "[← 00](00_counts.ipynb)" in last and "→" not in last.split("contents")[1]
    assert "[00 · Small](notebooks/00_counts.ipynb) | Small? | not measured yet |" in (here / "README.md").read_text(
        "utf-8"
    )
    teaching = (settings.NOTEBOOKS / "teaching.md").read_text("utf-8")
    assert "**[00 · Small](00_counts.ipynb)**, not measured yet\n\n- do this;\n- and that.\n" in teaching
    assert notebooks.refresh_generated() == [], "a second refresh changed something"


def test_store_keeps_outputs_time_hash_and_that_it_runs_alone(here, capsys, monkeypatch):
    monkeypatch.setenv("COURSE_EFFORT", "standard")  # which storing sets
    path = make(notebooks.notebooks()[0], "a = 20\nprint(a + 1)", alone=True)
    broken = make(notebooks.notebooks()[1], "print('new')", "raise RuntimeError('on purpose')")
    assert builder.store(["00"]) == 0 and builder.store(["01"]) == 1
    said = capsys.readouterr().out
    assert "01_second … FAILED in code cell [2]: RuntimeError: on purpose\n" in said
    assert "01_second.ipynb is as before\n" in said
    book = notebooks.read(path)
    assert (book.cells[1].outputs[0].text, book.cells[1].execution_count) == ("21\n", 1)
    assert book.metadata.course.source_hash == notebooks.source_hash(path)
    assert (book.metadata.course.effort, notebooks.runs_alone(path)) == ("standard", True)
    assert f"{book.metadata.course.seconds:.0f} s measured" in book.cells[0].source
    assert notebooks.read(broken).cells[1].outputs == [] and not list(path.parent.glob("*.part"))


def test_store_takes_the_outputs_of_an_up_to_date_build_with_todays_prose(here, monkeypatch):
    monkeypatch.setenv("COURSE_EFFORT", "standard")  # which storing sets
    path = make(notebooks.notebooks()[0], "import time\nprint(time.time_ns())")
    built = run.run_all([path])[path]
    book = notebooks.read(path)
    book.cells[0].source += "\nMore words."
    notebooks.write(path, book)
    assert builder.store(["00"]) == 0
    book = notebooks.read(path)
    assert book.cells[1].outputs == built.book.cells[1].outputs and "More words." in book.cells[0].source
    assert (book.metadata.course.seconds, book.metadata.course.cores) == (round(built.seconds, 1), built.cores)
    assert "executed" not in book.metadata


def test_run_takes_the_folder_it_is_given(here):
    path = make(notebooks.notebooks()[0], "from pathlib import Path\nprint(Path.cwd().name)")
    assert run.run(path).cells[1].outputs[0].text == "notebooks\n"
    assert run.run(path, folder=here).cells[1].outputs[0].text == f"{here.name}\n"


@pytest.mark.parametrize("effort", ["quick", "standard"])
def test_notebooks_share_the_machine_unless_they_measure(here, monkeypatch, effort):
    """The two that share it wait for each other; the one that runs alone has all cores, but at quick effort."""
    monkeypatch.setenv("COURSE_EFFORT", effort)
    if not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2:
        pytest.skip("this system cannot tie a process to a core, or there is one core only")
    wait = """import os, time, pathlib
pathlib.Path("{me}").touch()
while not pathlib.Path("{other}").exists():
    time.sleep(0.1)"""
    cores = "print(len(os.sched_getaffinity(0)))"
    one, two = notebooks.notebooks()
    make(one, wait.format(me="a", other="b"), cores)
    make(two, wait.format(me="b", other="a"), cores)
    alone = make(here / "notebooks" / "02_alone.ipynb", "import os", cores, alone=True)
    results = run.run_all([alone, one, two])
    counted = {path: int(result.book.cells[2].outputs[0].text) for path, result in results.items()}
    every = len(os.sched_getaffinity(0))
    assert counted[one] + counted[two] == every
    assert counted[alone] == every if effort == "standard" else counted[alone] < every


def ran_at(root):
    return re.search(r"ran at (\d+)", (root / "_build" / "html" / "00_counts.html").read_text("utf-8"))[1]


def test_executed_copies_are_kept_until_something_changes(small_course):
    first = small_course / "notebooks" / "00_counts.ipynb"
    (small_course / "helpers" / "results.py").write_text("from helpers import settings\n")  # the real one takes longer
    measures = "if False:\n    from helpers import results\nopen('../data/results/own.jsonl', 'a').write('a row\\n')"
    make(first, "import time\nprint('ran at', time.time_ns())", measures)  # adds results of its own, as 04 and 05 do
    done = build(small_course)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "kept from" not in done.stdout
    before = ran_at(small_course)
    book = notebooks.read(first)
    book.cells[0].source += "\n\nNew words."
    notebooks.write(first, book)
    done = build(small_course)
    assert ran_at(small_course) == before, "it ran again although nothing changed but prose and its own results"
    assert done.stdout.count("s (kept from an earlier build)") == 2, done.stdout
    assert "New words." in (small_course / "_build" / "html" / "00_counts.html").read_text("utf-8")
    with (small_course / "helpers" / "settings.py").open("a") as file:
        file.write("CHANGED = 1\n")
    done = build(small_course)
    assert ran_at(small_course) != before, "a helper changed and the old output was shown"
    assert done.stdout.count("(kept from an earlier build)") == 1, "01 does not use that helper"
    before = ran_at(small_course)
    build(small_course, COURSE_LABELS="chinese")
    assert ran_at(small_course) != before, "a setting changed and the old output was shown"


def test_what_fails_is_named_and_the_others_still_run(small_course):
    books = small_course / "notebooks"
    make(books / "00_counts.ipynb", "1 + 1", "raise RuntimeError('on purpose')", "print('never')")
    make(books / "02_dies.ipynb", "import os\nos.write(2, b'last words')\nos._exit(1)", alone=True)
    make(
        books / "03_killed.ipynb",
        "1",
        "import os, signal\nos.kill(os.getpid(), signal.SIGTERM)\nos._exit(1)",
        alone=True,
    )
    make(books / "04_noisy.ipynb", "import sys\nprint('oh', file=sys.stderr)")
    done = build(small_course)
    assert done.returncode == 1
    assert "00_counts … FAILED" in done.stdout
    listed = done.stdout.partition("The course at quick effort")[2]
    assert "FAILED  00_counts  in code cell [2]: RuntimeError: on purpose" in listed
    assert re.search(r"passed  01_second", listed)
    assert "FAILED  02_dies  in code cell [1]: the kernel died" in listed
    assert "FAILED  03_killed  in code cell [2]: the kernel died" in listed
    page = (small_course / "_build" / "html" / "00_counts.html").read_text("utf-8")
    assert "Traceback" in page and "on purpose" in page, "its page should show the whole error"
    log = (small_course / "_build" / "kernels.log").read_text("utf-8")
    assert "last words" in log, f"what the kernel said before it died is lost; kept: {log}"
    assert "04_noisy" in done.stderr and "stderr" in done.stderr, "a cell that writes on stderr is a defect"


def test_only_runs_what_was_asked_for(small_course):
    done = build(small_course, "--only", "01")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "00_counts …" not in done.stdout and "passed  00_counts" not in done.stdout
    assert "not run, shown with the outputs stored by the authors: 00_counts" in done.stdout
    page = (small_course / "_build" / "html" / "00_counts.html").read_text("utf-8")
    assert re.search(r"ran at \d", page) is None, "it ran all the same"
    done = build(small_course, "--only", "77")
    assert done.returncode == 2
    assert done.stderr.strip().splitlines() == ["error: No notebook starts with '77'; there are 00, 01."]


def test_a_file_name_that_is_not_utf8_is_named_and_stops_nothing(small_course):
    name = "空白.png".encode("gbk")
    (small_course / "data" / "images").mkdir(exist_ok=True)
    try:
        with open(os.path.join(os.fsencode(small_course / "data" / "images"), name), "wb") as file:  # noqa: PTH118, PTH123
            file.write(b"x")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    make(small_course / "notebooks" / "00_counts.ipynb", HELPERS + "from helpers import images")
    done = build(small_course)
    assert done.returncode == 0, done.stdout + done.stderr
    assert ascii(os.fsdecode(name)).strip("'") in done.stdout and "is not UTF-8" in done.stdout


def test_a_folder_that_cannot_be_written_is_one_line(small_course):
    (small_course / "_build").write_text("a file where a folder should be")
    done = build(small_course)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ") and "_build" in line


def test_pictures_are_described_and_hidden_sources_are_one_click_away(small_course):
    dot = base64.b64encode((small_course / "notebooks" / "figures" / "overview.png").read_bytes()).decode()
    cells = [nbformat.v4.new_markdown_cell("# 00 · Small"), *map(nbformat.v4.new_code_cell, ("'a'", "'b'"))]
    for cell in cells[1:]:
        cell.outputs = [nbformat.v4.new_output("display_data", {"image/png": dot})]
    cells[1].metadata["mystnb"] = {"image": {"alt": "Line plot of this against that."}}
    cells[2].metadata |= {"jupyter": {"source_hidden": True}, "tags": ["hide-input"]}
    book = nbformat.v4.new_notebook(cells=cells, metadata={"language_info": {"name": "python"}})
    notebooks.write(small_course / "notebooks" / "00_counts.ipynb", book)
    done = build(small_course, "--only", "01")
    assert done.returncode == 0, done.stdout + done.stderr
    page = html.unescape((small_course / "_build" / "html" / "00_counts.html").read_text("utf-8"))
    found = re.findall(r'<img alt="([^"]*)"[^>]*_images', page)
    assert found == ["Line plot of this against that.", "Picture drawn by the cell above, in section “00 · Small”"]
    folded = re.findall(r"<details.*?</details>", page, re.DOTALL)
    assert len(folded) == 1 and "'b'" in re.sub(r"<[^>]+>", "", folded[0]) and "<img" not in folded[0]


def test_importing_the_machinery_loads_no_torch():
    modules = ", ".join(f"course.{path.stem}" for path in (settings.ROOT / "helpers/course").glob("[a-z]*.py"))
    code = (
        f"import sys, helpers.__main__, {modules}\nprint({{'torch', 'onnxruntime', 'matplotlib'}} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=settings.ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_unknown_settings_are_refused_by_every_command(monkeypatch, capsys):
    monkeypatch.setenv("COURSE_EFFORT", "some")
    assert command.main(["check"]) == 2
    assert "COURSE_EFFORT is 'some'" in capsys.readouterr().err


def test_the_paddle_command_names_the_step_that_failed(monkeypatch, tmp_path, capfd):
    python = tmp_path / "paddle" / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    monkeypatch.setattr(settings, "EXPORTS", tmp_path)
    monkeypatch.setattr("course.paddle.PACKAGES", ("no/such package",))
    assert command.main(["paddle"]) == 1
    assert "error: this step failed with code" in capfd.readouterr().err
