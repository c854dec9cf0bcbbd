"""helpers.timing, with a clock, counters and backends that the test makes: no real time decides anything here."""

import math

import numpy as np
import pytest
from scipy import stats

from helpers import timing
from helpers.counters import Counters

NAN = math.nan


class FakeMachine:
    """A machine whose clock moves only when a backend runs or somebody sleeps."""

    def __init__(self):
        self.now = self.own = self.other = 0.0
        self.faults = self.throttled = NAN
        self.hogs = []  # other programs' cores in the trials to come; none when it is empty
        self.opened = []

    def sleep(self, seconds):
        self.now += seconds

    def read(self):
        return Counters(self.now, self.own, self.own / 10, self.own + self.other, self.faults, self.throttled)

    def backend(self, name, run_s, *, effect=lambda: 0.0, faults=0, throttled=0, fails_at=None):
        """Return an opener whose trials run in run_s times e to the power of what ``effect()`` draws."""

        def opener():
            self.opened.append(name)
            seconds, hog = run_s * math.exp(effect()), self.hogs.pop(0) if self.hogs else 0.0
            runs = iter(range(10**9))

            def run():
                if next(runs) == fails_at:
                    raise RuntimeError("broken")
                self.now += seconds
                self.own += seconds
                self.other += seconds * hog
                self.faults += faults
                self.throttled += throttled

            return run

        return opener


@pytest.fixture
def fake(monkeypatch):
    machine = FakeMachine()
    monkeypatch.setattr(timing, "clock", lambda: machine.now)
    monkeypatch.setattr(timing, "cpu_s", lambda: machine.own)
    monkeypatch.setattr(timing, "sleep", machine.sleep)
    monkeypatch.setattr(Counters, "read", machine.read)
    monkeypatch.setattr(timing.gc, "collect", lambda: None)  # it takes longer than all the fake trials together
    return machine


@pytest.fixture
def alone(fake):
    """Return a function that measures one backend without others."""

    def measured(run_s=0.02, *, trials=5, **about):
        return timing.measure({"a": fake.backend("a", run_s, **about)}, reference="a", trials=trials)["a"]

    return measured


def covers(ratio, rel_ci, truth):
    return ratio / (1 + rel_ci) <= truth <= ratio * (1 + rel_ci)


# ---- ratios, intervals, verdicts


@pytest.mark.parametrize(("paired", "test"), [(True, stats.ttest_rel), (False, stats.ttest_ind)])
@pytest.mark.parametrize("alpha", [0.05, 0.001])
def test_the_interval_is_scipys_on_the_logarithms(paired, test, alpha):
    over, under = np.exp(np.random.default_rng(0).standard_normal((2, 6)))
    options = {} if paired else {"equal_var": False}
    low, high = test(np.log(over), np.log(under), **options).confidence_interval(1 - alpha)
    ratio, rel_ci = timing.ratio_interval(over, under, paired=paired, alpha=alpha)
    assert (ratio / (1 + rel_ci), ratio * (1 + rel_ci)) == pytest.approx((math.exp(low), math.exp(high)))


@pytest.mark.parametrize(
    ("over", "under", "paired", "ratio", "rel_ci"),
    [
        # logarithms of the ratios 0, 1, 2: mean 1, standard error 1/√3; Student's t for 2 degrees is 4.3027
        (np.exp([0, 1, 2]), [1, 1, 1], True, math.e, math.expm1(4.3027 / math.sqrt(3))),
        (2 * np.exp([0, 1, 2]), np.exp([0, 1, 2]), True, 2, 0),  # pairs share a drift
        ([2] * 5, [1] * 5, False, 2, 0),
        ([2] * (timing.MIN_TRIALS - 1), [1] * 5, True, 2, NAN),
        ([], [1], True, NAN, NAN),
    ],
)
def test_the_interval_by_hand(over, under, paired, ratio, rel_ci):
    found = timing.ratio_interval(over, under, paired=paired)
    assert found == pytest.approx((ratio, rel_ci), rel=1e-4, abs=1e-9, nan_ok=True)


