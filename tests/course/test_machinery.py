"""course: freshness, links, the runner and the build command, tried on small courses of our own."""

import base64
import html
import os
import re
import signal
import subprocess
import sys
import time

import nbformat
import psutil
import pytest
from courses import build, make, start

from course import __main__ as command
from course import build as builder
from course import notebooks, run
from helpers import settings

FILES = {  # a course of our own: what its notebook reaches, and what lies beside that
    "helpers/outer.py": "from helpers import (  # why\n    inner,\n)\nimport os, math\nLIMIT = 3\n"
    'AMONG = {}\nAMONG["a"] = 1\ndef f(a=LIMIT):\n    """Doc."""\n'
    "    return inner.g(a) + math.pi\ndef unused():\n    return AMONG\n",
    "helpers/inner.py": "import subprocess\n\nclass Helper:\n    def method(self):\n        return 1\n"
    'def g(a):\n    return Helper().method() + len("table.csv")\n'
    'def started(name):\n    subprocess.run(["python", "-m", "helpers.programs." + name])\n',
    "helpers/other.py": "y = 1\n",
    "helpers/programs/one.py": "def main():\n    print(1)\nif __name__ == '__main__':\n    main()\n",
    "notebooks/lessons/script.py": "from notebooks.lessons import beside\nprint(beside.value)\n",
    "notebooks/lessons/beside.py": "value = 1\nelse_where = 2\n",
    "data/table.csv": "a\n1\n",
    "data/speed_one.csv": "a\n1\n",
    "data/not_named.csv": "a\n1\n",
    "README.md": "# R\n\n<!-- notebooks: table -->\n<!-- end of notebooks -->\n",
    "notebooks/teaching.md": "# T\n\n<!-- goals: list -->\n<!-- end of goals -->\n",
}
CODE = (
    "from helpers import outer\nfrom helpers.inner import started\n'shown'",
    "def own(f=outer.f):\n    return f(1)\nprint(1)\nif False:\n"
    "    started('one'), 'lessons/script.py', f'speed_{own()}.csv'",
)


@pytest.fixture
def here(small_course, monkeypatch):
    """The small course with helpers of its own, in this process."""
    places = {"ROOT": ".", "NOTEBOOKS": "notebooks", "DATA": "data", "WEIGHTS": "data/weights", "IMAGES": "data/images"}
    for name, place in {**places, "EXPORTS": "data/exports"}.items():
        monkeypatch.setattr(settings, name, small_course / place)
    monkeypatch.setattr(run, "WORK", small_course / "_build")
    for module in (run, builder):
        monkeypatch.setattr(module, "KERNELS_LOG", small_course / "_build" / "kernels.log")
    for name, text in FILES.items():
        (small_course / name).parent.mkdir(parents=True, exist_ok=True)
        (small_course / name).write_text(text)
    make(small_course / "notebooks" / "00_counts.ipynb", *CODE)
    return small_course


def fingerprint():
    return notebooks.reach(notebooks.notebooks()[0]).hash()


@pytest.mark.parametrize(
    ("file", "old", "new", "stale"),
    [
        ("helpers/outer.py", "return inner", "a += 1\n    return inner", True),
        ("helpers/outer.py", "LIMIT = 3", "LIMIT = 4", True),  # a constant, by its name
        ("helpers/outer.py", '"""Doc."""', '"""Other."""\n    # why', False),
        ("helpers/outer.py", "return AMONG", "return AMONG, 2", False),  # a function that no notebook reaches
        ("helpers/outer.py", '["a"] = 1', '["a"] = 2', False),  # a part of a constant that only that one names
        ("helpers/outer.py", "import os, math", "import os, math, json", False),
        ("helpers/outer.py", "LIMIT = 3", "print('at import')\nLIMIT = 3", True),
        ("helpers/inner.py", "return 1", "return 2", True),  # a method
        ("helpers/programs/one.py", "print(1)", "print(2)", True),  # started with -m: any of that package
        ("notebooks/lessons/script.py", "beside.value", "beside.value + 1", True),  # a program, by its file's name
        ("notebooks/lessons/beside.py", "value = 1", "value = 2", True),
        ("notebooks/lessons/beside.py", "else_where = 2", "else_where = 3", False),
        ("helpers/other.py", "1", "2", False),
        ("data/table.csv", "1", "2", True),
        ("data/table.csv", "\n", "\r\n", False),
        ("data/speed_one.csv", "1", "2", True),  # a name with a gap
        ("data/not_named.csv", "1", "2", False),
    ],
)
def test_a_notebook_is_stale_when_what_it_reaches_changed(here, file, old, new, stale):
    before, text = fingerprint(), (here / file).read_text()
    modules = notebooks.reach(notebooks.notebooks()[0]).modules_hash()
    assert text.count(old) >= 1
    (here / file).write_bytes(text.replace(old, new).encode())
    assert (fingerprint() != before) == stale
    if file == "helpers/outer.py" and "Doc" not in old:  # elsewhere in a module that is imported: worth a warning
        assert notebooks.reach(notebooks.notebooks()[0]).modules_hash() != modules


