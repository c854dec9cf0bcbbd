"""helpers/compare.py: errors and agreement, against answers that are known beforehand."""

import numpy as np
import pytest

from helpers import compare

INPUTS = {f"photo {n}": np.full((1, 3, 2, 2), n, dtype=np.float32) for n in range(3)}
LOGITS = np.array([[4.0, -8.0, 1.0, 3.0, 0.5, 0.25, 0.0]])


def reference(x):
    """Return the same logits, shifted by what the photo holds."""
    return LOGITS + x.mean()


def off_by(amount, at=1):
    """Return a backend with one logit too high."""
    return lambda x: reference(x) + amount * np.eye(LOGITS.size)[at]


def test_errors_and_margin_are_those_put_in():
    rows = compare.compare_logits(reference, {"equal": reference, "off": off_by(0.5)}, INPUTS)
    assert list(rows["photo"].unique()) == list(INPUTS) and len(rows) == 6
    by_backend = rows.set_index("backend")
    assert (by_backend.loc["equal", "max_abs_error"] == 0).all()
    assert by_backend.loc["off", "max_abs_error"].to_numpy() == pytest.approx(0.5)
    assert rows["margin"].to_numpy() == pytest.approx(1.0)  # 4 against 3
    assert rows["max_rel_error"].iloc[1] == pytest.approx(0.5 / 8)


@pytest.mark.parametrize(
    ("amount", "at", "top1", "topk"), [(0.9, 3, True, True), (1.1, 3, False, True), (9, 6, False, False)]
)
def test_agreement_turns_exactly_where_the_order_does(amount, at, top1, topk):
    row = compare.compare_logits(reference, {"off": off_by(amount, at)}, INPUTS).iloc[0]
    assert (row["top1_agrees"], row["topk_agrees"]) == (top1, topk)


def test_summary_counts_and_judges():
    rows = compare.compare_logits(reference, {"good": off_by(1e-5), "bad": off_by(2.0, 3)}, INPUTS)
    table = compare.summary(rows, tolerance=1e-4)
    assert table.loc["good", "within"] and not table.loc["bad", "within"]
    assert table.loc["bad", "top1_agreement"] == 0 and table.loc["good", "photos"] == len(INPUTS)
    assert table.loc["bad", "max_error"] == pytest.approx(2.0)


def test_a_small_error_that_changes_the_class_is_not_within():
    def tied(x):
        return np.array([[1.0, 1.0 - 1e-6]])

    rows = compare.compare_logits(tied, {"flips": lambda x: tied(x)[:, ::-1]}, INPUTS)
    assert not compare.summary(rows, tolerance=1e-4)["within"].any()


def test_an_exact_tie_for_the_first_place_agrees_with_argmax():
    tied = np.round(np.random.default_rng(0).standard_normal((1, 1000)) * 4)  # in steps, as INT8 answers
    tied[0, [900, 70, 301]] = tied.max()
    rows = compare.compare_logits(lambda x: tied, {"same": lambda x: tied.copy()}, INPUTS)
    assert rows["top1_agrees"].all() and rows["topk_agrees"].all() and (rows["margin"] == 0).all()


@pytest.mark.parametrize(
    ("backends", "inputs", "message"),
    [
        ({"equal": reference}, {}, "0 photos"),
        ({}, INPUTS, "0 backends"),
        ({"nan": lambda x: LOGITS * np.nan}, INPUTS, "On photo 0, of nan: The logits hold NaN"),
        ({"shorter": lambda x: LOGITS[:, :3]}, INPUTS, "shorter gives 3 logits, the reference 7"),
        ({"a yes turned into no": lambda x: np.array([[-0.4]])}, INPUTS, "of a yes .* one number per photo"),
        ({"batch": lambda x: np.zeros((7, 1))}, INPUTS, "of batch: The logits have shape .* those of one photo"),
    ],
)
def test_what_cannot_be_compared_is_named(backends, inputs, message):
    with pytest.raises(ValueError, match=message):
        compare.compare_logits(reference, backends, inputs)
