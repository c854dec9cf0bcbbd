"""Measure every column at every input shape, keep each finished row in a file, and go on where the last run stopped.

Taught in notebooks/04_speed_resnet18.ipynb.
"""

import copy
import hashlib
import math
import re
import secrets
import subprocess
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxsim
import pandas as pd
import torch
from IPython import get_ipython
from IPython.display import Markdown, display
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from helpers import engines, machine, settings, timing
from helpers.engines import AGAIN, COLUMNS, REFERENCE
from helpers.speed import memory
from helpers.speed.results import FINISHED, PROTOCOL, Results, Shape, from_blocks, key, to_table
from helpers.timing import Status

SIZES = (32, 64, 128, 256, 512, 640, 768, 1024)  # the article's heights and widths, px
BATCHES = (1, 16)
TABLE = tuple(name for name in COLUMNS if name != AGAIN)  # the columns of the speed tables
FLOOR_AT = ((1, 3, 64, 64), (1, 3, 256, 256))  # where one file is opened as two columns
# Outputs agree when no logit is off by more than this share of the largest one. float32 keeps about 7 digits;
# notebook 07 measures the errors: a thousand times smaller than this.
TOLERANCE = 1e-3
COPIES = 10  # of the weights that an engine may hold while it loads a network; ONNX Runtime holds three to four

MakeFile = Callable[[str, Shape], Path]


def article_shapes(*, sizes: Sequence[int] = SIZES) -> list[Shape]:
    """Return the article's input shapes (N, 3, H, W), those of some heights and widths in px, cheapest first."""
    return sorted(((batch, 3, size, size) for batch in BATCHES for size in sizes), key=math.prod)


def file_maker(export: Callable[..., object], folder: str | Path) -> MakeFile:
    """Return the ``make_file`` that ``run`` takes: it exports where a shape needs it, and simplifies for sim columns.

    Args:
        export: called as ``export(path, shape, dynamic=...)``; writes the .onnx file for one shape or for all.
        folder: where the files lie; the next shape's file takes the place of the last one's.
    """
    exported: dict[Path, Shape] = {}

    def make_file(kind: str, shape: Shape) -> Path:
        """Return the file of a kind ("fix", "fix_sim", "dyn", "dyn_sim") for an input shape."""
        base, _, simplify = kind.partition("_")
        path = Path(folder) / f"{base}.onnx"
        wanted = (2, shape[1], 224, 224) if base == "dyn" else tuple(shape)
        if exported.get(path) != wanted:
            export(path, wanted, dynamic=base == "dyn")
            exported[path] = wanted
        if not simplify:
            return path
        simplified, _ = onnxsim.simplify(
            onnx.load(path)
        )  # whether it is right, the sweep finds out: it compares outputs
        onnx.save(simplified, path.with_stem(f"{path.stem}_sim"))
        return path.with_stem(f"{path.stem}_sim")

    return make_file


