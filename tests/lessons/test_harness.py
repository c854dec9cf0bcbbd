"""The checks of the harness can fail. They measure for minutes; here their conclusions are tested."""

import numpy as np
import pytest

from helpers import timing
from notebooks.lessons import harness


def test_an_interval_covers_what_lies_inside_only():
    assert harness.covers(1.0, 0.05, 1.04) and harness.covers(1.0, 0.05, 1 / 1.04)
    assert not harness.covers(1.0, 0.05, 1.06) and not harness.covers(1.0, float("nan"), 1.0)


def test_replay_counts_windows_and_sees_a_drift():
    rng = np.random.default_rng(0)
    steady = np.exp(rng.normal(0, 0.05, (2, 1000)))
    held = harness.windows(*steady)
    assert len(held) == 1000 - timing.TRIALS + 1 and 0.92 < np.mean(held) < 0.98
    drifting = np.exp(np.linspace(0, 1, 1000))
    assert np.mean(harness.windows(steady[0] * drifting, steady[1])) < 0.5


@pytest.mark.parametrize(
    ("theirs", "noise", "reached"),
    [(1.02, 0, True), (1.05, 0, False), (0.96, 0, False), (1.02, 0.05, None), (1.06, 0.05, None), (1.3, 0.05, False)],
)
def test_another_tools_clock_may_be_off_by_the_limit_only(theirs, noise, reached):
    pairs = [(10.0, 10.0 * theirs * factor) for factor in 1 + noise * np.array([-1, 1, -1, 1, 0])]
    *_, said, found = harness.compared("ours against theirs", pairs, 0.03)
    assert found is reached and (noise or f"{1 / theirs - 1:+.1%}" in said)
