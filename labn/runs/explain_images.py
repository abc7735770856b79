"""Explanations of any images by a trained run, as files: maps, overlays and a table."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32
from torch import Tensor

from labn.data.decode import resize
from labn.data.readers.class_folders import MASKS
from labn.data.readers.listing import name_in, visible
from labn.data.readers.unlabelled import UnlabelledImage, image_suffixes, read_unlabelled
from labn.errors import UserError, printable
from labn.explain.method import Method
from labn.runs.evaluation.options import EvaluationOptions
from labn.runs.evaluation.sanity_check import quick_methods
from labn.runs.evaluation.score_image import Sample, explain
from labn.runs.explanation_outputs import (
    FILE_ENDINGS,
    METHODS_COLUMN,
    TABLE_NAME,
    Row,
    method_files,
    read_table,
    write_maps,
    write_method_map,
    write_table,
)
from labn.runs.loaded import attention_of
from labn.runs.reporter import Reporter
from labn.runs.trained import TrainedRun, without_data
from labn.storage.files import sha256_of

_OWN = "LABN"
_MAX_BATCH_SIZE = 8
"""Images are kept in memory at their own size, 37 MB for one of IDRiD."""


@dataclass(frozen=True)
class Explanations:
    """The explained images, one row each in the table at ``table_file``.

    ``num_kept`` of them had been explained before; ``unreadable`` is the reason by file;
    ``ignored`` files are not images. Paths are relative to the folder of the images.
    """

    table_file: Path
    rows: list[Row]
    num_kept: int
    unreadable: dict[str, str]
    ignored: list[str]


def explain_images(
    run: Path,
    images: Path,
    out: Path,
    overrides: list[str],
    reporter: Reporter,
    methods: Sequence[str] = (),
) -> Explanations:
    """Explain an image, or every image below a folder, by a run's best epoch.

    Images are prepared as in training. Below ``out``, at the image's path relative to the folder,
    IMAGE.attention.npy (float32) and IMAGE.attention.png (16 bits for 0 to 1) hold alpha at the
    image's own size, not thresholded; IMAGE.overlay.png shows it. Where a reader crops, alpha is
    0 outside the crop, which the network never saw, and the table's mean and share are over the
    crop; everywhere else alpha is above 0. Images explained before by the same network are kept.

    ``methods`` are names of others, each of which adds IMAGE.METHOD.map.npy, .map.png (its greatest
    value is 1) and .overlay.png, of the predicted class. A network without an attention branch is
    explained by them alone.

    Raises:
        UserError: there is no such run, network, method or image, no image can be read, or ``out``
            cannot be written or holds explanations of another network.
    """
    trained = TrainedRun.open(run, without_data(overrides))
    if not trained.model.has_branch and not methods:
        raise UserError(
            f"{run}: has no attention branch to explain images by (model.branch = none); name"
            " other methods, such as --methods Grad-CAM"
        )
    listed = list_images(images, out, image_suffixes(trained.config.data.name), "--out")
    explainer = _Explainer(trained, _others(trained, methods))
    job = _Job(explainer, network_digest(trained), listed, out.expanduser())
    job.complete(reporter)
    rows = [job.rows[name] for name in listed.paths if name in job.rows]
    if not rows:
        name, reason = next(iter(job.unreadable.items()))
        raise UserError(
            f"{images}: none of the {len(job.unreadable)} images can be read ({name}: {reason});"
            " pass valid image files"
        )
    return Explanations(job.table_file, rows, job.num_kept, job.unreadable, listed.ignored)


def _others(trained: TrainedRun, names: Sequence[str]) -> Sequence[Method]:
    """Build the named methods other than LABN's own, as a sanity check does."""
    if not names:
        return ()
    chosen = EvaluationOptions.of(trained.config, {"methods": tuple(names)}).methods
    others = [name for name in chosen if name != _OWN]
    if not others:
        return ()
    return quick_methods(trained.model, others, trained.statistics.bias_image)


