"""Results files: one JSON line per finished row, with its checksum, one file per machine; written and read here.

Taught in notebooks/04_speed_resnet18.ipynb and notebooks/12_your_machine_and_others.ipynb.

Formats. Protocol 1 (2026): rounds of blocks in one session, spinning stopped, threads on all logical processors; the
key held neither threads nor model; "noisy" marked a wide interval. Protocol 2: trials, one block each; the key holds
the threads and the model's hash. Rows of both are read, brought to today's names, and recomputed from their blocks.
"""

import contextlib
import hashlib
import json
import math
import os
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from helpers import machine, settings, timing
from helpers.engines import AA, COLUMNS, REFERENCE
from helpers.timing import Status

PROTOCOL = 2
MAX_PROBLEMS = 5  # named in an error; a file with more is broken as a whole
FINISHED = (Status.OK, Status.CONTENDED)
Shape = tuple[int, int, int, int]


@dataclass(kw_only=True)
class Row:
    """What one column took at one input shape, and on what; None where it was not, or could not be, measured."""

    key: str  # machine, network, model, column, shape, threads, protocol: what makes a row this row
    measured_at: str  # ISO 8601, UTC
    network: str
    column: str  # a key of ``engines.COLUMNS``
    batch: int
    height: int  # px
    width: int  # px
    status: str  # of ``timing.Status``
    note: str  # why it has no time, or what ran beside it
    protocol: int
    fingerprint: dict[str, Any]  # of ``machine.fingerprint``
    channels: int = 3
    threads: int | None = None
    model_sha256: str | None = None  # the first 12 digits, of structure and weights
    run_id: str | None = None  # columns with the same one were measured in turns
    provider: str | None = None  # who computed, read back
    gflop: float | None = None  # per run, 1e9 operations; a multiply-add is two
    max_rel_error: float | None = None  # of a logit, as a share of the reference's largest
    base_rss_mib: float | None = None  # of the process that measured the peak, before it loaded the network
    peak_rss_mib: float | None = None
    p50_ms: float | None = None  # the median of all runs
    load_ms: float | None = None  # the median over trials, and so below
    first_run_ms: float | None = None
    device_ms: float | None = None  # per run, by the GPU's own clock
    page_faults: float | None = None  # per run
    system_ms: float | None = None  # per run, in the kernel
    throttled: float | None = None  # periods of a container's quota
    other_cores: float | None = None  # CPU cores that other programs used, the largest of all trials
    not_idle_trials: int = 0  # in which this process's own threads ran on
    gpu_state: str | None = None  # clock, power, its limit, temperature
    block_ms: list[list[float]] = field(default_factory=list)  # latencies, one list per trial
    discarded_ms: list[list[float]] = field(default_factory=list)  # those of contended trials, measured again


NAMES = {"sitting": "run_id", "foreign_cores": "other_cores", "restless_sessions": "not_idle_trials"}
NAMES |= {"disturbed_ms": "discarded_ms"}  # as rows on disk call it -> today's name
STATUSES = {"disturbed": Status.CONTENDED, "noisy": Status.OK}
NUMBERS = [f.name for f in fields(Row) if str(f.type) == "float | None"] + ["threads", "not_idle_trials"]
NUMBERS += ["p10_ms", "p90_ms", "images_per_s", "trials", "ratio", "rel_ci"]  # follow from the blocks


class ResultsError(ValueError):
    """A results file that cannot be trusted; the message names each line and says what is wrong with it."""


def checksum(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row's fields with the hash of all others, "sha256", which tells when a shared file was edited."""
    kept = {name: value for name, value in row.items() if name != "sha256"}
    return kept | {"sha256": hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]}


def dump(row: Row) -> str:
    """Return a row as its line of a file."""
    return json.dumps(checksum(asdict(row)), allow_nan=False) + "\n"


