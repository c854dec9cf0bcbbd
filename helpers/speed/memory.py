"""How much memory a row needs: the peak of a process of its own, which may run out of it and harms no notebook.

Taught in notebooks/04_speed_resnet18.ipynb. ``python -m helpers.speed.memory '{…}'`` is that process. It imports only what
the backend needs, so PyTorch does not weigh on ONNX Runtime's number; hence the imports inside functions.
"""

import contextlib
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import psutil

if TYPE_CHECKING:
    from torch import nn

ROOT = Path(__file__).resolve().parents[2]
# With less than so many times the input's size free, a column is tried in a process of its own before it is run.
# Peaks of the course's networks, without their imports, were up to 70 times the input (a test looks at data/results).
TRY_APART = 300
OUT_OF_MEMORY = re.compile(
    r"not enough memory|can't allocate|cannot allocate|bad.?alloc|failed to allocate|out of memory", re.I
)


class OutOfMemoryError(RuntimeError):
    """A run for which the memory did not suffice."""


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error of PyTorch, ONNX Runtime or NumPy means that memory ran out."""
    return isinstance(error, (MemoryError, OutOfMemoryError)) or bool(OUT_OF_MEMORY.search(str(error)))


def available_mib() -> float:
    """Return the memory in MiB that a new process can have, by the system or the container's limit."""
    found = psutil.virtual_memory().available
    group = Path("/sys/fs/cgroup")
    limit, used = group / "memory.max", group / "memory.current"
    if limit.exists() and used.exists() and (text := limit.read_text().strip()).isdigit():
        held = int(used.read_text())
        statistics = group / "memory.stat"
        if statistics.exists():  # files that were read and can be dropped count as used, but are free for the asking
            held -= int(re.search(r"^inactive_file (\d+)", statistics.read_text() + "\ninactive_file 0", re.M)[1])
        found = min(found, int(text) - held)
    return found / 2**20


def can_rebuild(network: str, model: "nn.Module") -> bool:
    """Tell whether another process can make this network by torchvision's name for it; else it is handed over."""
    import torchvision

    return network in torchvision.models.list_models() and type(model).__module__.startswith("torchvision.")


def measure_peak(
    *,
    shape: Sequence[int],
    threads: int,
    network: str | None = None,
    model: "nn.Module | None" = None,
    path: str | Path | None = None,
    engine: str = "onnxruntime",
    session_options: dict[str, object] | None = None,
    runs: int = 2,
    environment: dict[str, str] | None = None,
) -> dict[str, float]:
    """Run a network in a process of its own and return what that process held at most, and how long its runs took.

    Args:
        shape: of the input, (N, 3, H, W).
        threads: of the backend.
        network: a torchvision network for PyTorch (fresh weights: reading a file of them takes more), or
        model: any network for PyTorch; handed over as ``torch.export`` sees it, so its class need not be importable, or
        path: an .onnx file.
        engine: that runs the .onnx file, "onnxruntime" or "openvino".
        session_options: attributes of ONNX Runtime's ``SessionOptions`` to set, such as ``enable_cpu_mem_arena``.
        runs: after the first, timed.
        environment: variables to set for that process, such as those of the C library's malloc.
    Returns:
        base_rss_mib (after the imports, before loading), peak_rss_mib, p50_ms, and page_faults and system_ms a run
        (None where the system does not count them).
    Raises:
        ValueError: unless exactly one of network, model and path is given, or for an unknown engine.
        OutOfMemoryError: if the process ran out of memory or the system killed it.
        RuntimeError: if it failed otherwise; the message ends with what it printed.
    """
    if sum(given is not None for given in (network, model, path)) != 1:
        raise ValueError("Give one: the network or the model (PyTorch), or the path (of an .onnx file).")
    if engine not in ("onnxruntime", "openvino"):
        raise ValueError(f"The engine is {engine!r}; it must be onnxruntime or openvino.")
    task = {
        "shape": [int(n) for n in shape],
        "threads": threads,
        "network": network,
        "program": None,
        "path": path and str(Path(path).resolve()),
        "engine": engine,
        "session_options": session_options or {},
        "runs": runs,
    }
    with tempfile.TemporaryDirectory() as folder:
        if model is not None:
            import torch

            task["program"] = str(Path(folder) / "network.pt2")
            torch.export.save(torch.export.export(model, (torch.zeros(tuple(task["shape"])),)), task["program"])
        done = subprocess.run(
            [sys.executable, "-X", "utf8", "-m", "helpers.speed.memory", json.dumps(task)],
            cwd=ROOT,
            env=os.environ | (environment or {}),
            capture_output=True,
            text=True,
            encoding="utf-8",
            check=False,
        )
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    last = (done.stderr.strip().splitlines() or [""])[-1]
    if done.returncode == -9 or OUT_OF_MEMORY.search(done.stderr) or "MemoryError" in last:
        raise OutOfMemoryError(f"memory ran out for an input of shape {tuple(shape)}: {last or 'killed by the system'}")
    raise RuntimeError(f"the process that measures memory ended with code {done.returncode}: {last}")


