#!/usr/bin/env bash
# ONNX Runtime pools with auto_pad SAME and dilations, and gives a smaller picture.
#
# Expected: SAME means "as large as the input, divided by the stride", whatever the dilation. So the padding grows with it.
# Happens: MaxPool and AveragePool pad as if there were no dilation: 7 x 7 become 5 x 5. No error. onnx's shape inference and its reference
#   evaluator say 7 x 7. A convolution with the same attributes is refused ("Dilation not supported"), which is what one would wish here, too.
# Notice: the output's shape; later layers may take another size without a word (global pooling does). Repair: write explicit pads.
# Versions: onnxruntime 1.32.0, onnx 1.23.2, numpy 2.4.6. Seen 2026-11-30.
# Hurts: dilated networks that come from frameworks with SAME padding.
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

onnxruntime.set_default_logger_severity(3)
x = np.arange(49, dtype=np.float32).reshape(1, 1, 7, 7)
for operator, opset in (("MaxPool", 12), ("AveragePool", 19)):
    graph = f"""<ir_version: 8, opset_import: ["": {opset}]> g (float[1,1,7,7] x) => (float[a,b,c,d] y) {{
    y = {operator}<kernel_shape=[3,3], dilations=[2,2], auto_pad="SAME_UPPER">(x) }}"""
    model = onnx.parser.parse_model(graph)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    runs, reference = session.run(None, {"x": x})[0].shape, ReferenceEvaluator(model).run(None, {"x": x})[0].shape
    print("onnxruntime", onnxruntime.__version__, operator, runs, "reference evaluator", reference)
    assert reference == x.shape, "the reference evaluator changed"
    assert runs == (1, 1, 5, 5), "ONNX Runtime pads for the dilation now: this surprise is gone"
PYTHON
