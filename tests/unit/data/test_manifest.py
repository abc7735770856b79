from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from labn.data.manifest import SubsetTable, split_table
from labn.data.readers.reader import Record
from labn.errors import UserError

TABLE = """\
name,path,partition,label,grade,sha256
n0,/gone/n0.png,train,0,0,AA
n1,/gone/n1.png,,0,0,bb
p0,/gone/p0.png,test,1,1,cc
"""


def read(tmp_path, text=TABLE):
    file = tmp_path / "data.csv"
    file.write_text(text)
    return SubsetTable.read(file)


def records(names="n0 n1 p0"):
    return [
        Record(name=name, path=Path(name), grade=label, label=label, subset=None)
        for name in names.split()
        for label in [int(name.startswith("p"))]
    ]


def apply(table, given, digests, root, **consent):
    return table.apply(root, given, digests.split(), **{"allow_changed": False} | consent)


def test_a_table_places_the_images_that_it_names_whatever_their_order(tmp_path):
    placed = apply(read(tmp_path), records("p0 n2 n1 n0"), "cc xx bb aa", tmp_path)

    assert placed.subsets == ["test", None, None, "train"]
    assert placed.new == [1]  # n1 is known, and unused
    assert placed.notes == []


@pytest.mark.parametrize(
    ("names", "digests", "part"),
    [
        ("n0 n1", "aa bb", "1 missing (p0)"),
        ("n0 n1 p0", "aa xx cc", "1 changed (n1)"),
        ("n1 p0", "bb xx", "1 changed (p0) and 1 missing (n0)"),
        ("n2", "zz", "is another data set: none of the 3 images"),
        ("n0 n1 p0", "xx xx xx", "is another data set: none of the 3 images"),
    ],
)
def test_missing_and_changed_images_are_named_and_used_by_consent_alone(
    tmp_path, names, digests, part
):
    table = read(tmp_path)
    with pytest.raises(UserError) as error:
        apply(table, records(names), digests, tmp_path)
    assert part in str(error.value)
    assert f"data.root = {tmp_path}" in str(error.value) and "data.csv" in str(error.value)

    placed = apply(table, records(names), digests, tmp_path, allow_changed=True)

    assert len(placed.subsets) == len(names.split())
    (note,) = placed.notes
    assert "data.allow_changed = true" in note


def test_an_image_of_another_label_has_changed(tmp_path):
    table = read(tmp_path, TABLE.replace("train,0", "train,1"))
    with pytest.raises(UserError, match=r"1 changed \(n0\)"):
        apply(table, records(), "aa bb cc", tmp_path)


def test_painted_images_are_known_by_name_and_label(tmp_path):
    assert apply(read(tmp_path), records(), "x y z", None).notes == []


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("name,sha256\nn0,aa\n", ["has no partition", "labn data split"]),
        (TABLE.replace("train", "training"), ["line 2: partition = training: must be train"]),
        (TABLE + "n0,,test,0,0,aa\n", ["line 5: n0 is listed twice"]),
        (TABLE.replace("test,1", "test,yes"), ["line 4: label = yes", "whole number"]),
        ("", ["cannot be read"]),
    ],
)
def test_a_table_that_is_none_is_refused_in_one_line(tmp_path, text, parts):
    with pytest.raises(UserError) as error:
        read(tmp_path, text)
    for part in [f"{tmp_path}/data.csv: ", *parts]:
        assert part in str(error.value)


def test_a_missing_table_is_refused(tmp_path):
    with pytest.raises(UserError, match="no such table; make it with `labn data split`"):
        SubsetTable.read(tmp_path / "none.csv")


def manifest(*subsets):
    columns = {"name": ["n0", "n1", "p0", "p1"], "sha256": list("abcd"), "partition": subsets}
    return pd.DataFrame(columns | {"label": [0, 0, 1, 1]})


def test_a_table_of_folds_is_that_of_each_fold(tmp_path):
    folds = [
        manifest("validation", "train", "train", "test"),
        manifest("train", "validation", "validation", "test"),
    ]
    table = read(tmp_path, split_table(folds, has_folds=True))

    for fold, expected in enumerate(folds):
        entries = table.of_fold(2, fold).entries.values()
        assert [entry.subset for entry in entries] == expected["partition"].tolist()
    with pytest.raises(UserError, match=r"has 2 folds; set data.folds=2"):
        table.of_fold(3, 0)
    with pytest.raises(UserError, match=r"data.folds = null.* has 2 folds"):
        table.of_fold(None, 0)
    with pytest.raises(UserError, match=r"data.folds = 2.* has no folds; set data.folds=null"):
        read(tmp_path).of_fold(2, 0)


def test_the_digest_is_of_images_and_places_alone(tmp_path):
    digest = read(tmp_path).digest
    lines = TABLE.splitlines()
    reordered = "\n".join([lines[0], *reversed(lines[1:])]).replace("/gone", "/here")
    assert read(tmp_path, reordered).digest == digest
    assert read(tmp_path, TABLE.replace("test", "train")).digest != digest
    assert read(tmp_path, TABLE.replace("cc", "cd")).digest != digest
