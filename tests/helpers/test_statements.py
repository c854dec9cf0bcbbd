"""What notebooks 00, 01, 02 and 06 say about the libraries, tried on tiny networks with the libraries of today."""

import onnx
import onnxruntime as ort
import onnxsim
import pytest
import torch
from onnxruntime.capi.onnxruntime_pybind11_state import Fail
from torch import nn

from helpers import engines, graph

X = torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)


@pytest.fixture(scope="module")
def network():
    """A convolution without bias, batch normalisation with settings of its own, a residual addition, a head."""
    torch.manual_seed(0)

    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
            self.again, self.fc = nn.Conv2d(16, 16, 3, padding=1), nn.Linear(16, 5)

        def forward(self, x):
            x = torch.relu(self.bn(self.conv(x)))
            return self.fc(torch.relu(self.again(x) + x).mean((2, 3)))

    model = Small().eval()
    with torch.no_grad():
        for tensor in (model.bn.weight, model.bn.bias, model.bn.running_mean):
            tensor.copy_(torch.rand(16) + 0.5)
        model.bn.running_var.copy_(torch.rand(16) + 2)
    return model


@pytest.fixture(scope="module")
def unfolded(network, tmp_path_factory):
    return old(network, tmp_path_factory.mktemp("unfolded") / "x.onnx", do_constant_folding=False)


def old(model, path, **options):
    with graph.listen():
        torch.onnx.export(model, (X,), path, dynamo=False, **({"opset_version": 11} | options))
    return path


def optimised(path, level, tmp_path):
    saved = str(tmp_path / "optimised.onnx")
    options = {"optimized_model_filepath": saved, "log_severity_level": 3}
    engines.onnx_session(path, threads=1, level=level, options=options)
    return onnx.load(saved)


def test_the_articles_call_gives_another_opset_two_files_and_warnings(network, tmp_path):
    path = tmp_path / "a.onnx"
    with graph.listen() as heard:
        torch.onnx.export(network, X, path, input_names=["input"], output_names=["output"], opset_version=11)
    assert graph.file_identity(path)["opset"] == 18
    assert {file.name for file in tmp_path.iterdir()} == {"a.onnx", "a.onnx.data"}
    assert any("Failed to convert the model to the target version 11" in text for text in heard), heard


def test_old_exporter_honours_opset_11_and_says_that_it_goes(network, tmp_path):
    with graph.listen() as heard:
        torch.onnx.export(network, (X,), tmp_path / "a.onnx", opset_version=11, dynamo=False)
    assert graph.file_identity(tmp_path / "a.onnx")["opset"] == 11
    assert any(text.startswith("DeprecationWarning") for text in heard)


@pytest.mark.parametrize("opset", [9, 11, 17])
def test_old_exporter_writes_hardsigmoid(opset, tmp_path):
    path = old(nn.Hardsigmoid(), tmp_path / "a.onnx", opset_version=opset)
    assert graph.file_identity(path)["opset"] == opset
    (result,) = ort.InferenceSession(path).run(None, {ort.InferenceSession(path).get_inputs()[0].name: X.numpy()})
    torch.testing.assert_close(torch.from_numpy(result), nn.functional.hardsigmoid(X))


def test_pytorchs_names_hold_folded_numbers(network, tmp_path):
    torch.onnx.export(network, (X,), tmp_path / "a.onnx", external_data=False, verbose=False)
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(tmp_path / "a.onnx").graph.initializer}
    state = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    differ = {name for name in stored if name in state and (stored[name] != state[name]).any()}
    assert differ == {"conv.weight"} and {"fc.weight", "fc.bias", "again.weight"} <= stored.keys()


def test_weight_and_bias_of_the_fold(network, tmp_path):
    file = onnx.load(old(network, tmp_path / "a.onnx")).graph
    stored = {t.name: torch.from_numpy(onnx.numpy_helper.to_array(t).copy()) for t in file.initializer}
    weight, bias = (stored[name] for name in file.node[0].input[1:])
    bn = network.bn
    scale = bn.weight / torch.sqrt(bn.running_var + bn.eps)
    torch.testing.assert_close(weight, (network.conv.weight * scale[:, None, None, None]).detach())
    torch.testing.assert_close(bias, (bn.bias - bn.running_mean * scale).detach())


def test_basic_folds_batch_normalisation(unfolded, tmp_path):
    assert graph.count_operators(unfolded)["BatchNormalization"] == 1
    assert graph.count_operators(optimised(unfolded, "ORT_DISABLE_ALL", tmp_path))["BatchNormalization"] == 1
    assert graph.count_operators(optimised(unfolded, "ORT_ENABLE_BASIC", tmp_path))["BatchNormalization"] == 0


def test_fusedconv_adds_nothing(unfolded, tmp_path):
    model = optimised(unfolded, "ORT_ENABLE_EXTENDED", tmp_path)
    fused = [node for node in model.graph.node if node.op_type == "FusedConv"]
    assert fused and all(len(node.input) == 3 for node in fused)
    assert graph.count_operators(model)["Add"] == 1


def test_open_channels_pass_the_checker_and_fail_inside_conv(network, tmp_path):
    axes = {0: "b", 1: "c", 2: "h", 3: "w"}
    path = old(network, tmp_path / "a.onnx", input_names=["input"], dynamic_axes={"input": axes})
    onnx.checker.check_model(path, full_check=True)
    session = engines.onnx_session(path, threads=1, options={"log_severity_level": 4})
    assert session.get_inputs()[0].shape == list("bchw")
    session.run(None, {"input": X.numpy()})
    with pytest.raises(Fail, match="Conv node"):
        session.run(None, {"input": X[:, :1].numpy()})
    with pytest.raises(torch.onnx.OnnxExporterError):
        torch.onnx.export(network, (X,), dynamic_shapes=(axes,), verbose=False)


def test_a_list_of_axes_invents_names(network, tmp_path):
    axes = {"input": [0, 2, 3], "logits": [0]}
    path = old(network, tmp_path / "a.onnx", input_names=["input"], output_names=["logits"], dynamic_axes=axes)
    session = ort.InferenceSession(path)
    batch_in, batch_out = session.get_inputs()[0].shape[0], session.get_outputs()[0].shape[0]
    assert isinstance(batch_in, str) and isinstance(batch_out, str) and batch_in != batch_out


@pytest.mark.parametrize(("check_n", "passed"), [(0, True), (1, False)])
def test_onnxsim_compares_outputs_only_if_asked(unfolded, check_n, passed, capsys):
    def damage(model):
        bias = next(tensor for tensor in model.graph.initializer if tensor.name == "fc.bias")
        if not any(onnx.numpy_helper.to_array(bias)):
            return False
        bias.CopyFrom(onnx.numpy_helper.from_array(0 * onnx.numpy_helper.to_array(bias), bias.name))
        return model

    assert onnxsim.simplify(str(unfolded), check_n, custom_rewriter=damage)[1] is passed


def test_onnxsim_writes_a_record_of_its_work(network, tmp_path):
    result, _ = onnxsim.simplify(str(old(network, tmp_path / "a.onnx")), check_n=1)
    record = {entry.key: entry.value for entry in result.metadata_props}
    assert record["onnxsim.removed_nodes.count"].isdigit()
