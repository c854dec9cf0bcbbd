"""Tables as a sweep returns them, made from times that a test chooses, and such tables with rows missing."""

import math

import numpy as np
import pandas as pd

from helpers import timing
from helpers.engines import COLUMNS
from helpers.speed import results, sweep


def plain_ms(column, batch, size):
    """Return a latency that grows with the pixels: PyTorch twice as slow as ONNX, no GPU."""
    if COLUMNS[column].device == "cuda":
        return None
    return batch * size**2 / 1e4 * (2.0 if column == "pytorch_cpu" else 1.0)


def make_table(ms=plain_ms, *, noise=0.0, sessions=5, peaks=None, network="resnet18", protocol=2, seed=0):
    """Build a table of both batches and all sizes.

    Args:
        ms: ms(column, batch, size) returns a latency, None where there is none.
        noise: standard deviation of the logarithm of a session's latency.
        sessions: of each row.
        peaks: peaks(column) returns peak memory in MiB.
        network: its name.
        protocol: of the rows.
        seed: of the noise.
    """
    random = np.random.default_rng(seed)
    rows = []
    for batch, _, size, _ in sweep.article_shapes():
        for column in COLUMNS:
            found = ms(column, batch, size)
            row = {
                "network": network,
                "model_sha256": "0",
                "column": column,
                "batch": batch,
                "height": size,
                "width": size,
            }
            row |= {"threads": 2, "protocol": protocol, "sitting": f"{batch}x{size}", "note": "", "status": "ok"}
            if found is None:
                row |= {"status": "unavailable", "note": "PyTorch finds no CUDA GPU"}
            else:
                factors = np.exp(noise * random.standard_normal(sessions))
                row |= {"block_ms": [[found * factor] * 5 for factor in factors], "page_faults": 10.0 * size}
                row |= {"system_ms": 0.1 * found, "first_run_ms": 3 * found, "foreign_cores": 0.0, "gflop": 1.0}
                row["peak_rss_mib"] = 100.0 if peaks is None else peaks(column)
                row["base_rss_mib"] = 50.0
            rows.append(row)
    return results.to_table(rows)


def with_status(table, where, status):
    """Return the table with the numbers of some rows taken away and a status in their place."""
    table = table.copy()
    table.loc[where, list(results.NUMBERS)] = math.nan
    table["session_ms"] = table["session_ms"].where(~where, None)
    table.loc[where, ["status", "note"]] = status, f"why it is {status}"
    return table


def sparse(table):
    """Yield a name and a table: every row away, each status everywhere, then each column and each shape away."""
    yield "no rows", table.iloc[:0]
    everywhere = pd.Series(True, index=table.index)
    for status in timing.Status:
        if status not in results.FINISHED:
            yield f"all {status}", with_status(table, everywhere, status)
    for column in table["column"].unique():
        yield f"{column} failed", with_status(table, table["column"] == column, timing.Status.FAILED)
        yield f"without {column}", table[table["column"] != column]
    for shape, rows in table.groupby(["batch", "height"]):
        yield f"{shape} over budget", with_status(table, table.index.isin(rows.index), timing.Status.BUDGET)
        yield f"without {shape}", table.drop(rows.index)
