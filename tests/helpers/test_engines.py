"""helpers.engines: what runs is what was asked for, read back, and what is missing says so."""

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import onnx.parser
import onnxruntime as ort
import pytest
import torch
from torch import nn

from helpers import engines, settings
from notebooks.lessons import other_engines

X = np.random.default_rng(0).standard_normal((2, 3, 4, 4), dtype=np.float32)
TEXT = """<ir_version: 10, opset_import: ["": 18]>
g (float[N, 3, 4, 4] input) => (float[N, 3, 4, 4] logits) { logits = Relu(input) }"""


@pytest.fixture
def path(tmp_path):
    onnx.save(onnx.parser.parse_model(TEXT), tmp_path / "relu.onnx")
    return tmp_path / "relu.onnx"


@pytest.mark.parametrize("key", ["onnx_fix", "pytorch_cpu", engines.AA])
def test_a_column_computes_and_reads_back_provider_and_threads(path, key):
    backend = engines.open_column(key, model=nn.ReLU().eval(), path=path, x=X, threads=1)
    assert np.array_equal(backend.logits(), X.clip(0)) and backend.threads == 1
    assert backend.provider in ("CPUExecutionProvider", "PyTorch cpu") and backend() is not None
    assert np.array_equal(engines.onnxruntime(path, X, threads=1, copies=False).logits(), X.clip(0))


def test_pytorch_runs_without_autograd_on_a_copy():
    model = nn.Conv2d(3, 1, 1).eval()
    backend = engines.pytorch(model, X, threads=1)
    before = backend.logits()
    nn.init.zeros_(model.weight)
    assert np.array_equal(backend.logits(), before) and not backend.run().requires_grad


def test_sessions_keep_onnxruntimes_defaults_and_take_its_options(path):
    assert engines.onnx_session(path).get_session_options().intra_op_num_threads == 0
    options = ort.SessionOptions()
    options.enable_mem_pattern, options.intra_op_num_threads = False, 3
    found = engines.onnx_session(path.read_bytes(), options=options).get_session_options()
    assert (found.intra_op_num_threads, found.enable_mem_pattern) == (3, False)
    assert engines.onnxruntime(path, X, threads=2, options=options).threads == 2


def test_what_cannot_be_opened_says_why(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(engines.UnavailableError, match="pip install openvino"):
        other_engines.openvino(path, X, threads=1)
    with pytest.raises(ValueError, match="training mode"):
        engines.pytorch(nn.Dropout(), X, threads=1)
    with pytest.raises(ValueError, match="'onnx'; it must be one of onnx_fix"):
        engines.missing("onnx")
    with pytest.raises(ValueError, match=r"onnx_dyn runs an \.onnx file; path is None"):
        engines.open_column("onnx_dyn", model=nn.ReLU().eval(), path=None, x=X, threads=1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    for key, said in (("pytorch_gpu", "no CUDA GPU"), ("ort_gpu", "has no CUDAExecutionProvider")):
        with pytest.raises(engines.UnavailableError, match=said):
            engines.open_column(key, model=nn.ReLU().eval(), path=path, x=X, threads=1)


def test_a_provider_that_falls_back_is_refused(path, monkeypatch):
    """ONNX Runtime registers CUDA, finds no library, and takes the CPU: the column must not be the CPU in disguise."""
    fake, asked = SimpleNamespace(get_providers=lambda: ["CPUExecutionProvider"]), []
    monkeypatch.setattr(ort, "get_available_providers", lambda: list(engines.PROVIDERS.values()))
    monkeypatch.setattr(ort, "preload_dlls", lambda: None)
    monkeypatch.setattr(
        ort, "InferenceSession", lambda _, *options, providers: asked.append((*options, providers)) or fake
    )
    with pytest.raises(engines.UnavailableError, match="took CPUExecutionProvider, not CUDA"):
        engines.onnx_session(path, device="cuda")
    ((options, providers),) = asked
    assert providers == [("CUDAExecutionProvider", {"use_tf32": "0"})]
    assert options.get_session_config_entry("session.disable_cpu_ep_fallback") == "1"


def test_a_cpu_run_never_waits_for_an_accelerator(monkeypatch):
    for place in (torch.cuda, torch.accelerator):
        monkeypatch.setattr(place, "synchronize", lambda *_: pytest.fail("a CPU column waited for a GPU"))
    engines.pytorch(nn.ReLU().eval(), X, threads=1).run()


def test_other_engines_run_without_pytorch_and_openvino_without_its_telemetry(path):
    """PyTorch would weigh on their memory; OpenVINO's package tells Google Analytics of every import."""
    code = """import sys, numpy
from helpers import engines
from notebooks.lessons import other_engines
x = numpy.ones((1, 3, 4, 4), numpy.float32)
engines.open_column("onnx_fix", model=None, path=sys.argv[1], x=x, threads=1)()
try:
    print(other_engines.openvino(sys.argv[1], x, threads=1).logits().sum())
except engines.UnavailableError:
    print(48.0)
print([name for name in ("torch", "openvino_telemetry") if sys.modules.get(name)])"""
    command = [sys.executable, "-c", code, path]
    done = subprocess.run(command, cwd=settings.ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "48.0\n[]\n"
