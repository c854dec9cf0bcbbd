"""A speed table, wide and in pictures: one colour, marker and line per column, everywhere in the course.

Taught in notebooks/04_speed_resnet18.ipynb.
"""

import math
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FixedLocator, LogFormatter, NullLocator

from helpers import timing
from helpers.engines import AA, COLUMNS, REFERENCE
from helpers.plots import BLUE, GREEN, GREY, ORANGE, PURPLE, RED
from helpers.speed import results

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
RATIO_TICKS = (0.1, 0.2, 0.5, 0.7, 1, 1.5, 2, 3, 5, 7, 10, 15, 20, 30, 50, 100)


def look(column: str) -> dict[str, Any]:
    """Return the colour, marker, line and label of a column, as ``ax.plot`` takes them."""
    return {**dict(zip(("color", "marker", "linestyle"), STYLES[column], strict=True)), "label": COLUMNS[column].label}


def present(table: pd.DataFrame) -> list[str]:
    """Return the columns of the speed tables that somebody could have here: those not unavailable at every shape."""
    there = set(table.loc[table["status"] != timing.Status.UNAVAILABLE, "column"])
    return [key for key in STYLES if key in there]


def absent_line(table: pd.DataFrame) -> str:
    """Return one sentence that names the columns that nobody can have here, and why; "" if there is none."""
    gone = table[~table["column"].isin([*present(table), AA])]
    whys = gone.groupby("note", sort=False)["column"].unique()
    return " ".join(f"{', '.join(COLUMNS[key].label for key in keys)}: {why}." for why, keys in whys.items())


def wide(table: pd.DataFrame, *, noise_floor: float = 0.0) -> pd.DataFrame:
    """Return the article's table: one row per shape, one column per backend; median in ms, and ratio to PyTorch CPU.

    A cell reads "12.3 · ×1.50 ±2 %", with "≈" before a ratio that is undecided; where there is no time, the status.

    Args:
        table: of ``sweep.measure_table``.
        noise_floor: the difference, as a share, that this machine cannot tell from none.
    """
    shown = table[table["column"].isin(present(table))].copy()
    shown["cell"] = [_cell(row, noise_floor) for _, row in shown.iterrows()]
    found = shown.pivot_table(index=["batch", "height", "width"], columns="column", values="cell", aggfunc="last")
    return found.reindex(columns=present(table)).rename(columns=lambda key: COLUMNS[key].label).fillna("")


def _cell(row: pd.Series, noise_floor: float) -> str:
    if math.isnan(row["p50_ms"]):
        return str(row["status"])
    time = f"{row['p50_ms']:.3g}" if row["p50_ms"] < 1000 else f"{row['p50_ms']:.0f}"
    mark = " (contended)" if row["status"] == timing.Status.CONTENDED else ""
    mark += " (not idle)" if row["not_idle_trials"] > 0 else ""  # its own threads ran on into a trial
    if row["column"] == REFERENCE or math.isnan(row["ratio"]):
        return time + mark
    verdict = timing.verdict(row["ratio"], row["rel_ci"], noise_floor=noise_floor)
    few = f" ({row['trials']:.0f} trial{'s' * (row['trials'] > 1)}: no interval)"
    width = few if verdict == "no interval" else f" ±{max(row['rel_ci'], noise_floor):.0%}"
    return f"{time} · {'≈' if verdict == 'undecided' else ''}×{row['ratio']:.2f}{width}{mark}"


def times(table: pd.DataFrame, ax: Axes | None = None, *, columns: Sequence[str]) -> Axes:
    """Draw the article's picture: latency by input shape, one line per column, the band from p10 to p90.

    Args:
        table: of ``sweep.measure_table``.
        ax: where to draw.
        columns: to draw.
    Returns:
        The Axes, its time axis logarithmic.
    """
    ax = plt.gca() if ax is None else ax
    place = _places(table, ax)
    for column in columns:
        style = look(column)
        for _, rows in _measured(table, column, "p50_ms").groupby("batch"):  # no line joins batch 1 and batch 16
            x = [place[shape] for shape in _shapes(rows)]
            ax.plot(x, rows["p50_ms"], markersize=5, **style)
            ax.fill_between(x, rows["p10_ms"], rows["p90_ms"], color=style["color"], alpha=0.12, linewidth=0)
            style["label"] = None
    ax.set(ylabel="latency (ms)", yscale="log")
    plain_numbers(ax.yaxis)
    if ax.has_data():
        ax.legend(fontsize="small")
    return ax


