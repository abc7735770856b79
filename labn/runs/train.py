"""Training as a run: claimed folder, data, network, loop, tracker, final scores."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack

from labn.config import Config
from labn.runs.build import load_dataset
from labn.runs.folder import RunFolder
from labn.runs.hooks import Summary, TrainingHooks
from labn.runs.replicas import Replicas
from labn.runs.reporter import Reporter, SilentReporter
from labn.training.device import choose_device
from labn.training.process_group import SINGLE, Group

__all__ = ["Summary", "assist_run", "train_run"]


def train_run(
    config: Config,
    reporter: Reporter,
    should_stop: Callable[[], bool] = lambda: False,
    group: Group = SINGLE,
    *,
    take_over_s: float = 0,
    should_save: Callable[[], bool] = lambda: False,
) -> Summary:
    """Train a configuration to its end, from its newest checkpoint where it has one.

    With a group, this is its rank 0; every other rank calls ``assist_run``. A process that still
    has the run may take ``take_over_s`` to end: the first rank of a group that was broken off.
    ``should_save`` asks for a checkpoint out of turn, on every rank at once.

    Raises:
        UserError: the settings or the data do not hold together, or the folder is another run's.
        RunFailed: training went wrong.
        Interrupted: ``should_stop`` said so; everything is saved.
    """
    folder = RunFolder(config.output_dir)
    with folder.claimed(wait_s=take_over_s), ExitStack() as stack:
        folder.check_same(config)
        copies = None
        if config.train.storage is not None:
            copies = Replicas(config, folder)
            if taken := copies.restore():
                reporter.message(taken)
        if folder.summary_file.is_file():
            reporter.message(f"{folder.path} is finished already; nothing left to train")
            return Summary(**json.loads(folder.summary_file.read_text()))
        device = choose_device(config.train.device)
        dataset = load_dataset(config.data, config.loss, reporter)
        run = TrainingHooks(
            config, folder, device, dataset, reporter, should_stop, group, copies, should_save
        )
        # Not before: settings that could not be built must not bind the folder to them.
        folder.adopt(config)
        if copies is not None:
            stack.enter_context(copies)
        return run.complete()


def assist_run(
    config: Config, group: Group, *, should_save: Callable[[], bool] = lambda: False
) -> None:
    """Do the part of a rank other than 0 in training; only rank 0 writes and speaks."""
    device, reporter = choose_device(config.train.device), SilentReporter()
    folder = RunFolder(config.output_dir)
    dataset = load_dataset(config.data, config.loss, reporter)
    TrainingHooks(
        config, folder, device, dataset, reporter, lambda: False, group, should_save=should_save
    ).assist()
