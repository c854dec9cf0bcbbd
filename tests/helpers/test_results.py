"""helpers.results: both protocols are read, what contradicts itself is refused, numbers come from raw blocks."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from speed_tables import make_table

from helpers import settings
from helpers.engines import AGAIN
from helpers.speed import results

RESULTS = settings.DATA / "results"
FACTS = {"cpu": "A", "usable_cores": 2, "gpu": None}


def row(column="onnx_fix", *, blocks=((1.0, 1.1, 0.9),) * 5, **changes):
    """Return a sealed row of protocol 2."""
    values = {
        "key": f"0123456789/tiny/abc/{column}/1x3x32x32/2-threads/protocol-2",
        "measured_at": "2026-11-27T00:00:00+00:00",
        "network": "tiny",
        "model_sha256": "abc",
        "column": column,
        "batch": 1,
        "height": 32,
        "width": 32,
        "threads": 2,
        "status": "ok",
        "note": "",
        "protocol": 2,
        "sitting": "s",
        "block_ms": [list(block) for block in blocks],
        "p50_ms": float(np.median(np.concatenate([np.asarray(block) for block in blocks]))),
        "fingerprint": FACTS,
    }
    return results.seal(values | changes)


def write(path, rows):
    path.write_text("".join(json.dumps(entry) + "\n" for entry in rows), encoding="utf-8")
    return path


def test_a_file_comes_back_as_it_was_written(tmp_path):
    rows = [row(), row("pytorch_cpu", blocks=((2.0, 2.2, 1.8),) * 5)]
    assert results.read(write(tmp_path / "a.jsonl", rows)) == rows
    table = results.to_table(rows).set_index("column")
    assert table.loc["onnx_fix", "ratio"] == pytest.approx(2) and table.loc["onnx_fix", "half_width"] < 1e-6


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda entry: entry | {"p50_ms": 0.5}, "line 2 was changed after it was measured"),
        (lambda entry: results.seal(entry | {"p50_ms": 0.5}), "its own runs give 1 ms"),
        (lambda entry: results.seal(entry | {"block_ms": None}), "holds no runs"),
        (lambda entry: results.seal(entry | {"block_ms": [["1 ms"]]}), "holds no runs"),
        (lambda entry: results.seal(entry | {"block_ms": [[-1.0]], "p50_ms": -1.0}), "its own runs give -1 ms"),
        (lambda entry: results.seal(entry | {"status": "great"}), "has the status 'great'"),
        (lambda entry: results.seal(entry | {"protocol": 9}), "has protocol 9; this course reads 1 and 2"),
        (lambda entry: results.seal(entry | {"column": "mine"}), "'mine', a column that this course does not know"),
        (lambda entry: results.seal(entry | {"key": entry["key"].replace("01", "99")}), "of another machine"),
        (lambda entry: {"p50_ms": 1}, "fields are missing"),
    ],
)
def test_a_row_that_cannot_be_trusted_is_named(tmp_path, spoil, message):
    with pytest.raises(results.ResultsError, match=message):
        results.read(write(tmp_path / "a.jsonl", [row(), spoil(row("pytorch_cpu"))]))


@pytest.mark.parametrize(("text", "message"), [("", "is empty"), ('{"key": 1', "line 1 is torn"), ("[NaN]\n", "torn")])
def test_files_that_are_no_results(tmp_path, text, message):
    (tmp_path / "a.jsonl").write_text(text)
    with pytest.raises(results.ResultsError, match=message):
        results.read(tmp_path / "a.jsonl")


def test_a_shared_ratio_is_computed_from_its_blocks_whatever_the_row_says():
    rows = [row(ratio=99.0, half_width=0.0), row("pytorch_cpu")]
    assert results.to_table(rows).set_index("column").loc["onnx_fix", "ratio"] == pytest.approx(1)


@pytest.mark.parametrize("sessions", [2, 3, results.ENOUGH_SESSIONS - 1])
def test_too_few_sessions_give_no_interval(sessions):
    few = [[1.0 + number / 100] for number in range(sessions)]
    found = results.to_table([row(blocks=few), row("pytorch_cpu", blocks=((2.0,),) * 5)]).iloc[0]
    assert found["ratio"] > 1.8 and math.isnan(found["half_width"])


def test_rows_of_one_thread_are_not_compared_with_rows_of_two():
    slow = row("pytorch_cpu", threads=1, blocks=((8.0,),) * 5)
    table = results.to_table([row(), row("pytorch_cpu"), slow])
    assert table.loc[table["column"] == "onnx_fix", "ratio"].item() == pytest.approx(1)


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.jsonl")), ids=lambda path: path.stem)
def test_every_file_of_the_course_is_whole(path):
    table = results.to_table(results.read(path))
    finished = table[table["status"].isin(results.FINISHED)]
    assert len(finished) and finished["p50_ms"].gt(0).all() and "noisy" not in set(table["status"])


def test_protocol_1_has_ratios_and_no_intervals():
    table, left_out = results.collect()
    assert not left_out
    old = table[table["protocol"] == 1]
    assert (
        len(old)
        and old["ratio"].notna().any()
        and old["half_width"].isna().all()
        and set(old["sessions"].dropna()) == {1}
    )


def test_one_bad_file_stops_no_other(tmp_path):
    write(tmp_path / "good.jsonl", [row()])
    write(tmp_path / "twin.jsonl", [row()])
    (tmp_path / "torn.jsonl").write_text("{")
    table, left_out = results.collect(tmp_path)
    assert len(table) == 1 and set(left_out) == {"twin.jsonl", "torn.jsonl"}
    assert "of the same machine as good.jsonl" in left_out["twin.jsonl"]
    assert results.collect(tmp_path / "nowhere")[0].empty


def test_the_floor_is_the_far_end_of_one_file_against_itself():
    steady = make_table(noise=0.0)
    assert results.floor(steady) == pytest.approx(0, abs=1e-9)
    shifted = make_table(lambda column, batch, size: 1.05 if column == AGAIN else 1.0)
    assert results.floor(shifted) == pytest.approx(0.05)
    noisy = make_table(noise=0.03)
    assert results.floor(noisy) > 0.03
    assert math.isnan(results.floor(steady[steady["column"] != AGAIN]))


def test_a_torn_last_line_is_left_alone_and_a_new_one_begun(tmp_path):
    store = results.Results(tmp_path)
    store.add([row(), row("pytorch_cpu")])
    store.path.write_bytes(store.path.read_bytes()[:-20])
    again = results.Results(tmp_path)
    assert len(again.rows) == 1
    again.add([row("onnx_dyn")])
    assert [entry["column"] for entry in results.Results(tmp_path).rows] == ["onnx_fix", "onnx_dyn"]


def test_an_edited_row_of_ones_own_is_measured_again(tmp_path):
    store = results.Results(tmp_path)
    store.add([row(), row("pytorch_cpu")])
    store.path.write_text(store.path.read_text().replace('"p50_ms": 1.0', '"p50_ms": 0.5', 1))
    again = results.Results(tmp_path)
    assert [entry["column"] for entry in again.rows] == ["pytorch_cpu"]
    assert again.find(row()["key"], sessions=5) is None


@pytest.mark.parametrize(("newer", "expected"), [(1, 1), (2, 2), (3, 2)], ids=["fewer", "as many", "more"])
def test_the_fullest_rows_of_a_gpu_are_taken_and_of_equal_ones_the_newer(monkeypatch, newer, expected):
    of = {"network": "resnet18", "machine": "A", "column": "pytorch_gpu", "p50_ms": 1.0}
    table = pd.DataFrame([of | {"protocol": 1}] * 2 + [of | {"protocol": 2}] * newer)
    table = pd.concat([table, table.assign(column="onnx_fix", protocol=2)])  # rows of the CPU do not count
    monkeypatch.setattr(results, "collect", lambda folder: (table, {}))
    assert set(results.with_gpu("resnet18")["protocol"]) == {expected}


def test_a_machine_with_a_gpu_is_found():
    gpu = results.with_gpu("mobilenet_v3_small")
    assert gpu["machine"].nunique() == 1 and gpu["column"].str.contains("gpu").any()
    assert results.with_gpu("no such network").empty
