"""Replicas of a run's checkpoints in storage: uploaded during training, restored if ahead.

A replica is a small file ``step-N.json``, written last, with the SHA-256 of each of its files,
which are stored in ``objects`` by that name. So a partial upload is never used, damage is detected,
and an unchanged file, such as the best network, is uploaded once.
"""

from __future__ import annotations

import json
import logging
import os
import re
import threading
from contextlib import ExitStack
from io import BufferedReader
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import Field, TypeAdapter, ValidationError

from labn.config import Config, dump_config
from labn.errors import UserError
from labn.runs.folder import RunFolder, differences
from labn.storage.files import replacing
from labn.storage.remote import Folder, StorageError, digest_of, without_secrets
from labn.training import checkpoint

logger = logging.getLogger(__name__)

_REPLICA = re.compile(r"step-(\d+)\.json")
_CONTENTS = TypeAdapter(
    dict[Annotated[str, Field(pattern=r"^(checkpoints/)?[\w-]+\.(csv|json|pt)$")], str]
)
_CONFIG = "config.yaml"
_RETRY_S = 15.0
_NUM_LAST_TRIES = 3


class Replicas:
    """The replicas of one run, of which the newest ``train.keep_checkpoints`` are kept.

    A thread uploads the newest checkpoint; a failure is logged as a warning, and retried. Use as a
    context manager, which waits for the last upload at its end.
    """

    def __init__(self, config: Config, run: RunFolder) -> None:
        assert config.train.storage is not None
        self._place = without_secrets(str(config.train.storage))
        if isinstance(config.train.storage, Path):
            self._place = str(config.train.storage)
        self._storage, self._config, self._run = config.train.storage, config, run
        self._num_kept = config.train.keep_checkpoints
        self._folder: Folder | None = None
        self._wanted = threading.Condition()
        self._pending: Path | None = None
        self._is_closing, self._is_failing = False, False
        self._thread = threading.Thread(target=self._upload_all, name="replicas", daemon=True)

    def __enter__(self) -> Replicas:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._wanted:
            self._is_closing = True
            self._wanted.notify_all()
        self._thread.join()

    def add(self, path: Path) -> None:
        """Schedule the upload of a checkpoint and its related files."""
        with self._wanted:
            self._pending = path
            self._wanted.notify_all()

    def restore(self) -> str | None:
        """Restore the newest complete replica if it is ahead of the run's folder; return a message.

        Raises:
            UserError: storage holds another run, or cannot be used and the folder is empty.
        """
        local = checkpoint.newest_path(self._run.checkpoints)
        try:
            self._claim()
            return self._restore(checkpoint.step_of(local) if local else -1)
        except StorageError as error:
            if local is None:
                raise UserError(
                    f"train.storage = {self._place}: cannot be used ({error}); fix the address, or"
                    " pass credentials by the environment"
                ) from error
            logger.warning(
                "train.storage = %s: cannot be used now (%s); resuming from %s",
                *(self._place, error, local),
            )
            return None

    def _open(self) -> Folder:
        if self._folder is None:
            self._folder = Folder(self._storage)
        return self._folder

    def _claim(self) -> None:
        """Claim the folder for this run, if no run has."""
        folder = self._open()
        if folder.size(_CONFIG) is None:
            folder.write(_CONFIG, dump_config(self._config).encode())
            return
        owner = yaml.safe_load(folder.read(_CONFIG))
        if changed := differences(owner, self._config):
            raise UserError(
                f"train.storage = {self._place}: holds a run with other settings ({changed}); give"
                " another train.storage, or delete that folder"
            )

    def _restore(self, local_step: int) -> str | None:
        for step, name in self._replicas():
            if step <= local_step:
                return None
            try:
                self._fetch(self._contents(name))
            except StorageError as error:
                logger.warning(
                    "train.storage = %s: %s is incomplete (%s); the one before it is used",
                    *(self._place, name, error),
                )
                continue
            return f"restored the checkpoint of step {step} from {self._place}"
        return None

    def _fetch(self, files: dict[str, str]) -> None:
        """Download all files of a replica, then move them into place, the checkpoint last."""
        try:
            with ExitStack() as stack:
                # A stack closes in reverse order.
                for name, digest in reversed(files.items()):
                    file = stack.enter_context(replacing(self._run.path / name))
                    if self._open().download(_object(digest), file) != digest:
                        self._open().delete(_object(digest))
                        raise StorageError(f"{name} is damaged there")
        except OSError as error:
            raise UserError(
                f"output_dir = {self._run.path}: cannot hold the checkpoint from"
                f" {self._place} ({error}); free some space or give another output_dir"
            ) from error

    def _replicas(self) -> list[tuple[int, str]]:
        """List the replicas in storage, the newest first."""
        found = [
            (int(match[1]), file.name)
            for file in self._open().files()
            if (match := _REPLICA.fullmatch(file.name))
        ]
        return sorted(found, reverse=True)

    def _contents(self, name: str) -> dict[str, str]:
        """Return the SHA-256 of each file of a replica, by the file's path in the run's folder."""
        text = self._open().read(name)
        try:
            return _CONTENTS.validate_json(text)
        except ValidationError:
            raise StorageError(f"{name} is damaged there") from None

    def _upload_all(self) -> None:
        """Upload checkpoints until closed."""
        num_tries = 0
        while path := self._next():
            try:
                self._upload(path)
            except (StorageError, OSError) as error:
                num_tries += self._is_closing
                if not self._retry_later(path, error, num_tries):
                    return
            else:
                if self._is_failing:
                    logger.warning("train.storage = %s: can be reached again", self._place)
                self._is_failing = False

    def _next(self) -> Path | None:
        with self._wanted:
            self._wanted.wait_for(lambda: self._pending is not None or self._is_closing)
            path, self._pending = self._pending, None
            return path

    def _retry_later(self, path: Path, error: Exception, num_tries: int) -> bool:
        """Schedule a retry after a failure; return False if there shall be none."""
        if num_tries >= _NUM_LAST_TRIES:
            logger.warning(
                "train.storage = %s: does not hold the last checkpoint (%s); it is in %s",
                *(self._place, error, path),
            )
            return False
        if not self._is_failing:
            logger.warning(
                "train.storage = %s: cannot store %s (%s); training continues, and the"
                " upload is retried",
                *(self._place, path.name, error),
            )
        self._is_failing = True
        with self._wanted:
            self._pending = self._pending or path
            self._wanted.wait_for(lambda: self._is_closing and not num_tries, _RETRY_S)
        return True

    def _upload(self, path: Path) -> None:
        """Upload a checkpoint and its related files, unless it was deleted for a newer one."""
        run, files, folder = self._run, {}, self._open()
        for place in (
            run.manifest_file, run.tracker_file, run.starts_file, run.best_file, path,
        ):  # fmt: skip
            try:
                # Opened once: the file may be replaced or deleted meanwhile.
                with place.open("rb") as file:
                    digest = _upload_object(file, folder)
            except FileNotFoundError:
                continue
            files[place.relative_to(run.path).as_posix()] = digest
        if path.relative_to(run.path).as_posix() not in files:
            return
        folder.write(f"{path.stem}.json", json.dumps(files, indent=2).encode())
        self._keep_newest(folder)

    def _keep_newest(self, folder: Folder) -> None:
        replicas = self._replicas()
        for _, name in replicas[self._num_kept :]:
            folder.delete(name)
        used = set[str]()
        for _, name in replicas[: self._num_kept]:
            try:
                used |= {_object(digest) for digest in self._contents(name).values()}
            except StorageError:
                # Never raised: one incomplete replica would block all later uploads.
                logger.debug("%s is incomplete and ignored", name)
        for file in folder.files("objects"):
            if file.name not in used:
                folder.delete(file.name)


def _upload_object(file: BufferedReader, folder: Folder) -> str:
    """Upload a file by its SHA-256, unless it is there already; return the SHA-256."""
    digest = digest_of(file)
    if folder.size(_object(digest)) != os.fstat(file.fileno()).st_size:
        folder.upload(file, _object(digest))
    return digest


def _object(digest: str) -> str:
    return f"objects/{digest}"
