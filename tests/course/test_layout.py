"""The files around the notebooks agree with each other, and the code is clean."""

import ast
import re
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter
from importlib.metadata import distribution, packages_distributions
from pathlib import Path

import helpers.course
import pytest
import yaml
from courses import code_cells

from course import notebooks
from helpers import settings
from notebooks.lessons import webpage

ROOT = settings.ROOT


def requirements():
    """Return the requirement lines without comments."""
    lines = (ROOT / "requirements.txt").read_text("utf-8").splitlines()
    return [line.split("#")[0].strip() for line in lines if line.split("#")[0].strip()]


def names():
    optional = re.findall(r"^#optional (\S+)", (ROOT / "requirements.txt").read_text("utf-8"), re.MULTILINE)
    return {re.split(r"[=<>~!]", line)[0].strip().lower() for line in [*requirements(), *optional]}


def test_readme_table_is_the_folder():
    readme = (ROOT / "README.md").read_text("utf-8")
    assert notebooks.readme_table() in readme, "run python -m course store"
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


def test_every_requirement_says_what_it_is_for():
    for line in (ROOT / "requirements.txt").read_text("utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            assert re.search(r"#\s+\S+", line), f"no reason given: {line}"


def test_every_import_is_required():
    """Each package imported by helpers, notebooks or tests has a line in requirements.txt."""
    texts = [
        path.read_text("utf-8")
        for folder in ("helpers", "tests", "data", "notebooks")
        for path in (ROOT / folder).rglob("*.py")
        if settings.EXPORTS not in path.parents  # what notebooks and commands made, whole environments among it
    ]
    texts += ["\n".join(cell.source for cell in code_cells(notebooks.read(path))) for path in notebooks.notebooks()]
    imported = set(re.findall(r"^\s*(?:import|from) ([a-zA-Z_]\w*)", "\n".join(texts), re.MULTILINE))
    imported -= {"helpers", *sys.stdlib_module_names}
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
        assert named and set(named) == {webpage.VERSION}, f"{path.name} names another version than helpers/webpage.py"


def modules():
    """Return the names of the learner's modules."""
    return sorted(path.stem for path in (ROOT / "helpers").glob("[a-z]*.py"))


STATE = """import importlib, logging, os, sys, warnings
sys.path.insert(0, sys.argv[1])
import matplotlib, torch
def state():
    levels = {name: one.level for name, one in logging.root.manager.loggerDict.items() if hasattr(one, "level")}
    return [dict(os.environ), dict(matplotlib.rcParams), torch.get_num_threads(), logging.root.level, levels,
            list(warnings.filters), torch.get_rng_state().tolist(), os.getcwd()]
def load():
    for name in sys.argv[2:]:
        sys.modules.pop(f"helpers.{name}", None)
    for name in sys.argv[2:]:
        importlib.import_module(f"helpers.{name}")
load()  # what it imports may set itself up, once
logging.root.manager.loggerDict.clear()
before = state()
load()
changed = [(old, new) for old, new in zip(before, state()) if old != new]
assert not changed, changed
"""


def test_importing_helpers_does_nothing(tmp_path):
    """No module downloads, writes, prints or changes a global setting at import."""
    before = {path: path.stat().st_mtime_ns for path in ROOT.rglob("*") if ".git" not in path.parts and path.is_file()}
    command = [sys.executable, "-B", "-c", STATE, str(ROOT), *modules()]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    after = {path: path.stat().st_mtime_ns for path in before}
    assert after == before
    assert list(Path(tmp_path).iterdir()) == []


def imports(source):
    """Return the modules of ``helpers`` that code imports."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name.removeprefix("helpers.") for name in found if name.startswith("helpers.")}


def test_arrows_point_one_way():
    """No lesson and no learner's module imports the machinery, and no module imports itself by a detour."""
    learners = [name for name in modules() if name != "__main__"]
    arrows = {name: imports((ROOT / "helpers" / f"{name}.py").read_text("utf-8")) for name in learners}
    for path in notebooks.notebooks():
        sources = [cell.source for cell in code_cells(notebooks.read(path))]
        arrows[path.stem] = imports("\n".join(source for source in sources if not source.startswith("%%")))  # no files
    assert [name for name, ends in arrows.items() if any(end.startswith("course") for end in ends)] == []
    TopologicalSorter(arrows).prepare()  # CycleError names the modules


def test_a_service_needs_no_pytorch():
    """What notebook 14 writes imports none: its workers start in a moment, and what one ships is small."""
    code = "import sys; from helpers import labels, photos; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_the_map_names_every_module():
    """The docstring of a package is what one reads first: each module stands in it, and no other."""
    for package, there in ((helpers, {*modules(), "course"}), (helpers.course, None)):
        folder = Path(package.__file__).parent
        listed = re.findall(r"^    (\w+) +\S", package.__doc__, re.MULTILINE)
        there = there or {path.stem for path in folder.glob("[a-z]*.py")}
        assert sorted(listed) == sorted(there), f"the map in {package.__name__} is not the folder"


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
