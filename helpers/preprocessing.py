"""Turning a photo into the network's input. Taught in notebooks/03_single_image_inference.ipynb."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import functional as F
from torchvision.transforms import v2

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # red, green, blue; torchvision's


@dataclass(frozen=True)
class Preprocessing:
    """A recipe: resize, centre crop, scale to 0..1, normalise; its fields are named as in torchvision's presets."""

    crop_size: list[int]  # height, width in pixels
    resize_size: list[int]  # of the crop's shorter side, before it is cut
    mean: tuple[float, ...]  # of channels whose values are 0 to 1
    std: tuple[float, ...]
    interpolation: v2.InterpolationMode

    def __call__(self, picture: Image.Image) -> torch.Tensor:
        """Return the picture as float32 of shape (channels, height, width)."""
        picture = picture.convert("L") if len(self.mean) == 1 else picture
        (height, width), size = self.crop_size, self.resize_size
        if height != width:  # so that the picture covers the crop; torchvision's resize looks at the shorter side only
            scale = size[0] / min(height, width) * max(height / picture.height, width / picture.width)
            size = [max(height, round(picture.height * scale)), max(width, round(picture.width * scale))]
        picture = F.center_crop(F.resize(picture, size, interpolation=self.interpolation), self.crop_size)
        values = F.pil_to_tensor(picture).float() / 255  # as the presets do; ToDtype's × 1/255 differs in the last bit
        return F.normalize(values, list(self.mean), list(self.std))


def preprocessing(
    size: int | tuple[int, int] = 256,
    *,
    resize: int | None = None,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
    interpolation: v2.InterpolationMode = v2.InterpolationMode.BILINEAR,
) -> Preprocessing:
    """Return torchvision's preprocessing at any size.

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
    sides = [size, size] if isinstance(size, int) else list(size)
    resize = min(sides) if resize is None else resize
    if len(sides) != 2 or not 1 <= min(sides) <= resize:
        raise ValueError(f"size is {size} and resize {resize}; needed: 1 or 2 numbers, 1 <= size <= resize.")
    if len(mean) != len(std) or len(mean) not in {1, 3} or min(std) <= 0:
        raise ValueError(f"mean is {mean} and std {std}; needed: as many numbers as channels, 1 or 3, std above 0.")
    return Preprocessing(sides, [resize], mean, std, interpolation)


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


def random_crops(
    photos: dict[str, Image.Image], count: int, *, size: int = 224, seed: int, like: Preprocessing | None = None
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
    to_size = v2.RandomResizedCrop(size, scale=(0.35, 1.0), antialias=True)
    to_numbers = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(published.mean, published.std)]
    cut = v2.Compose([to_size, v2.RandomHorizontalFlip(), *to_numbers])
    names = itertools.islice(itertools.cycle(photos), count)
    with torch.random.fork_rng(devices=[]):  # leave the caller's random numbers alone
        torch.manual_seed(seed)
        # contiguous, as PIL stores a pixel's channels side by side: a timed engine would rearrange them in every run
        return {
            f"{name} #{number:04}": cut(photos[name])[None].contiguous().numpy() for number, name in enumerate(names)
        }
