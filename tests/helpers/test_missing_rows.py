"""Notebooks 04, 05 and 12 run to the end whatever rows are missing: their cells, on tables that the test makes."""

import functools
import json
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import onnx
import onnx.parser
import pandas as pd
import pytest
from speed_tables import make_table, sparse

from helpers import settings, timing
from helpers.speed import claims, memory, results, sweep

NOTEBOOKS = settings.DATA.parent / "notebooks"
TEXT = '<ir_version: 10, opset_import: ["": 18]> g (float[1] x) => (float[1] y) { y = Relu(x) }'
SWEEP = "sweep.run("
LESSONS = ["04_speed_resnet18", "05_speed_mobilenet_v3_small"]


def code_cells(name):
    cells = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def run(cells, namespace):
    for number, cell in enumerate(cells):
        exec(compile(cell, f"cell {number}", "exec"), namespace)
    plt.close("all")


@pytest.fixture
def lesson(request, monkeypatch, tmp_path):
    """Return a function that runs a notebook's cells from its sweep on, with the table given; nothing is measured."""
    monkeypatch.setenv("COURSE_EFFORT", "quick")
    monkeypatch.setattr(settings, "exports_folder", lambda _: tmp_path)
    file = tmp_path / "tiny.onnx"
    onnx.save(onnx.parser.parse_model(TEXT), file)
    monkeypatch.setattr(results, "with_gpu", functools.cache(results.with_gpu))
    cells = code_cells(request.param)
    start = next(number for number, cell in enumerate(cells) if SWEEP in cell)
    namespace, given = {}, {}
    with mpl.rc_context():
        run(cells[:start], namespace)
        monkeypatch.setattr(sweep, "run", lambda network, *_, **__: given[network])
        monkeypatch.setattr(sweep, "file_maker", lambda *_: lambda *_: file)
        monkeypatch.setattr(timing, "measure", lambda openers, **_: {name: fake_timing(name) for name in openers})
        namespace["make_file"] = lambda *_: file

        def go_on(table, *, peak):
            given.update({name: table.assign(network=name) for name in ("resnet18", "mobilenet_v3_small")})
            monkeypatch.setattr(memory, "measure_peak", peak)
            run(cells[start:], namespace)

        yield go_on


def fake_timing(name):
    return timing.Timing(name, ratio=1.0, half_width=0.01)


def counted(**_):
    return {"p50_ms": 2.0, "page_faults": 3.0, "system_ms": 1.0, "base_rss_mib": 5.0, "peak_rss_mib": 9.0}


def not_counted(**_):
    return counted() | {"page_faults": None, "system_ms": None}


def too_large(**_):
    raise memory.OutOfMemoryError("memory ran out")


@pytest.mark.parametrize("lesson", LESSONS, indirect=True)
def test_04_and_05_run_to_the_end_with_any_row_missing(lesson, monkeypatch):
    whole = make_table(noise=0.01)
    some = {name: table for name, table in sparse(whole) if not name.startswith("without")}
    for name, table in {"all rows": whole, **some}.items():
        try:
            lesson(table, peak=counted)
        except Exception as error:
            error.add_note(f"with {name}")
            raise
    monkeypatch.setattr(results, "with_gpu", lambda *_, **__: whole.iloc[:0].assign(machine=""))
    for peak in (not_counted, too_large):
        lesson(make_table(sessions=2), peak=peak)
    with_gpu = make_table(lambda column, batch, size: batch * size / 100)
    lesson(with_gpu, peak=counted)


@pytest.mark.parametrize("missing", ["nothing", "network", "column", "most"])
def test_12_runs_to_the_end_with_any_row_missing(missing, monkeypatch, tmp_path):
    monkeypatch.setattr(settings, "exports_folder", lambda _: tmp_path)
    table, _ = results.collect()
    keep = {
        "nothing": table.index == table.index,
        "network": table["network"] != "resnet18",
        "column": ~table["column"].isin(["pytorch_cpu", "onnx_fix"]),
        "most": table.index < 1,
    }
    monkeypatch.setattr(results, "collect", lambda *_: (table[keep[missing]], {"a.jsonl": "a.jsonl is empty"}))
    with mpl.rc_context():
        run(code_cells("12_your_machine_and_others"), {})


VERDICTS = {  # by source: A1 and A2 are two names of one computer, B is another, the article's rows don't count
    "holds on one computer": [claims.HOLDS, claims.HOLDS, claims.NO_DATA, claims.FAILS],
    "travels (2)": [claims.HOLDS, claims.HOLDS, claims.HOLDS, claims.FAILS],
    "open": [claims.HOLDS, claims.UNDECIDED, claims.HOLDS, claims.HOLDS],
    "refuted (1 of 2)": [claims.FAILS, claims.FAILS, claims.HOLDS, claims.HOLDS],
    "no data": [claims.NO_DATA, claims.NO_DATA, claims.NO_DATA, claims.HOLDS],
}


@pytest.mark.parametrize("said", VERDICTS)
def test_12_counts_computers_not_their_names(said):
    cell = next(source for source in code_cells("12_your_machine_and_others") if "def travels" in source)
    names = {"pd": pd, "claims": claims, "computer": pd.Series({"A1": "A", "A2": "A", "B": "B"})}
    exec(cell.partition("outcome = ")[0], names)
    row = pd.Series(VERDICTS[said], ["A1", "A2", "B", "the article's PC"])
    assert names["travels"](row) == said


def test_the_notebooks_are_where_this_test_looks():
    assert all(Path(NOTEBOOKS / f"{name}.ipynb").exists() and SWEEP in "".join(code_cells(name)) for name in LESSONS)
