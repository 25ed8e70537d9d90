"""Everything that `training/` raises on purpose.

    TrainingError
    ├── DataError
    │   ├── NoTrainableExamples            nothing to learn from; label something first
    │   ├── OneClassOnly (.label)          a step that needs two classes got one
    │   ├── LabelSpaceChanged (.added .removed)
    │   └── UnreadableImage (.reason)      one image; counted, never a failed batch
    ├── RepresentationError
    │   ├── UnknownBackbone (.name .known)
    │   └── WeightsUnusable (.source .reason)
    ├── TrainingDiverged (.epoch .loss)    NaN or inf: retrying gives the same, so show it
    ├── OutOfMemory (.batch_size)          one retry with half the batch helps
    ├── ProcessKilled                      one of several; the run goes on from its last epoch when it is run again
    └── VersionError
        ├── VersionMissing (.version)
        └── CheckpointCorrupt (.path .expected .found)

Nothing here imports anything heavy: the web process catches these too.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

_SHOWN = 8  # versions in a message


class TrainingError(Exception):
    """Root of the package's errors. They go from process to process, whatever they are made of."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (type(self), self.args), self.__dict__


def _again(kind: type[TrainingError], args: tuple[Any, ...]) -> TrainingError:
    error = kind.__new__(kind)
    error.args = args
    return error


class DataError(TrainingError):
    """The examples or labels that were given cannot be used as they are."""


class NoTrainableExamples(DataError, ValueError):
    """Not one usable labelled example is left after what cannot be used was taken out."""

    def __init__(self, labelled: int, embedded: int) -> None:
        self.labelled = labelled
        self.embedded = embedded
        super().__init__(
            f"a fit needs at least one labelled example with an embedding; {labelled} labelled examples came "
            f"and {embedded} of them are embedded. Embed the pool first, or label readable images"
        )


class OneClassOnly(DataError, ValueError):
    """A step that compares classes was given labels of a single class."""

    def __init__(self, label: str) -> None:
        self.label = label
        super().__init__(f"labels of at least two classes are needed; all labels are {label!r}. Label another class")


class LabelSpaceChanged(DataError, ValueError):
    """A version was made for other classes than the ones in use now."""

    def __init__(self, added: Iterable[str], removed: Iterable[str]) -> None:
        self.added = tuple(added)
        self.removed = tuple(removed)
        super().__init__(
            f"the classes changed since this version was fitted (added: {list(self.added)}, "
            f"removed: {list(self.removed)}). Fit a new version"
        )


class UnreadableImage(DataError, ValueError):
    """The bytes of one example are not a picture that can be decoded; `reason` is shown to people."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class RepresentationError(TrainingError):
    """The features that examples are described by cannot be made."""


class UnknownBackbone(RepresentationError, LookupError):
    """No backbone has this name."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        self.name = name
        self.known = tuple(sorted(known))
        near = get_close_matches(name, self.known, 3) or list(self.known[:3])
        super().__init__(
            f"unknown backbone {name!r}; torchvision has {len(self.known)} classifiers, {', '.join(near)} among them"
        )


class WeightsUnusable(RepresentationError):
    """Weights are missing, cannot be fetched, or do not fit the backbone."""

    def __init__(self, source: str, reason: str) -> None:
        self.source = source
        self.reason = reason
        super().__init__(f"weights {source} cannot be used: {reason}")


class TrainingDiverged(TrainingError):
    """The loss is NaN or infinite; the same data will give the same again."""

    def __init__(self, epoch: int, loss: float, advice: str = "") -> None:
        self.epoch = epoch
        self.loss = loss
        super().__init__(
            f"the loss became {loss} in step {epoch}; a finite loss was wanted. "
            + (advice or "Look for NaN or inf in the embeddings or the sample weights")
        )


class TrainingStopped(TrainingError):
    """Somebody asked a run to stop; it leaves nothing."""

    def __init__(self) -> None:
        super().__init__("stopped from outside")


class OutOfMemory(TrainingError):
    """The device had no memory for one batch."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        super().__init__(f"not enough memory for a batch of {batch_size}; try again with {max(1, batch_size // 2)}")


class ProcessKilled(TrainingError):
    """One of the processes of a run was ended from outside, by want of memory perhaps."""


class VersionError(TrainingError):
    """A stored model version cannot be used."""


class VersionMissing(VersionError, LookupError):
    """No version with this id is stored here. `known`: the others, oldest first."""

    def __init__(self, version: str, known: Iterable[str] = ()) -> None:
        self.version = version
        self.known = tuple(known)
        listed = ", ".join(self.known[-_SHOWN:]) if self.known else "none"
        rest = f" and {len(self.known) - _SHOWN} older" if len(self.known) > _SHOWN else ""
        super().__init__(f"no model version {version!r}; stored: {listed}{rest}")


class CheckpointCorrupt(VersionError):
    """A stored file is not what its manifest says it is."""

    def __init__(self, path: str, expected: str, found: str) -> None:
        self.path = path
        self.expected = expected
        self.found = found
        super().__init__(
            f"{path} is damaged: expected {expected}, found {found}. Roll back to another version or fit a new one"
        )