class ImageFiles(NamedTuple):
    """The images, by their names below the folder, what cannot be opened, and ignored other files.

    A data set's lesion masks are not images to explain.
    """

    paths: dict[str, Path]
    unreadable: dict[str, str]
    ignored: list[str]


def list_images(
    images: Path, out: Path | None, suffixes: tuple[str, ...], option: str
) -> ImageFiles:
    """List an image, or those below a folder, without what lies in ``out``, which ``option`` names.

    Raises:
        UserError: there is no image, or ``out`` is a file or the folder of the images.
    """
    place = images.expanduser().resolve()
    if not place.exists():
        raise UserError(f"{images}: no such image or folder")
    out = out and out.expanduser().resolve()
    if place == out:
        raise UserError(
            f"{option} = {out}: must not be the folder of the images, where maps would pass for"
            " images; give another folder, such as explanations"
        )
    if out is not None and out.exists() and not out.is_dir():
        raise UserError(f"{option} = {out}: is a file; give a folder")
    listed = ImageFiles({}, {}, [])
    if not place.is_dir():
        if place.suffix.lower() in suffixes:
            listed.paths[name_in(place.parent, place)] = place
    else:
        for entry in visible(place):
            name = name_in(place, entry.path)
            if out is not None and entry.path.is_relative_to(out):
                continue
            if name.partition("/")[0] == MASKS or not entry.has_suffix(suffixes):
                listed.ignored.append(name)
            elif entry.defect:
                listed.unreadable[name] = entry.defect
            else:
                listed.paths[name] = entry.path
    if not listed.paths and not listed.unreadable:
        raise UserError(f"{images}: no image; the files must end in {', '.join(suffixes)}")
    return listed


def network_digest(trained: TrainedRun) -> str:
    """Return a digest of everything but the image that an explanation depends on."""
    with trained.folder.best_file.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    config, data = trained.config, trained.config.data
    settings = (data.name, data.image_size, config.model.model_dump_json(), trained.precision)
    digest.update(repr(settings).encode())
    return digest.hexdigest()[:16]


@dataclass(frozen=True, eq=False)
class _Explained:
    """One image, its class probabilities, alpha at its own size, and other maps by method."""

    image: UnlabelledImage
    probabilities: Float32[np.ndarray, " classes"]
    attention: Float32[np.ndarray, "height width"]
    maps: dict[str, Float32[Tensor, "1 h w"]]


class _Explainer:
    """A trained network, other methods that explain it, and the preparation of its images."""

    def __init__(self, trained: TrainedRun, others: Sequence[Method] = ()) -> None:
        self._trained, self._others, self.config = trained, others, trained.config
        self.has_branch = trained.model.has_branch
        self.method_names = [method.name for method in others]

    def read(self, path: Path) -> UnlabelledImage:
        """Decode one image as the reader of the run's data set does."""
        return read_unlabelled(path, self.config.data.name, self._trained.best["num_channels"])

    def explain(self, images: dict[str, UnlabelledImage]) -> Iterator[_Explained]:
        """Classify a batch, and resize each map to its image."""
        size = self.config.data.image_size
        pixels = np.stack([resize(image.kept, size) for image in images.values()])
        output = self._trained.predict(pixels)
        probabilities = output.logits.float().softmax(dim=1).cpu().numpy()
        for place, ((name, image), row) in enumerate(
            zip(images.items(), probabilities, strict=True)
        ):
            own = attention_of(output.attention[place], image.pixels.shape[:2], image.box)
            sample = Sample(
                name=name, label=int(row.argmax()), image=self._trained.prepare(pixels[[place]])[0]
            )
            yield _Explained(image, row, own, dict(self._maps(sample)))

    def _maps(self, sample: Sample) -> Iterator[tuple[str, Tensor]]:
        with self._trained.autocast():
            for method in self._others:
                yield method.name, explain(sample, [method])

    def describe(self, explained: _Explained) -> Row:
        """Return the values of one image's row."""
        class_names = self._trained.class_names
        probabilities = zip(class_names, explained.probabilities.tolist(), strict=True)
        row: Row = {
            "predicted": class_names[explained.probabilities.argmax()],
            **{f"probability_{name}": probability for name, probability in probabilities},
        }
        if not self.has_branch:
            return row
        left, top, right, bottom = explained.image.box
        kept = explained.attention[top:bottom, left:right]
        peak_y, peak_x = np.unravel_index(explained.attention.argmax(), explained.attention.shape)
        return row | {
            "peak_x": int(peak_x),
            "peak_y": int(peak_y),
            "mean_attention": float(kept.mean(dtype=np.float64)),
            "share_above_theta_alpha": float((kept > self.config.model.theta_alpha).mean()),
        }


