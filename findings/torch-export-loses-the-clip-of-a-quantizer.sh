#!/usr/bin/env bash
# PyTorch's exporter leaves out where a quantizer clips: seven bits become eight.
#
# Expected: quantize_per_tensor(x, scale, zero point, quant_min=0, quant_max=127, uint8), as reduce_range gives it, is exported with its limits, or refused.
# Happens: the file holds a plain QuantizeLinear, which clips where uint8 ends, at 255. What training clipped, the file lets through: with the scale
#   of 0.01 here 2.5 stays 2.5, where PyTorch says 1.27. No error, no warning, the checker passes.
# Notice: compare the quantized network in PyTorch with its file on inputs that exceed the calibrated range. Repair: quantize with the whole range of the type.
# Versions: torch 2.15.0, onnxscript 0.7.2, onnx 1.23.2, onnxruntime 1.32.0. Seen 2026-12-01. (The install takes some GB: it brings PyTorch.)
# Hurts: whoever trains with reduce_range (processors without VNNI need it), or with 4 bits kept in bytes, and ships the QDQ file.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check numpy==2.4.6 onnx==1.23.2 onnxruntime==1.32.0 onnxscript==0.7.2 torch==2.15.0
venv/bin/python - <<'PYTHON'
import contextlib
import io
import warnings

import numpy as np
import onnx
import onnxruntime
import torch
from torch.ao.quantization.fx import _decomposed  # noqa: F401, registers the operators that torchao's flow leaves

operators = torch.ops.quantized_decomposed
SEVEN_BITS = (0.01, 0, 0, 127, torch.uint8)


class Quantizer(torch.nn.Module):
    def forward(self, x):
        return operators.dequantize_per_tensor.default(operators.quantize_per_tensor.default(x, *SEVEN_BITS), *SEVEN_BITS)


x, said = torch.linspace(0, 2.5, 6)[None], io.StringIO()
with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), warnings.catch_warnings(record=True) as warned:
    torch.onnx.export(Quantizer().eval(), (x,), "quantizer.onnx", input_names=["x"])
assert "quant_max" not in said.getvalue() + " ".join(str(one.message) for one in warned), "the exporter speaks of it now"
onnx.checker.check_model("quantizer.onnx", full_check=True)
session = onnxruntime.InferenceSession("quantizer.onnx", providers=["CPUExecutionProvider"])
found, right = session.run(None, {"x": x.numpy()})[0], Quantizer()(x).numpy()
print([node.op_type for node in onnx.load("quantizer.onnx").graph.node], "PyTorch", right.round(2).tolist(), "file", found.round(2).tolist())
assert right.max() < 1.28 and np.allclose(found, x.numpy(), atol=0.006), "the limits are exported now"
PYTHON
