"""What is in an .onnx file, which file it is, and what was said while it was written.

Counting and listening are taught in notebooks/01_export_and_check.ipynb, comparing in notebooks/06_onnxsim.ipynb.
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
    """Count a model's (or a file's) nodes by operator; not those inside subgraphs (``If``, ``Loop``).

    Operators outside the standard carry their domain: ``com.microsoft.FusedConv``.
    """
    if not isinstance(model, onnx.ModelProto):
        model = onnx.load(model, load_external_data=False)
    return Counter(f"{node.domain}.{node.op_type}".lstrip(".") for node in model.graph.node)


def file_identity(path: str | Path) -> dict[str, object]:
    """Say which file this is, so that a table can show that its columns come from different ones.

    It has file (name), sha256 (first 12 digits, of the .onnx file itself), size_mib, nodes, and opset, the standard
    operators' edition: None in a file without any (scikit-learn's may hold ``ai.onnx.ml`` alone).
    """
    path = Path(path)
    model = onnx.load(path, load_external_data=False)
    return {
        "file": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest()[:12],
        "size_mib": path.stat().st_size / 2**20,
        "nodes": len(model.graph.node),
        "opset": next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), None),
    }


@contextlib.contextmanager
def listen(*loggers: str) -> Iterator[list[str]]:
    """Collect what PyTorch's and onnxscript's loggers and Python's warnings say, instead of letting it go to stderr.

    Yields a list of texts like ``"WARNING: …"``, whole once the block has ended. Taught in notebooks/01_….ipynb.
    """
    heard: list[str] = []
    ear = logging.Handler()
    ear.emit = lambda record: heard.append(f"{record.levelname}: {record.getMessage()}")
    names = loggers or ("torch", "torch.onnx", "onnxscript")
    before = [(log, log.handlers, log.propagate) for log in map(logging.getLogger, names)]
    try:
        for log, _, _ in before:
            log.handlers, log.propagate = [ear], False
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield heard
    finally:
        for log, handlers, propagate in before:
            log.handlers, log.propagate = handlers, propagate
        heard += [f"{warning.category.__name__}: {warning.message}" for warning in caught]
