#!/usr/bin/env bash
# onnxslim divides a float that comes from a size as if it were an integer: 1 / 16 becomes 0.
#
# Expected: a simplified file gives the same answers; what is computed from a shape may be folded into a constant, with its value.
# Happens: for Shape, Gather, Cast to float, Div behind a layer, onnxslim forgets the cast and folds the integer quotient. Here the answer is all zeros.
#   (Of the input's own shape it is right.) Every step of it may be skipped (skip_optimizations) and it still happens: it comes with the shapes that are inferred. No warning, the checker passes.
# Notice: compare the outputs before and after; onnxslim does it only when asked (model_check=True). onnxsim is right.
# Repair: export with the size as a number (int(x.shape[2])), or use onnxsim.
# Versions: onnxslim 0.1.98, onnxsim 0.8.1, onnx 1.23.2, onnxruntime 1.32.0, numpy 2.4.6. Seen 2026-12-01.
# Hurts: networks that scale by their input's size: position grids, coordinate channels, attention over a map.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check numpy==2.4.6 onnx==1.23.2 onnxruntime==1.32.0 onnxslim==0.1.98 onnxsim==0.8.1
venv/bin/python - <<'PYTHON'
import numpy as np
import onnx
import onnxruntime
import onnxsim
import onnxslim
from onnx import TensorProto, helper, numpy_helper

nodes = [
    helper.make_node("Relu", ["x"], ["features"]),
    helper.make_node("Shape", ["features"], ["shape"]),
    helper.make_node("Gather", ["shape", "axis"], ["height"]),
    helper.make_node("Cast", ["height"], ["height_as_float"], to=TensorProto.FLOAT),
    helper.make_node("Div", ["one", "height_as_float"], ["step"]),
    helper.make_node("Mul", ["features", "step"], ["y"]),
]
ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3, 16, 16]) for name in "xy"]
constants = [numpy_helper.from_array(np.array(2), "axis"), numpy_helper.from_array(np.float32(1), "one")]
graph = helper.make_graph(nodes, "step", ends[:1], ends[1:], constants)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
onnx.checker.check_model(model, full_check=True)
x = np.random.default_rng(0).random((2, 3, 16, 16), np.float32)


def run(model):
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


right = x / 16
found = {"as it is": run(model), "onnxsim": run(onnxsim.simplify(model)[0]), "onnxslim": run(onnxslim.slim(model))}
for name, y in found.items():
    print(f"{name}: largest error {np.abs(y - right).max():.2g}, largest value {y.max():.2g}")
assert np.allclose(found["as it is"], right) and np.allclose(found["onnxsim"], right)
assert not found["onnxslim"].any(), "onnxslim divides as floats do now"
PYTHON
