"""ncnn as a backend. Taught in notebooks/09_hardware_limit.ipynb; opened by hand in 11_one_file_many_engines.ipynb."""

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
