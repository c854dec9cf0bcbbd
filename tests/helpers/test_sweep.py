"""helpers/sweep.py: no finished row is lost or measured twice, and whatever goes wrong becomes its row."""

import collections
import dataclasses
import errno
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import onnx
import onnxruntime as ort
import pandas as pd
import pytest
import torch
from torch import nn

from helpers import engines, machine, memory, settings, sweep, timing

COLUMNS = ("onnx_fix", "pytorch_cpu")
GPU_COLUMNS = [column for column in engines.COLUMNS if "gpu" in column]
SHAPES = tuple((batch, 3, 32, 32) for batch in (1, 2, 3, 4))
RUNS = 10

KILLED = "import sys; sys.path.insert(0, sys.argv[1]); import test_sweep; test_sweep.until_killed(*sys.argv[2:])"


class FakeTimer:
    """Stands in for timing.measure: runs every backend once, says how long it took, remembers what it was asked."""

    def __init__(self):
        self.ms, self.ratio, self.status, self.note = 1.0, 1.0, "ok", ""
        self.asked, self.references = [], []

    def __call__(self, opened, *, reference, runs, progress, **options):
        self.asked.append(list(opened))
        self.references.append(reference)
        for name, run_once in opened.items():
            timing._call(name, run_once)
        rounds = math.ceil(runs / timing.BLOCK)
        timings = {}
        for name in opened:
            timings[name] = timing.Timing(
                name,
                blocks_ms=[np.full(timing.BLOCK, self.ms) for _ in range(rounds)],
                foreign_cpu=[0.0] * rounds,
                warm_up_runs=3,
                ratio=self.ratio,
                ratio_low=self.ratio,
                ratio_high=self.ratio,
                status=self.status,
                note=self.note,
            )
        progress(timings)
        return timings


