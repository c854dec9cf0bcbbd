"""The 1000 ImageNet classes by name, in English and Chinese. Taught in notebooks/03_single_image_inference.ipynb."""

from collections.abc import Sequence
from functools import cache

import numpy as np
import pandas as pd

from helpers import settings


@cache
def class_table() -> pd.DataFrame:
    """Return the class table: id (0 to 999), wordnet_id, english, chinese; one row per class, in the order of id."""
    return pd.read_csv(settings.DATA / "imagenet_classes.csv", encoding="utf-8", keep_default_na=False)


def class_names(language: str | None = None) -> list[str]:
    """Return the 1000 names in the order of the networks' outputs, "english" or "chinese"; the setting's if not given.

    Raises:
        ValueError: if the language is another one.
    """
    language = language or settings.label_language()
    if language not in settings.LANGUAGES:
        raise ValueError(f"The label language is {language!r}; it must be one of {', '.join(settings.LANGUAGES)}.")
    return class_table()[language].tolist()


def top_k(
    logits: np.ndarray, k: int = 5, *, language: str | None = None, names: Sequence[str] | None = None
) -> pd.DataFrame:
    """Name the k most probable classes of one photo; equal logits are ordered by class id.

    Args:
        logits: the network's output for one photo, shape (classes,) or (1, classes).
        k: how many classes, 1 to all.
        language: of ImageNet's names; the course's setting if not given.
        names: one name per class, for a network of your own; ImageNet's 1000 if not given.
    Returns:
        k rows, most probable first: class_id, name, probability (softmax over all logits, 0 to 1). The columns are
        titled "ImageNet" where the names are ImageNet's: a network of your own may have 1000 other classes.
    Raises:
        ValueError: if shape and names do not fit, k is out of range or a logit is NaN or infinite.
    """
    title = "ImageNet" if names is None else None
    names = class_names(language) if names is None else list(names)
    logits = np.asarray(logits, dtype=np.float64)
    if logits.shape not in {(len(names),), (1, len(names))}:
        raise ValueError(
            f"The logits have shape {logits.shape}; needed: ({len(names)},), those of one photo, for "
            f"{len(names)} {title or 'given'} names. Other classes? Give their names: names=[…]."
        )
    if not 1 <= k <= len(names):
        raise ValueError(f"k is {k}; it must be from 1 to {len(names)}.")
    if not np.isfinite(logits).all():
        raise ValueError("The logits hold NaN or infinity: check the input's type and scale, and the weights.")
    shares = np.exp(logits.ravel() - logits.max())  # softmax; the largest is 1, so that none overflows
    order = np.argsort(-logits.ravel(), kind="stable")[:k]
    probability = shares[order] / shares.sum()
    table = pd.DataFrame({"class_id": order, "name": [names[i] for i in order], "probability": probability})
    return table.rename_axis(columns=title)
