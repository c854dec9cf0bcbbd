"""A speed table, wide and in pictures: one colour, marker and line a column, everywhere in the course.

Taught in notebooks/04_speed_resnet18.ipynb.
"""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import LogFormatter

from helpers.engines import COLUMNS, REFERENCE
from helpers.plots import BLUE, GREEN, GREY, ORANGE, PURPLE, RED

# column -> colour, marker, line
STYLES = {
    "onnx_fix": (BLUE, "o", "-"),
    "onnx_fix_sim": (BLUE, "s", "--"),
    "onnx_dyn": (GREEN, "^", "-"),
    "onnx_dyn_sim": (GREEN, "v", "--"),
    "pytorch_cpu": (ORANGE, "D", "-"),
    "pytorch_gpu": (RED, "P", "-"),
    "pytorch_gpu_copies": (RED, "X", "--"),
    "ort_gpu": (PURPLE, "*", "-"),
    "ort_gpu_copies": (PURPLE, "h", "--"),
}


def wide(table: pd.DataFrame) -> pd.DataFrame:
    """Return the article's table: a row a shape, a column a backend, the median in ms as text.

    A noisy median carries a ``~``; where there is none, the status stands.

    Args:
        table: rows of ``sweep.run``.
    """
    shown = table["p50_ms"].map("{:.2f}".format).where(table["p50_ms"].notna(), table["status"])
    shown = shown.where(table["status"] != "noisy", shown + " ~")
    named = table.assign(shown=shown, column=table["column"].map(COLUMNS))
    found = named.pivot(index=["batch", "size"], columns="column", values="shown")
    return found[[name for name in COLUMNS.values() if name in found]]


def times(table: pd.DataFrame, ax: Axes | None = None, *, columns: Sequence[str] | None = None) -> Axes:
    """Draw the article's picture: latency by input shape, a line a column, the band from p10 to p90.

    Args:
        table: rows of ``sweep.run``.
        ax: where to draw.
        columns: to draw; all that were measured, if not given.
    Returns:
        The Axes, its time axis logarithmic.
    """
    ax = plt.gca() if ax is None else ax
    shapes = table[["batch", "size"]].drop_duplicates().sort_values(["batch", "size"])
    place = {shape: x for x, shape in enumerate(shapes.itertuples(index=False, name=None))}
    for column, rows in _measured(table, columns):
        for number, (batch, part) in enumerate(rows.groupby("batch")):  # a line must not join batch 1 and batch 16
            x = [place[batch, size] for size in part["size"]]
            _line(ax, column, x, part, "p50_ms", "p10_ms", "p90_ms", labelled=number == 0)
    one_batch = shapes["batch"].nunique() == 1
    names = [str(size) if one_batch else f"{batch}×{size}" for batch, size in place]
    ax.set_xticks(range(len(place)), names, rotation=0 if one_batch else 60)
    ax.set_xlabel("height and width (px)" if one_batch else "batch × height and width (px)")
    ax.set(ylabel="latency (ms)", yscale="log")
    plain_numbers(ax.yaxis)
    ax.legend(fontsize="small")
    return ax


def ratios(table: pd.DataFrame, ax: Axes | None = None, *, columns: Sequence[str] | None = None) -> Axes:
    """Draw how many times as fast as PyTorch CPU each column is, with its 95 % interval, by picture size.

    Args:
        table: rows of ``sweep.run`` of one batch size.
        ax: where to draw.
        columns: to draw; all that were measured, if not given.
    """
    ax = plt.gca() if ax is None else ax
    drawn = [(column, rows) for column, rows in _measured(table, columns) if column != REFERENCE]
    sizes = sorted(table["size"].unique())
    for number, (column, rows) in enumerate(drawn):
        rows = rows[rows["ratio"].notna()]
        colour, marker, line = STYLES[column]
        shift = 0.12 * (number - (len(drawn) - 1) / 2)
        x = [sizes.index(size) + shift for size in rows["size"]]
        spread = np.array([rows["ratio"] - rows["ratio_low"], rows["ratio_high"] - rows["ratio"]]).clip(0)
        ax.errorbar(
            x, rows["ratio"], yerr=spread, color=colour, marker=marker, linestyle=line, capsize=3, label=COLUMNS[column]
        )
    ax.axhline(1, color=STYLES[REFERENCE][0], label=f"{COLUMNS[REFERENCE]} = 1")
    ax.set_xticks(range(len(sizes)), [str(size) for size in sizes])
    ax.set(xlabel="height and width (px)", ylabel="times as fast as PyTorch CPU", yscale="log")
    plain_numbers(ax.yaxis)
    ax.set_xlim(-0.5, len(sizes) - 0.5)
    ax.legend(fontsize="small")
    return ax


