"""What a version and its heads are, as values, and how heads are written and read. Imports no network.

The first head stands where the only one stood in earlier releases: its record in the manifest itself, its arrays as
"weight" and "bias". Further ones stand beside it, in "others" and with their place in the names of their arrays.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .inputs import InputSchema
from .linear import Floats, Head
from .quality import ErrorRanking
from .targets import HeadSpec, Target

Arrays = dict[str, NDArray[np.float32]]
_NO_INPUTS = InputSchema()


@dataclass(frozen=True)
class FitState:
    """What the next fit takes over, so that it need not be searched for again."""

    regularisation: float
    regularisation_labels: int  # labels when it was last searched for
    temperature_labels: int  # labels when the temperature was last fitted


@dataclass(frozen=True)
class HeadInfo:
    """What a head is and what it was worth on held-out labels."""

    spec: HeadSpec
    labels_used: int  # labels trained on; audit labels are not among them
    labels_digest: str
    metrics: dict[str, float | None]  # see training.evaluate; None where nothing can be said
    temperature: float
    error_ranking: ErrorRanking | None = None  # which confidence ranks errors best; None where nothing can be said
    numbers: Mapping[str, float] = field(default_factory=dict)  # what its kind needs beside the weights
    schema: InputSchema = _NO_INPUTS  # how the facts are encoded that it looks at


@dataclass(frozen=True)
class HeadContent:
    """All that is kept of a head."""

    spec: HeadSpec
    head: Head
    state: FitState
    labels: Mapping[int, Target]  # example id -> target, the labels trained on
    weights: Mapping[int, float] | None
    audit: Mapping[int, Target]  # the labels measured on
    metrics: dict[str, float | None]
    error_ranking: ErrorRanking | None = None
    numbers: Mapping[str, float] = field(default_factory=dict)
    schema: InputSchema = _NO_INPUTS
    extra: Floats | None = None  # [E + 1, K], see `with_inputs`; None without facts

    def record(self) -> dict[str, Any]:
        """As JSON values, for the manifest."""
        return {
            **self.spec.record(),
            "labels_used": len(self.labels),
            "labels_digest": labels_digest(self.labels, self.spec.classes),
            "metrics": self.metrics,
            "error_ranking": None if self.error_ranking is None else self.error_ranking.record(),
            "temperature": self.head.temperature,
            "state": vars(self.state),
            **({"numbers": dict(self.numbers)} if self.numbers else {}),
            **({"schema": self.schema.record()} if self.schema.fields else {}),
        }

    def stored_labels(self) -> dict[str, Any]:
        """As JSON values, for the file of labels."""
        return {
            "labels": _text_keys(self.labels),
            "weights": None if self.weights is None else _text_keys(self.weights),
            "audit": _text_keys(self.audit),
        }

    def arrays(self, place: int) -> Arrays:
        """By name; `place` of the head in its version."""
        found = {_named("weight", place): self.head.weight, _named("bias", place): self.head.bias}
        return found if self.extra is None else found | {_named("extra", place): self.extra}


@dataclass(frozen=True)
class StoredHead:
    """A head as it is read back."""

    info: HeadInfo
    head: Head
    state: FitState
    extra: Floats | None = None  # as in `HeadContent`

    def with_inputs(self, columns: Floats, encoded: Floats) -> Floats:
        """The columns [n, K] that the picture gives with what the facts [n, E] add: each encoded column, and the square
        of their length, which the spread of a number needs."""
        if self.extra is None:
            return columns
        square = np.einsum("ne,ne->n", encoded, encoded)[:, None]
        return columns + np.concatenate([encoded, square], axis=1) @ self.extra


@dataclass(frozen=True)
class VersionInfo:
    """What a model version is and what it was worth on held-out labels; what is told of labels is of its first head."""

    id: str
    generation: int
    created_at: float  # unix seconds
    classes: tuple[str, ...]
    labels_used: int  # labels trained on; audit labels are not among them
    labels_digest: str
    metrics: dict[str, float | None]  # see training.evaluate; None where nothing can be said
    temperature: float
    representation: str
    code_version: str
    source: dict[str, Any] = field(default_factory=dict)  # what the caller wanted remembered
    error_ranking: ErrorRanking | None = None  # which confidence ranks errors best; None where nothing can be said
    spec: HeadSpec | None = None  # of the first head; None: of one class, without a name
    numbers: Mapping[str, float] = field(default_factory=dict)  # with the schema, of the first head: see HeadInfo
    schema: InputSchema = _NO_INPUTS
    others: tuple[HeadInfo, ...] = ()

    @property
    def heads(self) -> tuple[HeadInfo, ...]:
        """All of them, at least one."""
        first = HeadInfo(
            self.spec or HeadSpec(classes=self.classes),
            self.labels_used,
            self.labels_digest,
            self.metrics,
            self.temperature,
            self.error_ranking,
            self.numbers,
            self.schema,
        )
        return (first, *self.others)

    @property
    def specs(self) -> tuple[HeadSpec, ...]:
        """What the heads are asked."""
        return tuple(head.spec for head in self.heads)

    @property
    def is_plain(self) -> bool:
        """Whether it asks one question with one answer of several classes, of the picture alone."""
        return not self.others and self.specs[0].kind == "single" and not self.schema.fields


@dataclass(frozen=True)
class StoredVersion:
    """A version with its weights, checked against its manifest; head and state are those of the first head."""

    info: VersionInfo
    head: Head
    state: FitState
    others: tuple[StoredHead, ...] = ()
    extra: Floats | None = None

    @property
    def heads(self) -> tuple[StoredHead, ...]:
        """All of them, at least one."""
        return (StoredHead(self.info.heads[0], self.head, self.state, self.extra), *self.others)

    @functools.cached_property
    def joint(self) -> Head:
        """All heads side by side, so that one pass over the pool gives the logits of all; it has no temperature."""
        if not self.others:
            return self.head
        heads = [stored.head for stored in self.heads]
        weight = np.concatenate([head.weight for head in heads], axis=1)
        return Head(weight, np.concatenate([head.bias for head in heads]), 1.0)

    def split(self, logits: Floats) -> list[Floats]:
        """[n, all columns] of `joint` -> those of each head."""
        ends = np.cumsum([stored.head.classes for stored in self.heads])
        return [np.ascontiguousarray(part) for part in np.split(logits, ends[:-1], axis=1)] if self.others else [logits]


@dataclass(frozen=True)
class VersionContent:
    """All that makes a version; two equal contents are one version. Its first head stands in its own fields."""

    generation: int
    classes: tuple[str, ...]
    head: Head
    state: FitState
    labels: Mapping[int, Target]  # example id -> target, the labels trained on
    weights: Mapping[int, float] | None
    audit: Mapping[int, Target]  # example id -> target, the labels measured on
    metrics: dict[str, float | None]
    representation: str
    source: dict[str, Any]
    error_ranking: ErrorRanking | None = None
    spec: HeadSpec | None = None
    numbers: Mapping[str, float] = field(default_factory=dict)
    schema: InputSchema = _NO_INPUTS
    extra: Floats | None = None
    others: tuple[HeadContent, ...] = ()

    @classmethod
    def of(
        cls, heads: Sequence[HeadContent], *, generation: int, representation: str, source: dict[str, Any]
    ) -> VersionContent:
        """Of one head or several."""
        first, *others = heads
        return cls(
            generation=generation,
            classes=first.spec.classes,
            head=first.head,
            state=first.state,
            labels=first.labels,
            weights=first.weights,
            audit=first.audit,
            metrics=first.metrics,
            representation=representation,
            source=source,
            error_ranking=first.error_ranking,
            spec=first.spec,
            numbers=first.numbers,
            schema=first.schema,
            extra=first.extra,
            others=tuple(others),
        )

    @property
    def heads(self) -> tuple[HeadContent, ...]:
        """All of them, at least one."""
        first = HeadContent(
            self.spec or HeadSpec(classes=self.classes),
            self.head,
            self.state,
            self.labels,
            self.weights,
            self.audit,
            self.metrics,
            self.error_ranking,
            self.numbers,
            self.schema,
            self.extra,
        )
        return (first, *self.others)


def records_of(manifest: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Of each head."""
    return [manifest, *manifest.get("others", ())]


