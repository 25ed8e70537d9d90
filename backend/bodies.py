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
        value = _DECODER.decode(text)
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
        following: list[Any] = []
        for node in level:
            children = node.values() if isinstance(node, dict) else node
            if check_text:
                if isinstance(node, dict):
                    _check_texts(node)
                _check_texts(children)
            following.extend(child for child in children if isinstance(child, (dict, list)))
        if not following:
            return
        level = following
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


# Stateless, so one serves all threads.
_DECODER = json.JSONDecoder(parse_int=_read_int, parse_float=_read_float, parse_constant=_refuse_constant)
