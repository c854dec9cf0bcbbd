"""What is in an .onnx file, which file it is, and what was said while it was written.

Taught in notebooks/01_export_and_check.ipynb and notebooks/06_onnxsim.ipynb.
"""

import contextlib
import hashlib
import logging.handlers
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnxruntime as ort


def count_operators(model: onnx.ModelProto | str | Path) -> Counter[str]:
    """Return how many nodes a model (or a file) has of each operator; not those inside subgraphs (``If``, ``Loop``).

    Operators outside the standard carry their domain: ``com.microsoft.FusedConv``.
    """
    if not isinstance(model, onnx.ModelProto):
        model = onnx.load(model, load_external_data=False)
    return Counter(f"{node.domain}.{node.op_type}".lstrip(".") for node in model.graph.node)


INTEGER = ("QLinearConv", "QGemm", "QLinearMatMul", "QLinearAdd")  # ONNX Runtime's operators, by their names alone
FLOAT = ("Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul", "Add")


def count_integer_nodes(path: str | Path) -> dict[str, int]:
    """Count what ONNX Runtime runs of a quantized file, in the graph that it optimises for this processor.

    A QDQ file holds float operators between conversions; the engine fuses those it knows how to, and says nothing of
    the others. Taught in notebooks/10_int8_quantization.ipynb.

    Returns:
        integer and float (convolutions, matrix products and additions in INT8, and those still in float), convert
        (nodes that only convert), and nodes (all).
    """
    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.optimized_model_filepath, options.log_severity_level = str(Path(folder) / "as_run.onnx"), 3
        ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        counts = count_operators(options.optimized_model_filepath)
    kinds = Counter(name.rpartition(".")[2] for name in counts.elements())
    found = {what: sum(kinds[name] for name in names) for what, names in (("integer", INTEGER), ("float", FLOAT))}
    return found | {"convert": kinds["QuantizeLinear"] + kinds["DequantizeLinear"], "nodes": kinds.total()}


def file_identity(path: str | Path) -> dict[str, object]:
    """Say which file this is, so that a table can show that its columns come from different ones.

    Returns:
        file (name), sha256 (first 12 digits, of the .onnx file itself), size_mib, nodes, and opset, the standard
        operators' edition: None in a file without any (scikit-learn's may hold ``ai.onnx.ml`` alone).
    """
    path, model = Path(path), onnx.load(path, load_external_data=False)
    return {
        "file": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest()[:12],
        "size_mib": path.stat().st_size / 2**20,
        "nodes": len(model.graph.node),
        "opset": next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), None),
    }


@contextlib.contextmanager
def capture_logs(*loggers: str) -> Iterator[list[str]]:
    """Collect what loggers (PyTorch's and onnxscript's if none is named) and Python's warnings say, off stderr.

    Yields a list of texts like ``"WARNING: …"``, filled once the block has ended.
    """
    heard: list[str] = []
    records = logging.handlers.BufferingHandler(1_000_000)
    logs = [logging.getLogger(name) for name in loggers or ("torch", "torch.onnx", "onnxscript")]
    before = [(log, log.handlers, log.propagate) for log in logs]
    try:
        for log in logs:
            log.handlers, log.propagate = [records], False
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield heard
    finally:
        for log, handlers, propagate in before:
            log.handlers, log.propagate = handlers, propagate
        heard += [f"{record.levelname}: {record.getMessage()}" for record in records.buffer]
        heard += [f"{warning.category.__name__}: {warning.message}" for warning in caught]
