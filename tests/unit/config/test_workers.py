from __future__ import annotations

from labn.config.workers import Workers, check_divides, fault_of_sharing


def test_a_batch_that_does_not_divide_is_refused_with_those_that_do():
    assert check_divides(32, 4) is None
    assert check_divides(32, 5) == (
        "does not divide among 5 workers; give train.batch_size=30 or 35, or 4 or 8 workers"
    )


def test_a_number_of_workers_that_may_change_need_not_divide_the_batch():
    assert fault_of_sharing(32, Workers(num=5, least=2)) is None
    assert "does not divide among 5 workers" in fault_of_sharing(32, Workers(num=5))
    assert fault_of_sharing(4, Workers(num=5, least=2)) == (
        "leaves some of 5 workers without an image; give at most 4 workers, or a larger"
        " train.batch_size"
    )
