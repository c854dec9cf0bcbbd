"""Photos: the samples, opening what people really have, and turning a photo into the network's input.

Taught in notebooks/03_single_image_inference.ipynb.
"""

import itertools
import shutil
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from torchvision.transforms import v2
from torchvision.transforms._presets import ImageClassification

from helpers import settings

SAMPLES_CSV = settings.DATA / "sample_photos.csv"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # red, green, blue; torchvision's
MAX_PIXELS = 80_000_000  # a decoded RGB picture of this size takes 240 MB
MAX_ASPECT = 50  # Resize keeps the aspect ratio: a 1 x 100000 line would become 256 x 25600000
MAX_PHOTOS = 32  # a folder is decoded into memory as a whole

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


def open_photo(path: str | Path) -> Image.Image:
    """Open a picture file as an upright 8-bit RGB picture.

    Handles JPEG, PNG, WebP, BMP, GIF (first frame) and TIFF; grey, palette, transparent (laid on white), CMYK and
    16-bit pictures; and the rotation that a phone writes into EXIF.

    Args:
        path: the picture file.
    Returns:
        A PIL picture of mode RGB.
    Raises:
        PhotoError: one sentence that names the file, if it is missing, a folder, empty, no picture, cut off, more than
            ``MAX_PIXELS`` pixels, or longer than ``MAX_ASPECT`` times its width.
    """
    path = Path(path)
    if path.is_dir():
        raise PhotoError(f"{path.name} is a folder, not a photo: give the path of one picture file.")
    try:
        if path.stat().st_size == 0:
            raise PhotoError(f"{path.name} is empty (0 bytes): copy or download it again.")
        with warnings.catch_warnings():
            # Pillow only warns above its own limit; the size check in _refuse_bombs says it better.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(path)
        with picture:
            _refuse_bombs(path, picture)
            picture.load()
            return _to_rgb(_upright(picture))
    except FileNotFoundError:
        raise PhotoError(f"{path.name} does not exist in {path.parent.resolve()}: check the name.") from None
    except PermissionError:
        raise PhotoError(f"{path.name} may not be read: change its permissions.") from None
    except UnidentifiedImageError:
        raise PhotoError(f"{path.name} is not a picture that Pillow can read: save it as JPEG or PNG.") from None
    except Image.DecompressionBombError:
        raise PhotoError(
            f"{path.name} claims more than {MAX_PIXELS / 1e6:.0f} million pixels: make it smaller."
        ) from None
    except PhotoError:
        raise
    except (OSError, SyntaxError, ValueError, EOFError, RuntimeError) as error:  # Pillow's decoders, on broken data
        raise PhotoError(f"{path.name} is damaged or cut off ({error}): copy or download it again.") from error


def _refuse_bombs(path: Path, picture: Image.Image) -> None:
    """Judge by the header, before a single pixel is decoded."""
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise PhotoError(
            f"{path.name} claims {width} x {height} pixels, more than {MAX_PIXELS / 1e6:.0f} million: make it smaller."
        )
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise PhotoError(f"{path.name} is {width} x {height} pixels, a line rather than a photo: crop it.")


def _upright(picture: Image.Image) -> Image.Image:
    """Undo the EXIF rotation; Pillow's exif_transpose() also rewrites the EXIF, and fails on odd entries in it."""
    method = UPRIGHT.get(picture.getexif().get(ExifTags.Base.Orientation))
    return picture if method is None else picture.transpose(method)


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith(("I", "F")):
        return _wide_grey_to_rgb(picture)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    return picture.convert("RGB")


def _wide_grey_to_rgb(picture: Image.Image) -> Image.Image:
    """Scale 16-bit and floating-point grey to 8 bits; Pillow's own convert() clips them instead."""
    values = np.nan_to_num(np.asarray(picture).astype(np.float64), posinf=0.0, neginf=0.0)  # marks of missing pixels
    # 16-bit files use 0 to 65535, floating-point ones by custom 0 to 1; anything else is stretched to its own range.
    top = 65535.0 if picture.mode.startswith("I") else 1.0
    low, high = (0.0, top) if values.min() >= 0 and values.max() <= top else (values.min(), values.max())
    scaled = (values - low) / max(high - low, np.finfo(np.float64).tiny) * 255
    return Image.fromarray(scaled.round().astype(np.uint8)).convert("RGB")


def open_folder(
    folder: str | Path | None = None, *, limit: int = MAX_PHOTOS
) -> tuple[dict[str, Image.Image], dict[str, str]]:
    """Open every photo of a folder; a bad file is left out and does not stop the others.

    Args:
        folder: the folder; ``data/images``, with the sample photos in it, if not given.
        limit: how many photos to open at the most.
    Returns:
        The photos by file name, in the order of their names, and for each file left out the reason.
    Raises:
        PhotoError: if the folder does not exist or no file in it can be used.
    """
    if folder is None:
        sample_photos()
        folder = settings.IMAGES
    folder = Path(folder)
    if not folder.is_dir():
        raise PhotoError(f"The folder {folder} does not exist: make it and put photos into it.")
    photos: dict[str, Image.Image] = {}
    left_out: dict[str, str] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):  # .gitignore, .DS_Store and the like
            continue
        if len(photos) == limit:
            left_out[path.name] = f"{path.name} comes after the first {limit} photos: raise limit to open more."
            continue
        try:
            photos[path.name] = open_photo(path)
        except PhotoError as error:
            left_out[path.name] = str(error)
    if not photos:
        reasons = " ".join(left_out.values()) or "It is empty."
        raise PhotoError(f"There is no usable photo in {folder}. {reasons}")
    return photos, left_out


