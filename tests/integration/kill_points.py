"""A command run again and again, each time killed at another point, and finally to its end.

`python kill_points.py '[["module:attribute", "before", 2], ...]' train config.yaml` imports the
package once. Each attempt is a child process that kills itself (SIGKILL) before or after the n-th
call of a function or, if the function writes a file, in the middle of it ("within").
"""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from collections.abc import Callable
from importlib import import_module
from itertools import count
from typing import Any, BinaryIO, NoReturn

# Imported once here, not by every child.
import labn.runs.train  # noqa: F401
from labn.cli import main


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("a killed process does not continue")


def arm(target: str, moment: str, number: int) -> None:
    """Replace a function by one that kills the process at its n-th call."""
    module, path = target.split(":")
    owner = import_module(module)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    real, calls = getattr(owner, name), count(1)

    def deadly(*arguments: Any, **settings: Any) -> Any:
        is_last = next(calls) == number
        if is_last and moment == "before":
            die()
        if is_last and moment == "within":
            write_half(real, *arguments)
        result = real(*arguments, **settings)
        if is_last:
            die()
        return result

    setattr(owner, name, deadly)


def write_half(save: Callable[..., None], content: object, file: BinaryIO) -> NoReturn:
    """Write the first half of what ``torch.save`` would write, and die."""
    whole = io.BytesIO()
    save(content, whole)
    file.write(whole.getvalue()[: whole.tell() // 2])
    file.flush()
    die()


def attempt(point: tuple[str, str, int] | None) -> int:
    """Run the command in a child process; return its exit code, as ``subprocess`` does."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if point:
        arm(*point)
    main()
    raise AssertionError("the command line always exits")


if __name__ == "__main__":
    points = json.loads(sys.argv[1])
    sys.argv = ["labn", *sys.argv[2:]]
    for point in points:
        if (code := attempt(point)) != -signal.SIGKILL:
            sys.exit(f"{point}: ended with {code}")
    sys.exit(attempt(None))
