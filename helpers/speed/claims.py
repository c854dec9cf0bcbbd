"""The article's claims about speed and memory, each judged by code on rows of measurements.

Taught in notebooks/04_speed_resnet18.ipynb. A claim is a list of comparisons, each a ratio with bounds. It **holds** if
every comparison is clear of its bounds, **fails** if one is clearly outside, corrected for how many were looked at
(Holm), and is **undecided** otherwise. A margin around the bounds, this machine's floor, is never evidence.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pandas as pd
from scipy import stats

from helpers.engines import COLUMNS
from helpers.speed import article, results, sweep

HOLDS, FAILS, UNDECIDED, NO_DATA = "holds", "fails", "undecided", "no data"
LEVEL = 0.05
ASSUMED_FLOOR = 0.10  # where a machine measured no floor: two sessions of one file have differed by as much
MEMORY_ERROR = 0.025  # standard error of a peak, as a share; repeated peaks in data/results lie closer (a test)

LITTLE = 1.10  # "differ little", "can hardly be told apart": by less than this factor
SAME, FASTER, CLEARLY = (1 / LITTLE, LITTLE), (1.0, math.inf), (1.5, math.inf)
GPU = "pytorch_gpu_copies"
ALL = sweep.SIZES
TO_64, ABOVE_64 = tuple(s for s in ALL if s <= 64), tuple(s for s in ALL if s > 64)
TO_256, ABOVE_256 = tuple(s for s in ALL if s <= 256), tuple(s for s in ALL if s > 256)


@dataclass(frozen=True)
class Times:
    """At these sizes the time of ``slow`` over that of ``fast`` must lie within the bounds."""

    slow: str
    fast: str
    batch: int
    sizes: Sequence[int]
    bounds: tuple[float, float] = FASTER


@dataclass(frozen=True)
class Grows(Times):
    """From each of these sizes to the next the time of ``slow`` over that of ``fast`` must grow."""


@dataclass(frozen=True)
class Memory(Times):
    """At these sizes the peak memory of ``slow`` over that of ``fast`` must lie within the bounds."""


@dataclass(frozen=True)
class Files:
    """What onnxsim does to node counts and file sizes must lie within the bounds."""

    bounds: tuple[float, float] = SAME


CLAIMS: dict[str, tuple[str, tuple]] = {
    "C1": (
        "batch 1: fixed and dynamic shapes differ little",
        (Times("onnx_dyn", "onnx_fix", 1, ALL, SAME), Times("onnx_dyn_sim", "onnx_fix_sim", 1, ALL, SAME)),
    ),
    "C2": (
        "batch 16: fixed and dynamic shapes differ little",
        (Times("onnx_dyn", "onnx_fix", 16, ALL, SAME), Times("onnx_dyn_sim", "onnx_fix_sim", 16, ALL, SAME)),
    ),
    "C3": (
        "batch 1: up to 256 px ONNX on the CPU beats PyTorch on the GPU, above it the GPU wins clearly",
        (Times(GPU, "onnx_fix", 1, TO_256), Times("onnx_fix", GPU, 1, ABOVE_256, CLEARLY)),
    ),
    "C4": (
        "batch 1: up to 64 px PyTorch CPU beats PyTorch GPU, above it the GPU wins",
        (Times(GPU, "pytorch_cpu", 1, TO_64), Times("pytorch_cpu", GPU, 1, ABOVE_64)),
    ),
    "C5": (
        "batch 1: ONNX always beats PyTorch CPU",
        (Times("pytorch_cpu", "onnx_fix", 1, ALL), Times("pytorch_cpu", "onnx_dyn", 1, ALL)),
    ),
    "C6": (
        "batch 16, below 128 px: ONNX, PyTorch CPU and PyTorch GPU can hardly be told apart",
        tuple(
            Times(slow, fast, 16, TO_64, SAME)
            for slow, fast in (("onnx_fix", "pytorch_cpu"), ("onnx_fix", GPU), ("pytorch_cpu", GPU))
        ),
    ),
    "C7": (
        "batch 16, above 128 px: the GPU's lead over PyTorch CPU grows",
        (Grows("pytorch_cpu", GPU, 16, tuple(s for s in ALL if s >= 128)),),
    ),
    "C8": (
        "batch 16, above 256 px: PyTorch CPU is far slower than ONNX",
        (Times("pytorch_cpu", "onnx_fix", 16, ABOVE_256, CLEARLY),),
    ),
    "C9": (
        "onnxsim changes little in speed",
        tuple(Times(kind, f"{kind}_sim", batch, ALL, SAME) for batch in (1, 16) for kind in ("onnx_fix", "onnx_dyn")),
    ),
    "C10": ("onnxsim changes little in node counts and file size", (Files(),)),
    "C11 speed": (
        "on a CPU, ONNX is faster than PyTorch",
        tuple(Times("pytorch_cpu", "onnx_fix", batch, ALL) for batch in (1, 16)),
    ),
    "C11 memory": (
        "on a CPU, ONNX needs far less memory than PyTorch",
        tuple(Memory("pytorch_cpu", "onnx_fix", batch, ALL, CLEARLY) for batch in (1, 16)),
    ),
    "C12": ("for batches, the GPU beats ONNX on the CPU", (Times("onnx_fix", GPU, 16, ALL),)),
}


@dataclass(frozen=True)
class Evidence:
    """One comparison: the logarithm of a ratio with its standard error, and what the claim says it must be."""

    where: str
    centre: float
    error: float
    degrees: float
    bounds: tuple[float, float]
    margin: float  # a logarithm

    def _tail(self, distance: float) -> float:
        """Return the chance of a value so far above zero, if the truth were zero."""
        if self.error == 0:
            return 0.0 if distance > 0 else 1.0
        return float(stats.t.sf(distance / self.error, self.degrees))

    @property
    def p_outside(self) -> float:
        """The chance of such a value if the truth lay within the bounds: small speaks against the claim."""
        low, high = (math.log(bound) if 0 < bound < math.inf else None for bound in self.bounds)
        sides = [self._tail(low - self.margin - self.centre)] if low is not None else []
        sides += [self._tail(self.centre - high - self.margin)] if high is not None else []
        return min(1.0, len(sides) * min(sides))

    @property
    def p_inside(self) -> float:
        """The chance of such a value if the truth lay outside the bounds: small speaks for the claim."""
        low, high = (math.log(bound) if 0 < bound < math.inf else None for bound in self.bounds)
        if low is not None and high is not None:  # "differ little": a coarse machine must not make that easier
            return max(self._tail(self.centre - low), self._tail(high - self.centre))
        return self._tail(self.centre - low - self.margin if high is None else high - self.centre - self.margin)

    def __str__(self) -> str:
        half = stats.t.ppf(1 - LEVEL / 2, self.degrees) * self.error if self.error else 0.0
        return f"{self.where} ×{math.exp(self.centre):.2f} ±{math.expm1(half):.0%}"


def judge(
    table: pd.DataFrame, files: pd.DataFrame | None = None, *, margin: float | None = None, level: float = LEVEL
) -> pd.DataFrame:
    """Judge the article's claims C1 to C12 on the rows of one network on one machine; missing rows are left out.

    Args:
        table: of ``results.to_table`` or ``article.rows``.
        files: for C10, one row a file: nodes_before and nodes_after onnxsim, size_before and size_after (any unit).
        margin: differences up to this share decide nothing; the machine's floor if not given.
        level: the chance of a claim's failing by accident; divide it by the number of machines where one suffices.
    Returns:
        One row a claim: says, verdict ("holds", "fails", "undecided", "no data"), rows (how many comparisons hold), and
        decided_by (the comparisons that decide).
    Raises:
        ValueError: if the table holds several networks.
    """
    if table["network"].nunique() > 1:
        raise ValueError(f"The table holds {table['network'].nunique()} networks; give the rows of one.")
    rows = _Rows(table, margin)
    judged = {
        claim: {"says": says, **_conclude([found for part in parts for found in rows.evidence(part, files)], level)}
        for claim, (says, parts) in CLAIMS.items()
    }
    return pd.DataFrame.from_dict(judged, orient="index").rename_axis("claim")


class _Rows:
    """Rows of one network, looked up by column and shape."""

    def __init__(self, table: pd.DataFrame, margin: float | None) -> None:
        self.is_article = bool(len(table)) and bool((table["protocol"] == 0).all())
        if margin is None:
            margin = 0.0 if self.is_article else results.floor(table) if len(table) else 0.0
        self.margin = math.log1p(ASSUMED_FLOOR if math.isnan(margin) else margin)
        self.noise = math.sqrt(2) * article.noise(table["network"].iloc[0]) if self.is_article else math.nan
        measured = table[table["p50_ms"].notna() & (table["height"] == table["width"])]
        self.rows = {(row["column"], row["batch"], row["height"]): row for _, row in measured.iterrows()}

    def evidence(self, part: object, files: pd.DataFrame | None) -> Iterable[Evidence]:
        """Yield the comparisons of a part of a claim that the rows allow."""
        if isinstance(part, Files):
            for name, row in () if files is None else files.iterrows():
                for what in ("nodes", "size"):
                    centre = math.log(row[f"{what}_after"] / row[f"{what}_before"])
                    yield Evidence(f"{name}: {what}", centre, 0.0, 1, part.bounds, 0.0)
            return
        found = {size: self._ratio(part, size) for size in part.sizes}
        found = {size: ratio for size, ratio in found.items() if not math.isnan(ratio[0])}
        names = f"{COLUMNS[part.slow].label}/{COLUMNS[part.fast].label}"
        if isinstance(part, Grows):
            for (small, before), (large, after) in zip(found.items(), list(found.items())[1:], strict=False):
                error = math.hypot(before[1], after[1])
                degrees, where = min(before[2], after[2]), f"{part.batch}×: lead at {large}² / lead at {small}²"
                yield Evidence(where, after[0] - before[0], error, degrees, part.bounds, self.margin)
        else:
            for size, ratio in found.items():
                margin = 0.0 if isinstance(part, Memory) else self.margin
                yield Evidence(f"{part.batch}×{size}² {names}", *ratio, part.bounds, margin)

    def _ratio(self, part: Times, size: int) -> tuple[float, float, float]:
        """Return the logarithm of a ratio, its standard error and degrees of freedom; NaN where rows are missing."""
        slow, fast = (self.rows.get((column, part.batch, size)) for column in (part.slow, part.fast))
        if slow is None or fast is None:
            return (math.nan,) * 3
        if isinstance(part, Memory):
            ratio = slow["peak_rss_mib"] / fast["peak_rss_mib"]
            return math.log(ratio), math.sqrt(2) * MEMORY_ERROR, 1e6
        if self.is_article:
            return math.log(slow["p50_ms"] / fast["p50_ms"]), self.noise, 1e6
        centre, error, degrees = results.compare(slow, fast)
        return (centre, error, degrees) if not math.isnan(error) else (math.nan,) * 3


def _conclude(evidence: list[Evidence], level: float) -> dict[str, str]:
    """Return the verdict, how many comparisons hold, and those that decide."""
    if not evidence:
        return {"verdict": NO_DATA, "rows": "", "decided_by": ""}
    against = sorted(evidence, key=lambda found: found.p_outside)
    refuting = []
    for rank, found in enumerate(against):  # Holm: the smallest of n chances is compared with level / n, and so on
        if found.p_outside >= level / (len(against) - rank):
            break
        refuting.append(found)
    holding = [found for found in evidence if found.p_inside < LEVEL]
    counted = f"{len(holding)} of {len(evidence)} hold"
    if refuting:
        verdict, deciding = FAILS, refuting
    elif len(holding) == len(evidence):
        verdict, deciding = HOLDS, sorted(evidence, key=lambda found: -found.p_inside)[:1]
    else:
        verdict, deciding = UNDECIDED, sorted(evidence, key=lambda found: -found.p_inside)
    more = f" and {len(deciding) - 2} more" if len(deciding) > 2 else ""
    return {"verdict": verdict, "rows": counted, "decided_by": "; ".join(map(str, deciding[:2])) + more}
