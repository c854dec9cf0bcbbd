"""Results files: one JSON line a finished row, sealed, one file a machine; written here, checked and read here.

Taught in notebooks/04_speed_resnet18.ipynb and notebooks/12_your_machine_and_others.ipynb.

Formats. Protocol 1 (2026): rounds of blocks in one session, spinning stopped, threads on all logical processors; the
key held neither threads nor model; "noisy" marked a wide interval. Protocol 2: sessions opened anew, one block each;
the key holds the threads and the model's hash. Rows of both are read, and recomputed from their raw blocks.
"""

import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from helpers import machine, settings, timing
from helpers.engines import AGAIN, COLUMNS, REFERENCE
from helpers.timing import Status

PROTOCOL = 2
ENOUGH_SESSIONS = timing.SESSIONS  # fewer, and a shared row gives no verdict
MAX_PROBLEMS = 5  # named in an error; a file with more is broken as a whole
NEEDED = ("key", "measured_at", "network", "column", "batch", "status", "note", "protocol", "fingerprint")
NUMBERS = (
    "p50_ms", "p10_ms", "p90_ms", "min_ms", "images_per_s", "ratio", "half_width", "sessions", "runs", "load_ms",
    "first_run_ms", "device_ms", "gflop", "max_rel_error", "page_faults", "system_ms", "foreign_cores", "throttled",
    "base_rss_mib", "peak_rss_mib", "threads",
)  # fmt: skip

Shape = tuple[int, int, int, int]


FINISHED = (Status.OK, Status.DISTURBED)


class ResultsError(ValueError):
    """A results file that cannot be trusted; the message names each line and says what is wrong with it."""


def key(network: str, model_sha256: str, column: str, shape: Sequence[int], *, threads: int) -> str:
    """Return what makes a row this row: machine, network, model, column, shape, threads, protocol."""
    size = "x".join(map(str, shape))
    return f"{machine.identity()}/{network}/{model_sha256}/{column}/{size}/{threads}-threads/protocol-{PROTOCOL}"


def seal(row: dict) -> dict:
    """Return the row with the checksum of its other fields, "sha256", which tells when a shared file was edited."""
    kept = {name: value for name, value in row.items() if name != "sha256"}
    return kept | {"sha256": hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]}


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
        self.trouble = ""  # why rows could not be read or written, if so; those measured are still in ``rows``
        self.unwritten: list[dict] = []
        self.rows: list[dict] = []
        try:
            self.rows = [row for _, row in _lines(self.path) if not _what_is_wrong(row, None)]
        except FileNotFoundError:
            pass  # the first run on this machine
        except OSError as error:
            self.trouble = f"Earlier rows in {self.path} cannot be read ({error.strerror or error})."

    def find(self, wanted: str, *, sessions: int, with_peak: bool = False) -> dict | None:
        """Return the latest finished row with this key that is good enough, or None.

        Args:
            wanted: a ``key``.
            sessions: at least.
            with_peak: whether its peak memory must have been measured.
        """
        for row in reversed(self.rows):
            if row["key"] != wanted or row["status"] not in FINISHED or len(row["block_ms"]) < sessions:
                continue
            if not (with_peak and row.get("peak_rss_mib") is None):
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
                if file.tell():
                    file.seek(-1, os.SEEK_END)
                    if file.read(1) != b"\n":
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


