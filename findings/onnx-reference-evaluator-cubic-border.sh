#!/usr/bin/env bash
# onnx's reference evaluator reads beyond the edge in another way than the engines, in GridSample.
#
# Expected: the reference evaluator is what engines are judged by; its GridSample agrees with theirs to rounding.
# Happens: with mode "cubic" and padding_mode "border" they differ, for points just outside of the picture, by a fifth of a standard deviation here. "linear", and
#   the other two padding modes, agree. By hand, as PyTorch defines it, where such files come from: take the 4 x 4 neighbours of the point where it
#   is, then replace those outside by the edge's pixels. ONNX Runtime does that; the reference evaluator does not.
# Notice: compare with a second engine before you call an engine wrong.
# Versions: onnx 1.23.2, onnxruntime 1.32.0, numpy 2.4.6. Seen 2026-11-30.
# Hurts: networks that warp (spatial transformers, optical flow, augmentation inside the file), and tests that use the reference.
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

graph = """<ir_version: 9, opset_import: ["": 20]> g (float[1,1,5,5] x, float[1,1,1,2] grid) => (float[a,b,c,d] y) {
y = GridSample<mode="cubic", padding_mode="border", align_corners=1>(x, grid) }"""
model = onnx.parser.parse_model(graph)
session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def weights(t, a=-0.75):
    """Return the four weights of cubic convolution at t between the middle two."""
    near = lambda d: (a + 2) * d**3 - (a + 3) * d**2 + 1
    far = lambda d: a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
    return np.array([far(1 + t), near(t), near(1 - t), far(2 - t)])


def by_hand(x, column, row):
    """Sample one point; neighbours outside of the picture are its edge."""
    tops = [np.clip(np.arange(int(np.floor(at)) - 1, int(np.floor(at)) + 3), 0, 4) for at in (row, column)]
    return weights(row % 1) @ x[0, 0][np.ix_(*tops)] @ weights(column % 1)


rng = np.random.default_rng(0)
x = rng.standard_normal((1, 1, 5, 5)).astype(np.float32)
off = {"ONNX Runtime": 0.0, "reference evaluator": 0.0}
for _ in range(200):
    grid = rng.uniform(-1.3, 1.3, (1, 1, 1, 2)).astype(np.float32)  # some points lie outside of the picture
    true = by_hand(x, *((grid[0, 0, 0] + 1) / 2 * 4))
    for who, found in (
        ("ONNX Runtime", session.run(None, {"x": x, "grid": grid})[0]),
        ("reference evaluator", ReferenceEvaluator(model).run(None, {"x": x, "grid": grid})[0]),
    ):
        off[who] = max(off[who], abs(found.item() - true))
print("onnx", onnx.__version__, {who: f"off by {error:.1e}" for who, error in off.items()})
assert off["ONNX Runtime"] < 1e-4, "ONNX Runtime changed"
assert off["reference evaluator"] > 0.01, "the reference evaluator agrees now: this surprise is gone"
PYTHON
