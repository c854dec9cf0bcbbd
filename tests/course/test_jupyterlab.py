"""Three lessons as a reader runs them: a real JupyterLab, a real browser, "Run All Cells".

What the browser shows is hard to read reliably, so most checks look at the notebook as JupyterLab saved it.
"""

import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import nbformat
import psutil
import pytest
from courses import code_cells, copy_course

from course import notebooks
from notebooks.lessons import chromium

if TYPE_CHECKING:
    from playwright.sync_api import ElementHandle

LESSONS = ("00", "01", "03")  # the first one, the one that shows Netron, the one for 15 minutes
START_S, OPEN_S, RUN_S, STOP_S = 60, 60, 300, 15

NOTEBOOK_IS_READY = """(path) => {
    const panel = window.jupyterapp?.shell.currentWidget;
    if (panel?.context?.path !== path || !panel.context.isReady) return false;
    return panel.sessionContext.kernelDisplayStatus === "idle";
}"""
# Started, not awaited: page.evaluate has no time limit.
RUN_ALL_AND_SAVE = """() => {
    const panel = window.jupyterapp.shell.currentWidget;
    window.lesson = {};
    window.jupyterapp.commands.execute("notebook:run-all-cells")
        .then(() => panel.context.save())
        .then(() => { window.lesson.saved = true; })
        .catch((error) => { window.lesson.problem = String(error); });
}"""
SAVED_OR_STUCK = "() => window.lesson.saved || window.lesson.problem || document.querySelector('.jp-Dialog')"
NETRON_S = 30  # for Netron to draw the graph
FRAMES = ".jp-NotebookPanel:not(.lm-mod-hidden) .jp-OutputArea-output iframe"  # JupyterLab opens earlier lessons again
FOLDED = """() => window.jupyterapp.shell.currentWidget.content.widgets.filter(
    (cell) => cell.model.type === "code" && cell.inputHidden).length"""
SHOWN_PICTURES = """async () => {
    const images = [...document.querySelectorAll(".jp-Notebook .jp-OutputArea-output img")];
    await Promise.allSettled(images.map((image) => image.decode()));
    return images.filter((image) => image.naturalWidth > 0).length;
}"""


@dataclass(frozen=True)
class Server:
    """A JupyterLab that is running."""

    url: str
    token: str
    log: Path

    def get(self, path: str) -> dict:
        request = urllib.request.Request(self.url + path, headers={"Authorization": f"token {self.token}"})
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # whatever proxy is set, not to ourselves
        with direct.open(request, timeout=10) as answer:
            return json.load(answer)

    def fail(self, message: str) -> NoReturn:
        tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])
        pytest.fail(f"{message}\nThe end of JupyterLab's log:\n{tail}", pytrace=False)


