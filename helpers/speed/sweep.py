"""Measure every column at every input shape, keep each finished row in a file, and go on where the last run stopped.

Taught in notebooks/04_speed_resnet18.ipynb.
"""

import contextlib
import copy
import hashlib
import math
import re
import secrets
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxsim
import pandas as pd
import torch
from IPython import get_ipython
from IPython.display import Markdown, display
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import list_models

from helpers import engines, machine, settings, timing
from helpers.engines import AA, COLUMNS, REFERENCE
from helpers.speed import memory
from helpers.speed.results import FINISHED, PROTOCOL, Results, Row, Shape, to_table
from helpers.timing import Status

SIZES = (32, 64, 128, 256, 512, 640, 768, 1024)  # the article's heights and widths, px
BATCHES = (1, 16)
TABLE = tuple(name for name in COLUMNS if name != AA)  # the columns of the speed tables
AA_AT = ((1, 3, 64, 64), (1, 3, 256, 256))  # where one file is opened as two columns
# Outputs agree when no logit is off by more than this share of the largest one. float32 keeps about 7 digits;
# notebook 07 measures the errors: a thousand times smaller than this.
TOLERANCE = 1e-3
MEDIANS, MEANS = ("load_ms", "first_run_ms"), ("page_faults", "system_ms", "throttled", "device_ms")  # over the trials
GPU_STATE = "clocks.sm,power.draw,power.limit,temperature.gpu"
COPIES = 10  # of the weights that an engine may hold while it loads a network; ONNX Runtime holds three to four

MakeFile = Callable[[str, Shape], Path]


def article_shapes(*, sizes: Sequence[int] = SIZES) -> list[Shape]:
    """Return the article's input shapes (N, 3, H, W), those of some heights and widths in px, cheapest first."""
    return sorted(((batch, 3, size, size) for batch in BATCHES for size in sizes), key=math.prod)


def file_maker(export: Callable[..., object], folder: str | Path) -> MakeFile:
    """Return the ``make_file`` that ``measure_table`` takes: it exports where a shape needs it, and simplifies.

    Args:
        export: called as ``export(path, shape, dynamic=...)``; writes the .onnx file for one shape or for all.
        folder: where the files lie; the next shape's file takes the place of the last one's.
    """
    exported: dict[Path, Shape] = {}

    def make_file(kind: str, shape: Shape) -> Path:
        """Return the file of a kind ("fix", "fix_sim", "dyn", "dyn_sim") for an input shape."""
        base, _, simplify = kind.partition("_")
        path = Path(folder) / f"{base}.onnx"
        wanted = (2, shape[1], 224, 224) if base == "dyn" else shape
        if exported.get(path) != wanted:
            export(path, wanted, dynamic=base == "dyn")
            exported[path] = wanted
        if not simplify:
            return path
        simplified, _ = onnxsim.simplify(onnx.load(path))  # whether it is right, the sweep finds out by its outputs
        onnx.save(simplified, path.with_stem(f"{path.stem}_sim"))
        return path.with_stem(f"{path.stem}_sim")

    return make_file


