"""helpers/memory.py: estimates follow the shapes, peaks are a process's own, and running out is told from failing."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
import psutil
import pytest
import torch
import torchvision
from torch import nn

from helpers import memory, models, results, settings

RESULTS = settings.DATA / "results"
SHAPE = (1, 3, 32, 32)
GIB = 2**30
SMALL = """
<ir_version: 10, opset_import: ["": 18]>
small (float[1, 3, 32, 32] x) => (float[1, 3, 32, 32] y) { y = Relu(x) }
"""
AS_LARGE_AS_TOLD = """
<ir_version: 10, opset_import: ["": 18]>
large (int64[1] s) => (float[n] y) { y = ConstantOfShape(s) }
"""


@pytest.fixture(scope="module")
def model():
    layers = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)
    return nn.Sequential(*layers).eval()


@pytest.fixture
def path(tmp_path):
    onnx.save(onnx.parser.parse_model(SMALL), tmp_path / "small.onnx")
    return tmp_path / "small.onnx"


@pytest.fixture
def child(monkeypatch):
    """Return a function that says how the process that measures will end; it gives the record of how it was asked."""

    def ends(returncode=0, stdout="", stderr=""):
        asked = Mock(return_value=SimpleNamespace(returncode=returncode, stdout=stdout, stderr=stderr))
        monkeypatch.setattr(subprocess, "run", asked)
        return asked

    return ends


# ---- estimates


@pytest.mark.parametrize("batch", [1, 2, 16])
def test_largest_layer_is_counted_as_by_hand(model, batch):
    """The ReLU: 8 channels of 32 × 32 in, as many out, 4 bytes each."""
    found = memory.largest_layer_mib(model, (batch, *SHAPE[1:]), kind="pytorch")
    assert found == batch * 2 * 8 * 32 * 32 * 4 / 2**20


def test_layers_that_onnxruntime_joins_with_a_convolution_do_not_count(model):
    """What is left as the largest is the convolution: 3 channels in, 8 out."""
    assert memory.largest_layer_mib(model, SHAPE, kind="onnx") == (3 + 8) * 32 * 32 * 4 / 2**20


def test_hardswish_needs_one_more_tensor_in_onnxruntime():
    one, two, three = (n * 3 * 32 * 32 * 4 / 2**20 for n in (1, 2, 3))
    found = [memory.largest_layer_mib(nn.Hardswish(), SHAPE, kind=kind) for kind in ("pytorch", "onnx")]
    assert found == [two, three], f"one tensor has {one} MiB"


def test_largest_layer_leaves_the_network_as_it_was(model):
    memory.largest_layer_mib(model, (3, 3, 64, 64), kind="pytorch")
    assert next(model.parameters()).device.type == "cpu"
    assert not any(module._forward_hooks for module in model.modules()), "hooks were left on the reader's network"


@pytest.mark.parametrize("kind", ["pytorch", "onnx"])
def test_estimate_grows_with_batch_and_size(model, kind):
    shapes = [(1, 3, 32, 32), (2, 3, 32, 32), (1, 3, 64, 64), (16, 3, 64, 64), (16, 3, 512, 512)]
    found = [memory.estimate_mib(model, shape, kind=kind) for shape in shapes]
    assert found[0] > memory.BASE_MIB[kind]
    assert found == sorted(set(found)), f"a larger input is said to need no more: {found}"


@pytest.mark.parametrize("machine", ["amd-epyc-2-cores-799ae1aeba", "intel-xeon-2-cores-c485a704c8"])
def test_no_measured_peak_was_above_its_estimate_and_margin(machine):
    networks = {name: torchvision.models.get_model(name, weights=None).eval() for name in models.NETWORKS}
    rows = [row for row in results.read(RESULTS / f"{machine}.jsonl") if row.get("peak_rss_mib")]
    assert len(rows) > 100, "the file should hold a full run"
    for row in rows:
        shape = (row["batch"], 3, row["size"], row["size"])
        kind = "pytorch" if row["column"] == "pytorch_cpu" else "onnx"
        estimate = memory.estimate_mib(networks[row["network"]], shape, kind=kind)
        assert memory.MARGIN * estimate > row["peak_rss_mib"], f"{row['network']}, {row['column']}, {shape}"


def test_estimate_grows_with_the_weights(model):
    large = nn.Sequential(*model, nn.Linear(10, 100_000)).eval()
    for kind in ("pytorch", "onnx"):
        more = memory.estimate_mib(large, SHAPE, kind=kind) - memory.estimate_mib(model, SHAPE, kind=kind)
        assert more > 100_000 * 11 * 4 / 2**20, f"{kind}: less than the weights themselves"


@pytest.mark.parametrize(
    ("limit", "used", "expected_mib"),
    [
        ("2147483648\n", "536870912\n", 1536),
        ("max\n", "536870912\n", 8192),
        (str(64 * GIB), "0", 8192),
        (None, "0", 8192),
    ],
    ids=["lower", "max", "higher", "no file"],
)
def test_available_memory_honours_the_container(monkeypatch, tmp_path, limit, used, expected_mib):
    if limit is not None:
        (tmp_path / "memory.max").write_text(limit)
    (tmp_path / "memory.current").write_text(used)
    monkeypatch.setattr(memory, "Path", lambda path: tmp_path)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=8 * GIB))
    assert memory.available_mib() == expected_mib


def test_available_memory_is_positive_here():
    assert 0 < memory.available_mib() <= psutil.virtual_memory().total / 2**20


# ---- errors that mean that memory ran out


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 2.00 EiB"),
        memory.OutOfMemoryError("it was not run"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 4096 bytes."),
        RuntimeError("[ONNXRuntimeError] : 6 : Failed to allocate memory for requested buffer of size 137438953472"),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("std::bad_alloc"),
        OSError(12, "Cannot allocate memory"),
    ],
    ids=str,
)
def test_memory_that_ran_out_is_told(error):
    assert memory.is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("k is 0; it must be from 1 to 3"),
        RuntimeError("Load model from small.onnx failed: Protobuf parsing failed."),
        OSError(28, "No space left on device"),
        KeyError("memory"),
    ],
    ids=str,
)
def test_other_errors_are_not_taken_for_it(error):
    assert not memory.is_out_of_memory(error)


def too_much_for_onnxruntime():
    large = onnx.parser.parse_model(AS_LARGE_AS_TOLD).SerializeToString()
    session = ort.InferenceSession(large, providers=["CPUExecutionProvider"])
    session.run(None, {"s": np.array([2**50])})


@pytest.mark.parametrize(
    "ask",
    [lambda: np.empty(2**59, np.float32), lambda: torch.empty(2**59), too_much_for_onnxruntime],
    ids=["NumPy", "PyTorch", "ONNX Runtime"],
)
def test_more_memory_than_any_machine_has_is_told_as_that(ask):
    try:
        ask()
    except Exception as error:
        assert memory.is_out_of_memory(error), f"not seen as out of memory: {error!r}"
    else:
        pytest.fail("the test needs an allocation that fails")


# ---- peaks, for real


def test_peak_of_a_file_lies_above_its_base(path):
    found = memory.measure_peak(shape=SHAPE, threads=1, path=path)
    assert set(found) == {"base_rss_mib", "peak_rss_mib", "p50_ms", "page_faults", "system_ms"}
    assert 0 < found["base_rss_mib"] < found["peak_rss_mib"]


def test_peak_of_a_network_lies_above_its_base():
    found = memory.measure_peak(shape=SHAPE, threads=1, network="mobilenet_v3_small")
    assert 0 < found["base_rss_mib"] < found["peak_rss_mib"]


def test_process_of_a_file_does_not_import_pytorch(path):
    code = (
        "import json, sys\n"
        "from helpers import memory\n"
        "memory._run_alone(json.loads(sys.argv[1]))\n"
        "print('torch' in sys.modules)"
    )
    task = {"shape": SHAPE, "threads": 1, "network": None, "path": str(path), "engine": "onnxruntime"}
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(task)], cwd=memory.ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "False", "PyTorch weighs on ONNX Runtime's number"


def test_broken_file_fails_with_the_reason(tmp_path):
    (tmp_path / "broken.onnx").write_bytes(b"this is no model")
    with pytest.raises(RuntimeError, match=r"ended with code 1: .*broken\.onnx") as caught:
        memory.measure_peak(shape=SHAPE, threads=1, path=tmp_path / "broken.onnx")
    assert not memory.is_out_of_memory(caught.value), "a broken file is taken for one that is too large"


def test_peak_of_a_process_stays_when_the_memory_is_given_back():
    block = np.ones(2**26, np.uint8)
    held = psutil.Process().memory_info().rss / 2**20
    del block
    assert memory.peak_rss_mib() >= 0.99 * held


# ---- how the process that measures ends


def test_task_is_handed_over_as_plain_json(child, path):
    asked = child(stdout='{"base_rss_mib": 1.0, "peak_rss_mib": 2.0}\n')
    memory.measure_peak(shape=np.array(SHAPE), threads=3, path=path)
    task = json.loads(asked.call_args.args[0][-1])
    assert (task["shape"], task["threads"], task["network"]) == (list(SHAPE), 3, None)
    assert Path(task["path"]).name == "small.onnx"


def test_answer_is_the_last_line(child, path):
    child(stdout='a warning\n{"base_rss_mib": 1.0, "peak_rss_mib": 2.0}\n')
    found = memory.measure_peak(shape=SHAPE, threads=1, path=path)
    assert found == {"base_rss_mib": 1.0, "peak_rss_mib": 2.0}


def test_killed_process_ran_out_of_memory(child, path):
    child(returncode=-9)
    with pytest.raises(memory.OutOfMemoryError, match=r"\(1, 3, 32, 32\): killed by the system"):
        memory.measure_peak(shape=SHAPE, threads=1, path=path)


@pytest.mark.parametrize(
    "last",
    [
        "MemoryError",
        "numpy._core._exceptions._ArrayMemoryError: Unable to allocate 4.00 GiB",
        "RuntimeError: DefaultCPUAllocator: can't allocate memory: you tried to allocate 4096 bytes.",
        "what():  std::bad_alloc",
    ],
)
def test_process_that_says_so_ran_out_of_memory(child, path, last):
    child(returncode=1, stderr=f"Traceback (most recent call last):\n{last}\n")
    with pytest.raises(memory.OutOfMemoryError) as caught:
        memory.measure_peak(shape=SHAPE, threads=1, path=path)
    assert last in str(caught.value)


@pytest.mark.parametrize(("stderr", "said"), [("a\nValueError: no\n", "ValueError: no"), ("", "code 3")])
def test_process_that_fails_otherwise_says_why(child, path, stderr, said):
    child(returncode=3, stderr=stderr)
    with pytest.raises(RuntimeError, match=r"code 3") as caught:
        memory.measure_peak(shape=SHAPE, threads=1, path=path)
    assert not isinstance(caught.value, memory.OutOfMemoryError) and said in str(caught.value)


# ---- refusals


@pytest.mark.parametrize("given", [{}, {"network": "resnet18", "path": "resnet18.onnx"}], ids=["none", "both"])
def test_network_or_file_is_needed_and_not_both(given):
    with pytest.raises(ValueError, match=r"either the network \(PyTorch\) or the path"):
        memory.measure_peak(shape=SHAPE, threads=1, **given)


def test_unknown_engine_is_refused(path):
    with pytest.raises(ValueError, match=r"'tensorrt'; it must be onnxruntime or openvino"):
        memory.measure_peak(shape=SHAPE, threads=1, path=path, engine="tensorrt")
