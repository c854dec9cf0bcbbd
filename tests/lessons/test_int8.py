"""What 10 says of its check and its calibration, tried on data that turn the answer. Cells are found by their tags."""

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
from scipy.spatial.distance import cdist

from course import notebooks
from helpers import settings
from notebooks.lessons import int8

CELLS = notebooks.read(settings.NOTEBOOKS / "10_int8_quantization.ipynb").cells
SOURCES = [cell.source for cell in CELLS if "to-int8" in cell.metadata.get("tags", ())]
TRUTH = np.random.default_rng(0).normal(size=(60, 10))
GOOD = {"logits": TRUTH + 0.01, "change": SimpleNamespace(low=-0.02), "kl to": 0.05, "integer": 50, "float": 1}
LIMITS = {"LOSS_LIMIT": 0.05, "KL_LIMIT": 0.1, "FLOAT_SHARE": 0.1, "np": np, "cdist": cdist}


def refused(row):
    """Run the notebook's check."""
    names = dict(LIMITS)
    (cell,) = (cell for cell in CELLS if "acceptance" in cell.metadata.get("tags", ()))
    exec(cell.source, names)
    return names["refused"](row, TRUTH)


@pytest.mark.parametrize(
    "change, reason",
    [
        ({}, ""),
        ({"change": SimpleNamespace(low=-0.2)}, "accuracy"),
        ({"kl to": 0.2}, "KL"),
        ({"kl to": float("nan")}, "KL"),
        ({"logits": TRUTH[:, [1, 0, *range(2, 10)]]}, "classes moved"),
        ({"integer": 30, "float": 20}, "float"),
        ({"integer": 0, "float": 50}, ""),
    ],
)
def test_the_check_names_what_it_refuses_a_file_for(change, reason):
    assert refused(GOOD | change) == reason


def small(path, size=8, channels=4):
    """Write a network of two convolutions; return the path."""
    graph = f"""<ir_version: 8, opset_import: ["": 17]>
    g (float[N,3,{size},{size}] input) => (float[N,{channels},{size},{size}] y) {{
      a = Conv<pads=[1,1,1,1]>(input, w1, b1)
      r = Relu(a)
      y = Conv<pads=[1,1,1,1]>(r, w2, b2) }}"""
    graph = graph.replace("input) =>", f"input, float[{channels},3,3,3] w1, float[{channels}] b1, "
                          f"float[{channels},{channels},3,3] w2, float[{channels}] b2) =>")  # fmt: skip
    model, rng = onnx.parser.parse_model(graph), np.random.default_rng(0)
    for value in list(model.graph.input)[1:]:
        shape = [axis.dim_value for axis in value.type.tensor_type.shape.dim]
        model.graph.initializer.append(onnx.numpy_helper.from_array(rng.normal(size=shape).astype("f4"), value.name))
    del model.graph.input[1:]
    for number, node in enumerate(model.graph.node):
        node.name = f"n{number}"
    onnx.save(model, path)
    return path


def test_corrected_biases_bring_the_means_back(tmp_path):
    x = np.random.default_rng(1).normal(size=(6, 3, 8, 8)).astype(np.float32)
    names = {"CalibrationDataReader": CalibrationDataReader}
    exec(SOURCES[0], names)
    source, plain, target = small(tmp_path / "f.onnx"), tmp_path / "q.onnx", tmp_path / "c.onnx"
    quantize_static(source, plain, names["Reader"](x), activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8)
    assert set(int8.correct_biases(source, plain, x, target)) == {"n0", "n2"}

    def off(path):
        found, wanted = ([a[n.output[0]] for n, a in int8._walk(onnx.load(p), x)][-1] for p in (path, source))
        return np.abs(found.mean((0, 2, 3)) - wanted.mean((0, 2, 3))).max()

    assert off(target) < off(plain) / 3


PEAK = """
import sys
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, quantize_static
import numpy as np
from helpers.speed import memory
exec(open(sys.argv[1]).read())
class Pictures:
    def __len__(self): return int(sys.argv[4])
    def __getitem__(self, at): return np.random.default_rng(at).normal(size=(3, 224, 224)).astype(np.float32)
quantize_static(sys.argv[2], sys.argv[3], Reader(Pictures()), calibrate_method=CalibrationMethod.Percentile,
                extra_options={"CalibStridedMinMax": 1})
print(memory._peak_rss_mib(), file=sys.stderr)
"""


def test_sixty_pictures_calibrate_in_the_memory_of_nine(tmp_path):
    (tmp_path / "reader.py").write_text(SOURCES[0], encoding="utf-8")
    source = small(tmp_path / "f.onnx", size=224, channels=16)
    peaks = []
    for count in (9, 60):
        arguments = [tmp_path / "reader.py", source, tmp_path / "q.onnx", count]
        ran = subprocess.run(
            [sys.executable, "-c", PEAK, *map(str, arguments)],
            cwd=settings.ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        peaks.append(float(ran.stderr.split()[-1]))
    assert peaks[1] <= 1.2 * peaks[0], "calibration keeps every picture's activations"
