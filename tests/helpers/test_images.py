"""helpers/images.py: every odd picture opens with the right pixels, every bad file is refused by name."""

import struct
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageFile, features
from torchvision import transforms
from torchvision.models import EfficientNet_B0_Weights, MobileNet_V3_Small_Weights, ResNet18_Weights

from helpers import labels, photos, preprocessing, settings
from helpers import photos as opening

# Every picture below shows four flat quarters, 48 x 32 px, all different: a turned or mirrored one is noticed, and
# JPEG, which works in blocks of 8 x 8 px, keeps them nearly exact.
FOUR = np.array([[[200, 40, 30], [30, 160, 60]], [[40, 60, 190], [240, 230, 10]]], np.uint8)
FOUR_GREY = np.array([[10, 90], [160, 250]], np.uint8)
FOUR_ALPHA = np.array([[0, 64], [128, 255]], np.uint8)
NUMBERS = np.array([[0, 1], [2, 3]], np.uint8)  # of the quarters: what a palette picture stores


def quarters(values):
    """Enlarge (2, 2) or (2, 2, 3) to (32, 48) or (32, 48, 3)."""
    return np.asarray(values).repeat(16, 0).repeat(24, 1)


def grey(values):
    return np.stack([values] * 3, -1)


def on_white(colours, alpha):
    share = np.asarray(alpha)[..., None] / 255
    return colours * share + 255 * (1 - share)


def with_alpha(values, alpha):
    return Image.fromarray(np.dstack([quarters(values), quarters(alpha)]))


RGB = Image.fromarray(quarters(FOUR))
PALETTE = Image.fromarray(quarters(NUMBERS)).convert("P")
PALETTE.putpalette(FOUR.reshape(-1).tolist())
ONE_BIT = np.array([[True, False], [False, False]])
CMYK = np.dstack([255 - FOUR, np.full((2, 2), 51, np.uint8)])  # 51 of 255 is 20 % black
# 16-bit values that clipping at 255 would turn white, and small ones that it would keep
GREY_16 = np.array([[200, 5140], [30000, 65535]], np.uint16)
FLOATS = np.array([[0.0, 0.2], [0.5, 1.0]], np.float32)
WITH_HOLES = np.array([[np.nan, np.inf], [-np.inf, 0.6]], np.float32)

