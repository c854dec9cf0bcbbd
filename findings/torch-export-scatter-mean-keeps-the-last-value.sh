#!/usr/bin/env bash
# PyTorch's exporter turns a scattered mean into "the last one wins", without a word.
#
# Expected: scatter_reduce(..., "mean") is exported as a sum divided by a count, or refused: ONNX's ScatterElements has no mean.
# Happens: the node gets reduction="none": of several values for one place the last is kept. Sum, product, largest and smallest are right.
#   No error, no warning, the checker passes, and where no two values meet the answers are even right.
# Notice: compare with PyTorch on an input where values meet. Repair: scatter the sum and a count of ones, and divide.
# Versions: torch 2.15.0, onnxscript 0.7.2, onnx 1.23.2, onnxruntime 1.32.0. Seen 2026-12-01. (The install takes some GB: it brings PyTorch.)
# Hurts: vision transformers that merge tokens (they average them so), point clouds and graphs.
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


class Merge(torch.nn.Module):
    def forward(self, tokens, places):
        return torch.zeros_like(tokens[:, :3]).scatter_reduce(1, places, tokens, "mean", include_self=False)


torch.manual_seed(0)
tokens, places = torch.rand(2, 6), torch.tensor([[0, 0, 1, 2, 2, 2]] * 2)
said = io.StringIO()
with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), warnings.catch_warnings(record=True) as warned:
    torch.onnx.export(Merge().eval(), (tokens, places), "merge.onnx", input_names=["tokens", "places"])
assert "mean" not in said.getvalue() + " ".join(str(one.message) for one in warned), "the exporter speaks of it now"
onnx.checker.check_model("merge.onnx", full_check=True)
session = onnxruntime.InferenceSession("merge.onnx", providers=["CPUExecutionProvider"])
found = session.run(None, {"tokens": tokens.numpy(), "places": places.numpy()})[0]
print("PyTorch", Merge()(tokens, places)[0].tolist(), "file", found[0].tolist())
assert np.allclose(found, tokens[:, [1, 2, 5]].numpy()), "not the last values: this surprise is gone or another"
PYTHON
