"""Agreement of seeds on the maps that their evaluations kept."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from labn.runs.comparison.read_runs import ScoredRun
from labn.runs.comparison.seed_agreement import _kept, compare_seeds
from labn.runs.evaluation.outputs import ATTENTION


def run_in(folder, seed):
    table = pd.DataFrame()
    return ScoredRun(
        name=folder.name, path=folder, scored_in=folder, seed=seed, fold=None, settings={},
        terms={}, prefix="test", metrics={}, images=table, manifest=table, scores=table,
        localisation=None, lambda_layer=None,
    )  # fmt: skip


def keep(folder, seed, attention, names=("a", "b")):
    """Write what an evaluation keeps of its maps; return its run."""
    folder.mkdir()
    images = np.full((len(names), 4, 5, 3), 9, np.uint8)
    np.savez(folder / ATTENTION, names=names, images=images, attention=attention, titles=names)
    return run_in(folder, seed)


@pytest.fixture
def maps():
    return np.random.default_rng(0).random((3, 2, 4, 5)).astype(np.float16)


def test_the_agreement_is_the_mean_rank_correlation_over_the_common_images(tmp_path, maps):
    # The second run has its images in another order, and one that the others lack.
    runs = [
        keep(tmp_path / "0", 0, maps[0]),
        keep(tmp_path / "1", 1, np.stack([maps[1, 1], maps[2, 0], maps[1, 0]]), ("b", "c", "a")),
        keep(tmp_path / "2", 2, maps[2]),
    ]

    (found,) = compare_seeds(runs, ["full"] * 3)

    assert (found.condition, found.seeds, found.names) == ("full", (0, 1, 2), ("a", "b"))
    exact = maps.astype(np.float64)
    for i in range(3):
        for j in range(3):
            expected = np.mean(
                [spearmanr(exact[i, n].ravel(), exact[j, n].ravel())[0] for n in range(2)]
            )
            assert found.correlation[i, j] == pytest.approx(expected, abs=1e-12)
    np.testing.assert_allclose(found.maps, exact.mean(axis=0))
    np.testing.assert_allclose(found.spread, exact.std(axis=0))
    assert found.pairs == [
        found.correlation[0, 1],
        found.correlation[0, 2],
        found.correlation[1, 2],
    ]


def test_one_seed_or_runs_of_an_earlier_release_have_no_agreement(tmp_path, maps):
    runs = [keep(tmp_path / "0", 0, maps[0]), keep(tmp_path / "1", 0, maps[1])]
    (tmp_path / "old").mkdir()
    old = run_in(tmp_path / "old", 1)

    assert compare_seeds(runs, ["full", "no-kl"]) == []
    assert compare_seeds([runs[0], old], ["full", "full"]) == []
    assert _kept(old) is None


def test_a_constant_map_has_no_order_and_does_not_count(tmp_path, maps):
    flat = maps[1].copy()
    flat[0] = 0.5

    (found,) = compare_seeds(
        [keep(tmp_path / "0", 0, maps[0]), keep(tmp_path / "1", 1, flat)], ["full"] * 2
    )

    exact = maps.astype(np.float64)
    expected = spearmanr(exact[0, 1].ravel(), exact[1, 1].ravel())[0]
    assert found.correlation[0, 1] == pytest.approx(expected, abs=1e-12)
