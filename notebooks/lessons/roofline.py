"""How fast could it be? The machine's observed peaks, what each layer needs, and the lower bound that follows.

Taught in notebooks/09_hardware_limit.ipynb.
"""

import copy
import math
import timeit
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from onnx import numpy_helper, parser
from torch import nn

from helpers import engines, machine
from helpers.speed import memory

CACHES = Path("/sys/devices/system/cpu/cpu0/cache")  # on Linux
PRODUCTS = (512, 1024, 2048)  # square matrices
# (batch, channels in, channels out, kernel, height and width, groups): layers as in both networks
CONVOLUTIONS = ((1, 64, 64, 3, 56, 1), (1, 128, 128, 3, 28, 1), (16, 64, 64, 3, 56, 1), (1, 256, 256, 3, 56, 1))
DEPTHWISE = ((1, 96, 96, 5, 14, 96), (1, 72, 72, 3, 28, 72), (1, 88, 88, 3, 56, 88), (16, 96, 96, 5, 14, 96))

Run = Callable[[], object]


def fastest_ms(run: Run, *, runs: int = 10) -> float:
    """Return a callable's fastest run in ms, after one that warms it up: a roof is the best that was ever seen."""
    run()
    return min(timeit.repeat(run, number=1, repeat=runs)) * 1e3


def peaks(*, threads: int, runs: int, precisions: Sequence[str], limit: int | None = None) -> pd.DataFrame:
    """Time matrix products and convolutions in several libraries: the best of each kind is the observed roof.

    Args:
        threads: for every library the same.
        runs: of each; the fastest counts.
        precisions: "fp32", "bf16"; one that the processor lacks becomes a row that says so.
        limit: how many products, convolutions and depthwise convolutions to try; all if not given.
    Returns:
        One row per library, operation and precision: library, kind ("dense" or "depthwise"), operation, precision,
        gflops (1e9 operations per second, a multiply-add is two; NaN where it cannot run), note.
    """
    rows = []
    torch.set_num_threads(threads)
    for precision in precisions:
        if precision == "bf16" and not has_bf16():
            rows.append(("PyTorch", "", "", precision, math.nan, "this processor has no bf16 instructions"))
            continue
        for library, kind, operation, flop, run in _kernels(precision, threads, limit):
            rows.append((library, kind, operation, precision, flop / fastest_ms(run, runs=runs) / 1e6, ""))
    return pd.DataFrame(rows, columns=["library", "kind", "operation", "precision", "gflops", "note"])


