"""How fast could it be? The machine's observed peaks, what each layer needs, and the floor that follows.

Taught in notebooks/09_hardware_limit.ipynb.
"""

import copy
import math
import time
import timeit
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from onnx import helper, numpy_helper, parser
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from helpers import engines, machine
from helpers.speed import memory

CACHE_SIZES = Path("/sys/devices/system/cpu/cpu0/cache")
LEAST_MIB, MOST_MIB = 4, 256  # working sets of ``bandwidth``; the largest is four times the last cache if that is more
PRECISIONS = ("fp32", "bf16", "int8")
PRODUCTS = (512, 1024, 2048)  # square matrices
# (batch, channels in, channels out, kernel, height and width, groups): layers as in both networks
CONVOLUTIONS = ((1, 64, 64, 3, 56, 1), (1, 128, 128, 3, 28, 1), (16, 64, 64, 3, 56, 1), (1, 256, 256, 3, 56, 1))
DEPTHWISE = ((1, 96, 96, 5, 14, 96), (1, 72, 72, 3, 28, 72), (1, 88, 88, 3, 56, 88), (16, 96, 96, 5, 14, 96))

Run = Callable[[], object]


def fastest_ms(run: Run, *, runs: int = 10, clock: Callable[[], float] = time.perf_counter) -> float:
    """Return a callable's fastest run in ms, after one that warms it up: a roof is the best that was ever seen."""
    run()
    return min(timeit.repeat(run, number=1, repeat=runs, timer=clock)) * 1e3


def peaks(
    *, threads: int, runs: int = 10, precisions: Sequence[str] = PRECISIONS, limit: int | None = None
) -> pd.DataFrame:
    """Time matrix products and convolutions in several libraries: the best of each kind is the observed roof.

    Args:
        threads: for every library the same.
        runs: of each; the fastest counts.
        precisions: of ``PRECISIONS``; those that the processor or a library lacks become rows that say so.
        limit: how many products, convolutions and depthwise convolutions to try; all if not given.
    Returns:
        One row a library, operation and precision: library, operation, kind ("dense" or "depthwise"), precision, gflops
        (1e9 operations a second, a multiply-add is two; NaN where it cannot run), note.
    """
    rows = []
    torch.set_num_threads(threads)
    for precision in precisions:
        for library, operation, flop, make in _kernels(precision, threads, limit):
            kind, gflops, note = "depthwise" if operation.startswith("depthwise") else "dense", math.nan, ""
            try:
                gflops = flop / fastest_ms(make(), runs=runs) / 1e6
            except Exception as error:  # whatever a library raises, its row says it
                note = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
            rows.append((library, operation, kind, precision, gflops, note))
    return pd.DataFrame(rows, columns=["library", "operation", "kind", "precision", "gflops", "note"])


