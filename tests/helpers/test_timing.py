"""helpers.timing, with a clock, counters and sessions that the test makes: no real time decides anything here."""

import math

import numpy as np
import pytest

from helpers import timing
from helpers.timing import Counters


class FakeMachine:
    """A machine whose clock moves only when a backend runs or somebody sleeps."""

    def __init__(self):
        self.now = self.own = self.foreign = self.system = 0.0
        self.faults = 0
        self.throttled = None
        self.hogs = []  # foreign cores in the sessions to come; none when it is empty
        self.opened = []
        self.alive = 0
        self.most_alive = 0

    def measure(self, openers, **choices):
        tools = timing.Instruments(lambda: self.now, self.read, self.sleep, lambda: self.own)
        return timing.measure(openers, tools=tools, **choices)

    def sleep(self, seconds):
        self.now += seconds

    def read(self):
        busy = self.own + self.foreign
        return Counters(self.now, self.own, self.system, busy, self.faults, self.throttled)

    def backend(self, name, run_s, *, session=lambda: 0.0, faults=0, fails_at=None):
        """Return an opener whose sessions run in run_s times e to the power of what ``session()`` draws."""

        def opener():
            self.opened.append(name)
            seconds, hog = run_s * math.exp(session()), self.hogs.pop(0) if self.hogs else 0.0
            runs = iter(range(10**9))

            def run():
                if next(runs) == fails_at:
                    raise RuntimeError("broken")
                self.now += seconds
                self.own += seconds
                self.foreign += seconds * hog
                self.system += seconds / 10
                self.faults += faults

            return run

        return opener


@pytest.fixture(autouse=True)
def no_collection(monkeypatch):
    """Collecting garbage takes longer than all the fake sessions together."""
    monkeypatch.setattr(timing.gc, "collect", lambda: None)


@pytest.fixture
def fake():
    return FakeMachine()


def test_known_latencies_and_their_ratio_come_out(fake):
    found = fake.measure({"slow": fake.backend("slow", 0.03), "fast": fake.backend("fast", 0.01)}, reference="slow")
    assert found["fast"].p50_ms == pytest.approx(10) and found["slow"].p50_ms == pytest.approx(30)
    assert found["fast"].ratio == pytest.approx(3) and found["fast"].half_width == pytest.approx(0, abs=1e-9)
    assert found["fast"].verdict() == "faster" and found["fast"].status == "ok"


def test_every_session_opens_every_backend_anew_in_a_shuffled_but_seeded_order(fake):
    openers = {name: fake.backend(name, 0.01) for name in "abc"}
    found = fake.measure(openers, reference="a", sessions=5, seed=3)
    rounds = [fake.opened[i : i + 3] for i in range(0, 15, 3)]
    assert all(sorted(names) == ["a", "b", "c"] for names in rounds) and len({tuple(names) for names in rounds}) > 1
    assert [len(timing_.sessions) for timing_ in found.values()] == [5, 5, 5]
    again = FakeMachine()
    again.measure({name: again.backend(name, 0.01) for name in "abc"}, reference="a", sessions=5, seed=3)
    assert again.opened == fake.opened


@pytest.mark.parametrize(("run_s", "runs"), [(0.0001, 50), (0.004, 13), (0.03, 5), (0.2, 2)])
def test_blocks_are_long_for_fast_backends_and_short_for_slow_ones(fake, run_s, runs):
    found = fake.measure({"a": fake.backend("a", run_s)}, reference="a", sessions=2)
    assert [len(session.block_ms) for session in found["a"].sessions] == [runs, runs]


def test_the_interval_covers_a_known_session_effect():
    covered, truth = 0, 1.1
    for seed in range(100):
        fake, random = FakeMachine(), np.random.default_rng(seed)
        effects = {"session": lambda random=random: 0.04 * random.standard_normal()}
        openers = {"a": fake.backend("a", 0.011, **effects), "b": fake.backend("b", 0.01, **effects)}
        found = fake.measure(openers, reference="a", sessions=5, seed=seed)["b"]
        covered += found.ratio / (1 + found.half_width) <= truth <= found.ratio * (1 + found.half_width)
    assert covered >= 90, f"95 % intervals hold the truth in {covered} of 100 trials"


