"""Results files from many machines: check each, and put them into one table.

Taught in notebooks/12_your_machine_and_others.ipynb.
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from helpers import claims, engines, models, settings, sweep

ARTICLE = "the article's PC"
MAX_PROBLEMS = 5  # named in an error; a file with more is broken as a whole
NEEDED = ("key", "measured_at", "network", "column", "batch", "size", "status", "note", "protocol", "fingerprint")


class ResultsError(ValueError):
    """A results file that cannot be trusted; the message names each line and says what is wrong with it."""


def read(path: str | Path) -> list[dict]:
    """Read a results file of one machine, every line of it checked.

    Args:
        path: a .jsonl file as ``sweep.run`` writes it.
    Returns:
        Its rows, in the order they were measured.
    Raises:
        FileNotFoundError: if there is no such file.
        ResultsError: if it is empty, or a line is torn, not of this protocol, changed since it was measured, or of
            another machine than the first line.
    """
    path = Path(path)
    rows, problems = [], []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            row = json.loads(line, parse_constant=_refuse)
        except ValueError:
            problems.append(f"line {number} is torn or no JSON: remove it, and measure that row again")
            continue
        reason = _what_is_wrong(row, rows[0] if rows else None)
        if reason:
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
    """Put the article's tables and every results file of a folder into one table; a bad file stops no other.

    Args:
        folder: where the .jsonl files lie; ``data/results`` if not given.
    Returns:
        One row a machine, network, column and input shape, the latest one that is finished where there are several:
        machine, then the columns of ``sweep.to_table``. And for each file left out the reason.
    """
    folder = settings.DATA / "results" if folder is None else Path(folder)
    tables = [_article(network) for network in models.NETWORKS]
    left_out: dict[str, str] = {}
    file_of: dict[str, str] = {}  # machine -> its file
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
        latest = {row["key"]: row for row in sorted(rows, key=lambda row: row["status"] in sweep.FINISHED)}
        tables.append(sweep.to_table(latest.values()).assign(machine=_name(rows[0])))
    return pd.concat(tables, ignore_index=True), left_out


def _what_is_wrong(row: object, first: dict | None) -> str:
    """Return what a line's row lacks, "" if nothing."""
    if not isinstance(row, dict) or any(name not in row for name in NEEDED):
        return "is no row of a sweep: fields are missing"
    if row["protocol"] != sweep.PROTOCOL:
        return f"has protocol {row['protocol']!r}; this course reads {sweep.PROTOCOL}: measure again with this version"
    if row.get("sha256") != sweep.seal(row)["sha256"]:
        return "was changed after it was measured: its checksum does not fit"
    if row["network"] not in models.NETWORKS or row["column"] not in engines.COLUMNS:
        return f"is about {row['network']!r}, {row['column']!r}, which this course does not know"
    if first is not None and _identity(row) != _identity(first):
        return f"is of another machine ({_name(row)}) than line 1 ({_name(first)}): one file a machine"
    return ""


def _identity(row: dict) -> str:
    return row["key"].split("/")[0]


def _name(row: dict) -> str:
    facts = row["fingerprint"]
    gpu = f" + {facts['gpu']}" if facts["gpu"] else ""
    return f"{facts['cpu']}, {facts['usable_cores']} cores{gpu} ({_identity(row)[:4]})"


def _article(network: str) -> pd.DataFrame:
    """Return the article's rows, with the ratio that its own numbers give."""
    rows = claims.article_rows(network)
    reference = rows[rows["column"] == engines.REFERENCE].set_index(["batch", "size"])["p50_ms"]
    expected = pd.MultiIndex.from_frame(rows[["batch", "size"]])
    ratio = reference.reindex(expected).to_numpy() / rows["p50_ms"].to_numpy()
    return rows.assign(machine=ARTICLE, ratio=ratio, ratio_low=np.nan, ratio_high=np.nan)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number that JSON knows")
