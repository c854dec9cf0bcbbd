"""How long does one run take, and can the number be trusted? Backends opened anew, in turn, on a machine that is quiet.

Taught in notebooks/04_speed_resnet18.ipynb. The unit of evidence is the **trial**: a backend that is opened, warmed up,
timed in one block and closed. Runs in one trial are alike; two trials of one file differ by a few per cent.
"""

import gc
import math
import time
import timeit
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from scipy import stats

from helpers.counters import Counters

TRIALS = 5  # of each backend; fewer give no interval that one may share
MIN_TRIALS = 3  # without which there is no interval at all
BLOCK, SLOW_BLOCK, SLOW_MS = 5, 2, 100  # timed runs in a trial; the smaller where one run takes over SLOW_MS
LONG_ENOUGH_S, MAX_BLOCK = 0.05, 50  # fast backends get longer blocks
WARM_UP_RUNS, WARM_UP_S = 3, 0.2
IDLE_SHARE, IDLE_STEP_S, IDLE_STEPS, IDLE_LIMIT_S = 0.05, 0.01, 3, 1.0  # one quiet step may be chance
MAX_OTHER_CORES = 0.5
REPEATS = 2  # of a contended trial
TARGET_REL_CI = 0.02  # extra trials stop at this relative 95 % interval

Run = Callable[[], object]
clock, cpu_s, sleep = timeit.default_timer, time.process_time, time.sleep  # a test puts its own in their place


class Status(StrEnum):
    """What became of a measurement."""

    OK = "ok"
    CONTENDED = "contended"  # measured, but other programs or a quota took part of the machine
    OOM = "oom"  # the memory does not suffice
    BUDGET = "budget"  # it would have taken too long at this effort
    UNAVAILABLE = "unavailable"  # no such device, provider or package here
    DISAGREES = "disagrees"  # its outputs are wrong, so it gets no time
    FAILED = "failed"  # its engine raised


class BackendError(RuntimeError):
    """A backend failed while it was measured; ``name`` is the backend's, ``__cause__`` is what it raised."""

    def __init__(self, name: str, cause: BaseException) -> None:
        """Keep the name and tell both."""
        super().__init__(f"{name} failed: {type(cause).__name__}: {cause}")
        self.name = name


@dataclass
class Trial:
    """One backend, opened, warmed up, timed in one block and closed."""

    load_ms: float
    first_run_ms: float
    block_ms: np.ndarray  # latencies, shape (runs,)
    page_faults: float = math.nan  # per run; NaN where there is no such counter, and so below
    system_ms: float = math.nan  # per run
    other_cores: float = math.nan
    throttled: float = math.nan
    device_ms: float = math.nan  # per run, by the GPU's own clock
    idle: bool = True  # whether this process was idle before the block
    discarded_ms: list[np.ndarray] = field(default_factory=list)  # blocks of contended trials, thrown away

    @property
    def contended(self) -> bool:
        """Whether other programs took part of the machine, or a quota stopped this process."""
        return self.other_cores > MAX_OTHER_CORES or self.throttled > 0


@dataclass
class Timing:
    """What ``measure`` saw of one backend."""

    name: str
    trials: list[Trial] = field(default_factory=list)
    ratio: float = math.nan  # the reference's time over this one's: above 1, this one is faster
    rel_ci: float = math.nan  # relative 95 % interval: from ratio / (1 + rel_ci) to ratio · (1 + rel_ci)
    status: Status = Status.OK  # or CONTENDED, or BUDGET (then the trials are too few)
    note: str = ""
    noise_floor: float = 0.0  # the difference, as a share, that this machine cannot tell from none

    @property
    def times_ms(self) -> np.ndarray:
        """All latencies in ms, shape (runs,)."""
        return np.concatenate([trial.block_ms for trial in self.trials]) if self.trials else np.empty(0)

    @property
    def medians_ms(self) -> np.ndarray:
        """The median of each trial in ms, shape (trials,)."""
        return np.array([np.median(trial.block_ms) for trial in self.trials])

    @property
    def p50_ms(self) -> float:
        """The median latency in ms; NaN without trials."""
        return float(np.median(self.times_ms)) if self.trials else math.nan

    def mean(self, counter: str) -> float:
        """Return a counter's mean over the trials, NaN where the system has none."""
        return float(np.mean([getattr(trial, counter) for trial in self.trials] or [math.nan]))

    def verdict(self, noise_floor: float | None = None) -> str:
        """Return "faster", "slower", "undecided" or "no interval", or "reference" where there is nothing to compare.

        Args:
            noise_floor: differences below it decide nothing; its own noise floor, if not given.
        """
        if (self.ratio, self.rel_ci) == (1, 0):
            return "reference"
        return verdict(self.ratio, self.rel_ci, noise_floor=self.noise_floor if noise_floor is None else noise_floor)


