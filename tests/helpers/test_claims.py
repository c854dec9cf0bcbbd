"""The judge of the article's claims: known tables must get known verdicts."""

import math

import numpy as np
import onnx
import onnx.parser
import pandas as pd
import pytest

from helpers import claims, models, sweep
from helpers.engines import COLUMNS


def make_table(times, *, noise=0.0, peaks=None):
    """Build a sweep's table: times(column, batch, size) returns ms or None; noise is the relative spread of blocks."""
    random = np.random.default_rng(0)
    rows = []
    for batch in sweep.BATCHES:
        for size in sweep.SIZES:
            for column in COLUMNS:
                ms = times(column, batch, size)
                blocks = None
                if ms is not None:
                    blocks = [[ms * (1 + noise * random.standard_normal())] * 5 for _ in range(10)]
                rows.append(
                    {
                        "network": "resnet18",
                        "column": column,
                        "batch": batch,
                        "size": size,
                        "p50_ms": math.nan if ms is None else ms,
                        "block_ms": blocks,
                        "peak_rss_mib": math.nan if peaks is None else peaks(column),
                    }
                )
    return pd.DataFrame(rows)


def cpu_only(column, batch, size):
    if "gpu" in column:
        return None
    return batch * size**2 / 1e4 * (2.0 if column == "pytorch_cpu" else 1.0)


def test_equal_files_and_a_slow_pytorch_get_the_verdicts_they_must():
    verdicts = claims.judge(make_table(cpu_only))["verdict"]
    for claim in ("C1", "C2", "C5", "C8", "C9", "C11 speed"):
        assert verdicts[claim] == claims.HOLDS, claim
    assert verdicts["C6"] == claims.FAILS, "PyTorch is twice as slow: they can be told apart"


def test_without_a_gpu_its_claims_have_no_data():
    verdicts = claims.judge(make_table(cpu_only))
    for claim in ("C3", "C4", "C7", "C12"):
        assert verdicts.loc[claim, "verdict"] == claims.NO_DATA, claim
        assert verdicts.loc[claim, "rows"].startswith("0 of ")


def test_a_slow_dynamic_file_makes_the_claim_fail_and_is_named():
    def times(column, batch, size):
        slower = 1.5 if column == "onnx_dyn" and (batch, size) == (1, 256) else 1.0
        return None if cpu_only(column, batch, size) is None else slower * cpu_only(column, batch, size)

    row = claims.judge(make_table(times)).loc["C1"]
    assert row["verdict"] == claims.FAILS
    assert "1×256²" in row["decided_by"] and "×1.50" in row["decided_by"], row["decided_by"]


def test_an_interval_across_the_bound_is_too_close_to_call():
    def times(column, batch, size):
        return None if "gpu" in column else 10.0

    verdicts = claims.judge(make_table(times, noise=0.05))["verdict"]
    assert verdicts["C5"] == claims.CLOSE, "equal within noise: nobody wins"


def test_a_gpu_that_wins_everywhere():
    def times(column, batch, size):
        return 0.1 if "gpu" in column else cpu_only(column, batch, size) + 1

    verdicts = claims.judge(make_table(times))["verdict"]
    assert verdicts["C12"] == claims.HOLDS
    assert verdicts["C7"] == claims.HOLDS, "the CPU's time grows with the picture, the GPU's does not"
    assert verdicts["C3"] == claims.FAILS and verdicts["C4"] == claims.FAILS


def test_a_lead_that_shrinks_fails_c7():
    def times(column, batch, size):
        return size**3 / 1e6 if "gpu" in column else cpu_only(column, batch, size)

    assert claims.judge(make_table(times)).loc["C7", "verdict"] == claims.FAILS


@pytest.mark.parametrize(
    ("peak", "verdict"),
    [(400.0, claims.HOLDS), (100.0, claims.FAILS), (150.0, claims.CLOSE), (math.nan, claims.NO_DATA)],
)
def test_memory_is_judged_on_peaks(peak, verdict):
    table = make_table(cpu_only, peaks=lambda column: peak if column == "pytorch_cpu" else 100.0)
    assert claims.judge(table).loc["C11 memory", "verdict"] == verdict


