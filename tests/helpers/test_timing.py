"""helpers/timing.py: known times are recovered, what disturbs is seen, and nothing is given up in silence."""

import gc
import itertools
import math
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

from helpers import machine, timing

QUIET, LOUD = 0.0, 0.5  # shares of the machine that other programs take


class FakeClock:
    """A clock that moves only when something runs or sleeps on it, or when it is read."""

    def __init__(self, reading_s=0.0):
        self.now, self.reading_s, self.slept = 0.0, reading_s, []

    def __call__(self):
        self.now += self.reading_s
        return self.now

    def sleep(self, seconds):
        self.now += seconds
        self.slept.append(seconds)

    def takes(self, ms):
        """Return a backend whose every run takes so long."""

        def run():
            self.now += ms / 1e3

        return run


class FakeCpu:
    """Stands in for ForeignCpu: other programs take these shares, one a stretch, and then always the same."""

    def __init__(self, *shares, then=QUIET):
        self.shares = itertools.chain(shares, itertools.repeat(then))
        self.current = QUIET

    def start(self):
        self.current = next(self.shares)

    def share(self):
        return self.current


class Switching:
    """Backends of one machine: for a while after another one ran, a backend is ten times slower."""

    def __init__(self, clock, slow_s):
        self.clock, self.slow_s = clock, slow_s
        self.running, self.since, self.slow_runs = None, 0.0, 0

    def takes(self, ms):
        def run():
            if self.running is not run:
                self.running, self.since = run, self.clock.now
            slow = self.clock.now - self.since <= self.slow_s
            self.slow_runs += slow
            self.clock.now += ms / 1e3 * (10 if slow else 1)

        return run


def measure(clock, backends, **options):
    """Measure on a fake clock and a quiet machine; the first backend is the reference."""
    defaults = {"reference": next(iter(backends)), "clock": clock, "foreign": FakeCpu(), "sleep": clock.sleep}
    return timing.measure(backends, **defaults | options)


# ---- the numbers


def test_known_times_and_their_ratio_are_recovered():
    clock = FakeClock(reading_s=2e-6)
    found = measure(clock, {f"{ms} ms": clock.takes(ms) for ms in (1, 10, 100)}, reference="10 ms")
    for ms in (1, 10, 100):
        backend = found[f"{ms} ms"]
        assert np.median(backend.times_ms) == pytest.approx(ms, rel=0.005), f"a run of {ms} ms is read wrongly"
        assert backend.ratio == pytest.approx(10 / ms, rel=0.005), f"the ratio of {ms} ms to 10 ms is wrong"
        assert backend.status == "ok", backend.note


@pytest.mark.parametrize("slow_s", [0.0, 0.015], ids=["the first run", "the first 15 ms"])
def test_what_is_slow_after_a_switch_is_not_timed(slow_s):
    clock = FakeClock()
    switching = Switching(clock, slow_s)
    found = measure(clock, {"a": switching.takes(1), "b": switching.takes(4)})
    assert switching.slow_runs > 10, "the test needs backends that are slow after a switch"
    assert found["a"].times_ms == pytest.approx(1), "a run that had not settled was timed"
    assert found["b"].times_ms == pytest.approx(4), "a run that had not settled was timed"


@pytest.mark.parametrize("runs", [1, 5, 7, 50, 51])
@pytest.mark.parametrize("ms", [0.1, 1, 100])
def test_runs_asked_for_are_always_reached(runs, ms):
    clock = FakeClock()
    found = measure(clock, {"a": clock.takes(ms)}, runs=runs, patience_s=0)["a"]
    assert len(found.times_ms) >= runs
    assert len(found.blocks_ms) >= runs / timing.BLOCK, "too few rounds"
    assert all(len(block) >= timing.BLOCK for block in found.blocks_ms), "a block was cut short"


