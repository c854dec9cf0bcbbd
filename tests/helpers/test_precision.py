"""helpers/precision.py: right by a reference in loops; damaged, swapped and train-mode models are caught."""

import copy
import math
import re
import warnings

import numpy as np
import onnx
import onnxruntime as ort
import onnxsim
import pandas as pd
import pytest
import torch

from helpers import graph, images, labels, models, precision

# ---- the reference: one number at a time, as one would do it on paper


def order_by_hand(logits):
    """Take the largest number that is left, the first of equals, until none is left."""
    left, order = list(range(len(logits))), []
    while left:
        best = left[0]
        for i in left:
            if logits[i] > logits[best]:
                best = i
        order.append(best)
        left.remove(best)
    return order


def row_by_hand(expected, found, k):
    error = largest = 0.0
    for right, number in zip(expected, found, strict=True):
        error = max(error, abs(float(number) - float(right)))
        largest = max(largest, abs(float(right)))
    if error == 0:
        relative = 0.0
    elif largest == 0:
        relative = math.inf
    else:
        relative = error / largest
    expected_order, order = order_by_hand(expected), order_by_hand(found)
    falling = sorted(map(float, expected), reverse=True)
    return {
        "max_abs_error": error,
        "max_rel_error": relative,
        "top1_agrees": order[0] == expected_order[0],
        "topk_agrees": sorted(order[:k]) == sorted(expected_order[:k]),
        "margin": falling[0] - falling[1] if len(falling) > 1 else math.inf,
    }


def gives(logits):
    """Return a backend that answers this, whatever the photo, as a session does: with a batch axis."""
    return lambda x: np.asarray(logits)[None]


def compare_one(expected, found, k):
    rows = precision.compare(gives(expected), {"found": gives(found)}, {"a.png": None}, k=k)
    assert len(rows) == 1
    return rows.drop(columns=["photo", "backend"]).iloc[0].to_dict()


def one_ulp_more(logits, i):
    logits = np.array(logits)
    logits[i] = np.nextafter(logits[i], logits.dtype.type(np.inf))
    return logits


def f32(*numbers):
    return np.array(numbers, np.float32)


# name: (the reference's logits, the backend's)
ADVERSARIAL = {
    "the same": (f32(3, 1, 2), f32(3, 1, 2)),
    "one class": (f32(3), f32(4)),
    "all equal": (np.full(8, 0.5), np.full(8, 0.5)),
    "all equal, but one larger": (np.full(8, 0.5), one_ulp_more(np.full(8, 0.5), 5)),
    "all equal, but another number": (np.full(8, 0.5), np.full(8, 0.25)),
    "tie at the top": (f32(1, 9, 9, 0), f32(1, 8, 9, 0)),
    "tie at the edge of the best": (f32(5, 2, 2, 2, 1), f32(5, 1, 2, 2, 2)),
    "ties far apart": (f32(2, 0, 0, 0, 2), f32(2, 0, 0, 2, 0)),
    "reversed": (f32(1, 2, 3, 4, 5, 6), f32(6, 5, 4, 3, 2, 1)),
    "zeros of both signs": (f32(0.0, -0.0, 0.0), f32(-0.0, 0.0, -0.0)),
    "reference all zero": (np.zeros(5), np.array([0, 0, 1e-9, 0, 0])),
    "both all zero": (np.zeros(5), np.zeros(5)),
    "backend all zero": (f32(1, -7, 3), f32(0, 0, 0)),
    "negative only": (f32(-3, -1, -2), f32(-3, -2.5, -2)),
    "largest is negative": (f32(-30, 1, 2), f32(-31, 1, 2)),
    "huge, float64": (np.array([1e30, -1e30, 3e29]), np.array([-1e30, 1e30, 3e29])),
    "huge, float32": (f32(1e38, -1e38, 3e37), f32(-1e38, 1e38, 3e37)),
    "the largest float32": (np.full(3, np.finfo(np.float32).max), -np.full(3, np.finfo(np.float32).max)),
    "small beside huge": (np.array([1e30, 1.0, 2.0]), np.array([1e30, 2.0, 1.0])),
    "one ulp, float64": (np.array([1.0, 2.0, 3.0]), one_ulp_more([1.0, 2.0, 3.0], 2)),
    "one ulp, float32": (f32(1, 2, 3), one_ulp_more(f32(1, 2, 3), 2)),
    "one ulp turns a tie": (f32(7, 7, 1), one_ulp_more(f32(7, 7, 1), 1)),
    "subnormal": (f32(0, 1e-45), f32(1e-45, 0)),
    "float16 beside float32": (f32(0.1, 0.2, 0.3), f32(0.1, 0.2, 0.3).astype(np.float16)),
}


