"""What a service must know of a classifier's file: whether it is the right one, and where to cut it.

Taught in notebooks/14_serve_it.ipynb.
"""

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx.utils import Extractor
from PIL import Image

from helpers import engines, labels


def check(path: str | Path) -> tuple[onnx.ModelProto, dict]:
    """Refuse a file that is damaged, has other classes or gives other logits; return the graph and its facts."""
    try:
        model = onnx.load(path)
        whole = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
        facts = {key: json.loads(value) for key, value in whole.get_modelmeta().custom_metadata_map.items()}
        picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(facts["golden_png"]))))
        logits = whole.run(["logits"], {"picture": picture})[0]
    except Exception as error:  # whatever protobuf, ONNX Runtime or JSON say about a broken file
        raise ValueError(f"{path} is damaged or not one of ours ({error}): copy it again.") from error
    for language in ("english", "chinese"):
        if facts["names"].get(language) != labels.class_names(language):
            raise ValueError(f"{path} has other {language} classes than data/imagenet_classes.csv: export it again.")
    off = float(np.abs(logits - facts["golden_logits"]).max())
    if not off <= facts["tolerance"]:  # NaN is refused, too
        raise ValueError(f"{path}: the golden photo's logits are off by {off:.3g}, allowed {facts['tolerance']:.3g}.")
    return model, facts


def halves(model: onnx.ModelProto) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """Cut the file in two at "pixels": one picture of any size in front, a batch behind."""
    cut = Extractor(model)
    network = cut.extract_model(["pixels"], ["classes", "probabilities"])
    del network.graph.value_info[:]  # shapes that were inferred for a batch of 1
    for value in [*network.graph.input, *network.graph.output]:
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    return cut.extract_model(["picture"], ["pixels"]), network


def open_session(model: onnx.ModelProto, threads: int) -> ort.InferenceSession:
    """Open a session whose threads sleep while they wait, since decoders need the cores, too."""
    options = ort.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return engines.onnx_session(model.SerializeToString(), threads=threads, options=options)


def outside(facts: dict) -> Callable[[Image.Image], np.ndarray]:
    """Return torchvision's preparation of a picture. Nothing else here needs PyTorch."""
    from torchvision.transforms import InterpolationMode

    from helpers.preprocessing import preprocess, preprocessing

    how = preprocessing(**facts["preprocessing"], interpolation=InterpolationMode(facts["interpolation"]))
    return lambda photo: preprocess(photo, how)
