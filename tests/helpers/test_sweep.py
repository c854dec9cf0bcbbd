"""helpers.speed.sweep: no finished row is lost or measured twice, and whatever goes wrong becomes its row."""

import dataclasses
import errno
import os
import signal
import subprocess
import sys
import warnings
from collections import Counter
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from helpers import engines, settings, timing
from helpers.speed import memory, results, sweep
from helpers.timing import Status

COLUMNS = ("onnx_fix", "pytorch_cpu")
SHAPES = tuple((batch, 3, 32, 32) for batch in (1, 2, 3, 4))
PEAK = {"base_rss_mib": 50.0, "peak_rss_mib": 90.0, "p50_ms": 77.0}
KILLED = "import sys; sys.path.insert(0, sys.argv[1]); import test_sweep; test_sweep.until_killed(sys.argv[2])"
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the old exporter: notebook 01


class FakeTimer:
    """Stands in for timing.measure: opens and runs every backend once, and remembers what it was asked."""

    def __init__(self):
        self.ms, self.status, self.asked = 1.0, Status.OK, []

    def __call__(self, openers, *, reference, trials, progress, **_):
        self.asked.append(list(openers))
        timings = {}
        for name, opener in openers.items():
            try:
                opener()()
            except Exception as error:
                raise timing.BackendError(name, error) from error
            trial = timing.Trial(1.0, 3 * self.ms, np.full(5, self.ms), page_faults=7.0, other_cores=0.2, idle=False)
            timings[name] = timing.Timing(name, [trial] * trials, 1.0, 0.0, self.status)
        progress(timings)
        return timings


def tiny(channels=3, classes=10, seed=0):
    """Return the same tiny network in every process."""
    torch.manual_seed(seed)
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes)
    return nn.Sequential(nn.Conv2d(channels, 8, 3, padding=1), nn.ReLU(), *head).eval()


def run(folder, model=None, *, name="tiny", **options):
    """Sweep with files and results in a folder; the old exporter is the quicker one."""
    model = model or tiny()

    def export(path, shape, *, dynamic):
        axes = {"input": {0: "batch", 2: "height", 3: "width"}} if dynamic else None
        torch.onnx.export(model, (torch.zeros(shape),), path, input_names=["input"], dynamo=False, dynamic_axes=axes)

    options = {"shapes": SHAPES[:1], "columns": COLUMNS, "threads": 1, "results": results.Results(folder)} | options
    make_file = options.pop("make_file", sweep.file_maker(export, folder))
    return sweep.measure_table(name, model, make_file, **options).set_index("column")


@pytest.fixture
def timer(monkeypatch):
    fake = FakeTimer()
    monkeypatch.setattr(timing, "measure", fake)
    monkeypatch.setattr(memory, "available_mib", lambda: 1e6)
    return fake


@pytest.fixture
def apart(monkeypatch):
    """Stand in for the process that measures memory."""
    monkeypatch.setattr(memory, "measure_peak", Mock(return_value=PEAK))
    return memory.measure_peak


def test_rows_say_what_was_measured(tmp_path, timer, apart):
    timer.ms, timer.status = 2.5, Status.CONTENDED
    row = run(tmp_path, peaks_of=["onnx_fix"]).loc["onnx_fix"]
    assert (row["p50_ms"], row["trials"], row["status"]) == (2.5, 5, "contended")
    assert (row["page_faults"], row["first_run_ms"], row["images_per_s"]) == (7, 7.5, 400)
    assert (row["other_cores"], row["not_idle_trials"], row["peak_rss_mib"], row["threads"]) == (0.2, 5, 90, 1)
    assert row["max_rel_error"] < 1e-5 and row["gflop"] > 0 and np.isnan(row["throttled"])


@pytest.mark.parametrize(
    "change",
    [{"threads": 2}, {"trials": 6}, {"anew": True}, {"name": "other"}, {"model": tiny(seed=1)}],
    ids=lambda change: next(iter(change)),
)
def test_finished_rows_are_used_again_and_what_differs_is_measured(tmp_path, timer, change):
    first, known = run(tmp_path), run(tmp_path)
    assert len(timer.asked) == 1 and known["p50_ms"].equals(first["p50_ms"]), "the next process measures again"
    run(tmp_path, **change)
    assert len(timer.asked) == 2, "other rows were passed off as these"


def test_new_columns_and_peaks_bring_the_reference_of_their_run(tmp_path, timer, apart):
    run(tmp_path, columns=("pytorch_cpu",))
    table = run(tmp_path)
    assert table.index.tolist() == list(COLUMNS) and table["run_id"].nunique() == 1
    assert run(tmp_path, peaks_of=["onnx_fix"])["peak_rss_mib"].count() == 1
    assert timer.asked == [["pytorch_cpu"], ["pytorch_cpu", "onnx_fix"], ["pytorch_cpu", "onnx_fix"]]


