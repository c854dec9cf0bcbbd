"""The one place that runs notebooks; ``_build/executed`` keeps executed copies as long as they are up to date."""

import contextlib
import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from queue import SimpleQueue

import joblib
import psutil
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

from course import WORK, freshness, notebooks
from helpers import settings

KERNELS_LOG = WORK / "kernels.log"
MOST_AT_ONCE = 4  # notebooks side by side: each may take 2 GiB of memory
WARM_FROM = 6  # notebooks: the warm process takes some seconds to import its libraries
FETCH = {  # what modules fetch or make, by one process before the notebooks need it
    "photos": "from helpers import photos; photos.sample_photos()",
    "models": "from helpers import models\nfor name in models.NETWORKS: print(models.load_model(name)[1], flush=True)",
}


@dataclass(frozen=True)
class Result:
    """What came of one notebook: its executed copy, how long it ran on how many cores, and if it stopped, why."""

    nb: NotebookNode
    seconds: float
    cores: int
    problem: str = ""
    kept: bool = False  # from an earlier build


def run(path: Path, *, folder: Path | None = None) -> Result:
    """Run a notebook in a kernel that works in ``folder``, or the notebook's own; the file stays as it is."""
    nb, started, why = notebooks.read(path), time.perf_counter(), ""
    for cell in nb.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    client = NotebookClient(
        nb,
        timeout=None if settings.effort() == "full" else 600,  # seconds a cell; sweeps at full effort take hours
        resources={"metadata": {"path": str(folder or path.parent)}},
        shutdown_kernel="immediate",  # a kernel that is asked to leave takes two seconds
        record_timing=False,  # a new diff each run, and nobody reads it
    )
    try:
        with KERNELS_LOG.open("a") as log:  # the kernel's own stderr, not the cells', would tear progress lines apart
            client.execute(stderr=log)
    except CellExecutionError as error:
        why = re.sub(r"\x1b\[[\d;]*m", "", f"{error.ename}: {error.evalue}").strip().splitlines()[0]
    except CellTimeoutError:
        why = f"it took longer than {client.timeout} s"
    except DeadKernelError:
        why = "the kernel died; it was killed, perhaps for want of memory, or crashed"
    problem = f"in code cell [{client.code_cells_executed}]: {why}" if why else ""
    return Result(nb, time.perf_counter() - started, joblib.cpu_count(only_physical_cores=True), problem)


def run_all(paths: list[Path]) -> dict[Path, Result]:
    """Return a result for each notebook: the copy that an earlier build kept, or else that of a run.

    Notebooks run side by side, the longest first, where the system can tie each to processor cores of its own; those
    that measure run alone afterwards. At quick effort nothing is concluded from times: all run side by side, and if
    they are many, in copies of a warm process. A notebook that fails stops none of the others. An interrupt ends all;
    what is done by then is kept.
    """
    WORK.mkdir(parents=True, exist_ok=True)
    reaches = {path: notebooks.reach(path) for path in paths}  # whatever an author changes meanwhile
    results = {path: kept for path in paths if (kept := _kept(path, reaches[path]))}
    waiting = [path for path in paths if path not in results]
    waiting.sort(key=lambda path: notebooks.facts(path).get("seconds", 0), reverse=True)
    quick = settings.effort() == "quick"
    shared = [path for path in waiting if quick or not notebooks.facts(path).get("alone")]
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    workers = min(len(cores), len(shared), MOST_AT_ONCE)
    shared = shared if workers > 1 else []
    groups: SimpleQueue[list[int]] = SimpleQueue()
    for number in range(workers):
        groups.put(cores[number::workers])  # a kernel inherits its worker's cores

    def note(path: Path, result: Result) -> None:
        results[path] = result
        _keep(path, result, reaches[path])
        done = f"FAILED {result.problem}" if result.problem else f"done in {result.seconds:.0f} s"
        print(f"[{len(results)}/{len(paths)}] {path.stem} … {done}", flush=True)

    if quick and len(shared) >= WARM_FROM:
        from course import kernels

        kernels.start(cores[workers - 1 :: workers], KERNELS_LOG)
    used = {module.stem for path in waiting for module in reaches[path].modules}
    fetch = [code for module, code in FETCH.items() if module in used]
    if fetch and subprocess.run([sys.executable, "-c", "\n".join(fetch)], cwd=settings.ROOT, check=False).returncode:
        raise RuntimeError("What the notebooks need could not be had; the lines above say what and why.")
    try:
        if shared:
            print(f"Side by side, each on cores of its own: {', '.join(path.stem for path in shared)}", flush=True)
            _work(shared, note, workers, lambda: os.sched_setaffinity(0, groups.get()))
        _work([path for path in waiting if path not in results], note)
    finally:  # once more, as the notebooks that measure have added results of their own
        for path, result in results.items():
            _keep(path, result, reaches[path])
    return results


def _work(paths: list[Path], note: Callable[[Path, Result], None], workers: int = 1, begin: Callable = int) -> None:
    """Run notebooks in threads, as nbclient would take the signals in the main one; no kernel is left in the end."""
    pool = ThreadPoolExecutor(workers, initializer=begin)
    jobs = {pool.submit(run, path): path for path in paths}
    try:
        for done in as_completed(jobs):
            note(jobs[done], done.result())
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        while not all(job.done() for job in jobs):
            end_children()


def end_children() -> None:
    """Kill all processes that this one started, and theirs."""
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    time.sleep(0.1)


def _copy(path: Path) -> Path:
    folder = WORK / "executed" / settings.effort()
    folder.mkdir(parents=True, exist_ok=True)
    return folder / path.name


def _keep(path: Path, result: Result, reach: freshness.Reach) -> None:
    if not result.problem:
        facts = {"seconds": result.seconds, "cores": result.cores, "kept": True}
        result.nb.metadata["executed"] = facts | {"key": key(reach)}
        notebooks.write(_copy(path), result.nb)


def _kept(path: Path, reach: freshness.Reach) -> Result | None:
    """Return the executed copy of an earlier build if all that it depends on is as it was, with today's prose."""
    if not _copy(path).exists():
        return None
    copy = notebooks.read(_copy(path))
    executed = copy.metadata.get("executed", {})
    if executed.pop("key", None) != key(reach):
        return None
    nb = notebooks.read(path)
    ran = iter([cell for cell in copy.cells if cell.cell_type == "code"])
    for cell in nb.cells:
        if cell.cell_type == "code":
            old = next(ran)
            cell.outputs, cell.execution_count = old.outputs, old.execution_count
    return Result(nb, **executed)


def key(reach: freshness.Reach) -> str:
    """Hash all that outputs depend on: code and data, settings, packages, weights, a reader's photos and results."""
    modules = {file.stem for file in reach.modules}
    choices = sorted(item for item in os.environ.items() if item[0].startswith("COURSE_"))
    packages = sorted((one.name, one.version) for one in distributions())
    weights = sorted((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in settings.WEIGHTS.glob("*"))
    digest = hashlib.sha256(json.dumps([reach.hash(), choices, packages, weights]).encode())
    files = list(settings.IMAGES.glob("[!.]*")) if "photos" in modules else []
    files += list(settings.DATA.glob("results/*.jsonl")) if "results" in modules else []
    for file in sorted(filter(Path.is_file, files)):
        digest.update(os.fsencode(file.name) + b"\0" + file.read_bytes())
    return digest.hexdigest()
