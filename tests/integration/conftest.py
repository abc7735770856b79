from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from matplotlib.figure import Figure
from PIL import Image

from labn.cli import main
from labn.connection import connected

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
    """Draw the figures of a test that looks at them."""
    monkeypatch.setattr(Figure, "savefig", _draw_and_save)


@pytest.fixture(scope="session")
def shared_ray() -> Iterator[None]:
    """Have one Ray for all tests of this process: commands that it runs use it."""
    with connected(lambda _: None, lambda: None):
        yield


@pytest.fixture
def labn(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., CompletedProcess[str]]:
    """Run a command in this process, which spares it the import of torch."""

    def call(*arguments: object) -> CompletedProcess[str]:
        words = ["labn", *map(str, arguments)]
        monkeypatch.setenv("COLUMNS", "100")
        monkeypatch.setattr(sys, "argv", words)
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return CompletedProcess(words, int(ended.value.code or 0), printed.out, printed.err)

    return call
