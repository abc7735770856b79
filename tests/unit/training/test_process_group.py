"""Several processes train as one does: real processes, joined by gloo over loopback."""

from __future__ import annotations

import math
import socket

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from bitwise import assert_same
from small_run import (
    CPU,
    FAITHFULNESS,
    STATISTICS,
    TRAIN,
    VALIDATION,
    Hooks,
    evaluation_batches,
    make_model,
    make_objective,
    make_trainer,
)
from torch import nn

from labn.data.augment import Augmentation
from labn.data.batches import TrainingBatches
from labn.errors import Interrupted, RunFailed
from labn.model.network import LABN
from labn.training.evaluate import Faithfulness, evaluate
from labn.training.process_group import SINGLE, Group


class FrozenNormLABN(LABN):
    """LABN whose batch norms keep their running statistics: no image sees another."""

    def train(self, mode=True):
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self


def make_frozen():
    torch.manual_seed(5)
    return FrozenNormLABN("lambda_cnn", 2, 3, 0, 0.5)


class SharedHooks(Hooks):
    """The tests' hooks, with the validation subset shared among the ranks."""

    def __init__(self, objective, group, **settings):
        super().__init__(objective, **settings)
        self.group = group

    def validate(self, model, epoch):
        rows = self.group.share(len(VALIDATION))
        subset = VALIDATION.select(np.arange(len(VALIDATION))[rows])
        batches = evaluation_batches(subset=subset) if len(subset) else []
        whole = evaluate(model, batches, self.objective, FAITHFULNESS, group=self.group)
        return whole.as_metrics("val")


def train(
    group,
    *,
    network="frozen",
    batch_size=5,
    accumulation_steps=1,
    start=None,
    rule="share",
    **hooks,
):
    """Train 5 epochs, 20 steps of 5 images or more; what each rank saw."""
    torch.set_num_threads(1)
    model = make_frozen() if network == "frozen" else make_model()
    objective = make_objective(class_weights=torch.tensor([2.0, 1.0]), mask_rule=rule)
    batches = TrainingBatches(
        TRAIN, STATISTICS, batch_size=batch_size, seed=0, bias_copies=1, balanced=False,
        augment=Augmentation(horizontal_flip=True, rotation_deg=10), device=CPU, shard=group.share,
    )  # fmt: skip
    spy = SharedHooks(objective, group, **hooks)
    trainer = make_trainer(
        model=model, batches=batches, objective=objective, hooks=spy, epochs=5, log_steps=1,
        batch_size=batch_size, accumulation_steps=accumulation_steps, checkpoint_steps=1,
        group=group,
    )  # fmt: skip
    if start is not None:
        trainer.load_state(torch.load(start, weights_only=True))
    stopped = failed = None
    try:
        trainer.run()
    except Interrupted:
        stopped = trainer.progress.global_step
    except RunFailed as error:
        failed = str(error)
    return {
        "losses": spy.step_losses,
        "history": trainer.progress.history,
        "model": model.state_dict(),
        "last": spy.saves[-1][1] if spy.saves else None,
        "stopped": stopped,
        "failed": failed,
    }


def work(rank, size, port, folder, settings):
    """Be one of the processes."""
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=size)
    group = Group(rank, size)
    changes = settings.pop("of_rank", {}).get(rank, {})
    torch.save(train(group, **settings, **changes), folder / f"{rank}.pt")
    dist.destroy_process_group()


def train_together(size, folder, **settings):
    """Train on processes of their own; each rank's results."""
    folder.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # A server that has imported what they need forks them; all of this file's share it.
    mp.set_forkserver_preload(
        [
            "labn.data.batches",
            "labn.training.evaluate",
            "labn.training.loop",
            "pytest",
            "torch._dynamo",
        ]
    )
    mp.start_processes(work, (size, port, folder, settings), nprocs=size, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(size)]


