from __future__ import annotations

import pytest
import yaml

from labn.config import load_search, load_study
from labn.config.workers import Workers, check_divides, fault_of_gpus, fault_of_sharing
from labn.errors import UserError

RUN = {"data": {"name": "synthetic"}, "output_dir": "runs/test"}


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


@pytest.mark.parametrize(("gpus", "workers"), [(0, 2), (0.25, 1), (1, 1), (1, 2), (2, 4)])
def test_whole_gpus_none_or_a_share_for_one_process_are_accepted(gpus, workers):
    assert fault_of_gpus(gpus, workers) is None


@pytest.mark.parametrize(
    ("load", "section", "others"),
    [
        (load_search, "trial", {"space": {"loss.theta_b": {"type": "float", "low": 0, "high": 1}}}),
        (load_study, "each_run", {"conditions": {"full": {}}, "seeds": [0]}),
    ],
)
def test_workers_of_one_run_that_share_a_gpu_are_refused_in_one_line(
    tmp_path, load, section, others
):
    path, processes = tmp_path / "many.yaml", {"gpus": 0.5, "workers": 2}
    tree = {"base": RUN, "output_dir": str(tmp_path / "out"), section: processes} | others
    path.write_text(yaml.safe_dump(tree))

    with pytest.raises(UserError) as error:
        load(path)

    assert str(error.value) == (
        f"{path}: {section}.gpus = 0.5: 2 workers of one run need a whole GPU each, since NCCL"
        " refuses two processes on one GPU; give each worker 1 GPU, or the run 1 worker"
    )
    with pytest.raises(UserError, match=f"command line: {section}.gpus = 0.25: 2 workers"):
        load(path, [f"{section}.gpus=0.25"])
    assert load(path, [f"{section}.gpus=1"])