# file name: (picture, options of save(), colours expected of the four quarters, tolerance)
PICTURES = {
    "colour.jpg": (RGB, {"quality": 95, "subsampling": 0}, FOUR, 4),
    "progressive.jpg": (RGB, {"quality": 95, "subsampling": 0, "progressive": True}, FOUR, 4),
    "colour.png": (RGB, {}, FOUR, 0),
    "lossless.webp": (RGB, {"lossless": True}, FOUR, 0),
    "transparent.webp": (
        with_alpha(FOUR, FOUR_ALPHA),
        {"lossless": True, "exact": True},
        on_white(FOUR, FOUR_ALPHA),
        1,
    ),
    "colour.bmp": (RGB, {}, FOUR, 0),
    "colour.tif": (RGB, {}, FOUR, 0),
    "compressed.tiff": (RGB, {"compression": "tiff_lzw"}, FOUR, 0),
    "one frame.gif": (PALETTE, {}, FOUR, 0),
    "animated.gif": (PALETTE, {"save_all": True, "append_images": [PALETTE.rotate(180)] * 2}, FOUR, 0),
    "transparent.gif": (PALETTE, {"transparency": 1}, on_white(FOUR, [[255, 0], [255, 255]]), 0),
    "grey.jpg": (Image.fromarray(quarters(FOUR_GREY)), {"quality": 95}, grey(FOUR_GREY), 4),
    "grey.png": (Image.fromarray(quarters(FOUR_GREY)), {}, grey(FOUR_GREY), 0),
    "palette.png": (PALETTE, {}, FOUR, 0),
    "palette, one colour transparent.png": (PALETTE, {"transparency": 2}, on_white(FOUR, [[255, 255], [0, 255]]), 0),
    "palette with alpha.png": (PALETTE, {"transparency": FOUR_ALPHA.tobytes()}, on_white(FOUR, FOUR_ALPHA), 1),
    "grey with one transparent.png": (
        Image.fromarray(quarters(FOUR_GREY)),
        {"transparency": 90},
        on_white(grey(FOUR_GREY), [[255, 0], [255, 255]]),
        0,
    ),
    "rgba.png": (with_alpha(FOUR, FOUR_ALPHA), {}, on_white(FOUR, FOUR_ALPHA), 1),
    "la.png": (with_alpha(FOUR_GREY, FOUR_ALPHA), {}, on_white(grey(FOUR_GREY), FOUR_ALPHA), 1),
    "one bit.png": (Image.fromarray(quarters(ONE_BIT)), {}, grey(ONE_BIT * 255), 0),
    "one bit.tif": (Image.fromarray(quarters(ONE_BIT)), {}, grey(ONE_BIT * 255), 0),
    "cmyk.jpg": (Image.fromarray(quarters(CMYK), "CMYK"), {"quality": 95, "subsampling": 0}, FOUR * 0.8, 5),
    "16 bit.png": (Image.fromarray(quarters(GREY_16)), {}, grey([[1, 20], [117, 255]]), 0),
    "16 bit.tif": (Image.fromarray(quarters(GREY_16)), {}, grey([[1, 20], [117, 255]]), 0),
    "32 bit.tif": (Image.fromarray(quarters(GREY_16.astype(np.int32) * 1000)), {}, grey([[0, 19], [116, 255]]), 0),
    "float.tif": (Image.fromarray(quarters(FLOATS)), {}, grey([[0, 51], [128, 255]]), 0),
    "float, other range.tif": (Image.fromarray(quarters(FLOATS * 100 - 20)), {}, grey([[0, 51], [128, 255]]), 0),
    "float, one value.tif": (Image.fromarray(quarters(FLOATS * 0 - 7)), {}, grey([[0, 0], [0, 0]]), 0),
    "float with holes.tif": (Image.fromarray(quarters(WITH_HOLES)), {}, grey([[0, 0], [0, 153]]), 0),
    "照片 一,小猫(副本).jpg": (RGB, {"quality": 95, "subsampling": 0}, FOUR, 4),
}


@pytest.mark.parametrize("name", PICTURES)
def test_odd_picture_opens_with_the_right_pixels(tmp_path, name):
    picture, options, expected, tolerance = PICTURES[name]
    path = tmp_path / name
    picture.save(path, **options)
    opened = photos.open_photo(path)
    path.unlink()  # the pixels must not be read from the file later
    assert opened.mode == "RGB"
    found = np.asarray(opened).astype(float)
    np.testing.assert_allclose(found, quarters(expected), rtol=0, atol=tolerance, err_msg=f"wrong pixels in {name}")


def test_path_may_be_text_and_folders_chinese(tmp_path):
    folder = tmp_path / "我的图片" / "二〇二四年"
    folder.mkdir(parents=True)
    RGB.save(folder / "猫.png")
    assert np.array_equal(photos.open_photo(str(folder / "猫.png")), quarters(FOUR))


# EXIF orientation -> how stored pixels become upright ones, by the standard's table of rows and columns
TURNS = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),
    8: lambda stored: np.rot90(stored, 1),
    0: lambda stored: stored,  # not in the standard, but in the wild
    9: lambda stored: stored,
}


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize(("suffix", "tolerance"), [("jpg", 4), ("png", 0)])
def test_exif_rotation_is_undone(tmp_path, orientation, suffix, tolerance):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path = tmp_path / f"phone.{suffix}"
    RGB.save(path, exif=exif, **({"quality": 95, "subsampling": 0} if suffix == "jpg" else {}))
    expected = TURNS[orientation](quarters(FOUR)).astype(float)
    found = np.asarray(photos.open_photo(path)).astype(float)
    assert found.shape == expected.shape, f"orientation {orientation}: width and height are confused"
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance, err_msg=f"orientation {orientation}")


