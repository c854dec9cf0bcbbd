"""The atlas: one file, many engines. Who opens it, who is right, who is wrong without a word: ``data/engines.csv``."""

import datetime
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from pathlib import Path

import numpy as np
import onnx
import pandas as pd
import psutil

from course import engine_files
from helpers import machine, settings

TABLE, FOLDER = settings.DATA / "engines.csv", settings.EXPORTS / "engines"
COLUMNS = [
    *("engine", "version", "kind", "verdict", "error_share", "top1", "photos", "message", "time_ratio"),
    *("plugin_nodes", "install_mb", "python", "machine", "date", "bound", "errors", "agrees"),  # per photo
]
LIMIT_S, LIMIT_GB = 240.0, 8.0  # of one engine with one file
RIGHT = 1e-4  # share of the largest logit
ROUNDING = {"float32": 1e-3, "float16": 2e-2, "int8": 8e-2}  # so much may rounding alone do; above it is wrong
TIMED, TURNS, NOISE = ("resnet18", "mobilenet", "lite0", "QDQ U8S8"), 15, 0.15
KNOWN_DOMAINS = {"", "ai.onnx", "ai.onnx.ml", "com.microsoft"}  # the last: ONNX Runtime's own


@dataclass(frozen=True)
class Engine:
    """An engine as the atlas asks for it."""

    name: str
    opener: str  # function of engine_openers.py, or "file.py:function"
    pins: tuple[str, ...]  # package==version; npm's are package@version
    size_mb: int = 0  # of its environment, to be said before it is made
    python: str = ""  # the version that its packages need, if not this one
    beside: bool = False  # its packages lie beside this Python's, without what they depend on
    photos: int = 9
    not_here: str = ""  # why it is never installed
    left_out: dict[str, str] = field(default_factory=dict)  # kind -> why: its process died or hung there

    @property
    def version(self) -> str:
        """The version of the first package."""
        return re.split("==|@", self.pins[0])[-1]


ENDED = "its process ended without a word"
ORT, ONNX, TORCH = "onnxruntime==1.32.0", "onnx==1.23.2", "torch==2.15.0"
CV, OV = "opencv-python-headless==5.0.0.93", "openvino==2026.4.1"
ENGINES = (
    Engine("ONNX Runtime", "onnxruntime", (ORT,), 140),
    Engine("ONNX Runtime .ort, Fixed", "ort_format", (ORT, ONNX), 190),
    Engine("ONNX Runtime .ort, Runtime", "ort_format_runtime", (ORT, ONNX), 190),
    Engine("ONNX reference evaluator", "reference", (ONNX,), 150, photos=2),
    Engine("OpenVINO, f32", "openvino_f32", (OV,), 314),
    Engine("OpenVINO, as it comes", "openvino", (OV,), 314),
    Engine("OpenCV", "opencv", (CV,), 286),
    Engine("OpenCV, ENGINE_CLASSIC", "opencv_classic", (CV,), 286),
    Engine("ncnn by pnnx", "ncnn", ("ncnn==1.0.20261020", "pnnx==20261020", ONNX), 5600),
    Engine("tract", "tract", ("tract==0.23.9",), 131),
    Engine("tinygrad", "tinygrad", ("tinygrad==0.14.0",), 138, photos=1),
    Engine("MNN", "mnn", ("MNN==3.6.1",), 154, left_out=dict.fromkeys(("QDQ U8S8", "QDQ U8S7", "QDQ S8S8"), ENDED)),
    Engine("nxrt", "nxrt", ("nxrt==0.1.0.dev6",), 130),
    Engine("onnx2torch", "onnx2torch", ("onnx2torch==1.5.15", TORCH, ONNX), 1, beside=True),
    Engine("ONNX Runtime Node", "node", ("onnxruntime-node@1.30.0",), 290),
    Engine("ONNX Runtime Web, wasm", "wasm", ("onnxruntime-web@1.30.0",), 141),
    Engine("onnxruntime-ep-openvino", "plugin_openvino", ("onnxruntime-ep-openvino==1.8.1", ORT), 120, beside=True),
    Engine("onnxruntime-ep-webgpu", "plugin_webgpu", ("onnxruntime-ep-webgpu==0.4.0", ORT), 50, beside=True),
    Engine("nxrt-ep-cpu", "plugin_nxrt", ("nxrt-ep-cpu==0.1.0.dev6", ORT), 30, beside=True),
    Engine("IREE", "iree", ("iree-base-compiler[onnx]==3.13.0", "iree-base-runtime==3.13.0"), 612, photos=3),
    Engine("TVM", "tvm", ("apache-tvm==0.27.0.post1", ONNX), 451, photos=3),
    Engine("onnx2tf and LiteRT", "litert", ("onnx2tf==2.6.9",), 661, python="3.12", photos=3),
    Engine(
        "jaxonnxruntime", "jax", ("jaxonnxruntime==0.3.0", "jax[cpu]==0.10.2", ONNX, "absl-py==2.5.1"), 659, photos=3
    ),
    Engine(
        "TensorRT", "onnxruntime", ("tensorrt==10.16.0",), not_here="needs an NVIDIA GPU; its code is in notebook 11"
    ),
    Engine("ExecuTorch, XNNPACK", "", ("executorch==1.5.1",), not_here="reads no ONNX file: it begins at torch.export"),
    Engine("Core ML", "", ("coremltools==9.0",), not_here="runs on macOS only, and coremltools reads no ONNX file"),
)