def test_a_move_makes_nothing_stale(here):
    before, inner = fingerprint(), (here / "helpers/inner.py").read_text()
    (here / "helpers/deep").mkdir()
    (here / "helpers/deep/new.py").write_text(inner[inner.index("class") : inner.index("def started")])
    (here / "helpers/inner.py").write_text(f"import subprocess\n{inner[inner.index('def started') :]}")
    outer = (here / "helpers/outer.py").read_text()
    moved = outer.replace("inner.g", "g").replace("    inner,\n", "    inner,\n    other,\n")
    (here / "helpers/outer.py").write_text("from helpers.deep.new import g\n" + moved)
    assert fingerprint() == before
    make(
        here / "notebooks" / "00_counts.ipynb",
        CODE[0].replace("outer\n", "outer as o\n"),
        CODE[1].replace("outer", "o"),
    )
    assert fingerprint() == before
    (here / "helpers/deep/new.py").write_text(inner.replace("return 1", "return 2"))
    assert fingerprint() != before


def test_what_cannot_be_told_counts_whole(here):
    make(here / "notebooks" / "00_counts.ipynb", "from helpers import outer\ngetattr(outer, 'f')()")
    before, outer = fingerprint(), (here / "helpers/outer.py").read_text()
    (here / "helpers/outer.py").write_text(outer.replace("return AMONG", "return AMONG, 2"))
    assert fingerprint() != before


def test_prose_metadata_and_comments_of_a_notebook_do_not_count(here):
    path, before = notebooks.notebooks()[0], fingerprint()
    nb = notebooks.read(path)
    nb.cells[0].source += "\nMore words."
    nb.cells[1].metadata["tags"] = ["hide-input"]
    nb.cells[1].source += "  # a comment"
    notebooks.write(path, nb)
    assert fingerprint() == before
    nb.cells[1].source = nb.cells[1].source.replace("'shown'", "'another'")
    notebooks.write(path, nb)
    assert fingerprint() != before


def reached(path):
    """Return the functions of helpers that a notebook of the course reaches."""
    return {place.name for place in notebooks.reach(path).order if settings.ROOT / "helpers" in place.file.parents}


def test_the_courses_own_notebooks_reach_what_they_call():
    names = {path.name[:2]: reached(path) for path in notebooks.notebooks()}
    assert {"measure", "ratio_interval", "judge", "open_photo"} <= names["04"]
    assert "measure" not in names["01"] and "judge" not in names["00"]


@pytest.mark.parametrize(
    ("file", "module", "counts"),
    [
        ("data/images/mine.jpg", "photos", True),
        ("data/images/mine.jpg", "outer", False),
        ("data/results/a-friend.jsonl", "results", True),
        ("data/results/a-friend.jsonl", "outer", False),
        ("data/weights/own.pth", "outer", True),
    ],
)
def test_an_executed_copy_is_tied_to_a_readers_files_where_it_uses_them(here, file, module, counts):
    (here / "helpers" / f"{module}.py").write_text("def f():\n    return 1\n")
    path = make(notebooks.notebooks()[0], f"from helpers import {module}\n{module}.f()")
    before = run.key(notebooks.reach(path))
    (here / file).parent.mkdir(exist_ok=True)
    (here / file).write_text("new")
    assert (run.key(notebooks.reach(path)) != before) == counts


def test_generated_lines_link_forward_and_back_and_are_stable(here):
    assert [path.name for path in notebooks.choose(["1"])] == ["01_second.ipynb"] and len(notebooks.choose([])) == 2
    assert notebooks.refresh_generated() == ["00_counts.ipynb", "01_second.ipynb", "README.md", "teaching.md"]
    first, last = (notebooks.read(path).cells[-1].source for path in notebooks.notebooks())
    assert "00 →" not in first and "[01 →](01_second.ipynb)" in first and "(index.md)" in first
    assert "[← 00](00_counts.ipynb)" in last and "→" not in last.split("contents")[1]
    row = "[00 · Small](notebooks/00_counts.ipynb) | Small? | not measured yet |"
    assert row in (here / "README.md").read_text("utf-8")
    teaching = (settings.NOTEBOOKS / "teaching.md").read_text("utf-8")
    assert "**[00 · Small](00_counts.ipynb)**, not measured yet\n\n- do this;\n- and that.\n" in teaching
    assert notebooks.refresh_generated() == [], "a second refresh changed something"


