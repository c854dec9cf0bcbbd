"""Do two backends give the same answer? Errors of the logits and agreement of the classes, one row a photo and backend.

Taught in notebooks/07_precision.ipynb.
"""

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd

Backend = Callable[[np.ndarray], np.ndarray]  # input (1, 3, H, W) float32 -> logits (1, classes)


def compare(
    reference: Backend, backends: Mapping[str, Backend], inputs: Mapping[str, np.ndarray], *, k: int = 5
) -> pd.DataFrame:
    """Run every input through the reference and through each backend, and compare the logits.

    Args:
        reference: what counts as right, as a callable from one input to its logits.
        backends: the callables to judge, by name.
        inputs: arrays of shape (1, 3, H, W) by photo name.
        k: how many classes the top-k agreement looks at, 1 to the number of classes.
    Returns:
        One row a photo and backend: photo, backend, max_abs_error (of a logit), max_rel_error (the same divided by the
        reference's largest absolute logit), top1_agrees, topk_agrees (the same k classes, in any order), margin (how
        far the reference's best logit lies above its second best; infinite for a single class).
    Raises:
        ValueError: if there is no photo or no backend, shapes differ or are not those of one photo, a logit is NaN or
            infinite, or k is out of range.
    """
    if not inputs:
        raise ValueError("There is no photo to compare on: inputs is empty.")
    if not backends:
        raise ValueError("There is no backend to compare: backends is empty.")
    rows = []
    for photo, x in inputs.items():
        expected = _logits(reference, x, "the reference", photo)
        if expected.shape[:-1] not in {(), (1,)}:  # ranking() would mix the classes of a batch
            raise ValueError(
                f"On {photo} the reference gives logits of shape {expected.shape}; needed: those of one photo."
            )
        if not 1 <= k <= expected.size:
            raise ValueError(f"k is {k}; it must be from 1 to {expected.size}, the number of classes.")
        expected_best = ranking(expected)
        best_two = expected.ravel()[expected_best[:2]]
        margin = best_two[0] - best_two[1] if len(best_two) == 2 else np.inf
        for name, backend in backends.items():
            found = _logits(backend, x, name, photo)
            if found.shape != expected.shape:
                raise ValueError(
                    f"On {photo} {name} gives logits of shape {found.shape}, the reference {expected.shape}."
                )
            error = np.abs(found - expected).max()
            largest = np.abs(expected).max()
            best = ranking(found)
            rows.append(
                {
                    "photo": photo,
                    "backend": name,
                    "max_abs_error": error,
                    "max_rel_error": error / largest if largest else (0.0 if error == 0 else np.inf),
                    "top1_agrees": bool(best[0] == expected_best[0]),
                    "topk_agrees": set(best[:k]) == set(expected_best[:k]),
                    "margin": margin,
                }
            )
    return pd.DataFrame(rows)


def summary(rows: pd.DataFrame, *, tolerance: float) -> pd.DataFrame:
    """Sum up the rows of ``compare`` by backend.

    Args:
        rows: what ``compare`` returned.
        tolerance: the largest absolute error of a logit that counts as right.
    Returns:
        One row a backend: photos, median_error, max_error (absolute), max_rel_error, top1_agreement and topk_agreement
        (shares, 0 to 1), within (whether every photo is within the tolerance and every best class agrees).
    Raises:
        ValueError: if there are no rows.
    """
    if rows.empty:
        raise ValueError("There are no rows to sum up.")
    groups = rows.groupby("backend", sort=False)
    table = groups.agg(
        photos=("photo", "size"),
        median_error=("max_abs_error", "median"),
        max_error=("max_abs_error", "max"),
        max_rel_error=("max_rel_error", "max"),
        top1_agreement=("top1_agrees", "mean"),
        topk_agreement=("topk_agrees", "mean"),
    )
    table["within"] = (table["max_error"] <= tolerance) & (table["top1_agreement"] == 1)
    return table


def ranking(logits: np.ndarray) -> np.ndarray:
    """Return the class ids from the largest logit to the smallest; equal logits are ordered by class id."""
    return np.argsort(-np.asarray(logits, dtype=np.float64).ravel(), kind="stable")


def _logits(backend: Backend, x: np.ndarray, name: str, photo: str) -> np.ndarray:
    logits = np.asarray(backend(x), dtype=np.float64)
    if not np.isfinite(logits).all():
        raise ValueError(f"On {photo} {name} gives NaN or infinity: check the input and the file's weights.")
    return logits
