"""helpers.speed.memory: peaks are a process's own, free memory a container's, and no memory is told from failing."""

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
from speed_tables import collected
from torch import nn

from helpers import counters
from helpers.speed import memory

SHAPE = (1, 3, 32, 32)
GIB = 2**30
HEAD = '<ir_version: 10, opset_import: ["": 18]> g '
SMALL = HEAD + "(float[1, 3, 32, 32] x) => (float[1, 3, 32, 32] y) { y = Relu(x) }"
AS_LARGE_AS_TOLD = HEAD + "(int64[1] s) => (float[n] y) { y = ConstantOfShape(s) }"


@pytest.fixture
def path(tmp_path):
    onnx.save(onnx.parser.parse_model(SMALL), tmp_path / "small.onnx")
    return tmp_path / "small.onnx"


def test_what_is_tried_apart_leaves_room_for_every_measured_peak():
    """From 256 px and four pictures on, or as many pixels; below that what the imports hold is most of a peak."""
    table, _ = collected()
    pixels = table["batch"] * table["height"] * table["width"]
    times = (table["peak_rss_mib"] - table["base_rss_mib"]) / (pixels * 3 * 4 / 2**20)
    times = times[pixels >= 4 * 256**2].dropna()
    assert len(times) > 100 and times.max() < memory.TRY_APART / 2


def test_available_memory_honours_the_tightest_group(monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=8 * GIB))
    for limits, expected_mib in (([(9, GIB), (9, 2 * GIB)], 1024), ([(9, 99 * GIB)], 8192), ([], 8192)):
        monkeypatch.setattr(counters, "memory_limits", lambda limits=limits: limits)
        assert memory.available_mib() == expected_mib


@pytest.mark.parametrize(
    ("error", "ran_out"),
    [
        (RuntimeError("CUDA out of memory. Tried to"), True),
        (RuntimeError("std::bad_alloc"), True),
        (OSError(12, "Cannot allocate memory"), True),
        (RuntimeError("Load model failed: Protobuf parsing failed."), False),
        (OSError(28, "No space left on device"), False),
    ],
    ids=str,
)
def test_memory_that_ran_out_is_told_from_other_errors(error, ran_out):
    assert memory.is_out_of_memory(error) == ran_out


def test_more_memory_than_any_machine_has_is_told_as_that():
    large = onnx.parser.parse_model(AS_LARGE_AS_TOLD).SerializeToString()
    session = ort.InferenceSession(large, providers=["CPUExecutionProvider"])
    for ask in (np.empty, torch.empty, lambda n: session.run(None, {"s": np.array([n])})):
        with pytest.raises(Exception) as caught:  # each library has its own
            ask(2**59)
        assert memory.is_out_of_memory(caught.value), f"not seen as out of memory: {caught.value!r}"


class Own(nn.Module):
    """A network of the reader's, whose class no other process can import."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(4, 8, 3)

    def forward(self, x):
        return self.convolution(x).mean((2, 3))


@pytest.mark.parametrize("what", ["path", "model"])
def test_peak_and_time_are_those_of_a_process_of_its_own(path, what):
    given = {"path": path} if what == "path" else {"model": Own().eval()}
    found = memory.measure_peak(shape=SHAPE if what == "path" else (1, 4, 24, 40), threads=1, **given)
    assert set(found) == {"base_rss_mib", "peak_rss_mib", "p50_ms", "page_faults", "system_ms"}
    assert 0 < found["base_rss_mib"] < found["peak_rss_mib"] and found["p50_ms"] > 0
    assert what != "path" or found["base_rss_mib"] < 300, "PyTorch weighs on ONNX Runtime's number"


@pytest.mark.slow
@pytest.mark.skipif(not platform.libc_ver()[0].startswith("glibc"), reason="these variables are the GNU C library's")
def test_malloc_that_keeps_its_memory_faults_less():
    """Counted, not timed: what notebook 04 shows. And the environment reaches the process."""
    keep = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "8589934592"}
    what = {"shape": (8, 3, 256, 256), "threads": 2, "network": "mobilenet_v3_small", "runs": 3}
    usual, kept = (memory.measure_peak(**what, environment=added)["page_faults"] for added in ({}, keep))
    assert kept < usual / 2, f"{usual:.0f} page faults a run became {kept:.0f}"


@pytest.mark.parametrize(
    ("code", "stderr", "said", "memory_ran_out"),
    [
        (-9, "", r"\(1, 3, 32, 32\): killed by the system", True),
        (1, "numpy._core._exceptions._ArrayMemoryError: Unable to allocate 4.00 GiB", "_ArrayMemoryError", True),
        (-6, "terminate called\nwhat():  std::bad_alloc", "std::bad_alloc", True),
        (3, "a\nValueError: no\n", "code 3: ValueError: no", False),
    ],
)
def test_how_the_process_ended_is_said(monkeypatch, path, code, stderr, said, memory_ran_out):
    done = SimpleNamespace(returncode=code, stdout="", stderr=stderr)
    monkeypatch.setattr(subprocess, "run", Mock(return_value=done))
    with pytest.raises(RuntimeError, match=said) as caught:
        memory.measure_peak(shape=SHAPE, threads=1, path=path)
    assert isinstance(caught.value, memory.OutOfMemoryError) == memory_ran_out
