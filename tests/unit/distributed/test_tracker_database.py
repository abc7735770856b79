"""The tracker's database: on the head's disk, whole on shared storage, right after any restart."""

from __future__ import annotations

import contextlib
import sqlite3
import threading

import pytest

from labn.distributed.launch.tracker_database import MirroredDatabase


def write(file, word):
    with contextlib.closing(sqlite3.connect(file)) as database, database:
        database.execute("pragma synchronous = off")  # a write holds the lock while it syncs
        database.execute("create table if not exists words (word)")
        database.execute("insert into words values (?)", (word,))


def read(file):
    with contextlib.closing(sqlite3.connect(file)) as database:
        return [word for (word,) in database.execute("select word from words")]


@pytest.fixture
def places(tmp_path):
    return tmp_path / "head/mlflow.db", tmp_path / "shared/mlflow.db"


def test_another_machine_continues_with_the_copy(places, tmp_path):
    here, copy = places
    first = MirroredDatabase(here, copy)
    assert first.open() == "new"
    write(here, "one")
    assert first.save_copy()
    elsewhere = tmp_path / "other/mlflow.db"

    messages = MirroredDatabase(elsewhere, copy).open()

    assert messages == f"restored from {copy}"
    assert read(elsewhere) == ["one"]


def test_the_same_machine_continues_with_its_own_file_which_is_newer(places):
    here, copy = places
    MirroredDatabase(here, copy).open()
    write(here, "after the last copy")

    again = MirroredDatabase(here, copy)

    assert again.open() == "unchanged"
    assert read(here) == read(copy) == ["after the last copy"]


def test_a_machine_whose_place_another_took_leaves_its_stale_file(places, tmp_path):
    here, copy = places
    MirroredDatabase(here, copy).open()
    write(here, "lost with its head")
    other = MirroredDatabase(tmp_path / "other/mlflow.db", copy)
    other.open()
    write(other.file, "of the other head")
    other.save_copy()

    assert MirroredDatabase(here, copy).open() == f"restored from {copy}"
    assert read(here) == ["of the other head"]


def test_nothing_is_copied_where_nothing_changed(places):
    here, copy = places
    kept = MirroredDatabase(here, copy)
    kept.open()
    assert not kept.save_copy()
    write(here, "x")
    assert kept.save_copy()
    assert not kept.save_copy()


def test_a_copy_is_whole_while_others_write(places):
    here, copy = places
    kept = MirroredDatabase(here, copy)
    kept.open()
    write(here, "0")
    over = threading.Event()

    def go_on():
        number = 1
        while not over.is_set():
            write(here, str(number))
            number += 1

    writer = threading.Thread(target=go_on)
    writer.start()
    try:
        for _ in range(20):
            kept.save_copy()
            found = read(copy)
            assert found == [str(number) for number in range(len(found))]
    finally:
        over.set()
        writer.join()
