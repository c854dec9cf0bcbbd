"""Run the course from the command line: ``python -m helpers build``; ``python -m helpers --help`` lists the rest."""

import argparse
import hashlib
import os
import re
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from importlib.metadata import distributions
from pathlib import Path
from queue import SimpleQueue

import nbformat

from helpers import settings

WORK = settings.ROOT / "_build"
SITE = WORK / "html"
WARNINGS = WORK / "warnings.txt"
KERNELS_LOG = WORK / "kernels.log"


def _hash(files: Iterable[Path], *others: object) -> str:
    digest = hashlib.sha256(repr(others).encode())
    for path in sorted(files):
        if path.is_file():
            digest.update(f"{path.relative_to(settings.ROOT)} ".encode() + path.read_bytes())
    return digest.hexdigest()


def _fingerprint() -> str:
    """Hash what a page depends on besides a notebook's code, on two lines: what a build leaves alone, and results.

    myst-nb's cache looks at none of it, nor at the cells' metadata: it shows those of the run.
    """
    from helpers.course import notebooks

    helpers = settings.ROOT / "helpers"
    files = [*helpers.glob("*.py"), *helpers.glob("*.html"), *settings.WEIGHTS.glob("*")]
    files += [*settings.DATA.glob("*.csv"), *(settings.DATA / "article").glob("*.csv")]
    files += [path for path in settings.IMAGES.glob("*") if not path.name.startswith(".")]
    packages = sorted((one.name, one.version) for one in distributions())
    choices = sorted(item for item in os.environ.items() if item[0].startswith("COURSE_"))
    books = map(notebooks.read, notebooks.notebooks())
    metadata = [cell.metadata for book in books for cell in book.cells if cell.cell_type == "code"]
    results = [path for name in ("*.jsonl", "*.csv") for path in (settings.DATA / "results").glob(name)]
    return f"{_hash(files, packages, choices, metadata)}\n{_hash(results)}\n"


def _fresh_cache(effort: str) -> tuple[Path, bool]:
    """Return the cache folder of this effort, and whether it is empty, as it is after any such change."""
    cache = WORK / f"cache-{effort}"
    stamp = cache / "made_from.txt"
    now = _fingerprint()
    if cache.exists() and not (stamp.exists() and stamp.read_text() == now):
        shutil.rmtree(cache)
    empty = not cache.exists()
    cache.mkdir(parents=True, exist_ok=True)
    stamp.write_text(now)
    return cache, empty


def _accept_results(cache: Path) -> None:
    """Note in a cache that was filled just now the results that its own sweeps have added.

    The notebook that reads them ran after those that measure. A cache with older notebooks keeps the old note, and
    the next build empties it.
    """
    stamp = cache / "made_from.txt"
    alone = stamp.read_text().splitlines()[0]
    stamp.write_text(f"{alone}\n{_fingerprint().splitlines()[1]}\n")


def _cached(paths: list[Path], cache: Path) -> set[str]:
    """Return the names of the notebooks whose outputs the cache holds."""
    from jupyter_cache import get_cache

    from helpers.course import notebooks

    store, found = get_cache(cache), set()
    for path in paths:
        with suppress(KeyError):  # what is not there
            store.match_cache_notebook(notebooks.read(path))
            found.add(path.stem)
    return found


