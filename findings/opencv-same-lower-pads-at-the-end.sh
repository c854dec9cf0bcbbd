#!/usr/bin/env bash
# OpenCV pads at the end where the file says SAME_LOWER.
#
# Expected: auto_pad SAME_LOWER puts the odd row and column of padding at the beginning, SAME_UPPER at the end; or the file is refused.
# Happens: in MaxPool, AveragePool and Conv OpenCV treats both as SAME_UPPER, so the picture is shifted by one pixel. The shape is right, no error.
# Notice: compare with another engine. Repair: write explicit pads into the file.
# Versions: opencv-python-headless 5.0.0.93, onnxruntime 1.32.0, onnx 1.23.2, numpy 2.4.6. Seen 2026-12-01.
# Hurts: networks from frameworks that write SAME_LOWER (CNTK, darknet converters), with windows of even size.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check numpy==2.4.6 onnx==1.23.2 onnxruntime==1.32.0 opencv-python-headless==5.0.0.93
venv/bin/python - <<'PYTHON'
import cv2
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

x = np.random.default_rng(0).random((1, 2, 8, 8), np.float32)
wrong = []
for operator in ("MaxPool", "AveragePool", "Conv"):
    for side in ("SAME_LOWER", "SAME_UPPER"):
        weights = [numpy_helper.from_array(np.ones((2, 2, 2, 2), np.float32), "w")] if operator == "Conv" else []
        names = ["x", *(one.name for one in weights)]
        node = helper.make_node(operator, names, ["y"], auto_pad=side, kernel_shape=[2, 2], strides=[1, 1])
        ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2, 8, 8]) for name in "xy"]
        graph = helper.make_graph([node], "pool", ends[:1], ends[1:], weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, "pool.onnx")
        right = onnxruntime.InferenceSession("pool.onnx", providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
        net = cv2.dnn.readNetFromONNX("pool.onnx")
        net.setInput(x, "x")
        found = net.forward()
        assert found.shape == right.shape
        print(operator, side, f"largest difference {np.abs(found - right).max():.2g}")
        if not np.allclose(found, right, atol=1e-4):
            wrong.append((operator, side))
            assert np.allclose(found[..., :-1, :-1], right[..., 1:, 1:], atol=1e-5), "it is more than a shift"
assert wrong == [(operator, "SAME_LOWER") for operator in ("MaxPool", "AveragePool", "Conv")], f"wrong now: {wrong}"
PYTHON
