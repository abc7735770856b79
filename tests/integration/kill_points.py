"""Run a command again and again, each time killed at another place, and at last to its end.

`python kill_points.py '[["module:attribute", "before", 2], ...]' train config.yaml` imports the
package once; each attempt is a child process that kills itself (SIGKILL) before or after the so
many-th call of a function, or, where that writes a file, in the middle of it ("within").
"""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from importlib import import_module
from itertools import count

# What is imported here need not be by every child.
import labn.runs.train  # noqa: F401
from labn.cli import main


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def arm(target, moment, number):
    """Make a function deadly."""
    module, path = target.split(":")
    owner = import_module(module)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    real, calls = getattr(owner, name), count(1)

    def deadly(*arguments, **settings):
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


def write_half(save, content, file):
    """Write the first half of what ``torch.save`` would, and die."""
    whole = io.BytesIO()
    save(content, whole)
    file.write(whole.getvalue()[: whole.tell() // 2])
    file.flush()
    die()


def attempt(point):
    """Run the command in a child process; return how that ended, as ``subprocess`` would."""
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
