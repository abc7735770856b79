"""Folders on a disk or in object storage (s3://, gs://), accessed through Arrow."""

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
    """Storage that cannot be reached, or a refused operation; the message is one line."""


def is_remote(place: Path | str) -> bool:
    """Return whether a place is an address of object storage, not a path."""
    return "://" in str(place)


def address_error(address: str) -> str | None:
    """Return what is wrong with an address of object storage, or None.

    Credentials are refused, since addresses are logged and stored in files.
    """
    parts = urlsplit(address)
    if parts.scheme not in SCHEMES:
        return f"must be a path, or begin with {' or '.join(f'{name}://' for name in SCHEMES)}"
    if "@" in parts.netloc and parts.netloc.partition("@")[0] != "anonymous":
        return (
            "must not contain credentials; set them in the environment (AWS_ACCESS_KEY_ID,"
            " AWS_SECRET_ACCESS_KEY; GOOGLE_APPLICATION_CREDENTIALS) or use the machine's role"
        )
    if not parts.netloc:
        return f"must name a bucket, as in {parts.scheme}://BUCKET/FOLDER"
    unknown = [name for name, _ in parse_qsl(parts.query) if name not in _OPTIONS]
    return f"has unknown option {unknown[0]}; use {', '.join(_OPTIONS)}" if unknown else None


def without_secrets(address: str) -> str:
    """Return an address, valid or not, without credentials and options."""
    scheme, _, rest = address.partition("://")
    return f"{scheme}://{rest.partition('?')[0].rpartition('@')[2]}"


def subfolder(place: Path | str | None, *names: str) -> Path | str | None:
    """Return the place of a folder within another; None within None."""
    if not isinstance(place, str):
        return place and place.joinpath(*names)
    address, mark, options = place.partition("?")
    return "/".join((address.rstrip("/"), *names)) + mark + options


def absolute(place: Path | str | None) -> Path | str | None:
    """Return a path as absolute, valid in every process of this machine, or an address."""
    return place.expanduser().absolute() if isinstance(place, Path) else place


@dataclass(frozen=True)
class File:
    """A file in storage; ``name`` is relative to its folder."""

    name: str
    size: int
    mtime_ns: int


class Folder:
    """The files under one place, which need not exist yet.

    All methods raise ``StorageError`` for errors of the place, ``OSError`` for local files.
    Writes are atomic.
    """

    def __init__(self, place: Path | str) -> None:
        # Imported here, since most runs do not use it.
        from pyarrow import fs

        with _translated():
            if is_remote(place):
                self._files, self._root = fs.FileSystem.from_uri(str(place))
            else:
                self._files = fs.LocalFileSystem()
                self._root = Path(place).expanduser().absolute().as_posix()

    def files(self, subfolder: str = "") -> list[File]:
        """Return all files under this folder or one in it, by name."""
        from pyarrow import fs

        selector = fs.FileSelector(self._path(subfolder), recursive=True, allow_not_found=True)
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
        """Return a file's size in bytes, or None if it does not exist."""
        with _translated():
            size: int | None = self._files.get_file_info(self._path(name)).size
        return size

    def read(self, name: str) -> bytes:
        """Return the content of a small file."""
        with _translated(), self._files.open_input_stream(self._path(name)) as stream:
            content: bytes = stream.read()
        return content

    def write(self, name: str, content: bytes) -> None:
        """Write a small file, replacing an old one."""
        with _translated(), self._output(name) as stream:
            stream.write(content)

    def upload(self, file: BufferedReader, name: str) -> None:
        """Upload an open file from its current position."""
        with _translated(), self._output(name) as stream:
            shutil.copyfileobj(file, stream, _CHUNK_BYTES)

    def download(self, name: str, file: BufferedWriter) -> str:
        """Copy a file to one that is open, and return its SHA-256."""
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
    """Return the SHA-256 of an open file, and rewind it."""
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
