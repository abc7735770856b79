"""Training runs: folder, data, network, training loop, tracker, final scores."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack

from labn.config import Config
from labn.runs.build import load_dataset
from labn.runs.folder import RunFolder
from labn.runs.hooks import Summary, TrainingHooks
from labn.runs.out_of_memory import training_memory
from labn.runs.replicas import Replicas
from labn.runs.reporter import Reporter
from labn.runs.tracked import deliver_kept
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
    """Train a configuration to its end, resuming from its newest checkpoint if it has one.

    In a group, rank 0 calls this; every other rank calls ``assist_run``. Wait ``take_over_s`` for
    an earlier process on the run to end, such as rank 0 of a group that was aborted.
    ``should_save`` requests an extra checkpoint, on every rank at once.

    Raises:
        UserError: the settings or the data are invalid, or the folder belongs to another run.
        RunFailed: training failed, for lack of memory too.
        Interrupted: ``should_stop`` returned True; everything is saved.
    """
    folder = RunFolder(config.output_dir)
    with folder.claimed(wait_s=take_over_s), ExitStack() as stack:
        folder.check_same(config)
        replicas = None
        if config.train.storage is not None:
            replicas = Replicas(config, folder)
            if restored := replicas.restore():
                reporter.message(restored)
        known = group.from_first(folder.known_subsets(config.data))
        if folder.summary_file.is_file():
            # Its scores are of its own data, and must not be reported for other data.
            load_dataset(config.data, config.loss, reporter, known)
            reporter.message(f"{folder.path} is finished already; nothing left to train")
            deliver_kept([(config, folder, "FINISHED")])
            return Summary(**json.loads(folder.summary_file.read_text()))
        device = choose_device(config.train)
        dataset = load_dataset(config.data, config.loss, reporter, known)
        stack.enter_context(training_memory(config))
        run = TrainingHooks(
            config, folder, device, dataset, reporter, should_stop, group, replicas, should_save
        )
        # Not earlier: settings that cannot be built must not claim the folder.
        folder.adopt(config)
        if replicas is not None:
            stack.enter_context(replicas)
        return run.complete()


def assist_run(
    config: Config, group: Group, *, should_save: Callable[[], bool] = lambda: False
) -> None:
    """Train on a rank other than 0; only rank 0 writes and reports."""
    device, reporter = choose_device(config.train), Reporter()
    folder = RunFolder(config.output_dir)
    # From rank 0: the other ranks may not have access to the folder.
    known = group.from_first(None)
    dataset = load_dataset(config.data, config.loss, reporter, known)
    with training_memory(config):
        TrainingHooks(
            config, folder, device, dataset, reporter, lambda: False, group, should_save=should_save
        ).assist()
