"""A network small enough to train in a lesson, on scikit-learn's digits. For notebooks/10_int8_quantization.ipynb."""

import copy
from typing import Any

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

from helpers import graph, settings


def split() -> list[torch.Tensor]:
    """Return 1,437 training and 360 test digits and their classes: x, x, y, y; float32 (digits, 1, 8, 8), 0 to 1."""
    digits = load_digits()
    x, y = torch.tensor(digits.images[:, None], dtype=torch.float32) / 16, torch.tensor(digits.target)
    return train_test_split(x, y, test_size=360, random_state=settings.SEED, stratify=y)


class Block(nn.Module):
    """Two convolutions and a shortcut, as in ResNet."""

    def __init__(self, channels: int) -> None:
        """Build the layers with random weights."""
        super().__init__()
        self.first, self.second = convolution(channels, channels), convolution(channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return as many channels of the same size."""
        return torch.relu(x + self.second(torch.relu(self.first(x))))


def convolution(before: int, after: int) -> nn.Sequential:
    """Return a convolution of 3 x 3 and batch normalisation."""
    return nn.Sequential(nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after))


def network() -> nn.Module:
    """Return a residual network of six layers with seeded random weights, input (N, 1, 8, 8), output (N, 10)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.SEED)
        stem, narrow = [convolution(1, 16), nn.ReLU(), Block(16), nn.MaxPool2d(2)], [convolution(16, 32), nn.ReLU()]
        return nn.Sequential(*stem, *narrow, Block(32), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


def train(model: nn.Module, x: torch.Tensor, y: torch.Tensor, *, epochs: int, rate: float) -> None:
    """Train in place, always in the same order of digits; the rate falls to 0 along a cosine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # layers so small take longer on several
    order = torch.Generator().manual_seed(settings.SEED)
    optimizer = torch.optim.Adam(model.parameters(), rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for some in torch.randperm(len(x), generator=order).split(64):
            loss = nn.functional.cross_entropy(model(x[some]), y[some])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
    torch.set_num_threads(threads)


def with_torchao(model: nn.Module, x: torch.Tensor, y: torch.Tensor, *, reduce_range: bool, **how: Any) -> nn.Module:
    """Return a copy, trained on with torchao's rounding to eight bits in it, then converted; the model stays."""
    with graph.capture_logs():  # torch's advice about torchao's own code
        from torchao.quantization import pt2e
        from torchao.quantization.pt2e import quantize_pt2e
        from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

        recipe = x86.get_default_x86_inductor_quantization_config(is_qat=True, reduce_range=reduce_range)
        shapes = ({0: torch.export.Dim("batch")},)
        own = copy.deepcopy(model).eval()  # an exported program shares its weights with what it was made of
        for pair in own.modules():  # fold batch normalisation, for which torchao would export 120 patterns: a minute
            if isinstance(pair, nn.Sequential) and isinstance(pair[1], nn.BatchNorm2d):
                pair[0], pair[1] = nn.utils.fuse_conv_bn_eval(pair[0], pair[1]), nn.Identity()  # type: ignore[type-var]  # it is a Conv2d
        program = torch.export.export(own, (x[:2],), dynamic_shapes=shapes, strict=True).module()
        prepared = quantize_pt2e.prepare_qat_pt2e(program, x86.X86InductorQuantizer().set_global(recipe))
        pt2e.move_exported_model_to_train(prepared)
        train(prepared, x, y, **how)
        pt2e.move_exported_model_to_eval(prepared)
        return quantize_pt2e.convert_pt2e(prepared)
