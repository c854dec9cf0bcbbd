"""The article's claims about speed and memory, each judged by code on rows of measurements.

Taught in notebooks/04_speed_resnet18.ipynb.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from helpers import graph, settings, sweep, timing
from helpers.engines import COLUMNS

LITTLE = 0.10  # "differ little", "can hardly be told apart": by less than this
CLEARLY = 1.5  # "clearly", "far": by at least this factor
# The article gives means without a spread. Its rows are taken to be as exact as ours have to be.
ASSUMED = 0.025
ASSUMED_MEMORY = 0.05  # peaks of the same process differ by a few MiB from start to start

HOLDS, FAILS, CLOSE, NO_DATA = "holds", "fails", "too close to call", "no data"
ARTICLE_COLUMNS = {  # its GPU numbers include the copies to the GPU and back
    "onnx_fix_s": "onnx_fix",
    "onnx_fix_sim_s": "onnx_fix_sim",
    "onnx_dyn_s": "onnx_dyn",
    "onnx_dyn_sim_s": "onnx_dyn_sim",
    "pytorch_cpu_s": "pytorch_cpu",
    "pytorch_gpu_s": "pytorch_gpu_copies",
}
GPU = "pytorch_gpu_copies"


@dataclass(frozen=True)
class Evidence:
    """One comparison that bears on a claim: a ratio with its interval, and what the claim says it must be."""

    where: str
    ratio: float
    low: float
    high: float
    at_least: float
    at_most: float

    @property
    def verdict(self) -> str:
        """Whether the whole interval lies inside the bounds, outside, or across one."""
        if math.isnan(self.ratio):
            return NO_DATA
        if self.at_least <= self.low and self.high <= self.at_most:
            return HOLDS
        if self.high < self.at_least or self.low > self.at_most:
            return FAILS
        return CLOSE

    def __str__(self) -> str:
        return f"{self.where} ×{self.ratio:.2f} ({self.low:.2f} to {self.high:.2f})"

    @property
    def room(self) -> float:
        """How far the ratio is from the nearer bound, on a log scale; the smallest room decides a claim that holds."""
        rooms = [abs(math.log(self.ratio / bound)) for bound in (self.at_least, self.at_most) if 0 < bound < math.inf]
        return min(rooms, default=math.inf)


class _Rows:
    """Rows of one network, looked up by column and shape."""

    def __init__(self, table: pd.DataFrame) -> None:
        measured = table[table["p50_ms"].notna()]
        self.rows = {(row.column, row.batch, row.size): row for row in measured.itertuples(index=False)}

    def slower(self, slow: str, fast: str, batch: int, size: int) -> tuple[float, float, float]:
        """Return the time of one column over the other's, with its interval; NaN where a row is missing."""
        a, b = self.rows.get((slow, batch, size)), self.rows.get((fast, batch, size))
        if a is None or b is None:
            return (math.nan,) * 3
        blocks = [getattr(row, "block_ms", None) for row in (a, b)]
        if all(isinstance(found, list) and len(found) >= 2 for found in blocks):
            return timing.ratio_interval(*([np.array(block) for block in found] for found in blocks))
        ratio = a.p50_ms / b.p50_ms
        return ratio, ratio / (1 + ASSUMED), ratio * (1 + ASSUMED)

    def heavier(self, heavy: str, light: str, batch: int, size: int) -> tuple[float, float, float]:
        """Return the peak memory of one column's process over the other's, with its interval."""
        a, b = self.rows.get((heavy, batch, size)), self.rows.get((light, batch, size))
        peaks = [getattr(row, "peak_rss_mib", math.nan) for row in (a, b)]
        ratio = peaks[0] / peaks[1]
        return ratio, ratio / (1 + ASSUMED_MEMORY), ratio * (1 + ASSUMED_MEMORY)


def article_rows(network: str) -> pd.DataFrame:
    """Return the article's own speed table as rows of a sweep; p50_ms holds its mean, and there is no spread.

    Args:
        network: "resnet18" or "mobilenet_v3_small".
    """
    wide = pd.read_csv(settings.DATA / "article" / f"speed_{network}.csv")
    kept = {old: new for old, new in ARTICLE_COLUMNS.items() if old in wide}
    long = wide.rename(columns=kept | {"height": "size"}).melt(
        id_vars=["batch", "size"], value_vars=list(kept.values()), var_name="column", value_name="p50_ms"
    )
    long["p50_ms"] *= 1e3
    return long.assign(network=network, status="ok", peak_rss_mib=math.nan)