def verdict(ratio: float, rel_ci: float, *, noise_floor: float = 0.0) -> str:
    """Judge a ratio by its interval.

    Args:
        ratio: above 1 means faster.
        rel_ci: its relative 95 % interval; NaN where there is none.
        noise_floor: the difference, as a share, that this machine cannot tell from none.
    Returns:
        "faster", "slower", "undecided" or "no interval".
    """
    if math.isnan(ratio) or math.isnan(rel_ci):
        return "no interval"
    width = 1 + max(rel_ci, noise_floor)
    return "faster" if ratio / width > 1 else "slower" if ratio * width < 1 else "undecided"


def noise_floor(ratio: float, rel_ci: float) -> float:
    """Return, as a share, how far a backend that was opened as two columns (A/A) may seem to differ from itself.

    Args:
        ratio: of the two columns.
        rel_ci: its relative 95 % interval; where there is none (NaN), the difference that was seen must do.
    """
    return float(max(ratio, 1 / ratio) * (1 + np.nan_to_num(rel_ci)) - 1)


def ratio_interval(
    over_ms: Sequence[float] | np.ndarray,
    under_ms: Sequence[float] | np.ndarray,
    *,
    paired: bool = True,
    alpha: float = 0.05,
) -> tuple[float, float]:
    """Compare two backends by the medians of their trials: Student's t on the logarithms, as scipy computes it.

    Args:
        over_ms: one median per trial, of one backend.
        under_ms: of the other.
        paired: whether trial n of one was measured beside trial n of the other; else Welch's test.
        alpha: 0.05 for a 95 % interval.
    Returns:
        The geometric mean of the ratio, and its relative interval: from ratio / (1 + r) to ratio · (1 + r). The
        interval is NaN with fewer than ``MIN_TRIALS`` of either, both are NaN without any.
    """
    over, under = np.log(over_ms), np.log(under_ms)
    n = min(len(over), len(under))
    if paired:
        over, under = over[:n], under[:n]
    centre = float(over.mean() - under.mean()) if n else math.nan
    if n < MIN_TRIALS:
        return math.exp(centre), math.nan
    if max(map(np.ptp, (over - under,) if paired else (over, under))) < 1e-12:  # of rounding
        return math.exp(centre), 0.0  # a constant ratio has no spread; scipy warns, or calls that undefined
    test = stats.ttest_rel(over, under) if paired else stats.ttest_ind(over, under, equal_var=False)
    return math.exp(centre), math.expm1(test.confidence_interval(1 - alpha).high - centre)


def wait_until_idle() -> bool:
    """Wait until this process rests: engines' threads spin on for a while after a run, then stop by themselves.

    Returns:
        Whether it came to rest, for ``IDLE_STEPS`` in a row, within ``IDLE_LIMIT_S``.
    """
    quiet = 0
    for _ in range(round(IDLE_LIMIT_S / IDLE_STEP_S)):
        before = cpu_s()
        sleep(IDLE_STEP_S)
        quiet = quiet + 1 if cpu_s() - before < IDLE_SHARE * IDLE_STEP_S else 0
        if quiet == IDLE_STEPS:
            return True
    return False


