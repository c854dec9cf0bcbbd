"""The judge of the article's claims: known tables must get known verdicts, and missing rows stop nothing."""

import math

import numpy as np
import pandas as pd
import pytest
from speed_tables import make_table, plain_ms, sparse

from helpers import settings
from helpers.engines import COLUMNS
from helpers.speed import article, claims, results
from helpers.speed.claims import FAILS, HOLDS, NO_DATA, UNDECIDED

SAME, FASTER = (claims.BOUNDS[name] for name in ("same", "faster"))
CLAIMS = claims.stated()["claim"].unique().tolist()


def judged(ms=plain_ms, **about):
    return claims.judge(make_table(ms, **about))


def changed(column, factor, *at):
    """Return plain_ms with one column's time multiplied, at some (batch, size) or everywhere."""

    def ms(name, batch, size):
        hit = name == column and (not at or (batch, size) in at)
        return plain_ms(name, batch, size) * factor if hit else plain_ms(name, batch, size)

    return ms


def noise_floor(monkeypatch, share):
    monkeypatch.setattr(results, "noise_floor", lambda _: share)


def test_the_claims_are_about_columns_and_bounds_that_exist():
    stated = claims.stated()
    timed = stated[stated["what"] != "files"]
    assert len(CLAIMS) == 13 and {*timed["over"], *timed["under"]} <= set(COLUMNS)
    assert set(stated["must_be"]) == set(claims.BOUNDS) and set(timed["what"]) == {"time", "memory", "growth"}


def test_equal_files_and_a_slow_pytorch_get_the_verdicts_they_must():
    wanted = dict.fromkeys(("C1", "C2", "C5", "C8", "C9", "C11 speed"), HOLDS) | {"C6": FAILS, "C11 memory": FAILS}
    assert judged()["verdict"].to_dict() == dict.fromkeys(CLAIMS, NO_DATA) | wanted


def test_one_clear_counterexample_fails_a_claim_and_is_named():
    row = judged(changed("onnx_dyn", 1.5, (1, 256)), noise=0.01).loc["C1"]
    assert (row["verdict"], row["rows"]) == (FAILS, "15 of 16 hold")
    assert row["decided_by"].startswith("1×256² ONNX dyn/ONNX fix ×1.5") and "more" not in row["decided_by"]


def test_a_true_parity_is_seldom_called_a_failure_and_never_said_to_hold(monkeypatch):
    """16 intervals look at a truth of 1; uncorrected, a third of such tables and more would fail C5."""
    noise_floor(monkeypatch, 0.0)

    def alike(column, batch, _):
        return 10.0 if batch == 1 and column in ("onnx_fix", "onnx_dyn", "pytorch_cpu") else None

    found = [judged(alike, noise=0.02, seed=seed).loc["C5", "verdict"] for seed in range(15)]
    assert found.count(FAILS) <= 3 and HOLDS not in found, found


@pytest.mark.parametrize(
    ("factor", "floor", "verdict"),
    [(0.95, 0.0, FAILS), (0.95, 0.08, UNDECIDED), (1.05, 0.0, HOLDS), (1.05, 0.08, UNDECIDED)],
)
def test_differences_within_the_noise_floor_decide_nothing(monkeypatch, factor, floor, verdict):
    noise_floor(monkeypatch, floor)
    assert judged(changed("pytorch_cpu", 0.5 * factor), noise=0.001).loc["C5", "verdict"] == verdict


def test_a_machine_without_a_measured_noise_floor_gets_the_assumed_one():
    table = make_table(changed("pytorch_cpu", 0.5 * 1.05))  # ONNX is 5 % faster, to the digit
    lonely = table[table["column"].isin(["onnx_fix", "pytorch_cpu"])]
    assert [claims.judge(one).loc["C5", "verdict"] for one in (table, lonely)] == [HOLDS, UNDECIDED]


@pytest.mark.parametrize(
    ("ratio", "rel_ci", "bounds", "floor", "inside", "outside"),
    [
        (1.0, 0.01, SAME, 0.0, True, False),
        (1.0, 0.01, SAME, 0.5, True, False),
        (1.2, 0.01, SAME, 0.0, False, True),
        (1.2, 0.01, SAME, 0.5, False, False),
        (1.2, 0.15, SAME, 0.0, False, False),
        (1.2, 0.01, FASTER, 0.5, False, False),
        (0.8, 0.01, FASTER, 0.5, False, False),
    ],
)
def test_a_coarse_machine_proves_nothing_and_makes_differ_little_no_harder_to_see(
    ratio, rel_ci, bounds, floor, inside, outside
):
    found = claims.Evidence("here", ratio, lambda _: rel_ci, bounds, floor)
    assert (found.inside(), found.outside(0.05)) == (inside, outside)


