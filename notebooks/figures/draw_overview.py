"""Draw overview.png, the picture on the front page: one photo, through PyTorch and ONNX Runtime, to a class name.

Run it from the course's root, where a Chinese font is installed:

    python notebooks/figures/draw_overview.py

The probabilities are computed by the exported file of EfficientNet-Lite0 with ImageNet weights, not typed.
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import onnxruntime as ort
import torch

sys.path.append(str(Path(__file__).resolve().parents[2]))

from helpers import labels, models, photos, plots, preprocessing, settings

TARGET = Path(__file__).with_name("overview.png")


def main() -> None:
    """Export EfficientNet-Lite0, run a cup of coffee through it and draw the way."""
    if plots.cjk_font() is None:
        sys.exit("There is no Chinese font here: install one (Debian: fonts-noto-cjk), or the names would be boxes.")
    plots.use_course_style()
    model, weights = models.load_model("efficientnet_lite0")
    photo = photos.open_photo(photos.sample_photos().set_index("file").loc["coffee.png", "path"])
    x = preprocessing.preprocess(photo, weights.preprocessing)
    path = settings.exports_folder("overview") / "efficientnet_lite0.onnx"
    example = (torch.from_numpy(x),)
    torch.onnx.export(model, example, path, input_names=["input"], external_data=False, verbose=False)
    (logits,) = ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"input": x})
    english = labels.top_k(logits, 3, language="english")
    chinese = labels.top_k(logits, 3, language="chinese")
    english["name"] = english["name"] + "  " + chinese["name"]

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(11, 2.7), width_ratios=[1.2, 2.3, 1.2])
    plots.show_photo(photo, left)
    middle.set(xlim=(0, 3), ylim=(0, 1))
    middle.axis("off")
    steps = [("PyTorch\nnetwork", plots.ORANGE), ("network\n.onnx", plots.GREEN), ("ONNX\nRuntime", plots.BLUE)]
    for at, (text, colour) in enumerate(steps):
        box = {"boxstyle": "round,pad=0.6", "facecolor": "white", "edgecolor": colour, "linewidth": 2}
        middle.text(at + 0.5, 0.55, text, ha="center", va="center", bbox=box)
        if at:
            arrow = {"arrowstyle": "->", "linewidth": 1.5, "color": plots.GREY}
            middle.annotate("", (at + 0.14, 0.55), (at - 0.14, 0.55), arrowprops=arrow)
    for at, word in ((1, "export"), (2, "check, run")):
        middle.text(at, 0.27, word, ha="center", color=plots.GREY)
    plots.show_top_k(english, right)
    right.set(xlim=(0, 1.3))
    figure.savefig(TARGET, dpi=110)
    print(f"wrote {TARGET.name}")


if __name__ == "__main__":
    main()
