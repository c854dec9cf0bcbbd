"""The first result, seconds after the install: a network as an ONNX file, and what it says of a cup of coffee."""

import contextlib
import io

from helpers import settings


def first() -> int:
    """Export a network, run one photo through PyTorch and ONNX Runtime, print names; return the exit code."""
    import numpy as np
    import onnxruntime as ort
    import torch

    from helpers import labels, models, photos, preprocessing

    model, weights = models.load_model(models.REAL_NETWORK)
    file = settings.exports_folder("first") / f"{models.REAL_NETWORK}.onnx"
    samples = photos.sample_photos().set_index("file")
    x = preprocessing.preprocess(photos.open_photo(samples.path["coffee.png"]), weights.preprocessing)
    with contextlib.redirect_stdout(io.StringIO()):  # the exporter's own progress
        torch.onnx.export(model, (torch.from_numpy(x),), file, dynamo=True)
    with torch.inference_mode():
        theirs = model(torch.from_numpy(x)).numpy()
    session = ort.InferenceSession(file, providers=["CPUExecutionProvider"])
    ours = session.run(None, {session.get_inputs()[0].name: x})[0]
    top = [labels.top_k(ours, 3, language=language) for language in settings.LANGUAGES]
    for english, chinese in zip(top[0].itertuples(), top[1].itertuples(), strict=True):
        print(f"{english.probability:6.1%}  {english.name} · {chinese.name}")
    print(f"PyTorch and ONNX Runtime differ by {np.abs(ours - theirs).max():.0e}")
    print(f"The ONNX file: {file}")
    return 0
