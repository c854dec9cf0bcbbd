"""Photos: the samples, and opening what people really have. A service needs no more than this, and no PyTorch.

Taught in notebooks/03_single_image_inference.ipynb.
"""

import io
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pandas as pd
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError, features

from helpers import settings

MAX_PIXELS = 80_000_000  # a decoded RGB picture of this size takes 240 MB
MAX_ASPECT = 50  # Resize keeps the aspect ratio: a 1 x 100000 line would become 256 x 25600000
MAX_PHOTOS = 32  # a folder is decoded into memory as a whole
RAW = {".dng", ".nef", ".cr2", ".cr3", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw"}
TURNS = ("FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_270", "TRANSVERSE", "ROTATE_90")
UPRIGHT = {number: Image.Transpose[turn] for number, turn in enumerate(TURNS, start=2)}  # by EXIF orientation


class PhotoError(ValueError):
    """A file that cannot be used as a photo; the message names it and says why."""


class TooManyPixelsError(PhotoError):
    """A picture that claims more than ``MAX_PIXELS``, or needs more memory than there is."""


def sample_photos(*, more: bool = False) -> pd.DataFrame:
    """Copy the nine sample photos out of the installed packages, where they are not yet in ``data/images``.

    Args:
        more: add the other free photos of these packages, for which ImageNet mostly has no class: pictures for
            comparing engines. They are read where they are.
    Returns:
        One row per photo: file, package, source, licence, credit, set ("sample" or "more"), class_id (ImageNet, 0 to
        999; -1 for none), match ("exact"; "nearest" where ImageNet has no such class; "none"), note, path.
    Raises:
        FileNotFoundError: if a package that brings a photo is not installed, or no longer ships it.
    """
    table = pd.read_csv(settings.DATA / "sample_photos.csv", keep_default_na=False)
    table = table if more else table[table["set"] == "sample"]
    settings.IMAGES.mkdir(parents=True, exist_ok=True)
    paths = []
    for row in table.itertuples():
        spec = find_spec(row.package)  # finds the folder without importing the package
        shipped = Path(spec.origin).parent / row.source if spec and spec.origin else Path(row.package, row.source)
        paths.append(settings.IMAGES / row.file if row.set == "sample" else shipped)
        if not (paths[-1].exists() or shipped.exists()):
            raise FileNotFoundError(f"There is no {shipped}. Run: python -m pip install -r requirements.txt")
        if not paths[-1].exists():
            shutil.copyfile(shipped, paths[-1])
    return table.assign(path=paths)


def open_photo(path: str | Path | BinaryIO) -> Image.Image:
    """Open a picture file as an upright 8-bit RGB picture.

    Takes what Pillow reads: JPEG, PNG, WebP, AVIF, BMP, GIF (first frame), TIFF (first page); grey, palette and CMYK;
    transparency (laid on white); colour profiles (followed to sRGB); the rotation that a phone writes into EXIF. Grey
    of more than 8 bits is scaled by the smallest usual range that holds its values, or by its own range.

    Args:
        path: the picture file, or its bytes as an open binary file.
    Returns:
        A PIL picture of mode RGB, shape (height, width, 3) as an array.
    Raises:
        PhotoError: one sentence that names the file, if it cannot be read, is no picture, is damaged or cut off,
            transparent all over, or longer than ``MAX_ASPECT`` times its width.
        TooManyPixelsError: the same, if it has more than ``MAX_PIXELS`` pixels or does not fit into memory.
    """
    name = printable(Path(path).name) if isinstance(path, (str, Path)) else "picture"
    try:
        data = Path(path).read_bytes() if isinstance(path, (str, Path)) else path.read()
    except OSError as error:
        raise PhotoError(f"{name} cannot be read ({error.strerror}): check the path {printable(str(path))}.") from None
    if not data:
        raise PhotoError(f"{name} is empty (0 bytes): copy or download it again.")
    if Path(name).suffix.lower() in RAW:  # Pillow would open the small preview in some of them
        raise PhotoError(f"{name} is a camera's raw file, not a picture yet: develop it and save it as JPEG.")
    if data[4:8] == b"ftyp" and not (data[8:12] in {b"avif", b"avis"} and features.check("avif")):
        raise PhotoError(
            f"{name} is HEIC, AVIF or a video; this Pillow reads none: save it as JPEG, or add pillow-heif."
        )
    try:
        with Image.open(io.BytesIO(data)) as picture:
            size = f"{picture.width} x {picture.height} pixels"  # by the header, before a single pixel is decoded
            if picture.width * picture.height > MAX_PIXELS:
                most = f"{MAX_PIXELS / 1e6:.0f} million"
                raise TooManyPixelsError(f"{name} claims {size}, more than {most}: make it smaller.")
            if max(picture.size) > MAX_ASPECT * min(picture.size):
                raise PhotoError(f"{name} is {size}, a line rather than a photo: crop it.")
            # Pillow's exif_transpose() also rewrites the EXIF, and fails on odd entries in it
            turn = UPRIGHT.get(picture.getexif().get(ExifTags.Base.Orientation, 1))
            rgb = _to_rgb(name, picture)
            return rgb if turn is None else rgb.transpose(turn)
    except PhotoError:
        raise
    except UnidentifiedImageError:
        raise PhotoError(f"{name} is not a picture that Pillow can read: save it as JPEG or 8-bit PNG.") from None
    except (Image.DecompressionBombError, MemoryError):
        raise TooManyPixelsError(f"{name} has too many pixels for the memory that there is: make it smaller.") from None
    except Exception as error:  # on odd data, decoders raise what they like
        what = printable(str(error)) or type(error).__name__
        raise PhotoError(f"{name} is damaged, cut off or of an odd kind ({what}): save it anew as JPEG.") from error


def printable(name: str) -> str:
    """Return a file's name with line ends, and bytes that are no UTF-8, written as escapes."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in name)


def _to_rgb(name: str, picture: Image.Image) -> Image.Image:
    profile, alpha = picture.info.get("icc_profile"), None
    if picture.mode.startswith(("I", "F")):
        picture = _grey_of_8_bits(picture)
    elif picture.has_transparency_data:
        picture = picture.convert("RGBA")
        alpha, picture = picture.getchannel("A"), picture.convert("RGB")
        if alpha.getextrema()[1] == 0:
            raise PhotoError(f"{name} is transparent all over: save it without transparency.")
    elif picture.mode not in {"L", "CMYK"}:
        picture = picture.convert("RGB")
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile)) if profile else None
    if source and source.profile.xcolor_space.strip() == {"L": "GRAY"}.get(picture.mode, picture.mode):
        target = ImageCms.createProfile("sRGB")  # a profile for other channels is ignored, as viewers do
        picture = ImageCms.profileToProfile(picture, source, target, outputMode="RGB") or picture
    picture = picture.convert("RGB")
    return picture if alpha is None else Image.composite(picture, Image.new("RGB", picture.size, "white"), alpha)


def _grey_of_8_bits(picture: Image.Image) -> Image.Image:
    """Scale grey of more than 8 bits to 8; Pillow's own convert() clips instead."""
    values = np.nan_to_num(np.asarray(picture, np.float64), posinf=0.0, neginf=0.0)  # marks of missing pixels
    low, high = 0.0, next((top for top in (1, 255, 1023, 4095, 16383, 65535) if top >= values.max()), values.max())
    if values.min() < 0 or values.max() < high / 8:  # no usual range, or the picture would stay dark
        low, high = values.min(), values.max()
    return Image.fromarray(((values - low) / ((high - low) or 1) * 255).round().astype(np.uint8))


def open_folder(folder: str | Path | None = None) -> tuple[dict[str, Image.Image], dict[str, str]]:
    """Open the photos of a folder, ``MAX_PHOTOS`` at the most; a bad file is left out and does not stop the others.

    Args:
        folder: the folder; ``data/images``, with the sample photos in it, if not given.
    Returns:
        The photos by file name (printable), in the order of their names, and for each file left out the reason.
    Raises:
        PhotoError: if the folder does not exist or no file in it can be used.
    """
    if folder is None:
        sample_photos()
    folder = Path(folder or settings.IMAGES)
    if not folder.is_dir():
        raise PhotoError(f"The folder {printable(str(folder))} does not exist: make it and put photos into it.")
    photos: dict[str, Image.Image] = {}
    left_out: dict[str, str] = {}
    for path in sorted(path for path in folder.iterdir() if not path.name.startswith(".")):  # .gitignore, .DS_Store
        name = printable(path.name)
        try:
            if len(photos) == MAX_PHOTOS:
                raise PhotoError(f"{name} comes after the first {MAX_PHOTOS} photos.")
            photos[name] = open_photo(path)
        except PhotoError as error:
            left_out[name] = str(error)
    if not photos:
        why = " ".join(left_out.values()) or "It is empty."
        raise PhotoError(f"There is no usable photo in {printable(str(folder))}. {why}")
    return photos, left_out
