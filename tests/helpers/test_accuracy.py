"""Counting right answers: intervals, paired tests and power, against published values and by simulation."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from helpers import accuracy, settings


def test_wilson_is_the_published_one():
    # Newcombe 1998, Statistics in Medicine 17, table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29
    published = {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }
    for (hits, pictures), ends in published.items():
        assert accuracy.wilson(hits, pictures) == pytest.approx(ends, abs=5e-5)


def test_score_takes_any_right_class_and_orders_ties_by_class():
    logits = np.array([[1, 3, 3, 0, 0, 0, 0], [1, 3, 3, 0, 0, 0, 0], [9, 8, 7, 6, 5, 4, 3]])
    found = accuracy.score(logits, [(1,), (2, 4), (6,)])
    assert found.hits.tolist() == [True, False, False] and found.top5_hits.tolist() == [True, True, False]
    assert str(found).startswith("1 of 3, 33.3%")


def test_shuffled_labels_give_chance_and_two_swapped_classes_are_caught():
    rng = np.random.default_rng(0)
    right = rng.integers(0, 10, 400)
    logits = np.eye(10)[right] + rng.normal(0, 0.2, (400, 10))
    ids = [(number,) for number in right]
    good = accuracy.score(logits, ids)
    assert good.top1 > 0.95
    low, high = accuracy.score(logits, [ids[i] for i in rng.permutation(400)]).interval
    assert low < 0.1 < high
    swapped = accuracy.score(logits[:, [1, 0, *range(2, 10)]], ids)
    assert accuracy.change(good.hits, swapped.hits).verdict == "worse"
    assert accuracy.change(swapped.hits, good.hits).verdict == "better"
    assert accuracy.change(good.hits, good.hits).verdict == "undecided"


@pytest.mark.parametrize(
    ("logits", "class_ids", "said"),
    [
        (np.zeros(10), [(1,)], "needed: (pictures, classes)"),
        (np.zeros((2, 10)), [(1,)], "for 1 pictures"),
        (np.zeros((1, 10)), [()], "have no class"),
        (np.zeros((1, 10)), [(10,)], "from 0 to 9"),
        (np.full((1, 10), np.nan), [(1,)], "NaN"),
    ],
)
def test_score_refuses(logits, class_ids, said):
    with pytest.raises(ValueError) as refused:
        accuracy.score(logits, class_ids)
    assert said in str(refused.value)


def test_change_is_mcnemar_exact():
    before = np.repeat([True, True, False, False], [79, 4, 15, 27])
    after = np.repeat([True, False, True, False], [79, 4, 15, 27])
    found = accuracy.change(before, after)
    assert (found.gained, found.lost, found.verdict) == (15, 4, "better")
    by_hand = 2 * sum(stats.binom.pmf(k, 19, 0.5) for k in range(5))
    assert found.p == pytest.approx(by_hand) == pytest.approx(0.0192, abs=1e-4)
    assert found.low < 11 / 125 < found.high and found.difference == pytest.approx(11 / 125)
    with pytest.raises(ValueError, match="the same ones"):
        accuracy.change(before, after[1:])


def test_interval_of_the_difference_is_newcombes():
    # Newcombe 1998, Statistics in Medicine 17, paired data, table II, method 10: 36, 12, 2, 0 of 50
    before = np.repeat([True, True, False], [36, 12, 2])
    after = np.repeat([True, False, True], [36, 12, 2])
    found = accuracy.change(after, before)
    assert found.difference == pytest.approx(0.20)
    assert (found.low, found.high) == pytest.approx((0.0569, 0.3404), abs=1e-3)


@pytest.mark.parametrize(("lost", "gained"), [(0.03, 0.01), (0.02, 0.0), (0.02, 0.02)])
def test_interval_of_the_difference_covers(lost, gained):
    rng = np.random.default_rng(1)
    cells = rng.multinomial(125, [0.73, lost, gained, 0.27 - lost - gained], 1000)  # both, first, second, none
    covered = 0
    for counts in cells:
        before, after = (np.repeat(pattern, counts).astype(bool) for pattern in ([1, 1, 0, 0], [1, 0, 1, 0]))
        found = accuracy.change(before, after)
        covered += found.low <= gained - lost <= found.high
    assert covered / 1000 > 0.945


def test_power_is_what_simulation_finds():
    pictures = accuracy.pictures_needed(0.05, 0.10)
    rng = np.random.default_rng(2)
    found = 0
    for counts in rng.multinomial(pictures, [0.9, 0.075, 0.025], 2000):
        found += stats.binomtest(int(counts[2]), int(counts[1:].sum())).pvalue < 0.05
    assert 0.72 < found / 2000 < 0.85  # the exact test is a little shyer than the formula's
    assert accuracy.detectable_loss(pictures, 0.10) == pytest.approx(0.05, rel=0.01)
    assert 1254 == accuracy.pictures_needed(0.01, 0.016) < accuracy.pictures_needed(0.01, 0.032) == 2510
    assert np.isnan(accuracy.detectable_loss(3, 0.1))
    with pytest.raises(ValueError, match="0 < loss <= discordant"):
        accuracy.pictures_needed(0.1, 0.01)


def test_kl_and_its_interval():
    logits = np.random.default_rng(3).normal(size=(40, 10))
    assert accuracy.kl(logits, logits + 5) == pytest.approx(np.zeros(40))
    uniform, sure = np.zeros((1, 2)), np.array([[np.log(3), 0.0]])
    assert accuracy.kl(uniform, sure)[0] == pytest.approx(0.5 * np.log(0.5 / 0.75) + 0.5 * np.log(0.5 / 0.25))
    mean, low, high = accuracy.mean_interval(accuracy.kl(logits, logits * 1.5))
    assert 0 < low < mean < high
    assert np.isnan(accuracy.mean_interval([1.0])[1:]).all()


def test_record_replaces_the_row_of_the_same_key(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_RESULTS", str(tmp_path))
    row = {"network": "a", "file": "int8", "preparation": "published", "set": "stamps", "pictures": 125, "top1": 0.75}
    accuracy.record([row, {**row, "file": "float32"}])
    table = accuracy.record([{**row, "top1": 0.7}])
    assert table["file"].tolist() == ["float32", "int8"] and table["top1"].tolist() == [0.75, 0.7]
    assert pd.read_csv(tmp_path / "accuracy.csv").equals(table)
    assert not (settings.DATA / "accuracy.csv").exists() or "a" not in set(
        pd.read_csv(settings.DATA / "accuracy.csv")["network"]
    )
