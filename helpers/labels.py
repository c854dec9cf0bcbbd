"""The 1000 ImageNet classes by name, in English and Chinese. Taught in notebooks/03_single_image_inference.ipynb."""

from collections.abc import Mapping, Sequence
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
        ValueError: if shape and names do not fit, k is out of range, or the numbers are no logits (``one_photo``; or
            a softmax or sigmoid went over them).
    """
    title = "ImageNet" if names is None else None
    names = class_names(language) if names is None else list(names)
    logits = one_photo(logits)
    if logits.size != len(names):
        raise ValueError(
            f"The logits have shape {logits.shape}; needed: ({len(names)},), for {len(names)} {title or 'given'} names."
            " Other classes? Give their names: names=[…]."
        )
    if not 1 <= k <= len(names):
        raise ValueError(f"k is {k}; it must be from 1 to {len(names)}.")
    rounding = 0.01 if logits.size > 2 else 1e-5  # of two, np.append(0, logit) may come near a sum of 1
    if (logits >= 0).all() and abs(logits.sum() - 1) < rounding:
        raise ValueError(
            "These are no logits: they lie between 0 and 1 and sum to 1, so the network ends in a softmax, and a "
            "second one would flatten them. Give np.log(probabilities + 1e-12), or export the network without it."
        )
    if len(names) >= 10 and ((logits > 0) & (logits < 1)).all():  # of fewer logits this may be chance
        raise ValueError(
            "These are no logits: all lie between 0 and 1 and do not sum to 1, so the network ends in a sigmoid, and "
            "each number stands for itself: show them as they are."
        )
    shares = np.exp(logits - logits.max())  # softmax; the largest is 1, so that none overflows
    order = ranking(logits)[:k]
    probability = shares[order] / shares.sum()
    table = pd.DataFrame({"class_id": order, "name": [names[i] for i in order], "probability": probability})
    return table.rename_axis(columns=title)


def ranking(logits: np.ndarray) -> np.ndarray:
    """Return the class ids from the largest logit to the smallest; equal logits, as INT8 has, in the order of ids."""
    return np.argsort(-np.asarray(logits, dtype=np.float64).ravel(), kind="stable")


def one_photo(logits: np.ndarray) -> np.ndarray:
    """Return the logits of one photo, (classes,) or (1, classes), as float64 of shape (classes,).

    Raises:
        ValueError: if they are several outputs, another shape, a single number, NaN or infinite.
    """
    if isinstance(logits, Mapping) or (isinstance(logits, list | tuple) and np.ndim(logits[0])):
        names = f" ({', '.join(map(str, logits))})" if isinstance(logits, Mapping) else ""
        raise ValueError(f"There are {len(logits)} outputs{names}: take the logits among them, as in run(…)[0].")
    found = np.asarray(logits, dtype=np.float64)
    if found.shape not in {(found.size,), (1, found.size)}:
        raise ValueError(
            f"The logits have shape {found.shape}; needed: (classes,) or (1, classes), those of one photo."
        )
    if found.size == 1:
        raise ValueError(
            "There is one number per photo, so this is a yes-or-no network; softmax would always say 1. A logit: give "
            "np.append(0, logit), with the names of no and yes. After a sigmoid: np.log([1 - p, p])."
        )
    if not np.isfinite(found).all():
        raise ValueError("The logits hold NaN or infinity: check the input's type and scale, and the weights.")
    return found.ravel()