def test_verdicts_are_bounded_by_interval_and_noise_floor_which_is_the_far_end_of_a_a():
    cells = [(1.1, 0.05, 0), (1.1, 0.05, 0.12), (1.04, 0.05, 0), (0.9, 0.05, 0), (0.9, 0.05, 0.2), (1.1, NAN, 0)]
    found = [timing.verdict(ratio, rel_ci, noise_floor=floor) for ratio, rel_ci, floor in cells]
    assert found == ["faster", "undecided", "undecided", "slower", "undecided", "no interval"]
    found = [timing.noise_floor(*pair) for pair in ((1.0, 0.05), (1 / 1.02, 0.0), (1.02, 0.05), (1.03, NAN))]
    assert found == pytest.approx([0.05, 0.02, 1.02 * 1.05 - 1, 0.03])


def test_the_interval_covers_a_known_effect_of_trials(fake):
    covered, truth = 0, 1.1
    for seed in range(100):
        random = np.random.default_rng(seed)
        effect = {"effect": lambda random=random: 0.04 * random.standard_normal()}
        openers = {"a": fake.backend("a", 0.011, **effect), "b": fake.backend("b", 0.01, **effect)}
        found = timing.measure(openers, reference="a", seed=seed)["b"]
        covered += covers(found.ratio, found.rel_ci, truth)
    assert covered >= 90, f"95 % intervals hold the truth in {covered} of 100 tries"


def test_rounds_of_one_session_would_not_cover_it():
    """The interval that protocol 1 wrote: many blocks, one session. It must miss, or trials would be for nothing."""
    covered = 0
    for seed in range(100):
        random = np.random.default_rng(seed)
        over, under = (np.exp(0.04 * random.standard_normal() + 0.002 * random.standard_normal(10)) for _ in range(2))
        covered += covers(*timing.ratio_interval(over, under), 1)
    assert covered < 50


# ---- measuring


def test_known_latencies_and_their_ratio_come_out(fake):
    openers = {"slow": fake.backend("slow", 0.03), "fast": fake.backend("fast", 0.01)}
    found = timing.measure(openers, reference="slow")
    fast = found["fast"]
    assert (found["slow"].p50_ms, fast.p50_ms, fast.ratio, fast.rel_ci) == pytest.approx((30, 10, 3, 0), abs=1e-9)
    assert (fast.verdict(), fast.verdict(2.5), fast.status) == ("faster", "undecided", "ok")
    assert found["slow"].verdict() == "reference"


def test_every_trial_opens_every_backend_anew_in_a_shuffled_but_seeded_order(fake):
    openers = {name: fake.backend(name, 0.01) for name in "abc"}
    for _ in range(2):
        found = timing.measure(openers, reference="a", seed=3)
    rounds = ["".join(fake.opened[i : i + 3]) for i in range(0, 30, 3)]
    assert all(set(names) == set("abc") for names in rounds) and len(set(rounds)) > 1
    assert rounds[:5] == rounds[5:] and {len(timing_.trials) for timing_ in found.values()} == {5}


@pytest.mark.parametrize(("run_s", "runs"), [(0.0001, 50), (0.004, 13), (0.03, 5), (0.2, 2)])
def test_blocks_are_long_for_fast_backends_and_short_for_slow_ones(alone, run_s, runs):
    assert [len(trial.block_ms) for trial in alone(run_s, trials=2).trials] == [runs, runs]


def test_aa_gives_every_timing_its_noise_floor_and_is_no_row(fake):
    """The reference as it is opened for the second time in a round takes 10 % longer: so much decides nothing."""
    opened = []

    def reference():
        opened.append(fake.backend("a", 0.011 if len(opened) % 2 else 0.01)())
        return opened[-1]

    openers = {"a": fake.backend("a", 0.01), "b": fake.backend("b", 0.0097)}
    alone = timing.measure(openers, reference="a", trials=6)
    found = timing.measure(openers | {"a": reference}, reference="a", trials=6, aa=True)
    assert list(found) == ["a", "b"] and len(opened) == 12
    assert alone["b"].noise_floor == 0 and alone["b"].verdict() == "faster"
    assert found["b"].noise_floor > 0.05 and found["b"].verdict() == "undecided"


