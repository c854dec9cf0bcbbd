"""The two networks of the course and their weights: ImageNet's where they can be had, else the stand-in shipped here.

Taught in notebooks/01_export_and_check.ipynb.
"""

import contextlib
import hashlib
import http.client
import socket
import sys
import textwrap
import threading
import urllib.error
import urllib.request
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import torchvision
from torch import nn

from helpers import settings

NETWORKS = ("resnet18", "mobilenet_v3_small")
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

    def __str__(self) -> str:
        if self.kind == "imagenet":
            return f"Weights of {self.network}: ImageNet ({self.path.name})."
        text = (
            f"Weights of {self.network}: the offline STAND-IN ({self.path.name}). It was trained on the nine sample "
            "photos only: speed, sizes and agreement between engines are real, its predictions for other photos mean "
            f"nothing. {self.why}"
        )
        return textwrap.fill(text, 90, break_on_hyphens=False, break_long_words=False)


def load_model(name: str = "resnet18", *, weights: str | None = None) -> tuple[nn.Module, LoadedWeights]:
    """Load a network in eval mode, on the CPU, in float32.

    ImageNet weights are looked for in ``data/weights/``, then in PyTorch's download cache, then downloaded (hash
    checked). Without a network the stand-in takes their place.

    Args:
        name: "resnet18" or "mobilenet_v3_small".
        weights: "auto", "imagenet" (or fail) or "stand-in"; the course's setting if not given.
    Returns:
        The network, input (N, 3, H, W) and output (N, 1000) logits, and what it was loaded from.
    Raises:
        ValueError: if the network or the choice of weights is unknown.
        WeightsError: if a weight file is damaged, or "imagenet" was asked for and cannot be had.
    """
    weights = settings.weights_choice() if weights is None else weights
    if name not in NETWORKS:
        raise ValueError(f"The network is {name!r}; it must be one of {', '.join(NETWORKS)}.")
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


def _load_imagenet(name: str) -> tuple[dict[str, torch.Tensor], LoadedWeights]:
    weights = torchvision.models.get_model_weights(name).IMAGENET1K_V1
    file_name = Path(weights.url).name  # torchvision puts the start of the SHA-256 into the name: resnet18-f37072fd.pth
    own = settings.WEIGHTS / file_name
    if own.exists():
        return _load_checked(own), LoadedWeights(name, "imagenet", own)
    cached = Path(torch.hub.get_dir()) / "checkpoints" / file_name
    damage = _damage(cached) if cached.exists() else ""
    if damage or not cached.exists():
        offline = _why_offline(weights.url)
        if offline:
            raise _NotAvailable(f"{damage} {offline}".strip())
        cached.unlink(missing_ok=True)
        _download(weights.url, cached)
    # torchvision's own loading: the file is in its cache and its hash is right
    state = weights.get_state_dict(progress=False, check_hash=True, weights_only=True, map_location="cpu")
    return state, LoadedWeights(name, "imagenet", cached)


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
        raise WeightsError(f"{damage} Copy or download it again, or delete it.")
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
