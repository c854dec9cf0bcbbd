"""Labelled pictures: every way a folder may be named, and every kind of bad folder."""

import shutil

import numpy as np
import pytest
from PIL import Image

from helpers import labelled, labels, photos, settings
from helpers.preprocessing import preprocessing


def picture(path, shade=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30), (shade, 90, 10)).save(path)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """An empty ``data/labelled``, and no stamps."""
    monkeypatch.setattr(settings, "DATA", tmp_path)
    monkeypatch.setattr(labelled, "STAMPS", tmp_path / "none")
    for name in ("imagenet_classes.csv", "stamps_labels.csv", "sample_photos.csv"):
        shutil.copy(settings.ROOT / "data" / name, tmp_path)
    return tmp_path / "labelled"


def test_where_there_is_nothing_the_samples_remain(root):
    found = labelled.sets()
    assert list(found) == ["samples"] == [labelled.best(found)] and found["samples"].may_be_shown
    known = found["samples"].pictures["class_ids"]
    assert 3 <= (known.str.len() > 0).sum() < len(known) == 9


@pytest.mark.parametrize("inner", ["n02123045", "281", "tabby", "Tabby", labels.class_names("chinese")[281]])
def test_a_folder_is_named_in_any_way(root, inner):
    picture(root / "mine" / inner / "cat.png")
    assert labelled.sets()["mine"].pictures["class_ids"].tolist() == [(281,)]


def test_imagenettes_own_folders_and_names_of_two_words(root):
    picture(root / "imagenette2-320" / "val" / "n01440764" / "a.png")
    picture(root / "imagenette2-320" / "train" / "n01440764" / "b.png", 1)
    picture(root / "words" / "great_white_shark" / "c.png")
    found = labelled.sets()
    assert found["imagenette2-320"].pictures["picture"].tolist() == ["n01440764/a.png"]
    assert found["words"].pictures["class_ids"].tolist() == [(2,)]


def test_own_names_count_from_zero_and_leave_imagenet_out(root):
    picture(root / "mine" / "good" / "1.png")
    picture(root / "mine" / "281" / "2.png", 1)
    found = labelled.sets(["bad", "good"])
    assert list(found) == ["mine"] and found["mine"].pictures["class_ids"].tolist() == [(1,)]
    assert "no class that is known (such as bad, good)" in found["mine"].left_out["281"]


def test_what_is_wrong_costs_only_itself(root):
    mine = root / "mine"
    picture(mine / "281" / "kept.png", 1)
    picture(mine / "281" / "twice.png", 2)
    picture(mine / "282" / "same.png", 2)
    picture(mine / "282" / "copy.png", 3)
    picture(mine / "282" / "copy too.png", 3)
    picture(mine / "unheard of" / "x.png", 4)
    picture(mine / "beside.png", 5)
    (mine / "283").mkdir()
    picture(root.parent / "elsewhere.png", 6)
    (mine / "281" / "out.png").symlink_to(root.parent / "elsewhere.png")
    (mine / "281" / "broken.png").write_bytes(b"no picture")
    one = labelled.sets()["mine"]
    said = {
        "beside.png": "beside the class folders",
        "unheard of": "no class that is known",
        "283": "holds no photo",
        "281/out.png": "a link to a place outside mine",
        "281/twice.png": "the same photo as 282/same.png, in another class",
        "282/same.png": "the same photo as 281/twice.png, in another class",
        "282/copy.png": "a copy of 282/copy too.png: counted once",
    }
    assert set(one.left_out) == set(said)
    for name, words in said.items():
        assert words in one.left_out[name], name
    x, kept, left_out = labelled.inputs(one.pictures, preprocessing(32))
    assert x.shape == (2, 3, 32, 32) and x.dtype == np.float32
    assert kept["picture"].tolist() == ["281/kept.png", "282/copy too.png"]
    assert "not a picture" in left_out["281/broken.png"]
    with pytest.raises(photos.PhotoError, match="not a picture"):
        labelled.inputs(one.pictures[one.pictures["picture"] == "281/broken.png"], preprocessing(32))


def test_a_large_set_is_thinned_and_says_so(root, monkeypatch):
    monkeypatch.setattr(labelled, "MAX_PICTURES", 4)
    for number in range(10):
        picture(root / "mine" / str(number // 5) / f"{number}.png", number)
    one = labelled.sets()["mine"]
    assert [ids[0] for ids in one.pictures["class_ids"]] == [0, 0, 1, 1]
    assert "6 of 10 pictures" in one.left_out["mine"]


def test_the_stamps_table_names_classes_that_exist_and_no_copies(root, monkeypatch):
    table = labelled.stamps_table()
    assert not table["path"].str.contains("_mirror").any() and table["path"].is_unique
    for path in table["path"]:
        picture(root.parent / "stamps" / path, 1)
    (root.parent / "stamps" / table["path"][0]).unlink()
    monkeypatch.setattr(labelled, "STAMPS", root.parent / "stamps")
    found = labelled.sets()
    known = {name: found[name].pictures["class_ids"] for name in ("stamps", "stamps, drawings")}
    assert all(0 <= number < 1000 for ids in known.values() for one in ids for number in one)
    assert (known["stamps"].str.len() > 0).sum() >= 120 and not found["stamps"].may_be_shown
    assert sum("is not in" in why for one in found.values() for why in one.left_out.values()) == 1


def test_the_installed_stamps_have_every_picture_of_the_table():
    if not labelled.STAMPS.is_dir():
        pytest.skip("Tux Paint's stamps are not installed")
    found = labelled.sets()
    assert not found["stamps"].left_out and not found["stamps, drawings"].left_out