def test_odd_exif_entries_do_not_stop_a_rotated_photo(tmp_path):
    """The maker's name stored as a fraction: Pillow reads it and fails to write it back."""
    entries = struct.pack("<HHII", 0x010F, 5, 1, 38) + struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + struct.pack("<III", 0, 7, 2)
    path = tmp_path / "odd.jpg"
    RGB.save(path, exif=exif, quality=95, subsampling=0)
    expected = np.rot90(quarters(FOUR), -1).astype(float)
    np.testing.assert_allclose(np.asarray(photos.open_photo(path)).astype(float), expected, atol=4)


def half(picture, **options):
    """Return a maker of a file that holds the first half of a picture's bytes."""

    def make(path):
        picture.save(path, **options)
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2])

    return make


def blank_avif(path):
    """Write an AVIF file with a good header and zeros for pixels; Pillow raises RuntimeError on it."""
    NOISE.save(path)
    data = path.read_bytes()
    start = data.index(b"mdat") + 4
    path.write_bytes(data[:start] + bytes(len(data) - start))


def claims(width, height):
    """Return a maker of a tiny PNG whose header claims a size; there are hardly any pixels in it."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    return lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))

# file name: (maker, what the message must say)
BAD_FILES = {
    "empty.jpg": (lambda path: path.touch(), r"empty \(0 bytes\)"),
    "half.jpg": (half(NOISE), "damaged or cut off"),
    "half.png": (half(NOISE), "damaged or cut off"),
    "half.gif": (half(NOISE.quantize()), "damaged or cut off"),
    "half.bmp": (half(NOISE), "damaged or cut off"),
    "half.tif": (half(NOISE), "damaged or cut off|not a picture"),
    "half.webp": (half(NOISE, lossless=True), "damaged or cut off|not a picture"),
    "half.avif": (half(NOISE), "damaged or cut off|not a picture"),
    "blank.avif": (blank_avif, "damaged or cut off"),
    "text.jpg": (lambda path: path.write_text("not a photo\n" * 99), "not a picture"),
    "网页.png": (lambda path: path.write_text("<!doctype html>\n<title>404</title>"), "not a picture"),
    "header only.png": (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n"), "damaged or cut off|not a picture"),
    "folder.jpg": (lambda path: path.mkdir(), "is a folder"),
    "missing.jpg": (lambda path: None, "does not exist in"),
    "bomb.png": (claims(50_000, 50_000), "million"),
    "half a bomb.png": (claims(10_000, 9_000), "10000 x 9000 pixels"),
    "line.png": (lambda path: Image.new("RGB", (511, 10)).save(path), "511 x 10 pixels, a line"),
    "upright line.png": (lambda path: Image.new("RGB", (1, 51)).save(path), "1 x 51 pixels, a line"),
    "endless line.png": (claims(1, 50_000_000), "a line"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_file_is_refused_by_name_in_one_line(tmp_path, name):
    if name.endswith(".avif") and not features.check("avif"):
        pytest.skip("this Pillow cannot write AVIF")
    make, reason = BAD_FILES[name]
    make(tmp_path / name)
    with pytest.raises(photos.PhotoError, match=reason) as caught:
        photos.open_photo(tmp_path / name)
    message = str(caught.value)
    assert name in message, "the message does not name the file"
    assert "\n" not in message and message.endswith("."), f"not one sentence on one line: {message!r}"
    assert ": " in message, f"the message does not say what to do: {message!r}"


@pytest.mark.parametrize("name", ["bomb.png", "half a bomb.png", "endless line.png"])
def test_bombs_are_refused_before_a_pixel_is_decoded(tmp_path, monkeypatch, name):
    def load(self):
        raise AssertionError("the pixels of a bomb were decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    BAD_FILES[name][0](tmp_path / name)
    with pytest.raises(photos.PhotoError):
        photos.open_photo(tmp_path / name)


@pytest.mark.parametrize("size", [(50, 1), (10, 500), (1, 1), (3, 7)])
def test_small_and_narrow_photos_open(tmp_path, size):
    Image.new("RGB", size, "red").save(tmp_path / "small.png")
    assert photos.open_photo(tmp_path / "small.png").size == size


def fill(folder, good=(), bad=()):
    for number, name in enumerate(good):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(folder / name)
    for name in bad:
        (folder / name).write_text("no picture")


def test_one_bad_file_does_not_stop_the_others(tmp_path):
    fill(tmp_path, good=["c.png", "a.png", "照片.png"], bad=["b.jpg", ".gitignore"])
    (tmp_path / "d").mkdir()
    photos, left_out = photos.open_folder(tmp_path)
    assert list(photos) == ["a.png", "c.png", "照片.png"], "photos must come in the order of their names"
    assert photos["c.png"].getpixel((0, 0)) == (0, 0, 0), "a photo stands under another one's name"
    assert list(left_out) == ["b.jpg", "d"]
    assert "b.jpg is not a picture" in left_out["b.jpg"] and "d is a folder" in left_out["d"]


def test_folder_of_bad_files_names_each(tmp_path):
    fill(tmp_path, bad=["a.jpg", "b.png"])
    with pytest.raises(photos.PhotoError, match=r"no usable photo in .*a\.jpg is not.*b\.png is not") as caught:
        photos.open_folder(tmp_path)
    assert str(tmp_path) in str(caught.value), "the message does not name the folder"


@pytest.mark.parametrize("names", [[], [".gitignore"]], ids=["nothing in it", "hidden file only"])
def test_empty_folder_is_refused(tmp_path, names):
    fill(tmp_path, bad=names)
    with pytest.raises(photos.PhotoError, match=r"no usable photo .* It is empty"):
        photos.open_folder(str(tmp_path))


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.touch()], ids=["missing", "a file"])
def test_missing_folder_is_refused(tmp_path, make):
    make(tmp_path / "photos")
    with pytest.raises(photos.PhotoError, match=r"folder .*photos does not exist: make it"):
        photos.open_folder(tmp_path / "photos")


def test_limit_counts_good_photos_and_says_what_was_left(tmp_path):
    fill(tmp_path, good=["a.png", "c.png", "d.png", "e.png"], bad=["b.png"])
    photos, left_out = photos.open_folder(tmp_path, limit=2)
    assert list(photos) == ["a.png", "c.png"]
    assert list(left_out) == ["b.png", "d.png", "e.png"]
    assert "raise limit" in left_out["d.png"]
    assert len(photos.open_folder(tmp_path, limit=4)[0]) == 4


def test_default_folder_holds_the_samples_and_what_readers_add(tmp_path, monkeypatch):
    monkeypatch.setattr(settings, "IMAGES", tmp_path / "images")
    (tmp_path / "images").mkdir()
    fill(tmp_path / "images", good=["我的猫.png"])
    photos, left_out = photos.open_folder()
    assert len(photos) == 10 and "我的猫.png" in photos and not left_out


def test_samples_are_the_nine_of_the_packages(samples):
    names = {row.file: labels.class_names("english")[row.class_id] for row in samples.itertuples()}
    assert names == {
        "astronaut.png": "space shuttle",
        "cameraman.png": "tripod",
        "cat.png": "tabby",
        "coffee.png": "espresso",
        "flower.jpg": "daisy",
        "motorcycle.png": "moped",
        "officer.jpg": "military uniform",
        "palace.jpg": "palace",
        "rocket.jpg": "missile",
    }
    for row in samples.itertuples():
        source = opening._inside_package(row.package, row.source)
        assert Path(row.path).read_bytes() == source.read_bytes(), f"{row.file} is not a copy of {source}"
        assert row.match in {"exact", "nearest"}, f"{row.file}: match is {row.match!r}"
        assert row.match == "exact" or row.note, f"{row.file} is only near its class and no note says why"
        assert row.licence and row.credit, f"{row.file} has no licence or credit"
        assert min(photos.open_photo(row.path).size) >= 224, f"{row.file} is smaller than the network's input"


def test_more_photos_come_after_the_nine_and_have_no_class_of_imagenet(tmp_path, monkeypatch):
    monkeypatch.setattr(settings, "IMAGES", tmp_path)
    nine, more = photos.sample_photos(), photos.sample_photos(more=True)
    assert more["file"].tolist()[:9] == nine["file"].tolist() and more["file"].is_unique
    assert more["standin"].tolist() == ["trained"] * 9 + ["never seen"] * (len(more) - 9)
    assert len(list(tmp_path.iterdir())) == 9, "only the nine are copied: other notebooks open this folder"
    for row in more.iloc[9:].itertuples():
        assert (row.class_id, row.match) == (-1, "none") and row.licence and row.credit and row.note
        assert row.path.read_bytes() and min(photos.open_photo(row.path).size) >= 224, row.file


def test_photo_that_is_there_is_not_overwritten(tmp_path, monkeypatch):
    monkeypatch.setattr(settings, "IMAGES", tmp_path)
    (tmp_path / "cat.png").write_bytes(b"my own")
    photos.sample_photos()
    assert (tmp_path / "cat.png").read_bytes() == b"my own"
    assert len(list(tmp_path.iterdir())) == 9


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (None, "the package skimage, which is not installed.*pip install -r requirements.txt"),
        (SimpleNamespace(origin="/nowhere/skimage/__init__.py"), "installed skimage has no data/astronaut.png"),
    ],
    ids=["not installed", "photo gone"],
)
def test_missing_package_is_named_with_what_to_do(tmp_path, monkeypatch, spec, message):
    monkeypatch.setattr(settings, "IMAGES", tmp_path)
    monkeypatch.setattr(opening, "find_spec", lambda package: spec)
    with pytest.raises(FileNotFoundError, match=message):
        photos.sample_photos()


ODD_SIZES = [(3, 7), (7, 3), (1, 1), (2, 31), (223, 225), (257, 255), (641, 333), (100, 1000)]  # px


@pytest.fixture(scope="module")
def photos(samples):
    random = np.random.default_rng(1)
    noise = [Image.fromarray(random.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in ODD_SIZES]
    return [photos.open_photo(path) for path in samples["path"]] + noise


@pytest.mark.parametrize(("size", "resize"), [(256, None), (224, 256), (224, 224), (225, 301), (31, 32), (1, 1)])
def test_preprocessing_equals_a_hand_built_one_to_the_last_bit(photos, size, resize):
    by_hand = transforms.Compose(
        [
            transforms.Resize(resize or size),
            transforms.CenterCrop(size),
            transforms.ToTensor(),
            transforms.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
        ]
    )
    prepare = preprocessing.preprocessing(size, resize=resize)
    for photo in photos:
        found = prepare(photo)
        assert found.shape == (3, size, size) and found.dtype == torch.float32
        assert torch.equal(found, by_hand(photo)), f"differs on a photo of {photo.size} px"


@pytest.mark.parametrize("weights", [ResNet18_Weights, MobileNet_V3_Small_Weights])
def test_preprocessing_equals_the_published_one_to_the_last_bit(photos, weights):
    published = weights.IMAGENET1K_V1.transforms()
    for photo in photos:
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


def test_our_transform_says_everything_that_a_published_one_does(photos):
    photo = photos[0]
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


@pytest.mark.parametrize("size", [1, 31, 64, None])
def test_random_crops_are_inputs_of_the_network(samples, size):
    photos = {row.file: photos.open_photo(row.path) for row in samples.head(2).itertuples()}
    crops = (
        preprocessing.random_crops(photos, 3, seed=1)
        if size is None
        else preprocessing.random_crops(photos, 3, size=size, seed=1)
    )
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