def measure_table(
    network: str,
    model: nn.Module,
    make_file: MakeFile,
    *,
    shapes: Sequence[Shape],
    columns: Sequence[str] = TABLE,
    trials: int = timing.TRIALS,
    max_extra_s: float = 0.0,
    budget_s: float = math.inf,
    threads: int | None = None,
    peaks_of: Sequence[str] = (),
    aa_at: Sequence[Shape] = AA_AT,
    anew: bool = False,
    results: Results | None = None,
) -> pd.DataFrame:
    """Measure the columns at every shape, all columns of a shape against each other.

    Rows that are finished on this machine, with this model, these versions and threads and enough trials, are taken
    from the results file. GPU columns are measured after the CPU's, in trials of their own.

    Args:
        network: its name, for the table.
        model: the PyTorch network, in eval mode, on the CPU; any number of input channels and of classes.
        make_file: returns the .onnx file of a kind for an input shape; called only when a row has to be measured.
        shapes: of the input, (N, C, H, W).
        columns: keys of ``engines.COLUMNS``.
        trials: of each column, at least.
        max_extra_s: how long to add trials, per shape, while a ratio stays uncertain (``timing.measure``).
        budget_s: for the whole sweep; shapes that would not fit in get the status "budget".
        threads: the same for all backends; ``machine.physical_cores()`` if not given.
        peaks_of: the columns whose peak memory is measured, each in a process of its own.
        aa_at: the shapes at which the column ``engines.AA`` is measured too.
        anew: measure even what is finished.
        results: where finished rows are kept; this machine's file in ``settings.results_folder()`` if not given.
    Returns:
        ``results.to_table``: one row per shape and column.
    Raises:
        ValueError: if a column is unknown or the network is in training mode.
    """
    if model.training:
        raise ValueError("The network is in training mode: call model.eval() first (notebook 08 shows why).")
    results = Results() if results is None else results
    threads = machine.physical_cores() if threads is None else threads
    lacks = {column: engines.missing(column) for column in (*columns, AA)}
    progress = _Progress(network)
    sweep = _Sweep(network, model, make_file, trials, max_extra_s, threads, peaks_of, progress)
    table: list[Row] = []
    used_again = 0
    for number, shape in enumerate(shapes, start=1):
        wanted = [*columns, AA] if shape in aa_at and "onnx_fix" in columns else list(columns)
        rows = {name: sweep.row(name, shape, Status.UNAVAILABLE, lacks[name]) for name in wanted if lacks[name]}
        for name in [name for name in wanted if not (anew or lacks[name])]:
            with_peak = name in peaks_of and COLUMNS[name].device == "cpu"
            if known := results.find(sweep.key(name, shape), trials=trials, with_peak=with_peak):
                rows[name] = known
                used_again += 1
        if todo := [name for name in wanted if name not in rows]:
            progress.place = f"shape {number} of {len(shapes)}, {'×'.join(map(str, shape))}"
            new = sweep.measure(shape, todo, budget_s - progress.elapsed_s())
            results.add(row for row in new if row.status not in (Status.BUDGET, Status.UNAVAILABLE))
            rows |= {row.column: row for row in new}
        table += [rows[name] for name in dict.fromkeys((*columns, AA, REFERENCE)) if name in rows]
    counts = ", ".join(f"{count} {status}" for status, count in Counter(row.status for row in table).most_common())
    earlier = f" {used_again} rows are from an earlier run." if used_again else ""
    days = sorted({row.measured_at[:10] for row in table if row.status in FINISHED})
    when = f" Measured on {' and '.join(days)}, kept in {results.path.name}." if days else ""
    progress.write(f"{len(shapes)} shapes, {len(table)} rows: {counts}.{earlier}{when} {results.trouble}".strip())
    return to_table(table)