def own_files(
    make_file: Callable[[str, sweep.Shape], Path], shape: sweep.Shape, *, kinds: Iterable[str] = ("fix", "dyn")
) -> pd.DataFrame:
    """Count the nodes and bytes of the reader's files before and after onnxsim, as ``judge`` takes them.

    Args:
        make_file: returns the .onnx file for a column and an input shape, as for ``sweep.run``.
        shape: of the input, (N, 3, H, W).
        kinds: of file, "fix" and "dyn".
    """
    rows = {}
    for kind in kinds:
        paths = {"before": make_file(f"onnx_{kind}", shape), "after": make_file(f"onnx_{kind}_sim", shape)}
        rows[kind] = {f"nodes_{when}": graph.count_operators(path).total() for when, path in paths.items()}
        rows[kind] |= {f"size_{when}": path.stat().st_size for when, path in paths.items()}
    return pd.DataFrame(rows).T


def article_files(network: str) -> pd.DataFrame:
    """Return the article's node counts and file sizes before and after onnxsim, as ``judge`` takes them.

    Args:
        network: "resnet18" or "mobilenet_v3_small".
    """
    table = pd.read_csv(settings.DATA / "article" / "onnxsim_nodes.csv").set_index(["model", "op"]).loc[network]
    sizes = table.loc["Model Size"].str.removesuffix("MiB").astype(float)
    nodes = table.drop("Model Size").astype(int).sum()
    row = {
        "nodes_before": nodes["original"],
        "nodes_after": nodes["simplified"],
        "size_before": sizes["original"],
        "size_after": sizes["simplified"],
    }
    return pd.DataFrame({"article": row}).T


def judge(
    table: pd.DataFrame, files: pd.DataFrame | None = None, *, little: float = LITTLE, clearly: float = CLEARLY
) -> pd.DataFrame:
    """Judge the article's claims C1 to C12 on the rows of one network.

    Args:
        table: of ``sweep.run`` or ``article_rows``.
        files: for C10, one row a file: nodes_before and nodes_after onnxsim, size_before and size_after (any unit).
        little: differences below this share count as little.
        clearly: factors from this on count as clear.
    Returns:
        One row a claim: claim, says, verdict ("holds", "fails", "too close to call", "no data"), rows (how many
        comparisons hold), decided_by (the comparisons that decide).
    Raises:
        ValueError: if the table holds several networks.
    """
    if table["network"].nunique() > 1:
        raise ValueError(f"The table holds {table['network'].nunique()} networks; give the rows of one.")
    found = _claims(_Rows(table), files, little, clearly)
    judged = [(claim, says, *_conclude(list(evidence))) for claim, says, evidence in found]
    return pd.DataFrame(judged, columns=["claim", "says", "verdict", "rows", "decided_by"]).set_index("claim")