def test_runs_are_reached_on_a_machine_that_is_never_quiet():
    clock = FakeClock()
    found = measure(clock, {"a": clock.takes(1)}, runs=50, patience_s=0, foreign=FakeCpu(then=LOUD))["a"]
    assert len(found.blocks_ms) >= 10 and all(len(block) >= 5 for block in found.blocks_ms)


def test_measurement_is_pytorchs_own_and_has_the_same_median():
    clock = FakeClock(reading_s=3e-5)
    found = measure(clock, {"a": clock.takes(1)})["a"]
    assert isinstance(found.measurement, timing.benchmark.Measurement)
    assert found.measurement.median * 1e3 == pytest.approx(np.median(found.times_ms))
    assert found.measurement.title == "a"


def test_backend_without_times_has_an_empty_array():
    assert timing.Timing("a").times_ms.shape == (0,)


def test_real_clock_gives_finite_times():
    found = timing.measure({"sleep": lambda: time.sleep(0.001)}, reference="sleep", runs=5, patience_s=0)["sleep"]
    assert len(found.times_ms) >= 5 and np.isfinite(found.times_ms).all() and found.times_ms.min() > 0
    assert found.status in ("ok", "noisy")


# ---- rounds


def orders(seed):
    """Return in which order three backends ran, round by round."""
    clock, ran, seen = FakeClock(), [], []

    def named(name):
        wait = clock.takes(1)

        def run():
            ran.append(name)
            wait()

        return run

    def end_of_round(timings):
        seen.append(tuple(dict.fromkeys(ran)))
        ran.clear()

    measure(clock, {name: named(name) for name in "abc"}, runs=100, seed=seed, progress=end_of_round)
    return seen[1:]  # the first one holds the warm-up, too


def test_every_backend_is_in_every_round():
    found = orders(0)
    assert len(found) >= 19
    assert {tuple(sorted(order)) for order in found} == {("a", "b", "c")}


def test_order_of_the_rounds_is_random_and_seeded():
    assert len(set(orders(0))) > 1, "every round has the same order"
    assert orders(0) == orders(0), "the same seed gives another order"
    assert orders(0) != orders(1), "another seed gives the same order"


def test_progress_is_told_after_each_round():
    clock, seen = FakeClock(), []
    measure(clock, {"a": clock.takes(1)}, runs=50, progress=lambda timings: seen.append(len(timings["a"].blocks_ms)))
    assert seen == list(range(1, 11))


def test_timings_come_in_the_order_given():
    clock = FakeClock()
    found = measure(clock, {name: clock.takes(1) for name in "zam"})
    assert list(found) == ["z", "a", "m"] and [backend.name for backend in found.values()] == ["z", "a", "m"]


# ---- other programs


def test_load_that_stays_is_repeated_twice_and_flagged():
    clock = FakeClock()
    found = measure(clock, {"a": clock.takes(1), "b": clock.takes(2)}, runs=50, foreign=FakeCpu(then=LOUD))
    for backend in found.values():
        assert len(backend.blocks_ms) == 10 and len(backend.disturbed_ms) == 20, "not exactly two repeats a round"
        assert backend.foreign_cpu == [LOUD] * 10
        assert backend.status == "noisy"
        assert "50%" in backend.note and "10 of 10 blocks" in backend.note


def test_load_that_ends_is_repeated_once_and_does_no_harm():
    clock = FakeClock()
    found = measure(clock, {"a": clock.takes(1), "b": clock.takes(2)}, runs=50, foreign=FakeCpu(LOUD))
    for backend in found.values():
        assert len(backend.blocks_ms) == 10 and len(backend.disturbed_ms) == 1
        assert backend.foreign_cpu == [QUIET] * 10
        assert (backend.status, backend.note) == ("ok", "")


def test_disturbed_times_are_kept_apart():
    clock, cpu = FakeClock(), FakeCpu(LOUD)

    def run():
        clock.now += (3 if cpu.current == LOUD else 1) / 1e3

    found = measure(clock, {"a": run}, foreign=cpu)["a"]
    assert found.times_ms == pytest.approx(1), "a disturbed block is among the times"
    assert found.disturbed_ms[0] == pytest.approx(3), "the disturbed block was not kept"