def test_a_stricter_level_needs_a_clearer_counterexample(monkeypatch):
    noise_floor(monkeypatch, 0.0)
    table = make_table(changed("onnx_dyn", 1.22, (1, 256)), noise=0.01)
    assert [claims.judge(table, level=level).loc["C1", "verdict"] for level in (0.05, 1e-9)] == [FAILS, UNDECIDED]


@pytest.mark.parametrize(
    ("gpu_ms", "wanted"),
    [
        (lambda size: 0.1, {"C12": HOLDS, "C7": HOLDS, "C3": FAILS, "C4": FAILS}),
        (lambda size: size**3 / 1e6, {"C7": FAILS}),
    ],
    ids=["wins everywhere", "its lead shrinks"],
)
def test_a_gpu_is_judged_by_its_times_and_its_lead(gpu_ms, wanted):
    found = judged(lambda column, b, s: gpu_ms(s) if COLUMNS[column].device == "cuda" else plain_ms(column, b, s) + 1)
    assert found["verdict"][list(wanted)].to_dict() == wanted


@pytest.mark.parametrize(("peak", "verdict"), [(400.0, HOLDS), (100.0, FAILS), (150.0, UNDECIDED), (math.nan, NO_DATA)])
def test_memory_is_judged_on_peaks(peak, verdict):
    found = judged(peaks=lambda column: peak if column == "pytorch_cpu" else 100.0)
    assert found.loc["C11 memory", "verdict"] == verdict


def test_the_error_of_a_peak_is_not_below_what_repeated_peaks_show():
    """Peaks of one row, measured in runs apart, on any machine of data/results."""
    rows = [row for path in (settings.DATA / "results").glob("*.jsonl") for row in results.read(path)]
    peaks = pd.DataFrame({"key": [row.key for row in rows], "mib": [row.peak_rss_mib for row in rows]}).dropna()
    spreads = np.log(peaks["mib"].astype(float)).groupby(peaks["key"]).var().dropna()
    assert len(spreads) > 10, "too few rows were measured twice"
    assert math.sqrt(spreads.mean()) < claims.MEMORY_ERROR


@pytest.mark.parametrize(("nodes_after", "verdict"), [(49, HOLDS), (6, FAILS)])
def test_onnxsim_is_judged_on_files(nodes_after, verdict):
    files = {"nodes_before": 49, "nodes_after": nodes_after, "size_before": 10, "size_after": 10}
    assert claims.judge(make_table(), pd.DataFrame({"a": files}).T).loc["C10", "verdict"] == verdict


def test_the_articles_rows_are_judged_within_its_noise():
    found = claims.judge(article.rows("resnet18"), article.files("resnet18"))["verdict"]
    wanted = {"C7": FAILS, "C10": HOLDS, "C11 memory": NO_DATA}  # its GPU's lead shrinks from 768 px on
    wanted |= dict.fromkeys(("C2", "C9", "C11 speed"), UNDECIDED)  # its equal columns differ as much
    assert found[list(wanted)].to_dict() == wanted


def test_what_cannot_be_judged():
    assert (judged(trials=2, peaks=lambda _: math.nan)["verdict"] == NO_DATA).all()
    with pytest.raises(ValueError, match="2 networks"):
        claims.judge(pd.concat([make_table(), make_table(network="mobilenet_v3_small")]))


def test_missing_rows_reduce_a_claim_and_stop_nothing():
    whole = make_table(noise=0.01)
    for name, table in sparse(whole):
        found = claims.judge(table)
        assert list(found.index) == CLAIMS, name
        assert not name.startswith(("no rows", "all ")) or (found["verdict"] == NO_DATA).all(), name
    without = claims.judge(whole[whole["batch"] != 16])
    assert without.loc["C8", "verdict"] == NO_DATA and without.loc["C11 speed", "rows"] == "8 of 8 hold"
    for at in whole.index[whole["column"].isin(["onnx_fix", "pytorch_cpu"]) & (whole["batch"] == 16)][:4]:
        assert claims.judge(whole.drop(index=at)).loc["C11 speed", "rows"] == "15 of 15 hold"
