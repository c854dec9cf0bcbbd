"""Backends: a network that is loaded, with its input bound, and the threads and provider it really uses.

Taught in notebooks/04_speed_resnet18.ipynb.
"""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from torch import nn

# column -> its name in tables and plots, in the order of the article
COLUMNS = {
    "onnx_fix": "ONNX fix",
    "onnx_fix_sim": "ONNX fix+sim",
    "onnx_dyn": "ONNX dyn",
    "onnx_dyn_sim": "ONNX dyn+sim",
    "pytorch_cpu": "PyTorch CPU",
    "pytorch_gpu": "PyTorch GPU",
    "pytorch_gpu_copies": "PyTorch GPU + copies",
    "ort_gpu": "ONNX Runtime GPU",
    "ort_gpu_copies": "ONNX Runtime GPU + copies",
}
REFERENCE = "pytorch_cpu"
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


@dataclass(frozen=True)
class Backend:
    """A network that is loaded and has its input bound."""

    run: Callable[[], object]  # what the clock times
    logits: Callable[[], np.ndarray]  # runs once, returns the logits on the CPU: (N, classes)
    provider: str  # who computes, read back
    threads: int  # read back
    load_ms: float | None  # None where nothing was loaded: PyTorch's network is in memory already


class UnavailableError(RuntimeError):
    """A backend that this machine or this installation does not have; the message says what is missing."""


def pytorch(model: nn.Module, x: np.ndarray, *, threads: int, device: str = "cpu", copies: bool = True) -> Backend:
    """Make a PyTorch backend: eval mode, inference mode, float32 (no TF32 on a GPU, as the CPU has none).

    Args:
        model: the network, in eval mode; another device gets a copy of its own.
        x: input, shape (N, 3, H, W), float32.
        threads: of PyTorch's thread pool, which the whole process shares.
        device: "cpu" or "cuda".
        copies: each run copies the input to the device and the logits back; on the CPU there is nothing to copy.
    Raises:
        ValueError: if the network is in training mode.
        UnavailableError: if PyTorch finds no such device.
    """
    if model.training:
        raise ValueError("The network is in training mode: call model.eval() first (notebook 08 shows why).")
    if device == "cuda" and not torch.cuda.is_available():
        raise UnavailableError("PyTorch finds no CUDA GPU")
    torch.set_num_threads(threads)
    start = time.perf_counter()
    if device != "cpu":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        model = copy.deepcopy(model).to(device)
    load_ms = (time.perf_counter() - start) * 1e3 if device != "cpu" else None
    on_host = torch.from_numpy(x)
    bound = on_host.to(device)

    @torch.inference_mode()
    def run() -> torch.Tensor:
        return model(on_host.to(device)).cpu() if copies else model(bound)

    found = next(model.parameters()).device
    return Backend(run, lambda: run().cpu().numpy(), f"PyTorch {found.type}", torch.get_num_threads(), load_ms)


def onnxruntime(
    path: str | Path | bytes, x: np.ndarray, *, threads: int, device: str = "cpu", copies: bool = True
) -> Backend:
    """Make an ONNX Runtime backend with a session of its own.

    Its threads stop spinning when a run ends: spinning on, they would slow the next backend in this process.

    Args:
        path: the .onnx file, or its bytes, with one input and logits as its first output.
        x: input, shape (N, 3, H, W), float32.
        threads: of the session's own thread pool.
        device: "cpu" or "cuda".
        copies: each run takes the input from the CPU and brings the logits back; if not, both stay on the device.
    Raises:
        UnavailableError: if ONNX Runtime has no provider for this device, or falls back to another one.
    """
    provider = PROVIDERS[device]
    if provider not in ort.get_available_providers():
        raise UnavailableError(f"ONNX Runtime has no {provider}")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.force_spinning_stop", "1")
    chosen = (provider, {"use_tf32": "0"}) if device == "cuda" else provider
    start = time.perf_counter()
    session = ort.InferenceSession(path, options, providers=[chosen])
    session.disable_fallback()  # a provider that fails in a run must not hand over to the CPU unseen
    load_ms = (time.perf_counter() - start) * 1e3
    found = session.get_providers()[0]
    if found != provider:
        raise UnavailableError(f"ONNX Runtime took {found}, not {provider}")
    name = session.get_inputs()[0].name
    if copies:

        def run() -> object:
            return session.run(None, {name: x})

        def logits() -> np.ndarray:
            return session.run(None, {name: x})[0]

    else:
        binding = session.io_binding()
        binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(x, device, 0))
        binding.bind_output(session.get_outputs()[0].name, device)

        def run() -> object:
            return session.run_with_iobinding(binding)

        def logits() -> np.ndarray:
            session.run_with_iobinding(binding)
            return binding.copy_outputs_to_cpu()[0]

    return Backend(run, logits, found, session.get_session_options().intra_op_num_threads, load_ms)


def missing(column: str) -> str:
    """Return what this machine or installation lacks for a column of the speed tables, "" if nothing.

    Raises:
        ValueError: if there is no such column.
    """
    if column not in COLUMNS:
        raise ValueError(f"The column is {column!r}; it must be one of {', '.join(COLUMNS)}.")
    if column.startswith("pytorch_gpu") and not torch.cuda.is_available():
        return "PyTorch finds no CUDA GPU"
    if column.startswith("ort_gpu") and PROVIDERS["cuda"] not in ort.get_available_providers():
        return f"ONNX Runtime has no {PROVIDERS['cuda']}"
    return ""


def open_column(column: str, *, model: nn.Module, path: str | Path | None, x: np.ndarray, threads: int) -> Backend:
    """Make the backend that stands behind a column of the speed tables.

    Args:
        column: a key of ``COLUMNS``.
        model: the network, in eval mode; the PyTorch columns run it.
        path: the .onnx file; the other columns run it.
        x: input, shape (N, 3, H, W), float32.
        threads: for every backend the same.
    Raises:
        ValueError: if there is no such column.
        UnavailableError: if the column's device or provider is missing.
    """
    if lack := missing(column):
        raise UnavailableError(lack)
    device = "cuda" if "gpu" in column else "cpu"
    copies = device == "cpu" or column.endswith("_copies")
    if column.startswith("pytorch"):
        return pytorch(model, x, threads=threads, device=device, copies=copies)
    return onnxruntime(path, x, threads=threads, device=device, copies=copies)
