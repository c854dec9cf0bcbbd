"""The files around the notebooks agree with each other, and the code is clean."""

import ast
import re
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter
from importlib.metadata import distribution, packages_distributions

import pytest
import yaml
from courses import code_cells

import course
import helpers
from course import notebooks
from helpers import settings
from notebooks.lessons import webpage

ROOT = settings.ROOT
# Lines of Python, about as many as there are: a line more needs a reason. Lessons without the service.
BUDGETS = {"helpers": 3630, "course": 2080, "notebooks/lessons": 960, "tests": 7000}


def requirements():
    """Return the requirement lines without comments."""
    lines = (ROOT / "requirements.txt").read_text("utf-8").splitlines()
    return [line.split("#")[0].strip() for line in lines if line.split("#")[0].strip()]


def names():
    optional = re.findall(r"^#optional (\S+)", (ROOT / "requirements.txt").read_text("utf-8"), re.MULTILINE)
    return {re.split(r"[=<>~!]", line)[0].strip().lower() for line in [*requirements(), *optional]}


def test_tables_of_notebooks_are_the_folder():
    assert notebooks.readme_table() in (ROOT / "README.md").read_text("utf-8"), "run python -m course store"
    assert notebooks.goals_list() in (settings.NOTEBOOKS / "teaching.md").read_text("utf-8"), (
        "run python -m course store"
    )
    assert len(notebooks.notebooks()) == len(list(settings.NOTEBOOKS.glob("*.ipynb"))), "a notebook without a number"


def test_environment_yml_delegates_to_requirements():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))
    assert environment["channels"] == ["conda-forge"]
    plain = [item for item in environment["dependencies"] if isinstance(item, str)]
    (pip,) = [item["pip"] for item in environment["dependencies"] if isinstance(item, dict)]
    assert {re.split(r"[=<>]", item)[0] for item in plain} == {"python", "pip"}, "packages belong in requirements.txt"
    assert pip == ["-r requirements.txt"]
    python = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["requires-python"]
    assert f"python{python}" in plain, "environment.yml and pyproject.toml ask for different Pythons"


def test_every_import_is_required_and_every_requirement_says_what_it_is_for():
    for line in (ROOT / "requirements.txt").read_text("utf-8").splitlines():
        assert not line.strip() or "#" in line, f"no reason given: {line}"
    texts = [
        path.read_text("utf-8")
        for folder in ("course", "helpers", "tests", "notebooks")
        for path in (ROOT / folder).rglob("*.py")
        if settings.EXPORTS not in path.parents  # what notebooks and commands made, whole environments among it
    ]
    texts += ["\n".join(cell.source for cell in code_cells(notebooks.read(path))) for path in notebooks.notebooks()]
    imported = set(re.findall(r"^\s*(?:import|from) ([a-zA-Z_]\w*)", "\n".join(texts), re.MULTILINE))
    imported -= {"course", "helpers", *sys.stdlib_module_names}
    owners = packages_distributions()
    for module in imported & set(owners):
        wanted = {re.sub(r"[-_.]+", "-", name).lower() for name in owners[module]}
        assert wanted & {re.sub(r"[-_.]+", "-", name) for name in names()}, f"{module} is not in requirements.txt"