def read(path: str | Path) -> list[dict]:
    """Read a results file of one machine, every line of it checked.

    Args:
        path: a .jsonl file as ``sweep.run`` writes it.
    Returns:
        Its rows, in the order they were measured.
    Raises:
        FileNotFoundError: if there is no such file.
        ResultsError: if it is empty, or a line is torn, of an unknown protocol, changed since it was measured, in
            contradiction to its own blocks, or of another machine than the first line.
    """
    path, rows, problems = Path(path), [], []
    for number, row in _lines(path):
        if row is None:
            problems.append(f"line {number} is torn or no JSON: remove it, and measure that row again")
        elif reason := _what_is_wrong(row, rows[0] if rows else None):
            problems.append(f"line {number} {reason}")
        else:
            rows.append(row)
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
        One row a machine, network, column, shape and threads, the latest one that is finished where there are several:
        ``machine``, then the columns of ``to_table``. And for each file left out the reason.
    """
    folder = settings.DATA / "results" if folder is None else Path(folder)
    tables, left_out, file_of = [], {}, {}
    for path in sorted(folder.glob("*.jsonl")):
        try:
            rows = read(path)
        except (ResultsError, OSError) as error:
            left_out[path.name] = str(error)
            continue
        first = file_of.setdefault(_identity(rows[0]), path.name)
        if first != path.name:
            left_out[path.name] = f"{path.name} is of the same machine as {first}: keep one of the two."
            continue
        latest = {row["key"]: row for row in sorted(rows, key=lambda row: row["status"] in (*FINISHED, "noisy"))}
        tables.append(to_table(latest.values()).assign(machine=machine_name(rows[0])))
    return (pd.concat(tables, ignore_index=True) if tables else to_table([]).assign(machine="")), left_out


def with_gpu(network: str, *, folder: str | Path | None = None) -> pd.DataFrame:
    """Return the rows of the machine, and protocol, with most GPU rows of a network; no rows where there is none.

    Args:
        network: its name.
        folder: where the .jsonl files lie; ``data/results`` if not given.
    """
    table, _ = collect(folder)
    table = table[table["network"] == network]
    on_gpu = table[table["column"].map(lambda name: COLUMNS[name].device == "cuda") & table["p50_ms"].notna()]
    if on_gpu.empty:
        return on_gpu
    counts = on_gpu.groupby(["protocol", "machine"]).size()
    protocol, machine = max(counts.index, key=lambda one: (counts[one], one[0]))  # the newer of two equally full ones
    return table[(table["machine"] == machine) & (table["protocol"] == protocol)]


def to_table(rows: Iterable[dict]) -> pd.DataFrame:
    """Return rows as a DataFrame, computed anew from their raw blocks.

    Args:
        rows: of this file format, of one machine.
    Returns:
        One row each: network, column, batch, height, width, status, note, protocol, session_ms (the median of each
        session), session_ratios, block_ms, sitting, and ``NUMBERS``, NaN where there is none. ratio is PyTorch CPU's
        time over this one's; half_width is that of its 95 % interval, as a share, NaN without enough sessions.
    """
    table = pd.DataFrame([_flat(row) for row in rows])
    for name in ("network", "column", "batch", "height", "width", "status", "note", "protocol", "session_ms"):
        table[name] = table[name] if name in table else pd.Series(dtype=object)
    for name in NUMBERS:
        table[name] = pd.to_numeric(table[name]) if name in table else math.nan
    shapes = ["network", "model_sha256", "batch", "height", "width", "threads", "protocol"]
    if len(table) and "model_sha256" in table:
        shapes = shapes if (table["protocol"] > 1).all() else [name for name in shapes if name != "model_sha256"]
        ratios = {at: found for _, group in table.groupby(shapes, dropna=False) for at, found in _ratios(group).items()}
        table.loc[list(ratios), ["ratio", "half_width"]] = np.array(list(ratios.values())).reshape(-1, 2)
    return table


def _flat(row: dict) -> dict:
    """Return the fields of a row for a table, those that follow from its blocks computed from them."""
    flat = {name: value for name, value in row.items() if name not in ("fingerprint", "key", "sha256", "disturbed_ms")}
    flat["height"], flat["width"] = row.get("height", row.get("size")), row.get("width", row.get("size"))
    if row["protocol"] == 1:
        flat["status"] = Status.OK if row["status"] == "noisy" else row["status"]
    blocks = row.get("block_ms")
    flat["session_ms"] = [float(np.median(block)) for block in blocks] if blocks else None
    if blocks:
        flat |= from_blocks(blocks, batch=row["batch"])
        flat["sessions"] = len(blocks) if row["protocol"] > 1 else 1  # protocol 1: rounds in one session
    for name in ("ratio", "ratio_low", "ratio_high", "half_width"):
        flat.pop(name, None)
    return flat


def from_blocks(blocks: Sequence[Sequence[float]], *, batch: int) -> dict[str, float]:
    """Return the numbers that follow from raw latencies in ms: p50, p10, p90, min, images a second, runs."""
    times = np.concatenate([np.asarray(block, dtype=float) for block in blocks])
    p10, p50, p90 = np.percentile(times, (10, 50, 90))
    return {
        "p50_ms": p50,
        "p10_ms": p10,
        "p90_ms": p90,
        "min_ms": times.min(),
        "images_per_s": batch / p50 * 1e3,
        "runs": len(times),
    }


def _ratios(group: pd.DataFrame) -> dict[int, tuple[float, float]]:
    """Return the ratio and half-width of each row that was measured, against the reference of its shape."""
    measured, found = group[group["session_ms"].notna()], {}
    reference = measured[measured["column"] == REFERENCE]
    if reference.empty:
        return found
    theirs = reference.iloc[-1]
    for at, row in measured.iterrows():
        centre, error, degrees = compare(theirs, row)
        one_session = min(row["protocol"], theirs["protocol"]) == 1  # its rounds say nothing of other sessions
        half = math.nan if one_session else float(np.expm1(stats.t.ppf((1 + timing.CONFIDENCE) / 2, degrees) * error))
        found[at] = math.exp(centre), half
    return found


def compare(over: pd.Series, under: pd.Series) -> tuple[float, float, float]:
    """Return ``timing.log_ratio`` of the times of two rows of a table, session by session if of one sitting.

    Under protocol 2 fewer than ``ENOUGH_SESSIONS`` of either give a ratio without an error: they decide nothing.
    """
    if not isinstance(over["session_ms"], list) or not isinstance(under["session_ms"], list):
        return (math.nan,) * 3
    paired = over.get("sitting") == under.get("sitting") or over["protocol"] == under["protocol"] == 1
    centre, error, degrees = timing.log_ratio(over["session_ms"], under["session_ms"], paired=paired)
    if any(row["protocol"] > 1 and len(row["session_ms"]) < ENOUGH_SESSIONS for row in (over, under)):
        return centre, math.nan, math.nan
    return centre, error, degrees


def floor(table: pd.DataFrame) -> float:
    """Return the difference, as a share, that this machine cannot tell from none.

    One file opened as two columns is one backend, whatever the table says of it. The floor is the farthest end of the
    intervals of such pairs; in files of protocol 1, which have no such columns, the largest ratio of the plain to the
    simplified file, one graph for ONNX Runtime.

    Args:
        table: rows of one machine.
    Returns:
        The share, NaN where no such pair was measured.
    """
    measured = table[np.array([isinstance(found, list) for found in table["session_ms"]], dtype=bool)]
    twins = {AGAIN: "onnx_fix"} | ({"onnx_fix_sim": "onnx_fix"} if (measured["protocol"] == 1).all() else {})
    ends = []
    for _, rows in measured.groupby(["network", "batch", "height", "width", "threads"], dropna=False):
        by_column = {row["column"]: row for _, row in rows.iterrows()}
        for one, other in twins.items():
            if one in by_column and other in by_column:
                centre, error, degrees = compare(by_column[one], by_column[other])
                one_session = by_column[one]["protocol"] == 1 or math.isnan(error)
                half = 0.0 if one_session else stats.t.ppf((1 + timing.CONFIDENCE) / 2, degrees) * error
                ends.append(abs(centre) + half)
    return math.expm1(max(ends)) if ends else math.nan


def machine_name(row: dict) -> str:
    """Return the name of the machine that a row was measured on."""
    facts = row["fingerprint"]
    gpu = f" + {facts['gpu']}" if facts["gpu"] else ""
    return f"{facts['cpu']}, {facts['usable_cores']} cores{gpu} ({_identity(row)[:4]})"


def _lines(path: Path) -> list[tuple[int, object]]:
    """Return the lines of a file, numbered from 1, each as what its JSON holds; None if it is torn."""
    found = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            found.append((number, json.loads(line, parse_constant=_refuse)))
        except ValueError:
            found.append((number, None))
    return found


def _what_is_wrong(row: object, first: dict | None) -> str:
    """Return what a line's row lacks, "" if nothing."""
    if not isinstance(row, dict) or any(name not in row for name in NEEDED):
        return "is no row of a sweep: fields are missing"
    if row["protocol"] not in (1, PROTOCOL):
        return f"has protocol {row['protocol']!r}; this course reads 1 and {PROTOCOL}: measure again with this version"
    if row.get("sha256") != seal(row)["sha256"]:
        return "was changed after it was measured: its checksum does not fit"
    if row["column"] not in COLUMNS:
        return f"is about {row['column']!r}, a column that this course does not know"
    if row["status"] not in (*Status, "noisy"):
        return f"has the status {row['status']!r}, which this course does not know"
    if row["status"] in (*FINISHED, "noisy") or row.get("block_ms"):
        try:
            found = from_blocks(row["block_ms"], batch=row["batch"])
            consistent = found["min_ms"] > 0 and math.isclose(found["p50_ms"], row["p50_ms"], rel_tol=2e-3)
        except (KeyError, TypeError, ValueError):
            return "holds no runs that a median could be computed from"
        if not consistent:
            return f"says that its median is {row['p50_ms']} ms, but its own runs give {found['p50_ms']:.6g} ms"
    if first is not None and _identity(row) != _identity(first):
        return f"is of another machine ({machine_name(row)}) than line 1 ({machine_name(first)}): one file a machine"
    return ""


def _identity(row: dict) -> str:
    return row["key"].split("/")[0]


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number that JSON knows")
