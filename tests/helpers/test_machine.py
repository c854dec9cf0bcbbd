"""helpers/machine.py: what it says follows the machine."""

import os
import platform
from types import SimpleNamespace

import onnxruntime
import psutil
import pytest
import torch

from helpers import counters, machine

GIB = 2**30


@pytest.fixture
def fresh_fingerprint():
    machine.fingerprint.cache_clear()
    yield
    machine.fingerprint.cache_clear()


def test_versions_line_names_the_imported_modules(monkeypatch):
    """With onnxruntime-gpu there is no distribution called onnxruntime, or one that is not what is imported."""
    monkeypatch.setattr(onnxruntime, "__version__", "9.8.7")
    assert "onnxruntime 9.8.7" in machine.versions_line() and "+" not in machine.version("torch")


@pytest.mark.parametrize(("limits", "expected_gib"), [([], 8), ([(2 * GIB, GIB)], 2), ([(64 * GIB, GIB)], 8)])
def test_memory_limit_honours_the_container(monkeypatch, limits, expected_gib):
    monkeypatch.setattr(counters, "memory_limits", lambda: limits)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=8 * GIB))
    assert machine.memory_limit_gib() == expected_gib


@pytest.fixture
def fake_cpus(monkeypatch, tmp_path):
    """Return a function that writes what Linux tells of each logical processor, in a file of a name."""
    monkeypatch.setattr(machine, "CPUS", tmp_path)
    monkeypatch.setattr(platform, "system", lambda: "Linux")

    def tells(name, texts):
        for number, text in enumerate(texts):
            path = tmp_path / f"cpu{number}" / name
            path.parent.mkdir(parents=True)
            path.write_text(str(text))

    return tells


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system has no processor affinity")
@pytest.mark.parametrize(
    ("siblings", "affinity", "usable", "expected"),
    [
        (["0,2", "1,3", "0,2", "1,3"], {0, 1, 2, 3}, 4, 2),
        (["0,2", "1,3", "0,2", "1,3"], {0, 2}, 2, 1),
        (["0,2", "1,3", "0,2", "1,3"], {0, 1, 2, 3}, 1, 1),
        (["0", "1", "2", "3"], {1, 3}, 2, 2),
        ([], {0, 1, 2, 3}, 4, 3),
    ],
    ids=["two threads a core", "both threads of one core", "a quota of one", "affinity", "Linux says nothing"],
)
def test_physical_cores_follow_siblings_affinity_and_quota(
    monkeypatch, fake_cpus, siblings, affinity, usable, expected
):
    fake_cpus("topology/thread_siblings_list", siblings)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: affinity)
    monkeypatch.setattr(machine, "usable_cores", lambda: usable)
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: 6 if logical else 3)
    assert machine.physical_cores() == expected


@pytest.mark.parametrize(
    ("capacities", "expected"), [([1024, 1024, 400, 400, 400], "2 fast + 3 slow"), ([1024, 1024], None), ([], None)]
)
def test_fast_and_slow_cores_are_told_apart(fake_cpus, capacities, expected):
    fake_cpus("cpu_capacity", capacities)
    assert machine.core_kinds() == expected
    assert ("fast" in machine.versions_line()) == bool(expected)


@pytest.mark.parametrize(
    ("answer", "architecture", "expected"),
    [
        ({"avx2": True, "avx512_f": True, "avx512_vnni": False}, "AMD64", {"AVX2", "AVX-512"}),
        ({}, "arm64", {"NEON"}),
        ({}, "riscv64", set()),
    ],
)
def test_instruction_sets_follow_the_processor(monkeypatch, answer, architecture, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: answer)
    monkeypatch.setattr(platform, "machine", lambda: architecture)
    found = machine.instruction_sets()
    assert len(found) == len(machine.INSTRUCTION_SETS), "an instruction set has no answer"
    assert {name for name, there in found.items() if there} == expected
    assert machine.int8_saturates() == (architecture == "AMD64")


def test_instruction_sets_are_facts_that_torch_knows():
    """On x86 a misspelt name would read as "not there" for ever."""
    if platform.machine() not in {"x86_64", "AMD64"}:
        pytest.skip(f"torch lists x86 names on x86 only; this is {platform.machine()}")
    unknown = set(machine.INSTRUCTION_SETS) - {"neon", "dot", "i8mm", "bf16"} - set(torch.cpu.get_capabilities())
    assert not unknown, f"torch.cpu.get_capabilities() knows no {unknown}"


CHANGES = {
    "cpu_name": lambda: "other",
    "usable_cores": lambda: 77,
    "gpu_name": lambda: "other",
    "instruction_sets": dict,
    "version": lambda name: "0.0.1",
}


@pytest.mark.parametrize("what", CHANGES)
def test_identity_stays_and_changes_with_the_machine_and_the_versions(monkeypatch, fresh_fingerprint, what):
    first = machine.identity()
    machine.fingerprint.cache_clear()
    assert machine.identity() == first and len(first) == 10 and first.isalnum()
    machine.fingerprint.cache_clear()
    monkeypatch.setattr(machine, what, CHANGES[what])
    assert machine.identity() != first, f"another {what} and the same identity"


def test_a_gpu_without_nvidia_smi_has_an_unknown_driver(monkeypatch, fresh_fingerprint):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Test GPU")
    monkeypatch.setenv("PATH", "")
    assert machine.fingerprint()["gpu_driver"] == "unknown"
