"""Notebook 14: the preparation in the graph, the packed file, the service, and the programs that load it."""

import asyncio
import contextlib
import hashlib
import http.server
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
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
from torchvision.transforms import InterpolationMode

from helpers import labels, models, photos, preprocessing, settings
from notebooks.lessons.service import classifier, client, clients, serve, server

CELLS = [
    c for c in nbformat.read(settings.NOTEBOOKS / "14_serve_it.ipynb", as_version=4).cells if c.cell_type == "code"
]
HOW = preprocessing.preprocessing(
    224, resize=256, mean=(0.498,) * 3, std=(0.502,) * 3, interpolation=InterpolationMode.BICUBIC
)
TOLERATED = int(re.search(r"TOLERATED = (\d+)", CELLS[1].source)[1])  # steps of 255, as the notebook says


def picture(height, width):
    return Image.fromarray(np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8))


def tiny_network():
    weight = np.random.default_rng(settings.SEED).standard_normal((3, 1000)).astype(np.float32) * 3
    tiny = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 20]> tiny (float[batch, 3, 224, 224] pixels) '
        "=> (float[batch, 1000] scores) "
        "{ mean = ReduceMean <keepdims: int = 0> (pixels, axes) scores = MatMul (mean, weight) }"
    )
    tiny.graph.initializer.append(onnx.numpy_helper.from_array(np.array([2, 3]), "axes"))
    tiny.graph.initializer.append(onnx.numpy_helper.from_array(weight, "weight"))
    return tiny


