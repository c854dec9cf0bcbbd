"""The atlas's runner on engines that are made up, one for each thing that can happen; and the stored atlas itself."""

import os

import numpy as np
import onnx
import pandas as pd
import pytest
from onnx import TensorProto, helper

from course import engine_files, engines

OPENERS = """
import os
from pathlib import Path
import numpy as np

def right(path):
    with Path(os.environ["ASKED"]).open("a") as file:
        file.write("right ")
    Path(path).write_bytes(b"rewritten")  # as a real one does: it must be a copy
    return lambda x: x.reshape(1, -1)[:, :5]

def off(path):
    return lambda x: x.reshape(1, -1)[:, :5] * 1.0005

def wrong(path):
    return lambda x: -x.reshape(1, -1)[:, :5]

def nan(path):
    return lambda x: x.reshape(1, -1)[:, :5] * np.nan

def short(path):
    return lambda x: x.reshape(1, -1)[:, :4]

def refusing(path):
    raise RuntimeError(f"cannot read {path}\\nsecond line")

def hanging(path):
    import time
    time.sleep(60)

def dying(path):
    os._exit(3)
"""
PLAIN = {"keep": True, "again": False, "timed": False}
EXPECTED = {
    "right": ("right", "PyTorch's logits"),
    "off": ("off by rounding", "off by 0.0005"),
    "wrong": ("wrong", "off by 2 "),
    "nan": ("wrong", "off by inf"),
    "short": ("wrong", "answers of shape (4,), needed (5,)"),
    "refusing": ("refuses", "RuntimeError: cannot read model.onnx second line"),
    "dying": ("no answer", "its process ended without a word"),
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    folder = tmp_path / "files" / "kind"
    folder.mkdir(parents=True)
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 4), dtype=np.float32)
    np.save(folder / "x.npy", x)
    np.save(folder / "right.npy", x.reshape(2, -1)[:, :5])
    (folder / "model.onnx").write_bytes(b"any")
    (tmp_path / "openers.py").write_text(OPENERS)
    monkeypatch.setattr(engines, "FOLDER", tmp_path)
    monkeypatch.setenv("ASKED", str(tmp_path / "asked"))
    return tmp_path


def made_up(place, names, **other):
    pins = (f"numpy=={np.__version__}",)  # this Python has it, so nothing is installed
    return [engines.Engine(name, f"{place / 'openers.py'}:{name}", pins, **other) for name in names]


def run(place, names=EXPECTED, limit_s=120.0, **other):
    kinds = {"kind": (place / "files" / "kind", "float32")}
    table = place / "engines.csv"
    return engines.run(made_up(place, names, **other), kinds, table=table, limit_s=limit_s).set_index("engine")


def test_each_thing_that_can_happen_is_the_right_row(place):
    rows = run(place)
    for name, (verdict, message) in EXPECTED.items():
        assert rows.loc[name, "verdict"] == verdict, name
        assert rows.loc[name, "message"].startswith(message) and str(place) not in rows.loc[name, "message"], name
    assert rows.loc["right", ["top1", "photos", "agrees"]].tolist() == ["1", "2", "11"]
    assert (place / "files" / "kind" / "model.onnx").read_bytes() == b"any", "the engine rewrote the atlas's own file"
    assert not list((place / "files").glob("running-*")), "a copy was left behind"


def test_a_row_that_stands_is_not_run_again_unless_asked(place):
    run(place, ["right"])
    killed = place / "files" / "running-99999999"  # what a kill -9 leaves: no process has this number
    killed.mkdir()
    (killed / "few.npy").touch()
    rows = run(place, ["right", "off"])
    assert not killed.exists(), "what a killed run left is still there"
    assert (place / "asked").read_text() == "right " and len(rows) == 2
    kinds = {"kind": (place / "files" / "kind", "float32")}
    engines.run(made_up(place, ["right"]), kinds, table=place / "engines.csv", again=True)
    assert (place / "asked").read_text() == "right right "
    assert len(engines.read(place / "engines.csv")) == 2


