"""What notebooks say about the libraries, tried on tiny networks with today's libraries; and a few of their cells."""

import os
import re
import subprocess
import sys

import nbformat
import numpy as np
import onnx.inliner
import onnx.parser
import onnxruntime as ort
import onnxsim
import pandas as pd
import pytest
import torch
from onnxruntime import quantization
from onnxruntime.capi.onnxruntime_pybind11_state import Fail
from torch import nn

from helpers import engines, graph, settings

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
    with graph.capture_logs():
        torch.onnx.export(model, (X,), path, dynamo=False, **({"opset_version": 11} | options))
    return path


def optimised(path, level, tmp_path):
    options = ort.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "optimised.onnx"), 3
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    engines.onnx_session(path, threads=1, options=options)
    return onnx.load(tmp_path / "optimised.onnx")


def test_the_articles_call_gives_another_opset_two_files_and_warnings(network, tmp_path):
    path = tmp_path / "a.onnx"
    with graph.capture_logs() as heard:
        torch.onnx.export(network, X, path, input_names=["input"], output_names=["output"], opset_version=11)
    assert graph.file_identity(path)["opset"] == 18
    assert {file.name for file in tmp_path.iterdir()} == {"a.onnx", "a.onnx.data"}
    assert any("Failed to convert the model to the target version 11" in text for text in heard), heard


def test_old_exporter_honours_opset_11_and_says_that_it_goes(network, tmp_path):
    with graph.capture_logs() as heard:
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
    with engines.quiet():
        session = ort.InferenceSession(path)
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


@pytest.mark.parametrize("reduced", [True, False])
def test_the_quantizers_steps_are_those_that_notebook_10_corrects_for(network, tmp_path, reduced):
    """Bias correction needs the very weights that the quantizer writes: 64 steps to a side in its reduced range."""

    class Reader(quantization.CalibrationDataReader):
        def get_next(self):
            return self.rest.pop() if self.rest else None

    Reader.rest = [{"input": X.numpy()}]
    source, target = old(network, tmp_path / "a.onnx", input_names=["input"], opset_version=17), tmp_path / "int8.onnx"
    quantization.quantize_static(source, target, Reader(), per_channel=True, reduce_range=reduced)
    weight = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(source).graph.initializer}["again.weight"]
    scale = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(target).graph.initializer}["again.weight_scale"]
    cell = notebook_cell("10_int8_quantization", "WEIGHT_STEPS =")
    names = {"machine": None, "platform": None, "QuantType": quantization.QuantType, "REDUCE_RANGE": reduced}
    exec(next(line for line in cell.splitlines() if line.startswith("WEIGHT_STEPS")), names)
    np.testing.assert_allclose(np.abs(weight).max(axis=(1, 2, 3)) / scale, names["WEIGHT_STEPS"], rtol=1e-3)


def notebook_cell(notebook, text):
    """Return the code of the one cell of a notebook that holds a text."""
    cells = nbformat.read(settings.NOTEBOOKS / f"{notebook}.ipynb", as_version=4).cells
    (source,) = (cell.source for cell in cells if cell.cell_type == "code" and text in cell.source)
    return source


