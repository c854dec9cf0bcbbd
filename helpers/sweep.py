"""Measure every column at every input shape, keep each finished row in a file, and go on where the last run stopped.

Taught in notebooks/04_speed_resnet18.ipynb.
"""

import copy
import hashlib
import json
import math
import os
import re
import time
from collections.abc import Callable, Iterable, Sequence
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
from threadpoolctl import threadpool_info
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from helpers import engines, machine, memory, settings, timing
from helpers.engines import REFERENCE

PROTOCOL = 1  # raise it when a change to timing, backends or this file makes old rows incomparable
SIZES = (32, 64, 128, 256, 512, 640, 768, 1024)  # the article's heights and widths, px
BATCHES = (1, 16)
# Outputs agree when no logit is off by more than this share of the largest one. float32 keeps about 7 digits;
# notebook 07 measures the errors: a thousand times smaller than this.
TOLERANCE = 1e-3
FINISHED = ("ok", "noisy")

Shape = tuple[int, int, int, int]


def article_shapes(*, sizes: Sequence[int] = SIZES) -> list[Shape]:
    """Return the article's input shapes (N, 3, H, W), those of some heights and widths in px, cheapest first."""
    shapes = [(batch, 3, size, size) for batch in BATCHES for size in sizes]
    return sorted(shapes, key=_pixels)


