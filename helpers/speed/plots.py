"""A speed table, wide and in pictures: one colour, marker and line a column, everywhere in the course.

Taught in notebooks/04_speed_resnet18.ipynb.
"""

import math
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FixedLocator, LogFormatter, NullLocator

from helpers import timing
from helpers.engines import AGAIN, COLUMNS, REFERENCE
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
    gone = table[~table["column"].isin([*present(table), AGAIN])]
    whys = gone.groupby("note", sort=False)["column"].unique()
    return " ".join(f"{', '.join(COLUMNS[key].label for key in keys)}: {why}." for why, keys in whys.items())


def wide(table: pd.DataFrame, *, floor: float = 0.0) -> pd.DataFrame:
    """Return the article's table: a row a shape, a column a backend; median in ms, and ratio to PyTorch CPU.

    A cell reads "12.3 · ×1.50 ±2 %", with "≈" before a ratio that is undecided; where there is no time, the status.

    Args:
        table: of ``sweep.run``.
        floor: the difference, as a share, that this machine cannot tell from none.
    """
    shown = table[table["column"].isin(present(table))].copy()
    shown["cell"] = [_cell(row, floor) for row in shown.itertuples()]
    found = shown.pivot_table(index=["batch", "height", "width"], columns="column", values="cell", aggfunc="last")
    return found.reindex(columns=present(table)).rename(columns=lambda key: COLUMNS[key].label).fillna("")


def _cell(row: object, floor: float) -> str:
    if math.isnan(row.p50_ms):
        return str(row.status)
    time = f"{row.p50_ms:.3g}" if row.p50_ms < 1000 else f"{row.p50_ms:.0f}"
    mark = " (disturbed)" if row.status == timing.Status.DISTURBED else ""
    mark += " (restless)" if getattr(row, "restless_sessions", 0) > 0 else ""  # its own threads ran on into a session
    if row.column == REFERENCE or math.isnan(row.ratio):
        return time + mark
    verdict = timing.verdict(row.ratio, row.half_width, floor=floor)
    few = f" ({row.sessions:.0f} session{'s' * (row.sessions > 1)}: no interval)"
    width = few if verdict == "no interval" else f" ±{max(row.half_width, floor):.0%}"
    return f"{time} · {'≈' if verdict == 'undecided' else ''}×{row.ratio:.2f}{width}{mark}"


def times(table: pd.DataFrame, ax: Axes | None = None, *, columns: Sequence[str] | None = None) -> Axes:
    """Draw the article's picture: latency by input shape, a line a column, the band from p10 to p90.

    Args:
        table: of ``sweep.run``.
        ax: where to draw.
        columns: to draw; all that were measured, if not given.
    Returns:
        The Axes, its time axis logarithmic.
    """
    ax = plt.gca() if ax is None else ax
    place = _places(table, ax)
    for column, rows in _measured(table, columns):
        for number, (_, part) in enumerate(rows.groupby("batch")):  # a line must not join batch 1 and batch 16
            x = [place[shape] for shape in _shapes(part)]
            _line(ax, column, x, part, "p50_ms", "p10_ms", "p90_ms", labelled=number == 0)
    ax.set(ylabel="latency (ms)", yscale="log")
    plain_numbers(ax.yaxis)
    return _legend(ax)


def differences(
    table: pd.DataFrame, ax: Axes | None = None, *, base: str = "onnx_fix", columns: Sequence[str], floor: float = 0.0
) -> Axes:
    """Draw columns that lie on each other as their difference from one of them, in per cent, with 95 % intervals.

    Args:
        table: of ``sweep.run``.
        ax: where to draw.
        base: the column that the others are compared with.
        columns: to draw.
        floor: drawn as a grey band: differences inside it say nothing.
    """
    ax = plt.gca() if ax is None else ax
    place = _places(table, ax)
    bases = {
        shape: row for shape, row in zip(_shapes(table), table.to_dict("records"), strict=True) if row["column"] == base
    }
    for number, column in enumerate(columns):
        drawn = []
        for row in table[table["column"] == column].to_dict("records"):
            shape = (row["batch"], row["height"], row["width"])
            if shape in bases:
                centre, error, degrees = results.compare(row, bases[shape])
                half = 0.0 if math.isnan(error) else timing.stats.t.ppf(0.975, degrees) * error
                drawn.append((place[shape] + 0.2 * (number - (len(columns) - 1) / 2), centre, half))
        drawn = np.array([entry for entry in drawn if not math.isnan(entry[1])]).reshape(-1, 3)
        colour, marker, _ = STYLES[column]
        value = np.expm1(drawn[:, 1]) * 100
        spread = np.abs(np.expm1(drawn[:, [1, 1]] + drawn[:, [2, 2]] * [-1, 1]) * 100 - value[:, None])
        ax.errorbar(
            drawn[:, 0],
            value,
            yerr=spread.T,
            color=colour,
            marker=marker,
            ls="",
            capsize=3,
            label=COLUMNS[column].label,
        )
    ax.axhspan(-100 * floor, 100 * floor, color=GREY, alpha=0.2, label=f"floor, ±{floor:.1%}")
    ax.axhline(0, color=GREY, linewidth=1)
    ax.set_ylabel(f"latency against {COLUMNS[base].label} (%)")
    ax.legend(fontsize="small", loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(columns) + 1)
    return ax


