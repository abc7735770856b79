"""The command line's exit codes and messages where the system refuses something."""

from __future__ import annotations

import errno
import io
import os
import sys

import pytest
import typer

import labn.cli
from labn.cli.app import print_result
from labn.errors import UserError


def run_main(monkeypatch, command, encoding="utf-8"):
    """Run the command line with a command in place of the app; return code, output, messages."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding, newline="") for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    monkeypatch.setattr(typer.Typer, "__call__", lambda _: command())
    monkeypatch.setattr(labn.cli, "_drop_output", lambda: None)
    try:
        labn.cli.main()
        code = 0
    except SystemExit as ended:
        code = ended.code
    for stream in streams:
        stream.flush()
    return code, *(stream.buffer.getvalue().decode(encoding) for stream in streams)


@pytest.mark.parametrize(
    ("encoding", "printed"),
    [
        ("utf-8", "PID ↑ 0.2 ± 0.1 – é\n"),
        ("latin-1", "PID ^ 0.2 ± 0.1 - é\n"),
        ("iso8859-15", "PID ^ 0.2 ± 0.1 - é\n"),
        ("cp1252", "PID ^ 0.2 ± 0.1 – é\n"),
        ("ascii", "PID ^ 0.2 +/- 0.1 - \\xe9\n"),
    ],
)
def test_characters_that_a_terminal_lacks_are_replaced(monkeypatch, encoding, printed):
    text = "PID ↑ 0.2 ± 0.1 – é\n"
    assert run_main(monkeypatch, lambda: sys.stdout.write(text), encoding) == (0, printed, "")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "PASSIVE 2000"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE None"),
        ({"GOMP_SPINCOUNT": "7"}, "PASSIVE 7"),
    ],
)
def test_threads_spin_for_a_moment_unless_the_environment_says_otherwise(
    monkeypatch, given, expected
):
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    for name in names:  # set first, so that what the command sets is undone
        monkeypatch.setenv(name, given.get(name, ""))
        if name not in given:
            monkeypatch.delenv(name)

    found = run_main(
        monkeypatch, lambda: sys.stdout.write(" ".join(str(os.environ.get(one)) for one in names))
    )

    assert found == (0, expected, "")


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_a_name_that_is_no_text_is_printed_by_its_bytes(monkeypatch, encoding):
    name = os.fsdecode(b"eye-\xff.png")
    code, printed, _ = run_main(monkeypatch, lambda: sys.stdout.write(name), encoding)
    assert (code, printed) == (0, "eye-\\xff.png")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.ENAMETOOLONG])
def test_what_the_disk_refuses_is_one_line_that_names_the_file(monkeypatch, number):
    def command():
        raise OSError(number, os.strerror(number), "/disk/a file")

    code, printed, message = run_main(monkeypatch, command)
    assert (code, printed) == (2, "")
    assert message.startswith(
        f"error: /disk/a file: cannot be written or read ({os.strerror(number)}"
    )
    assert message.count("\n") == 1


def test_output_that_cannot_be_written_is_a_message(monkeypatch):
    class Full(io.BytesIO):
        def write(self, _):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def command():
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(Full(), "utf-8"))
        sys.stdout.write("text\n")
        sys.stdout.flush()

    code, _, message = run_main(monkeypatch, command)
    assert code == 2
    assert message.startswith("error: standard output: cannot be written or read (No space left")


def test_a_file_that_its_error_does_not_name_is_not_taken_for_the_output(monkeypatch):
    def command():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    code, _, message = run_main(monkeypatch, command)
    assert code == 2
    assert message.startswith("error: a file: cannot be written or read (No space left on device)")


def test_other_errors_of_the_system_are_defects_and_keep_their_traceback(monkeypatch):
    def command():
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    with pytest.raises(OSError, match="Bad file descriptor"):
        run_main(monkeypatch, command)


def test_a_name_with_control_characters_cannot_act_on_a_terminal(monkeypatch):
    name = "eye\x1b[2J\x07.png"

    def command():
        print_result(False, {}, f"{name}\t0.5\nnext")
        raise UserError(f"{name}: cannot be read")

    code, printed, message = run_main(monkeypatch, command)

    assert code == 2
    assert printed == "eye\\x1b[2J\\x07.png\t0.5\nnext\n"
    assert message == "error: eye\\x1b[2J\\x07.png: cannot be read\n"
