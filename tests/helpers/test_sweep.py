"""helpers.sweep: no finished row is lost or measured twice, and whatever goes wrong becomes its row."""

import collections
import dataclasses
import errno
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import nn

from helpers import engines, settings, timing
from helpers.speed import memory, results, sweep
from helpers.timing import Status

COLUMNS = ("onnx_fix", "pytorch_cpu")
SHAPES = tuple((batch, 3, 32, 32) for batch in (1, 2, 3, 4))
KILLED = "import sys; sys.path.insert(0, sys.argv[1]); import test_sweep; test_sweep.until_killed(*sys.argv[2:])"


class FakeTimer:
    """Stands in for timing.measure: opens and runs every backend once, and remembers what it was asked."""

    def __init__(self):
        self.ms, self.status, self.note, self.asked = 1.0, "ok", "", []

    def __call__(self, openers, *, reference, sessions, progress, **options):
        self.asked.append(list(openers))
        timings = {}
        for name, opener in openers.items():
            try:
                opener()()
            except Exception as error:
                raise timing.BackendError(name, error) from error
            session = timing.Session(1.0, 3 * self.ms, np.full(5, self.ms), 7.0, 0.1, 0.0, None)
            found = [session] * sessions
            timings[name] = timing.Timing(name, found, ratio=1.0, half_width=0.0, status=self.status, note=self.note)
        progress(timings)
        return timings


def network(channels=3, classes=10, seed=0):
    """Return the same tiny network in every process."""
    torch.manual_seed(seed)
    layers = (
        nn.Conv2d(channels, 8, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, classes),
    )
    return nn.Sequential(*layers).eval()


def export_into(folder, model):
    """Return a make_file for the network; the old exporter is the quicker one."""

    def export(path, shape, *, dynamic):
        axes = {"input": {0: "batch", 2: "height", 3: "width"}} if dynamic else None
        options = {"input_names": ["input"], "dynamo": False, "dynamic_axes": axes}
        torch.onnx.export(model, (torch.zeros(shape),), path, **options)

    return sweep.file_maker(export, folder)


@pytest.fixture
def model():
    return network()


@pytest.fixture
def make_file(tmp_path, model):
    return export_into(tmp_path, model)


@pytest.fixture
def timer(monkeypatch):
    fake = FakeTimer()
    monkeypatch.setattr(timing, "measure", fake)
    monkeypatch.setattr(memory, "available_mib", lambda: 1e6)
    return fake


@pytest.fixture
def store(tmp_path):
    return results.Results(tmp_path / "results")


@pytest.fixture(autouse=True)
def _quiet_exporter(recwarn):
    """The old exporter's deprecation is notebook 01's matter."""


def run(model, make_file, store, **options):
    defaults = {"shapes": SHAPES[:1], "columns": COLUMNS, "sessions": 5, "threads": 1}
    return sweep.run(options.pop("name", "tiny"), model, make_file, results=store, **defaults | options)


def test_rows_say_what_was_measured(model, make_file, store, timer):
    timer.ms = 2.5
    row = run(model, make_file, store).set_index("column").loc["onnx_fix"]
    assert (row["p50_ms"], row["sessions"], row["runs"], row["status"]) == (2.5, 5, 25, Status.OK)
    assert (row["page_faults"], row["first_run_ms"], row["images_per_s"]) == (7, 7.5, 400)
    assert row["max_rel_error"] < 1e-5 and row["gflop"] > 0 and row["threads"] == 1


def test_finished_rows_are_used_again_also_by_the_next_process(model, make_file, store, timer):
    first = run(model, make_file, store)
    second = run(model, make_file, results.Results(store.path.parent))
    assert len(timer.asked) == 1 and second["p50_ms"].equals(first["p50_ms"])


@pytest.mark.parametrize(
    "change",
    [{"threads": 2}, {"sessions": 6}, {"anew": True}, {"name": "other"}, {"model": network(seed=1)}],
    ids=lambda change: next(iter(change)),
)
def test_what_differs_is_measured_again(model, make_file, store, timer, change, tmp_path):
    run(model, make_file, store)
    other = change.pop("model", model)
    run(other, export_into(tmp_path, other), store, **change)
    assert len(timer.asked) == 2, "another network's rows were passed off as this one's"


