"""A test that hangs is interrupted and named, and none of its processes is left."""

from __future__ import annotations

import shutil
import subprocess
import sys
import uuid
from pathlib import Path

import psutil
import pytest
from command_line import ENVIRONMENT

pytestmark = pytest.mark.slow

TESTS = Path(__file__).parents[1]
HANGING = """
import subprocess, sys

SLEEP = "import time; time.sleep(600)"
START = "import subprocess, sys; "
START += f"subprocess.Popen([sys.executable, '-c', {SLEEP!r}, sys.argv[1]], start_new_session=True)"

def test_hangs():
    child = subprocess.Popen([sys.executable, "-c", START + ".wait()", "MARK"])
    child.wait()

def test_comes_after():
    pass
"""


def marked(mark: str) -> list[list[str]]:
    """List the commands of the processes that have a mark among their arguments."""
    commands = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    return [command for command in commands if mark in command]


def test_a_test_that_hangs_is_named_and_leaves_no_process(tmp_path: Path) -> None:
    mark = uuid.uuid4().hex
    for name in ("conftest.py", "typechecker.py"):
        shutil.copy(TESTS / name, tmp_path)
    (tmp_path / "test_hanging.py").write_text(HANGING.replace("MARK", mark))

    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout=3", tmp_path],
        capture_output=True, text=True, env=ENVIRONMENT, cwd=tmp_path,
    )  # fmt: skip

    assert "FAILED test_hanging.py::test_hangs - Failed: Timeout" in done.stdout, done.stderr
    assert "1 failed, 1 passed" in done.stdout
    assert marked(mark) == []
