"""Check ``helpers.timing`` against what is known, on a machine that does nothing else; takes about 8 minutes.

``python -m notebooks.lessons.harness`` writes harness_checks.csv into the folder of results; notebook 04 shows it. With
COURSE_EFFORT=quick it only shows that the checks run.
"""

import math
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.utils import benchmark

from helpers import engines, machine, models, settings, timing
from notebooks.lessons import other_engines

PYTORCH, ONNX, THREADS = "PyTorch", "ONNX Runtime", machine.physical_cores()
APP = f"-d CPU -api sync -hint none -nthreads {THREADS} -nstreams 1 -infer_precision f32 -t 2"
Openers = dict[str, Callable[[], Callable[[], object]]]
Check = tuple[str, str, str, bool | None]  # check, target, measured, reached (None: undecided)
seen: list[timing.Timing] = []  # by the check that runs


def main() -> None:
    """Run every check, print the table and write it."""
    with tempfile.TemporaryDirectory() as folder:
        rows = [(*check, counters()) for check in checks(folder, quick=settings.effort() == "quick")]
    table = pd.DataFrame(rows, columns=["check", "target", "measured", "reached", "counters"])
    table["reached"] = [{True: "yes", False: "no"}.get(found, "undecided") for found in table["reached"]]
    table["date"] = datetime.now(UTC).date().isoformat()
    table["machine"] = f"{machine.cpu_name()}, {THREADS} cores"
    print(table.to_string())
    settings.results_folder().mkdir(parents=True, exist_ok=True)
    table.to_csv(settings.results_folder() / "harness_checks.csv", index=False)


def checks(folder: str, *, quick: bool) -> Iterator[Check]:
    """Yield what each check found."""
    pair = pair_of("resnet18", 128, folder)
    for ms in (1, 10, 100):
        yield busy_wait(ms)
    yield a_a(pair[ONNX], 2 if quick else 40)
    yield replay(folder, 6 if quick else 20)
    yield order_swapped(pair)
    turns = 1 if quick else 20
    for name, opener in pair.items():
        yield beside(f"{name} against PyTorch's Timer", opener, partial(timer_ms, opener), 0.03, turns)
    if find_spec("openvino"):
        path, x = Path(folder, "resnet18.onnx"), np.ones((1, 3, 128, 128), np.float32)
        opener = partial(other_engines.openvino, path, x, threads=THREADS)
        yield beside("OpenVINO against its benchmark_app", opener, partial(app_ms, path), 0.05, turns)
    yield hog(pair, 1 if quick else 5)


def pair_of(network: str, size: int, folder: str) -> Openers:
    """Export a network and return what opens it in PyTorch and in ONNX Runtime."""
    model, path = models.load_model(network)[0], Path(folder, f"{network}.onnx")
    x = np.ones((1, 3, size, size), np.float32)
    torch.onnx.export(model, (torch.from_numpy(x),), path, input_names=["input"], external_data=False, verbose=False)
    in_onnx = partial(engines.onnxruntime, path.read_bytes(), x, threads=THREADS)
    return {PYTORCH: partial(engines.pytorch, model, x, threads=THREADS), ONNX: in_onnx}


def measured(openers: Openers, **options: Any) -> list[timing.Timing]:
    """Measure against the first, and keep what was counted."""
    found = list(timing.measure(openers, reference=next(iter(openers)), **options).values())
    seen.extend(found)
    return found


def counters() -> str:
    """Say what was counted since the last call: where a target is missed, this is where to look first."""
    trials = [trial for found in seen for trial in found.trials]
    seen.clear()
    contended, not_idle = sum(trial.contended for trial in trials), sum(not trial.idle for trial in trials)
    cores = np.nanmax([0, *(trial.other_cores for trial in trials)])
    return (
        f"{contended} of {len(trials)} trials contended, {not_idle} not idle, other programs at most {cores:.2f} cores"
    )


def busy_wait(ms: float) -> Check:
    """Recover the length of a loop that is busy for a known time."""

    def wait() -> None:
        end = time.perf_counter() + ms / 1e3
        while time.perf_counter() < end:
            pass

    off = measured({"wait": lambda: wait})[0].p50_ms / ms - 1
    return f"busy for {ms} ms", "within 0.5 %", f"off by {off:+.2%}", abs(off) <= 0.005