def to_info(manifest: Mapping[str, Any]) -> VersionInfo:
    """From a manifest."""
    first, *others = (read_info(record) for record in records_of(manifest))
    return VersionInfo(
        id=manifest["id"],
        generation=manifest["generation"],
        created_at=manifest["created_at"],
        classes=first.spec.classes,
        labels_used=first.labels_used,
        labels_digest=first.labels_digest,
        metrics=first.metrics,
        temperature=first.temperature,
        representation=manifest["representation"],
        code_version=manifest["code_version"],
        source=manifest["source"],
        error_ranking=first.error_ranking,
        spec=first.spec,
        numbers=first.numbers,
        schema=first.schema,
        others=tuple(others),
    )


def read_info(record: Mapping[str, Any]) -> HeadInfo:
    """From what `HeadContent.record` gave, or from a manifest of an earlier release."""
    return HeadInfo(
        spec=HeadSpec.of(record),
        labels_used=record["labels_used"],
        labels_digest=record["labels_digest"],
        metrics=record["metrics"],
        temperature=record["temperature"],
        error_ranking=ErrorRanking.of(record.get("error_ranking")),
        numbers=record.get("numbers", {}),
        schema=InputSchema.of(record.get("schema", ())),
    )


def read_head(record: Mapping[str, Any], arrays: Mapping[str, NDArray[np.float32]], place: int) -> StoredHead:
    """A head from its record and the arrays of its version. Raises KeyError: an array is missing."""
    head = Head(arrays[_named("weight", place)], arrays[_named("bias", place)], float(record["temperature"]))
    info = read_info(record)
    extra = arrays[_named("extra", place)] if info.schema.fields else None
    return StoredHead(info, head, FitState(**record["state"]), extra)


def read_labels(spec: HeadSpec, stored: Mapping[str, Any]) -> dict[str, dict[int, Target]]:
    """ "labels" and "audit" from what `HeadContent.stored_labels` gave."""
    return {kind: {int(k): spec.from_json(v) for k, v in stored[kind].items()} for kind in ("labels", "audit")}


def labels_digest(labels: Mapping[int, Target], classes: tuple[str, ...]) -> str:
    """Short digest of which examples carry which label *name*: the order of classes or of labels is immaterial."""
    spec = HeadSpec(classes=classes)
    pairs = [[example_id, spec.said(target)] for example_id, target in sorted(labels.items())]
    return hashlib.sha256(canonical(pairs)).hexdigest()[:16]


def canonical(value: Any) -> bytes:
    """JSON that is the same for equal values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _named(array: str, place: int) -> str:
    return f"{array}.{place}" if place else array


def _text_keys(values: Mapping[int, Any]) -> dict[str, Any]:
    return {str(key): value for key, value in values.items()}
