"""What the system counts: page faults, kernel time, other programs' load, and a container's limits.

Taught in notebooks/04_speed_resnet18.ipynb. Limits are those of Linux' cgroups, version 1 or 2: the tightest of this
process's own group and all above it.
"""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

GROUPS, MOUNT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Counters:
    """What the system counted, at one moment; None where this system has no such counter."""

    wall_s: float
    own_s: float  # processor time of this process, all threads
    system_s: float  # the part of it in the kernel
    busy_s: float  # processor time of all programs
    page_faults: int | None
    throttled: int | None  # periods in which a container's quota stopped its processes

    @classmethod
    def read(cls) -> "Counters":
        """Read them now."""
        times = psutil.cpu_times()
        busy = sum(getattr(times, name, 0.0) for name in ("user", "nice", "system", "irq", "softirq", "steal"))
        faults, system_s = page_faults_and_system_s()
        return cls(time.perf_counter(), time.process_time(), system_s, busy, faults, throttled_periods())

    def since(self, then: "Counters") -> "Seen":
        """Return what happened between two readings."""
        wall_s = self.wall_s - then.wall_s
        other_s = (self.busy_s - then.busy_s) - (self.own_s - then.own_s)
        faults = None if self.page_faults is None else self.page_faults - (then.page_faults or 0)
        if self.throttled is not None:  # in a container with a quota its neighbours take nothing of what it may use
            return Seen(None, faults, (self.system_s - then.system_s) * 1e3, self.throttled - (then.throttled or 0))
        return Seen(max(0.0, other_s / wall_s) if wall_s > 0 else None, faults, (self.system_s - then.system_s) * 1e3)


@dataclass(frozen=True)
class Seen:
    """What the system counted between two readings."""

    other_cores: float | None  # CPU cores that other programs used
    page_faults: int | None
    system_ms: float
    throttled: int | None = None


def page_faults_and_system_s() -> tuple[int | None, float]:
    """Return this process's page faults, None where they are not counted, and its processor seconds in the kernel."""
    if os.name == "nt":
        process = psutil.Process()
        return getattr(process.memory_info(), "num_page_faults", None), process.cpu_times().system
    import resource

    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_minflt + usage.ru_majflt, usage.ru_stime


def memory_limit() -> int | None:
    """Return the most bytes that this process may hold, None where no group limits it."""
    return min((limit for _, limit in _memory()), default=None)


def memory_left() -> int | None:
    """Return how many bytes are left below the tightest limit, None where there is none."""
    left = []
    for folder, limit in _memory():
        used = _number(folder, "memory.current", "memory.usage_in_bytes") or 0
        facts = _facts(folder / "memory.stat")  # files that were read and can be dropped are free for the asking
        left.append(limit - used + facts.get("total_inactive_file", facts.get("inactive_file", 0)))
    return min(left, default=None)


def throttled_periods() -> int | None:
    """Return in how many periods a quota has stopped this process or its neighbours, None where there is no quota."""
    found = []
    for folder in _folders("cpu"):
        quota = folder / "cpu.max"
        has_quota = quota.exists() and not quota.read_text().startswith("max")
        if has_quota or (_number(folder, "cpu.cfs_quota_us") or -1) > 0:
            found.append(_facts(folder / "cpu.stat").get("nr_throttled", 0))
    return sum(found) if found else None


def _folders(controller: str) -> Iterator[Path]:
    """Yield the group of this process and those above it; a container may show its own as the root."""
    for line in GROUPS.read_text().splitlines() if GROUPS.exists() else ():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = MOUNT / (controllers and (controllers if (MOUNT / controllers).exists() else controller))
        group = top / path.strip("/")
        yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(top) and folder.exists())


def _memory() -> Iterator[tuple[Path, int]]:
    for folder in _folders("memory"):
        limit = _number(folder, "memory.max", "memory.limit_in_bytes")
        if limit is not None:
            yield folder, limit


def _number(folder: Path, *names: str) -> int | None:
    """Return what the first of the files holds that is there; None for "max" and where there is none."""
    text = next((path.read_text().strip() for name in names if (path := folder / name).exists()), "")
    return int(text) if text.lstrip("-").isdigit() else None


def _facts(path: Path) -> dict[str, int]:
    lines = path.read_text().splitlines() if path.exists() else ()
    return {name: int(value) for name, value in (line.split() for line in lines)}
