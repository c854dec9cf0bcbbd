"""What 10 says of its statistics and ranges, tried on data that turn the answer. Cells are found by their tags."""

import contextlib
import hashlib
import io

import numpy as np
import onnx
import pandas as pd
import pytest
import torch
from onnxruntime import quantization
from onnxruntime.quantization import CalibrationMethod, QuantType, quantize_static
from scipy import stats

from course import notebooks
from helpers import settings

CELLS = notebooks.read(settings.NOTEBOOKS / "10_int8_quantization.ipynb").cells
FLOAT_ROW = {"kl to": 0.05, "agrees": 0.95, "± agrees": 0.05}


def tagged(tag, **names):
    """Run the cells with a tag; return what they define."""
    for cell in CELLS:
        if tag in cell.metadata.get("tags", ()):
            exec(cell.source, names)
    return names


def test_other_photos_give_other_ranges_in_the_same_kernel(tmp_path):
    layers = [torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()]
    network, path = torch.nn.Sequential(*layers, torch.nn.Linear(4, 2)).eval(), tmp_path / "net.onnx"
    with contextlib.redirect_stderr(io.StringIO()):
        torch.onnx.export(network, (torch.zeros(1, 3, 8, 8),), path, input_names=["input"], external_data=False)
    kernel = {"contextlib": contextlib, "hashlib": hashlib, "io": io, "quantization": quantization}
    kernel |= {"CalibrationMethod": CalibrationMethod, "quantize_static": quantize_static}
    kernel["EIGHT_BITS"] = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
    kernel = tagged("to-int8", **kernel)
    for size in (1, 50):
        photo = np.full((1, 3, 8, 8), size, np.float32)
        kernel["calibration"] = {"bright": photo, "dark": -photo}
        content = onnx.load(kernel["to_int8"](path, "MinMax"))
        scales = {t.name: onnx.numpy_helper.to_array(t) for t in content.graph.initializer}
        assert scales["input_scale"] * 255 == pytest.approx(2 * size), "ranges of the photos before"


def test_a_typical_photos_interval_keeps_its_promise_where_the_plain_one_does_not():
    names = tagged("intervals", np=np, stats=stats)
    draws = np.random.default_rng(0).lognormal(0, 1, (2000, 7))
    too_low = np.mean([names["typical"](kl)[2] < 1 for kl in draws])
    assert too_low == pytest.approx(0.025, abs=0.01)
    assert np.mean([sum(names["by_photo"](kl)) < np.exp(0.5) for kl in draws]) > 0.1, "10 says that it misses more"
    assert names["typical"](np.zeros(7)) == pytest.approx(1e-9), "equal files have no KL, and need no logarithm of 0"


@pytest.mark.parametrize(
    "change, reason",
    [
        ({}, ""),
        ({"kl to": 0.2}, "KL"),
        ({"± agrees": 0.2}, "agreement"),
        ({"float share": 0.4}, "float"),
        ({"kl to": 0.2, "agrees": 0.5}, "KL, agreement"),
    ],
)
def test_the_check_names_what_it_refuses_a_file_for(change, reason):
    names = {"KL_LIMIT": 0.1, "AGREES_AT_LEAST": 0.8, "FLOAT_SHARE": 0.1, "pd": pd, "scores": {}}
    names |= {"scores": {"4 bits per tensor (fake)": {"kl to": 4, "agrees": 0, "± agrees": 0}}}
    assert tagged("acceptance", **names)["refused"](FLOAT_ROW | change) == reason