def test_extra_seconds_add_trials_while_the_ratio_is_rough_but_at_most_as_many_again(fake):
    random = np.random.default_rng(0)
    for spread, trials in ((0.3, 8), (0, 4)):
        rough = fake.backend("b", 0.01, effect=lambda spread=spread: spread * random.standard_normal())
        openers = {"a": fake.backend("a", 0.01), "b": rough}
        assert len(timing.measure(openers, reference="a", trials=4, max_extra_s=1e9)["b"].trials) == trials


def test_when_time_is_up_there_is_no_number_to_trust(fake):
    found = timing.measure({"a": fake.backend("a", 1.0)}, reference="a", aa=True, budget_s=8)
    assert list(found) == ["a"] and found["a"].status == "budget" and "of 5 trials" in found["a"].note


@pytest.mark.parametrize(
    ("hogs", "trials", "opened", "status", "discarded"),
    [
        ([1.0] * 3 + [0.0] * 20, 5, 5 + timing.REPEATS, "contended", timing.REPEATS),
        ([0.0, 1.0, 0.0, 0.0, 0.0, 0.0], 5, 6, "ok", 1),
        ([1.0] * 100, 5, 5 + timing.REPEATS, "contended", timing.REPEATS),
        ([1.0] * 10, timing.MIN_TRIALS - 1, timing.MIN_TRIALS - 1, "contended", 0),
        ([0.4] * 5, 5, 5, "ok", 0),
    ],
    ids=["in one trial", "for a moment", "all the time", "no interval, no repeats", "less than half a core"],
)
def test_a_hog_is_measured_again_then_said(fake, alone, hogs, trials, opened, status, discarded):
    fake.hogs = list(hogs)
    found = alone(trials=trials)
    assert (len(fake.opened), found.status) == (opened, status)
    assert sum(len(trial.discarded_ms) for trial in found.trials) == discarded
    assert ("up to 1.0 cores" in found.note) == (status == "contended")


def test_counters_are_per_run_those_missing_are_not_zero_and_a_quota_is_contention(fake, alone):
    assert math.isnan(alone().mean("page_faults")) and math.isnan(alone().mean("throttled"))
    fake.faults = fake.throttled = 0
    found = alone(faults=7, throttled=1)
    assert (found.mean("page_faults"), found.mean("system_ms")) == pytest.approx((7, 2))
    assert found.status == "contended" and "a quota stopped it in" in found.note


def test_it_waits_until_spinning_threads_rest_for_several_steps_in_a_row(fake, monkeypatch):
    used = iter([1, 1, 0, 0, 1, *[0] * timing.IDLE_STEPS, 1])  # one quiet step, or two, may be chance

    def sleep(seconds):
        fake.now += seconds
        fake.own += next(used) * seconds

    monkeypatch.setattr(timing, "sleep", sleep)
    assert timing.wait_until_idle() and list(used) == [1]
    used, fake.now = iter([1] * 10**4), 0.0
    assert not timing.wait_until_idle() and fake.now == pytest.approx(timing.IDLE_LIMIT_S)
    assert not timing.measure({"a": fake.backend("a", 0.02)}, reference="a")["a"].trials[0].idle


def test_a_backend_that_raises_is_named(fake):
    openers = {"good": fake.backend("good", 0.01), "bad": fake.backend("bad", 0.01, fails_at=4)}
    with pytest.raises(ValueError, match="'ugly'; it must be one of good, bad"):
        timing.measure(openers, reference="ugly")
    with pytest.raises(timing.BackendError, match="bad failed: RuntimeError: broken") as caught:
        timing.measure(openers, reference="good")
    assert caught.value.name == "bad"