def peak_rss_mib() -> float:
    """Return the most memory in MiB that this process ever held (its resident set)."""
    status = Path("/proc/self/status")
    if status.exists():  # not ru_maxrss: on Linux a child starts with its parent's
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) / 2**10
    if platform.system() == "Windows":
        return psutil.Process().memory_info().peak_wset / 2**20
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # macOS counts bytes


def _run_alone(task: dict) -> dict[str, float | None]:
    score = Path("/proc/self/oom_score_adj")
    with contextlib.suppress(OSError):  # no such file, or a container in which it is read-only
        score.write_text("1000")  # if memory runs out, Linux ends this process first, not the notebook
    x = np.random.default_rng(0).standard_normal(task["shape"], dtype=np.float32)
    if task["path"] and task["engine"] == "openvino":
        sys.modules.setdefault("openvino_telemetry", None)  # as in engines
        import openvino

        base = psutil.Process().memory_info().rss
        hints = {"INFERENCE_NUM_THREADS": task["threads"], "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
        request = openvino.Core().compile_model(task["path"], "CPU", hints).create_infer_request()
        found = _timed(lambda: request.infer([x]), task["runs"])
    elif task["path"]:
        import onnxruntime as ort

        base = psutil.Process().memory_info().rss
        options = ort.SessionOptions()
        options.intra_op_num_threads = task["threads"]
        for name, value in task["session_options"].items():
            setattr(options, name, value)
        session = ort.InferenceSession(task["path"], options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        found = _timed(lambda: session.run(None, {name: x}), task["runs"])
    else:
        import torch
        import torchvision

        base = psutil.Process().memory_info().rss
        torch.set_num_threads(task["threads"])
        if task["program"]:
            model = torch.export.load(task["program"]).module()
        else:
            model = torchvision.models.get_model(task["network"], weights=None).eval()
        with torch.inference_mode():
            found = _timed(lambda: model(torch.from_numpy(x)), task["runs"])
    return {"base_rss_mib": base / 2**20, "peak_rss_mib": peak_rss_mib(), **found}


def _timed(run: Callable[[], object], runs: int) -> dict[str, float | None]:
    """Run once, then time the runs; return their median and what the system counted in them, a run."""
    run()
    before, seconds = _counted(), []
    for _ in range(runs):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    counted = {name: (now - before[name]) / runs for name, now in _counted().items()}
    return {"p50_ms": float(np.median(seconds)) * 1e3, "page_faults": None, "system_ms": None, **counted}


def _counted() -> dict[str, float]:
    if platform.system() == "Windows":
        return {}
    import resource

    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {"page_faults": usage.ru_minflt + usage.ru_majflt, "system_ms": usage.ru_stime * 1e3}


if __name__ == "__main__":
    print(json.dumps(_run_alone(json.loads(sys.argv[1]))))