def random_crops(
    photos: dict[str, Image.Image], count: int, *, size: int = 224, seed: int, like: ImageClassification | None = None
) -> dict[str, np.ndarray]:
    """Cut random pieces out of photos, as inputs for a network: many different inputs from few photos.

    Each piece covers 35 to 100 % of its photo and is mirrored half of the time. Photos take turns.

    Args:
        photos: RGB photos by name.
        count: how many pieces.
        size: height and width that each piece is resized to, in pixels.
        seed: the same seed cuts the same pieces.
        like: whose mean and spread to normalise by, such as ``weights.preprocessing``; torchvision's if not given.
    Returns:
        Normalised float32 arrays of shape (1, 3, size, size), in C order, by names like "cat.png #0007".
    Raises:
        ValueError: if there is no photo or ``count`` is below 1.
    """
    if not photos or count < 1:
        raise ValueError(f"There are {len(photos)} photos and count is {count}; needed: at least 1 of each.")
    published = like or preprocessing()
    cut = v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=(0.35, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(published.mean, published.std),
        ]
    )
    names = itertools.islice(itertools.cycle(photos), count)
    with torch.random.fork_rng(devices=[]):  # leave the caller's random numbers alone
        torch.manual_seed(seed)
        # PIL stores a pixel's channels side by side, and torchvision keeps that order in memory: a timed engine would
        # have to rearrange such an input in every run.
        return {
            f"{name} #{number:04}": cut(photos[name])[None].contiguous().numpy() for number, name in enumerate(names)
        }


class Preprocessing(ImageClassification):
    """torchvision's own preset, and beyond it inputs that are not square, and networks for grey pictures."""

    def forward(self, picture: Image.Image) -> torch.Tensor:
        """Return the picture as float32 of shape (channels, height, width)."""
        if len(self.mean) == 1:
            picture = picture.convert("L")
        height, width = self.crop_size
        if height != width:  # resize so that the picture covers the crop; the preset looks at the shorter side only
            ratio = self.resize_size[0] / min(height, width)
            scale = ratio * max(height / picture.height, width / picture.width)
            new = max(width, round(picture.width * scale)), max(height, round(picture.height * scale))
            picture = v2.functional.resize(picture, new[::-1], interpolation=self.interpolation)
            picture = v2.functional.center_crop(picture, self.crop_size)
            values = v2.functional.to_dtype(v2.functional.pil_to_tensor(picture), torch.float32, scale=True)
            return v2.functional.normalize(values, self.mean, self.std)
        return super().forward(picture)


def preprocessing(
    size: int | tuple[int, int] = 256,
    *,
    resize: int | None = None,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
    interpolation: v2.InterpolationMode = v2.InterpolationMode.BILINEAR,
) -> ImageClassification:
    """Return torchvision's own preprocessing at any size: resize, centre crop, scale to 0..1, normalise.

    ``preprocessing(256)`` is the article's; ``preprocessing(224, resize=256)`` is what both networks' ImageNet weights
    were published with. The result takes a PIL picture and returns float32 of shape (channels, height, width).

    Args:
        size: height and width of the centre crop in pixels, one number or (height, width).
        resize: length of the crop's shorter side before it is cut; ``size`` if not given. The aspect ratio stays.
        mean: subtracted from each channel (values 0 to 1); one number makes the picture grey, for one channel.
        std: what each channel is divided by.
        interpolation: of the resize.
    Raises:
        ValueError: if a side is below 1, ``resize`` is below the shorter side, or mean and std are not 1 or 3 numbers.
    """
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) != 2:
        raise ValueError(f"size is {size}; needed: one number, or height and width.")
    resize = min(sides) if resize is None else resize
    if not 1 <= min(sides) <= resize:
        raise ValueError(f"size is {size} and resize {resize}; needed: 1 <= size <= resize.")
    if len(mean) != len(std) or len(mean) not in {1, 3} or min(std) <= 0:
        raise ValueError(f"mean is {mean} and std {std}; needed: as many numbers as channels, 1 or 3, std above 0.")
    chosen = Preprocessing(crop_size=0, resize_size=resize, mean=mean, std=std, interpolation=interpolation)
    chosen.crop_size = list(sides)
    return chosen


def preprocess(photo: Image.Image, transform: Callable[[Image.Image], torch.Tensor] | None = None) -> np.ndarray:
    """Turn one photo into an input for ONNX Runtime: NumPy, float32, with the batch axis, in C order.

    Args:
        photo: an RGB picture, as ``open_photo`` returns it.
        transform: what the weights were published with, as it is: ``weights.preprocessing``, torchvision's
            ``weights.transforms()``, timm's ``create_transform(...)``; ``preprocessing(256)`` if not given.
    Returns:
        Shape (1, channels, height, width).
    Raises:
        ValueError: if the transform's result is no float tensor of shape (channels, height, width).
    """
    x = (transform or preprocessing())(photo)
    if not (isinstance(x, torch.Tensor) and x.ndim == 3 and x.is_floating_point()):
        what = f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, torch.Tensor) else f"a {type(x).__name__}"
        raise ValueError(
            f"The transform returned {what}; needed: a float tensor (channels, height, width). "
            "End it with PILToTensor(), ToDtype(torch.float32, scale=True) and Normalize(mean, std)."
        )
    return np.ascontiguousarray(x[None].float().numpy())
