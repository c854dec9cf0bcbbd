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


def times(table: pd.DataFrame, ax: Axes | None = None, *, columns: Sequence[str] | None = None) -> Axes:
    """Draw the article's picture: latency by input shape, one line per column, the band from p10 to p90.

    Args:
        table: of ``sweep.measure_table``.
        ax: where to draw.
        columns: to draw; all that were measured, if not given.
    Returns:
        The Axes, its time axis logarithmic.
    """
    ax = plt.gca() if ax is None else ax
    place = _places(table, ax)
    for column, rows in _measured(table, columns):
        colour, marker, line = STYLES[column]
        look: dict[str, Any] = {
            "color": colour,
            "marker": marker,
            "linestyle": line,
            "markersize": 5,
            "label": COLUMNS[column].label,
        }
        for _, part in rows.groupby("batch"):  # a line must not join batch 1 and batch 16
            x = [place[shape] for shape in _shapes(part)]
            ax.plot(x, part["p50_ms"], **look)
            ax.fill_between(x, part["p10_ms"], part["p90_ms"], color=colour, alpha=0.12, linewidth=0)
            look["label"] = None
    ax.set(ylabel="latency (ms)", yscale="log")
    plain_numbers(ax.yaxis)
    return _legend(ax)


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
    place, base = _places(table, ax), "onnx_fix"
    bases = {(row["batch"], row["height"], row["width"]): row for _, row in table[table["column"] == base].iterrows()}
    for number, column in enumerate(columns):
        rows = table[table["column"] == column]
        found = [(place[at], *results.compare_rows(row, bases[at])) for at, row in _by_shape(rows) if at in bases]
        x, ratio, rel_ci = np.array(found).reshape(-1, 3).T
        _points(ax, column, x, 100 * (ratio - 1), 100 * ratio, rel_ci, number, len(columns))
    ax.axhspan(-100 * noise_floor, 100 * noise_floor, color=GREY, alpha=0.2, label=f"noise floor, ±{noise_floor:.1%}")
    ax.axhline(0, color=GREY, linewidth=1)
    ax.set_ylabel(f"latency against {COLUMNS[base].label} (%)")
    ax.legend(fontsize="small", loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(columns) + 1)
    return ax


def ratios(
    table: pd.DataFrame, ax: Axes | None = None, *, columns: Sequence[str] | None = None, noise_floor: float = 0.0
) -> Axes:
    """Draw how many times as fast as PyTorch CPU each column is, with its 95 % interval, by input shape.

    Args:
        table: of ``sweep.measure_table``.
        ax: where to draw.
        columns: to draw; all that were measured, if not given.
        noise_floor: drawn as a grey band around 1: ratios inside it say nothing.
    Returns:
        The Axes, its axis of ratios logarithmic.
    """
    ax = plt.gca() if ax is None else ax
    place = _places(table, ax)
    drawn = [(column, rows) for column, rows in _measured(table, columns, "ratio") if column != REFERENCE]
    for number, (column, rows) in enumerate(drawn):
        x = np.array([place[shape] for shape in _shapes(rows)], dtype=float)
        ratio = rows["ratio"].to_numpy()
        _points(ax, column, x, ratio, ratio, rows["rel_ci"].to_numpy(), number, len(drawn))
    ax.axhspan(1 / (1 + noise_floor), 1 + noise_floor, color=GREY, alpha=0.2, label=f"noise floor, ±{noise_floor:.1%}")
    ax.axhline(1, color=STYLES[REFERENCE][0], label=f"{COLUMNS[REFERENCE].label} = 1")
    ax.set(ylabel="times as fast as PyTorch CPU", yscale="log")
    ratio_ticks(ax.yaxis)
    ax.margins(y=0.3)  # room for the legend
    ax.legend(fontsize="small", loc="upper right", ncols=2)
    return ax


def _points(
    ax: Axes, column: str, x: np.ndarray, y: np.ndarray, ratio: np.ndarray, rel_ci: np.ndarray, number: int, of: int
) -> None:
    """Draw points with the intervals of their ratios, those of several columns side by side."""
    colour, marker, _ = STYLES[column]
    width = 1 + np.nan_to_num(rel_ci)
    spread = np.array([ratio - ratio / width, ratio * width - ratio])
    look: dict[str, Any] = {"color": colour, "marker": marker, "ls": "", "capsize": 3, "label": COLUMNS[column].label}
    ax.errorbar(x + 0.2 * (number - (of - 1) / 2), y, yerr=spread, **look)


