"""A worker of a run distributed by Ray Train, and its communication with the driver."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import ray
import ray.train
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from labn.config import Config
from labn.errors import Interrupted, RunFailed, UserError
from labn.runs.folder import TAKE_OVER_S
from labn.runs.reporter import Reporter
from labn.runs.train import assist_run, train_run
from labn.training.process_group import Group

_ADVANCE_S = 0.5


class Mailbox:
    """An actor between the driver and the workers."""

    def __init__(self) -> None:
        self._messages: list[tuple[str, tuple[Any, ...]]] = []
        self._verdict: tuple[str, Any] | None = None
        self._sizes: list[int] = []
        self._nodes: set[str] = set()
        self._must_stop = False

    def start(self, node: str, size: int | None) -> tuple[str, Any] | None:
        """Register the start of a worker on a node; return how the run ended, if it did.

        The first worker registers the ``size`` of the group.
        """
        self._nodes.add(node)
        if size is not None:
            self._sizes.append(size)
        return self._verdict

    def nodes(self) -> set[str]:
        """Return all nodes on which workers have started."""
        return self._nodes

    def verdict(self) -> tuple[str, Any] | None:
        """Return how the run ended, if it did."""
        return self._verdict

    def conclude(self, kind: str, content: Any) -> None:
        """Store how the run ended; the first call counts."""
        self._verdict = self._verdict or (kind, content)

    def post(self, kind: str, *content: Any) -> None:
        """Store a message for the driver's reporter."""
        self._messages.append((kind, content))

    def take(self, must_stop: bool) -> tuple[list[tuple[str, tuple[Any, ...]]], list[int]]:
        """Return the messages posted since the last call, and the number of workers per start."""
        self._must_stop = must_stop
        messages, self._messages = self._messages, []
        return messages, self._sizes

    def must_stop(self) -> bool:
        """Return whether the driver was asked to stop."""
        return self._must_stop


def place_mailbox() -> Any:
    """Start a mailbox on this node, so that the run survives the loss of other nodes."""
    here = ray.get_runtime_context().get_node_id()
    strategy: Any = NodeAffinitySchedulingStrategy(here, soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=strategy)(Mailbox).remote()


class _PostingReporter(Reporter):
    """A worker's reporter, which posts to the driver's."""

    def __init__(self, mailbox: Any) -> None:
        self._mailbox, self._last_s = mailbox, 0.0

    def message(self, text: str) -> None:
        """Post one line of text."""
        self._mailbox.post.remote("message", text)

    def advance(self, task: str, done: int, total: int) -> None:
        """Post progress, at most a few times per second."""
        now_s = time.monotonic()
        if now_s - self._last_s >= _ADVANCE_S or done == total:
            self._last_s = now_s
            self._mailbox.post.remote("advance", task, done, total)

    def epoch(self, metrics: Mapping[str, float], num_epochs: int, time_s: float) -> None:
        """Post a finished epoch, and wait, so that none is lost with a killed process."""
        ray.get(self._mailbox.post.remote("epoch", dict(metrics), num_epochs, time_s))


class _PostingHandler(logging.Handler):
    """A log handler that posts a worker's warnings to the driver."""

    def __init__(self, mailbox: Any) -> None:
        super().__init__(logging.WARNING)
        self._mailbox = mailbox

    def emit(self, record: logging.LogRecord) -> None:
        """Post one warning."""
        self._mailbox.post.remote("warn", record.getMessage())


class _PreemptionNotice:
    """A request for one checkpoint when a node of the run is about to be preempted.

    Ray Train restarts the group when the node is gone, or its deadline has passed.
    """

    def __init__(self, message: Callable[[str], None]) -> None:
        self._message, self._is_known = message, False

    def __call__(self) -> bool:
        """Return whether a notice has just arrived; all ranks must call alike and agree."""
        if self._is_known or (info := ray.train.get_preemption_info()) is None:
            return False
        self._is_known = True
        left = ""
        if info.deadline_ms is not None:
            left = f" in {max(0.0, info.deadline_ms / 1000 - time.time()):.0f} s"
        ranks = ", ".join(map(str, info.preempted_ranks))
        self._message(
            f"the node of worker {ranks} is about to be preempted{left}: saving a checkpoint"
        )
        return True


def work(given: dict[str, Any]) -> None:
    """Train as one of the workers."""
    sys.argv = given["command"]  # for the run's entry in the tracker
    mailbox = given["mailbox"]
    context = ray.train.get_context()
    group = Group(context.get_world_rank(), context.get_world_size())
    # A verdict ends workers that Ray restarted because the error of another broke the group.
    node = ray.get_runtime_context().get_node_id()
    if ray.get(mailbox.start.remote(node, group.size if group.is_first else None)) is not None:
        return
    config = Config.model_validate(given["config"])
    try:
        if group.is_first:
            logging.getLogger("labn").addHandler(_PostingHandler(mailbox))
            reporter = _PostingReporter(mailbox)
            summary = train_run(
                config,
                reporter,
                lambda: bool(ray.get(mailbox.must_stop.remote())),
                group,
                take_over_s=TAKE_OVER_S,
                should_save=_PreemptionNotice(reporter.message),
            )
            verdict: tuple[str, Any] = ("finished", asdict(summary))
        else:
            assist_run(config, group, should_save=_PreemptionNotice(lambda _: None))
            return
    except Interrupted:
        verdict = ("interrupted", None)
    except (UserError, RunFailed) as error:
        ray.get(mailbox.conclude.remote(type(error).__name__, str(error)))
        raise
    ray.get(mailbox.conclude.remote(*verdict))
