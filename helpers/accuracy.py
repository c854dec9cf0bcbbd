"""Right answers, counted: accuracy with its interval, and what two files change on the same pictures.

Taught in notebooks/07_precision.ipynb.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import optimize, special, stats

from helpers import machine, settings

ALPHA = 0.05  # a change that chance makes less often is called
KEY = ["network", "file", "preparation", "set"]  # one row of data/accuracy.csv each


@dataclass(frozen=True)
class Accuracy:
    """How many pictures a network names right; shares are 0 to 1. ``str()`` gives a sentence's worth."""

    hits: np.ndarray  # bool, one per picture: is the first class right
    top5_hits: np.ndarray

    @property
    def pictures(self) -> int:
        """How many pictures."""
        return len(self.hits)

    @property
    def top1(self) -> float:
        """Share of pictures whose first class is right."""
        return float(self.hits.mean())

    @property
    def top5(self) -> float:
        """Share of pictures with a right class among the first five."""
        return float(self.top5_hits.mean())

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of ``top1``."""
        return wilson(int(self.hits.sum()), self.pictures)

    low, high = property(lambda self: self.interval[0]), property(lambda self: self.interval[1])

    def __str__(self) -> str:
        return f"{self.hits.sum()} of {self.pictures}, {self.top1:.1%} ({self.low * 100:.1f} to {self.high * 100:.1f})"


@dataclass(frozen=True)
class Change:
    """What a second file changes on the same pictures; shares are 0 to 1."""

    gained: int  # pictures that only the second names right
    lost: int  # pictures that only the first names right
    p: float  # McNemar's exact test, two-sided
    difference: float  # of the accuracies, second less first
    low: float  # its 95 % interval, Newcombe 1998, method 10
    high: float

    @property
    def verdict(self) -> str:
        """``better`` or ``worse`` where chance alone would rarely (5 %) do as much, else ``undecided``."""
        return "undecided" if self.p >= ALPHA else "better" if self.gained > self.lost else "worse"


def score(logits: np.ndarray, class_ids: Sequence[Sequence[int]]) -> Accuracy:
    """Count right answers; equal logits are ordered by class id.

    Args:
        logits: shape (pictures, classes).
        class_ids: for each picture the ids that are right, one or more.
    Returns:
        The accuracy, and which pictures were right.
    Raises:
        ValueError: if shapes do not fit, a picture has no class, or logits are not finite.
    """
    logits = np.asarray(logits)
    if logits.ndim != 2 or len(logits) != len(class_ids) or not len(logits):
        raise ValueError(f"Logits of shape {logits.shape} for {len(class_ids)} pictures; needed: (pictures, classes).")
    if not np.isfinite(logits).all():
        raise ValueError("The logits hold NaN or infinity: check the input's type and scale, and the weights.")
    bad = [ids for ids in class_ids if not ids or not all(0 <= one < logits.shape[1] for one in ids)]
    if bad:
        raise ValueError(f"{len(bad)} pictures have no class from 0 to {logits.shape[1] - 1}, such as {bad[0]}.")
    ranked = np.argsort(-logits, axis=1, kind="stable")[:, :5]
    right = np.array([np.isin(row, ids) for row, ids in zip(ranked, class_ids, strict=True)])
    return Accuracy(right[:, 0], np.any(right, axis=1))


def wilson(hits: int, pictures: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share, 0 to 1."""
    low, high = stats.binomtest(hits, pictures).proportion_ci(1 - ALPHA, method="wilson")
    return float(low), float(high)


