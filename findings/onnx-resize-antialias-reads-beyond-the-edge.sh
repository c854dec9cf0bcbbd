#!/usr/bin/env bash
# ONNX's antialiased Resize mixes the edge of a photo in another way than Pillow, OpenCV's resize and PyTorch do.
#
# Expected: Resize with antialias=1 and mode "linear" (opset 18 brought it) gives what Pillow gives, to rounding.
# Happens: it does in the middle. At the edges, where the filter reaches beyond the picture, ONNX repeats the last pixel, and Pillow leaves what lies outside
#   out. exclude_outside=1 does that, too; its place in the text, beside the cubic coefficient, makes one think that it is for cubic only.
# Notice: compare the resized pictures, not the class. Repair: exclude_outside=1 (OpenVINO and OpenCV leave antialias out altogether).
# Versions: onnxruntime 1.32.0, onnx 1.23.2, pillow 12.0.0, numpy 2.4.6. Seen 2026-12-01.
# Hurts: whoever puts the preparation of photos into the file and expects the answers of the training's transform.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check numpy==2.4.6 onnx==1.23.2 onnxruntime==1.32.0 pillow==12.0.0
venv/bin/python - <<'PYTHON'
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

photo = np.random.default_rng(0).random((60, 80), np.float32)
pillow = np.asarray(Image.fromarray(photo).resize((20, 15), Image.Resampling.BILINEAR))
errors = {}
for exclude in (0, 1):
    node = helper.make_node("Resize", ["x", "", "", "sizes"], ["y"], mode="linear", antialias=1, exclude_outside=exclude)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in (("x", [1, 1, 60, 80]), ("y", [1, 1, 15, 20]))]
    sizes = numpy_helper.from_array(np.array([1, 1, 15, 20], np.int64), "sizes")
    graph = helper.make_graph([node], "resize", ends[:1], ends[1:], [sizes])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    off = np.abs(session.run(None, {"x": photo[None, None]})[0][0, 0] - pillow)
    errors[exclude] = float(off[1:-1, 1:-1].max()), float(off.max())
    print(f"exclude_outside={exclude}: largest error in the middle {errors[exclude][0]:.1e}, at the edges {errors[exclude][1]:.1e}")
assert errors[0][0] < 1e-5 and errors[1][1] < 1e-5
assert errors[0][1] > 0.01, "the edges agree now"
PYTHON
