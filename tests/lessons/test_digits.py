"""The network of 10 that is trained: what it learns is the same each time, and copies leave it alone."""

import numpy as np
import onnxruntime as ort
import pytest
import torch

from helpers import graph
from notebooks.lessons import digits


@pytest.fixture(scope="module")
def trained():
    """Return the digits, and a network trained for one epoch."""
    parts, network = digits.split(), digits.network()
    digits.train(network, parts[0], parts[2], epochs=1, rate=3e-3)
    return parts, network.eval()


def test_training_gives_the_same_network_twice_and_learns(trained):
    (train_x, test_x, train_y, test_y), network = trained
    again, threads = digits.network(), torch.get_num_threads()
    digits.train(again, train_x, train_y, epochs=1, rate=3e-3)
    for one, other in zip(network.state_dict().values(), again.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other)
    assert (network(test_x).argmax(1) == test_y).float().mean() > 0.5
    assert torch.get_num_threads() == threads


def test_torchao_leaves_the_network_alone_and_its_file_has_integers(trained, tmp_path):
    pytest.importorskip("torchao")
    (train_x, test_x, train_y, _), network = trained
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    done = digits.with_torchao(network, train_x[:128], train_y[:128], reduce_range=True, epochs=1, rate=5e-4)
    assert not network.training
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)
    path, shapes = tmp_path / "digits.onnx", ({0: "batch"},)
    with graph.capture_logs():
        torch.onnx.export(done, (train_x[:2],), path, dynamic_shapes=shapes, external_data=False, verbose=False)
    assert graph.count_operators(path)["QuantizeLinear"] > 5
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: test_x[:20].numpy()})
    with torch.no_grad():
        assert np.abs(found - done(test_x[:20]).numpy()).max() < 1
