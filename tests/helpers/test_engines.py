"""helpers/backends.py: every backend gives the same logits, and threads and provider are those asked for."""

import copy
import gc
import os
import time
import warnings
from unittest.mock import Mock, call

import numpy as np
import onnxruntime as ort
import psutil
import pytest
import torch
from torch import nn

from helpers import engines

OPENED_BY = {  # column: (function, device, copies)
    "onnx_fix": ("onnxruntime", "cpu", True),
    "onnx_fix_sim": ("onnxruntime", "cpu", True),
    "onnx_dyn": ("onnxruntime", "cpu", True),
    "onnx_dyn_sim": ("onnxruntime", "cpu", True),
    "pytorch_cpu": ("pytorch", "cpu", True),
    "pytorch_gpu": ("pytorch", "cuda", False),
    "pytorch_gpu_copies": ("pytorch", "cuda", True),
    "ort_gpu": ("onnxruntime", "cuda", False),
    "ort_gpu_copies": ("onnxruntime", "cuda", True),
}
GPU_COLUMNS = [column for column, (_, device, _) in OPENED_BY.items() if device == "cuda"]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)
    return nn.Sequential(*layers).eval()


@pytest.fixture(scope="module")
def path(tmp_path_factory, model):
    path = tmp_path_factory.mktemp("backends") / "tiny.onnx"
    torch.onnx.export(model, (torch.zeros(1, 3, 32, 32),), path, external_data=False, verbose=False)
    return path


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).standard_normal((1, 3, 32, 32), dtype=np.float32)


@pytest.fixture(scope="module")
def expected(model, x):
    with torch.inference_mode():
        return model(torch.from_numpy(x)).numpy()


@pytest.fixture(autouse=True)
def threads_of_the_process():
    """Give PyTorch's thread pool, which the whole process shares, its threads back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(ort, "get_available_providers", lambda: [engines.PROVIDERS["cpu"]])


# ---- what they compute


@pytest.mark.parametrize("copies", [True, False])
def test_pytorch_gives_the_networks_logits(model, x, expected, copies):
    logits = engines.pytorch(model, x, threads=1, copies=copies).logits()
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("copies", [True, False], ids=["copies", "IO binding"])
def test_onnxruntime_gives_the_networks_logits(path, x, expected, copies):
    logits = engines.onnxruntime(path, x, threads=1, copies=copies).logits()
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("copies", [True, False])
def test_logits_are_the_same_after_timed_runs(model, path, x, copies):
    for backend in (
        engines.pytorch(model, x, threads=1, copies=copies),
        engines.onnxruntime(path, x, threads=1, copies=copies),
    ):
        before = backend.logits().copy()
        for _ in range(3):
            backend.run()
        np.testing.assert_array_equal(backend.logits(), before, err_msg=backend.provider)


def test_logits_are_float32_of_one_row_a_picture(model, path, x):
    for backend in (engines.pytorch(model, x, threads=1), engines.onnxruntime(path, x, threads=1)):
        logits = backend.logits()
        assert (logits.shape, logits.dtype) == ((1, 10), np.float32), backend.provider


def test_path_may_be_text(path, x, expected):
    np.testing.assert_allclose(engines.onnxruntime(str(path), x, threads=1).logits(), expected, rtol=1e-4, atol=1e-5)


def test_pytorch_keeps_no_gradients(model, x):
    assert engines.pytorch(model, x, threads=1).run().is_inference()


def test_network_in_training_mode_is_refused(model, x):
    training = copy.deepcopy(model).train()
    with pytest.raises(ValueError, match=r"training mode: call model\.eval\(\)"):
        engines.pytorch(training, x, threads=1)


# ---- what is read back


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_read_back_are_those_asked_for(model, path, x, threads):
    assert engines.pytorch(model, x, threads=threads).threads == torch.get_num_threads() == threads
    assert engines.onnxruntime(path, x, threads=threads).threads == threads


@pytest.mark.skipif(os.name == "nt", reason="Windows adds threads of its own to a process at any time")
def test_onnxruntime_starts_its_threads_and_ends_them(path, x):
    single = engines.onnxruntime(path, x, threads=1)  # what is started once a process is started now
    single.run()
    gc.collect()
    before = psutil.Process().num_threads()
    backend = engines.onnxruntime(path, x, threads=4)
    backend.run()
    assert psutil.Process().num_threads() - before == 3, "four threads are the caller's and three more"
    del backend
    gc.collect()
    deadline = time.monotonic() + 10  # a thread that has ended may be counted a moment longer
    while psutil.Process().num_threads() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert psutil.Process().num_threads() == before, "threads go on after their session is gone"


def test_provider_and_load_time_are_told(model, path, x):
    found = engines.pytorch(model, x, threads=1)
    assert (found.provider, found.load_ms) == ("PyTorch cpu", None), "the network was in memory: nothing is loaded"
    found = engines.onnxruntime(path, x, threads=1)
    assert found.provider == "CPUExecutionProvider" and found.load_ms >= 0


# ---- what is missing


def test_this_machine_lacks_no_cpu_column(no_gpu):
    assert [engines.missing(column) for column in OPENED_BY if column not in GPU_COLUMNS] == [""] * 5


@pytest.mark.parametrize("column", GPU_COLUMNS)
def test_machine_without_a_gpu_says_what_it_lacks(no_gpu, column):
    wanted = "PyTorch finds no CUDA GPU" if "pytorch" in column else "ONNX Runtime has no CUDAExecutionProvider"
    assert engines.missing(column) == wanted


def test_machine_with_a_gpu_lacks_nothing(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(ort, "get_available_providers", lambda: list(engines.PROVIDERS.values()))
    assert {column: engines.missing(column) for column in OPENED_BY} == dict.fromkeys(OPENED_BY, "")


def test_backends_on_a_missing_gpu_are_unavailable(no_gpu, model, path, x):
    with pytest.raises(engines.UnavailableError, match=r"PyTorch finds no CUDA GPU"):
        engines.pytorch(model, x, threads=1, device="cuda")
    with pytest.raises(engines.UnavailableError, match=r"has no CUDAExecutionProvider"):
        engines.onnxruntime(path, x, threads=1, device="cuda")


def test_session_that_falls_back_is_unavailable(monkeypatch, path, x):
    """A session that cannot have the GPU takes the CPU and works: its times would stand under the GPU's name."""
    session = ort.InferenceSession
    monkeypatch.setattr(ort, "get_available_providers", lambda: list(engines.PROVIDERS.values()))
    monkeypatch.setattr(
        ort, "InferenceSession", lambda path, options, providers: session(path, providers=["CPUExecutionProvider"])
    )
    with pytest.raises(engines.UnavailableError, match=r"took CPUExecutionProvider, not CUDAExecutionProvider"):
        engines.onnxruntime(path, x, threads=1, device="cuda")