def run(
    network: str,
    model: nn.Module,
    make_file: MakeFile,
    *,
    shapes: Sequence[Shape],
    columns: Sequence[str] = TABLE,
    sessions: int = timing.SESSIONS,
    patience_s: float = 0.0,
    budget_s: float = math.inf,
    threads: int | None = None,
    peaks_of: Sequence[str] = (),
    floor_at: Sequence[Shape] = FLOOR_AT,
    anew: bool = False,
    results: Results | None = None,
) -> pd.DataFrame:
    """Measure the columns at every shape, all columns of a shape against each other.

    Rows that are finished on this machine, with this model, these versions and threads and enough sessions, are taken
    from the results file. GPU columns are measured after the CPU's, in sessions of their own.

    Args:
        network: its name, for the table.
        model: the PyTorch network, in eval mode, on the CPU; any number of input channels and of classes.
        make_file: returns the .onnx file of a kind for an input shape; called only when a row has to be measured.
        shapes: of the input, (N, C, H, W).
        columns: keys of ``engines.COLUMNS``.
        sessions: of each column, at least.
        patience_s: how long to add sessions, a shape, while a ratio stays uncertain (``timing.measure``).
        budget_s: for the whole sweep; shapes that would not fit in get the status "budget".
        threads: the same for all backends; ``machine.physical_cores()`` if not given.
        peaks_of: the columns whose peak memory is measured, each in a process of its own.
        floor_at: the shapes at which the column ``engines.AGAIN`` is measured too.
        anew: measure even what is finished.
        results: where finished rows are kept; this machine's file in ``settings.results_folder()`` if not given.
    Returns:
        ``results.to_table``: one row a shape and column.
    Raises:
        ValueError: if a column is unknown or the network is in training mode.
    """
    if model.training:
        raise ValueError("The network is in training mode: call model.eval() first (notebook 08 shows why).")
    results = Results() if results is None else results
    threads = machine.physical_cores() if threads is None else threads
    lacks = {column: engines.missing(column) for column in (*columns, AGAIN)}
    sweep = _Sweep(network, model, make_file, sessions, patience_s, threads, tuple(peaks_of))
    rows: dict[Shape, dict[str, dict]] = {}
    todo: dict[Shape, list[str]] = {}
    for shape in shapes:
        wanted = [*columns, AGAIN] if tuple(shape) in floor_at and "onnx_fix" in columns else list(columns)
        rows[shape] = {name: sweep.row(name, shape, Status.UNAVAILABLE, lacks[name]) for name in wanted if lacks[name]}
        for name in wanted:
            with_peak = name in peaks_of and COLUMNS[name].device == "cpu"
            known = results.find(sweep.key(name, shape), sessions=sessions, with_peak=with_peak)
            if known and not lacks[name] and not anew:
                rows[shape][name] = known
        todo[shape] = [name for name in wanted if name not in rows[shape]]
    progress = _Progress(network, list(shapes))
    progress.used_again = sum(row["status"] in FINISHED for found in rows.values() for row in found.values())
    for number, shape in enumerate(shapes):
        if todo[shape]:
            left = budget_s - progress.elapsed()
            so_far = [row for found in rows.values() for row in found.values()]
            later_s = sum(sweep.expected_s(later, todo[later], so_far) for later in shapes[number:])
            progress.start(number, min(left, later_s))
            if sweep.expected_s(shape, todo[shape], so_far) > left:
                note = "it would take longer than the time left"
                new = [sweep.row(name, shape, Status.BUDGET, note) for name in todo[shape]]
            else:
                new = sweep.measure(shape, todo[shape], left, progress)
                results.add(row for row in new if row["status"] not in (Status.BUDGET, Status.UNAVAILABLE))
            rows[shape] |= {row["column"]: row for row in new}
    order = dict.fromkeys((*columns, AGAIN, REFERENCE))
    table = [found[name] for found in rows.values() for name in order if name in found]
    progress.end(table, results)
    return to_table(table)


