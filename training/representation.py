"""Which representation a project uses: the backbone of the settings, a network fine-tuned from it on the project's own
labels, or features learnt from its own pool.

    pool/state.json                      {"current", "target", "tuned", "candidate"}: in use, being made (usually the
                                         same), the fine-tuned network that took the backbone's place, and one that is
                                         still to be judged
    pool/<id>/representation.json        what it is, for people
    pool/<id>/features.safetensors       features learnt from the pool
    pool/<id>/network/                   weights of a fine-tuned network

A new representation is embedded beside the old one, which stays in use until the new one is complete.
Imports torch only where pixels become vectors: the web process reads what is here.
"""

from __future__ import annotations

import functools
import io
import json
import logging
import shutil
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from .errors import (
    CheckpointCorrupt,
    RepresentationError,
    UnknownBackbone,
    UnreadableImage,
    VersionMissing,
    WeightsUnusable,
)
from .files import locked, read_json, write_bytes, write_json
from .pool_view import LEARNT_FROM
from .ranking import hash_ids

if TYPE_CHECKING:
    from .backbones import Backbone, BackboneSpec, Flips
    from .embeddings import Embedder, ExampleLike
    from .engine import Engine

    E = TypeVar("E", bound=ExampleLike)

_log = logging.getLogger(__name__)

_SETTLED_ON = 2_000  # images; features learnt from so many do not get better with more of the same
_GROWTH = 4  # a pool so many times the size learnt on deserves features of its own
_SIZES_LOOKED_AT = 100
_LOAD_THREADS = 8
_NETWORK = "network"


@dataclass(frozen=True)
class ModelSpec:
    """Which representation to make. Values from the settings; nothing is opened by making one."""

    backbone: str = "mobilenet_v2"  # a torchvision classifier
    weights: str | None = None  # path, URL or "torchvision"; None: features are learnt from the pool
    mean: tuple[float, float, float] | None = None  # of pixels in [0, 1]; None: what comes with the weights
    std: tuple[float, float, float] | None = None
    input_size: int | None = None  # pixels; None: what comes with the weights
    engines_dir: Path | None = None  # where compiled engines are kept; None: beside the project
    pool_sample: int = 5_000  # images that features are learnt from, at most
    seed: int = 0

    @property
    def start(self) -> str:
        """Names the backbone and its weights; "" without weights."""
        parts = (self.backbone, self.weights, self.mean, self.std, self.input_size)
        return "" if self.weights is None else json.dumps(parts)


@dataclass(frozen=True)
class Representation:
    """What examples are described by."""

    id: str
    kind: Literal["backbone", "pool", "tuned"]
    name: str
    width: int  # D
    note: str  # one sentence for people: what is in use and what it is worth
    learnt_on: int = 0  # pictures of the pool that it was learnt from; 0: from none of them
    pool_size: int = 0  # examples in the pool at that time
    backbone: str = ""  # of a tuned network: its architecture
    flips: Flips = "none"  # of a tuned network: views of an image whose features are averaged
    started_from: str = ""  # of a tuned network: the backbone and weights of the settings, as they were then