@pytest.mark.parametrize(("channels", "classes", "size"), [(1, 10, (32, 32)), (4, 5, (32, 32)), (3, 7, (32, 64))])
def test_a_readers_own_network(tmp_path, timer, channels, classes, size):
    columns = ("onnx_fix", "onnx_fix_sim", "onnx_dyn", "onnx_dyn_sim", "pytorch_cpu")
    table = run(tmp_path, tiny(channels, classes), shapes=[(2, channels, *size)], columns=columns)
    assert set(table["status"]) == {"ok"}, table["note"].to_string()
    assert set(table["height"]) == {size[0]} and set(table["width"]) == {size[1]}


class Scaled(nn.Module):
    """A network with a tensor that is no buffer: it does not follow to PyTorch's device without numbers."""

    def __init__(self):
        super().__init__()
        self.inner, self.scale = tiny(), torch.tensor(2.0).reshape(1, 1)

    def forward(self, x):
        return self.inner(x) * self.scale


def test_a_network_that_cannot_be_counted_is_timed_all_the_same(tmp_path, timer):
    with pytest.raises(RuntimeError):
        sweep.gflop(Scaled().eval(), SHAPES[0])
    table = run(tmp_path, Scaled().eval())
    assert set(table["status"]) == {"ok"} and table["gflop"].isna().all() and (table["p50_ms"] == timer.ms).all()


def test_one_file_is_measured_as_two_where_the_noise_floor_is_asked_for(tmp_path, timer):
    table = run(tmp_path, shapes=SHAPES[:2], aa_at=SHAPES[1:2])
    assert table.loc[[engines.AA], "batch"].tolist() == [2]
    assert results.noise_floor(table.reset_index()) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("known", [False, True], ids=["beside the CPU's columns", "alone"])
def test_gpu_columns_have_trials_of_their_own_and_are_compared_with_the_cpu(tmp_path, timer, monkeypatch, known):
    opened, wrong = engines.open_column, []

    def on_a_fake_gpu(key, **options):
        backend = opened({"ort_gpu": "onnx_fix"}.get(key, key), **options)
        return dataclasses.replace(backend, logits=lambda: np.zeros((1, 10))) if wrong and key == "ort_gpu" else backend

    monkeypatch.setattr(engines, "missing", lambda _: "")
    monkeypatch.setattr(engines, "open_column", on_a_fake_gpu)
    if known:
        run(tmp_path)
    assert set(run(tmp_path, columns=(*COLUMNS, "ort_gpu"))["status"]) == {"ok"}
    assert timer.asked == [["pytorch_cpu", "onnx_fix"], ["ort_gpu"]]
    wrong.append(True)
    table = run(tmp_path, columns=("ort_gpu",), anew=True)
    assert table["status"].tolist() == ["disagrees"], "a GPU's wrong logits had nothing right beside them"


def test_wrong_outputs_get_no_time(tmp_path, timer, monkeypatch):
    opened = engines.pytorch
    monkeypatch.setattr(engines, "pytorch", lambda _, *args, **options: opened(tiny(seed=1), *args, **options))
    row = run(tmp_path).loc["onnx_fix"]
    assert row["status"] == Status.DISAGREES and np.isnan(row["p50_ms"]) and "off by" in row["note"]


def test_an_exporters_cause_is_told_without_its_colours_and_warnings(tmp_path, timer):
    def make_file(kind, shape):
        warnings.warn("this will change", FutureWarning, stacklevel=1)
        try:
            raise KeyError("aten::grid_sampler")
        except KeyError as cause:
            raise RuntimeError("\x1b[96m step 3: look at the docs\n/home/me/secret/model.onnx") from cause

    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="this will change")
        row = run(tmp_path, make_file=make_file).loc["onnx_fix"]
    assert (row["status"], row["note"]) == (Status.FAILED, "KeyError: 'aten::grid_sampler'")


@pytest.mark.parametrize(
    ("home", "root", "folder"),
    [
        ("/home/Li Lei", "/home/Li Lei/onnx course", "/home/Li Lei/onnx course/data/"),
        (r"C:\Users\Li Lei", r"D:\my courses\onnx", "C:\\Users\\Li Lei\\AppData\\"),
    ],
)
def test_a_note_holds_no_folder_as_results_are_shared(monkeypatch, home, root, folder):
    """A folder's name may hold spaces, and the name of a person."""
    monkeypatch.setattr(sweep.settings, "ROOT", root)
    monkeypatch.setattr(sweep.Path, "home", lambda: home)
    for mark in ("", "'"):
        said = f"Load model from {mark}{folder}a.onnx{mark} failed: no such file"
        assert sweep.first_cause(RuntimeError(said)) == f"RuntimeError: {said.replace(folder, '')}"


