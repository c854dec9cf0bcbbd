"""Engines: the one place that opens sessions. A network that is loaded, its input bound, in whatever engine.

Taught in notebooks/04_speed_resnet18.ipynb; opened by hand in notebooks/11_one_file_many_engines.ipynb. PyTorch is
imported only where it runs, so that a service and the process that measures memory can use this module without it.
"""

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime as ort

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Column:
    """A column of the speed tables: which engine runs which file where."""

    key: str  # as it stands in results files
    label: str  # as it stands in tables and plots
    engine: str  # "pytorch" or "onnxruntime"
    device: str = "cpu"  # or "cuda"
    copies: bool = True  # each run takes its input from the host and brings the logits back
    file: str | None = None  # "fix", "fix_sim", "dyn" or "dyn_sim"; None: no file, PyTorch runs the network itself


COLUMNS = {
    column.key: column
    for column in (
        Column("onnx_fix", "ONNX fix", "onnxruntime", file="fix"),
        Column("onnx_fix_sim", "ONNX fix+sim", "onnxruntime", file="fix_sim"),
        Column("onnx_dyn", "ONNX dyn", "onnxruntime", file="dyn"),
        Column("onnx_dyn_sim", "ONNX dyn+sim", "onnxruntime", file="dyn_sim"),
        Column("pytorch_cpu", "PyTorch CPU", "pytorch"),
        Column("pytorch_gpu", "PyTorch GPU", "pytorch", "cuda", copies=False),
        Column("pytorch_gpu_copies", "PyTorch GPU + copies", "pytorch", "cuda"),
        Column("ort_gpu", "ONNX Runtime GPU", "onnxruntime", "cuda", copies=False, file="fix"),
        Column("ort_gpu_copies", "ONNX Runtime GPU + copies", "onnxruntime", "cuda", file="fix"),
        Column("onnx_fix_again", "ONNX fix, opened again", "onnxruntime", file="fix"),  # A/A: for the noise floor
    )
}
REFERENCE, AA = "pytorch_cpu", "onnx_fix_again"
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


@dataclass(frozen=True)
class Backend:
    """A network that is loaded and has its input bound."""

    run: Callable[[], object]  # what the clock times; it returns when the work is done
    logits: Callable[[], np.ndarray]  # runs once, returns the logits on the host: (N, classes)
    provider: str  # who computes, read back
    threads: int  # read back
    device_ms: Callable[[], float] | None = None  # one run by the GPU's own clock

    def __call__(self) -> object:
        """Run once."""
        return self.run()


class UnavailableError(RuntimeError):
    """A backend that this machine or this installation does not have; the message says what is missing."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what ONNX Runtime's C++ prints of an attempt that may fail off stderr: its exception says the same."""
    ort.set_default_logger_severity(4)
    try:
        yield
    finally:
        ort.set_default_logger_severity(2)  # its default


def missing(key: str) -> str:
    """Return what this machine or installation lacks for a column of the speed tables, "" if nothing.

    Raises:
        ValueError: if there is no such column.
    """
    if key not in COLUMNS:
        raise ValueError(f"The column is {key!r}; it must be one of {', '.join(COLUMNS)}.")
    column = COLUMNS[key]
    if column.engine == "onnxruntime":
        found = PROVIDERS[column.device] in ort.get_available_providers()
        return "" if found else f"ONNX Runtime has no {PROVIDERS[column.device]}"
    import torch

    return "" if column.device == "cpu" or torch.cuda.is_available() else "PyTorch finds no CUDA GPU"


def open_column(key: str, *, model: "nn.Module", path: str | Path | None, x: np.ndarray, threads: int) -> Backend:
    """Make the backend that stands behind a column of the speed tables.

    Args:
        key: of ``COLUMNS``.
        model: the network, in eval mode; the PyTorch columns run a copy of it.
        path: the .onnx file; the other columns run it.
        x: input, shape (N, C, H, W), float32.
        threads: for every backend the same.
    Returns:
        The backend, its input bound.
    Raises:
        ValueError: if there is no such column, or no file for one that needs it.
        UnavailableError: if the column's device or provider is missing.
    """
    if lack := missing(key):
        raise UnavailableError(lack)
    column = COLUMNS[key]
    if column.engine == "pytorch":
        return pytorch(model, x, threads=threads, device=column.device, copies=column.copies)
    if path is None:
        raise ValueError(f"The column {key} runs an .onnx file; path is None.")
    return onnxruntime(path, x, threads=threads, device=column.device, copies=column.copies)


