"""What the notebooks import, imported once, and one small export; only the process behind ``kernels`` imports this."""

import contextlib
import importlib
import io
import os

LIBRARIES = """ipykernel.kernelapp ipykernel.ipkernel numpy pandas scipy.stats matplotlib.pyplot sklearn.linear_model
onnx onnxruntime.quantization onnxscript onnxsim torch torch.utils.benchmark torchvision tqdm"""

os.environ.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")  # as a kernel sets it at its start
for library in LIBRARIES.split():
    importlib.import_module(library)

import torch  # noqa: E402
import tqdm  # noqa: E402

tqdm.tqdm.monitor_interval = 0  # no thread may run when the process is copied
with contextlib.redirect_stdout(io.StringIO()):
    torch.onnx.export(torch.nn.Conv2d(3, 4, 3).eval(), (torch.zeros(1, 3, 8, 8),), io.BytesIO(), dynamo=True)
