"""The page of 11 classifies as ONNX Runtime does, keeps to this machine, and says what is wrong."""

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
SIZE = 64
PREPARE = preprocessing.preprocessing(SIZE, resize=72)
SAYS = "document.getElementById('status').textContent"

NO_RUNTIME = webpage.missing_runtime()
needs_runtime = pytest.mark.skipif(bool(NO_RUNTIME), reason=f"ONNX Runtime Web is {NO_RUNTIME}")
needs_browser = pytest.mark.skipif(bool(chromium.missing()), reason=chromium.missing())


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    """EfficientNet-Lite0, small pictures."""
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    model, _ = models.load_model(models.REAL_NETWORK)
    options = {"input_names": ["input"], "output_names": ["logits"], "external_data": False, "verbose": False}
    torch.onnx.export(model, (torch.zeros(1, 3, SIZE, SIZE),), path, **options)
    return path


@pytest.fixture
def page(tmp_path, model_file):
    """Return the folder of a written page."""
    webpage.write_page(tmp_path / "page", model_file, title="A <test> & more", transform=PREPARE)
    return tmp_path / "page"


@pytest.fixture
def tab(page):
    """Give the page, opened, and the list of what it asked for."""
    from playwright.sync_api import sync_playwright

    with webpage.Server(page) as server, sync_playwright() as playwright, chromium.launch(playwright) as browser:
        tab = browser.new_page()
        tab.asked = []
        tab.on("request", lambda request: tab.asked.append(request.url))
        tab.goto(server.url)
        tab.wait_for_function(f"{SAYS} === 'Ready.'")
        yield tab


def config_of(page):
    text = (page / "index.html").read_text("utf-8")
    return json.loads(re.search(r'<script id="config" type="application/json">(.*?)</script>', text, re.DOTALL)[1])


@needs_runtime
@needs_browser
def test_logits_in_the_browser_are_onnx_runtimes(page, model_file, samples):
    paths = samples.set_index("file")["path"]
    chosen = [paths["cat.png"], page / "猫 “2”.png"]  # one in colour, one grey and with an odd name
    shutil.copyfile(paths["cameraman.png"], chosen[1])
    inputs = {path.name: PREPARE(photos.open_photo(path))[None].numpy() for path in chosen}
    with webpage.Server(page) as server:
        found = webpage.visit(server.url, tensors=inputs, photos=chosen, runs=3, picture=page / "page.png")
    assert found["log"] == [], "the page's console is not silent"
    assert len(found["ms"]) == 3 and min(found["ms"]) > 0 and found["threads"] >= 1
    session = ort.InferenceSession(model_file, providers=["CPUExecutionProvider"])
    for name, x in inputs.items():
        dropped = found["dropped"][name]  # the page decoded and resized this one itself
        for given, logits in ((x, found["logits"][name]), (dropped["input"], dropped["logits"])):
            expected = session.run(None, {"input": given})[0]
            assert np.abs(logits - expected).max() <= TOLERANCE * np.abs(expected).max()
        assert np.abs(dropped["input"] - x).mean() < 0.1, "the page prepares photos in another way than torchvision"
        assert dropped["shown"].startswith(labels.top_k(expected, 1, language="english")["name"].iloc[0])
    assert (page / "page.png").stat().st_size > 10_000


@needs_runtime
@needs_browser
def test_broken_photo_and_broken_model_are_said(tab, page, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    tab.set_input_files("#file", tmp_path / "broken.jpg")
    tab.wait_for_function(f"{SAYS}.includes('not a picture')")
    (page / "model.onnx").unlink()
    tab.reload()
    tab.wait_for_function(f"{SAYS}.includes('model.onnx could not be loaded')")


@needs_runtime
@needs_browser
def test_engine_that_cannot_start_leaves_the_one_that_runs_and_nobody_outside_is_asked(tab, samples):
    tab.evaluate("Object.defineProperty(navigator, 'gpu', { value: undefined })")
    tab.select_option("#engine", "webgpu")
    tab.wait_for_function(f"{SAYS}.includes('no WebGPU')")
    assert tab.input_value("#engine") == "wasm"
    tab.set_input_files("#file", samples.set_index("file").loc["cat.png", "path"])
    tab.wait_for_function(f"{SAYS}.includes('ms a run')")
    assert " wasm, " in tab.text_content("#status")
    assert tab.asked and all(one.startswith((tab.url, "blob:", "data:")) for one in tab.asked)


@needs_runtime
def test_page_holds_names_in_both_languages_and_cannot_be_broken_by_one(page, monkeypatch, model_file):
    config = config_of(page)
    assert config["title"] == "A <test> & more" and (config["size"], config["resize"]) == (SIZE, 72)
    assert [len(config["names"][language]) for language in ("english", "chinese")] == [1000, 1000]
    evil = "</script><script>alert(1)</script>"
    monkeypatch.setattr(labels, "class_names", lambda language: [evil] * 1000)
    webpage.write_page(page, model_file, title="t", transform=PREPARE)
    assert config_of(page)["names"]["english"][0] == evil
    assert evil not in (page / "index.html").read_text("utf-8")


def test_missing_runtime_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setattr(webpage, "RUNTIME", tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="not installed: npm install --prefix"):
        webpage.write_page(tmp_path / "page", tmp_path / "model.onnx", title="t", transform=PREPARE)


@needs_browser
def test_page_that_is_not_there_is_an_error_not_a_hang():
    with pytest.raises(chromium.BrowserError, match=r"http://127\.0\.0\.1:9/ failed"):
        webpage.visit("http://127.0.0.1:9/", tensors={})


def test_server_is_for_this_machine_only_and_ends(tmp_path):
    (tmp_path / "a.mjs").write_text("export {}")
    with webpage.Server(tmp_path) as server:
        assert server.url.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(server.url + "a.mjs", timeout=60) as response:
            assert response.headers["Content-Type"] == "text/javascript"
            assert response.headers["Cross-Origin-Opener-Policy"] == "same-origin"
            assert response.headers["Cross-Origin-Embedder-Policy"] == "require-corp"
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(server.url + "../secret", timeout=60)
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(server.url + "a.mjs", timeout=60)
