"""What each step is given, made by threads while the step before computes.

Everything random is drawn from (seed, epoch, step, place in the batch), so a batch does not depend on which thread made
it, nor on what was made before: a resumed run goes on with the batches it would have had.

Axes:
    L  labelled pictures of a step        U  pictures of the pool        B = L + U, labelled first
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .augment import as_image, cutout, light, randaugment, whole
from .heads import Examples, Floats, Targets
from .losses import HeadLoss
from .mixing import mix, partners
from .net import condition
from .pictures import Pictures
from .settings import TuneSettings

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Teacher:
    """What another model says about examples, labelled or not."""

    ids: NDArray[np.int64]  # [m], distinct
    probabilities: Mapping[str, Floats]  # by head, [m, C]; of each class by itself for kind "multiple"


@dataclass(frozen=True, eq=False)
class Batch:
    """One step's pictures and what is known about them."""

    images: Tensor  # [B, H, H, 3] uint8
    targets: dict[str, Tensor]  # by head, [B, W]
    shares: dict[str, Tensor]  # by head, [B], weight in the head's loss; they add up to 1, or 0 without an answer
    teacher: dict[str, Tensor]  # by head, [B, C]; {} without a teacher
    teacher_shares: dict[str, Tensor]  # by head, [B]
    inputs: dict[str, Tensor]  # by name, [B, E + 1]
    weak: Tensor | None  # [U, H, H, 3] uint8, weaker views of the last U pictures, for FixMatch
    whole: int  # B of the step over all processes
    unlabelled: int  # U of the step over all processes

    def __len__(self) -> int:
        return len(self.images)

    def part(self, rows: slice | NDArray[np.intp]) -> Batch:
        """Some rows, without weak views."""
        cut: dict[str, Any] = {
            name: {key: value[rows] for key, value in getattr(self, name).items()}
            for name in ("targets", "shares", "teacher", "teacher_shares", "inputs")
        }
        return replace(self, images=self.images[rows], weak=None, **cut)

    def to(self, device: torch.device) -> Batch:
        moved: dict[str, Any] = {
            name: {key: value.to(device, non_blocking=True) for key, value in getattr(self, name).items()}
            for name in ("targets", "shares", "teacher", "teacher_shares", "inputs")
        }
        weak = None if self.weak is None else self.weak.to(device, non_blocking=True)
        return replace(self, images=self.images.to(device, non_blocking=True), weak=weak, **moved)


