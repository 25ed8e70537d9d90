"""What a strategy may know: the pool, checked once, then only read."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .errors import NotADistributionError, PoolError, ShapeError
from .shapes import check_mask

Rows = npt.NDArray[np.int64]
Posterior = Literal["laplace", "bootstrap", "dropout"]  # what they are: `predictives.MEANING`
POSTERIORS: tuple[Posterior, ...] = get_args(Posterior)

CHUNK = 65_536  # rows handled at once where a pass over the whole pool is needed
# fp16 rounding of 2048 numbers moves a norm by less; a forgotten normalisation moves it by more.
_NORM_TOLERANCE = 1e-2


@dataclass(frozen=True, eq=False)
class Pool:
    """Everything a strategy may know. Checked on construction, then only read.

    Attributes:
        features: [N, D], float32 or float16, rows L2-normalised; may be memory-mapped.
        log_probs: [N, S, C] calibrated log-probabilities, or None before the first model.
        labelled: [N] bool, has a label the model trains on. Covered, never selected.
        pending: [N] bool, handed out and not yet answered. Covered, never selected.
        excluded: [N] bool, ignored altogether: neither selected nor covered nor in need of coverage (audit
            examples, unreadable images). Such rows may hold anything.
        groups: [N] int64 or None, near-duplicate group of each row, -1 for none.
        labels: [N] int64 or None, class index of each labelled row, -1 where unknown. Strategies that weigh
            classes use them, and posterior samples are drawn from them where log_probs hold one sample only.
        rejected: [N] bool or None, annotators said that this is none of the classes (a skip). Such a row cannot be
            selected: it is labelled or excluded too.
        posterior: of a linear head on these labels, of which samples are drawn then.

    Raises:
        ShapeError: lengths or axes disagree, or a mask is not boolean.
        PoolError: features hold NaN or are not L2-normalised.
        NotADistributionError: log_probs are not floating point. That they sum to one is checked when used.
    """

    features: npt.NDArray[Any]
    log_probs: Tensor | npt.NDArray[Any] | None
    labelled: npt.NDArray[np.bool_]
    pending: npt.NDArray[np.bool_]
    excluded: npt.NDArray[np.bool_]
    groups: npt.NDArray[np.int64] | None = None
    labels: npt.NDArray[np.int64] | None = None
    rejected: npt.NDArray[np.bool_] | None = None
    posterior: Posterior = "laplace"

    def __post_init__(self) -> None:
        features = np.asarray(self.features)
        if features.ndim != 2 or (len(features) and features.shape[1] < 1):
            raise ShapeError(f"expected features of shape [N, D], got {list(features.shape)}")
        if features.dtype not in (np.float16, np.float32, np.float64):
            raise PoolError(f"expected features as float32 or float16, got {features.dtype}")
        n = len(features)
        object.__setattr__(self, "features", features)
        for name in ("labelled", "pending", "excluded"):
            object.__setattr__(self, name, check_mask(name, getattr(self, name), n))
        if self.rejected is not None:
            object.__setattr__(self, "rejected", check_mask("rejected", self.rejected, n))
            if (self.rejected & self.selectable).any():
                raise PoolError("a rejected row is still selectable; mark it as labelled or excluded too")
        if self.groups is not None:
            groups = np.asarray(self.groups)
            if groups.shape != (n,) or groups.dtype.kind not in "iu":
                raise ShapeError(f"expected groups as integers of shape [{n}], got {groups.dtype} {list(groups.shape)}")
            object.__setattr__(self, "groups", groups.astype(np.int64))
        if self.labels is not None:
            labels = np.asarray(self.labels)
            if labels.shape != (n,) or labels.dtype.kind not in "iu":
                raise ShapeError(f"expected labels as integers of shape [{n}], got {labels.dtype} {list(labels.shape)}")
            object.__setattr__(self, "labels", labels.astype(np.int64))
        if self.log_probs is not None:
            shape = tuple(self.log_probs.shape)
            if len(shape) != 3 or shape[0] != n:
                raise ShapeError(f"expected log_probs of shape [N, S, C] with N={n}, got {list(shape)}")
            if "float" not in str(self.log_probs.dtype):
                raise NotADistributionError(f"expected floating-point log_probs, got {self.log_probs.dtype}")
        self._check_norms()

    @property
    def size(self) -> int:
        """N."""
        return len(self.features)

    @property
    def selectable(self) -> npt.NDArray[np.bool_]:
        """[N] bool: neither labelled, pending nor excluded."""
        return ~(self.labelled | self.pending | self.excluded)

    @property
    def has_predictions(self) -> bool:
        """Whether the model has an opinion: predictions are given and know at least two classes."""
        return self.log_probs is not None and self.log_probs.shape[2] >= 2

    def rows(self, rows: Rows) -> Tensor:
        """Features of some rows, [len(rows), D] float32, a copy."""
        return torch.from_numpy(self.features[rows].astype(np.float32, copy=False))

    def predictions(self, rows: Rows) -> Tensor:
        """Log-probabilities of some rows, [len(rows), S, C], a copy.

        Raises:
            PoolError: there are none.
        """
        if self.log_probs is None:
            raise PoolError("this pool has no log_probs; check `has_predictions` first")
        if isinstance(self.log_probs, Tensor):
            return self.log_probs.detach()[torch.from_numpy(rows)].cpu()
        return torch.from_numpy(self.log_probs[rows])

    @property
    def tells_classes(self) -> bool:
        """Whether labels of at least two classes are known."""
        return len(np.unique(self.labels_of_labelled)) >= 2

    @property
    def known_rows(self) -> Rows:
        """Rows whose class is known, ascending."""
        if self.labels is None:
            return np.empty(0, np.int64)
        return np.flatnonzero(self.labelled & ~self.excluded & (self.labels >= 0))

    @property
    def labels_of_labelled(self) -> Rows:
        """Classes of `known_rows`."""
        return np.empty(0, np.int64) if self.labels is None else self.labels[self.known_rows]

    @property
    def classes(self) -> int:
        """C: classes of the predictions, or the largest label known plus one, whichever is more."""
        predicted = 0 if self.log_probs is None else int(self.log_probs.shape[2])
        return max(predicted, int(self.labels_of_labelled.max(initial=-1)) + 1)

    def likeliest_class(self, rows: Rows) -> Rows:
        """Class index of the averaged prediction of some rows, [len(rows)].

        Raises:
            PoolError without log_probs.
        """
        out = np.empty(len(rows), dtype=np.int64)
        for start in range(0, len(rows), CHUNK):
            part = rows[start : start + CHUNK]
            out[start : start + len(part)] = self.predictions(part).exp().mean(1).argmax(-1).numpy()
        return out

    def _check_norms(self) -> None:
        for start in range(0, self.size, CHUNK):
            part = self.features[start : start + CHUNK].astype(np.float32, copy=False)
            norms = np.sqrt(np.einsum("nd,nd->n", part, part))
            # The comparison is False for NaN, so NaN counts as wrong.
            wrong = ~(np.abs(norms - 1) <= _NORM_TOLERANCE) & ~self.excluded[start : start + CHUNK]
            if wrong.any():
                row = int(np.flatnonzero(wrong)[0])
                raise PoolError(
                    f"expected L2-normalised features, row {start + row} has norm {norms[row]:.4g}; "
                    "divide each row by its norm, and mark rows without an embedding as excluded"
                )
