"""Does a file keep its promise, every batch and size? Taught in notebooks/15_your_own_network.ipynb."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pandas as pd
import torch
from torch import nn

REPAIR = "Export with an example batch of 2; what stays is fixed in the network's code (view, reshape, interpolate)."


def check_export(
    model: nn.Module,
    path: str | Path,
    shapes: Sequence[Sequence[int]],
    *,
    batches: Sequence[int] = (1, 2, 3),
    tolerance: float = 1e-4,
) -> pd.DataFrame:
    """Compare a file with its network, on random numbers, at every batch and size that it is meant for.

    Args:
        model: the network in eval mode; one float32 input; one output, or several in a tuple or dictionary.
        path: its .onnx file, outputs in the same order.
        shapes: the inputs, batch first, such as [(1, 3, 224, 224), (1, 3, 256, 320)]; each is tried at each batch.
        batches: how many photos at once.
        tolerance: the largest absolute error of an output, on top of a thousandth of its value.
    Returns:
        One row per input tried: input and outputs (shapes), max_abs_error.
    Raises:
        ValueError: if the network is in train mode or refuses a shape itself, or if the file is wrong at one: it says
            at which, where it is right, and the first node that froze.
    """
    if any(module.training for module in model.modules()):
        raise ValueError("The network is in train mode: call model.eval(), export again, then check.")
    onnx.checker.check_model(path, full_check=True)
    options = ort.SessionOptions()
    options.log_severity_level = 4  # its errors are raised below, and not on stderr as well
    session, rows, wrong = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"]), [], {}
    for shape in [(batch, *shape[1:]) for shape in shapes for batch in batches]:
        x = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
        try:
            with torch.inference_mode():
                answer = model(torch.from_numpy(x))
        except Exception as error:  # networks refuse in many ways
            raise ValueError(f"The network itself refuses an input {shape}: leave it out. ({error})") from error
        outputs = [answer] if torch.is_tensor(answer) else answer.values() if isinstance(answer, Mapping) else answer
        try:
            found = session.run(None, {session.get_inputs()[0].name: x})
            pairs = list(zip(found, [output.numpy() for output in outputs], strict=True))
            for one, other in pairs:
                np.testing.assert_allclose(one, other, rtol=1e-3, atol=tolerance)
            largest = max(np.abs(one - other).max() for one, other in pairs)
            rows.append({"input": shape, "outputs": [one.shape for one in found], "max_abs_error": largest})
        except Exception as error:  # ONNX Runtime's have no class in common; NumPy's AssertionError; zip's ValueError
            wrong[shape] = " ".join(str(error).split())
    if wrong:
        bad, good = next(iter(wrong)), rows[0]["input"] if rows else None
        where = "right nowhere: another network's file?"
        if good:
            where = f"right at {good}: {_frozen(path, good, bad, wrong[bad])}"
        raise ValueError(f"{Path(path).name} is wrong at input {bad}, {where} It said: {wrong[bad]}")
    return pd.DataFrame(rows)


def _frozen(path: str | Path, good: tuple[int, ...], bad: tuple[int, ...], said: str) -> str:
    """Name the first node whose output keeps a size while its input's changes, by the shapes inferred for both.

    Where there is none, name the node at which the engine stopped.
    """
    sizes = []
    for shape in (good, bad):
        tried = onnx.load(path)
        del tried.graph.value_info[:]  # what was inferred for the example
        for output in tried.graph.output:
            output.type.tensor_type.ClearField("shape")
        for dim, size in zip(tried.graph.input[0].type.tensor_type.shape.dim, shape, strict=True):
            dim.dim_value = size
        graph = onnx.shape_inference.infer_shapes(tried, data_prop=True).graph
        values = (*graph.value_info, *graph.input, *graph.output)
        sizes.append({v.name: [dim.dim_value for dim in v.type.tensor_type.shape.dim] for v in values})
    for node in graph.node:
        if node.op_type in {"Reshape", "Expand", "Resize"}:
            before, after = ([size.get(name, []) for size in sizes] for name in (node.input[0], node.output[0]))
            # A reshape keeps the order of the numbers: where the first axis grows, it must grow behind it, too.
            kept = 1 if node.op_type == "Reshape" and before[0][:1] != before[1][:1] else None
            known = before[0] and after[0][:kept] and 0 not in (*before[0], *after[0][:kept])
            if known and before[0] != before[1] and after[0][:kept] == after[1][:kept]:
                return f"the first node that froze is {node.name} ({node.op_type}, to {after[0]}). {REPAIR}"
    stopped = re.search(r"running (\w+) node\. Name:'([^']*)'", said)
    return f"the first node that stops is {stopped[2]} ({stopped[1]}). {REPAIR}" if stopped else REPAIR
