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

import nbformat
import psutil
import pytest
from courses import OFFLINE, code_cells, copy_course

from course import notebooks

LESSONS = ("00", "01", "03")  # the first one, the one that shows Netron, the one for 15 minutes
START_S, OPEN_S, RUN_S, NETRON_S, STOP_S = 180, 180, 1200, 120, 60  # for a crowded machine

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
FRAMES = ".jp-NotebookPanel:not(.lm-mod-hidden) .jp-OutputArea-output iframe"  # JupyterLab opens earlier lessons again
FOLDED = """() => window.jupyterapp.shell.currentWidget.content.widgets.filter(
    (cell) => cell.model.type === "code" && cell.inputHidden).length"""
SHOWN_PICTURES = """async () => {
    const images = [...document.querySelectorAll(".jp-Notebook .jp-OutputArea-output img")];
    await Promise.allSettled(images.map((image) => image.decode()));
    return images.filter((image) => image.naturalWidth > 0).length;
}"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Start one JupyterLab for all lessons, on a copy of the course; yield a function that asks it for a page."""
    folder = tmp_path_factory.mktemp("lab")
    course, token = copy_course(folder / "my course 课程"), secrets.token_hex(16)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    own = {
        name: str(folder / name)
        for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
    }
    choices = {"COURSE_EFFORT": "quick", "COURSE_WEIGHTS": OFFLINE, "JUPYTER_TOKEN": token}
    command = [
        *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1"),
        *(f"--port={url.rpartition(':')[2]}", "--ServerApp.port_retries=0", f"--ServerApp.root_dir={course}"),
        *("--LabApp.expose_app_in_browser=True", "--LabApp.extension_manager=readonly"),
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]

    def ask(path):
        request = urllib.request.Request(url + path, headers={"Authorization": f"token {token}"})
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # whatever proxy is set, not to ourselves
        with direct.open(request, timeout=60) as answer:
            return json.load(answer)

    log = folder / "jupyterlab.log"
    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=course, env=os.environ | choices | own, stdout=file, stderr=file)
    deadline = time.monotonic() + START_S
    try:
        while True:
            try:
                ask("/api/status")
                break
            except OSError:  # nobody listens yet; URLError is an OSError
                assert process.poll() is None and time.monotonic() < deadline, (
                    f"no JupyterLab:\n{log.read_text()[-2000:]}"
                )
                time.sleep(0.2)
        yield ask, url, token
    finally:
        family = [*psutil.Process(process.pid).children(recursive=True), process]
        process.terminate()  # which ends its kernels; what is left of them is killed
        for one in psutil.wait_procs(family[:-1], timeout=STOP_S)[1]:
            one.kill()
        process.wait(STOP_S)


def nodes_drawn(place):
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


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.parametrize("path", notebooks.choose(list(LESSONS)), ids=lambda path: path.stem)
def test_a_reader_runs_a_lesson_in_jupyterlab(path, server, browser):
    ask, url, token = server
    page, lesson = browser.new_page(viewport={"width": 1280, "height": 900}), f"notebooks/{path.name}"
    page.goto(f"{url}/lab/tree/{lesson}?token={token}", timeout=OPEN_S * 1000)
    page.wait_for_function(NOTEBOOK_IS_READY, arg=lesson, timeout=OPEN_S * 1000)
    page.evaluate(RUN_ALL_AND_SAVE)
    # Once a second: asking at each frame, the default, would be a load that the measuring lessons wait out.
    page.wait_for_function(SAVED_OR_STUCK, timeout=RUN_S * 1000, polling=1000)
    said = page.evaluate("() => window.lesson"), page.locator(".jp-Dialog").all_inner_texts()
    assert said == ({"saved": True}, []), f"JupyterLab could not run and save it: {said}"
    shown, folded = page.evaluate(SHOWN_PICTURES), page.evaluate(FOLDED)
    graphs = [nodes_drawn(place) for place in page.query_selector_all(FRAMES)]
    cells = code_cells(nbformat.from_dict(ask(f"/api/contents/{lesson}?content=1")["content"]))
    outputs = [output for cell in cells for output in cell.outputs]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert [output.evalue for output in outputs if output.output_type == "error"] == []
    assert [output.text for output in outputs if output.get("name") == "stderr"] == []
    has_picture = any("image/" in kind for output in outputs for kind in output.get("data", {}))
    assert shown or not has_picture, "the saved notebook has a picture, and the page shows none"
    hidden = [cell for cell in cells if cell.metadata.get("jupyter", {}).get("source_hidden")]
    assert folded == len(hidden) > 0, "a source that should be folded is shown, or the other way round"
    if path.name.startswith("01"):
        drawn = [nodes for nodes in graphs if nodes is not None]
        assert drawn and min(drawn) > 10, f"Netron should draw the graph inside the page; nodes drawn: {drawn}"