@pytest.mark.parametrize("kind", ["stored", "of the batch"])
def test_statistics_of_the_batch_in_eval_mode_are_found_in_the_file(kind, tmp_path):
    """Today's exporter writes a BatchNormalization of computed means, whose attributes say nothing of training."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, track_running_stats=kind == "stored"), nn.ReLU()).eval()
    path = tmp_path / "a.onnx"
    with graph.capture_logs():
        torch.onnx.export(model, (X,), path, external_data=False, verbose=False, optimize=False)
    assert "BatchNormalization" in graph.count_operators(path)
    assert training_nodes(path) == ([] if kind == "stored" else ["BatchNormalization"])


def training_nodes(path):
    """Ask the function of 08."""
    names = {"onnx": onnx}
    for part in ("def trains", "def training_nodes"):
        exec(notebook_cell("08_eval_mode", part), names)
    return names["training_nodes"](path)


WITH_HIDDEN_TRAINING = """<ir_version: 10, opset_import: ["" : 18, "own" : 1]>
net (float[1, 2, 4, 4] x, bool sure) => (float[1, 2, 4, 4] y)
<float[2] scale = {1, 1}, float[2] bias = {0, 0}, float[2] mean = {0, 0}, float[2] var = {1, 1}> {
    a = own.norm (x, scale, bias, mean, var)
    y = If (sure) <
        then_branch = right () => (t) { t = BatchNormalization (a, scale, bias, mean, var) },
        else_branch = wrong () => (e) {
            n = RandomNormalLike (a)
            e = Add (a, n)
        }
    >
}
<domain: "own", opset_import: ["" : 18]>
norm (x, s, b, mean, var) => (y) { y, m, v = BatchNormalization <training_mode = TRAIN> (x, s, b, mean, var) }
"""


@pytest.mark.parametrize("train", [0, 1])
def test_training_is_found_in_a_branch_and_in_a_models_own_function(tmp_path, train):
    text = WITH_HIDDEN_TRAINING.replace("TRAIN", str(train)).replace("y, m, v =" if not train else "?", "y =")
    onnx.save(onnx.parser.parse_model(text), tmp_path / "a.onnx")
    onnx.checker.check_model(tmp_path / "a.onnx", full_check=True)
    assert training_nodes(tmp_path / "a.onnx") == ["BatchNormalization"] * train + ["RandomNormalLike"]


@pytest.mark.parametrize("rich", ["as installed", "missing"])
def test_onnxsims_table_is_read_with_and_without_rich(rich, network, tmp_path):
    """The package draws boxes if rich is installed and the console can show them, else bars."""
    if rich == "missing":
        (tmp_path / "rich.py").write_text("raise ImportError('no rich')")
    source = old(network, tmp_path / "a.onnx", input_names=["x"], dynamic_axes={"x": [0, 2, 3]})
    command = [sys.executable, "-m", "onnxsim", source, tmp_path / "b.onnx"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    printed = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    assert rich != "missing" or "│" not in printed, "rich was there"
    cell = notebook_cell("06_onnxsim", "re.findall(row")
    (pattern,) = (line.strip() for line in cell.splitlines() if line.strip().startswith("row = "))
    names = {}
    exec(pattern, names)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", printed)
    found = {name: (before, after) for name, before, after in re.findall(names["row"], plain, re.M)}
    assert found["Conv"] == ("2", "2") and found["Add"] == ("1", "1") and "Model Size" in found, printed[:2000]


GPU_SENTENCES = {
    "04_speed_resnet18": "launch = single.loc",
    "05_speed_mobilenet_v3_small": 'single[["PyTorch GPU", "ONNX Runtime GPU"]]',
}


@pytest.mark.parametrize("notebook", GPU_SENTENCES)
@pytest.mark.parametrize("there", [["PyTorch"], ["ONNX Runtime"], ["PyTorch", "ONNX Runtime"], []], ids="+".join)
def test_the_gpu_sentence_speaks_of_the_engines_that_are_there(notebook, there):
    """With plain onnxruntime beside a CUDA build of PyTorch, the usual machine, one engine fills its columns."""
    index = pd.MultiIndex.from_product([[1, 16], [32, 256]], names=["batch", "height"])
    keys = {"PyTorch": "pytorch_gpu", "ONNX Runtime": "ort_gpu"}
    columns = [f"{name} GPU{copies}" for name in keys for copies in ("", " + copies")]
    wide = pd.DataFrame({c: 2.0 if c.partition(" GPU")[0] in there else np.nan for c in columns}, index=index)
    wide.loc[:, [c for c in columns if "copies" in c]] *= 2
    on_gpu = [keys[name] for name in there]
    gpu = pd.DataFrame(
        {"column": on_gpu, "first_run_ms": 10.0, "p50_ms": 2.0}, columns=["column", "first_run_ms", "p50_ms"]
    )
    said = []
    names = {"wide": wide, "gpu": gpu, "on_gpu": on_gpu, "np": np, "Markdown": str, "display": said.append}
    exec(notebook_cell(notebook, GPU_SENTENCES[notebook]), names)
    (text,) = said
    assert ("no GPU rows" in text) == (not there)
    for name in keys:
        assert (f"{name} GPU " in text) == (name in there), text
    assert ("50%" in text) == ("PyTorch" in there), "copies"
