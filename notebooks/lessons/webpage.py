"""A network in a web page: write the page, serve it on this machine, and drive it in a browser without a window.

Taught in notebooks/11_one_file_many_engines.ipynb.
"""

import base64
import json
import multiprocessing
import os
import shutil
import threading
from collections.abc import Mapping, Sequence
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np

from helpers import labels, settings
from notebooks.lessons import chromium

VERSION = "1.30.0"  # of onnxruntime-web
PLACE = Path(os.path.relpath(settings.EXPORTS / "web", settings.ROOT)).as_posix()
INSTALL = f"npm install --prefix {PLACE} onnxruntime-web@{VERSION}"  # from the course's root
RUNTIME = settings.EXPORTS / "web" / "node_modules" / "onnxruntime-web" / "dist"
FILES = {  # engine -> its script and its WebAssembly program
    "wasm": ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"),
    "webgpu": ("ort.webgpu.bundle.min.mjs", "ort-wasm-simd-threaded.asyncify.wasm"),
}
TIMEOUT_S = 120  # for one visit of the page: loading the network, and all runs


def missing_runtime() -> str:
    """Return how to get ONNX Runtime Web's files, "" if they are there."""
    there = all((RUNTIME / name).exists() for files in FILES.values() for name in files)
    return "" if there else f"not installed: {INSTALL}"


def write_page(folder: str | Path, model: str | Path, *, title: str, transform: Any) -> Path:
    """Write a folder that any web server can serve: a page that classifies the photos dropped on it.

    Nothing leaves the reader's machine: the network runs in the browser.

    Args:
        folder: where to write; made if it is not there.
        model: the .onnx file, weights inside: one input (1, 3, size, size), logits as its first output.
        title: the page's heading.
        transform: the preprocessing that the weights were published with; its crop_size, resize_size, mean and std.
    Returns:
        The page, index.html.
    Raises:
        FileNotFoundError: if the runtime's files are not there; the message says how to get them.
    """
    if lack := missing_runtime():
        raise FileNotFoundError(f"ONNX Runtime Web is {lack}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name in (name for files in FILES.values() for name in files):
        shutil.copyfile(RUNTIME / name, folder / name)
    shutil.copyfile(model, folder / "model.onnx")
    config = {"title": title, "size": transform.crop_size[0], "resize": transform.resize_size[0], "files": FILES}
    config |= {"mean": list(transform.mean), "std": list(transform.std)}
    config["names"] = {language: labels.class_names(language) for language in settings.LANGUAGES}
    # "<" written as an escape: no name in the table can end the script element
    text = json.dumps(config, ensure_ascii=False).replace("<", "\\u003c")
    template = Path(__file__).with_suffix(".html").read_text("utf-8")
    page = folder / "index.html"
    page.write_text(template.replace("{{ config }}", text), "utf-8")
    return page


class Server(ThreadingHTTPServer):
    """Serve a folder on 127.0.0.1, at a free port: from now on, or as long as a ``with`` block lasts.

    Args:
        folder: what to serve.
        isolated: send the headers that keep other sites out, without which browsers give a page one thread only.
    """

    def __init__(self, folder: str | Path, *, isolated: bool = True) -> None:
        """Start in a thread, which ends with the process."""
        super().__init__(("127.0.0.1", 0), partial(_Handler, directory=str(folder)))
        self.isolated, self.url = isolated, f"http://127.0.0.1:{self.server_port}/"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def server_close(self) -> None:
        """End, as the ``with`` block does."""
        self.shutdown()
        super().server_close()


class _Handler(SimpleHTTPRequestHandler):
    # not from the system's table: Windows may call a script text/plain, and browsers refuse that
    extensions_map = SimpleHTTPRequestHandler.extensions_map | {".mjs": "text/javascript", ".wasm": "application/wasm"}
    server: Server

    def end_headers(self) -> None:
        if self.server.isolated:
            self.send_header("Cross-Origin-Opener-Policy", "same-origin")
            self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
            self.send_header("Cross-Origin-Resource-Policy", "cross-origin")  # so that JupyterLab may frame the page
        self.send_header("Cache-Control", "no-store")
        super().end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        pass


def visit(
    url: str,
    *,
    tensors: Mapping[str, np.ndarray],
    photos: Sequence[Path] = (),
    runs: int = 10,
    picture: Path | None = None,
) -> dict[str, Any]:
    """Open the page in a browser without a window, in another process, and bring back what the network gave there.

    Args:
        url: of the page.
        tensors: inputs by name, float32, shape (1, 3, size, size).
        photos: picture files to drop on the page; the page decodes and resizes them itself.
        runs: timed runs on the first tensor.
        picture: a PNG file to keep a picture of the page in.
    Returns:
        logits (by tensor's name, shape (1, classes)), ms (of each timed run), load_ms, threads, dropped (by photo's
        name: ``input``, what the page made of it, shape (1, 3, size, size); ``logits``; ``shown``, the first class that
        the page names) and log (what the browser's console said).
    Raises:
        BrowserError: if there is no browser, the page fails, or it takes longer than ``TIMEOUT_S``.
    """
    if lack := chromium.missing():
        raise chromium.BrowserError(lack)
    with multiprocessing.get_context("spawn").Pool(1) as pool:  # Playwright's own loop and a notebook's do not mix
        try:
            return pool.apply_async(_drive, (url, tensors, photos, runs, picture)).get(TIMEOUT_S)
        except multiprocessing.TimeoutError:
            raise chromium.BrowserError(f"The page at {url} took longer than {TIMEOUT_S} s and was closed.") from None


def _drive(
    url: str, tensors: Mapping[str, np.ndarray], photos: Sequence[Path], runs: int, picture: Path | None
) -> dict[str, Any]:
    from playwright.sync_api import Error, sync_playwright

    log: list[str] = []
    with sync_playwright() as playwright, chromium.launch(playwright) as browser:
        page = browser.new_page(viewport={"width": 900, "height": 600})
        page.set_default_timeout(TIMEOUT_S * 1e3)
        page.on("console", lambda message: log.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: log.append(f"error: {error}"))
        try:
            page.goto(url)
            found = page.evaluate("course.open('wasm')") | {"log": log, "dropped": {}}
            sent = {name: base64.b64encode(x.astype("<f4").tobytes()).decode() for name, x in tensors.items()}
            given = {name: page.evaluate("text => course.logits(text)", text) for name, text in sent.items()}
            found["logits"] = {name: _array(text) for name, text in given.items()}
            found["ms"] = page.evaluate("([text, runs]) => course.time(text, runs)", [next(iter(sent.values())), runs])
            for photo in photos:
                page.set_input_files("#file", photo)
                page.wait_for_selector(f"#photo[data-photo={json.dumps(photo.name, ensure_ascii=False)}]")
                one = page.evaluate("course.last()")
                one["input"] = _array(one["input"]).reshape(1, 3, one["size"], -1)
                found["dropped"][photo.name] = one | {"logits": _array(one["logits"])}
            if picture:
                page.screenshot(path=picture)
        except Error as error:
            reason = f"{error.message.splitlines()[0]} (the console said: {'; '.join(log) or 'nothing'})"
            raise chromium.BrowserError(f"The page at {url} failed: {reason}") from None
    return found


def _array(text: str) -> np.ndarray:
    """Return the numbers of a text, shape (1, n)."""
    return np.frombuffer(base64.b64decode(text), dtype="<f4")[None]
