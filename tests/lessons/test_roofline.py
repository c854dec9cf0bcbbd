"""Counts by hand, lower bounds by arithmetic, kernels by their results; no time decides."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import mobilenet_v3_small

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
    first = costs.loc["first", ["gflop", "mib", "intensity"]].tolist()
    assert first == pytest.approx([flop / 1e9, numbers * 4 / 2**20, flop / numbers / 4])
    assert costs.loc["third", "gflop"] == pytest.approx(2 * 2 * 16 * 9 * 16 / 1e9), "one channel in per channel out"
    assert costs.loc["head", "weights_mib"] == pytest.approx(85 * 4 / 2**20)
    assert list(costs.index) == ["first", "second", "third", "head"]
    assert list(costs["kind"]) == ["dense", "dense", "depthwise", "dense"]
    assert list(costs["winograd"]) == [True, False, False, False]


def test_pytorch_counts_as_many_operations():
    model, x = mobilenet_v3_small(weights=None).eval(), torch.zeros(1, 3, 64, 64)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    costs = roofline.layer_costs(model, x.shape)
    assert costs["gflop"].sum() * 1e9 == pytest.approx(counter.get_total_flops())
    assert (costs["kind"] == "depthwise").sum() == 11


def test_the_lower_bound_is_the_longer_of_computing_and_moving():
    costs = pd.DataFrame({"kind": ["dense", "dense", "depthwise"], "gflop": [1, 0.001, 1], "mib": [1.0, 100.0, 1.0]})
    bound = roofline.lower_bound_ms(costs, gflops=100, depthwise_gflops=20, gb_per_s=10)
    assert bound.tolist() == pytest.approx([10.0, 100 * 2**20 / 10e9 * 1e3, 50.0])


def test_the_fastest_run_counts_and_the_first_is_not_timed(monkeypatch):
    calls = []
    monkeypatch.setattr(roofline.timeit, "repeat", lambda run, number, repeat: [0.3, 0.2, 0.4][:repeat])
    assert roofline.fastest_ms(lambda: calls.append(1), runs=3) == pytest.approx(200)
    assert len(calls) == 1


def test_bandwidth_goes_from_small_to_large_within_the_free_memory(monkeypatch):
    monkeypatch.setattr(roofline.memory, "available_mib", lambda: 48.0)
    table = roofline.bandwidth(runs=1)
    assert list(table["kernel"].unique()) == ["read", "triad"]
    assert table.loc[table["kernel"] == "read", "mib"].tolist() == [4, 8, 12]
    assert (table["gb_per_s"] > 0).all()


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(roofline, "PRODUCTS", (16,))
    monkeypatch.setattr(roofline, "CONVOLUTIONS", ((1, 8, 8, 3, 8, 1),))
    monkeypatch.setattr(roofline, "DEPTHWISE", ((1, 8, 8, 3, 8, 8),))


def test_every_kernel_computes_what_it_says(small):
    flops = {"16³ product": 2 * 16**3, "dense conv": 2 * 8 * 8 * 9 * 64, "depthwise conv": 2 * 8 * 9 * 64}
    sums = {"16³ product": 16, "dense conv": 72, "depthwise conv": 9}  # of ones
    kernels = list(roofline._kernels("fp32", 1, None))
    assert [library for library, *_ in kernels] == ["PyTorch", "ONNX Runtime"] * 3
    for _, _, operation, flop, run in kernels:
        name = next(name for name in flops if operation.startswith(name))
        values = np.squeeze(run())
        assert flop == flops[name], operation
        assert values.shape in {(16, 16), (8, 8, 8)} and values[..., 1, 1].max() == values.max() == sums[name]


def test_what_cannot_run_is_a_row_that_says_so(small, monkeypatch):
    monkeypatch.setattr(roofline, "has_bf16", lambda: False)
    table = roofline.peaks(threads=1, runs=2, precisions=("fp32", "bf16"))
    lacking = table[table["precision"] == "bf16"]
    assert lacking["gflops"].isna().all() and lacking["note"].str.contains("no bf16 instructions").all()
    assert (table.loc[table["precision"] == "fp32", "gflops"] > 0).all()
    assert set(table["kind"]) >= {"dense", "depthwise"}
