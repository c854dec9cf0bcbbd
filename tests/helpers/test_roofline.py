"""Counts against hand counts, floors against arithmetic, peaks and profiles for their form; no time decides."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from helpers import models, roofline


class Residual(nn.Module):
    """Two convolutions, the second with a shortcut, as ONNX Runtime fuses them."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = torch.relu(self.first(x))
        x = torch.relu(self.second(x) + x)
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    path = tmp_path_factory.mktemp("roofline") / "residual.onnx"
    torch.onnx.export(
        Residual().eval(), (torch.zeros(1, 3, 8, 8),), path, input_names=["input"], external_data=False, verbose=False
    )
    return path


def test_layers_are_counted_as_by_hand():
    costs = roofline.layer_costs(Residual(), (2, 3, 8, 8)).set_index("layer")
    flop = 2 * 2 * 16 * 3 * 9 * 64  # two operations, batch, channels out and in, kernel, positions
    numbers = 2 * 3 * 64 + 2 * 16 * 64 + (16 * 3 * 9 + 16)  # input, output, weights and bias
    assert costs.loc["first", "gflop"] == pytest.approx(flop / 1e9)
    assert costs.loc["first", "mib"] == pytest.approx(numbers * 4 / 2**20)
    assert costs.loc["first", "intensity"] == pytest.approx(flop / numbers / 4)
    assert list(costs.index) == ["first", "second", "head"]
    assert list(costs["kind"]) == ["conv 3×3", "conv 3×3", "linear"]


def test_smaller_numbers_move_fewer_bytes():
    four, one = (roofline.layer_costs(Residual(), (1, 3, 8, 8), bytes_per_number=n) for n in (4, 1))
    assert (four["mib"] / one["mib"] == 4).all() and (four["gflop"] == one["gflop"]).all()


def test_known_sizes_of_the_networks():
    costs = {
        name: roofline.layer_costs(models.load_model(name, weights="stand-in")[0], (1, 3, 224, 224))
        for name in models.NETWORKS
    }
    assert costs["resnet18"]["gflop"].sum() == pytest.approx(3.63, abs=0.01)
    assert costs["mobilenet_v3_small"]["gflop"].sum() == pytest.approx(0.113, abs=0.003)
    assert (costs["mobilenet_v3_small"]["kind"] == "depthwise").sum() == 11


def test_the_model_stays_as_it_is():
    model = Residual().train()
    roofline.layer_costs(model, (1, 3, 8, 8))
    assert model.training and next(model.parameters()).device.type == "cpu"
    assert not any(module._forward_hooks for module in model.modules())


def test_the_floor_is_the_longer_of_computing_and_moving():
    costs = pd.DataFrame({"gflop": [1.0, 0.001], "mib": [1.0, 100.0]})
    floor = roofline.floor_ms(costs, gflops=100, gb_per_s=10)
    assert floor.tolist() == pytest.approx([10.0, 100 * 2**20 / 10e9 * 1e3])


def test_bandwidth_counts_each_array_once():
    table = roofline.bandwidth(runs=5, array_mib=1)
    assert list(table["kernel"]) == ["copy: a = b", "triad: a = b + 3·c"]
    assert (table["gb_per_s"] > 0).all() and (table["array_mib"] == 1).all()


def test_short_memory_makes_smaller_arrays_and_says_so(monkeypatch):
    monkeypatch.setattr(roofline.memory, "available_mib", lambda: 16.0)
    table = roofline.bandwidth(runs=5)
    assert (table["array_mib"] == 2).all() and table["note"].str.contains("memory is short").all()


def test_arrays_are_larger_than_the_cache(monkeypatch, tmp_path):
    (tmp_path / "index0").mkdir()
    (tmp_path / "index0" / "size").write_text("32K\n")
    (tmp_path / "index3").mkdir()
    (tmp_path / "index3" / "size").write_text("98304K\n")
    monkeypatch.setattr(roofline, "CACHE_SIZES", tmp_path)
    assert roofline.last_level_cache_mib() == 96
    monkeypatch.setattr(roofline, "CACHE_SIZES", tmp_path / "nowhere")
    assert roofline.last_level_cache_mib() == 0, "unknown, as on macOS and Windows"


def test_every_kernel_computes_what_it_says(monkeypatch):
    monkeypatch.setattr(roofline, "PRODUCTS", (16,))
    monkeypatch.setattr(roofline, "CONVOLUTIONS", ((1, 8, 8, 3, 8),))
    for precision in roofline.PRECISIONS:
        for library, operation, flop, make in roofline._kernels(precision, 1, None):
            if precision == "bf16" and not roofline.has_bf16():
                continue
            try:
                result = make()()
            except RuntimeError as error:
                assert (library, precision) == ("PyTorch", "int8"), f"{library} {operation} {precision}: {error}"
                continue
            values = np.asarray(result[0] if isinstance(result, list) else torch.as_tensor(result).float())
            if "product" in operation:
                assert flop == 2 * 16**3
                assert (values == 16).all(), f"{library} {precision}: a product of ones is {values.ravel()[0]}"
            else:
                assert flop == 2 * 8 * 8 * 9 * 64 and values.shape == (1, 8, 8, 8)


def test_a_processor_without_bf16_gets_rows_that_say_so(monkeypatch):
    monkeypatch.setattr(roofline, "has_bf16", lambda: False)
    monkeypatch.setattr(roofline, "PRODUCTS", (16,))
    monkeypatch.setattr(roofline, "CONVOLUTIONS", ((1, 8, 8, 3, 8),))
    table = roofline.peaks(threads=1, runs=5, precisions=("fp32", "bf16"))
    lacking = table[table["precision"] == "bf16"]
    assert lacking["gflops"].isna().all() and lacking["note"].str.contains("no bf16 instructions").all()
    assert table.loc[table["precision"] == "fp32", "gflops"].notna().all()
    assert not math.isnan(table["gflops"].max())


def test_profiled_nodes_find_their_layers(exported, tmp_path):
    x = np.zeros((1, 3, 8, 8), np.float32)
    nodes = roofline.profile_nodes(exported, x, threads=1, runs=3, folder=tmp_path)
    assert [layer for layer in nodes["layer"] if layer] == ["first", "second", "head"], nodes.to_string()
    assert (nodes["ms"] >= 0).all()
    assert list(tmp_path.iterdir()) == [], "the profile is left behind"


def test_the_roof_bends_at_the_border():
    ax = roofline.plot(roofs={"fp32": 100.0}, gb_per_s=10.0)
    x, y = ax.lines[0].get_data()
    assert y.max() == 100.0 and y[x < 10] == pytest.approx(x[x < 10] * 10.0)
    assert ax.get_xlabel() and ax.get_ylabel() == "GFLOP/s"
