"""Can the harness be trusted on this machine? Ten checks, some ten minutes, on a machine left alone.

    python data/results/check_harness.py

It writes data/results/harness_checks.csv, which notebook 04 shows. ``--quick`` only tries the checks.
"""

import argparse
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np
import pandas as pd
import torch

from helpers import engines, machine, models, results, settings, timing

TABLE = Path(__file__).with_name("harness_checks.csv")
NETWORK, SHAPE = "mobilenet_v3_small", (1, 3, 128, 128)
THREADS = machine.physical_cores()
ALONE = """
import json, logging, sys
logging.disable(logging.WARNING)
import numpy as np
from torch.utils.benchmark import Timer
from helpers import engines, models, timing
engine, path, shape, threads, seconds = json.loads(sys.argv[1])
x = np.zeros(shape, np.float32)
model, _ = models.load_model("mobilenet_v3_small", weights="stand-in")
key = "pytorch_cpu" if engine == "PyTorch" else "onnx_fix"
opener = lambda: engines.open_column(key, model=model, path=path, x=x, threads=threads)
ours = timing.measure({"it": opener}, reference="it", sessions=5)["it"].p50_ms
run = opener()
theirs = Timer("run()", globals={"run": run}, num_threads=threads).blocked_autorange(min_run_time=seconds).median * 1e3
print(json.dumps([ours, theirs]))
"""
SWEEP = """
import logging, sys, warnings
logging.disable(logging.WARNING); warnings.simplefilter("ignore")
from helpers import models, results, sweep
model, _ = models.load_model("mobilenet_v3_small", weights="stand-in")
sweep.run("mobilenet_v3_small", model, lambda kind, shape: sys.argv[2], shapes=[(1, 3, 128, 128), (2, 3, 128, 128),
          (4, 3, 128, 128)], columns=("onnx_fix", "pytorch_cpu"), sessions=2, floor_at=(),
          results=results.Results(sys.argv[1]))
"""


def busy(ms: float) -> Callable[[], None]:
    """Return a run that is busy for so many ms."""

    def run() -> None:
        end = time.perf_counter() + ms / 1e3
        while time.perf_counter() < end:
            pass

    return run


def row(check: str, target: str, measured: str, reached: bool, why: str = "") -> dict:
    """Return a row of the table, and say it."""
    print(f"{'reached' if reached else 'MISSED '}  {check}: {measured}", flush=True)
    return {
        "check": check,
        "target": target,
        "measured": measured,
        "reached": reached,
        "if missed, what was counted": why,
    }


def counted(*timings: timing.Timing) -> str:
    """Say what the system counted in some timings."""
    foreign = [session.foreign_cores for found in timings for session in found.sessions]
    spread = max(np.log(found.medians_ms).std(ddof=1) for found in timings)
    cores = "not counted here" if None in foreign else f"{max(foreign):.2f}"
    return f"other programs' cores at most {cores}; a backend's sessions scatter by {spread:.1%}"


def known_waits(sessions: int) -> list[dict]:
    """Recover busy-waits of known length."""
    found = timing.measure({ms: lambda ms=ms: busy(ms) for ms in (1, 10, 100)}, reference=10, sessions=sessions)
    off = max(abs(one.p50_ms / ms - 1) for ms, one in found.items())
    return [row("busy for 1, 10 and 100 ms", "within 0.5 %", f"{off:.2%} off", off <= 0.005, counted(*found.values()))]


def against_itself(openers: dict, windows: int) -> list[dict]:
    """Measure one file as two backends; cut the sessions into windows of five, as a reader measures."""
    found = timing.measure({"A": openers["ONNX"], "again": openers["ONNX"]}, reference="A", sessions=5 * windows)
    inside, ends = 0, []
    for start in range(0, 5 * windows, 5):
        medians = [one.medians_ms[start : start + 5] for one in found.values()]
        ratio, half = timing.ratio_interval(*medians)
        inside += abs(math.log(ratio)) <= math.log1p(half)
        ends.append(abs(math.log(ratio)) + math.log1p(half))
    said = f"{inside} of {windows}; the floor is {np.expm1(np.median(ends)):.1%} in the median"
    return [
        row(
            "one file against itself: 1 in the interval",
            "9 of 10",
            said,
            inside >= 0.9 * windows,
            counted(*found.values()),
        )
    ]


def coverage(openers: dict, groups: int) -> list[dict]:
    """Replay: does a window of 5 sessions cover the ratio of the 20 that it is part of?"""
    found = timing.measure(openers, reference="PyTorch", sessions=20 * groups)
    over, under = (found[name].medians_ms for name in ("PyTorch", "ONNX"))
    hits = []
    for start in range(0, 20 * groups, 20):
        truth, _ = timing.ratio_interval(over[start : start + 20], under[start : start + 20])
        for first in range(start, start + 16):
            ratio, half = timing.ratio_interval(over[first : first + 5], under[first : first + 5])
            hits.append(abs(math.log(ratio / truth)) <= math.log1p(half))
    share = np.mean(hits)
    said = f"{share:.0%} of {len(hits)} windows"
    return [row("5 sessions cover the ratio of 20", "90 %", said, bool(share >= 0.9), counted(*found.values()))]


