"""The assignment of images to subsets.

If the data set names no subsets, test and validation images are drawn, stratified by grade; if it
names some, only validation images are drawn, from the training subset. Copies of one image are
recognised by their digest. Where images are grouped, or where one of several folds validates, whole
groups are drawn, and copies are of one group.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold, train_test_split

from labn.data.groups import Groups, merge_groups
from labn.data.readers.reader import SUBSETS, Record, SubsetName
from labn.errors import UserError

_NUM_NAMES_SHOWN = 10
_MAX_PARTS = 20
"""Into so many equal parts at most are groups divided to draw a share of them."""


@dataclass(frozen=True, kw_only=True)
class SubsetAssignment:
    """The subset of each record, None where it is dropped, and notes on this for the user."""

    subsets: tuple[SubsetName | None, ...]
    notes: tuple[str, ...]


def assign_subsets(
    records: Sequence[Record],
    sha256: Sequence[str],
    *,
    validation_fraction: float,
    test_fraction: float,
    seed: int,
    cross_partition_duplicates: Literal["drop_train", "keep", "error"],
    conflicting_labels: Literal["drop", "keep", "error"],
    groups: Groups | None = None,
    folds: int | None = None,
    fold: int = 0,
) -> SubsetAssignment:
    """Assign every record to the subset that the data set names, or to one that is drawn.

    Records without a subset count as training where others have one. Images that have copies
    within the training subset are never drawn, so that copies stay together; the fractions refer
    to the whole training subset, rounded up. ``cross_partition_duplicates`` covers every image
    identical to one of a later subset (training, validation, test); ``conflicting_labels`` covers
    training and validation.

    With ``groups``, a name per record, groups are drawn whole; the fraction is then met as closely
    as they allow. With ``folds`` the validation subset is number ``fold`` of as many, which cover
    the training subset; their grades are balanced as closely as groups allow.

    Raises:
        UserError: a setting is "error" and such images exist, a grade has too few images to draw
            from, the training subset has no positives or no negatives, there are too few groups,
            groups leave a subset without positives or negatives, or the data set names the
            validation subset that folds would draw.
    """
    subsets: list[SubsetName | None] = [record.subset or "train" for record in records]
    leaked = _find_leaked(subsets, sha256)
    notes = _apply_policy(
        "cross_partition_duplicates", cross_partition_duplicates, leaked, records, subsets
    )
    contradicted = _find_contradicted(subsets, sha256, records)
    notes += _apply_policy("conflicting_labels", conflicting_labels, contradicted, records, subsets)
    # A data set that names a training but no test subset is not divided again for one.
    draw = _Draw(records, sha256, groups, seed)
    if all(record.subset is None for record in records):
        notes.append(draw.share(subsets, "test", test_fraction))
    if folds is not None and "validation" in subsets:
        raise UserError(
            f"data.folds = {folds}: the data set names its validation images; set data.folds=null"
        )
    if folds is not None:
        notes.append(draw.fold(subsets, folds, fold))
    elif "validation" not in subsets:
        notes.append(draw.share(subsets, "validation", validation_fraction))
    check_training_subset(records, subsets)
    return SubsetAssignment(subsets=tuple(subsets), notes=tuple(notes))


def assign_new_images(
    records: Sequence[Record],
    sha256: Sequence[str],
    subsets: Sequence[SubsetName | None],
    new: Sequence[int],
    *,
    validation_fraction: float,
    test_fraction: float,
    seed: int,
    cross_partition_duplicates: Literal["drop_train", "keep", "error"],
    conflicting_labels: Literal["drop", "keep", "error"],
    groups: Groups | None = None,
    folds: int | None = None,
    fold: int = 0,
) -> SubsetAssignment:
    """Assign the records at the positions ``new``, and leave all others in their ``subsets``.

    A new image goes where the data set puts it; else, where the known images of its group are;
    else, by a hash of the seed and its group's name, so that its place does not depend on which
    other images there are. A copy of a known image stays unused.

    Raises:
        UserError: a setting is "error" and such images exist.
    """
    placed, is_new = list(subsets), set(new)
    known_pixels = {digest for i, digest in enumerate(sha256) if i not in is_new}
    for i in new:
        placed[i] = None if sha256[i] in known_pixels else records[i].subset or "train"
    notes: list[str] = []
    for key, policy, find in (
        ("cross_partition_duplicates", cross_partition_duplicates, _find_leaked),
        ("conflicting_labels", conflicting_labels,
         lambda placed, sha256: _find_contradicted(placed, sha256, records)),
    ):  # fmt: skip
        found = {i: others for i, others in find(placed, sha256).items() if i in is_new}
        notes += _apply_policy(key, policy, found, records, placed)
    named = {record.subset for record in records}
    shares = {
        "test": test_fraction if named == {None} else 0.0,
        "validation": 0.0 if "validation" in named else validation_fraction,
    }
    pool = [i for i, subset in enumerate(placed) if records[i].subset in (None, "train") and subset]
    names = [records[i].name if groups is None else groups[i] for i in pool]
    numbers = merge_groups(names, [sha256[i] for i in pool]) if pool else ()
    members: dict[int, list[int]] = defaultdict(list)
    for i, number in zip(pool, numbers, strict=True):
        members[int(number)].append(i)
    name_of = dict(zip(pool, names, strict=True))
    for group in members.values():
        known = {placed[i] for i in group if i not in is_new}
        place = next((name for name in SUBSETS if name in known), None)
        if place is None:
            position = _hashed(seed, min(name_of[i] for i in group))
            place = _place(position, shares, folds, fold)
        for i in group:
            placed[i] = place if i in is_new else placed[i]
    counts = Counter(placed[i] or "unused" for i in new)
    shown = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
    notes.append(f"data.new_images = assign: {len(new)} images are new: {shown}")
    return SubsetAssignment(subsets=tuple(placed), notes=tuple(notes))


def _hashed(seed: int, name: str) -> float:
    """Return a number from 0 to 1 that a seed and a name determine."""
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return int.from_bytes(digest[:8]) / 2**64


def _place(
    position: float, shares: Mapping[str, float], folds: int | None, fold: int
) -> SubsetName:
    """Return the subset at a position from 0 to 1 in which test, validation, training follow."""
    if position < shares["test"]:
        return "test"
    # Of what is left, as where validation images are drawn.
    rest = (position - shares["test"]) / (1 - shares["test"])
    if folds is not None:
        return "validation" if int(rest * folds) == fold else "train"
    return "validation" if rest < shares["validation"] else "train"


def _groups(keys: Sequence[str], positions: Iterable[int]) -> list[list[int]]:
    """Return groups of two or more positions that share a key."""
    groups = defaultdict(list)
    for position in positions:
        groups[keys[position]].append(position)
    return [group for group in groups.values() if len(group) > 1]


def _find_leaked(
    subsets: Sequence[SubsetName | None], sha256: Sequence[str]
) -> dict[int, list[int]]:
    """Map each image that has copies in a later subset to those copies."""
    rank = {i: SUBSETS.index(subset) for i, subset in enumerate(subsets) if subset}
    return {
        position: later
        for group in _groups(sha256, rank)
        for position in group
        if (later := [other for other in group if rank[other] > rank[position]])
    }


def _find_contradicted(
    subsets: Sequence[SubsetName | None], sha256: Sequence[str], records: Sequence[Record]
) -> dict[int, list[int]]:
    """Map each training or validation image that has copies of another label to those copies."""
    pool = (i for i, subset in enumerate(subsets) if subset in ("train", "validation"))
    return {
        position: others
        for group in _groups(sha256, pool)
        for position in group
        if (others := [o for o in group if records[o].label != records[position].label])
    }


def _apply_policy(
    key: str,
    policy: str,
    found: dict[int, list[int]],
    records: Sequence[Record],
    subsets: list[SubsetName | None],
) -> list[str]:
    """Refuse, keep or drop the images found, and return notes on this for the user."""
    if not found:
        return []
    what, remedy = {
        "cross_partition_duplicates": ("identical to an image of a later subset", "drop_train"),
        "conflicting_labels": ("identical to an image with another label", "drop"),
    }[key]
    pairs = [f"{records[i].name} = {records[others[0]].name}" for i, others in found.items()]
    more = f" and {len(pairs) - _NUM_NAMES_SHOWN} more" if len(pairs) > _NUM_NAMES_SHOWN else ""
    listing = f"{', '.join(pairs[:_NUM_NAMES_SHOWN])}{more}"
    if policy == "error":
        raise UserError(
            f"data.{key} = error: {len(found)} found, {what}: {listing};"
            f" fix the data set or set data.{key}={remedy}"
        )
    if policy != "keep":
        for position in found:
            subsets[position] = None
    verb = "kept" if policy == "keep" else "dropped"
    return [f"data.{key} = {policy}: {len(found)} {verb}, {what}: {listing}"]


@dataclass(frozen=True)
class _Draw:
    """What images are drawn from for a subset, and how."""

    records: Sequence[Record]
    sha256: Sequence[str]
    groups: Groups | None
    seed: int

    def share(
        self,
        subsets: list[SubsetName | None],
        target: Literal["test", "validation"],
        fraction: float,
    ) -> str:
        """Move a share of training images, stratified by grade, to a subset; return a note."""
        pool = [position for position, subset in enumerate(subsets) if subset == "train"]
        settings = f"data.{target}_fraction = {fraction}, data.split_seed = {self.seed}"
        if self.groups is None:
            drawn = self._images(pool, target, fraction)
            shown = ""
        else:
            num_drawn, num_parts = _parts_of(fraction)
            number_of = self._parts(pool, num_parts, f"data.{target}_fraction = {fraction}")
            drawn = [position for position in pool if number_of[position] < num_drawn]
            self._check_classes(pool, [drawn], f"data.{target}_fraction = {fraction}")
            shown = ", whole groups by data.group_by"
        for position in drawn:
            subsets[position] = target
        return (
            f"drew {len(drawn)} of {len(pool)} training images as the {target} subset"
            f" ({settings}{shown})"
        )

    def fold(self, subsets: list[SubsetName | None], num_folds: int, fold: int) -> str:
        """Move one of several folds of the training images to validation; return a note."""
        pool = [position for position, subset in enumerate(subsets) if subset == "train"]
        number_of = self._parts(pool, num_folds, f"data.folds = {num_folds}")
        folds = [[i for i in pool if number_of[i] == number] for number in range(num_folds)]
        self._check_classes(pool, folds, f"data.folds = {num_folds}")
        drawn = folds[fold]
        for position in drawn:
            subsets[position] = "validation"
        return (
            f"fold {fold} of {num_folds}: {len(drawn)} of {len(pool)} training images are the"
            f" validation subset (data.fold = {fold}, data.split_seed = {self.seed}"
            f"{'' if self.groups is None else ', whole groups by data.group_by'})"
        )

    def _images(self, pool: list[int], target: str, fraction: float) -> list[int]:
        """Return images drawn one by one, none of which has a copy."""
        copied = {position for group in _groups(self.sha256, pool) for position in group}
        eligible = [position for position in pool if position not in copied]
        grades = [self.records[position].grade for position in eligible]
        # Rounded first: 0.07 * 100 is a little more than 7 in floating point.
        num_drawn = math.ceil(round(fraction * len(pool), 9))
        _check_drawable(target, fraction, num_drawn, len(pool), Counter(grades))
        _, drawn = train_test_split(
            eligible, test_size=num_drawn, stratify=grades, random_state=self.seed % 2**32
        )
        return list(drawn)

    def _check_classes(self, pool: list[int], drawn: list[list[int]], setting: str) -> None:
        """Refuse draws that have, or leave, no positives or no negatives, which the pool has."""
        for kind, positions in (
            ("positives", {i for i in pool if self.records[i].label > 0}),
            ("negatives", {i for i in pool if self.records[i].label == 0}),
        ):
            if positions and not all(0 < len(positions & {*d}) < len(positions) for d in drawn):
                raise UserError(
                    f"{setting}: whole groups cannot be divided so that each subset has {kind};"
                    " change it, data.split_seed or data.group_by"
                )

    def _parts(self, pool: list[int], num_parts: int, setting: str) -> dict[int, int]:
        """Divide images by groups into parts of like size and grades; return each one's part."""
        names = [self.records[i].name if self.groups is None else self.groups[i] for i in pool]
        numbers = merge_groups(names, [self.sha256[i] for i in pool])
        if (num_groups := len(set(numbers))) < num_parts:
            raise UserError(
                f"{setting}: needs {num_parts} groups of images, but the {len(pool)} training"
                f" images are {num_groups}; change it, or data.group_by"
            )
        strata = _strata([self.records[i] for i in pool], num_parts, setting)
        splitter = StratifiedGroupKFold(num_parts, shuffle=True, random_state=self.seed % 2**32)
        parts = splitter.split(np.zeros(len(pool)), strata, numbers)
        return {pool[i]: number for number, (_, part) in enumerate(parts) for i in part}


