"""What is wrong with a data set, all of it at once, before anything is trained on it."""

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
from labn.data.readers.reader import SUBSETS, Problem, Reader, Record

UNASSIGNED = "unassigned"
"""Stands for the partition of images whose data set names none."""

_MAX_THREADS = 8
_NUM_MEMBERS_SHOWN = 4


class _Image(NamedTuple):
    """An image that could be decoded."""

    record: Record
    trace: Fingerprint
    class_name: str


def audit(
    reader: Reader,
    *,
    report_progress: Callable[[int, int], None] | None = None,
    near_duplicate_threshold: float = NEAR_DUPLICATE_THRESHOLD,
) -> Audit:
    """Decode every image of a data set once, and list all that is wrong with it.

    ``reader.read`` is called from several threads. ``report_progress`` gets the number of images
    decoded and of all images. Of the pixels, 4 kB an image are kept.
    """
    scan = reader.scan()
    images, problems = [], list(scan.problems)
    for record, trace in _decode_all(reader, scan.records, report_progress):
        if isinstance(trace, Problem):
            problems.append(trace)
        else:
            images.append(_Image(record, trace, reader.class_names[record.label]))
    partitions = _count(scan.records, reader.class_names)
    findings = [
        *map(_from_problem, problems),
        *_find_absence(partitions),
        *_find_copies(images, near_duplicate_threshold),
        *_find_blanks(images),
        *_find_imbalance(partitions),
    ]
    return Audit(
        num_images=len(scan.records),
        num_readable=len(images),
        partitions=partitions,
        sizes=dict(Counter(f"{i.trace.size[1]}x{i.trace.size[0]}" for i in images)),
        findings=sorted(findings, key=lambda finding: list(MEANINGS).index(finding.kind)),
    )


def _decode_all(
    reader: Reader,
    records: Sequence[Record],
    report_progress: Callable[[int, int], None] | None,
) -> Iterator[tuple[Record, Fingerprint | Problem]]:
    executor = ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1))
    try:
        traces = executor.map(lambda record: _decode(reader, record), records)
        for num_done, (record, trace) in enumerate(zip(records, traces, strict=True), start=1):
            if report_progress is not None:
                report_progress(num_done, len(records))
            yield record, trace
    finally:
        executor.shutdown(cancel_futures=True)


def _decode(reader: Reader, record: Record) -> Fingerprint | Problem:
    try:
        return fingerprint(reader.read(record))
    except FileNotFoundError:
        detail = f"there is no file {record.path}"
        return Problem(kind="missing_file", name=record.name, detail=detail)
    except (OSError, ValueError) as error:
        detail = " ".join(str(error).split()) or type(error).__name__
        return Problem(kind="unreadable_file", name=record.name, detail=detail)


def _count(records: Sequence[Record], class_names: Sequence[str]) -> dict[str, Balance]:
    partitions = {}
    for partition in (*SUBSETS, None):
        part = [record for record in records if record.partition == partition]
        labels = Counter(record.label for record in part)
        grades = Counter(record.grade for record in part)
        if part:
            partitions[partition or UNASSIGNED] = Balance(
                labels={name: labels[label] for label, name in enumerate(class_names)},
                grades={str(grade): grades[grade] for grade in sorted(grades)},
            )
    return partitions


def _from_problem(problem: Problem) -> Finding:
    names_itself = problem.name in problem.detail
    return Finding(
        severity="error" if problem.is_fatal else "warning",
        kind=problem.kind,
        names=(problem.name,),
        detail=problem.detail if names_itself else f"{problem.name}: {problem.detail}",
    )


def _find_absence(partitions: dict[str, Balance]) -> Iterator[Finding]:
    if not partitions:
        detail = "the data set yields not one annotated image; see the other findings, or its root"
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
    # A blank image has no pattern to compare, and copies would sway what a pair is held to.
    distinct = [group for group in copies.values() if not group[0].trace.is_blank]
    thumbnails = np.empty((len(distinct), THUMBNAIL_SIZE, THUMBNAIL_SIZE), np.float32)
    for position, group in enumerate(distinct):
        thumbnails[position] = group[0].trace.thumbnail
    known = (*SUBSETS, None)
    parts = np.array([known.index(group[0].record.partition) for group in distinct], np.int_)
    for positions in near_groups(thumbnails, parts, near_duplicate_threshold):
        yield _group_finding("near_duplicates", [i for p in positions for i in distinct[p]])


def _group_finding(kind: str, group: Sequence[_Image]) -> Finding:
    spans_partitions = len({image.record.partition for image in group}) > 1
    members = []
    for record, _, class_name in group[:_NUM_MEMBERS_SHOWN]:
        partition = f"{record.partition or UNASSIGNED}, " if spans_partitions else ""
        members.append(f"{record.name} ({partition}grade {record.grade}, {class_name})")
    if len(group) > len(members):
        members.append(f"+{len(group) - len(members)} more")
    if spans_partitions and kind in ("duplicates", "near_duplicates"):
        kind = f"cross_partition_{kind}"
    return Finding(
        severity="error" if kind == "conflicting_labels" else "warning",
        kind=kind,
        names=tuple(image.record.name for image in group),
        detail=", ".join(members),
    )


def _find_blanks(images: Iterable[_Image]) -> Iterator[Finding]:
    for record, trace, _ in images:
        if trace.is_blank:
            level = round(float(trace.thumbnail.mean()))
            detail = f"{record.name}: every pixel is of one colour, grey level {level} of 255"
            yield Finding(
                severity="warning", kind="blank_image", names=(record.name,), detail=detail
            )


def _find_imbalance(partitions: dict[str, Balance]) -> Iterator[Finding]:
    for partition, balance in partitions.items():
        counts = ", ".join(f"{count} {name}" for name, count in balance.labels.items())
        if sum(count > 0 for count in balance.labels.values()) == 1:
            yield Finding(
                severity="warning",
                kind="single_class",
                names=(partition,),
                detail=f"{partition}: {counts}",
            )
            continue
        for name, count in balance.labels.items():
            if count < TINY_CLASS:
                yield Finding(
                    severity="warning",
                    kind="tiny_class",
                    names=(partition, name),
                    detail=f"{partition}: {count} {name} of {counts}",
                )
