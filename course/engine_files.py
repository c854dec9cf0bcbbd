"""The files of the atlas of engines: one network in many ways of writing it down, with inputs and right answers."""

import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
import torchvision
from onnx import compose, helper, numpy_helper
from onnxconverter_common import float16
from onnxruntime import quantization
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType
from torch.nn import functional as F

from helpers import engines, models, photos, settings
from helpers.preprocessing import Preprocessing

LITE0, BIG = models.REAL_NETWORK, 448  # BIG: side in pixels of the photos that a file prepares itself


@dataclass(frozen=True)
class Kind:
    """A way to write a network down."""

    name: str
    network: str
    how: str  # in words
    options: dict  # of torch.onnx.export
    after: str = ""  # what is done with the file then: "fp16", "prepare", "U8S8", "U8S7", "S8S8", "QOperator"

    @property
    def arithmetic(self) -> str:
        """What its numbers are: "float32", "float16" or "int8"; the rounding that one forgives follows from it."""
        return {"": "float32", "prepare": "float32", "fp16": "float16"}.get(self.after, "int8")


BATCH, SIZES = {0: "batch"}, {0: "batch", 2: "height", 3: "width"}
KINDS = {
    kind.name: kind
    for kind in (
        Kind("resnet18", "resnet18", "default exporter, every size fixed", {}),
        Kind("resnet18 free", "resnet18", "default exporter; batch, height and width free", {"dynamic_shapes": SIZES}),
        Kind("mobilenet", "mobilenet_v3_small", "default exporter, every size fixed", {}),
        Kind("mobilenet free", "mobilenet_v3_small", "default exporter, batch free", {"dynamic_shapes": BATCH}),
        Kind("lite0", LITE0, "default exporter, every size fixed", {}),
        Kind("lite0 free", LITE0, "default exporter, batch free", {"dynamic_shapes": BATCH}),
        Kind("legacy opset 11", "resnet18", "dynamo=False", {"dynamo": False, "opset_version": 11}),
        Kind("legacy opset 17", "mobilenet_v3_small", "dynamo=False", {"dynamo": False, "opset_version": 17}),
        Kind("opset 23", "resnet18", "default exporter, opset_version=23", {"opset_version": 23}),
        Kind("opset 28", "resnet18", "default exporter, opset_version=28", {"opset_version": 28}),
        Kind("external data", "resnet18", "weights in a file beside it", {"external_data": True}),
        Kind("fp16", LITE0, "float16 within, float32 in and out", {}, "fp16"),
        Kind("QDQ U8S8", LITE0, "quantize_static, per channel", {}, "U8S8"),
        Kind("QDQ U8S7", LITE0, "the same with reduce_range: weights of 7 bits", {}, "U8S7"),
        Kind("QDQ S8S8", LITE0, "quantize_static by default, per channel", {}, "S8S8"),
        Kind("QOperator", LITE0, "quantize_static, QOperator, S8S8, per channel", {}, "QOperator"),
        Kind("preparation inside", LITE0, "Resize with antialias before the network", {}, "prepare"),
        Kind("vit", "vit", "a small random ViT, default opset", {}),
        Kind("vit opset 23", "vit", "the same with Attention nodes", {"opset_version": 23}),
    )
}


def network(name: str) -> tuple[torch.nn.Module, Preprocessing]:
    """Return a network in eval mode and its preparation; "vit" is a random one of 1.3 million parameters."""
    if name != "vit":
        model, loaded = models.load_model(name)
        return model, loaded.preprocessing
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.SEED)
        model = torchvision.models.VisionTransformer(224, 16, 3, 4, 128, 512)
        torch.nn.init.normal_(model.heads.head.weight, std=0.5)  # else every logit is 0
    return model.eval(), models.LoadedWeights("resnet18").preprocessing


class _Photos(CalibrationDataReader):
    def __init__(self, x: np.ndarray) -> None:
        self.rows = iter([{"input": row[None]} for row in x])

    def get_next(self) -> dict | None:
        return next(self.rows, None)


def to_int8(source: Path, target: Path, x: np.ndarray, after: str) -> np.ndarray:
    """Quantize a file; return the right logits: those of its Q and DQ nodes computed one by one, in float."""
    form = {"per_channel": True, "activation_type": QuantType.QUInt8 if "U8" in after else QuantType.QInt8}
    form["reduce_range"] = after == "U8S7"
    quantization.quantize_static(source, target, _Photos(x), quant_format=QuantFormat.QDQ, **form)
    right = by_ort(target, x)
    if after == "QOperator":
        quantization.quantize_static(source, target, _Photos(x), quant_format=QuantFormat.QOperator, **form)
    return right


def by_ort(path: Path, x: np.ndarray) -> np.ndarray:
    """Return a file's logits by ONNX Runtime without optimisation: each node by itself, as the file says."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = engines.onnx_session(path, options=options)
    return np.concatenate([session.run(None, {session.get_inputs()[0].name: row[None]})[0] for row in x])


def prepared_inside(path: Path) -> None:
    """Put a Resize with antialias, from 448 to 224 pixels, before a network."""
    model = onnx.load(path)
    ends = [
        helper.make_tensor_value_info(name, 1, [1, 3, side, side]) for name, side in (("photo", BIG), ("small", 224))
    ]
    sizes = numpy_helper.from_array(np.array([1, 3, 224, 224]), "sizes")
    node = helper.make_node(
        "Resize", ["photo", "", "", "sizes"], ["small"], mode="linear", antialias=1, exclude_outside=1
    )
    graph = helper.make_graph([node], "prepare", ends[:1], ends[1:], [sizes])
    first = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    onnx.save(compose.merge_models(first, model, io_map=[("small", "input")]), path)


def make(kind: Kind, folder: Path) -> Path:
    """Write a kind's file, x.npy (photos, N × 3 × H × W) and right.npy (logits) into a folder; return the file.

    Right is what PyTorch says of the network; of INT8 files what their Q and DQ nodes say in float.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, done = folder / "model.onnx", folder / "right.npy"
    if done.exists():
        return path
    model, prepare = network(kind.network)
    if kind.after == "prepare":
        prepare = replace(prepare, crop_size=[BIG, BIG], resize_size=[512])
    x = torch.stack([prepare(photos.open_photo(photo)) for photo in photos.sample_photos()["path"]])
    choices = {"external_data": False, **kind.options}
    if shapes := choices.pop("dynamic_shapes", None):
        choices["dynamic_shapes"] = (
            {axis: torch.export.Dim(name, min=1 if axis == 0 else 64) for axis, name in shapes.items()},
        )
    example = (torch.zeros(2 if shapes else 1, 3, 224, 224),)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the older exporter says that it is older
        torch.onnx.export(
            model, example, path, input_names=["input"], output_names=["logits"], verbose=False, **choices
        )
    small = x
    if kind.after == "prepare":
        prepared_inside(path)
        small = F.interpolate(x, (224, 224), mode="bilinear", antialias=True)
    with torch.inference_mode():
        right = model(small).numpy()
    if kind.after == "fp16":
        onnx.save(float16.convert_float_to_float16(onnx.load(path), keep_io_types=True, min_positive_val=1e-7), path)
    elif kind.arithmetic == "int8":
        float_file = path.rename(folder / "float.onnx")
        right = to_int8(float_file, path, x.numpy(), kind.after)
    np.save(folder / "x.npy", x.numpy())
    np.save(done, right)
    return path