def load(line: bytes | str) -> Row:
    """Return the row of a line, of any protocol, checked; ResultsError says what is wrong with it."""
    try:
        raw = dict(json.loads(line))
    except (TypeError, ValueError):
        raise ResultsError("is torn or no JSON: remove it, and measure that row again") from None
    if raw.get("protocol") not in (1, PROTOCOL):
        said = f"has protocol {raw.get('protocol')!r}; this course reads 1 and {PROTOCOL}"
        raise ResultsError(f"{said}: measure again with this version")
    if raw.get("sha256") != checksum(raw)["sha256"]:
        raise ResultsError("was changed after it was measured: its checksum does not fit")
    try:
        row = Row(**_under_todays_names(raw))
    except TypeError:
        raise ResultsError("is no row of a sweep: fields are missing") from None
    if row.column not in COLUMNS:
        raise ResultsError(f"is about {row.column!r}, a column that this course does not know")
    if row.status not in set(Status):
        raise ResultsError(f"has the status {row.status!r}, which this course does not know")
    if row.status in FINISHED:
        try:
            p50_ms, least_ms = _from_blocks(row)["p50_ms"], min(map(min, row.block_ms))
        except (TypeError, ValueError):
            raise ResultsError("holds no runs that a median could be computed from") from None
        if not (least_ms > 0 and math.isclose(p50_ms, row.p50_ms or 0, rel_tol=2e-3)):
            said = f"says that its median is {row.p50_ms} ms, but its own runs give {p50_ms:.6g} ms"
            raise ResultsError(said)
    return row