def test_the_bounds_can_be_chosen():
    def times(column, batch, size):
        ms = cpu_only(column, batch, size)
        return None if ms is None else ms * (1.2 if "dyn" in column else 1.0)

    table = make_table(times)
    assert claims.judge(table).loc["C1", "verdict"] == claims.FAILS
    assert claims.judge(table, little=0.25).loc["C1", "verdict"] == claims.HOLDS
    assert claims.judge(table, clearly=3.0).loc["C8", "verdict"] == claims.FAILS


def test_onnxsim_is_judged_on_files():
    files = pd.DataFrame({"a": {"nodes_before": 49, "nodes_after": 49, "size_before": 10, "size_after": 10}}).T
    table = make_table(cpu_only)
    assert claims.judge(table).loc["C10", "verdict"] == claims.NO_DATA
    assert claims.judge(table, files).loc["C10", "verdict"] == claims.HOLDS
    files["nodes_after"] = 6
    assert claims.judge(table, files).loc["C10", "verdict"] == claims.FAILS


@pytest.mark.parametrize("network", models.NETWORKS)
def test_the_articles_rows_are_all_there(network):
    rows = claims.article_rows(network)
    assert len(rows) == 16 * (6 if network == "resnet18" else 4)
    first = rows[(rows["column"] == "onnx_fix") & (rows["batch"] == 1) & (rows["size"] == 32)]
    assert first["p50_ms"].tolist() == pytest.approx([57.7 if network == "resnet18" else 57.5])


def test_the_article_fails_some_of_its_own_claims():
    verdicts = claims.judge(claims.article_rows("resnet18"), claims.article_files("resnet18"))
    assert verdicts.loc["C7", "verdict"] == claims.FAILS, "its GPU's lead shrinks from 768 px on"
    assert verdicts.loc["C11 speed", "verdict"] == claims.CLOSE, "at 16×256² its PyTorch is the faster one by 2 %"
    assert verdicts.loc["C2", "verdict"] == claims.FAILS and verdicts.loc["C9", "verdict"] == claims.FAILS
    assert verdicts.loc["C11 memory", "verdict"] == claims.NO_DATA
    assert verdicts.loc["C10", "verdict"] == claims.HOLDS
    assert verdicts.loc["C5", "verdict"] == claims.HOLDS


def test_rows_without_blocks_get_the_assumed_exactness():
    table = make_table(cpu_only).drop(columns="block_ms")
    evidence = claims.judge(table).loc["C5", "decided_by"]
    assert "×2.00 (1.95 to 2.05)" in evidence, evidence


def test_two_networks_in_one_table_are_refused():
    table = make_table(cpu_only)
    other = table.assign(network="mobilenet_v3_small")
    with pytest.raises(ValueError, match="2 networks"):
        claims.judge(pd.concat([table, other]))


def test_every_claim_about_speed_is_judged_once():
    found = list(claims.judge(make_table(cpu_only)).index)
    numbers = [claim.split()[0] for claim in found]
    assert [f"C{n}" for n in range(1, 13)] == list(dict.fromkeys(numbers)), found


def test_own_files_are_counted_before_and_after(tmp_path):
    nodes = {"onnx_fix": 3, "onnx_fix_sim": 1}

    def make_file(column, shape):
        assert shape == (1, 3, 32, 32)
        lines = " ".join(f"x{i + 1} = Relu(x{i})" for i in range(nodes[column]))
        text = f'<ir_version: 10, opset_import: ["": 18]> g (float[1] x0) => (float[1] x{nodes[column]}) {{ {lines} }}'
        onnx.save(onnx.parser.parse_model(text), tmp_path / f"{column}.onnx")
        return tmp_path / f"{column}.onnx"

    found = claims.own_files(make_file, (1, 3, 32, 32), kinds=("fix",)).loc["fix"]
    assert (found["nodes_before"], found["nodes_after"]) == (3, 1)
    assert found["size_before"] > found["size_after"] == (tmp_path / "onnx_fix_sim.onnx").stat().st_size
