"""Build the site from executed copies, and store outputs in the notebooks themselves."""

import io
import os
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import joblib
from nbformat import NotebookNode

from course import WORK, notebooks
from course.run import KERNELS_LOG, run_all
from helpers import settings


def build(effort: str, only: list[str], out: Path) -> int:
    """Run the notebooks whose numbers ``only`` lists, or all; render the site in ``out``; return the exit code."""
    os.environ["COURSE_EFFORT"] = effort  # the kernels inherit it
    paths = notebooks.choose(only)
    out.mkdir(parents=True, exist_ok=True)
    KERNELS_LOG.unlink(missing_ok=True)
    started = time.perf_counter()
    results = run_all(paths)
    complaints = render({path.name: result.nb for path, result in results.items()}, out)
    print(f"\nThe course at {effort} effort took {time.perf_counter() - started:.0f} s:")
    for path in paths:
        result = results[path]
        kept = " (kept from an earlier build)" if result.kept else ""
        seconds = f"{result.seconds:.1f} s{kept}"
        print(f"  FAILED  {path.stem}  {result.problem}" if result.problem else f"  passed  {path.stem}  {seconds}")
    if others := [path.stem for path in notebooks.notebooks() if path not in results]:
        print(f"  not run, shown with the outputs stored by the authors: {', '.join(others)}")
    failed = any(result.problem for result in results.values())
    if failed:
        print(f"  their pages show the whole error; what the kernels said themselves: {KERNELS_LOG}")
    if complaints:
        print(f"Sphinx complains:\n{complaints}", file=sys.stderr)
    print(f"The site: {(out / 'index.html').resolve().as_uri()}")
    return 1 if complaints or failed else 0


def render(executed: Mapping[str, NotebookNode], out: Path, *, builder: str = "html", **choices: Any) -> str:
    """Render the pages, ``executed`` copies (by file name) instead of stored ones; return Sphinx's complaints.

    ``choices`` are settings that differ from ``notebooks/conf.py``.
    """
    from sphinx.application import Sphinx
    from sphinx.util.docutils import docutils_namespace, patch_docutils

    staged, warnings = WORK / "staged", io.StringIO()
    shutil.rmtree(staged, ignore_errors=True)
    shutil.copytree(settings.NOTEBOOKS, staged, ignore=shutil.ignore_patterns(".ipynb_checkpoints", "__pycache__"))
    shutil.copy(settings.DATA / "surprises.csv", staged)  # Sphinx reads tables beside its pages
    for name, nb in executed.items():
        notebooks.write(staged / name, nb)
    with patch_docutils(staged), docutils_namespace():
        where, cores = (staged, staged, out, WORK / "doctrees"), joblib.cpu_count()
        app = Sphinx(*where, builder, choices, None, warnings, freshenv=True, parallel=cores)
        app.build()
    return warnings.getvalue().strip()


def store(only: list[str]) -> int:
    """Keep outputs in the notebooks, those of an up-to-date build or of a run now; return the exit code.

    Run time, cores and hashes go with them, and generated lines are refreshed. Where a cell fails, the file stays as it
    was.
    """
    os.environ["COURSE_EFFORT"] = settings.effort()  # as a build sets it: executed copies are tied to it
    KERNELS_LOG.unlink(missing_ok=True)
    reaches = {path: notebooks.reach(path) for path in notebooks.choose(only)}  # before any author's next change
    results = run_all(list(reaches))
    for path, result in results.items():
        if result.problem:
            print(f"{path.name} is as before")
            continue
        facts = {"effort": settings.effort(), "seconds": round(result.seconds, 1), "cores": result.cores}
        facts |= {"source_hash": reaches[path].hash(), "modules_hash": reaches[path].modules_hash()}
        result.nb.metadata.pop("executed", None)
        result.nb.metadata["course"] = result.nb.metadata.get("course", {}) | facts
        notebooks.write(path, result.nb)
    for name in notebooks.refresh_generated():
        print(f"generated lines refreshed: {name}")
    return 1 if any(result.problem for result in results.values()) else 0
