"""A network in a web page: write the page, serve it on this machine, and drive it in a browser without a window.

Taught in notebooks/11_one_file_many_engines.ipynb.
"""

import base64
import hashlib
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import numpy as np
from torchvision.transforms._presets import ImageClassification

from helpers import labels, settings
from notebooks.lessons import chromium

VERSION = "1.30.0"  # of onnxruntime-web; the hashes below are those of its files
INSTALL = f"npm install --prefix data/exports/web onnxruntime-web@{VERSION}"  # from the course's root
RUNTIME = settings.EXPORTS / "web" / "node_modules" / "onnxruntime-web" / "dist"
CDN = f"https://cdn.jsdelivr.net/npm/onnxruntime-web@{VERSION}/dist/"  # serves the npm package's files
# engine -> its script and its WebAssembly program, each with its SHA-384: the browser refuses any other content
FILES = {
    "wasm": {
        "ort.wasm.bundle.min.mjs": "sha384-PLWz+nHEVHpjwBsO0YVdvQj6n5814Iv8E3b8FG0Rp/uIAtjFMCKOpP66iPzedrIG",
        "ort-wasm-simd-threaded.wasm": "sha384-vjBJ1z7qrhkTyYsNqKeF6c7N+nOJSU94czEo+tvZcu8G75JparGq9kB+kTnEUNVM",
    },
    "webgpu": {
        "ort.webgpu.bundle.min.mjs": "sha384-1ntMeyj+z5diX6vBR5h+zlJBPc4iNvhCxE6nlammh8daBYcLBZkzrwDkuJjhwI+f",
        "ort-wasm-simd-threaded.asyncify.wasm": (
            "sha384-EPVDLTxuO663dkZO/pcKJF6vOyyfq/5z9FY1oksN0UWFX2ABH4wDDZQHeNoUleWR"
        ),
    },
}
TEMPLATE = Path(__file__).with_suffix(".html")
TIMEOUT_S = 120  # for one visit of the page: loading the network, and all runs


def missing_runtime() -> str:
    """Return how to get ONNX Runtime Web's files, "" if they are there."""
    there = all((RUNTIME / name).exists() for files in FILES.values() for name in files)
    return "" if there else f"not installed: {INSTALL}"


