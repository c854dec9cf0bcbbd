"""helpers.counters: what is missing is NaN, and the tightest of all nested limits holds, under cgroups 1 and 2."""

import math

import pytest

from helpers import counters
from helpers.counters import Counters

MIB = 2**20


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """Return a function that writes /proc/self/cgroup and the files of groups, in the place of this machine's."""
    monkeypatch.setattr(counters, "GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(counters, "MOUNT", tmp_path / "mount")

    def write(own, files):
        counters.GROUPS.write_text(own)
        for name, text in files.items():
            path = counters.MOUNT / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")

    return write


V2, V1 = "0::/outer/inner\n", "12:cpu,cpuacct:/outer/inner\n4:memory:/outer/inner\n0::/\n"
NESTED_2 = {
    "outer/memory.max": 800 * MIB,
    "outer/memory.current": 700 * MIB,
    "outer/memory.stat": f"anon 5\ninactive_file {50 * MIB}",
    "outer/inner/memory.max": 500 * MIB,
    "outer/inner/memory.current": 100 * MIB,
}
NESTED_1 = {
    "memory/memory.limit_in_bytes": 2**63 - 4096,
    "memory/outer/memory.limit_in_bytes": 800 * MIB,
    "memory/outer/memory.usage_in_bytes": 700 * MIB,
    "memory/outer/memory.stat": f"inactive_file 0\ntotal_inactive_file {50 * MIB}",
    "memory/outer/inner/memory.limit_in_bytes": 500 * MIB,
    "memory/outer/inner/memory.usage_in_bytes": 100 * MIB,
}


@pytest.mark.parametrize(("own", "files"), [(V2, NESTED_2), (V1, NESTED_1)], ids=["version 2", "version 1"])
def test_memory_is_that_of_the_tightest_group_and_of_all_above(groups, own, files):
    groups(own, files)
    limits = counters.memory_limits()
    assert min(limit for limit, _ in limits) == 500 * MIB
    assert min(left for _, left in limits) == 150 * MIB, "the outer group is nearly full; files read are free again"


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        (V2, {"outer/cpu.max": "200000 100000", "outer/cpu.stat": "usage_usec 5\nnr_throttled 3"}, 3),
        (V2, {"cpu.max": "1 2", "cpu.stat": "nr_throttled 1", "outer/inner/cpu.max": "max 100000"}, 1),
        (V2, {"outer/inner/cpu.max": "max 100000", "outer/inner/cpu.stat": "nr_throttled 3"}, math.nan),
        (V1, {"cpu,cpuacct/outer/cpu.cfs_quota_us": 50000, "cpu,cpuacct/outer/cpu.stat": "nr_throttled 4"}, 4),
        (V1, {"cpu/cpu.cfs_quota_us": -1, "cpu/cpu.stat": "nr_throttled 5"}, math.nan),
        (V2, {}, math.nan),
    ],
    ids=["above", "at the top", "no quota", "version 1", "version 1, no quota", "not mounted"],
)
def test_a_quota_of_any_group_above_throttles(groups, own, files, expected):
    groups(own, files)
    assert counters.memory_limits() == []
    assert counters.throttled_periods() == pytest.approx(expected, nan_ok=True)


def test_differences_tell_what_others_used_and_nothing_under_a_quota():
    before, after = Counters(1, 1, 0.5, 9, 100, math.nan), Counters(3, 2, 1, 13, math.nan, math.nan)
    seen = after.since(before)
    assert (seen.wall_s, seen.system_s, seen.other_cores) == (2, 0.5, 1.5) and math.isnan(seen.page_faults)
    quota = after._replace(throttled=5).since(before._replace(throttled=2))
    assert quota.throttled == 3 and math.isnan(quota.other_cores)
