"""The result of an audit: counts and findings, as JSON and as text."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from labn.data.file_account import FileAccount

TINY_CLASS = 5
"""A class with fewer images than this in one subset is a warning."""

_NUM_LINES_SHOWN = 10

_REFUSED = "training refuses the data set until this is fixed"
MEANINGS = {
    "no_images": ("no image is annotated", _REFUSED),
    "bad_table": ("tables that cannot be used", _REFUSED),
    "missing_file": ("annotated images that do not exist", _REFUSED),
    "unreadable_file": ("images that cannot be decoded", _REFUSED),
    "unreadable_mask": ("masks that cannot be decoded or do not fit their images", _REFUSED),
    "label_out_of_range": ("annotations that are not a known grade", _REFUSED),
    "duplicate_row": ("images annotated more than once", _REFUSED),
    "conflicting_labels": (
        "identical images with different labels",
        "data.conflicting_labels = drop, the default, leaves out those that train or validate (or"
        " keep, error); data.cross_partition_duplicates decides on copies across subsets",
    ),
    "cross_partition_duplicates": (
        "identical images in different subsets",
        "data.cross_partition_duplicates = drop_train, the default, leaves out all but those of"
        " the last of train, validation, test (or keep, error)",
    ),
    "cross_partition_near_duplicates": (
        "nearly identical images, or frames of a series, in different subsets",
        "training keeps them, though scores on images seen in training are too high: check them",
    ),
    "cross_partition_groups": (
        "groups of images (data.group_by), such as one patient's, in different subsets",
        "training keeps them, since the data set names the subsets: scores may be too high",
    ),
    "ungrouped": (
        "images without a group (data.group_by)",
        "training takes each for a group of its own: complete the table, or the capture times",
    ),
    "duplicates": (
        "identical images in one subset",
        "training keeps them, all in one subset",
    ),
    "near_duplicates": (
        "nearly identical images, or frames of a series, in one subset",
        "training keeps them, and may draw some for validation: check them",
    ),
    "conflicting_grades": (
        "identical images with different grades of one label",
        "training keeps them: it learns labels, not grades",
    ),
    "random_subsets": (
        "frames of the sun whose times do not tell their subsets",
        "training draws all subsets at random: frames hours apart may be trained and scored on",
    ),
    "mixed_orientation": (
        "images whose first row may be the south in some and the north in others",
        "training keeps them as they are: check one of each, and convert one kind",
    ),
    "converted_channels": (
        "images of another number of channels than the data set's",
        "training converts them: grey is repeated to RGB, colour reduced to luma",
    ),
    "several_frames": ("images of several frames", "training reads the first alone"),
    "blank_image": ("images of one colour", "training keeps them: remove them and their rows"),
    "single_class": (
        "subsets with images of one class only",
        "training requires negatives and positives; in other subsets some scores are undefined",
    ),
    "tiny_class": (
        f"classes with fewer than {TINY_CLASS} images in a subset",
        "training continues, but scores on so few images are uncertain",
    ),
    "unlisted_file": (
        "images, masks and boxes that no table or folder takes in",
        "training leaves them out",
    ),
    "unread_file": (
        "files beside images, in formats that are not read",
        "training leaves them out",
    ),
}
"""Every kind of finding, the most severe first: a title, and how training treats it."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One defect of an image, a group of images, a table or a subset."""

    severity: Literal["error", "warning"] = "warning"
    kind: str
    names: tuple[str, ...]
    detail: str


@dataclass(frozen=True, kw_only=True)
class Balance:
    """Numbers of annotated images in one subset, by class name and by published grade."""

    labels: dict[str, int]
    grades: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Audit:
    """The counts and findings of a data set, the findings in the order of ``MEANINGS``.

    ``partitions`` (by subset) and ``num_images`` count annotated images; ``sizes`` counts decoded
    images by "width x height" after cropping, as in training. ``files`` is None where the data set
    has no folder.
    """

    num_images: int
    num_readable: int
    partitions: dict[str, Balance]
    sizes: dict[str, int]
    findings: list[Finding]
    files: FileAccount | None

    @property
    def has_errors(self) -> bool:
        """Whether any finding requires a fix or a decision."""
        return self._count("error") > 0

    def as_json(self) -> dict[str, Any]:
        """Return everything as plain types, with every name of every finding."""
        tree = asdict(self)
        for finding in tree["findings"]:
            finding["names"] = list(finding["names"])
        return tree | {"num_errors": self._count("error"), "num_warnings": self._count("warning")}

    def as_text(self) -> str:
        """Return the counts, the findings by kind, and a verdict, for a person to read."""
        lines = [f"{self.num_images} images, {self.num_readable} of them readable"]
        for subset, balance in self.partitions.items():
            counts = f"{_listed(balance.labels)}  (grades {_listed(balance.grades)})"
            lines.append(f"  {subset:10}  {counts}")
        if len(self.sizes) > 1:
            common = dict(Counter(self.sizes).most_common(_NUM_LINES_SHOWN))
            lines.append(f"  {len(self.sizes)} sizes  {_listed(common)}")
        if self.files is not None:
            lines += ["", *self.files.as_lines()]
        by_kind = defaultdict(list)
        for finding in self.findings:
            by_kind[finding.kind].append(finding)
        for findings in by_kind.values():
            lines += ["", *_describe(findings)]
        return "\n".join([*lines, "", self._verdict()])

    def _count(self, severity: str) -> int:
        return sum(finding.severity == severity for finding in self.findings)

    def _verdict(self) -> str:
        counts = f"errors: {self._count('error')}, warnings: {self._count('warning')}"
        num_fatal = sum(MEANINGS[finding.kind][1] is _REFUSED for finding in self.findings)
        if num_fatal > 0:
            return f"{counts}. Training refuses this data set until {num_fatal} are fixed."
        if self.findings:
            return f"{counts}. Training can use this data set, as described under each."
        return f"{counts}. Training can use this data set as it is."


def _describe(findings: list[Finding]) -> list[str]:
    kind = findings[0].kind
    title, consequence = MEANINGS[kind]
    lines = [f"{findings[0].severity.upper()} {kind}: {title} ({len(findings)})"]
    lines += [f"  {finding.detail}" for finding in findings[:_NUM_LINES_SHOWN]]
    if len(findings) > _NUM_LINES_SHOWN:
        lines.append(f"  +{len(findings) - _NUM_LINES_SHOWN} more")
    return [*lines, f"  -> {consequence}"]


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in counts.items())
