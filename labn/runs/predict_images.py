"""Classes and maps of any number of images by a trained run, one row per image as it goes."""

from __future__ import annotations

import csv
import io
import json
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from labn.data.decode import resize
from labn.data.readers.unlabelled import image_suffixes, read_unlabelled
from labn.errors import UserError, printable
from labn.model.fusion import folded
from labn.model.network import upsample_attention
from labn.runs.explain_images import list_images, network_digest
from labn.runs.explanation_outputs import write_map_png
from labn.runs.loaded import attention_of
from labn.runs.reporter import Reporter
from labn.runs.trained import TrainedRun, without_data
from labn.storage.files import append, sha256_of, write_atomically

Row = dict[str, Any]
Item = TypeVar("Item")

_FORMATS = (".csv", ".jsonl")
_MOST_THREADS = 4


@dataclass(frozen=True)
class Predictions:
    """The rows' file; how many images were predicted now, and earlier; and what was left out.

    ``num_by_class`` counts all rows by predicted class. ``unreadable`` is the reason by file;
    ``ignored`` files are not images.
    """

    file: Path
    num_predicted: int
    num_kept: int
    num_by_class: dict[str, int]
    unreadable: dict[str, str]
    ignored: list[str]


def predict_images(
    run: Path,
    images: Path,
    out: Path,
    overrides: list[str],
    reporter: Reporter,
    maps: Path | None = None,
) -> Predictions:
    """Classify an image, or every image below a folder, by a run's best epoch.

    ``out`` (.csv or .jsonl) gets one row per image, batch by batch: after an interruption the same
    call continues. Images whose row has their present content are not predicted again. Below
    ``maps``, IMAGE.attention.png (16 bits for 0 to 1) is alpha at the image's own size. Memory does
    not grow with the number of images, but for their names.

    Raises:
        UserError: there is no such run, network or image, no image can be read, or ``out`` cannot
            be written or is no such file of this network.
    """
    if out.suffix not in _FORMATS:
        raise UserError(f"--out = {out}: must end in {' or '.join(_FORMATS)}")
    opened = TrainedRun.open(run, without_data(overrides))
    trained = replace(opened, model=folded(opened.model))
    if maps is not None and not trained.model.has_branch:
        raise UserError(
            f"--maps = {maps}: {run} has no attention branch (model.branch = none); leave it out"
        )
    listed = list_images(images, maps, image_suffixes(trained.config.data.name), "--maps")
    job = _Job(trained, _RowFile(out.expanduser(), network_digest(trained)), listed.paths, maps)
    job.unreadable.update(listed.unreadable)
    num_kept = job.find_pending()
    job.complete(reporter)
    if not num_kept and not job.num_predicted:
        name, reason = next(iter(job.unreadable.items()))
        raise UserError(
            f"{images}: none of the {len(job.unreadable)} images can be read ({name}: {reason});"
            " pass valid image files"
        )
    counts = {name: 0 for name in trained.class_names}
    for row in job.rows.read():
        counts[row["predicted"]] += 1
    return Predictions(out, job.num_predicted, num_kept, counts, job.unreadable, listed.ignored)


@dataclass(frozen=True)
class _RowFile:
    """A file of rows that one network predicted."""

    path: Path
    network: str

    def read(self) -> list[Row]:
        """Return all complete rows; a crash may have torn the last one.

        Raises:
            UserError: the file is not of this kind, or of another network.
        """
        if not self.path.exists():
            return []
        try:
            text = self.path.read_text(encoding="utf-8")
            lines = text[: text.rfind("\n") + 1]
            rows: list[Row] = (
                [json.loads(line) for line in lines.splitlines()]
                if self.path.suffix == ".jsonl"
                else list(csv.DictReader(io.StringIO(lines, newline="")))
            )
            is_same = all(row["network"] == self.network for row in rows)
        except (OSError, ValueError, TypeError, KeyError, csv.Error):
            is_same = False
        if not is_same:
            raise UserError(
                f"--out = {self.path}: is of another network or of other settings; give another"
                " file, or delete that one"
            )
        return rows

    def rewrite(self, rows: list[Row]) -> None:
        """Write rows in place of all that the file holds."""
        write_atomically(self.path, self._as_text(rows, has_header=True))

    def add(self, rows: list[Row]) -> None:
        """Append rows."""
        is_new = not self.path.exists() or not self.path.stat().st_size
        append(self.path, self._as_text(rows, has_header=is_new))

    def _as_text(self, rows: list[Row], has_header: bool) -> str:
        if self.path.suffix == ".jsonl":
            return "".join(f"{json.dumps(row)}\n" for row in rows)
        text = io.StringIO(newline="")
        if rows:
            table = csv.DictWriter(text, rows[0], lineterminator="\n")
            if has_header:
                table.writeheader()
            table.writerows(rows)
        return text.getvalue()