@pytest.fixture(scope="module")
def kit(tmp_path_factory):
    """Run the notebook's cells that make files and measure, with a tiny network instead of the real one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settings, "EXPORTS", tmp_path_factory.mktemp("exports"))
        patch.setenv("PYTHONPATH", str(settings.ROOT))
        folder = settings.exports_folder("14")
        (folder / "weights").write_bytes(b"tiny")
        tiny, photo = tiny_network(), picture(90, 120)
        photo.save(folder / "photo.jpg")
        names = {"how": HOW, "side": 224, "resize": 256, "FOLDER": folder, "photos": {"noise": photo}, "fp32": tiny}
        names |= {"weights": SimpleNamespace(path=folder / "weights"), "parts": {"fp32": tiny}, "SECONDS": 1.0}
        names |= {"CPU": ["CPUExecutionProvider"], "PHOTOS": folder, "jpeg": (folder / "photo.jpg").read_bytes()}
        lines = [line for line in CELLS[0].source.splitlines() if line.startswith(("import ", "from "))]
        exec("\n".join(lines), names)
        for tag in ("prepare", "pack", "running"):
            tagged = [cell.source for cell in CELLS if tag in cell.metadata.get("tags", [])]
            assert tagged, f"no cell of 14_serve_it.ipynb has the tag {tag}"
            exec("\n\n".join(tagged), names)
        yield SimpleNamespace(**names)


def test_the_notebook_may_run_in_any_folder():
    assert not [cell.source for cell in CELLS if "../" in cell.source or "%%writefile" in cell.source]


# The file


SHAPES = [(1, 1), (3000, 20), (20, 3000), (451, 300), (333, 257)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_graph_prepares_as_torchvision(kit, shape):
    prepare = ort.InferenceSession(kit.prepare.SerializeToString())
    for photo in (picture(*shape), picture(*shape).convert("L").convert("RGB")):
        ours = prepare.run(None, {"picture": np.asarray(photo)})[0]
        steps = np.abs(ours - preprocessing.preprocess(photo, HOW)) * 255 * 0.502
        assert ours.shape == (1, 3, 224, 224)
        assert steps.max() < TOLERATED and (steps > 0.5).mean() < 0.03, f"{steps.max():.1f} steps of 255"
    assert np.ptp(ours, axis=1).max() < 1e-5, "grey stays grey"


def test_the_file_carries_its_facts(kit):
    model, facts = classifier.check(kit.FILES["fp32"].read_bytes())
    assert onnx.checker.check_model(model, full_check=True) is None
    assert len(facts["names"]["english"]) == len(facts["names"]["chinese"]) == 1000
    assert facts["preprocessing"] == {"size": 224, "resize": 256, "mean": [0.498] * 3, "std": [0.502] * 3}
    assert facts["opset"] == model.opset_import[0].version


def test_the_halves_are_the_whole(kit):
    model, facts = classifier.check(kit.FILES["fp32"].read_bytes())
    front, back = (classifier.open_session(part, 1) for part in classifier.halves(model))
    pictures = [picture(*shape) for shape in ((100, 80), (300, 400))]
    pixels = np.concatenate([front.run(None, {"picture": np.asarray(one)})[0] for one in pictures])
    outside = np.concatenate([classifier.outside(facts)(one) for one in pictures])
    assert np.abs(pixels - outside).max() * 255 * 0.502 < TOLERATED
    classes, shares = back.run(None, {"pixels": pixels})
    whole = ort.InferenceSession(kit.FILES["fp32"])
    for photo, row, share in zip(pictures, classes, shares, strict=True):
        one = whole.run(["classes", "probabilities"], {"picture": np.asarray(photo)})
        assert row.tolist() == one[0][0].tolist()
        np.testing.assert_allclose(share, one[1][0], rtol=1e-4)


def other_weights(model):
    weight = next(one for one in model.graph.initializer if one.name == "weight")
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * 1.05, "weight"))


def other_names(model):
    facts = {entry.key: entry.value.replace("tench", "trench") for entry in model.metadata_props}
    onnx.helper.set_model_props(model, facts)


def no_facts(model):
    del model.metadata_props[:]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (other_names, "other english classes"),
        (no_facts, "damaged or not one of ours"),
        (other_weights, "golden photo's logits"),
    ],
)
def test_a_wrong_file_is_refused(kit, tmp_path, spoil, said):
    model = onnx.load(kit.FILES["fp32"])
    spoil(model)
    onnx.save(model, tmp_path / "wrong.onnx")
    with pytest.raises(ValueError, match=said):
        classifier.check((tmp_path / "wrong.onnx").read_bytes())


# The service's own functions, without a server


def options(*given):
    return serve.arguments(["x.onnx", "--max-bytes", "10000", "--timeout-s", "60", "--body-s", "60", *map(str, given)])


CAT = [["cat", "猫", 1.0]]


def pool(answer, *given, workers=1):
    """A pool whose workers are a function, bodies -> replies, in its threads; those that are ended are counted."""
    process, made = SimpleNamespace(is_alive=lambda: True, pid=1), server.Pool(options(*given), b"")
    made.first, made.golden, made.ended = ["cat"], b"golden", []
    made.workers = [SimpleNamespace(ask=answer, process=process) for _ in range(workers)]

    async def replace(place):
        made.ended.append(place)

    made.replace = replace
    return made


async def ask(behind, chunks, kind="image/png", path="/classify", method="POST", headers=()):
    """Hand one request to the service, without a server; return the status, the headers and the text."""
    chunks, sent = list(chunks), []

    async def receive():
        if not chunks:
            await asyncio.Event().wait()  # a client that sends no more
        chunk = chunks.pop(0)
        if chunk is None:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": chunk, "more_body": bool(chunks) or chunk == b"half"}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "query_string": b""}
    scope["headers"] = [(b"content-type", kind.encode()), *headers]
    await server.application(behind, behind.options)(scope, receive, send)
    return sent[0]["status"], [name for name, _ in sent[0]["headers"]], sent[1]["body"].decode()


async def fed(behind, doing):
    """Await something while the workers are fed."""
    lanes = [asyncio.create_task(behind.feed(place)) for place in range(len(behind.workers))]
    try:
        return await asyncio.wait_for(doing, 60)
    finally:
        for lane in lanes:
            lane.cancel()
        assert not [lane for lane in lanes if lane.done()], "a worker is fed no more"


def always(*reply):
    return lambda bodies: [reply] * len(bodies)


def dies(bodies):
    raise EOFError


def hangs(bodies):
    time.sleep(1)
    return [(200, CAT)]


ANSWERS = {
    "a picture": (200, always(200, CAT), [b"1", b"2"], []),
    "no picture": (400, always(400, "no picture"), [b"text"], []),
    "slow client": (408, always(200, CAT), [b"half"], ["--body-s", 0.01]),
    "a client that left": (408, always(200, CAT), [b"half", None], []),
    "too many bytes": (413, always(200, CAT), [bytes(9_000), bytes(9_000)], []),
    "a bomb": (413, always(413, "too many pixels"), [b"png"], []),
    "the network failed": (500, always(500, "failed"), [b"1"], []),
    "the worker died": (500, dies, [b"1"], []),
    "the worker hung": (500, hangs, [b"1"], ["--hung-s", 0.01]),
    "too late": (504, hangs, [b"1"], ["--timeout-s", 0.01]),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_each_way_to_fail_has_its_status(name):
    status, answer, chunks, given = ANSWERS[name]
    behind = pool(answer, *given)
    assert asyncio.run(fed(behind, ask(behind, chunks)))[0] == status
    assert (behind.waiting, behind.reading) == (0, 0), "a place was not given back"
    assert behind.ended == ([0] if name in ("the worker died", "the worker hung") else [])


def test_no_room_is_a_503_that_says_when_to_come_back():
    behind = pool(always(200, CAT), "--queue", 3)
    for behind.waiting, behind.reading in ((3, 0), (0, 9)):
        status, headers, _ = asyncio.run(ask(behind, [b"1"]))
        assert (status, b"retry-after" in headers) == (503, True)


def test_a_media_type_has_no_case_and_a_coding_is_named():
    behind = pool(always(200, CAT))
    assert asyncio.run(fed(behind, ask(behind, [b"1"], kind="IMAGE/JPEG")))[0] == 200
    status, headers, said = asyncio.run(ask(behind, [b"1"], headers=[(b"content-encoding", b"GZip")]))
    assert (status, "gzip" in said, b"accept-encoding" in headers) == (415, True, True)
    assert asyncio.run(ask(behind, [b"1"], kind="text/plain"))[0] == 415


def test_ready_asks_for_the_golden_photo_and_live_does_not():
    for right in (True, False):
        behind = pool(always(200, CAT if right else [["dog", "狗", 1.0]]))
        status, _, said = asyncio.run(fed(behind, ask(behind, [b""], path="/ready", method="GET")))
        assert (status, json.loads(said)["ready"]) == (200 if right else 503, right)
        assert json.loads(said)["sha256"] == hashlib.sha256(b"").hexdigest()
        assert behind.ended == ([] if right else [0]), "a worker that forgot the golden photo is replaced"
    for behind in (pool(dies), pool(always(200, CAT), "--queue", 1)):
        behind.waiting = 1
        assert asyncio.run(ask(behind, [b""], path="/live", method="GET"))[0] == 200


@pytest.mark.parametrize("wrong", [dies, hangs, always(200, [["dog", "狗", 1.0]])])
def test_an_idle_worker_is_asked_about_the_golden_photo(wrong):
    behind, asked = pool(lambda bodies: asked.append(bodies) or wrong(bodies), "--probe-s", 0.01, "--hung-s", 0.1), []

    async def replaced():
        while not behind.ended:
            await asyncio.sleep(0.01)

    asyncio.run(fed(behind, replaced()))
    assert asked[0] == [b"golden"]


@pytest.mark.parametrize("how", ["the worker dies", "it gives one answer for two"])
def test_a_batch_that_fails_tells_each_of_its_pictures(how):
    """The next batch goes on, and passes over those who gave up; a full batch waits for no more pictures."""
    sizes = []

    def answer(bodies):
        sizes.append(len(bodies))
        if len(sizes) == 1:
            return dies(bodies) if how == "the worker dies" else [(200, CAT)]
        return [(200, body) for body in bodies]

    async def run():
        assert [status for status, _ in await asyncio.gather(*map(behind.ask, (b"1", b"2")))] == [500, 500]
        for _ in range(2):
            behind.queue.put_nowait(gave_up := server.Picture(b"", asyncio.get_running_loop().create_future()))
            gave_up.answer.cancel()
        return await asyncio.gather(*map(behind.ask, (b"3", b"4")))

    behind = pool(answer, "--batch", 2, "--wait-ms", 10_000, "--probe-s", 60)
    assert asyncio.run(fed(behind, run())) == [(200, b"3"), (200, b"4")]
    assert sizes == [2, 2] and behind.ended == [0]


def test_the_queue_is_bounded_and_who_gave_up_takes_no_memory():
    async def crowd():
        asked = [asyncio.ensure_future(behind.ask(b"1")) for _ in range(10)]
        while sum(one.done() for one in asked) < 7:  # the refused ones
            await asyncio.sleep(0)
        assert behind.waiting == 3
        for one in asked:
            one.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
        return [one.result()[0] for one in asked if not one.cancelled()]

    behind = pool(always(200, CAT), "--queue", 3)
    assert asyncio.run(crowd()) == [503] * 7
    assert [behind.queue.get_nowait().body for _ in range(3)] == [b""] * 3 and behind.waiting == 0


def test_a_worker_that_cannot_start_is_tried_again(monkeypatch, capsys):
    class Starts:
        def __init__(self, options, content):
            made.append(self)

        def hello(self):
            if len(made) < 3:
                raise RuntimeError("no memory")

        def end(self):
            ended.append(self)

    made, ended, behind = [], [], server.Pool(options(), b"")
    monkeypatch.setattr(server, "Worker", Starts)
    behind.workers = [first := Starts(None, None)]
    monkeypatch.setattr(server, "AGAIN_S", 0.0)
    asyncio.run(behind.replace(0))
    assert behind.workers == [made[2]] and ended == [first, made[1]]
    assert capsys.readouterr().err == "no memory\n"


def test_a_network_that_fails_is_a_500_and_the_worker_goes_on(monkeypatch):
    class Fails:
        def __init__(self, content, options):
            self.golden = lambda: (b"png", ["cat"])

        def answers(self, bodies):
            if b"bad" in bodies:
                raise RuntimeError("shapes differ")
            return [(200, CAT)] * len(bodies)

    asked, said, ignored = [[b"bad", b"1"], [b"2"]], [], {}

    def receive():
        if not asked:
            raise EOFError
        return asked.pop(0)

    monkeypatch.setattr(classifier, "Classifier", Fails)
    monkeypatch.setattr(classifier.signal, "signal", ignored.__setitem__)
    classifier.work(b"", options(), SimpleNamespace(send=said.append, recv=receive))
    assert said == [(b"png", ["cat"]), [(500, "The network failed: shapes differ")] * 2, [(200, CAT)]]
    assert ignored == dict.fromkeys((signal.SIGINT, signal.SIGTERM), signal.SIG_IGN)


def test_a_batch_with_bad_pictures_answers_the_good_ones(kit, monkeypatch, tmp_path):
    monkeypatch.setattr(photos, "MAX_PIXELS", photos.MAX_PIXELS)  # the classifier sets it
    Image.new("L", (200, 100)).save(tmp_path / "20000.png")
    body = (tmp_path / "20000.png").read_bytes()
    mine = classifier.Classifier(kit.FILES["fp32"].read_bytes(), options("--max-pixels", 20_000))
    first, text, second, cut = mine.answers([kit.jpeg, b"text", body, kit.jpeg[:500]])
    assert [text[0], cut[0]] == [400, 400]
    for reply, alone in ((first, kit.jpeg), (second, body)):
        assert reply[0] == 200 and [best[:2] for best in reply[1]] == [best[:2] for best in mine.answers([alone])[0][1]]
    golden, first = mine.golden()
    assert mine.answers([golden])[0][1][0][0] in first
    small = classifier.Classifier(kit.FILES["fp32"].read_bytes(), options("--max-pixels", 19_999))
    assert small.answers([body])[0][0] == 413


def test_equal_probabilities_are_ranked_by_class_id(kit):
    """INT8 logits come in steps, so ties happen; the file orders them as a stable sort does."""
    scores = np.random.default_rng(0).integers(0, 4, (8, 1000)).astype(np.float32)
    classes, _, _ = ort.InferenceSession(kit.answer.SerializeToString()).run(None, {"scores": scores})
    assert classes.tolist() == np.argsort(-scores, axis=1, kind="stable")[:, :5].tolist()


WRONG = """--sessions 0,--batch 0,--queue 0,--threads x,--port 70000,--timeout-s 0,--body-s nan,\
--wait-ms -1,--hung-s inf,--max-bytes 1.5,--max-pixels 0"""


@pytest.mark.parametrize("wrong", WRONG.split(","))
def test_an_option_that_cannot_work_is_refused(wrong, capsys):
    with pytest.raises(SystemExit):
        options(*wrong.split())
    assert f"argument {wrong.split()[0]}: {wrong.split()[1]!r} given; needed is" in capsys.readouterr().err


# The service as a process


def tree_ended(processes):
    return psutil.wait_procs(processes, timeout=60)[1] == []


def connect(url, stack):
    return stack.enter_context(socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])), timeout=60))


def run_service(*given, program="serve", **how):
    """Start a program of the service as a process."""
    port = () if "--port" in given else ("--port", "0")
    command = [sys.executable, "-m", f"{client.PROGRAMS}.{program}", *map(str, given), *port]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, **(pipes | how))


def front(url):
    """The process that holds the address."""
    return psutil.Process(client.live(url)["workers"][0]).parent().parent()


@contextlib.contextmanager
def asked(url, many, body):
    """Send a photo so often that all wait: the only worker is stopped meanwhile. Yields it and the replies to come."""
    (worker,) = map(psutil.Process, client.live(url)["workers"])
    worker.suspend()
    with ThreadPoolExecutor(many) as crowd:
        replies = [crowd.submit(client.ask, f"{url}/classify", body) for _ in range(many)]
        deadline = time.monotonic() + 60
        while client.live(url)["waiting"] < many and time.monotonic() < deadline:
            time.sleep(0.01)
        assert client.live(url)["waiting"] == many
        yield worker, replies


def test_the_service_answers_refuses_and_leaves_nothing_behind(kit):
    with kit.running(kit.FILES["fp32"], "--sessions", 2, "--batch", 4) as url:
        tree = [leader := front(url), *leader.children(recursive=True)]
        heard = {c.laddr.ip for one in tree for c in one.net_connections("inet") if c.status == psutil.CONN_LISTEN}
        assert heard == {"127.0.0.1"}
        with ThreadPoolExecutor(8) as crowd:
            replies = list(crowd.map(lambda _: kit.ask(f"{url}/classify", kit.jpeg), range(16)))
        assert len(set(replies)) == 1 and replies[0][0] == 200, "a batch mixed its answers up"
        ready = json.loads(kit.ask(f"{url}/ready")[1])
        assert ready["sha256"] == hashlib.sha256(kit.FILES["fp32"].read_bytes()).hexdigest()
    assert tree_ended(tree)


TREATED = dict.fromkeys(
    ("sends a photo", "says IMAGE/JPEG", "sends it in chunks", "closes its half after the photo"), 200
)
TREATED |= {"closes its half within the photo": 0, "says text/plain": 415, "says that it is packed": 415}
TREATED |= {"sends nothing in it": 400, "sends a web page": 400, "sends half a photo as a whole": 400}
TREATED |= {"sends too many bytes": 413, "claims 50,000 x 50,000 pixels": 413, "asks for /classify/": 404}
TREATED |= {"asks with GET": 405, "speaks no HTTP": 400, "stops within the photo": 408}
TREATED |= {"stops within the head": 0, "connects and says nothing": 0}


@pytest.fixture(scope="module")
def served(kit):
    with kit.running(kit.FILES["fp32"], "--body-s", 2, "--max-bytes", 100_000) as url:
        yield url


@pytest.mark.parametrize("does", TREATED)
def test_what_a_client_does_and_what_it_gets(kit, served, does):
    rows = clients.clients(kit.jpeg, 100_000)
    assert rows.keys() == TREATED.keys(), "a row of the notebook's table without a test"
    assert clients.treat(served, rows[does])[0] == TREATED[does]
    assert kit.ask(f"{served}/classify", kit.jpeg)[0] == 200


POSIX = pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM to stop cleanly with")


@POSIX
def test_a_clean_stop_answers_what_was_accepted_and_refuses_the_next(kit):
    """Also who has connected and not yet asked. The address is closed while the accepted still wait."""
    limits = ("--timeout-s", 60, "--body-s", 60, "--hung-s", 60)
    with kit.running(kit.FILES["fp32"], *limits) as url, contextlib.ExitStack() as stack:
        late, leader = connect(url, stack), front(url)
        with asked(url, 40, kit.jpeg) as (worker, replies):
            leader.terminate()
            with pytest.raises(ConnectionRefusedError):
                while True:
                    socket.create_connection(late.getpeername(), timeout=60).close()
                    time.sleep(0.01)  # no flood, in which the oldest is hung up on
            assert not [one for one in replies if one.done()]
            late.sendall(clients.post(kit.jpeg))
            worker.resume()
            assert [one.result()[0] for one in replies] == [200] * 40
            assert late.recv(99).startswith(b"HTTP/1.1 200")


@POSIX
def test_a_stop_while_a_worker_hangs_takes_no_longer_than_its_limits(kit):
    with kit.running(kit.FILES["fp32"], "--timeout-s", 1, "--body-s", 1) as url:
        tree = [leader := front(url), *leader.children(recursive=True)]
        psutil.Process(client.live(url)["workers"][0]).suspend()
        leader.terminate()
        assert tree_ended(tree)


@POSIX
def test_a_killed_worker_takes_its_batch_and_nothing_else(kit):
    limits = ("--batch", 4, "--timeout-s", 60, "--hung-s", 60)
    with kit.running(kit.FILES["fp32"], *limits) as url, asked(url, 40, kit.jpeg) as (worker, replies):
        worker.kill()
        counts = Counter(one.result()[0] for one in replies)
        assert set(counts) <= {200, 500} and counts[500] <= 4 and counts.total() == 40


@POSIX
@pytest.mark.slow
def test_a_worker_that_hangs_is_found_and_replaced(kit):
    with kit.running(kit.FILES["fp32"], "--probe-s", 0.2, "--hung-s", 3) as url:
        (worker,) = map(psutil.Process, client.live(url)["workers"])
        worker.suspend()
        kit.new_worker(url, worker.pid)
        assert not worker.is_running()
        assert kit.ask(f"{url}/classify", kit.jpeg)[0] == 200


@pytest.mark.slow
def test_a_new_worker_serves_the_bytes_that_were_checked(kit, tmp_path):
    """The file is spoilt under a running service: that is seen at its next start, not in the middle of the night."""
    file = tmp_path / "classifier.onnx"
    file.write_bytes(kit.FILES["fp32"].read_bytes())
    with kit.running(file, "--probe-s", 0.2) as url:
        first, before = client.live(url)["workers"][0], kit.ask(f"{url}/ready")
        file.write_bytes(b"another")
        psutil.Process(first).kill()
        kit.new_worker(url, first)
        assert kit.ask(f"{url}/ready") == before
        assert kit.ask(f"{url}/classify", kit.jpeg)[0] == 200


def test_a_flood_of_silent_connections_is_bounded_and_the_service_lives(kit):
    """Of more than eight times the queue the oldest is hung up on, long before its time is out."""
    with kit.running(kit.FILES["fp32"], "--body-s", 60, "--queue", 2) as url, contextlib.ExitStack() as stack:
        held = [connect(url, stack) for _ in range(17)]
        assert held[0].recv(99) == b""
        held[1].settimeout(0.2)
        with pytest.raises(TimeoutError):
            held[1].recv(99)
        assert [kit.ask(f"{url}/{path}")[0] for path in ("live", "ready")] == [200, 200]
        assert kit.ask(f"{url}/classify", kit.jpeg)[0] == 200
        for one in held:
            one.close()


@pytest.mark.parametrize("program", ["serve", "fixed_rate", pytest.param("naive", marks=pytest.mark.slow)])
def test_a_program_ends_with_the_one_that_started_it(kit, program):
    """As when a notebook's kernel is killed: nobody is left to stop it, but its end of the pipe closes."""
    with run_service(kit.FILES["fp32"], program=program, stderr=None) as process:
        url = process.stdout.readline().strip()
        assert kit.ask(f"{url}/ready")[0] == 200
        tree = psutil.Process(process.pid).children(recursive=True)
        process.stdin.close()
        process.wait(60)
    assert tree_ended(tree)