def test_a_busy_row_is_kept_and_marked(model, make_file, store, timer):
    timer.status, timer.note = "disturbed", "other programs took up to 1.0 cores, in 5 of 5 sessions"
    table = run(model, make_file, store)
    assert set(table["status"]) == {"disturbed"} and table["p50_ms"].notna().all()


@pytest.mark.parametrize(("channels", "classes", "size"), [(1, 10, (32, 32)), (4, 5, (32, 32)), (3, 7, (32, 64))])
def test_a_readers_own_network(tmp_path, store, timer, channels, classes, size):
    own = network(channels, classes)
    columns = ("onnx_fix", "onnx_fix_sim", "onnx_dyn", "onnx_dyn_sim", "pytorch_cpu")
    table = run(own, export_into(tmp_path, own), store, shapes=[(2, channels, *size)], columns=columns)
    assert set(table["status"]) == {"ok"}, table[["column", "note"]].to_string()
    assert set(table["height"]) == {size[0]} and set(table["width"]) == {size[1]}


def test_one_file_is_measured_as_two_where_the_floor_is_asked_for(model, make_file, store, timer):
    table = run(model, make_file, store, shapes=SHAPES[:2], floor_at=SHAPES[1:2])
    assert table.loc[table["column"] == engines.AGAIN, "batch"].tolist() == [2]
    assert results.floor(table) == pytest.approx(0, abs=1e-9)


def test_peaks_are_kept_beside_the_times(model, make_file, store, timer):
    row = run(model, make_file, store, peaks_of=("onnx_fix",)).set_index("column").loc["onnx_fix"]
    assert row["peak_rss_mib"] > row["base_rss_mib"] > 0 and row["p50_ms"] == timer.ms


def test_wrong_outputs_get_no_time(model, make_file, store, timer, monkeypatch):
    other = network(seed=1)
    monkeypatch.setattr(engines, "pytorch", lambda *a, f=engines.pytorch, **k: f(other, *a[1:], **k))
    table = run(model, make_file, store).set_index("column")
    assert table.loc["onnx_fix", "status"] == Status.DISAGREES and np.isnan(table.loc["onnx_fix", "p50_ms"])
    assert "off by" in table.loc["onnx_fix", "note"]


def test_an_exporters_cause_is_told_without_its_colours(model, store, timer):
    def make_file(kind, shape):
        try:
            raise KeyError("aten::grid_sampler")
        except KeyError as cause:
            raise RuntimeError("\x1b[96m step 3: look at the docs\n/home/me/secret/model.onnx") from cause

    row = run(model, make_file, store).set_index("column").loc["onnx_fix"]
    assert row["status"] == Status.FAILED and row["note"] == "KeyError: 'aten::grid_sampler'"


@pytest.mark.parametrize("home", ["/home/Li Lei", r"C:\Users\Li Lei"])
@pytest.mark.parametrize("apart", [False, True])
def test_a_note_holds_no_folder_as_results_are_shared(monkeypatch, home, apart):
    """A folder's name may hold spaces, and the name of a person."""
    sign = "/" if home.startswith("/") else "\\"
    course = f"D:{sign}my courses{sign}onnx" if apart else f"{home}{sign}onnx course"
    monkeypatch.setattr(sweep.settings, "ROOT", course)
    monkeypatch.setattr(sweep.Path, "home", lambda: home)
    for folder in (course, home):
        error = RuntimeError(f"Load model from {sign.join([folder, 'data', 'a.onnx'])} failed: no such file")
        assert sweep.first_cause(error) == "RuntimeError: Load model from a.onnx failed: no such file"


def test_a_backend_that_fails_in_a_session_leaves_the_others(model, make_file, store, timer, monkeypatch):
    opened = engines.onnxruntime

    def later_broken(*args, **options):
        backend = opened(*args, **options)
        return engines.Backend(lambda: 1 / 0, backend.logits, "CPUExecutionProvider", 1)

    monkeypatch.setattr(engines, "onnxruntime", later_broken)
    table = run(model, make_file, store).set_index("column")
    assert table.loc["onnx_fix", "status"] == Status.FAILED and table.loc["pytorch_cpu", "status"] == Status.OK


