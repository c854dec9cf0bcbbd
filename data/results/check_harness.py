"""Check the timing harness against what is known, on a machine that does nothing else; takes about 4 minutes.

    python data/results/check_harness.py

Writes harness_checks.csv beside this file; notebook 04 shows it. OpenVINO is optional: python -m pip install openvino
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import pandas as pd
import torch

from helpers import engines, machine, memory, models, settings, timing
from helpers.timing import benchmark

SHAPE = (1, 3, 224, 224)
LARGE = (16, 3, 512, 512)  # for the memory estimate
REPEATS = 10
TURNS = 5  # against another timer
HOG_TRIES = 5


def main() -> None:
    """Run every check, print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=50, help="timed runs of each backend (default 50)")
    runs = parser.parse_args().runs
    threads = machine.usable_cores()
    model, _ = models.load_model("resnet18")
    x = np.random.default_rng(settings.SEED).standard_normal(SHAPE, dtype=np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "resnet18.onnx"
        torch.onnx.export(
            model, (torch.from_numpy(x),), path, input_names=["input"], external_data=False, verbose=False
        )
        pair = {
            "PyTorch": engines.pytorch(model, x, threads=threads).run,
            "ONNX Runtime": engines.onnxruntime(path, x, threads=threads).run,
        }
        rows = [
            *busy_wait(runs),
            same_twice(pair, runs),
            order_swapped(pair, runs),
            repeated(pair, runs),
            *against_timer(pair, threads, runs),
            hog(pair, threads),
            against_benchmark_app(path, x, threads, runs),
            memory_estimate(Path(folder), threads),
        ]
    table = pd.DataFrame(rows, columns=["check", "target", "measured", "reached"])
    table["date"] = datetime.now(UTC).date().isoformat()
    table["machine"] = f"{machine.cpu_name()}, {threads} cores"
    print(table.to_string())
    table.to_csv(Path(__file__).with_name("harness_checks.csv"), index=False)


def measure(pair: dict, runs: int, *, seed: int = 0) -> dict[str, timing.Timing]:
    """Measure with PyTorch as the reference."""
    return timing.measure(pair, reference="PyTorch", runs=runs, patience_s=30, seed=seed)


def busy_wait(runs: int) -> list[tuple]:
    """Recover the length of a loop that is busy for a known time."""
    rows = []
    for ms in (1, 10, 100):

        def wait(seconds: float = ms / 1e3) -> None:
            end = time.perf_counter() + seconds
            while time.perf_counter() < end:
                pass

        found = timing.measure({"wait": wait}, reference="wait", runs=runs)["wait"]
        off = np.median(found.times_ms) / ms - 1
        rows.append((f"busy for {ms} ms", "within 0.5 %", f"off by {off:+.2%}", abs(off) <= 0.005))
    return rows


def same_twice(pair: dict, runs: int) -> tuple:
    """Measure ONNX Runtime against itself."""
    run = pair["ONNX Runtime"]
    ratio = timing.measure({"A": run, "B": run}, reference="A", runs=runs)["B"].ratio
    return "same backend twice (A/A)", "ratio within 1 % of 1", f"{ratio:.4f}", abs(ratio - 1) <= 0.01


def order_swapped(pair: dict, runs: int) -> tuple:
    """Hand over the backends in the other order."""
    first = measure(pair, runs)["ONNX Runtime"].ratio
    second = measure(dict(reversed(pair.items())), runs)["ONNX Runtime"].ratio
    moved = second / first - 1
    return (
        "order of backends swapped",
        "ratio moves at most 1 %",
        f"{first:.3f} to {second:.3f}: {moved:+.2%}",
        abs(moved) <= 0.01,
    )


def repeated(pair: dict, runs: int) -> tuple:
    """Repeat the whole measurement with another seed each time."""
    found = [measure(pair, runs, seed=seed) for seed in range(REPEATS)]
    ratios = [timings["ONNX Runtime"].ratio for timings in found]
    spread = max(ratios) / min(ratios)
    drift = []
    for name in pair:
        medians = [np.median(timings[name].times_ms) for timings in found]
        drift.append(f"{name} alone moved by {max(medians) / min(medians):.3f}")
    text = f"{min(ratios):.3f} to {max(ratios):.3f}: {spread:.3f} ({', '.join(drift)})"
    return f"ratio over {REPEATS} repeats", "max/min at most 1.03", text, spread <= 1.03


def against_timer(pair: dict, threads: int, runs: int) -> list[tuple]:
    """Compare with PyTorch's own timer, with the same threads; the two take turns, as the machine drifts."""
    rows = []
    for name, run in pair.items():
        timer = benchmark.Timer("run()", globals={"run": run}, num_threads=threads)
        both = []
        for _ in range(TURNS):
            own = timing.measure({name: run}, reference=name, runs=runs)[name].times_ms
            both.append((np.median(own), timer.blocked_autorange(min_run_time=2).median * 1e3))
        ours, theirs = np.median(both, axis=0)
        off = ours / theirs - 1
        text = f"{ours:.2f} ms against {theirs:.2f} ms: {off:+.2%}"
        rows.append((f"{name} against torch.utils.benchmark.Timer", "within 2 %", text, abs(off) <= 0.02))
    return rows


def hog(pair: dict, threads: int) -> tuple:
    """Let other programs keep every core busy, and see whether the rows are flagged."""
    flagged = 0
    for _ in range(HOG_TRIES):
        hogs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(threads)]
        try:
            time.sleep(0.5)
            found = timing.measure(pair, reference="PyTorch", runs=10, patience_s=0)
            flagged += all(t.status == "noisy" and max(t.foreign_cpu) > timing.MAX_FOREIGN_CPU for t in found.values())
        finally:
            for process in hogs:
                process.kill()
                process.wait()
    return "CPU hog on every core", "flagged every time", f"{flagged} of {HOG_TRIES}", flagged == HOG_TRIES