def test_store_keeps_outputs_time_and_hash_and_takes_those_of_an_up_to_date_build(here, capsys, monkeypatch):
    monkeypatch.setenv("COURSE_EFFORT", "standard")  # which storing sets
    path = make(notebooks.notebooks()[0], "import time\nprint(time.time_ns())", alone=True)
    broken = make(notebooks.notebooks()[1], "print('new')", "raise RuntimeError('on purpose')")
    built = run.run_all([path])[path]
    nb = notebooks.read(path)
    nb.cells[0].source += "\nMore words."
    notebooks.write(path, nb)
    assert builder.store(["00"]) == 0 and builder.store(["01"]) == 1
    said = capsys.readouterr().out
    assert "01_second … FAILED in code cell [2]: RuntimeError: on purpose\n" in said
    assert "01_second.ipynb is as before\n" in said
    nb, facts = notebooks.read(path), notebooks.facts(path)
    assert nb.cells[1].outputs == built.nb.cells[1].outputs and "More words." in nb.cells[0].source
    assert facts["source_hash"] == notebooks.reach(path).hash() and (facts["effort"], facts["alone"]) == (
        "standard",
        True,
    )
    assert (facts["seconds"], facts["cores"]) == (round(built.seconds, 1), built.cores)
    assert f"{facts['seconds']:.0f} s measured" in nb.cells[0].source and "executed" not in nb.metadata
    assert notebooks.read(broken).cells[1].outputs == [] and not list(path.parent.glob("*.part"))


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
    counted = {path: int(result.nb.cells[2].outputs[0].text) for path, result in results.items()}
    every = len(os.sched_getaffinity(0))
    assert counted[one] + counted[two] == every
    assert counted[alone] == every if effort == "standard" else counted[alone] < every


def ran_at(root):
    return re.search(r"ran at (\d+)", (root / "_build" / "html" / "00_counts.html").read_text("utf-8"))[1]


def test_executed_copies_are_kept_until_something_changes(small_course):
    first = small_course / "notebooks" / "00_counts.ipynb"
    (small_course / "helpers" / "results.py").write_text("ROWS = 1\n")
    measures = "from helpers import results\nresults.ROWS\nopen('../data/results/own.jsonl', 'a').write('a row\\n')"
    make(first, "import sys, time\nsys.path.append('..')\nprint('ran at', time.time_ns())", measures)  # as 04 and 05 do
    done = build(small_course)
    assert done.returncode == 0, done.stdout + done.stderr
    before = ran_at(small_course)
    nb = notebooks.read(first)
    nb.cells[0].source += "\n\nNew words."
    notebooks.write(first, nb)
    done = build(small_course)
    assert ran_at(small_course) == before, "it ran again although nothing changed but prose and its own results"
    assert done.stdout.count("s (kept from an earlier build)") == 2, done.stdout
    assert "New words." in (small_course / "_build" / "html" / "00_counts.html").read_text("utf-8")
    (small_course / "helpers" / "results.py").write_text("ROWS = 2\n")
    done = build(small_course, COURSE_LABELS="english")
    assert ran_at(small_course) != before, "helper and setting changed, and the old output was shown"


def test_sigterm_ends_a_build_and_the_next_one_goes_on(small_course):
    make(
        small_course / "notebooks" / "01_second.ipynb",
        "import os, time\nopen('pid', 'w').write(str(os.getpid()))",
        "time.sleep(600)",
    )
    process = start(small_course)
    (pid_file, copy) = (small_course / place for place in ("notebooks/pid", "_build/executed/quick/00_counts.ipynb"))
    deadline = time.monotonic() + 600
    while not (copy.exists() and pid_file.exists() and pid_file.read_text()) and time.monotonic() < deadline:
        time.sleep(0.2)
    kernel = psutil.Process(int(pid_file.read_text()))
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 128 + signal.SIGTERM and "01_second …" not in out
    assert err == "\nStopped. What had run to its end is kept: the same command goes on from there.\n"
    assert not kernel.is_running() or kernel.status() == psutil.STATUS_ZOMBIE
    make(small_course / "notebooks" / "01_second.ipynb", "1 + 1")
    done = build(small_course)
    assert re.search(r"00_counts  [\d.]+ s \(kept", done.stdout) and re.search(r"01_second  [\d.]+ s\n", done.stdout)