def a_a(opener: Callable, pairs: int) -> Check:
    """Measure a backend against itself, every trial opened anew: 1 should be in 95 % of the intervals."""
    found = [measured({"A": opener, "B": opener}, seed=seed)[1] for seed in range(pairs)]
    held, widths = sum(covers(one.ratio, one.rel_ci, 1) for one in found), [one.rel_ci for one in found]
    text = f"{held} of {pairs}; relative intervals ±{min(widths):.1%} to ±{max(widths):.1%}"
    return f"A/A across trials, {pairs} pairs", "1 inside in 90 %", text, held >= 0.9 * pairs


def replay(folder: str, trials: int) -> Check:
    """See how often five trials in a row give an interval that holds the ratio of all of them."""
    held = []
    for network, size in ((network, size) for network in models.NETWORKS for size in (64, 128)):
        one, other = measured(pair_of(network, size, tempfile.mkdtemp(dir=folder)), trials=trials)
        held += windows(one.medians_ms, other.medians_ms)
    text = f"{sum(held)} of {len(held)} windows of {timing.TRIALS} trials: {np.mean(held):.0%}"
    return f"coverage by replay, {trials} trials a row", "at least 90 %", text, bool(np.mean(held) >= 0.9)


def windows(over_ms: np.ndarray, under_ms: np.ndarray) -> list[bool]:
    """Return for each window of ``timing.TRIALS`` trials whether its interval holds the ratio of all trials."""
    whole, _ = timing.ratio_interval(over_ms, under_ms)
    parts = [slice(at, at + timing.TRIALS) for at in range(len(over_ms) - timing.TRIALS + 1)]
    return [covers(*timing.ratio_interval(over_ms[part], under_ms[part]), whole) for part in parts]


def covers(ratio: float, rel_ci: float, truth: float) -> bool:
    """Tell whether an interval holds a ratio."""
    return abs(math.log(truth / ratio)) <= math.log1p(rel_ci)


def order_swapped(pair: Openers) -> Check:
    """Hand over the backends in the other order, which turns the ratio, with another seed."""
    (_, one), (_, two) = measured(pair), measured(dict(reversed(pair.items())), seed=1)
    moved, within = -math.log(two.ratio * one.ratio), math.hypot(math.log1p(one.rel_ci), math.log1p(two.rel_ci))
    text = (
        f"{one.ratio:.3f} to {1 / two.ratio:.3f}: {math.expm1(moved):+.1%}, the interval is ±{math.expm1(within):.1%}"
    )
    return "order of backends swapped", "inside the interval", text, abs(moved) <= within


def timer_ms(opener: Callable) -> float:
    """Let PyTorch's own timer measure a backend, with the same threads."""
    timer = benchmark.Timer("backend()", globals={"backend": opener()}, num_threads=THREADS)
    return timer.blocked_autorange(min_run_time=1).median * 1e3


def app_ms(path: Path) -> float:
    """Let OpenVINO's benchmark_app measure a file: one request at a time, the same threads, float32, no telemetry."""
    command = [str(Path(sys.executable).with_name("benchmark_app")), "-m", str(path), *APP.split()]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | {"CI": "true"})
    return float(re.findall(r"Median:\s+([\d.]+) ms", done.stdout)[0])


def beside(check: str, opener: Callable, other_ms: Callable[[], float], limit: float, turns: int) -> Check:
    """Let the harness and another tool measure one backend in turn."""
    both = []
    for _ in range(turns):
        ours_ms = measured({"it": opener}, trials=1)[0].p50_ms
        timing.wait_until_idle()
        both.append((ours_ms, other_ms()))
    return compared(check, both, limit)


def compared(check: str, both: Sequence[tuple[float, float]], limit: float) -> Check:
    """Compare the harness's times in ms with another tool's; undecided where the interval reaches over the limit."""
    ours, theirs = np.transpose(both)
    ratio, rel_ci = timing.ratio_interval(ours, theirs)
    text = f"{ratio - 1:+.1%} (± {rel_ci:.1%}), turn by turn"
    off = max(ratio, 1 / ratio)
    reached = True if off * (1 + rel_ci) <= 1 + limit else False if off / (1 + rel_ci) > 1 + limit else None
    return check, f"within {limit:.0%}", text, reached


def hog(pair: Openers, tries: int) -> Check:
    """Let another program keep one core busy, and see whether every row is flagged."""
    flagged = 0
    for _ in range(tries):
        program = subprocess.Popen([sys.executable, "-c", "while True: pass"])
        flagged += all(one.status == timing.Status.CONTENDED for one in measured(pair, trials=2))
        program.kill()
        program.wait()
    return f"one core of {machine.usable_cores()} busy", "flagged every time", f"{flagged} of {tries}", flagged == tries


if __name__ == "__main__":
    main()
