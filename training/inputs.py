"""Facts about examples beside their picture (age, sex, site): kept by example, learnt as a schema, encoded as columns.

    n, N  examples    E  encoded columns

A field whose known values are all numbers is one column, standardised over the pool; any other is one column for each
of its values that occurs, and one for the rare ones together. Each field has a column that says whether it is missing;
a missing value adds nothing elsewhere, so an example without any facts is the average one. Pure numpy: the web process
predicts too.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .embedding_table import as_ids
from .files import write_bytes
from .linear import Floats

Ids = NDArray[np.int64]

_MOST_VALUES = 50  # columns of a field; rarer values share one
# Of a flag, and of a standard deviation of a number; the picture's coordinates have length 8. On HAM10000 with age, sex
# and site, at 200 and 1,000 labels, the best of 1, 2, 3 and 5 by likelihood.
LENGTH = 2.0
_FAR = 5.0  # standard deviations beyond which a number is no further away
_FILE = "inputs.json"


@dataclass(frozen=True, eq=False)
class InputTable:
    """Raw facts of N examples; values as task data has them."""

    ids: Ids  # [N], sorted
    columns: Mapping[str, Sequence[Any]]  # by name, N values each; None: missing

    @classmethod
    def of(cls, ids: Sequence[int], columns: Mapping[str, Sequence[Any]]) -> InputTable:
        """In any order of ids."""
        order = np.argsort(np.asarray(ids, np.int64), kind="stable").tolist()
        return cls(as_ids([ids[i] for i in order]), {name: [c[i] for i in order] for name, c in columns.items()})

    def save(self, home: Path) -> None:
        """Write whole, then rename."""
        write_bytes(home / _FILE, json.dumps({"ids": self.ids.tolist(), "columns": dict(self.columns)}).encode())

    @classmethod
    def load(cls, home: Path) -> InputTable | None:
        """What `save` wrote; None without it, or where it cannot be read: the next list of tasks writes it anew."""
        try:
            stored = json.loads((home / _FILE).read_bytes())
            return cls(as_ids(stored["ids"]), dict(stored["columns"]))
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    @classmethod
    def stamp(cls, home: Path) -> tuple[int, int] | None:
        """Changes when another table is saved; None without one."""
        try:
            stat = (home / _FILE).stat()
        except FileNotFoundError:
            return None
        return stat.st_ino, stat.st_mtime_ns

    def values(self, name: str, ids: Ids) -> list[Any]:
        """Raw values of some examples; None where nothing is known."""
        column = self.columns.get(name)
        if column is None or not len(self.ids):
            return [None] * len(ids)
        place = np.minimum(np.searchsorted(self.ids, ids), len(self.ids) - 1)
        there = self.ids[place] == ids
        return [column[p] if known else None for p, known in zip(place.tolist(), there.tolist(), strict=True)]


@dataclass(frozen=True)
class Field:
    """How one fact is encoded."""

    name: str
    values: tuple[str, ...] | None  # of a category, the most frequent first; None: a number
    mean: tuple[float, ...]  # of each column over the examples where it is known; of the last, how often it is missing
    scale: tuple[float, ...]  # by which each column is multiplied; 0 where it never varies

    @property
    def width(self) -> int:
        """Columns, that of what is missing included."""
        return len(self.mean)

    def encode(self, raw: Sequence[Any]) -> NDArray[np.float64]:
        """[n] raw values -> [n, width]."""
        out = _columns(raw, self.values)
        missing = out[:, -1] > 0
        out -= np.array(self.mean)
        out[missing, :-1] = 0.0
        out *= np.array(self.scale)
        if self.values is None:
            out[:, 0] = np.clip(out[:, 0], -_FAR * LENGTH, _FAR * LENGTH)
        return out

    @classmethod
    def learn(cls, name: str, raw: Sequence[Any]) -> Field:
        """From the values of a pool."""
        known = [value for value in raw if not _is_missing(value)]
        values: tuple[str, ...] | None = None
        if not all(_number(value) is not None for value in known):
            ranked = sorted(Counter(map(_word, known)).items(), key=lambda item: (-item[1], item[0]))
            values = tuple(word for word, _ in ranked[:_MOST_VALUES])
        columns = _columns(raw, values)
        there = columns[columns[:, -1] == 0]
        mean = np.append(there[:, :-1].mean(axis=0) if len(there) else np.zeros(columns.shape[1] - 1), 0.0)
        mean[-1] = float(columns[:, -1].mean()) if len(columns) else 0.0
        spread = np.append(there[:, :-1].std(axis=0) if len(there) else np.zeros(len(mean) - 1), 0.0)
        spread[-1] = float(columns[:, -1].std()) if len(columns) else 0.0
        # Flags are not standardised: a rare value would be further from the rest than everything else together.
        scale = np.where(spread > 1e-9, LENGTH, 0.0)
        if values is None and spread[0] > 1e-9:
            scale[0] = LENGTH / spread[0]
        return cls(name, values, tuple(mean.tolist()), tuple(scale.tolist()))


@dataclass(frozen=True)
class InputSchema:
    """How the facts that a question looks at are encoded."""

    fields: tuple[Field, ...] = ()

    @property
    def width(self) -> int:
        """E."""
        return sum(field.width for field in self.fields)

    @property
    def columns(self) -> tuple[str, ...]:
        """What each of the E columns says, for people and for other models."""
        found: list[str] = []
        for field in self.fields:
            words = [field.name] if field.values is None else [f"{field.name}={v}" for v in (*field.values, "other")]
            found += [*words, f"{field.name} missing"]
        return tuple(found)

    def tells_as(self, other: InputSchema) -> bool:
        """Whether the same columns say something."""
        return self.columns == other.columns and self._varies() == other._varies()

    def _varies(self) -> list[bool]:
        return [scale > 0 for field in self.fields for scale in field.scale]

    @classmethod
    def learn(cls, table: InputTable | None, names: Sequence[str]) -> InputSchema:
        """From all examples of a pool; fields that nothing is known of are kept, and say nothing."""
        return cls(tuple(Field.learn(name, () if table is None else table.columns.get(name, ())) for name in names))

    def encode(self, table: InputTable | None, ids: Ids) -> Floats:
        """[n, E] columns of some examples."""
        if not self.fields:
            return np.empty((len(ids), 0), np.float32)
        raw = (None if table is None else table.values(field.name, ids) for field in self.fields)
        nothing = [None] * len(ids)
        parts = [field.encode(nothing if r is None else r) for field, r in zip(self.fields, raw, strict=True)]
        return np.concatenate(parts, axis=1).astype(np.float32)

    def record(self) -> list[dict[str, Any]]:
        """As JSON values."""
        return [
            {**vars(field), "values": None if field.values is None else list(field.values)} for field in self.fields
        ]

    @classmethod
    def of(cls, record: Sequence[Mapping[str, Any]]) -> InputSchema:
        """From what `record` gave."""
        return cls(
            tuple(
                Field(
                    f["name"],
                    None if f["values"] is None else tuple(f["values"]),
                    tuple(f["mean"]),
                    tuple(f["scale"]),
                )
                for f in record
            )
        )


def _columns(raw: Sequence[Any], values: tuple[str, ...] | None) -> NDArray[np.float64]:
    """[n] raw values -> [n, width] before scaling; the last column says what is missing."""
    missing = np.array([_is_missing(value) for value in raw], bool).reshape(len(raw))
    if values is None:
        numbers = [_number(value) for value in raw]
        # A word among numbers, met after the schema was learnt, says as little as nothing.
        missing |= np.array([number is None for number in numbers], bool).reshape(len(raw))
        known = np.array([0.0 if number is None else number for number in numbers], np.float64).reshape(len(raw), 1)
        return np.concatenate([known, missing[:, None]], axis=1)
    place = {word: index for index, word in enumerate(values)}
    out = np.zeros((len(raw), len(values) + 2))
    for row, value in enumerate(raw):
        if not missing[row]:
            out[row, place.get(_word(value), len(values))] = 1.0
    out[:, -1] = missing
    return out


def _is_missing(value: Any) -> bool:
    if isinstance(value, float):
        return not math.isfinite(value)
    return value is None or isinstance(value, (dict, list)) or (isinstance(value, str) and not value.strip())


def _number(value: Any) -> float | None:
    """A number, or a text that is one; truth values are words."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _word(value: Any) -> str:
    return str(value).strip()
