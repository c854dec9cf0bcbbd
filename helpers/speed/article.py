"""The article's own tables of speed and files, from ``data/article/``, and how exact they are.

Taught in notebooks/04_speed_resnet18.ipynb. ``network`` is "resnet18" or "mobilenet_v3_small".
"""

import math

import numpy as np
import pandas as pd

from helpers import settings
from helpers.timing import Status

NAME = "the article's PC"
COLUMNS = {f"{key}_s": key for key in ("onnx_fix", "onnx_fix_sim", "onnx_dyn", "onnx_dyn_sim", "pytorch_cpu")}
COLUMNS["pytorch_gpu_s"] = "pytorch_gpu_copies"  # its GPU numbers include the copies to the GPU and back


def rows(network: str) -> pd.DataFrame:
    """Return the article's speed table as rows of a sweep; p50_ms holds its mean; it gives no runs, no spread."""
    wide = pd.read_csv(settings.DATA / "article" / f"speed_{network}.csv").rename(columns=COLUMNS)
    names = [name for name in COLUMNS.values() if name in wide]
    long = wide.melt(id_vars=["batch", "height"], value_vars=names, var_name="column", value_name="p50_ms")
    long["p50_ms"] *= 1e3
    reference = long[long["column"] == "pytorch_cpu"].set_index(["batch", "height"])["p50_ms"]
    long["ratio"] = reference.reindex(pd.MultiIndex.from_frame(long[["batch", "height"]])).to_numpy() / long["p50_ms"]
    empty = {"rel_ci": math.nan, "peak_rss_mib": math.nan, "trial_ms": None, "note": "", "machine": NAME}
    return long.assign(width=long["height"], network=network, status=Status.OK, protocol=0, **empty)


def noise(network: str) -> float:
    """Return how far two of the article's numbers for one graph differ: the standard deviation of their logarithms.

    Its ONNX columns are one graph for ONNX Runtime. What they differ by, shape by shape, is the article's noise.
    """
    onnx = rows(network)
    onnx = onnx[onnx["column"].str.startswith("onnx") & onnx["p50_ms"].notna()]
    return math.sqrt(np.log(onnx["p50_ms"]).groupby([onnx["batch"], onnx["height"]]).var().mean())


def files(network: str) -> pd.DataFrame:
    """Return the article's node counts and sizes (MiB) before and after onnxsim, as ``claims.judge`` takes them."""
    table = pd.read_csv(settings.DATA / "article" / "onnxsim_nodes.csv").set_index(["model", "op"]).loc[network]
    sizes = table.loc["Model Size"].str.removesuffix("MiB").astype(float)
    nodes = table.drop("Model Size").astype(int).sum()
    found = {"nodes_before": nodes["original"], "nodes_after": nodes["simplified"]}
    found |= {"size_before": sizes["original"], "size_after": sizes["simplified"]}
    return pd.DataFrame({"article": found}).T
