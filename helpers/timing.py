"""How long does one run take, and can the number be trusted? Backends measured in turn, in blocks, on a quiet machine.

Taught in notebooks/04_speed_resnet18.ipynb.
"""

import gc
import logging
import math
import time
import timeit
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import psutil
import torch
from scipy.stats import bootstrap

# PyTorch's benchmark tools look for a compiler at import and complain on stderr where there is one and no GPU.
logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
from torch.utils import benchmark  # noqa: E402

BLOCK = 5  # timed runs in a block, at least
LONG_ENOUGH_S = 0.05  # fast backends get longer blocks, of at most MAX_BLOCK runs
MAX_BLOCK = 50
WARM_UP_RUNS, WARM_UP_S = 3, 0.2
SETTLE_S = 0.02  # before each block: one run at least, and as long as this
MOST = 4  # so many times the runs asked for, then an uncertain ratio is left uncertain
MAX_FOREIGN_CPU = 0.05  # share of the machine that other programs may take during a block
REPEATS = 2  # of a disturbed block
RESAMPLES = 999


class BackendError(RuntimeError):
    """A backend failed while it was measured; ``name`` is the backend's, ``__cause__`` is what it raised."""

    def __init__(self, name: str, cause: BaseException) -> None:
        """Keep the name and tell both."""
        super().__init__(f"{name} failed: {type(cause).__name__}: {cause}")
        self.name = name


class ForeignCpu:
    """The share of the machine's processors, 0 to 1, that other programs took since ``start()``.

    Systems count processor time in steps of about 10 ms; one step a core is subtracted, so a short block is not blamed
    for rounding.
    """

    STEP_S = 0.01

    def start(self) -> None:
        """Begin to watch."""
        self._began = self._read()

    def share(self) -> float:
        """Return the share since ``start()``."""
        wall, busy, own = (now - then for now, then in zip(self._read(), self._began, strict=True))
        cores = psutil.cpu_count() or 1
        foreign = busy - own - cores * self.STEP_S
        return max(0.0, foreign / (wall * cores)) if wall > 0 else 0.0

    @staticmethod
    def _read() -> tuple[float, float, float]:
        times = psutil.cpu_times()
        fields = ("user", "nice", "system", "irq", "softirq", "steal")
        return time.perf_counter(), sum(getattr(times, name, 0.0) for name in fields), time.process_time()


@dataclass
class Timing:
    """What ``measure`` saw of one backend."""

    name: str
    blocks_ms: list[np.ndarray] = field(default_factory=list)  # one array of latencies a round
    foreign_cpu: list[float] = field(default_factory=list)  # share of other programs, by round
    disturbed_ms: list[np.ndarray] = field(default_factory=list)  # blocks that were run again
    warm_up_runs: int = 0
    ratio: float = math.nan  # reference's median over this one's: above 1, this one is faster
    ratio_low: float = math.nan  # 95 % interval
    ratio_high: float = math.nan
    status: str = "ok"  # or "noisy", or "budget" (then there is no number)
    note: str = ""

    @property
    def times_ms(self) -> np.ndarray:
        """All latencies in ms, shape (runs,)."""
        return np.concatenate(self.blocks_ms) if self.blocks_ms else np.empty(0)

    @property
    def measurement(self) -> benchmark.Measurement:
        """The latencies as PyTorch's own ``Measurement``, in seconds, for its median, spread and printing."""
        task = benchmark.TaskSpec(stmt=self.name, setup="", label=self.name)
        return benchmark.Measurement(1, list(self.times_ms / 1e3), task)


def measure(
    backends: Mapping[str, Callable[[], object]],
    *,
    reference: str,
    runs: int = 50,
    precision: float = 0.025,
    patience_s: float = 30.0,
    max_s: float = math.inf,
    seed: int = 0,
    clock: Callable[[], float] | None = None,
    foreign: ForeignCpu | None = None,
    sleep: Callable[[float], None] = time.sleep,
    progress: Callable[[dict[str, Timing]], None] | None = None,
) -> dict[str, Timing]:
    """Measure backends against each other, in rounds of a seeded random order: settle, then time a block of runs.

    It ends when every backend has its runs and every ratio to the reference is known well enough. Where the ratios
    stay uncertain for ``patience_s``, the backends concerned are "noisy"; where ``max_s`` ends before the runs are
    done, all are "budget".

    Args:
        backends: zero-argument callables by name; their inputs are prepared, their outputs are known to be right.
        reference: the backend that the ratios refer to.
        runs: timed runs that each backend gets at least.
        precision: half of the ratio's 95 % interval that is good enough, as a share of the ratio.
        patience_s: how long to go on for that, in seconds from the first round.
        max_s: when to give up, in seconds from the warm-up's beginning.
        seed: of the order and of the bootstrap.
        clock: returns seconds; by default PyTorch's, which waits for the accelerator where there is one.
        foreign: watches other programs; ``ForeignCpu()`` if not given.
        sleep: waits for quiet, in seconds.
        progress: called after each round with the timings so far.
    Returns:
        A timing for each backend, in the order given.
    Raises:
        ValueError: if the reference is not among the backends or runs is below 1.
        BackendError: if a backend raises.
    """
    if reference not in backends:
        raise ValueError(f"The reference is {reference!r}; it must be one of {', '.join(backends)}.")
    if runs < 1:
        raise ValueError(f"runs is {runs}; it must be 1 or more.")
    if clock is None:
        # Without an accelerator PyTorch's clock is default_timer, after 12 µs of looking for one: 5 % of a short run.
        clock = benchmark.timer if torch.accelerator.is_available() else timeit.default_timer
    foreign = ForeignCpu() if foreign is None else foreign
    rng = np.random.default_rng(seed)
    timings = {name: Timing(name) for name in backends}
    began = clock()
    run_s = {name: _warm_up(name, run, timings[name], clock) for name, run in backends.items()}
    size = {name: min(max(BLOCK, math.ceil(LONG_ENOUGH_S / max(s, 1e-9))), MAX_BLOCK) for name, s in run_s.items()}
    rounds = max(math.ceil(runs / BLOCK), 2)  # one block alone has no interval
    first_round = clock()
    while True:
        order = rng.permutation(list(backends))
        groups = _groups(order, {name: size[name] * run_s[name] for name in backends})
        for group in groups:
            _run_group(group, backends, size, timings, clock, foreign, sleep)
        done = len(timings[reference].blocks_ms)
        if done >= 2:
            _update_ratios(timings, reference, seed)
        if progress:
            progress(timings)
        now = clock()
        if done >= rounds:
            uncertain = {name for name, timing in timings.items() if not _certain(timing, name == reference, precision)}
            if not uncertain or now - first_round >= patience_s or done >= MOST * rounds:
                break
        elif now - began >= max_s:
            for timing in timings.values():
                timing.status, timing.note = "budget", f"time was up after {done} of {rounds} rounds"
            return timings
    for name, timing in timings.items():
        loud = [share for share in timing.foreign_cpu if share > MAX_FOREIGN_CPU]
        if loud:
            timing.status = "noisy"
            timing.note = f"other programs took up to {max(loud):.0%} of the machine in {len(loud)} of {done} blocks"
        elif name in uncertain:
            timing.status = "noisy"
            timing.note = f"its 95 % interval is wider than ±{precision:.1%}"
    return timings


