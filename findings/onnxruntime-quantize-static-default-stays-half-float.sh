#!/usr/bin/env bash
# ONNX Runtime's quantize_static, with its defaults, leaves part of a network in float on x86, and nobody is told.
#
# Expected: a QDQ file quantized with the defaults runs its convolutions as integers.
# Happens: the default activations are signed. A signed Add of two branches (a residual connection) is not fused, and it keeps convolutions beside it
#   in float32, between pairs of QuantizeLinear and DequantizeLinear. With QuantType.QUInt8 activations all of them run as integers.
# Notice: count the operators of the optimised graph (optimized_model_filepath). Neither the file nor the log shows it.
# Versions: onnxruntime 1.32.0 on x86-64, onnx 1.23.2, numpy 2.4.6. Seen 2026-11-30.
# Hurts: whoever ships INT8 for x86 servers: the file is as small as expected, and slower than it could be.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check numpy==2.4.6 onnx==1.23.2 onnxruntime==1.32.0
venv/bin/python - <<'PYTHON'
import platform
import sys
from collections import Counter

import numpy as np
import onnx
import onnxruntime
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

if platform.machine().lower() not in ("x86_64", "amd64"):
    sys.exit("this surprise was seen on x86-64; this machine is another one")
graph = """<ir_version: 8, opset_import: ["": 17]>
g (float[1,8,16,16] x, float[8,8,3,3] w1, float[8,8,3,3] w2, float[8,8,3,3] w3) => (float[1,8,16,16] y) {
a = Conv<pads=[1,1,1,1]>(x, w1)
b = Relu(a)
c = Conv<pads=[1,1,1,1]>(b, w2)
d = Add(c, b)
e = Relu(d)
y = Conv<pads=[1,1,1,1]>(e, w3) }"""
model, rng = onnx.parser.parse_model(graph), np.random.default_rng(0)
for name in ("w1", "w2", "w3"):
    weights = (rng.standard_normal((8, 8, 3, 3)) / 8).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weights, name))
del model.graph.input[1:]
onnx.save(model, "float.onnx")


class Reader(CalibrationDataReader):
    def __init__(self):
        self.left = iter({"x": rng.standard_normal((1, 8, 16, 16)).astype(np.float32)} for _ in range(8))

    def get_next(self):
        return next(self.left, None)


def as_run(**types):
    """Quantize, and count the operators of the graph that ONNX Runtime makes of the file."""
    quantize_static("float.onnx", "int8.onnx", Reader(), **types)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = "run.onnx", 3
    onnxruntime.InferenceSession("int8.onnx", options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load("run.onnx").graph.node)


default, unsigned = as_run(), as_run(activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8)
for name, found in {"default": default, "QUInt8 activations": unsigned}.items():
    print("onnxruntime", onnxruntime.__version__, name, dict(found))
assert unsigned["QLinearConv"] == 3 and not unsigned["Conv"], "unsigned activations do not fuse any more"
assert default["QLinearConv"] == 1 and default["Conv"] == 2 and default["Add"] == 1, "the default fuses now: this surprise is gone"
PYTHON