class Results:
    """The rows that were measured, one JSON line each, in a file of this machine.

    Args:
        folder: where the file lies; made if it is not there.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        """Read what is there."""
        folder = settings.results_folder() if folder is None else Path(folder)
        name = re.sub(r"[^a-z0-9]+", "-", f"{machine.cpu_name()} {machine.usable_cores()} cores".lower()).strip("-")
        self.path = folder / f"{name}-{machine.identity()}.jsonl"
        self.trouble = ""  # why rows could not be read or written, if so; those measured are still in ``rows``
        self.unwritten: list[dict] = []
        try:
            self.rows = read_rows(self.path)
        except OSError as error:
            self.rows, self.trouble = [], f"Earlier rows in {self.path} cannot be read ({error.strerror or error})."

    def find(
        self, network: str, column: str, shape: Sequence[int], *, runs: int, threads: int, with_peak: bool = False
    ) -> dict | None:
        """Return the latest finished row of this machine, versions and protocol that is good enough, or None.

        Args:
            network: its name.
            column: a key of ``engines.COLUMNS``.
            shape: of the input, (N, 3, H, W).
            runs: timed runs, at least.
            threads: of the backend.
            with_peak: whether its peak memory must have been measured.
        """
        wanted = _key(network, column, shape)
        for row in reversed(self.rows):
            if row["key"] != wanted or row["status"] not in FINISHED or row["threads"] != threads:
                continue
            if row["rounds"] * timing.BLOCK >= runs and not (with_peak and row.get("peak_rss_mib") is None):
                return row
        return None

    def add(self, rows: Iterable[dict]) -> None:
        """Append rows to the file, flushed to the disk; if that fails, ``trouble`` says why, the next call retries."""
        rows = list(rows)
        self.rows += rows
        self.unwritten += rows
        text = "".join(json.dumps(seal(row), allow_nan=False) + "\n" for row in self.unwritten)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab+") as file:
                if file.tell() and not _ends_with_newline(file):
                    text = "\n" + text  # the last line was torn by a kill: leave it alone, begin a new one
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())
            self.unwritten, self.trouble = [], ""
        except OSError as error:
            self.trouble = (
                f"{len(self.unwritten)} rows could not be written to {self.path} ({error.strerror or error}). They are "
                "shown below, but will be lost when the kernel ends: free some space or make the folder writable."
            )


def seal(row: dict) -> dict:
    """Return the row with the checksum of its other fields, "sha256", which tells when a shared file was edited."""
    kept = {name: value for name, value in row.items() if name != "sha256"}
    return kept | {"sha256": hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]}


def read_rows(path: str | Path) -> list[dict]:
    """Read the rows of a results file; a torn line, as a kill leaves it, is passed over.

    Returns:
        The rows in the order they were measured; none if there is no file.
    """
    rows = []
    if Path(path).exists():
        for line in Path(path).read_bytes().splitlines():
            try:
                row = json.loads(line)
            except ValueError:  # torn by a kill in mid-write: that row was not finished
                continue
            if isinstance(row, dict) and "key" in row:
                rows.append(row)
    return rows


def run(
    network: str,
    model: nn.Module,
    make_file: Callable[[str, Shape], Path],
    *,
    shapes: Sequence[Shape],
    columns: Sequence[str] = tuple(engines.COLUMNS),
    runs: int,
    patience_s: float = 30.0,
    budget_s: float = math.inf,
    threads: int | None = None,
    peaks_of: Sequence[str] = (),
    anew: bool = False,
    results: Results | None = None,
) -> pd.DataFrame:
    """Measure the columns at every shape, all columns of a shape against each other.

    Rows that are finished on this machine, with these versions and enough runs, are taken from the results file.

    Args:
        network: its name among torchvision's models.
        model: the PyTorch network, in eval mode, on the CPU.
        make_file: returns the .onnx file for a column and an input shape; called only when a row has to be measured.
        shapes: of the input, (N, 3, H, W).
        columns: keys of ``engines.COLUMNS``.
        runs: timed runs of each row, at least.
        patience_s: how long to go on, a shape, while a ratio stays uncertain (``timing.measure``).
        budget_s: for the whole sweep; shapes that would not fit in get the status "budget".
        threads: the same for all backends; the cores that this process may use, if not given.
        peaks_of: the columns whose peak memory is measured, each in a process of its own.
        anew: measure even what is finished.
        results: where finished rows are kept; this machine's file in ``settings.results_folder()`` if not given.
    Returns:
        One row a shape and column. Columns of the frame: network, column, batch, size, status ("ok", "noisy", "oom",
        "budget", "unavailable", "disagrees", "failed"), note, and the measurements, NaN where there are none: p50_ms,
        p10_ms, p90_ms, min_ms, images_per_s, ratio (PyTorch CPU's p50 over this one's) with ratio_low and ratio_high,
        load_ms, first_run_ms, peak_rss_mib and so on.
    Raises:
        ValueError: if a column is unknown or the network is in training mode.
    """
    results = Results() if results is None else results
    threads = machine.usable_cores() if threads is None else threads
    sweep = _Sweep(network, model, make_file, runs, patience_s, threads, peaks_of)
    lacks = {column: engines.missing(column) for column in columns}
    known: dict[Shape, dict[str, dict]] = {}
    for shape in shapes:
        known[shape] = {column: sweep.row(column, shape, "unavailable", lack) for column, lack in lacks.items() if lack}
        for column in columns:
            enough = {"runs": runs, "threads": threads, "with_peak": column in peaks_of and "gpu" not in column}
            if not anew and not lacks[column] and (row := results.find(network, column, shape, **enough)):
                known[shape][column] = row
    todo = {shape: [column for column in columns if column not in known[shape]] for shape in shapes}
    progress = _Progress(network, shapes)
    progress.used_again = sum(row["status"] in FINISHED for rows in known.values() for row in rows.values())
    table: list[dict] = []
    for number, shape in enumerate(shapes):
        rows = known[shape]
        if todo[shape]:
            left = budget_s - progress.elapsed()
            later_s = sum(sweep.expected_s(later, todo[later], table) for later in shapes[number:])
            progress.start(number, min(left, later_s))
            if sweep.expected_s(shape, todo[shape], table) > left:
                note = "it would take longer than the time left"
                new = [sweep.row(column, shape, "budget", note) for column in todo[shape]]
            else:
                new = sweep.measure(shape, todo[shape], left, lacks, progress)
                results.add(row for row in new if row["status"] not in ("budget", "unavailable"))
            rows |= {row["column"]: row for row in new}
        table += [rows[column] for column in columns]
    progress.end(table, results)
    return to_table(table)


def to_table(rows: Iterable[dict]) -> pd.DataFrame:
    """Return rows as a DataFrame: numbers as columns, the fingerprint left out, ``block_ms`` as lists."""
    table = pd.DataFrame([{k: v for k, v in row.items() if k not in ("fingerprint", "key", "sha256")} for row in rows])
    for name in NUMBERS:
        table[name] = pd.to_numeric(table[name]) if name in table else math.nan
    return table


def beside_peaks(table: pd.DataFrame, model: nn.Module) -> pd.DataFrame:
    """Set memory estimates beside the peaks that were measured.

    Args:
        table: rows of ``run``.
        model: the network that was measured.
    Returns:
        One row a column whose peaks are known: "peaks" (how many), "estimate / peak, lowest", "highest" and "above the
        margin" (how many peaks are above ``memory.MARGIN`` times their estimate).
    """
    found = table[table["peak_rss_mib"].notna()]
    estimates = [
        memory.estimate_mib(model, (row.batch, 3, row.size, row.size), kind=_kind(row.column))
        for row in found[["batch", "size", "column"]].itertuples(index=False)
    ]
    off = (estimates / found["peak_rss_mib"]).groupby(found["column"])
    return pd.DataFrame(
        {
            "peaks": off.size(),
            "estimate / peak, lowest": off.min(),
            "highest": off.max(),
            "above the margin": off.agg(lambda ratios: int((memory.MARGIN * ratios < 1).sum())),
        }
    )


NUMBERS = (
    "p50_ms", "p10_ms", "p90_ms", "min_ms", "images_per_s", "ratio", "ratio_low", "ratio_high", "runs", "rounds",
    "load_ms", "first_run_ms", "gflop", "max_rel_error", "foreign_cpu", "repeated_blocks",
    "estimated_mib", "base_rss_mib", "peak_rss_mib", "peak_device_mib",
)  # fmt: skip


def file_maker(export: Callable[..., object], folder: str | Path) -> Callable[[str, Shape], Path]:
    """Return the ``make_file`` that ``run`` takes: it exports where a shape needs it, and simplifies for sim columns.

    Args:
        export: called as ``export(path, shape, dynamic=...)``; writes the .onnx file for one shape or for all.
        folder: where the files lie; the next shape's file takes the place of the last one's.
    """
    exported: dict[Path, Shape] = {}

    def make_file(column: str, shape: Shape) -> Path:
        dynamic = "dyn" in column
        path = Path(folder) / f"{'dyn' if dynamic else 'fix'}.onnx"
        wanted = (2, 3, 224, 224) if dynamic else tuple(shape)
        if exported.get(path) != wanted:
            export(path, wanted, dynamic=dynamic)
            exported[path] = wanted
        if not column.endswith("sim"):
            return path
        simplified, check_passed = onnxsim.simplify(onnx.load(path))
        if not check_passed:
            raise RuntimeError(f"onnxsim says that {path.name} changed its meaning")
        simplified_path = path.with_stem(f"{path.stem}_sim")
        onnx.save(simplified, simplified_path)
        return simplified_path

    return make_file


class _Sweep:
    """What stays the same from shape to shape, and the steps of one shape."""

    def __init__(self, network, model, make_file, runs, patience_s, threads, peaks_of) -> None:
        if model.training:
            raise ValueError("The network is in training mode: call model.eval() first (notebook 08 shows why).")
        self.network, self.model, self.make_file = network, model, make_file
        self.runs, self.patience_s, self.threads, self.peaks_of = runs, patience_s, threads, peaks_of
        digest = hashlib.sha256()
        for tensor in model.state_dict().values():
            digest.update(tensor.numpy().tobytes())
        self.model_hash = digest.hexdigest()[:12]

    def row(self, column: str, shape: Shape, status: str, note: str = "", **values: object) -> dict:
        """Return the fields that every row has, and the values."""
        return {
            "key": _key(self.network, column, shape),
            "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "network": self.network,
            "column": column,
            "batch": shape[0],
            "size": shape[2],
            "status": status,
            "note": note,
            **{name: _six_digits(value) for name, value in values.items()},
            "protocol": PROTOCOL,
            "fingerprint": machine.fingerprint(),
        }

    def expected_s(self, shape: Shape, columns: Sequence[str], table: Sequence[dict]) -> float:
        """Return how long the columns would take, judged by their latest times and the number of pixels."""
        passes = self.runs * (timing.BLOCK + 1) / timing.BLOCK + timing.WARM_UP_RUNS + 1
        total = 0.0
        for column in columns:
            earlier = [row for row in table if row["column"] == column and row.get("p50_ms")]
            if earlier:
                pixels = _pixels(shape) / (earlier[-1]["batch"] * 3 * earlier[-1]["size"] ** 2)
                total += (passes + 2 * (column in self.peaks_of)) * pixels * earlier[-1]["p50_ms"] / 1e3
        return total

    def measure(
        self, shape: Shape, todo: Sequence[str], left_s: float, lacks: dict[str, str], progress: "_Progress"
    ) -> list[dict]:
        """Return a finished row for each column of todo."""
        began = time.monotonic()
        try:
            x = np.random.default_rng(settings.SEED).standard_normal(shape, dtype=np.float32)
        except MemoryError as error:
            return [self._failure(column, shape, error) for column in todo]
        rows: dict[str, dict] = {}
        opened: dict[str, engines.Backend] = {}
        facts: dict[str, dict[str, object]] = {}
        columns = [REFERENCE, *(column for column in todo if column != REFERENCE)]
        for column in columns:
            if lacks.get(column):
                continue
            progress.show(f"opening {engines.COLUMNS[column]}")
            try:
                opened[column], facts[column] = self._open(column, shape, x, facts.values())
            except Exception as error:  # whatever a backend raises becomes its row; the others go on
                rows[column] = self._failure(column, shape, error)
        self._compare(shape, opened, facts, rows)
        while opened:
            reference = REFERENCE if REFERENCE in opened else next(iter(opened))
            try:
                timings = timing.measure(
                    {column: backend.run for column, backend in opened.items()},
                    reference=reference,
                    runs=self.runs,
                    patience_s=min(self.patience_s, left_s - (time.monotonic() - began)),
                    max_s=left_s - (time.monotonic() - began),
                    seed=settings.SEED,
                    progress=progress.round,
                )
                break
            except timing.BackendError as error:  # measure the others without it
                rows[error.name] = self._failure(error.name, shape, error.__cause__)
                del opened[error.name]
        else:
            timings = {}
        for column, found in timings.items():
            rows[column] = self._measured(column, shape, found, facts[column], with_ratio=REFERENCE in opened)
        return [rows[column] for column in todo]

    def _open(
        self, column: str, shape: Shape, x: np.ndarray, others: Iterable[dict[str, object]]
    ) -> tuple[engines.Backend, dict[str, object]]:
        """Return the backend of a column and what is known of it before it is timed; others are open beside it."""
        facts: dict[str, object] = {"gflop": gflop(self.model, shape)}
        kind = _kind(column)
        if "gpu" not in column:
            facts["estimated_mib"] = memory.estimate_mib(self.model, shape, kind=kind)
            available = memory.available_mib() - sum(other.get("estimated_mib", 0.0) for other in others)
            if memory.MARGIN * facts["estimated_mib"] > available:
                raise memory.OutOfMemoryError(
                    f"it needs about {facts['estimated_mib']:.0f} MiB, perhaps ×{memory.MARGIN}, and "
                    f"{max(available, 0):.0f} MiB are free beside the columns measured with it; it was not run"
                )
        path = None if kind == "pytorch" else self.make_file("onnx_fix" if "gpu" in column else column, shape)
        if column in self.peaks_of and "gpu" not in column:
            which = {"network": self.network} if path is None else {"path": path}
            facts |= memory.measure_peak(shape=shape, threads=self.threads, **which)
        backend = engines.open_column(column, model=self.model, path=path, x=x, threads=self.threads)
        facts["model_sha256"] = self.model_hash if path is None else _hash(path)
        facts |= {"provider": backend.provider, "threads": backend.threads, "load_ms": backend.load_ms}
        facts["thread_pools"] = {pool["user_api"]: pool["num_threads"] for pool in threadpool_info()}
        return backend, facts

    def _compare(self, shape: Shape, opened: dict, facts: dict, rows: dict) -> None:
        """Run each backend once, note how long that took, and drop those whose logits are not the reference's."""
        expected = None
        for column in list(opened):
            on_gpu = "gpu" in column and torch.cuda.is_available()
            if on_gpu:
                torch.cuda.reset_peak_memory_stats()
            start = timing.benchmark.timer()
            try:
                logits = opened[column].logits().astype(np.float64)
            except Exception as error:  # as above: it becomes the row
                rows[column] = self._failure(column, shape, error)
                del opened[column]
                continue
            facts[column]["first_run_ms"] = (timing.benchmark.timer() - start) * 1e3
            if on_gpu and column.startswith("pytorch"):
                facts[column]["peak_device_mib"] = torch.cuda.max_memory_allocated() / 2**20
            expected = logits if expected is None and np.isfinite(logits).all() else expected
            if wrong := self._disagreement(logits, expected, facts[column]):
                rows[column] = self.row(column, shape, "disagrees", wrong, **facts[column])
                del opened[column]

    @staticmethod
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

    def _failure(self, column: str, shape: Shape, error: BaseException) -> dict:
        if isinstance(error, engines.UnavailableError):
            return self.row(column, shape, "unavailable", str(error))
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        first_line = re.sub(r"\S*[/\\](?=[^/\\\s]+)", "", first_line)  # the file's name is enough; results get shared
        if memory.is_out_of_memory(error):
            return self.row(column, shape, "oom", first_line)
        return self.row(column, shape, "failed", f"{type(error).__name__}: {first_line}")

    def _measured(self, column: str, shape: Shape, found: timing.Timing, facts: dict, *, with_ratio: bool) -> dict:
        if found.status == "budget":
            return self.row(column, shape, "budget", found.note, **facts)
        p10, p50, p90 = np.percentile(found.times_ms, (10, 50, 90))
        values = {
            "p50_ms": p50,
            "p10_ms": p10,
            "p90_ms": p90,
            "min_ms": found.times_ms.min(),
            "mean_ms": found.times_ms.mean(),
            "images_per_s": shape[0] / p50 * 1e3,
            "ratio": found.ratio if with_ratio else None,
            "ratio_low": found.ratio_low if with_ratio else None,
            "ratio_high": found.ratio_high if with_ratio else None,
            "runs": len(found.times_ms),
            "rounds": len(found.blocks_ms),
            "warm_up_runs": found.warm_up_runs,
            "foreign_cpu": max(found.foreign_cpu),
            "repeated_blocks": len(found.disturbed_ms),
        }
        blocks = {
            "block_ms": [_short(block) for block in found.blocks_ms],
            "disturbed_ms": [_short(block) for block in found.disturbed_ms],
        }
        return self.row(column, shape, found.status, found.note, **facts, **values, **blocks)