def test_a_pair_that_is_left_out_is_never_run_and_an_engine_that_cannot_be_installed_says_why(place):
    left = run(place, ["right"], left_out={"kind": "its process hung"})
    assert left.loc["right", ["verdict", "message"]].tolist() == ["no answer", "its process hung"]
    lack = run(place, ["off"], not_here="needs a GPU")
    assert lack.loc["off", ["verdict", "message"]].tolist() == ["not installable", "needs a GPU"]
    old = run(place, ["wrong"], python="2.1")
    assert old.loc["wrong", "verdict"] == "not installable" and "Python 2.1" in old.loc["wrong", "message"]
    assert not (place / "asked").exists()


def test_too_long_or_too_much_memory_is_no_answer(place, monkeypatch):
    assert run(place, ["hanging"], limit_s=1.0).loc["hanging", "message"] == "no answer within 1 s"
    (place / "engines.csv").unlink()
    monkeypatch.setattr(engines, "LIMIT_GB", 1e-3)
    assert run(place, ["hanging"]).loc["hanging", "message"] == "more than 0.001 GB of memory"


def small_model(folder, *, op="Relu", domain="", shape=(1, 3, 4, 4)):
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node(op, ["x"], ["y"], domain=domain)], "g", ends[:1], ends[1:])
    opsets = [helper.make_opsetid("", 18), *([helper.make_opsetid(domain, 1)] if domain else [])]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), folder / "mine.onnx")
    return folder / "mine.onnx"


def test_a_readers_file_that_no_engine_can_be_asked_about_gets_its_sentence(tmp_path, capsys):
    custom = small_model(tmp_path, op="Magic", domain="mine")
    assert "custom operator, mine::Magic" in engines.problem(custom, None)
    assert "no fixed shape" in engines.problem(free := small_model(tmp_path, shape=("n", 3, 4, 4)), None)
    assert engines.problem(free, [1, 3, 4, 4]) == ""
    model = onnx.load(small_model(tmp_path))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(999, np.float32), "w"))
    onnx.save(model, tmp_path / "big.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert engines.problem(tmp_path / "big.onnx", None) == ""
    (tmp_path / "weights.bin").unlink()
    code = engines.command([], **PLAIN, file=tmp_path / "big.onnx", shape="")
    said = capsys.readouterr().out.splitlines()
    assert code == 1 and len(said) == len(engines.ENGINES) and all("weights.bin" in line for line in said)
    (tmp_path / "text.onnx").write_text("no model at all, only words")
    assert "is no ONNX file" in engines.problem(tmp_path / "text.onnx", None)


def test_a_readers_file_runs_through_the_atlas(place, capsys):
    mine = small_model(place, shape=("n", 3, 4, 4))
    code = engines.command(["ONNX Runtime"], **PLAIN, file=mine, shape="1,3,4,4")
    assert code == 0 and "ONNX Runtime | mine.onnx | right" in capsys.readouterr().out
    with pytest.raises(ValueError, match="no engine Onyx"):
        engines.command(["Onyx"], **PLAIN, file=None, shape="")


def test_messages_lose_the_machines_folders():
    assert engines.one_line("it failed:/src/a/b.h:46 void") == "it failed:b.h:46 void"
    assert engines.one_line("no /home/me/a b/c.onnx\n or C:\\Users\\me\\c.onnx") == "no a b/c.onnx or c.onnx"


def test_every_declared_engine_has_pins_and_a_row_with_a_reason_for_every_kind():
    atlas = pd.read_csv(engines.TABLE, dtype=str, keep_default_na=False)
    assert not atlas.duplicated(["engine", "kind"]).any()
    assert len({engine.name for engine in engines.ENGINES}) == len(engines.ENGINES)
    for engine in engines.ENGINES:
        assert engine.pins and all("==" in pin or "@" in pin for pin in engine.pins), engine.name
        rows = atlas[(atlas["engine"] == engine.name) & (atlas["version"] == engine.version)]
        assert set(rows["kind"]) == set(engine_files.KINDS), engine.name
    allowed = {"right", "off by rounding", "wrong", "refuses", "no answer", "not installable", "not run"}
    assert set(atlas["verdict"]) <= allowed and (atlas["message"] != "").all() and (atlas["machine"] != "").all()
    answered = atlas[atlas["verdict"].isin(["right", "off by rounding"])]
    assert (answered["photos"].astype(int) == answered["agrees"].str.len()).all()
    assert not atlas["message"].str.contains(os.sep + "tmp" + os.sep, regex=False).any()