@pytest.mark.parametrize(("above", "repeats"), [(0, 0), (1e-6, 1)], ids=["at the limit", "just above"])
def test_limit_itself_is_quiet_enough(above, repeats):
    clock = FakeClock()
    found = measure(clock, {"a": clock.takes(1)}, foreign=FakeCpu(timing.MAX_FOREIGN_CPU + above))["a"]
    assert len(found.disturbed_ms) == repeats


def test_only_the_disturbed_stretch_of_a_round_is_repeated():
    clock = FakeClock()
    found = measure(clock, {"a": clock.takes(100), "b": clock.takes(100)}, foreign=FakeCpu(LOUD))
    assert sorted(len(backend.disturbed_ms) for backend in found.values()) == [0, 1]


def test_it_waits_before_each_repeat():
    clock = FakeClock()
    measure(clock, {"a": clock.takes(1)}, runs=50, foreign=FakeCpu(LOUD, LOUD, QUIET, LOUD))
    assert len(clock.slept) == 3 and all(seconds > 0 for seconds in clock.slept)


# ---- ForeignCpu

IDLE_MACHINE = {"user": 0.0, "nice": 0.0, "system": 0.0, "idle": 0.0, "iowait": 0.0, "guest": 0.0}


@pytest.fixture
def fake_system(monkeypatch):
    """Return a function that says what the system counted between start() and share(), and gives the share."""

    def share(*, wall_s, own_s, cores, **busy_s):
        readings = {"wall": 100.0, "own": 10.0, "times": IDLE_MACHINE | {"user": 1000.0, "system": 500.0}}
        times = SimpleNamespace(perf_counter=lambda: readings["wall"], process_time=lambda: readings["own"])
        system = SimpleNamespace(cpu_times=lambda: SimpleNamespace(**readings["times"]), cpu_count=lambda: cores)
        monkeypatch.setattr(timing, "time", times)
        monkeypatch.setattr(timing, "psutil", system)
        foreign = timing.ForeignCpu()
        foreign.start()
        then = readings["times"]
        readings["wall"] += wall_s
        readings["own"] += own_s
        readings["times"] = then | {name: then.get(name, 0.0) + seconds for name, seconds in busy_s.items()}
        return foreign.share()

    return share


def test_share_of_other_programs_is_exact(fake_system):
    share = fake_system(wall_s=2.0, own_s=1.0, cores=4, user=4.0, system=1.0)
    assert share == pytest.approx((4 + 1 - 1 - 4 * 0.01) / (2 * 4)), "not busy less own less a step a core"


@pytest.mark.parametrize("field", ["user", "nice", "system", "irq", "softirq", "steal"])
def test_every_kind_of_work_counts(fake_system, field):
    assert fake_system(wall_s=1.0, own_s=0.0, cores=2, **{field: 1.02}) == pytest.approx(0.5)


@pytest.mark.parametrize("field", ["idle", "iowait", "guest"])
def test_idling_is_no_work_and_guests_count_once(fake_system, field):
    assert fake_system(wall_s=1.0, own_s=0.0, cores=2, **{field: 1.02}) == 0


@pytest.mark.parametrize("cores", [1, 2, 64])
def test_rounding_of_one_step_a_core_is_not_blamed(fake_system, cores):
    assert fake_system(wall_s=0.3, own_s=0.3, cores=cores, user=0.3 + cores * 0.01) == pytest.approx(0, abs=1e-9)


def test_own_work_that_is_counted_late_gives_no_negative_share(fake_system):
    assert fake_system(wall_s=0.3, own_s=0.6, cores=2, user=0.3) == 0


def test_no_time_at_all_gives_no_share(fake_system):
    assert fake_system(wall_s=0.0, own_s=0.0, cores=2, user=1.0) == 0


