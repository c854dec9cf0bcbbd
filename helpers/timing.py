"""How long does one run take, and can the number be trusted? Backends opened anew, in turn, on a machine that is quiet.

Taught in notebooks/04_speed_resnet18.ipynb. The unit of evidence is the **session**: a backend that is opened, warmed
up, timed in one block and closed. Runs in one session are alike; two sessions of one file differ by a few per cent.
"""

import gc
import math
import os
import time
import timeit
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import numpy as np
import psutil
from scipy import stats

SESSIONS = 5  # of each backend; fewer give no interval that one may share
BLOCK, SLOW_BLOCK = 5, 2  # timed runs in a session; the smaller where one run takes over SLOW_MS
SLOW_MS = 100
LONG_ENOUGH_S = 0.05  # fast backends get longer blocks, of at most MAX_BLOCK runs
MAX_BLOCK = 50
WARM_UP_RUNS, WARM_UP_S = 3, 0.2
IDLE_SHARE, IDLE_STEP_S, IDLE_LIMIT_S = 0.05, 0.01, 1.0
MAX_FOREIGN_CORES = 0.5
REPEATS = 2  # of a disturbed session
LEAST = 3  # sessions without which there is no interval
CONFIDENCE = 0.95
CGROUP = Path("/sys/fs/cgroup")  # a container's limits on Linux

Run = Callable[[], object]


class Status(StrEnum):
    """What became of a measurement."""

    OK = "ok"
    DISTURBED = "disturbed"  # measured, but other programs or a quota took part of the machine
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
    def read(cls, cgroup: Path = CGROUP) -> "Counters":
        """Read them now."""
        times = psutil.cpu_times()
        busy = sum(getattr(times, name, 0.0) for name in ("user", "nice", "system", "irq", "softirq", "steal"))
        page_faults, system_s = _usage()
        return cls(time.perf_counter(), time.process_time(), system_s, busy, page_faults, _throttled(cgroup))

    def since(self, then: "Counters") -> dict[str, float | None]:
        """Return what happened between two readings: seconds, foreign_cores, page_faults, system_ms, throttled.

        In a container with a quota foreign_cores is None: its neighbours take nothing of what it may use.
        """
        wall = self.wall_s - then.wall_s
        foreign = (self.busy_s - then.busy_s) - (self.own_s - then.own_s)
        has_quota = self.throttled is not None
        return {
            "seconds": wall,
            "foreign_cores": None if has_quota or wall <= 0 else max(0.0, foreign / wall),
            "page_faults": None if self.page_faults is None else self.page_faults - then.page_faults,
            "system_ms": (self.system_s - then.system_s) * 1e3,
            "throttled": self.throttled - then.throttled if has_quota else None,
        }


@dataclass(frozen=True)
class Instruments:
    """What times, counters and pauses come from; a test puts its own in their place."""

    clock: Callable[[], float] = timeit.default_timer  # seconds
    counters: Callable[[], Counters] = Counters.read
    sleep: Callable[[float], None] = time.sleep  # seconds
    cpu_time: Callable[[], float] = time.process_time  # this process's processor seconds


REAL = Instruments()


def _usage() -> tuple[int | None, float]:
    """Return this process's page faults and its processor seconds in the kernel."""
    if os.name == "nt":
        process = psutil.Process()
        return getattr(process.memory_info(), "num_page_faults", None), process.cpu_times().system
    import resource

    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_minflt + usage.ru_majflt, usage.ru_stime


def _throttled(cgroup: Path) -> int | None:
    """Return how many periods a quota has cut short, None where there is no quota."""
    limit, counters = cgroup / "cpu.max", cgroup / "cpu.stat"
    if not (limit.exists() and counters.exists()) or limit.read_text().startswith("max"):
        return None
    found = dict(line.split() for line in counters.read_text().splitlines())
    return int(found.get("nr_throttled", 0))


@dataclass
class Session:
    """One backend, opened, warmed up, timed in one block and closed."""

    load_ms: float
    first_run_ms: float
    block_ms: np.ndarray  # latencies, shape (runs,)
    page_faults: float | None  # a run
    system_ms: float  # a run
    foreign_cores: float | None
    throttled: int | None
    disturbed_ms: list[np.ndarray] = field(default_factory=list)  # blocks of sessions that were thrown away
    idle: bool = True  # whether this process was quiet before the block
    device_ms: float | None = None  # a run by the GPU's own clock

    @property
    def disturbed(self) -> bool:
        """Whether other programs took part of the machine, or a quota stopped this process."""
        return (self.foreign_cores or 0) > MAX_FOREIGN_CORES or bool(self.throttled)


