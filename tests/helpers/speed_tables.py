"""Tables as a sweep returns them, made from times that a test chooses, and such tables with rows missing."""

import functools
import math

import numpy as np
import pandas as pd

from helpers.engines import AA, COLUMNS
from helpers.speed import results, sweep
from helpers.timing import Status

collected = functools.cache(results.collect)  # the course's own files, read once; copy before changing them


def plain_ms(column, batch, size):
    """Return a latency that grows with the pixels: PyTorch twice as slow as ONNX, no GPU."""
    if COLUMNS[column].device == "cuda":
        return None
    return batch * size**2 / 1e4 * (2.0 if column == "pytorch_cpu" else 1.0)


def make_table(ms=plain_ms, *, noise=0.0, trials=5, peaks=lambda _: 100.0, network="resnet18", seed=0):
    """Build a table of both batches and all sizes.

    Args:
        ms: ms(column, batch, size) returns a latency, None where there is none.
        noise: standard deviation of the logarithm of a trial's latency.
        trials: of each row.
        peaks: peaks(column) returns peak memory in MiB.
        network: its name.
        seed: of the noise.
    """
    random, rows = np.random.default_rng(seed), []
    for batch, _, size, _ in sweep.article_shapes():
        for column in COLUMNS:
            facts = {"network": network, "column": column, "batch": batch, "height": size, "width": size, "threads": 2}
            facts |= {"key": "0", "measured_at": "", "protocol": 2, "fingerprint": {}, "model_sha256": "0"}
            facts |= {"status": Status.UNAVAILABLE, "note": "PyTorch finds no CUDA GPU", "run_id": f"{batch}x{size}"}
            if found := ms(column, batch, size):
                blocks = [[found * factor] * 5 for factor in np.exp(noise * random.standard_normal(trials))]
                facts |= {"status": Status.OK, "note": "", "block_ms": blocks, "p50_ms": found, "gflop": 1.0}
                facts |= {"page_faults": 10.0 * size, "system_ms": 0.1 * found, "first_run_ms": 3 * found}
                facts |= {"other_cores": 0.0, "base_rss_mib": 50.0, "peak_rss_mib": peaks(column)}
            rows.append(results.Row(**facts))
    return results.to_table(rows)


def with_status(table, where, status):
    """Return the table with the numbers of some rows taken away and a status in their place."""
    table = table.copy()
    table.loc[where, list(results.NUMBERS)] = math.nan
    table["trial_ms"] = table["trial_ms"].where(~where, None)
    table.loc[where, ["status", "note"]] = status, f"why it is {status}"
    return table


def sparse(table):
    """Yield a name and a table: every row away, one status everywhere, then columns, shapes and batches away."""
    yield "no rows", table.iloc[:0]
    everywhere = pd.Series(True, index=table.index)
    for status in (Status.UNAVAILABLE, Status.BUDGET, Status.FAILED):
        yield f"all {status}", with_status(table, everywhere, status)
    for column in (name for name in COLUMNS if COLUMNS[name].device == "cpu"):
        yield f"{column} failed", with_status(table, table["column"] == column, Status.FAILED)
    for column in ("onnx_fix", "pytorch_cpu", AA):
        yield f"without {column}", table[table["column"] != column]
    for shape, rows in table.groupby(["batch", "height"]):
        if shape in ((1, 32), (1, 256), (16, 32), (16, 1024)):
            yield f"{shape} over budget", with_status(table, table.index.isin(rows.index), Status.BUDGET)
    for batch, rows in table.groupby("batch"):
        yield f"without batch {batch}", table.drop(rows.index)
        yield f"one shape of batch {batch}", rows[rows["height"] == 256]