class Representations:
    """The representations of one project. Safe for several processes."""

    def __init__(self, home: Path, spec: ModelSpec) -> None:
        self._pool = home / "pool"
        self._spec = spec
        self._engines = spec.engines_dir or home / "engines"
        self._embedder: Embedder | None = None

    def folder(self, representation: str) -> Path:
        """Where a representation and its embeddings are."""
        return self._pool / representation

    def current(self) -> Representation | None:
        """The representation in use, or None before anything was embedded."""
        current = self._state()["current"]
        return None if current is None else self.read(current)

    def read(self, representation: str) -> Representation:
        """What is known of a representation. Raises VersionMissing, CheckpointCorrupt."""
        path = self.folder(representation) / "representation.json"
        stored = read_json(path)
        if stored is None:
            raise VersionMissing(representation)
        try:
            return Representation(**stored)
        except TypeError as error:
            raise CheckpointCorrupt(str(path), "a representation", str(error)) from error

    def open(
        self, examples: Sequence[E], load: Callable[[E], bytes], should_stop: Callable[[], bool]
    ) -> tuple[Embedder | None, dict[int, str]]:
        """What the pool shall be embedded with; learns it first if it has to be learnt.

        Returns:
            The embedder, or None when asked to stop or when fewer than two pictures could be read; and why
            pictures looked at could not be read.
        Raises:
            RepresentationError.
        """
        if self._spec.weights is not None:
            chosen = self._tuned() or self._backbone()
            self._aim_at(chosen.id)
            return chosen, {}
        with locked(self._pool / ".learn.lock", should_stop) as held:
            if not held:
                return None, {}
            known = self._learnt()
            if known is not None and not _outgrown(known, len(examples)):
                return self._use(known), {}
            embedder, unreadable = self._learn(examples, load, should_stop)
            if embedder is None and known is not None:
                return self._use(known), {}
            return embedder, unreadable

    def finish(self, representation: str) -> None:
        """Put a representation into use: every example that there is was embedded with it."""
        with locked(self._pool / ".state.lock"):
            state = self._state()
            if state["target"] == representation:
                write_json(self._pool / "state.json", state | {"current": representation})

    # ------------------------------------------------------------------ fine-tuned networks
    def add_tuned(
        self, weights: Path, backbone: str, note: str, learnt_from: NDArray[np.int64], flips: Flips = "none"
    ) -> Representation:
        """Make a representation of a weights file; nothing uses it before `use`, and `prune` spares it until `release`.

        Args:
            weights: with its side file, as `backbones.resolve` takes them; both are copied.
            backbone: name of the architecture.
            learnt_from: ids of the labelled examples that the weights were trained on.
            flips: how images may be turned over; features are the mean over all of these views.
        Raises:
            RepresentationError.
        """
        from .backbones import BackboneSpec

        engine = _engine(BackboneSpec(backbone, str(weights), flips=flips), self._engines)
        self._set_candidate(engine.id)  # before there is a folder that another process could take for a left one
        network = self.folder(engine.id) / _NETWORK
        network.mkdir(parents=True, exist_ok=True)
        for path in (weights, weights.with_name(f"{weights.name}.json")):
            if path.is_file():
                shutil.copyfile(path, network / path.name)
        ids = io.BytesIO()
        np.save(ids, learnt_from)
        write_bytes(self.folder(engine.id) / LEARNT_FROM, ids.getvalue())
        about = Representation(
            engine.id,
            "tuned",
            f"{backbone}, fine-tuned",
            engine.width,
            note,
            backbone=backbone,
            flips=flips,
            started_from=self._spec.start,
        )
        self._describe(about)
        return about

    def start(self) -> Backbone:
        """The backbone of the settings, with which fine-tuning starts. Raises RepresentationError."""
        from .backbones import resolve

        return resolve(self._wanted(), self._engines / "weights")

    def embedder(self, representation: str) -> Embedder:
        """What embeds pictures in a fine-tuned representation. Raises VersionMissing, RepresentationError."""
        from .backbones import BackboneSpec

        about = self.read(representation)
        weights = next(iter(sorted((self.folder(representation) / _NETWORK).glob("*.safetensors"))), None)
        if about.kind != "tuned" or weights is None:
            raise VersionMissing(representation)
        return _engine(BackboneSpec(about.backbone, str(weights), flips=about.flips), self._engines)

    def use(self, representation: str) -> None:
        """Put a representation into use at once, as that of a version that went live."""
        about = self.read(representation)
        with locked(self._pool / ".state.lock"):
            tuned = representation if about.kind == "tuned" else None
            state = self._state()
            wanted = state | {"current": representation, "target": representation, "tuned": tuned}
            if wanted != state:
                write_json(self._pool / "state.json", wanted)

    def release(self) -> None:
        """What `add_tuned` made last has been judged: from now on it stays only if a version needs it."""
        self._set_candidate(None)

    def _set_candidate(self, representation: str | None) -> None:
        with locked(self._pool / ".state.lock"):
            state = self._state()
            if state["candidate"] != representation:
                write_json(self._pool / "state.json", state | {"candidate": representation})

    def drop(self, representation: str) -> None:
        """Remove a representation unless it is in use, or in the making."""
        with locked(self._pool / ".state.lock"):
            if representation not in self._state().values():
                shutil.rmtree(self.folder(representation), ignore_errors=True)

    def _tuned(self) -> Embedder | None:
        """The fine-tuned network in use, unless the settings name another start by now or it cannot be read."""
        tuned = self._state()["tuned"]
        if tuned is None:
            return None
        try:
            if self.read(tuned).started_from == self._spec.start:
                return self.embedder(tuned)
        except (VersionMissing, CheckpointCorrupt, RepresentationError) as error:
            _log.warning("the fine-tuned network is not used: %s", error)
        return None

    # ------------------------------------------------------------------ files
    def prune(self, used: Iterable[str]) -> list[str]:
        """Remove representations that are neither in `used` nor current nor in the making; returns their ids."""
        removed = []
        with locked(self._pool / ".state.lock"):
            safe = {*used, *self._state().values()}
            for path in list(self._pool.iterdir()) if self._pool.is_dir() else []:
                if path.is_dir() and path.name not in safe and (path / "representation.json").exists():
                    shutil.rmtree(path, ignore_errors=True)
                    removed.append(path.name)
        return removed

    def _state(self) -> dict[str, str | None]:
        stored = read_json(self._pool / "state.json") or {}
        return {name: stored.get(name) for name in ("current", "target", "tuned", "candidate")}

    def _aim_at(self, representation: str) -> None:
        with locked(self._pool / ".state.lock"):
            state = self._state()
            wanted = state | {"current": state["current"] or representation, "target": representation}
            if wanted != state:
                write_json(self._pool / "state.json", wanted)

    def _describe(self, about: Representation) -> None:
        path = self.folder(about.id) / "representation.json"
        if not path.exists():
            write_json(path, asdict(about))

    # ------------------------------------------------------------------ a backbone with weights
    def _backbone(self) -> Embedder:
        if self._embedder is not None:
            return self._embedder
        engine = _engine(self._wanted(), self._engines)
        about = engine.backbone
        self._describe(Representation(engine.id, "backbone", about.name, engine.width, about.note))
        self._embedder = engine
        return engine

    def _wanted(self) -> BackboneSpec:
        from .backbones import BackboneSpec

        spec = self._spec
        if spec.weights is None:
            raise WeightsUnusable("none", "the settings name no weights; set ASKFIRST_WEIGHTS")
        return BackboneSpec(spec.backbone, spec.weights, spec.input_size, spec.mean, spec.std)

    # ------------------------------------------------------------------ features of the pool itself
    def _learnt(self) -> Representation | None:
        """The features learnt from this pool that look furthest, among those that can be read."""
        found = []
        for path in self._pool.glob("*/features.safetensors"):
            try:
                about = self.read(path.parent.name)
                self._load(about.id)
            except (VersionMissing, CheckpointCorrupt) as error:
                _log.warning("features are learnt again: %s", error)
            else:
                found.append(about)
        return max(found, key=lambda about: (about.learnt_on, about.id), default=None)

    def _load(self, representation: str) -> Embedder:
        if self._embedder is None or self._embedder.id != representation:
            from .pool_features import PoolFeatures

            self._embedder = PoolFeatures.load(self.folder(representation) / "features.safetensors")
        return self._embedder

    def _use(self, known: Representation) -> Embedder:
        self._aim_at(known.id)
        return self._load(known.id)

    def _learn(
        self, examples: Sequence[E], load: Callable[[E], bytes], should_stop: Callable[[], bool]
    ) -> tuple[Embedder | None, dict[int, str]]:
        from .pool_features import PoolFeatures

        sample, unreadable = self._pictures(examples, load, should_stop)
        if should_stop() or len(sample) < 2:
            return None, unreadable
        features = PoolFeatures.learn(sample, self._spec.seed)
        features.save(self.folder(features.id) / "features.safetensors")
        self._describe(
            Representation(
                features.id,
                "pool",
                "pool features",
                features.width,
                f"Learnt from {len(sample):,} of this project's own pictures, without labels and without pretrained "
                "weights: good on simple pictures, clearly below pretrained weights on photographs.",
                learnt_on=len(sample),
                pool_size=len(examples),
            )
        )
        self._aim_at(features.id)
        self._embedder = features
        return features, unreadable

    def _pictures(
        self, examples: Sequence[E], load: Callable[[E], bytes], should_stop: Callable[[], bool]
    ) -> tuple[NDArray[np.uint8], dict[int, str]]:
        """Decoded pictures [n, H, H, 3] of a sample of the pool, the same sample on every call."""
        from .images import decode
        from .pool_features import INPUT_SIZES, choose_input_size

        ids = np.array([example.example_id for example in examples], np.int64)
        chosen = np.argsort(hash_ids(ids, self._spec.seed), kind="stable")[: self._spec.pool_sample].tolist()
        unreadable: dict[int, str] = {}

        def fetch(index: int) -> bytes | None:
            if should_stop():
                return None
            try:
                return load(examples[index])
            except Exception as error:  # whatever the network or the caller's storage can raise
                unreadable[examples[index].example_id] = str(error) or type(error).__name__
                return None

        def pixels(index: int, data: bytes | None, side: int) -> NDArray[np.uint8] | None:
            try:
                return None if data is None else decode(data, side)
            except UnreadableImage as error:
                unreadable[examples[index].example_id] = error.reason
                return None

        with ThreadPoolExecutor(_LOAD_THREADS, thread_name_prefix="learn") as threads:
            # The first files are kept until the size is known; of the others only pixels are held.
            first, others = chosen[:_SIZES_LOOKED_AT], chosen[_SIZES_LOOKED_AT:]
            files = list(threads.map(fetch, first))
            sizes = [size for data in files if data is not None and (size := _size_of(data)) is not None]
            side = choose_input_size(sizes) if sizes else INPUT_SIZES[0]
            decoded = list(threads.map(lambda index, data: pixels(index, data, side), first, files))
            files.clear()
            decoded += threads.map(lambda index: pixels(index, fetch(index), side), others)
        pictures = [picture for picture in decoded if picture is not None]
        return (np.stack(pictures) if pictures else np.empty((0, side, side, 3), np.uint8)), unreadable


