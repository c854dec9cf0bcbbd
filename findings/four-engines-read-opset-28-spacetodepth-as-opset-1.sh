#!/usr/bin/env bash
# Four engines open a file of opset 28 and leave out the attribute that opset 28 brought.
#
# Expected: an engine that does not know an opset, or an attribute, refuses the file.
# Happens: SpaceToDepth got mode="CRD" in opset 28 (PyTorch's pixel_unshuffle). OpenVINO, OpenCV, tract and nxrt read the node as they always
#   did, "DCR": the channels come out in another order, without a word. ONNX Runtime and the reference evaluator are right.
# Notice: compare the outputs with another engine; with one input channel there is nothing to see. Repair: write reshape and transpose.
# Versions: openvino 2026.4.1, opencv-python-headless 5.0.0.93, tract 0.23.9, nxrt 0.1.0.dev6, onnx 1.23.2, numpy 2.4.6. Seen 2026-12-01.
# Hurts: networks that begin with pixel_unshuffle (TResNet, super-resolution), written for the newest opset.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check numpy==2.4.6 onnx==1.23.2 openvino==2026.4.1 opencv-python-headless==5.0.0.93 tract==0.23.9 nxrt==0.1.0.dev6
venv/bin/python - <<'PYTHON'
import cv2
import numpy as np
import nxrt
import onnx
import openvino
import tract
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

node = helper.make_node("SpaceToDepth", ["x"], ["y"], blocksize=2, mode="CRD")
ends = [helper.make_tensor_value_info(*end) for end in (("x", TensorProto.FLOAT, [1, 3, 4, 4]), ("y", TensorProto.FLOAT, [1, 12, 2, 2]))]
graph = helper.make_graph([node], "unshuffle", ends[:1], ends[1:])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 28)], ir_version=10)
onnx.checker.check_model(model, full_check=True)
onnx.save(model, "unshuffle.onnx")
x = np.random.default_rng(0).random((1, 3, 4, 4), np.float32)
by_hand = x.reshape(1, 3, 2, 2, 2, 2).transpose(0, 1, 3, 5, 2, 4).reshape(1, 12, 2, 2)
assert np.array_equal(ReferenceEvaluator(model).run(None, {"x": x})[0], by_hand)
net = cv2.dnn.readNetFromONNX("unshuffle.onnx")
net.setInput(x, "x")
found = {
    "OpenVINO": openvino.Core().compile_model("unshuffle.onnx", "CPU")(x)[0],
    "OpenCV": net.forward(),
    "tract": tract.onnx().load("unshuffle.onnx").into_model().into_runnable().run([x])[0].to_numpy(),
    "nxrt": nxrt.InferenceSession("unshuffle.onnx").run(None, {"x": x})[0],
}
old = x.reshape(1, 3, 2, 2, 2, 2).transpose(0, 3, 5, 1, 2, 4).reshape(1, 12, 2, 2)
for name, y in found.items():
    print(name, "as opset 28 says:", np.array_equal(y, by_hand), "as DCR:", np.array_equal(y, old))
    assert np.array_equal(y, old) and not np.array_equal(y, by_hand), f"{name} is right now"
PYTHON