def test_rounds_of_one_session_would_not_cover_it():
    """The interval that protocol 1 wrote: many blocks, one session. It must miss, or sessions would be for nothing."""
    covered = 0
    for seed in range(100):
        random = np.random.default_rng(seed)
        over, under = (np.exp(0.04 * random.standard_normal() + 0.002 * random.standard_normal(10)) for _ in range(2))
        ratio, half = timing.ratio_interval(over, under)
        covered += ratio / (1 + half) <= 1 <= ratio * (1 + half)
    assert covered < 50


def test_two_sessions_have_no_interval(fake):
    found = fake.measure({"a": fake.backend("a", 0.01), "b": fake.backend("b", 0.02)}, reference="a", sessions=2)["b"]
    assert found.ratio == pytest.approx(0.5) and math.isnan(found.half_width) and found.verdict() == "no interval"


@pytest.mark.parametrize(
    ("ratio", "half", "floor", "said"),
    [
        (1.1, 0.05, 0.0, "faster"),
        (1.1, 0.05, 0.12, "undecided"),
        (1.04, 0.05, 0.0, "undecided"),
        (0.9, 0.05, 0.0, "slower"),
        (0.9, 0.05, 0.2, "undecided"),
        (3.0, 0.2, 0.05, "faster"),
        (1.1, math.nan, 0.0, "no interval"),
    ],
)
def test_a_verdict_is_bounded_by_interval_and_floor(ratio, half, floor, said):
    assert timing.verdict(ratio, half, floor=floor) == said


def test_the_twin_gives_every_timing_its_floor_and_is_no_row(fake):
    """The reference as it is opened for the second time in a session takes 10 % longer: so much decides nothing."""
    opened = []

    def reference():
        opened.append(fake.backend("a", 0.011 if len(opened) % 2 else 0.01)())
        return opened[-1]

    openers = {"a": reference, "b": fake.backend("b", 0.0097)}
    alone = fake.measure({"a": fake.backend("a", 0.01), "b": fake.backend("b", 0.0097)}, reference="a", sessions=6)
    found = fake.measure(openers, reference="a", sessions=6, twin=True)
    assert list(found) == ["a", "b"] and len(opened) == 12
    assert alone["b"].floor == 0 and alone["b"].verdict() == "faster"
    assert found["b"].floor > 0.05 and found["b"].verdict() == "undecided"
    assert found["a"].verdict() == "reference"


def test_a_twin_is_no_row_either_where_time_was_up(fake):
    found = fake.measure({"a": fake.backend("a", 1.0)}, reference="a", sessions=5, twin=True, budget_s=3)
    assert list(found) == ["a"] and found["a"].status == "budget"


def test_pairs_share_a_drift_and_strangers_do_not():
    drift = np.exp(np.linspace(0, 1, 5))
    _, paired = timing.ratio_interval(2 * drift, drift)
    _, welch = timing.ratio_interval(2 * drift, drift, paired=False)
    assert paired == pytest.approx(0, abs=1e-9) and welch > 0.5
    assert math.isnan(timing.ratio_interval([], [1.0])[0])


def test_patience_adds_sessions_while_the_ratio_is_rough_but_at_most_as_many_again(fake):
    random = np.random.default_rng(0)
    rough = fake.backend("b", 0.01, session=lambda: 0.3 * random.standard_normal())
    found = fake.measure({"a": fake.backend("a", 0.01), "b": rough}, reference="a", sessions=4, patience_s=1e9)
    assert len(found["b"].sessions) == 8
    steady = {name: fake.backend(name, 0.01) for name in "ab"}
    assert len(fake.measure(steady, reference="a", sessions=4, patience_s=1e9)["b"].sessions) == 4


def test_when_time_is_up_there_is_no_number_to_trust(fake):
    found = fake.measure({"a": fake.backend("a", 1.0)}, reference="a", sessions=5, budget_s=8)["a"]
    assert found.status == "budget" and "of 5 sessions" in found.note


def test_a_hog_on_one_core_is_repeated_then_said(fake):
    fake.hogs = [1.0] * 3 + [0.0] * 20
    found = fake.measure({"a": fake.backend("a", 0.02)}, reference="a", sessions=5)["a"]
    assert found.status == "disturbed" and "1.0 cores, in 1 of 5" in found.note
    assert len(found.sessions[0].disturbed_ms) == timing.REPEATS


