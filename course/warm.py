"""What the notebooks import, imported once, and one small export; only the process behind ``kernels`` imports this."""

import contextlib
import gc
import importlib
import io
import os
import sys

LIBRARIES = """ipykernel.kernelapp ipykernel.ipkernel numpy pandas scipy.stats matplotlib.pyplot sklearn.linear_model
onnx onnxruntime.quantization onnxscript onnxsim torch torchvision"""

os.environ.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")  # as a kernel sets it at its start
for library in LIBRARIES.split():
    importlib.import_module(library)

import torch  # noqa: E402
from torch import nn  # noqa: E402

if "tqdm" in sys.modules:  # some libraries bring it
    sys.modules["tqdm"].tqdm.monitor_interval = 0  # no thread may run when the process is copied
layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Hardswish(), nn.AdaptiveAvgPool2d(1)]
network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(4, 2)).eval()
with contextlib.redirect_stdout(io.StringIO()):
    torch.onnx.export(network, (torch.zeros(2, 3, 8, 8),), dynamo=True)
gc.freeze()  # a collection would write on what the copies share
