"""A local S3 server for tests: moto's, which speaks the real protocol."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from labn.storage.remote import Folder

SECRET = "a-secret-that-must-not-be-seen"
BUCKET = "labn-tests"


class S3Server:
    """A server whose bucket is empty at each start."""

    def __init__(self, log: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port: int = free.getsockname()[1]
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables of a client."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._port}",
            "AWS_ACCESS_KEY_ID": "tester",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def start(self) -> None:
        command = (sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self._port))
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        url = self.environment["AWS_ENDPOINT_URL"]
        while True:
            with contextlib.suppress(urllib.error.URLError):
                make = urllib.request.Request(f"{url}/{BUCKET}", method="PUT")
                with urllib.request.urlopen(make, timeout=5):
                    return
            assert self._process.poll() is None, self._log.read_text()
            time.sleep(0.1)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def num_gets(self, part: str) -> int:
        """Return how many objects were read whose name contains a text."""
        lines = self._log.read_text(errors="replace").splitlines()
        return sum("GET /" in line and part in line and "list-type" not in line for line in lines)


def put(folder: Path, prefix: str) -> tuple[str, Folder]:
    """Upload a local folder; return its address and the remote folder."""
    from labn.storage.remote import Folder

    remote = Folder(f"s3://{BUCKET}/{prefix}")
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                remote.upload(file, path.relative_to(folder).as_posix())
    return f"s3://{BUCKET}/{prefix}", remote


def environment_of(server: S3Server) -> dict[str, str]:
    return os.environ | server.environment