def bandwidth(*, runs: int = 10, most_mib: int | None = None) -> pd.DataFrame:
    """Time reading and moving over working sets of several sizes: inside the processor's caches, and far outside.

    Bytes are counted as in STREAM: each array read or written once, without the reads that a write may cause.

    Args:
        runs: of the largest; smaller sets get up to ten times as many. The fastest counts.
        most_mib: the largest working set; four times the last cache, at least 256, at most a quarter of the free
            memory, if not given.
    Returns:
        One row a kernel ("read" or "triad") and size: kernel, mib (all arrays together), gb_per_s (1e9 bytes).
    """
    if most_mib is None:
        most_mib = min(max(MOST_MIB, 4 * math.ceil(last_level_cache_mib())), int(memory.available_mib() / 4))
    sizes = [LEAST_MIB * 2**k for k in range(max(1, math.ceil(math.log2(max(most_mib, 1) / LEAST_MIB))))]
    rows = []
    for mib in (*sizes, max(most_mib, 1)):
        read, a, b, c = (torch.ones(mib * 2**18 // parts) for parts in (1, 3, 3, 3))  # float32: 4 bytes each
        kernels = {"read": lambda read=read: read.sum(), "triad": lambda a=a, b=b, c=c: torch.add(b, c, alpha=3, out=a)}
        for kernel, run in kernels.items():
            rate = mib * 2**20 / fastest_ms(run, runs=runs * min(10, max(1, most_mib // mib))) / 1e6
            rows.append({"kernel": kernel, "mib": mib, "gb_per_s": rate})
    return pd.DataFrame(rows).drop_duplicates(["kernel", "mib"])


def last_level_cache_mib() -> float:
    """Return the size of the largest processor cache in MiB as Linux reports it, 0 where it is not known."""
    sizes = [path.read_text().strip() for path in CACHE_SIZES.glob("index*/size")]
    return max((int(size.removesuffix("K")) / 2**10 for size in sizes if size.endswith("K")), default=0.0)


def layer_costs(model: nn.Module, shape: tuple[int, ...], *, bytes_per_number: int = 4) -> pd.DataFrame:
    """Count what each layer computes and moves; nothing is computed.

    Operations are PyTorch's own count by the definition (a multiply-add is two). Bytes are each layer's input, output
    and weights, once each. Batch normalisation and layers without weights are taken as fused and count nothing.

    Args:
        model: the network.
        shape: of the input, (N, 3, H, W).
        bytes_per_number: 4 for float32, 2 for bfloat16, 1 for INT8.
    Returns:
        One row a convolution or linear layer, in order: layer, kind ("dense" or "depthwise"), winograd (whether it is a
        3 × 3 convolution of stride 1), gflop, mib, weights_mib, intensity (operations a byte).
    """
    on_meta = copy.deepcopy(model).to("meta").eval()
    numbers: Counter[str] = Counter()
    layers = {n: layer for n, layer in on_meta.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)}
    for name, layer in layers.items():

        def note(module, inputs, output, name=name) -> None:
            numbers[name] += inputs[0].numel() + output.numel() + _weights(module)

        layer.register_forward_hook(note)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        on_meta(torch.empty(shape, device="meta"))
    flops = counter.get_flop_counts()
    rows = []
    for name, count in numbers.items():
        layer, flop = layers[name], sum(flops[".".join(filter(None, (type(model).__name__, name)))].values())
        groups = getattr(layer, "groups", 1)
        winograd = groups == 1 and (getattr(layer, "kernel_size", 0), getattr(layer, "stride", 0)) == ((3, 3), (1, 1))
        moved, weights = count * bytes_per_number, _weights(layer) * bytes_per_number
        kind = "depthwise" if groups > 1 else "dense"
        rows.append((name, kind, winograd, flop / 1e9, moved / 2**20, weights / 2**20, flop / moved))
    columns = ["layer", "kind", "winograd", "gflop", "mib", "weights_mib", "intensity"]
    return pd.DataFrame(rows, columns=columns)


def _weights(layer: nn.Module) -> int:
    return sum(parameter.numel() for parameter in layer.parameters())


def floor_ms(
    costs: pd.DataFrame, *, gflops: float, gb_per_s: float, depthwise_gflops: float | None = None
) -> pd.Series:
    """Return each layer's least time in ms: computing at its roof or moving at the bandwidth, whichever is longer.

    Args:
        costs: of ``layer_costs``.
        gflops: the roof of dense layers.
        gb_per_s: of the caches or of the memory, 1e9 bytes.
        depthwise_gflops: the roof of depthwise layers; that of dense ones if not given.
    """
    roof = np.where(costs["kind"] == "depthwise", depthwise_gflops or gflops, gflops)
    return np.maximum(costs["gflop"] / roof * 1e3, costs["mib"] * 2**20 / gb_per_s / 1e6)


def has_bf16() -> bool:
    """Return whether the processor has instructions for bfloat16 products; without them bf16 is emulated."""
    found = machine.instruction_sets()
    return found["AVX-512 BF16"] or found["AMX"] or found["Arm BF16"]


def _kernels(precision: str, threads: int, limit: int | None) -> Iterator[tuple[str, str, float, Callable[[], Run]]]:
    """Yield library, operation, its operations, and a function that prepares it and returns what to time."""
    for n in PRODUCTS[:limit]:
        operation, flop = f"{n}³ product", 2.0 * n**3
        yield "PyTorch", operation, flop, lambda n=n: _torch_product(n, precision)
        if precision != "bf16":
            yield "ONNX Runtime", operation, flop, lambda n=n: _ort_product(n, precision, threads)
    for shape in (*CONVOLUTIONS[:limit], *DEPTHWISE[:limit]):
        batch, inside, outside, kernel, size, groups = shape
        operation = f"{'conv' if groups == 1 else 'depthwise'} {batch}×{inside}→{outside}, {kernel}×{kernel}, {size}²"
        flop = 2.0 * batch * inside * outside * kernel**2 * size**2 / groups
        if precision != "int8":
            yield "PyTorch", operation, flop, lambda shape=shape: _torch_convolution(*shape, precision)
        if precision != "bf16":
            yield "ONNX Runtime", operation, flop, lambda shape=shape: _ort_convolution(*shape, precision, threads)


def _torch_product(n: int, precision: str) -> Run:
    if precision == "int8":
        a = torch.ones((n, n), dtype=torch.int8)
        return lambda: torch._int_mm(a, a)
    a = torch.ones((n, n), dtype=_float(precision))
    out = torch.empty_like(a)
    return lambda: torch.mm(a, a, out=out)


def _torch_convolution(batch, inside, outside, kernel, size, groups, precision) -> Run:
    to = {"dtype": _float(precision), "memory_format": torch.channels_last}
    layer = nn.Conv2d(inside, outside, kernel, padding=kernel // 2, groups=groups, bias=False).to(**to)
    x = torch.ones((batch, inside, size, size)).to(**to)
    return torch.inference_mode()(lambda: layer(x))


def _float(precision: str) -> torch.dtype:
    if precision == "bf16" and not has_bf16():
        raise NotImplementedError("this processor has no bf16 instructions")
    return torch.bfloat16 if precision == "bf16" else torch.float32


def _ort_product(n: int, precision: str, threads: int) -> Run:
    operator = "MatMul" if precision == "fp32" else "MatMulInteger"
    return _ort_run(operator, (n, n), (n, n), (n, n), threads)


def _ort_convolution(batch, inside, outside, kernel, size, groups, precision, threads) -> Run:
    how = {"pads": [kernel // 2] * 4, "kernel_shape": [kernel, kernel], "group": groups}
    shapes = (batch, inside, size, size), (outside, inside // groups, kernel, kernel), (batch, outside, size, size)
    return _ort_run("Conv" if precision == "fp32" else "QLinearConv", *shapes, threads, **how)


def _ort_run(operator: str, x_shape, weights_shape, out_shape, threads: int, **how) -> Run:
    """Make a model of one node, all ones, and return what runs it."""
    is_float = operator in ("MatMul", "Conv")
    x = np.ones(x_shape, np.float32 if is_float else np.uint8)
    weights = np.ones(weights_shape, np.float32 if is_float else np.int8)
    constants, inputs = {"w": weights}, ["x", "w"]
    if operator == "QLinearConv":
        constants |= {"one": np.float32(1), "zero": np.uint8(0), "zero_w": np.int8(0)}
        inputs = ["x", "one", "zero", "w", "one", "zero_w", "one", "zero"]
    out = np.int32 if operator == "MatMulInteger" else x.dtype
    x_type, y_type = (np.dtype(kind).name.replace("float32", "float") for kind in (x.dtype, out))
    model = parser.parse_model(
        f'<ir_version: 10, opset_import: ["": 20]> one ({x_type}{list(x.shape)} x) => ({y_type}{list(out_shape)} y) '
        f"{{ y = {operator} ({', '.join(inputs)}) }}"
    )
    model.graph.node[0].attribute.extend(helper.make_attribute(name, value) for name, value in how.items())
    values = (numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items())
    model.graph.initializer.extend(values)
    return engines.onnxruntime(model.SerializeToString(), x, threads=threads).run
