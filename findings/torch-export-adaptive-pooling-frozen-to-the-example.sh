#!/usr/bin/env bash
# PyTorch exports adaptive pooling with free height and width, and freezes the windows of the example picture.
#
# Expected: with dynamic_shapes the file takes every size, as it says; whatever cannot be kept free makes the export fail.
# Happens: AdaptiveAvgPool2d((7, 7)) is right at the example's size. At twice that size the answers are wrong: the length of the windows is still the
#   example's, so a third of the pixels is not looked at. No error at the export, in the checker or at the run. (1, 1) is exported right; where
#   the example is a multiple of the output, even the output's size is wrong.
# Notice: compare with PyTorch at a second size, not at the example's alone.
# Versions: torch 2.15.0, onnxscript 0.7.2, onnx 1.23.2, onnxruntime 1.32.0. Seen 2026-11-30. (The install takes some GB: it brings PyTorch.)
# Hurts: networks with a pyramid of pools, and heads that keep some places; VGG and AlexNet fail at the next layer instead.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check numpy==2.4.6 onnx==1.23.2 onnxruntime==1.32.0 onnxscript==0.7.2 torch==2.15.0
venv/bin/python - <<'PYTHON'
import contextlib
import io
import logging
import warnings

import onnx
import onnxruntime
import torch

logging.disable(logging.CRITICAL)
warnings.simplefilter("ignore")
torch.manual_seed(0)
free, pool = torch.export.Dim.DYNAMIC, torch.nn.AdaptiveAvgPool2d((7, 7)).eval()
with contextlib.redirect_stdout(io.StringIO()):
    torch.onnx.export(
        torch.nn.Sequential(pool),
        (torch.zeros(2, 3, 13, 13),),
        "pool.onnx",
        input_names=["x"],
        dynamic_shapes=({0: free, 2: free, 3: free},),
        verbose=False,
    )
onnx.checker.check_model("pool.onnx", full_check=True)
session = onnxruntime.InferenceSession("pool.onnx", providers=["CPUExecutionProvider"])
print("torch", torch.__version__, "input of the file:", session.get_inputs()[0].shape)
off = {}
for size in (13, 26):
    x = torch.randn(2, 3, size, size)
    found, true = torch.from_numpy(session.run(None, {"x": x.numpy()})[0]), pool(x)
    off[size] = (found - true).abs().max().item()
    print(f"{size} x {size}: off by {off[size]:.1e}")
assert off[13] < 1e-5, "it is wrong at the example's size, too: another surprise"
assert off[26] > 0.1, "it is right at another size now: this surprise is gone"
PYTHON
