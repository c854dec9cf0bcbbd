"""helpers/machine.py: what it says follows the machine."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from types import SimpleNamespace

import onnxruntime
import psutil
import pytest
import torch

from helpers import machine

GIB = 2**30


@pytest.fixture
def capabilities(monkeypatch):
    """Return a dict that stands in for the processor's answer."""
    found = {}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    return found


def test_versions_are_those_of_the_imported_modules(monkeypatch):
    """With onnxruntime-gpu there is no distribution called onnxruntime, or one that is not what is imported."""

    def hidden(name):
        raise PackageNotFoundError(name)

    expected = {name: version(name).partition("+")[0] for name in machine.PACKAGES}
    monkeypatch.setattr("importlib.metadata.version", hidden)
    monkeypatch.setattr("importlib.metadata.distribution", hidden)
    assert {name: machine.version(name) for name in machine.PACKAGES} == expected
    monkeypatch.setattr(onnxruntime, "__version__", "9.8.7")
    assert "onnxruntime 9.8.7" in machine.versions_line()
    machine.fingerprint.cache_clear()
    assert machine.fingerprint()["versions"]["onnxruntime"] == "9.8.7"
    machine.fingerprint.cache_clear()


def test_versions_line_names_every_version_and_the_machine():
    line = machine.versions_line()
    assert line.count("\n") == 1, "it must be two lines: versions, then hardware"
    for package in machine.PACKAGES:
        assert f"{package} {version(package)}" in line
    for part in (f"Python {platform.python_version()}", machine.cpu_name(), f"{machine.physical_cores()} core", "GiB"):
        assert part in line


@pytest.mark.parametrize(
    ("text", "expected_gib"),
    [("2147483648\n", 2), ("max\n", 8), (str(64 * GIB), 8), ("", 8), ("9223372036854771712", 8), (None, 8)],
    ids=["lower", "max", "higher", "empty", "no limit as number", "no file"],
)
def test_memory_limit_honours_the_container(monkeypatch, tmp_path, text, expected_gib):
    limit = tmp_path / "memory.max"
    if text is not None:
        limit.write_text(text)
    monkeypatch.setattr(machine, "CGROUP_LIMIT", limit)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=8 * GIB))
    assert machine.memory_limit_gib() == expected_gib


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system has no processor affinity")
def test_usable_cores_follow_the_affinity(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    assert machine.usable_cores() == 1, "a process tied to one core is told that it has more"


@pytest.fixture
def fake_cpus(monkeypatch, tmp_path):
    """Return a function that says what Linux tells of each logical processor: siblings, capacities, nominal clock."""
    monkeypatch.setattr(machine, "CPUS", tmp_path)
    monkeypatch.setattr(platform, "system", lambda: "Linux")

    def tells(*, siblings=(), capacities=(), base_khz=None):
        for number, text in enumerate(siblings):
            (tmp_path / f"cpu{number}" / "topology").mkdir(parents=True)
            (tmp_path / f"cpu{number}" / "topology" / "thread_siblings_list").write_text(text)
        for number, value in enumerate(capacities):
            (tmp_path / f"cpu{number}").mkdir(exist_ok=True)
            (tmp_path / f"cpu{number}" / "cpu_capacity").write_text(str(value))
        if base_khz:
            (tmp_path / "cpu0" / "cpufreq").mkdir(parents=True, exist_ok=True)
            (tmp_path / "cpu0" / "cpufreq" / "base_frequency").write_text(f"{base_khz}\n")

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
    fake_cpus(siblings=siblings)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: affinity)
    monkeypatch.setattr(machine, "usable_cores", lambda: usable)
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: 6 if logical else 3)
    assert machine.physical_cores() == expected


@pytest.mark.parametrize(
    ("capacities", "expected"),
    [([1024, 1024, 400, 400, 400], "2 fast + 3 slow"), ([1024, 1024], None), ([], None)],
)
def test_fast_and_slow_cores_are_told_apart(fake_cpus, capacities, expected):
    fake_cpus(capacities=capacities)
    assert machine.core_kinds() == expected
    assert ("fast" in machine.versions_line()) == bool(expected)


