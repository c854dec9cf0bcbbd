"""Notebook 14's own parts: the preparation in the graph, the packed file, and the service that the notebook writes."""

import asyncio
import contextlib
import http.server
import json
import math
import os
import re
import runpy
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import nbformat
import numpy as np
import onnx
import onnxruntime as ort
import pandas as pd
import psutil
import pytest
from PIL import Image
from starlette.exceptions import HTTPException
from starlette.requests import Request
from torchvision.transforms import InterpolationMode

from helpers import labels, models, photos, preprocessing, settings

CELLS = nbformat.read(settings.NOTEBOOKS / "14_serve_it.ipynb", as_version=4).cells
HOW = preprocessing.preprocessing(
    224, resize=256, mean=(0.498,) * 3, std=(0.502,) * 3, interpolation=InterpolationMode.BICUBIC
)
TOLERATED = int(re.search(r"TOLERATED = (\d+)", CELLS[2].source)[1])  # steps of 255, as the notebook says
SHAPES = {
    "one pixel": (1, 1),
    "tall line": (3000, 20),
    "wide line": (20, 3000),
    "portrait": (451, 300),
    "odd": (333, 257),
}


def cells(tag):
    """Return the code of the notebook's cells with a tag; there must be one."""
    found = [cell.source for cell in CELLS if tag in cell.metadata.get("tags", [])]
    assert found, f"no cell of 14_serve_it.ipynb has the tag {tag}"
    return "\n\n".join(found)


def write_programs(folder):
    """Write what the notebook's %%writefile cells write."""
    for cell in CELLS:
        if cell.cell_type == "code" and cell.source.startswith("%%writefile"):
            first, _, body = cell.source.partition("\n")
            *options, path = first.split()[1:]
            mode = "a" if "-a" in options else "w"
            with (folder / path.rsplit("/", 1)[1]).open(mode, encoding="utf-8") as file:
                file.write(body + "\n")


def imports():
    """Run the notebook's import cell, without its style and its printing."""
    names = {}
    lines = [line for line in CELLS[1].source.splitlines() if line.startswith(("import ", "from "))]
    exec("\n".join(lines), names)
    return names


@pytest.fixture(scope="module")
def kit(tmp_path_factory):
    """Run the notebook's cells that make files and start services, with a tiny network instead of the real one."""
    folder = tmp_path_factory.mktemp("14")
    write_programs(folder)
    (folder / "weights").write_bytes(b"tiny")
    weight = np.random.default_rng(settings.SEED).standard_normal((3, 1000)).astype(np.float32) * 3
    tiny = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 20]> tiny (float[batch, 3, 224, 224] pixels) '
        "=> (float[batch, 1000] scores) "
        "{ mean = ReduceMean <keepdims: int = 0> (pixels, axes) scores = MatMul (mean, weight) }"
    )
    tiny.graph.initializer.append(onnx.numpy_helper.from_array(np.array([2, 3]), "axes"))
    tiny.graph.initializer.append(onnx.numpy_helper.from_array(weight, "weight"))
    photo = Image.fromarray(np.random.default_rng(1).integers(0, 256, (90, 120, 3), dtype=np.uint8))
    names = imports() | {"how": HOW, "side": 224, "resize": 256, "FOLDER": folder, "photos": {"noise": photo}}
    names |= {
        "weights": SimpleNamespace(path=folder / "weights"),
        "fp32": tiny,
        "parts": {"fp32": tiny},
        "SECONDS": 1.0,
        "CPU": ["CPUExecutionProvider"],
        "PHOTOS": folder,
    }
    for tag in ("prepare", "pack", "running"):
        exec(cells(tag), names)
    photo.save(folder / "photo.jpg")
    names["jpeg"] = (folder / "photo.jpg").read_bytes()
    return SimpleNamespace(**names)


@pytest.fixture(autouse=True)
def course_on_the_path(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(settings.ROOT))  # the programs lie elsewhere here


@pytest.fixture(scope="module")
def classifier(kit):
    return runpy.run_path(str(kit.FOLDER / "classifier.py"))


@pytest.fixture
def service(kit, monkeypatch):
    monkeypatch.syspath_prepend(kit.FOLDER)
    return runpy.run_path(str(kit.FOLDER / "service.py"))