def test_out_of_memory_in_a_run_is_oom(model, make_file, store, timer, monkeypatch):
    def fails(*args, **options):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")

    monkeypatch.setattr(engines, "pytorch", fails)
    table = run(model, make_file, store).set_index("column")
    assert table.loc["pytorch_cpu", "status"] == Status.OOM and table.loc["onnx_fix", "status"] == Status.OK
    assert np.isnan(table.loc["onnx_fix", "ratio"]), "there is nothing to compare with"


@pytest.mark.parametrize(
    ("available", "fits", "status", "tried"),
    [(1.01, True, "ok", 0), (0.99, True, "ok", 2), (0.99, False, "oom", 2)],
    ids=["much is free", "little is free, and it fits", "it does not fit"],
)
def test_where_memory_may_not_suffice_a_column_is_tried_in_a_process_of_its_own(
    model, make_file, store, timer, monkeypatch, available, fits, status, tried
):
    """``available``: as a multiple of what is enough not to try."""
    enough = sweep.enough_mib(model, SHAPES[0])
    found = {"base_rss_mib": 50.0, "peak_rss_mib": 90.0, "p50_ms": 77.0, "page_faults": 1.0, "system_ms": 1.0}
    apart = Mock(return_value=found) if fits else Mock(side_effect=memory.OutOfMemoryError("killed by the system"))
    monkeypatch.setattr(memory, "measure_peak", apart)
    monkeypatch.setattr(memory, "available_mib", lambda: available * enough)
    table = run(model, make_file, store)
    assert set(table["status"]) == {status} and apart.call_count == tried
    assert table["p50_ms"].isna().all() if status == "oom" else (table["p50_ms"] == timer.ms).all()
    assert status != "oom" or not timer.asked


def test_weights_and_input_both_need_room():
    light, heavy = (torch.nn.Linear(8, 8 * 2**k) for k in (0, 10))
    assert sweep.enough_mib(heavy, SHAPES[0]) > sweep.enough_mib(light, SHAPES[0]) > 0
    assert sweep.enough_mib(light, SHAPES[1]) > sweep.enough_mib(light, SHAPES[0])


def test_peaks_come_from_a_process_that_is_handed_the_readers_own_network(model, make_file, store, timer, monkeypatch):
    apart = Mock(return_value={"base_rss_mib": 50.0, "peak_rss_mib": 90.0, "p50_ms": 77.0})
    monkeypatch.setattr(memory, "measure_peak", apart)
    run(model, make_file, store)
    table = run(model, make_file, store, peaks_of=COLUMNS)
    assert table["peak_rss_mib"].tolist() == [90, 90] and (table["p50_ms"] == timer.ms).all()
    assert {name for call in apart.call_args_list for name in call.kwargs} == {
        "shape",
        "threads",
        "runs",
        "model",
        "path",
    }


@pytest.mark.parametrize("known", [False, True], ids=["beside the CPU's columns", "alone"])
def test_gpu_columns_have_sessions_of_their_own_and_are_compared_with_the_cpu(
    model, make_file, store, timer, monkeypatch, known
):
    opened, wrong = engines.open_column, []

    def on_a_fake_gpu(key, **options):
        backend = opened({"ort_gpu": "onnx_fix"}.get(key, key), **options)
        return dataclasses.replace(backend, logits=lambda: np.zeros((1, 10))) if wrong and key == "ort_gpu" else backend

    monkeypatch.setattr(engines, "missing", lambda key: "")
    monkeypatch.setattr(engines, "open_column", on_a_fake_gpu)
    if known:
        run(model, make_file, store)
        timer.asked.clear()
    assert set(run(model, make_file, store, columns=(*COLUMNS, "ort_gpu"))["status"]) == {"ok"}
    assert timer.asked == ([] if known else [["pytorch_cpu", "onnx_fix"]]) + [["ort_gpu"]]
    wrong.append(True)
    table = run(model, make_file, store, columns=("ort_gpu",), anew=True)
    assert table["status"].tolist() == ["disagrees"], "a GPU's wrong logits had nothing right beside them"


