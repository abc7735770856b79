"""Agreement of the networks of several seeds on where they look."""

from __future__ import annotations

import itertools
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64, UInt8

from labn.metrics.rank_agreement import rank_correlation
from labn.runs.comparison.read_runs import ScoredRun
from labn.runs.evaluation.outputs import ATTENTION


@dataclass(frozen=True, eq=False, kw_only=True)
class SeedAgreement:
    """How alike the attention of one condition's seeds is, on the images that all of them kept.

    ``correlation`` is Spearman's of the pixels of two seeds' maps, averaged over the images: 1 is
    the same order of pixels, 0 none in common. ``maps`` are the means over the seeds, ``spread``
    the standard deviations (of the population, at most 0.5).
    """

    condition: str
    seeds: tuple[int, ...]
    names: tuple[str, ...]
    images: UInt8[np.ndarray, "n h w c"]
    correlation: Float64[np.ndarray, "k k"]
    maps: Float64[np.ndarray, "n h w"]
    spread: Float64[np.ndarray, "n h w"]

    @property
    def pairs(self) -> list[float]:
        """The correlation of each pair of seeds."""
        places = itertools.combinations(range(len(self.seeds)), 2)
        return [float(self.correlation[place]) for place in places]

    def as_json(self) -> dict[str, Any]:
        """Return the correlations as plain values."""
        return {
            "condition": self.condition,
            "seeds": list(self.seeds),
            "images": list(self.names),
            "spearman": [
                [None if np.isnan(one) else one for one in row] for row in self.correlation
            ],
            "mean_spread": float(self.spread.mean()),
        }


def compare_seeds(runs: Sequence[ScoredRun], conditions: Sequence[str]) -> list[SeedAgreement]:
    """Compare the maps that evaluations kept, for each condition of two seeds or more.

    Evaluations by earlier releases kept none, and folds validate other images.
    """
    found = []
    for condition in dict.fromkeys(conditions):
        of_condition = [r for r, own in zip(runs, conditions, strict=True) if own == condition]
        of_condition.sort(key=lambda run: run.seed)
        kept = {run.seed: maps for run in of_condition if (maps := _kept(run)) is not None}
        names = [
            name
            for name in next(iter(kept.values()), {})
            if all(name in maps for maps in kept.values())
        ]
        if len(kept) == len(of_condition) > 1 and names:
            found.append(_agreement(condition, kept, names))
    return found


def _kept(run: ScoredRun) -> dict[str, tuple[np.ndarray, np.ndarray]] | None:
    """Return the image and the map of each name that a run's evaluation kept, None without any."""
    try:
        with np.load(run.scored_in / ATTENTION) as file:
            arrays = [file[key] for key in ("names", "images", "attention")]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None
    return {
        str(name): (image, attention.astype(np.float64))
        for name, image, attention in zip(*arrays, strict=True)
    }


def _agreement(
    condition: str,
    kept: dict[int, dict[str, tuple[np.ndarray, np.ndarray]]],
    names: list[str],
) -> SeedAgreement:
    maps_knhw = np.array([[maps[name][1] for name in names] for maps in kept.values()])
    correlation = np.eye(len(kept))
    for one, other in itertools.combinations(range(len(kept)), 2):
        by_image = [
            rank_correlation(*pair) for pair in zip(maps_knhw[one], maps_knhw[other], strict=True)
        ]
        # A constant map has no order; where all are constant there is nothing to compare.
        defined = [value for value in by_image if not np.isnan(value)]
        mean = np.mean(defined) if defined else np.nan
        correlation[one, other] = correlation[other, one] = mean
    first = next(iter(kept.values()))
    return SeedAgreement(
        condition=condition,
        seeds=tuple(kept),
        names=tuple(names),
        images=np.array([first[name][0] for name in names]),
        correlation=correlation,
        maps=maps_knhw.mean(axis=0),
        spread=maps_knhw.std(axis=0),
    )
