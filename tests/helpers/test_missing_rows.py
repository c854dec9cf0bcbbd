"""Notebooks 04, 05 and 12 run to the end whatever rows are missing: their cells, on tables that the test makes."""

import functools
import json
import math
import warnings

import matplotlib as mpl
import matplotlib.pyplot as plt
import onnx
import onnx.parser
import pandas as pd
import pytest
import torch
from speed_tables import collected, make_table, sparse

from helpers import models, settings, timing
from helpers.speed import claims, memory, results, sweep

TEXT = '<ir_version: 10, opset_import: ["": 18]> g (float[1] x) => (float[1] y) { y = Relu(x) }'
COUNTED = {"p50_ms": 2.0, "page_faults": 3.0, "system_ms": 1.0, "base_rss_mib": 5.0, "peak_rss_mib": 9.0}
TINY = torch.nn.Sequential(
    torch.nn.Conv2d(3, 8, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(8, 1000)
).eval()
EXPORT = torch.onnx.export


@functools.cache
def cells(name):
    """Return the code cells of a notebook: their tags and their code."""
    text = (settings.ROOT / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8")
    code = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    return [
        (cell["metadata"].get("tags", []), compile("".join(cell["source"]), f"{name}, cell {number}", "exec"))
        for number, cell in enumerate(code)
    ]


def run(some, namespace):
    for _, code in some:
        exec(code, namespace)
    plt.close("all")


def export(model, args, path, *, dynamo=True, dynamic_shapes=None, **options):
    """Export by the old exporter, which is the quicker one; no cell that runs here needs a free size."""
    warnings.simplefilter("ignore")
    EXPORT(model, args, path, dynamo=False, **options)


@pytest.fixture
def lesson(request, monkeypatch, tmp_path):
    """Return a function that runs a notebook's cells from its sweep on, with the table given; nothing is measured."""
    monkeypatch.setenv("COURSE_EFFORT", "quick")
    monkeypatch.setattr(settings, "exports_folder", lambda _: tmp_path)
    file = tmp_path / "tiny.onnx"
    onnx.save(onnx.parser.parse_model(TEXT), file)
    monkeypatch.setattr(models, "load_model", lambda _: (TINY, "no weights"))
    monkeypatch.setattr(torch.onnx, "export", export)
    monkeypatch.setattr(results, "collect", collected)
    monkeypatch.setattr(results, "with_gpu", functools.cache(results.with_gpu))
    start = next(number for number, (tags, _) in enumerate(cells(request.param)) if "sweep" in tags)
    namespace, given = {}, {}
    with mpl.rc_context():
        run(cells(request.param)[:start], namespace)
        monkeypatch.setattr(sweep, "measure_table", lambda network, *_, **__: given[network])
        monkeypatch.setattr(sweep, "file_maker", lambda *_: lambda *_: file)
        monkeypatch.setattr(
            timing, "measure", lambda openers, **_: {name: timing.Timing(name, [], 1.0, 0.01) for name in openers}
        )
        namespace["make_file"] = lambda *_: file

        def go_on(table, peak=lambda **_: COUNTED):
            given.update({name: table.assign(network=name) for name in ("resnet18", "mobilenet_v3_small")})
            monkeypatch.setattr(memory, "measure_peak", peak)
            run(cells(request.param)[start:], namespace)

        yield go_on


def not_counted(**_):
    return COUNTED | {"page_faults": math.nan, "system_ms": math.nan}


def too_large(**_):
    raise memory.OutOfMemoryError("memory ran out")


@pytest.mark.parametrize("lesson", ["04_speed_resnet18", "05_speed_mobilenet_v3_small"], indirect=True)
def test_04_and_05_run_to_the_end_with_any_row_missing(lesson, monkeypatch):
    whole = make_table(noise=0.01)
    for name, table in (("all rows", whole), *sparse(whole)):
        try:
            lesson(table)
        except Exception as error:
            error.add_note(f"with {name}")
            raise
    monkeypatch.setattr(results, "with_gpu", lambda *_: whole.iloc[:0].assign(machine=""))
    for peak in (not_counted, too_large):
        lesson(make_table(trials=2), peak)
    lesson(make_table(lambda column, batch, size: batch * size / 100))  # with a GPU


@pytest.mark.parametrize("missing", ["nothing", "network", "column", "most"])
def test_12_runs_to_the_end_with_any_row_missing(missing, monkeypatch, tmp_path):
    monkeypatch.setattr(settings, "exports_folder", lambda _: tmp_path)
    table, _ = collected()
    keep = {
        "nothing": table.index == table.index,
        "network": table["network"] != "resnet18",
        "column": ~table["column"].isin(["pytorch_cpu", "onnx_fix"]),
        "most": table.index < 1,
    }
    monkeypatch.setattr(results, "collect", lambda *_: (table[keep[missing]], {"a.jsonl": "a.jsonl is empty"}))
    with mpl.rc_context():
        run(cells("12_your_machine_and_others"), {})


@pytest.mark.parametrize(  # A1 and A2 are two names of one computer, B is another, the article's do not count
    ("said", "verdicts"),
    [
        ("holds on one computer", [claims.HOLDS, claims.HOLDS, claims.NO_DATA, claims.FAILS]),
        ("travels (2)", [claims.HOLDS, claims.HOLDS, claims.HOLDS, claims.FAILS]),
        ("open", [claims.HOLDS, claims.UNDECIDED, claims.HOLDS, claims.HOLDS]),
        ("refuted (1 of 2)", [claims.FAILS, claims.FAILS, claims.HOLDS, claims.HOLDS]),
        ("no data", [claims.NO_DATA, claims.NO_DATA, claims.NO_DATA, claims.HOLDS]),
    ],
)
def test_12_counts_computers_not_their_names(said, verdicts):
    code = next(code for tags, code in cells("12_your_machine_and_others") if "travels" in tags)
    row = pd.Series(verdicts, ["A1", "A2", "B", "the article's PC"])
    names = {"pd": pd, "claims": claims, "computer": pd.Series({"A1": "A", "A2": "A", "B": "B"})}
    names |= {"verdicts": pd.DataFrame({("resnet18", source): [verdict] for source, verdict in row.items()}), "says": 0}
    exec(code, names)
    assert names["outcome"].loc[0, "resnet18"] == said