def ratios(
    table: pd.DataFrame, ax: Axes | None = None, *, columns: Sequence[str] | None = None, floor: float = 0.0
) -> Axes:
    """Draw how many times as fast as PyTorch CPU each column is, with its 95 % interval, by input shape.

    Args:
        table: of ``sweep.run``.
        ax: where to draw.
        columns: to draw; all that were measured, if not given.
        floor: drawn as a grey band around 1: ratios inside it say nothing.
    """
    ax = plt.gca() if ax is None else ax
    place = _places(table, ax)
    drawn = [(column, rows) for column, rows in _measured(table, columns, "ratio") if column != REFERENCE]
    for number, (column, rows) in enumerate(drawn):
        colour, marker, _ = STYLES[column]
        half = rows["half_width"].fillna(0)
        spread = np.array([rows["ratio"] - rows["ratio"] / (1 + half), rows["ratio"] * half])
        x = [place[shape] + 0.22 * (number - (len(drawn) - 1) / 2) for shape in _shapes(rows)]  # side by side
        ax.errorbar(
            x, rows["ratio"], yerr=spread, color=colour, marker=marker, ls="", capsize=3, label=COLUMNS[column].label
        )
    ax.axhspan(1 / (1 + floor), 1 + floor, color=GREY, alpha=0.2, label=f"floor, ±{floor:.1%}")
    ax.axhline(1, color=STYLES[REFERENCE][0], label=f"{COLUMNS[REFERENCE].label} = 1")
    ax.set(ylabel="times as fast as PyTorch CPU", yscale="log")
    ratio_ticks(ax.yaxis)
    ax.margins(y=0.3)  # room for the legend
    ax.legend(fontsize="small", loc="upper right", ncols=2)
    return ax


def against_pixels(
    table: pd.DataFrame, ax: Axes | None = None, *, columns: Sequence[str] | None = None, value: str = "p50_ms"
) -> Axes:
    """Draw a number of each column against the number of pixels, batch × height × width, both axes logarithmic.

    Args:
        table: of ``sweep.run``.
        ax: where to draw.
        columns: to draw; all that were measured, if not given.
        value: "p50_ms", "peak_rss_mib" or "page_faults".
    """
    ax = plt.gca() if ax is None else ax
    names = {"p50_ms": "latency (ms)", "peak_rss_mib": "peak memory (MiB)", "page_faults": "page faults a run"}
    for column, rows in _measured(table, columns, value):
        pixels = rows["batch"] * rows["height"] * rows["width"]
        order = pixels.argsort()
        _line(ax, column, pixels.iloc[order], rows.iloc[order], value)
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
        table: of ``sweep.run``.
        other: rows of another machine, or ``article.rows``.
        ax: where to draw.
        column: a key of ``COLUMNS``.
        name: of the other machine, for the legend.
    """
    ax = plt.gca() if ax is None else ax
    place = _places(pd.concat([table, other]), ax)
    colour, marker, _ = STYLES[column]
    for rows, look, label in ((other, {"color": GREY, "ls": ":"}, name), (table, {"color": colour}, "here")):
        for number, (_, part) in enumerate(
            part for _, found in _measured(rows, [column]) for part in found.groupby("batch")
        ):
            x = [place[shape] for shape in _shapes(part)]
            ax.plot(x, part["p50_ms"], marker=marker, label=label if number == 0 else None, **look)
    ax.set(ylabel="latency (ms)", yscale="log", title=COLUMNS[column].label)
    plain_numbers(ax.yaxis)
    return _legend(ax)


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


def _line(
    ax: Axes, column: str, x: Sequence, rows: pd.DataFrame, middle: str, *spread: str, labelled: bool = True
) -> None:
    colour, marker, line = STYLES[column]
    label = COLUMNS[column].label if labelled else None
    ax.plot(x, rows[middle], color=colour, marker=marker, linestyle=line, markersize=5, label=label)
    if spread:
        ax.fill_between(x, rows[spread[0]], rows[spread[1]], color=colour, alpha=0.12, linewidth=0)


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
