"""The command line."""

from __future__ import annotations

import codecs
import errno
import io
import json
import logging
import os
import sys

from labn.errors import Interrupted, RunFailed, UserError

_INTERRUPTED = 130
"""Typer's exit code after a KeyboardInterrupt."""
_DISK_ERRORS = {
    errno.EACCES, errno.EDQUOT, errno.EFBIG, errno.ENAMETOOLONG, errno.ENOSPC, errno.EPERM,
    errno.EROFS,
}  # fmt: skip
WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "2000"}
"""How threads wait for each other, read as torch loads.

Those that spin take the cores that others compute on, and those that sleep at once wake too late.
GNU's OpenMP, torch's own on Linux, spins for a moment first; others sleep.
"""
_PLAIN = {"↑": "^", "–": "-", "—": "-", "±": "+/-", "≥": ">=", "≤": "<=", "…": "..."}
"""What stands for a character in an encoding that lacks it."""


def main() -> None:
    """Run the command line; exit with 0 if done, 2 if the user's input is wrong, 1 otherwise."""
    if "OMP_WAIT_POLICY" not in os.environ:
        for name, value in WAITING.items():
            os.environ.setdefault(name, value)
    # Importing these modules adds their commands to the app.
    from labn.cli import (  # noqa: F401
        ablate,
        cluster,
        config,
        data,
        doctor,
        evaluate,
        explain,
        export,
        init,
        predict,
        report,
        sanity,
        search,
        train,
        ui,
    )
    from labn.cli.app import app

    codecs.register_error("plain", _as_plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="plain")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        app()
    except UserError as error:
        _fail(str(error), 2)
    except (RunFailed, Interrupted) as error:
        _fail(str(error), 1)
    except SystemExit as stop:
        if stop.code == _INTERRUPTED:
            _fail("interrupted", 1)
        raise
    except BrokenPipeError:
        _drop_output()
        sys.exit(1)
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        _fail_on_disk(error)


def _fail_on_disk(error: OSError) -> None:
    what = error.filename
    if what is None:  # the error of a write does not name its file
        what = "a file"
        try:
            sys.stdout.write("\n")
            sys.stdout.flush()
        except OSError:
            _drop_output()
            what = "standard output"
    advice = "free some space, make the folder writable or choose another one"
    _fail(f"{what}: cannot be written or read ({error.strerror}); {advice}", 2)


def _as_plain(error: UnicodeError) -> tuple[str | bytes, int]:
    """Replace characters that an encoding lacks; a byte of a file's name is shown as ``\\xff``."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_spell, error.object[error.start : error.end])), error.end


def _spell(character: str) -> str:
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    return _PLAIN.get(character) or character.encode("ascii", "backslashreplace").decode()


def _drop_output() -> None:
    """Write what is left of standard output to nowhere; the interpreter would report it at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str, exit_code: int) -> None:
    from labn.cli.app import without_controls

    one_line = without_controls(" ".join(message.split()))
    if "--json" in sys.argv:
        sys.stdout.write(json.dumps({"error": one_line, "exit_code": exit_code}) + "\n")
    sys.stderr.write(f"error: {one_line}\n")
    sys.exit(exit_code)
