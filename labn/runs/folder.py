"""Run folders: their files, the run they belong to, and locks against other processes."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from labn.config import Config, DataConfig, dump_config, flatten, load_config
from labn.config.reading import NEEDED_PATHS
from labn.config.run import BEST_FILE, EARLIER_VALUES, TRACKER_FILE
from labn.data.manifest import SubsetTable, listing
from labn.errors import UserError
from labn.storage import files
from labn.storage.files import write_atomically, write_json
from labn.storage.remote import absolute
from labn.tracking import resolve_uri
from labn.training import checkpoint
from labn.training.checkpoint import ModelCheckpoint

TAKE_OVER_S = 120  # NFS frees the locks of a lost node after its lease, 90 s as a rule
"""How long the processes of a killed run may take to end."""

# Where a run computes and reports does not make it another run.
INCIDENTAL_KEYS = (
    "output_dir",
    "tracking.",
    "data.root",
    "data.cache_dir",
    "data.on_device",
    # The subsets themselves are compared, by the run's data.csv.
    "data.split_file",
    "data.new_images",
    "data.allow_changed",
    "train.device",
    "train.force_precision",
    "train.recompute",
    "train.storage",
)


# What sweeps, Ray, trackers and restored checkpoints put there before a run has its settings.
_BEFORE_TRAINING = (
    TRACKER_FILE,
    "checkpoints",
    "data.csv",
    "lost+found",
    "outcome.json",
    "pruned.json",
    "ray",
    "starts.json",
    "untracked",
)


class RunFolder:
    """The files of one run, below ``output_dir``."""

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser()
        self.config_file = self.path / "config.yaml"
        self.tracker_file = self.path / TRACKER_FILE
        self.manifest_file = self.path / "data.csv"
        self.history_file = self.path / "history.csv"
        self.starts_file = self.path / "starts.json"
        self.summary_file = self.path / "summary.json"
        self.history_picture = self.path / "history.png"
        self.checkpoints = self.path / "checkpoints"
        self.best_file = self.path / BEST_FILE
        self.spool = self.path / "untracked"

    def evaluation(self, subset: str) -> Path:
        """Return the folder of the evaluation on one subset of the data."""
        return self.path / "evaluation" / subset

    @contextmanager
    def claimed(self, wait_s: float = 0) -> Iterator[None]:
        """Lock the run for training; wait at most ``wait_s`` for another process to end.

        Raises:
            UserError: another process trains it, or the folder cannot be made.
        """
        with locked(self.path, "is training this run", wait_s=wait_s):
            yield

    @contextmanager
    def claimed_evaluation(self, subset: str) -> Iterator[Path]:
        """Lock the evaluation on a subset; return its folder.

        Raises:
            UserError: another process scores it, or the folder cannot be made.
        """
        folder, work = self.evaluation(subset), f"is scoring the {subset} subset"
        with locked(folder, work, "copy the run elsewhere"):
            yield folder

    def check_same(self, config: Config) -> None:
        """Check that the folder holds the run of this configuration, or nothing yet.

        Raises:
            UserError: the folder holds a run of other settings, or files of something else.
        """
        if not self.config_file.exists():
            self._check_vacant()
            return
        before = self.load_config(needs=())
        if changed := differences(before.model_dump(mode="json"), config):
            fix = "give another output_dir, or delete that folder"
            if changed.startswith("train.epochs is ") and ";" not in changed:
                fix = (
                    "its learning rates fall over its epochs, so that it cannot be extended: start"
                    f" a run from its network, by model.pretrained={self.path} and another"
                    " output_dir"
                )
            raise UserError(
                f"output_dir = {self.path}: holds a run with other settings ({changed}); {fix}"
            )

    def _check_vacant(self) -> None:
        """Refuse a folder that holds what no run has written."""
        try:
            found = sorted(path.name for path in self.path.iterdir())
        except OSError:
            return  # made, or reported, later
        foreign = [
            name
            for name in found
            if name not in _BEFORE_TRAINING and not name.startswith(".") and not _is_log(name)
        ]
        if foreign:
            raise UserError(
                f"output_dir = {self.path}: is not a run's folder, and holds other files"
                f" ({listing(foreign)}); give a new or empty folder"
            )

    def adopt(self, config: Config) -> None:
        """Make this the folder of the configuration's run; it may be used from any other folder."""
        tracking = config.tracking.model_copy(update={"uri": resolve_uri(config.tracking.uri)})
        # Consent to changed data is given for one command.
        own = {"allow_changed": False, "split_file": absolute(config.data.split_file)}
        data = config.data.model_copy(update=own)
        record = config.model_copy(update={"tracking": tracking, "data": data})
        write_atomically(self.config_file, dump_config(record))

    def known_subsets(self, data: DataConfig) -> SubsetTable | None:
        """Return the subsets of the run's images: its own, else those of ``data.split_file``.

        None where the run has none yet. With ``data.new_images`` = assign, the file adds images
        that the run does not know.

        Raises:
            UserError: a table cannot be read, or the file moves an image of the run.
        """
        own = shared = None
        if self.manifest_file.is_file():
            own = SubsetTable.read(self.manifest_file)
        if data.split_file is not None and (own is None or data.split_file.expanduser().is_file()):
            shared = SubsetTable.read(data.split_file.expanduser()).of_fold(data.folds, data.fold)
        if own is None or shared is None:
            return own or shared
        own.check_agrees(shared, f"output_dir = {self.path}")
        return own.extended_by(shared) if data.new_images == "assign" else own

    def save_manifest(self, manifest: pd.DataFrame) -> None:
        """Write which images the run uses; later, add new images, and change nothing else."""
        if self.manifest_file.is_file():
            before = pd.read_csv(self.manifest_file, dtype=str, keep_default_na=False)
            new = manifest[~manifest["name"].isin(before["name"])]
            if new.empty:
                return
            manifest = pd.concat([before, new.astype(str)])
        write_atomically(self.manifest_file, manifest.to_csv(index=False))

    def load_config(
        self, overrides: list[str] | None = None, needs: Collection[str] = NEEDED_PATHS
    ) -> Config:
        """Read the run's configuration; the paths of the keys in ``needs`` must exist.

        Raises:
            UserError: the folder holds no run.
        """
        if not self.config_file.is_file():
            raise UserError(
                f"{self.path}: not a run (it has no config.yaml); give the output_dir of a training"
            )
        return load_config(self.config_file, overrides or (), needs=needs)

    def load_best(self) -> ModelCheckpoint:
        """Load the checkpoint of the best epoch.

        Raises:
            UserError: the run has not finished an epoch yet.
        """
        if not self.best_file.is_file():
            raise UserError(
                f"{self.path}: has no trained network yet (checkpoints/best.pt); finish an epoch"
                f" with `labn train --resume {self.path}`"
            )
        best: ModelCheckpoint = checkpoint.load(self.best_file)
        return best

    def save_history(self, history: list[dict[str, float]]) -> None:
        """Write the metrics of every epoch as a table."""
        write_atomically(self.history_file, pd.DataFrame(history).to_csv(index=False))

    def count_start(self) -> int:
        """Count a start of training; return the number of earlier ones."""
        num_before: int = 0
        if self.starts_file.is_file():
            num_before = json.loads(self.starts_file.read_text())["num"]
        write_json(self.starts_file, {"num": num_before + 1})
        return num_before

    @property
    def tracker_run_id(self) -> str | None:
        """The tracker's id of this run, or None before it has one."""
        if not self.tracker_file.exists():
            return None
        run_id: str = json.loads(self.tracker_file.read_text())["run_id"]
        return run_id

    def keep_tracker_run_id(self, uri: str, run_id: str) -> None:
        """Store the tracker's run to resume."""
        entry = {"uri": uri, "run_id": run_id}
        # Not again: what is only looked at works on a full disk, too.
        if not self.tracker_file.exists() or json.loads(self.tracker_file.read_text()) != entry:
            write_json(self.tracker_file, entry)