def picture(height, width):
    return Image.fromarray(np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_graph_prepares_as_torchvision(kit, shape):
    photo = picture(*shape)
    ours = ort.InferenceSession(kit.prepare.SerializeToString()).run(None, {"picture": np.asarray(photo)})[0]
    steps = np.abs(ours - preprocessing.preprocess(photo, HOW)) * 255 * 0.502
    assert ours.shape == (1, 3, 224, 224)
    assert steps.max() < TOLERATED, f"{steps.max():.1f} steps of 255"
    assert (steps > 0.5).mean() < 0.03


def test_the_graph_prepares_grey_as_torchvision(kit):
    photo = picture(300, 400).convert("L").convert("RGB")
    ours = ort.InferenceSession(kit.prepare.SerializeToString()).run(None, {"picture": np.asarray(photo)})[0]
    assert np.abs(ours - preprocessing.preprocess(photo, HOW)).max() * 255 * 0.502 < 2
    assert np.ptp(ours, axis=1).max() < 1e-5, "grey stays grey"


def test_the_file_carries_its_facts(kit, classifier):
    model, facts = classifier["check"](str(kit.FILES["fp32"]))
    assert onnx.checker.check_model(model, full_check=True) is None
    assert len(facts["names"]["english"]) == len(facts["names"]["chinese"]) == 1000
    assert facts["preprocessing"] == {"size": 224, "resize": 256, "mean": [0.498] * 3, "std": [0.502] * 3}
    assert facts["opset"] == model.opset_import[0].version


def test_the_halves_are_the_whole(kit, classifier):
    model, _ = classifier["check"](str(kit.FILES["fp32"]))
    front, back = (classifier["open_session"](part, 1) for part in classifier["halves"](model))
    photos = [np.asarray(picture(*shape)) for shape in ((100, 80), (300, 400))]
    pixels = np.concatenate([front.run(None, {"picture": photo})[0] for photo in photos])
    classes, shares = back.run(None, {"pixels": pixels})
    whole = ort.InferenceSession(kit.FILES["fp32"])
    for photo, row, share in zip(photos, classes, shares, strict=True):
        one = whole.run(["classes", "probabilities"], {"picture": photo})
        assert row.tolist() == one[0][0].tolist()
        np.testing.assert_allclose(share, one[1][0], rtol=1e-4)


def spoil(kit, how):
    model = onnx.load(kit.FILES["fp32"])
    facts = {entry.key: entry.value for entry in model.metadata_props}
    if how == "no names":
        onnx.helper.set_model_props(model, facts | {"names": "{}"})
    elif how == "other classes":
        onnx.helper.set_model_props(model, facts | {"names": facts["names"].replace("tench", "trench")})
    elif how == "no facts":
        del model.metadata_props[:]
    else:
        weight = next(one for one in model.graph.initializer if one.name == "weight")
        weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * 1.05, "weight"))
    return model.SerializeToString()


REFUSED = {
    "other classes": "other english classes",
    "no names": "other english classes",
    "no facts": "damaged",
    "other weights": "golden photo's logits",
}


@pytest.mark.parametrize("how", REFUSED)
def test_a_wrong_file_is_refused(kit, classifier, tmp_path, how):
    (tmp_path / "wrong.onnx").write_bytes(spoil(kit, how))
    with pytest.raises(ValueError, match=REFUSED[how]):
        classifier["check"](str(tmp_path / "wrong.onnx"))


