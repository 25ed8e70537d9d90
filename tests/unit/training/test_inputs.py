"""Facts beside the picture as columns: numbers, categories, and what is missing."""

import numpy as np
import pytest
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from training.inputs import LENGTH, InputSchema, InputTable

IDS = np.arange(1, 9)
AGE = [30, 40.0, "50", None, 60, float("nan"), "", 35]
SITE = ["back", "face", "back", None, "back", "", "face", "ear"]
TABLE = InputTable.of(IDS.tolist(), {"age": AGE, "site": SITE, "empty": [None] * 8})


def encode(name, table=TABLE, ids=IDS, schema=None):
    return (schema or InputSchema.learn(table, [name])).encode(table, ids)


def test_numbers_are_standardised_over_what_is_known():
    found = encode("age")
    known = [0, 1, 2, 4, 7]
    expected = LENGTH * StandardScaler().fit_transform(np.array([[30.0], [40], [50], [60], [35]]))[:, 0]
    np.testing.assert_allclose(found[known, 0], expected, rtol=1e-5)
    np.testing.assert_array_equal(found[[3, 5, 6], 0], 0)


def test_categories_are_one_column_each():
    schema = InputSchema.learn(TABLE, ["site"])
    assert schema.columns == ("site=back", "site=face", "site=ear", "site=other", "site missing")
    found = encode("site")
    known = [0, 1, 2, 4, 6, 7]
    words = np.array([[SITE[i]] for i in known])
    hot = OneHotEncoder(categories=[["back", "face", "ear"]], sparse_output=False).fit_transform(words)
    centred = hot - hot.mean(0)
    np.testing.assert_allclose(found[known, :3], LENGTH * centred, rtol=1e-5)
    np.testing.assert_array_equal(found[[3, 5], :4], 0)


def test_what_is_missing_has_a_column_of_its_own():
    missing = encode("age")[:, -1]
    assert len(set(missing[[3, 5, 6]])) == 1 and missing[3] > 0 > missing[0]
    assert missing[3] - missing[0] == pytest.approx(LENGTH)


def test_a_number_out_of_all_proportion_is_just_far():
    far = InputTable.of([1], {"age": [1e9]})
    assert encode("age", far, np.array([1]), InputSchema.learn(TABLE, ["age"]))[0, 0] == 5 * LENGTH


def test_a_field_that_nothing_is_known_of_says_nothing():
    assert not encode("empty").any()
    assert not encode("no such field").any()
    assert not InputSchema.learn(None, ["age"]).encode(None, IDS).any()
    assert InputSchema().encode(TABLE, IDS).shape == (8, 0)


def test_an_example_that_is_not_listed_has_no_facts():
    schema = InputSchema.learn(TABLE, ["age", "site"])
    np.testing.assert_array_equal(schema.encode(TABLE, np.array([999]))[0], schema.encode(TABLE, np.array([4]))[0])


def test_a_value_met_later_is_none_of_the_known_ones_and_a_word_among_numbers_as_good_as_missing():
    schema = InputSchema.learn(TABLE, ["site", "age"])
    later = InputTable.of([5], {"site": ["knee"], "age": ["old"]})
    row = dict(zip(schema.columns, schema.encode(later, np.array([5]))[0].tolist(), strict=True))
    assert all(row[f"site={known}"] < 0 for known in ("back", "face", "ear"))
    assert row["age"] == 0 and row["age missing"] > 0


def test_truth_values_are_categories():
    table = InputTable.of([1, 2], {"old": [True, False]})
    assert InputSchema.learn(table, ["old"]).columns == ("old=False", "old=True", "old=other", "old missing")


def test_of_many_values_the_rare_ones_share_a_column():
    raw = ["often"] * 100 + [f"once {i}" for i in range(80)]
    table = InputTable.of(list(range(180)), {"x": raw})
    schema = InputSchema.learn(table, ["x"])
    assert schema.width == 52 and schema.columns[0] == "x=often"
    assert schema.encode(table, np.arange(180)).shape == (180, 52)


def test_rows_and_schema_come_back_as_they_were_written(tmp_path):
    unsorted = InputTable.of([3, 1, 2], {"age": [30, None, "x"]})
    unsorted.save(tmp_path)
    found = InputTable.load(tmp_path)
    assert found.ids.tolist() == [1, 2, 3] and list(found.columns["age"]) == [None, "x", 30]
    schema = InputSchema.learn(TABLE, ["age", "site"])
    assert InputSchema.of(schema.record()) == schema and schema.tells_as(schema)
    assert not schema.tells_as(InputSchema.learn(None, ["age", "site"]))
    assert InputTable.load(tmp_path / "nowhere") is None and InputTable.stamp(tmp_path / "nowhere") is None


def test_a_damaged_file_is_as_none(tmp_path):
    (tmp_path / "inputs.json").write_text("{")
    assert InputTable.load(tmp_path) is None
