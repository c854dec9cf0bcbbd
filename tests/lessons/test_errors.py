"""Messages of today's libraries, each provoked here, lead to their causes."""

import csv
import json
import pickle
import re
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import onnxsim
import pytest
import torch
from onnx import TensorProto, helper, version_converter
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
from torch import nn
from torchvision.models import VisionTransformer

from notebooks.lessons import chromium, errors

X = np.zeros((1, 3, 32, 32), np.float32)


def node_file(path, op="Relu", *, opset=18, kind=TensorProto.FLOAT, domain="", shape=(1, 3, 32, 32), inputs=("input",)):
    """Write a file of one node."""
    ends = [helper.make_tensor_value_info(name, kind, shape) for name in (*inputs, "logits")]
    node = helper.make_node(op, list(inputs), ["logits"], domain=domain)
    graph = helper.make_graph([node], "one", ends[:-1], ends[-1:])
    sets = [helper.make_opsetid("", opset)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    model = helper.make_model(graph, opset_imports=sets, ir_version=10)
    onnx.save(model, path)
    return path


def session(path):
    return ort.InferenceSession(path, providers=["CPUExecutionProvider"])


def run(path, x, names=None):
    return session(path).run(names, {"input": x})


def pieces(path):
    """Write a network whose weights lie in a file beside it."""
    torch.onnx.export(Flat(), (torch.from_numpy(X),), path, external_data=True, verbose=False)
    weights = path.with_name(path.name + ".data")
    if not weights.exists():  # too small for the exporter
        onnx.save_model(onnx.load(path), path, save_as_external_data=True, location=weights.name, size_threshold=0)
    return path, weights


class Flat(nn.Module):
    """A linear network that keeps a batch of `batch`."""

    def __init__(self, batch=None):
        super().__init__()
        self.batch, self.last = batch, nn.Linear(3 * 32 * 32, 10)

    def forward(self, x):
        return self.last(x.flatten(1) if self.batch is None else x.reshape(self.batch, -1))


class If(nn.Module):
    def forward(self, x):
        return x if x.mean() > 0 else -x


def left_behind(folder, read):
    path, weights = pieces(folder / "a.onnx")
    weights.unlink()
    read(path)


def torn_weights(folder):
    path, weights = pieces(folder / "a.onnx")
    weights.write_bytes(weights.read_bytes()[:100])
    session(path)


def future(folder, read):
    model = onnx.load(node_file(folder / "a.onnx"))
    model.ir_version = 99
    onnx.save(model, folder / "b.onnx")
    read(folder / "b.onnx")


def torn(folder, read):
    (folder / "a.onnx").write_bytes(b"<!doctype html> this is no network")
    read(folder / "a.onnx")


def empty(folder):
    (folder / "a.onnx").touch()
    session(folder / "a.onnx")


def prefixed(folder):
    Flat().load_state_dict({f"module.{name}": value for name, value in Flat().state_dict().items()})


def whole(folder):
    torch.save(Flat(), folder / "a.pt")
    torch.load(folder / "a.pt", weights_only=True)


def weights_alone(folder):
    torch.save(Flat().state_dict(), folder / "a.pt")
    torch.load(folder / "a.pt", weights_only=True).eval()


def export(model, *, shape=(2, 3, 32, 32), **options):
    def make(folder):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(model.eval(), (torch.zeros(shape),), folder / "a.onnx", verbose=False, **options)

    return make


def frozen(folder):
    export(Flat(1), shape=(1, 3, 32, 32), dynamic_shapes=({0: torch.export.Dim.AUTO},))(folder)
    x = np.repeat(X, 4, axis=0)
    opened = session(folder / "a.onnx")
    opened.run(None, {opened.get_inputs()[0].name: x})


def two_types(folder, read):
    both = '<ir_version: 10, opset_import: ["": 18]> g (float[1] x, double[1] w) => (float[1] y) { y = Add(x, w) }'
    onnx.save(onnx.parser.parse_model(both), folder / "a.onnx")
    read(folder / "a.onnx")


class Fourier(nn.Module):
    def forward(self, x):
        return torch.fft.fft(x).abs()


class Bessel(nn.Module):
    def forward(self, x):
        return torch.special.bessel_j0(x)


def vision_transformer():
    return VisionTransformer(32, 16, num_layers=1, num_heads=1, hidden_dim=8, mlp_dim=8, num_classes=5)


def old_transformer(folder):
    free = {"input_names": ["input"], "dynamic_axes": {"input": {2: "height", 3: "width"}}}
    export(vision_transformer(), dynamo=False, **free)(folder)
    run(folder / "a.onnx", np.zeros((2, 3, 48, 48), np.float32))


def meet(folder, op):
    """Join two branches of 8 and of 7 rows, as a network does after halving an odd size."""
    node = f"{op}{'<axis=1>' * (op == 'Concat')}(a, b)"
    text = f"g (float[1,3,h,w] a, float[1,3,p,q] b) => (float[n,c,r,s] y) {{ y = {node} }}"
    onnx.save(onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 18]> {text}'), folder / "a.onnx")
    session(folder / "a.onnx").run(None, {"a": X[..., :8, :8].copy(), "b": X[..., :7, :7].copy()})


def other_size(folder):
    free = {"input_names": ["input"], "dynamic_axes": {"input": {2: "height", 3: "width"}}}
    export(Flat(), dynamo=False, **free)(folder)
    run(folder / "a.onnx", np.zeros((2, 3, 48, 48), np.float32))


def transformer_of_one(folder):
    export(vision_transformer(), shape=(1, 3, 32, 32), dynamic_shapes=({0: torch.export.Dim.AUTO},))(folder)
    opened = session(folder / "a.onnx")
    opened.run(None, {opened.get_inputs()[0].name: BATCH})


def scripted():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(nn.ReLU())


def states(network, state):
    """Load a state, or another network's, into a network."""
    return lambda folder: network.load_state_dict(state.state_dict() if isinstance(state, nn.Module) else state)


class Photos(CalibrationDataReader):
    def __init__(self, count):
        self.left = iter([{"input": X}] * count)

    def get_next(self):
        return next(self.left, None)


def quantise(folder, reader, **types):
    quantize_static(node_file(folder / "a.onnx", "Relu"), folder / "b.onnx", reader, **types)


def simplify(folder):
    onnxsim.simplify(onnx.load(node_file(folder / "a.onnx", shape=("n", 3, "h", "w"))), check_n=1)


HALF, BRAIN, INT64 = TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.INT64
INT8, UINT8 = QuantType.QInt8, QuantType.QUInt8
RGBA, NHWC, BATCH = np.zeros((1, 4, 32, 32), np.float32), np.zeros((1, 32, 32, 3), np.float32), np.repeat(X, 4, axis=0)
TWINS = {"unknown-operator", "frozen-reshape"}  # another cause has the same message: they come second
# case: (how to provoke it in an empty folder, the cause that must be among those shown)
MESSAGES = {
    "rank": (lambda f: run(node_file(f / "a.onnx"), X[0]), "wrong-rank"),
    "RGBA": (lambda f: run(node_file(f / "a.onnx"), RGBA), "channels-last"),
    "NHWC": (lambda f: run(node_file(f / "a.onnx"), NHWC), "channels-last"),
    "batch": (lambda f: run(node_file(f / "a.onnx"), BATCH), "fixed-batch"),
    "size": (lambda f: run(node_file(f / "a.onnx"), X[..., :9, :9].copy()), "fixed-size"),
    "fp16": (lambda f: run(node_file(f / "a.onnx", kind=HALF), X), "half-file"),
    "float64": (lambda f: run(node_file(f / "a.onnx"), X.astype(float)), "wrong-type"),
    "bf16": (lambda f: torch.zeros(1, dtype=torch.bfloat16).numpy(), "bf16"),
    "bf16 file": (lambda f: session(node_file(f / "a.onnx", "Softmax", kind=BRAIN)), "not-implemented"),
    "name": (lambda f: session(node_file(f / "a.onnx")).run(None, {"image": X}), "wrong-name"),
    "output": (lambda f: run(node_file(f / "a.onnx"), X, ["classes"]), "wrong-output"),
    "tensor": (lambda f: run(node_file(f / "a.onnx"), torch.from_numpy(X)), "torch-tensor"),
    "gradient": (lambda f: Flat()(torch.from_numpy(X)).numpy(), "requires-grad"),
    "no file": (lambda f: session(f / "a.onnx"), "no-such-file"),
    "web page": (lambda f: torn(f, session), "torn-file"),
    "web page, onnx": (lambda f: torn(f, onnx.load), "torn-file"),
    "empty": (empty, "no-graph"),
    "no weights": (lambda f: left_behind(f, session), "left-behind"),
    "no weights, onnx": (lambda f: left_behind(f, onnx.load), "left-behind"),
    "half the weights": (torn_weights, "torn-weights"),
    "IR": (lambda f: future(f, session), "ir-version"),
    "IR, checker": (lambda f: future(f, lambda path: onnx.checker.check_model(onnx.load(path))), "ir-version"),
    "opset": (lambda f: session(node_file(f / "a.onnx", opset=99)), "opset-too-new"),
    "GridSample": (
        lambda f: session(node_file(f / "a.onnx", "GridSample", opset=11, inputs=("input", "grid"))),
        "operator-too-new",
    ),
    "misspelt": (lambda f: session(node_file(f / "a.onnx", "Relu6")), "unknown-operator"),
    "custom": (lambda f: session(node_file(f / "a.onnx", "Thing", domain="com.example")), "unknown-operator"),
    "adapter": (
        lambda f: version_converter.convert_version(onnx.load(node_file(f / "a.onnx", "ReduceMean")), 11),
        "no-adapter",
    ),
    "if": (export(If()), "python-if"),
    "frozen": (export(Flat(2), dynamic_shapes=({0: "batch"},)), "frozen-batch"),
    "frozen at 1": (frozen, "frozen-reshape"),
    "dynamic_shapes of two": (export(Flat(), dynamic_shapes=({0: "batch"}, {})), "dims-differ"),
    "dynamic_shapes by name": (export(Flat(), dynamic_shapes={"y": {0: "batch"}}), "dims-differ"),
    "two types": (lambda f: two_types(f, session), "mixed-types"),
    "two types, checker": (lambda f: two_types(f, lambda p: onnx.checker.check_model(p, True)), "mixed-types"),
    "aten": (export(Fourier(), dynamo=False), "no-translation"),
    "Bessel": (export(Bessel()), "no-translation"),
    "ViT": (export(vision_transformer(), dynamic_shapes=({2: "height", 3: "width"},)), "frozen-batch"),
    "ViT, old exporter": (old_transformer, "sizes-meet"),
    "onnxsim": (simplify, "onnxsim-dynamic"),
    "module.": (prefixed, "module-prefix"),
    "other network": (lambda f: Flat().load_state_dict(nn.ReLU().state_dict()), "other-network"),
    "classes": (lambda f: nn.Linear(4, 5).load_state_dict(nn.Linear(4, 10).state_dict()), "other-classes"),
    "weights": (weights_alone, "only-weights"),
    "pickle": (whole, "whole-pickle"),
    "pool": (export(nn.AdaptiveAvgPool2d(5), dynamo=False), "pool-factor"),
    "int32": (lambda f: run(node_file(f / "a.onnx", "Identity", kind=INT64), X.astype(np.int32)), "integer-type"),
    "None": (lambda f: run(node_file(f / "a.onnx"), None), "wrong-name"),
    "memory": (lambda f: np.zeros((10**7, 10**8)), "memory-cpu"),
    "skip connection, odd size": (lambda f: meet(f, "Add"), "sizes-meet"),
    "joined, odd size": (lambda f: meet(f, "Concat"), "concat-differ"),
    "flatten, other size": (other_size, "flatten-size"),
    "ViT, example batch 1": (transformer_of_one, "frozen-reshape"),
    "DataParallel": (export(nn.DataParallel(nn.ReLU()), dynamo=False), "data-parallel"),
    "ScriptModule": (export(scripted()), "scripted"),
    "half network": (export(nn.Conv2d(3, 1, 1).half()), "half-example"),
    "BatchNorm": (lambda f: nn.BatchNorm1d(3)(torch.zeros(1, 3)), "batchnorm-train"),
    "two inputs": (export(nn.Bilinear(3, 3, 1), shape=(2, 3)), "missing-argument"),
    "loaded into DataParallel": (states(nn.DataParallel(nn.ReLU6()), {"w": X}), "extra-keys"),
    "DataParallel's network": (states(nn.DataParallel(nn.Linear(2, 2)), nn.Linear(2, 2)), "parallel-prefix-missing"),
    "Lightning": (states(nn.Linear(2, 2), nn.ModuleDict({"model": nn.Linear(2, 2)})), "lightning-prefix"),
    "text_module": (states(nn.ModuleDict({"text_module": nn.Linear(2, 2)}), nn.Linear(2, 2)), "other-network"),
    "no averages": (states(nn.BatchNorm2d(2), dict(nn.BatchNorm2d(2).named_parameters())), "no-buffers"),
    "checkpoint": (states(nn.Linear(2, 2), {"epoch": 1, "state_dict": {}}), "nested-checkpoint"),
    "web page, torch": (lambda f: torn(f, torch.load), "not-checkpoint"),
    "empty reader": (lambda f: quantise(f, Photos(0)), "reader-empty"),
    "a list as reader": (lambda f: quantise(f, []), "reader-form"),
    "types": (lambda f: quantise(f, Photos(1), activation_type=INT8, weight_type=UINT8), "quantise-types"),
    "session to a process": (lambda f: pickle.dumps(session(node_file(f / "a.onnx"))), "pickle-session"),
}


@pytest.mark.parametrize("case", MESSAGES)
def test_real_message_leads_to_its_cause(tmp_path, case):
    provoke, key = MESSAGES[case]
    with pytest.raises(Exception) as caught:
        provoke(tmp_path)
    found = errors.find(str(caught.value))["key"].tolist()
    assert key in found[: 1 + (key in TWINS)], f"found {found} for: {str(caught.value)[:400]}"


@pytest.mark.skipif("CUDAExecutionProvider" in ort.get_available_providers(), reason="this machine has it")
def test_missing_gpu_provider(tmp_path):
    with pytest.warns(UserWarning) as caught:
        ort.InferenceSession(
            node_file(tmp_path / "a.onnx"), providers=["CUDAExecutionProvider", "CPUExecutionProvider"]
        )
    assert errors.find(str(caught[0].message))["key"].iloc[0] == "no-cuda"


def test_messages_of_public_threads_lead_to_their_causes():
    """Beside this file: the libraries' own lines, as people pasted them or as they are provoked today."""
    with Path(__file__).with_name("messages.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    first = {row["message"]: next(iter(errors.find(row["message"])["key"]), None) for row in rows}
    wrong = [
        (row["key"], first[row["message"]], row["message"][:80]) for row in rows if first[row["message"]] != row["key"]
    ]
    assert len(rows) > 150 and not wrong, wrong


@pytest.mark.parametrize("case", ["text_module", "Lightning", "DataParallel's network", "no averages"])
def test_no_prefix_is_seen_where_there_is_none(tmp_path, case):
    with pytest.raises(RuntimeError) as caught:
        MESSAGES[case][0](tmp_path)
    assert "module-prefix" not in set(errors.find(str(caught.value))["key"])


def test_two_causes_of_one_message_name_each_other(tmp_path):
    tell = errors.table().set_index("key")["tell"]
    for key in ("sizes-meet", "flatten-size", "frozen-reshape", "lightning-prefix", "wrapped-network", "no-buffers"):
        assert "this may also be" in tell[key], key
    found = errors.find("Status Message: GEMM: Dimension mismatch, W: {12,5} K: 9 N:5")["cause"].tolist()
    assert not found[0].startswith("this may") and all(cause.startswith("this may also be: ") for cause in found[1:])


def test_general_sentences_are_shown_only_where_nothing_else_is_found():
    assert errors.find("[ONNXRuntimeError] : 1 : FAIL : something new")["kind"].tolist() == [errors.OTHER]
    assert errors.OTHER not in set(errors.find("[ONNXRuntimeError] : 2 : Invalid rank for input: x")["kind"])


def test_table_is_printed_whole():
    keys = re.findall(r"<th>([a-z0-9-]+)</th>", errors.printed().split("<tbody>")[1])
    assert sorted(keys) == sorted(errors.table()["key"])


def test_numbers_and_paths_do_not_matter_but_the_axis_does():
    text = "[ONNXRuntimeError] : 2 : Got invalid dimensions for input: x\n index: {} Got: {} Expected: 3"
    assert errors.find(text.format(1, 4))["key"].iloc[0] == "channels-last"
    assert errors.find(text.format(0, 999))["key"].iloc[0] == "fixed-batch"
    assert errors.find("all is well").empty and errors.find("").empty


def test_table_is_whole():
    table = errors.table()
    assert table["key"].is_unique and (table[["words", "cause", "repair"]] != "").all(axis=None)
    assert (table["seen"] != "").all() and (table["kind"] != "").all()
    assert (table["kind"] == errors.OTHER).is_monotonic_increasing, "general sentences stand last"


@pytest.mark.skipif(bool(chromium.missing()), reason="no browser")
def test_box_finds_what_python_finds(tmp_path):
    from playwright.sync_api import sync_playwright

    page_file = tmp_path / "page.html"
    page_file.write_text(f"<!doctype html><meta charset=utf-8>{errors.search_box()}", encoding="utf-8")
    texts = [
        "Got invalid dimensions for input\n index: 1 Got: 4 Expected: 3",
        "No Op registered for GridSample with domain_version of 11",
        "Unexpected input data type. Actual: (tensor(float)) , expected: (tensor(float16))",
        "nothing known",
    ]
    with sync_playwright() as playwright, chromium.launch(playwright) as browser:
        page = browser.new_page()
        page.goto(page_file.as_uri())
        for text in texts:
            page.fill("textarea", text)
            shown = page.locator(".error-search p").all_text_contents()
            assert [one.split(".")[0] for one in shown] == [one.split(".")[0] for one in errors.find(text)["cause"]]


def test_box_keeps_the_table_inside_its_script():
    held = re.search(r"const \{rows, .*\} = (.*);\n", errors.search_box())[1]
    assert len(json.loads(held)["rows"]) == len(errors.table())
