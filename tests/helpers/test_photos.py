"""helpers/photos.py: every odd picture that people bring opens with the right pixels, or says why it does not."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms, ImageFile, ImageOps

from helpers import labels, photos, settings

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


def picture_of(values):
    return Image.fromarray(quarters(values))


RGB = picture_of(FOUR)
PALETTE = picture_of(NUMBERS).convert("P")
PALETTE.putpalette(FOUR.reshape(-1).tolist())
CMYK = np.dstack([255 - FOUR, np.full((2, 2), 51, np.uint8)])  # 51 of 255 is 20 % black
# 16-bit values that clipping at 255 would turn white, and small ones that it would keep
GREY_16 = np.array([[200, 5140], [30000, 65535]], np.uint16)
FLOATS = np.array([[0.0, 0.2], [0.5, 1.0]], np.float32)
WITH_HOLES = np.array([[np.nan, np.inf], [-np.inf, 0.6]], np.float32)
BEST, EXACT = {"quality": 95, "subsampling": 0}, {"lossless": True, "exact": True}


def swapped_profile():
    """Return an sRGB profile in which red and blue have changed places, as some test pictures carry it."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return profile.replace(b"rXYZ", b"????").replace(b"bXYZ", b"rXYZ").replace(b"????", b"bXYZ")