def differences(
    table: pd.DataFrame, ax: Axes | None = None, *, columns: Sequence[str], noise_floor: float = 0.0
) -> Axes:
    """Draw the latency of columns that lie on ONNX fix as a difference from it, in per cent, with 95 % intervals.

    Args:
        table: of ``sweep.measure_table``.
        ax: where to draw.
        columns: to draw.
        noise_floor: drawn as a grey band: differences inside it say nothing.
    Returns:
        The Axes.
    """
    ax = plt.gca() if ax is None else ax
    place = _places(table, ax)
    bases = _by_shape(table[table["column"] == "onnx_fix"])
    for number, column in enumerate(columns):
        rows = _by_shape(table[table["column"] == column])
        found = [(place[at], *results.compare_rows(row, bases[at])) for at, row in rows.items() if at in bases]
        x, ratio, rel_ci = np.array(found).reshape(-1, 3).T
        _points(ax, column, x + 0.2 * (number - (len(columns) - 1) / 2), 100 * (ratio - 1), 100 * ratio, rel_ci)
    ax.axhspan(-100 * noise_floor, 100 * noise_floor, color=GREY, alpha=0.2, label=f"noise floor, ±{noise_floor:.1%}")
    ax.axhline(0, color=GREY, linewidth=1)
    ax.set_ylabel("latency against ONNX fix (%)")
    ax.legend(fontsize="small", loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(columns) + 1)
    return ax


def ratios(table: pd.DataFrame, ax: Axes | None = None, *, columns: Sequence[str], noise_floor: float = 0.0) -> Axes:
    """Draw how many times as fast as PyTorch CPU each column is, with its 95 % interval, by input shape.

    Args:
        table: of ``sweep.measure_table``.
        ax: where to draw.
        columns: to draw.
        noise_floor: drawn as a grey band around 1: ratios inside it say nothing.
    Returns:
        The Axes, its axis of ratios logarithmic.
    """
    ax = plt.gca() if ax is None else ax
    place = _places(table, ax)
    for number, column in enumerate(columns):
        rows = _measured(table, column, "ratio")
        x = np.array([place[shape] for shape in _shapes(rows)]) + 0.2 * (number - (len(columns) - 1) / 2)
        _points(ax, column, x, rows["ratio"], rows["ratio"], rows["rel_ci"])
    ax.axhspan(1 / (1 + noise_floor), 1 + noise_floor, color=GREY, alpha=0.2, label=f"noise floor, ±{noise_floor:.1%}")
    ax.axhline(1, color=STYLES[REFERENCE][0], label=f"{COLUMNS[REFERENCE].label} = 1")
    ax.set(ylabel="times as fast as PyTorch CPU", yscale="log")
    ratio_ticks(ax.yaxis)
    ax.margins(y=0.3)  # room for the legend
    ax.legend(fontsize="small", loc="upper right", ncols=2)
    return ax


def _points(ax: Axes, column: str, x: np.ndarray, y: Any, ratio: Any, rel_ci: Any) -> None:
    """Draw points with the intervals of their ratios."""
    if len(x):
        width, style = 1 + np.nan_to_num(rel_ci), look(column) | {"linestyle": ""}
        ax.errorbar(x, y, yerr=(ratio - ratio / width, ratio * width - ratio), capsize=3, **style)


def _measured(table: pd.DataFrame, column: str, value: str) -> pd.DataFrame:
    return table[(table["column"] == column) & table[value].notna()].sort_values(["batch", "height", "width"])


def _shapes(rows: pd.DataFrame) -> list[tuple[int, int, int]]:
    return list(rows[["batch", "height", "width"]].itertuples(index=False, name=None))


def _by_shape(rows: pd.DataFrame) -> dict[tuple[int, int, int], pd.Series]:
    return dict(zip(_shapes(rows), (row for _, row in rows.iterrows()), strict=True))


def _places(table: pd.DataFrame, ax: Axes) -> dict[tuple[int, int, int], int]:
    """Return the place on the x-axis of each input shape, and label the axis."""
    place = {shape: x for x, shape in enumerate(sorted(set(_shapes(table))))}
    one_batch = len({batch for batch, *_ in place}) == 1
    names = [f"{height}" if height == width else f"{height}×{width}" for _, height, width in place]
    if not one_batch:
        names = [f"{batch}×{name}" for (batch, *_), name in zip(place, names, strict=True)]
    ax.set_xticks(range(len(place)), names, rotation=0 if one_batch else 60)
    ax.set_xlabel("height and width (px)" if one_batch else "batch × height and width (px)")
    ax.set_xlim(-0.5, max(len(place), 1) - 0.5)
    return place


def plain_numbers(axis: Axis) -> None:
    """Write 0.1, 20 and 300 on a logarithmic axis, and label the small ticks where it has no two powers of ten."""
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(LogFormatter(minor_thresholds=(1.5, 0.6)))


def ratio_ticks(axis: Axis) -> None:
    """Label a logarithmic axis of ratios at 0.5, 1, 1.5, 2, 3 and so on."""
    axis.set_major_locator(FixedLocator(RATIO_TICKS))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter("{x:g}")
