"""Notebook 14: the preparation in the graph, the packed file, the service, and the programs that load it."""

import asyncio
import contextlib
import http.server
import json
import math
import os
import re
import socket
import subprocess
import sys
import threading
import time
from argparse import Namespace
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
from notebooks.lessons.service import classifier, client, server

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
    model, facts = classifier.check(kit.FILES["fp32"])
    assert onnx.checker.check_model(model, full_check=True) is None
    assert len(facts["names"]["english"]) == len(facts["names"]["chinese"]) == 1000
    assert facts["preprocessing"] == {"size": 224, "resize": 256, "mean": [0.498] * 3, "std": [0.502] * 3}
    assert facts["opset"] == model.opset_import[0].version


def test_the_halves_are_the_whole(kit):
    model, facts = classifier.check(kit.FILES["fp32"])
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
        classifier.check(tmp_path / "wrong.onnx")


# The service's own functions, without a server


def options(**changed):
    own = {"queue": 64, "timeout_s": 60, "body_s": 60, "max_bytes": 10_000, "max_pixels": 20_000_000, "file": "x"}
    return Namespace(**(own | {"sessions": 1, "threads": 1, "batch": 2, "wait_ms": 0, "outside": False} | changed))


def engine(answer):
    names = {"english": ["cat"], "chinese": ["猫"]}
    return SimpleNamespace(waiting=0, networks=[], answer=answer, facts={"names": names})


async def classify(behind, options, chunks, kind="image/png"):
    """Hand one request to the service, without a server; return the status and the headers' names."""
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

    scope = {"type": "http", "method": "POST", "path": "/classify", "query_string": b""}
    with contextlib.suppress(RuntimeError):  # the server writes it into its log
        request = scope | {"headers": [(b"content-type", kind.encode())]}
        await server.application(behind, options)(request, receive, send)
    return sent[0]["status"], [name for name, _ in sent[0]["headers"]]


async def named(body):
    return [0], [1.0]


async def never(body):
    await asyncio.Event().wait()


async def bomb(body):
    raise photos.TooManyPixelsError("picture claims 50000 x 50000 pixels, more than 80 million: make it smaller.")


async def no_picture(body):
    raise photos.PhotoError("picture is not a picture that Pillow can read: save it as JPEG or PNG.")


async def broken(body):
    raise RuntimeError("the network failed")


