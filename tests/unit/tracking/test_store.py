from __future__ import annotations

import pytest
from sqlalchemy import create_engine, text

from labn.tracking.store import store_url


@pytest.mark.parametrize("name", ["plain", "my%20runs", "what?", "100% (new)", "a#b"])
def test_a_store_lies_where_its_path_says(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()

    engine = create_engine(store_url(f"sqlite:///{folder}/m.db"))
    with engine.connect() as connection:
        connection.execute(text("CREATE TABLE t (i INTEGER)"))
    engine.dispose()

    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [folder / "m.db"]


@pytest.mark.parametrize("uri", ["http://127.0.0.1:5000", "sqlite:////x/m.db?timeout=20"])
def test_other_addresses_stay_as_they_are(uri):
    assert store_url(uri) == uri