def order(openers: dict, sessions: int) -> list[dict]:
    """Hand the backends over in the other order."""
    first = timing.measure(openers, reference="PyTorch", sessions=sessions)["ONNX"]
    swapped = dict(reversed(openers.items()))
    second = timing.measure(swapped, reference="PyTorch", sessions=sessions, seed=1)["ONNX"]
    off, allowed = (
        abs(math.log(first.ratio / second.ratio)),
        math.log1p(first.half_width) + math.log1p(second.half_width),
    )
    said = f"×{first.ratio:.2f} ±{first.half_width:.0%} and ×{second.ratio:.2f} ±{second.half_width:.0%}"
    return [row("order of the backends swapped", "intervals meet", said, bool(off <= allowed), counted(first, second))]


def other_clocks(path: Path, seconds: float) -> list[dict]:
    """Compare with PyTorch's Timer, each engine alone in a process, and with OpenVINO's benchmark_app."""
    rows = []
    for engine in ("PyTorch", "ONNX Runtime"):
        task = json.dumps([engine, str(path), SHAPE, THREADS, seconds])
        done = subprocess.run([sys.executable, "-c", ALONE, task], cwd=ROOT, capture_output=True, text=True, check=True)
        ours, theirs = json.loads(done.stdout.splitlines()[-1])
        off = ours / theirs - 1
        said, why = f"{off:+.1%}", "Timer runs on without a pause; we wait for idle threads and open anew"
        rows.append(row(f"PyTorch's Timer, {engine}", "within 3 %", said, abs(off) <= 0.03, why))
    tool = Path(sys.executable).with_name("benchmark_app")
    x = np.zeros(SHAPE, np.float32)
    try:
        engines.openvino(path, x, threads=THREADS)
        command = [tool, "-m", path, "-d", "CPU", "-hint", "none", "-nstreams", "1", "-nthreads", str(THREADS)]
        command += [
            "-infer_precision",
            "f32",
            "-api",
            "sync",
            "-shape",
            str(list(SHAPE)),
            "-t",
            str(max(round(seconds), 1)),
        ]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
        theirs = float(re.search(r"Median:\s+([\d.]+) ms", done.stdout)[1])
    except (engines.UnavailableError, OSError) as error:
        return [*rows, row("OpenVINO's benchmark_app", "within 5 %", f"not there: {error}", False, "install openvino")]
    opener = {"it": lambda: engines.openvino(path, x, threads=THREADS)}
    found = timing.measure(opener, reference="it")["it"]
    off = found.p50_ms / theirs - 1
    return [*rows, row("OpenVINO's benchmark_app", "within 5 %", f"{off:+.1%}", abs(off) <= 0.05, counted(found))]


def hog(openers: dict, times: int) -> list[dict]:
    """Let another program take one core: every measurement must say so."""
    flagged = 0
    for _ in range(times):
        program = subprocess.Popen([sys.executable, "-c", "while True: pass"])
        try:
            time.sleep(0.5)
            found = timing.measure({"ONNX": openers["ONNX"]}, reference="ONNX", sessions=2)["ONNX"]
        finally:
            program.kill()
            program.wait()
        flagged += found.status == "disturbed"
    return [
        row(
            "a hog on one core is flagged",
            f"{times} of {times}",
            f"{flagged} of {times}",
            flagged == times,
            counted(found),
        )
    ]


def killed(path: Path) -> list[dict]:
    """Kill a sweep in its middle: the rows that were finished must be there, and be whole."""
    with tempfile.TemporaryDirectory() as folder:
        program = subprocess.Popen(
            [sys.executable, "-c", SWEEP, folder, str(path)], cwd=ROOT, stdout=subprocess.DEVNULL
        )
        seen, deadline = 0, time.monotonic() + 120
        while seen < 2 and time.monotonic() < deadline and program.poll() is None:
            time.sleep(0.05)
            files = list(Path(folder).glob("*.jsonl"))
            seen = files[0].read_bytes().count(b"\n") if files else 0
        program.kill()
        program.wait()
        kept = len(results.read(files[0])) if files else 0
    said = f"{kept} of {seen} rows kept"
    return [row("kill -9 in the middle of a sweep", "no finished row lost", said, bool(seen and kept >= seen))]


def main() -> int:
    """Run the checks, write the table, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="only try the checks; the table is printed, not kept")
    quick = parser.parse_args().quick
    os.environ.setdefault("COURSE_WEIGHTS", "stand-in")
    model, _ = models.load_model(NETWORK, weights="stand-in")
    path = settings.exports_folder("harness") / f"{NETWORK}.onnx"
    names = {"input_names": ["input"], "output_names": ["logits"], "dynamic_shapes": ({0: "batch"},)}
    torch.onnx.export(model, (torch.zeros(2, *SHAPE[1:]),), path, **names, external_data=False, verbose=False)
    x = np.random.default_rng(settings.SEED).standard_normal(SHAPE, dtype=np.float32)
    openers = {
        "PyTorch": lambda: engines.pytorch(model, x, threads=THREADS),
        "ONNX": lambda: engines.onnxruntime(path, x, threads=THREADS),
    }
    rows = known_waits(2 if quick else 5)
    rows += against_itself(openers, 2 if quick else 40)
    rows += coverage(openers, 1 if quick else 3)
    rows += order(openers, 5)
    rows += other_clocks(path, 0.5 if quick else 5)
    rows += hog(openers, 1 if quick else 5)
    rows += killed(path)
    table = pd.DataFrame(rows)
    table.loc[table["reached"], "if missed, what was counted"] = ""
    who = f"{machine.cpu_name()}, {machine.usable_cores()} cores"
    table = table.assign(date=datetime.now(UTC).date().isoformat(), machine=who)
    print(table.drop(columns=["date", "machine"]).to_string())
    if not quick:
        table.to_csv(TABLE, index=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