@dataclass
class Timing:
    """What ``measure`` saw of one backend."""

    name: str
    sessions: list[Session] = field(default_factory=list)
    ratio: float = math.nan  # the reference's time over this one's: above 1, this one is faster
    half_width: float = math.nan  # of its 95 % interval, as a share of the ratio: ratio / (1 + h) to ratio · (1 + h)
    status: Status = Status.OK  # or DISTURBED, or BUDGET (then the sessions are too few)
    note: str = ""
    floor: float = 0.0  # the difference, as a share, that this machine cannot tell from none

    @property
    def times_ms(self) -> np.ndarray:
        """All latencies in ms, shape (runs,)."""
        return np.concatenate([session.block_ms for session in self.sessions]) if self.sessions else np.empty(0)

    @property
    def medians_ms(self) -> np.ndarray:
        """The median of each session in ms, shape (sessions,)."""
        return np.array([np.median(session.block_ms) for session in self.sessions])

    @property
    def p50_ms(self) -> float:
        """The median latency in ms; NaN without sessions."""
        return float(np.median(self.times_ms)) if self.sessions else math.nan

    def mean(self, counter: str) -> float | None:
        """Return a counter's mean over the sessions, None where the system has none."""
        found = [getattr(session, counter) for session in self.sessions]
        return None if not found or None in found else float(np.mean(found))

    def verdict(self, floor: float | None = None) -> str:
        """Return "faster", "slower", "undecided" or "no interval", or "reference" where there is nothing to compare.

        Args:
            floor: differences below it decide nothing; its own floor, if not given.
        """
        if (self.ratio, self.half_width) == (1, 0):
            return "reference"
        return verdict(self.ratio, self.half_width, floor=self.floor if floor is None else floor)


def verdict(ratio: float, half_width: float, *, floor: float = 0.0) -> str:
    """Judge a ratio by its interval.

    Args:
        ratio: above 1 means faster.
        half_width: of its interval, as a share of the ratio; NaN where there is none.
        floor: the difference, as a share, that this machine cannot tell from none.
    Returns:
        "faster", "slower", "undecided" or "no interval".
    """
    if math.isnan(ratio) or math.isnan(half_width):
        return "no interval"
    width = 1 + max(half_width, floor)
    return "faster" if ratio / width > 1 else "slower" if ratio * width < 1 else "undecided"


def floor(ratio: float, half_width: float) -> float:
    """Return, as a share, how far a backend that was opened as two columns may seem to differ from itself.

    Args:
        ratio: of the two columns.
        half_width: of its interval; where there is none (NaN), the difference that was seen must do.
    """
    return max(ratio, 1 / ratio) * (1 + np.nan_to_num(half_width)) - 1


def log_ratio(
    over_ms: Sequence[float], under_ms: Sequence[float], *, paired: bool = True
) -> tuple[float, float, float]:
    """Compare two backends by the medians of their sessions.

    Args:
        over_ms: a median a session, of one backend.
        under_ms: of the other.
        paired: whether session n of one was measured beside session n of the other; else Welch's formulas.
    Returns:
        The mean of the logarithm of the ratio, its standard error, and the degrees of freedom of Student's t; error and
        degrees are NaN with under ``LEAST`` sessions of either, everything without any.
    """
    over, under = np.log(over_ms), np.log(under_ms)
    n = min(len(over), len(under))
    if paired:
        over, under = over[:n], under[:n]
    centre = over.mean() - under.mean() if n else math.nan
    if n < LEAST:
        return float(centre), math.nan, math.nan
    if paired:
        return float(centre), float(stats.sem(over - under)), n - 1
    parts = np.array([np.var(over, ddof=1) / len(over), np.var(under, ddof=1) / len(under)])
    spread = (parts**2 / np.array([len(over) - 1, len(under) - 1])).sum()
    degrees = parts.sum() ** 2 / spread if spread else len(over) + len(under) - 2
    return float(centre), float(np.sqrt(parts.sum())), float(degrees)