@POSIX
def test_workers_end_with_the_front(kit):
    with kit.running(kit.FILES["fp32"], "--sessions", 2) as url:
        tree = [leader := front(url), *leader.children(recursive=True)]
        leader.kill()
        assert tree_ended(tree)


@POSIX
def test_ctrl_c_ends_all_without_a_traceback(kit):
    """A terminal sends it to all processes at once."""
    with run_service(kit.FILES["fp32"], start_new_session=True) as process:
        url = process.stdout.readline().strip()
        assert kit.ask(f"{url}/classify", kit.jpeg)[0] == 200
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(60) == 0 and process.stderr.read() == ""


def ends(*given):
    """Run the service until it ends by itself; return what it said on stderr."""
    with run_service(*given, stdin=subprocess.DEVNULL) as process:
        _, said = process.communicate(timeout=600)
    assert process.returncode == 1
    return said


def test_a_damaged_file_ends_the_service_and_the_notebook_says_why(kit, tmp_path):
    (tmp_path / "cut.onnx").write_bytes(kit.FILES["fp32"].read_bytes()[:5000])
    said = ends(tmp_path / "cut.onnx")
    assert "cut.onnx is damaged or not one of ours" in said and "Traceback" not in said
    why = pytest.raises(RuntimeError, match=r"serve does not serve.* is damaged or not one of ours")
    with why, kit.running(tmp_path / "cut.onnx"):
        pass
    assert "cannot be read (No such file" in ends(tmp_path / "none.onnx")


