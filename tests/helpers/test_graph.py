"""helpers/graph.py: operators counted as they are in the file, and files told apart."""

import hashlib
import logging
import warnings

import numpy as np
import onnx
import onnx.parser
import pytest

from helpers import graph

# 3 Relu, 1 Add, one node of another domain, one If; the two nodes inside its branches do not count.
BRANCHING = """
<ir_version: 10, opset_import: ["com.example": 3, "": 17]>
small (float[1, 4] x, bool yes) => (float[1, 4] y) {
    a = Relu(x)
    b = Relu(a)
    c = com.example.FusedRelu(b)
    d = If (yes) <
        then_branch = then () => (float[1, 4] p) { p = Sigmoid(x) },
        else_branch = other () => (float[1, 4] q) { q = Tanh(x) }
    >
    e = Add(c, d)
    y = Relu(e)
}
"""
COUNTS = {"Relu": 3, "Add": 1, "If": 1, "com.example.FusedRelu": 1}


@pytest.fixture
def model():
    return onnx.parser.parse_model(BRANCHING)


@pytest.fixture
def path(tmp_path, model):
    onnx.save(model, tmp_path / "small.onnx")
    return tmp_path / "small.onnx"


@pytest.fixture
def external(tmp_path):
    """Return the path of a model of one node whose 64 KiB of weights lie in a second file."""
    weight = onnx.numpy_helper.from_array(np.arange(16384, dtype=np.float32), "w")
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 18]> g (float[16384] x) => (float[16384] y) { y = Add(x, w) }'
    )
    model.graph.initializer.append(weight)
    onnx.save(model, tmp_path / "split.onnx", save_as_external_data=True, location="split.data", size_threshold=0)
    assert (tmp_path / "split.data").stat().st_size >= 2**16, "the test needs weights in a second file"
    return tmp_path / "split.onnx"


def test_operators_of_a_model_and_of_its_file(model, path):
    assert graph.count_operators(model) == graph.count_operators(path) == graph.count_operators(str(path)) == COUNTS
    assert graph.count_operators(model)["Conv"] == 0, "an operator that is not there must count 0, not fail"


def test_a_file_is_counted_and_identified_without_the_weights_beside_it(external):
    found = graph.file_identity(external)
    assert (found["file"], found["nodes"], found["opset"]) == ("split.onnx", 1, 18)
    assert found["size_mib"] == external.stat().st_size / 2**20 < 2**16 / 2**20, "the size is the .onnx file's own"
    external.with_name("split.data").unlink()
    assert graph.count_operators(external) == {"Add": 1} and graph.file_identity(external) == found


def test_identity_is_of_the_content(path, model):
    content = path.read_bytes()
    wanted = {"file": "small.onnx", "sha256": hashlib.sha256(content).hexdigest()[:12]}
    wanted |= {"size_mib": len(content) / 2**20, "nodes": 6, "opset": 17}  # not 3, which is com.example's
    assert graph.file_identity(path) == wanted
    model.graph.node[0].output[0] = model.graph.node[1].input[0] = "A"  # as many nodes and bytes as before
    model.opset_import[1].domain = "ai.onnx"  # the standard domain's long name
    onnx.save(model, path.with_name("other.onnx"))
    after = graph.file_identity(path.with_name("other.onnx"))
    assert after["opset"] == 17 and after["sha256"] != wanted["sha256"]


def test_identity_of_a_file_without_standard_operators(path):
    head = '<ir_version: 8, opset_import: ["ai.onnx.ml": 3]> g '
    onnx.save(onnx.parser.parse_model(f"{head}(float[n] x) => (float[n] y) {{ y = ai.onnx.ml.Scaler(x) }}"), path)
    identity = graph.file_identity(path)
    assert identity["opset"] is None and identity["nodes"] == 1


def test_capture_logs_hears_logs_and_warnings_and_puts_everything_back(capfd):
    logger = logging.getLogger("torch.onnx")
    before = logger.handlers, logger.propagate, warnings.filters[:]
    with pytest.raises(ZeroDivisionError), graph.capture_logs() as heard:
        logger.warning("opset %d", 18)
        warnings.warn("old", DeprecationWarning, stacklevel=1)
        raise ZeroDivisionError
    assert heard == ["WARNING: opset 18", "DeprecationWarning: old"]
    assert (logger.handlers, logger.propagate, warnings.filters[:]) == before
    assert capfd.readouterr().err == ""