@pytest.mark.parametrize(("expected", "found"), ADVERSARIAL.values(), ids=ADVERSARIAL)
def test_adversarial_logits_agree_with_the_reference(expected, found):
    for k in range(1, len(expected) + 1):
        assert compare_one(expected, found, k) == row_by_hand(expected, found, k), f"wrong at k = {k}"
    for logits in (expected, found):
        assert precision.ranking(logits).tolist() == order_by_hand(logits), f"wrong order of {logits}"
        assert precision.ranking(logits[None]).tolist() == order_by_hand(logits), "the batch axis changes the order"


def test_random_logits_agree_with_the_reference():
    for seed in range(200):
        random = np.random.default_rng(seed)
        classes = int(random.integers(1, 25))
        expected = random.normal(size=classes) * 10.0 ** random.integers(-20, 20)
        if random.random() < 0.5:  # few different numbers: ties everywhere
            expected = random.integers(-2, 3, classes).astype(np.float64)
        found = expected + random.choice([0, 1e-12, 1e-3, 1]) * random.normal(size=classes)
        if random.random() < 0.3:
            expected, found = expected.astype(np.float32), found.astype(np.float32)
        k = int(random.integers(1, classes + 1))
        assert compare_one(expected, found, k) == row_by_hand(expected, found, k), f"wrong at seed {seed}, k = {k}"
        assert precision.ranking(found).tolist() == order_by_hand(found), f"wrong order at seed {seed}"


def test_ranking_of_integers():
    assert precision.ranking(np.array([0, 3, 2], np.uint8)).tolist() == [1, 2, 0], (
        "minus an unsigned number wraps round"
    )


def test_one_row_a_photo_and_backend_from_the_right_input():
    """Every backend answers with its input plus a number of its own: a mixed-up input or backend shows in the error."""
    inputs = {"z.png": np.array([[1.0, 2.0]]), "a.png": np.array([[40.0, 30.0]])}
    backends = {"second": lambda x: x + 0.5, "first": lambda x: x, "off": lambda x: x[:, ::-1]}
    rows = precision.compare(lambda x: x, backends, inputs, k=1)
    wanted = pd.DataFrame(
        [
            ("z.png", "second", 0.5, 0.5 / 2, True, True, 1.0),
            ("z.png", "first", 0.0, 0.0, True, True, 1.0),
            ("z.png", "off", 1.0, 1.0 / 2, False, False, 1.0),
            ("a.png", "second", 0.5, 0.5 / 40, True, True, 10.0),
            ("a.png", "first", 0.0, 0.0, True, True, 10.0),
            ("a.png", "off", 10.0, 10.0 / 40, False, False, 10.0),
        ],
        columns=["photo", "backend", "max_abs_error", "max_rel_error", "top1_agrees", "topk_agrees", "margin"],
    )
    pd.testing.assert_frame_equal(rows, wanted)


def test_five_classes_count_unless_told_otherwise():
    expected = f32(9, 8, 7, 6, 5, 4, 0)
    rows = precision.compare(
        gives(expected),
        {"within five": gives(f32(9, 8, 7, 5, 6, 4, 0)), "across five": gives(f32(9, 8, 7, 6, 4, 5, 0))},
        {"a.png": None},
    )
    assert rows["topk_agrees"].tolist() == [True, False]


# ---- summary


