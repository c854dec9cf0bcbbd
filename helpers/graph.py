"""What is in an .onnx file, which file it is, and what was said while it was written.

Taught in notebooks/01_export_and_check.ipynb and notebooks/06_onnxsim.ipynb.
"""

import contextlib
import hashlib
import logging
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import onnx


def count_operators(model: onnx.ModelProto | str | Path) -> Counter[str]:
    """Return how many nodes a model (or a file) has of each operator; not those inside subgraphs (``If``, ``Loop``).

    Operators outside the standard carry their domain: ``com.microsoft.FusedConv``.
    """
    if not isinstance(model, onnx.ModelProto):
        model = onnx.load(model, load_external_data=False)
    return Counter(f"{node.domain}.{node.op_type}".lstrip(".") for node in model.graph.node)


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


class _Collector(logging.Handler):
    def __init__(self, heard: list[str]) -> None:
        super().__init__()
        self.heard = heard

    def emit(self, record: logging.LogRecord) -> None:
        self.heard.append(f"{record.levelname}: {record.getMessage()}")


@contextlib.contextmanager
def capture_logs(*loggers: str) -> Iterator[list[str]]:
    """Collect what loggers (PyTorch's and onnxscript's if none is named) and Python's warnings say, off stderr.

    Yields a list of texts like ``"WARNING: …"``, whole once the block has ended.
    """
    heard: list[str] = []
    logs = [logging.getLogger(name) for name in loggers or ("torch", "torch.onnx", "onnxscript")]
    before = [(log, log.handlers, log.propagate) for log in logs]
    try:
        for log in logs:
            log.handlers, log.propagate = [_Collector(heard)], False
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield heard
    finally:
        for log, handlers, propagate in before:
            log.handlers, log.propagate = handlers, propagate
        heard += [f"{warning.category.__name__}: {warning.message}" for warning in caught]
