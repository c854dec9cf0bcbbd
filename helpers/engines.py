"""Engines: a network that is loaded, with its input bound, and the threads and provider that it really uses.

Taught in notebooks/04_speed_resnet18.ipynb; opened by hand in notebooks/11_one_file_many_engines.ipynb.
"""

import contextlib
import copy
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
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
        Column("onnx_fix_again", "ONNX fix, opened again", "onnxruntime", file="fix"),  # for the floor: A and A again
    )
}
REFERENCE, AGAIN = "pytorch_cpu", "onnx_fix_again"
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


@dataclass(frozen=True)
class Backend:
    """A network that is loaded and has its input bound."""

    run: Callable[[], object]  # what the clock times; it returns when the work is done
    logits: Callable[[], np.ndarray]  # runs once, returns the logits on the host: (N, classes)
    provider: str  # who computes, read back
    threads: int  # read back
    load_ms: float | None = None  # None where nothing was loaded
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
    if column.device == "cuda" and column.engine == "pytorch" and not torch.cuda.is_available():
        return "PyTorch finds no CUDA GPU"
    if column.engine == "onnxruntime" and PROVIDERS[column.device] not in ort.get_available_providers():
        return f"ONNX Runtime has no {PROVIDERS[column.device]}"
    return ""


def open_column(key: str, *, model: nn.Module, path: str | Path | None, x: np.ndarray, threads: int) -> Backend:
    """Make the backend that stands behind a column of the speed tables.

    Args:
        key: of ``COLUMNS``.
        model: the network, in eval mode; the PyTorch columns run a copy of it.
        path: the .onnx file; the other columns run it.
        x: input, shape (N, C, H, W), float32.
        threads: for every backend the same.
    Raises:
        ValueError: if there is no such column.
        UnavailableError: if the column's device or provider is missing.
    """
    if lack := missing(key):
        raise UnavailableError(lack)
    column = COLUMNS[key]
    if column.engine == "pytorch":
        return pytorch(model, x, threads=threads, device=column.device, copies=column.copies)
    return onnxruntime(path, x, threads=threads, device=column.device, copies=column.copies)


