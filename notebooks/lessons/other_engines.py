"""ncnn and OpenVINO as backends of 09, 10 and ``harness``; opened by hand in 11_one_file_many_engines.ipynb."""

import functools
import sys
from pathlib import Path

import numpy as np

from helpers.engines import Backend, UnavailableError


def ncnn(param: str | Path, weights: str | Path, x: np.ndarray, *, threads: int) -> Backend:
    """Open a network in ncnn, for one picture, in float32.

    Args:
        param: the .ncnn.param file that ``pnnx``, ncnn's converter, wrote.
        weights: the .ncnn.bin file.
        x: input, shape (1, C, H, W), float32.
        threads: of the engine.
    Raises:
        UnavailableError: if ncnn is not installed or cannot read its files.
    """
    try:
        import ncnn as engine
    except ImportError:
        raise UnavailableError("not installed: python -m pip install ncnn pnnx") from None
    net = engine.Net()
    net.opt.num_threads = threads
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False  # as x: float32
    if net.load_param(str(param)) or net.load_model(str(weights)):
        raise UnavailableError(f"ncnn cannot read {Path(param).name}")

    def run() -> object:
        extractor = net.create_extractor()
        extractor.input(net.input_names()[0], engine.Mat(x[0]))
        return extractor.extract(net.output_names()[0])[1]

    return Backend(run, lambda: np.array(run())[None].copy(), "ncnn", threads)


def openvino(path: str | Path, x: np.ndarray, *, threads: int, precision: str = "f32") -> Backend:
    """Make an OpenVINO backend for the CPU.

    Args:
        path: the .onnx file.
        x: input, shape (N, C, H, W), float32.
        threads: of the engine.
        precision: to compute in, "f32" or "bf16".
    Returns:
        The backend, its input bound.
    Raises:
        UnavailableError: if OpenVINO is not installed.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # else it tells its makers of every import
    try:
        import openvino as ov
    except ImportError:
        raise UnavailableError("not installed: python -m pip install openvino") from None
    hints = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": precision}
    compiled = ov.Core().compile_model(str(path), "CPU", hints)
    request, used = compiled.create_infer_request(), compiled.get_property("INFERENCE_NUM_THREADS")
    found = f"OpenVINO {compiled.get_property('INFERENCE_PRECISION_HINT').get_type_name()}"
    run = functools.partial(request.infer, [x], share_inputs=True)
    return Backend(run, lambda: run()[0].copy(), found, used)
