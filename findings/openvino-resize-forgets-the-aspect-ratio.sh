#!/usr/bin/env bash
# OpenVINO stretches the photo where the file says that its aspect ratio is to be kept.
#
# Expected: Resize with keep_aspect_ratio_policy="not_smaller" makes the shorter side as long as asked and keeps the shape of what is in the picture: what every
#   classifier's preparation does. An engine that lacks the attribute (ONNX has it since opset 18) refuses the file.
# Happens: OpenVINO leaves the attribute out, without a word. 100 x 50 pixels, to be resized to 32 x 32, become 32 x 32 instead of 64 x 32.
#   A centre crop behind it then takes the whole stretched photo, in the right shape, so nothing fails. ONNX Runtime is right.
# Notice: give the file a photo that is no square. Repair: compute the sizes in the graph (Shape, Div, Mul), or resize before.
# Versions: openvino 2026.4.1, onnxruntime 1.32.0, onnx 1.23.2, numpy 2.4.6. Seen 2026-12-01.
# Hurts: whoever puts the preparation of photos into the file, so that no service can get it wrong.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check numpy==2.4.6 onnx==1.23.2 onnxruntime==1.32.0 openvino==2026.4.1
venv/bin/python - <<'PYTHON'
import numpy as np
import onnx
import onnxruntime
import openvino
from onnx import TensorProto, helper, numpy_helper

sizes = numpy_helper.from_array(np.array([32, 32], np.int64), "sizes")
choices = {"axes": [2, 3], "keep_aspect_ratio_policy": "not_smaller", "mode": "linear"}
node = helper.make_node("Resize", ["photo", "", "", "sizes"], ["resized"], **choices)
photo = helper.make_tensor_value_info("photo", TensorProto.FLOAT, [1, 3, 100, 50])
resized = helper.make_tensor_value_info("resized", TensorProto.FLOAT, [1, 3, "height", "width"])
graph = helper.make_graph([node], "resize", [photo], [resized], [sizes])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
onnx.checker.check_model(model, full_check=True)
onnx.save(model, "resize.onnx")
x = np.random.default_rng(0).random((1, 3, 100, 50), np.float32)
session = onnxruntime.InferenceSession("resize.onnx", providers=["CPUExecutionProvider"])
right = session.run(None, {"photo": x})[0].shape
found = openvino.Core().compile_model("resize.onnx", "CPU")(x)[0].shape
print("ONNX Runtime", right, "OpenVINO", found)
assert right == (1, 3, 64, 32)
assert found == (1, 3, 32, 32), "the aspect ratio is kept now"
PYTHON
