"""All defects of a data set, listed at once, before a network is trained on it."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from labn.data.audit_report import MEANINGS, TINY_CLASS, Audit, Balance, Finding
from labn.data.duplicates import (
    NEAR_DUPLICATE_THRESHOLD,
    THUMBNAIL_SIZE,
    Fingerprint,
    fingerprint,
    near_groups,
)
from labn.data.file_account import account_for
from labn.data.groups import Groups, find_groups, group_tables
from labn.data.readers.image_files import IMAGE_SUFFIXES, read_traits
from labn.data.readers.reader import SUBSETS, Problem, ProblemKind, Reader, Record
from labn.errors import printable

UNASSIGNED = "unassigned"
"""The name shown for images whose data set assigns no subset."""

_MAX_THREADS = 8
_NUM_MEMBERS_SHOWN = 4


class _Image(NamedTuple):
    """An image that could be decoded; ``is_grey`` is None where its file does not tell."""

    record: Record
    trace: Fingerprint
    class_name: str
    is_grey: bool | None
    num_frames: int


def audit(
    reader: Reader,
    *,
    report_progress: Callable[[int, int], None] | None = None,
    near_duplicate_threshold: float = NEAR_DUPLICATE_THRESHOLD,
    group_by: str | None = None,
    group_gap_s: float = 0,
) -> Audit:
    """Decode every image of a data set once, and return all its defects.

    ``reader.read`` is called from several threads. ``report_progress`` receives the number of
    images decoded and of all images. Only 4 kB per image are kept in memory. Groups are those of
    ``labn.data.groups.find_groups``.
    """
    scan = reader.scan()
    groups = find_groups(reader, scan.records, group_by, group_gap_s)
    images, unreadable = [], []
    for record, decoded in _decode_all(reader, scan.records, report_progress):
        if isinstance(decoded, Problem):
            unreadable.append(decoded)
        else:
            trace, is_grey, num_frames = decoded
            class_name = reader.class_names[record.label]
            images.append(_Image(record, trace, class_name, is_grey, num_frames))
    balances = _count(scan.records, reader.class_names)
    tables = () if groups is None else group_tables(reader, group_by)
    findings = [
        *map(_from_problem, (*scan.problems, *unreadable)),
        *_find_absence(balances),
        *_find_copies(images, near_duplicate_threshold),
        *_find_divided_groups(images, scan.records, groups),
        *_find_ungrouped(scan.records, groups, group_by),
        *_find_converted(images, reader.num_channels),
        *_find_frames(images),
        *_find_blanks(images),
        *_find_imbalance(balances),
    ]
    return Audit(
        num_images=len(scan.records),
        num_readable=len(images),
        partitions=balances,
        sizes=dict(Counter(f"{i.trace.size[1]}x{i.trace.size[0]}" for i in images)),
        findings=sorted(findings, key=lambda finding: list(MEANINGS).index(finding.kind)),
        files=None if reader.root is None else account_for(reader.root, scan, unreadable, tables),
    )


_Decoded = tuple[Fingerprint, bool | None, int]


def _decode_all(
    reader: Reader,
    records: Sequence[Record],
    report_progress: Callable[[int, int], None] | None,
) -> Iterator[tuple[Record, _Decoded | Problem]]:
    executor = ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1))
    try:
        outcomes = executor.map(lambda record: _decode(reader, record), records)
        for num_done, (record, decoded) in enumerate(zip(records, outcomes, strict=True), start=1):
            if report_progress is not None:
                report_progress(num_done, len(records))
            yield record, decoded
    finally:
        executor.shutdown(cancel_futures=True)


def _decode(reader: Reader, record: Record) -> _Decoded | Problem:
    kind: ProblemKind = "unreadable_file"
    try:
        trace = fingerprint(reader.read(record))
        traits: tuple[bool | None, int] = (None, 1)
        if record.path.suffix.lower() in IMAGE_SUFFIXES and record.path.is_file():
            traits = read_traits(record.path)
        kind = "unreadable_mask"
        reader.lesion_mask(record)
        return trace, *traits
    except FileNotFoundError:
        kind, detail = "missing_file", f"the file {printable(record.path)} does not exist"
    except (OSError, ValueError) as error:
        detail = printable(" ".join(str(error).split()) or type(error).__name__)
    return Problem(kind=kind, name=record.name, detail=detail, path=record.path)


def _count(records: Sequence[Record], class_names: Sequence[str]) -> dict[str, Balance]:
    balances = {}
    for subset in (*SUBSETS, None):
        members = [record for record in records if record.subset == subset]
        labels = Counter(record.label for record in members)
        grades = Counter(record.grade for record in members)
        if members:
            balances[subset or UNASSIGNED] = Balance(
                labels={name: labels[label] for label, name in enumerate(class_names)},
                grades={str(grade): grades[grade] for grade in sorted(grades)},
            )
    return balances


def _from_problem(problem: Problem) -> Finding:
    has_name = problem.name in problem.detail
    return Finding(
        severity="error" if problem.is_fatal else "warning",
        kind=problem.kind,
        names=(printable(problem.name),),
        detail=printable(problem.detail if has_name else f"{problem.name}: {problem.detail}"),
    )


def _find_absence(balances: dict[str, Balance]) -> Iterator[Finding]:
    if not balances:
        detail = "the data set has no annotated image; see the other findings, or check its root"
        yield Finding(severity="error", kind="no_images", names=(), detail=detail)


def _find_copies(images: Sequence[_Image], near_duplicate_threshold: float) -> Iterator[Finding]:
    copies = defaultdict(list)
    for image in images:
        copies[image.trace.digest].append(image)
    for group in copies.values():
        if len(group) == 1:
            continue
        yield _group_finding("duplicates", group)
        if len({image.record.label for image in group}) > 1:
            yield _group_finding("conflicting_labels", group)
        elif len({image.record.grade for image in group}) > 1:
            yield _group_finding("conflicting_grades", group)
    # A blank image has no pattern to compare, and copies would bias the mean of the set.
    distinct = [group for group in copies.values() if not group[0].trace.is_blank]
    thumbnails = np.empty((len(distinct), THUMBNAIL_SIZE, THUMBNAIL_SIZE), np.float32)
    for position, group in enumerate(distinct):
        thumbnails[position] = group[0].trace.thumbnail
    known = (*SUBSETS, None)
    subsets = np.array([known.index(group[0].record.subset) for group in distinct], np.int_)
    for positions in near_groups(thumbnails, subsets, near_duplicate_threshold):
        yield _group_finding("near_duplicates", [i for p in positions for i in distinct[p]])


def _find_divided_groups(
    images: Sequence[_Image], records: Sequence[Record], groups: Groups | None
) -> Iterator[Finding]:
    """Report the groups that the data set itself divides among subsets."""
    name_of = dict(zip((r.name for r in records), groups or (), strict=False))
    members = defaultdict(list)
    for image in images if groups else ():
        members[name_of[image.record.name]].append(image)
    for group in members.values():
        if len({image.record.subset for image in group}) > 1:
            yield _group_finding("cross_partition_groups", group)


def _find_ungrouped(
    records: Sequence[Record], groups: Groups | None, group_by: str | None
) -> Iterator[Finding]:
    """Report the images to draw from that have no group, each of which is one of its own."""
    alone = [
        record.name
        for record, group in zip(records, groups or (), strict=False)
        if record.name == group and record.subset in (None, "train")  # others are never drawn
    ]
    if alone:
        yield Finding(
            severity="warning",
            kind="ungrouped",
            names=tuple(alone),
            detail=f"{len(alone)} of {len(records)} images, such as {alone[0]}, have none by"
            f" data.group_by = {group_by}",
        )


def _group_finding(kind: str, group: Sequence[_Image]) -> Finding:
    spans_subsets = len({image.record.subset for image in group}) > 1
    members = []
    for record, _, class_name, *_ in group[:_NUM_MEMBERS_SHOWN]:
        subset = f"{record.subset or UNASSIGNED}, " if spans_subsets else ""
        members.append(f"{record.name} ({subset}grade {record.grade}, {class_name})")
    if len(group) > len(members):
        members.append(f"+{len(group) - len(members)} more")
    if spans_subsets and kind in ("duplicates", "near_duplicates"):
        kind = f"cross_partition_{kind}"
    return Finding(
        severity="error" if kind == "conflicting_labels" else "warning",
        kind=kind,
        names=tuple(image.record.name for image in group),
        detail=", ".join(members),
    )


def _find_converted(images: Sequence[_Image], num_channels: int) -> Iterator[Finding]:
    """Report the images that are not of the data set's channels."""
    converted = [image for image in images if image.is_grey is (num_channels == 3)]
    if converted:
        kind, use = ("greyscale", "RGB") if num_channels == 3 else ("in colour", "luma")
        detail = f"{len(converted)} of {len(images)} images are {kind}, and read as {use}"
        yield _list_finding("converted_channels", converted, detail)