ANSWERS = {
    "a picture": (200, named, [b"1", b"2"], {}),
    "no picture": (400, no_picture, [b"text"], {}),
    "slow client": (408, named, [b"half"], {"body_s": 0.01}),
    "a client that left": (408, named, [b"half", None], {}),
    "too many bytes": (413, named, [bytes(9_000), bytes(9_000)], {}),
    "a bomb": (413, bomb, [b"png"], {}),
    "not sent as a picture": (415, named, [b"1"], {"kind": "text/plain"}),
    "the network failed": (500, broken, [b"1"], {}),
    "too late": (504, never, [b"1"], {"timeout_s": 0.01}),
    "no room": (503, named, [b"1"], {"queue": 0}),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_each_way_to_fail_has_its_status(name):
    status, answer, chunks, changed = ANSWERS[name]
    behind, kind = engine(answer), changed.get("kind", "image/png")
    given, headers = asyncio.run(classify(behind, options(**changed), chunks, kind))
    assert (given, b"retry-after" in headers) == (status, status == 503)
    assert behind.waiting == 0, "a place in the queue was not given back"


@pytest.mark.parametrize("how", ["it raises", "it gives one answer for two"])
def test_a_batch_that_fails_tells_each_of_its_pictures(how):
    """The loop goes on after a failure, and passes over those who gave up; a full batch waits for no more pictures."""

    async def run():
        behind = SimpleNamespace(options=options(batch=2, wait_ms=600_000), queue=asyncio.Queue())
        sizes, good = [], (np.array([[1], [2]]), np.array([[0.5], [0.25]]))

        def two():
            answers = [asyncio.get_running_loop().create_future() for _ in range(2)]
            for answer in answers:
                behind.queue.put_nowait((np.zeros((1, 3, 2, 2), np.float32), answer))
            return answers

        def network(_, feeds):
            sizes.append(len(feeds["pixels"]))
            if len(sizes) == 1 and how == "it raises":
                raise RuntimeError("the network failed")
            return tuple(output[: len(sizes)] for output in good)

        answers = two()
        loop = asyncio.create_task(server.Engine.work(behind, SimpleNamespace(run=network)))
        failed = await asyncio.gather(*answers, return_exceptions=True)
        assert all(isinstance(one, RuntimeError | ValueError) for one in failed)
        for gave_up in two():
            gave_up.cancel()
        assert await asyncio.gather(*two()) == [([1], [0.5]), ([2], [0.25])]
        loop.cancel()
        assert sizes == [2, 2]

    asyncio.run(asyncio.wait_for(run(), 60))  # a loop that died leaves its pictures waiting


def test_the_queue_is_bounded():
    async def crowd():
        gate, most = asyncio.Event(), []

        async def wait(body):
            most.append(behind.waiting)
            await gate.wait()
            return [], []

        behind = engine(wait)
        tasks = [asyncio.create_task(classify(behind, options(queue=3), [b"1"])) for _ in range(10)]
        while sum(task.done() for task in tasks) < 7:  # the refused ones
            await asyncio.sleep(0)
        gate.set()
        return sorted(status for status, _ in await asyncio.gather(*tasks)), max(most)

    assert asyncio.run(crowd()) == ([200] * 3 + [503] * 7, 3)


def test_pictures_of_too_many_pixels_are_not_decoded(kit, monkeypatch, tmp_path):
    monkeypatch.setattr(photos, "MAX_PIXELS", photos.MAX_PIXELS)  # the engine sets it
    Image.new("L", (200, 100)).save(tmp_path / "20000.png")
    body = (tmp_path / "20000.png").read_bytes()
    assert server.Engine(options(file=kit.FILES["fp32"], max_pixels=20_000)).read(body).shape == (1, 3, 224, 224)
    with pytest.raises(photos.TooManyPixelsError, match="200 x 100 pixels"):
        server.Engine(options(file=kit.FILES["fp32"], max_pixels=19_999)).read(body)


# The service as a process


def tree_ended(processes):
    return psutil.wait_procs(processes, timeout=60)[1] == []


def connect(url, stack):
    return stack.enter_context(socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])), timeout=60))


def test_the_service_answers_refuses_and_leaves_nothing_behind(kit):
    with kit.running(kit.FILES["fp32"], "--sessions", 2, "--batch", 4) as url:
        tree = psutil.Process().children(recursive=True)
        heard = {c.laddr.ip for one in tree for c in one.net_connections("inet") if c.status == psutil.CONN_LISTEN}
        assert heard == {"127.0.0.1"}
        with ThreadPoolExecutor(8) as pool:
            replies = list(pool.map(lambda _: kit.ask(f"{url}/classify", kit.jpeg), range(16)))
        assert len(set(replies)) == 1 and replies[0][0] == 200, "a batch mixed its answers up"
        for body in (b"", b"text", kit.jpeg[:500]):
            status, text = kit.ask(f"{url}/classify", body)
            assert (status, text.startswith("picture ")) == (400, True)
        for body in (bytes(10_000_001), b"P6 50000 50000 255\n"):
            assert kit.ask(f"{url}/classify", body)[0] == 413
        assert kit.ask(f"{url}/classify", kit.jpeg)[0] == 200
    assert tree_ended(tree)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM to stop cleanly with")
def test_a_clean_stop_answers_what_was_accepted(kit):
    with ThreadPoolExecutor(1) as pool, kit.running(kit.FILES["fp32"], "--batch", 2, "--wait-ms", 4000) as url:
        reply = pool.submit(kit.ask, f"{url}/classify", kit.jpeg)
        while json.loads(kit.ask(f"{url}/health")[1])["waiting"] == 0 and not reply.done():
            pass
        assert not reply.done()
    assert reply.result()[0] == 200
    with pytest.raises(OSError), contextlib.ExitStack() as stack:
        connect(url, stack)