def ratio_interval(
    over_ms: Sequence[float], under_ms: Sequence[float], *, paired: bool = True, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Return the ratio of ``log_ratio``, and the half-width of its Student's t interval as a share of it."""
    centre, error, degrees = log_ratio(over_ms, under_ms, paired=paired)
    half = stats.t.ppf((1 + confidence) / 2, degrees) * error
    return float(np.exp(centre)), float(np.expm1(half))


def wait_until_idle(tools: Instruments = REAL) -> bool:
    """Wait until this process rests: engines' threads spin on for a while after a run, then stop by themselves.

    Returns:
        Whether it came to rest within ``IDLE_LIMIT_S``.
    """
    for _ in range(round(IDLE_LIMIT_S / IDLE_STEP_S)):
        before = tools.cpu_time()
        tools.sleep(IDLE_STEP_S)
        if tools.cpu_time() - before < IDLE_SHARE * IDLE_STEP_S:
            return True
    return False


def measure(
    openers: Mapping[str, Callable[[], Run]],
    *,
    reference: str,
    sessions: int = SESSIONS,
    patience_s: float = 0.0,
    precision: float = 0.02,
    budget_s: float = math.inf,
    seed: int = 0,
    twin: bool = False,
    tools: Instruments = REAL,
    progress: Callable[[dict[str, Timing]], None] | None = None,
) -> dict[str, Timing]:
    """Measure backends against each other: each opened anew in every session, one at a time, in a random order.

    Args:
        openers: by name, functions that open a backend and return what runs it; its outputs are known to be right.
        reference: the backend that the ratios refer to.
        sessions: of each backend, at least.
        patience_s: how long to add sessions, up to twice as many, while a half-width is above ``precision``.
        precision: the half-width that is good enough, as a share.
        budget_s: when to give up; where the sessions are not done by then, the status is "budget".
        seed: of the order.
        twin: open the reference as one more backend, whose ratio to it is the A/A floor of all timings.
        tools: clock, counters and pauses.
        progress: called after each session with the timings so far.
    Returns:
        A timing for each backend, in the order given.
    Raises:
        ValueError: if the reference is not among the backends or sessions is below 1.
        BackendError: if a backend raises.
    """
    if reference not in openers:
        raise ValueError(f"The reference is {reference!r}; it must be one of {', '.join(openers)}.")
    if sessions < 1:
        raise ValueError(f"sessions is {sessions}; it must be 1 or more.")
    gc.collect()  # what earlier cells left behind
    again = f"{reference} again"
    openers = openers | {again: openers[reference]} if twin else openers
    rng, began = np.random.default_rng(seed), tools.clock()
    timings = {name: Timing(name) for name in openers}
    done, repeats = 0, REPEATS if sessions >= LEAST else 0  # what gives no interval is not worth repeating
    while True:
        for name in rng.permutation(list(openers)):
            session = _session(str(name), openers[name], repeats, tools)
            timings[name].sessions.append(session)
            if session.disturbed:
                repeats = 0  # repeating did not help: this machine is busy, and the rows will say so
            if done + 1 < sessions and tools.clock() - began > budget_s:
                for timing in timings.values():
                    timing.status, timing.note = Status.BUDGET, f"time was up after {done} of {sessions} sessions"
                return {name: timing for name, timing in timings.items() if not (twin and name == again)}
        done += 1
        for timing in timings.values():
            timing.ratio, timing.half_width = ratio_interval(timings[reference].medians_ms, timing.medians_ms)
        if progress:
            progress(timings)
        rough = any(timing.half_width > precision for timing in timings.values())
        if done >= sessions and not (rough and done < 2 * sessions and tools.clock() - began < patience_s):
            break
    itself = timings.pop(again) if twin else None
    for timing in timings.values():
        _judge(timing)
        timing.floor = floor(itself.ratio, itself.half_width) if itself else 0.0
    return timings


def _judge(timing: Timing) -> None:
    """Set the status: DISTURBED if something else ran in a session in spite of the repeats."""
    loud = [session for session in timing.sessions if session.disturbed]
    if not loud:
        return
    timing.status = Status.DISTURBED
    most = max(session.foreign_cores or 0 for session in loud)
    periods = sum(session.throttled or 0 for session in loud)
    what = f"a quota stopped it in {periods} periods" if periods else f"other programs took up to {most:.1f} cores"
    timing.note = f"{what}, in {len(loud)} of {len(timing.sessions)} sessions"


def _session(name: str, opener: Callable[[], Run], repeats: int, tools: Instruments) -> Session:
    """Measure one session; one in which something else ran is thrown away and made again, some times."""
    disturbed: list[np.ndarray] = []
    while True:
        try:
            session = _open_and_time(opener, tools)
        except Exception as error:
            raise BackendError(name, error) from error
        if not session.disturbed or len(disturbed) >= repeats:
            session.disturbed_ms = disturbed
            return session
        disturbed.append(session.block_ms)
        tools.sleep(0.5)  # for what disturbed to end


def _open_and_time(opener: Callable[[], Run], tools: Instruments) -> Session:
    clock, idle = tools.clock, wait_until_idle(tools)
    start = clock()
    run = opener()
    opened = clock()
    run()
    first_s = clock() - opened
    before = tools.counters()
    warm, seconds = clock(), []
    while len(seconds) < WARM_UP_RUNS - 1 or clock() - warm < WARM_UP_S:
        began = clock()
        run()
        seconds.append(clock() - began)
    run_s = float(np.median(seconds))
    least = SLOW_BLOCK if run_s * 1e3 > SLOW_MS else BLOCK
    block = np.empty(min(max(least, math.ceil(LONG_ENOUGH_S / max(run_s, 1e-9))), MAX_BLOCK))
    collects = gc.isenabled()
    gc.disable()
    try:
        run()  # settles caches, clock rate and threads, untimed
        at_block = tools.counters()
        for i in range(len(block)):
            began = clock()
            run()
            block[i] = clock() - began
        after = tools.counters()
    finally:
        if collects:
            gc.enable()
    in_block, around = after.since(at_block), after.since(before)
    faults, own_clock = in_block["page_faults"], getattr(run, "device_ms", None)
    return Session(
        load_ms=(opened - start) * 1e3,
        first_run_ms=first_s * 1e3,
        block_ms=block * 1e3,
        page_faults=None if faults is None else faults / len(block),
        system_ms=in_block["system_ms"] / len(block),
        foreign_cores=around["foreign_cores"],
        throttled=around["throttled"],
        idle=idle,
        device_ms=float(np.median([own_clock() for _ in range(BLOCK)])) if own_clock else None,
    )
