"""The model behind docs/scaling.md, against sums made by hand and what must hold of any cluster."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.bench.scaling_model import Cluster, Run, Search, all_reduce_s, run_hours, search_cost

RUN = Run(hours=10, steps=3600, fixed_share=0.2, gradient_bytes=1000, norm_layers=3)
FREE = Cluster(bandwidth_bytes_s=1e30, latency_s=0, node_start_s=0, trial_start_s=0)
REAL = Cluster(bandwidth_bytes_s=1000, latency_s=0.01, node_start_s=360, trial_start_s=36)
SEARCH = Search(trials=9, grace_epochs=2, reduction=3, epochs=18)


def test_what_is_fixed_bounds_the_speed_up():
    assert run_hours(RUN, FREE, 1) == pytest.approx(10)
    assert run_hours(RUN, FREE, 4) == pytest.approx(10 * (0.2 + 0.8 / 4))
    assert run_hours(RUN, FREE, 10**9) == pytest.approx(2, rel=1e-6)


def test_the_exchange_of_a_step_is_a_ring_and_a_message_each_norm():
    # Twice w - 1 messages of a w-th of the gradients; 1 + 2 x 3 exchanges pay the latency.
    assert all_reduce_s(RUN, REAL, 4) == pytest.approx(6 * 250 / 1000 + 6 * 7 * 0.01)
    assert all_reduce_s(RUN, REAL, 1) == 0


def test_halving_leaves_each_trial_a_share_of_a_run():
    # All to epoch 2, a third to 6, a ninth to 18.
    assert SEARCH.mean_share == pytest.approx((2 + 4 / 3 + 12 / 9) / 18)
    assert replace(SEARCH, grace_epochs=18).mean_share == 1


def test_one_gpu_does_all_trials_in_turn():
    whole = replace(SEARCH, grace_epochs=18)
    assert search_cost(RUN, FREE, whole, 1, 1).hours == pytest.approx(9 * 10)
    assert search_cost(RUN, REAL, whole, 1, 1).hours == pytest.approx(9 * 10.01 + 0.1)
    # As many hours as are held, also where trials are stopped early.
    cost = search_cost(RUN, REAL, SEARCH, 1, 1)
    assert cost.hours == pytest.approx(cost.gpu_hours)


def test_a_search_is_never_faster_than_its_longest_trial_nor_cheaper_than_its_work():
    for gpus in (1, 2, 4, 8, 64):
        for workers in (1, 2, 4):
            if workers > gpus:
                assert search_cost(RUN, REAL, SEARCH, gpus, workers).at_once == 0
                continue
            cost = search_cost(RUN, REAL, SEARCH, gpus, workers)
            assert cost.hours >= run_hours(RUN, REAL, workers)
            assert cost.hours * gpus >= 9 * SEARCH.mean_share * run_hours(RUN, REAL, workers)


def test_more_gpus_than_trials_wait_in_vain():
    costs = [search_cost(RUN, REAL, SEARCH, gpus, 1) for gpus in (9, 64)]
    assert costs[0] == costs[1]