def test_new_columns_bring_the_reference_of_their_sitting(model, make_file, store, timer):
    run(model, make_file, store, columns=("pytorch_cpu",))
    table = run(model, make_file, store)
    assert timer.asked == [["pytorch_cpu"], ["pytorch_cpu", "onnx_fix"]]
    assert table["column"].tolist() == list(COLUMNS) and table["sitting"].nunique() == 1


def test_warnings_of_exporters_stay_off_stderr(model, make_file, store, timer):
    def warns(kind, shape):
        warnings.warn("this will change", FutureWarning, stacklevel=1)
        return make_file(kind, shape)

    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="this will change")
        assert set(run(model, warns, store)["status"]) == {"ok"}


def test_a_budget_of_nothing_is_a_row(model, make_file, store, timer):
    run(model, make_file, store)
    table = run(model, make_file, store, shapes=SHAPES[:2], budget_s=0.0)
    assert table["status"].tolist() == ["ok", "ok", "budget", "budget"]


def test_missing_devices_are_rows(model, make_file, store, timer, monkeypatch):
    monkeypatch.setattr(engines.torch.cuda, "is_available", lambda: False)
    table = run(model, make_file, store, columns=(*COLUMNS, "pytorch_gpu")).set_index("column")
    assert table.loc["pytorch_gpu", "status"] == Status.UNAVAILABLE and "no CUDA" in table.loc["pytorch_gpu", "note"]


def test_bad_arguments(model, make_file, store):
    with pytest.raises(ValueError, match="training mode"):
        run(model.train(), make_file, store)
    with pytest.raises(ValueError, match="'onnx'"):
        run(model.eval(), make_file, store, columns=("onnx",))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_full_or_read_only_disk_loses_no_row(model, make_file, store, timer, monkeypatch, number):
    def refuse(self, *args, **options):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", refuse)
        table = run(model, make_file, store)
        assert set(table["status"]) == {"ok"} and "could not be written" in store.trouble
    run(model, make_file, store, shapes=SHAPES[:2])
    assert store.trouble == "" and len(results.read(store.path)) == 4, "the rows kept back were not written later"


class DeadlyTimer(FakeTimer):
    """Kills its own process, as the system would, when it is asked for the third shape."""

    def __call__(self, *args, **options):
        if len(self.asked) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(*args, **options)


def until_killed(folder, moment):
    """Sweep in a process of its own and kill it in mid-sweep; the test below starts it."""
    memory.available_mib = lambda: 1e6
    timing.measure = DeadlyTimer() if moment == "timing" else FakeTimer()
    fsync, written = os.fsync, []

    def fsync_or_die(number):
        written.append(number)
        if moment == "writing" and len(written) == 3:
            os.ftruncate(number, os.fstat(number).st_size - 10)  # what a kill in mid-write leaves
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(number)

    os.fsync = fsync_or_die
    own = network()
    run(own, export_into(folder, own), results.Results(folder), shapes=SHAPES)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no kill -9")
@pytest.mark.parametrize(("moment", "finished"), [("timing", 4), ("writing", 5)])
def test_kill_in_mid_sweep_loses_no_row_and_measures_none_twice(tmp_path, model, make_file, timer, moment, finished):
    here = str(Path(__file__).parent)
    command = [sys.executable, "-B", "-W", "ignore", "-c", KILLED, here, str(tmp_path), moment]
    done = subprocess.run(command, cwd=settings.ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == -signal.SIGKILL, f"the test needs a sweep that is killed: {done.stdout}{done.stderr}"
    store = results.Results(tmp_path)
    before = list(store.rows)
    assert len(before) == finished, f"a finished row was lost: {done.stdout}{done.stderr}"
    assert run(model, make_file, store, shapes=SHAPES)["status"].tolist() == ["ok"] * 8
    after = results.Results(tmp_path).rows
    counts = collections.Counter(row["key"] for row in after if row["column"] != engines.REFERENCE)
    assert after[:finished] == before and len(counts) == 4 and set(counts.values()) == {1}
