#!/usr/bin/env bash
# PyTorch's exporter leaves divisor_override of average pooling out, without a word.
#
# Expected: AvgPool2d(3, divisor_override=5) is exported right or refused: ONNX's AveragePool has no such attribute.
# Happens: the file holds a plain AveragePool, so every value is 5/9 of what it should be. No error, no warning, the checker passes.
# Notice: compare the outputs with PyTorch's. Repair: divisor_override=1 is a sum; multiply the average yourself.
# Versions: torch 2.15.0, onnxscript 0.7.2, onnx 1.23.2, onnxruntime 1.32.0. Seen 2026-11-30. (The install takes some GB: it brings PyTorch.)
# Hurts: networks that sum over windows (divisor_override=1), as some attention and blur layers do.
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

import onnx
import onnxruntime
import torch

torch.manual_seed(0)
layer, x = torch.nn.AvgPool2d(3, divisor_override=5).eval(), torch.rand(1, 2, 9, 9)
said = io.StringIO()
with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), warnings.catch_warnings(record=True) as warned:
    torch.onnx.export(torch.nn.Sequential(layer), (x,), "pool.onnx", input_names=["x"])
onnx.checker.check_model("pool.onnx", full_check=True)
found = onnxruntime.InferenceSession("pool.onnx", providers=["CPUExecutionProvider"]).run(None, {"x": x.numpy()})[0]
ratio = torch.from_numpy(found) / layer(x)
operators = [node.op_type for node in onnx.load("pool.onnx").graph.node]
print("torch", torch.__version__, operators, f"file / PyTorch: {ratio.min():.4f} to {ratio.max():.4f}")
assert "divisor" not in said.getvalue() + " ".join(str(w.message) for w in warned), "the exporter speaks of it now"
assert torch.allclose(ratio, torch.full_like(ratio, 5 / 9)), "the divisor is kept now: this surprise is gone"
PYTHON