def _parts_of(fraction: float) -> tuple[int, int]:
    """Return how many parts to draw, of how many, for about this share of the images."""
    parts = Fraction(fraction).limit_denominator(_MAX_PARTS)
    if not 0 < parts < 1:  # nearer to none, or to all, than a part is
        small = Fraction(1, round(1 / min(fraction, 1 - fraction)))
        parts = small if fraction < 0.5 else 1 - small
    return parts.numerator, parts.denominator


def _strata(records: Sequence[Record], num_parts: int, setting: str) -> list[int]:
    """Return each image's grade, or its label if a grade has fewer images than there are parts."""
    for values in ([r.grade for r in records], [r.label for r in records]):
        if min(Counter(values).values(), default=0) >= num_parts:
            return values
    raise UserError(
        f"{setting}: needs {num_parts} training images of each class, but a class has"
        f" {min(Counter(values).values(), default=0)}; change it, or add images"
    )


def _check_drawable(
    target: str, fraction: float, num_drawn: int, num_images: int, counts: Counter[int]
) -> None:
    for grade, count in sorted(counts.items()):
        if count < 2:
            raise UserError(
                f"grade {grade} has {count} image (copies not counted) to draw the {target}"
                f" subset from, but needs at least 2; add images of grade {grade}, leave the grade"
                f" out, or let the data set name its {target} subset"
            )
    num_left = counts.total() - num_drawn
    if min(num_drawn, num_left) < len(counts):
        raise UserError(
            f"data.{target}_fraction = {fraction}: draws {num_drawn} of {num_images} images and"
            f" leaves {num_left} (copies not counted), but both require one of each of"
            f" {len(counts)} grades; change data.{target}_fraction or add images"
        )


def check_training_subset(records: Sequence[Record], subsets: Sequence[SubsetName | None]) -> None:
    """Check that the training subset has positives and negatives.

    Raises:
        UserError: it has not.
    """
    labels = [r.label for r, subset in zip(records, subsets, strict=True) if subset == "train"]
    num_positives = sum(label > 0 for label in labels)
    for kind, rule, count in (
        ("positive", "label 1 or more", num_positives),
        ("negative", "label 0", len(labels) - num_positives),
    ):
        if count == 0:
            raise UserError(
                f"the training subset ({len(labels)} images) has no {kind} image ({rule});"
                " add some, or check the labels with `labn data check`"
            )