def test_real_load_on_every_core_is_seen():
    cores = psutil.cpu_count()
    if machine.usable_cores() < cores / 5:
        pytest.skip(f"this process may use {machine.usable_cores()} of {cores} cores: too few to load the machine")
    hogs = []
    try:
        for _ in range(cores):
            code = "print('busy', flush=True)\nwhile True: pass"
            hogs.append(subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE))
        for hog in hogs:
            hog.stdout.readline()
        foreign = timing.ForeignCpu()
        foreign.start()
        time.sleep(1)
        share = foreign.share()
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()
            hog.stdout.close()
    assert share > timing.MAX_FOREIGN_CPU, f"{cores} busy processes on {cores} cores would not be flagged"


# ---- when it ends


def unsteady(clock, *, rounds=math.inf):
    """Return two backends and the progress that counts their rounds; the second one's time changes every round."""
    done = []

    def run():
        slow = len(done) % 2 if len(done) < rounds else 0
        clock.now += (1 + slow) / 1e3

    return {"steady": clock.takes(1), "unsteady": run}, done.append


def test_uncertain_ratio_is_left_uncertain_after_most_runs():
    clock = FakeClock()
    backends, progress = unsteady(clock)
    found = measure(clock, backends, runs=50, patience_s=math.inf, progress=progress)
    assert len(found["unsteady"].blocks_ms) == timing.MOST * 10
    assert found["unsteady"].status == "noisy" and "95 % interval" in found["unsteady"].note
    assert found["steady"].status == "ok", "the reference has no ratio to be uncertain of"


def test_patience_ends_an_uncertain_ratio():
    clock = FakeClock()
    backends, progress = unsteady(clock)
    found = measure(clock, backends, runs=50, patience_s=3, progress=progress)["unsteady"]
    assert 10 < len(found.blocks_ms) < timing.MOST * 10, "it must go on for 3 s, about 18 rounds, and then end"
    assert found.status == "noisy"


def test_no_patience_ends_with_the_runs_asked_for():
    clock = FakeClock()
    backends, progress = unsteady(clock)
    found = measure(clock, backends, runs=50, patience_s=0, progress=progress)["unsteady"]
    assert len(found.blocks_ms) == 10 and found.status == "noisy"


def test_ratio_that_becomes_certain_ends_it_well():
    clock = FakeClock()
    backends, progress = unsteady(clock, rounds=10)
    found = measure(clock, backends, runs=50, patience_s=math.inf, progress=progress)["unsteady"]
    assert 10 < len(found.blocks_ms) < timing.MOST * 10
    assert (found.status, found.note) == ("ok", "")


def test_time_that_is_up_early_leaves_no_number_for_anyone():
    clock = FakeClock()
    found = measure(clock, {"a": clock.takes(100), "b": clock.takes(100)}, runs=50, max_s=2.5)
    for backend in found.values():
        assert backend.status == "budget" and "2 of 10 rounds" in backend.note


def test_time_that_is_up_after_the_last_run_does_no_harm():
    clock = FakeClock()
    found = measure(clock, {"a": clock.takes(100), "b": clock.takes(100)}, runs=10, max_s=2.5)
    assert [backend.status for backend in found.values()] == ["ok", "ok"]


# ---- backends that raise


def raising(clock, error, *, call):
    """Return a backend of 100 ms that raises in its n-th call: up to 3 it warms up, 4 is to settle, 5 is timed."""
    calls = itertools.count(1)

    def run():
        clock.now += 0.1
        if next(calls) == call:
            raise error

    return run


@pytest.mark.parametrize("call", [1, 4, 5], ids=["warming up", "settling", "timed"])
def test_backend_that_raises_is_named_with_its_error(call):
    clock, cause = FakeClock(), OSError("it broke")
    with pytest.raises(timing.BackendError, match=r"^bad failed: OSError: it broke$") as caught:
        measure(clock, {"good": clock.takes(100), "bad": raising(clock, cause, call=call)})
    assert caught.value.name == "bad" and caught.value.__cause__ is cause