@dataclass
class _Sweep:
    """What stays the same from shape to shape, and the steps of one shape."""

    network: str
    model: nn.Module
    make_file: MakeFile
    sessions: int
    patience_s: float
    threads: int
    peaks_of: tuple[str, ...]
    model_sha256: str = field(init=False)

    def __post_init__(self) -> None:
        digest = hashlib.sha256(repr(self.model).encode())
        for name, tensor in self.model.state_dict().items():
            digest.update(name.encode() + tensor.cpu().numpy().tobytes())
        self.model_sha256 = digest.hexdigest()[:12]

    def key(self, column: str, shape: Shape) -> str:
        return key(self.network, self.model_sha256, column, shape, threads=self.threads)

    def row(self, column: str, shape: Shape, status: Status, note: str = "", **values: object) -> dict:
        """Return the fields that every row has, and the values."""
        batch, channels, height, width = shape
        return {
            "key": self.key(column, shape),
            "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "network": self.network,
            "model_sha256": self.model_sha256,
            "column": column,
            "batch": batch,
            "channels": channels,
            "height": height,
            "width": width,
            "threads": self.threads,
            "status": status,
            "note": note,
            **{name: _six_digits(value) for name, value in values.items()},
            "protocol": PROTOCOL,
            "fingerprint": machine.fingerprint(),
        }

    def expected_s(self, shape: Shape, columns: Sequence[str], rows: Iterable[dict]) -> float:
        """Return how long the columns would take, judged by their latest times and the number of pixels."""
        total = 0.0
        for column in columns:
            earlier = [row for row in rows if row["column"] == column and row.get("p50_ms")]
            if earlier:
                last = earlier[-1]
                scale = math.prod(shape) / (last["batch"] * last["channels"] * last["height"] * last["width"])
                run_s = scale * last["p50_ms"] / 1e3
                runs = timing.WARM_UP_RUNS + 1 + (timing.SLOW_BLOCK if run_s * 1e3 > timing.SLOW_MS else timing.BLOCK)
                total += self.sessions * max(runs * run_s, timing.WARM_UP_S + timing.LONG_ENOUGH_S)
                total += 2 * run_s * (column in self.peaks_of)
        return total

    def measure(self, shape: Shape, todo: Sequence[str], left_s: float, progress: "_Progress") -> list[dict]:
        """Return a finished row for each column of todo."""
        began, rows, expected = time.monotonic(), {}, None
        try:
            x = np.random.default_rng(settings.SEED).standard_normal(shape, dtype=np.float32)
        except MemoryError as error:
            return [self._failure(column, shape, error) for column in todo]
        with_reference = [REFERENCE, *(column for column in todo if column != REFERENCE)]
        for device in ("cpu", "cuda"):  # the GPU's columns in sessions of their own, not between seconds of CPU work
            group = [name for name in with_reference if COLUMNS[name].device == device and not engines.missing(name)]
            wanted = bool(set(group) & set(todo))
            if not wanted and device == "cuda":
                break
            # The reference is always opened: the GPU's logits are compared with it too.
            openers, facts, expected = self._openers(shape, x, group, rows if wanted else {}, expected, progress)
            while wanted and openers:
                left = left_s - (time.monotonic() - began)
                try:
                    timings = timing.measure(
                        openers,
                        reference=next(iter(openers)),
                        sessions=self.sessions,
                        patience_s=min(self.patience_s, left),
                        budget_s=left,
                        seed=settings.SEED,
                        progress=progress.session,
                    )
                    break
                except timing.BackendError as error:  # measure the others without it
                    rows[error.name] = self._failure(error.name, shape, error.__cause__)
                    del openers[error.name]
            else:
                timings = {}
            sitting = secrets.token_hex(4)
            state = _gpu_state() if device == "cuda" and timings else {}
            for column, found in timings.items():
                rows[column] = self._measured(column, shape, found, facts[column] | state | {"sitting": sitting})
        return [row for column, row in rows.items() if column in todo or row["status"] in FINISHED]

    def _openers(self, shape, x, columns, rows, expected, progress) -> tuple[dict, dict, np.ndarray | None]:
        """Open each column once, compare its outputs with the first one's, and return what opens it anew."""
        openers, facts = {}, {}
        for column in columns:
            progress.show(f"opening {COLUMNS[column].label}")
            facts[column] = {"gflop": gflop(self.model, shape)}
            backend = None  # the last one's memory is free
            try:
                path = self._file(column, shape)
                facts[column] |= self._memory(column, shape, path)
                with engines.quiet():
                    backend = engines.open_column(column, model=self.model, path=path, x=x, threads=self.threads)
                facts[column]["provider"] = backend.provider
                logits = backend.logits().astype(np.float64)
                expected = logits if expected is None and np.isfinite(logits).all() else expected
                wrong = _disagreement(logits, expected, facts[column])
            except Exception as error:  # whatever a backend raises becomes its row; the others go on
                rows[column] = self._failure(column, shape, error)
                continue
            if wrong:
                rows[column] = self.row(column, shape, Status.DISAGREES, wrong, **facts[column])
                continue

            def opener(column=column, path=path) -> engines.Backend:
                return engines.open_column(column, model=self.model, path=path, x=x, threads=self.threads)

            openers[column] = opener
        return openers, facts, expected

    def _file(self, column: str, shape: Shape) -> Path | None:
        kind = COLUMNS[column].file
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # some exporters warn of PyTorch's plans with itself
            return None if kind is None else self.make_file(kind, shape)

    def _memory(self, column: str, shape: Shape, path: Path | None) -> dict[str, float]:
        """Return the column's peak memory if it is wanted or may not fit, by a process of its own; raise if not."""
        scarce = memory.available_mib() < enough_mib(self.model, shape)
        if COLUMNS[column].device != "cpu" or not (column in self.peaks_of or scarce):
            return {}
        own = {"network": self.network} if memory.can_rebuild(self.network, self.model) else {"model": self.model}
        which = own if path is None else {"path": path}
        peak = memory.measure_peak(shape=shape, threads=self.threads, runs=1, **which)
        return {name: peak[name] for name in ("base_rss_mib", "peak_rss_mib")}

    def _failure(self, column: str, shape: Shape, error: BaseException) -> dict:
        if isinstance(error, engines.UnavailableError):
            return self.row(column, shape, Status.UNAVAILABLE, str(error))
        reason = first_cause(error)
        if memory.is_out_of_memory(error):
            return self.row(column, shape, Status.OOM, reason)
        return self.row(column, shape, Status.FAILED, reason)

    def _measured(self, column: str, shape: Shape, found: timing.Timing, facts: dict) -> dict:
        if found.status == Status.BUDGET:
            return self.row(column, shape, Status.BUDGET, found.note, **facts)
        blocks = [[_four_digits(value) for value in session.block_ms] for session in found.sessions]
        values = from_blocks(blocks, batch=shape[0])
        loads, firsts = ([getattr(session, name) for session in found.sessions] for name in ("load_ms", "first_run_ms"))
        values |= {"load_ms": float(np.median(loads)), "first_run_ms": float(np.median(firsts))}
        values |= {name: found.mean(name) for name in ("page_faults", "system_ms", "throttled", "device_ms")}
        foreign = [session.foreign_cores for session in found.sessions]
        values["foreign_cores"] = None if None in foreign else max(foreign)
        values["restless_sessions"] = sum(not session.idle for session in found.sessions)
        disturbed = [[_four_digits(v) for v in block] for session in found.sessions for block in session.disturbed_ms]
        raw = {"block_ms": blocks, "disturbed_ms": disturbed}
        return self.row(column, shape, found.status, found.note, **facts, **values, **raw)