def _find_frames(images: Sequence[_Image]) -> Iterator[Finding]:
    several = [image for image in images if image.num_frames > 1]
    if several:
        detail = f"{len(several)} of {len(images)} images have several frames"
        yield _list_finding("several_frames", several, detail)


def _list_finding(kind: str, images: Sequence[_Image], detail: str) -> Finding:
    names = tuple(image.record.name for image in images)
    shown = ", ".join(names[:_NUM_MEMBERS_SHOWN])
    more = f", +{len(names) - _NUM_MEMBERS_SHOWN} more" if len(names) > _NUM_MEMBERS_SHOWN else ""
    return Finding(kind=kind, names=names, detail=f"{detail}: {shown}{more}")


def _find_blanks(images: Iterable[_Image]) -> Iterator[Finding]:
    for record, trace, *_ in images:
        if trace.is_blank:
            level = round(float(trace.thumbnail.mean()))
            detail = f"{record.name}: every pixel has one colour, grey level {level} of 255"
            yield Finding(kind="blank_image", names=(record.name,), detail=detail)


def _find_imbalance(balances: dict[str, Balance]) -> Iterator[Finding]:
    for subset, balance in balances.items():
        counts = ", ".join(f"{count} {name}" for name, count in balance.labels.items())
        if sum(count > 0 for count in balance.labels.values()) == 1:
            yield Finding(kind="single_class", names=(subset,), detail=f"{subset}: {counts}")
            continue
        for name, count in balance.labels.items():
            if count < TINY_CLASS:
                detail = f"{subset}: {count} {name} of {counts}"
                yield Finding(kind="tiny_class", names=(subset, name), detail=detail)