@pytest.mark.parametrize("line", requirements())
def test_installed_version_is_the_required_one(line):
    from packaging.requirements import Requirement

    wanted = Requirement(line)
    assert wanted.specifier.contains(distribution(wanted.name).version, prereleases=True)


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]], ids=" ".join)
def test_ruff(command):
    done = subprocess.run(
        [sys.executable, "-m", "ruff", *command, str(ROOT)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_links_in_markdown_files_resolve():
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text("utf-8")):
            if not target.startswith("https://"):
                assert (ROOT / target).exists(), f"{page.name} links to {target}, which is not there"


def test_the_command_for_the_web_runtime_is_one_everywhere():
    for path in (ROOT / "README.md", ROOT / ".ci" / "run", *settings.NOTEBOOKS.glob("11_*.ipynb")):
        named = re.findall(r"onnxruntime-web@([\d.]+\d)", path.read_text("utf-8"))
        assert named and set(named) == {webpage.VERSION}, f"{path.name} names another version than webpage.py"


def modules(folder):
    """Return the Python files of a folder by their dotted names."""
    return {".".join(file.relative_to(ROOT).with_suffix("").parts): file for file in (ROOT / folder).rglob("[a-z]*.py")}


STATE = """import importlib, logging, os, sys, warnings
sys.path.insert(0, sys.argv[1])
import matplotlib, torch
def state():
    levels = {name: one.level for name, one in logging.root.manager.loggerDict.items() if hasattr(one, "level")}
    return [dict(os.environ), dict(matplotlib.rcParams), torch.get_num_threads(), logging.root.level, levels,
            list(warnings.filters), torch.get_rng_state().tolist(), os.getcwd()]
def load():
    for name in sys.argv[2:]:
        sys.modules.pop(name, None)
    for name in sys.argv[2:]:
        importlib.import_module(name)
load()  # what it imports may set itself up, once
logging.root.manager.loggerDict.clear()
before = state()
load()
changed = [(old, new) for old, new in zip(before, state()) if old != new]
assert not changed, changed
"""


def test_nothing_happens_at_import(tmp_path):
    """No module that a notebook imports downloads, writes, prints or changes a global setting at import."""
    places = [ROOT / folder for folder in ("course", "data", "helpers", "notebooks")]
    there = lambda: {file: file.stat().st_mtime_ns for place in places for file in place.rglob("*") if file.is_file()}  # noqa: E731
    programs = "notebooks.lessons.service."
    names = [name for name in {**modules("helpers"), **modules("notebooks/lessons")} if not name.startswith(programs)]
    before, command = there(), [sys.executable, "-B", "-c", STATE, str(ROOT), *names]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert there() == before and list(tmp_path.iterdir()) == []


def imports(source):
    """Return the modules that code imports, by their dotted names."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def test_arrows_point_one_way():
    """Helpers stand alone, lessons on helpers, notebooks on both, and none on the machinery; no module on itself."""
    arrows = {}
    for folder in ("helpers", "notebooks/lessons", "course"):
        arrows |= {name: imports(file.read_text("utf-8")) for name, file in modules(folder).items()}
    for path in notebooks.notebooks():
        sources = [cell.source for cell in code_cells(notebooks.read(path))]
        arrows[f"notebooks.{path.stem}"] = imports("\n".join(one for one in sources if not one.startswith(("%%", "!"))))
    allowed = {"helpers": ("helpers",), "notebooks.lessons": ("helpers", "notebooks.lessons")}
    allowed |= {
        "notebooks": ("helpers", "notebooks.lessons"),
        "course": ("helpers", "course", "notebooks.lessons.chromium"),
    }
    for name, ends in arrows.items():
        ours = {end for end in ends if end.partition(".")[0] in ("helpers", "notebooks", "course", "tests")}
        layer = next(layer for layer in ("notebooks.lessons", name.partition(".")[0]) if name.startswith(layer))
        wrong = [end for end in ours - {"notebooks.lessons"} if not end.startswith(allowed[layer])]
        assert wrong == [], f"{name} imports {wrong}"
    TopologicalSorter({name: ends & arrows.keys() for name, ends in arrows.items()}).prepare()  # CycleError names them


def test_photos_and_what_a_service_needs_import_no_pytorch():
    """Its workers start in a moment, and what one ships is small."""
    code = "import sys; from helpers import labels, photos, settings; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("package", [helpers, course], ids=lambda package: package.__name__)
def test_the_map_names_every_module(package):
    """The docstring of a package is what one reads first: each module stands in it, and no other."""
    listed = re.findall(r"^    (\w+) +\S", package.__doc__, re.MULTILINE)
    there = [name.rpartition(".")[2] for name in modules(package.__name__)]
    assert sorted(listed) == sorted(there), f"the map in {package.__name__} is not the folder"


@pytest.mark.parametrize(("folder", "most"), BUDGETS.items())
def test_no_part_grows_over_its_budget(folder, most):
    files = [file for file in (ROOT / folder).rglob("*.py") if "service" not in file.relative_to(ROOT).parts[:-1]]
    lines = sum(len(file.read_text("utf-8").splitlines()) for file in files)
    assert lines <= most, (
        f"{folder} has {lines} lines of Python; its budget is {most}: make room, or say why it needs more"
    )


def test_each_term_of_the_glossary_is_used_where_it_says_that_it_is_explained():
    text = (settings.NOTEBOOKS / "glossary.md").read_text("utf-8")
    entries = dict(re.findall(r"(?m)^([^\s`#{].*?) · .*\n((?:  .*\n)+)", text))
    assert {"spinning", "QDQ", "NCHWc", "logit", "margin"} <= entries.keys() and len(entries) > 30
    for term, body in entries.items():
        named = re.findall(r"\]\((\w+\.ipynb)\)", body)
        assert named, f"{term}: no notebook is named"
        for name in named:
            prose = "\n".join(cell.source for cell in notebooks.read(settings.NOTEBOOKS / name).cells)
            assert re.search(re.escape(term).replace("\\ ", "[ -]"), prose, re.IGNORECASE), f"{term} is not in {name}"


@pytest.mark.parametrize("script", sorted((ROOT / "findings").glob("*.sh")), ids=lambda path: path.stem)
def test_a_finding_is_a_script_that_says_what_it_shows_and_cleans_up(script):
    """None is run here: each installs packages of its own."""
    text = script.read_text("utf-8")
    head = text.split("set -euo pipefail")[0]
    for part in ("Expected:", "Happens:", "Notice:", "Versions:", "Seen 20", "Hurts:"):
        assert part in head, f"{script.name} does not say: {part}"
    assert "mktemp -d" in text and "trap 'rm -rf" in text, "the folder is not temporary"
    packages = re.search(r"pip install --quiet --disable-pip-version-check (.+)", text)[1].split()
    assert packages and all("==" in package for package in packages), "a package without its version"
    assert "assert " in text or "sys.exit(" in text, "it cannot fail"
    subprocess.run(["bash", "-n", script], check=True)