class _Prepared(NamedTuple):
    """One image as the network takes it, where it lay in its file, and the file's digest."""

    pixels: UInt8[np.ndarray, "h w c"]
    size: tuple[int, int]
    box: tuple[int, int, int, int]
    sha256: str


@dataclass
class _Job:
    """The images to predict, and their rows."""

    trained: TrainedRun
    rows: _RowFile
    paths: dict[str, Path]
    maps: Path | None
    num_predicted: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)
    pending: list[str] = field(default_factory=list)

    def find_pending(self) -> int:
        """List the images without a row of their present content; return how many have one."""
        found = self.rows.read()
        kept = [row for row in found if row["file"] not in self.paths or self._is_current(row)]
        if self.rows.path.exists():
            self.rows.rewrite(kept)  # without outdated rows and a torn line
        names = {row["file"] for row in kept}
        self.pending = [name for name in self.paths if name not in names]
        return len(self.paths) - len(self.pending)

    def complete(self, reporter: Reporter) -> None:
        """Predict the pending images in batches, and append their rows after each."""
        workers = min(_MOST_THREADS, os.cpu_count() or 1)
        size = self.trained.config.validation.batch_size
        with ThreadPoolExecutor(workers) as threads:
            futures = ((name, threads.submit(self._prepare, name)) for name in self.pending)
            done = 0
            for batch in _batches(_ahead(futures, 2 * size), size):
                done += len(batch)
                prepared = {
                    name: one for name, future in batch if (one := self._result(name, future))
                }
                if prepared:
                    self.rows.add(list(self._predict(prepared)))
                    self.num_predicted += len(prepared)
                reporter.advance("predicting", done, len(self.pending))

    def _is_current(self, row: Row) -> bool:
        if self.maps is not None and not (self.maps / row["map_png"]).is_file():
            return False
        try:
            return bool(sha256_of(self.paths[row["file"]]) == row["sha256"])
        except OSError:
            return False

    def _prepare(self, name: str) -> _Prepared:
        config, path = self.trained.config, self.paths[name]
        image = read_unlabelled(path, config.data.name, self.trained.best["num_channels"])
        pixels = resize(image.kept, config.data.image_size)
        height, width = image.pixels.shape[:2]
        return _Prepared(pixels, (height, width), image.box, sha256_of(path))

    def _result(self, name: str, future: Future[_Prepared]) -> _Prepared | None:
        try:
            return future.result()
        except (OSError, ValueError) as error:
            self.unreadable[name] = printable(" ".join(str(error).split()))
            return None

    def _predict(self, prepared: dict[str, _Prepared]) -> Iterator[Row]:
        output = self.trained.predict(np.stack([one.pixels for one in prepared.values()]))
        probabilities = output.logits.float().softmax(dim=1).tolist()
        attention, size = output.attention.float(), self.trained.config.data.image_size
        is_attended = (
            upsample_attention(attention, (size, size)) > self.trained.config.model.theta_alpha
        )
        shares = is_attended.float().mean(dim=(1, 2)).tolist()
        for (name, image), *values in zip(
            prepared.items(), probabilities, shares, attention.cpu(), strict=True
        ):
            yield self._row(name, image, *values)

    def _row(
        self, name: str, image: _Prepared, row: list[float], share: float, attention: Tensor
    ) -> Row:
        class_names = self.trained.class_names
        values: Row = {"file": name, "predicted": class_names[int(np.argmax(row))]}
        values |= {f"probability_{one}": value for one, value in zip(class_names, row, strict=True)}
        if self.trained.model.has_branch:
            values["share_above_theta_alpha"] = share
        # A column with or without maps, so that the rows of all calls fit into one table.
        values["map_png"] = ""
        if self.maps is not None:
            map_ = attention_of(attention, image.size, image.box)
            values["map_png"] = write_map_png(self.maps, name, map_)
        return values | {"sha256": image.sha256, "network": self.rows.network}


def _ahead(futures: Iterable[Item], most: int) -> Iterator[Item]:
    """Yield items in order, with ``most`` of them drawn ahead."""
    items = iter(futures)
    drawn = deque(islice(items, most))
    while drawn:
        yield drawn.popleft()
        drawn.extend(islice(items, 1))


def _batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