def first_cause(error: BaseException) -> str:
    """Return in one line what lies at the root of an error: the exporter, for one, wraps the cause in advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    plain = re.sub(r"\x1b\[[\d;]*m", "", str(error)).strip()  # without the colours of a terminal
    line = next((line.strip() for line in plain.splitlines() if line.strip()), "no message")
    for folder in (settings.ROOT, Path.home()):  # they may hold spaces, and a person's name
        line = line.replace(str(folder), "")
    line = re.sub(r"\S*[/\\](?=[^/\\\s]+)", "", line)  # a file's name is enough; results get shared
    return f"{type(error).__name__}: {line}"


def _disagreement(logits: np.ndarray, expected: np.ndarray | None, facts: dict) -> str:
    """Return what is wrong with logits, "" if nothing, and note their relative error among the facts."""
    if not np.isfinite(logits).all():
        return "its logits hold NaN or infinity"
    if logits.shape != expected.shape:
        return f"its logits have the shape {logits.shape}, the reference's {expected.shape}"
    error, largest = np.abs(logits - expected).max(), np.abs(expected).max()
    facts["max_rel_error"] = float(error / largest) if largest else (0.0 if error == 0 else math.inf)
    if facts["max_rel_error"] > TOLERANCE:
        return f"its logits are off by {facts['max_rel_error']:.1e} of the largest one"
    return ""


def enough_mib(model: nn.Module, shape: Shape) -> float:
    """Return the free memory in MiB with which a column is run without trying it apart: for its input and weights."""
    weights = sum(tensor.nbytes for tensor in model.state_dict().values())
    return (memory.TRY_APART * math.prod(shape) * 4 + COPIES * weights) / 2**20


@cache
def gflop(model: nn.Module, shape: Shape) -> float:
    """Count the floating-point operations of one run, in 1e9 (a multiply-add is two), by PyTorch's own counter."""
    on_meta = copy.deepcopy(model).to("meta")  # PyTorch's device that knows shapes and computes nothing
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        on_meta(torch.empty(shape, device="meta"))
    return counter.get_total_flops() / 1e9


def _gpu_state() -> dict[str, str]:
    """Return the GPU's clock, power and temperature, as nvidia-smi says them; {} where it is missing."""
    query = "clocks.sm,power.draw,power.limit,temperature.gpu"
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"gpu_state": found.splitlines()[0]} if found else {}


class _Progress:
    """One line that says where the sweep is; in a notebook it is one output that is rewritten."""

    def __init__(self, network: str, shapes: Sequence[Shape]) -> None:
        self.network, self.shapes = network, shapes
        self.began = time.monotonic()
        self.handle = None
        self.used_again = 0  # rows taken from earlier runs

    def elapsed(self) -> float:
        return time.monotonic() - self.began

    def start(self, number: int, expected_s: float) -> None:
        self.number, self.ends = number, self.elapsed() + expected_s
        self.show("starting")

    def session(self, timings: dict[str, timing.Timing]) -> None:
        last = list(timings.values())[-1]
        against = COLUMNS[next(iter(timings))].label
        self.show(f"session {len(last.sessions)} · {COLUMNS[last.name].label} ×{last.ratio:.2f} {against}'s speed")

    def show(self, what: str) -> None:
        shape = "×".join(map(str, self.shapes[self.number]))
        left = max(self.ends - self.elapsed(), 0)
        about = f" · about {left / 60:.0f} min left" if left > 90 else f" · about {left:.0f} s left" if left else ""
        self._write(f"{self.network}: shape {self.number + 1} of {len(self.shapes)}, {shape}, {what}{about}")

    def end(self, table: Sequence[dict], results: Results) -> None:
        counts = pd.Series([str(row["status"]) for row in table], dtype=object).value_counts()
        said = ", ".join(f"{count} {status}" for status, count in counts.items())
        days = sorted({row["measured_at"][:10] for row in table if row["status"] in FINISHED})
        when = f" Measured on {' and '.join(days)}, kept in {results.path.name}." if days else ""
        if self.used_again:
            when = f" {self.used_again} rows are from an earlier run." + when
        text = f"{self.network}: {len(self.shapes)} shapes, {len(table)} rows: {said}.{when} {results.trouble}"
        self._write(text.strip())

    def _write(self, text: str) -> None:
        if get_ipython() is None:  # a plain script
            print(text, flush=True)
        elif self.handle is None:
            self.handle = display(Markdown(text), display_id=True)
        else:
            self.handle.update(Markdown(text))


def _six_digits(value: object) -> object:
    if not isinstance(value, float):
        return value
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _four_digits(value: float) -> float:
    return float(f"{value:.4g}")
