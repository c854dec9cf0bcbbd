"""How much memory a row needs: the peak of a process of its own, which may run out of it and harms no notebook.

Taught in notebooks/04_speed_resnet18.ipynb. ``python -m helpers.speed.memory`` is that process, and reads its task;
PyTorch does not weigh on ONNX Runtime's number, as ``engines`` imports it only where it runs.
"""

import contextlib
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import timeit
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil

from helpers import counters, engines, settings

if TYPE_CHECKING:
    from torch import nn

# With less than so many times the input's size free, a column is tried in a process of its own before it is run.
# Peaks of the course's networks, without their imports, were up to 70 times the input (a test looks at data/results).
TRY_APART = 300
OUT_OF_MEMORY = re.compile(
    r"MemoryError|not enough memory|can(no|')t allocate|bad.?alloc|failed to allocate|out of memory", re.IGNORECASE
)


class OutOfMemoryError(RuntimeError):
    """A run for which the memory did not suffice."""


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error of PyTorch, ONNX Runtime or NumPy means that memory ran out."""
    return isinstance(error, (MemoryError, OutOfMemoryError)) or bool(OUT_OF_MEMORY.search(str(error)))


def available_mib() -> float:
    """Return the memory in MiB that a new process can have, by the system or the container's limit."""
    return min([psutil.virtual_memory().available, *(left for _, left in counters.memory_limits())]) / 2**20


def measure_peak(
    *,
    shape: Sequence[int],
    threads: int,
    network: str | None = None,
    model: "nn.Module | None" = None,
    path: str | Path | None = None,
    runs: int = 2,
    environment: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Run a network in a process of its own and return what that process held at most, and how long its runs took.

    Args:
        shape: of the input, (N, 3, H, W).
        threads: of the backend.
        network: a torchvision network for PyTorch (fresh weights: reading a file of them takes more), or
        model: any network for PyTorch; handed over as ``torch.export`` sees it, so its class need not be importable, or
        path: an .onnx file for ONNX Runtime.
        runs: after the first, timed.
        environment: variables to set for that process, such as those of the C library's malloc.
    Returns:
        base_rss_mib (after the imports, before loading), peak_rss_mib, p50_ms, and page_faults and system_ms per run
        (page_faults is NaN where the system does not count them).
    Raises:
        ValueError: unless exactly one of network, model and path is given.
        OutOfMemoryError: if the process ran out of memory or the system killed it.
        RuntimeError: if it failed otherwise; the message ends with what it printed.
    """
    if sum(given is not None for given in (network, model, path)) != 1:
        raise ValueError("Give one: the network or the model (PyTorch), or the path (of an .onnx file).")
    task: dict[str, Any] = {"shape": [int(n) for n in shape], "threads": threads, "runs": runs}
    task |= {"network": network, "program": None, "path": path and str(Path(path).resolve())}
    with tempfile.TemporaryDirectory() as folder:
        if model is not None:
            import torch

            task["program"] = str(Path(folder) / "network.pt2")
            torch.export.save(torch.export.export(model, (torch.zeros(tuple(shape)),)), task["program"])
        command = [sys.executable, "-X", "utf8", "-m", "helpers.speed.memory", json.dumps(task)]
        own = {**os.environ, **(environment or {})}
        done = subprocess.run(command, cwd=settings.ROOT, env=own, capture_output=True, encoding="utf-8", check=False)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    last = (done.stderr.strip().splitlines() or [""])[-1]
    if done.returncode == -9 or OUT_OF_MEMORY.search(done.stderr):
        raise OutOfMemoryError(f"memory ran out for an input of shape {tuple(shape)}: {last or 'killed by the system'}")
    raise RuntimeError(f"the process that measures memory ended with code {done.returncode}: {last}")


def _peak_rss_mib() -> float:
    """Return the most memory in MiB that this process ever held (its resident set)."""
    status = Path("/proc/self/status")
    if status.exists():  # not ru_maxrss: on Linux a child starts with its parent's
        return int(re.findall(r"VmHWM:\s+(\d+) kB", status.read_text())[0]) / 2**10
    if platform.system() == "Windows":
        return psutil.Process().memory_info().peak_wset / 2**20
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # macOS counts bytes


def _run_alone(*, shape: list[int], threads: int, runs: int, network: str, program: str, path: str) -> dict[str, float]:
    with contextlib.suppress(OSError):  # no such file, or a container in which it is read-only
        Path("/proc/self/oom_score_adj").write_text("1000")  # Linux then ends this process first, not the notebook
    x = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    if path:
        base = psutil.Process().memory_info().rss
        run = engines.onnxruntime(path, x, threads=threads).run
    else:
        import torch
        import torchvision

        base = psutil.Process().memory_info().rss
        torch.set_num_threads(threads)
        if program:
            model = torch.export.load(program).module()
        else:
            model = torchvision.models.get_model(network, weights=None).eval()
        run = torch.inference_mode()(lambda: model(torch.from_numpy(x)))
    run()
    before, seconds = counters.Counters.read(), timeit.repeat(run, number=1, repeat=runs)
    seen = counters.Counters.read().since(before)
    return {
        "base_rss_mib": base / 2**20,
        "p50_ms": float(np.median(seconds)) * 1e3,
        "page_faults": seen.page_faults / runs,
        "system_ms": seen.system_s * 1e3 / runs,
        "peak_rss_mib": _peak_rss_mib(),
    }


if __name__ == "__main__":
    print(json.dumps(_run_alone(**json.loads(sys.argv[1]))))