def change(before: np.ndarray, after: np.ndarray) -> Change:
    """Compare two files on the same pictures: only those that exactly one of them names right can tell.

    Args:
        before: bool, one per picture: whether the first file is right.
        after: the same pictures in the same order, for the second file.
    Returns:
        Counts, McNemar's exact p, and the difference with its interval.
    Raises:
        ValueError: if they are not as many.
    """
    before, after = np.asarray(before, bool), np.asarray(after, bool)
    if before.shape != after.shape or not before.size:
        raise ValueError(f"{before.size} pictures before, {after.size} after; needed: the same ones, at least 1.")
    gained, lost = int((after & ~before).sum()), int((before & ~after).sum())
    p = stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    count, both, neither = before.size, int((before & after).sum()), int((~before & ~after).sum())
    spread = np.sqrt(before.sum() * (count - before.sum()) * after.sum() * (count - after.sum()))
    together = both * neither - gained * lost  # how far the two err on the same pictures
    # Newcombe's correction for continuity
    together = max(together - count / 2, 0) if together > 0 else together  # type: ignore[assignment]
    phi = together / spread if spread else 0.0
    shares = before.mean(), after.mean()
    (low0, high0), (low1, high1) = (wilson(int(hits.sum()), count) for hits in (before, after))
    down = np.array([shares[1] - low1, high0 - shares[0]])
    up = np.array([high1 - shares[1], shares[0] - low0])
    below, above = (np.sqrt(max(0, side @ side - 2 * phi * side.prod())) for side in (down, up))
    difference = float(shares[1] - shares[0])
    return Change(gained, lost, float(p), difference, float(difference - below), float(difference + above))


def pictures_needed(loss: float, discordant: float, *, power: float = 0.8) -> int:
    """Return how many pictures would show a loss of accuracy, by McNemar's test at 5 % (Connor 1987).

    Args:
        loss: of accuracy, as a share: 0.01 is one point.
        discordant: the share of pictures that exactly one of the two files names right; at least ``loss``.
        power: how likely the test is to show it.
    Raises:
        ValueError: unless 0 < loss <= discordant <= 1.
    """
    if not 0 < loss <= discordant <= 1:
        raise ValueError(f"loss is {loss} and discordant {discordant}; needed: 0 < loss <= discordant <= 1.")
    at_null, at_loss = stats.norm.isf(ALPHA / 2), stats.norm.isf(1 - power)
    root = at_null * np.sqrt(discordant) + at_loss * np.sqrt(discordant - loss**2)
    return int(np.ceil((root / loss) ** 2))


def detectable_loss(pictures: int, discordant: float, *, power: float = 0.8) -> float:
    """Return the smallest loss, a share, that a check by so many pictures would mostly show (NaN: none).

    Args:
        pictures: how many pictures the check has.
        discordant: the share of pictures that exactly one of the two files names right, were there no loss.
        power: how likely the check is to show it.
    """

    def missing(loss: float) -> float:
        return pictures_needed(loss, min(1, max(discordant, loss)), power=power) - pictures

    return float("nan") if missing(1.0) > 0 else float(optimize.bisect(missing, 1e-6, 1.0, xtol=1e-6))


def mean_interval(values: np.ndarray) -> tuple[float, float, float]:
    """Return the mean of one number per picture and its 95 % interval, by bootstrap over pictures."""
    values = np.asarray(values, float)
    if len(values) < 2:
        return float(values.mean()), float("nan"), float("nan")
    ends = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=2000, rng=settings.SEED)
    return float(values.mean()), float(ends.confidence_interval.low), float(ends.confidence_interval.high)


def kl(reference: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Return how far the probabilities moved, the Kullback-Leibler divergence in nat, one number per picture."""
    wanted, found = (special.log_softmax(np.asarray(one, float), axis=1) for one in (reference, logits))
    return (np.exp(wanted) * (wanted - found)).sum(axis=1)


def record(rows: Sequence[dict]) -> pd.DataFrame:
    """Put rows into ``data/accuracy.csv``, each in place of the one with the same network, file, preparation and set.

    Args:
        rows: network, file, preparation, set, pictures, top1, top5, low, high (shares), p (against float32).
    Returns:
        The whole table. Quick runs, and those with COURSE_RESULTS set, keep theirs in ``settings.results_folder()``.
    """
    own = settings.effort() == "quick" or "COURSE_RESULTS" in os.environ
    path = (settings.results_folder() if own else settings.DATA) / "accuracy.csv"
    new = pd.DataFrame(rows).assign(versions=" · ".join(machine.versions_line().splitlines()))
    old = pd.read_csv(path) if path.exists() else new.iloc[:0]
    table = pd.concat([old, new]) if len(old) else new
    table = table.drop_duplicates(KEY, keep="last").sort_values(KEY, ignore_index=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, index=False, float_format="%.5g", lineterminator="\n")
    return table
