"""The pictures of the speed tables: every column can be told apart, every axis has its unit, gaps do no harm."""

from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import pytest
from speed_tables import make_table, plain_ms, sparse, with_status

from helpers.engines import AA, COLUMNS
from helpers.speed import plots as speed_plots
from helpers.timing import Status

ONNX = ("onnx_fix_sim", "onnx_dyn", "onnx_dyn_sim")


@pytest.fixture(scope="module")
def table():
    return make_table(noise=0.01)


@pytest.fixture
def ax():
    fig, ax = plt.subplots()
    yield ax
    plt.close(fig)


def test_no_two_columns_look_alike():
    assert set(speed_plots.STYLES) == set(COLUMNS) - {AA}
    assert len({style[1:] for style in speed_plots.STYLES.values()}) == len(COLUMNS) - 1, "two differ in colour only"


@pytest.mark.parametrize(
    ("draw", "columns", "unit"),
    [
        (speed_plots.times, speed_plots.STYLES, "(ms)"),
        (speed_plots.ratios, speed_plots.STYLES, "times as fast"),
        (partial(speed_plots.differences, noise_floor=0.02), ONNX, "(%)"),
    ],
)
def test_axes_carry_units_and_a_legend_and_gaps_do_no_harm(draw, columns, unit, table, ax):
    draw = partial(draw, columns=columns)
    assert draw(table, ax) is ax and unit in ax.get_ylabel() and ax.get_xlabel()
    assert COLUMNS["pytorch_gpu"].label not in {text.get_text() for text in ax.get_legend().get_texts()}
    for name, some in sparse(table):
        ax.clear()
        assert draw(some, ax) is ax, name


@pytest.mark.parametrize(
    ("about", "noise_floor", "cell"),
    [
        ({}, 0.0, "6.55 · ×2.00 ±0%"),
        ({}, 1.5, "6.55 · ≈×2.00 ±150%"),
        ({"trials": 2}, 0, "6.55 · ×2.00 (2 trials: no interval)"),
    ],
)
def test_a_cell_holds_time_ratio_and_interval_or_noise_floor_and_marks_what_is_undecided(about, noise_floor, cell):
    cells = speed_plots.wide(make_table(**about), noise_floor=noise_floor)
    assert cells.loc[(1, 256, 256), "ONNX fix"] == cell and cells.loc[(16, 1024, 1024), "PyTorch CPU"] == "3355"
    assert list(cells) == [COLUMNS[key].label for key in speed_plots.STYLES if COLUMNS[key].device == "cpu"]


def test_the_table_says_why_a_number_is_missing_or_doubtful(table):
    gone = with_status(table, (table["column"] == "onnx_dyn") & (table["height"] == 1024), Status.BUDGET)
    gone.loc[gone["column"] == "onnx_fix", "status"] = Status.CONTENDED
    gone.loc[gone["column"] == "onnx_fix_sim", "not_idle_trials"] = 1
    cells = speed_plots.wide(gone)
    assert cells.loc[(16, 1024, 1024), "ONNX dyn"] == "budget"
    assert cells["ONNX fix"].str.endswith("(contended)").all()
    assert cells["ONNX fix+sim"].str.endswith("(not idle)").all()


def test_what_nobody_can_have_here_is_one_line(table):
    line = speed_plots.absent_line(table)
    assert line.count("PyTorch finds no CUDA GPU") == 1
    assert all(column.label in line for column in COLUMNS.values() if column.device == "cuda")
    everything = make_table(lambda *_: 1.0)
    assert speed_plots.absent_line(everything) == "" and len(speed_plots.present(everything)) == 9


def test_differences_are_drawn_where_they_are(ax):
    table = make_table(lambda column, *at: (1.05 if column == "onnx_dyn" else 1.0) * plain_ms("onnx_fix", *at))
    speed_plots.differences(table, ax, columns=["onnx_dyn"], noise_floor=0.03)
    assert np.allclose(ax.containers[0].lines[0].get_ydata(), 5)
    assert "noise floor, ±3.0%" in ax.get_legend_handles_labels()[1]