def against_pixels(table: pd.DataFrame, ax: Axes | None = None, *, columns: Sequence[str] | None = None) -> Axes:
    """Draw latency against the number of pixels, batch × height × width, both axes logarithmic.

    Args:
        table: rows of ``sweep.run``.
        ax: where to draw.
        columns: to draw; all that were measured, if not given.
    """
    ax = _over_pixels(table, ax, columns, "p50_ms", "p10_ms", "p90_ms")
    ax.set_ylabel("latency (ms)")
    return ax


def peaks(table: pd.DataFrame, ax: Axes | None = None, *, columns: Sequence[str] | None = None) -> Axes:
    """Draw the peak memory of each column's own process against the number of pixels, both axes logarithmic.

    Args:
        table: rows of ``sweep.run``.
        ax: where to draw.
        columns: to draw; all whose peak was measured, if not given.
    """
    ax = _over_pixels(table, ax, columns, "peak_rss_mib")
    ax.set_ylabel("peak memory (MiB)")
    return ax


def beside(table: pd.DataFrame, article: pd.DataFrame, ax: Axes | None = None, *, column: str) -> Axes:
    """Draw one column of the reader's table and of the article's, by input shape.

    Args:
        table: rows of ``sweep.run``.
        article: rows of ``claims.article_rows``.
        ax: where to draw.
        column: a key of ``COLUMNS``.
    """
    ax = plt.gca() if ax is None else ax
    shapes = article[["batch", "size"]].drop_duplicates().sort_values(["batch", "size"])
    place = {shape: x for x, shape in enumerate(shapes.itertuples(index=False, name=None))}
    colour, marker, _ = STYLES[column]
    for rows, look, name in (
        (article, {"color": GREY, "linestyle": ":"}, "article"),
        (table, {"color": colour}, "here"),
    ):
        for batch, part in rows[(rows["column"] == column) & rows["p50_ms"].notna()].groupby("batch"):
            part = part.sort_values("size")
            x = [place[batch, size] for size in part["size"]]
            ax.plot(x, part["p50_ms"], marker=marker, label=name if batch == 1 else None, **look)
    ax.set_xticks(range(len(place)), [f"{batch}×{size}" for batch, size in place], rotation=60)
    ax.set(xlabel="batch × height and width (px)", ylabel="latency (ms)", yscale="log", title=COLUMNS[column])
    plain_numbers(ax.yaxis)
    ax.legend()
    return ax


def _over_pixels(
    table: pd.DataFrame, ax: Axes | None, columns: Sequence[str] | None, middle: str, *spread: str
) -> Axes:
    ax = plt.gca() if ax is None else ax
    for column, rows in _measured(table, columns, value=middle):
        pixels = rows["batch"] * rows["size"] ** 2
        order = pixels.argsort()
        _line(ax, column, pixels.iloc[order], rows.iloc[order], middle, *spread)
    ax.set(xscale="log", yscale="log", xlabel="pixels in the batch")
    plain_numbers(ax.yaxis)
    if ax.lines:
        ax.legend(fontsize="small")
    return ax


def _measured(table: pd.DataFrame, columns: Sequence[str] | None, value: str = "p50_ms") -> list:
    wanted = COLUMNS if columns is None else columns
    found = table[table[value].notna()]
    parts = [(column, found[found["column"] == column].sort_values(["batch", "size"])) for column in wanted]
    return [(column, part) for column, part in parts if len(part)]


def _line(
    ax: Axes, column: str, x: Sequence, rows: pd.DataFrame, middle: str, *spread: str, labelled: bool = True
) -> None:
    colour, marker, line = STYLES[column]
    label = COLUMNS[column] if labelled else None
    ax.plot(x, rows[middle], color=colour, marker=marker, linestyle=line, markersize=5, label=label)
    if spread:
        ax.fill_between(x, rows[spread[0]], rows[spread[1]], color=colour, alpha=0.12, linewidth=0)


def plain_numbers(axis: Axis) -> None:
    """Write 0.1, 20 and 300 on a logarithmic axis, and label the small ticks where it has no two powers of ten."""
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(LogFormatter(minor_thresholds=(1.5, 0.6)))