def against_pixels(
    table: pd.DataFrame, ax: Axes | None = None, *, columns: Sequence[str] | None = None, value: str = "p50_ms"
) -> Axes:
    """Draw a number of each column against the number of pixels, batch × height × width, both axes logarithmic.

    Args:
        table: of ``sweep.measure_table``.
        ax: where to draw.
        columns: to draw; all that were measured, if not given.
        value: "p50_ms", "peak_rss_mib" or "page_faults".
    Returns:
        The Axes.
    """
    ax = plt.gca() if ax is None else ax
    names = {"p50_ms": "latency (ms)", "peak_rss_mib": "peak memory (MiB)", "page_faults": "page faults per run"}
    for column, rows in _measured(table, columns, value):
        colour, marker, line = STYLES[column]
        rows = rows.assign(pixels=rows["batch"] * rows["height"] * rows["width"]).sort_values("pixels")
        label = COLUMNS[column].label
        ax.plot(rows["pixels"], rows[value], color=colour, marker=marker, linestyle=line, markersize=5, label=label)
    ax.set(xscale="log", yscale="symlog" if value == "page_faults" else "log", xlabel="pixels in the batch")
    ax.set_ylabel(names[value])
    if value == "page_faults":
        ax.margins(y=0.1)
        ax.set_ylim(bottom=0)  # a count; symlog alone shows as much below zero
    else:
        plain_numbers(ax.yaxis)
    return _legend(ax)


def beside(table: pd.DataFrame, other: pd.DataFrame, ax: Axes | None = None, *, column: str, name: str) -> Axes:
    """Draw one column of the reader's table and of another machine's, by input shape.

    Args:
        table: of ``sweep.measure_table``.
        other: rows of another machine, or ``article.rows``.
        ax: where to draw.
        column: a key of ``COLUMNS``.
        name: of the other machine, for the legend.
    Returns:
        The Axes.
    """
    ax = plt.gca() if ax is None else ax
    place = _places(pd.concat([table, other]), ax)
    colour, marker, _ = STYLES[column]
    looks: list[dict[str, Any]] = [{"color": GREY, "ls": ":", "label": name}, {"color": colour, "label": "here"}]
    for rows, look in zip((other, table), looks, strict=True):
        for _, found in _measured(rows, [column]):
            for _, part in found.groupby("batch"):
                ax.plot([place[shape] for shape in _shapes(part)], part["p50_ms"], marker=marker, **look)
                look["label"] = None
    ax.set(ylabel="latency (ms)", yscale="log", title=COLUMNS[column].label)
    plain_numbers(ax.yaxis)
    return _legend(ax)


def _by_shape(rows: pd.DataFrame) -> list[tuple[tuple[int, int, int], pd.Series]]:
    return list(zip(_shapes(rows), (row for _, row in rows.iterrows()), strict=True))


def _shapes(rows: pd.DataFrame) -> list[tuple[int, int, int]]:
    return list(rows[["batch", "height", "width"]].itertuples(index=False, name=None))


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


def _measured(table: pd.DataFrame, columns: Sequence[str] | None, value: str = "p50_ms") -> list:
    found = table[table[value].notna()].sort_values(["batch", "height", "width"])
    parts = [(column, found[found["column"] == column]) for column in (STYLES if columns is None else columns)]
    return [(column, part) for column, part in parts if len(part)]


def _legend(ax: Axes) -> Axes:
    if ax.get_legend_handles_labels()[0]:
        ax.legend(fontsize="small")
    return ax


def plain_numbers(axis: Axis) -> None:
    """Write 0.1, 20 and 300 on a logarithmic axis, and label the small ticks where it has no two powers of ten."""
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(LogFormatter(minor_thresholds=(1.5, 0.6)))


def ratio_ticks(axis: Axis) -> None:
    """Label a logarithmic axis of ratios at 0.5, 1, 1.5, 2, 3 and so on."""
    axis.set_major_locator(FixedLocator(RATIO_TICKS))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter("{x:g}")