def network():
    """Return the same tiny network in every process."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)
    return nn.Sequential(*layers).eval()


def run(model, make_file, results, **options):
    defaults = {"shapes": SHAPES[:1], "columns": COLUMNS, "runs": RUNS, "threads": 1}
    return sweep.run("tiny", model, make_file, results=results, **defaults | options)


def stored(results):
    """Return the rows that are in the file, each of them strict JSON."""

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    lines = results.path.read_text("utf-8").splitlines() if results.path.exists() else []
    return [json.loads(line, parse_constant=refuse) for line in lines]


def again(results):
    """Return what another run would find in the file."""
    return sweep.Results(results.path.parent)


def statuses(table):
    return dict(zip(table["column"], table["status"], strict=True))


def notes(table):
    return dict(zip(table["column"], table["note"], strict=True))


def replace(monkeypatch, column, **parts):
    """Let the backend of one column do something else where it ``open``s, gives its ``logits`` or ``run``s."""
    open_column = engines.open_column

    def replaced(name, **options):
        if name == column and "open" in parts:
            return parts["open"]()
        backend = open_column(name, **options)
        return dataclasses.replace(backend, **parts) if name == column else backend

    monkeypatch.setattr(backends, "open_column", replaced)


@pytest.fixture(scope="module")
def model():
    return network()


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory, model):
    path = tmp_path_factory.mktemp("sweep") / "tiny.onnx"
    torch.onnx.export(
        model,
        (torch.zeros(2, 3, 32, 32),),
        path,
        dynamic_shapes=({0: "batch"},),
        external_data=False,
        verbose=False,
    )
    return path


@pytest.fixture
def make_file(onnx_file):
    return Mock(return_value=onnx_file)


@pytest.fixture
def results(tmp_path):
    return sweep.Results(tmp_path / "results")


@pytest.fixture
def timer(monkeypatch):
    fake = FakeTimer()
    monkeypatch.setattr(timing, "measure", fake)
    return fake


@pytest.fixture(autouse=True)
def same_for_every_test(monkeypatch):
    """Give much free memory, a plain script and a fresh fingerprint; afterwards PyTorch has its threads back."""
    monkeypatch.setattr(memory, "available_mib", lambda: 1e6)
    monkeypatch.setattr(sweep, "get_ipython", lambda: None)
    threads = torch.get_num_threads()
    machine.fingerprint.cache_clear()
    yield
    machine.fingerprint.cache_clear()
    torch.set_num_threads(threads)


# ---- rows

UNITS = ("_ms", "_mib", "_per_s", "gflop")
WITHOUT_UNIT = {"batch", "size", "ratio", "ratio_low", "ratio_high", "runs", "rounds", "warm_up_runs", "threads"}
WITHOUT_UNIT |= {"repeated_blocks", "foreign_cpu", "max_rel_error", "protocol"}


def test_every_row_tells_what_was_measured_where_and_how(model, make_file, results, timer):
    run(model, make_file, results)
    wanted = {"key", "fingerprint", "protocol", "measured_at", "network", "column", "batch", "size", "status"}
    wanted |= {"note", "p50_ms", "p10_ms", "p90_ms", "min_ms", "images_per_s", "ratio", "ratio_low", "ratio_high"}
    wanted |= {"runs", "rounds", "load_ms", "first_run_ms", "gflop", "max_rel_error", "estimated_mib", "provider"}
    wanted |= {"model_sha256", "threads", "thread_pools", "foreign_cpu", "block_ms", "disturbed_ms"}
    rows = stored(results)
    assert [row["column"] for row in rows] == list(COLUMNS)
    for row in rows:
        assert not wanted - set(row), f"{row['column']} does not tell these"
        assert row["fingerprint"] == machine.fingerprint()


def test_every_number_has_its_unit_in_its_name(model, make_file, results, timer):
    run(model, make_file, results)
    for row in stored(results):
        numbers = {name for name, value in row.items() if isinstance(value, int | float)}
        bare = {name for name in numbers if not name.endswith(UNITS)} - WITHOUT_UNIT
        assert not bare, f"in which unit are {bare}?"


def test_failed_rows_have_key_fingerprint_and_status_too(model, results, timer):
    run(model, Mock(side_effect=RuntimeError("it broke")), results)
    (failed,) = [row for row in stored(results) if row["status"] == "failed"]
    assert failed["key"].split("/")[1:4] == ["tiny", "onnx_fix", "1x3x32x32"]
    assert failed["fingerprint"] == machine.fingerprint()


def test_numbers_that_are_none_are_strict_json(model, make_file, results, timer):
    timer.ratio = math.nan
    table = run(model, make_file, results)
    assert [row["ratio"] for row in stored(results)] == [None, None], "strict JSON knows no NaN"
    assert table["ratio"].isna().all()


def test_row_holds_the_timers_numbers(model, make_file, results, timer):
    timer.ms, timer.ratio = 4.0, 1.25
    table = run(model, make_file, results, shapes=SHAPES[1:2])
    for row in table.to_dict("records"):
        assert [row[name] for name in ("p50_ms", "p10_ms", "p90_ms", "min_ms")] == [4, 4, 4, 4]
        assert row["images_per_s"] == 500, "a batch of 2 in 4 ms"
        assert (row["ratio"], row["runs"], row["rounds"]) == (1.25, 10, 2)
        assert (row["batch"], row["size"], row["status"]) == (2, 32, "ok")


def test_table_goes_shape_by_shape_and_in_the_order_of_the_columns(model, make_file, results, timer):
    table = run(model, make_file, results, shapes=SHAPES[1::-1], columns=COLUMNS[::-1])
    found = list(zip(table["batch"], table["column"], strict=True))
    assert found == [(batch, column) for batch in (2, 1) for column in COLUMNS[::-1]]
    assert set(sweep.NUMBERS) <= set(table.columns)


def test_reference_is_pytorch_and_measured_with_every_column(model, make_file, results, timer):
    run(model, make_file, results, columns=("onnx_fix",))
    assert timer.asked == [["pytorch_cpu", "onnx_fix"]] and timer.references == ["pytorch_cpu"]
    assert [row["column"] for row in stored(results)] == ["onnx_fix"], "only what was asked for gets a row"


def test_real_times_make_a_row(model, make_file, results):
    table = run(model, make_file, results, patience_s=0)
    assert set(table["status"]) <= set(sweep.FINISHED)
    assert (table[["p50_ms", "images_per_s", "ratio", "first_run_ms"]] > 0).all(axis=None)
    assert (table["runs"] >= RUNS).all()
    assert len(stored(results)) == 2


def test_stored_text_names_no_folder_of_the_reader(model, make_file, results, timer, tmp_path):
    run(model, make_file, results)
    text = results.path.read_text("utf-8")
    for folder in (tmp_path, make_file.return_value.parent, settings.ROOT):
        assert json.dumps(str(folder))[1:-1] not in text, f"{folder} is in the results file"


# ---- going on where the last run stopped


def test_finished_rows_are_not_measured_again(model, make_file, results, timer):
    first = run(model, make_file, results, shapes=SHAPES[:2])
    before = results.path.read_bytes()
    timer.asked.clear()
    make_file.reset_mock()
    second = run(model, make_file, again(results), shapes=SHAPES[:2])
    assert timer.asked == [], "finished rows were measured again"
    make_file.assert_not_called()
    assert results.path.read_bytes() == before
    columns = ["batch", "column", "status", "note", "measured_at", *sweep.NUMBERS]
    pd.testing.assert_frame_equal(first[columns], second[columns])


def test_only_new_shapes_and_columns_are_measured(model, make_file, results, timer):
    run(model, make_file, results, columns=("pytorch_cpu",))
    table = run(model, make_file, again(results), shapes=SHAPES[:2])
    assert [call.args for call in make_file.call_args_list] == [("onnx_fix", SHAPES[0]), ("onnx_fix", SHAPES[1])]
    assert table["status"].tolist() == ["ok"] * 4
    counts = collections.Counter(row["key"] for row in stored(results))
    assert len(counts) == 4 and set(counts.values()) == {1}, "a finished row was measured again"


def test_anew_measures_again_and_the_latest_row_counts(model, make_file, results, timer):
    run(model, make_file, results)
    timer.ms = 2.0
    assert run(model, make_file, again(results), anew=True)["p50_ms"].tolist() == [2, 2]
    timer.ms = 3.0
    assert run(model, make_file, again(results))["p50_ms"].tolist() == [2, 2], "not the latest rows of the file"
    assert len(stored(results)) == 4, "a row was taken out of the file or measured a third time"


@pytest.mark.parametrize(("runs", "times"), [(RUNS - 1, 1), (RUNS, 1), (RUNS + 1, 2), (10 * RUNS, 2)])
def test_more_runs_than_stored_are_measured_again(model, make_file, results, timer, runs, times):
    run(model, make_file, results)
    run(model, make_file, again(results), runs=runs)
    assert len(timer.asked) == times, f"{runs} runs asked for, {RUNS} stored"


def test_noisy_rows_are_finished(model, make_file, results, timer):
    timer.status, timer.note = "noisy", "its 95 % interval is wide"
    run(model, make_file, results)
    table = run(model, make_file, again(results))
    assert len(timer.asked) == 1
    assert set(table["status"]) == {"noisy"} and set(table["note"]) == {timer.note}


def test_failed_rows_are_tried_again(model, make_file, results, timer):
    run(model, Mock(side_effect=RuntimeError("it broke")), results)
    table = run(model, make_file, again(results))
    assert statuses(table) == {"onnx_fix": "ok", "pytorch_cpu": "ok"}


def test_rows_of_another_machine_are_measured_again(monkeypatch, model, make_file, results, timer):
    run(model, make_file, results)
    monkeypatch.setattr(machine, "identity", lambda: "0123456789")
    run(model, make_file, results)  # though they are in the same file
    assert len(timer.asked) == 2


def test_rows_of_another_protocol_are_measured_again(monkeypatch, model, make_file, results, timer):
    run(model, make_file, results)
    monkeypatch.setattr(sweep, "PROTOCOL", sweep.PROTOCOL + 1)
    run(model, make_file, again(results))
    assert len(timer.asked) == 2


def test_rows_of_another_network_are_measured_again(model, make_file, results, timer):
    run(model, make_file, results)
    sweep.run("other", model, make_file, shapes=SHAPES[:1], columns=COLUMNS, runs=RUNS, threads=1, results=results)
    assert len(timer.asked) == 2


# ---- kills and torn lines


class DeadlyTimer(FakeTimer):
    """Kills its own process, as the system would, when it is asked for the third shape."""

    def __call__(self, *args, **options):
        if len(self.asked) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(*args, **options)


def until_killed(folder, onnx_file, moment):
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
    run(network(), lambda column, shape: Path(onnx_file), sweep.Results(folder), shapes=SHAPES)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no kill -9")
@pytest.mark.parametrize(("moment", "finished"), [("timing", 4), ("writing", 5)])
def test_kill_in_mid_sweep_loses_no_row_and_measures_none_twice(
    tmp_path, model, make_file, onnx_file, timer, moment, finished
):
    folder = tmp_path / "results"
    done = subprocess.run(
        [sys.executable, "-B", "-c", KILLED, str(Path(__file__).parent), str(folder), str(onnx_file), moment],
        cwd=settings.ROOT,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
        timeout=300,
    )
    assert done.returncode == -signal.SIGKILL, f"the test needs a sweep that is killed: {done.stdout}{done.stderr}"
    results = sweep.Results(folder)
    before = list(results.rows)
    assert len(before) == finished, f"a finished row was lost: {done.stdout}{done.stderr}"

    table = run(model, make_file, results, shapes=SHAPES)
    assert table["status"].tolist() == ["ok"] * 8
    after = again(results).rows
    assert after[:finished] == before, "finished rows have changed"
    counts = collections.Counter(row["key"] for row in after)
    assert len(counts) == 8 and set(counts.values()) == {1}, f"rows were measured twice: {counts}"


ROWS = [sweep.seal({"key": key, "status": "ok", "rounds": 2}) for key in "ab"]


def test_torn_last_line_is_passed_over_and_left_alone(results):
    results.add(ROWS)
    whole = results.path.read_bytes()
    for cut in range(1, len(json.dumps(ROWS[1])) + 2):
        results.path.write_bytes(whole[: len(whole) - cut])
        left = ROWS if cut == 1 else ROWS[:1]  # a row that lacks only the line's end is whole
        assert sweep.read_rows(results.path) == left, f"{cut} bytes cut off"
        later = again(results)
        later.add([{"key": "c"}])
        assert later.trouble == ""
        wanted = [*left, sweep.seal({"key": "c"})]
        assert sweep.read_rows(results.path) == wanted, f"{cut} bytes cut off: glued to the torn line"


@pytest.mark.parametrize(
    "rubbish",
    [b"\x00" * 40, b"\xff\xfe", b"[1, 2]", b"7", b'{"no": "row"}', b""],
    ids=["zeros", "no text", "a list", "a number", "no key", "empty"],
)
def test_lines_that_are_no_rows_are_passed_over(results, rubbish):
    results.add(ROWS[:1])
    with results.path.open("ab") as file:
        file.write(rubbish + b"\n")
    again(results).add(ROWS[1:])
    assert sweep.read_rows(results.path) == ROWS


def test_no_file_has_no_rows(tmp_path):
    assert sweep.read_rows(tmp_path / "missing.jsonl") == []


# ---- a disk that takes nothing


def assert_all_is_there_but_the_file(table, results, reason, printed):
    assert table["status"].tolist() == ["ok"] * 4, "rows that cannot be written must still be shown"
    assert str(results.path) in results.trouble and reason in results.trouble, results.trouble
    assert results.trouble in printed.splitlines()[-1], "the trouble is not shown at the end"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_full_disk_is_told_and_costs_no_row(model, make_file, results, timer, capsys):
    results.path.parent.mkdir()
    results.path.symlink_to("/dev/full")  # only now: to a reader it gives zeros without end
    table = run(model, make_file, results, shapes=SHAPES[:2])
    assert_all_is_there_but_the_file(table, results, os.strerror(errno.ENOSPC), capsys.readouterr().out)


def test_disk_that_is_full_at_the_flush_is_told_too(monkeypatch, model, make_file, results, timer, capsys):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(os, "fsync", Mock(side_effect=full))
    table = run(model, make_file, results, shapes=SHAPES[:2])
    assert_all_is_there_but_the_file(table, results, os.strerror(errno.ENOSPC), capsys.readouterr().out)


def test_read_only_folder_is_told_and_costs_no_row(monkeypatch, model, make_file, results, timer, capsys):
    open_path = Path.open

    def refuse(self, *args, **options):  # not by chmod: root may write everywhere
        if self == results.path:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))
        return open_path(self, *args, **options)

    monkeypatch.setattr(Path, "open", refuse)
    table = run(model, make_file, results, shapes=SHAPES[:2])
    assert_all_is_there_but_the_file(table, results, os.strerror(errno.EACCES), capsys.readouterr().out)


def test_folder_that_cannot_be_made_is_told_and_costs_no_row(tmp_path, model, make_file, timer, capsys):
    (tmp_path / "file").write_text("in the way")
    results = sweep.Results(tmp_path / "file" / "results")
    table = run(model, make_file, results, shapes=SHAPES[:2])
    assert_all_is_there_but_the_file(table, results, "", capsys.readouterr().out)


def test_rows_that_could_not_be_written_are_still_known(monkeypatch, model, make_file, results, timer):
    monkeypatch.setattr(os, "fsync", Mock(side_effect=OSError(errno.ENOSPC, "full")))
    run(model, make_file, results)
    run(model, make_file, results)
    assert len(timer.asked) == 1


# ---- memory that runs out


def test_column_without_the_memory_is_oom_and_the_others_go_on(monkeypatch, model, make_file, results, timer):
    replace(monkeypatch, "onnx_fix", open=Mock(side_effect=MemoryError("Unable to allocate 3.00 TiB")))
    table = run(model, make_file, results)
    assert statuses(table) == {"onnx_fix": "oom", "pytorch_cpu": "ok"}
    assert "3.00 TiB" in notes(table)["onnx_fix"]
    assert table["p50_ms"].isna().tolist() == [True, False]
    (row,) = [row for row in stored(results) if row["column"] == "onnx_fix"]
    assert row["status"] == "oom" and "p50_ms" not in row


def test_export_without_the_memory_is_oom(model, results, timer):
    table = run(model, Mock(side_effect=MemoryError()), results)
    assert statuses(table) == {"onnx_fix": "oom", "pytorch_cpu": "ok"}
    assert notes(table)["onnx_fix"] == "MemoryError", "an error without text still has its name"


def test_more_than_is_free_is_not_tried(monkeypatch, model, make_file, results, timer):
    monkeypatch.setattr(memory, "available_mib", lambda: 1.0)
    table = run(model, make_file, results)
    assert statuses(table) == {"onnx_fix": "oom", "pytorch_cpu": "oom"}
    assert all("it was not run" in note for note in table["note"])
    make_file.assert_not_called()
    assert timer.asked == []


def test_columns_measured_together_must_fit_in_together(monkeypatch, model, make_file, results, timer):
    monkeypatch.setattr(memory, "estimate_mib", lambda model, shape, *, kind: 100.0)
    monkeypatch.setattr(memory, "available_mib", lambda: 100.0 * memory.MARGIN + 10)
    assert statuses(run(model, make_file, results)) == {"onnx_fix": "oom", "pytorch_cpu": "ok"}


def test_margin_above_the_estimate_must_be_free_too(monkeypatch, model, make_file, results, timer):
    monkeypatch.setattr(memory, "estimate_mib", lambda model, shape, *, kind: 100.0)
    monkeypatch.setattr(memory, "available_mib", lambda: 100.0 * memory.MARGIN - 1)
    assert statuses(run(model, make_file, results)) == {"onnx_fix": "oom", "pytorch_cpu": "oom"}


def test_peaks_are_measured_of_the_columns_asked_for(monkeypatch, model, make_file, onnx_file, results, timer):
    measured = Mock(return_value={"base_rss_mib": 100.0, "peak_rss_mib": 150.0})
    monkeypatch.setattr(memory, "measure_peak", measured)
    table = run(model, make_file, results, columns=("onnx_dyn", *COLUMNS), peaks_of=COLUMNS)
    peaks = dict(zip(table["column"], table["peak_rss_mib"], strict=True))
    assert peaks["onnx_fix"] == peaks["pytorch_cpu"] == 150 and math.isnan(peaks["onnx_dyn"])
    asked = [call.kwargs for call in measured.call_args_list]
    same = {"shape": SHAPES[0], "threads": 1}
    assert len(asked) == 2 and same | {"network": "tiny"} in asked and same | {"path": onnx_file} in asked


def test_estimates_are_set_beside_the_peaks_of_each_column(monkeypatch, model):
    monkeypatch.setattr(memory, "estimate_mib", lambda model, shape, *, kind: {"onnx": 100.0, "pytorch": 700.0}[kind])
    rows = {"column": ["onnx_fix", "onnx_fix", "pytorch_cpu"], "batch": 1, "size": 32}
    peaks = [50.0, 100.0 * memory.MARGIN + 1, 700.0]
    found = sweep.beside_peaks(pd.DataFrame({**rows, "peak_rss_mib": peaks}), model)
    assert found["peaks"].to_dict() == {"onnx_fix": 2, "pytorch_cpu": 1}
    assert found["above the margin"].to_dict() == {"onnx_fix": 1, "pytorch_cpu": 0}
    assert found.loc["onnx_fix", "highest"] == 2 and found.loc["pytorch_cpu", "estimate / peak, lowest"] == 1


def test_no_peaks_no_estimates(model):
    rows = {"column": ["onnx_fix"], "batch": 1, "size": 32, "peak_rss_mib": math.nan}
    assert sweep.beside_peaks(pd.DataFrame(rows), model).empty


def test_peak_that_runs_out_of_memory_is_oom(monkeypatch, model, make_file, results, timer):
    monkeypatch.setattr(memory, "measure_peak", Mock(side_effect=memory.OutOfMemoryError("killed by the system")))
    table = run(model, make_file, results, peaks_of=("onnx_fix",))
    assert statuses(table) == {"onnx_fix": "oom", "pytorch_cpu": "ok"}
    assert notes(table)["onnx_fix"] == "killed by the system"


# ---- backends that break


@pytest.mark.parametrize("where", ["open", "logits", "run"])
@pytest.mark.parametrize(
    ("error", "status", "note"),
    [
        (RuntimeError("it broke\nin many words"), "failed", "RuntimeError: it broke"),
        (RuntimeError("std::bad_alloc"), "oom", "std::bad_alloc"),
    ],
    ids=["failed", "oom"],
)
def test_backend_that_breaks_becomes_a_row_of_its_own(
    monkeypatch, model, make_file, results, timer, where, error, status, note
):
    replace(monkeypatch, "onnx_fix", **{where: Mock(side_effect=error)})
    table = run(model, make_file, results)
    assert statuses(table) == {"onnx_fix": status, "pytorch_cpu": "ok"}
    assert notes(table)["onnx_fix"] == note
    assert table["p50_ms"].isna().tolist() == [True, False]
    assert timer.asked[-1] == ["pytorch_cpu"], "the others must be measured without it"


@pytest.mark.parametrize("where", ["open", "logits", "run"])
def test_reference_that_breaks_leaves_the_others_their_times(monkeypatch, model, make_file, results, timer, where):
    replace(monkeypatch, "pytorch_cpu", **{where: Mock(side_effect=RuntimeError("it broke"))})
    table = run(model, make_file, results)
    assert statuses(table) == {"onnx_fix": "ok", "pytorch_cpu": "failed"}
    assert table["p50_ms"].isna().tolist() == [False, True]
    assert table["ratio"].isna().all(), "a ratio to PyTorch without PyTorch's time"


def test_all_backends_may_break(monkeypatch, model, results, timer):
    replace(monkeypatch, "pytorch_cpu", run=Mock(side_effect=RuntimeError("it broke")))
    table = run(model, Mock(side_effect=RuntimeError("no file")), results, shapes=SHAPES[:2])
    assert table["status"].tolist() == ["failed"] * 4


def test_broken_file_becomes_its_row(tmp_path, model, results, timer):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"this is no model")
    assert statuses(run(model, Mock(return_value=broken), results)) == {"onnx_fix": "failed", "pytorch_cpu": "ok"}


def test_interrupt_keeps_the_shapes_that_are_finished(model, make_file, results, timer):
    def interrupted(column, shape):
        if shape == SHAPES[1]:
            raise KeyboardInterrupt
        return make_file(column, shape)

    with pytest.raises(KeyboardInterrupt):
        run(model, interrupted, results, shapes=SHAPES)
    assert [row["batch"] for row in stored(results)] == [1, 1]


# ---- logits that are wrong


def damage(path, target):
    """Scale every weight of a copy."""
    damaged = onnx.load(path)
    for tensor in damaged.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            weight = onnx.numpy_helper.to_array(tensor) * np.float32(1.5)
            tensor.CopyFrom(onnx.numpy_helper.from_array(weight, tensor.name))
    onnx.save(damaged, target)
    return target


def test_damaged_file_disagrees_and_gets_no_time(tmp_path, model, onnx_file, results, timer):
    damaged = damage(onnx_file, tmp_path / "damaged.onnx")
    table = run(model, Mock(return_value=damaged), results)
    assert statuses(table) == {"onnx_fix": "disagrees", "pytorch_cpu": "ok"}
    assert table["p50_ms"].isna().tolist() == [True, False]
    assert table["max_rel_error"][0] > sweep.TOLERANCE
    assert timer.asked == [["pytorch_cpu"]]


@pytest.mark.parametrize("bad", [np.nan, np.inf], ids=str)
@pytest.mark.parametrize(("column", "other"), [COLUMNS, COLUMNS[::-1]])
def test_nan_and_infinity_disagree_even_in_the_reference(
    monkeypatch, model, make_file, results, timer, bad, column, other
):
    logits = np.zeros((1, 10), np.float32)
    logits[0, 3] = bad
    replace(monkeypatch, column, logits=lambda: logits)
    table = run(model, make_file, results)
    assert statuses(table) == {column: "disagrees", other: "ok"}
    assert "NaN or infinity" in notes(table)[column]
    assert len(stored(results)) == 2


def test_logits_of_another_shape_disagree(monkeypatch, model, make_file, results, timer):
    replace(monkeypatch, "onnx_fix", logits=lambda: np.zeros((1, 9), np.float32))
    table = run(model, make_file, results)
    assert statuses(table) == {"onnx_fix": "disagrees", "pytorch_cpu": "ok"}
    assert "(1, 9)" in notes(table)["onnx_fix"] and "(1, 10)" in notes(table)["onnx_fix"]


@pytest.mark.parametrize(("share", "status"), [(0.5, "ok"), (2.0, "disagrees")])
def test_tolerance_is_a_share_of_the_largest_logit(monkeypatch, model, make_file, results, timer, share, status):
    right = np.array([[100.0, -200.0, 0.0]])
    off = right + np.array([[0, 0, share * sweep.TOLERANCE * 200]])
    replace(monkeypatch, "pytorch_cpu", logits=lambda: right)
    replace(monkeypatch, "onnx_fix", logits=lambda: off)
    table = run(model, make_file, results)
    assert statuses(table) == {"onnx_fix": status, "pytorch_cpu": "ok"}
    assert table["max_rel_error"][0] == pytest.approx(share * sweep.TOLERANCE)


# ---- rows that are not measured


def test_gpu_columns_of_a_machine_without_one_are_unavailable(monkeypatch, model, make_file, results, timer):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    table = run(model, make_file, results, columns=tuple(engines.COLUMNS))
    found = statuses(table)
    assert {column for column in found if found[column] == "unavailable"} == set(GPU_COLUMNS)
    assert all("CUDA" in notes(table)[column] for column in GPU_COLUMNS), "the reason is missing"
    assert {found[column] for column in engines.COLUMNS if column not in GPU_COLUMNS} == {"ok"}
    assert not set(GPU_COLUMNS) & {row["column"] for row in stored(results)}, "rows without a measurement are kept"


def test_no_time_left_is_budget_and_not_kept(model, make_file, results, timer):
    run(model, make_file, results)
    table = run(model, make_file, again(results), shapes=SHAPES[:2], budget_s=0)
    assert table["status"].tolist() == ["ok", "ok", "budget", "budget"]
    assert table["note"].tolist()[2:] == ["it would take longer than the time left"] * 2
    assert len(timer.asked) == 1
    assert {row["batch"] for row in stored(results)} == {1}, "rows that were not measured are in the file"


@pytest.mark.parametrize(("budget_s", "status"), [(30, "budget"), (3600, "ok")])
def test_shape_that_would_not_fit_in_is_not_begun(model, make_file, results, timer, budget_s, status):
    timer.ms = 1000.0  # of batch 1; so batch 2 takes two columns, ten runs, two seconds: 40 s at least
    table = run(model, make_file, results, shapes=SHAPES[:2], budget_s=budget_s)
    assert table["status"].tolist() == ["ok", "ok", status, status]


def test_rows_cut_off_by_the_budget_are_measured_next_time(model, make_file, results, timer):
    timer.status, timer.note = "budget", "time was up after 1 of 2 rounds"
    table = run(model, make_file, results)
    assert set(table["status"]) == {"budget"} and set(table["note"]) == {timer.note}
    assert table["p50_ms"].isna().all() and stored(results) == []
    timer.status, timer.note = "ok", ""
    assert set(run(model, make_file, again(results))["status"]) == {"ok"}


# ---- refusals


def test_network_in_training_mode_is_refused(make_file, results):
    with pytest.raises(ValueError, match=r"training mode: call model\.eval\(\)"):
        run(network().train(), make_file, results)


def test_unknown_column_is_refused(model, make_file, results):
    with pytest.raises(ValueError, match=r"'onnx_fixed'; it must be one of onnx_fix, "):
        run(model, make_file, results, columns=("onnx_fixed",))


# ---- shapes, operations, files


def test_article_has_sixteen_shapes_cheapest_first():
    shapes = sweep.article_shapes()
    assert len(set(shapes)) == 16 and {shape[1] for shape in shapes} == {3}
    pixels = [math.prod(shape) for shape in shapes]
    assert pixels == sorted(pixels)
    assert (shapes[0], shapes[-1]) == ((1, 3, 32, 32), (16, 3, 1024, 1024))


def test_only_the_sizes_asked_for():
    wanted = [(1, 3, 32, 32), (1, 3, 64, 64), (16, 3, 32, 32), (16, 3, 64, 64)]
    assert sweep.article_shapes(sizes=(64, 32)) == wanted


@pytest.mark.parametrize("batch", [1, 16])
def test_operations_of_a_convolution_are_counted_as_by_hand(batch):
    """A multiply-add is two: 3 × 3 × 3 of them for each of 8 channels at 32 × 32 places."""
    convolution = nn.Conv2d(3, 8, 3, padding=1).eval()
    assert sweep.gflop(convolution, (batch, 3, 32, 32)) == pytest.approx(batch * 2 * 27 * 8 * 32 * 32 / 1e9)


def test_files_are_exported_only_where_a_shape_needs_it(tmp_path, onnx_file):
    exported = []

    def export(path, shape, *, dynamic):
        exported.append((path.name, shape, dynamic))
        shutil.copyfile(onnx_file, path)

    make_file = sweep.file_maker(export, tmp_path)
    for shape in SHAPES[:2]:
        found = [make_file(column, shape) for column in ("onnx_fix", "onnx_fix_sim", "onnx_dyn", "onnx_dyn_sim")]
        assert [path.name for path in found] == ["fix.onnx", "fix_sim.onnx", "dyn.onnx", "dyn_sim.onnx"]
        assert all(onnx.load(path).graph.node for path in found)
    wanted = [("fix.onnx", SHAPES[0], False), ("dyn.onnx", (2, 3, 224, 224), True), ("fix.onnx", SHAPES[1], False)]
    assert exported == wanted


def test_file_that_onnxsim_spoils_is_not_given(monkeypatch, tmp_path, onnx_file):
    monkeypatch.setattr(sweep.onnxsim, "simplify", lambda model: (model, False))
    make_file = sweep.file_maker(lambda path, shape, dynamic: shutil.copyfile(onnx_file, path), tmp_path)
    with pytest.raises(RuntimeError, match=r"fix\.onnx changed its meaning"):
        make_file("onnx_fix_sim", SHAPES[0])


# ---- where results are kept


@pytest.mark.parametrize("effort", ["standard", "full"])
def test_results_are_kept_with_the_course(monkeypatch, effort):
    monkeypatch.setenv("COURSE_EFFORT", effort)
    assert settings.results_folder() == settings.DATA / "results"


def test_quick_results_are_kept_outside_git(monkeypatch):
    monkeypatch.setenv("COURSE_EFFORT", "quick")
    assert settings.results_folder().is_relative_to(settings.EXPORTS)


@pytest.mark.parametrize("effort", ["quick", "full"])
def test_folder_of_the_readers_choice_wins(monkeypatch, tmp_path, model, make_file, timer, effort):
    monkeypatch.setenv("COURSE_EFFORT", effort)
    monkeypatch.setenv("COURSE_RESULTS", str(tmp_path / "mine"))
    run(model, make_file, None)
    (path,) = (tmp_path / "mine").iterdir()
    assert path == sweep.Results().path and len(sweep.read_rows(path)) == 2


@pytest.mark.parametrize(
    "cpu",
    ["AMD EPYC 9554 64-Core Processor", r"Intel(R) Core(TM)™ <i7>/7700: 4.2 \ ..| ?", "龙芯"],
    ids=["plain", "odd characters", "Chinese"],
)
def test_name_of_the_file_is_safe_on_every_system(monkeypatch, tmp_path, cpu):
    monkeypatch.setattr(machine, "cpu_name", lambda: cpu)
    path = sweep.Results(tmp_path).path
    assert re.fullmatch(r"[a-z0-9][a-z0-9-]*\.jsonl", path.name), path.name
    assert path.parent == tmp_path and path.stem.endswith(machine.identity())


# ---- what is shown meanwhile


def test_plain_script_prints_where_it_is(model, make_file, results, timer, capsys):
    run(model, make_file, results, shapes=SHAPES[:2])
    lines = capsys.readouterr().out.splitlines()
    for number, shape in enumerate(("1×3×32×32", "2×3×32×32"), start=1):
        assert any(line.startswith(f"tiny: shape {number} of 2, {shape}, ") for line in lines), lines
    assert any("round 2" in line and "×1.00 PyTorch CPU's speed" in line for line in lines), lines
    assert lines[-1].startswith("tiny: 2 shapes, 4 rows: 4 ok. Measured on 2"), lines[-1]
    assert results.path.name in lines[-1]


def test_last_line_counts_what_went_wrong(model, results, timer, capsys):
    run(model, Mock(side_effect=RuntimeError("it broke")), results)
    last = capsys.readouterr().out.splitlines()[-1]
    assert "1 ok" in last and "1 failed" in last


def test_notebook_shows_one_line_that_is_rewritten(monkeypatch, model, make_file, results, timer, capsys):
    shown = Mock()
    monkeypatch.setattr(sweep, "get_ipython", lambda: "a shell")
    monkeypatch.setattr(sweep, "display", shown)
    run(model, make_file, results, shapes=SHAPES[:2])
    shown.assert_called_once()
    last = shown.return_value.update.call_args.args[0]
    assert "2 shapes, 4 rows: 4 ok" in last.data
    assert capsys.readouterr().out == ""


# ---- points that a review found


def test_reference_whose_logits_are_all_zero_does_not_end_the_sweep(monkeypatch, model, make_file, results, timer):
    replace(monkeypatch, "pytorch_cpu", logits=lambda: np.zeros((1, 10), np.float32))
    assert statuses(run(model, make_file, results)) == {"onnx_fix": "disagrees", "pytorch_cpu": "ok"}
    assert {row["column"]: row["max_rel_error"] for row in stored(results)} == {"onnx_fix": None, "pytorch_cpu": 0.0}


def test_rows_of_another_number_of_threads_are_measured_again(model, make_file, results, timer):
    run(model, make_file, results, threads=1)
    run(model, make_file, results, threads=2)
    assert len(timer.asked) == 2, "a row of one thread answered for two"


def test_rows_without_a_peak_are_measured_again_where_one_is_asked_for(monkeypatch, model, make_file, results, timer):
    monkeypatch.setattr(memory, "measure_peak", lambda **which: {"base_rss_mib": 50.0, "peak_rss_mib": 80.0})
    run(model, make_file, results)
    table = run(model, make_file, results, peaks_of=COLUMNS)
    assert table["peak_rss_mib"].tolist() == [80.0, 80.0]
    run(model, make_file, results, peaks_of=COLUMNS)
    assert len(timer.asked) == 2, "the third run has its peaks already"


def test_notes_of_failures_name_no_folder(monkeypatch, tmp_path, model, results, timer):
    def missing(column, shape):
        raise FileNotFoundError(f"Load model from {tmp_path / 'far' / 'tiny.onnx'} failed")

    note = notes(run(model, missing, results))["onnx_fix"]
    assert "tiny.onnx" in note and str(tmp_path) not in note and "/far" not in note, note


def test_input_without_the_memory_is_oom(monkeypatch, model, make_file, results, timer):
    class Full:
        def standard_normal(self, *size, **options):
            raise MemoryError("Unable to allocate 96 TiB")

    monkeypatch.setattr(np.random, "default_rng", lambda seed: Full())
    assert set(statuses(run(model, make_file, results)).values()) == {"oom"}


def test_rows_that_could_not_be_written_are_written_with_the_next(monkeypatch, model, make_file, results, timer):
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
        run(model, make_file, results)
    assert "No space left" in results.trouble
    results.path.unlink(missing_ok=True)
    run(model, make_file, results, shapes=SHAPES[:2])
    assert results.trouble == "" and len(stored(results)) == 4, "two shapes of two columns"


def test_last_line_says_how_many_rows_are_from_earlier(model, make_file, results, timer, capsys):
    run(model, make_file, results)
    capsys.readouterr()
    run(model, make_file, again(results))
    assert "2 rows are from an earlier run" in capsys.readouterr().out
