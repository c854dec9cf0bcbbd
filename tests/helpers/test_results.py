"""helpers.speed.results: all protocols are read, what contradicts itself is refused, numbers come from raw blocks."""

import json
import math
from dataclasses import asdict

import pandas as pd
import pytest
from speed_tables import collected, make_table

from helpers import settings, timing
from helpers.engines import AA
from helpers.speed import results
from helpers.timing import Status

FILES = sorted((settings.DATA / "results").glob("*.jsonl"))
FACTS = {"cpu": "A", "usable_cores": 2, "gpu": None}


def row(column="onnx_fix", *, blocks=((1.0, 1.1, 0.9),) * 5, **changes):
    """Return a row of today's protocol; the median of its blocks is their first number."""
    values = {"key": f"0123/tiny/abc/{column}/1x3x32x32", "measured_at": "2026-11-27T00:00:00+00:00", "note": ""}
    values |= {"network": "tiny", "model_sha256": "abc", "column": column, "batch": 1, "height": 32, "width": 32}
    values |= {"threads": 2, "status": Status.OK, "protocol": 2, "fingerprint": FACTS, "run_id": "s"}
    values |= {"block_ms": [list(block) for block in blocks], "p50_ms": blocks[0][0]}
    return results.Row(**values | changes)


def line(raw, *, checked=True):
    """Return fields as a line of a file, with a checksum that fits or the one they have."""
    return json.dumps(results.checksum(raw) if checked else raw) + "\n"


def write(path, rows):
    path.write_text("".join(map(results.dump, rows)))
    return path


def test_what_is_dumped_is_loaded():
    given = row(status=Status.CONTENDED, note="×", discarded_ms=[[2.0]], other_cores=0.7, gpu_state="1 MHz")
    assert results.load(results.dump(given)) == given == results.load(results.dump(given).encode())
    with pytest.raises(ValueError, match="JSON"):
        results.dump(row(gflop=math.nan))


def test_rows_of_older_protocols_come_under_todays_names():
    raw = asdict(row())
    second = raw | {"sitting": "s", "foreign_cores": 0.7, "restless_sessions": 2, "disturbed_ms": [[9.0]]}
    second |= {"status": "disturbed", "a_field_of_old": 7}
    for name in ("run_id", "other_cores", "not_idle_trials", "discarded_ms"):
        del second[name]
    today = row(other_cores=0.7, not_idle_trials=2, discarded_ms=[[9.0]], status=Status.CONTENDED)
    assert results.load(line(second)) == today
    names = ["key", "measured_at", "network", "column", "batch", "note", "p50_ms", "block_ms", "threads", "fingerprint"]
    first = {name: raw[name] for name in names} | {"protocol": 1, "size": 48, "status": "noisy", "ratio_low": 1.0}
    found = results.load(line(first))
    assert (found.height, found.width, found.status, found.run_id, found.channels) == (48, 48, "ok", None, 3)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_file_of_the_course_is_whole(path):
    rows = results.read(path)
    assert len(rows) == len(path.read_text().splitlines()) and {found.status for found in rows} <= set(Status)
    finished = [found for found in rows if found.status in results.FINISHED]
    assert finished and all(found.p50_ms > 0 for found in finished)
    assert any(found.protocol == 1 or (found.run_id and found.other_cores is not None) for found in finished)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (line(asdict(row(p50_ms=0.5))), "line 2 .*its own runs give 1 ms"),
        (line(asdict(row(block_ms=None))), "line 2 holds no runs"),
        (line(asdict(row(block_ms=[[-1.0]], p50_ms=-1.0))), "its own runs give -1 ms"),
        (line(asdict(row(status="great"))), "has the status 'great'"),
        (line(asdict(row(protocol=9))), "has protocol 9; this course reads 1 and 2"),
        (line(asdict(row("mine"))), "'mine', a column that this course does not know"),
        (line(asdict(row(key="9999/tiny"))), "of another machine"),
        (results.dump(row()).replace("1.0", "0.5"), "line 2 was changed after it was measured"),
        (line({"p50_ms": 1, "protocol": 2}), "fields are missing"),
        (results.dump(row())[:99], "line 2 is torn"),
        ("[NaN]\n", "line 2 is torn"),
        (line(asdict(row(block_ms=[[math.nan]]))), "its own runs give nan ms"),
        (line(asdict(row(block_ms=[[-1.0, 1.0, 1.0]]))), "its own runs give 1 ms"),
        ("{\n" * 9, "And 4 more"),
    ],
)
def test_a_row_that_cannot_be_trusted_is_named(tmp_path, second, message):
    path = tmp_path / "a.jsonl"
    path.write_text(results.dump(row()) + second)
    with pytest.raises(results.ResultsError, match=message):
        results.read(path)
    path.write_text("")
    with pytest.raises(results.ResultsError, match="is empty"):
        results.read(path)


