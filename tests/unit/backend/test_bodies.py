"""Strict JSON: what is refused, with which words, and what must pass."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backend.bodies import MAX_DEPTH, read_json
from backend.errors import BadPayload


def nested(levels: int, opening: str, closing: str) -> bytes:
    """A body of `levels` containers, the outermost being an object."""
    return b'{"a":' + (opening * (levels - 1) + "1" + closing * (levels - 1)).encode() + b"}"


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "empty"),
        (b" \n", "empty"),
        (b"{", "not JSON"),
        (b"{'a':1}", "not JSON"),
        (b'{"a":1}x', "not JSON"),
        (b'{"a":01}', "not JSON"),
        (b'{"a":"\x01"}', "not JSON"),
        (b'{"a":"\x00"}', "not JSON"),
        (b"\xff\xfe{\x00}\x00", "not UTF-8"),
        (b'{"a":"\xed\xa0\x80"}', "not UTF-8"),
        (b'\xef\xbb\xbf{"a":1}', "not JSON"),
        (b"[]", "an array came"),
        (b'"x"', "a text came"),
        (b"null", "null came"),
        (b"3", "a number came"),
        (b"true", "true or false came"),
        (b'{"a":NaN}', "NaN is not JSON"),
        (b'{"a":-Infinity}', "-Infinity is not JSON"),
        (b'{"a":1e999}', "too large"),
        (b'{"a":-1e400}', "too large"),
        (b'{"a":9223372036854775808}', "64 bits"),
        (b'{"a":-9223372036854775809}', "64 bits"),
        (b'{"a":' + b"9" * 5000 + b"}", "64 bits"),
        (b'{"a":"\\u0000"}', "NUL"),
        (b'{"\\u0000":1}', "NUL"),
        (b'{"a":[{"b":["x\\u0000y"]}]}', "NUL"),
        (b'{"a":"\\ud800"}', "surrogate"),
        (b'{"a":["\\uDFFF"]}', "surrogate"),
        (b'{"\\udc00\\ud800":1}', "surrogate"),
        (nested(MAX_DEPTH + 1, "[", "]"), "deeper than 100"),
        (nested(MAX_DEPTH + 1, '{"a":', "}"), "deeper than 100"),
        (nested(100_000, "[", "]"), "deeper than 100"),
        (b"[" * 100_000, "deeper than 100"),
    ],
)
def test_what_is_no_good_is_refused_and_named(body, says):
    with pytest.raises(BadPayload, match=says):
        read_json(body)


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"a": 2**63 - 1, "b": -(2**63), "c": 10**17},
        {"a": 1.5e300, "b": -0.0},
        {"emoji": "😀", "text": "ä\\u0000"},
        {
            "a": "\\ud800 as typed by a person",
            "b": ["\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16")],
        },
    ],
)
def test_good_bodies_pass_unchanged(value):
    assert read_json(json.dumps(value).encode()) == value
    assert read_json(json.dumps(value, ensure_ascii=False).encode()) == value


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_depth_at_the_limit_passes(opening, closing):
    assert read_json(nested(MAX_DEPTH, opening, closing))


def test_many_flat_containers_are_not_mistaken_for_depth():
    value = {"tasks": [{"data": {}} for _ in range(1000)]}
    assert read_json(json.dumps(value).encode()) == value


keys = st.text(st.characters(codec="ascii", min_codepoint=1))
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(st.dictionaries(st.text("abc"), json_values, max_size=4), st.booleans())
def test_every_object_of_storable_values_is_read_as_the_standard_library_reads_it(
    value: dict[str, Any], ascii_only: bool
):
    body = json.dumps(value, ensure_ascii=ascii_only).encode()
    assert read_json(body) == json.loads(body)


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(st.binary(max_size=60) | st.text('{}[]",:\\u0d8ab1e9.- ', max_size=60).map(str.encode))
def test_any_bytes_give_a_storable_object_or_a_refusal(body: bytes):
    try:
        value = read_json(body)
    except BadPayload:
        return
    text = json.dumps(value, allow_nan=False, ensure_ascii=False)
    text.encode("utf-8")
    assert "\\u0000" not in text.replace("\\\\", "")