def _claims(
    rows: _Rows, files: pd.DataFrame | None, little: float, clearly: float
) -> Iterator[tuple[str, str, Iterable[Evidence]]]:
    all_sizes = sweep.SIZES
    same, faster, clear = (1 / (1 + little), 1 + little), (1.0, math.inf), (clearly, math.inf)

    def times(slow: str, fast: str, batch: int, sizes: Iterable[int], bounds: tuple[float, float]) -> list[Evidence]:
        return [
            Evidence(f"{batch}×{size}² {COLUMNS[slow]}/{COLUMNS[fast]}", *rows.slower(slow, fast, batch, size), *bounds)
            for size in sizes
        ]

    def fixed_or_dynamic(batch: int) -> list[Evidence]:
        plain = times("onnx_dyn", "onnx_fix", batch, all_sizes, same)
        return plain + times("onnx_dyn_sim", "onnx_fix_sim", batch, all_sizes, same)

    to_256, above_256 = [s for s in all_sizes if s <= 256], [s for s in all_sizes if s > 256]
    to_64, above_64 = [s for s in all_sizes if s <= 64], [s for s in all_sizes if s > 64]

    yield "C1", "batch 1: fixed and dynamic shapes differ little", fixed_or_dynamic(1)
    yield "C2", "batch 16: fixed and dynamic shapes differ little", fixed_or_dynamic(16)
    yield (
        "C3",
        "batch 1: up to 256 px ONNX on the CPU beats PyTorch on the GPU, above it the GPU wins clearly",
        times(GPU, "onnx_fix", 1, to_256, faster) + times("onnx_fix", GPU, 1, above_256, clear),
    )
    yield (
        "C4",
        "batch 1: up to 64 px PyTorch CPU beats PyTorch GPU, above it the GPU wins",
        times(GPU, "pytorch_cpu", 1, to_64, faster) + times("pytorch_cpu", GPU, 1, above_64, faster),
    )
    yield (
        "C5",
        "batch 1: ONNX always beats PyTorch CPU",
        times("pytorch_cpu", "onnx_fix", 1, all_sizes, faster) + times("pytorch_cpu", "onnx_dyn", 1, all_sizes, faster),
    )
    pairs = (("onnx_fix", "pytorch_cpu"), ("onnx_fix", GPU), ("pytorch_cpu", GPU))
    yield (
        "C6",
        "batch 16, below 128 px: ONNX, PyTorch CPU and PyTorch GPU can hardly be told apart",
        [found for slow, fast in pairs for found in times(slow, fast, 16, [s for s in all_sizes if s < 128], same)],
    )
    yield "C7", "batch 16, above 128 px: the GPU's lead over PyTorch CPU grows", _growth(rows, 16, all_sizes)
    yield (
        "C8",
        "batch 16, above 256 px: PyTorch CPU is far slower than ONNX",
        times("pytorch_cpu", "onnx_fix", 16, above_256, clear),
    )
    yield (
        "C9",
        "onnxsim changes little in speed",
        [
            found
            for batch, kind in itertools.product(sweep.BATCHES, ("onnx_fix", "onnx_dyn"))
            for found in times(kind, f"{kind}_sim", batch, all_sizes, same)
        ],
    )
    yield (
        "C10",
        "onnxsim changes little in node counts and file size",
        [
            Evidence(f"{name}: {what}", ratio, ratio, ratio, *same)
            for name, row in (() if files is None else files.iterrows())
            for what in ("nodes", "size")
            for ratio in [row[f"{what}_after"] / row[f"{what}_before"]]
        ],
    )
    yield (
        "C11 speed",
        "on a CPU, ONNX is faster than PyTorch",
        [found for batch in sweep.BATCHES for found in times("pytorch_cpu", "onnx_fix", batch, all_sizes, faster)],
    )
    yield (
        "C11 memory",
        "on a CPU, ONNX needs far less memory than PyTorch",
        [
            Evidence(
                f"{batch}×{size}² PyTorch CPU/ONNX fix",
                *rows.heavier("pytorch_cpu", "onnx_fix", batch, size),
                *clear,
            )
            for batch, size in itertools.product(sweep.BATCHES, all_sizes)
        ],
    )
    yield "C12", "for batches, the GPU beats ONNX on the CPU", times("onnx_fix", GPU, 16, all_sizes, faster)


def _growth(rows: _Rows, batch: int, sizes: Iterable[int]) -> list[Evidence]:
    """Compare the GPU's lead at each size above 128 px with the lead at the size before."""
    leads = {size: rows.slower("pytorch_cpu", GPU, batch, size) for size in sizes if size >= 128}
    found = []
    for (smaller, before), (larger, after) in itertools.pairwise(leads.items()):
        ratio, low, high = after[0] / before[0], after[1] / before[2], after[2] / before[1]
        found.append(Evidence(f"{batch}×: lead at {larger}²/lead at {smaller}²", ratio, low, high, 1.0, math.inf))
    return found


def _conclude(evidence: list[Evidence]) -> tuple[str, str, str]:
    """Return the verdict, how many comparisons hold, and those that decide."""
    known = [found for found in evidence if found.verdict != NO_DATA]
    if not known:
        return NO_DATA, f"0 of {len(evidence)}", ""
    by_verdict = {verdict: [found for found in known if found.verdict == verdict] for verdict in (FAILS, CLOSE, HOLDS)}
    counted = f"{len(by_verdict[HOLDS])} of {len(known)} hold"
    if len(known) < len(evidence):
        counted += f", {len(evidence) - len(known)} missing"
    verdict = next(verdict for verdict, found in by_verdict.items() if found)
    deciding = sorted(by_verdict[verdict], key=lambda found: found.room, reverse=verdict == FAILS)
    named = "; ".join(map(str, deciding[:2]))
    if verdict == HOLDS:
        return verdict, counted, f"closest: {deciding[0]}"
    more = f" and {len(deciding) - 2} more" if len(deciding) > 2 else ""
    return verdict, counted, named + more
