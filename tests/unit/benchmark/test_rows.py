"""Rows that a study adds are read again as they were, whenever it was stopped."""

from benchmark.rows import append_rows, read_rows


def test_rows_grow_under_one_header(tmp_path):
    path = tmp_path / "new" / "rows.csv"
    assert read_rows(path) == []
    append_rows(path, ("name", "share"), [{"name": "a", "share": 1 / 3}])
    append_rows(path, ("name", "share"), [{"name": "b", "share": 2}, {"name": "c", "share": ""}])
    assert read_rows(path) == [
        {"name": "a", "share": "0.333333"},
        {"name": "b", "share": "2"},
        {"name": "c", "share": ""},
    ]
