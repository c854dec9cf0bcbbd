"""helpers/webpage.py: the page classifies as ONNX Runtime does, keeps to this machine, and says what is wrong."""

import json
import re
import shutil
import urllib.error
import urllib.request

import numpy as np
import onnxruntime as ort
import pytest
import torch

from helpers import labels, models, photos, preprocessing
from notebooks.lessons import chromium, webpage

TOLERANCE = 1e-4  # of the largest logit; the page and Python compute in float32, in another order
SIZE, RESIZE = 64, 72
SAYS = "document.getElementById('status').textContent"

NO_RUNTIME = webpage.missing_runtime()
needs_runtime = pytest.mark.skipif(bool(NO_RUNTIME), reason=f"ONNX Runtime Web is {NO_RUNTIME}")
needs_browser = pytest.mark.skipif(bool(chromium.missing()), reason=chromium.missing())


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    """MobileNetV3-Small on the stand-in weights, small pictures."""
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    model, _ = models.load_model("mobilenet_v3_small", weights="stand-in")
    torch.onnx.export(
        model,
        (torch.zeros(1, 3, SIZE, SIZE),),
        path,
        input_names=["input"],
        output_names=["logits"],
        external_data=False,
        verbose=False,
    )
    return path


@pytest.fixture(scope="module")
def page(tmp_path_factory, model_file):
    """Return the folder of a written page."""
    folder = tmp_path_factory.mktemp("page")
    webpage.write_page(
        folder, model_file, title="A <test> & more", transform=preprocessing.preprocessing(SIZE, resize=RESIZE)
    )
    return folder


def python_logits(model_file, x):
    return ort.InferenceSession(model_file, providers=["CPUExecutionProvider"]).run(None, {"input": x})[0]


def config_of(page):
    text = (page / "index.html").read_text("utf-8")
    return json.loads(re.search(r'<script id="config" type="application/json">(.*?)</script>', text, re.DOTALL)[1])


@needs_runtime
@needs_browser
def test_logits_in_the_browser_are_onnx_runtimes(page, model_file):
    photos = photos.sample_photos().set_index("file")["path"]
    chosen = [photos["cat.png"], page / "猫 “2”.png"]  # one in colour, one grey and with an odd name
    shutil.copyfile(photos["cameraman.png"], chosen[1])
    prepare = preprocessing.preprocessing(SIZE, resize=RESIZE)
    inputs = {path.name: prepare(photos.open_photo(path))[None].numpy() for path in chosen}
    with webpage.serve(page) as url:
        found = webpage.visit(url, tensors=inputs, photos=chosen, runs=3, picture=page / "page.png")
    assert found["log"] == [], "the page's console is not silent"
    assert len(found["ms"]) == 3 and min(found["ms"]) > 0 and found["threads"] >= 1
    for name, x in inputs.items():
        expected = python_logits(model_file, x)
        assert np.abs(found["logits"][name] - expected).max() <= TOLERANCE * np.abs(expected).max()
        dropped = found["dropped"][name]  # the page decoded and resized this one itself
        own = python_logits(model_file, dropped["input"])
        assert np.abs(dropped["logits"] - own).max() <= TOLERANCE * np.abs(own).max()
        assert np.abs(dropped["input"] - x).mean() < 0.1, "the page prepares photos in another way than torchvision"
        assert dropped["shown"].startswith(labels.top_k(own, 1, language="english")["name"].iloc[0])
    assert (page / "page.png").stat().st_size > 10_000


@needs_runtime
@needs_browser
def test_changed_runtime_file_is_refused(tmp_path, model_file):
    webpage.write_page(tmp_path, model_file, title="t", transform=preprocessing.preprocessing(SIZE, resize=RESIZE))
    script = tmp_path / next(iter(webpage.FILES["wasm"]))
    script.write_bytes(script.read_bytes() + b"\n// an extra line")
    with webpage.serve(tmp_path) as url, pytest.raises(chromium.BrowserError, match="not the file that was expected"):
        webpage.visit(url)


@needs_runtime
@needs_browser
def test_broken_photo_and_broken_model_are_said(tmp_path, page, model_file):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture")
    from playwright.sync_api import sync_playwright

    with webpage.serve(page) as url, sync_playwright() as playwright, chromium.launch(playwright) as browser:
        tab = browser.new_page()
        tab.goto(url)
        tab.wait_for_function(f"{SAYS} === 'Ready.'")
        tab.set_input_files("#file", broken)
        tab.wait_for_function(f"{SAYS}.includes('not a picture')")
        (page / "model.onnx").rename(page / "kept.onnx")
        tab.reload()
        tab.wait_for_function(f"{SAYS}.includes('model.onnx could not be loaded')")
        (page / "kept.onnx").rename(page / "model.onnx")


