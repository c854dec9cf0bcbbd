"""Check the timing harness against what is known, on a machine that does nothing else; takes about 8 minutes.

    python data/results/check_harness.py

Writes harness_checks.csv beside this file; notebook 04 shows it. Two checks need packages that are optional: OpenVINO
(python -m pip install openvino) and pytest.
"""

import argparse
import importlib.util
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import pandas as pd
import torch
from torch.utils import benchmark

from helpers import engines, machine, models, settings, timing
from helpers.speed import results, sweep

SHAPE = (1, 3, 128, 128)
PYTORCH, ONNX = "PyTorch", "ONNX Runtime"
WORDS = {True: "yes", False: "no", None: "undecided"}
HOG = "print('busy', flush=True)\nwhile True: pass"
Openers = dict[str, Callable[[], engines.Backend]]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run every check, print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few repeats: shows that the checks run, proves nothing")
    parser.add_argument("--to", type=Path, default=Path(__file__).with_name("harness_checks.csv"), help="the table")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)  # what a process of its own does, folder, turns
    chosen = parser.parse_args(arguments)
    if chosen.child:
        task, folder, turns = chosen.child
        return sweep_until_killed(folder) if task == "sweep" else beside_timer(task, Path(folder), int(turns))
    quick = chosen.quick
    with tempfile.TemporaryDirectory() as folder:
        pair = pair_of("resnet18", SHAPE, Path(folder))
        rows = [
            *busy_wait(2 if quick else 5),
            a_a(pair[ONNX], pairs=2 if quick else 40),
            replay(Path(folder), sessions=6 if quick else 20, sizes=(64,) if quick else (64, 128)),
            order_swapped(pair),
            *(against_timer(name, Path(folder), turns=1 if quick else 20) for name in pair),
            against_benchmark_app(Path(folder) / "resnet18.onnx", turns=1 if quick else 10),
            hog(pair, tries=1 if quick else 5),
            killed(tries=1 if quick else 5),
            *([] if quick else [rows_missing()]),
        ]
    table = pd.DataFrame(rows, columns=["check", "target", "measured", "reached", "counters"])
    table["reached"] = table["reached"].map(lambda found: WORDS.get(found, found))
    table["date"] = datetime.now(UTC).date().isoformat()
    table["machine"] = f"{machine.cpu_name()}, {machine.physical_cores()} cores"
    print(table.to_string())
    table.to_csv(chosen.to, index=False)


def pair_of(network: str, shape: Sequence[int], folder: Path) -> Openers:
    """Export a network and return what opens it in PyTorch and in ONNX Runtime."""
    model, _ = models.load_model(network)
    x = np.random.default_rng(settings.SEED).standard_normal(shape, dtype=np.float32)
    path = folder / f"{network}.onnx"
    torch.onnx.export(model, (torch.from_numpy(x),), path, input_names=["input"], external_data=False, verbose=False)
    threads = machine.physical_cores()
    return {
        PYTORCH: partial(engines.pytorch, model, x, threads=threads),
        ONNX: partial(engines.onnxruntime, path.read_bytes(), x, threads=threads),
    }


def counters(timings: Iterable[timing.Timing]) -> str:
    """Say what was counted in the sessions: where a target is missed, this is where to look first."""
    sessions = [session for found in timings for session in found.sessions]
    foreign = max((session.foreign_cores for session in sessions if session.foreign_cores is not None), default=None)
    throttled = sum(session.throttled or 0 for session in sessions)
    said = [f"{sum(session.disturbed for session in sessions)} of {len(sessions)} sessions disturbed"]
    said += [] if foreign is None else [f"other programs at most {foreign:.2f} cores"]
    said += [f"{throttled} periods throttled"] if throttled else []
    restless = sum(not session.idle for session in sessions)
    return ", ".join([*said, f"{restless} began before the process was idle"] if restless else said)


def covers(ratio: float, half_width: float, truth: float) -> bool:
    """Tell whether an interval holds a ratio."""
    return abs(math.log(truth / ratio)) <= math.log1p(half_width)


def busy_wait(sessions: int) -> list[tuple]:
    """Recover the length of a loop that is busy for a known time."""
    rows = []
    for ms in (1, 10, 100):

        def wait(seconds: float = ms / 1e3) -> None:
            end = time.perf_counter() + seconds
            while time.perf_counter() < end:
                pass

        found = timing.measure({"wait": lambda wait=wait: wait}, reference="wait", sessions=sessions)
        off = found["wait"].p50_ms / ms - 1
        said = counters(found.values())
        rows.append((f"busy for {ms} ms", "within 0.5 %", f"off by {off:+.2%}", abs(off) <= 0.005, said))
    return rows


