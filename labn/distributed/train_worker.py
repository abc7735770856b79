"""What each worker of a run that Ray Train distributes does, and how it and the driver talk."""

from __future__ import annotations

import logging
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
        self._must_stop = False

    def start(self, size: int) -> tuple[str, Any] | None:
        """Hear that a group of so many workers starts; tell how the run ended, if it did."""
        self._sizes.append(size)
        return self._verdict

    def verdict(self) -> tuple[str, Any] | None:
        """Tell how the run ended, if it did."""
        return self._verdict

    def conclude(self, kind: str, content: Any) -> None:
        """Keep how the run ended; what came first counts."""
        self._verdict = self._verdict or (kind, content)

    def post(self, kind: str, *content: Any) -> None:
        """Keep something for the driver's reporter."""
        self._messages.append((kind, content))

    def take(self, must_stop: bool) -> tuple[list[tuple[str, tuple[Any, ...]]], list[int]]:
        """Hand over what was posted, with how many workers there were at each start."""
        self._must_stop = must_stop
        messages, self._messages = self._messages, []
        return messages, self._sizes

    def must_stop(self) -> bool:
        """Tell whether the driver was asked to stop."""
        return self._must_stop


def place_mailbox() -> Any:
    """Start a mailbox on this node: the run outlives the loss of others."""
    here = ray.get_runtime_context().get_node_id()
    strategy: Any = NodeAffinitySchedulingStrategy(here, soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=strategy)(Mailbox).remote()


class _PostingReporter(Reporter):
    """A worker's reporter: it posts what the driver's is to show."""

    def __init__(self, mailbox: Any) -> None:
        self._mailbox, self._last_s = mailbox, 0.0

    def message(self, text: str) -> None:
        """Pass on one line for a person."""
        self._mailbox.post.remote("message", text)

    def advance(self, task: str, done: int, total: int) -> None:
        """Pass on progress, a few times a second at most."""
        now_s = time.monotonic()
        if now_s - self._last_s >= _ADVANCE_S or done == total:
            self._last_s = now_s
            self._mailbox.post.remote("advance", task, done, total)

    def epoch(self, metrics: Mapping[str, float], num_epochs: int, time_s: float) -> None:
        """Pass on a finished epoch; here, so that none is lost with a killed process."""
        ray.get(self._mailbox.post.remote("epoch", dict(metrics), num_epochs, time_s))


class _PostingHandler(logging.Handler):
    """Has a worker's warnings, as of a checkpoint that is passed over, come from the driver."""

    def __init__(self, mailbox: Any) -> None:
        super().__init__(logging.WARNING)
        self._mailbox = mailbox

    def emit(self, record: logging.LogRecord) -> None:
        """Post one warning."""
        self._mailbox.post.remote("warn", record.getMessage())


class _Warned:
    """Asks for a checkpoint once, when a node of this run is about to be taken back.

    Ray Train restarts the group when the node is gone, or its time is up.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say, self._is_known = say, False

    def __call__(self) -> bool:
        """Tell whether a warning has just come; every rank must ask alike, and hears the same."""
        if self._is_known or (info := ray.train.get_preemption_info()) is None:
            return False
        self._is_known = True
        left = ""
        if info.deadline_ms is not None:
            left = f" in {max(0.0, info.deadline_ms / 1000 - time.time()):.0f} s"
        ranks = ", ".join(map(str, info.preempted_ranks))
        self._say(
            f"the node of worker {ranks} is about to be taken back{left}: saving a checkpoint"
        )
        return True


def work(given: dict[str, Any]) -> None:
    """Be one of the workers."""
    mailbox = given["mailbox"]
    context = ray.train.get_context()
    group = Group(context.get_world_rank(), context.get_world_size())
    # A verdict ends the workers that Ray starts anew because another one's error broke the group.
    if group.is_first:
        known = ray.get(mailbox.start.remote(group.size))
    else:
        known = ray.get(mailbox.verdict.remote())
    if known is not None:
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
                should_save=_Warned(reporter.message),
            )
            verdict: tuple[str, Any] = ("finished", asdict(summary))
        else:
            assist_run(config, group, should_save=_Warned(lambda _: None))
            return
    except Interrupted:
        verdict = ("interrupted", None)
    except (UserError, RunFailed) as error:
        ray.get(mailbox.conclude.remote(type(error).__name__, str(error)))
        raise
    ray.get(mailbox.conclude.remote(*verdict))
