"""What speeds a network up on an NVIDIA GPU: one lever at a time, against PyTorch as it comes (float32, TF32 off).

    python data/results/gpu_levers.py

It appends its rows to data/results/gpu_levers.csv, which notebook 09 reads. It needs PyTorch for CUDA and the package
onnxruntime-gpu.
"""

import copy
import logging
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import onnx
import pandas as pd
import torch
from torch import nn

from helpers import engines, machine, models, settings, sweep, timing

TABLE = Path(__file__).with_suffix(".csv")
SHAPES = ((1, 3, 224, 224), (16, 3, 224, 224))
LOOSE = 2e-2  # of the largest logit: what float16 and TF32 may be off by


def pytorch(model: nn.Module, x: np.ndarray, *, tf32=False, half=False, channels_last=False, graph=False) -> Callable:
    """Return a run of the network on the GPU, its input there already."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = True
    layout = torch.channels_last if channels_last else torch.contiguous_format
    dtype = torch.float16 if half else torch.float32
    network = copy.deepcopy(model).to("cuda", dtype, memory_format=layout)
    bound = torch.from_numpy(x).to("cuda", dtype, memory_format=layout)

    @torch.inference_mode()
    def eager() -> torch.Tensor:
        found = network(bound)
        torch.cuda.synchronize()
        return found

    if not graph:
        return eager
    side = torch.cuda.Stream()
    with torch.inference_mode(), torch.cuda.stream(side):
        for _ in range(3):
            network(bound)
    torch.cuda.synchronize()
    recorded = torch.cuda.CUDAGraph()
    with torch.inference_mode(), torch.cuda.graph(recorded):
        output = network(bound)

    def replay() -> torch.Tensor:
        recorded.replay()
        torch.cuda.synchronize()
        return output

    return replay


def onnxruntime(path: Path, x: np.ndarray, **provider_options: str) -> engines.Backend:
    """Return an ONNX Runtime backend on the GPU, input and output there."""
    return engines.onnxruntime(path, x, threads=0, device="cuda", copies=False, provider_options=provider_options)


def levers(model: nn.Module, path: Path, half_path: Path, x: np.ndarray) -> dict[str, Callable]:
    """Return by name what opens each lever anew."""
    half_x = x.astype(np.float16)
    return {
        "PyTorch": lambda: pytorch(model, x),
        "PyTorch, TF32": lambda: pytorch(model, x, tf32=True),
        "PyTorch, channels_last": lambda: pytorch(model, x, channels_last=True),
        "PyTorch, CUDA graph": lambda: pytorch(model, x, graph=True),
        "PyTorch, float16": lambda: pytorch(model, x, half=True),
        "PyTorch, float16, channels_last, CUDA graph": lambda: pytorch(
            model, x, half=True, channels_last=True, graph=True
        ),
        "ONNX Runtime": lambda: onnxruntime(path, x),
        "ONNX Runtime, TF32": lambda: onnxruntime(path, x, use_tf32="1"),
        "ONNX Runtime, CUDA graph": lambda: onnxruntime(path, x, enable_cuda_graph="1"),
        "ONNX Runtime, float16": lambda: onnxruntime(half_path, half_x),
        "ONNX Runtime, float16, CUDA graph": lambda: onnxruntime(half_path, half_x, enable_cuda_graph="1"),
    }


def logits(run: Callable) -> np.ndarray:
    """Return a lever's output on the host, float64."""
    found = run.logits() if isinstance(run, engines.Backend) else run().float().cpu().numpy()
    return np.asarray(found, dtype=np.float64)


def measure(network: str, model: nn.Module, shape: tuple[int, ...], folder: Path) -> list[dict]:
    """Return a row for each lever at one shape; one that fails or is wrong says so."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    path, half_path = folder / f"{network}.onnx", folder / f"{network}_fp16.onnx"
    names = {"input_names": ["input"], "output_names": ["logits"]}
    torch.onnx.export(model, (torch.zeros(shape),), path, **names, external_data=False, verbose=False)
    onnx.save(convert_float_to_float16(onnx.load(path)), half_path)
    x = np.random.default_rng(settings.SEED).standard_normal(shape, dtype=np.float32)
    rows, openers, expected = {}, {}, None
    for name, opener in levers(model, path, half_path, x).items():
        rows[name] = {
            "network": network,
            "batch": shape[0],
            "size": shape[2],
            "lever": name,
            "status": "ok",
            "note": "",
        }
        try:
            found = logits(opener())
        except Exception as error:  # a lever that this GPU or version does not have is a row
            rows[name] |= {"status": "failed", "note": sweep.first_cause(error)[:120]}
            continue
        expected = found if expected is None else expected
        rows[name]["max_rel_error"] = float(np.abs(found - expected).max() / np.abs(expected).max())
        if not rows[name]["max_rel_error"] < LOOSE:  # NaN is wrong, too
            rows[name] |= {"status": "disagrees"}
            continue
        openers[name] = opener
    for name, timed in timing.measure(openers, reference="PyTorch").items():
        values = {"p50_ms": timed.p50_ms, "ratio": timed.ratio, "half_width": timed.half_width, "note": timed.note}
        rows[name] |= values | {"status": timed.status, "sessions": len(timed.sessions)}
    return list(rows.values())


def main() -> int:
    """Measure every network and shape, and append the rows; return the exit code."""
    if not torch.cuda.is_available():
        print("PyTorch finds no CUDA GPU: there is nothing to measure here.", file=sys.stderr)
        return 2
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    folder, rows = settings.exports_folder("gpu"), []
    for network in models.NETWORKS:
        model, _ = models.load_model(network, weights="stand-in")
        for shape in SHAPES:
            rows += measure(network, model, shape, folder)
    gpu, versions = machine.gpu_name(), {name: machine.version(name) for name in ("torch", "onnxruntime")}
    table = pd.DataFrame(rows).assign(machine=f"{gpu} ({machine.identity()[:4]})", **versions)
    table.to_csv(TABLE, mode="a", header=not TABLE.exists(), index=False, float_format="%.5g")
    print(
        table[
            ["network", "batch", "lever", "p50_ms", "ratio", "half_width", "max_rel_error", "status", "note"]
        ].to_string()
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
