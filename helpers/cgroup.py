"""A container's limits on Linux, cgroup version 1 or 2: the tightest of this process's own group and all above it."""

from collections.abc import Iterator
from pathlib import Path

GROUPS, MOUNT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


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
