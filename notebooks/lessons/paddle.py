"""Train a small PaddlePaddle network and export it to ONNX, in a virtual environment of its own.

paddle2onnx pins an older onnx than the course's, so the two cannot share an environment. One command makes the other
environment (about 1 GB, in the git-ignored ``data/exports/paddle``) and leaves digits_paddle.onnx there:

    python -m course paddle

Taught in notebooks/11_one_file_many_engines.ipynb.
"""

import os
import subprocess
import sys
import venv
from pathlib import Path

PACKAGES = (
    *("paddlepaddle==3.3.1", "paddle2onnx==2.1.0", "scikit-learn==1.9.1"),
    *("packaging", "setuptools"),  # needed by the two, and named by neither
    *("onnxruntime", "onnx-graphsurgeon", "sympy"),  # paddle2onnx would install them unasked, from elsewhere
)
NAME = "digits_paddle.onnx"


def main() -> int:
    """Make the environment where it is missing, and run this file in it; return the exit code."""
    from helpers import settings

    folder = settings.EXPORTS / "paddle"
    python = folder / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists():
        print("Making an environment for PaddlePaddle …", flush=True)
        venv.create(folder / "venv", with_pip=True)
    ready = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PACKAGES]
    for step in (ready, [str(python), __file__, str(folder / NAME)]):
        done = subprocess.run(step, check=False)
        if done.returncode:
            print(f"error: this step failed with code {done.returncode}: {' '.join(step)}", file=sys.stderr)
            return done.returncode
    print(f"Written: {folder / NAME}")
    return 0


def train_and_export(path: Path) -> None:
    """Train on scikit-learn's handwritten digits, all but the last 297, and write the .onnx file."""
    import paddle
    from sklearn.datasets import load_digits

    paddle.seed(0)
    digits = load_digits()
    images = paddle.to_tensor(digits.images[:1500, None].astype("float32") / 16)  # (1500, 1, 8, 8), 0 to 1
    classes = paddle.to_tensor(digits.target[:1500].astype("int64"))
    model = paddle.nn.Sequential(
        paddle.nn.Conv2D(1, 16, 3, padding=1),
        paddle.nn.BatchNorm2D(16),
        paddle.nn.ReLU(),
        paddle.nn.Flatten(),
        paddle.nn.Linear(16 * 8 * 8, 10),
    )
    optimiser = paddle.optimizer.Adam(parameters=model.parameters())
    for _ in range(60):
        loss = paddle.nn.functional.cross_entropy(model(images), classes)
        loss.backward()
        optimiser.step()
        optimiser.clear_grad()
    model.eval()
    unknown_batch = paddle.static.InputSpec([None, 1, 8, 8], "float32", "input")
    paddle.onnx.export(model, str(path.with_suffix("")), input_spec=[unknown_batch], opset_version=17)


if __name__ == "__main__":
    if len(sys.argv) == 2:
        train_and_export(Path(sys.argv[1]))
    else:
        sys.exit(main())
