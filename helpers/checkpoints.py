"""The weights of a network of your own, read safely. Taught in notebooks/15_your_own_network.ipynb."""

import argparse
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import nn

SAVE_IT = "Where it was made, run torch.save(model.state_dict(), 'weights.pth')."
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "ema_model.")
# What may stand beside weights, as it can run no code: a command's options, and NumPy's numbers under both their names
SCALAR = np.float64(0).__reduce__()[0]
DTYPES = {type(np.dtype(code)) for code in np.typecodes["AllInteger"] + np.typecodes["AllFloat"] + "?"}
HARMLESS: list = [argparse.Namespace, np.dtype, *DTYPES, SCALAR, (SCALAR, "numpy.core.multiarray.scalar")]
KINDS = {  # what is taken for weights, by how it begins; ZIPS by the names inside
    b"<": "a web page",
    b"version https://git-lfs": "a Git LFS pointer (git lfs pull fetches the file)",
    b"\x89HDF": "HDF5, as Keras writes it",
    b"\x93NUMPY": "a NumPy array",
    b"\x1f\x8b": "compressed by gzip (unpack it)",
    b"\x08": "an .onnx file",
    b"\x80": "a pickle of another program",
    b"PK": "a zip archive",
}
MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # a number that torch.save began its files with, up to 1.5
ZIPS = {".npy": "NumPy arrays", "/constants.pkl": "TorchScript", "/models/model.json": "an exported program"}


class WeightsError(RuntimeError):
    """Weights that cannot be used; the message names the file and says what to do."""


def load_state(
    path: str | Path, *, take: str | None = None, network: nn.Module | None = None
) -> dict[str, torch.Tensor]:
    """Read the weights of a network of your own, safely; print what was found and what is taken.

    Of several sets the largest is taken, and averaged (EMA) weights before raw ones: their scores are what people
    report. What DataParallel, ``torch.compile`` or Lightning put before *every* name goes ("module.", "model.", …).

    Args:
        path: a state dict or a training checkpoint, written by ``torch.save`` or safetensors.
        take: which set, by the keys that lead to it ("state_dict"), if not the one above.
        network: the network that gets them, if its own names begin with "model." or the like: then that stays.
    Returns:
        Tensors on the CPU by name, for ``load_state_dict``.
    Raises:
        WeightsError: if the file is missing, of another kind or damaged, could run code, or has no weights (under
            ``take``); it says what was found.
    """
    content = _read(Path(path))
    found = _tensors_in(content)
    sets = [f"{key} ({len(held)} tensors)" if key else f"{len(held)} tensors by name" for key, held in found.items()]
    beside = [str(key) for key, value in content.items() if not _tensors_in({key: value})]
    holds = ", ".join(sets + beside) or "nothing"
    if not found or (take is not None and take not in found):
        raise WeightsError(f"{path} has no weights{f' under {take!r}' if take else ''}; it holds: {holds}. {SAVE_IT}")
    large = [key for key in found if 2 * len(found[key]) >= max(map(len, found.values()))]
    chosen = max(large, key=lambda key: ("ema" in key.lower(), len(found[key]))) if take is None else take
    state, cut, wanted = found[chosen], "", network.state_dict().keys() if network else ()
    state.pop("n_averaged", None)  # a counter of torch.optim.swa_utils.AveragedModel
    while state.keys() != wanted and (prefix := _shared_prefix(state)):
        state, cut = {name.removeprefix(prefix): tensor for name, tensor in state.items()}, cut + prefix
    source = f"{f' from {chosen}' if chosen else ''}{f', without {cut!r}' if cut else ''}"
    others = f" Another: take={' or '.join(repr(key) for key in found if key != chosen)}." if len(found) > 1 else ""
    print(f"{Path(path).name}: took {len(state)} tensors{source}. It holds {holds}.{others}")
    return state


def _shared_prefix(names: Iterable[str]) -> str:
    """Return the known prefix that all names share, or ""."""
    return next((prefix for prefix in PREFIXES if all(name.startswith(prefix) for name in names)), "")


def _tensors_in(content: dict, at: str = "") -> dict[str, dict[str, torch.Tensor]]:
    """Return each group of tensors by name in nested dictionaries, by the keys that lead to it; no optimizer's."""
    tensors = {key: value for key, value in content.items() if isinstance(value, torch.Tensor)}
    found = {at: tensors} if tensors else {}
    for key, value in content.items():
        if isinstance(value, dict) and isinstance(key, str):  # an optimizer's are numbered
            found |= _tensors_in(value, f"{at}.{key}".lstrip("."))
    return found


def _read(path: Path) -> dict:
    """Return what a weight file holds, without running code that came with it."""
    if not path.is_file():
        raise WeightsError(f"There is no weight file {path}: check the name and the folder.")
    with path.open("rb") as file:
        head = file.read(64)
    inside = " ".join(zipfile.ZipFile(path).namelist()) if zipfile.is_zipfile(path) else ""
    tensors_alone = head[8:10] == b'{"'  # safetensors: the length of a header in JSON, then the header
    cut_off = head.startswith(b"PK") and not inside
    kinds = [kind for sign, kind in ZIPS.items() if sign in inside]
    if not (kinds or tensors_alone or cut_off or "/data.pkl" in inside or MAGIC in head):
        kinds = [kind for sign, kind in KINDS.items() if head.lstrip().startswith(sign)]
        kinds += [f"of no kind that is known here (it begins with {head[:8]!r})" if head else "empty (0 bytes)"]
    if kinds:
        raise WeightsError(f"{path} is {kinds[0]}, not weights as torch.save or safetensors write them. {SAVE_IT}")
    try:
        if tensors_alone:
            return safetensors.torch.load_file(path)
        with torch.serialization.safe_globals(HARMLESS):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # on odd bytes, readers raise what they like
        if "Weights only load failed" in str(error):
            named = ", ".join(re.findall(r"GLOBAL (\S+)", str(error))) or "unnamed"
            what = f"is a whole pickled model, or holds other objects beside its weights ({named})"
            raise WeightsError(f"{path} {what}. Loading them can run any code: refused. {SAVE_IT}") from error
        raise WeightsError(f"{path} is damaged or cut off: copy or download it again.") from error
    return content if isinstance(content, dict) else {f"a {type(content).__name__}": None}