def pytorch(model: "nn.Module", x: np.ndarray, *, threads: int, device: str = "cpu", copies: bool = True) -> Backend:
    """Make a PyTorch backend with a copy of the network: inference mode, float32 (on a GPU no TF32).

    Args:
        model: the network, in eval mode.
        x: input, shape (N, C, H, W), float32.
        threads: of PyTorch's thread pool, which the whole process shares.
        device: "cpu" or "cuda".
        copies: each run copies the input to the device and the logits back; on the CPU there is nothing to copy.
    Returns:
        The backend, its input bound.
    Raises:
        ValueError: if the network is in training mode.
    """
    import torch

    if model.training:
        raise ValueError("The network is in training mode: call model.eval() first (notebook 08 shows why).")
    torch.set_num_threads(threads)
    if device == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark = True  # it searches for the fastest algorithm, as ONNX Runtime does by default
    model, on_host = copy.deepcopy(model).to(device), torch.from_numpy(x)
    bound = on_host.to(device)

    @torch.inference_mode()
    def run() -> torch.Tensor:
        if device == "cpu":
            return model(bound)
        found = model(on_host.to(device)).cpu() if copies else model(bound)
        torch.cuda.synchronize()  # a GPU's work is only started when the call returns
        return found

    @torch.inference_mode()
    def device_ms() -> float:
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        model(bound)
        ended.record()
        torch.cuda.synchronize()
        return began.elapsed_time(ended)

    found = next(iter(model.state_dict().values()), bound).device.type
    own_clock = device_ms if device == "cuda" else None
    return Backend(run, lambda: run().cpu().numpy(), f"PyTorch {found}", torch.get_num_threads(), own_clock)


def onnx_session(
    path: str | Path | bytes,
    *,
    threads: int | None = None,
    device: str = "cpu",
    options: ort.SessionOptions | None = None,
) -> ort.InferenceSession:
    """Open an ONNX Runtime session as the course measures it: its defaults, spinning threads included; no TF32.

    Args:
        path: the .onnx file, or its bytes.
        threads: of the session's own pool; what ``options`` say, by default the physical cores, if not given.
        device: "cpu" or "cuda"; nodes that it cannot run are refused, not handed to the CPU unseen.
        options: the session's options, such as the level of graph optimisation.
    Returns:
        The session.
    Raises:
        UnavailableError: if ONNX Runtime does not have the provider for this device, or takes another one.
    """
    name, options = PROVIDERS[device], options or ort.SessionOptions()
    options.intra_op_num_threads = threads or options.intra_op_num_threads
    if device == "cpu":
        return ort.InferenceSession(path, options, providers=[name])
    if name not in ort.get_available_providers():
        raise UnavailableError(f"ONNX Runtime has no {name}")
    ort.preload_dlls()  # finds the CUDA libraries that PyTorch's packages brought
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    session = ort.InferenceSession(path, options, providers=[(name, {"use_tf32": "0"})])
    if session.get_providers()[0] != name:
        raise UnavailableError(f"ONNX Runtime took {session.get_providers()[0]}, not {name}: are its libraries there?")
    return session


def onnxruntime(
    path: str | Path | bytes,
    x: np.ndarray,
    *,
    threads: int,
    device: str = "cpu",
    copies: bool = True,
    options: ort.SessionOptions | None = None,
) -> Backend:
    """Make an ONNX Runtime backend with a session of its own, as ``onnx_session`` opens it.

    Args:
        path: the .onnx file, or its bytes, with one input and logits as its first output.
        x: input, shape (N, C, H, W), in the type that the file takes.
        threads: of the session's own thread pool.
        device: "cpu" or "cuda".
        copies: each run takes the input from the host and brings the logits back; if not, both stay on the device.
        options: the session's options.
    Returns:
        The backend, its input bound.
    Raises:
        UnavailableError: as ``onnx_session``.
    """
    session = onnx_session(path, threads=threads, device=device, options=options)
    name, used = session.get_inputs()[0].name, session.get_session_options().intra_op_num_threads
    if copies:
        run = functools.partial(session.run, None, {name: x})
        return Backend(run, lambda: run()[0], session.get_providers()[0], used)
    binding = session.io_binding()
    binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(x, device, 0))
    binding.bind_output(session.get_outputs()[0].name, device)

    def logits() -> np.ndarray:
        session.run_with_iobinding(binding)
        return binding.copy_outputs_to_cpu()[0]

    return Backend(lambda: session.run_with_iobinding(binding), logits, session.get_providers()[0], used)