def test_a_short_disturbance_is_measured_again_and_forgotten(fake):
    fake.hogs = [0.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    found = fake.measure({"a": fake.backend("a", 0.02)}, reference="a", sessions=5)["a"]
    assert found.status == "ok" and sum(len(session.disturbed_ms) for session in found.sessions) == 1


def test_on_a_busy_machine_repeating_stops(fake):
    fake.hogs = [1.0] * 100
    found = fake.measure({"a": fake.backend("a", 0.02)}, reference="a", sessions=5)["a"]
    assert len(fake.opened) == 5 + timing.REPEATS and found.status == "disturbed"


def test_sessions_too_few_for_an_interval_are_not_repeated(fake):
    fake.hogs = [1.0] * 10
    found = fake.measure({"a": fake.backend("a", 0.02)}, reference="a", sessions=timing.LEAST - 1)["a"]
    assert len(fake.opened) == timing.LEAST - 1 and found.status == "disturbed"


def test_less_than_half_a_core_is_no_disturbance(fake):
    fake.hogs = [0.4] * 5
    assert fake.measure({"a": fake.backend("a", 0.02)}, reference="a", sessions=5)["a"].status == "ok"


def test_page_faults_and_kernel_time_are_a_runs(fake):
    found = fake.measure({"a": fake.backend("a", 0.02, faults=7)}, reference="a", sessions=3)["a"]
    assert found.mean("page_faults") == pytest.approx(7) and found.mean("system_ms") == pytest.approx(2)


def test_a_counter_that_is_missing_is_none_not_zero(fake):
    fake.faults = None
    fake.read = lambda: Counters(fake.now, fake.own, 0.0, fake.own, None, None)
    opener = fake.backend("a", 0.02)

    def without_faults():
        run = opener()
        return lambda: (setattr(fake, "faults", 0), run())

    found = fake.measure({"a": without_faults}, reference="a", sessions=3)["a"]
    assert found.mean("page_faults") is None and found.status == "ok"


def test_a_quota_counts_throttled_periods_and_not_the_neighbours(tmp_path):
    (tmp_path / "cpu.max").write_text("200000 100000\n")
    (tmp_path / "cpu.stat").write_text("usage_usec 5\nnr_periods 10\nnr_throttled 3\n")
    before = Counters.read(tmp_path)
    (tmp_path / "cpu.stat").write_text("usage_usec 9\nnr_periods 20\nnr_throttled 8\n")
    seen = Counters.read(tmp_path).since(before)
    assert seen["throttled"] == 5 and seen["foreign_cores"] is None
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert Counters.read(tmp_path).throttled is None


def test_throttling_disturbs(fake):
    fake.throttled = 0
    opener = fake.backend("a", 0.02)

    def throttled():
        run = opener()
        return lambda: (setattr(fake, "throttled", fake.throttled + 1), run())

    found = fake.measure({"a": throttled}, reference="a", sessions=2)["a"]
    assert found.status == "disturbed" and "a quota stopped it" in found.note


def test_it_waits_until_spinning_threads_rest():
    cpu, slept = iter([0, 10, 10, 20, 20, 20.0001]), []
    assert timing.wait_until_idle(timing.Instruments(cpu_time=lambda: next(cpu), sleep=slept.append))
    assert len(slept) == 3
    busy = iter(range(10**6))
    assert not timing.wait_until_idle(timing.Instruments(cpu_time=lambda: next(busy), sleep=slept.append))
    assert sum(slept) <= timing.IDLE_LIMIT_S + 0.1


def test_a_backend_that_raises_is_named(fake):
    openers = {"good": fake.backend("good", 0.01), "bad": fake.backend("bad", 0.01, fails_at=4)}
    with pytest.raises(timing.BackendError, match="bad failed: RuntimeError: broken") as caught:
        fake.measure(openers, reference="good")
    assert caught.value.name == "bad"


@pytest.mark.parametrize(
    ("choices", "message"), [({"reference": "c"}, "'c'"), ({"reference": "a", "sessions": 0}, "0")]
)
def test_bad_arguments_are_named(fake, choices, message):
    with pytest.raises(ValueError, match=message):
        fake.measure({"a": fake.backend("a", 0.01)}, **choices)


@pytest.mark.parametrize(
    ("ratio", "half", "wanted"),
    [
        (1.0, 0.05, 0.05),
        (1.02, 0.0, 0.02),
        (1 / 1.02, 0.0, 0.02),
        (1.02, 0.05, 1.02 * 1.05 - 1),
        (1.03, math.nan, 0.03),
    ],
)
def test_the_floor_is_the_far_end_of_what_one_file_differs_from_itself(ratio, half, wanted):
    assert timing.floor(ratio, half) == pytest.approx(wanted)