@dataclass
class _Sweep:
    """What stays the same from shape to shape, and the steps of one shape."""

    network: str
    model: nn.Module
    make_file: MakeFile
    trials: int
    max_extra_s: float
    threads: int
    peaks_of: Sequence[str]
    progress: "_Progress"

    @cached_property
    def model_sha256(self) -> str:
        digest = hashlib.sha256(repr(self.model).encode())
        for name, tensor in self.model.state_dict().items():
            digest.update(name.encode() + tensor.cpu().numpy().tobytes())
        return digest.hexdigest()[:12]

    def key(self, column: str, shape: Shape) -> str:
        """Return what makes a row this row."""
        where = f"{machine.identity()}/{self.network}/{self.model_sha256}/{column}/{'x'.join(map(str, shape))}"
        return f"{where}/{self.threads}-threads/protocol-{PROTOCOL}"

    def row(self, column: str, shape: Shape, status: Status, note: str = "", **values: Any) -> Row:
        """Return a row with the fields that every one has, and the values."""
        fields: dict[str, Any] = dict(zip(("batch", "channels", "height", "width"), shape, strict=True))
        fields |= {"network": self.network, "model_sha256": self.model_sha256, "column": column, "status": status}
        fields |= {"key": self.key(column, shape), "measured_at": datetime.now(UTC).isoformat(timespec="seconds")}
        fields |= {"note": note, "threads": self.threads, "protocol": PROTOCOL, "fingerprint": machine.fingerprint()}
        return Row(**fields, **{name: _rounded(value, 6) for name, value in values.items()})

    def measure(self, shape: Shape, todo: Sequence[str], left_s: float) -> list[Row]:
        """Return a finished row for each column of todo."""
        if left_s <= 0:
            return [self.row(column, shape, Status.BUDGET, "the time was up") for column in todo]
        began = time.monotonic()
        rows: dict[str, Row] = {}
        expected: np.ndarray | None = None
        try:
            x = np.random.default_rng(settings.SEED).standard_normal(shape, dtype=np.float32)
        except MemoryError as error:
            return [self._failure(column, shape, error) for column in todo]
        with_reference = [REFERENCE, *(column for column in todo if column != REFERENCE)]
        for device in ("cpu", "cuda"):  # the GPU's columns in trials of their own, not between seconds of CPU work
            group = [name for name in with_reference if COLUMNS[name].device == device and not engines.missing(name)]
            wanted = bool(set(group) & set(todo))
            if not wanted and device == "cuda":
                break
            # The reference is always opened: the GPU's logits are compared with it too.
            openers, facts, expected = self._openers(shape, x, group, rows if wanted else {}, expected)
            timings: dict[str, timing.Timing] = {}
            while wanted and openers and not timings:
                left = left_s - (time.monotonic() - began)
                try:
                    timings = timing.measure(
                        openers,
                        reference=next(iter(openers)),
                        trials=self.trials,
                        max_extra_s=min(self.max_extra_s, left),
                        budget_s=left,
                        seed=settings.SEED,
                        progress=self.progress.trial,
                    )
                except timing.BackendError as error:  # measure the others without it
                    rows[error.name] = self._failure(error.name, shape, error.__cause__ or error)
                    del openers[error.name]
            state = machine.nvidia_smi(GPU_STATE) if device == "cuda" and timings else None
            run_id = secrets.token_hex(4)
            for column, found in timings.items():
                more = facts[column] | {"gpu_state": state, "run_id": run_id}
                rows[column] = self._measured(column, shape, found, more)
        return [row for column, row in rows.items() if column in todo or row.status in FINISHED]

    def _openers(
        self, shape: Shape, x: np.ndarray, columns: Sequence[str], rows: dict[str, Row], expected: np.ndarray | None
    ) -> tuple[dict[str, Callable[[], engines.Backend]], dict[str, dict[str, Any]], np.ndarray | None]:
        """Open each column once, compare its outputs with the first one's, and return what opens it anew."""
        openers: dict[str, Callable[[], engines.Backend]] = {}
        facts: dict[str, dict[str, Any]] = {}
        for column in columns:
            self.progress.show(f"opening {COLUMNS[column].label}")
            facts[column], backend = {}, None  # the last one's memory is free
            with contextlib.suppress(Exception):  # what cannot run without numbers is timed, and not counted
                facts[column]["gflop"] = gflop(self.model, shape)
            try:
                with engines.quiet(), warnings.catch_warnings():
                    warnings.simplefilter("ignore", FutureWarning)  # some exporters warn of PyTorch's plans with itself
                    kind = COLUMNS[column].file
                    path = self.make_file(kind, shape) if kind else None
                    facts[column] |= self._memory(column, shape, path)
                    open_ = partial(engines.open_column, column, model=self.model, path=path, x=x, threads=self.threads)
                    backend = open_()
                facts[column]["provider"] = backend.provider
                logits = backend.logits().astype(np.float64)
                expected = logits if expected is None and np.isfinite(logits).all() else expected
                wrong = _disagreement(logits, expected, facts[column])
            except Exception as error:  # whatever a backend raises becomes its row; the others go on
                rows[column] = self._failure(column, shape, error)
                continue
            if wrong:
                rows[column] = self.row(column, shape, Status.DISAGREES, wrong, **facts[column])
            else:
                openers[column] = open_
        return openers, facts, expected

    def _memory(self, column: str, shape: Shape, path: Path | None) -> dict[str, float]:
        """Return the column's peak memory if it is wanted or may not fit, by a process of its own; raise if not."""
        weights = sum(tensor.nbytes for tensor in self.model.state_dict().values())
        enough_mib = (memory.TRY_APART * math.prod(shape) * 4 + COPIES * weights) / 2**20
        scarce = memory.available_mib() < enough_mib
        if COLUMNS[column].device != "cpu" or not (column in self.peaks_of or scarce):
            return {}
        known = type(self.model).__module__.startswith("torchvision.") and self.network in list_models()
        what: dict[str, Any] = {"model": self.model}
        if path or known:  # made anew by its name, a network takes no memory for a copy
            what = {"path": path} if path else {"network": self.network}
        peak = memory.measure_peak(shape=shape, threads=self.threads, runs=1, **what)
        return {name: peak[name] for name in ("base_rss_mib", "peak_rss_mib")}

    def _failure(self, column: str, shape: Shape, error: BaseException) -> Row:
        if isinstance(error, engines.UnavailableError):
            return self.row(column, shape, Status.UNAVAILABLE, str(error))
        status = Status.OOM if memory.is_out_of_memory(error) else Status.FAILED
        return self.row(column, shape, status, first_cause(error))

    def _measured(self, column: str, shape: Shape, found: timing.Timing, facts: dict[str, Any]) -> Row:
        if found.status == Status.BUDGET:
            return self.row(column, shape, Status.BUDGET, found.note, **facts)
        blocks = [_rounded(list(trial.block_ms), 4) for trial in found.trials]
        values: dict[str, Any] = {"block_ms": blocks, "p50_ms": float(np.median(np.concatenate(blocks)))}
        values["discarded_ms"] = [_rounded(list(block), 4) for trial in found.trials for block in trial.discarded_ms]
        values["not_idle_trials"] = sum(not trial.idle for trial in found.trials)
        values["other_cores"] = max(trial.other_cores for trial in found.trials)
        values |= {name: float(np.median([getattr(trial, name) for trial in found.trials])) for name in MEDIANS}
        values |= {name: found.mean(name) for name in MEANS}
        return self.row(column, shape, found.status, found.note, **facts, **values)


