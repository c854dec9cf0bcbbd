"""What a worker of the service does: prove that the file is the right one, cut it, and answer pictures.

Taught in notebooks/14_serve_it.ipynb.
"""

import argparse
import base64
import contextlib
import io
import json
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection

import numpy as np
import onnx
import onnxruntime as ort
from onnx.utils import Extractor
from PIL import Image

from helpers import engines, labels, photos


def check(content: bytes, path: object = "The file") -> tuple[onnx.ModelProto, dict]:
    """Refuse a file that is damaged, has other classes or gives other logits; return the graph and its facts.

    Args:
        content: the file's bytes; only they are looked at.
        path: how the file is named in a refusal.
    Raises:
        ValueError: one sentence that names the file and what is wrong with it.
    """
    try:
        model = onnx.load_from_string(content)
        whole = ort.InferenceSession(content, providers=["CPUExecutionProvider"])
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


class Classifier:
    """The file's sessions: one prepares a picture of any size, one runs the network on a batch."""

    def __init__(self, content: bytes, options: argparse.Namespace) -> None:
        """Check the file and open both halves.

        Raises:
            ValueError: if the file is refused.
        """
        photos.MAX_PIXELS = options.max_pixels  # a decoder cannot be stopped: what it may take is bounded
        model, self.facts = check(content, options.file)
        front, back = halves(model)
        inside, self.network = open_session(front, 1), open_session(back, options.threads)
        self.prepare = lambda photo: inside.run(None, {"picture": np.asarray(photo)})[0]
        if options.outside:
            self.prepare = outside(self.facts)

    def golden(self) -> tuple[bytes, list[str]]:
        """Return the golden photo, and the classes that may come first: those that the tolerance cannot tell apart."""
        logits = np.ravel(self.facts["golden_logits"])
        first = np.flatnonzero(logits >= logits.max() - 2 * self.facts["tolerance"])
        return base64.b64decode(self.facts["golden_png"]), [self.facts["names"]["english"][i] for i in first]

    def answers(self, bodies: list[bytes]) -> list[tuple[int, object]]:
        """Answer a batch: for each picture its status, and the five best classes or a sentence."""
        replies: list[tuple[int, object]] = []
        pixels = []
        for body in bodies:
            try:
                pixels.append(self.prepare(photos.open_photo(io.BytesIO(body))))
                replies.append((200, None))
            except photos.PhotoError as error:
                replies.append((413 if isinstance(error, photos.TooManyPixelsError) else 400, str(error)))
        if pixels:
            english, chinese = self.facts["names"]["english"], self.facts["names"]["chinese"]
            classes, shares = self.network.run(None, {"pixels": np.concatenate(pixels)})
            rows = iter(zip(classes.tolist(), shares.tolist(), strict=True))
            for place in [place for place, (status, _) in enumerate(replies) if status == 200]:
                best = zip(*next(rows), strict=True)
                replies[place] = 200, [[english[c], chinese[c], round(share, 5)] for c, share in best]
        return replies


def work(content: bytes, options: argparse.Namespace, pipe: Connection) -> None:
    """Live as a worker: say whether the file is right, then answer batches until the other end of the pipe is gone."""
    for one in (signal.SIGINT, signal.SIGTERM):  # who stops the service may tell all its processes at once
        signal.signal(one, signal.SIG_IGN)
    try:
        mine = Classifier(content, options)
    except ValueError as error:
        pipe.send(str(error))
        return
    pipe.send(mine.golden())
    with contextlib.suppress(EOFError, OSError):
        while True:
            bodies = pipe.recv()
            try:
                replies = mine.answers(bodies)
            except Exception as error:  # these pictures get a 500, the service goes on
                replies = [(500, f"The network failed: {error}")] * len(bodies)
            pipe.send(replies)