def test_interrupt_passes_through():
    clock = FakeClock()
    with pytest.raises(KeyboardInterrupt):
        measure(clock, {"a": raising(clock, KeyboardInterrupt(), call=5)})


@pytest.mark.parametrize("error", [OSError("it broke"), KeyboardInterrupt()], ids=lambda error: type(error).__name__)
def test_garbage_is_collected_again_after_an_error(error):
    assert gc.isenabled(), "the test needs the collector on"
    clock = FakeClock()
    with pytest.raises((timing.BackendError, KeyboardInterrupt)):
        measure(clock, {"a": raising(clock, error, call=5)})
    assert gc.isenabled()


def test_garbage_is_not_collected_while_the_clock_runs():
    clock, collects = FakeClock(), []

    def run():
        clock.now += 0.1
        collects.append(gc.isenabled())

    found = measure(clock, {"a": run}, runs=10)["a"]
    assert not any(collects[found.warm_up_runs :]), "a timed run could be interrupted by the collector"
    assert gc.isenabled(), "the collector was left off"


def test_collector_that_was_off_stays_off():
    clock = FakeClock()
    gc.disable()
    try:
        measure(clock, {"a": clock.takes(1)})
        assert not gc.isenabled()
    finally:
        gc.enable()


# ---- refusals


def test_unknown_reference_is_refused_with_the_names_there_are():
    clock = FakeClock()
    with pytest.raises(ValueError, match=r"'c'; it must be one of a, b"):
        measure(clock, {"a": clock.takes(1), "b": clock.takes(1)}, reference="c")


@pytest.mark.parametrize("runs", [0, -1])
def test_no_runs_are_refused(runs):
    clock = FakeClock()
    with pytest.raises(ValueError, match=rf"runs is {runs}; it must be 1 or more"):
        measure(clock, {"a": clock.takes(1)}, runs=runs)


# ---- ratio_interval


def blocks(seed, *, ms=10.0, spread=0.05, number=20):
    """Return blocks of noisy latencies."""
    random = np.random.default_rng(seed)
    return [ms * (1 + spread * random.normal()) * (1 + 0.01 * random.normal(size=5)) for _ in range(number)]


def test_ratio_of_a_backend_to_itself_is_one():
    assert timing.ratio_interval(blocks(0), blocks(0)) == pytest.approx((1, 1, 1))


def test_drift_that_both_backends_share_does_not_widen_the_interval():
    drifting = [block * (1 + 0.1 * number) for number, block in enumerate(blocks(0))]
    found = timing.ratio_interval([3 * block for block in drifting], drifting)
    assert found == pytest.approx((3, 3, 3))


def test_interval_holds_its_ratio():
    for seed in range(20):
        ratio, low, high = timing.ratio_interval(blocks(seed, ms=30), blocks(1000 + seed))
        assert low <= ratio <= high, f"{ratio} is not within {low} to {high} at seed {seed}"


def test_interval_holds_the_true_ratio_most_of_the_time():
    found = [timing.ratio_interval(blocks(seed, ms=30), blocks(1000 + seed)) for seed in range(100)]
    holds = sum(low <= 3 <= high for _, low, high in found)
    assert holds >= 80, f"a 95 % interval holds the true ratio in {holds} of 100"


def test_backends_of_different_numbers_of_blocks_can_be_compared():
    ratio, low, high = timing.ratio_interval(blocks(0, ms=30, number=12), blocks(1, number=7))
    assert low <= ratio <= high and ratio == pytest.approx(3, rel=0.2)


def test_interval_is_seeded():
    over, under = blocks(0), blocks(1)
    assert timing.ratio_interval(over, under, seed=5) == timing.ratio_interval(over, under, seed=5)