def ratio_interval(over: list[np.ndarray], under: list[np.ndarray], *, seed: int = 0) -> tuple[float, float, float]:
    """Compare two backends by their blocks.

    Args:
        over: blocks of latencies of one backend, at least two.
        under: of the other; if as many, they are taken as pairs from the same rounds.
        seed: of the bootstrap.
    Returns:
        Ratio of their medians (median over block medians), and its 95 % interval by bootstrap over the blocks.
    """
    medians = [np.array([np.median(block) for block in blocks]) for blocks in (over, under)]
    found = bootstrap(
        medians,
        _ratio_of_medians,
        paired=len(over) == len(under),
        vectorized=True,
        n_resamples=RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    low, high = found.confidence_interval
    return float(_ratio_of_medians(*medians)), float(low), float(high)


def _ratio_of_medians(a: np.ndarray, b: np.ndarray, axis: int = -1) -> np.ndarray:
    return np.median(a, axis=axis) / np.median(b, axis=axis)


def _warm_up(name: str, run: Callable[[], object], timing: Timing, clock: Callable[[], float]) -> float:
    """Run until both the runs and the time suffice; return the seconds of one run."""
    seconds: list[float] = []
    began = clock()
    while len(seconds) < WARM_UP_RUNS or clock() - began < WARM_UP_S:
        start = clock()
        _call(name, run)
        seconds.append(clock() - start)
    timing.warm_up_runs = len(seconds)
    return float(np.median(seconds))


def _groups(order: np.ndarray, block_s: Mapping[str, float]) -> list[list[str]]:
    """Cut a round into stretches that are long enough to tell other programs' load from rounding."""
    groups: list[list[str]] = [[]]
    for name in order:
        groups[-1].append(str(name))
        if sum(block_s[member] for member in groups[-1]) >= 0.3:
            groups.append([])
    return [group for group in groups if group]


def _run_group(
    group: list[str],
    backends: Mapping[str, Callable[[], object]],
    size: Mapping[str, int],
    timings: Mapping[str, Timing],
    clock: Callable[[], float],
    foreign: ForeignCpu,
    sleep: Callable[[float], None],
) -> None:
    for attempt in range(1 + REPEATS):
        foreign.start()
        blocks = {name: _block(name, backends[name], size[name], clock) for name in group}
        share = foreign.share()
        if share <= MAX_FOREIGN_CPU or attempt == REPEATS:
            break
        for name, block in blocks.items():
            timings[name].disturbed_ms.append(block)
        sleep(0.5)  # for what disturbed to end
    for name, block in blocks.items():
        timings[name].blocks_ms.append(block)
        timings[name].foreign_cpu.append(share)


def _block(name: str, run: Callable[[], object], size: int, clock: Callable[[], float]) -> np.ndarray:
    """Return the latencies of a block in ms, shape (size,). Caches, clock rate and threads settle first, untimed."""
    collects = gc.isenabled()
    gc.disable()
    try:
        start = clock()
        while True:
            _call(name, run)
            if clock() - start >= SETTLE_S:
                break
        seconds = np.empty(size)
        for i in range(size):
            start = clock()
            _call(name, run)
            seconds[i] = clock() - start
    finally:
        if collects:
            gc.enable()
    return seconds * 1e3


def _call(name: str, run: Callable[[], object]) -> None:
    try:
        run()
    except Exception as error:
        raise BackendError(name, error) from error


def _update_ratios(timings: Mapping[str, Timing], reference: str, seed: int) -> None:
    for name, timing in timings.items():
        if name == reference:
            timing.ratio = timing.ratio_low = timing.ratio_high = 1.0
        else:
            found = ratio_interval(timings[reference].blocks_ms, timing.blocks_ms, seed=seed)
            timing.ratio, timing.ratio_low, timing.ratio_high = found


def _certain(timing: Timing, is_reference: bool, precision: float) -> bool:
    if is_reference:
        return True
    return (timing.ratio_high - timing.ratio_low) / 2 <= precision * timing.ratio