def write_page(
    folder: str | Path,
    model: str | Path,
    *,
    title: str,
    transform: ImageClassification,
    from_cdn: bool = False,
) -> Path:
    """Write a folder that any web server can serve: a page that classifies the photos dropped on it.

    Nothing leaves the reader's machine: the network runs in the browser.

    Args:
        folder: where to write; made if it is not there.
        model: the .onnx file, weights inside: one input (1, 3, size, size), logits as its first output.
        title: the page's heading.
        transform: what the weights were published with (``weights.preprocessing``); the page resizes, crops and
            normalises by its numbers.
        from_cdn: take ONNX Runtime Web from a public network when the page is opened, not from the npm package.
    Returns:
        The page, index.html.
    Raises:
        FileNotFoundError: if the runtime's files are not there; the message says how to get them.
        BrowserError: if a file of the runtime is not the one of version ``VERSION``.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if not from_cdn:
        if lack := missing_runtime():
            raise FileNotFoundError(f"ONNX Runtime Web is {lack}")
        for files in FILES.values():
            for name, integrity in files.items():
                content = (RUNTIME / name).read_bytes()
                if _integrity(content) != integrity:
                    raise chromium.BrowserError(
                        f"{name} is not onnxruntime-web {VERSION}'s. Remove {RUNTIME} and run: {INSTALL}"
                    )
                (folder / name).write_bytes(content)
    shutil.copyfile(model, folder / "model.onnx")
    config = {
        "title": title,
        "size": transform.crop_size[0],
        "resize": transform.resize_size[0],
        "mean": list(transform.mean),
        "std": list(transform.std),
        "runtime": CDN if from_cdn else "./",
        "files": FILES,
        "names": {language: labels.class_names(language) for language in settings.LANGUAGES},
    }
    # "<" written as an escape: no name in the table can end the script element
    text = json.dumps(config, ensure_ascii=False).replace("<", "\\u003c")
    page = folder / "index.html"
    page.write_text(TEMPLATE.read_text(encoding="utf-8").replace("{{ config }}", text), encoding="utf-8")
    return page


@contextmanager
def serve(folder: str | Path, *, isolated: bool = True) -> Iterator[str]:
    """Serve a folder on 127.0.0.1, at a free port, as long as the context is open; gives the page's address.

    Args:
        folder: what to serve.
        isolated: send the headers that keep other sites out, without which browsers give a page one thread only.
    """
    server = _server(folder, isolated=isolated)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def start(folder: str | Path) -> str:
    """Serve a folder on 127.0.0.1 until the kernel ends, for a page that stays open; return its address."""
    server = _server(folder)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}/"


def visit(
    url: str,
    *,
    tensors: Mapping[str, np.ndarray] | None = None,
    photos: Sequence[str | Path] = (),
    runs: int = 10,
    engine: str = "wasm",
    picture: str | Path | None = None,
) -> dict[str, object]:
    """Open the page in a browser without a window, run the network there, and bring the numbers back.

    The browser has a process of its own, so this works inside a notebook too.

    Args:
        url: of the page.
        tensors: inputs by name, float32, shape (1, 3, size, size).
        photos: picture files to drop on the page; the page decodes and resizes them itself.
        runs: timed runs on the first tensor.
        engine: "wasm" or "webgpu".
        picture: a PNG file to keep a picture of the page in.
    Returns:
        logits (by tensor's name, shape (1, classes)), ms (of each timed run), load_ms, threads, dropped (by photo's
        name: ``input``, what the page made of it, shape (1, 3, size, size); ``logits``, shape (1, classes); ``shown``,
        the first class that the page names) and log (what the browser's console said).
    Raises:
        BrowserError: if there is no browser, the page fails, or it takes longer than ``TIMEOUT_S``.
    """
    if lack := chromium.missing():
        raise chromium.BrowserError(lack)
    tensors = tensors or {}
    task = {
        "url": url,
        "tensors": {name: _to_text(x) for name, x in tensors.items()},
        "photos": [str(Path(photo).resolve()) for photo in photos],
        "runs": runs,
        "engine": engine,
        "picture": picture and str(Path(picture).resolve()),
    }
    command = [sys.executable, "-X", "utf8", "-m", "notebooks.lessons.webpage"]
    try:
        done = subprocess.run(
            command,
            cwd=settings.ROOT,
            input=json.dumps(task),
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise chromium.BrowserError(f"The page at {url} took longer than {TIMEOUT_S} s and was closed.") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise chromium.BrowserError(f"The page at {url} failed: {last}")
    found = json.loads(done.stdout.splitlines()[-1])
    found["logits"] = {name: _to_array(text)[None] for name, text in found["logits"].items()}
    for name, one in found["dropped"].items():
        size = round((len(_to_array(one["input"])) / 3) ** 0.5)
        one = {"input": _to_array(one["input"]).reshape(1, 3, size, size), "logits": _to_array(one["logits"])[None]}
        found["dropped"][name] |= one
    return found


class _Handler(SimpleHTTPRequestHandler):
    """Serves files with the headers that WebAssembly's threads need, and says nothing."""

    # not from the system's table: Windows may call a script text/plain, and browsers refuse that
    extensions_map: ClassVar = {
        **SimpleHTTPRequestHandler.extensions_map,
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
        ".html": "text/html; charset=utf-8",
    }

    def end_headers(self) -> None:
        # Threads share memory, which browsers allow only to pages that keep other sites out.
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        self.send_header("Cross-Origin-Resource-Policy", "cross-origin")  # so that JupyterLab may frame the page
        self.send_header("Cache-Control", "no-store")
        super().end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        pass


class _StockHandler(_Handler):
    """Serves files as most servers do, without those headers."""

    def end_headers(self) -> None:
        SimpleHTTPRequestHandler.end_headers(self)


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a visitor who leaves early is no error
            super().handle_error(request, client_address)


def _server(folder: str | Path, *, isolated: bool = True) -> _Server:
    return _Server(("127.0.0.1", 0), partial(_Handler if isolated else _StockHandler, directory=str(folder)))


def _integrity(content: bytes) -> str:
    return "sha384-" + base64.b64encode(hashlib.sha384(content).digest()).decode()


def _to_text(x: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(x, dtype="<f4").tobytes()).decode()


def _to_array(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype="<f4")


def _drive(task: dict) -> dict[str, object]:
    """Do what ``visit`` describes, in this process."""
    from playwright.sync_api import Error, sync_playwright

    log: list[str] = []
    with sync_playwright() as playwright, chromium.launch(playwright) as browser:
        page = browser.new_page(viewport={"width": 900, "height": 600})
        page.set_default_timeout(TIMEOUT_S * 1e3)
        page.on("console", lambda message: log.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: log.append(f"error: {error}"))
        try:
            page.goto(task["url"])
            opened = page.evaluate("engine => course.open(engine)", task["engine"])
            logits = {
                name: page.evaluate("text => course.logits(text)", text) for name, text in task["tensors"].items()
            }
            first = next(iter(task["tensors"].values()), None)
            ms = page.evaluate("([text, runs]) => course.time(text, runs)", [first, task["runs"]]) if first else []
            dropped = {}
            for photo in map(Path, task["photos"]):
                page.set_input_files("#file", photo)
                page.wait_for_selector(f"#photo[data-photo={json.dumps(photo.name, ensure_ascii=False)}]")
                dropped[photo.name] = page.evaluate("course.last()")
            if task["picture"]:
                page.screenshot(path=task["picture"])
        except Error as error:
            reason = error.message.splitlines()[0]
            raise SystemExit(f"{reason} (the console said: {'; '.join(log) or 'nothing'})") from None
    return {"logits": logits, "ms": ms, "dropped": dropped, "log": log, **opened}


if __name__ == "__main__":
    print(json.dumps(_drive(json.loads(sys.stdin.read()))))
