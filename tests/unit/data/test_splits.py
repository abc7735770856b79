from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from labn.data.readers.reader import Record, SubsetName
from labn.data.splits import SubsetAssignment, assign_new_images, assign_subsets
from labn.errors import UserError

DEFAULTS = {
    "validation_fraction": 0.2,
    "test_fraction": 0.2,
    "seed": 0,
    "cross_partition_duplicates": "drop_train",
    "conflicting_labels": "drop",
}
IDRID_GRADES = {0: 134, 1: 20, 2: 136, 3: 74, 4: 49}


def make_records(
    grades: dict[int, int], subset: SubsetName | None = None, prefix: str = "image"
) -> list[Record]:
    flat = [grade for grade, count in grades.items() for _ in range(count)]
    return [
        Record(
            name=f"{prefix}_{number:03}",
            path=Path(f"{prefix}_{number:03}.png"),
            grade=grade,
            label=int(grade > 0),
            subset=subset,
        )
        for number, grade in enumerate(flat)
    ]


def assign(
    records: list[Record], copies: tuple[tuple[str, str], ...] = (), **settings
) -> SubsetAssignment:
    """Assign subsets; each image has its own digest, but the second of a pair the first's."""
    digests = {record.name: record.name for record in records}
    for name, twin in copies:
        digests[twin] = digests[name]
    sha256 = [digests[record.name] for record in records]
    return assign_subsets(records, sha256, **(DEFAULTS | settings))


def members(assignment: SubsetAssignment, records: list[Record], name: SubsetName | None):
    return [
        record for record, subset in zip(records, assignment.subsets, strict=True) if subset == name
    ]


def test_subsets_that_are_named_are_kept():
    names: tuple[SubsetName, ...] = ("train", "validation", "test")
    records = [r for name in names for r in make_records({0: 3, 2: 3}, name, name)]
    assignment = assign(records)
    assert assignment.subsets == tuple(record.subset for record in records)
    assert assignment.notes == ()


def test_83_of_idrids_training_images_are_drawn_for_validation():
    records = make_records(IDRID_GRADES, "train") + make_records({0: 34, 3: 69}, "test", "test")
    assignment = assign(records)
    assert Counter(assignment.subsets) == {"train": 330, "validation": 83, "test": 103}
    assert assignment.notes == (
        "drew 83 of 413 training images as the validation subset"
        " (data.validation_fraction = 0.2, data.split_seed = 0)",
    )


def test_a_subset_that_is_drawn_has_each_grade_in_proportion():
    records = make_records(IDRID_GRADES, "train") + make_records({0: 34, 3: 69}, "test", "test")
    drawn = Counter(r.grade for r in members(assign(records), records, "validation"))
    for grade, count in IDRID_GRADES.items():
        # Each grade's exact share is rounded up or down.
        assert abs(drawn[grade] - count * 83 / 413) < 1


def test_without_any_subsets_the_test_subset_is_drawn_first():
    records = make_records({0: 50, 1: 50})
    assignment = assign(records, validation_fraction=0.25, test_fraction=0.1)
    # 10 of 100 for testing, then a quarter of the 90 that are left, rounded up.
    assert Counter(assignment.subsets) == {"train": 67, "validation": 23, "test": 10}


def test_a_missing_test_subset_stays_missing_where_training_is_named():
    records = make_records({0: 20, 1: 20}, "train") + make_records({0: 5, 1: 5}, "validation", "v")
    assignment = assign(records)
    assert Counter(assignment.subsets) == {"train": 40, "validation": 10}
    assert assignment.notes == ()


