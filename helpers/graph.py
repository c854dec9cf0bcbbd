"""What is in an .onnx file: its operators, and which file it is.

Counting is taught in notebooks/01_export_and_check.ipynb, comparing in notebooks/06_onnxsim.ipynb.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import onnx
import pandas as pd


def count_operators(model: onnx.ModelProto | str | Path) -> Counter[str]:
    """Count the nodes of a model by operator.

    Args:
        model: a loaded model or the path of an .onnx file. Nodes inside subgraphs (``If``, ``Loop``) do not count.
    Returns:
        Number of nodes by operator; operators outside the ONNX standard carry their domain, as in
        ``com.microsoft.FusedConv``.
    """
    if not isinstance(model, onnx.ModelProto):
        model = onnx.load(model, load_external_data=False)
    return Counter(f"{node.domain}.{node.op_type}".lstrip(".") for node in model.graph.node)


def operator_table(models: Mapping[str, onnx.ModelProto | str | Path]) -> pd.DataFrame:
    """Put the operator counts of several models side by side.

    Args:
        models: models or paths by the name that their column will have.
    Returns:
        One row an operator in alphabetical order, then the row ``all nodes``; one column a model; whole numbers.
    """
    counts = pd.DataFrame({name: count_operators(model) for name, model in models.items()})
    counts = counts.fillna(0).astype(int).sort_index()
    counts.loc["all nodes"] = counts.sum()
    return counts


def file_identity(path: str | Path) -> dict[str, object]:
    """Say which file this is, so that a table can show that its columns come from different ones.

    Returns:
        file (name), sha256 (first 12 digits, of the .onnx file itself), size_mib, nodes, opset.
    """
    path = Path(path)
    model = onnx.load(path, load_external_data=False)
    return {
        "file": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest()[:12],
        "size_mib": path.stat().st_size / 2**20,
        "nodes": len(model.graph.node),
        "opset": next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")),
    }
