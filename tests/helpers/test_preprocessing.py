"""helpers/preprocessing.py: equal to torchvision to the last bit, and crops that are what they say."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.models import EfficientNet_B0_Weights, MobileNet_V3_Small_Weights, ResNet18_Weights

from helpers import preprocessing
from helpers.photos import open_photo

RGB = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8))
ODD_SIZES = [(3, 7), (7, 3), (1, 1), (2, 31), (223, 225), (257, 255), (641, 333), (100, 1000)]  # px


@pytest.fixture(scope="module")
def pictures(samples):
    random = np.random.default_rng(1)
    noise = [Image.fromarray(random.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in ODD_SIZES]
    return [open_photo(path) for path in samples["path"]] + noise


@pytest.mark.parametrize(("size", "resize"), [(256, None), (224, 256), (224, 224), (225, 301), (31, 32), (1, 1)])
def test_preprocessing_equals_a_hand_built_one_to_the_last_bit(pictures, size, resize):
    by_hand = transforms.Compose(
        [
            transforms.Resize(resize or size),
            transforms.CenterCrop(size),
            transforms.ToTensor(),
            transforms.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
        ]
    )
    prepare = preprocessing.preprocessing(size, resize=resize)
    for photo in pictures:
        found = prepare(photo)
        assert found.shape == (3, size, size) and found.dtype == torch.float32
        assert torch.equal(found, by_hand(photo)), f"differs on a photo of {photo.size} px"


@pytest.mark.parametrize("weights", [ResNet18_Weights, MobileNet_V3_Small_Weights])
def test_preprocessing_equals_the_published_one_to_the_last_bit(pictures, weights):
    published = weights.IMAGENET1K_V1.transforms()
    for photo in pictures:
        found = preprocessing.preprocessing(224, resize=256)(photo)
        assert torch.equal(found, published(photo)), f"differs on a photo of {photo.size} px"


@pytest.mark.parametrize(("size", "resize"), [(0, None), (-1, None), (0, 256), (256, 255), (1, 0)])
def test_impossible_sizes_are_refused(size, resize):
    with pytest.raises(ValueError, match=f"size is {size} and resize {size if resize is None else resize}; needed"):
        preprocessing.preprocessing(size, resize=resize)


@pytest.mark.parametrize("photo_size", [(300, 300), (600, 200), (200, 600), (31, 33)], ids=str)
@pytest.mark.parametrize(("size", "resize"), [((224, 320), None), ((256, 128), None), ((64, 96), 80)], ids=str)
def test_inputs_that_are_not_square_are_covered_by_the_photo_and_not_squeezed(photo_size, size, resize):
    height, width = size
    places = PLACES.resize(photo_size)  # red grows to the right, green downwards
    red, green, blue = to_pixels(preprocessing.preprocess(places, preprocessing.preprocessing(size, resize=resize)))
    assert red.shape == size
    np.testing.assert_allclose(blue, 77, atol=1, err_msg="a border was padded with black")
    share = (red.max() - red.min()) / 255, (green.max() - green.min()) / 255  # of the photo's width and height
    across, down = width / (share[0] * photo_size[0]), height / (share[1] * photo_size[1])
    assert across == pytest.approx(down, rel=0.1), "the photo was squeezed"
    if resize is None:
        assert max(share) > 0.95, f"more was cut off than needed: {share}"


def test_one_mean_makes_a_grey_input_of_one_channel():
    x = preprocessing.preprocess(RGB, preprocessing.preprocessing(32, mean=(0.5,), std=(0.25,)))
    assert x.shape == (1, 1, 32, 32)
    wanted = np.asarray(RGB.convert("L"))[:, 8:40] / 255
    np.testing.assert_allclose(x[0, 0] * 0.25 + 0.5, wanted, atol=1e-6)


def published_by_timm():
    timm = pytest.importorskip("timm", reason="timm is not installed: python -m pip install timm")
    return timm.data.create_transform(
        (3, 240, 240), mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bicubic", crop_pct=0.9
    )


@pytest.mark.parametrize(
    "make", [EfficientNet_B0_Weights.IMAGENET1K_V1.transforms, published_by_timm], ids=["torchvision", "timm"]
)
def test_a_published_transform_is_taken_as_it_is(make):
    transform = make()
    x = preprocessing.preprocess(PLACES, transform)
    np.testing.assert_array_equal(x, transform(PLACES)[None].numpy())
    assert x.dtype == np.float32 and x.flags.c_contiguous


def test_our_transform_says_everything_that_a_published_one_does(pictures):
    photo = pictures[0]
    theirs = EfficientNet_B0_Weights.IMAGENET1K_V1.transforms()
    ours = preprocessing.preprocessing(224, resize=256, interpolation=theirs.interpolation)
    np.testing.assert_array_equal(preprocessing.preprocess(photo, ours), preprocessing.preprocess(photo, theirs))
    assert not np.array_equal(
        preprocessing.preprocess(photo, preprocessing.preprocessing(224, resize=256)), theirs(photo)[None]
    )


@pytest.mark.parametrize(
    ("transform", "what"),
    [
        (transforms.PILToTensor(), r"torch.uint8 of shape \(3, 32, 48\)"),
        (lambda picture: transforms.functional.to_tensor(picture)[None], r"torch.float32 of shape \(1, 3, 32, 48\)"),
        (np.asarray, "a ndarray"),
    ],
    ids=["bytes", "a batch", "an array"],
)
def test_a_transform_that_gives_no_input_is_refused(transform, what):
    with pytest.raises(ValueError, match=f"returned {what}; needed: a float tensor.*Normalize"):
        preprocessing.preprocess(RGB, transform)


@pytest.mark.parametrize(
    "choice",
    [{"size": (224, 224, 3)}, {"mean": (0.5, 0.5), "std": (0.5, 0.5)}, {"mean": (0.5,)}, {"std": (0.2, 0.2, 0.0)}],
    ids=str,
)
def test_impossible_recipes_are_refused(choice):
    with pytest.raises(ValueError, match="needed"):
        preprocessing.preprocessing(**choice)


# A photo that says of each of its pixels where it was: red grows to the right, green downwards, blue is the same.
PLACES = Image.fromarray(
    np.dstack([*np.meshgrid(np.arange(256), np.arange(256)), np.full((256, 256), 77)]).astype("u1")
)
FLAT = {name: Image.new("RGB", (40, 30), colour) for name, colour in [("z", "red"), ("a", "lime"), ("m", "blue")]}


def to_pixels(piece):
    """Undo the normalisation: (1, 3, H, W) to (3, H, W), 0 to 255."""
    assert piece.shape[0] == 1
    return (
        piece[0] * np.reshape([0.229, 0.224, 0.225], (3, 1, 1)) + np.reshape([0.485, 0.456, 0.406], (3, 1, 1))
    ) * 255


@pytest.mark.parametrize("size", [1, 31, None])
def test_random_crops_are_inputs_of_the_network(samples, size):
    photos = {row.file: open_photo(row.path) for row in samples.head(2).itertuples()}
    crops = preprocessing.random_crops(photos, 3, seed=1, **({"size": size} if size else {}))
    assert len(crops) == 3
    for name, piece in crops.items():
        assert isinstance(piece, np.ndarray) and piece.dtype == np.float32, f"{name} is not float32"
        assert piece.shape == (1, 3, size or 224, size or 224), f"{name} has shape {piece.shape}"
        assert piece.flags.c_contiguous, f"{name} is not in C order: engines that are timed on it would rearrange it"
        pixels = to_pixels(piece)
        assert pixels.min() > -0.01 and pixels.max() < 255.01, f"{name} is not normalised as the networks need it"


def test_crops_are_normalised_like_the_network_that_gets_them():
    like = preprocessing.preprocessing(mean=(0.498,) * 3, std=(0.502,) * 3)
    theirs, usual = (preprocessing.random_crops(FLAT, 3, size=8, seed=1, like=which) for which in (like, None))
    for name, piece in theirs.items():
        np.testing.assert_allclose((piece[0] * 0.502 + 0.498) * 255, to_pixels(usual[name]), atol=1e-3)


def test_photos_take_turns_and_names_say_whose_piece_it_is():
    crops = preprocessing.random_crops(FLAT, 7, size=8, seed=1)
    assert list(crops) == ["z #0000", "a #0001", "m #0002", "z #0003", "a #0004", "m #0005", "z #0006"]
    for name, piece in crops.items():
        colour = FLAT[name[0]].getpixel((0, 0))
        wanted = np.broadcast_to(np.reshape(colour, (3, 1, 1)), (3, 8, 8))
        np.testing.assert_allclose(to_pixels(piece), wanted, atol=1e-3, err_msg=f"{name} is of another photo")
    assert list(preprocessing.random_crops(FLAT, 2, size=8, seed=1)) == ["z #0000", "a #0001"]


def test_random_crops_are_as_large_and_as_often_mirrored_as_they_say():
    size = 32
    shares, mirrored = [], []
    for name, piece in preprocessing.random_crops({"places": PLACES}, 200, size=size, seed=1).items():
        red, green, blue = to_pixels(piece)
        np.testing.assert_allclose(blue, 77, atol=1e-3, err_msg=f"{name}: a flat colour changed")
        # The centres of the outer pixels are half a pixel inside the piece.
        width, height = [(channel.max() - channel.min()) / (1 - 1 / size) for channel in (red, green)]
        shares.append(width * height / 256**2)
        mirrored.append(red[0, 0] > red[0, -1])
        assert 0.7 < width / height < 1.4, f"{name} is stretched: it was {width:.0f} x {height:.0f} px"
        assert green[0, 0] < green[-1, 0], f"{name} stands on its head"
    assert 0.33 < min(shares) < 0.4 and 0.9 < max(shares) < 1.02, f"covered: {min(shares):.2f} to {max(shares):.2f}"
    assert 0.4 < np.mean(mirrored) < 0.6, f"{np.mean(mirrored):.0%} are mirrored"


def same(some, others):
    return list(some) == list(others) and all(np.array_equal(some[name], others[name]) for name in some)


def test_seed_alone_decides_what_is_cut():
    photos = {"places": PLACES, **FLAT}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        first = preprocessing.random_crops(photos, 8, size=16, seed=5)
        torch.manual_seed(2)
        assert same(preprocessing.random_crops(photos, 8, size=16, seed=5), first), (
            "the caller's seed changes the pieces"
        )
    other = preprocessing.random_crops(photos, 8, size=16, seed=6)
    for name in ("places #0000", "places #0004"):
        assert not np.array_equal(first[name], other[name]), f"another seed cuts the same piece {name}"
    assert not np.array_equal(first["places #0000"], first["places #0004"]), "every piece of a photo is the same"


def test_random_crops_leave_the_callers_random_numbers_alone():
    before = torch.get_rng_state()
    preprocessing.random_crops({"places": PLACES}, 5, size=16, seed=5)
    assert torch.equal(torch.get_rng_state(), before), "the caller's random numbers go on elsewhere"


@pytest.mark.parametrize(
    ("photos", "count", "message"),
    [
        ({}, 5, "There are 0 photos and count is 5; needed: at least 1 of each"),
        (FLAT, 0, "There are 3 photos and count is 0; needed"),
        (FLAT, -1, "There are 3 photos and count is -1; needed"),
    ],
    ids=["no photos", "count 0", "count -1"],
)
def test_no_photos_or_no_crops_are_refused(photos, count, message):
    with pytest.raises(ValueError, match=message):
        preprocessing.random_crops(photos, count, seed=1)
