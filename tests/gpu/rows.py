"""Rows of the table: what was measured, against which limit."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measurement; it passes if ``value`` is at most (or at least) its limit."""

    name: str
    value: float
    unit: str
    at_most: float | None = None
    at_least: float | None = None
    detail: str = ""

    @property
    def passes(self) -> bool:
        """Whether the value keeps its limits; not if it is no number."""
        above = self.at_least is None or self.value >= self.at_least
        return above and (self.at_most is None or self.value <= self.at_most)

    def __str__(self) -> str:
        limits = [
            f"{word} {limit:.3g}"
            for word, limit in (("at most", self.at_most), ("at least", self.at_least))
            if limit is not None
        ]
        verdict = f"{'ok' if self.passes else 'FAILS'}, {', '.join(limits)}" if limits else ""
        return (
            f"{self.name:58} {self.value:>11.4g} {self.unit:9} {verdict:24} {self.detail}".rstrip()
        )


Rows = Iterator[Row]


def median_ms(work: Callable[[], object], num_rounds: int = 7, num_warmups: int = 3) -> float:
    """Return the median milliseconds of a piece of work by the GPU's clock, after warm-up."""
    for _ in range(num_warmups):
        work()
    times = []
    for _ in range(num_rounds):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        work()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return |found - expected| / |expected|."""
    difference = found.detach().cpu().double() - expected.detach().cpu().double()
    return float(difference.norm() / expected.detach().cpu().double().norm())
