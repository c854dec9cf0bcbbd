"""How fast could it be? The machine's observed peaks, what each layer needs, and the floor that follows.

Taught in notebooks/09_hardware_limit.ipynb.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import onnx
import onnxruntime as ort
import pandas as pd
import torch
from matplotlib.axes import Axes
from onnx import TensorProto, helper
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from helpers import engines, machine, memory, timing

CACHE_SIZES = Path("/sys/devices/system/cpu/cpu0/cache")
LEAST_ARRAY_MIB = 256  # four times a last-level cache of 64 MiB
PRECISIONS = ("fp32", "bf16", "int8")

# (batch, channels in, channels out, kernel, height and width): layers as in both networks, from stem to last stage
CONVOLUTIONS = (
    (1, 64, 64, 3, 56),
    (1, 128, 128, 3, 28),
    (16, 64, 64, 3, 56),
    (16, 256, 256, 3, 14),
    (1, 256, 256, 3, 56),
)
PRODUCTS = (512, 1024, 2048)  # square matrices


def peaks(
    *, threads: int, runs: int = 10, precisions: Sequence[str] = PRECISIONS, limit: int | None = None
) -> pd.DataFrame:
    """Time matrix products and convolutions in several libraries: the best is the observed compute peak.

    Args:
        threads: for every library the same.
        runs: timed runs of each.
        precisions: of ``PRECISIONS``; those that the processor or a library lacks become rows that say so.
        limit: how many matrix products and how many convolutions to try, smallest first; all if not given.
    Returns:
        One row a library, operation and precision: library, operation, precision, gflops (1e9 operations a second, a
        multiply-add is two; NaN where it cannot run), note.
    """
    rows = []
    for precision in precisions:
        for library, operation, flop, make in _kernels(precision, threads, limit):
            try:
                run = make()
                run()
            except Exception as error:  # whatever a library raises, its row says it
                note = (str(error).strip().splitlines() or [type(error).__name__])[0]
                rows.append((library, operation, precision, math.nan, note[:120]))
                continue
            found = timing.measure({operation: run}, reference=operation, runs=runs)[operation]
            rows.append((library, operation, precision, flop / np.median(found.times_ms) / 1e6, ""))
    return pd.DataFrame(rows, columns=["library", "operation", "precision", "gflops", "note"])


def bandwidth(*, runs: int = 10, array_mib: int | None = None) -> pd.DataFrame:
    """Time copy and triad over arrays that no cache holds: the best is the observed memory bandwidth.

    Bytes are counted as in STREAM: each array read or written once, without the reads that a write may cause.

    Args:
        runs: timed runs of each.
        array_mib: size of one array; four times the last-level cache, at least 256, if not given. A virtual machine
            may report its host's huge cache: the three arrays never take more than three eighths of the free memory.
    Returns:
        One row a kernel: kernel, array_mib, gb_per_s (1e9 bytes), note (whether the arrays had to be smaller).
    """
    wanted = max(LEAST_ARRAY_MIB, 4 * math.ceil(last_level_cache_mib())) if array_mib is None else array_mib
    array_mib = max(1, min(wanted, int(memory.available_mib() / 8)))
    note = (
        "" if array_mib == wanted else f"{wanted} MiB would be better, but memory is short: part may come from a cache"
    )
    a, b, c = (torch.ones(array_mib * 2**18) for _ in range(3))  # float32: 4 bytes each
    kernels = {
        "copy: a = b": (2, lambda: a.copy_(b)),
        "triad: a = b + 3·c": (3, lambda: torch.add(b, c, alpha=3, out=a)),
    }
    rows = []
    for name, (arrays, run) in kernels.items():
        found = timing.measure({name: run}, reference=name, runs=runs)[name]
        rows.append((name, array_mib, arrays * array_mib * 2**20 / np.median(found.times_ms) / 1e6, note))
    return pd.DataFrame(rows, columns=["kernel", "array_mib", "gb_per_s", "note"])


def last_level_cache_mib() -> float:
    """Return the size of the largest processor cache in MiB as Linux reports it, 0 where it is not known."""
    sizes = [path.read_text().strip() for path in CACHE_SIZES.glob("index*/size")]
    return max((int(size.removesuffix("K")) / 2**10 for size in sizes if size.endswith("K")), default=0.0)


def layer_costs(model: nn.Module, shape: tuple[int, ...], *, bytes_per_number: int = 4) -> pd.DataFrame:
    """Count what each layer computes and moves.

    Operations are PyTorch's count (a multiply-add is two). Bytes are each layer's input, output and weights, once each:
    nothing stays in a cache between layers, nothing is read twice. Batch normalisation, activations and other layers
    without weights of their own are taken as fused into the layer before and count nothing.

    Args:
        model: the network; nothing is computed.
        shape: of the input, (N, 3, H, W).
        bytes_per_number: 4 for float32, 2 for bfloat16, 1 for INT8.
    Returns:
        One row a convolution or linear layer, in order: layer, kind, gflop, mib, intensity (operations a byte).
    """
    on_meta = copy.deepcopy(model).to("meta").eval()
    rows: list[dict] = []

    def note(name: str) -> Callable:
        def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            with FlopCounterMode(display=False) as counter:
                type(module).forward(module, *inputs)
            moved = sum(tensor.numel() for tensor in (*inputs, output, *module.parameters())) * bytes_per_number
            flop = counter.get_total_flops()
            rows.append(
                {
                    "layer": name,
                    "kind": _kind(module),
                    "gflop": flop / 1e9,
                    "mib": moved / 2**20,
                    "intensity": flop / moved,
                }
            )

        return hook

    for name, module in on_meta.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(note(name))
    with torch.inference_mode():
        on_meta(torch.empty(shape, device="meta"))
    return pd.DataFrame(rows)


def floor_ms(costs: pd.DataFrame, *, gflops: float, gb_per_s: float) -> pd.Series:
    """Return each layer's least time in ms: computing at the peak or moving at the bandwidth, whichever is longer."""
    computing = costs["gflop"] / gflops * 1e3
    moving = costs["mib"] * 2**20 / gb_per_s / 1e6
    return np.maximum(computing, moving)


