from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import ray
from command_line import run_here
from matplotlib.figure import Figure
from PIL import Image

from labn.distributed.session import connected

_draw_and_save = Figure.savefig


def _save_blank(figure: Figure, path: Path, **_: Any) -> None:
    width, height = figure.canvas.get_width_height()
    Image.new("RGB", (width, height)).save(path, format="png")


@pytest.fixture(scope="module", autouse=True)
def blank_figures() -> Iterator[None]:
    """Leave figures blank in this process: drawing them is most of the time of a small run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", _save_blank)
        yield


@pytest.fixture
def drawn_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw the figures of a test that checks them."""
    monkeypatch.setattr(Figure, "savefig", _draw_and_save)


@pytest.fixture(scope="session")
def shared_ray() -> Iterator[str]:
    """Start one Ray for all commands that this process runs; return its address.

    A driver of Ray Train needs a process of its own: its classes, checked here, cannot be pickled.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")  # else other processes require a token
        patch.delenv("RAY_ADDRESS", raising=False)
        with connected(lambda _: None, lambda: None):
            yield ray.get_runtime_context().gcs_address


@pytest.fixture
def labn() -> Callable[..., CompletedProcess[str]]:
    """Run a command in this process, which saves the import of torch."""
    return run_here
