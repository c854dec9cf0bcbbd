#!/usr/bin/env bash
# onnx's shape inference promises one row and one column that no engine makes.
#
# Expected: infer_shapes gives the shape that comes out when the file runs.
# Happens: MaxPool with ceil_mode=1 drops a last window that would begin in the padding at the end (as PyTorch does, where such files
#   come from). ONNX Runtime and onnx's own reference evaluator do so. Shape inference counts that window: 5 instead of 4.
#   The full check passes. Tools that fold shapes into constants then write the wrong number into the file.
# Notice: ONNX Runtime warns "Expected shape from model of ... does not match actual shape" if the output's shape is in the file.
# Versions: onnx 1.23.2, onnxruntime 1.32.0, numpy 2.4.6. Seen 2026-11-30.
# Hurts: networks with ceil_mode pools, and whoever trusts the shapes that a viewer shows.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check numpy==2.4.6 onnx==1.23.2 onnxruntime==1.32.0
venv/bin/python - <<'PYTHON'
import numpy as np
import onnx
import onnxruntime
from onnx.reference import ReferenceEvaluator

graph = """<ir_version: 8, opset_import: ["": 17]> g (float[1,1,11,11] x) => (float[a,b,c,d] y) {
y = MaxPool<kernel_shape=[3,3], strides=[3,3], pads=[1,1,1,1], ceil_mode=1>(x) }"""
model = onnx.parser.parse_model(graph)
x = np.arange(121, dtype=np.float32).reshape(1, 1, 11, 11)
session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
runs, reference = session.run(None, {"x": x})[0].shape, ReferenceEvaluator(model).run(None, {"x": x})[0].shape
inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
onnx.checker.check_model(inferred, full_check=True)
promised = tuple(axis.dim_value for axis in inferred.graph.output[0].type.tensor_type.shape.dim)
print("onnx", onnx.__version__, "inferred", promised, "ONNX Runtime", runs, "reference evaluator", reference)
assert runs == reference == (1, 1, 4, 4), "the engines changed"
assert promised == (1, 1, 5, 5), "shape inference agrees now: this surprise is gone"
PYTHON