def a_a(opener: Callable[[], engines.Backend], *, pairs: int) -> tuple:
    """Measure ONNX Runtime against itself, every session opened anew: 1 should be in 95 % of the intervals."""
    found = [timing.measure({"A": opener, "B": opener}, reference="A", seed=seed) for seed in range(pairs)]
    held = sum(covers(timings["B"].ratio, timings["B"].half_width, 1) for timings in found)
    widths = [timings["B"].half_width for timings in found]
    farthest = max((timings["B"].ratio for timings in found), key=lambda ratio: abs(math.log(ratio)))
    text = f"{held} of {pairs}; half-widths {min(widths):.1%} to {max(widths):.1%}, farthest ratio ×{farthest:.3f}"
    said = counters(one for timings in found for one in timings.values())
    return f"A/A across sessions, {pairs} pairs", "1 inside in 90 %", text, held >= 0.9 * pairs, said


def replay(folder: Path, *, sessions: int, sizes: Sequence[int]) -> tuple:
    """See how often five sessions in a row give an interval that holds the ratio of all of them."""
    held, measured = [], []
    for network in models.NETWORKS:
        for size in sizes:
            pair = pair_of(network, (1, 3, size, size), Path(tempfile.mkdtemp(dir=folder)))
            found = timing.measure(pair, reference=PYTORCH, sessions=sessions)
            measured += found.values()
            held += windows(found[PYTORCH].medians_ms, found[ONNX].medians_ms)
    share, said = float(np.mean(held)), counters(measured)
    text = f"{sum(held)} of {len(held)} windows of {timing.SESSIONS} sessions: {share:.0%}"
    return f"coverage by replay, {sessions} sessions a row", "at least 90 %", text, share >= 0.9, said


def windows(over_ms: Sequence[float], under_ms: Sequence[float], *, size: int = timing.SESSIONS) -> list[bool]:
    """Return for each window of sessions whether its interval holds the ratio of all sessions."""
    whole, _ = timing.ratio_interval(over_ms, under_ms)
    parts = [slice(at, at + size) for at in range(len(over_ms) - size + 1)]
    return [covers(*timing.ratio_interval(over_ms[part], under_ms[part]), whole) for part in parts]


def order_swapped(pair: Openers) -> tuple:
    """Hand over the backends in the other order, with another seed."""
    first = timing.measure(pair, reference=PYTORCH)
    second = timing.measure(dict(reversed(pair.items())), reference=PYTORCH, seed=1)
    one, two = first[ONNX], second[ONNX]
    moved, within = math.log(two.ratio / one.ratio), math.hypot(math.log1p(one.half_width), math.log1p(two.half_width))
    text = f"{one.ratio:.3f} to {two.ratio:.3f}: {math.expm1(moved):+.1%}, the interval is ±{math.expm1(within):.1%}"
    said = counters([*first.values(), *second.values()])
    return "order of backends swapped", "inside the interval", text, abs(moved) <= within, said


def beside_timer(name: str, folder: Path, turns: int) -> None:
    """Measure one engine, alone in this process, with the harness and with PyTorch's own timer in turn; print both."""
    opener, both, said = pair_of("resnet18", SHAPE, folder)[name], [], []
    for _ in range(turns):
        found = timing.measure({name: opener}, reference=name, sessions=1)[name]
        said.append(found)
        backend = opener()
        timing.wait_until_idle()
        timer = benchmark.Timer("backend()", globals={"backend": backend}, num_threads=machine.physical_cores())
        both.append((found.p50_ms, timer.blocked_autorange(min_run_time=1).median * 1e3))
        del backend
    print(json.dumps({"both": both, "counters": counters(said)}))


def against_timer(name: str, folder: Path, *, turns: int) -> tuple:
    """Compare with PyTorch's own timer, with the same threads."""
    folder = Path(tempfile.mkdtemp(dir=folder))
    found = json.loads(_child(name, folder, turns).stdout.splitlines()[-1])
    return compared(f"{name} against torch.utils.benchmark.Timer", found["both"], 0.03, found["counters"])