@needs_runtime
@needs_browser
def test_engine_that_cannot_start_leaves_the_one_that_runs(page):
    from playwright.sync_api import sync_playwright

    photo = photos.sample_photos().set_index("file").loc["cat.png", "path"]
    with webpage.serve(page) as url, sync_playwright() as playwright, chromium.launch(playwright) as browser:
        tab = browser.new_page()
        tab.goto(url)
        tab.wait_for_function(f"{SAYS} === 'Ready.'")
        tab.evaluate("Object.defineProperty(navigator, 'gpu', { value: undefined })")
        tab.select_option("#engine", "webgpu")
        tab.wait_for_function(f"{SAYS}.includes('no WebGPU')")
        assert tab.input_value("#engine") == "wasm"
        tab.set_input_files("#file", photo)
        tab.wait_for_function(f"{SAYS}.includes('ms a run')")
        assert " wasm, " in tab.text_content("#status")


@needs_runtime
@needs_browser
def test_page_asks_nobody_but_this_machine(page):
    from playwright.sync_api import sync_playwright

    asked = []
    with webpage.serve(page) as url, sync_playwright() as playwright, chromium.launch(playwright) as browser:
        tab = browser.new_page()
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(url)
        tab.wait_for_function(f"{SAYS} === 'Ready.'")
    assert asked and all(one.startswith((url, "blob:", "data:")) for one in asked)


@needs_runtime
def test_page_holds_names_in_both_languages_and_cannot_be_broken_by_one(page, monkeypatch, tmp_path, model_file):
    config = config_of(page)
    assert config["title"] == "A <test> & more"
    assert [len(config["names"][language]) for language in ("english", "chinese")] == [1000, 1000]
    assert (config["size"], config["resize"]) == (SIZE, RESIZE)
    evil = "</script><script>alert(1)</script>"
    monkeypatch.setattr(labels, "class_names", lambda language: [evil] * 1000)
    webpage.write_page(tmp_path, model_file, title="t", transform=preprocessing.preprocessing(SIZE, resize=RESIZE))
    assert config_of(tmp_path)["names"]["english"][0] == evil
    assert evil not in (tmp_path / "index.html").read_text("utf-8")


@needs_runtime
def test_runtime_of_another_version_is_refused(monkeypatch, tmp_path, model_file):
    monkeypatch.setattr(webpage, "FILES", {"wasm": {name: "sha384-other" for name in webpage.FILES["wasm"]}})
    with pytest.raises(chromium.BrowserError, match=f"is not onnxruntime-web {webpage.VERSION}'s"):
        webpage.write_page(tmp_path, model_file, title="t", transform=preprocessing.preprocessing(SIZE, resize=RESIZE))


def test_missing_runtime_says_how_to_get_it(monkeypatch, tmp_path, model_file):
    monkeypatch.setattr(webpage, "RUNTIME", tmp_path / "nowhere")
    assert webpage.missing_runtime() == f"not installed: {webpage.INSTALL}"
    with pytest.raises(FileNotFoundError, match="npm install --prefix"):
        webpage.write_page(
            tmp_path / "page", model_file, title="t", transform=preprocessing.preprocessing(SIZE, resize=RESIZE)
        )


def test_page_from_the_network_checks_the_same_hashes(monkeypatch, tmp_path, model_file):
    monkeypatch.setattr(webpage, "RUNTIME", tmp_path / "nowhere")
    webpage.write_page(
        tmp_path / "page",
        model_file,
        title="t",
        transform=preprocessing.preprocessing(SIZE, resize=RESIZE),
        from_cdn=True,
    )
    config = config_of(tmp_path / "page")
    assert config["runtime"].startswith("https://") and webpage.VERSION in config["runtime"]
    assert config["files"] == webpage.FILES
    assert all(value.startswith("sha384-") for files in config["files"].values() for value in files.values())


@needs_browser
def test_page_that_is_not_there_is_an_error_not_a_hang():
    with pytest.raises(chromium.BrowserError, match=r"http://127\.0\.0\.1:9/ failed"):
        webpage.visit("http://127.0.0.1:9/")


def test_server_is_for_this_machine_only_and_ends(tmp_path):
    (tmp_path / "a.mjs").write_text("export {}")
    with webpage.serve(tmp_path) as url:
        assert url.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(url + "a.mjs", timeout=10) as response:
            assert response.headers["Content-Type"] == "text/javascript"
            assert response.headers["Cross-Origin-Opener-Policy"] == "same-origin"
            assert response.headers["Cross-Origin-Embedder-Policy"] == "require-corp"
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(url + "../secret", timeout=10)
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(url + "a.mjs", timeout=10)
