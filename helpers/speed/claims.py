"""The article's claims about speed and memory, each judged by code on rows of measurements.

Taught in notebooks/04_speed_resnet18.ipynb. A claim is a list of comparisons, each a ratio that must lie within bounds.
It **fails** if the interval of one of the n, at 5 %/n, lies wholly outside its bounds; it **holds** if each keeps its
bounds at 5 %; else it is **undecided**. Differences below the machine's noise floor are never evidence.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import pandas as pd
from scipy import stats

from helpers import settings
from helpers.engines import COLUMNS
from helpers.speed import article, results

HOLDS, FAILS, UNDECIDED, NO_DATA = "holds", "fails", "undecided", "no data"
LEVEL = 0.05
ASSUMED_NOISE_FLOOR = 0.10  # where a machine measured none: two trials of one file have differed by as much
MEMORY_ERROR = 0.025  # standard error of a peak, as a share; repeated peaks in data/results lie closer (a test)

LITTLE = 1.10  # "differ little", "can hardly be told apart": by less than this factor
BOUNDS = {"same": (1 / LITTLE, LITTLE), "faster": (1.0, math.inf), "clearly faster": (1.5, math.inf)}


@cache
def stated() -> pd.DataFrame:
    """Return the claims, C1 to C12, as ``data/article/claims.csv`` puts them: one row per comparison.

    Of columns ``over`` and ``under``, at this batch and all sizes from ``from_px`` to ``to_px``, the ratio of ``what``
    ("time"; "memory"; "growth" of the ratio of times from each size to the next; "files": what onnxsim does to node
    counts and file sizes) must be as ``must_be`` says, a key of ``BOUNDS``.
    """
    return pd.read_csv(settings.DATA / "article" / "claims.csv")


@dataclass(frozen=True)
class Evidence:
    """One comparison: a ratio, its relative interval as a function of alpha, and the bounds that it must lie within."""

    where: str
    ratio: float
    interval: Callable[[float], float]
    bounds: tuple[float, float]
    noise_floor: float = 0.0  # no interval is narrower, but where both bounds are near: a coarse machine proves nothing

    def inside(self) -> bool:
        """Whether both bounds are kept, each tested at 5 %: the 90 % interval lies within them."""
        low, high = self.bounds
        width = 1 + max(self.interval(2 * LEVEL), 0 if high < math.inf else self.noise_floor)
        return low <= self.ratio / width and self.ratio * width <= high

    def outside(self, level: float) -> bool:
        """Whether a bound is broken, all bounds tested at this level together."""
        low, high = self.bounds
        width = 1 + max(self.interval(level if high < math.inf else 2 * level), self.noise_floor)
        return self.ratio * width < low or self.ratio / width > high

    def slack(self) -> float:
        """Return by which factor the nearer bound is kept, or broken if below 1."""
        return min(self.ratio / self.bounds[0], self.bounds[1] / self.ratio) / (1 + self.interval(LEVEL))

    def __str__(self) -> str:
        return f"{self.where} ×{self.ratio:.2f} ±{self.interval(LEVEL):.0%}"


def judge(table: pd.DataFrame, files: pd.DataFrame | None = None, *, level: float = LEVEL) -> pd.DataFrame:
    """Judge the article's claims C1 to C12 on the rows of one network on one machine; missing rows are left out.

    Args:
        table: of ``results.to_table`` or ``article.rows``.
        files: for C10, one row per file: nodes_before and nodes_after onnxsim, size_before and size_after (any unit).
        level: the chance of a claim's failing by accident; divide it by the number of machines where one suffices.
    Returns:
        One row per claim: says, verdict ("holds", "fails", "undecided", "no data"), rows (how many comparisons hold),
        and decided_by (the comparisons that decide).
    Raises:
        ValueError: if the table holds several networks.
    """
    if table["network"].nunique() > 1:
        raise ValueError(f"The table holds {table['network'].nunique()} networks; give the rows of one.")
    rows, judged = _Rows(table, files), {}
    for (claim, says), parts in stated().groupby(["claim", "says"], sort=False):
        evidence = [found for part in parts.itertuples() for found in rows.evidence(part)]
        judged[claim] = {"says": says, **_conclude(evidence, level)}
    return pd.DataFrame.from_dict(judged, orient="index").rename_axis("claim")


class _Rows:
    """Rows of one network, looked up by column and shape."""

    def __init__(self, table: pd.DataFrame, files: pd.DataFrame | None) -> None:
        self.files = pd.DataFrame() if files is None else files
        self.is_article = bool(len(table)) and bool((table["protocol"] == 0).all())
        self.noise = math.sqrt(2) * article.noise(table["network"].iloc[0]) if self.is_article else math.nan
        floor = 0.0 if self.is_article or table.empty else results.noise_floor(table)
        self.noise_floor = ASSUMED_NOISE_FLOOR if math.isnan(floor) else floor
        measured = table[table["p50_ms"].notna() & (table["height"] == table["width"])]
        self.rows = {(row["column"], row["batch"], row["height"]): row for _, row in measured.iterrows()}

    def evidence(self, part: Any) -> Iterator[Evidence]:
        """Yield the comparisons of a row of ``stated`` that the rows allow."""
        bounds, floor = BOUNDS[part.must_be], 0.0 if part.what == "memory" else self.noise_floor
        if part.what == "files":
            for (name, row), what in itertools.product(self.files.iterrows(), ("nodes", "size")):
                ratio = row[f"{what}_{part.over}"] / row[f"{what}_{part.under}"]
                yield Evidence(f"{name}: {what}", ratio, lambda _: 0.0, bounds)
            return
        sizes = sorted({size for _, _, size in self.rows if part.from_px <= size <= part.to_px})
        found = {size: one for size in sizes if (one := self._ratio(part, size))}
        if part.what != "growth":
            names = f"{COLUMNS[part.over].label}/{COLUMNS[part.under].label}"
            for size, (ratio, interval) in found.items():
                yield Evidence(f"{part.batch:.0f}×{size}² {names}", ratio, interval, bounds, floor)
            return
        for (small, before), (large, after) in itertools.pairwise(found.items()):

            def both(alpha: float, widths: tuple = (before[1], after[1])) -> float:
                return math.expm1(math.hypot(*(math.log1p(width(alpha)) for width in widths)))

            where = f"{part.batch:.0f}×: lead at {large}² / lead at {small}²"
            yield Evidence(where, after[0] / before[0], both, bounds, floor)

    def _ratio(self, part: Any, size: int) -> tuple[float, Callable[[float], float]] | None:
        """Return a ratio, and its relative interval as a function of alpha; None where rows are missing."""
        over, under = (self.rows.get((column, part.batch, size)) for column in (part.over, part.under))
        if over is None or under is None:
            return None
        what, error = ("peak_rss_mib", math.sqrt(2) * MEMORY_ERROR) if part.what == "memory" else ("p50_ms", self.noise)
        if not math.isnan(error):
            ratio = over[what] / under[what]
            return None if math.isnan(ratio) else (ratio, lambda alpha: math.expm1(error * stats.norm.isf(alpha / 2)))
        ratio, rel_ci = results.compare_rows(over, under)
        interval = cache(lambda alpha: results.compare_rows(over, under, alpha=alpha)[1])
        return None if math.isnan(rel_ci) else (ratio, interval)


def _conclude(evidence: list[Evidence], level: float) -> dict[str, str]:
    """Return the verdict, how many comparisons hold, and those that decide, the farthest out first."""
    if not evidence:
        return {"verdict": NO_DATA, "rows": "", "decided_by": ""}
    against = [found for found in evidence if found.outside(level / len(evidence))]
    open_ = [found for found in evidence if not found.inside()]
    verdict = FAILS if against else UNDECIDED if open_ else HOLDS
    deciding = sorted(against or open_ or evidence, key=Evidence.slack)[: len(against or open_) or 1]
    more = f" and {len(deciding) - 2} more" if len(deciding) > 2 else ""
    rows = f"{len(evidence) - len(open_)} of {len(evidence)} hold"
    return {"verdict": verdict, "rows": rows, "decided_by": "; ".join(map(str, deciding[:2])) + more}