def check_weights(spec: ModelSpec) -> str:
    """Open the weights that the settings name, and say what they are; what would be downloaded is not opened.

    Raises: WeightsUnusable, UnknownBackbone: with what to do.
    """
    from .backbones import TORCHVISION, BackboneSpec, known_backbones, resolve

    if spec.weights is None:
        raise WeightsUnusable("none", "the settings name no weights; set ASKFIRST_WEIGHTS")
    if spec.weights == TORCHVISION or spec.weights.startswith(("http://", "https://")):
        if spec.backbone not in known_backbones():
            raise UnknownBackbone(spec.backbone, known_backbones())
        return f"{spec.backbone} with weights {spec.weights!r}, downloaded at first use"
    found = resolve(BackboneSpec(spec.backbone, spec.weights, spec.input_size, spec.mean, spec.std), Path())
    found.build()
    return found.note


def _engine(wanted: BackboneSpec, folder: Path) -> Engine:
    """One engine for all projects of a process, until another file lies where its weights were."""
    try:
        found = Path(wanted.weights).stat()
    except OSError:  # no file, but a URL or "torchvision"; or one that is missing, as `resolve` says
        return _opened(wanted, folder, None)
    return _opened(wanted, folder, (found.st_ino, found.st_mtime_ns, found.st_size))


@functools.lru_cache(maxsize=2)
def _opened(wanted: BackboneSpec, folder: Path, stamp: tuple[int, int, int] | None) -> Engine:
    from .backbones import resolve
    from .engine import open_engine

    return open_engine(resolve(wanted, folder / "weights"), folder)


def _outgrown(known: Representation, examples: int) -> bool:
    return known.learnt_on < _SETTLED_ON and examples >= _GROWTH * known.pool_size


def _size_of(data: bytes) -> tuple[int, int] | None:
    """(width, height) from the header alone."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data)) as image:
                return image.size
    except Exception:  # anything may be wrong with foreign bytes; `decode` says what
        return None