def first_cause(error: BaseException) -> str:
    """Return in one line what lies at the root of an error: the exporter, for one, wraps the cause in advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    plain = re.sub(r"\x1b\[[\d;]*m", "", str(error)).strip()  # without the colours of a terminal
    line = next((line.strip() for line in plain.splitlines() if line.strip()), "no message")
    # A file's name is enough; results get shared, and folders may hold a person's name, and spaces.
    for folder in (settings.ROOT, Path.home()):
        line = line.replace(str(folder), "")
    line = re.sub(r"(['\"])[^'\"]*[/\\]([^/\\'\"]*)\1", r"\1\2\1", line)
    line = re.sub(r"\S*[/\\](?=[^/\\\s]+)", "", line)
    return f"{type(error).__name__}: {line}"


def _disagreement(logits: np.ndarray, expected: np.ndarray | None, facts: dict[str, Any]) -> str:
    """Return what is wrong with logits, "" if nothing, and note their relative error among the facts."""
    if expected is None or not np.isfinite(logits).all():
        return "its logits hold NaN or infinity"
    if logits.shape != expected.shape:
        return f"its logits have the shape {logits.shape}, the reference's {expected.shape}"
    error, largest = np.abs(logits - expected).max(), np.abs(expected).max()
    facts["max_rel_error"] = float(error / largest) if largest else (0.0 if error == 0 else math.inf)
    if facts["max_rel_error"] > TOLERANCE:
        return f"its logits are off by {facts['max_rel_error']:.1e} of the largest one"
    return ""


@cache
def gflop(model: nn.Module, shape: Shape) -> float:
    """Count the floating-point operations of one run, in 1e9 (a multiply-add is two), by PyTorch's own counter.

    Args:
        model: the network.
        shape: of the input, (N, C, H, W).
    """
    on_meta = copy.deepcopy(model).to("meta")  # PyTorch's device that knows shapes and computes nothing
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        on_meta(torch.empty(shape, device="meta"))
    return counter.get_total_flops() / 1e9


class _Progress:
    """One line that says where the sweep is; in a notebook it is one output that is rewritten."""

    def __init__(self, network: str) -> None:
        self.network, self.place, self.began, self.handle = network, "", time.monotonic(), None

    def elapsed_s(self) -> float:
        return time.monotonic() - self.began

    def trial(self, timings: dict[str, timing.Timing]) -> None:
        name, found = list(timings.items())[-1]
        self.show(f"trial {len(found.trials)}, {COLUMNS[name].label} ×{found.ratio:.2f}")

    def show(self, what: str) -> None:
        self.write(f"{self.place}, {what} · {self.elapsed_s():.0f} s")

    def write(self, text: str) -> None:
        text = f"{self.network}: {text}"
        if get_ipython() is None:  # a plain script
            print(text, flush=True)
        elif self.handle is None:
            self.handle = display(Markdown(text), display_id=True)
        else:
            self.handle.update(Markdown(text))


def _rounded(value: Any, digits: int) -> Any:
    """Return numbers with fewer digits, in lists, too; None for what is no number."""
    if isinstance(value, list):
        return [_rounded(one, digits) for one in value]
    return value if not isinstance(value, float) else float(f"{value:.{digits}g}") if math.isfinite(value) else None
