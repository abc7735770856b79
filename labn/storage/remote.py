"""Folders wherever they are: on a disk, or in object storage (s3://, gs://), by Arrow."""

from __future__ import annotations

import hashlib
import posixpath
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from io import BufferedReader, BufferedWriter
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qsl, urlsplit

from labn.storage.files import replacing

SCHEMES = ("s3", "gs")

_CHUNK_BYTES = 2**22
_OPTIONS = ("endpoint_override", "region", "scheme", "tls_ca_file_path")


class StorageError(Exception):
    """Storage cannot be reached, or refuses what was asked of it; the message is one line."""


def is_remote(place: Path | str) -> bool:
    """Tell an address of object storage from a path."""
    return "://" in str(place)


def fault_of(address: str) -> str | None:
    """Say what is wrong with an address of object storage; None if nothing is.

    Credentials are none of its parts: addresses are logged, and kept in files.
    """
    parts = urlsplit(address)
    if parts.scheme not in SCHEMES:
        return f"must be a path, or begin with {' or '.join(f'{name}://' for name in SCHEMES)}"
    if "@" in parts.netloc and parts.netloc.partition("@")[0] != "anonymous":
        return (
            "must hold no credentials; Arrow takes them from the environment (AWS_ACCESS_KEY_ID,"
            " AWS_SECRET_ACCESS_KEY; GOOGLE_APPLICATION_CREDENTIALS) or the machine's role"
        )
    if not parts.netloc:
        return f"must name a bucket, as in {parts.scheme}://BUCKET/FOLDER"
    unknown = [name for name, _ in parse_qsl(parts.query) if name not in _OPTIONS]
    return f"knows no option {unknown[0]}; there are {', '.join(_OPTIONS)}" if unknown else None


def without_secrets(address: str) -> str:
    """Shorten an address, right or wrong, to what may be shown of it."""
    scheme, _, rest = address.partition("://")
    return f"{scheme}://{rest.partition('?')[0].rpartition('@')[2]}"


def below(place: Path | str | None, *names: str) -> Path | str | None:
    """Name a folder within another, or within none."""
    if not isinstance(place, str):
        return place and place.joinpath(*names)
    address, mark, options = place.partition("?")
    return "/".join((address.rstrip("/"), *names)) + mark + options


def absolute(place: Path | str | None) -> Path | str | None:
    """Have a path mean the same in every process of this machine; addresses do."""
    return place.expanduser().absolute() if isinstance(place, Path) else place


@dataclass(frozen=True)
class File:
    """A file in storage; ``name`` is relative to its folder."""

    name: str
    size: int
    mtime_ns: int


class Folder:
    """The files under one place; it need not be there yet.

    All methods raise ``StorageError`` for what is wrong there, ``OSError`` for files here.
    What has been written is there whole or not at all.
    """

    def __init__(self, place: Path | str) -> None:
        # Only here: most runs need none of it.
        from pyarrow import fs

        with _translated():
            if is_remote(place):
                self._files, self._root = fs.FileSystem.from_uri(str(place))
            else:
                self._files = fs.LocalFileSystem()
                self._root = Path(place).expanduser().absolute().as_posix()

    def files(self, below: str = "") -> list[File]:
        """List all files under a folder of this one, by name."""
        from pyarrow import fs

        selector = fs.FileSelector(self._path(below), recursive=True, allow_not_found=True)
        with _translated():
            found = self._files.get_file_info(selector)
        return sorted(
            (
                File(posixpath.relpath(info.path, self._root), info.size, info.mtime_ns)
                for info in found
                if info.type == fs.FileType.File
            ),
            key=lambda file: file.name,
        )

    def size(self, name: str) -> int | None:
        """Give a file's size in bytes; None where there is no such file."""
        with _translated():
            size: int | None = self._files.get_file_info(self._path(name)).size
        return size

    def read(self, name: str) -> bytes:
        """Read a small file."""
        with _translated(), self._files.open_input_stream(self._path(name)) as stream:
            content: bytes = stream.read()
        return content

    def write(self, name: str, content: bytes) -> None:
        """Write a small file, in place of an old one."""
        with _translated(), self._output(name) as stream:
            stream.write(content)

    def upload(self, file: BufferedReader, name: str) -> None:
        """Write a file's content, from where it stands."""
        with _translated(), self._output(name) as stream:
            shutil.copyfileobj(file, stream, _CHUNK_BYTES)

    def download(self, name: str, file: BufferedWriter) -> str:
        """Copy a file to one that is open; return the SHA-256 of what was copied."""
        digest = hashlib.sha256()
        for chunk in self._chunks(name):
            digest.update(chunk)
            file.write(chunk)
        return digest.hexdigest()

    def _chunks(self, name: str) -> Iterator[bytes]:
        with _translated(), self._files.open_input_stream(self._path(name)) as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                yield chunk

    def delete(self, name: str) -> None:
        """Delete a file."""
        with _translated():
            self._files.delete_file(self._path(name))

    def _path(self, name: str) -> str:
        return posixpath.join(self._root, name) if name else self._root

    def _output(self, name: str) -> AbstractContextManager[Any]:
        from pyarrow import fs

        if isinstance(self._files, fs.LocalFileSystem):
            return replacing(Path(self._path(name)))
        return cast("AbstractContextManager[Any]", self._files.open_output_stream(self._path(name)))


def digest_of(file: BufferedReader) -> str:
    """Give the SHA-256 of a file that is open; it stands at its beginning again."""
    digest = hashlib.file_digest(file, "sha256").hexdigest()
    file.seek(0)
    return digest


@contextmanager
def _translated() -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise StorageError(" ".join(str(error).split())) from error