def _is_log(name: str) -> bool:
    """Return whether a file may be the output of the command itself, as a scheduler keeps it."""
    return name.endswith((".log", ".out", ".err"))


def differences(tree: Mapping[str, Any], config: Config) -> str:
    """Return text on how another run's settings differ from these; "" if it is the same run."""
    old, new = flatten(tree), flatten(config.model_dump(mode="json"))
    changed = [
        f"{key} is {before} there, {new.get(key)} now"
        for key in sorted(old.keys() | new.keys())
        if (before := old.get(key, EARLIER_VALUES.get(key))) != new.get(key)
        and not key.startswith(INCIDENTAL_KEYS)
    ]
    return "; ".join(changed[:3]) + ("; ..." if len(changed) > 3 else "")


@contextmanager
def locked(
    path: Path,
    work: str,
    alternative: str = "give another output_dir",
    *,
    wait_s: float = 0,
    name: str = ".lock",
) -> Iterator[None]:
    """Create a folder and hold its lock file ``name``, against other processes.

    In messages, ``work`` describes what the other process does, ``alternative`` what to do instead
    of waiting.

    Raises:
        UserError: another process holds the lock after ``wait_s``, or the folder cannot be
            created.
    """
    with ExitStack() as stack:
        try:
            waiting = f"output_dir = {path}: another process {work}; waiting up to {wait_s:.0f} s"
            stack.enter_context(files.locked(path / name, waiting, timeout_s=wait_s))
        except TimeoutError:
            raise UserError(
                f"output_dir = {path}: another process {work}; wait for it, or {alternative}"
            ) from None
        except OSError as error:
            raise UserError(
                f"output_dir = {path}: cannot be written ({error}); give another output_dir"
            ) from None
        yield