class NotInstalled(RuntimeError):
    """An environment that cannot be made here; the message says why."""


def find_python(version: str) -> str:
    """Return a Python of this version ("3.12"), this one if none is asked for; raise NotInstalled if there is none."""
    if version in ("", f"{sys.version_info[0]}.{sys.version_info[1]}"):
        return sys.executable
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions").glob(f"{version}.*/bin/python")
    for command in ([f"python{version}"], ["py", f"-{version}"], *[[str(path)] for path in pyenv]):
        if shutil.which(command[0]):
            asked = subprocess.run(
                [*command, "-c", "import sys; print(sys.executable)"], capture_output=True, text=True
            )
            if asked.returncode == 0:
                return asked.stdout.strip()
    raise NotInstalled(f"needs Python {version}, which is not here")


def lacking(pins: Sequence[str]) -> list[str]:
    """Return the pins that this Python does not fulfil."""
    found = []
    for pin in pins:
        name, _, wanted = pin.partition("==")
        try:
            found += [pin] * (installed_version(name.partition("[")[0]).partition("+")[0] != wanted)
        except PackageNotFoundError:
            found.append(pin)
    return found


def environment(engine: Engine, folder: Path) -> tuple[str, dict[str, str]]:
    """Make an engine's environment in a folder, or find it; return its Python and what to add to os.environ.

    Raises:
        NotInstalled: if that cannot be done; the message says why.
    """
    if engine.not_here:
        raise NotInstalled(engine.not_here)
    done, npm = folder / "installed", "@" in engine.pins[0]
    missing = [] if npm else lacking(engine.pins)
    if not (missing or npm or engine.python):
        return sys.executable, {}
    bins = folder / ("Scripts" if os.name == "nt" else "bin")
    variables = {"PATH": f"{bins}{os.pathsep}{os.environ['PATH']}"}
    commands = [
        [find_python(engine.python), "-m", "venv", folder],
        [bins / "python", "-m", "pip", "install", "-q", "numpy"],
    ]
    commands[1] += engine.pins
    if engine.beside:
        variables = {"PYTHONPATH": str(folder)}
        commands = [[sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", folder, *missing]]
    elif npm:
        variables = {"NODE_PATH": str(folder / "node_modules")}
        if not (tool := shutil.which("npm")):
            raise NotInstalled("needs Node.js (npm), which is not here")
        commands = [[tool, "install", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", folder, *engine.pins]]
    if not done.exists():
        print(
            f"{engine.name}: installing {' '.join(engine.pins)}, about {engine.size_mb} MB, into {folder.name}/",
            flush=True,
        )
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for command in commands:
            ran = subprocess.run(list(map(str, command)), capture_output=True, text=True, errors="replace")
            if ran.returncode:
                said = [line for line in ran.stderr.splitlines() if "ERROR" in line or "error" in line]
                raise NotInstalled(one_line((said or [f"installing ends with code {ran.returncode}"])[-1]))
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
        done.write_text(str(round(size / 1e6)))
    python = sys.executable if npm or engine.beside else str(bins / "python")
    return python, variables


def one_line(message: str) -> str:
    """Return a message in one line without folders of this machine."""
    return re.sub(r"(?:\b[A-Za-z]:)?[/\\](?:[\w.@+-]+[/\\])+", "", " ".join(message.split()))[:200]


def kill(process: subprocess.Popen) -> None:
    """End a process and all that it began."""
    try:
        family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    except psutil.NoSuchProcess:
        return
    for member in family:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait()


def start(engine: Engine, python: str, variables: dict, folder: Path, photos: int, stdin: int) -> subprocess.Popen:
    """Begin a process that runs an engine on the model.onnx and x.npy of a folder."""
    np.save(folder / "few.npy", np.load(folder / "x.npy")[:photos])
    names = [str(folder / name) for name in ("model.onnx", "few.npy", "answers.npy", "report.json")]
    command = [python, str(Path(__file__).with_name("engine_openers.py")), engine.opener, *names]
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONDONTWRITEBYTECODE": "1", **variables}
    with (folder / "log.txt").open("w") as log:
        out = subprocess.PIPE if stdin == subprocess.PIPE else log
        return subprocess.Popen(
            command, cwd=folder, env={**os.environ, **quiet}, stdin=stdin, stdout=out, stderr=log, text=True
        )


def watched(process: subprocess.Popen, limit_s: float, limit_gb: float) -> str:
    """Wait for a process; return "" or, in words, why there is no answer."""
    began = time.monotonic()
    while process.poll() is None:
        time.sleep(0.05)
        try:
            family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            used = sum(member.memory_info().rss for member in family)
        except psutil.Error:  # it ended meanwhile
            continue
        if time.monotonic() - began > limit_s or used > limit_gb * 1e9:
            kill(process)
            return (
                f"no answer within {limit_s:g} s" if used <= limit_gb * 1e9 else f"more than {limit_gb:g} GB of memory"
            )
    return ""


def verdict(found: np.ndarray, right: np.ndarray, arithmetic: str) -> dict:
    """Judge logits (N, classes): "right", "off by rounding" (as much as the file's arithmetic explains) or "wrong"."""
    if found.shape != right.shape:
        return {"verdict": "wrong", "message": f"answers of shape {found.shape[1:]}, needed {right.shape[1:]}"}
    with np.errstate(invalid="ignore"):
        errors = np.abs(found - right).max(axis=1) / np.abs(right).max(axis=1)
    errors, agrees = np.where(np.isfinite(errors), errors, np.inf), found.argmax(axis=1) == right.argmax(axis=1)
    name = "right" if errors.max() <= RIGHT and agrees.all() else "wrong"
    if name == "wrong" and errors.max() <= ROUNDING[arithmetic]:
        name = "off by rounding"
    told = {"verdict": name, "error_share": f"{errors.max():.2g}", "top1": f"{agrees.mean():.3g}"}
    told["bound"] = f"{ROUNDING[arithmetic]:g}"
    return told | {"errors": " ".join(f"{e:.1e}" for e in errors), "agrees": "".join("01"[int(a)] for a in agrees)}


def ask(engine: Engine, python: str, variables: dict, source: Path, arithmetic: str, limit_s: float = LIMIT_S) -> dict:
    """Run an engine in a process of its own on a copy of a kind's folder; return verdict, message and numbers."""
    folder = source.parent / f"running-{os.getpid()}"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("float.onnx*", "right.npy"))
    process = start(engine, python, variables, folder, engine.photos, subprocess.DEVNULL)
    try:
        lack, report, answers = watched(process, limit_s, LIMIT_GB), folder / "report.json", folder / "answers.npy"
        if lack or not report.exists():
            return {"verdict": "no answer", "message": lack or ENDED}
        said = json.loads(report.read_text("utf-8"))
        if "refused" in said:
            return {"verdict": "refuses", "message": one_line(said["refused"])}
        right = np.load(source / "right.npy")[: engine.photos]
        row = verdict(np.load(answers), right, arithmetic)
        told = "" if row["verdict"] == "right" else f"off by {row.get('error_share')} of the largest logit"
        return {
            "photos": len(right),
            "message": said["said"] or told or "PyTorch's logits",
            "plugin_nodes": said["nodes"],
        } | row
    finally:
        kill(process)
        shutil.rmtree(folder, ignore_errors=True)


def in_turns(engine: Engine, python: str, variables: dict, source: Path) -> str:
    """Time an engine and ONNX Runtime, twice, in turns; return the ratio, "" where the two ONNX Runtimes differ."""
    running, folders = [], [source.parent / f"timing-{os.getpid()}-{n}" for n in range(3)]
    sides: list[tuple[Engine, str, dict]] = [(engine, python, variables), *[(ENGINES[0], sys.executable, {})] * 2]
    times: list[list[float]] = [[], [], []]
    try:
        for folder, (who, its_python, its_variables) in zip(folders, sides, strict=True):
            shutil.copytree(source, folder, dirs_exist_ok=True)
            running.append(start(who, its_python, its_variables, folder, 1, subprocess.PIPE))
        for _ in range(TURNS):
            for process, own in zip(running, times, strict=True):
                assert process.stdin and process.stdout  # both are pipes
                print(file=process.stdin, flush=True)
                own.append(next(float(line[3:]) for line in process.stdout if line.startswith("ms ")))
        its, ort, again = (statistics.median(own[2:]) for own in times)
        return f"{its / ort:.2g}" if abs(again / ort - 1) <= NOISE else ""
    except (StopIteration, OSError):  # it ended; without a time there is no ratio
        return ""
    finally:
        for process, folder in zip(running, folders, strict=False):
            kill(process)
            shutil.rmtree(folder, ignore_errors=True)


def problem(path: Path, shape: Sequence[int] | None) -> str:
    """Say why no engine can be asked about a reader's file; "" if all can."""
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's DecodeError is private
        return f"{path.name} is no ONNX file ({type(error).__name__}): export it anew."
    tensors = [tensor for tensor in model.graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL]
    beside = {entry.value for tensor in tensors for entry in tensor.external_data if entry.key == "location"}
    for name in sorted(beside):
        if not (path.parent / name).exists():
            return f"Its weights are in {name}, which is not beside it: copy both files together."
    own = {opset.domain for opset in model.functions} | KNOWN_DOMAINS
    for node in model.graph.node:
        if node.domain not in own:
            return f"It has a custom operator, {node.domain}::{node.op_type}: only an engine built with it opens it."
    axes = model.graph.input[0].type.tensor_type.shape.dim
    if shape is None and not all(axis.dim_value for axis in axes):
        return "Its input has no fixed shape: give one, such as --input 1,3,224,224."
    return ""


def own_file(path: Path, shape: Sequence[int] | None, folder: Path) -> Path:
    """Put a reader's file, three random inputs and ONNX Runtime's unoptimised answers into a folder; return it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    onnx.save(onnx.load(path), folder / "model.onnx")  # with its weights inside: below 2 GB
    axes = onnx.load(path, load_external_data=False).graph.input[0].type.tensor_type.shape.dim
    size = list(shape or [axis.dim_value for axis in axes])
    x = np.random.default_rng(settings.SEED).standard_normal((3, *size[1:]), dtype=np.float32)
    np.save(folder / "x.npy", x)
    np.save(folder / "right.npy", engine_files.by_ort(folder / "model.onnx", x).reshape(3, -1))
    return folder


def read(path: Path) -> pd.DataFrame:
    """Read the atlas: one row per engine and kind of file, all text as it was written."""
    return pd.read_csv(path, dtype=str, keep_default_na=False) if path.exists() else pd.DataFrame(columns=COLUMNS)


def write(row: dict, path: Path) -> None:
    """Add a row, in place of that of the same engine and kind; whoever kills us leaves the old table or the new."""
    table = read(path)
    table = table[(table["engine"] != row["engine"]) | (table["kind"] != row["kind"])]
    line = {column: str(row.get(column, "")) for column in COLUMNS}
    table = pd.concat([table, pd.DataFrame([line])], ignore_index=True)
    table.to_csv(path.with_suffix(".new"), index=False, lineterminator="\n")
    path.with_suffix(".new").replace(path)


def run(
    engines: Sequence[Engine] = ENGINES,
    kinds: dict[str, tuple[Path, str]] | None = None,
    *,
    again: bool = False,
    timed: bool = False,
    keep: bool = True,
    table: Path = TABLE,
    limit_s: float = LIMIT_S,
) -> pd.DataFrame:
    """Ask engines about files, one process per pair; a row is written as soon as it is known. Return the atlas.

    Args:
        engines: which ones.
        kinds: name -> (folder with model.onnx, x.npy and right.npy; arithmetic of the file); the atlas's if not given.
        again: run pairs whose row (same version) stands.
        timed: time right answers of ``TIMED`` kinds beside ONNX Runtime.
        keep: leave the environments.
        table: the CSV file.
        limit_s: of each process.
    """
    if kinds is None:
        where = {kind.name: FOLDER / "files" / kind.name.replace(" ", "-") for kind in engine_files.KINDS.values()}
        kinds = {
            kind.name: (engine_files.make(kind, where[kind.name]).parent, kind.arithmetic)
            for kind in engine_files.KINDS.values()
        }
    for folder in (FOLDER / "files").glob("*-*/few.npy"):  # of a run that was killed
        owner = re.fullmatch(r"(?:running|timing)-(\d+)(?:-\d)?", folder.parent.name)
        if owner and not psutil.pid_exists(int(owner[1])):
            shutil.rmtree(folder.parent)
    here = f"{machine.cpu_name()}, {sys.platform}"
    for engine in engines:
        place = FOLDER / "environments" / re.sub(r"\W+", "-", engine.name.lower())
        stand = read(table)
        stand = stand[
            (stand["engine"] == engine.name) & (stand["version"] == engine.version) & (stand["verdict"] != "not run")
        ]
        wanted = {kind: where for kind, where in kinds.items() if again or kind not in set(stand["kind"])}
        if not wanted:
            continue
        lack = ""
        try:
            python, variables = environment(engine, place)
        except NotInstalled as error:
            lack = str(error)
        size = (place / "installed").read_text() if (place / "installed").exists() else engine.size_mb
        about = {"engine": engine.name, "version": engine.version, "install_mb": size, "machine": here}
        about |= {
            "python": engine.python or f"{sys.version_info[0]}.{sys.version_info[1]}",
            "date": datetime.date.today().isoformat(),
        }
        for kind, (source, arithmetic) in wanted.items():
            if lack or kind in engine.left_out:
                row = {"verdict": "not installable" if lack else "no answer", "message": lack or engine.left_out[kind]}
            else:
                row = ask(engine, python, variables, source, arithmetic, limit_s)
                if timed and kind in TIMED and row["verdict"] in ("right", "off by rounding"):
                    row["time_ratio"] = in_turns(engine, python, variables, source)
            write(about | {"kind": kind} | row, table)
            print(f"{engine.name} | {kind} | {row['verdict']} | {row['message']}", flush=True)
        if not keep:
            shutil.rmtree(place, ignore_errors=True)
    return read(table)


def command(names: Sequence[str], *, keep: bool, again: bool, timed: bool, file: Path | None, shape: str) -> int:
    """Do what ``python -m course engines`` was asked for; return the exit code."""
    if unknown := set(names) - {engine.name for engine in ENGINES}:
        raise ValueError(f"There is no engine {', '.join(unknown)}; needed: {', '.join(e.name for e in ENGINES)}.")
    chosen = [engine for engine in ENGINES if not names or engine.name in names]
    if file is None:
        found = run(chosen, again=again, timed=timed, keep=keep)
        print(found.pivot(index="engine", columns="kind", values="verdict").to_string())
        return 0
    size = [int(axis) for axis in shape.split(",")] if shape else None
    if lack := problem(file, size):
        print("\n".join(f"{engine.name} | not tried | {lack}" for engine in chosen))
        return 1
    source, table = own_file(file, size, FOLDER / "files" / "own"), FOLDER / "own.csv"
    table.unlink(missing_ok=True)
    run(chosen, {file.name: (source, "float32")}, keep=keep, table=table)
    return 0
