from __future__ import annotations

import sys
from subprocess import CompletedProcess

import pytest

from labn.cli import main


@pytest.fixture
def labn(monkeypatch, capsys):
    """Run a command in this process, which spares it the import of torch."""

    def call(*arguments):
        words = ["labn", *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", words)
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return CompletedProcess(words, ended.value.code or 0, printed.out, printed.err)

    return call
