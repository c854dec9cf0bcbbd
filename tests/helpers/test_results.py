"""helpers/results.py: what is wrong with a shared file is named, with its line, and stops no other file."""

import json

import numpy as np
import pandas as pd
import pytest

from helpers import __main__ as command
from helpers import results, sweep


def row(machine="aaaaaaaaaa", **changes):
    """Return a sealed row as a sweep writes it."""
    plain = {
        "key": f"{machine}/resnet18/onnx_fix/1x3x32x32/protocol-{sweep.PROTOCOL}",
        "measured_at": "2026-01-01T00:00:00+00:00",
        "network": "resnet18",
        "column": "onnx_fix",
        "batch": 1,
        "size": 32,
        "status": "ok",
        "note": "",
        "p50_ms": 2.0,
        "ratio": 3.0,
        "ratio_low": 2.9,
        "ratio_high": 3.1,
        "block_ms": [[2.0, 2.0], [2.0, 2.0]],
        "protocol": sweep.PROTOCOL,
        "fingerprint": {"cpu": f"Chip {machine[0]}", "usable_cores": 4, "gpu": None},
    }
    return sweep.seal(plain | changes)


def write(path, *rows):
    path.write_text(
        "".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in rows), encoding="utf-8"
    )
    return path


def test_rows_come_back_as_measured(tmp_path):
    rows = [row(), row(column="pytorch_cpu")]
    assert results.read(write(tmp_path / "a.jsonl", *rows)) == rows


def test_what_the_sweep_writes_is_in_order(tmp_path):
    kept = sweep.Results(tmp_path)
    plain = {name: value for name, value in row().items() if name != "sha256"}
    kept.add([plain])
    kept.add([plain | {"p50_ms": 4.0}])
    assert [one["p50_ms"] for one in results.read(kept.path)] == [2.0, 4.0]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("p50_ms", 1.0),
        ("ratio", 9.0),
        ("note", "x"),
        ("status", "noisy"),
        ("block_ms", [[1.0]]),
        ("batch", 16),
        ("fingerprint", {"cpu": "a better one"}),
        ("measured_at", "2027-01-01T00:00:00+00:00"),
    ],
)
def test_any_edited_field_is_noticed(tmp_path, field, value):
    edited = row() | {field: value}
    path = write(tmp_path / "a.jsonl", row(), edited)
    with pytest.raises(results.ResultsError, match=r"a\.jsonl: line 2 was changed after it was measured"):
        results.read(path)


def test_added_and_missing_fields_are_noticed(tmp_path):
    with pytest.raises(results.ResultsError, match="line 1 was changed"):
        results.read(write(tmp_path / "a.jsonl", row() | {"comment": "fast!"}))
    less = {name: value for name, value in row().items() if name != "note"}
    with pytest.raises(results.ResultsError, match="line 1 is no row of a sweep"):
        results.read(write(tmp_path / "b.jsonl", less))


@pytest.mark.parametrize("line", ['{"key": "x', "", "[1, 2]", "null", '{"key": NaN}', "\x00\xff"])
def test_torn_and_foreign_lines_are_named(tmp_path, line):
    path = write(tmp_path / "a.jsonl", row(), line, row())
    with pytest.raises(results.ResultsError, match=r"line 2 is (torn|no row)"):
        results.read(path)


@pytest.mark.parametrize("protocol", [0, 99, "1", None])
def test_unknown_protocol_is_refused(tmp_path, protocol):
    path = write(tmp_path / "a.jsonl", row(protocol=protocol))
    with pytest.raises(results.ResultsError, match=f"line 1 has protocol {protocol!r}"):
        results.read(path)


def test_two_machines_in_one_file_are_refused(tmp_path):
    path = write(tmp_path / "a.jsonl", row(), row(machine="bbbbbbbbbb"))
    with pytest.raises(results.ResultsError, match=r"line 2 is of another machine \(Chip b.*than line 1 \(Chip a"):
        results.read(path)


def test_unknown_network_is_refused(tmp_path):
    with pytest.raises(results.ResultsError, match="line 1 is about 'vgg16'"):
        results.read(write(tmp_path / "a.jsonl", row(network="vgg16")))


def test_empty_and_missing_files_say_so(tmp_path):
    with pytest.raises(results.ResultsError, match="empty"):
        results.read(write(tmp_path / "a.jsonl"))
    with pytest.raises(FileNotFoundError):
        results.read(tmp_path / "none.jsonl")


def test_a_broken_file_names_a_few_lines_not_thousands(tmp_path):
    path = write(tmp_path / "a.jsonl", *["rubbish"] * 1000)
    with pytest.raises(results.ResultsError) as caught:
        results.read(path)
    assert "And 995 more" in str(caught.value) and len(str(caught.value)) < 1000


def test_machines_stand_under_each_other_and_a_bad_file_stops_none(tmp_path):
    write(tmp_path / "a.jsonl", row())
    write(tmp_path / "b.jsonl", row(machine="bbbbbbbbbb", ratio=5.0))
    write(tmp_path / "c.jsonl", row() | {"ratio": 99.0})
    table, left_out = results.collect(tmp_path)
    assert list(left_out) == ["c.jsonl"] and "line 1" in left_out["c.jsonl"]
    here = table[table["machine"] != results.ARTICLE].set_index("machine")["ratio"]
    assert here.to_dict() == {"Chip a, 4 cores (aaaa)": 3.0, "Chip b, 4 cores (bbbb)": 5.0}


def test_a_second_file_of_one_machine_is_left_out(tmp_path):
    write(tmp_path / "a.jsonl", row())
    write(tmp_path / "copy of a.jsonl", row(p50_ms=4.0))
    table, left_out = results.collect(tmp_path)
    assert left_out == {"copy of a.jsonl": "copy of a.jsonl is of the same machine as a.jsonl: keep one of the two."}
    assert (table["machine"] != results.ARTICLE).sum() == 1


def test_the_latest_finished_row_counts(tmp_path):
    write(tmp_path / "a.jsonl", row(p50_ms=1.0), row(p50_ms=2.0), row(status="failed", p50_ms=None))
    table, _ = results.collect(tmp_path)
    (p50,) = table.loc[table["machine"] != results.ARTICLE, "p50_ms"]
    assert p50 == 2.0


def test_the_articles_ratio_is_that_of_its_own_times(tmp_path):
    table, _ = results.collect(tmp_path)  # an empty folder: only the article
    rows = table[(table["network"] == "resnet18") & (table["batch"] == 16) & (table["size"] == 256)].set_index("column")
    assert np.isclose(rows.loc["onnx_fix", "ratio"], 0.7169 / 0.7315)
    assert rows.loc["pytorch_cpu", "ratio"] == 1


def test_own_results_are_in_order():
    table, left_out = results.collect()
    assert left_out == {}
    assert isinstance(table, pd.DataFrame) and table["machine"].nunique() >= 2


def test_check_command_names_what_it_refuses(tmp_path, capsys):
    good, bad = write(tmp_path / "good.jsonl", row()), write(tmp_path / "bad.jsonl", row() | {"note": "x"})
    assert command.main(["check", str(good)]) == 0
    assert "good.jsonl: 1 rows, all in order" in capsys.readouterr().out
    assert command.main(["check", str(good), str(bad), str(tmp_path / "none.jsonl")]) == 1
    told = capsys.readouterr().out
    assert "REFUSED bad.jsonl: line 1" in told and "none.jsonl" in told
