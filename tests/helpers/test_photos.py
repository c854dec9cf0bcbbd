"""photos.open_photo on what people really have: every kind opens with the right pixels, or says why it does not."""

import io
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms, Jpeg2KImagePlugin, PngImagePlugin, features

from helpers import photos

ROWS, COLUMNS = np.mgrid[:48, :64]
GREY = ((ROWS * 2 + COLUMNS * 2) % 256).astype(np.uint8)
GREY[0, :2] = 0, 255
COLOURS = np.dstack([GREY, np.roll(GREY, 9, 1), 255 - GREY])
GREY_3 = np.dstack([GREY] * 3)
U32 = np.round(GREY / 255 * (2**32 - 1)).astype(np.uint32)
BLOCKS = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((256, 192), 0)


def off(path, wanted):
    """Return the mean absolute error of an opened picture, 0 to 255."""
    found = np.asarray(photos.open_photo(path)).astype(float)
    assert found.shape == wanted.shape, f"{path.name}: {found.shape} instead of {wanted.shape}"
    return np.abs(found - wanted).mean()


def reason(path):
    with pytest.raises(photos.PhotoError) as caught:
        photos.open_photo(path)
    message = str(caught.value)
    assert photos.printable(Path(path).name) in message and message.isprintable() and message.endswith("."), message
    return message


