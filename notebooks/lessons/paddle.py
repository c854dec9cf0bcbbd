"""Train a small PaddlePaddle network and export it to ONNX: python notebooks/lessons/paddle.py.

paddle2onnx pins an older onnx than the course's, so this makes an environment of its own (about 1 GB, not in git). It
leaves digits_paddle.onnx in ``data/exports/paddle``, for notebooks/11_one_file_many_engines.ipynb.
"""

import os
import subprocess
import sys
import venv
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / os.environ.get("COURSE_EXPORTS", "data/exports") / "paddle"
PACKAGES = (
    *("paddlepaddle==3.3.1", "paddle2onnx==2.1.0", "scikit-learn==1.9.1"),
    *("packaging", "setuptools"),  # needed by the two, and named by neither
    *("onnxruntime", "onnx-graphsurgeon", "sympy"),  # paddle2onnx would install them unasked, from elsewhere
)


def main() -> None:
    """Make the environment where it is missing, and run this file in it."""
    python = FOLDER / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists():
        print("Making an environment for PaddlePaddle …", flush=True)
        venv.create(FOLDER / "venv", with_pip=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
    subprocess.run([python, __file__, FOLDER / "digits_paddle.onnx"], check=True)
    print(f"Written: {FOLDER / 'digits_paddle.onnx'}")


def train_and_export(path: Path) -> None:
    """Train on scikit-learn's handwritten digits, all but the last 297, and write the .onnx file."""
    import paddle
    from sklearn.datasets import load_digits

    nn = paddle.nn
    paddle.seed(0)
    digits = load_digits()
    images = paddle.to_tensor(digits.images[:1500, None].astype("float32") / 16)  # (1500, 1, 8, 8), 0 to 1
    classes = paddle.to_tensor(digits.target[:1500].astype("int64"))
    layers = nn.Conv2D(1, 16, 3, padding=1), nn.BatchNorm2D(16), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 8 * 8, 10)
    model = nn.Sequential(*layers)
    optimiser = paddle.optimizer.Adam(parameters=model.parameters())
    for _ in range(60):
        nn.functional.cross_entropy(model(images), classes).backward()
        optimiser.step()
        optimiser.clear_grad()
    model.eval()
    unknown_batch = paddle.static.InputSpec([None, 1, 8, 8], "float32", "input")
    paddle.onnx.export(model, str(path.with_suffix("")), input_spec=[unknown_batch], opset_version=17)


if __name__ == "__main__":
    train_and_export(Path(sys.argv[1])) if len(sys.argv) == 2 else main()