def test_a_torn_last_line_is_left_alone_and_a_new_one_begun(tmp_path):
    store = results.Results(tmp_path)
    store.add([row(), row("pytorch_cpu")])
    store.path.write_bytes(store.path.read_bytes()[:-20])
    again = results.Results(tmp_path)
    assert again.rows == [row()]
    again.add([row("onnx_dyn")])
    assert results.Results(tmp_path).rows == [row(), row("onnx_dyn")]


def test_ratios_are_computed_from_blocks_of_one_thread_number():
    rows = [row(), row("pytorch_cpu", blocks=((2.0, 2.2, 1.8),) * 5), row("pytorch_cpu", threads=1, blocks=[[8.0]] * 5)]
    table = results.to_table(rows)
    assert table["ratio"].tolist() == pytest.approx([2, 1, 1])
    assert table.loc[0, ["rel_ci", "p50_ms", "trials"]].tolist() == pytest.approx([0, 1, 5], abs=1e-6)
    few = results.to_table([row(blocks=[[1.0]] * (timing.TRIALS - 1)), rows[1]])
    assert few.loc[0, "ratio"] == pytest.approx(2) and math.isnan(few.loc[0, "rel_ci"])


def test_rows_of_one_run_are_compared_trial_by_trial_and_others_as_strangers():
    drift = [[math.exp(number)] for number in range(5)]
    one, other = (row for _, row in results.to_table([row(blocks=drift), row(blocks=drift)]).iterrows())
    assert results.compare_rows(one, other) == (1, 0)
    assert results.compare_rows(one, other.replace("s", "another run"))[1] > 1


def test_protocol_1_has_ratios_and_no_intervals():
    table, left_out = collected()
    old = table[table["protocol"] == 1]
    assert not left_out and old["ratio"].notna().any() and table["rel_ci"].notna().any()
    assert old["rel_ci"].isna().all() and set(old["trials"].dropna()) == {1}


def test_one_bad_file_stops_no_other(tmp_path):
    latest = [row(measured_at="2026-11-28"), row(status=Status.FAILED, block_ms=[], p50_ms=None)]
    write(tmp_path / "good.jsonl", [row(), *latest])
    write(tmp_path / "same.jsonl", [row()])
    (tmp_path / "torn.jsonl").write_text("{")
    table, left_out = results.collect(tmp_path)
    assert table["measured_at"].tolist() == ["2026-11-28"], "the latest finished row"
    assert set(left_out) == {"same.jsonl", "torn.jsonl"}
    assert "of the same machine as good.jsonl" in left_out["same.jsonl"]
    assert results.collect(tmp_path / "nowhere")[0].empty


def test_the_noise_floor_is_the_far_end_of_one_file_against_itself():
    steady = make_table()
    assert results.noise_floor(steady) == pytest.approx(0, abs=1e-9)
    shifted = make_table(lambda column, *_: 1.05 if column == AA else 1.0)
    assert results.noise_floor(shifted) == pytest.approx(0.05)
    assert 0.03 < results.noise_floor(make_table(noise=0.03)) < 0.3
    assert math.isnan(results.noise_floor(steady[steady["column"] != AA]))


@pytest.mark.parametrize(("newer", "expected"), [(1, 1), (2, 2), (3, 2)], ids=["fewer", "as many", "more"])
def test_the_fullest_rows_of_a_gpu_are_taken_and_of_equal_ones_the_newer(monkeypatch, newer, expected):
    of = {"network": "resnet18", "machine": "A", "column": "pytorch_gpu", "p50_ms": 1.0}
    table = pd.DataFrame([of | {"protocol": 1}] * 2 + [of | {"protocol": 2}] * newer)
    table = pd.concat([table, table.assign(column="onnx_fix", protocol=2)])  # rows of the CPU do not count
    monkeypatch.setattr(results, "collect", lambda: (table, {}))
    assert set(results.with_gpu("resnet18")["protocol"]) == {expected}
    assert results.with_gpu("no such network").empty
