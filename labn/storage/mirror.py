"""A mirror in the cache of data in object storage, one per machine, updated when files change.

One process fetches while others wait. A file is fetched again if its size or time in storage has
changed, or if its SHA-256 on the disk differs from the one fetched (computed again only if its
time on the disk has changed).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path, PurePosixPath
from typing import TypedDict

from labn.errors import UserError
from labn.storage.files import cache_folder, locked, replacing
from labn.storage.remote import File, Folder, StorageError, digest_of, without_secrets

logger = logging.getLogger(__name__)

_NUM_THREADS = 16
_SAVE_S = 10.0


class _Entry(TypedDict):
    """A fetched file's size and time in storage, and its digest."""

    size: int
    mtime_ns: int
    sha256: str


def mirror(
    root: str, cache_dir: Path, report_progress: Callable[[int, int], None] | None = None
) -> Path:
    """Update the mirror of a folder in object storage, and return its path.

    ``report_progress`` receives the number of files fetched and of all to fetch.

    Raises:
        UserError: the folder cannot be read or is empty, or the cache cannot be written.
    """
    name = hashlib.sha256(root.encode()).hexdigest()[:16]
    place = cache_folder(cache_dir) / "mirrors" / name
    try:
        waiting = f"waiting for another process to fetch {without_secrets(root)}"
        with locked(place.with_suffix(".lock"), waiting):
            _Mirror(root, place, report_progress).update()
    except StorageError as error:
        raise UserError(
            f"data.root = {without_secrets(root)}: cannot be read ({error}); fix the address, or"
            " set credentials in the environment"
        ) from error
    except OSError as error:
        raise UserError(
            f"data.cache_dir = {cache_dir}: cannot store the mirror of {without_secrets(root)}"
            f" ({error.strerror or error}); specify a writable folder with enough space,"
            " data.cache_dir=PATH"
        ) from error
    return place / "files"


class _Mirror:
    """The mirror, used by the process that holds its lock."""

    def __init__(
        self, root: str, place: Path, report_progress: Callable[[int, int], None] | None
    ) -> None:
        self._root, self._files = without_secrets(root), place / "files"
        self._remote = Folder(root)
        self._index_file, self._report = place / "index.json", report_progress
        self._index: dict[str, _Entry] = {}
        if self._index_file.is_file():
            self._index = json.loads(self._index_file.read_text(encoding="utf-8"))

    def update(self) -> None:
        """Fetch new and changed files, and remove those no longer in storage."""
        files = [file for file in self._remote.files() if not file.name.endswith("/")]
        if not files:
            raise UserError(
                f"data.root = {self._root}: contains no files; specify the folder of the data"
                " set, as in s3://BUCKET/FOLDER"
            )
        for file in files:
            if PurePosixPath(file.name).is_absolute() or ".." in PurePosixPath(file.name).parts:
                raise UserError(f"data.root = {self._root}: {file.name!r} is not a valid name")
        missing = [file for file in files if not self._is_current(file)]
        if num_changed := sum(file.name in self._index for file in missing):
            logger.warning(
                "data.root = %s: %d of %d files have changed since they were fetched (in storage,"
                " or damaged on the disk); they are fetched again",
                *(self._root, num_changed, len(files)),
            )
        self._remove_others(files)
        self._fetch(missing)

    def _is_current(self, file: File) -> bool:
        entry, path = self._index.get(file.name), self._files / file.name
        if entry is None or (entry["size"], entry["mtime_ns"]) != (file.size, file.mtime_ns):
            return False
        try:
            status = path.stat()
            if status.st_size != file.size:
                return False
            if status.st_mtime_ns == file.mtime_ns:
                return True
            with path.open("rb") as opened:
                is_same = digest_of(opened) == entry["sha256"]
        except OSError:
            return False
        if is_same:
            os.utime(path, ns=(file.mtime_ns, file.mtime_ns))
        return is_same

    def _remove_others(self, files: Sequence[File]) -> None:
        """Remove files no longer in storage, and those that a killed process fetched in part."""
        names = {file.name for file in files}
        for path in self._files.rglob("*"):
            if path.is_file() and path.relative_to(self._files).as_posix() not in names:
                path.unlink()
        self._index = {name: entry for name, entry in self._index.items() if name in names}

    def _fetch(self, files: Sequence[File]) -> None:
        if not files:
            return
        last_save_s = time.monotonic()
        with ThreadPoolExecutor(_NUM_THREADS) as pool:
            futures = {pool.submit(self._fetch_one, file): file for file in files}
            try:
                for num_done, future in enumerate(as_completed(futures), start=1):
                    file = futures[future]
                    self._index[file.name] = {
                        "size": file.size,
                        "mtime_ns": file.mtime_ns,
                        "sha256": future.result(),
                    }
                    if self._report is not None:
                        self._report(num_done, len(files))
                    if time.monotonic() - last_save_s >= _SAVE_S:
                        self._save_index()
                        last_save_s = time.monotonic()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
            finally:
                self._save_index()

    def _fetch_one(self, file: File) -> str:
        """Fetch one file atomically, with its time in storage, and return its digest."""
        path = self._files / file.name
        with replacing(path) as fetched:
            digest = self._remote.download(file.name, fetched)
            if fetched.tell() != file.size:
                raise StorageError(
                    f"{file.name} changed while it was fetched ({file.size} bytes listed,"
                    f" {fetched.tell()} received); start again"
                )
            fetched.flush()
            os.utime(fetched.fileno(), ns=(file.mtime_ns, file.mtime_ns))
        return digest

    def _save_index(self) -> None:
        with replacing(self._index_file) as file:
            file.write(json.dumps(self._index).encode())
