"""Replays of searches on recorded curves (tests/bench/replay.py)."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest

from tests.bench.curves import NUM_EPOCHS, RECORDED, from_unit, read_curves, sobol_points, to_unit
from tests.bench.replay import DESIGNS, Surrogate, replay

NOISE = 0.05


def truth(unit):
    rise = 1 - np.exp(-np.arange(1, NUM_EPOCHS + 1) / 3)
    return 0.5 * np.exp(-3 * ((unit - 0.6) ** 2).sum()) * rise


@pytest.fixture(scope="module")
def surrogate():
    random, recorded = np.random.default_rng(0), []
    for point, parameters in enumerate(sobol_points()[:64]):
        for _ in range(3 if point < 16 else 1):
            shift, each = NOISE * random.normal(), NOISE * random.normal(size=(NUM_EPOCHS, 12))
            curves = truth(np.array(to_unit(parameters)))[:, None] + shift + each
            epochs = [{"pid": row.tolist()} for row in curves]
            recorded.append({"point": point, "parameters": parameters, "epochs": epochs})
    return Surrogate(recorded)


def test_a_point_of_the_cube_is_that_of_its_parameters():
    unit = [0.1, 0.3, 0.5, 0.7, 0.9, 0.2]

    assert to_unit(from_unit(np.array(unit))) == pytest.approx(unit)


def test_the_surrogate_knows_the_score_and_the_noise(surrogate):
    units = np.random.default_rng(1).random((50, 6))
    found = [surrogate.mean(unit).mean(1)[-1] - truth(unit)[-1] for unit in units]

    assert np.sqrt(np.mean(np.square(found))) < 1.5 * NOISE
    assert surrogate.noise == pytest.approx(NOISE, rel=0.5)
    draws = [surrogate.draw(units[0], np.random.default_rng(i)).mean() for i in range(50)]
    assert np.std(draws) == pytest.approx(NOISE, rel=0.6)


@pytest.mark.parametrize("name", [name for name in DESIGNS if not name.startswith("GP")])
def test_a_design_searches_for_its_budget_alike_each_time(surrogate, name):
    one, again = (replay(DESIGNS[name], surrogate, 3, 60) for _ in range(2))

    assert len(one.highest) == len(one.chosen) == 60
    assert (np.diff(one.highest[np.isfinite(one.highest)]) >= 0).all()
    assert one.chosen[-1] <= surrogate.optimum + NOISE
    assert np.array_equal(one.chosen, again.chosen)


def test_the_records_are_whole():
    recorded = read_curves(RECORDED)

    assert len({(curve["point"], curve["seed"]) for curve in recorded}) == len(recorded) == 420
    assert {len(curve["epochs"]) for curve in recorded} == {NUM_EPOCHS}


def test_a_line_that_a_kill_cut_short_is_left_out(tmp_path):
    line = json.dumps({"point": 0}) + "\n"
    plain, packed = tmp_path / "curves.jsonl", tmp_path / "curves.jsonl.gz"
    plain.write_text(line + line[:5])
    packed.write_bytes(gzip.compress((line * 2).encode()))

    assert read_curves(plain) == [{"point": 0}]
    assert read_curves(packed) == [{"point": 0}] * 2