def tiff(path, values, *, photometric=1, sample_format=None, planar=1):
    """Write a plain TIFF as cameras and microscopes do: (height, width) or (height, width, channels), one strip."""
    values = np.asarray(values)
    channels = 1 if values.ndim == 2 else values.shape[2]
    body = (np.moveaxis(values, 2, 0) if planar == 2 else values).tobytes()
    height, width = values.shape[:2]
    strips = channels if planar == 2 else 1
    entries = [(256, 4, [width]), (257, 4, [height]), (258, 3, [values.itemsize * 8] * channels), (259, 3, [1])]
    entries += [(262, 3, [photometric]), (273, 4, [8 + len(body) // strips * strip for strip in range(strips)])]
    entries += [(277, 3, [channels]), (278, 4, [height]), (279, 4, [len(body) // strips] * strips), (284, 3, [planar])]
    entries += [(339, 3, [sample_format] * channels)] if sample_format else []
    data = b"II*\0" + struct.pack("<I", 8 + len(body)) + body
    after = len(data) + 2 + 12 * len(entries) + 4
    table, extra = struct.pack("<H", len(entries)), b""
    for tag, kind, numbers in entries:
        packed = struct.pack(f"<{len(numbers)}{'H' if kind == 3 else 'I'}", *numbers)
        if len(packed) > 4:
            extra, packed = extra + packed, struct.pack("<I", after + len(extra))
        table += struct.pack("<HHI", tag, kind, len(numbers)) + packed.ljust(4, b"\0")
    path.write_bytes(data + table + bytes(4) + extra)
    return path


DEEP = {
    "white is zero, 8 bit": (255 - GREY, {"photometric": 0}),
    "white is zero, 16 bit": (65535 - GREY.astype("u2") * 257, {"photometric": 0}),
    "white is zero, float": ((1 - GREY / 255).astype("f4"), {"photometric": 0, "sample_format": 3}),
    "unsigned 32 bit": (U32, {}),
    "unsigned 32 bit, said": (U32, {"sample_format": 1}),
    "0 to 255 in signed 32 bit": (GREY.astype("i4"), {"sample_format": 2}),
    "0 to 255 in signed 16 bit": (GREY.astype("i2"), {"sample_format": 2}),
    "0 to 255 in float": (GREY.astype("f4"), {"sample_format": 3}),
    **{f"{bits} bit in 16": (np.round(GREY / 255 * (2**bits - 1)).astype("u2"), {}) for bits in (8, 10, 12, 14, 16)},
}


@pytest.mark.parametrize("name", DEEP)
def test_deep_grey_is_as_its_8_bit_original(tmp_path, name):
    values, options = DEEP[name]
    assert off(tiff(tmp_path / "a.tif", values, **options), GREY_3) <= 1


@pytest.mark.parametrize("bits", [12, 14, 16])
def test_deep_png_is_as_its_8_bit_original(tmp_path, bits):
    Image.fromarray(np.round(GREY / 255 * (2**bits - 1)).astype("u2")).save(tmp_path / "a.png")
    assert off(tmp_path / "a.png", GREY_3) <= 1


def test_deep_grey_with_a_transparent_value_lies_on_white(tmp_path):
    Image.fromarray(GREY.astype("u2") * 257).save(tmp_path / "a.png", transparency=255 * 257)
    hole = np.where(GREY == 255, 255, GREY)
    assert off(tmp_path / "a.png", np.dstack([hole] * 3)) <= 1
    Image.fromarray(GREY.astype("u2") * 257).save(tmp_path / "b.png", transparency=0)
    hole = np.where(GREY == 0, 255, GREY)
    assert off(tmp_path / "b.png", np.dstack([hole] * 3)) <= 1


@pytest.mark.parametrize("planar", [1, 2])
def test_colour_tiff_opens_in_either_layout(tmp_path, planar):
    assert off(tiff(tmp_path / "a.tif", COLOURS, photometric=2, planar=planar), COLOURS) == 0


MISREAD = {  # what Pillow opens without a word, and with wrong numbers
    "16-bit channels one after the other": (COLOURS.astype("u2") * 257, {"photometric": 2, "planar": 2}),
    "nearly black: its 16-bit numbers stay below 4096": ((COLOURS / 255 * 4095).astype("u2"), {"photometric": 2}),
    "8-bit numbers with a sign": (GREY.astype("i1"), {"sample_format": 2}),
}


@pytest.mark.parametrize("words", MISREAD)
def test_what_pillow_misreads_is_refused_with_the_reason(tmp_path, words):
    values, options = MISREAD[words]
    assert words in reason(tiff(tmp_path / "a.tif", values, **options))


# Every kind of picture, by every one of Pillow's writers that keeps all of its numbers and its size
PICTURES = {
    "1": (Image.fromarray(GREY > 100), np.dstack([(GREY > 100) * 255] * 3)),
    "L": (Image.fromarray(GREY), GREY_3),
    "LA": (Image.fromarray(GREY).convert("LA"), GREY_3),
    "P": (Image.fromarray(COLOURS).quantize(256), None),
    "PA": (Image.fromarray(COLOURS).quantize(256).convert("PA"), None),
    "LAB": (
        ImageCms.profileToProfile(
            Image.fromarray(COLOURS), ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
        ),
        COLOURS,
    ),
    **{mode: (Image.fromarray(COLOURS).convert(mode), COLOURS) for mode in ("RGB", "RGBA", "RGBX", "CMYK", "YCbCr")},
    "I;16": (Image.fromarray(GREY.astype("u2") * 257), GREY_3),
    "I": (Image.fromarray(GREY.astype("i4") * 257), GREY_3),
    "F": (Image.fromarray((GREY / 255).astype("f4")), GREY_3),
}
WRITERS = (
    "AVIF",
    "BMP",
    "DDS",
    "DIB",
    "GIF",
    "IM",
    "JPEG",
    "JPEG2000",
    "MPO",
    "MSP",
    "PCX",
    "PNG",
    "PPM",
    "QOI",
    "SGI",
)
WRITERS += ("TGA", "TIFF", "WEBP", "XBM")
CAREFUL = {"quality": 98, "subsampling": 0}
OPTIONS = {"JPEG": CAREFUL, "MPO": CAREFUL, "WEBP": {"lossless": True}}
OPTIONS["AVIF"] = {"quality": 98, "subsampling": "4:4:4"}


def written(writer, mode, orientation=None, **options):
    """Return the bytes that Pillow writes, or None where it cannot."""
    exif = Image.Exif()
    if orientation:
        exif[ExifTags.Base.Orientation] = orientation
    held = io.BytesIO()
    try:
        PICTURES[mode][0].save(held, writer, exif=exif, **OPTIONS.get(writer, {}), **options)
    except (OSError, KeyError, ValueError):  # this format has no such pictures
        return None
    return held.getvalue()


@pytest.mark.parametrize("orientation", [None, 6])
@pytest.mark.parametrize("writer", WRITERS)
def test_every_writer_and_kind(tmp_path, writer, orientation):
    Image.init()
    if writer not in Image.SAVE:
        pytest.skip(f"this Pillow cannot write {writer}")
    tried = 0
    for mode, (picture, wanted) in PICTURES.items():
        if writer in {"AVIF", "WEBP"} and mode.startswith(("I", "F")):
            continue  # there Pillow clips while it writes
        if writer == "GIF" and mode not in {"1", "L", "P"}:
            continue  # GIF holds 256 colours
        if (data := written(writer, mode, orientation)) is None:
            continue
        wanted = np.asarray(picture.convert("RGB")) if wanted is None else wanted
        with Image.open(io.BytesIO(data)) as opened:
            turned = opened.getexif().get(ExifTags.Base.Orientation) == 6
        (tmp_path / "a").write_bytes(data)
        assert off(tmp_path / "a", np.rot90(wanted, -1) if turned else wanted) <= 2, f"{writer}, {mode}"
        tried += 1
    assert tried, f"{writer} wrote nothing"


@pytest.mark.parametrize("orientation", [None, 6])
@pytest.mark.parametrize("writer", ["PNG", "WEBP", "TIFF", "TGA"])
def test_half_transparent_pictures_lie_on_white_the_right_way_up(tmp_path, writer, orientation):
    exif = Image.Exif()
    if orientation:
        exif[ExifTags.Base.Orientation] = orientation
    alpha = np.linspace(0, 255, GREY.size).reshape(GREY.shape).astype("u1")
    options = {"lossless": True, "exact": True} if writer == "WEBP" else {}
    Image.fromarray(np.dstack([COLOURS, alpha])).save(tmp_path / "a", writer, exif=exif, **options)
    with Image.open(tmp_path / "a") as opened:
        turned = opened.getexif().get(ExifTags.Base.Orientation) == 6
    share = alpha[..., None] / 255
    wanted = COLOURS * share + 255 * (1 - share)
    assert off(tmp_path / "a", np.rot90(wanted, -1) if turned else wanted) <= 2


def swapped_profile():
    """Return an sRGB profile in which red and blue have changed places, as some test pictures carry it."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    places = {}
    for number in range(struct.unpack_from(">I", profile, 128)[0]):
        at = 132 + 12 * number
        places[bytes(profile[at : at + 4])] = at
    red, blue = places[b"rXYZ"], places[b"bXYZ"]
    profile[red : red + 4], profile[blue : blue + 4] = b"bXYZ", b"rXYZ"
    return bytes(profile)


MODES = {"PNG": ("RGB", "RGBA", "P"), "TIFF": ("RGB", "RGBA", "P"), "WEBP": ("RGB", "RGBA"), "JPEG": ("RGB",)}
PROFILED = [(writer, mode, turn) for writer, modes in MODES.items() for mode in modes for turn in (None, 6)]


@pytest.mark.parametrize(("writer", "mode", "orientation"), PROFILED)
def test_profile_is_followed(tmp_path, writer, mode, orientation):
    for profile, order in [
        (swapped_profile(), [2, 1, 0]),
        (ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(), [0, 1, 2]),
    ]:
        (tmp_path / "a").write_bytes(written(writer, mode, orientation, icc_profile=profile))
        wanted = np.asarray(PICTURES[mode][0].convert("RGB"))[..., order]
        assert off(tmp_path / "a", np.rot90(wanted, -1) if orientation else wanted) <= 2


def test_profile_for_other_channels_is_ignored_and_a_broken_one_named(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "a.png", icc_profile=swapped_profile())
    assert off(tmp_path / "a.png", GREY_3) == 0
    Image.fromarray(COLOURS).save(tmp_path / "b.png", icc_profile=b"no profile")
    assert "colour profile that cannot be followed" in reason(tmp_path / "b.png")


@pytest.mark.parametrize("alpha", [0, 255])
def test_bmp_whose_fourth_byte_nobody_filled_in_is_opaque(tmp_path, alpha):
    pixels = np.dstack([COLOURS[::-1, :, ::-1], np.full_like(GREY, alpha)]).tobytes()
    head = struct.pack("<IiiHHIIiiII", 108, 64, 48, 1, 32, 3, len(pixels), 2835, 2835, 0, 0)
    head += struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000) + b"BGRs" + bytes(48)
    (tmp_path / "v4.bmp").write_bytes(b"BM" + struct.pack("<IHHI", 122 + len(pixels), 0, 0, 122) + head + pixels)
    assert off(tmp_path / "v4.bmp", COLOURS) == 0


def test_transparent_all_over_is_said(tmp_path):
    Image.new("RGBA", (9, 9), (1, 2, 3, 0)).save(tmp_path / "a.png")
    assert "transparent all over" in reason(tmp_path / "a.png")
    Image.new("RGBA", (9, 9), (1, 2, 3, 0)).save(tmp_path / "a.tga")  # TGA's writers often leave zeros
    assert photos.open_photo(tmp_path / "a.tga").getpixel((0, 0)) == (1, 2, 3)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"restart_marker_blocks": 4}], ids=str)
def test_half_a_jpeg_with_an_end_marker_is_said(tmp_path, share, options):
    BLOCKS.save(tmp_path / "a.jpg", quality=90, **options)
    data = (tmp_path / "a.jpg").read_bytes()
    assert photos.open_photo(tmp_path / "a.jpg").size == BLOCKS.size
    (tmp_path / "half.jpg").write_bytes(data[: int(len(data) * share)] + b"\xff\xd9")
    assert "cut off" in reason(tmp_path / "half.jpg")


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 2}], ids=str)
def test_whole_jpeg_that_ends_in_one_colour_is_not_taken_for_a_cut_one(tmp_path, mode, options):
    Image.new("RGB", (640, 480), "white").convert(mode).save(tmp_path / "a.jpg", **options)
    (tmp_path / "b.jpg").write_bytes((tmp_path / "a.jpg").read_bytes() + b"a phone's own data \xff\xd9")
    for name in ("a.jpg", "b.jpg"):
        assert photos.open_photo(tmp_path / name).getpixel((639, 479)) == (255, 255, 255)


def test_large_metadata_is_no_damage(tmp_path):
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "x" * 3_000_000, zip=True)
    BLOCKS.save(tmp_path / "text.png", pnginfo=text)
    BLOCKS.save(tmp_path / "profile.png", icc_profile=bytes(3_000_000))
    for name in ("text.png", "profile.png"):
        assert "save it anew without metadata" in reason(tmp_path / name)


FOREIGN = {
    "IMG_0001.jpg": (b"\0\0\0\x18ftypheic" + bytes(99), "HEIC.*pillow-heif"),
    "a.heif": (b"\0\0\0\x18ftypmif1" + bytes(99), "HEIC"),
    "a.svg": (b"<?xml version='1.0'?>\n<!-- a -->\n<svg></svg>", "SVG, a drawing"),
    "a.pdf": (b"%PDF-1.7", "PDF, a document"),
    "a.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "needs the program Ghostscript"),
    "a.dng": (b"II*\0", "raw file"),
    "a.CR2": (b"II*\0", "raw file"),
    "a.jxl": (b"\xff\x0a123", "pillow-jxl-plugin"),
    "a.wmf": (b"\xd7\xcd\xc6\x9a" + bytes(99), "Windows only"),
    "a.emf": (b"\1\0\0\0" + bytes(36) + b" EMF" + bytes(99), "Windows only"),
    "a.grib": (b"GRIB\0\0\0\1", "file of another program"),
    "lfs.png": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "404.png": (b"\xef\xbb\xbf\n<!DOCTYPE html>", "a web page"),
    "archive.png": (b"PK\3\4" + bytes(99), "not a picture that Pillow can read"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_other_formats_say_which_program_they_need(tmp_path, name):
    (tmp_path / name).write_bytes(FOREIGN[name][0])
    with pytest.raises(photos.PhotoError, match=FOREIGN[name][1]):
        photos.open_photo(tmp_path / name)
    reason(tmp_path / name)


def test_avif_without_its_decoder_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.avif").write_bytes(b"\0\0\0\x18ftypavif" + bytes(99))
    monkeypatch.setattr(features, "check", lambda name: False)
    assert "AVIF" in reason(tmp_path / "a.avif") and "this Pillow cannot read" in reason(tmp_path / "a.avif")


@pytest.mark.parametrize("error", [RuntimeError("x"), OverflowError("x"), AssertionError()], ids=repr)
def test_whatever_a_decoder_raises_is_a_photo_error(tmp_path, monkeypatch, error):
    BLOCKS.save(tmp_path / "a.jp2")

    def load(self):
        raise error

    monkeypatch.setattr(Jpeg2KImagePlugin.Jpeg2KImageFile, "load", load)
    assert "damaged or cut off" in reason(tmp_path / "a.jp2")


def test_no_memory_is_said_and_not_taken_for_a_damaged_file(tmp_path, monkeypatch):
    """Among a folder's photos, too, it is one that is left out."""
    BLOCKS.save(tmp_path / "large.jp2")
    BLOCKS.save(tmp_path / "small.png")

    def load(self):
        raise MemoryError

    monkeypatch.setattr(Jpeg2KImagePlugin.Jpeg2KImageFile, "load", load)
    with pytest.raises(photos.TooManyPixelsError, match=r"large\.jp2 needs more memory than there is: make it smaller"):
        photos.open_photo(tmp_path / "large.jp2")
    assert [list(names) for names in photos.open_folder(tmp_path)] == [["small.png"], ["large.jp2"]]


def test_garbled_jpeg_2000_raises_nothing_else(tmp_path):
    BLOCKS.resize((64, 48)).save(tmp_path / "a.jp2")
    whole, random = (tmp_path / "a.jp2").read_bytes(), np.random.default_rng(1)
    refused = 0
    for _ in range(100):
        data = bytearray(whole)
        data[random.integers(0, 250)] = random.integers(0, 256)
        (tmp_path / "a.jp2").write_bytes(data)
        try:
            photos.open_photo(tmp_path / "a.jp2")
        except photos.PhotoError:
            refused += 1
    assert refused


LONG = "x" * 300 + ".png"


def test_paths_that_lead_nowhere_are_named(tmp_path):
    BLOCKS.save(tmp_path / "a.png")
    assert "which is a file and no folder" in reason(tmp_path / "a.png" / "b.png")
    assert "too long" in reason(LONG)
    assert "null byte" in reason("a\0b.png")
    for folder, words in [(LONG, "too long"), ("a\0b", "null byte")]:
        with pytest.raises(photos.PhotoError, match=words):
            photos.open_folder(folder)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such files")
def test_links_in_a_circle_and_pipes_are_named(tmp_path):
    (tmp_path / "a.png").symlink_to(tmp_path / "b.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "a.png")
    assert "leads back to itself" in reason(tmp_path / "a.png")
    os.mkfifo(tmp_path / "pipe.png")
    assert "a pipe or a device" in reason(tmp_path / "pipe.png")


@pytest.mark.skipif(os.name != "posix", reason="only here file names are bytes")
def test_name_that_is_no_utf_8_is_printable(tmp_path):
    try:
        (tmp_path / os.fsdecode("空白.png".encode("gbk"))).write_bytes(b"no picture")
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    (tmp_path / "two\nlines.png").write_bytes(b"no picture")
    BLOCKS.save(tmp_path / os.fsdecode("小猫.png".encode("gbk")))
    photos, left_out = photos.open_folder(tmp_path)
    for text in [*photos, *left_out, *left_out.values()]:
        assert text.encode("utf-8").decode().isprintable()
    assert len(photos) == 1 and len(left_out) == 2


def test_a_picture_s_bytes_open_as_its_file_does(tmp_path):
    """A service has the bytes only; its sentences speak of "picture"."""
    BLOCKS.save(tmp_path / "blocks.png")
    data = (tmp_path / "blocks.png").read_bytes()
    opened = np.asarray(photos.open_photo(io.BytesIO(data)))
    assert np.array_equal(opened, np.asarray(photos.open_photo(tmp_path / "blocks.png")))
    for broken in (b"", b"text", data[:200]):
        with pytest.raises(photos.PhotoError, match=r"^picture is "):
            photos.open_photo(io.BytesIO(broken))