@contextmanager
def jupyterlab(course: Path, home: Path) -> Iterator[Server]:
    """Start JupyterLab on ``course``, with all of its own files in ``home``; stop it and its kernels in the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home.mkdir()
    server = Server(f"http://127.0.0.1:{port}", secrets.token_hex(16), home / "jupyterlab.log")
    choices = {"COURSE_EFFORT": "quick", "COURSE_WEIGHTS": "random", "COURSE_LABELS": "english"}
    variables = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
    own = {name: str(home / name.lower()) for name in variables}
    command = [
        *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}"),
        *("--ServerApp.port_retries=0", f"--ServerApp.root_dir={course}", "--LabApp.expose_app_in_browser=True"),
        *("--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate", "--LabApp.extension_manager=readonly"),
    ]
    with server.log.open("w") as log:
        process = subprocess.Popen(
            command,
            cwd=course,
            env=os.environ | choices | own | {"JUPYTER_TOKEN": server.token},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_until_it_answers(server, process)
        yield server
    finally:
        stop(process)


def wait_until_it_answers(server: Server, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            server.get("/api/status")
            return
        except OSError:  # nobody listens yet; URLError is an OSError
            time.sleep(0.2)
    state = "still running" if process.poll() is None else f"ended with code {process.returncode}"
    server.fail(f"JupyterLab does not answer ({state}; waited for at most {START_S} s).")


def stop(process: subprocess.Popen) -> None:
    """End the server, which ends its kernels; whatever is left of them after ``STOP_S`` is killed."""
    if process.poll() is not None:
        return
    server = psutil.Process(process.pid)
    family = [*server.children(recursive=True), server]
    process.terminate()
    _, left = psutil.wait_procs(family, timeout=STOP_S)
    for one in left:
        one.kill()
    psutil.wait_procs(left, timeout=STOP_S)
    process.wait(STOP_S)


def run_in_browser(server: Server, path: str) -> tuple[dict, int, list[int | None], int]:
    """Open the notebook, run all of its cells, save it.

    Args:
        server: the JupyterLab to use.
        path: the notebook, relative to the course: "notebooks/….ipynb".
    Returns:
        The notebook as JupyterLab saved it, how many pictures the page shows, how many nodes each Netron inside it has
        drawn, and how many cells have their source folded.
    """
    from playwright.sync_api import TimeoutError, sync_playwright

    with sync_playwright() as playwright, chromium.launch(playwright) as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        doing, limit_s = "open", OPEN_S
        try:
            page.goto(f"{server.url}/lab/tree/{path}?token={server.token}", timeout=OPEN_S * 1000)
            page.wait_for_function(NOTEBOOK_IS_READY, arg=path, timeout=OPEN_S * 1000)
            doing, limit_s = "run and save", RUN_S
            page.evaluate(RUN_ALL_AND_SAVE)
            # Once a second: asking at each frame, the default, would be a load that the measuring lessons wait out.
            page.wait_for_function(SAVED_OR_STUCK, timeout=RUN_S * 1000, polling=1000)
        except TimeoutError:
            server.fail(f"JupyterLab did not {doing} {path} within {limit_s} s.")
        lesson = page.evaluate("() => window.lesson")
        dialogs = page.locator(".jp-Dialog").all_inner_texts()
        if "saved" not in lesson or dialogs:
            said = lesson.get("problem") or " ".join(" ".join(dialogs).split())
            server.fail(f"JupyterLab could not run and save {path}. It says: {said!r}.")
        pictures = page.evaluate(SHOWN_PICTURES)
        folded = page.evaluate(FOLDED)
        graphs = [nodes_drawn(place) for place in page.query_selector_all(FRAMES)]
    return server.get(f"/api/contents/{path}?content=1")["content"], pictures, graphs, folded


def nodes_drawn(place: "ElementHandle") -> int | None:
    """Get past Netron's screen of a first visit, and count the nodes of the graph; None if another page is there."""
    place.evaluate("one => one.closest('.jp-Cell').scrollIntoView()")  # a browser draws no page that is out of sight
    frame = place.content_frame()
    frame.wait_for_load_state()
    if "Netron" not in frame.title():
        return None
    if frame.locator("#message-button").is_visible():
        frame.locator("#message-button").click()
    frame.wait_for_selector("#nodes .graph-node", state="attached", timeout=NETRON_S * 1000)
    return frame.locator("#nodes .graph-node").count()


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    """Start one JupyterLab for all lessons, on a copy of the course."""
    folder = tmp_path_factory.mktemp("lab")
    with jupyterlab(copy_course(folder / "my course 课程"), folder / "home") as running:
        yield running


@pytest.mark.browser
@pytest.mark.skipif(bool(chromium.missing()), reason=chromium.missing())
@pytest.mark.parametrize("path", notebooks.choose(list(LESSONS)), ids=lambda path: path.stem)
def test_a_reader_runs_a_lesson_in_jupyterlab(path, server):
    content, pictures, graphs, folded = run_in_browser(server, f"notebooks/{path.name}")
    cells = code_cells(nbformat.from_dict(content))
    outputs = [output for cell in cells for output in cell.outputs]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert [output.evalue for output in outputs if output.output_type == "error"] == []
    assert [output.text for output in outputs if output.get("name") == "stderr"] == []
    has_picture = any("image/" in kind for output in outputs for kind in output.get("data", {}))
    assert bool(pictures) or not has_picture, "the saved notebook has a picture, and the page shows none"
    hidden = [cell for cell in cells if cell.metadata.get("jupyter", {}).get("source_hidden")]
    assert folded == len(hidden) > 0, "a source that should be folded is shown, or the other way round"
    if path.name.startswith("01"):
        drawn = [nodes for nodes in graphs if nodes is not None]
        assert drawn and min(drawn) > 10, f"Netron should draw the graph inside the page; nodes drawn: {drawn}"
