"""Photos whose class is known: folders named by class, Tux Paint's stamps.

Taught in notebooks/07_precision.ipynb.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from helpers import labels, photos, settings
from helpers.preprocessing import preprocess

MAX_PICTURES = 1000  # of a set: as inputs of 224 x 224 they take 600 MB
STAMPS = Path(os.environ.get("COURSE_STAMPS", "/usr/share/tuxpaint/stamps"))
HOW_TO_GET = (
    "A hundred photos with a class come with Tux Paint: on Debian and Ubuntu `apt install tuxpaint-stamps-default`; "
    "elsewhere unpack Tux Paint's stamps and name their folder in the environment variable COURSE_STAMPS. Or put "
    "photos of your own under data/labelled/NAME/CLASS/. With a network, "
    "`torchvision.datasets.Imagenette('data/labelled', split='val', size='320px', download=True)` brings ten classes."
)


@dataclass(frozen=True)
class LabelledSet:
    """Pictures and what is right for each."""

    name: str
    pictures: pd.DataFrame  # set, picture (a short name), path, class_ids (the ids that are right; () has no class)
    left_out: dict[str, str]  # by file or folder, why
    may_be_shown: bool = True  # False: under a licence that keeps the pictures out of stored outputs


def sets(names: Sequence[str] | None = None, *, root: Path | None = None) -> dict[str, LabelledSet]:
    """Find the sets of labelled pictures: the reader's folders, Tux Paint's stamps, the course's sample photos.

    A reader's folder is ``data/labelled/NAME/CLASS/photo.jpg``, as torchvision's ``ImageFolder`` has it, or
    ``NAME/val/CLASS/…``. CLASS is a WordNet id, an ImageNet id, or an English or Chinese name of the class table. What
    cannot be used is left out with a sentence and costs only itself.

    Args:
        names: the class names of your own network in the order of its outputs; then CLASS is one of these, and only
            the reader's folders are returned.
        root: where the reader's folders lie, if not in ``data/labelled/``.
    Returns:
        The sets by name, those of the reader first; of a larger set ``MAX_PICTURES``, evenly spread.
    """
    root = root or settings.DATA / "labelled"
    folders = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    found = [_folder(path, _ids(names)) for path in folders]
    if names is None:
        found += [*_stamps(), _samples()]
    return {one.name: one for one in found}


def best(found: dict[str, LabelledSet]) -> str:
    """Return the name of the set with the most pictures that have a class."""
    return max(found, key=lambda name: (found[name].pictures["class_ids"].str.len() > 0).sum())


def inputs(
    pictures: pd.DataFrame, transform: Callable[[Image.Image], torch.Tensor]
) -> tuple[np.ndarray, pd.DataFrame, dict[str, str]]:
    """Open and prepare pictures, once for all files that will run them.

    Args:
        pictures: rows of ``LabelledSet.pictures``.
        transform: as for ``preprocess``.
    Returns:
        The inputs, float32 of shape (pictures, channels, height, width); the rows that could be opened, in the same
        order; for each of the others the reason.
    Raises:
        PhotoError: if none can be opened.
    """
    done, kept, left_out = [], [], {}
    for row in pictures.itertuples():
        try:
            done.append(preprocess(photos.open_photo(row.path), transform))
            kept.append(row.Index)
        except photos.PhotoError as error:
            left_out[row.picture] = str(error)
    if not done:
        raise photos.PhotoError(" ".join(left_out.values()) or "There is no picture to prepare.")
    return np.concatenate(done), pictures.loc[kept].reset_index(drop=True), left_out


def _ids(names: Sequence[str] | None) -> dict[str, int]:
    """Return the class ids by everything that a folder may be called, in small letters."""
    if names is not None:
        return {_plain(name): number for number, name in enumerate(names)}
    table = labels.class_table()
    columns = [table[column].map(_plain) for column in ("english", "chinese", "wordnet_id")] + [table["id"].map(str)]
    return {name: number for column in columns for number, name in enumerate(column)}


def _plain(name: str) -> str:
    return name.strip().lower().replace("_", " ")


def _folder(folder: Path, ids: dict[str, int]) -> LabelledSet:
    rows: list[tuple[str, Path, int]] = []
    left_out: dict[str, str] = {}
    contents: dict[bytes, list[tuple[str, Path, int]]] = {}
    top = folder / "val" if (folder / "val").is_dir() else folder
    for inner in sorted(path for path in top.iterdir() if not path.name.startswith(".")):
        name = photos.printable(inner.name)
        if not inner.is_dir():
            left_out[name] = f"{name} lies beside the class folders: move it into the one of its class."
        elif _plain(inner.name) not in ids:
            known = ", ".join(list(ids)[:3])
            left_out[name] = f"{name} is no class that is known (such as {known}): rename the folder."
        else:
            files = sorted(path for path in inner.iterdir() if path.is_file() and not path.name.startswith("."))
            if not files:
                left_out[name] = f"{name} holds no photo."
            rows += [(f"{name}/{photos.printable(path.name)}", path, ids[_plain(inner.name)]) for path in files]
    chosen = rows if len(rows) <= MAX_PICTURES else [rows[i * len(rows) // MAX_PICTURES] for i in range(MAX_PICTURES)]
    if len(chosen) < len(rows):
        left_out[folder.name] = f"{len(rows) - len(chosen)} of {len(rows)} pictures: {MAX_PICTURES} are taken of a set."
    for name, path, number in chosen:
        if not path.resolve().is_relative_to(folder.resolve()):
            left_out[name] = f"{name} is a link to a place outside {folder.name}: put the photo itself there."
            continue
        twins = contents.setdefault(hashlib.sha256(path.read_bytes()).digest(), [])
        twins.append((name, path, number))
    kept: list[tuple[str, Path, tuple[int, ...]]] = []
    for twins in contents.values():
        if len({number for *_, number in twins}) > 1:
            for name, *_ in twins:
                others = ", ".join(other for other, *_ in twins if other != name)
                left_out[name] = f"{name} is the same photo as {others}, in another class: keep one."
        else:
            kept += [(name, path, (number,)) for name, path, number in twins[:1]]
            left_out |= {name: f"{name} is a copy of {twins[0][0]}: counted once." for name, *_ in twins[1:]}
    return _set(photos.printable(folder.name), kept, left_out)


def stamps_table() -> pd.DataFrame:
    """Return Tux Paint's stamps, one per row: path, kind (photo or drawing), ids (of right classes, or none), why."""
    table = pd.read_csv(settings.DATA / "stamps_labels.csv", keep_default_na=False)
    return table[~table["path"].str.contains("_mirror")].reset_index(drop=True)  # each a copy of another


def _stamps() -> list[LabelledSet]:
    table, found = stamps_table(), []
    for name, kind in (("stamps", "photo"), ("stamps, drawings", "drawing")):
        rows, left_out = [], {}
        for row in table[table["kind"] == kind].itertuples():
            if (STAMPS / row.path).is_file():
                rows.append((Path(row.path).stem, STAMPS / row.path, tuple(map(int, row.ids.split()))))
            else:
                left_out[row.path] = f"{row.path} is not in {STAMPS}."
        found += [_set(name, rows, left_out, may_be_shown=False)] if rows else []
    return found


def _samples() -> LabelledSet:
    table = photos.sample_photos()
    right = [(number,) if match == "exact" else () for number, match in zip(table.class_id, table.match, strict=True)]
    return _set("samples", list(zip(table.file, table.path, right, strict=True)), {})


def _set(name: str, rows: list[tuple], left_out: dict[str, str], **choices: bool) -> LabelledSet:
    pictures = pd.DataFrame(rows, columns=["picture", "path", "class_ids"])
    pictures.insert(0, "set", name)
    return LabelledSet(name, pictures, left_out, **choices)