class Batches:
    """The steps of a run."""

    def __init__(
        self,
        losses: Sequence[HeadLoss],
        train: Examples,
        targets: Mapping[str, Targets],
        pictures: Pictures,
        input_size: int,
        settings: TuneSettings,
        pool: Examples | None,
        teacher: Teacher | None,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        """`process` of `processes` (from 0) gives its own part of every step: the rest is other processes' work."""
        self._process, self._processes = process, processes
        self._train, self._pool, self._pictures, self._settings = train, pool, pictures, settings
        self._size = input_size
        n = len(train)
        per_pass = math.ceil(n / settings.batch_size)
        # Small sets are passed several times, so that an epoch, with its measuring and saving, is worth its cost.
        self.passes = max(1, math.ceil(settings.fewest_steps / max(1, settings.epochs * per_pass)))
        self.steps = self.passes * per_pass
        self._groups = np.arange(n) if train.groups is None else train.groups
        self._weights = np.ones(n, np.float32) if train.weights is None else train.weights / train.weights.mean()
        self._targets = {
            loss.spec.name: (loss.standardised(targets[loss.spec.name].values), targets[loss.spec.name].answered)
            for loss in losses
        }
        used = {name for loss in losses for name in loss.spec.inputs}
        self._inputs = {
            name: condition(torch.from_numpy(values.astype(np.float32))).numpy()
            for name, values in train.inputs.items()
            if name in used
        }
        self._pool_inputs = (
            {}
            if pool is None
            else {
                name: condition(torch.from_numpy(pool.inputs[name].astype(np.float32))).numpy() for name in self._inputs
            }
        )
        self._teacher = teacher
        self._taught = {} if teacher is None else {int(example): row for row, example in enumerate(teacher.ids)}

    def of_epoch(self, epoch: int, threads: int) -> Iterator[Batch]:
        """The batches of an epoch (from 1), in order, made ahead by `threads` threads."""
        order = self._order(epoch)
        return ahead(lambda step: self.make(epoch, step, order[step]), range(len(order)), threads)

    def _order(self, epoch: int) -> list[NDArray[np.intp]]:
        """Rows of each step: every row once a pass, in steps of nearly the same size."""
        n = len(self._train)
        steps: list[NDArray[np.intp]] = []
        for number in range(self.passes):
            rows = _rng(self._settings.seed, 2, epoch, number).permutation(n)
            steps += np.array_split(rows, self.steps // self.passes)
        return steps

    def make(self, epoch: int, step: int, rows: NDArray[np.intp]) -> Batch:
        """This process's part of the batch of `step` (from 0), which has the labelled `rows`."""
        s = self._settings
        rng = _rng(s.seed, 3, epoch, step)
        pool_rows = self._pool_rows(epoch, step, len(rows))
        ids = self._train.ids[rows]
        other: NDArray[np.intp] = np.arange(len(rows))
        mixes = s.mixing != "none" and epoch <= s.epochs - round(s.mix_free * s.epochs)
        if mixes:
            other = partners(self._groups[rows], rng, s.mix_probability)
        images = np.zeros((len(rows), self._size, self._size, self._pictures.channels), np.uint8)
        for i in range(len(rows)) if mixes else self._own(len(rows)):  # what is mixed in may be of another's part
            images[i] = self._view(ids[i], _rng(s.seed, 4, epoch, step, i))
        pixels, masks = images[..., :3], images[..., 3] if images.shape[-1] == 4 else None
        pixels, share = mix(pixels, masks, other, s.mixing, rng)
        strong, weak = self._pool_views(pool_rows, epoch, step)
        if len(strong):
            pixels = np.concatenate([pixels, strong])

        targets, shares, teacher, taught = {}, {}, {}, {}
        known_a, known_b = share < 1, share > 0  # which pictures of a mixed one are there to be seen
        weight = (1 - share) * self._weights[rows] + share * self._weights[rows[other]]
        pool = len(pool_rows)
        for name, (values, answered) in self._targets.items():
            a, b = rows, rows[other]
            mixed = (1 - share)[:, None] * values[a] + share[:, None] * values[b]
            there = (answered[a] | ~known_a) & (answered[b] | ~known_b)
            targets[name] = _padded(mixed, pool)
            shares[name] = _padded(_normalised(weight * there), pool)
            if self._teacher is not None and name in self._teacher.probabilities:
                told, has = self._told(name, self._train.ids[rows])
                has = (has | ~known_a) & (has[other] | ~known_b)
                told = (1 - share)[:, None] * told + share[:, None] * told[other]
                more, has_more = self._told(name, self._pool_ids(pool_rows))
                teacher[name] = torch.from_numpy(np.concatenate([told, more]))
                every = np.concatenate([has, has_more])
                taught[name] = torch.from_numpy(_normalised(every.astype(np.float32)) * np.float32(s.distil_weight))
                if every.any():
                    shares[name] = shares[name] * torch.from_numpy(1 - np.float32(s.distil_weight) * every)
        batch = Batch(
            torch.from_numpy(np.ascontiguousarray(pixels)),
            targets,
            shares,
            teacher,
            taught,
            self._conditions(rows, other, share, pool_rows, rng),
            None,
            len(rows) + pool,
            pool,
        )
        if self._processes > 1:
            batch = batch.part(np.concatenate([self._own(len(rows)), len(rows) + self._own(pool)]))
        if s.fixmatch and pool:
            batch = replace(batch, weak=torch.from_numpy(weak[self._own(pool)]))
        return batch

    def _own(self, count: int) -> NDArray[np.intp]:
        """Which of `count` pictures this process looks at."""
        return np.arange(self._process, count, self._processes)

    def _view(self, example: int, rng: np.random.Generator, *, strong: bool | None = None) -> NDArray[np.uint8]:
        """One picture as the network will see it, [H, H, 3 or 4]. `strong` for FixMatch's two views."""
        s = self._settings
        pixels = self._pictures.get(example)
        if s.augmentation == "none" and strong is None:
            picture = torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
            return whole(picture, self._size).permute(1, 2, 0).numpy()
        view = light(as_image(pixels), self._size, rng, s.flips, s.crop_scale)
        if strong or (strong is None and s.augmentation == "randaugment"):
            view = randaugment(view, rng)
        found = np.asarray(view)
        return cutout(found, rng) if strong else found

    def _pool_rows(self, epoch: int, step: int, labelled: int) -> NDArray[np.intp]:
        """Rows of the pool for a step: all once, in random order, then all again."""
        if self._pool is None or not len(self._pool):
            return np.empty(0, np.intp)
        n = len(self._pool)
        count = max(1, round(self._settings.pool_ratio * labelled)) if self._settings.pool_ratio else 0
        first = ((epoch - 1) * self.steps + step) * max(1, round(self._settings.pool_ratio * self._settings.batch_size))
        places = np.arange(first, first + count)
        orders = {int(k): _rng(self._settings.seed, 5, int(k)).permutation(n) for k in np.unique(places // n)}
        return np.array([orders[int(p // n)][p % n] for p in places], np.intp)

    def _pool_ids(self, rows: NDArray[np.intp]) -> NDArray[np.int64]:
        return np.empty(0, np.int64) if self._pool is None else self._pool.ids[rows]

    def _pool_views(self, rows: NDArray[np.intp], epoch: int, step: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Views of pictures of the pool for the step itself, and weak ones for pseudo-labels if FixMatch is on."""
        s = self._settings
        ids = self._pool_ids(rows)
        views = np.zeros((len(ids), self._size, self._size, 3), np.uint8)
        weak = np.zeros_like(views) if s.fixmatch else views[:0]
        for i in self._own(len(ids)):
            rng = _rng(s.seed, 6, epoch, step, int(i))
            views[i] = self._view(ids[i], rng, strong=True if s.fixmatch else None)[..., :3]
            if s.fixmatch:
                weak[i] = self._view(ids[i], rng, strong=False)[..., :3]
        return views, weak

    def _told(self, name: str, ids: NDArray[np.int64]) -> tuple[Floats, NDArray[np.bool_]]:
        """The teacher's probabilities [n, C], 0 where it says nothing, and where it says something."""
        assert self._teacher is not None
        told = self._teacher.probabilities[name]
        rows = np.array([self._taught.get(int(example), -1) for example in ids], np.intp)
        return np.where(rows[:, None] >= 0, told[rows], 0).astype(np.float32), rows >= 0

    def _conditions(
        self,
        rows: NDArray[np.intp],
        other: NDArray[np.intp],
        share: Floats,
        pool_rows: NDArray[np.intp],
        rng: np.random.Generator,
    ) -> dict[str, Tensor]:
        """Extra inputs of a step, some of them hidden: half of the time all of an example's, else one of them."""
        names = sorted(self._inputs)
        count = len(rows) + len(pool_rows)
        hide = rng.uniform(size=count) < self._settings.condition_dropout
        everything = rng.uniform(size=count) < 0.5
        one = rng.integers(0, max(1, len(names)), count)
        found = {}
        for index, name in enumerate(names):
            values = self._inputs[name]
            mixed = (1 - share)[:, None] * values[rows] + share[:, None] * values[rows[other]]
            every = np.concatenate([mixed, self._pool_inputs[name][pool_rows]]) if len(pool_rows) else mixed
            hidden = hide & (everything | (one == index))
            every[hidden] = 0
            every[hidden, -1] = 1
            found[name] = torch.from_numpy(every)
        return found


def ahead(make: Callable[[int], T], places: Iterable[int], threads: int) -> Iterator[T]:
    """`make` of each place, in order, up to `threads + 1` of them made before they are asked for."""
    # With more threads inside each of them, torch's own would fight with those of the step.
    with ThreadPoolExecutor(
        threads, thread_name_prefix="batches", initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        waiting: deque[Future[T]] = deque()
        try:
            for place in places:
                waiting.append(pool.submit(make, place))
                if len(waiting) > threads + 1:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _rng(*parts: int) -> np.random.Generator:
    return np.random.default_rng(parts)


def _normalised(weights: Floats) -> Floats:
    total = weights.sum()
    return (weights / total if total > 0 else weights).astype(np.float32)


def _padded(values: Floats, rows: int) -> Tensor:
    """With `rows` rows of zeros more."""
    return torch.from_numpy(
        np.concatenate([values, np.zeros((rows, *values.shape[1:]), np.float32)]).astype(np.float32)
    )
