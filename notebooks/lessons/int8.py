"""Bias correction for an INT8 file, layer after layer. Used in notebooks/10_int8_quantization.ipynb."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

LAYERS = ("Conv", "Gemm")


def _walk(content: onnx.ModelProto, x: np.ndarray) -> Iterator[tuple[onnx.NodeProto, dict[str, np.ndarray]]]:
    """Run a network node by node; yield each node and the tensors that are alive, which the caller may change."""
    constants = {tensor.name: tensor for tensor in content.graph.initializer}
    last = {name: node.name for node in content.graph.node for name in node.input}  # who reads it last
    alive = {content.graph.input[0].name: x}
    for node in content.graph.node:
        read = dict.fromkeys(name for name in node.input if name in alive)
        inputs = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(alive[name].dtype), None)
            for name in read
        ]
        outputs = [onnx.ValueInfoProto(name=name) for name in node.output]
        held = [constants[name] for name in dict.fromkeys(node.input) if name in constants]
        graph = helper.make_graph([node], "one_node", inputs, outputs, held)
        alone = helper.make_model(graph, opset_imports=content.opset_import, ir_version=content.ir_version)
        session = ort.InferenceSession(alone.SerializeToString(), providers=["CPUExecutionProvider"])
        alive |= dict(zip(node.output, session.run(None, {name: alive[name] for name in read}), strict=True))
        yield node, alive
        for name in read:
            if last[name] == node.name:
                del alive[name]


def _mean(y: np.ndarray) -> np.ndarray:
    """Return the mean of each channel, shape (channels,)."""
    return y.mean(axis=tuple(axis for axis in range(y.ndim) if axis != 1))


def correct_biases(
    float_file: Path, int8_file: Path, x: np.ndarray, target: Path, *, one_by_one: bool = True
) -> dict[str, float]:
    """Take from each layer's bias by how much its outputs' means are off, channel by channel, and write a new file.

    The idea is Nagel et al. 2019, "Data-free quantization through weight equalization and bias correction", in its
    empirical form. Nodes are matched by their names.

    Args:
        float_file: the network in float32, every node named, each layer with a bias.
        int8_file: what ``quantize_static`` made of it, in the QDQ format.
        x: calibration inputs, shape (pictures, channels, height, width).
        target: the file to write.
        one_by_one: whether a layer sees the corrections before it; False measures all layers first, and overcorrects.
    Returns:
        For each layer the mean shift that was taken away, in the unit of its output.
    """
    wanted = {node.name: _mean(alive[node.output[0]]) for node, alive in _walk(onnx.load(float_file), x)}
    content = onnx.load(int8_file)
    makers = {node.output[0]: node for node in content.graph.node}
    tensors = {tensor.name: tensor for tensor in content.graph.initializer}
    corrected, taken = {}, {}
    for node, alive in _walk(content, x):
        if node.op_type not in LAYERS:
            continue
        found = alive[node.output[0]]
        bias = makers.get(node.input[2])  # DequantizeLinear; a layer left in float has its bias as it is
        names = [node.input[2]] if bias is None else bias.input[:2]
        integers, *scale = (numpy_helper.to_array(tensors[name]) for name in names)
        step = scale[0] if scale else np.float32(1)
        change = (_mean(found) - wanted[node.name]) / step
        new = np.rint(integers - change) if scale else integers - change
        corrected[names[0]] = numpy_helper.from_array(new.astype(integers.dtype), names[0])
        shift = ((integers - new) * step).astype(np.float32)
        taken[node.name] = float(np.abs(shift).mean())
        if one_by_one:
            alive[node.output[0]] = found - shift.reshape((1, -1) + (1,) * (found.ndim - 2))
    for name, tensor in corrected.items():
        tensors[name].CopyFrom(tensor)
    onnx.save(content, target)
    return taken
