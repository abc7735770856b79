"""The account of every file below a data set's root: read, used as a table or mask, or left out."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from labn.data.readers.image_files import IMAGE_SUFFIXES
from labn.data.readers.listing import Entry, is_document, is_visible, name_in, walk
from labn.data.readers.reader import Problem, Scan
from labn.errors import printable

_NUM_NAMES_SHOWN = 10
_NUM_GROUPS_SHOWN = 30
_NUM_IN_A_GROUP_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A file that is not used, and why."""

    file: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class FileAccount:
    """Every file below the root once: ``num_files`` is the sum of the others.

    ``images`` counts the files of images that can be read, by extension. Names are relative to the
    root. Links to nowhere, links that lead back and folders that cannot be listed count as files.
    """

    num_files: int
    images: dict[str, int]
    tables: list[str]
    masks: list[str]
    left_out: list[LeftOut]

    def as_lines(self) -> Iterator[str]:
        """Return the sum, and the tables, masks and files left out, for a person to read."""
        num_images = sum(self.images.values())
        kinds = ", ".join(f"{number} {suffix}" for suffix, number in self.images.items())
        yield (
            f"{self.num_files} files = {num_images} of images{f' ({kinds})' if kinds else ''}"
            f" + {len(self.tables)} tables + {len(self.masks)} masks"
            f" + {len(self.left_out)} left out"
        )
        for kind, names in (("table", self.tables), ("mask", self.masks)):
            yield from (f"  {kind:10}{name}" for name in names[:_NUM_NAMES_SHOWN])
            if len(names) > _NUM_NAMES_SHOWN:
                yield f"  {kind:10}+{len(names) - _NUM_NAMES_SHOWN} more"
        groups = defaultdict(list)
        for left_out in self.left_out:
            path = Path(left_out.file)
            groups[path.parent, path.suffix.lower(), left_out.reason].append(left_out.file)
        for (_, _, reason), names in list(groups.items())[:_NUM_GROUPS_SHOWN]:
            shown = names[:_NUM_IN_A_GROUP_SHOWN]
            more = f", +{len(names) - len(shown)} more" if len(names) > len(shown) else ""
            yield f"  left out  {', '.join(shown)}{more}: {reason}"
        if rest := list(groups.values())[_NUM_GROUPS_SHOWN:]:
            yield f"  left out  +{sum(map(len, rest))} more; --json lists all"


def account_for(
    root: Path, scan: Scan, unreadable: Iterable[Problem], tables: Iterable[Path]
) -> FileAccount:
    """Return the account of a root's files.

    ``unreadable`` are the images that cannot be decoded, ``tables`` those in use beside the scan's.
    """
    reasons = dict(scan.unused)
    reasons |= {p.path: p.detail for p in (*scan.problems, *unreadable) if p.path is not None}
    images = {record.path for record in scan.records} - reasons.keys()
    others = scan.others | dict.fromkeys(tables, "table")
    counts = Counter[str]()
    names = defaultdict(list)
    left_out = []
    entries = walk(root)
    for entry in entries:
        path = entry.path
        if path in images:
            counts[path.suffix.lower()] += 1
        elif path in others:
            names[others[path]].append(name_in(root, path))
        else:
            reason = printable(_reason(root, entry, reasons))
            left_out.append(LeftOut(file=name_in(root, path), reason=reason))
    return FileAccount(
        num_files=len(entries),
        images=dict(counts.most_common()),
        tables=names["table"],
        masks=names["mask"],
        left_out=left_out,
    )


def _reason(root: Path, entry: Entry, reasons: Mapping[Path, str]) -> str:
    path = entry.path
    if entry.defect:
        return entry.defect
    if not is_visible(path, root):
        return "hidden, or a file of the operating system"
    if path in reasons:
        return reasons[path]
    if is_document(path):
        return "not a table that the data set uses"
    if folder := next((folder for folder in path.parents if folder in reasons), None):
        return reasons[folder]
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return "not in a folder or table of the data set"
    return f"{path.suffix} is not a format that is read"