# file name: (picture, options of save(), colours expected of the four quarters, tolerance)
PICTURES = {
    "colour 照片,小猫(副本).jpg": (RGB, BEST, FOUR, 4),
    "transparent.webp": (with_alpha(FOUR, FOUR_ALPHA), EXACT, on_white(FOUR, FOUR_ALPHA), 1),
    "animated.gif": (PALETTE, {"save_all": True, "append_images": [PALETTE.rotate(180)] * 2}, FOUR, 0),
    "transparent.gif": (PALETTE, {"transparency": 1}, on_white(FOUR, [[255, 0], [255, 255]]), 0),
    "grey.png": (picture_of(FOUR_GREY), {}, grey(FOUR_GREY), 0),
    "grey with alpha.png": (with_alpha(FOUR_GREY, FOUR_ALPHA), {}, on_white(grey(FOUR_GREY), FOUR_ALPHA), 1),
    "one bit.png": (picture_of(NUMBERS == 0), {}, grey((NUMBERS == 0) * 255), 0),
    "palette with alpha.png": (PALETTE, {"transparency": FOUR_ALPHA.tobytes()}, on_white(FOUR, FOUR_ALPHA), 1),
    "cmyk.jpg": (Image.fromarray(quarters(CMYK), "CMYK"), BEST, FOUR * 0.8, 5),
    "16 bit.png": (picture_of(GREY_16), {}, grey([[1, 20], [117, 255]]), 0),
    "12 bit in 16.tif": (picture_of(GREY_16 // 16), {}, grey([[1, 20], [117, 255]]), 1),
    "float.tif": (picture_of(FLOATS), {}, grey([[0, 51], [128, 255]]), 0),
    "float, other range.tif": (picture_of(FLOATS * 100 - 20), {}, grey([[0, 51], [128, 255]]), 0),
    "float, large.tif": (picture_of(FLOATS * 1e6), {}, grey([[0, 51], [128, 255]]), 0),
    "float, one value.tif": (picture_of(FLOATS * 0 - 7), {}, grey([[0, 0], [0, 0]]), 0),
    "float with holes.tif": (picture_of(WITH_HOLES), {}, grey([[0, 0], [0, 153]]), 0),
    "profile.png": (RGB, {"icc_profile": swapped_profile()}, FOUR[..., ::-1], 2),
    "profile of colours, grey.png": (picture_of(FOUR_GREY), {"icc_profile": swapped_profile()}, grey(FOUR_GREY), 0),
}


@pytest.mark.parametrize("name", PICTURES)
def test_odd_picture_opens_with_the_right_pixels(tmp_path, name):
    picture, options, expected, tolerance = PICTURES[name]
    picture.save(tmp_path / name, **options)
    opened = photos.open_photo(str(tmp_path / name))
    as_bytes = photos.open_photo(io.BytesIO((tmp_path / name).read_bytes()))
    (tmp_path / name).unlink()  # the pixels must not be read from the file later
    assert opened.mode == "RGB" and as_bytes.tobytes() == opened.tobytes()
    found = np.asarray(opened).astype(float)
    np.testing.assert_allclose(found, quarters(expected), rtol=0, atol=tolerance, err_msg=f"wrong pixels in {name}")


@pytest.mark.parametrize("orientation", range(1, 10))  # 9 is not in the standard, but in the wild
def test_exif_rotation_is_undone_as_pillow_does(tmp_path, orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    RGB.save(tmp_path / "phone.jpg", exif=exif, **BEST)
    expected = ImageOps.exif_transpose(Image.open(tmp_path / "phone.jpg"))
    np.testing.assert_array_equal(photos.open_photo(tmp_path / "phone.jpg"), expected)


def test_odd_exif_entries_do_not_stop_a_rotated_photo(tmp_path):
    """The maker's name stored as a fraction: Pillow reads it and fails to write it back."""
    entries = struct.pack("<HHII", 0x010F, 5, 1, 38) + struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + struct.pack("<III", 0, 7, 2)
    RGB.save(tmp_path / "odd.jpg", exif=exif, **BEST)
    expected = np.rot90(quarters(FOUR), -1).astype(float)
    np.testing.assert_allclose(np.asarray(photos.open_photo(tmp_path / "odd.jpg")).astype(float), expected, atol=4)


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))


def half(path):
    NOISE.save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def claims(width, height):
    """Return a maker of a tiny PNG whose header claims a size; there are hardly any pixels in it."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    return lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def holds(data):
    return lambda path: path.write_bytes(data)


# file name: (maker, what the message must say)
BAD_FILES = {
    "empty.jpg": (holds(b""), r"empty \(0 bytes\)"),
    "half.jpg": (half, "damaged, cut off"),
    "text.jpg": (holds(b"not a photo\n" * 99), "not a picture that Pillow can read"),
    "IMG_0001.jpg": (holds(b"\0\0\0\x18ftypheic" + bytes(99)), "HEIC.*pillow-heif"),
    "a.CR2": (holds(b"II*\0"), "raw file"),
    "missing\nline.jpg": (lambda path: None, r"cannot be read \(No such file"),
    "broken profile.png": (lambda path: RGB.save(path, icc_profile=b"no profile"), "odd kind .*profile"),
    "clear.png": (lambda path: Image.new("RGBA", (9, 9), (1, 2, 3, 0)).save(path), "transparent all over"),
    "bomb.png": (claims(50_000, 50_000), "too many pixels"),
    "half a bomb.png": (claims(10_000, 9_000), "10000 x 9000 pixels, more than 80 million"),
    "line.png": (lambda path: Image.new("RGB", (511, 10)).save(path), "511 x 10 pixels, a line"),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_file_is_refused_by_name_in_one_line_that_says_what_to_do(tmp_path, monkeypatch, name):
    make, reason = BAD_FILES[name]
    make(tmp_path / name)
    if "bomb" in name:
        monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("a bomb's pixels were decoded"))
    with pytest.raises(photos.PhotoError, match=reason) as caught:
        photos.open_photo(tmp_path / name)
    message = str(caught.value)
    assert photos.printable(name) in message, "the message does not name the file"
    assert message.isprintable() and message.endswith(".") and ": " in message, message
    assert ("bomb" in name) == isinstance(caught.value, photos.TooManyPixelsError)


def fill(folder, good=(), bad=()):
    for number, name in enumerate(good):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(folder / name)
    for name in bad:
        (folder / name).write_text("no picture")


def test_bad_files_and_too_many_do_not_stop_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(photos, "MAX_PHOTOS", 3)
    fill(tmp_path, good=["c.png", "a.png", "照片.png", "龙.png"], bad=["b.jpg", ".gitignore"])
    (tmp_path / "d").mkdir()
    opened, left_out = photos.open_folder(tmp_path)
    assert list(opened) == ["a.png", "c.png", "照片.png"], "photos must come in the order of their names"
    assert opened["c.png"].getpixel((0, 0)) == (0, 0, 0), "a photo stands under another one's name"
    assert list(left_out) == ["b.jpg", "d", "龙.png"] and "b.jpg is not a picture" in left_out["b.jpg"]
    assert "after the first 3 photos" in left_out["龙.png"]


@pytest.mark.skipif(os.name != "posix", reason="only here file names are bytes")
def test_name_that_is_no_utf_8_is_printable(tmp_path):
    try:
        NOISE.save(tmp_path / os.fsdecode("小猫.png".encode("gbk")))
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    (tmp_path / "two\nlines.png").write_bytes(b"no picture")
    opened, left_out = photos.open_folder(tmp_path)
    assert len(opened) == 1 and all(text.isprintable() for text in [*opened, *left_out, *left_out.values()])


def test_folders_without_photos_are_refused(tmp_path):
    with pytest.raises(photos.PhotoError, match=r"folder .*nowhere does not exist: make it"):
        photos.open_folder(tmp_path / "nowhere")
    fill(tmp_path, bad=[".gitignore"])
    with pytest.raises(photos.PhotoError, match=r"no usable photo .* It is empty"):
        photos.open_folder(str(tmp_path))
    fill(tmp_path, bad=["a.jpg", "b.png"])
    with pytest.raises(photos.PhotoError, match=r"no usable photo in .*a\.jpg is not.*b\.png is not"):
        photos.open_folder(tmp_path)


def test_default_folder_holds_the_samples_and_what_readers_add(tmp_path, monkeypatch):
    monkeypatch.setattr(settings, "IMAGES", tmp_path / "images")
    (tmp_path / "images").mkdir()
    fill(tmp_path / "images", good=["我的猫.png"])
    (tmp_path / "images" / "cat.png").write_bytes(b"my own")
    opened, left_out = photos.open_folder()
    assert len(opened) == 9 and "我的猫.png" in opened and list(left_out) == ["cat.png"], "a file was overwritten"


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
        assert row.match == "exact" or (row.match == "nearest" and row.note), f"{row.file}: no note says why"
        assert row.licence and row.credit, f"{row.file} has no licence or credit"
        assert min(photos.open_photo(row.path).size) >= 224, f"{row.file} is smaller than the network's input"


def test_more_photos_come_after_the_nine_and_have_no_class_of_imagenet(tmp_path, monkeypatch):
    monkeypatch.setattr(settings, "IMAGES", tmp_path)
    nine, more = photos.sample_photos(), photos.sample_photos(more=True)
    assert more["file"].tolist()[:9] == nine["file"].tolist() and more["file"].is_unique
    assert len(list(tmp_path.iterdir())) == 9, "only the nine are copied: other notebooks open this folder"
    for row in more.iloc[9:].itertuples():
        assert (row.class_id, row.match, row.set) == (-1, "none", "more") and row.licence and row.credit and row.note
        assert min(photos.open_photo(row.path).size) >= 224, row.file


def test_missing_package_is_named_with_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(settings, "IMAGES", tmp_path)
    monkeypatch.setattr(photos, "find_spec", lambda package: None)
    with pytest.raises(FileNotFoundError, match=r"no skimage.data.astronaut\.png.*pip install -r requirements.txt"):
        photos.sample_photos()