@pytest.fixture
def spoilt(tmp_path, monkeypatch):
    """A folder whose modules come before all others."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(settings.ROOT)]))
    return tmp_path


def test_a_first_worker_that_cannot_start_ends_the_service(kit, spoilt):
    """It is not started again and again."""
    (spoilt / "onnx.py").write_text("raise ImportError('a broken installation')")
    said = ends(kit.FILES["fp32"])
    assert said.count("ImportError: a broken installation") == 1, said
    assert "ended before it could serve" in said


@POSIX
@pytest.mark.slow
def test_no_shared_memory_is_needed(kit, spoilt):
    """Containers may have a read-only /dev/shm, where no lock between processes can be made."""
    refuse = "import _multiprocessing\ndef SemLock(*_, **__): raise OSError(30, 'Read-only file system')\n"
    (spoilt / "sitecustomize.py").write_text(f"{refuse}_multiprocessing.SemLock = SemLock\n")
    check = "import multiprocessing; multiprocessing.get_context('spawn').Lock()"
    assert subprocess.run([sys.executable, "-c", check], capture_output=True, check=False).returncode == 1
    with kit.running(kit.FILES["fp32"]) as url:
        assert kit.ask(f"{url}/classify", kit.jpeg)[0] == 200


def test_a_port_that_is_taken_is_said(kit):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        said = ends(kit.FILES["fp32"], "--port", taken.getsockname()[1])
    assert "choose another with --port" in said and "Traceback" not in said


@pytest.mark.slow
def test_the_naive_server_names_the_first_class(kit):
    """Quick effort, at which the tests run the notebook, leaves it out."""
    network, weights = models.load_model(models.REAL_NETWORK)
    path = photos.sample_photos().path.iloc[0]
    scores = network(weights.preprocessing(photos.open_photo(path))[None])
    with kit.running(program="naive") as url:
        answer = kit.ask(url, path.read_bytes())
    assert answer == (200, labels.class_names("chinese")[scores.argmax()]), "another class than the network's first"


# The load


@pytest.mark.parametrize(
    ("takes", "found", "broke"),
    [(5, 0, 20), (25, 20, 40), (45, 40, 60), (65, 60, 80), (85, 80, 100), (105, 100, math.inf)],
)
def test_the_highest_rate_that_keeps_the_limit_is_found(kit, monkeypatch, takes, found, broke):
    """A service that answers in 10 ms up to a rate, and refuses beyond it; a closed loop of 100 per second."""

    def offer(url, rate=0, *, users=0, seconds=1.0):
        asked.append(rate * seconds if rate else 40)
        status = 200 if users or rate <= takes else 503
        return pd.DataFrame({"due_s": 0.0, "status": [status] * 100, "ms": 10.0}), 0.0

    asked, names = [], {"offer": offer, "warm": lambda url: None, "CORES": 2, "P99_MS": 100, "AT_LEAST": 40}
    for name, value in (names | {"SHARES": (0.2, 0.4, 0.6, 0.8, 1.0)}).items():
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


class Slow(http.server.BaseHTTPRequestHandler):
    """Answer every picture after 50 ms at least; hang up where the server says so."""

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.server.hangs_up:
            return
        time.sleep(0.06)  # some systems wake up a little early
        self.send_response(200)
        self.end_headers()

    def log_message(self, *words):
        pass


@pytest.fixture
def slow():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Slow) as running:
        running.hangs_up, running.url = False, f"http://127.0.0.1:{running.server_port}"
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture
def folder(kit, tmp_path):
    (tmp_path / "photo.jpg").write_bytes(kit.jpeg)
    return tmp_path


def test_our_load_sees_a_known_delay_and_counts_what_is_lost(kit, slow, folder):
    """It may not see less than the delay; the seed repeats the moments; what gets no answer is endless."""
    runs = []
    for slow.hangs_up in (False, True):
        runs.append(kit.offer(slow.url, 40, seconds=0.5, seed=7, folder=folder)[0].sort_values("due_s"))
    assert runs[0]["status"].eq(200).all() and runs[0]["ms"].min() >= 50
    assert runs[1]["status"].eq(0).all() and kit.percentiles(runs[1])["p99"] == np.inf
    assert runs[0]["due_s"].tolist() == runs[1]["due_s"].tolist()
    assert 5 < len(runs[0]) < 50, "20 are expected"


@pytest.mark.slow
def test_loadgen_sees_a_known_delay_and_ours_offers_the_same_load(kit, slow, folder):
    pytest.importorskip("mlperf_loadgen")
    theirs = kit.report("loadgen", slow.url, folder, 40, 0.5, 0, 0)
    arrivals = theirs.pop("arrivals")
    (folder.parent / "arrivals.json").write_text(json.dumps(arrivals))
    assert 50 <= theirs["p50"] <= theirs["p95"] <= theirs["p99"] < math.inf
    answers, _ = kit.offer(slow.url, seconds=0.5, folder=folder, replay=[folder.parent / "arrivals.json"])
    assert sorted(answers["due_s"]) == [due for due, _ in arrivals], "not the same load"
    slow.hangs_up = True
    theirs = kit.report("loadgen", slow.url, folder, 20, 0.3, 0, 0)
    assert theirs["p50"] == theirs["p99"] == math.inf, "a lost picture is endless"


@pytest.mark.slow
def test_turns_with_loadgen(kit, folder, monkeypatch):
    """The notebook takes no turns at quick effort, so its cell's parts run here: against a server that takes 20 ms."""
    pytest.importorskip("mlperf_loadgen")
    monkeypatch.setitem(kit.take_turns.__globals__, "PHOTOS", folder)
    monkeypatch.setitem(kit.take_turns.__globals__, "TURNS", 2)
    with kit.running(program="fixed_rate") as url:
        ours, theirs = kit.take_turns(url, 20, 0.5)
    assert len(ours) == len(theirs) == 2 and np.isfinite(ours["p99"]).all()
    assert min(ours["p50"].min(), theirs["p50"].min()) >= 20, "the server takes 20 ms for everybody"
    assert all(kit.queue_ms(arrivals, 20)["p99"] >= 20 for arrivals in theirs["arrivals"])


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
def test_two_load_generators_are_judged_by_the_interval_of_the_turns(kit, ours, theirs, verdict):
    assert kit.judge(ours, theirs)[-1] == verdict


def test_the_computed_queue_is_that_of_a_server_with_a_fixed_rate(kit):
    """Alone: the service time. Three at once: each waits for those before. Late enough: nobody waits."""
    assert kit.queue_ms([(0, 0)], 20) == {"p50": 20, "p95": 20, "p99": 20}
    assert kit.queue_ms([(0, 0), (0, 1), (0, 2)], 20) == {"p50": 40, "p95": 60, "p99": 60}
    assert kit.queue_ms([(0, 0), (0.5, 1), (1, 2)], 20)["p99"] == pytest.approx(20)
    assert kit.queue_ms([(0, 0), (0.015, 1)], 20)["p99"] == pytest.approx(25)
