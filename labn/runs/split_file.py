"""Tables of subsets that many runs share: drawn once, then read by each."""

from __future__ import annotations

from pathlib import Path

from labn.config import Config, LossConfig
from labn.data.manifest import SubsetTable, split_table
from labn.runs.build import load_dataset
from labn.runs.reporter import Reporter
from labn.storage.files import write_atomically

_DRAWN_BY = (
    "data.name",
    "data.root",
    "data.negative_class",
    "data.task",
    "data.validation_fraction",
    "data.test_fraction",
    "data.split_seed",
    "data.group_by",
    "data.group_gap_s",
    "data.folds",
    "data.cross_partition_duplicates",
    "data.conflicting_labels",
    "data.synthetic.",
)


def decides_subsets(key: str) -> bool:
    """Return whether a setting decides which image belongs to which subset."""
    return key.startswith(_DRAWN_BY)


def draw_split(config: Config, reporter: Reporter, known: SubsetTable | None = None) -> str:
    """Return the table of a data set's subsets in CSV; those of ``known`` images are given.

    Raises:
        UserError: the data cannot be used, or is not that of ``known``.
    """
    data, manifests = config.data, []
    for fold in range(data.folds or 1):
        own = data.model_copy(update={"fold": fold} if data.folds else {})
        listener = reporter if fold == 0 else Reporter()  # each fold would say the same
        table = None if known is None else known.of_fold(data.folds, fold)
        # Losses do not decide subsets: wrong ones are the failure of a run, not of all.
        manifests.append(load_dataset(own, LossConfig(), listener, table).manifest)
    return split_table(manifests, has_folds=data.folds is not None)


def share_split(config: Config, file: Path, reporter: Reporter) -> SubsetTable:
    """Return the table of subsets that the runs of a sweep share; draw it if there is none yet.

    Raises:
        UserError: the data cannot be used or is not that of the table, or ``data.split_file`` has
            other subsets.
    """
    given = config.data.split_file
    shared = None if given is None else SubsetTable.read(given.expanduser())
    if not file.is_file():
        write_atomically(file, draw_split(config, reporter, shared))
        return SubsetTable.read(file)
    own = SubsetTable.read(file)
    if shared is not None:
        own.check_agrees(shared, f"output_dir = {config.output_dir}")
    draw_split(config, reporter, own)
    return own
