"""Timing of alternatives in turn, round after round, so that a busy moment affects each."""

from __future__ import annotations

import gc
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

chosen_clock = "wall"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One comparison: how many times better ``ours`` is than ``other``, and how far they agree.

    ``ours`` and ``other`` are medians in ``unit``; ``low`` and ``high`` are the quartiles of the
    rounds' ratios; ``error`` is the difference of the results, of the kind ``error_kind``.
    """

    name: str
    ours: float
    other: float
    unit: str
    ratio: float
    low: float
    high: float
    num_rounds: int
    error: float | None = None
    error_kind: str = ""
    at_least: float | None = None
    """The required ratio."""

    @property
    def falls_short(self) -> bool:
        """Whether the ratio is below the required one."""
        return self.at_least is not None and self.ratio < self.at_least


CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
"""Processor time counts all threads: use it with one thread, on a machine with other load."""


def time_s(work: Callable[[], object]) -> float:
    """Run once; return the seconds by the chosen clock."""
    clock = CLOCKS[chosen_clock]
    start_s = clock()
    work()
    return clock() - start_s


def interleave(
    works: Mapping[str, Callable[[], object]], num_rounds: int, *, is_warm: bool = False
) -> dict[str, list[float]]:
    """Return the seconds of each work in each round, after one round that does not count.

    If ``is_warm``, each work is done once more before it is timed, so that the caches hold its data
    and not that of the work before: for works of a few milliseconds.
    """
    for work in works.values():
        work()
    gc.collect()
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(num_rounds):
        for name, work in works.items():
            if is_warm:
                work()
            times[name].append(time_s(work))
    return times


def compare(
    name: str,
    ours_s: Sequence[float],
    other_s: Sequence[float],
    error: float | None = None,
    error_kind: str = "",
    *,
    at_least: float | None = None,
) -> Row:
    """Return the row of two works' times."""
    return row_of(name, ours_s, other_s, "s", error, error_kind, at_least=at_least)


def compare_rates(
    name: str, num_images: int, ours_s: Sequence[float], other_s: Sequence[float]
) -> Row:
    """Return the row of the images per second of two works with as many images."""
    ours, other = ([num_images / t for t in times] for times in (ours_s, other_s))
    return row_of(name, ours, other, "images/s", is_rate=True)


def row_of(
    name: str,
    ours: Sequence[float],
    other: Sequence[float],
    unit: str,
    error: float | None = None,
    error_kind: str = "",
    *,
    is_rate: bool = False,
    at_least: float | None = None,
) -> Row:
    """Return the row of pairs measured in turn; higher rates are better, else lower values."""
    pairs = zip(ours, other, strict=True)
    ratios = [own / theirs if is_rate else theirs / own for own, theirs in pairs]
    quartiles = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [ratios[0]] * 3
    return Row(
        name=name,
        ours=statistics.median(ours),
        other=statistics.median(other),
        unit=unit,
        ratio=statistics.median(ratios),
        low=quartiles[0],
        high=quartiles[2],
        num_rounds=len(ratios),
        error=error,
        error_kind=error_kind,
        at_least=at_least,
    )


def peak_memory_mb(code: str) -> tuple[float, float]:
    """Run code in a process of its own; return its resident set at the mark and its peak, in MB.

    The code must call ``mark()`` once, after allocating what does not count. Linux only.
    """
    # Not getrusage: its peak begins with that of the process this one was forked from.
    prelude = """
def _memory_mb(name):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))
def mark():
    open("/proc/self/clear_refs", "w").write("5")  # resets the peak
    print(_memory_mb("VmRSS"))
"""
    last = "\nprint(_memory_mb('VmHWM'))\n"
    done = subprocess.run(
        [sys.executable, "-c", prelude + code + last], check=True, capture_output=True, text=True
    )
    at_mark, peak = map(float, done.stdout.split())
    return at_mark, peak
