"""What the system counts: page faults, kernel time, other programs' load, and a container's limits.

Taught in notebooks/04_speed_resnet18.ipynb. Limits are those of Linux' cgroups, version 1 or 2: the tightest of this
process's own group and all above it.
"""

import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil

GROUPS, MOUNT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


class Counters(NamedTuple):
    """Counts since some start, or, as a difference, between two moments; NaN where this system has no such counter."""

    wall_s: float
    own_s: float  # processor time of this process, all threads
    system_s: float  # the part of it in the kernel
    busy_s: float  # processor time of all programs
    page_faults: float
    throttled: float  # periods in which a quota stopped this process or its neighbours

    @classmethod
    def read(cls) -> "Counters":
        """Read them now."""
        times = psutil.cpu_times()
        busy_s = sum(getattr(times, name, 0.0) for name in ("user", "nice", "system", "irq", "softirq", "steal"))
        system_s, page_faults = _usage()
        return cls(time.perf_counter(), time.process_time(), system_s, busy_s, page_faults, throttled_periods())

    def since(self, then: "Counters") -> "Counters":
        """Return what was counted from then to now."""
        return Counters(*(now - before for now, before in zip(self, then, strict=True)))

    @property
    def other_cores(self) -> float:
        """CPU cores that other programs used; NaN under a quota, as they take nothing of what it leaves."""
        return math.nan if self.throttled >= 0 or not self.wall_s else max(0, self.busy_s - self.own_s) / self.wall_s


def _usage() -> tuple[float, float]:
    """Return this process's processor seconds in the kernel, and its page faults."""
    if os.name == "nt":
        process = psutil.Process()
        return process.cpu_times().system, getattr(process.memory_info(), "num_page_faults", math.nan)
    import resource

    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_stime, usage.ru_minflt + usage.ru_majflt


def memory_limits() -> list[tuple[int, int]]:
    """Return for each limit that a group sets its bytes, and how many of them are left; none where there is none."""
    found = []
    for folder in _folders("memory"):
        if limit := _number(folder, "memory.max", "memory.limit_in_bytes"):
            used, facts = _number(folder, "memory.current", "memory.usage_in_bytes"), _facts(folder / "memory.stat")
            files_read = facts.get("total_inactive_file", facts.get("inactive_file", 0))  # free for the asking
            found.append((limit, limit - (used or 0) + files_read))
    return found


def throttled_periods() -> float:
    """Return in how many periods a quota has stopped this process or its neighbours, NaN where there is no quota."""
    found = []
    for folder in _folders("cpu"):
        new = folder / "cpu.max"
        if (new.exists() and new.read_text()[:3] != "max") or (_number(folder, "cpu.cfs_quota_us") or -1) > 0:
            found.append(_facts(folder / "cpu.stat").get("nr_throttled", 0))
    return sum(found) if found else math.nan


def _folders(controller: str) -> Iterator[Path]:
    """Yield the group of this process and those above it; a container may show its own as the root."""
    for line in GROUPS.read_text().splitlines() if GROUPS.exists() else ():
        _, controllers, path = line.split(":", 2)
        if not controllers or controller in controllers.split(","):
            top = next(MOUNT / name for name in (controllers, controller, "") if not name or (MOUNT / name).exists())
            group = top / path.strip("/")
            yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(top) and folder.exists())


def _number(folder: Path, *names: str) -> int | None:
    """Return what the first of the files holds that is there; None for "max" and where there is none."""
    text = next((path.read_text().strip() for name in names if (path := folder / name).exists()), "")
    return int(text) if text.lstrip("-").isdigit() else None


def _facts(path: Path) -> dict[str, int]:
    lines = path.read_text().splitlines() if path.exists() else ()
    return {name: int(value) for name, value in (line.split() for line in lines)}