@pytest.mark.parametrize(
    ("column", "when", "error", "status"),
    [
        ("onnx_fix", "run", ValueError("no"), "failed"),
        ("pytorch_cpu", "open", RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "oom"),
        ("onnx_fix", "open", engines.UnavailableError("no provider"), "unavailable"),
    ],
)
def test_a_backend_that_fails_leaves_the_others(tmp_path, timer, monkeypatch, column, when, error, status):
    opened = engines.open_column

    def broken(key, **options):
        if key != column:
            return opened(key, **options)
        fails = Mock(side_effect=error)
        return fails() if when == "open" else dataclasses.replace(opened(key, **options), run=fails)

    monkeypatch.setattr(engines, "open_column", broken)
    table = run(tmp_path)
    other = table.drop(index=column).iloc[0]
    assert table.loc[column, "status"] == status and other["status"] == "ok" and other["p50_ms"] == timer.ms
    assert column != engines.REFERENCE or np.isnan(other["ratio"]), "there is nothing to compare with"


@pytest.mark.parametrize(("fits", "status"), [(True, "ok"), (False, "oom")])
def test_where_memory_may_not_suffice_a_column_is_tried_in_a_process_of_its_own(
    tmp_path, timer, apart, monkeypatch, fits, status
):
    apart.side_effect = None if fits else memory.OutOfMemoryError("killed by the system")
    monkeypatch.setattr(memory, "available_mib", lambda: 0.5)
    assert set(run(tmp_path)["status"]) == {status} and apart.call_count == 2 and len(timer.asked) == fits
    assert {name for call in apart.call_args_list for name in call.kwargs} > {"model", "path"}


def test_only_torchvisions_own_names_are_made_anew_for_a_peak(tmp_path, timer, apart):
    model = torchvision.models.mobilenet_v3_small(weights=None).eval()
    for name, handed in (("mobilenet_v3_small", {"network": "mobilenet_v3_small"}), ("mine", {"model": model})):
        run(tmp_path, model, name=name, columns=("pytorch_cpu",), peaks_of=("pytorch_cpu",))
        assert handed.items() <= apart.call_args.kwargs.items()


def test_no_time_and_no_device_are_rows(tmp_path, timer, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    run(tmp_path)
    table = run(tmp_path, shapes=SHAPES[:2], columns=(*COLUMNS, "pytorch_gpu"), budget_s=0.0)
    assert table["status"].tolist() == ["ok", "ok", "unavailable", "budget", "budget", "unavailable"]
    assert "no CUDA" in table.loc["pytorch_gpu", "note"].iloc[0] and len(timer.asked) == 1


def test_a_full_disk_loses_no_row_of_this_run(tmp_path, timer, monkeypatch):
    store = results.Results(tmp_path)
    refuse = Mock(side_effect=OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", refuse)
        assert set(run(tmp_path, results=store)["status"]) == {"ok"}
    assert "could not be written" in store.trouble and os.strerror(errno.ENOSPC) in store.trouble
    run(tmp_path, results=store)
    assert len(timer.asked) == 1


def until_killed(folder):
    """Sweep in a process of its own that dies, as if by the system, as it writes the third shape's rows."""
    memory.available_mib, timing.measure = lambda: 1e6, FakeTimer()
    fsync, written = os.fsync, []

    def fsync_or_die(number):
        written.append(number)
        if len(written) == 3:
            os.ftruncate(number, os.fstat(number).st_size - 10)  # what a kill in mid-write leaves
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(number)

    os.fsync = fsync_or_die
    run(folder, shapes=SHAPES)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_kill_in_mid_sweep_loses_no_row_and_measures_none_twice(tmp_path, timer):
    command = [sys.executable, "-B", "-W", "ignore", "-c", KILLED, str(Path(__file__).parent), str(tmp_path)]
    done = subprocess.run(command, cwd=settings.ROOT, capture_output=True, text=True, check=False, timeout=1200)
    assert done.returncode == -signal.SIGKILL, f"the test needs a sweep that is killed: {done.stdout}{done.stderr}"
    before = results.Results(tmp_path).rows
    assert len(before) == 5, f"a finished row was lost: {done.stdout}{done.stderr}"
    assert run(tmp_path, shapes=SHAPES)["status"].tolist() == ["ok"] * 8
    after = results.Results(tmp_path).rows
    assert after[:5] == before
    assert Counter(row.batch for row in after if row.column != engines.REFERENCE) == dict.fromkeys((1, 2, 3, 4), 1)
