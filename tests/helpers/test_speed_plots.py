"""The pictures of the speed tables: every column can be told apart, every axis has its unit, gaps do no harm."""

import math

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from helpers import claims, speed_plots, sweep
from helpers.engines import COLUMNS


@pytest.fixture
def table():
    rows = []
    for batch in sweep.BATCHES:
        for size in sweep.SIZES:
            for number, column in enumerate(COLUMNS):
                measured = "gpu" not in column and (batch, size) != (16, 1024)
                ms = batch * size**2 * (1 + number) / 1e5 if measured else math.nan
                rows.append(
                    {
                        "network": "resnet18",
                        "column": column,
                        "batch": batch,
                        "size": size,
                        "status": "ok" if measured else "unavailable" if "gpu" in column else "budget",
                        "p50_ms": ms,
                        "p10_ms": ms * 0.9,
                        "p90_ms": ms * 1.2,
                        "ratio": 1.5,
                        "ratio_low": 1.4,
                        "ratio_high": 1.7,
                        "peak_rss_mib": 100.0 * (1 + number) if measured else math.nan,
                    }
                )
    return pd.DataFrame(rows)


@pytest.fixture
def ax():
    fig, ax = plt.subplots()
    yield ax
    plt.close(fig)


def test_no_two_columns_look_alike():
    assert set(speed_plots.STYLES) == set(COLUMNS)
    without_colour = [(marker, line) for _, marker, line in speed_plots.STYLES.values()]
    assert len(set(without_colour)) == len(COLUMNS), "two columns differ in colour only"


@pytest.mark.parametrize("draw", [speed_plots.times, speed_plots.against_pixels, speed_plots.peaks, speed_plots.ratios])
def test_axes_carry_units_and_a_legend(draw, table, ax):
    rows = table[table["batch"] == 1] if draw is speed_plots.ratios else table
    assert draw(rows, ax) is ax
    assert ax.get_xlabel() and ax.get_ylabel()
    assert any(unit in ax.get_ylabel() for unit in ("(ms)", "(MiB)", "times as fast"))
    named = {text.get_text() for text in ax.get_legend().get_texts()}
    assert COLUMNS["onnx_fix"] in named and COLUMNS["pytorch_gpu"] not in named


def test_the_table_says_why_a_number_is_missing(table):
    table.loc[0, "status"] = "noisy"
    wide = speed_plots.wide(table)
    assert list(wide.columns) == list(COLUMNS.values())
    assert wide.loc[(1, 32), "ONNX fix"].endswith(" ~")
    assert wide.loc[(1, 32), "PyTorch GPU"] == "unavailable"
    assert wide.loc[(16, 1024), "ONNX fix"] == "budget"


def test_only_the_columns_asked_for_are_drawn(table, ax):
    speed_plots.times(table, ax, columns=["onnx_fix"])
    assert ax.get_legend_handles_labels()[1] == ["ONNX fix"]
    assert len(ax.lines) == table["batch"].nunique(), "a line for each batch, so that it does not join them"


def test_all_sixteen_shapes_have_their_tick(table, ax):
    speed_plots.times(table, ax)
    names = [tick.get_text() for tick in ax.get_xticklabels()]
    assert names[0] == "1×32" and names[-1] == "16×1024" and len(names) == 16


def test_no_peaks_make_an_empty_picture_not_an_error(table, ax):
    assert not speed_plots.peaks(table.assign(peak_rss_mib=math.nan), ax).lines


def test_the_article_stands_beside_the_reader(table, ax):
    speed_plots.beside(table, claims.article_rows("resnet18"), ax, column="onnx_fix")
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["article", "here"]
    assert len(ax.lines) == 4, "two batches each"
