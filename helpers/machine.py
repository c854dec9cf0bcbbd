"""Facts about the machine that the cells run on: versions, processor, memory, accelerator.

Taught in notebooks/00_deployment_landscape.ipynb.
"""

import hashlib
import json
import os
import platform
import subprocess
from functools import cache
from importlib import import_module
from pathlib import Path

import joblib
import psutil
import torch

from helpers import counters

CPUS = Path("/sys/devices/system/cpu")
PACKAGES = ("torch", "torchvision", "onnx", "onnxruntime", "onnxsim")
INSTRUCTION_SETS = {  # name of the fact in torch.cpu.get_capabilities() -> name in print
    "avx2": "AVX2",
    "avx512_f": "AVX-512",
    "avx512_vnni": "AVX-512 VNNI",
    "avx_vnni": "AVX-VNNI",
    "avx512_bf16": "AVX-512 BF16",
    "amx_tile": "AMX",
    "neon": "NEON",
    "dot": "Arm DOT",
    "i8mm": "Arm I8MM",
    "bf16": "Arm BF16",
}


def version(package: str) -> str:
    """Return the version of the module that is imported: ``onnxruntime`` may come with ``onnxruntime-gpu``."""
    return import_module(package).__version__.removeprefix("v").partition("+")[0]


def cpu_name() -> str:
    """Return the processor's name as it reports itself."""
    return str(torch.cpu.get_capabilities().get("cpu_name") or platform.processor() or platform.machine())


def instruction_sets() -> dict[str, bool]:
    """Return for each instruction set that matters to inference whether this processor has it."""
    found = torch.cpu.get_capabilities()
    is_arm64 = platform.machine().lower() in {"arm64", "aarch64"}  # every 64-bit Arm processor has NEON
    return {name: bool(found.get(key)) or (key == "neon" and is_arm64) for key, name in INSTRUCTION_SETS.items()}


def int8_saturates() -> bool:
    """Return whether sums of INT8 products overflow: x86 without VNNI or AMX adds two in 16 bits (notebook 10)."""
    wide = any(instruction_sets()[name] for name in ("AVX-512 VNNI", "AVX-VNNI", "AMX"))
    return platform.machine().lower() in {"x86_64", "amd64"} and not wide


def usable_cores() -> int:
    """Return how many logical processors this process may use: less what affinity or a container's quota takes away."""
    return joblib.cpu_count()


def physical_cores() -> int:
    """Return how many physical cores this process may use: the threads that engines take by default.

    Two logical processors of one core share its arithmetic units, so a thread on each gains little and disturbs much.
    """
    numbers = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ()
    siblings = [CPUS / f"cpu{number}" / "topology" / "thread_siblings_list" for number in numbers]
    cores = len({path.read_text() for path in siblings if path.exists()})
    return min(cores or psutil.cpu_count(logical=False) or usable_cores(), usable_cores())


def core_kinds() -> str | None:
    """Return how many fast and slow cores there are, such as "8 fast + 4 slow"; None where all are alike."""
    if platform.system() == "Darwin":
        names = ["hw.perflevel0.physicalcpu", "hw.perflevel1.physicalcpu"]
        counts = subprocess.run(["sysctl", "-n", *names], capture_output=True, text=True, check=False).stdout.split()
    else:
        capacities = [path.read_text().strip() for path in CPUS.glob("cpu[0-9]*/cpu_capacity")]
        fast = capacities.count(max(capacities, key=int, default=""))
        counts = [str(fast), str(len(capacities) - fast)] if fast < len(capacities) else []
    return f"{counts[0]} fast + {counts[1]} slow" if len(counts) == 2 else None


def memory_limit_gib() -> float:
    """Return the memory in GiB that this process may use: the machine's, or a container's limit if that is lower."""
    return min([psutil.virtual_memory().total, *(limit for limit, _ in counters.memory_limits())]) / 2**30


def gpu_name() -> str | None:
    """Return the name of the accelerator that PyTorch can use, or None."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    if torch.backends.mps.is_available():
        return "Apple GPU (MPS)"
    return None


def versions_line() -> str:
    """Return one line for the top of a notebook: versions, processor, cores and system."""
    packages = " · ".join(f"{name} {version(name)}" for name in PACKAGES)
    system = f"{platform.system()} {platform.machine()}"
    kinds = f" ({found})" if (found := core_kinds()) else ""
    cores = f"{physical_cores()} core{'s' * (physical_cores() != 1)}{kinds}"
    hardware = f"{cpu_name()}, {cores}, {memory_limit_gib():.0f} GiB · {system} · GPU: {gpu_name() or 'none'}"
    return f"Python {platform.python_version()} · {packages}\n{hardware}"


@cache
def fingerprint() -> dict[str, object]:
    """Return what a measurement depends on: processor, memory, accelerator, system, versions. Taught in notebook 04."""
    return {
        "cpu": cpu_name(),
        **_cpu_details(),
        "instruction_sets": [name for name, there in instruction_sets().items() if there],
        "cores": psutil.cpu_count(),
        "usable_cores": usable_cores(),
        "physical_cores": physical_cores(),
        "memory_gib": round(memory_limit_gib()),
        "gpu": gpu_name(),
        "gpu_driver": (nvidia_smi("driver_version") or "unknown") if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.machine()}",
        "c_library": " ".join(platform.libc_ver()).strip() or None,
        "python": ".".join(platform.python_version_tuple()[:2]),
        "versions": {name: version(name) for name in (*PACKAGES, "numpy")},
    }


def identity() -> str:
    """Return 10 characters that differ between machines and between versions: a hash of the fingerprint."""
    return hashlib.sha256(json.dumps(fingerprint(), sort_keys=True).encode()).hexdigest()[:10]


def _cpu_details() -> dict[str, object]:
    """Return family, model, nominal clock and kinds of cores, each where the system tells it; clouds hide some."""
    path, base = Path("/proc/cpuinfo"), CPUS / "cpu0" / "cpufreq" / "base_frequency"
    lines = path.read_text().split("\n\n")[0].splitlines() if path.exists() else []
    facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    found: dict[str, object] = {
        f"cpu_{name.split()[-1]}": facts[name] for name in ("cpu family", "model") if name in facts
    }
    found["nominal_mhz"] = int(base.read_text()) / 1e3 if base.exists() else None
    found["core_kinds"] = core_kinds()
    return {name: value for name, value in found.items() if value}


def nvidia_smi(query: str) -> str | None:
    """Return what nvidia-smi says of the first GPU, such as its "driver_version"; None where it says nothing."""
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return found.partition("\n")[0].strip() or None