def test_a_damaged_file_ends_the_service(kit, tmp_path):
    (tmp_path / "cut.onnx").write_bytes(kit.FILES["fp32"].read_bytes()[:5000])
    command = [sys.executable, kit.FOLDER / "serve.py", tmp_path / "cut.onnx", "--port", "0"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1
    assert "cut.onnx is damaged" in ended.stderr and "Traceback" not in ended.stderr


def options(**changed):
    return SimpleNamespace(**({"queue": 64, "timeout_s": 60, "body_s": 60, "max_bytes": 10_000, "file": "x"} | changed))


async def classify(service, engine, options, chunks, kind="image/png"):
    """Hand one request to the service's own function, without a server; return the status."""

    async def receive():
        if not chunks:
            await asyncio.Event().wait()  # a client that sends no more
        chunk = chunks.pop(0)
        if chunk is None:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": chunk, "more_body": bool(chunks) or chunk == b"half"}

    scope = {"type": "http", "method": "POST", "path": "/classify", "headers": [(b"content-type", kind.encode())]}
    endpoint = service["application"](engine, options).routes[0].endpoint
    try:
        return (await endpoint(Request(scope, receive))).status_code, {}
    except HTTPException as error:
        return error.status_code, error.headers


def engine(answer):
    names = {"english": ["cat"], "chinese": ["猫"]}
    return SimpleNamespace(waiting=0, networks=[], answer=answer, facts={"names": names})


async def named(body):
    return [0], [1.0]


async def never(body):
    await asyncio.Event().wait()


async def bomb(body):
    raise photos.TooManyPixelsError("picture claims 50000 x 50000 pixels, more than 80 million: make it smaller.")


async def no_picture(body):
    raise photos.PhotoError("picture is not a picture that Pillow can read: save it as JPEG or PNG.")


ANSWERS = {
    "a picture": (200, named, [b"1", b"2"], {}),
    "no picture": (400, no_picture, [b"text"], {}),
    "slow client": (408, named, [b"half"], {"body_s": 0.01}),
    "a client that left": (408, named, [b"half", None], {}),
    "too many bytes": (413, named, [bytes(9_000), bytes(9_000)], {}),
    "a bomb": (413, bomb, [b"png"], {}),
    "too late": (504, never, [b"1"], {"timeout_s": 0.01}),
    "no room": (503, named, [b"1"], {"queue": 0}),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_each_way_to_fail_has_its_status(service, name):
    status, answer, chunks, changed = ANSWERS[name]
    behind = engine(answer)
    given, headers = asyncio.run(classify(service, behind, options(**changed), list(chunks)))
    assert given == status
    assert (status == 503) == ("Retry-After" in (headers or {}))
    assert behind.waiting == 0, "a place in the queue was not given back"


async def broken(body):
    raise RuntimeError("the network failed")


def test_a_network_that_fails_is_a_500_and_the_service_goes_on(service):
    behind = engine(broken)
    app = service["application"](behind, options())

    async def status():
        async def receive():
            return {"type": "http.request", "body": b"1"}

        async def send(message):
            sent.append(message)

        sent, headers = [], [(b"content-type", b"image/png")]
        scope = {"type": "http", "method": "POST", "path": "/classify", "query_string": b"", "headers": headers}
        with contextlib.suppress(RuntimeError):  # the server writes it into its log
            await app(scope, receive, send)
        return sent[0]["status"]

    assert asyncio.run(status()) == 500 and behind.waiting == 0
    behind.answer = named
    assert asyncio.run(status()) == 200


@pytest.mark.parametrize("how", ["it raises", "it gives one answer for two"])
def test_a_batch_that_fails_tells_each_of_its_pictures(service, how):
    """Two pictures are run as one batch; the loop goes on after a failure, and passes over those who gave up."""

    async def run():
        behind = SimpleNamespace(options=SimpleNamespace(batch=2, wait_ms=0), queue=asyncio.Queue())
        sizes, tell = [], {"fails": True}

        def network(_, feeds):
            sizes.append(len(feeds["pixels"]))
            if tell["fails"] and how == "it raises":
                raise RuntimeError("the network failed")
            if tell["fails"]:
                return np.array([[1]]), np.array([[0.5]])
            return np.array([[1], [2]]), np.array([[0.5], [0.25]])

        def ask(number):
            answers = [asyncio.get_running_loop().create_future() for _ in range(number)]
            for answer in answers:
                behind.queue.put_nowait((np.zeros((1, 3, 2, 2), np.float32), answer))
            return answers

        loop = asyncio.create_task(service["Engine"].work(behind, SimpleNamespace(run=network)))
        failed = await asyncio.gather(*ask(2), return_exceptions=True)
        assert all(isinstance(one, RuntimeError | ValueError) for one in failed)
        tell["fails"] = False
        for gave_up in ask(2):
            gave_up.cancel()
        assert await asyncio.gather(*ask(2)) == [([1], [0.5]), ([2], [0.25])]
        loop.cancel()
        assert sizes == [2, 2]

    asyncio.run(asyncio.wait_for(run(), 60))  # a loop that died leaves its pictures waiting


def test_what_is_not_sent_as_a_picture_is_415(service):
    assert asyncio.run(classify(service, engine(named), options(), [b"1"], kind="text/plain"))[0] == 415


def test_the_queue_is_bounded(service):
    async def crowd():
        gate, most = asyncio.Event(), []

        async def wait(body):
            most.append(behind.waiting)
            await gate.wait()
            return [], []

        behind = engine(wait)
        tasks = [asyncio.create_task(classify(service, behind, options(queue=3), [b"1"])) for _ in range(10)]
        while sum(task.done() for task in tasks) < 7:  # the refused ones
            await asyncio.sleep(0)
        gate.set()
        return sorted(status for status, _ in await asyncio.gather(*tasks)), max(most)

    assert asyncio.run(crowd()) == ([200] * 3 + [503] * 7, 3)


def test_the_service_answers_refuses_and_leaves_nothing_behind(kit):
    with kit.running(kit.FILES["fp32"], "--sessions", 2, "--batch", 4) as url:
        tree = psutil.Process().children(recursive=True)
        heard = {c.laddr.ip for one in tree for c in one.net_connections("inet") if c.status == psutil.CONN_LISTEN}
        assert heard == {"127.0.0.1"}
        with ThreadPoolExecutor(8) as pool:
            replies = list(pool.map(lambda _: kit.ask(f"{url}/classify", kit.jpeg), range(16)))
        assert {status for status, _, _ in replies} == {200}
        assert len({text for _, text, _ in replies}) == 1, "a batch mixed its answers up"
        for body in (b"", b"text", kit.jpeg[:500]):
            status, text, _ = kit.ask(f"{url}/classify", body)
            assert (status, text.startswith("picture ")) == (400, True)
        assert kit.ask(f"{url}/classify", kit.jpeg, "text/plain")[0] == 415
        assert kit.ask(f"{url}/classify", bytes(10_000_001))[0] == 413
        assert kit.ask(f"{url}/classify", b"P6 50000 50000 255\n")[0] == 413
        assert kit.ask(f"{url}/classify", kit.jpeg)[0] == 200
    assert psutil.wait_procs(tree, timeout=30)[1] == []


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM to stop cleanly with")
def test_a_clean_stop_answers_what_was_accepted(kit):
    with ThreadPoolExecutor(1) as pool, kit.running(kit.FILES["fp32"], "--batch", 2, "--wait-ms", 4000) as url:
        reply = pool.submit(kit.ask, f"{url}/classify", kit.jpeg)
        while json.loads(kit.ask(f"{url}/health")[1])["waiting"] == 0 and not reply.done():
            pass
        assert not reply.done()
    assert reply.result()[0] == 200
    with pytest.raises(OSError), contextlib.closing(socket.create_connection(("127.0.0.1", int(url.rsplit(":")[-1])))):
        pass


def test_a_killed_worker_is_replaced(kit):
    with kit.running(kit.FILES["fp32"]) as url:
        first = json.loads(kit.ask(f"{url}/health")[1])["pid"]
        psutil.Process(first).kill()
        second = kit.new_worker(url, first)
        assert second != first
        assert kit.ask(f"{url}/classify", kit.jpeg)[0] == 200


@pytest.mark.parametrize("mended", [True, False])
def test_a_replacement_that_cannot_serve_is_tried_again_but_not_for_ever(kit, tmp_path, mended):
    """The file is spoilt under a running service: the next worker refuses it, and so do others, until it is whole."""
    file, whole = tmp_path / "classifier.onnx", kit.FILES["fp32"].read_bytes()
    file.write_bytes(whole)
    log = kit.FOLDER / "service.log"
    with kit.running(file) as url:
        first = json.loads(kit.ask(f"{url}/health")[1])["pid"]
        supervisor = psutil.Process().children()
        file.write_bytes(whole[:5000])
        psutil.Process(first).kill()
        refusals = 1 if mended else 5
        deadline = time.monotonic() + 120
        while log.read_text().count("damaged or not one of ours") < refusals and time.monotonic() < deadline:
            time.sleep(0.05)
        if mended:
            file.write_bytes(whole)
            assert kit.new_worker(url, first) != first
            assert kit.ask(f"{url}/classify", kit.jpeg)[0] == 200
        else:
            assert psutil.wait_procs(supervisor, timeout=60)[1] == []
            assert log.read_text().count("damaged or not one of ours") == 5
            assert "ended before it could serve" in log.read_text()


def test_connections_that_say_nothing_are_bounded(kit):
    """More than eight times the queue are hung up on at once, long before their time is out."""
    with kit.running(kit.FILES["fp32"], "--body-s", 60, "--queue", 2) as url, contextlib.ExitStack() as stack:
        place = ("127.0.0.1", int(url.rsplit(":", 1)[1]))
        held = [stack.enter_context(socket.create_connection(place, timeout=30)) for _ in range(17)]
        with contextlib.suppress(ConnectionResetError):
            assert held[16].recv(99) == b""
        held[0].settimeout(0.2)
        with pytest.raises(TimeoutError):
            held[0].recv(99)
        for one in held:
            one.close()
        assert kit.new_worker(url, None), "nobody is let in again"


def test_a_picture_of_too_many_pixels_for_the_service_is_413(kit, tmp_path):
    Image.new("L", (200, 100)).save(tmp_path / "20000.png")
    body = (tmp_path / "20000.png").read_bytes()
    with kit.running(kit.FILES["fp32"], "--max-pixels", 20_000) as url:
        assert kit.ask(f"{url}/classify", body)[0] == 200
    with kit.running(kit.FILES["fp32"], "--max-pixels", 19_999) as url:
        status, text, _ = kit.ask(f"{url}/classify", body)
    assert status == 413 and "200 x 100 pixels" in text


def test_a_full_batch_does_not_wait(service):
    """Two wait, and a batch takes two: the time for more pictures (ten minutes here) is not waited out."""

    async def run():
        behind = SimpleNamespace(options=SimpleNamespace(batch=2, wait_ms=600_000), queue=asyncio.Queue())
        answers = [asyncio.get_running_loop().create_future() for _ in range(2)]
        for answer in answers:
            behind.queue.put_nowait((np.zeros((1, 3, 2, 2), np.float32), answer))
        network = SimpleNamespace(run=lambda _, feeds: (np.array([[1], [2]]), np.array([[0.5], [0.25]])))
        loop = asyncio.create_task(service["Engine"].work(behind, network))
        await asyncio.wait_for(asyncio.gather(*answers), 60)
        loop.cancel()

    asyncio.run(run())


def test_who_says_nothing_is_hung_up_on_and_no_connection_outlives_its_answer(kit):
    """Else some hundred of them would lock everybody out: connections are bounded."""
    head = b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: 9999\r\n\r\n"
    with kit.running(kit.FILES["fp32"], "--body-s", 0.3, "--queue", 2) as url, contextlib.ExitStack() as stack:
        place = ("127.0.0.1", int(url.rsplit(":", 1)[1]))
        silent, half, drips = (stack.enter_context(socket.create_connection(place, timeout=60)) for _ in range(3))
        half.sendall(b"POST /classify HTT")
        drips.sendall(head + b"half")
        assert silent.recv(99) == b"" and half.recv(99) == b""
        assert b"408" in b"".join(iter(lambda: drips.recv(9999), b"")), "no answer, or the connection stayed open"
        assert kit.ask(f"{url}/classify", kit.jpeg)[0] == 200


@pytest.mark.parametrize("program", ["serve.py", "naive.py", "clerk.py"])
def test_a_program_ends_with_the_one_that_started_it(kit, program):
    """As when a notebook's kernel is killed: nobody is left to stop it, but its end of the pipe closes."""
    command = [sys.executable, kit.FOLDER / program, kit.FILES["fp32"], "--port", "0"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        url = process.stdout.readline().strip()
        assert kit.ask(f"{url}/health")[0] == 200
        tree = psutil.Process(process.pid).children(recursive=True)
        process.stdin.close()
        process.wait(60)
    assert psutil.wait_procs(tree, timeout=60)[1] == []


@pytest.mark.parametrize(
    ("takes", "found", "broke"),
    [(5, 0, 20), (25, 20, 40), (45, 40, 60), (65, 60, 80), (85, 80, 100), (105, 100, math.inf)],
)
def test_the_highest_rate_that_keeps_the_limit_is_found(kit, monkeypatch, takes, found, broke):
    """A service that answers in 10 ms up to a rate, and refuses beyond it; a closed loop of 100 a second."""

    def offer(url, rate=0, *, users=0, seconds=1.0):
        asked.append(rate * seconds if rate else 40)
        status = 200 if users or rate <= takes else 503
        return pd.DataFrame({"due_s": 0.0, "status": [status] * 100, "ms": 10.0}), 0.0

    asked, names = [], {"offer": offer, "warm": lambda url: None, "CORES": 2, "P99_MS": 100, "AT_LEAST": 40}
    names["SHARES"] = (0.2, 0.4, 0.6, 0.8, 1.0)
    for name, value in names.items():
        monkeypatch.setitem(kit.highest_rate.__globals__, name, value)
    rate, p99, lowest = kit.highest_rate("http://nowhere")
    assert (rate, lowest) == (pytest.approx(found), pytest.approx(broke))
    assert p99 == 10 if found else math.isnan(p99)
    assert min(asked) >= 40, "a p99 of too few requests"


def test_answers_that_come_after_the_end_do_not_raise_the_rate(kit):
    """Ten answers asked for within the second, of which the last comes after two."""
    late = pd.DataFrame({"due_s": 0.5, "status": [200] * 10 + [503] * 5, "ms": [100.0] * 14 + [1500.0]})
    assert kit.answered_a_second(late) == 5
    assert kit.answered_a_second(late.iloc[:14]) == 10


def test_the_load_arrives_at_random_moments_and_counts_what_is_lost(kit, tmp_path):
    """Against a listener that hangs up: nothing is answered, all of it is counted, the seed repeats it."""
    (tmp_path / "photo.jpg").write_bytes(kit.jpeg)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up():
            with contextlib.suppress(OSError):
                while True:
                    listener.accept()[0].close()

        thread = threading.Thread(target=hang_up, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        runs = [kit.offer(url, 50, seconds=0.5, seed=7, folder=tmp_path)[0].sort_values("due_s") for _ in range(2)]
    assert set(runs[0]["status"]) == {0}
    assert runs[0]["due_s"].tolist() == runs[1]["due_s"].tolist()
    assert 5 < len(runs[0]) < 60  # 25 are expected
    assert kit.percentiles(runs[0])["p99"] == np.inf


class Slow(http.server.BaseHTTPRequestHandler):
    """Answer every picture after 50 ms at least."""

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        time.sleep(0.06)  # some systems wake up a little early
        self.send_response(200)
        self.end_headers()

    def log_message(self, *words):
        pass


@pytest.fixture
def slow():
    """Give the address of a server that takes its time."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Slow) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_our_load_sees_a_known_delay(kit, slow, tmp_path):
    """It may not see less; how much more is the machine's affair."""
    (tmp_path / "photo.jpg").write_bytes(kit.jpeg)
    answers, _ = kit.offer(slow, 40, seconds=0.5, folder=tmp_path)
    assert answers["status"].eq(200).all() and answers["ms"].min() >= 50


def test_the_referee_sees_a_known_delay(kit, slow, tmp_path):
    pytest.importorskip("mlperf_loadgen")
    (tmp_path / "photo.jpg").write_bytes(kit.jpeg)
    theirs = kit.report("referee.py", slow, tmp_path, 40, 0.5, 0, 0)
    arrivals = theirs.pop("arrivals")
    (tmp_path / "arrivals.json").write_text(json.dumps(arrivals))
    assert 50 <= theirs["p50"] <= theirs["p95"] <= theirs["p99"] < math.inf
    answers, _ = kit.offer(slow, seconds=0.5, folder=tmp_path, replay=[tmp_path / "arrivals.json"])
    assert sorted(answers["due_s"]) == [due for due, _ in arrivals], "not the same load"


def test_the_turns_of_the_referee(kit, tmp_path, monkeypatch):
    """The notebook takes no turns at quick effort, so its cell's parts run here: against the clerk, who takes 20 ms."""
    pytest.importorskip("mlperf_loadgen")
    (tmp_path / "photo.jpg").write_bytes(kit.jpeg)
    monkeypatch.setitem(kit.take_turns.__globals__, "PHOTOS", tmp_path)
    monkeypatch.setitem(kit.take_turns.__globals__, "TURNS", 2)
    with kit.running(program="clerk.py") as url:
        ours, theirs = kit.take_turns(url, 20, 0.5)
    assert len(ours) == len(theirs) == 2 and np.isfinite(ours["p99"]).all()
    assert min(ours["p50"].min(), theirs["p50"].min()) >= 20, "the clerk takes 20 ms for everybody"
    assert all(kit.queue_ms(arrivals, 20)["p99"] >= 20 for arrivals in theirs["arrivals"])


def test_the_referee_counts_a_refusal_as_endless(kit, tmp_path):
    pytest.importorskip("mlperf_loadgen")
    (tmp_path / "no photo.jpg").write_bytes(b"no picture")
    with kit.running(kit.FILES["fp32"]) as url:
        theirs = kit.report("referee.py", url, tmp_path, 20, 0.3, 0, 0)
    assert theirs["p50"] == theirs["p99"] == math.inf


@pytest.mark.parametrize(
    ("ours", "theirs", "verdict"),
    [
        ([20.0, 21.0, 20.5], [20.2, 21.1, 20.4], "within 10 %"),
        ([20.0, 21.0, 20.5], [30.2, 31.1, 30.4], "more than 10 % apart"),
        ([30.0, 31.0, 30.5], [20.2, 21.1, 20.4], "more than 10 % apart"),
        ([20.0, 21.0, 20.5], [20.0, 29.0, 15.0], "undecided"),
        ([20.0], [20.0], "no interval"),
        ([20.0, 21.0, np.inf], [20.0, 21.0, 20.5], "some got no answer"),
    ],
)
def test_the_referee_is_judged_by_the_interval_of_the_turns(kit, ours, theirs, verdict):
    assert kit.judge(ours, theirs)[-1] == verdict


def test_the_computed_queue_is_that_of_one_clerk(kit):
    """Alone: the service time. Three at once: each waits for those before. Late enough: nobody waits."""
    assert kit.queue_ms([(0, 0)], 20) == {"p50": 20, "p95": 20, "p99": 20}
    assert kit.queue_ms([(0, 0), (0, 1), (0, 2)], 20) == {"p50": 40, "p95": 60, "p99": 60}
    assert kit.queue_ms([(0, 0), (0.5, 1), (1, 2)], 20)["p99"] == pytest.approx(20)
    assert kit.queue_ms([(0, 0), (0.015, 1)], 20)["p99"] == pytest.approx(25)


@pytest.mark.parametrize(("delay_ms", "said"), [(0, "within 10 %"), (30, "more than 10 % apart")])
def test_a_generator_that_adds_to_the_clock_is_found(kit, delay_ms, said):
    """The judgement turns if one of two sees a delay that the other does not."""
    turns = [kit.queue_ms([(n * gap, 0) for n in range(100)], 20)["p99"] for gap in (0.019, 0.01901, 0.01902)]
    assert kit.judge(turns, [ms + delay_ms for ms in turns])[-1] == said


def ends(kit, *options, **environment):
    """Run the service until it ends by itself; return its exit code and what it said on stderr."""
    command = [sys.executable, kit.FOLDER / "serve.py", *map(str, options)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, env=os.environ | environment
    )
    return done.returncode, done.stderr


def test_a_wrong_file_ends_the_service_with_the_reason(kit, tmp_path):
    (tmp_path / "wrong.onnx").write_bytes(b"no model")
    code, said = ends(kit, tmp_path / "wrong.onnx", "--port", 0)
    assert code == 1 and "is damaged or not one of ours" in said


def test_a_worker_that_cannot_start_ends_the_service(kit, tmp_path):
    """It is not started again and again."""
    (tmp_path / "starlette.py").write_text("raise ImportError('a broken installation')")
    path = os.pathsep.join([str(tmp_path), str(settings.ROOT)])
    code, said = ends(kit, kit.FILES["fp32"], "--port", 0, PYTHONPATH=path)
    assert code == 1 and said.count("ImportError: a broken installation") == 1, said
    assert "ended before it could serve" in said


def test_the_notebook_says_why_a_service_did_not_start(kit, tmp_path):
    (tmp_path / "wrong.onnx").write_bytes(b"no model")
    said = pytest.raises(RuntimeError, match=r"serve\.py does not serve.* is damaged or not one of ours")
    with said, kit.running(tmp_path / "wrong.onnx"):
        pass


def test_a_port_that_is_taken_is_said(kit):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, said = ends(kit, kit.FILES["fp32"], "--port", taken.getsockname()[1])
    assert code == 1 and "choose another with --port" in said and "Traceback" not in said


def test_the_naive_server_names_the_first_class(kit):
    """Quick effort, at which the tests run the notebook, leaves it out."""
    network, weights = models.load_model(models.REAL_NETWORK)
    path = photos.sample_photos().path.iloc[0]
    scores = network(weights.preprocessing(photos.open_photo(path))[None])
    with kit.running(program="naive.py") as url:
        answer = kit.ask(url, path.read_bytes())
    assert answer[:2] == (200, labels.class_names("chinese")[scores.argmax()]), "another class than the network's first"