@contextmanager
def _quiet_kernels() -> Iterator[None]:
    """Add the kernels' own stderr (not the cells') to a file: it would tear the progress lines apart."""
    WORK.mkdir(parents=True, exist_ok=True)
    kept = os.dup(2)
    with KERNELS_LOG.open("a", encoding="utf-8") as log:
        os.dup2(log.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _reason(error_text: str) -> str:
    """Shorten a failed run's text to the cell's number and the last line, which names the error."""
    plain = re.sub(r"\x1b\[[\d;]*m", "", error_text)  # without the colours of IPython's tracebacks
    cell = re.search(r"Cell In\[(\d+)\]", plain)  # the outermost frame of the traceback
    where = f"in code cell [{cell[1]}]" if cell else "in an unknown cell"
    return f"{where}: {plain.strip().splitlines()[-1]}"


def _run_side_by_side(paths: list[Path], cache: Path) -> set[str]:
    """Run notebooks at the same time, each on a processor core of its own, and put them into the cache for Sphinx.

    Only where the system can tie a process to a core; elsewhere their threads would wait for each other. What fails
    here is left to Sphinx, which runs it again and reports it.

    Returns:
        The names of those that ran to their end.
    """
    cores: SimpleQueue[int] = SimpleQueue()
    for core in os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ():
        cores.put(core)
    if cores.qsize() < 2 or len(paths) < 2:
        return set()
    from jupyter_cache import get_cache
    from jupyter_cache.base import CacheBundleIn
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    from helpers.course import notebooks

    def run(path: Path) -> tuple[Path, nbformat.NotebookNode | None, float]:
        started = time.perf_counter()
        try:
            book = notebooks.run(path)
        except (CellExecutionError, CellTimeoutError, DeadKernelError):
            book = None
        return path, book, time.perf_counter() - started

    store, ran = get_cache(cache), set()
    print(f"Side by side, a core for each: {', '.join(path.stem for path in paths)}", flush=True)
    # The kernels inherit their worker's core.
    with (
        _quiet_kernels(),
        ThreadPoolExecutor(cores.qsize(), initializer=lambda: os.sched_setaffinity(0, [cores.get()])) as workers,
    ):
        for done in as_completed([workers.submit(run, path) for path in paths]):
            path, book, seconds = done.result()
            print(f"  {path.stem} {'ran' if book else 'stopped'} after {seconds:.0f} s", flush=True)
            if book:
                bundle = CacheBundleIn(book, str(path), data={"execution_seconds": seconds})
                store.cache_notebook_bundle(bundle, check_validity=False, overwrite=True)
                ran.add(path.stem)
    return ran


def build(effort: str, only: list[str], out: Path) -> int:
    """Run the notebooks and render the site; return the exit code."""
    os.environ["COURSE_EFFORT"] = effort  # the kernels inherit it
    from helpers import images, models
    from helpers.course import notebooks

    paths = notebooks.choose(only)
    chosen = [path.stem for path in paths]
    KERNELS_LOG.unlink(missing_ok=True)
    images.sample_photos()
    for name in models.NETWORKS:  # once, with its progress bar here, not in the middle of a lesson
        loaded = models.load_model(name)[1]
        print(f"{name}: {loaded.kind} weights, {loaded.path.name}. {loaded.why}", flush=True)
    results: dict[str, dict] = {}
    started = time.perf_counter()
    cache, empty = _fresh_cache(effort)
    notes = dict.fromkeys(_cached(paths, cache), " (from the cache)")
    if effort == "quick":
        shareable = [path for path in paths if path.stem not in notes and not notebooks.needs_all_cores(path)]
        notes |= dict.fromkeys(_run_side_by_side(shareable, cache), " (side by side with others)")
    while not _render(chosen, results, cache=cache, out=out):
        pass  # a kernel died; the rest goes on without that notebook
    if empty:
        _accept_results(cache)
    print(f"\nThe course at {effort} effort took {time.perf_counter() - started:.0f} s:")
    for docname in chosen:
        result = results[docname]
        if result["succeeded"]:
            print(f"  passed  {docname}  {result['runtime']:.1f} s{notes.get(docname, '')}")
        else:
            print(f"  FAILED  {docname}  {_reason(result['traceback'])}")
    others = [path.stem for path in notebooks.notebooks() if path.stem not in chosen]
    if others:
        print(f"  not run, shown with the outputs stored by the authors: {', '.join(others)}")
    if not all(result["succeeded"] for result in results.values()):
        print(f"  full error texts: {out / 'reports'}; what the kernels said themselves: {KERNELS_LOG}")
    complaints = WARNINGS.read_text(encoding="utf-8").strip()
    if complaints:
        print(f"Sphinx complains:\n{complaints}", file=sys.stderr)
    print(f"The site: {(out / 'index.html').resolve().as_uri()}")
    return 1 if complaints or not all(result["succeeded"] for result in results.values()) else 0


def _render(chosen: list[str], results: dict[str, dict], *, cache: Path, out: Path) -> bool:
    """Let Sphinx run and render; note each notebook's result; return False if it has to start again.

    A cell that fails is myst-nb's business, but a kernel that dies takes Sphinx along. That notebook is then left out
    of the next try, which finds the others in the cache.
    """
    from nbclient import NotebookClient
    from nbclient.exceptions import DeadKernelError
    from sphinx.application import Sphinx
    from sphinx.util.docutils import docutils_namespace, patch_docutils

    from helpers.course import notebooks

    NotebookClient.shutdown_kernel.default_value = "immediate"  # as in notebooks.run; myst-nb has no setting for it
    running: list[tuple[str, float]] = []

    def before(app: Sphinx, docname: str, source: list[str]) -> None:
        if docname in chosen and docname not in results:
            running.append((docname, time.perf_counter()))
            print(f"[{chosen.index(docname) + 1}/{len(chosen)}] {docname} …", end=" ", flush=True)

    def after(app: Sphinx, doctree: object) -> None:
        docname = app.env.docname
        if docname in chosen and docname not in results:
            seconds = time.perf_counter() - running[-1][1]
            results[docname] = app.env.nb_metadata[docname]["exec_data"]
            print(f"{'done' if results[docname]['succeeded'] else 'FAILED'} in {seconds:.0f} s", flush=True)

    not_run = [
        path.name for path in notebooks.notebooks() if path.stem not in chosen or results.get(path.stem, {}).get("dead")
    ]
    overrides = {
        "nb_execution_mode": "cache",
        "nb_execution_cache_path": str(cache),
        "nb_execution_excludepatterns": not_run,
        "nb_execution_timeout": notebooks.cell_timeout_s() or -1,  # -1: none
    }
    with (
        _quiet_kernels(),
        WARNINGS.open("w", encoding="utf-8") as log,
        patch_docutils(settings.NOTEBOOKS),
        docutils_namespace(),
    ):
        app = Sphinx(
            srcdir=settings.NOTEBOOKS,
            confdir=settings.NOTEBOOKS,
            outdir=out,
            doctreedir=WORK / "doctrees",
            buildername="html",
            confoverrides=overrides,
            status=None,
            warning=log,
            freshenv=True,
        )
        app.connect("source-read", before)
        app.connect("doctree-read", after)
        try:
            app.build()
        except (DeadKernelError, AssertionError) as error:
            # An AssertionError is nbclient's own, while it cleans up after a kernel that was killed.
            if isinstance(error, AssertionError) and not isinstance(error.__context__, DeadKernelError):
                raise
            results[running[-1][0]] = {
                "succeeded": False,
                "dead": True,
                "traceback": "the kernel died (out of memory?)",
            }
            print("FAILED: the kernel died", flush=True)
            return False
    return True


def store(only: list[str]) -> int:
    """Run notebooks in place, keep their outputs, and refresh the generated lines; return the exit code."""
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    from helpers.course import notebooks

    failed = False
    KERNELS_LOG.unlink(missing_ok=True)
    for path in notebooks.choose(only):
        print(f"{path.name} …", end=" ", flush=True)
        try:
            with _quiet_kernels():
                seconds = notebooks.store_outputs(path)
            print(f"{seconds:.0f} s", flush=True)
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
            failed = True
            print(f"FAILED {_reason(str(error))}; the file is as before", flush=True)
    for name in notebooks.refresh_generated():
        print(f"generated lines refreshed: {name}")
    return 1 if failed else 0


def check_results(paths: list[Path]) -> int:
    """Check results files, all of ``data/results`` if none is given, and say what is in each; return the exit code."""
    from helpers import results

    refused = False
    for path in paths or sorted((settings.DATA / "results").glob("*.jsonl")):
        try:
            print(f"{path.name}: {len(results.read(path))} rows, all in order")
        except (results.ResultsError, OSError) as error:
            refused = True
            print(f"REFUSED {error}")
    return 1 if refused else 0


def publish_as(choice: argparse.Namespace) -> int:
    """Make decks, handouts, the PDF or pictures, and say where they are; return the exit code."""
    from helpers.course import notebooks, publish

    if choice.command == "pictures":
        taken = publish.pictures(choice.site, WORK / "pictures")
        print(f"{len(taken)} pictures in {WORK / 'pictures'}")
        return 0
    if choice.command == "pdf":
        made = [publish.pdf(choice.out)]
    elif choice.command == "slides":
        made = [publish.slides(path, WORK / "slides") for path in notebooks.choose(choice.only)]
    else:
        folder = settings.ROOT / "handout"
        made = [publish.handout(path, folder, force=choice.force) for path in notebooks.choose(choice.only)]
    for path in made:
        print(path.resolve().as_uri() if choice.command == "slides" else path)
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Read the command line and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m helpers", description="Run and render the course.")
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("build", help="run the notebooks and render them as a site in _build/html/")
    one.add_argument("--effort", choices=settings.EFFORTS, help="how much work to do (default: standard)")
    one.add_argument("--only", nargs="+", default=[], metavar="NN", help="run just these; the rest keep stored outputs")
    one.add_argument("--out", type=Path, default=SITE, help="folder for the site")
    two = commands.add_parser("store", help="for authors: run notebooks in place and keep their outputs")
    two.add_argument("--only", nargs="+", default=[], metavar="NN", help="run just these")
    three = commands.add_parser("check", help="check results files before you share them")
    three.add_argument("files", nargs="*", type=Path, help="results files (default: all in data/results/)")
    four = commands.add_parser("slides", help="make offline decks in _build/slides/")
    five = commands.add_parser("handout", help="copy the notebooks without solutions to handout/")
    for command in (four, five):
        command.add_argument("only", nargs="*", metavar="NN", help="just these; all if none is named")
    five.add_argument("--force", action="store_true", help="overwrite handouts that somebody has worked in")
    six = commands.add_parser("pdf", help="print the whole course, with its stored outputs, as one PDF")
    six.add_argument(
        "--out", type=Path, default=WORK / "notebooks.pdf", help="the file (default: _build/notebooks.pdf)"
    )
    seven = commands.add_parser("pictures", help="for authors: picture every page and plot in _build/pictures/")
    seven.add_argument("--site", type=Path, default=SITE, help="folder of the built site (default: _build/html/)")
    choice = parser.parse_args(arguments)
    try:
        settings.check()
        if choice.command == "build":
            return build(choice.effort or settings.effort(), choice.only, choice.out)
        if choice.command == "store":
            return store(choice.only)
        return check_results(choice.files) if choice.command == "check" else publish_as(choice)
    except (ValueError, FileNotFoundError, FileExistsError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