def against_benchmark_app(path: Path, x: np.ndarray, threads: int, runs: int) -> tuple:
    """Compare with OpenVINO's benchmark_app on the same file: one request at a time, the same threads, float32."""
    check = "OpenVINO against its benchmark_app, same file"
    try:
        import openvino
    except ImportError:
        return check, "within 5 %", "openvino is not installed", None
    settings_of_both = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
    compiled = openvino.Core().compile_model(str(path), "CPU", settings_of_both)
    request = compiled.create_infer_request()
    request.set_input_tensor(openvino.Tensor(x))
    both = []
    command = [
        Path(sys.executable).with_name("benchmark_app"),
        "-m",
        path,
        "-d",
        "CPU",
        "-api",
        "sync",
        "-hint",
        "none",
    ]
    command += ["-nthreads", str(threads), "-nstreams", "1", "-infer_precision", "f32", "-t", "3"]
    for _ in range(TURNS):
        own = timing.measure({"ov": request.infer}, reference="ov", runs=runs)["ov"].times_ms
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True)
        both.append((np.median(own), float(re.search(r"Median:\s+([\d.]+) ms", done.stdout)[1])))
    ours, theirs = np.median(both, axis=0)
    off = ours / theirs - 1
    return check, "within 5 %", f"{ours:.2f} ms against {theirs:.2f} ms: {off:+.2%}", abs(off) <= 0.05


def memory_estimate(folder: Path, threads: int) -> tuple:
    """Compare memory estimates with measured peaks: both networks, a small and a large input."""
    ratios = {}
    for name in models.NETWORKS:
        model, _ = models.load_model(name)
        for shape in (SHAPE, LARGE):
            path = folder / f"{name}_{shape[0]}.onnx"
            torch.onnx.export(model, (torch.zeros(shape),), path, external_data=False, verbose=False)
            for kind, which in {"pytorch": {"network": name}, "onnx": {"path": path}}.items():
                peak = memory.measure_peak(shape=shape, threads=threads, **which)["peak_rss_mib"]
                ratios[f"{name}, {kind}, batch {shape[0]}"] = memory.estimate_mib(model, shape, kind=kind) / peak
    lowest, highest = min(ratios, key=ratios.get), max(ratios, key=ratios.get)
    text = f"×{ratios[lowest]:.2f} ({lowest}) to ×{ratios[highest]:.2f} ({highest})"
    least = 1 / memory.MARGIN
    return "memory estimate over measured peak", f"at least {least:.2f}", text, ratios[lowest] >= least


if __name__ == "__main__":
    main()
