"""helpers/roofline.py: counts by hand, floors by arithmetic, kernels by their results; no time decides."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from helpers import models
from notebooks.lessons import roofline


class Residual(nn.Module):
    """Two convolutions, the second with a shortcut, a depthwise one and a linear layer."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 16, 3, padding=1, stride=2)
        self.third = nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = torch.relu(self.second(self.first(x)))
        return self.head((self.third(x) + x).mean((2, 3)))


def test_layers_are_counted_as_by_hand():
    model = Residual().train()
    costs = roofline.layer_costs(model, (2, 3, 8, 8)).set_index("layer")
    assert model.training and next(model.parameters()).device.type == "cpu", "the model stays as it is"
    flop = 2 * 2 * 16 * 3 * 9 * 64  # two operations, batch, channels out and in, kernel, positions
    numbers = 2 * 3 * 64 + 2 * 16 * 64 + (16 * 3 * 9 + 16)  # input, output, weights and bias
    assert costs.loc["first", "gflop"] == pytest.approx(flop / 1e9)
    assert costs.loc["first", "mib"] == pytest.approx(numbers * 4 / 2**20)
    assert costs.loc["first", "intensity"] == pytest.approx(flop / numbers / 4)
    assert costs.loc["third", "gflop"] == pytest.approx(2 * 2 * 16 * 9 * 16 / 1e9), (
        "one channel in for each channel out"
    )
    assert costs.loc["head", "weights_mib"] == pytest.approx(85 * 4 / 2**20)
    assert list(costs.index) == ["first", "second", "third", "head"]
    assert list(costs["kind"]) == ["dense", "dense", "depthwise", "dense"]
    assert list(costs["winograd"]) == [True, False, False, False]
    int8 = roofline.layer_costs(Residual(), (2, 3, 8, 8), bytes_per_number=1).set_index("layer")
    assert (costs["mib"] / int8["mib"] == 4).all() and (costs["gflop"] == int8["gflop"]).all()


@pytest.mark.parametrize(("name", "gflop", "depthwise"), [("resnet18", 3.63, 0), ("mobilenet_v3_small", 0.113, 11)])
def test_known_sizes_of_the_networks(name, gflop, depthwise):
    costs = roofline.layer_costs(models.load_model(name, weights="stand-in")[0], (1, 3, 224, 224))
    assert costs["gflop"].sum() == pytest.approx(gflop, rel=0.03)
    assert (costs["kind"] == "depthwise").sum() == depthwise


def test_the_floor_is_the_longer_of_computing_and_moving():
    costs = pd.DataFrame(
        {"kind": ["dense", "dense", "depthwise"], "gflop": [1.0, 0.001, 1.0], "mib": [1.0, 100.0, 1.0]}
    )
    moving = 100 * 2**20 / 10e9 * 1e3
    floor = roofline.floor_ms(costs, gflops=100, gb_per_s=10)
    assert floor.tolist() == pytest.approx([10.0, moving, 10.0])
    floor = roofline.floor_ms(costs, gflops=100, gb_per_s=10, depthwise_gflops=20)
    assert floor.tolist() == pytest.approx([10.0, moving, 50.0])


def test_the_fastest_run_counts_and_the_first_does_not():
    ticks = itertools.chain.from_iterable((second, second + length) for second, length in enumerate((0.3, 0.2, 0.4)))
    calls = []
    assert roofline.fastest_ms(lambda: calls.append(1), runs=3, clock=lambda: next(ticks)) == pytest.approx(200)
    assert len(calls) == 4


def test_bandwidth_goes_from_small_to_large(monkeypatch):
    table = roofline.bandwidth(runs=2, most_mib=16)
    assert list(table["kernel"].unique()) == ["read", "triad"]
    assert table.loc[table["kernel"] == "read", "mib"].tolist() == [4, 8, 16]
    assert (table["gb_per_s"] > 0).all()
    monkeypatch.setattr(roofline.memory, "available_mib", lambda: 32.0)
    assert roofline.bandwidth(runs=2)["mib"].max() == 8, "a quarter of the free memory"


def test_the_last_cache_is_found_or_unknown(monkeypatch, tmp_path):
    for index, size in {"index0": "32K", "index3": "98304K"}.items():
        (tmp_path / index).mkdir()
        (tmp_path / index / "size").write_text(f"{size}\n")
    monkeypatch.setattr(roofline, "CACHE_SIZES", tmp_path)
    assert roofline.last_level_cache_mib() == 96
    monkeypatch.setattr(roofline, "CACHE_SIZES", tmp_path / "nowhere")
    assert roofline.last_level_cache_mib() == 0, "unknown, as on macOS and Windows"


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(roofline, "PRODUCTS", (16,))
    monkeypatch.setattr(roofline, "CONVOLUTIONS", ((1, 8, 8, 3, 8, 1),))
    monkeypatch.setattr(roofline, "DEPTHWISE", ((1, 8, 8, 3, 8, 8),))


def test_every_kernel_computes_what_it_says(small):
    flops = {"16": 2 * 16**3, "conv": 2 * 8 * 8 * 9 * 64, "depthwise": 2 * 8 * 9 * 64}
    for precision in ("fp32", "int8"):
        for library, operation, flop, make in roofline._kernels(precision, 1, None):
            if (library, precision) == ("PyTorch", "int8"):
                continue  # not on every processor: the next test
            result = make()()
            values = np.asarray(result[0] if isinstance(result, list) else torch.as_tensor(result).detach().float())
            assert flop == flops[operation.replace("³", " ").split()[0]], operation
            assert values.shape == (16, 16) if "product" in operation else (1, 8, 8, 8), operation
            assert library == "PyTorch" or (values[..., 1, 1] == values.max()).all(), (
                f"{operation}: ones in, equal sums out"
            )


def test_what_cannot_run_is_a_row_that_says_so(small, monkeypatch):
    monkeypatch.setattr(roofline, "has_bf16", lambda: False)
    table = roofline.peaks(threads=1, runs=2, precisions=("fp32", "bf16"))
    lacking = table[table["precision"] == "bf16"]
    assert lacking["gflops"].isna().all() and lacking["note"].str.contains("no bf16 instructions").all()
    assert (table.loc[table["precision"] == "fp32", "gflops"] > 0).all()
    assert set(table["kind"]) == {"dense", "depthwise"}
