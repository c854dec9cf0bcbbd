"""The advisor must follow the rows and the floor, and say when there is nothing to say."""

import math

import pandas as pd
import pytest

from helpers import advisor

ROWS = pd.DataFrame(
    [
        ("safe", 1, 20.0, 50.0, 1.0, 300.0),
        ("safe", 16, 160.0, 100.0, 1.0, math.nan),
        ("quick", 1, 5.0, 200.0, 0.97, 250.0),
        ("small", 1, 30.0, 33.0, 0.995, 90.0),
    ],
    columns=["recipe", "batch", "p50_ms", "images_per_s", "agreement", "peak_mib"],
)


def chosen(floor, rows=ROWS):
    return advisor.advise(rows, accuracy_floor=floor)["recipe"].to_dict()


def test_each_goal_gets_its_best_row():
    assert chosen(0.9) == {"lowest latency": "quick", "highest throughput": "quick", "least memory": "small"}


def test_the_floor_takes_recipes_out():
    advice = advisor.advise(ROWS, accuracy_floor=0.99)
    assert advice["recipe"].to_dict() == {
        "lowest latency": "safe",
        "highest throughput": "safe",
        "least memory": "small",
    }
    assert advice.loc["highest throughput", "batch"] == 16


def test_an_unknown_agreement_is_left_out():
    rows = ROWS.assign(agreement=[1.0, 1.0, math.nan, 1.0])
    assert "quick" not in chosen(0.0, rows).values()


def test_a_goal_without_measurements_says_so():
    assert chosen(0.9, ROWS.assign(peak_mib=math.nan))["least memory"] == "not measured"


def test_a_floor_that_nobody_reaches_names_the_best():
    with pytest.raises(ValueError, match=r"99\.9%; the best has 99\.5%"):
        advisor.advise(ROWS[ROWS["recipe"] != "safe"], accuracy_floor=0.999)


@pytest.mark.parametrize("floor", [-0.1, 1.1, 99])
def test_a_floor_outside_0_to_1_is_refused(floor):
    with pytest.raises(ValueError, match="from 0 to 1"):
        advisor.advise(ROWS, accuracy_floor=floor)
