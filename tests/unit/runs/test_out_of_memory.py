"""A run that exhausts a device's memory, which a raised error stands for."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from labn.config import Config
from labn.config.workers import Workers
from labn.errors import OutOfMemory, RunFailed
from labn.runs import train
from labn.runs.out_of_memory import evaluation_memory, training_memory
from labn.runs.reporter import Reporter
from labn.sweeps import worker
from labn.sweeps.worker import Worker

TORCH_SAYS = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.15 GiB of"
    " which 8.50 MiB is free.\nSee documentation for Memory Management"
)


def exhaust(*given, **settings):
    raise torch.OutOfMemoryError(TORCH_SAYS)


@pytest.fixture
def config(tmp_path):
    return Config.model_validate(
        {
            "data": {"name": "synthetic", "image_size": 224, "cache_dir": tmp_path / "cache"},
            "train": {"batch_size": 32, "accumulation_steps": 2},
            "tracking": {"uri": "none"},
            "output_dir": tmp_path / "run",
        }
    )


def test_training_out_of_memory_is_one_line_with_both_sizes_and_the_fix(config):
    with pytest.raises(OutOfMemory) as error, training_memory(config):
        exhaust()

    assert str(error.value) == (
        "train.batch_size = 32 at data.image_size = 224: out of memory (CUDA out of memory. Tried"
        " to allocate 2.00 GiB); set train.accumulation_steps=4 (batch norm sees the parts), or a"
        " smaller train.batch_size"
    )
    assert isinstance(error.value, RunFailed)


def test_a_batch_of_single_images_that_exhausts_memory_must_be_smaller(config):
    settings = config.train.model_copy(update={"accumulation_steps": 32})
    config = config.model_copy(update={"train": settings})
    message = r"\); set a smaller train.batch_size$"

    with pytest.raises(OutOfMemory, match=message), training_memory(config):
        exhaust()


def test_the_inner_of_two_explanations_is_the_users(config):
    message = r"^validation.batch_size = 64 at data.image_size = 224"
    outer, inner = training_memory(config), evaluation_memory(config)

    with pytest.raises(OutOfMemory, match=message), outer, inner:
        exhaust()


def test_other_errors_stay_as_they_are(config):
    with pytest.raises(RuntimeError, match=r"^a shape$"), training_memory(config):
        raise RuntimeError("a shape")


def test_a_run_names_what_exhausted_its_memory_wherever_that_happens(config, monkeypatch):
    monkeypatch.setattr(train, "load_dataset", lambda *given: None)
    monkeypatch.setattr(train, "TrainingHooks", exhaust)

    with pytest.raises(OutOfMemory, match=r"^train.batch_size = 32"):
        train.train_run(config, Reporter())
    with pytest.raises(OutOfMemory, match=r"^train.batch_size = 32"):
        train.assist_run(config, train.SINGLE)


@pytest.mark.parametrize("is_enough", [True, False])
def test_a_run_leaves_no_memory_to_the_next_in_its_process(config, monkeypatch, is_enough):
    """A network holds itself by a cycle, as hooks and compiled ones do; nothing else is freed."""

    class Network:
        def __init__(self):
            self.itself = self

    networks, released = [], []

    def train_run(config, reporter, should_stop, *, take_over_s):
        network = Network()
        networks.append(weakref.ref(network))
        if not is_enough:
            exhaust()
        return train.Summary("", 1, 1, {}, [], {})

    monkeypatch.setattr(worker, "train_run", train_run)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: released.append(networks[-1]()))
    gc.disable()
    try:
        Worker(processes=Workers(num=1)).complete(config, Reporter(), lambda: False)
    finally:
        gc.enable()

    assert released == [None], "the device's cache is emptied once the network is gone"
