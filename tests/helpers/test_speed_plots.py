"""The pictures of the speed tables: every column can be told apart, every axis has its unit, gaps do no harm."""

import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from speed_tables import make_table, plain_ms, sparse, with_status

from helpers import timing
from helpers.engines import AGAIN, COLUMNS
from helpers.speed import article, results
from helpers.speed import plots as speed_plots

ONNX = ("onnx_fix_sim", "onnx_dyn", "onnx_dyn_sim")


@pytest.fixture
def table():
    return make_table(noise=0.01)


@pytest.fixture
def ax():
    fig, ax = plt.subplots()
    yield ax
    plt.close(fig)


def test_no_two_columns_look_alike():
    assert set(speed_plots.STYLES) == set(COLUMNS) - {AGAIN}
    without_colour = [(marker, line) for _, marker, line in speed_plots.STYLES.values()]
    assert len(set(without_colour)) == len(without_colour), "two columns differ in colour only"


@pytest.mark.parametrize(
    ("draw", "unit"),
    [
        (speed_plots.times, "(ms)"),
        (speed_plots.ratios, "times as fast"),
        (speed_plots.against_pixels, "(ms)"),
        (lambda table, ax: speed_plots.against_pixels(table, ax, value="peak_rss_mib"), "(MiB)"),
        (lambda table, ax: speed_plots.against_pixels(table, ax, value="page_faults"), "page faults"),
        (lambda table, ax: speed_plots.differences(table, ax, columns=ONNX, floor=0.02), "(%)"),
        (
            lambda table, ax: speed_plots.beside(table, article.rows("resnet18"), ax, column="onnx_fix", name="x"),
            "(ms)",
        ),
    ],
)
def test_axes_carry_units_and_a_legend_and_gaps_do_no_harm(draw, unit, table, ax):
    assert draw(table, ax) is ax
    assert unit in ax.get_ylabel() and ax.get_xlabel()
    assert COLUMNS["pytorch_gpu"].label not in {text.get_text() for text in ax.get_legend().get_texts()}
    for name, some in sparse(table):
        ax.clear()
        assert draw(some, ax) is ax, name


def test_a_ratio_that_is_undecided_is_marked_and_the_floor_bounds_it(table):
    cells = speed_plots.wide(table)
    assert "×2." in cells.loc[(1, 256, 256), "ONNX fix"] or "×1.9" in cells.loc[(1, 256, 256), "ONNX fix"]
    assert "≈" not in cells.loc[(1, 256, 256), "ONNX fix"]
    assert "≈" in speed_plots.wide(table, floor=1.5).loc[(1, 256, 256), "ONNX fix"]
    assert list(cells.columns) == [COLUMNS[key].label for key in speed_plots.STYLES if COLUMNS[key].device == "cpu"]


def test_shapes_that_are_not_square_have_a_row_and_a_place_of_their_own(table, ax):
    square = table[(table["batch"] == 1) & (table["height"] == 64)]
    both = pd.concat([square, square.assign(width=128)], ignore_index=True)
    assert set(speed_plots.wide(both).index) == {(1, 64, 64), (1, 64, 128)}
    speed_plots.times(both, ax)
    assert [label.get_text() for label in ax.get_xticklabels()] == ["64", "64×128"]


def test_two_sessions_show_a_ratio_without_an_interval():
    cell = speed_plots.wide(make_table(sessions=2)).loc[(1, 256, 256), "ONNX fix"]
    assert cell.endswith("×2.00 (2 sessions: no interval)")


def test_the_table_says_why_a_number_is_missing(table):
    gone = with_status(table, (table["column"] == "onnx_dyn") & (table["height"] == 1024), timing.Status.BUDGET)
    assert speed_plots.wide(gone).loc[(16, 1024, 1024), "ONNX dyn"] == "budget"
    gone.loc[gone["column"] == "onnx_fix", "status"] = "disturbed"
    assert speed_plots.wide(gone).loc[(1, 32, 32), "ONNX fix"].endswith("(disturbed)")


def test_a_row_whose_process_did_not_come_to_rest_says_so(table):
    cells = speed_plots.wide(table.assign(restless_sessions=np.where(table["column"] == "onnx_fix", 1.0, np.nan)))
    assert cells["ONNX fix"].str.endswith("(restless)").all() and not cells["ONNX dyn"].str.contains("restless").any()


def test_what_nobody_can_have_here_is_one_line(table):
    line = speed_plots.absent_line(table)
    assert line.count("PyTorch finds no CUDA GPU") == 1
    assert all(column.label in line for column in COLUMNS.values() if column.device == "cuda")
    everything = make_table(lambda column, batch, size: 1.0)
    assert speed_plots.absent_line(everything) == "" and len(speed_plots.present(everything)) == 9


def test_differences_are_drawn_where_they_are(ax):
    def ms(column, batch, size):
        return (1.05 if column == "onnx_dyn" else 1.0) * plain_ms("onnx_fix", batch, size)

    speed_plots.differences(make_table(ms), ax, columns=["onnx_dyn"], floor=0.03)
    assert np.allclose(ax.containers[0].lines[0].get_ydata(), 5)
    assert "floor, ±3.0%" in ax.get_legend_handles_labels()[1]


def test_ratio_axes_have_readable_ticks(table, ax):
    speed_plots.ratios(table, ax)
    ax.set_ylim(0.9, 4)
    ax.figure.canvas.draw()
    named = [tick.get_text() for tick in ax.get_yticklabels()]
    assert [name for name in named if name and 0.9 <= float(name) <= 4] == ["1", "1.5", "2", "3"]


def test_only_the_columns_asked_for_are_drawn(table, ax):
    speed_plots.times(table, ax, columns=["onnx_fix"])
    assert ax.get_legend_handles_labels()[1] == ["ONNX fix"]
    assert len(ax.lines) == table["batch"].nunique(), "a line for each batch, so that it does not join them"
    names = [tick.get_text() for tick in ax.get_xticklabels()]
    assert names[0] == "1×32" and names[-1] == "16×1024" and len(names) == 16


def test_the_article_stands_beside_the_reader(table, ax):
    speed_plots.beside(table, article.rows("resnet18"), ax, column="onnx_fix", name="article")
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["article", "here"]
    assert len(ax.lines) == 4, "two batches each"


def test_the_floor_needs_twins(table):
    assert 0 < results.floor(table) < 0.1
    for name, some in sparse(table):
        alone = "no rows" in name or "all " in name or AGAIN in name or "onnx_fix " in f"{name} "
        assert math.isnan(results.floor(some)) == alone, name