def pytorch(model: nn.Module, x: np.ndarray, *, threads: int, device: str = "cpu", copies: bool = True) -> Backend:
    """Make a PyTorch backend with a copy of the network: eval mode, inference mode, float32 (on a GPU no TF32).

    Args:
        model: the network, in eval mode.
        x: input, shape (N, C, H, W), float32.
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
    if device == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark = True  # it searches for the fastest algorithm, as ONNX Runtime does by default
    start = time.perf_counter()
    model = copy.deepcopy(model).to(device)
    load_ms = (time.perf_counter() - start) * 1e3
    on_host = torch.from_numpy(x)
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
    return Backend(run, lambda: run().cpu().numpy(), f"PyTorch {found}", torch.get_num_threads(), load_ms, own_clock)


def onnx_session(
    path: str | Path | bytes,
    *,
    threads: int | None = None,
    provider: str = "cpu",
    provider_options: dict[str, object] | None = None,
    level: str | None = None,
    options: dict[str, object] | None = None,
    config: dict[str, str] | None = None,
) -> ort.InferenceSession:
    """Open an ONNX Runtime session as the course measures it: its defaults, spinning threads included.

    Args:
        path: the .onnx file, or its bytes.
        threads: of the session's own pool; ONNX Runtime's default, the physical cores, if not given.
        provider: "cpu" or "cuda"; nodes that it cannot run are refused, not handed to the CPU unseen.
        provider_options: of the provider, such as ``{"use_tf32": "1"}``; the course's tables have TF32 off.
        level: of graph optimisation, such as "ORT_ENABLE_BASIC"; everything if not given.
        options: attributes of ``SessionOptions`` to set, such as ``{"enable_mem_pattern": False}``.
        config: entries for ``add_session_config_entry``.
    Raises:
        UnavailableError: if ONNX Runtime has no such provider, or takes another one.
    """
    name = PROVIDERS[provider]
    if name not in ort.get_available_providers():
        raise UnavailableError(f"ONNX Runtime has no {name}")
    chosen = ort.SessionOptions()
    chosen.intra_op_num_threads = threads or 0
    if level:
        chosen.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    for attribute, value in (options or {}).items():
        setattr(chosen, attribute, value)
    for entry, value in (config or {}).items():
        chosen.add_session_config_entry(entry, value)
    if provider == "cpu":
        return ort.InferenceSession(path, chosen, providers=[name])
    if hasattr(ort, "preload_dlls"):
        ort.preload_dlls()  # finds the CUDA libraries that PyTorch's packages brought
    chosen.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    session = ort.InferenceSession(path, chosen, providers=[(name, {"use_tf32": "0"} | (provider_options or {}))])
    if session.get_providers()[0] != name:
        raise UnavailableError(f"ONNX Runtime took {session.get_providers()[0]}, not {name}: are its libraries there?")
    return session


def onnxruntime(
    path: str | Path | bytes, x: np.ndarray, *, threads: int, device: str = "cpu", copies: bool = True, **settings
) -> Backend:
    """Make an ONNX Runtime backend with a session of its own.

    Args:
        path: the .onnx file, or its bytes, with one input and logits as its first output.
        x: input, shape (N, C, H, W), in the type that the file takes.
        threads: of the session's own thread pool.
        device: "cpu" or "cuda".
        copies: each run takes the input from the host and brings the logits back; if not, both stay on the device.
        settings: more for ``onnx_session``.
    Raises:
        UnavailableError: if ONNX Runtime has no provider for this device, or takes another one.
    """
    start = time.perf_counter()
    session = onnx_session(path, threads=threads, provider=device, **settings)
    load_ms = (time.perf_counter() - start) * 1e3
    name = session.get_inputs()[0].name
    if copies:

        def run() -> list[np.ndarray]:
            return session.run(None, {name: x})

        def logits() -> np.ndarray:
            return run()[0]

    else:
        binding = session.io_binding()
        binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(x, device, 0))
        binding.bind_output(session.get_outputs()[0].name, device)

        def run() -> None:
            session.run_with_iobinding(binding)

        def logits() -> np.ndarray:
            run()
            return binding.copy_outputs_to_cpu()[0]

    found = session.get_session_options().intra_op_num_threads
    return Backend(run, logits, session.get_providers()[0], found, load_ms)


def openvino(path: str | Path, x: np.ndarray, *, threads: int, precision: str = "f32") -> Backend:
    """Make an OpenVINO backend for the CPU.

    Args:
        path: the .onnx file.
        x: input, shape (N, C, H, W), float32.
        threads: of the engine.
        precision: to compute in, "f32" or "bf16".
    Raises:
        UnavailableError: if OpenVINO is not installed.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # else it tells its makers of every import
    try:
        import openvino as ov
    except ImportError:
        raise UnavailableError("not installed: python -m pip install openvino") from None
    hints = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": precision}
    start = time.perf_counter()
    compiled = ov.Core().compile_model(str(path), "CPU", hints)
    request = compiled.create_infer_request()
    load_ms = (time.perf_counter() - start) * 1e3
    found = f"OpenVINO {compiled.get_property('INFERENCE_PRECISION_HINT').get_type_name()}"
    used = compiled.get_property("INFERENCE_NUM_THREADS")

    def run() -> object:
        return request.infer([x], share_inputs=True)

    return Backend(run, lambda: run()[0].copy(), found, used, load_ms)


def ncnn(param: str | Path, weights: str | Path, x: np.ndarray, *, threads: int) -> Backend:
    """Make an ncnn backend for one picture; its files come from ``pnnx``, its own converter.

    Args:
        param: the .ncnn.param file.
        weights: the .ncnn.bin file.
        x: input, shape (1, C, H, W), float32.
        threads: of the engine.
    Raises:
        UnavailableError: if ncnn is not installed.
    """
    try:
        import ncnn as engine
    except ImportError:
        raise UnavailableError("not installed: python -m pip install ncnn pnnx") from None
    start = time.perf_counter()
    net = engine.Net()
    net.opt.num_threads = threads
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False  # as x: float32
    if net.load_param(str(param)) or net.load_model(str(weights)):
        raise UnavailableError(f"ncnn cannot read {Path(param).name}")
    load_ms = (time.perf_counter() - start) * 1e3
    first, last = net.input_names()[0], net.output_names()[0]

    def run() -> object:
        extractor = net.create_extractor()
        extractor.input(first, engine.Mat(x[0]))
        return extractor.extract(last)[1]

    return Backend(run, lambda: np.array(run())[None].copy(), "ncnn", threads, load_ms)
