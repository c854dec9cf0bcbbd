"""Turning a photo into the network's input; what opens it stands in ``photos`` and is imported from here, too.

Taught in notebooks/03_single_image_inference.ipynb.
"""

import itertools
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms._presets import ImageClassification

from helpers.photos import MAX_PHOTOS, PhotoError, open_folder, open_photo, printable, sample_photos

__all__ = [
    "MAX_PHOTOS",
    "PhotoError",
    "open_folder",
    "open_photo",
    "preprocess",
    "preprocessing",
    "printable",
    "random_crops",
    "sample_photos",
]
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # red, green, blue; torchvision's


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