@pytest.mark.parametrize("mended", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_killed_worker_is_replaced_but_not_for_ever(kit, tmp_path, mended):
    """The file is spoilt under a running service: the next worker refuses it, and so do others, until it is whole."""
    file, whole, log = tmp_path / "classifier.onnx", kit.FILES["fp32"].read_bytes(), kit.FOLDER / "service.log"
    file.write_bytes(whole)
    with kit.running(file) as url:
        first, supervisor = json.loads(kit.ask(f"{url}/health")[1])["pid"], psutil.Process().children()
        file.write_bytes(whole[:5000])
        psutil.Process(first).kill()
        refusals, deadline = 1 if mended else 5, time.monotonic() + 120
        while log.read_text().count("damaged or not one of ours") < refusals and time.monotonic() < deadline:
            time.sleep(0.05)
        if mended:
            file.write_bytes(whole)
            assert kit.new_worker(url, first) != first
            assert kit.ask(f"{url}/classify", kit.jpeg)[0] == 200
        else:
            assert tree_ended(supervisor)
            assert log.read_text().count("damaged or not one of ours") == 5
            assert "ended before it could serve" in log.read_text()


def test_connections_that_say_nothing_are_bounded(kit):
    """More than eight times the queue are hung up on at once, long before their time is out."""
    with kit.running(kit.FILES["fp32"], "--body-s", 60, "--queue", 2) as url, contextlib.ExitStack() as stack:
        held = [connect(url, stack) for _ in range(17)]
        with contextlib.suppress(ConnectionResetError):
            assert held[16].recv(99) == b""
        held[0].settimeout(0.2)
        with pytest.raises(TimeoutError):
            held[0].recv(99)
        for one in held:
            one.close()
        assert kit.new_worker(url, None), "nobody is let in again"


def test_who_says_nothing_is_hung_up_on_and_no_connection_outlives_its_answer(kit):
    """Else some hundred of them would lock everybody out: connections are bounded."""
    head = b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: 9999\r\n\r\n"
    with kit.running(kit.FILES["fp32"], "--body-s", 0.3, "--queue", 2) as url, contextlib.ExitStack() as stack:
        silent, half, drips = (connect(url, stack) for _ in range(3))
        half.sendall(b"POST /classify HTT")
        drips.sendall(head + b"half")
        assert silent.recv(99) == b"" and half.recv(99) == b""
        assert b"408" in b"".join(iter(lambda: drips.recv(9999), b"")), "no answer, or the connection stayed open"
        assert kit.ask(f"{url}/classify", kit.jpeg)[0] == 200


@pytest.mark.parametrize("program", ["serve", "fixed_rate", pytest.param("naive", marks=pytest.mark.slow)])
def test_a_program_ends_with_the_one_that_started_it(kit, program):
    """As when a notebook's kernel is killed: nobody is left to stop it, but its end of the pipe closes."""
    command = [sys.executable, "-m", f"{client.PROGRAMS}.{program}", kit.FILES["fp32"], "--port", "0"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        url = process.stdout.readline().strip()
        assert kit.ask(f"{url}/health")[0] == 200
        tree = psutil.Process(process.pid).children(recursive=True)
        process.stdin.close()
        process.wait(60)
    assert tree_ended(tree)


def ends(*options):
    """Run the service until it ends by itself; return what it said on stderr."""
    command = [sys.executable, "-m", f"{client.PROGRAMS}.serve", *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 1
    return done.stderr


def test_a_damaged_file_ends_the_service_and_the_notebook_says_why(kit, tmp_path):
    (tmp_path / "cut.onnx").write_bytes(kit.FILES["fp32"].read_bytes()[:5000])
    said = ends(tmp_path / "cut.onnx", "--port", 0)
    assert "cut.onnx is damaged or not one of ours" in said and "Traceback" not in said
    why = pytest.raises(RuntimeError, match=r"serve does not serve.* is damaged or not one of ours")
    with why, kit.running(tmp_path / "cut.onnx"):
        pass


def test_a_worker_that_cannot_start_ends_the_service(kit, tmp_path, monkeypatch):
    """It is not started again and again."""
    (tmp_path / "starlette.py").write_text("raise ImportError('a broken installation')")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(settings.ROOT)]))
    said = ends(kit.FILES["fp32"], "--port", 0)
    assert said.count("ImportError: a broken installation") == 1, said
    assert "ended before it could serve" in said


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