def summary_by_hand(rows, backend, tolerance):
    errors, relative, top1, topk = [], [], 0, 0
    for row in rows.itertuples():
        if row.backend == backend:
            errors.append(row.max_abs_error)
            relative.append(row.max_rel_error)
            top1 += row.top1_agrees
            topk += row.topk_agrees
    errors.sort()
    n = len(errors)
    return {
        "photos": n,
        "median_error": errors[n // 2] if n % 2 else (errors[n // 2 - 1] + errors[n // 2]) / 2,
        "max_error": errors[-1],
        "max_rel_error": max(relative),
        "top1_agreement": top1 / n,
        "topk_agreement": topk / n,
        "within": errors[-1] <= tolerance and top1 == n,
    }


@pytest.mark.parametrize("photos", [1, 2, 5])
def test_summary_agrees_with_the_reference(photos):
    for seed in range(40):
        random = np.random.default_rng(seed)
        inputs = {f"{i}.png": random.normal(size=(1, 6)) for i in range(photos)}
        noise = {name: random.normal(size=6) * size for name, size in [("z", 1e-6), ("a", 1e-2), ("m", 1)]}
        backends = {name: lambda x, extra=extra: x * (1 + extra) for name, extra in noise.items()}
        rows = precision.compare(lambda x: x, backends, inputs, k=3)
        table = precision.summary(rows, tolerance=0.01)
        assert table.index.tolist() == ["z", "a", "m"], "the backends are not in the order they were given"
        for backend, found in table.iterrows():
            wanted = summary_by_hand(rows, backend, 0.01)
            assert found.to_dict() == pytest.approx(wanted, rel=1e-12), f"wrong for {backend}, seed {seed}"


@pytest.mark.parametrize(
    ("errors", "top1", "topk", "within"),
    [
        ([0.0, 0.25], [True, True], [True, True], True),  # the tolerance itself is within
        ([0.0, np.nextafter(0.25, 1)], [True, True], [True, True], False),
        ([0.0, 0.0], [True, False], [True, True], False),
        ([0.0, 0.0], [True, True], [True, False], True),  # the order of unlikely classes is no fault
    ],
    ids=["at the tolerance", "just above", "another best class", "another class below"],
)
def test_within_needs_every_photo_and_every_best_class(errors, top1, topk, within):
    rows = pd.DataFrame(
        {
            "photo": ["a.png", "b.png"],
            "backend": "found",
            "max_abs_error": errors,
            "max_rel_error": errors,
            "top1_agrees": top1,
            "topk_agrees": topk,
        }
    )
    assert precision.summary(rows, tolerance=0.25)["within"].tolist() == [within]


def test_summary_of_a_reference_of_zeros_is_not_within():
    rows = precision.compare(gives(np.zeros(5)), {"found": gives([0, 0, 0.5, 0, 0])}, {"a.png": None}, k=1)
    table = precision.summary(rows, tolerance=0.25)
    assert table.loc["found", "max_rel_error"] == math.inf
    assert not table.loc["found", "within"]


# ---- the article's table


def top_by_hand(logits, k):
    """Return the k most probable classes as [(class id, probability)]."""
    logits = [float(number) for number in logits]
    largest = max(logits)
    total = math.fsum(math.exp(number - largest) for number in logits)
    chosen = []
    for _ in range(k):
        best = None
        for i, number in enumerate(logits):
            if i not in chosen and (best is None or number > logits[best]):
                best = i
        chosen.append(best)
    return [(i, math.exp(logits[i] - largest) / total) for i in chosen]


def thousand(kind):
    random = np.random.default_rng(7)
    return {
        "random": random.normal(scale=4, size=1000).astype(np.float32),
        "ties": random.integers(-2, 3, 1000).astype(np.float32),
        "all equal": np.full(1000, -3.5),
        "huge, float64": random.permutation(np.linspace(-1e30, 1e30, 1000)),
        "huge, float32": random.permutation(np.linspace(-1e38, 1e38, 1000)).astype(np.float32),
        "one ulp": one_ulp_more(np.full(1000, 2.0, np.float32), 999),
        "negative only": -random.uniform(1, 9, 1000),
    }[kind]


@pytest.mark.parametrize(
    "kind", ["random", "ties", "all equal", "huge, float64", "huge, float32", "one ulp", "negative only"]
)
@pytest.mark.parametrize(("language", "k"), [("english", 3), ("chinese", 1), ("english", 6)])
def test_top_k_rows_agree_with_the_reference(kind, language, k):
    logits = thousand(kind)
    rows = precision.top_k_rows({"found": gives(logits)}, {"a.png": None}, k=k, language=language)
    wanted = ["photo", "backend", *(f"{what}_{rank}" for rank in range(1, k + 1) for what in ("class", "p"))]
    assert rows.columns.tolist() == wanted
    names = labels.class_names(language)
    for rank, (class_id, probability) in enumerate(top_by_hand(logits, k), start=1):
        assert rows.loc[0, f"class_{rank}"] == names[class_id], f"wrong class at rank {rank}"
        assert rows.loc[0, f"p_{rank}"] == pytest.approx(probability, rel=1e-9), f"wrong probability at rank {rank}"


def test_top_k_rows_name_three_classes_of_every_photo_and_backend(monkeypatch):
    monkeypatch.setenv("COURSE_LABELS", "chinese")
    inputs = {"z.png": np.eye(1, 1000, 281) * 9, "a.png": np.eye(1, 1000, 5) * 9}
    rows = precision.top_k_rows({"same": lambda x: x, "turned": lambda x: np.roll(x, 1)}, inputs)
    assert rows.shape == (4, 8), "not three classes a row"
    names = labels.class_names("chinese")
    found = [(row.photo, row.backend, names.index(row.class_1)) for row in rows.itertuples()]
    assert found == [("z.png", "same", 281), ("z.png", "turned", 282), ("a.png", "same", 5), ("a.png", "turned", 6)]


# ---- refusals

GOOD = f32(1, 2, 3)


def compare(expected=GOOD, found=GOOD, k=1):
    return precision.compare(gives(expected), {"ONNX": gives(GOOD), "ONNX-sim": gives(found)}, {"a.png": None}, k=k)


@pytest.mark.parametrize("shape", [(1, 2), (1, 4), (3,), (2, 3), (1, 1, 3), (3, 1), (1, 0)], ids=str)
def test_other_shapes_than_the_references_are_refused(shape):
    backends = {"ONNX": gives(GOOD), "ONNX-sim": lambda x: np.ones(shape)}
    message = rf"^On a\.png ONNX-sim gives logits of shape {re.escape(str(shape))}, the reference \(1, 3\)"
    with pytest.raises(ValueError, match=message):
        precision.compare(gives(GOOD), backends, {"a.png": None}, k=1)


@pytest.mark.parametrize("shape", [(2, 3), (1, 1, 3), (0, 3)], ids=str)
def test_logits_of_a_batch_are_refused(shape):
    """Ranked as one row, six logits of two photos would agree or not by the better photo alone."""

    def backend(x):
        return np.ones(shape)

    with pytest.raises(ValueError, match=rf"^On a\.png the reference .* {re.escape(str(shape))}; .* one photo"):
        precision.compare(backend, {"ONNX": backend}, {"a.png": None}, k=1)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize("where", [0, 2])
def test_nan_and_infinity_are_refused_by_name(bad, where):
    broken = GOOD.copy()
    broken[where] = bad
    with pytest.raises(ValueError, match=r"^On a\.png the reference gives NaN or infinity"):
        compare(expected=broken)
    with pytest.raises(ValueError, match=r"^On a\.png ONNX-sim gives NaN or infinity"):
        compare(found=broken)
    with pytest.raises(ValueError, match=r"^On a\.png the reference gives NaN or infinity"):
        compare(expected=broken, found=broken)  # not even where both agree

    thousand = np.zeros(1000)
    thousand[where] = bad
    with pytest.raises(ValueError, match=r"^On a\.png ONNX-sim gives NaN or infinity"):
        precision.top_k_rows({"ONNX": gives(np.zeros(1000)), "ONNX-sim": gives(thousand)}, {"a.png": None})


def test_the_photo_that_breaks_a_backend_is_named():
    inputs = {"a.png": np.ones((1, 3)), "b.png": np.full((1, 3), 1e200)}
    with np.errstate(over="ignore"), pytest.raises(ValueError, match=r"^On b\.png ONNX gives NaN or infinity"):
        precision.compare(lambda x: x, {"ONNX": lambda x: x**2}, inputs, k=1)


def test_no_photos_and_no_backends_are_refused():
    backends, inputs = {"ONNX": gives(np.zeros(1000))}, {"a.png": None}
    with pytest.raises(ValueError, match="no photo to compare on: inputs is empty"):
        precision.compare(gives(GOOD), backends, {})
    with pytest.raises(ValueError, match="no backend to compare: backends is empty"):
        precision.compare(gives(GOOD), {}, inputs)
    with pytest.raises(ValueError, match="no photo to predict: inputs is empty"):
        precision.top_k_rows(backends, {})
    with pytest.raises(ValueError, match="no backend to ask: backends is empty"):
        precision.top_k_rows({}, inputs)


def test_summary_of_no_rows_is_refused():
    for rows in (pd.DataFrame(), compare().iloc[:0]):
        with pytest.raises(ValueError, match="no rows to sum up"):
            precision.summary(rows, tolerance=1)


@pytest.mark.parametrize("k", [-1, 0, 4])
def test_k_out_of_range_is_refused(k):
    with pytest.raises(ValueError, match=f"k is {k}; it must be from 1 to 3"):
        compare(k=k)


@pytest.mark.parametrize("k", [-1, 0, 1001])
def test_k_beyond_the_class_table_is_refused(k):
    with pytest.raises(ValueError, match=f"k is {k}; it must be from 1 to 1000"):
        precision.top_k_rows({"ONNX": gives(np.zeros(1000))}, {"a.png": None}, k=k)


@pytest.mark.parametrize("classes", [0, 1, 999, 1001])
def test_class_table_of_another_length_is_refused(classes):
    with pytest.raises(ValueError, match=rf"shape \(1, {classes}\); needed: \(1000,\)"):
        precision.top_k_rows({"ONNX": gives(np.zeros(classes))}, {"a.png": None})


# ---- real models: true, damaged, swapped, in train mode

TOLERANCE = 1e-4  # of a logit; a true file is some 4e-6 off
EXAMPLE = torch.zeros(1, 3, 64, 64)
EXPORTERS = ("new", "old")


def in_pytorch(model):
    def run(x):
        with torch.inference_mode():
            return model(torch.from_numpy(x)).numpy()

    return run


def in_onnxruntime(path):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: session.run(None, {name: x})[0]


def export(model, path, exporter, **options):
    options |= {"external_data": False} if exporter == "new" else {"dynamo": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the old exporter is deprecated, train mode is warned of: both are meant here
        torch.onnx.export(model, (EXAMPLE,), path, verbose=False, **options)
    return path


def damage(path, target, change):
    """Change one weight tensor of a copy: that of layer3.0.conv1, the only one of its shape."""
    model = onnx.load(path)
    (tensor,) = [tensor for tensor in model.graph.initializer if tensor.dims == [256, 128, 3, 3]]
    weight = onnx.numpy_helper.to_array(tensor).copy()
    change(weight)
    tensor.CopyFrom(onnx.numpy_helper.from_array(weight, tensor.name))
    onnx.save(model, target)
    return target


def scale(weight):
    weight *= np.float32(1.001)


def lose_one_value(weight):
    weight.flat[np.abs(weight).argmax()] = 0


@pytest.fixture(scope="module")
def resnet():
    return models.load_model("resnet18", weights="stand-in")[0]


@pytest.fixture(scope="module")
def mobilenet():
    return models.load_model("mobilenet_v3_small", weights="stand-in")[0]


@pytest.fixture(scope="module")
def files(tmp_path_factory, resnet):
    """Return ResNet-18's file by each exporter, as it should be."""
    folder = tmp_path_factory.mktemp("exports")
    return {exporter: export(resnet, folder / f"{exporter}.onnx", exporter) for exporter in EXPORTERS}


@pytest.fixture(scope="module")
def inputs(samples):
    prepare = images.preprocessing(64)
    return {row.file: prepare(images.open_photo(row.path))[None].numpy() for row in samples.itertuples()}


def judge(model, backend, inputs):
    rows = precision.compare(in_pytorch(model), {"judged": backend}, inputs)
    return precision.summary(rows, tolerance=TOLERANCE).loc["judged"]


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_true_file_is_within_the_tolerance(resnet, files, inputs, exporter):
    found = judge(resnet, in_onnxruntime(files[exporter]), inputs)
    assert found["within"], f"a good file is refused: {found.to_dict()}"
    assert found["photos"] == 9 and found["top1_agreement"] == found["topk_agreement"] == 1


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("change", [scale, lose_one_value])
def test_damaged_file_that_looks_right_is_caught(resnet, files, inputs, tmp_path, exporter, change):
    damaged = in_onnxruntime(damage(files[exporter], tmp_path / "damaged.onnx", change))

    tables = [precision.top_k_rows({"": run}, inputs, k=3) for run in (in_onnxruntime(files[exporter]), damaged)]
    classes, chances = [f"class_{rank}" for rank in (1, 2, 3)], [f"p_{rank}" for rank in (1, 2, 3)]
    pd.testing.assert_frame_equal(tables[0][classes], tables[1][classes])  # else the test is too easy
    np.testing.assert_allclose(tables[0][chances], tables[1][chances], rtol=0, atol=0.005)

    found = judge(resnet, damaged, inputs)
    assert found["top1_agreement"] == 1, "the test needs damage that the best classes do not show"
    assert not found["within"], f"a damaged file passes: {found.to_dict()}"


def test_swapped_file_is_caught(resnet, mobilenet, files, inputs, tmp_path):
    swapped = in_onnxruntime(export(mobilenet, tmp_path / "resnet18.onnx", "old"))
    assert judge(mobilenet, swapped, inputs)["within"], "the test needs a file that is good for its own network"
    found = judge(resnet, swapped, inputs)
    assert not found["within"], f"MobileNetV3-Small passes for ResNet-18: {found.to_dict()}"
    assert found["max_error"] > TOLERANCE, "only the classes give it away"
    assert not judge(mobilenet, in_onnxruntime(files["new"]), inputs)["within"], "ResNet-18 passes for MobileNet"


def test_train_mode_is_caught_in_pytorch(resnet, inputs):
    found = judge(resnet, in_pytorch(copy.deepcopy(resnet).train()), inputs)
    assert not found["within"], f"a network in train mode passes: {found.to_dict()}"


def test_file_with_batch_statistics_is_caught(resnet, inputs, tmp_path):
    path = export(
        copy.deepcopy(resnet).train(),
        tmp_path / "train.onnx",
        "old",
        training=torch.onnx.TrainingMode.PRESERVE,
        do_constant_folding=False,
    )
    assert graph.count_operators(path)["BatchNormalization"] == 20, "the test needs a file left in train mode"
    found = judge(resnet, in_onnxruntime(path), inputs)
    assert not found["within"], f"a file in train mode passes: {found.to_dict()}"


def test_file_with_dropout_is_caught(mobilenet, inputs, tmp_path):
    """Of train mode the new exporter keeps dropout, and writes batch norm as in eval mode: so it takes MobileNetV3."""
    path = export(copy.deepcopy(mobilenet).train(), tmp_path / "train.onnx", "new")
    found = judge(mobilenet, in_onnxruntime(path), inputs)
    assert not found["within"], f"a file in train mode passes: {found.to_dict()}"


def test_session_compared_with_itself_hides_a_damaged_file(resnet, files, inputs, tmp_path):
    """The article's slip: its column ONNX-sim ran the session of the file before onnxsim."""
    simplified, passed = onnxsim.simplify(onnx.load(files["new"]))
    assert passed
    sim_path = tmp_path / "sim.onnx"
    onnx.save(simplified, sim_path)
    damaged_path = damage(sim_path, tmp_path / "damaged.onnx", scale)
    run = in_onnxruntime(files["new"])

    def summed(its_paths, backends):
        table = precision.summary(precision.compare(in_pytorch(resnet), backends, inputs), tolerance=TOLERANCE)
        return table["within"].tolist(), len({graph.file_identity(path)["sha256"] for path in its_paths})

    assert summed([files["new"], files["new"]], {"ONNX": run, "ONNX-sim": run}) == ([True, True], 1), (
        "one session under two names must agree, and its files must show as one"
    )
    honest = {"ONNX": run, "ONNX-sim": in_onnxruntime(sim_path)}
    assert summed([files["new"], sim_path], honest) == ([True, True], 2), "the simplified file is good and a new one"
    honest["ONNX-sim"] = in_onnxruntime(damaged_path)
    assert summed([files["new"], damaged_path], honest) == ([True, False], 2), "the damaged file was run and passes"
    before, after = graph.file_identity(sim_path), graph.file_identity(damaged_path)
    assert before["nodes"] == after["nodes"] and before["sha256"] != after["sha256"], "only the hash tells them apart"