class _Job:
    """The images to explain, and their table."""

    def __init__(self, explainer: _Explainer, network: str, listed: ImageFiles, out: Path) -> None:
        self._explainer, self._network, self._images, self._out = explainer, network, listed, out
        self.table_file = out / TABLE_NAME
        self.rows = read_table(self.table_file, network)
        self.unreadable = dict(listed.unreadable)
        self.num_kept = 0
        self._explained_by: dict[str, list[str]] = {}

    def complete(self, reporter: Reporter) -> None:
        """Explain the pending images in batches; write the table after each."""
        pending = self._find_pending()
        size = min(_MAX_BATCH_SIZE, self._explainer.config.validation.batch_size)
        for start in range(0, len(pending), size):
            images = self._read(pending[start : start + size])
            explained = self._explainer.explain(images) if images else ()
            for number, (name, result) in enumerate(zip(images, explained, strict=True), start=1):
                try:
                    self.rows[name] = self._write(name, result)
                except UserError as error:
                    if getattr(error.__cause__, "errno", None) != errno.ENAMETOOLONG:
                        raise
                    self._skip(name, ValueError("its name is too long for the names of its maps"))
                reporter.advance("explaining", start + number, len(pending))
            if self.rows:
                write_table(self.table_file, self.rows)

    def _find_pending(self) -> list[str]:
        """List the images without a row of their present content; drop outdated rows."""
        pending = []
        for name in self._images.paths:
            try:
                digest = self._digest(name)
            except OSError as error:
                self._skip(name, error)
                continue
            row = self.rows.get(name)
            if row is not None and row["sha256"] == digest:
                self._explained_by[name] = _methods_of(row)
                if self._has_files(row):
                    self.num_kept += 1
                    continue
            pending.append(name)
        for name in (*pending, *self.unreadable):
            self.rows.pop(name, None)
        return pending

    def _has_files(self, row: Row) -> bool:
        wanted = self._explainer.method_names
        if not set(wanted) <= set(_methods_of(row)):
            return False
        files = [row[column] for column in FILE_ENDINGS if self._explainer.has_branch]
        files += [file for method in wanted for file in method_files(row["file"], method)]
        return all((self._out / file).is_file() for file in files)

    def _digest(self, name: str) -> str:
        return sha256_of(self._images.paths[name])

    def _read(self, names: list[str]) -> dict[str, UnlabelledImage]:
        images = {}
        for name in names:
            try:
                images[name] = self._explainer.read(self._images.paths[name])
            except (OSError, ValueError) as error:
                self._skip(name, error)
        return images

    def _skip(self, name: str, error: OSError | ValueError) -> None:
        self.unreadable[name] = printable(" ".join(str(error).split()))

    def _write(self, name: str, explained: _Explained) -> Row:
        """Write one image's files; return its row."""
        row = {"file": name, **self._explainer.describe(explained)}
        image = explained.image
        if self._explainer.has_branch:
            row |= write_maps(self._out, name, image.pixels, explained.attention)
        for method, saliency in explained.maps.items():
            whole = attention_of(saliency, image.pixels.shape[:2], image.box)
            write_method_map(self._out, name, method, image.pixels, whole)
        if methods := dict.fromkeys([*self._explained_by.get(name, ()), *explained.maps]):
            row[METHODS_COLUMN] = ",".join(methods)
        return {**row, "sha256": self._digest(name), "network": self._network}


def _methods_of(row: Row) -> list[str]:
    return [name for name in row.get(METHODS_COLUMN, "").split(",") if name]
