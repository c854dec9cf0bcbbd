"""helpers/memory.py: peaks are a process's own, free memory a container's, and running out is told from failing."""

import json
import platform
import subprocess
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

from helpers import settings
from helpers.speed import memory, results

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


# ---- what is free, and what a row may need


def test_what_is_tried_apart_leaves_room_for_every_measured_peak():
    """From 256 px and four pictures on, or as many pixels; below that what the imports hold is most of a peak."""
    times = []
    for path in RESULTS.glob("*.jsonl"):
        for row in results.read(path):
            side = row.get("height", row.get("size"))
            if row.get("peak_rss_mib") and row.get("base_rss_mib") and row["batch"] * side**2 >= 4 * 256**2:
                input_mib = row["batch"] * 3 * side**2 * 4 / 2**20
                times.append((row["peak_rss_mib"] - row["base_rss_mib"]) / input_mib)
    assert len(times) > 100 and max(times) < memory.TRY_APART / 2


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


COUNTED = {"base_rss_mib", "peak_rss_mib", "p50_ms", "page_faults", "system_ms"}


class Own(nn.Module):
    """A network of the reader's, whose class no other process can import."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(4, 8, 3)

    def forward(self, x):
        return self.convolution(x).mean((2, 3))


@pytest.mark.parametrize("what", ["path", "network", "model", "openvino"])
def test_peak_and_time_are_those_of_a_process_of_its_own(path, what):
    shape = (1, 4, 24, 40) if what == "model" else SHAPE
    given = {"path": path, "network": "mobilenet_v3_small", "model": Own().eval()}.get(what)
    if what == "openvino":
        pytest.importorskip("openvino")
        found = memory.measure_peak(shape=shape, threads=1, path=path, engine="openvino")
    else:
        found = memory.measure_peak(shape=shape, threads=1, **{what: given})
    assert set(found) == COUNTED and 0 < found["base_rss_mib"] < found["peak_rss_mib"] and found["p50_ms"] > 0
    if what == "path":
        assert found["base_rss_mib"] < 300, "PyTorch weighs on ONNX Runtime's number"


def test_session_options_and_environment_reach_the_process(child, path):
    asked = child(stdout="{}")
    memory.measure_peak(
        shape=SHAPE, threads=1, path=path, session_options={"enable_cpu_mem_arena": False}, environment={"A_NAME": "7"}
    )
    assert json.loads(asked.call_args.args[0][-1])["session_options"] == {"enable_cpu_mem_arena": False}
    assert asked.call_args.kwargs["env"]["A_NAME"] == "7" and "PATH" in asked.call_args.kwargs["env"]


@pytest.mark.skipif(not platform.libc_ver()[0].startswith("glibc"), reason="these variables are the GNU C library's")
def test_malloc_that_keeps_its_memory_faults_less():
    """Counted, not timed: what notebook 04 shows."""
    keep = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "8589934592"}
    usual, kept = (
        memory.measure_peak(
            shape=(16, 3, 256, 256), threads=1, network="mobilenet_v3_small", runs=3, environment=variables
        )["page_faults"]
        for variables in ({}, keep)
    )
    assert kept < usual / 2, f"{usual:.0f} page faults a run became {kept:.0f}"


def test_where_faults_are_not_counted_they_are_none(monkeypatch):
    monkeypatch.setattr(platform, "system", lambda: "Windows")
    found = memory._timed(lambda: None, 3)
    assert found["page_faults"] is None and found["system_ms"] is None and found["p50_ms"] >= 0


def test_only_torchvisions_own_networks_are_made_by_their_name():
    theirs = torchvision.models.mobilenet_v3_small(weights=None)
    assert memory.can_rebuild("mobilenet_v3_small", theirs)
    assert not memory.can_rebuild("mobilenet_v3_small", Own()) and not memory.can_rebuild("mine", theirs)


def test_broken_file_fails_with_the_reason(tmp_path):
    (tmp_path / "broken.onnx").write_bytes(b"this is no model")
    with pytest.raises(RuntimeError, match=r"ended with code 1: .*broken\.onnx") as caught:
        memory.measure_peak(shape=SHAPE, threads=1, path=tmp_path / "broken.onnx")
    assert not memory.is_out_of_memory(caught.value), "a broken file is taken for one that is too large"


# ---- how the process that measures ends


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
def test_one_of_network_model_and_file_is_needed(given):
    with pytest.raises(ValueError, match=r"Give one: the network or the model \(PyTorch\), or the path"):
        memory.measure_peak(shape=SHAPE, threads=1, **given)


def test_unknown_engine_is_refused(path):
    with pytest.raises(ValueError, match=r"'tensorrt'; it must be onnxruntime or openvino"):
        memory.measure_peak(shape=SHAPE, threads=1, path=path, engine="tensorrt")