def test_real_session_without_the_provider_is_unavailable(monkeypatch, path, x):
    if engines.PROVIDERS["cuda"] in ort.get_available_providers():
        pytest.skip("this ONNX Runtime has the CUDA provider")
    monkeypatch.setattr(ort, "get_available_providers", lambda: list(engines.PROVIDERS.values()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ONNX Runtime warns of what the test does on purpose
        with pytest.raises(engines.UnavailableError, match=r"CUDAExecutionProvider"):
            engines.onnxruntime(path, x, threads=1, device="cuda")


# ---- columns


def test_every_column_is_tested_and_the_reference_is_one():
    assert list(engines.COLUMNS) == list(OPENED_BY)
    assert engines.REFERENCE in engines.COLUMNS


@pytest.mark.parametrize("column", OPENED_BY)
def test_column_opens_its_backend(monkeypatch, column):
    asked = Mock()
    monkeypatch.setattr(backends, "missing", lambda column: "")
    monkeypatch.setattr(backends, "pytorch", asked.pytorch)
    monkeypatch.setattr(backends, "onnxruntime", asked.onnxruntime)
    engines.open_column(column, model="the model", path="the path", x="x", threads=3)
    function, device, copies = OPENED_BY[column]
    what = "the model" if function == "pytorch" else "the path"
    assert asked.mock_calls == [getattr(call, function)(what, "x", threads=3, device=device, copies=copies)]


def test_columns_that_can_be_opened_here_agree(model, path, x, expected):
    for column in ("onnx_fix", "pytorch_cpu"):
        logits = engines.open_column(column, model=model, path=path, x=x, threads=1).logits()
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5, err_msg=column)


@pytest.mark.parametrize("column", GPU_COLUMNS)
def test_missing_column_is_not_opened(no_gpu, column):
    with pytest.raises(engines.UnavailableError, match=r"CUDA"):
        engines.open_column(column, model=None, path=None, x=None, threads=1)


def test_unknown_column_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"'onnx_fixed'; it must be one of onnx_fix, "):
        engines.open_column("onnx_fixed", model=None, path=None, x=None, threads=1)
    with pytest.raises(ValueError, match=r"'onnx_fixed'; it must be one of onnx_fix, "):
        engines.missing("onnx_fixed")