def _under_todays_names(raw: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a row of any protocol; what no longer exists is left out."""
    row = {NAMES.get(name, name): value for name, value in raw.items()}
    row["status"] = STATUSES.get(row.get("status", ""), row.get("status"))
    if "size" in row:  # protocol 1 knew squares only
        row |= {"height": row["size"], "width": row["size"]}
    row["block_ms"] = row.get("block_ms") or []
    return {field.name: row[field.name] for field in fields(Row) if field.name in row}


class Results:
    """The rows that were measured on this machine, in its file.

    Args:
        folder: where the file lies; made if it is not there.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        """Read what is there; torn and edited lines are passed over, so that their rows are measured again."""
        folder = settings.results_folder() if folder is None else Path(folder)
        name = re.sub(r"[^a-z0-9]+", "-", f"{machine.cpu_name()} {machine.usable_cores()} cores".lower()).strip("-")
        self.path = folder / f"{name}-{machine.identity()}.jsonl"
        self.trouble = ""  # why rows could not be written, if so; they are still in ``rows``
        self.rows: list[Row] = []
        for line in self.path.read_bytes().splitlines() if self.path.exists() else ():
            with contextlib.suppress(ResultsError):
                self.rows.append(load(line))

    def find(self, key: str, *, trials: int, with_peak: bool = False) -> Row | None:
        """Return the latest finished row with this key and so many trials (and its peak memory), or None."""
        for row in reversed(self.rows):
            enough = row.status in FINISHED and len(row.block_ms) >= trials
            if row.key == key and enough and not (with_peak and row.peak_rss_mib is None):
                return row
        return None

    def add(self, rows: Iterable[Row]) -> None:
        """Append rows to the file, flushed to the disk; if that fails, ``trouble`` says why, and they stay here."""
        self.rows += (rows := list(rows))
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            torn = self.path.exists() and not self.path.read_bytes().endswith(b"\n")  # by a kill: left as it is
            with self.path.open("a", encoding="utf-8") as file:
                file.write("\n" * torn + "".join(map(dump, rows)))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            self.trouble = (
                f"Rows could not be written to {self.path} ({error.strerror or error}). They are shown below, but will "
                "be lost when the kernel ends: free some space or make the folder writable, and run again."
            )


def read(path: str | Path) -> list[Row]:
    """Read a results file of one machine, every line of it checked; return its rows as they were measured.

    Args:
        path: a .jsonl file as ``sweep.measure_table`` writes it.
    Raises:
        FileNotFoundError: if there is no such file.
        ResultsError: if it is empty, or a line is torn, of an unknown protocol, changed since it was measured, in
            contradiction to its own blocks, or of another machine than the first line.
    """
    path = Path(path)
    rows: list[Row] = []
    problems = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            row = load(line)
            if rows and _identity(row) != _identity(rows[0]):
                names = _machine_name(row), _machine_name(rows[0])
                raise ResultsError(f"is of another machine ({names[0]}) than line 1 ({names[1]}): one file a machine")
            rows.append(row)
        except ResultsError as error:
            problems.append(f"line {number} {error}")
    if problems:
        more = f" And {len(problems) - MAX_PROBLEMS} more." if len(problems) > MAX_PROBLEMS else ""
        raise ResultsError(f"{path.name}: {'; '.join(problems[:MAX_PROBLEMS])}.{more}")
    if not rows:
        raise ResultsError(f"{path.name} is empty: run the sweep again (notebook 04).")
    return rows


def collect(folder: str | Path | None = None) -> tuple[pd.DataFrame, dict[str, str]]:
    """Put every results file of a folder into one table; a bad file stops no other.

    Args:
        folder: where the .jsonl files lie; ``data/results`` if not given.
    Returns:
        One row per machine, network, column, shape and threads, the latest one that is finished where there are
        several: ``machine``, then the columns of ``to_table``. And for each file left out the reason.
    """
    tables = [to_table([]).assign(machine="")]
    left_out: dict[str, str] = {}
    file_of: dict[str, str] = {}
    for path in sorted((settings.DATA / "results" if folder is None else Path(folder)).glob("*.jsonl")):
        try:
            rows = read(path)
        except (ResultsError, OSError) as error:
            left_out[path.name] = str(error)
            continue
        first = file_of.setdefault(_identity(rows[0]), path.name)
        if first != path.name:
            left_out[path.name] = f"{path.name} is of the same machine as {first}: keep one of the two."
            continue
        latest = {row.key: row for row in sorted(rows, key=lambda row: row.status in FINISHED)}
        tables.append(to_table(latest.values()).assign(machine=_machine_name(rows[0])))
    return pd.concat(tables[1:] or tables, ignore_index=True), left_out


def with_gpu(network: str) -> pd.DataFrame:
    """Return the rows of the machine, and protocol, with most GPU rows of a network; no rows where there is none."""
    table, _ = collect()
    table = table[table["network"] == network]
    on_gpu = table["column"].map(lambda name: COLUMNS[name].device == "cuda") & table["p50_ms"].notna()
    if not on_gpu.any():
        return table.iloc[:0]
    counts = table[on_gpu].groupby(["protocol", "machine"]).size()
    protocol, name = counts.sort_index(ascending=False).idxmax()  # the newer of two equally full ones
    return table[(table["machine"] == name) & (table["protocol"] == protocol)]


def to_table(rows: Iterable[Row]) -> pd.DataFrame:
    """Return rows of one machine as a DataFrame, computed anew from their raw blocks.

    Returns:
        The fields of ``Row`` without key, fingerprint and discarded_ms, NaN where there is no number; and from the
        blocks trial_ms (the median of each trial, None without), p10_ms, p90_ms, images_per_s, trials, ratio (PyTorch
        CPU's time over this one's) and rel_ci (its relative 95 % interval, NaN without enough trials).
    """
    kept = [field.name for field in fields(Row) if field.name not in ("key", "fingerprint", "discarded_ms")]
    flat = []
    for row in rows:
        follows = _from_blocks(row) if row.block_ms else {"trial_ms": None}
        flat.append({name: getattr(row, name) for name in kept} | follows)
    table = pd.DataFrame(flat, columns=[*kept, "trial_ms", *(name for name in NUMBERS if name not in kept)])
    table[NUMBERS] = table[NUMBERS].apply(pd.to_numeric)
    shape = ["network", "batch", "height", "width", "threads", "protocol"]
    if (table["protocol"] > 1).all():
        shape.append("model_sha256")
    for _, group in table[table["trial_ms"].notna()].groupby(shape, dropna=False):
        reference = group[group["column"] == REFERENCE]
        for at, row in group.iterrows() if len(reference) else ():
            ratio, rel_ci = compare_rows(reference.iloc[-1], row)
            rel_ci = math.nan if row["protocol"] == 1 else rel_ci  # rounds say nothing of other sessions
            table.loc[at, ["ratio", "rel_ci"]] = ratio, rel_ci
    return table


def _from_blocks(row: Row) -> dict[str, Any]:
    """Return what follows from a row's raw latencies."""
    times = np.concatenate([np.asarray(block, dtype=float) for block in row.block_ms])
    p10, p50, p90 = map(float, np.percentile(times, (10, 50, 90)))
    trials = len(row.block_ms) if row.protocol > 1 else 1  # protocol 1: rounds in one session
    found = {"trial_ms": [float(np.median(block)) for block in row.block_ms], "trials": trials}
    return found | {"p50_ms": p50, "p10_ms": p10, "p90_ms": p90, "images_per_s": row.batch / p50 * 1e3}


def compare_rows(over: pd.Series, under: pd.Series, *, alpha: float = 0.05) -> tuple[float, float]:
    """Return the ratio of the times of two rows of a table, and its relative interval, trial by trial if of one run id.

    Args:
        over: a row of ``to_table``.
        under: another, whose time divides the first one's.
        alpha: 0.05 for a 95 % interval.
    Returns:
        What ``timing.ratio_interval`` returns; under protocol 2 no interval (NaN) from fewer than ``timing.TRIALS``.
    """
    if not isinstance(over["trial_ms"], list) or not isinstance(under["trial_ms"], list):
        return math.nan, math.nan
    paired = over["run_id"] == under["run_id"] or over["protocol"] == under["protocol"] == 1
    ratio, rel_ci = timing.ratio_interval(over["trial_ms"], under["trial_ms"], paired=paired, alpha=alpha)
    few = any(row["protocol"] > 1 and len(row["trial_ms"]) < timing.TRIALS for row in (over, under))
    return ratio, math.nan if few else rel_ci


def noise_floor(table: pd.DataFrame) -> float:
    """Return the difference, as a share, that this machine cannot tell from none.

    One file opened as two columns (A/A) is one backend, whatever the table says of it. The noise floor is the farthest
    end of the intervals of such pairs; in files of protocol 1, which have no such columns, the largest ratio of the
    plain to the simplified file, one graph for ONNX Runtime.

    Args:
        table: rows of one machine.
    Returns:
        The share, NaN where no such pair was measured.
    """
    measured = table[table["trial_ms"].notna()]
    pairs = {AA: "onnx_fix"} | ({"onnx_fix_sim": "onnx_fix"} if (measured["protocol"] == 1).all() else {})
    floors = []
    for _, rows in measured.groupby(["network", "batch", "height", "width", "threads"], dropna=False):
        by_column = {row["column"]: row for _, row in rows.iterrows()}
        for one, other in pairs.items():
            if one in by_column and other in by_column:
                ratio, rel_ci = compare_rows(by_column[one], by_column[other])
                floors.append(timing.noise_floor(ratio, math.nan if by_column[one]["protocol"] == 1 else rel_ci))
    return max(floors, default=math.nan)


def _machine_name(row: Row) -> str:
    facts = row.fingerprint
    gpu = f" + {facts['gpu']}" if facts["gpu"] else ""
    return f"{facts['cpu']}, {facts['usable_cores']} cores{gpu} ({_identity(row)[:4]})"


def _identity(row: Row) -> str:
    return row.key.split("/")[0]
