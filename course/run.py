"""The one place that runs notebooks; ``_build/executed`` keeps executed copies as long as they are up to date."""

import hashlib
import json
import os
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from queue import SimpleQueue

import joblib
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

from course import notebooks
from helpers import settings

WORK = settings.ROOT / "_build"
KERNELS_LOG = WORK / "kernels.log"
MOST_AT_ONCE = 4  # notebooks side by side: each may take 2 GiB of memory


class RunError(RuntimeError):
    """A notebook stopped: in which cell and why, and the notebook as far as it came."""


@dataclass(frozen=True)
class Result:
    """What came of one notebook: its executed copy, how long it ran on how many cores, and if it stopped, why."""

    book: NotebookNode
    seconds: float
    cores: int
    problem: str = ""
    kept: bool = False  # from an earlier build


def run(path: Path, *, folder: Path | None = None) -> NotebookNode:
    """Run a notebook in a fresh kernel that works in ``folder``, or the notebook's own; return it with new outputs.

    The file stays as it is. RunError if a cell fails or takes too long, or the kernel dies.
    """
    book = notebooks.read(path)
    for cell in book.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    client = NotebookClient(
        book,
        timeout=None if settings.effort() == "full" else 600,  # seconds a cell; sweeps at full effort take hours
        resources={"metadata": {"path": str(folder or path.parent)}},
        shutdown_kernel="immediate",  # a kernel that is asked to leave takes two seconds
        record_timing=False,  # a new diff each run, and nobody reads it
    )
    try:
        client.execute()
    except (CellExecutionError, CellTimeoutError, DeadKernelError, AssertionError) as error:
        # An AssertionError is nbclient's own, while it cleans up after a kernel that was killed.
        if isinstance(error, AssertionError) and not isinstance(error.__context__, DeadKernelError):
            raise
        why = "the kernel died; it was killed, perhaps for want of memory, or crashed"
        if isinstance(error, CellExecutionError):
            why = re.sub(r"\x1b\[[\d;]*m", "", f"{error.ename}: {error.evalue}").strip().splitlines()[0]
        elif isinstance(error, CellTimeoutError):
            why = f"it took longer than {client.timeout} s"
        raise RunError(f"in code cell [{client.code_cells_executed}]: {why}", book) from error
    return book


def run_all(paths: list[Path]) -> dict[Path, Result]:
    """Return a result for each notebook: the copy that an earlier build kept, or else that of a run.

    Notebooks run side by side, the longest first, where the system can tie each to processor cores of its own; those
    that measure run alone afterwards. At quick effort they take too few sessions for any conclusion, so that they run
    side by side, too. A notebook that fails stops none of the others.
    """
    sources = {path: notebooks.source_hash(path) for path in paths}  # whatever an author changes meanwhile
    results = {path: kept for path in paths if (kept := _kept(path))}
    waiting = [path for path in paths if path not in results]
    quick = settings.effort() == "quick"
    shared = [path for path in waiting if quick or not notebooks.runs_alone(path)]
    shared.sort(key=lambda path: notebooks.read(path).metadata.get("course", {}).get("seconds", 0), reverse=True)
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    workers = min(len(cores), len(shared), MOST_AT_ONCE)
    if workers < 2:
        shared, workers = [], 1

    def one(path: Path) -> tuple[Path, Result]:
        started = time.perf_counter()
        try:
            book, problem = run(path), ""
        except RunError as error:
            problem, book = error.args
        return path, Result(book, time.perf_counter() - started, joblib.cpu_count(only_physical_cores=True), problem)

    def note(path: Path, result: Result) -> None:
        results[path] = result
        _keep(path, result, sources[path])
        done = f"FAILED {result.problem}" if result.problem else f"done in {result.seconds:.0f} s"
        print(f"[{len(results)}/{len(paths)}] {path.stem} … {done}", flush=True)

    groups: SimpleQueue[list[int]] = SimpleQueue()
    for number in range(workers):
        groups.put(cores[number::workers])  # a kernel inherits its worker's cores
    with quiet_kernels():
        if shared:
            print(f"Side by side, each on cores of its own: {', '.join(path.stem for path in shared)}", flush=True)
            with ThreadPoolExecutor(workers, initializer=lambda: os.sched_setaffinity(0, groups.get())) as pool:
                for done in as_completed([pool.submit(one, path) for path in shared]):
                    note(*done.result())
        for path in waiting:
            if path not in results:
                note(*one(path))
    for path, result in results.items():  # once more, as the notebooks that measure have added results of their own
        _keep(path, result, sources[path])
    return results


def _copy(path: Path) -> Path:
    folder = WORK / "executed" / settings.effort()
    folder.mkdir(parents=True, exist_ok=True)
    return folder / path.name


def _keep(path: Path, result: Result, sources: str) -> None:
    if not result.problem:
        facts = {"seconds": result.seconds, "cores": result.cores}
        result.book.metadata["executed"] = {"key": key(path, sources), **facts}
        notebooks.write(_copy(path), result.book)


def _kept(path: Path) -> Result | None:
    """Return the executed copy of an earlier build if all that it depends on is as it was, with today's prose."""
    copy = _copy(path)
    executed = notebooks.read(copy).metadata.get("executed", {}) if copy.exists() else {}
    if executed.get("key") != key(path, notebooks.source_hash(path)):
        return None
    book = notebooks.read(path)
    ran = iter([cell for cell in notebooks.read(copy).cells if cell.cell_type == "code"])
    for cell in book.cells:
        if cell.cell_type == "code":
            old = next(ran)
            cell.outputs, cell.execution_count = old.outputs, old.execution_count
    return Result(
        book, executed["seconds"], executed.get("cores", joblib.cpu_count(only_physical_cores=True)), kept=True
    )


def key(path: Path, sources: str) -> str:
    """Hash all that a notebook's outputs depend on: its sources' hash, settings, packages, weights, photos, results."""
    names = {file.stem for file in notebooks.helpers_used(path)}
    choices = sorted(item for item in os.environ.items() if item[0].startswith("COURSE_"))
    packages = sorted((one.name, one.version) for one in distributions())
    weights = sorted((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in settings.WEIGHTS.glob("*"))
    digest = hashlib.sha256(json.dumps([sources, choices, packages, weights]).encode())
    files = list(settings.IMAGES.glob("[!.]*")) if "images" in names else []
    files += list(settings.DATA.glob("results/*.jsonl")) if "results" in names else []
    for file in sorted(filter(Path.is_file, files)):
        digest.update(os.fsencode(file.name) + b"\0" + file.read_bytes())
    return digest.hexdigest()


@contextmanager
def quiet_kernels() -> Iterator[None]:
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
