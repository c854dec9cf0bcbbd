"""helpers/export.py: a right file passes at every batch and size; a frozen one is refused, and its node named."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import VisionTransformer

from helpers import export


class Flat(nn.Module):
    """Its reshape holds the example's batch, once the old exporter has run the Python."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3 * 8 * 8, 5)

    def forward(self, x):
        return self.layer(x.reshape(int(x.shape[0]), -1))


class Upscaled(nn.Module):
    """Its output's size is the example's, doubled; after the mean nobody sees it."""

    def forward(self, x):
        height, width = (int(side) * 2 for side in x.shape[2:])
        return F.interpolate(x, size=(height, width)).square().sum((2, 3))


class Placed(nn.Module):
    """Adds a table of the example's size, which the old exporter keeps as numbers."""

    def forward(self, x):
        return x + torch.arange(int(x.shape[3])).float()


class TwoHeads(nn.Module):
    def forward(self, x):
        return {"logits": x.mean((2, 3)), "largest": x.amax((2, 3))}


def transformer():
    sizes = {"image_size": 32, "patch_size": 8, "num_layers": 1, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 32}
    network = VisionTransformer(**sizes, num_classes=3)
    nn.init.normal_(network.heads[-1].weight)  # torchvision's is 0: every answer would be
    return network


def exported(network, path, shape, *, old=False, axes=("batch", None, None, None)):
    free = {at: name for at, name in enumerate(axes) if name}
    how = {"dynamo": False, "dynamic_axes": {"input": free}} if old else {"dynamic_shapes": (free,)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the old exporter's about itself, and about what it froze
        torch.onnx.export(network.eval(), (torch.randn(shape),), path, input_names=["input"], verbose=False, **how)
    return network, path


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(1)


def test_vision_transformer_is_right_from_an_example_of_two(tmp_path):
    table = export.check_export(*exported(transformer(), tmp_path / "vit.onnx", (2, 3, 32, 32)), [(1, 3, 32, 32)])
    assert table["input"].tolist() == [(batch, 3, 32, 32) for batch in (1, 2, 3)]
    assert table["outputs"].tolist() == [[(batch, 3)] for batch in (1, 2, 3)]
    assert 0 <= table["max_abs_error"].max() < 1e-4


def test_sizes_and_outputs_of_other_names_are_compared(tmp_path):
    network, path = exported(TwoHeads(), tmp_path / "two.onnx", (2, 3, 8, 8), axes=("batch", None, "height", "width"))
    table = export.check_export(network, path, [(1, 3, 8, 8), (1, 3, 9, 16)], batches=(1, 4))
    assert table["outputs"].tolist() == [[(batch, 3)] * 2 for batch in (1, 4, 1, 4)]
    network.forward = lambda x: x.mean((2, 3))
    with pytest.raises(ValueError, match=r"two\.onnx is wrong .* right nowhere"):
        export.check_export(network, path, [(1, 3, 8, 8)])


def test_file_of_one_batch_by_choice_says_what_it_takes(tmp_path):
    network, path = exported(Flat(), tmp_path / "net.onnx", (1, 3, 8, 8), axes=())
    assert len(export.check_export(network, path, [(1, 3, 8, 8)], batches=[1])) == 1
    with pytest.raises(ValueError, match=r"\(2, 3, 8, 8\), right at \(1, 3, 8, 8\).*Got: 2 Expected: 1"):
        export.check_export(network, path, [(1, 3, 8, 8)])


@pytest.mark.parametrize(
    ("network", "example", "old", "shapes", "said"),
    [
        (Placed, (2, 3, 8, 8), True, [(1, 3, 8, 8), (1, 3, 8, 9)], r"first node that stops is /Add \(Add\)"),
        (
            transformer,
            (1, 3, 32, 32),
            False,
            [(1, 3, 32, 32)],
            r"\(2, 3, 32, 32\), right at \(1, .*Reshape, to \[17, 1,",
        ),
        (Flat, (2, 3, 8, 8), True, [(2, 3, 8, 8)], r"\(1, 3, 8, 8\), right at \(2, .* is /Reshape \(Reshape, to \[2, "),
        (Upscaled, (2, 3, 8, 8), True, [(1, 3, 8, 8), (1, 3, 8, 9)], r"\(1, 3, 8, 9\), .* is /Resize \(.*Not equal"),
    ],
    ids=["a table of one size", "a ViT's batch", "a reshape's batch", "an upscaling's size, without an error"],
)
def test_first_node_that_froze_is_named(tmp_path, capfd, network, example, old, shapes, said):
    file = exported(network(), tmp_path / "net.onnx", example, old=old, axes=("batch", None, *("hw" if old else ())))
    with pytest.raises(ValueError, match=said):
        export.check_export(*file, shapes)
    assert "Error" not in capfd.readouterr().err, "a notebook shows it a second time"


def test_what_is_no_fault_of_a_size_is_named_for_what_it_is(tmp_path):
    network, path = exported(Flat(), tmp_path / "net.onnx", (2, 3, 8, 8))
    with pytest.raises(ValueError, match=r"network itself refuses an input \(1, 3, 9, 9\)"):
        export.check_export(network, path, [(1, 3, 9, 9)])
    small = transformer().eval()
    with pytest.raises(ValueError, match=r"network itself refuses an input \(1, 3, 40, 40\).*Wrong image height"):
        export.check_export(small, path, [(1, 3, 40, 40)])
    with pytest.raises(ValueError, match=r"right nowhere.*Not equal to tolerance"):
        export.check_export(Flat().eval(), path, [(1, 3, 8, 8)])
    with pytest.raises(ValueError, match=r"train mode: call model\.eval"):
        export.check_export(network.train(), path, [(1, 3, 8, 8)])
    assert np.isfinite(export.check_export(network.eval(), path, [(1, 3, 8, 8)])["max_abs_error"]).all()