def against_benchmark_app(path: Path, *, turns: int) -> tuple:
    """Compare with OpenVINO's benchmark_app on the same file: one request at a time, the same threads, float32."""
    check, tool = "OpenVINO against its benchmark_app, same file", Path(sys.executable).with_name("benchmark_app")
    if importlib.util.find_spec("openvino") is None or not tool.exists():
        return check, "within 5 %", "openvino is not installed", "not run", ""
    threads, both, said, in_a_row = machine.physical_cores(), [], [], []
    x = np.random.default_rng(settings.SEED).standard_normal(SHAPE, dtype=np.float32)
    command = [str(tool), "-m", str(path), "-d", "CPU", "-api", "sync", "-hint", "none", "-nthreads", str(threads)]
    command += ["-nstreams", "1", "-infer_precision", "f32", "-t", "2"]  # and without its telemetry, as in CI
    for _ in range(turns):
        opener = partial(engines.openvino, path, x, threads=threads)
        found = timing.measure({"ov": opener}, reference="ov", sessions=1)["ov"]
        timing.wait_until_idle()
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | {"CI": "true"})
        both.append((found.p50_ms, float(re.search(r"Median:\s+([\d.]+) ms", done.stdout)[1])))
        said.append(found)
        backend = opener()  # as benchmark_app runs it: without a pause before the block
        ends = [time.perf_counter() for _ in range(200) if backend() is not None]
        in_a_row.append(np.median(np.diff(ends)) * 1e3)
    return compared(check, both, 0.05, f"{counters(said)}; 200 runs in a row {np.median(in_a_row):.2f} ms")


def compared(check: str, both: Sequence[tuple[float, float]], limit: float, said: str) -> tuple:
    """Set the harness's medians beside another tool's; None where the interval reaches over the limit."""
    ours, theirs = np.median(both, axis=0)
    ratio, half = timing.ratio_interval(*np.transpose(both))
    text = f"{ours:.2f} ms against {theirs:.2f} ms: {ratio - 1:+.1%}" + ("" if math.isnan(half) else f" (± {half:.1%})")
    off = max(ratio, 1 / ratio)
    reached = True if off * (1 + half) <= 1 + limit else False if off / (1 + half) > 1 + limit else None
    return check, f"within {limit:.0%}", text, reached, said


def hog(pair: Openers, *, tries: int) -> tuple:
    """Let another program keep one core busy, and see whether every row is flagged."""
    flagged, measured = 0, []
    for _ in range(tries):
        program = subprocess.Popen([sys.executable, "-c", HOG], stdout=subprocess.PIPE)
        try:
            program.stdout.readline()
            found = timing.measure(pair, reference=PYTORCH, sessions=2)
        finally:
            program.kill()
            program.communicate()
        measured += found.values()
        flagged += all(one.status == "disturbed" for one in found.values())
    cores = f"one core of {machine.usable_cores()} busy"
    return cores, "flagged every time", f"{flagged} of {tries}", flagged == tries, counters(measured)


def sweep_until_killed(folder: str) -> None:
    """Sweep many shapes of a tiny network; ``killed`` ends this process in the middle."""
    layers = torch.nn.Conv2d(3, 8, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(8, 10)
    model = torch.nn.Sequential(*layers).eval()
    shapes = [(batch, 3, 32, 32) for batch in range(1, 100)]
    kept = results.Results(folder)
    sweep.run("tiny", model, None, shapes=shapes, columns=("pytorch_cpu",), sessions=1, floor_at=(), results=kept)


def killed(*, tries: int) -> tuple:
    """Kill a sweep at a random moment: every shape that it has finished must be in its file."""
    lost = found = 0
    for seed in range(tries):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, __file__, "--child", "sweep", folder, "0"]
            child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            for line in child.stdout:
                if f"shape {3 + seed} of" in line:
                    break
            time.sleep(random.Random(seed).uniform(0, 0.5))
            child.send_signal(getattr(signal, "SIGKILL", signal.SIGTERM))
            told = child.communicate()[0] + line
            finished = max(int(number) for number in re.findall(r"shape (\d+) of", told)) - 1
            rows = len(results.Results(folder).rows)
            lost, found = lost + max(finished - rows, 0), found + rows
    check = f"kill -9 in the middle of a sweep, {tries} times"
    return check, "no finished row lost", f"{found} rows kept, {lost} lost", lost == 0, ""


def rows_missing() -> tuple:
    """Run the tests that run notebooks 04, 05 and 12 on tables with any row missing."""
    check, target = "04, 05 and 12 with any row missing", "they run to the end"
    if importlib.util.find_spec("pytest") is None:
        return check, target, "pytest is not installed", "not run", ""
    command = [sys.executable, "-m", "pytest", "-q", "tests/helpers/test_missing_rows.py"]
    done = subprocess.run(command, cwd=settings.ROOT, capture_output=True, text=True, check=False)
    text = re.sub(r" in [\d.]+s.*", "", done.stdout.strip().splitlines()[-1]) + " (tests)"
    return check, target, text, done.returncode == 0, ""


def _child(task: str, folder: Path, turns: int) -> subprocess.CompletedProcess:
    command = [sys.executable, __file__, "--child", task, str(folder), str(turns)]
    return subprocess.run(command, capture_output=True, text=True, check=True)


if __name__ == "__main__":
    main()
