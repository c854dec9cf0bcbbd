"""helpers/labels.py and data/imagenet_classes.csv: right names, right order, right probabilities."""

import re

import numpy as np
import pytest
import torch
from torchvision.models import MobileNet_V3_Small_Weights, ResNet18_Weights

from helpers import labels

CJK = re.compile(r"[\u4e00-\u9fff]")

# Words of two meanings: ImageNet's is the one that a machine translation misses.
TWO_MEANINGS = [
    (17, "jay", "冠蓝鸦"),
    (21, "kite", "鸢"),  # the bird, not the toy
    (97, "drake", "公鸭"),
    (134, "crane bird", "鹤"),
    (172, "whippet", "惠比特犬"),
    (242, "boxer", "拳师犬"),  # the dog, not the sportsman
    (313, "walking stick", "竹节虫"),  # the insect
    (321, "admiral", "红蛱蝶"),  # the butterfly
    (339, "sorrel", "栗色马"),  # the horse, not the plant
    (445, "bikini", "比基尼"),
    (458, "brass", "纪念铜牌"),
    (492, "chest", "储物箱"),  # furniture, not anatomy
    (517, "crane", "起重机"),
    (536, "dock", "码头"),
    (553, "file", "文件柜"),
    (606, "iron", "熨斗"),
    (628, "liner", "邮轮"),
    (638, "maillot", "紧身练功服"),
    (639, "maillot tank suit", "连体泳衣"),
    (656, "minivan", "面包车"),
    (666, "mortar", "研钵"),
    (673, "mouse", "鼠标"),  # the device
    (677, "nail", "钉子"),  # hardware, not a fingertip
    (687, "organ", "管风琴"),  # the instrument
    (692, "packet", "小包裹"),
    (714, "pick", "吉他拨片"),
    (726, "plane", "刨子"),  # the tool
    (738, "pot", "花盆"),
    (746, "puck", "冰球"),
    (758, "reel", "渔线轮"),
    (769, "rule", "直尺"),
    (800, "slot", "老虎机"),
    (824, "stole", "披肩"),
    (834, "suit", "西服套装"),
    (843, "swing", "秋千"),
    (847, "tank", "坦克"),
    (884, "vault", "拱顶"),
    (908, "wing", "机翼"),
    (923, "plate", "盘装主菜"),
    (982, "groom", "新郎"),
    (989, "hip", "蔷薇果"),
    (998, "ear", "玉米穗"),
]


def test_one_row_a_class_in_the_order_of_the_outputs():
    table = labels.class_table()
    assert table.columns.tolist() == ["id", "wordnet_id", "english", "chinese"]
    assert table["id"].tolist() == list(range(1000)), "row i must be class i"


def test_wordnet_ids_are_unique_well_formed_and_sorted():
    ids = labels.class_table()["wordnet_id"].tolist()
    malformed = [i for i in ids if not re.fullmatch(r"n\d{8}", i)]
    assert not malformed, f"not n and 8 digits: {malformed}"
    assert ids == sorted(set(ids)), "ImageNet numbers its classes in the order of their WordNet ids, each once"


@pytest.mark.parametrize("weights", [ResNet18_Weights, MobileNet_V3_Small_Weights])
def test_english_names_are_torchvisions(weights):
    assert labels.class_names("english") == weights.IMAGENET1K_V1.meta["categories"]


def test_chinese_names_are_chinese_and_distinct():
    names = labels.class_names("chinese")
    twice = {name for name in names if names.count(name) > 1}
    assert not twice, f"two classes have the same Chinese name: {twice}"
    not_chinese = [name for name in names if not CJK.search(name)]
    assert not not_chinese, f"no Chinese character in {not_chinese}"
    untidy = [name for name in names if re.search(r"[\s()\[\]{}<>()【】〈〉《》「」,,、;;/]", name)]
    assert not untidy, f"space, bracket or list in {untidy}"


@pytest.mark.parametrize(("class_id", "english", "chinese"), TWO_MEANINGS)
def test_word_of_two_meanings_has_the_right_chinese_name(class_id, english, chinese):
    row = labels.class_table().loc[class_id]
    assert (row["english"], row["chinese"]) == (english, chinese), f"class {class_id} is {row.to_dict()}"


