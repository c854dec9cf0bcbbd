"""Photos: the samples, and opening what people really have. A service needs no more than this, and no PyTorch.

Taught in notebooks/03_single_image_inference.ipynb.
"""

import errno
import io
import shutil
import stat
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pandas as pd
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError, features

from helpers import settings

SAMPLES_CSV = settings.DATA / "sample_photos.csv"
MAX_PIXELS = 80_000_000  # a decoded RGB picture of this size takes 240 MB
MAX_ASPECT = 50  # Resize keeps the aspect ratio: a 1 x 100000 line would become 256 x 25600000
MAX_PHOTOS = 32  # a folder is decoded into memory as a whole

# what a file that Pillow cannot read begins with -> what it is, and what to do
FOREIGN = {
    b"%!PS": "EPS, a drawing, which needs the program Ghostscript: save it as PNG",
    b"\xc5\xd0\xd3\xc6": "EPS, a drawing, which needs the program Ghostscript: save it as PNG",
    b"%PDF": "PDF, a document: save its picture as PNG, with a PDF viewer",
    b"\xd7\xcd\xc6\x9a": "WMF or EMF, a drawing, which Pillow reads on Windows only: save it as PNG",
    b"\xff\x0a": "JPEG XL, which needs the plug-in pillow-jxl-plugin: save it as JPEG",
    b"\0\0\0\x0cJXL ": "JPEG XL, which needs the plug-in pillow-jxl-plugin: save it as JPEG",
    b"<!doctype html": "not a picture but a web page, perhaps a message of the server: download it again",
    b"<html": "not a picture but a web page, perhaps a message of the server: download it again",
    b"version https://git-lfs": "not a picture but a pointer of Git LFS: run git lfs pull",
}
RAW = {".dng", ".nef", ".cr2", ".cr3", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw"}
BITS, PHOTOMETRIC, PLANAR, SAMPLE_FORMAT = 258, 262, 284, 339  # tags of TIFF

# EXIF orientation -> what makes the picture upright
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class PhotoError(ValueError):
    """A file that cannot be used as a photo; the message names it and says why."""


class TooManyPixelsError(PhotoError):
    """A picture that claims more than ``MAX_PIXELS``, or needs more memory than there is."""


def sample_photos(*, more: bool = False) -> pd.DataFrame:
    """Copy the nine sample photos out of the installed packages, where they are not yet in ``data/images``.

    Args:
        more: add the other free photos of these packages, which the stand-in weights were not trained on and which
            ImageNet mostly has no class for: pictures for comparing engines. They are read where they are.
    Returns:
        One row a photo: file, package, source, licence, credit, standin ("trained" or "never seen"), class_id
        (ImageNet, 0 to 999; -1 for none), match ("exact"; "nearest" where ImageNet has no such class; "none"), note,
        path.
    Raises:
        FileNotFoundError: if a package that brings a photo is not installed, or no longer ships it.
    """
    table = pd.read_csv(SAMPLES_CSV, keep_default_na=False)
    settings.IMAGES.mkdir(parents=True, exist_ok=True)
    if not more:
        table = table[table["standin"] == "trained"].copy()
    paths = []
    for row in table.itertuples():
        own = settings.IMAGES / row.file
        if row.standin == "trained" and not own.exists():
            shutil.copyfile(_inside_package(row.package, row.source), own)
        paths.append(own if row.standin == "trained" else _inside_package(row.package, row.source))
    return table.assign(path=paths)


def _inside_package(package: str, source: str) -> Path:
    spec = find_spec(package)  # finds the folder without importing the package
    if spec is None:
        raise FileNotFoundError(
            f"The sample photo {source} comes with the package {package}, which is not installed. "
            f"Run: python -m pip install -r requirements.txt"
        )
    path = Path(spec.origin).parent / source
    if not path.exists():
        raise FileNotFoundError(
            f"The installed {package} has no {source}. Install the version named in requirements.txt, "
            f"or put a photo of your own into {settings.IMAGES} and remove this row from {SAMPLES_CSV.name}."
        )
    return path


def open_photo(path: str | Path | BinaryIO) -> Image.Image:
    """Open a picture file as an upright 8-bit RGB picture.

    Handles JPEG, PNG, WebP, AVIF, BMP, GIF (first frame), TIFF (first page) and what else Pillow reads; grey, palette,
    CMYK and Lab; transparency (laid on white); colour profiles (followed to sRGB); and the rotation that a phone writes
    into EXIF. Grey of more than 8 bits is scaled by the smallest usual range that holds its values (8, 10, 12, 14, 16,
    24 or 32 bits; 0 to 1 for floating point), or by its own range where that would leave it dark.

    Args:
        path: the picture file, or its bytes as an open binary file.
    Returns:
        A PIL picture of mode RGB.
    Raises:
        PhotoError: one sentence that names the file, if it is missing, no regular file, empty, no picture, cut off,
            wholly transparent, in a format that needs another program, or longer than ``MAX_ASPECT`` times its width.
        TooManyPixelsError: the same, if it has more than ``MAX_PIXELS`` pixels or does not fit into memory.
    """
    opened, path = (path, Path("picture")) if hasattr(path, "read") else (None, Path(path))
    name = printable(path.name)
    try:
        kind = stat.S_IFREG if opened else path.stat().st_mode
        if stat.S_ISDIR(kind):
            raise PhotoError(f"{name} is a folder, not a photo: give the path of one picture file.")
        if not stat.S_ISREG(kind):  # reading a pipe would wait for ever
            raise PhotoError(f"{name} is a pipe or a device, not a photo: give the path of one picture file.")
        data = opened.read() if opened else path.read_bytes()
        if problem := _not_for_pillow(path, data):
            raise PhotoError(f"{name} is {problem}.")
        with warnings.catch_warnings():
            # Pillow only warns above its own limit; the size check in _refuse_bombs says it better.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(io.BytesIO(data))
        with picture:
            _refuse_bombs(name, picture)
            picture.load()
            if picture.format in {"JPEG", "MPO"} and _is_cut(data, picture):
                raise PhotoError(f"{name} is cut off, though it ends as a whole one does: copy or download it again.")
            # Pillow's exif_transpose() also rewrites the EXIF, and fails on odd entries in it
            method = UPRIGHT.get(picture.getexif().get(ExifTags.Base.Orientation))
            _refuse_misread(name, picture, data)
            rgb = _to_rgb(name, picture)
            return rgb if method is None else rgb.transpose(method)
    except PhotoError:
        raise
    except UnidentifiedImageError:
        raise PhotoError(f"{name} is not a picture that Pillow can read: save it as JPEG or 8-bit PNG.") from None
    except Image.DecompressionBombError:
        sentence = f"{name} claims more than {MAX_PIXELS / 1e6:.0f} million pixels: make it smaller."
        raise TooManyPixelsError(sentence) from None
    except MemoryError:
        raise TooManyPixelsError(
            f"{name} needs more memory than there is: make it smaller (if it is small, copy it again)."
        ) from None
    except Exception as error:  # the file system's errors; and on odd data, decoders raise what they like
        raise PhotoError(_why(name, path, error)) from error


def printable(name: str) -> str:
    """Return a file's name with line ends, and bytes that are no UTF-8, written as escapes."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in name)


def _why(name: str, path: Path, error: Exception) -> str:
    """Say in a sentence why a file could not be read."""
    what = printable(str(error).strip())
    number = error.errno if isinstance(error, OSError) else None
    if number == errno.ENOENT:
        return f"{name} does not exist in {printable(str(path.parent.absolute()))}: check the name."
    if number in {errno.EACCES, errno.EPERM}:
        return f"{name} may not be read: change its permissions."
    if number == errno.ELOOP:
        return f"{name} is a link that leads back to itself: give the path of the picture."
    if number == errno.ENOTDIR:
        return f"{name} cannot lie in {printable(path.parent.name)}, which is a file and no folder: check the path."
    if number == errno.ENAMETOOLONG:
        return f"{name} is too long for a file's name ({len(name)} characters): check the path."
    if number is not None or "null byte" in what:
        return f"{name} cannot be read from the disk ({what}): check the path."
    if "MAX_TEXT" in what:
        return f"{name} holds more text or a larger colour profile than Pillow reads: save it anew without metadata."
    if "find loader" in what:  # Pillow knows the format's name, and leaves the rest to others
        return f"{name} is no photo but a file of another program ({what}): save it as JPEG or PNG there."
    if "profile" in what or isinstance(error, ImageCms.PyCMSError):
        return f"{name} has a colour profile that cannot be followed ({what}): save it anew as sRGB."
    return f"{name} is damaged or cut off ({what or type(error).__name__}): copy or download it again."


def _not_for_pillow(path: Path, data: bytes) -> str:
    """Say what a file is that needs another program, or is no picture; "" for all others."""
    if not data:
        return "empty (0 bytes): copy or download it again"
    if path.suffix.lower() in RAW:  # Pillow would open the small preview in some of them
        return "a camera's raw file, not a picture yet: develop it and save it as JPEG"
    if data[4:8] == b"ftyp" and not (data[8:12] in {b"avif", b"avis"} and features.check("avif")):
        return (
            "HEIC, AVIF or a video, which this Pillow cannot read: save it as JPEG (pillow-heif is a plug-in for HEIC)"
        )
    if data[40:44] == b" EMF":
        return FOREIGN[b"\xd7\xcd\xc6\x9a"]
    for start, what in FOREIGN.items():
        if data[:1024].lstrip(b"\xef\xbb\xbf \r\n\t").lower().startswith(start.lower()):
            return what
    return "SVG, a drawing: save it as PNG, with Inkscape or a browser" if b"<svg" in data[:1024].lower() else ""


def _refuse_bombs(name: str, picture: Image.Image) -> None:
    """Judge by the header, before a single pixel is decoded."""
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise TooManyPixelsError(
            f"{name} claims {width} x {height} pixels, more than {MAX_PIXELS / 1e6:.0f} million: make it smaller."
        )
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise PhotoError(f"{name} is {width} x {height} pixels, a line rather than a photo: crop it.")


def _is_cut(data: bytes, picture: Image.Image) -> bool:
    """Return whether a JPEG ends before its last block: the decoder fills up in one colour and says nothing.

    A decoder that still waits for blocks takes bytes put before the end marker for them; one that is done skips them.
    """
    width, height = picture.size
    corner = picture.crop((max(0, width - 4), max(0, height - 4), width, height))
    if any(low != high for low, high in np.atleast_2d(corner.getextrema())):
        return False
    at = 2
    while 0 < at < len(data) and data[at : at + 2] != b"\xff\xda":  # walk over the segments before the pixels
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    end = data.find(b"\xff\xd9", at)
    with Image.open(io.BytesIO(data[:end] + b"\x5a" * 4096 + b"\xff\xd9")) as longer:
        return longer.tobytes() != picture.tobytes()


def _refuse_misread(name: str, picture: Image.Image, data: bytes) -> None:
    """Refuse what Pillow opens without a word, and with wrong numbers."""
    tags = picture.tag_v2 if picture.format == "TIFF" else {}
    deep = tags.get(BITS, (8,))[0] > 8 or (picture.format == "PNG" and data[24] > 8)
    if 2 in tags.get(SAMPLE_FORMAT, ()) and picture.mode == "L":
        raise PhotoError(f"{name} has 8-bit numbers with a sign, which Pillow reads without: save it as 8-bit PNG.")
    if deep and tags.get(PLANAR) == 2 and len(tags[BITS]) > 1:
        raise PhotoError(f"{name} has 16-bit channels one after the other, which Pillow mixes up: save it as PNG.")
    if deep and picture.mode.startswith("RGB") and 0 < max(high for _, high in picture.getextrema()[:3]) < 16:
        raise PhotoError(
            f"{name} is nearly black: its 16-bit numbers stay below 4096. Multiply them by 16: save it anew."
        )


def _to_rgb(name: str, picture: Image.Image) -> Image.Image:
    mask, colours = None, picture
    if picture.mode.startswith(("I", "F")):
        colours = _wide_grey(picture)
        if isinstance(hole := picture.info.get("transparency"), int):
            mask = Image.fromarray(np.asarray(picture) != hole).convert("L")
    elif picture.has_transparency_data:
        mask = picture.convert("RGBA").getchannel("A")
        colours = picture.convert("L" if picture.mode == "LA" else "RGBA")
    elif picture.mode == "P":
        colours = picture.convert("RGB")
    if mask and mask.getextrema()[1] == 0:
        if picture.format not in {"BMP", "DIB", "TGA"}:  # there, zeros mean that nobody filled the fourth byte in
            raise PhotoError(f"{name} is transparent all over: save it without transparency.")
        mask = None
    colours = _follow_profile(colours, picture.info.get("icc_profile")).convert("RGB")
    return colours if mask is None else Image.composite(colours, Image.new("RGB", colours.size, "white"), mask)


def _follow_profile(picture: Image.Image, profile: bytes | None) -> Image.Image:
    """Bring colours to sRGB; a profile for other channels than the picture's is ignored, as viewers do."""
    picture = picture.convert("RGB") if picture.mode in {"RGBA", "RGBX", "YCbCr"} else picture
    source = ImageCms.createProfile("LAB") if picture.mode == "LAB" else None
    if source is None and profile:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = source.profile.xcolor_space.strip()
        source = source if space == {"L": "GRAY"}.get(picture.mode, picture.mode) else None
    if source is None:
        return picture
    return ImageCms.profileToProfile(picture, source, ImageCms.createProfile("sRGB"), outputMode="RGB")


def _wide_grey(picture: Image.Image) -> Image.Image:
    """Scale grey of more than 8 bits to 8; Pillow's own convert() clips instead."""
    tags = picture.tag_v2 if picture.format == "TIFF" else {}
    values = np.asarray(picture)
    if values.dtype == np.int32 and 2 not in tags.get(SAMPLE_FORMAT, (1,) if tags else (2,)):
        values = values.view(np.uint32)  # Pillow has no such mode, and takes the upper half for negative
    values = np.nan_to_num(values.astype(np.float64), posinf=0.0, neginf=0.0)  # marks of missing pixels
    tops = [1, 255, 65535] if picture.mode == "F" else [2**bits - 1 for bits in (8, 10, 12, 14, 16, 24, 32)]
    upside_down = tags.get(PHOTOMETRIC) == 0  # white is zero
    if upside_down and picture.mode != "F":
        tops = [2 ** tags[BITS][0] - 1]
    top = next((top for top in tops if top >= values.max()), 0)
    low, high = (
        (0, top) if values.min() >= 0 and (upside_down or values.max() >= top / 8) else (values.min(), values.max())
    )
    share = (values - low) / max(high - low, np.finfo(np.float64).tiny)
    return Image.fromarray(((1 - share if upside_down else share) * 255).round().astype(np.uint8))


def open_folder(
    folder: str | Path | None = None, *, limit: int = MAX_PHOTOS
) -> tuple[dict[str, Image.Image], dict[str, str]]:
    """Open every photo of a folder; a bad file is left out and does not stop the others.

    Args:
        folder: the folder; ``data/images``, with the sample photos in it, if not given.
        limit: how many photos to open at the most.
    Returns:
        The photos by file name (``printable``), in the order of their names, and for each file left out the reason.
    Raises:
        PhotoError: if the folder does not exist or no file in it can be used.
    """
    if folder is None:
        sample_photos()
        folder = settings.IMAGES
    try:
        paths = sorted(Path(folder).iterdir())
    except (FileNotFoundError, NotADirectoryError):
        raise PhotoError(
            f"The folder {printable(str(folder))} does not exist: make it and put photos into it."
        ) from None
    except (OSError, ValueError) as error:
        raise PhotoError(f"The folder {_why(printable(str(folder)), Path(folder), error)}") from error
    photos: dict[str, Image.Image] = {}
    left_out: dict[str, str] = {}
    for path in paths:
        name = printable(path.name)
        if name.startswith("."):  # .gitignore, .DS_Store and the like
            continue
        if len(photos) == limit:
            left_out[name] = f"{name} comes after the first {limit} photos: raise limit to open more."
            continue
        try:
            photos[name] = open_photo(path)
        except PhotoError as error:
            left_out[name] = str(error)
    if not photos:
        reasons = " ".join(left_out.values()) or "It is empty."
        raise PhotoError(f"There is no usable photo in {printable(str(folder))}. {reasons}")
    return photos, left_out