@pytest.mark.parametrize(("fraction", "count", "expected"), [(0.07, 100, 7), (0.2, 413, 83)])
def test_a_share_is_rounded_up_but_not_by_floating_point_dust(fraction, count, expected):
    records = make_records({0: count // 2, 1: count - count // 2}, "train")
    records += make_records({0: 2, 1: 2}, "test", "test")
    drawn = members(assign(records, validation_fraction=fraction), records, "validation")
    assert len(drawn) == expected


def test_the_seed_alone_decides_which_images_are_drawn():
    records = make_records({0: 40, 1: 40})
    first, again, other = (assign(records, seed=seed).subsets for seed in (7, 7, 8))
    assert first == again != other


def test_a_seed_of_more_than_32_bits_is_accepted():
    records = make_records({0: 40, 1: 40})
    assert Counter(assign(records, seed=2**40 + 1).subsets)["test"] == 16


@pytest.mark.parametrize("seed", range(5))
def test_copies_of_one_label_stay_in_training_and_the_shares_hold(seed):
    records = make_records({0: 50, 1: 25, 2: 25})
    copies = (("image_000", "image_001"), ("image_060", "image_090"), ("image_060", "image_091"))
    assignment = assign(records, copies, seed=seed)
    subsets = {r.name: s for r, s in zip(records, assignment.subsets, strict=True)}
    assert {subsets[name] for pair in copies for name in pair} == {"train"}
    assert Counter(assignment.subsets) == {"train": 64, "validation": 16, "test": 20}


def test_copies_of_one_label_but_two_grades_do_not_conflict():
    records = make_records({0: 10, 1: 10, 2: 10})
    assignment = assign(records, (("image_010", "image_020"),))
    assert None not in assignment.subsets


def with_a_leak() -> tuple[list[Record], tuple[tuple[str, str], ...]]:
    records = make_records({0: 20, 1: 20}, "train") + make_records({0: 5, 1: 5}, "test", "test")
    return records, (("test_009", "image_003"),)


def test_a_training_image_that_is_in_the_test_subset_is_dropped():
    records, copies = with_a_leak()
    assignment = assign(records, copies)
    assert [r.name for r in members(assignment, records, None)] == ["image_003"]
    assert assignment.notes[0] == (
        "data.cross_partition_duplicates = drop_train: 1 dropped,"
        " identical to an image of a later subset: image_003 = test_009"
    )
    # The share is of what is left: 0.2 * 39, rounded up.
    assert Counter(assignment.subsets)["validation"] == 8


def test_a_training_image_that_is_in_the_test_subset_may_be_kept():
    records, copies = with_a_leak()
    assignment = assign(records, copies, cross_partition_duplicates="keep")
    assert None not in assignment.subsets
    assert assignment.notes[0].startswith("data.cross_partition_duplicates = keep: 1 kept,")


def test_a_training_image_that_is_in_the_test_subset_may_be_an_error():
    records, copies = with_a_leak()
    with pytest.raises(UserError) as caught:
        assign(records, copies, cross_partition_duplicates="error")
    message = str(caught.value)
    assert "data.cross_partition_duplicates = error: 1 found," in message
    assert "image_003 = test_009" in message
    assert "data.cross_partition_duplicates=drop_train" in message


def test_every_copy_that_a_later_subset_has_is_dropped():
    names: tuple[SubsetName, ...] = ("train", "validation", "test")
    records = [r for name in names for r in make_records({0: 3, 1: 3}, name, name)]
    copies = (
        ("train_000", "test_000"),
        ("train_001", "validation_001"),
        ("validation_002", "test_002"),
    )
    dropped = members(assign(records, copies), records, None)
    assert [r.name for r in dropped] == ["train_000", "train_001", "validation_002"]


CONFLICT = (("image_003", "image_030"), ("image_003", "image_004"))


def test_copies_with_different_labels_are_all_dropped():
    records = make_records({0: 20, 1: 20})
    assignment = assign(records, CONFLICT)
    dropped = members(assignment, records, None)
    assert [r.name for r in dropped] == ["image_003", "image_004", "image_030"]
    assert assignment.notes[0] == (
        "data.conflicting_labels = drop: 3 dropped, identical to an image with another label:"
        " image_003 = image_030, image_004 = image_030, image_030 = image_003"
    )


def test_copies_with_different_labels_may_be_kept_in_training():
    records = make_records({0: 20, 1: 20})
    assignment = assign(records, CONFLICT, conflicting_labels="keep")
    assert {assignment.subsets[i] for i in (3, 4, 30)} == {"train"}
    assert assignment.notes[0].startswith("data.conflicting_labels = keep: 3 kept,")


def test_copies_with_different_labels_may_be_an_error():
    with pytest.raises(UserError, match=r"conflicting_labels = error: 3 .*conflicting_labels=drop"):
        assign(make_records({0: 20, 1: 20}), CONFLICT, conflicting_labels="error")


def test_a_conflict_with_a_test_image_is_a_leak_and_no_conflict():
    records, copies = with_a_leak()
    assignment = assign(records, copies, conflicting_labels="error")
    assert [r.name for r in members(assignment, records, None)] == ["image_003"]


def test_a_note_names_ten_images_and_counts_the_rest():
    records = make_records({0: 40, 1: 40})
    copies = tuple((f"image_{i:03}", f"image_{i + 40:03}") for i in range(12))
    note = assign(records, copies).notes[0]
    assert ": 24 dropped," in note and note.endswith(" and 14 more")
    assert note.count(" = image_") == 10


def test_a_grade_with_one_image_cannot_be_drawn_from():
    with pytest.raises(UserError, match=r"grade 4 has 1 image .* test subset .* at least 2; add"):
        assign(make_records({0: 20, 1: 20, 4: 1}))


def test_copies_do_not_count_as_images_to_draw_from():
    records = make_records({0: 20, 1: 20, 4: 3})
    with pytest.raises(UserError, match="grade 4 has 1 image"):
        assign(records, (("image_040", "image_041"),))


def test_a_share_too_small_for_every_grade_names_the_setting():
    with pytest.raises(UserError, match=r"data.test_fraction = 0.02: draws 2 of 60 .* 3 grades"):
        assign(make_records({0: 20, 1: 20, 2: 20}), test_fraction=0.02)


def test_a_share_too_large_for_every_grade_names_the_setting():
    records = make_records({0: 20, 1: 20}, "train") + make_records({0: 5, 1: 5}, "test", "test")
    with pytest.raises(UserError, match=r"data.validation_fraction = 0.98: .* leaves 0 "):
        assign(records, validation_fraction=0.98)


@pytest.mark.parametrize(
    ("grade", "message"),
    [(0, "no positive image"), (2, "no negative image")],
)
def test_training_needs_positives_and_negatives(grade, message):
    records = make_records({grade: 6}, "train")
    records += make_records({0: 2, 1: 2}, "validation", "v") + make_records({0: 2}, "test", "t")
    with pytest.raises(UserError, match=message):
        assign(records)


def assign_new(records, known, *, pixels=None, **settings):
    """Assign the images that ``known``, a mapping from names to subsets, lacks."""
    subsets = [known.get(record.name) for record in records]
    new = [i for i, record in enumerate(records) if record.name not in known]
    sha256 = [(pixels or {}).get(record.name, record.name) for record in records]
    assigned = assign_new_images(records, sha256, subsets, new, **(DEFAULTS | settings))
    return {r.name: subset for r, subset in zip(records, assigned.subsets, strict=True)}


def test_new_images_are_placed_one_by_one_in_the_wanted_shares():
    known = {record.name: "train" for record in make_records({0: 5, 1: 5}, prefix="known")}
    old = make_records({0: 5, 1: 5}, prefix="known")
    new = make_records({0: 500, 1: 500}, prefix="new")

    placed = assign_new(old + new, known, test_fraction=0.2, validation_fraction=0.25)

    assert all(placed[name] == "train" for name in known)
    counts = Counter(placed[record.name] for record in new)
    # 200 are expected in each; the standard deviation is 13.
    assert 150 < counts["test"] < 250
    assert 150 < counts["validation"] < 250
    # Fewer, more or other images beside it change no place.
    some = assign_new(new[::7], {}, test_fraction=0.2, validation_fraction=0.25)
    assert some.items() <= placed.items()
    seeds = [assign_new(new, {}, seed=seed) for seed in (1, 2)]
    assert seeds[0] != seeds[1]


def test_a_new_image_goes_where_its_group_and_the_data_set_put_it():
    known = {"image_000": "validation", "image_001": "train"}
    records = make_records({0: 40})
    groups = tuple(["a", "b"] * 5 + ["c"] * 30)

    placed = assign_new(records, known, groups=groups)

    assert {placed[f"image_{i:03}"] for i in range(0, 10, 2)} == {"validation"}
    assert {placed[f"image_{i:03}"] for i in range(1, 10, 2)} == {"train"}
    assert len({placed[f"image_{i:03}"] for i in range(10, 40)}) == 1
    named = make_records({0: 4}, "test", "t") + make_records({0: 40}, "train", "n")
    placed = assign_new(named, {}, validation_fraction=0.5)
    assert {placed[record.name] for record in named[:4]} == {"test"}
    assert {placed[record.name] for record in named[4:]} == {"train", "validation"}


def test_new_copies_of_known_images_stay_unused():
    records = make_records({0: 2, 1: 2})
    known = {"image_000": "train", "image_002": "train"}
    copies = {"image_001": "image_000", "image_003": "image_002"}

    assert assign_new(records, known, pixels=copies) == known | dict.fromkeys(copies)


def test_folds_of_new_images_partition_them():
    new = make_records({0: 60})
    folds = [assign_new(new, {}, folds=3, fold=fold, test_fraction=0.2) for fold in range(3)]
    for record in new:
        places = sorted(fold[record.name] for fold in folds)
        assert places in (["test"] * 3, ["train", "train", "validation"])
