from __future__ import annotations

import itertools

import pytest

import labn.training.throughput
from labn.training.process_group import SINGLE, Group
from labn.training.throughput import Throughput


@pytest.fixture
def clock(monkeypatch):
    """A clock that advances by one second each time it is read."""
    ticks = itertools.count()
    monkeypatch.setattr(labn.training.throughput.time, "perf_counter", lambda: float(next(ticks)))


class Three(Group):
    """The first of three ranks, of which the others work at 10 and 2 images a second."""

    def gather(self, value):
        return [value, 10.0, 2.0]


def test_one_process_has_a_speed_and_no_ranks(clock):
    throughput = Throughput(SINGLE)  # second 0
    throughput.count(12)
    assert throughput.by_rank() == {"images_per_s": 12.0, "world_size": 1.0}


def test_a_group_names_its_slowest_rank(clock):
    throughput = Throughput(Three(0, 3))  # second 0
    for _ in throughput.loading(iter(["9 images."])):  # 1 to 2; 5 to 6: no more
        with throughput.own_work():  # 3 to 4
            pass
    throughput.count(28)

    assert throughput.by_rank() == {
        "images_per_s": 28 / 7,
        "world_size": 3.0,
        "images_per_s_rank_0": 9 / 3,
        "images_per_s_rank_1": 10.0,
        "images_per_s_rank_2": 2.0,
        "slowest_rank": 2.0,
    }