@pytest.mark.parametrize(("said", "expected"), [("8\n4\n", "8 fast + 4 slow"), ("8\n", None)])
def test_macos_is_asked_by_its_own_command(monkeypatch, said, expected):
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(machine.subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=said))
    assert machine.core_kinds() == expected


def test_nominal_clock_and_kinds_of_cores_are_in_the_fingerprint_where_they_are_told(fake_cpus):
    assert not {"nominal_mhz", "core_kinds"} & set(machine._cpu_details()), "a virtual machine that hides them"
    fake_cpus(base_khz=2_600_000, capacities=[1024, 400])
    found = machine._cpu_details()
    assert (found["nominal_mhz"], found["core_kinds"]) == (2600, "1 fast + 1 slow")


def test_processor_that_names_itself(capabilities):
    capabilities["cpu_name"] = "Test CPU 3000"
    assert machine.cpu_name() == "Test CPU 3000"


def test_processor_without_a_name_still_has_one(capabilities):
    assert machine.cpu_name() in {platform.processor(), platform.machine()} - {""}


@pytest.mark.parametrize(
    ("answer", "architecture", "expected"),
    [
        ({"avx2": True, "avx512_f": False}, "x86_64", {"AVX2"}),
        ({"avx2": True, "avx512_f": True, "avx512_vnni": True}, "AMD64", {"AVX2", "AVX-512", "AVX-512 VNNI"}),
        ({}, "aarch64", {"NEON"}),
        ({}, "arm64", {"NEON"}),
        ({}, "riscv64", set()),
    ],
)
def test_instruction_sets_follow_the_processor(monkeypatch, capabilities, answer, architecture, expected):
    capabilities.update(answer)
    monkeypatch.setattr(platform, "machine", lambda: architecture)
    found = machine.instruction_sets()
    assert len(found) == len(machine.INSTRUCTION_SETS), "an instruction set has no answer"
    assert {name for name, there in found.items() if there} == expected


def test_instruction_sets_are_facts_that_torch_knows():
    """On x86 a misspelt name would read as "not there" for ever."""
    if platform.machine() not in {"x86_64", "AMD64"}:
        pytest.skip(f"torch lists x86 names on x86 only; this is {platform.machine()}")
    unknown = set(machine.INSTRUCTION_SETS) - {"neon", "dot", "i8mm", "bf16"} - set(torch.cpu.get_capabilities())
    assert not unknown, f"torch.cpu.get_capabilities() knows no {unknown}"


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"),
    [(True, False, "Test GPU"), (False, True, "Apple GPU (MPS)"), (False, False, None)],
)
def test_gpu_name(monkeypatch, cuda, mps, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Test GPU")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert machine.gpu_name() == expected
    assert f"GPU: {expected or 'none'}" in machine.versions_line()


@pytest.fixture
def fresh_fingerprint():
    machine.fingerprint.cache_clear()
    yield
    machine.fingerprint.cache_clear()


def test_identity_is_short_and_stays(fresh_fingerprint):
    first = machine.identity()
    machine.fingerprint.cache_clear()
    assert machine.identity() == first, "the same machine got two names"
    assert len(first) == 10 and first.isalnum()


@pytest.mark.parametrize("what", ["cpu_name", "usable_cores", "gpu_name", "instruction_sets"])
def test_identity_changes_with_the_machine(monkeypatch, fresh_fingerprint, what):
    first = machine.identity()
    machine.fingerprint.cache_clear()
    monkeypatch.setattr(
        machine, what, {"usable_cores": lambda: 77, "instruction_sets": dict}.get(what, lambda: "other")
    )
    assert machine.identity() != first, f"another {what} and the same identity"


def test_identity_changes_with_the_versions(monkeypatch, fresh_fingerprint):
    first = machine.identity()
    machine.fingerprint.cache_clear()
    monkeypatch.setattr(machine, "version", lambda name: "0.0.1" if name == "onnxruntime" else version(name))
    assert machine.identity() != first


def test_a_gpu_without_nvidia_smi_has_an_unknown_driver(monkeypatch, fresh_fingerprint):
    assert machine.fingerprint()["gpu_driver"] is None or torch.cuda.is_available()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("PATH", "")
    assert machine._gpu_driver() == "unknown"
