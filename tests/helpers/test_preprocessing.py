"""helpers/preprocessing.py: equal to torchvision to the last bit, and crops that are what they say."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.models import EfficientNet_B0_Weights, MobileNet_V3_Small_Weights, ResNet18_Weights

from helpers import preprocessing
from helpers.photos import open_photo

ODD_SIZES = [(3, 7), (7, 3), (1, 1), (2, 31), (223, 225), (257, 255), (641, 333), (100, 1000)]  # px
# A photo that says of each of its pixels where it was: red grows to the right, green downwards, blue is the same.
PLACES = Image.fromarray(
    np.dstack([*np.meshgrid(np.arange(256), np.arange(256)), np.full((256, 256), 77)]).astype("u1")
)
FLAT = {name: Image.new("RGB", (40, 30), colour) for name, colour in [("z", "red"), ("a", "lime"), ("m", "blue")]}
MEAN, STD = (np.reshape(of, (3, 1, 1)) for of in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))


def to_pixels(piece):
    """Undo the normalisation: (1, 3, H, W) to (3, H, W), 0 to 255."""
    assert piece.shape[0] == 1
    return (piece[0] * STD + MEAN) * 255


@pytest.fixture(scope="module")
def pictures(samples):
    random = np.random.default_rng(1)
    noise = [Image.fromarray(random.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in ODD_SIZES]
    return [open_photo(path) for path in samples["path"]] + noise


def by_hand(size, resize):
    steps = [transforms.Resize(resize or size), transforms.CenterCrop(size), transforms.ToTensor()]
    return transforms.Compose([*steps, transforms.Normalize(mean=MEAN.ravel().tolist(), std=STD.ravel().tolist())])


@pytest.mark.parametrize(
    ("size", "resize", "theirs"),
    [
        *((size, resize, by_hand(size, resize)) for size, resize in [(256, None), (225, 301), (31, 32), (1, 1)]),
        (224, 256, ResNet18_Weights.IMAGENET1K_V1.transforms()),
        (224, 256, MobileNet_V3_Small_Weights.IMAGENET1K_V1.transforms()),
    ],
)
def test_preprocessing_equals_torchvisions_to_the_last_bit(pictures, size, resize, theirs):
    prepare = preprocessing.preprocessing(size, resize=resize)
    for photo in pictures:
        found = prepare(photo)
        assert found.shape == (3, size, size) and found.dtype == torch.float32
        assert torch.equal(found, theirs(photo)), f"differs on a photo of {photo.size} px"


@pytest.mark.parametrize("photo_size", [(300, 300), (600, 200), (200, 600), (31, 33)], ids=str)
@pytest.mark.parametrize(("size", "resize"), [((224, 320), None), ((256, 128), None), ((64, 96), 80)], ids=str)
def test_inputs_that_are_not_square_are_covered_by_the_photo_and_not_squeezed(photo_size, size, resize):
    height, width = size
    prepare = preprocessing.preprocessing(size, resize=resize)
    red, green, blue = to_pixels(preprocessing.preprocess(PLACES.resize(photo_size), prepare))
    assert red.shape == size
    np.testing.assert_allclose(blue, 77, atol=1, err_msg="a border was padded with black")
    share = (red.max() - red.min()) / 255, (green.max() - green.min()) / 255  # of the photo's width and height
    across, down = width / (share[0] * photo_size[0]), height / (share[1] * photo_size[1])
    assert across == pytest.approx(down, rel=0.1), "the photo was squeezed"
    assert resize or max(share) > 0.95, f"more was cut off than needed: {share}"


def test_one_mean_makes_a_grey_input_of_one_channel():
    x = preprocessing.preprocess(PLACES, preprocessing.preprocessing(256, mean=(0.5,), std=(0.25,)))
    assert x.shape == (1, 1, 256, 256)
    np.testing.assert_allclose(x[0, 0] * 0.25 + 0.5, np.asarray(PLACES.convert("L")) / 255, atol=1e-6)


def test_a_published_transform_is_taken_as_it_is_and_ours_can_say_as_much():
    theirs = EfficientNet_B0_Weights.IMAGENET1K_V1.transforms()
    x, expected = preprocessing.preprocess(PLACES, theirs), theirs(PLACES)[None].numpy()
    np.testing.assert_array_equal(x, expected)
    assert x.dtype == np.float32 and x.flags.c_contiguous
    ours = preprocessing.preprocessing(224, resize=256, interpolation=theirs.interpolation)
    np.testing.assert_array_equal(preprocessing.preprocess(PLACES, ours), expected)


@pytest.mark.parametrize(
    ("transform", "what"),
    [
        (transforms.PILToTensor(), r"torch.uint8 of shape \(3, 256, 256\)"),
        (lambda picture: transforms.functional.to_tensor(picture)[None], r"torch.float32 of shape \(1, 3, 256, 256\)"),
        (np.asarray, "a ndarray"),
    ],
)
def test_a_transform_that_gives_no_input_is_refused(transform, what):
    with pytest.raises(ValueError, match=f"returned {what}; needed: a float tensor.*Normalize"):
        preprocessing.preprocess(PLACES, transform)


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ({"size": 0}, "size is 0 and resize 0; needed"),
        ({"size": 256, "resize": 255}, "size is 256 and resize 255; needed"),
        ({"size": (224, 224, 3)}, "needed: 1 or 2 numbers"),
        ({"mean": (0.5, 0.5), "std": (0.5, 0.5)}, "as many numbers as channels"),
        ({"mean": (0.5,)}, "as many numbers as channels"),
        ({"std": (0.2, 0.2, 0.0)}, "std above 0"),
    ],
)
def test_impossible_recipes_are_refused(choice, said):
    with pytest.raises(ValueError, match=said):
        preprocessing.preprocessing(**choice)


@pytest.mark.parametrize(("photos", "count"), [({}, 5), (FLAT, 0)])
def test_no_photos_or_no_crops_are_refused(photos, count):
    with pytest.raises(ValueError, match=f"There are {len(photos)} photos and count is {count}; needed"):
        preprocessing.random_crops(photos, count, seed=1)


def test_crops_are_inputs_of_the_network_and_normalised_like_its_own():
    like = preprocessing.preprocessing(mean=(0.498,) * 3, std=(0.502,) * 3)
    theirs, usual = (preprocessing.random_crops(FLAT, 3, seed=1, like=which) for which in (like, None))
    for name, piece in theirs.items():
        assert piece.dtype == np.float32 and piece.shape == (1, 3, 224, 224)
        assert piece.flags.c_contiguous, "engines that are timed on it would rearrange it"
        np.testing.assert_allclose((piece[0] * 0.502 + 0.498) * 255, to_pixels(usual[name]), atol=1e-3)


def test_photos_take_turns_and_names_say_whose_piece_it_is():
    crops = preprocessing.random_crops(FLAT, 7, size=8, seed=1)
    assert list(crops) == ["z #0000", "a #0001", "m #0002", "z #0003", "a #0004", "m #0005", "z #0006"]
    for name, piece in crops.items():
        wanted = np.broadcast_to(np.reshape(FLAT[name[0]].getpixel((0, 0)), (3, 1, 1)), (3, 8, 8))
        np.testing.assert_allclose(to_pixels(piece), wanted, atol=1e-3, err_msg=f"{name} is of another photo")


def test_random_crops_are_as_large_and_as_often_mirrored_as_they_say():
    size, shares, mirrored = 32, [], []
    for name, piece in preprocessing.random_crops({"places": PLACES}, 200, size=size, seed=1).items():
        red, green, _ = to_pixels(piece)
        # The centres of the outer pixels are half a pixel inside the piece.
        width, height = [(channel.max() - channel.min()) / (1 - 1 / size) for channel in (red, green)]
        shares.append(width * height / 256**2)
        mirrored.append(red[0, 0] > red[0, -1])
        assert 0.7 < width / height < 1.4, f"{name} is stretched: it was {width:.0f} x {height:.0f} px"
        assert green[0, 0] < green[-1, 0], f"{name} stands on its head"
    assert 0.33 < min(shares) < 0.4 and 0.9 < max(shares) < 1.02, f"covered: {min(shares):.2f} to {max(shares):.2f}"
    assert 0.4 < np.mean(mirrored) < 0.6, f"{np.mean(mirrored):.0%} are mirrored"


def test_seed_alone_decides_what_is_cut_and_the_callers_random_numbers_stay():
    before = torch.get_rng_state()
    first, again, other = (preprocessing.random_crops({"a": PLACES}, 2, size=16, seed=seed) for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["a #0000"], other["a #0000"])
    assert not np.array_equal(first["a #0000"], first["a #0001"]), "every piece of a photo is the same"
