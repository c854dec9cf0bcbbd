#!/usr/bin/env bash
# ONNX Runtime's "Entropy" calibration gives the same ranges as "MinMax".
#
# Expected: entropy calibration looks for the range that loses least information, so it cuts off a lonely outlier.
#   That is what one pays for: it keeps every activation of every calibration picture in memory.
# Happens: with the default options it starts from 128 bins and looks for 128 quantized bins. There is nothing to
#   choose, so the range is the one from the smallest to the largest value. With num_bins=2048 it does cut.
# Notice: the INT8 files of both methods are equal. Repair: Percentile, or create_calibrator with more bins; quantize_static hands no number of bins on.
# Versions: onnxruntime 1.32.0, onnx 1.23.2, numpy 2.4.6. Seen 2026-11-30.
# Hurts: whoever calibrates an INT8 classifier with Entropy because MinMax was too coarse.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check numpy==2.4.6 onnx==1.23.2 onnxruntime==1.32.0
venv/bin/python - <<'PYTHON'
import contextlib
import io

import numpy as np
import onnx
import onnxruntime
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod
from onnxruntime.quantization.calibrate import create_calibrator

graph = '<ir_version: 8, opset_import: ["": 17]> g (float[1,1,300,300] x) => (float[1,1,300,300] y) { y = Relu(x) }'
onnx.save(onnx.parser.parse_model(graph), "relu.onnx")
x = np.random.default_rng(0).standard_normal((1, 1, 300, 300)).astype(np.float32)  # 90,000 values within 5
x[0, 0, 0, 0] = 100  # and one far away


class Reader(CalibrationDataReader):
    def __init__(self):
        self.left = iter([{"x": x}])

    def get_next(self):
        return next(self.left, None)


def upper(method, **options):
    """Return the upper end of the range that a method finds for the input."""
    with contextlib.redirect_stdout(io.StringIO()):
        found = create_calibrator("relu.onnx", ["Relu"], "augmented.onnx", method, extra_options=options)
        found.collect_data(Reader())
        return float(np.squeeze(found.compute_data()["x"].range_value[1]))


ends = {
    "MinMax": upper(CalibrationMethod.MinMax),
    "Entropy": upper(CalibrationMethod.Entropy),
    "Entropy, 2048 bins": upper(CalibrationMethod.Entropy, num_bins=2048),
}
print("onnxruntime", onnxruntime.__version__, {name: round(end, 2) for name, end in ends.items()})
assert ends["Entropy"] == ends["MinMax"] == 100, "Entropy cuts now: this surprise is gone"
assert ends["Entropy, 2048 bins"] < 20, "with more bins it does not cut either: another surprise"
PYTHON
