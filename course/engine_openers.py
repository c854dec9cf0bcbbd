# ruff: noqa: D103  (an opener is named for its engine, and all do the same)
"""How each engine opens a file and runs it. This file alone, with NumPy, runs in an environment that has one engine.

``python engine_openers.py OPENER model.onnx x.npy answers.npy report.json``: OPENER is a function of this file, or
``other.py:function``. Each takes the file's path and returns a function from an input (1, 3, H, W) to logits.
"""

import json
import os
import runpy
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import numpy as np


def onnxruntime(path):
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {session.get_inputs()[0].name: x})[0]


def ort_format(path, style="Fixed"):
    command = [
        sys.executable,
        "-m",
        "onnxruntime.tools.convert_onnx_models_to_ort",
        path,
        "--optimization_style",
        style,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    middle = ".with_runtime_opt" if style == "Runtime" else ""
    target = Path(path).with_suffix(f"{middle}.ort")
    if not target.exists():
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    return onnxruntime(str(target))


def ort_format_runtime(path):
    return ort_format(path, "Runtime")


def _plugin(path, module):
    import onnxruntime as ort

    plugin, before = import_module(module), {device.ep_name for device in ort.get_ep_devices()}
    ort.register_execution_provider_library(module, str(plugin.get_library_path()))
    devices = [device for device in ort.get_ep_devices() if device.ep_name not in before]
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if devices:
        options.add_provider_for_devices(devices[:1], {})
    session = ort.InferenceSession(path, options)
    parts = [(part.ep_name, len(part.get_nodes())) for part in session.get_provider_graph_assignment_info()]
    own = sum(count for name, count in parts if name != "CPUExecutionProvider")

    def run(x):
        return session.run(None, {session.get_inputs()[0].name: x})[0]

    run.nodes = f"{own} of {sum(count for _, count in parts)}"
    lack = "the plugin offers no device here" if not devices else "" if own else "the plugin takes no node"
    run.said = lack and f"{lack}; no error, the CPU provider runs all"
    return run


def plugin_openvino(path):
    return _plugin(path, "onnxruntime_ep_openvino")


def plugin_webgpu(path):
    return _plugin(path, "onnxruntime_ep_webgpu")


def plugin_nxrt(path):
    return _plugin(path, "nxrt_ep_cpu")


def reference(path):
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(path)
    return lambda x: evaluator.run(None, {evaluator.input_names[0]: x})[0]


def openvino(path, **hints):
    sys.modules.setdefault("openvino_telemetry", None)
    import openvino as ov

    request = ov.Core().compile_model(path, "CPU", hints).create_infer_request()
    return lambda x: request.infer([x])[0].copy()


def openvino_f32(path):
    return openvino(path, INFERENCE_PRECISION_HINT="f32")


def opencv(path, engine="ENGINE_AUTO"):
    import cv2

    network = cv2.dnn.readNetFromONNX(path, getattr(cv2.dnn, engine))

    def run(x):
        network.setInput(x)
        return network.forward().copy()

    return run


def opencv_classic(path):
    return opencv(path, "ENGINE_CLASSIC")


def ncnn(path):
    import ncnn as engine
    import onnx
    import pnnx

    axes = onnx.load(path, load_external_data=False).graph.input[0].type.tensor_type.shape.dim
    shape = ",".join(str(axis.dim_value or default) for axis, default in zip(axes, (1, 3, 224, 224), strict=True))
    command = [pnnx.EXEC_PATH, Path(path).name, f"inputshape=[{shape}]", "fp16=0"]
    done = subprocess.run(command, cwd=Path(path).parent, capture_output=True, text=True)
    net = engine.Net()
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    param, weights = (str(Path(path).with_suffix(f".ncnn.{kind}")) for kind in ("param", "bin"))
    if done.returncode or not Path(param).exists() or net.load_param(param) or net.load_model(weights):
        odd = [line for line in (done.stdout + done.stderr).splitlines() if "nsupported" in line or "ailed" in line]
        raise RuntimeError(f"pnnx: {(odd or ['no file that ncnn reads'])[0]}")

    def run(x):
        extractor = net.create_extractor()
        extractor.input("in0", engine.Mat(np.ascontiguousarray(x[0])))
        code, found = extractor.extract("out0")
        if code:
            raise RuntimeError(f"ncnn's extract returns {code}")
        return np.array(found)[None]

    return run


def tract(path):
    import tract as engine

    runnable = engine.onnx().load(path).into_model().into_runnable()
    return lambda x: runnable.run([x])[0].to_numpy()


def tinygrad(path):
    from tinygrad import Tensor
    from tinygrad.nn.onnx import OnnxRunner

    runner = OnnxRunner(path)
    name = next(iter(runner.graph_inputs))
    return lambda x: next(iter(runner({name: Tensor(x)}).values())).numpy()


def mnn(path):
    import _tools  # the converter's library: its command asks the package index for newer ones
    import MNN

    target = str(Path(path).with_suffix(".mnn"))
    _tools.mnnconvert(["mnnconvert", "-f", "ONNX", "--modelFile", path, "--MNNModel", target])
    if not Path(target).exists():
        raise RuntimeError("the converter says Converted Failed! and raises nothing")
    name = "photo" if b"photo" in Path(target).read_bytes() else "input"
    network = MNN.nn.load_module_from_file(target, [name], ["logits"])

    def run(x):
        tensor = MNN.expr.placeholder(list(x.shape), MNN.expr.NCHW)
        tensor.write(x.ravel().tolist())
        found = MNN.expr.convert(network.forward([tensor])[0], MNN.expr.NCHW)
        return np.array(found.read()).copy().reshape(1, -1)

    return run


def nxrt(path):
    import nxrt as engine

    session = engine.InferenceSession(path)
    return lambda x: session.run(None, {session.get_inputs()[0].name: x})[0]


def onnx2torch(path):
    import torch
    from onnx2torch import convert

    network = convert(path).eval()
    return torch.inference_mode()(lambda x: network(torch.from_numpy(x)).numpy())


NODE = """
const ort = require(process.argv[1]), fs = require('fs'), lines = require('readline').createInterface(process.stdin)
ort.env.logLevel = 'fatal'
async function main() {
  const web = process.argv[1].endsWith('web')  // it opens no files: it is given bytes, of weights beside the file, too
  const beside = web ? fs.readdirSync('.').filter(name => name.endsWith('.data')) : []
  const externalData = beside.map(path => ({path, data: fs.readFileSync(path)}))
  const file = web ? fs.readFileSync(process.argv[2]) : process.argv[2]
  const session = await ort.InferenceSession.create(file, web ? {externalData} : {})
  console.log('opened')
  for await (const line of lines) {
    const x = fs.readFileSync('x.raw'), numbers = new Float32Array(x.buffer, x.byteOffset, x.length / 4)
    const found = await session.run({[session.inputNames[0]]: new ort.Tensor('float32', numbers, JSON.parse(line))})
    const y = found[session.outputNames[0]].data
    fs.writeFileSync('y.raw', Buffer.from(y.buffer, y.byteOffset, y.byteLength))
    console.log('ran')
  }
}
main().catch(e => { console.log('error ' + String(e.message).split('\\n')[0]); process.exit(1) })
"""


def _node(path, package):
    folder = Path(path).parent
    node = subprocess.Popen(
        ["node", "-e", NODE, package, path], cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )

    def said():
        for line in node.stdout:
            if line.startswith("error"):
                raise RuntimeError(line[6:].strip())
            if line.strip() in ("opened", "ran"):
                return
        raise RuntimeError("node ended without an answer")

    said()

    def run(x):
        (folder / "x.raw").write_bytes(x.tobytes())
        node.stdin.write(json.dumps(x.shape) + "\n")
        node.stdin.flush()
        said()
        return np.frombuffer((folder / "y.raw").read_bytes(), np.float32)[None]

    return run


def node(path):
    return _node(path, "onnxruntime-node")


def wasm(path):
    return _node(path, "onnxruntime-web")


def iree(path):
    import iree.compiler.tools as tools
    import iree.runtime as runtime
    from iree.compiler.tools.import_onnx.__main__ import main, parse_arguments

    text = str(Path(path).with_suffix(".mlir"))
    main(parse_arguments([path, "-o", text]))
    flags = ["--iree-llvmcpu-target-cpu=host"]
    binary = tools.compile_file(text, input_type="onnx", target_backends=["llvm-cpu"], extra_args=flags)
    config = runtime.Config("local-task")
    module = runtime.load_vm_module(runtime.VmModule.copy_buffer(config.vm_instance, binary), config)
    function = module[
        next(name for name in module.vm_module.function_names if not name.startswith("__") and "$" not in name)
    ]
    return lambda x: function(x).to_host().copy()  # the next run writes into the same buffer


def tvm(path):
    import onnx
    import tvm as engine
    from tvm import relax
    from tvm.relax.frontend.onnx import from_onnx

    model = onnx.load(path)
    axes = model.graph.input[0].type.tensor_type.shape.dim
    shape = [axis.dim_value or default for axis, default in zip(axes, (1, 3, 224, 224), strict=True)]
    module = from_onnx(model, {model.graph.input[0].name: shape}, keep_params_in_input=False)
    module = relax.get_pipeline("zero")(relax.transform.DecomposeOpsForInference()(module))
    machine = relax.VirtualMachine(engine.compile(module, target="llvm"), engine.cpu())

    def run(x):
        found = machine["main"](engine.runtime.tensor(x))
        return (found if hasattr(found, "numpy") else found[0]).numpy()

    return run


def litert(path):
    import onnx2tf
    from ai_edge_litert.interpreter import Interpreter

    folder = Path(path).parent / "tf"
    onnx2tf.convert(input_onnx_file_path=path, output_folder_path=str(folder), non_verbose=True)
    (target,) = folder.glob("*_float32.tflite")
    engine = Interpreter(str(target))
    ends = engine.get_input_details()[0], engine.get_output_details()[0]

    def run(x):
        x = np.ascontiguousarray(np.moveaxis(x, 1, 3))
        engine.resize_tensor_input(ends[0]["index"], x.shape)
        engine.allocate_tensors()
        engine.set_tensor(ends[0]["index"], x)
        engine.invoke()
        return engine.get_tensor(ends[1]["index"])

    return run


def jax(path):
    import onnx
    from jaxonnxruntime import call_onnx

    model = onnx.load(path)
    name = model.graph.input[0].name

    def run(x):
        function, weights = call_onnx.call_onnx_model(model, {name: x})
        return np.asarray(function(weights, {name: x})[0])

    return run


def main(opener, path, photos, answers, report):
    """Open, run each photo, and write the answers and what there is to say; then time one run per line of stdin."""
    file, _, function = opener.rpartition(":")
    x, said = np.load(photos), {}
    try:
        run = (runpy.run_path(file) if file else globals())[function](path)
        found = np.concatenate([np.asarray(run(x[i : i + 1])).reshape(1, -1) for i in range(len(x))])
        said = {"nodes": getattr(run, "nodes", ""), "said": getattr(run, "said", "")}
        np.save(answers, found)
    except Exception as error:  # each engine raises what it likes, and that is what we want to know
        said = {"refused": f"{type(error).__name__}: {error}"}
    Path(report).write_text(json.dumps(said), "utf-8")
    for _ in sys.stdin if "refused" not in said else ():
        began = time.perf_counter()
        run(x[:1])
        print(f"ms {1e3 * (time.perf_counter() - began)}", flush=True)
    os._exit(0)  # without the farewells of engines that fail at them


if __name__ == "__main__":
    main(*sys.argv[1:])
