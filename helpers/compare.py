"""Do two backends give the same answer? Errors of the logits and agreement of classes, per photo and backend.

Taught in notebooks/07_precision.ipynb.
"""

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd

from helpers import labels

Backend = Callable[[np.ndarray], np.ndarray]  # input (1, channels, H, W) float32 -> logits (1, classes)
TOP = 5  # classes that the top-k agreement looks at


def compare_logits(
    reference: Backend, backends: Mapping[str, Backend], inputs: Mapping[str, np.ndarray]
) -> pd.DataFrame:
    """Run every input through the reference and through each backend, and compare the logits.

    Args:
        reference: what counts as right, as a callable from one input to its logits.
        backends: the callables to judge, by name.
        inputs: arrays of shape (1, channels, H, W) by photo name.
    Returns:
        One row per photo and backend: photo, backend, max_abs_error (of a logit), max_rel_error (the same divided by
        the reference's largest absolute logit), top1_agrees, topk_agrees (the same five classes, in any order), margin
        (how far the reference's best logit lies above its second best; infinite for a single class).
    Raises:
        ValueError: if there is nothing to compare, shapes differ, or something is no logits (``labels.one_photo``).
    """
    if not inputs or not backends:
        raise ValueError(f"There are {len(inputs)} photos and {len(backends)} backends; needed: at least 1 of each.")
    rows = []
    for photo, x in inputs.items():
        expected = _logits(reference, x, "the reference", photo)
        wanted, largest = labels.ranking(expected), np.abs(expected).max()
        for name, backend in backends.items():
            found = _logits(backend, x, name, photo)
            if found.size != expected.size:
                raise ValueError(f"On {photo} {name} gives {found.size} logits, the reference {expected.size}.")
            best, error = labels.ranking(found), np.abs(found - expected).max()
            rows.append(
                {
                    "photo": photo,
                    "backend": name,
                    "max_abs_error": error,
                    "max_rel_error": error / largest if largest else (0.0 if error == 0 else np.inf),
                    "top1_agrees": bool(best[0] == wanted[0]),
                    "topk_agrees": set(best[:TOP]) == set(wanted[:TOP]),
                    "margin": expected[wanted[0]] - expected[wanted[1]],
                }
            )
    return pd.DataFrame(rows)


def summary(rows: pd.DataFrame, *, tolerance: float) -> pd.DataFrame:
    """Sum up the rows of ``compare_logits`` by backend.

    Args:
        rows: what ``compare_logits`` returned.
        tolerance: the largest absolute error of a logit that counts as right.
    Returns:
        One row per backend: photos, median_error, max_error (absolute), max_rel_error, top1_agreement and
        topk_agreement (shares, 0 to 1), within (whether every photo is within the tolerance and keeps its best class).
    """
    table = rows.groupby("backend", sort=False).agg(
        photos=("photo", "size"),
        median_error=("max_abs_error", "median"),
        max_error=("max_abs_error", "max"),
        max_rel_error=("max_rel_error", "max"),
        top1_agreement=("top1_agrees", "mean"),
        topk_agreement=("topk_agrees", "mean"),
    )
    return table.assign(within=(table["max_error"] <= tolerance) & (table["top1_agreement"] == 1))


def _logits(backend: Backend, x: np.ndarray, name: str, photo: str) -> np.ndarray:
    try:
        return labels.one_photo(backend(x))
    except ValueError as error:
        raise ValueError(f"On {photo}, of {name}: {error}") from error
