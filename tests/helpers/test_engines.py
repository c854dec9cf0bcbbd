"""helpers.engines: what runs is what was asked for, read back, and what is missing says so."""

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import onnx.parser
import pytest
import torch
from torch import nn

from helpers import engines, settings

X = np.random.default_rng(0).standard_normal((2, 3, 4, 4), dtype=np.float32)
TEXT = """<ir_version: 10, opset_import: ["": 18]>
g (float[N, 3, 4, 4] input) => (float[N, 3, 4, 4] logits) { logits = Relu(input) }"""


@pytest.fixture
def path(tmp_path):
    onnx.save(onnx.parser.parse_model(TEXT), tmp_path / "relu.onnx")
    return tmp_path / "relu.onnx"


def test_columns_are_objects_that_agree_with_their_keys():
    assert engines.REFERENCE in engines.COLUMNS and engines.AGAIN in engines.COLUMNS
    for key, column in engines.COLUMNS.items():
        assert column.key == key and (column.device == "cuda") == ("gpu" in key)
        assert (column.file is None) == (column.engine == "pytorch")


@pytest.mark.parametrize("key", ["onnx_fix", "pytorch_cpu", engines.AGAIN])
def test_a_column_computes_and_reads_back_provider_and_threads(path, key):
    backend = engines.open_column(key, model=nn.ReLU().eval(), path=path, x=X, threads=1)
    assert np.array_equal(backend.logits(), X.clip(0)) and backend.threads == 1 and backend.load_ms >= 0
    assert backend.provider in ("CPUExecutionProvider", "PyTorch cpu")
    assert backend() is not None


def test_pytorch_runs_without_autograd_on_a_copy():
    model = nn.Conv2d(3, 1, 1).eval()
    backend = engines.pytorch(model, X, threads=1)
    before = backend.logits()
    nn.init.zeros_(model.weight)
    assert np.array_equal(backend.logits(), before) and not backend.run().requires_grad


def test_train_mode_is_refused():
    with pytest.raises(ValueError, match="training mode"):
        engines.pytorch(nn.Dropout(), X, threads=1)


def test_sessions_keep_onnxruntimes_defaults_and_take_options(path):
    session = engines.onnx_session(path)
    assert session.get_session_options().intra_op_num_threads == 0
    chosen = engines.onnx_session(path, threads=2, level="ORT_ENABLE_BASIC", options={"enable_mem_pattern": False})
    found = chosen.get_session_options()
    assert (found.intra_op_num_threads, found.enable_mem_pattern) == (2, False)
    assert "BASIC" in str(found.graph_optimization_level)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_its_columns_say_so(path):
    assert engines.missing("pytorch_gpu") == "PyTorch finds no CUDA GPU"
    with pytest.raises(engines.UnavailableError, match="no CUDA GPU"):
        engines.open_column("pytorch_gpu", model=nn.ReLU().eval(), path=None, x=X, threads=1)
    if engines.PROVIDERS["cuda"] not in engines.ort.get_available_providers():
        with pytest.raises(engines.UnavailableError, match="has no CUDAExecutionProvider"):
            engines.onnxruntime(path, X, threads=1, device="cuda")


def test_a_provider_that_falls_back_is_refused(path, monkeypatch):
    """ONNX Runtime registers CUDA, finds no library, and takes the CPU: the column must not be the CPU in disguise."""
    monkeypatch.setattr(engines.ort, "get_available_providers", lambda: list(engines.PROVIDERS.values()))
    monkeypatch.setattr(engines.ort, "preload_dlls", lambda: None, raising=False)
    fake = SimpleNamespace(get_providers=lambda: ["CPUExecutionProvider"])
    asked = []
    monkeypatch.setattr(
        engines.ort, "InferenceSession", lambda path, options, providers: asked.append((options, *providers)) or fake
    )
    for own, tf32 in ((None, "0"), ({"use_tf32": "1"}, "1")):
        with pytest.raises(engines.UnavailableError, match="took CPUExecutionProvider, not CUDA"):
            engines.onnx_session(path, provider="cuda", provider_options=own)
        options, provider = asked.pop()
        assert provider == ("CUDAExecutionProvider", {"use_tf32": tf32})
        assert options.get_session_config_entry("session.disable_cpu_ep_fallback") == "1"


def test_a_cpu_run_never_waits_for_an_accelerator(monkeypatch):
    def waits(*_):
        raise AssertionError("a CPU column waited for a GPU")

    for place in (torch.cuda, torch.accelerator):
        monkeypatch.setattr(place, "synchronize", waits)
    engines.pytorch(nn.ReLU().eval(), X, threads=1).run()


def test_unknown_columns_are_named():
    with pytest.raises(ValueError, match="'onnx'; it must be one of onnx_fix"):
        engines.missing("onnx")


@pytest.mark.parametrize(("name", "call"), [("openvino", "openvino"), ("ncnn", "ncnn")])
def test_engines_that_are_not_installed_say_how(monkeypatch, path, name, call):
    monkeypatch.setitem(sys.modules, name, None)
    arguments = (path, X) if call == "openvino" else (path, path, X)
    with pytest.raises(engines.UnavailableError, match=f"pip install {name}"):
        getattr(engines, call)(*arguments, threads=1)


def test_openvino_computes_in_the_precision_asked_for(path):
    pytest.importorskip("openvino")
    backend = engines.openvino(path, X, threads=1)
    assert np.allclose(backend.logits(), X.clip(0)) and backend.provider == "OpenVINO f32" and backend.threads == 1


def test_quiet_puts_the_severity_back_also_after_an_error(monkeypatch):
    said = []
    monkeypatch.setattr(engines.ort, "set_default_logger_severity", said.append)
    with pytest.raises(RuntimeError), engines.quiet():
        raise RuntimeError
    assert said == [4, 2]


def test_openvino_is_used_without_its_telemetry(path):
    """Its package tells Google Analytics of every import, unless its own stub takes that part's place."""
    pytest.importorskip("openvino")
    code = """import sys, numpy
from helpers import engines
engines.openvino(sys.argv[1], numpy.ones((1, 3, 4, 4), numpy.float32), threads=1)()
print([name for name, module in sys.modules.items() if name.startswith("openvino_telemetry") and module])"""
    command = [sys.executable, "-c", code, path]
    done = subprocess.run(command, cwd=settings.ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