def measure(
    openers: Mapping[str, Callable[[], Run]],
    *,
    reference: str,
    trials: int = TRIALS,
    max_extra_s: float = 0.0,
    budget_s: float = math.inf,
    seed: int = 0,
    aa: bool = False,
    progress: Callable[[dict[str, Timing]], None] | None = None,
) -> dict[str, Timing]:
    """Measure backends against each other: each opened anew in every trial, one at a time, in a random order.

    Args:
        openers: by name, functions that open a backend and return what runs it; its outputs are known to be right.
        reference: the backend that the ratios refer to.
        trials: of each backend, at least.
        max_extra_s: how long to add trials, up to twice as many, while an interval is above ``TARGET_REL_CI``.
        budget_s: when to give up; where the trials are not done by then, the status is "budget".
        seed: of the order.
        aa: open the reference as one more backend (A/A), whose ratio to it is the noise floor of all timings.
        progress: called after each round of trials with the timings so far.
    Returns:
        A timing for each backend, in the order given.
    Raises:
        ValueError: if the reference is not among the backends or trials is below 1.
        BackendError: if a backend raises.
    """
    if reference not in openers:
        raise ValueError(f"The reference is {reference!r}; it must be one of {', '.join(openers)}.")
    if trials < 1:
        raise ValueError(f"trials is {trials}; it must be 1 or more.")
    gc.collect()  # what earlier cells left behind
    again = f"{reference} again"
    opened = {**openers, again: openers[reference]} if aa else dict(openers)
    rng, began = np.random.default_rng(seed), clock()
    timings = {name: Timing(name) for name in opened}
    found = {name: timings[name] for name in openers}
    done, repeats = 0, REPEATS if trials >= MIN_TRIALS else 0  # what gives no interval is not worth repeating
    while True:
        for name in map(str, rng.permutation(list(opened))):
            trial = _trial(name, opened[name], repeats)
            timings[name].trials.append(trial)
            if trial.contended:
                repeats = 0  # repeating did not help: this machine is busy, and the rows will say so
            if done + 1 < trials and clock() - began > budget_s:
                for timing in found.values():
                    timing.status, timing.note = Status.BUDGET, f"time was up after {done} of {trials} trials"
                return found
        done += 1
        for timing in timings.values():
            timing.ratio, timing.rel_ci = ratio_interval(timings[reference].medians_ms, timing.medians_ms)
        if progress:
            progress(timings)
        rough = any(timing.rel_ci > TARGET_REL_CI for timing in timings.values())
        if done >= trials and not (rough and done < 2 * trials and clock() - began < max_extra_s):
            break
    for timing in found.values():
        timing.noise_floor = noise_floor(timings[again].ratio, timings[again].rel_ci) if aa else 0.0
        if loud := [trial for trial in timing.trials if trial.contended]:
            periods, most = np.nansum([trial.throttled for trial in loud]), max(trial.other_cores for trial in loud)
            stopped = f"a quota stopped it in {periods:.0f} periods"
            what = stopped if periods else f"other programs took up to {most:.1f} cores"
            timing.status, timing.note = Status.CONTENDED, f"{what}, in {len(loud)} of {len(timing.trials)} trials"
    return found


def _trial(name: str, opener: Callable[[], Run], repeats: int) -> Trial:
    """Measure one trial; one in which something else ran is thrown away and made again, some times."""
    discarded: list[np.ndarray] = []
    while True:
        try:
            trial = _open_and_time(opener)
        except Exception as error:
            raise BackendError(name, error) from error
        if not trial.contended or len(discarded) >= repeats:
            trial.discarded_ms = discarded
            return trial
        discarded.append(trial.block_ms)
        sleep(0.5)  # for what disturbed to end


def _timed_s(run: Run) -> float:
    began = clock()
    run()
    return clock() - began


def _open_and_time(opener: Callable[[], Run]) -> Trial:
    idle, start = wait_until_idle(), clock()
    run = opener()
    load_s = clock() - start
    first_s, before, warm = _timed_s(run), Counters.read(), clock()
    seconds: list[float] = []
    while len(seconds) < WARM_UP_RUNS - 1 or clock() - warm < WARM_UP_S:
        seconds.append(_timed_s(run))
    run_s = float(np.median(seconds))
    least = SLOW_BLOCK if run_s * 1e3 > SLOW_MS else BLOCK
    runs = min(max(least, math.ceil(LONG_ENOUGH_S / max(run_s, 1e-9))), MAX_BLOCK)
    collects = gc.isenabled()
    gc.disable()
    try:
        run()  # settles caches, clock rate and threads, untimed
        at_block = Counters.read()
        block_ms = np.array([_timed_s(run) for _ in range(runs)]) * 1e3
        after = Counters.read()
    finally:
        if collects:
            gc.enable()
    in_block, around = after.since(at_block), after.since(before)
    own_clock = getattr(run, "device_ms", None)
    return Trial(
        load_ms=load_s * 1e3,
        first_run_ms=first_s * 1e3,
        block_ms=block_ms,
        page_faults=in_block.page_faults / runs,
        system_ms=in_block.system_s * 1e3 / runs,
        other_cores=around.other_cores,
        throttled=around.throttled,
        device_ms=float(np.median([own_clock() for _ in range(BLOCK)])) if own_clock else math.nan,
        idle=idle,
    )