@pytest.mark.parametrize(
    ("size", "settings"),
    [
        (2, {}),
        (3, {"batch_size": 4}),  # the last batch of an epoch is two images: one rank has none
        (2, {"batch_size": 6, "accumulation_steps": 2, "rule": "threshold"}),
    ],
    ids=str,
)
def test_several_processes_take_the_steps_of_one(tmp_path, size, settings):
    alone = train(SINGLE, **settings)

    ranks = train_together(size, tmp_path / "ranks", **settings)

    assert len(alone["losses"]) >= 15
    for rank in ranks:
        np.testing.assert_allclose(rank["losses"], alone["losses"], rtol=0, atol=1e-5)
        for ours, theirs in zip(rank["history"], alone["history"], strict=True):
            assert ours.keys() == theirs.keys()
            assert ours["val_pid"] == pytest.approx(theirs["val_pid"], abs=1e-6)
            for name in ours:
                assert ours[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-5), name
        assert_same(rank["model"], ranks[0]["model"])


def test_each_image_is_given_out_once_an_epoch():
    names = []
    for rank in range(3):
        batches = TrainingBatches(
            TRAIN, STATISTICS, batch_size=4, seed=0, bias_copies=1, balanced=False,
            augment=Augmentation(), device=CPU, shard=Group(rank, 3).share,
        )  # fmt: skip
        names += [name for batch in batches.epoch(1) for name in batch.names]
    assert sorted(names) == sorted([*TRAIN.names, "bias image"])


def test_an_interrupted_group_resumes_bit_by_bit(tmp_path):
    whole = train_together(2, tmp_path / "whole", network="labn")
    stopped = train_together(
        2, tmp_path / "stopped", network="labn", of_rank={1: {"stop_after": 7}}
    )
    assert [rank["stopped"] for rank in stopped] == [7, 7]
    # By file: tensors handed to processes would be shared among them.
    kept = tmp_path / "kept.pt"
    torch.save(stopped[0]["last"], kept)

    resumed = train_together(2, tmp_path / "resumed", network="labn", start=kept)

    assert resumed[0]["history"] == whole[0]["history"]
    assert_same(resumed[0]["model"], whole[0]["model"])
    assert_same(resumed[1]["model"], whole[0]["model"])


def test_a_loss_that_is_not_finite_stops_every_rank_and_names_the_images(tmp_path):
    state = train(SINGLE, stop_after=1)["last"]
    for name in state["model"]:
        if name.startswith("fc"):
            state["model"][name] = torch.full_like(state["model"][name], math.nan)

    torch.save(state, tmp_path / "kept.pt")
    ranks = train_together(2, tmp_path / "ranks", start=tmp_path / "kept.pt")

    assert ranks[0]["failed"] == ranks[1]["failed"]
    assert ranks[0]["failed"].count("image-1-") >= 4  # of the batch's 5, one may be the bias image


def test_positives_beyond_the_limit_are_left_out_whichever_rank_has_them():
    model = make_model().eval()
    limited = Faithfulness(patch_size=8, num_points=3, max_positives=1)
    scores = evaluate(model, evaluation_batches(), make_objective(), limited)
    every = evaluate(model, evaluation_batches(), make_objective(),
                     Faithfulness(patch_size=8, num_points=3))  # fmt: skip
    assert len(every.pid.pid) > 1
    # Probabilities of a float32 network in batches of other sizes.
    assert scores.pid.pid.tolist() == pytest.approx(every.pid.pid[:1].tolist(), abs=1e-6)
    none = evaluate(model, evaluation_batches(), make_objective(),
                    Faithfulness(patch_size=8, num_points=3, max_positives=0))  # fmt: skip
    assert none.pid is None


@pytest.mark.parametrize(("size", "num"), [(1, 5), (3, 10), (4, 2), (2, 0)])
def test_shares_are_the_whole_once_and_even(size, num):
    shares = [list(range(num))[Group(rank, size).share(num)] for rank in range(size)]
    assert [item for share in shares for item in share] == list(range(num))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_worker_that_took_too_much_memory_is_reported_in_one_line():
    from labn.distributed.train_driver import _reason

    failure = RuntimeError(
        "Task was killed due to the node running low on memory.\nRefer to the"
        " documentation on how to address the out of memory issue: ..."
    )

    expected = "Ray ended one because its node was nearly out of memory; use a smaller"
    assert _reason(failure).startswith(expected)
    assert _reason(RuntimeError("a\nValueError: b")) == "ValueError: b"