@pytest.mark.parametrize("k", [1, 5, 1000])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_top_k_agrees_with_torch(k, dtype):
    for seed in range(10):
        logits = np.random.default_rng(seed).normal(scale=4, size=1000).astype(dtype)
        if len(np.unique(logits)) < 1000:  # float16: torch leaves the order of ties open
            logits = np.random.default_rng(seed).permutation(np.linspace(-7.9, 7.9, 1000)).astype(dtype)
        assert len(np.unique(logits)) == 1000, "the test needs logits without ties"
        wanted = torch.topk(torch.softmax(torch.tensor(logits, dtype=torch.float64), 0), k)
        for shaped in (logits, logits[None]):
            table = labels.top_k(shaped, k)
            assert table["class_id"].tolist() == wanted.indices.tolist(), f"wrong classes or order, seed {seed}"
            np.testing.assert_allclose(table["probability"], wanted.values, rtol=1e-12, atol=0)
            assert table["name"].tolist() == [labels.class_names()[i] for i in wanted.indices]


def test_ties_are_ordered_by_class_id():
    logits = np.zeros(1000, np.float32)
    logits[[700, 3, 999]] = 2
    assert labels.top_k(logits, 6)["class_id"].tolist() == [3, 700, 999, 0, 1, 2]


@pytest.mark.parametrize("scale", [1e4, -1e4, 3e38])
def test_huge_logits_stay_finite(scale):
    logits = np.zeros(1000, np.float32)
    logits[[10, 20]] = scale
    table = labels.top_k(logits, 1000)
    assert np.isfinite(table["probability"]).all(), "exp() overflowed"
    assert table["probability"].sum() == pytest.approx(1)
    likely = table.set_index("class_id")["probability"]
    expected = 0.5 if scale > 0 else 0.0
    assert likely[10] == likely[20] == pytest.approx(expected)


@pytest.mark.parametrize("shape", [(), (0,), (999,), (1001,), (2, 1000), (1000, 1), (1, 1, 1000), (1, 1001)], ids=str)
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=re.escape(f"shape {shape}")):
        labels.top_k(np.zeros(shape))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", [0, 999])
def test_nan_and_infinity_are_refused(bad, where):
    logits = np.zeros(1000)
    logits[where] = bad
    with pytest.raises(ValueError, match="NaN or infinity"):
        labels.top_k(logits)


@pytest.mark.parametrize("k", [0, -1, 1001])
def test_k_out_of_range_is_refused(k):
    with pytest.raises(ValueError, match=f"k is {k}; .* 1 to 1000"):
        labels.top_k(np.zeros(1000), k)


@pytest.mark.parametrize(
    ("setting", "argument", "expected"),
    [
        (None, None, "tabby"),
        ("chinese", None, "虎斑猫"),
        ("english", None, "tabby"),
        ("chinese", "english", "tabby"),
        ("english", "chinese", "虎斑猫"),
    ],
)
def test_language_of_names(monkeypatch, setting, argument, expected):
    if setting:
        monkeypatch.setenv("COURSE_LABELS", setting)
    logits = np.zeros(1000)
    logits[281] = 9
    assert labels.class_names(argument)[281] == expected
    assert labels.top_k(logits, 1, language=argument)["name"].tolist() == [expected]


@pytest.mark.parametrize("language", ["french", "English", "id"])
def test_unknown_language_is_refused(language):
    with pytest.raises(ValueError, match=f"'{language}'.*english, chinese"):
        labels.class_names(language)


def test_a_changed_list_does_not_change_the_table():
    labels.class_names("english")[281] = "dog"
    assert labels.class_names("english")[281] == "tabby"


@pytest.mark.parametrize("shape", [(3,), (1, 3)], ids=str)
def test_own_classes_have_their_own_names(shape):
    table = labels.top_k(np.array([1.0, 3.0, 2.0]).reshape(shape), 3, names=("杯", "cup", "glass"))
    assert table["name"].tolist() == ["cup", "glass", "杯"] and table.columns.name is None


def test_1000_own_classes_get_imagenets_names_only_with_a_title_that_says_so():
    own = [f"part {i}" for i in range(1000)]
    logits = np.zeros(1000)
    logits[281] = 9
    assert labels.top_k(logits, 1, names=own)["name"].item() == "part 281"
    assert labels.top_k(logits, 1).columns.name == "ImageNet"


@pytest.mark.parametrize(("count", "names"), [(5, None), (5, ["a", "b"]), (1000, ["a"])])
def test_names_that_do_not_fit_are_refused(count, names):
    with pytest.raises(ValueError, match=rf"shape \({count},\); needed: .*names="):
        labels.top_k(np.zeros(count), names=names)