def profile_nodes(path: str | Path, x: np.ndarray, *, threads: int, runs: int, folder: str | Path) -> pd.DataFrame:
    """Time every node with ONNX Runtime's own profiler.

    Args:
        path: the .onnx file.
        x: its input.
        threads: of the session.
        runs: how many; one more, the first, is left out.
        folder: where the profile is written for a moment.
    Returns:
        One row a node, in order: node, operator, ms (median over the runs), layer (the name of its weights without
        ".weight", "" where it has none or no match is found).
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.enable_profiling = True
    options.profile_file_prefix = str(Path(folder) / "profile")
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    for _ in range(runs + 1):
        session.run(None, {name: x})
    written = Path(session.end_profiling())
    events = pd.read_json(written)
    written.unlink()
    kernels = events[(events["cat"] == "Node") & events["name"].str.endswith("_kernel_time")]
    table = pd.DataFrame(
        {
            "node": kernels["name"].str.removesuffix("_kernel_time"),
            "operator": [arguments["op_name"] for arguments in kernels["args"]],
            "ms": kernels["dur"] / 1e3,
        }
    )
    table["run"] = table.groupby("node").cumcount()
    table = table[table["run"] > 0]
    table = table.groupby(["node", "operator"], sort=False)["ms"].median().reset_index()
    return table.assign(layer=_layers_of(path, table))


def _layers_of(path: str | Path, nodes: pd.DataFrame) -> list[str]:
    """Find the layer behind each profiled node.

    ONNX Runtime names a fused node after the tensor that it makes, as in "relu_3_nchwc". From that tensor the way leads
    back, through activations and additions, to the first convolution or product that no earlier node has.
    """
    model = onnx.load(path, load_external_data=False)
    made_by = {output: node for node in model.graph.node for output in node.output}
    weights = {tensor.name for tensor in model.graph.initializer}
    taken: set[str] = set()

    def behind(tensor: str) -> str:
        node = made_by.get(tensor)
        if node is None:
            return ""
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            layer = node.input[1].removesuffix(".weight") if node.input[1] in weights else ""
            return "" if layer in taken else layer
        if node.op_type not in ("Relu", "Add", "Clip", "HardSigmoid", "HardSwish", "Mul"):
            return ""
        return next((layer for layer in map(behind, node.input) if layer), "")

    found = []
    outputs = {node.name: node.output[0] for node in model.graph.node}
    for name, operator in zip(nodes["node"], nodes["operator"], strict=True):
        heavy = any(word in operator for word in ("Conv", "Gemm", "MatMul"))
        tensor = name.removesuffix("_nchwc")
        layer = behind(outputs.get(tensor, tensor)) if heavy else ""
        taken |= {layer} - {""}
        found.append(layer)
    return found


def plot(
    ax: Axes | None = None, *, roofs: dict[str, float], gb_per_s: float, intensities: tuple[float, float] = (0.5, 1000)
) -> Axes:
    """Draw the roofs: what can be reached at each intensity, a line a precision, both axes logarithmic.

    Args:
        ax: where to draw.
        roofs: compute peaks in GFLOP/s by name.
        gb_per_s: memory bandwidth, 1e9 bytes.
        intensities: the range drawn, operations a byte.
    """
    ax = plt.gca() if ax is None else ax
    x = np.geomspace(*intensities, 200)
    for (name, peak), line in zip(roofs.items(), ("-", "--", ":"), strict=False):
        ax.plot(
            x, np.minimum(x * gb_per_s, peak), color="black", linestyle=line, label=f"roof {name}: {peak:.0f} GFLOP/s"
        )
    ax.set(xscale="log", yscale="log", xlabel="operations a byte", ylabel="GFLOP/s")
    ax.xaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_major_formatter("{x:g}")
    return ax


def _kernels(
    precision: str, threads: int, limit: int | None
) -> Iterator[tuple[str, str, float, Callable[[], Callable[[], object]]]]:
    """Yield library, operation, its operations, and a function that prepares it and returns what to time."""
    torch.set_num_threads(threads)
    for n in PRODUCTS[:limit]:
        operation, flop = f"{n}³ product", 2.0 * n**3
        if precision == "fp32":
            yield "NumPy", operation, flop, lambda n=n: _numpy_product(n)
        yield "PyTorch", operation, flop, lambda n=n: _torch_product(n, precision)
        if precision != "bf16":
            yield "ONNX Runtime", operation, flop, lambda n=n: _ort_product(n, precision, threads)
    for batch, inside, outside, kernel, size in CONVOLUTIONS[:limit]:
        operation = f"conv {batch}×{inside}→{outside}, {kernel}×{kernel}, {size}²"
        flop = 2.0 * batch * inside * outside * kernel**2 * size**2
        shape = (batch, inside, outside, kernel, size)
        if precision != "int8":
            yield "PyTorch", operation, flop, lambda shape=shape: _torch_convolution(*shape, precision)
        if precision != "bf16":
            yield "ONNX Runtime", operation, flop, lambda shape=shape: _ort_convolution(*shape, precision, threads)


def _numpy_product(n: int) -> Callable[[], object]:
    a = np.ones((n, n), np.float32)
    out = np.empty_like(a)
    return lambda: np.matmul(a, a, out=out)


def _torch_product(n: int, precision: str) -> Callable[[], object]:
    if precision == "int8":
        a = torch.ones((n, n), dtype=torch.int8)
        return lambda: torch._int_mm(a, a)
    _refuse_without(precision)
    a = torch.ones((n, n), dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    out = torch.empty_like(a)
    return lambda: torch.mm(a, a, out=out)


def _torch_convolution(
    batch: int, inside: int, outside: int, kernel: int, size: int, precision: str
) -> Callable[[], object]:
    _refuse_without(precision)
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    layer = nn.Conv2d(inside, outside, kernel, padding=kernel // 2, bias=False).to(
        kind, memory_format=torch.channels_last
    )
    x = torch.ones((batch, inside, size, size), dtype=kind).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def run() -> object:
        return layer(x)

    return run


def _refuse_without(precision: str) -> None:
    """bf16 without its instructions is emulated: slower than fp32, and no roof of this processor."""
    if precision == "bf16" and not has_bf16():
        raise NotImplementedError("this processor has no bf16 instructions")


def has_bf16() -> bool:
    """Return whether the processor has instructions for bfloat16 products."""
    found = machine.instruction_sets()
    return found["AVX-512 BF16"] or found["AMX"] or found["Arm BF16"]


def _ort_product(n: int, precision: str, threads: int) -> Callable[[], object]:
    kind, operator, out = (
        (TensorProto.FLOAT, "MatMul", TensorProto.FLOAT)
        if precision == "fp32"
        else (TensorProto.INT8, "MatMulInteger", TensorProto.INT32)
    )
    left = np.ones((n, n), np.float32 if precision == "fp32" else np.uint8)
    right = np.ones((n, n), np.float32 if precision == "fp32" else np.int8)
    graph = helper.make_graph(
        [helper.make_node(operator, ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT if precision == "fp32" else TensorProto.UINT8, [n, n])],
        [helper.make_tensor_value_info("y", out, [n, n])],
        [helper.make_tensor("w", kind, [n, n], right.tobytes(), raw=True)],
    )
    return _ort_run(graph, left, threads)


def _ort_convolution(
    batch: int, inside: int, outside: int, kernel: int, size: int, precision: str, threads: int
) -> Callable[[], object]:
    shape, out_shape = [batch, inside, size, size], [batch, outside, size, size]
    weights = [outside, inside, kernel, kernel]
    attributes = {"pads": [kernel // 2] * 4, "kernel_shape": [kernel, kernel]}
    if precision == "fp32":
        graph = helper.make_graph(
            [helper.make_node("Conv", ["x", "w"], ["y"], **attributes)],
            "convolution",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, out_shape)],
            [helper.make_tensor("w", TensorProto.FLOAT, weights, np.ones(weights, np.float32).tobytes(), raw=True)],
        )
        return _ort_run(graph, np.ones(shape, np.float32), threads)
    one = helper.make_tensor("one", TensorProto.FLOAT, [], [1.0])
    zero_u = helper.make_tensor("zero_u", TensorProto.UINT8, [], [0])
    zero_s = helper.make_tensor("zero_s", TensorProto.INT8, [], [0])
    graph = helper.make_graph(
        [
            helper.make_node(
                "QLinearConv", ["x", "one", "zero_u", "w", "one", "zero_s", "one", "zero_u"], ["y"], **attributes
            )
        ],
        "convolution",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, out_shape)],
        [
            one,
            zero_u,
            zero_s,
            helper.make_tensor("w", TensorProto.INT8, weights, np.ones(weights, np.int8).tobytes(), raw=True),
        ],
    )
    return _ort_run(graph, np.ones(shape, np.uint8), threads)


def _ort_run(graph: onnx.GraphProto, x: np.ndarray, threads: int) -> Callable[[], object]:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return engines.onnxruntime(model.SerializeToString(), x, threads=threads).run


def _kind(module: nn.Module) -> str:
    if isinstance(module, nn.Linear):
        return "linear"
    if module.groups > 1:
        return "depthwise"
    return f"conv {module.kernel_size[0]}×{module.kernel_size[1]}"
