"""Request bodies as strict JSON. Pure: bytes in, a dict that is safe to hand on out, or `BadPayload`.

What is promised about the result: a dict; at most `MAX_DEPTH` levels deep, so recursive code may walk it;
every integer fits into 64 bits; every float is finite; every text can be encoded as UTF-8 and holds no NUL
character, so it may become a key in Redis, a file name or a row in Postgres.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

from .errors import BadPayload

MAX_DEPTH = 100  # Label Studio's own payloads reach 12; a taxonomy of 40 levels still passes
_MAX_INT_CHARS = 19  # what is shorter than this many characters fits into 64 bits for sure
_LONG_NUMBER = b"0" * _MAX_INT_CHARS
_DIGITS_AS_ZERO = bytes.maketrans(b"123456789", b"0" * 9)
_INT64_MIN, _INT64_MAX = -(2**63), 2**63 - 1
_SUSPECT_ESCAPE = re.compile(rb"\\u(?:0000|[dD][89a-fA-F])")  # NUL or half of a surrogate pair


def read_json(body: bytes) -> dict[str, Any]:
    """The JSON object of a request body.

    Raises:
        BadPayload: what is wrong and where, as far as that is known.
    """
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadPayload(f"the body is not UTF-8 (byte {error.start}); send JSON as UTF-8") from None
    if not text.strip():
        raise BadPayload("the body is empty; send a JSON object")
    try:
        # Nearly no body holds so long a number, and calling us for each short one doubles the time.
        value = (_CAREFUL if _LONG_NUMBER in body.translate(_DIGITS_AS_ZERO) else _QUICK).decode(text)
    except json.JSONDecodeError as error:
        raise BadPayload(f"the body is not JSON: {error.msg} (line {error.lineno}, column {error.colno})") from None
    except RecursionError:
        raise _too_deep() from None
    if not isinstance(value, dict):
        raise BadPayload(f"a JSON object was expected, {_name(value)} came")
    suspect = _SUSPECT_ESCAPE.search(body) is not None
    # No more brackets than levels allowed means it cannot be too deep: nearly every webhook leaves here.
    if suspect or body.count(b"{") + body.count(b"[") > MAX_DEPTH:
        _check_tree(value, check_text=suspect)
    return value


def _check_tree(root: dict[str, Any], *, check_text: bool) -> None:
    """Refuse what is too deep and, on request, texts that cannot be stored. By level, without recursion."""
    level: list[Any] = [root]
    for _ in range(MAX_DEPTH):
        if check_text:
            for node in level:
                _check_texts(node)
                if isinstance(node, dict):
                    _check_texts(node.values())
        # One comprehension over all nodes: a generator for each cost a second where five megabytes are small lists.
        children = (node.values() if isinstance(node, dict) else node for node in level)
        level = [child for some in children for child in some if isinstance(child, (dict, list))]
        if not level:
            return
    raise _too_deep()


def _check_texts(values: Any) -> None:
    for value in values:
        if not isinstance(value, str):
            continue
        if "\x00" in value:
            raise BadPayload("a text holds a NUL character (\\u0000); remove it")
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise BadPayload(
                "a text holds half of a surrogate pair (\\ud800 to \\udfff), which is no character; remove it"
            ) from None


def _too_deep() -> BadPayload:
    return BadPayload(f"the body is nested deeper than {MAX_DEPTH} levels")


def _read_int(text: str) -> int:
    if len(text) < _MAX_INT_CHARS:
        return int(text)
    if len(text) > _MAX_INT_CHARS + 1 or not _INT64_MIN <= (value := int(text)) <= _INT64_MAX:
        raise BadPayload("a whole number does not fit into 64 bits")
    return value


def _read_float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise BadPayload("a number is too large for a float")
    return value


def _refuse_constant(text: str) -> NoReturn:
    raise BadPayload(f"{text} is not JSON; send null instead")


def _name(value: Any) -> str:
    if value is None:
        return "null"
    return {list: "an array", str: "a text", bool: "true or false"}.get(type(value), "a number")


# Stateless, so they serve all threads.
_QUICK = json.JSONDecoder(parse_float=_read_float, parse_constant=_refuse_constant)
_CAREFUL = json.JSONDecoder(parse_int=_read_int, parse_float=_read_float, parse_constant=_refuse_constant)