def test_kernels_from_a_warm_process_are_as_fresh_ones(small_course):
    """Many notebooks at quick effort are run by copies of one process; each has its folder, cores, plots and group."""
    code = "import os, sys\nprint('torch' in sys.modules, os.getpgid(0) == os.getpid(), [one for one in sys.modules if "
    code += (
        "one.startswith(('course', 'helpers'))])\nprint(__name__, os.path.basename(os.getcwd()), os.getenv('ANSWER'))"
    )
    for number in range(2, run.WARM_FROM):
        make(
            small_course / "notebooks" / f"0{number}_more.ipynb",
            code,
            "import matplotlib.pyplot as plt\nplt.plot([1]);",
        )
    done = build(small_course, ANSWER="42")
    assert done.returncode == 0 and done.stderr == "", done.stdout + done.stderr
    nb = notebooks.read(small_course / "_build" / "staged" / "02_more.ipynb")
    is_warm = sys.platform == "linux" and len(os.sched_getaffinity(0)) > 1
    assert nb.cells[1].outputs[0].text == f"{is_warm} True []\n__main__ notebooks 42\n"
    assert "image/png" in nb.cells[2].outputs[-1].data


def test_what_fails_is_named_and_the_others_still_run(small_course):
    books = small_course / "notebooks"
    make(books / "00_counts.ipynb", "1 + 1", "raise RuntimeError('on purpose')", "print('never')")
    make(books / "02_dies.ipynb", "import os\nos.write(2, b'last words')\nos._exit(1)", alone=True)
    killed = "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"
    make(books / "03_killed.ipynb", "1", killed, alone=True)
    make(books / "04_noisy.ipynb", "import sys\nprint('oh', file=sys.stderr)")
    done = build(small_course)
    assert done.returncode == 1
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


def test_only_runs_what_was_asked_for_and_the_rest_is_shown_as_stored(small_course):
    dot = base64.b64encode((small_course / "notebooks" / "figures" / "overview.png").read_bytes()).decode()
    cells = [nbformat.v4.new_markdown_cell("# 00 · Small"), *map(nbformat.v4.new_code_cell, ("'a'", "'b'"))]
    for cell in cells[1:]:
        cell.outputs = [nbformat.v4.new_output("display_data", {"image/png": dot})]
    cells[1].metadata["mystnb"] = {"image": {"alt": "Line plot of this against that."}}
    cells[2].metadata |= {"jupyter": {"source_hidden": True}, "tags": ["hide-input"]}
    nb = nbformat.v4.new_notebook(cells=cells, metadata={"language_info": {"name": "python"}})
    notebooks.write(small_course / "notebooks" / "00_counts.ipynb", nb)
    done = build(small_course, "--only", "01")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "00_counts …" not in done.stdout and "passed  00_counts" not in done.stdout
    assert "not run, shown with the outputs stored by the authors: 00_counts" in done.stdout
    page = html.unescape((small_course / "_build" / "html" / "00_counts.html").read_text("utf-8"))
    found = re.findall(r'<img alt="([^"]*)"[^>]*_images', page)
    assert found == ["Line plot of this against that.", "Picture drawn by the cell above, in section “00 · Small”"]
    folded = re.findall(r"<details.*?</details>", page, re.DOTALL)
    assert len(folded) == 1 and "'b'" in re.sub(r"<[^>]+>", "", folded[0]) and "<img" not in folded[0]


def test_refusals_are_one_line(small_course, monkeypatch, capsys):
    done = build(small_course, "--only", "77")
    assert done.returncode == 2
    assert done.stderr.strip().splitlines() == ["error: No notebook starts with '77'; there are 00, 01."]
    (small_course / "_build").write_text("a file where a folder should be")
    done = build(small_course)
    (line,) = done.stderr.strip().splitlines()
    assert done.returncode == 2 and line.startswith("error: ") and "_build" in line
    monkeypatch.setenv("COURSE_EFFORT", "some")
    assert command.main(["check"]) == 2
    assert "COURSE_EFFORT is 'some'" in capsys.readouterr().err


def test_importing_the_machinery_loads_no_torch():
    models = {"warm", "engines", "engine_files"}  # what they are for; the command line imports them when it must
    names = sorted({path.stem for path in (settings.ROOT / "course").glob("[a-z]*.py")} - models)
    modules = ", ".join(f"course.{name}" for name in names)
    code = f"import sys, {modules}\nprint({{'torch', 'onnxruntime', 'matplotlib', 'pandas'}} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], cwd=settings.ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_the_first_result_is_right_in_two_languages():
    done = subprocess.run([sys.executable, "-m", "course", "first"], cwd=settings.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "espresso · 意式浓缩咖啡" in done.stdout.splitlines()[0]
    assert float(re.search(r"PyTorch and ONNX Runtime differ by (\S+)", done.stdout)[1]) < 1e-3