def bandwidth(*, runs: int) -> pd.DataFrame:
    """Time reading and moving over working sets of several sizes: inside the processor's caches, and far outside.

    The largest is four times the last cache, at least 256 MiB, but no more than a quarter of the free memory. Bytes are
    counted as in STREAM: each array read or written once, without the reads that a write may cause.

    Args:
        runs: of the largest; smaller sets get up to ten times as many. The fastest counts.
    Returns:
        One row per kernel ("read" or "triad") and size: kernel, mib (all arrays together), gb_per_s (1e9 bytes).
    """
    caches_kib = [int(size.read_text().strip().rstrip("K")) for size in CACHES.glob("index*/size")]
    most = min(max(256, *(4 * kib // 2**10 for kib in [0, *caches_kib])), int(memory.available_mib() / 4))
    rows = []
    for mib in (*(4 * 2**k for k in range(20) if 4 * 2**k < most), most):
        read, a, b, c = (torch.ones(mib * 2**18 // parts) for parts in (1, 3, 3, 3))  # float32: 4 bytes each
        kernels: dict[str, Run] = {"read": read.sum, "triad": partial(torch.add, b, c, alpha=3, out=a)}
        for kernel, run in kernels.items():
            rate = mib * 2**20 / fastest_ms(run, runs=runs * min(10, most // mib)) / 1e6
            rows.append({"kernel": kernel, "mib": mib, "gb_per_s": rate})
    return pd.DataFrame(rows)


def layer_costs(model: nn.Module, shape: tuple[int, ...]) -> pd.DataFrame:
    """Count what each layer computes and moves in float32, on PyTorch's device that knows shapes and computes nothing.

    Operations are those of the definition (a multiply-add is two). Bytes are each layer's input, output and weights,
    once each. Batch normalisation and layers without weights are taken as fused and count nothing.

    Args:
        model: the network.
        shape: of the input, (N, 3, H, W).
    Returns:
        One row per convolution or linear layer, in order: layer, kind ("dense" or "depthwise"), winograd (whether it is
        a 3 × 3 convolution of stride 1), gflop, mib, weights_mib, intensity (operations per byte).
    """
    rows, on_meta = [], copy.deepcopy(model).to("meta").eval()

    def count(name: str, layer: nn.Conv2d | nn.Linear, inputs: Sequence[torch.Tensor], output: torch.Tensor) -> None:
        depthwise, weights = getattr(layer, "groups", 1) > 1, sum(one.nbytes for one in layer.parameters())
        shaped = getattr(layer, "kernel_size", None), getattr(layer, "stride", None)
        flop, moved = 2 * output.numel() * layer.weight[0].numel(), inputs[0].nbytes + output.nbytes + weights
        kind, winograd = "depthwise" if depthwise else "dense", not depthwise and shaped == ((3, 3), (1, 1))
        rows.append((name, kind, winograd, flop / 1e9, moved / 2**20, weights / 2**20, flop / moved))

    for name, layer in on_meta.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(partial(count, name))
    with torch.no_grad():
        on_meta(torch.empty(shape, device="meta"))
    return pd.DataFrame(rows, columns=["layer", "kind", "winograd", "gflop", "mib", "weights_mib", "intensity"])


def lower_bound_ms(costs: pd.DataFrame, *, gflops: float, depthwise_gflops: float, gb_per_s: float) -> pd.Series:
    """Return each layer's least time in ms: computing at its roof or moving at the bandwidth, whichever is longer.

    Args:
        costs: of ``layer_costs``.
        gflops: the roof of dense layers, 1e9 operations per second.
        depthwise_gflops: the roof of depthwise layers.
        gb_per_s: of the caches or of the memory, 1e9 bytes per second.
    """
    roof = np.where(costs["kind"] == "depthwise", depthwise_gflops, gflops)
    return np.maximum(costs["gflop"] / roof * 1e3, costs["mib"] * 2**20 / gb_per_s / 1e6)


def has_bf16() -> bool:
    """Return whether the processor has instructions for bfloat16 products; without them bf16 is emulated."""
    found = machine.instruction_sets()
    return found["AVX-512 BF16"] or found["AMX"] or found["Arm BF16"]


def _kernels(precision: str, threads: int, limit: int | None) -> Iterator[tuple[str, str, str, float, Run]]:
    """Yield library, kind, operation, how many operations it takes, and what to time; all numbers are ones."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    for n in PRODUCTS[:limit]:
        what, a = ("dense", f"{n}³ product", 2.0 * n**3), torch.ones((n, n), dtype=dtype)
        yield "PyTorch", *what, partial(torch.mm, a, a, out=torch.empty_like(a))
        if precision == "fp32":
            yield "ONNX Runtime", *what, _onnx("MatMul (x, w)", a, a, threads)
    for batch, inside, outside, kernel, size, groups in (*CONVOLUTIONS[:limit], *DEPTHWISE[:limit]):
        kind, pad = "dense" if groups == 1 else "depthwise", kernel // 2
        operation = f"{kind} conv {batch}×{inside}→{outside}, {kernel}×{kernel}, {size}²"
        what = kind, operation, 2.0 * batch * inside * outside * kernel**2 * size**2 / groups
        x = torch.ones((batch, inside, size, size), dtype=dtype)
        w = torch.ones((outside, inside // groups, kernel, kernel), dtype=dtype)
        last = [tensor.to(memory_format=torch.channels_last) for tensor in (x, w)]
        yield "PyTorch", *what, partial(torch.conv2d, *last, padding=pad, groups=groups)
        if precision == "fp32":
            yield "ONNX Runtime", *what, _onnx(f"Conv <pads = {[pad] * 4}, group = {groups}> (x, w)", x, w, threads)


def _onnx(node: str, x: torch.Tensor, w: torch.Tensor, threads: int) -> Run:
    """Return what runs a model of one node, its second input a weight."""
    text = f'<ir_version: 10, opset_import: ["": 20]> one (float{list(x.shape)} x) => (float[] y) {{ y = {node} }}'
    model = parser.parse_model(text)
    model.graph.initializer.append(numpy_helper.from_array(w.numpy(), "w"))
    return engines.onnxruntime(model.SerializeToString(), x.numpy(), threads=threads).run
