"""Training beside busy processes: threads that wait as in `labn` against torch's default."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import ExitStack

from labn.cli import WAITING
from tests.bench.timing import Row, row_of

_NUM_BUSY = (0, 1, 2)
_WINDOW_S = 4.0
# A line of its input is a number of seconds to train for; it answers with the images per second.
_TRAINER = """
import sys, time, torch
from labn import build_model
from tests.bench.network import channels_last, training_step
network = channels_last(build_model("lambda_cnn", split=0)).train()
images = torch.randn(16, 3, 96, 96).contiguous(memory_format=torch.channels_last)
step = training_step(network, images, torch.arange(16) % 2, None)
step()
for line in sys.stdin:
    start_s, num_images = time.perf_counter(), 0
    while time.perf_counter() - start_s < float(line):
        step()
        num_images += len(images)
    print(num_images / (time.perf_counter() - start_s), flush=True)
"""


def busy_rows(num_rounds: int) -> list[Row]:
    """Train in both ways in turn, beside processes that compute all the time."""
    spinning = {name: value for name, value in os.environ.items() if name not in WAITING}
    rates: dict[int, tuple[list[float], list[float]]] = {count: ([], []) for count in _NUM_BUSY}
    with ExitStack() as stack:
        trainers = [
            stack.enter_context(_Trainer(environment))
            for environment in (spinning | WAITING, spinning)
        ]
        for _ in range(num_rounds):
            for count in _NUM_BUSY:
                others = [_start("while True: pass") for _ in range(count)]
                for trainer, found in zip(trainers, rates[count], strict=True):
                    found.append(trainer.images_per_s())
                for other in others:
                    other.kill()
                    other.wait()
    return [
        row_of(
            f"training of lambda_cnn beside {count} busy processes: threads that wait as in"
            " labn against torch's default",
            *rates[count],
            "images/s",
            is_rate=True,
        )
        for count in _NUM_BUSY
    ]


class _Trainer:
    def __init__(self, environment: dict[str, str]) -> None:
        self._process = _start(_TRAINER, environment)

    def __enter__(self) -> _Trainer:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def images_per_s(self) -> float:
        """Train for a while; return the speed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{_WINDOW_S}\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())


def _start(code: str, environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