@cache
def gflop(model: nn.Module, shape: Shape) -> float:
    """Count the floating-point operations of one run, in 1e9 (a multiply-add is two), by PyTorch's own counter."""
    on_meta = copy.deepcopy(model).to("meta")  # PyTorch's device that knows shapes and computes nothing
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        on_meta(torch.empty(shape, device="meta"))
    return counter.get_total_flops() / 1e9


class _Progress:
    """One line that says where the sweep is; in a notebook it is one output that is rewritten."""

    def __init__(self, network: str, shapes: Sequence[Shape]) -> None:
        self.network, self.shapes = network, shapes
        self.began = time.monotonic()
        self.handle = None
        self.ratio = ""
        self.used_again = 0  # rows taken from earlier runs

    def elapsed(self) -> float:
        return time.monotonic() - self.began

    def start(self, number: int, expected_s: float) -> None:
        self.number, self.ends, self.ratio = number, self.elapsed() + expected_s, ""
        self.show("starting")

    def round(self, timings: dict[str, timing.Timing]) -> None:
        known = [found for name, found in timings.items() if name != REFERENCE and not math.isnan(found.ratio)]
        if known and REFERENCE in timings:
            self.ratio = f" · {engines.COLUMNS[known[-1].name]} ×{known[-1].ratio:.2f} PyTorch CPU's speed"
        self.show(f"round {len(next(iter(timings.values())).blocks_ms)}")

    def show(self, what: str) -> None:
        shape = "×".join(map(str, self.shapes[self.number]))
        left = max(self.ends - self.elapsed(), 0)
        about = f" · about {left / 60:.0f} min left" if left > 90 else f" · about {left:.0f} s left" if left else ""
        self._write(
            f"{self.network}: shape {self.number + 1} of {len(self.shapes)}, {shape}, {what}{self.ratio}{about}"
        )

    def end(self, table: Sequence[dict], results: Results) -> None:
        counts = pd.Series([row["status"] for row in table]).value_counts()
        said = ", ".join(f"{count} {status}" for status, count in counts.items())
        days = sorted({row["measured_at"][:10] for row in table if row["status"] in FINISHED})
        when = f" Measured on {' and '.join(days)}, kept in {results.path.name}." if days else ""
        if self.used_again:
            when = f" {self.used_again} rows are from an earlier run." + when
        self._write(
            f"{self.network}: {len(self.shapes)} shapes, {len(table)} rows: {said}.{when} {results.trouble}".strip()
        )

    def _write(self, text: str) -> None:
        if get_ipython() is None:  # a plain script
            print(text, flush=True)
        elif self.handle is None:
            self.handle = display(Markdown(text), display_id=True)
        else:
            self.handle.update(Markdown(text))


def _key(network: str, column: str, shape: Sequence[int]) -> str:
    return f"{machine.identity()}/{network}/{column}/{'x'.join(map(str, shape))}/protocol-{PROTOCOL}"


def _kind(column: str) -> str:
    """Return the kind of a column, as ``memory.estimate_mib`` knows it."""
    return "pytorch" if column.startswith("pytorch") else "onnx"


def _pixels(shape: Sequence[int]) -> int:
    return math.prod(shape)


def _six_digits(value: object) -> object:
    if not isinstance(value, float):
        return value
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _short(block: np.ndarray) -> list[float]:
    return [float(f"{value:.4g}") for value in block]


def _hash(path: str | Path) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


def _ends_with_newline(file) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"
