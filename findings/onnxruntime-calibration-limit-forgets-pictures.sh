#!/usr/bin/env bash
# ONNX Runtime's limit on kept outputs makes MinMax calibration forget most pictures.
#
# Expected: CalibMaxIntermediateOutputs bounds the memory of calibration: each time so many outputs are kept, their range is taken, then they go.
# Happens: with MinMax they go without their range. The scales come from the pictures after the last multiple of the limit only: of six pictures, limit 4, the
#   last two. The first held the largest value, 10; the scale is that of 1. (Where the limit divides the number of pictures: "No data is collected.")
# Notice: compare the scales with those of a run without the limit. Repair: CalibStridedMinMax with a reader that has set_range, or no limit.
# Versions: onnxruntime 1.32.0, onnx 1.23.2, numpy 2.4.6. Seen 2026-12-01.
# Hurts: whoever calibrates on hundreds of pictures and looks for an option against running out of memory.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check numpy==2.4.6 onnx==1.23.2 onnxruntime==1.32.0
venv/bin/python - <<'PYTHON'
import logging

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

logging.disable(logging.WARNING)
ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 1, 2, 2]) for name in "xy"]
weights = [numpy_helper.from_array(np.ones((1, 1, 1, 1), np.float32), "w")]
graph = helper.make_graph([helper.make_node("Conv", ["x", "w"], ["y"], name="conv")], "one", ends[:1], ends[1:], weights)
onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), "one.onnx")


class Reader(CalibrationDataReader):
    def __init__(self):
        self.left = iter([{"x": np.full((1, 1, 2, 2), value, np.float32)} for value in (10, 1, 2, 3, 1, 1)])

    def get_next(self):
        return next(self.left, None)


largest = {}
for limit in (None, 4):
    extra = {} if limit is None else {"CalibMaxIntermediateOutputs": limit}
    quantize_static("one.onnx", "int8.onnx", Reader(), activation_type=QuantType.QUInt8, extra_options=extra)
    scales = {one.name: numpy_helper.to_array(one) for one in onnx.load("int8.onnx").graph.initializer}
    largest[limit] = round(float(scales["x_scale"]) * 255, 3)
print("largest value that the scale of the input covers, by limit:", largest)
assert largest[None] == 10
assert largest[4] == 1, "the limit forgets nothing now"
PYTHON
