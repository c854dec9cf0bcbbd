"""helpers/labels.py and data/imagenet_classes.csv: right names, right order, right probabilities."""

import re

import numpy as np
import pytest
import torch
from torchvision.models import MobileNet_V3_Small_Weights, ResNet18_Weights

from helpers import labels

CJK = re.compile(r"[\u4e00-\u9fff]")

# Words of two meanings (jay, kite, drake, crane, boxer …): ImageNet's is the one that a machine translation misses
# fmt: off
TWO_MEANINGS = {
    17: "冠蓝鸦", 21: "鸢", 97: "公鸭", 134: "鹤", 172: "惠比特犬", 242: "拳师犬", 313: "竹节虫",
    321: "红蛱蝶", 339: "栗色马", 458: "纪念铜牌", 492: "储物箱", 517: "起重机", 536: "码头", 553: "文件柜",
    606: "熨斗", 656: "面包车", 666: "研钵", 673: "鼠标", 677: "钉子", 687: "管风琴", 714: "吉他拨片",
    726: "刨子", 738: "花盆", 746: "冰球", 758: "渔线轮", 769: "直尺", 800: "老虎机", 834: "西服套装",
    847: "坦克", 884: "拱顶", 908: "机翼", 923: "盘装主菜", 982: "新郎", 998: "玉米穗",
}
# fmt: on


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


def test_words_of_two_meanings_have_the_right_chinese_name():
    names = labels.class_names("chinese")
    assert {number: names[number] for number in TWO_MEANINGS} == TWO_MEANINGS


@pytest.mark.parametrize("k", [1, 5, 1000])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_top_k_agrees_with_torch(k, dtype):
    logits = np.random.default_rng(k).permutation(np.linspace(-7.9, 7.9, 1000)).astype(dtype)
    assert len(np.unique(logits)) == 1000, "the test needs logits without ties: torch leaves their order open"
    wanted = torch.topk(torch.softmax(torch.tensor(logits, dtype=torch.float64), 0), k)
    for shaped in (logits, logits[None]):
        table = labels.top_k(shaped, k)
        assert table["class_id"].tolist() == wanted.indices.tolist()
        np.testing.assert_allclose(table["probability"], wanted.values, rtol=1e-12, atol=0)
        assert table["name"].tolist() == [labels.class_names()[i] for i in wanted.indices]


def test_ties_are_ordered_by_class_id():
    logits = np.zeros(1000, np.float32)
    logits[[700, 3, 999]] = 2
    assert labels.top_k(logits, 1000)["class_id"].tolist() == [3, 700, 999, *sorted({*range(1000)} - {3, 700, 999})]
    assert labels.ranking(logits[None])[0] == logits.argmax() == 3


PROBABILITIES = np.array([0.0001, 0.0002, 0.999, 0.0003, 0.0004])
SIGMOIDS = np.linspace(0.001, 0.98, 12)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.array([[9.0]]), r"one number per photo.*np\.append\(0, logit\)"),
        (PROBABILITIES, r"sum to 1.*softmax.*np\.log\(probabilities"),
        (PROBABILITIES.astype(np.float16), "softmax"),
        (SIGMOIDS, "sigmoid"),
        ([np.zeros((1, 5)), np.zeros((1, 9))], r"There are 2 outputs: take"),
        ({"logits": np.zeros((1, 5)), "aux": np.zeros((1, 5))}, r"2 outputs \(logits, aux\): take"),
    ],
    ids=["one logit", "softmax inside", "half precision", "sigmoid inside", "a list", "names"],
)
def test_numbers_that_are_no_logits_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        labels.top_k(
            given, 1, names=[f"class {i}" for i in range(np.size(given) if isinstance(given, np.ndarray) else 5)]
        )


def test_what_the_refusals_advise_gives_the_right_probabilities():
    for logit in (9.0, 1.005):  # the second one, with 0 beside it, sums to 1 nearly
        yes = labels.top_k(np.append(0, logit), 1, names=["no", "yes"]).iloc[0]
        assert (yes["name"], yes["probability"]) == ("yes", pytest.approx(1 / (1 + np.exp(-logit))))
    with pytest.raises(ValueError, match="softmax"):
        labels.top_k(np.float32([0.3, 0.7]), 1, names=["no", "yes"])
    shown = labels.top_k(np.log(PROBABILITIES + 1e-12), 5, names="abcde").set_index("class_id")["probability"]
    np.testing.assert_allclose(shown.sort_index(), PROBABILITIES, rtol=1e-6)
    assert labels.top_k(np.log([1 - 0.2, 0.2]), 1, names=["no", "yes"])["probability"].item() == pytest.approx(0.8)


@pytest.mark.parametrize("scale", [1e4, -1e4, 3e38])
def test_huge_logits_stay_finite(scale):
    logits = np.zeros(1000, np.float32)
    logits[[10, 20]] = scale
    likely = labels.top_k(logits, 1000).set_index("class_id")["probability"]
    assert likely.sum() == pytest.approx(1)
    assert likely[10] == likely[20] == pytest.approx(0.5 if scale > 0 else 0.0)


@pytest.mark.parametrize("shape", [(), (0,), (999,), (2, 1000), (1000, 1), (1, 1, 1000)], ids=str)
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=re.escape(f"shape {shape}")):
        labels.top_k(np.zeros(shape))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused(bad):
    with pytest.raises(ValueError, match="NaN or infinity"):
        labels.top_k(np.append(np.zeros(999), bad))


@pytest.mark.parametrize("k", [0, -1, 1001])
def test_k_out_of_range_is_refused(k):
    with pytest.raises(ValueError, match=f"k is {k}; .* 1 to 1000"):
        labels.top_k(np.zeros(1000), k)


@pytest.mark.parametrize(
    ("setting", "argument", "expected"),
    [(None, None, "tabby"), ("chinese", None, "虎斑猫"), ("chinese", "english", "tabby"), (None, "chinese", "虎斑猫")],
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


@pytest.mark.parametrize("shape", [(3,), (1, 3)], ids=str)
def test_own_classes_have_their_own_names(shape):
    table = labels.top_k(np.array([1.0, 3.0, 2.0]).reshape(shape), 3, names=("杯", "cup", "glass"))
    assert table["name"].tolist() == ["cup", "glass", "杯"] and table.columns.name is None


def test_1000_own_classes_get_imagenets_names_only_with_a_title_that_says_so():
    own = [f"part {i}" for i in range(1000)]
    assert labels.top_k(np.arange(1000), 1, names=own)["name"].item() == "part 999"
    assert labels.top_k(np.arange(1000), 1).columns.name == "ImageNet"


@pytest.mark.parametrize(("count", "names"), [(5, None), (5, ["a", "b"]), (1000, ["a"])])
def test_names_that_do_not_fit_are_refused(count, names):
    with pytest.raises(ValueError, match=rf"shape \({count},\); needed: .*names="):
        labels.top_k(np.zeros(count), names=names)
