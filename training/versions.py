"""Model versions on disk: immutable folders, and one small file that says which of them is live.

    versions/<id>/manifest.json, head.safetensors, labels.json (of all heads), verdict.json (the gate's, written later)
    live.json                        {"version", "previous", "history"}; only `promote` and `roll_back` write it

A folder is written beside its place, synced and renamed, so it is there entirely or not at all. Its id ends in a
digest of its content: writing the same content twice gives the same folder, and a changed byte is noticed.
Imports neither torch nor anything that does: the web process reads versions too.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import logging
import platform
import shutil
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from .errors import CheckpointCorrupt, VersionMissing
from .files import locked, read_json, sync_folder, write_bytes, write_json
from .gate import Comparison, Verdict
from .targets import HeadSpec, Target
from .version_values import (
    FitState,
    StoredVersion,
    VersionContent,
    VersionInfo,
    canonical,
    labels_digest,
    read_head,
    read_labels,
    records_of,
    to_info,
)

__all__ = [
    "FitState",
    "StoredVersion",
    "VersionContent",
    "VersionInfo",
    "VersionStore",
    "code_version",
    "labels_digest",
]

_log = logging.getLogger(__name__)
_FORMAT = "askfirst-version-1"
_DIGEST_LENGTH = 10
VERDICT_FILE = "verdict.json"
ANCHOR_FILE = "anchor.json"
_HISTORY = 20  # promotions that can be rolled back, one by one
_STALE_S = 3600.0  # leftovers of a killed writer are removed after this; no write takes nearly as long
_NOT_IN_DIGEST = ("id", "created_at", "libraries")


class VersionStore:
    """The versions of one project. Safe for several processes; every change is one rename."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._folder = home / "versions"
        self._live = home / "live.json"

    def write(self, content: VersionContent, *, created_at: float | None = None) -> VersionInfo:
        """Store a version as a candidate; writing equal content again gives the version that is there."""
        heads = content.heads
        first, *others = (head.record() for head in heads)
        head_bytes = save_arrays({k: v for place, head in enumerate(heads) for k, v in head.arrays(place).items()})
        first_labels, *other_labels = (head.stored_labels() for head in heads)
        labels_bytes = canonical(first_labels | ({"others": other_labels} if others else {}))
        manifest: dict[str, Any] = {
            "format": _FORMAT,
            "generation": content.generation,
            **first,
            **({"others": others} if others else {}),
            "representation": content.representation,
            "code_version": code_version(),
            "source": content.source,
            "files": {"head.safetensors": _sha(head_bytes), "labels.json": _sha(labels_bytes)},
        }
        # Through JSON once, so that the digest is of what a reader will see.
        manifest = json.loads(canonical(manifest))
        version = f"g{content.generation}-{_content_digest(manifest)}"
        manifest |= {
            "id": version,
            "created_at": time.time() if created_at is None else created_at,
            "libraries": _libraries(),
        }
        target = self._folder / version
        if not target.exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            draft = self._folder / f".draft-{uuid.uuid4().hex}"
            draft.mkdir()
            write_bytes(draft / "head.safetensors", head_bytes)
            write_bytes(draft / "labels.json", labels_bytes)
            write_json(draft / "manifest.json", manifest)
            sync_folder(draft)
            try:
                draft.rename(target)
            except OSError:
                # Another process was first with the same content; anything else is a real failure.
                shutil.rmtree(draft, ignore_errors=True)
                if not target.exists():
                    raise
            sync_folder(self._folder)
        return self.info(version)

    def info(self, version: str) -> VersionInfo:
        """The version's manifest. Raises VersionMissing, CheckpointCorrupt."""
        return to_info(self._manifest(version))

    def load(self, version: str) -> StoredVersion:
        """The version with its weights, every file checked. Raises VersionMissing, CheckpointCorrupt."""
        manifest = self._manifest(version)
        contents = {name: self._checked(version, name, digest) for name, digest in manifest["files"].items()}
        path = self._folder / version / "head.safetensors"
        try:
            arrays = load_arrays(contents["head.safetensors"])
            first, *others = (read_head(record, arrays, place) for place, record in enumerate(records_of(manifest)))
        except (SafetensorError, KeyError) as error:
            raise CheckpointCorrupt(str(path), "tensors weight and bias", str(error)) from error
        return StoredVersion(to_info(manifest), first.head, first.state, tuple(others), first.extra)

    def anchor(self) -> VersionInfo | None:
        """The version that went live when the labels last doubled: what came after it in small steps is held against
        it too. None without one."""
        try:
            stored = read_json(self._home / ANCHOR_FILE)
            return None if stored is None else self.info(stored["version"])
        except (CheckpointCorrupt, VersionMissing, KeyError, TypeError):
            return None

    def drop_anchor(self, version: str) -> None:
        """Hold later versions against this one from now on."""
        write_json(self._home / ANCHOR_FILE, {"version": version})

    def write_verdict(self, version: str, verdict: Verdict) -> None:
        """Keep what the gate decided beside the version; it is not part of its content."""
        write_json(self._folder / version / VERDICT_FILE, asdict(verdict))

    def verdict(self, version: str) -> Verdict | None:
        """What the gate decided on a version; None if it was never asked, or if that cannot be read."""
        try:
            stored = read_json(self._folder / version / VERDICT_FILE)
            if stored is None:
                return None
            compared = stored["comparison"]
            if compared is not None:
                questions = tuple((name, own, live) for name, own, live in compared.get("questions", ()))
                compared = Comparison(**compared | {"questions": questions})
            return Verdict(**stored | {"comparison": compared})
        except (CheckpointCorrupt, TypeError, KeyError, ValueError):
            return None

    def labels(self, version: str, place: int = 0) -> dict[int, Target]:
        """Every label that a head knew, trained on or measured with: example id -> target, by classes of *that* one.

        Args:
            place: of the head.
        """
        return self.labels_of_heads(version)[place]

    def labels_of_heads(self, version: str) -> list[dict[int, Target]]:
        """As `labels`, of each head."""
        return [stored["labels"] | stored["audit"] for stored in self._stored_labels(version)]

    def audit_labels(self, version: str, place: int = 0) -> dict[int, Target]:
        """The labels a head was measured with, as `labels`."""
        return self._stored_labels(version)[place]["audit"]

    def _stored_labels(self, version: str) -> list[dict[str, dict[int, Target]]]:
        """Of each head."""
        manifest = self._manifest(version)
        stored = json.loads(self._checked(version, "labels.json", manifest["files"]["labels.json"]))
        parts = [stored, *stored.get("others", ())]
        return [read_labels(HeadSpec.of(r), part) for r, part in zip(records_of(manifest), parts, strict=True)]

    def all(self) -> list[VersionInfo]:
        """All readable versions, newest first; a damaged one is logged and left out."""
        return list(self.newest_first())

    def newest_first(self) -> Iterator[VersionInfo]:
        """As `all`, each read when it is asked for: a busy day leaves thousands, of which one is wanted."""
        for _, ids in groupby(sorted(self._ids(), key=_generation, reverse=True), key=_generation):
            found = []
            for version in ids:
                try:
                    found.append(self.info(version))
                except VersionMissing:
                    continue  # pruned by another process since the listing
                except CheckpointCorrupt as error:
                    _log.warning("version left out of the list: %s", error)
            yield from sorted(found, key=lambda info: info.created_at, reverse=True)

    def live(self) -> VersionInfo | None:
        """The live version, or None before the first promotion."""
        version = self._pointer()["version"]
        return None if version is None else self.info(version)

    def previous(self) -> str | None:
        """Id of the version that `roll_back` would make live."""
        previous: str | None = self._pointer()["previous"]
        return previous

    def promote(self, version: str) -> VersionInfo:
        """Make a checked version live; one atomic rename. Promoting the live version changes nothing."""
        info = self.load(version).info
        with locked(self._home / ".live.lock"):
            pointer = self._pointer()
            if pointer["version"] != version:
                history = [*pointer["history"], pointer["version"]] if pointer["version"] else []
                self._point(version, history)
        return info

    def roll_back(self) -> VersionInfo:
        """Make the version that was live before the present one live again, and so on further back.

        Raises VersionMissing when there is nothing to go back to.
        """
        with locked(self._home / ".live.lock"):
            history = [version for version in self._pointer()["history"] if (self._folder / version).exists()]
            if not history:
                raise VersionMissing("before the live one", sorted(self._ids(), key=_generation))
            info = self.load(history[-1]).info
            self._point(history[-1], history[:-1])
        return info

    def prune(self, keep: int) -> list[str]:
        """Remove all but the newest `keep` versions, never the live or the previous one; returns the removed ids."""
        with locked(self._home / ".live.lock"):
            pointer = self._pointer()
            safe = {pointer["version"], pointer["previous"]}
            anchor = self.anchor()
            if anchor is not None:
                safe.add(anchor.id)
            safe |= {info.id for info in self.all()[: max(0, keep)]}
            removed = [version for version in self._ids() if version not in safe]
            for version in removed:
                # Renamed first: a reader finds a whole version or none.
                trash = self._folder / f".trash-{uuid.uuid4().hex}"
                (self._folder / version).rename(trash)
                shutil.rmtree(trash, ignore_errors=True)
            self._sweep()
        return removed

    def _ids(self) -> list[str]:
        if not self._folder.is_dir():
            return []
        return sorted(entry.name for entry in self._folder.iterdir() if not entry.name.startswith("."))

    def _manifest(self, version: str) -> dict[str, Any]:
        path = self._folder / version / "manifest.json"
        if not version or "/" in version or version.startswith(".") or not path.parent.is_dir():
            raise VersionMissing(version, sorted(self._ids(), key=_generation))
        try:
            manifest: dict[str, Any] = json.loads(path.read_bytes())
            found = f"g{manifest['generation']}-{_content_digest(manifest)}"
        except FileNotFoundError:
            raise CheckpointCorrupt(str(path), "a manifest", "no such file") from None
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointCorrupt(str(path), "a manifest in JSON", str(error)) from error
        if found != version:
            raise CheckpointCorrupt(str(path), version, found)
        return manifest

    def _checked(self, version: str, name: str, expected: str) -> bytes:
        path = self._folder / version / name
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise CheckpointCorrupt(str(path), expected, "no such file") from None
        if (found := _sha(data)) != expected:
            raise CheckpointCorrupt(str(path), expected, found)
        return data

    def _pointer(self) -> dict[str, Any]:
        stored = read_json(self._live) or {}
        history = [version for version in stored.get("history", []) if isinstance(version, str)]
        return {"version": stored.get("version"), "previous": history[-1] if history else None, "history": history}

    def _point(self, version: str, history: list[str]) -> None:
        history = history[-_HISTORY:]
        previous = history[-1] if history else None
        write_json(self._live, {"version": version, "previous": previous, "history": history})

    def _sweep(self) -> None:
        for entry in _hidden_folders(self._folder):
            if time.time() - entry.stat().st_mtime > _STALE_S:
                shutil.rmtree(entry, ignore_errors=True)


def _generation(version: str) -> int:
    """Generation in an id `g<generation>-<checksum>`; -1 for a folder that is no version."""
    number = version.partition("-")[0].removeprefix("g")
    return int(number) if number.isdecimal() else -1


@functools.cache
def code_version() -> str:
    """Release plus a digest of the sources of `training` and `uncertainty`: what made a version."""
    try:
        release = importlib.metadata.version("askfirst")
    except importlib.metadata.PackageNotFoundError:
        release = "0"
    root = Path(__file__).parent
    digest = hashlib.sha256()
    for package in (root, root.parent / "uncertainty"):
        for path in sorted(package.rglob("*.py")):
            digest.update(path.relative_to(root.parent).as_posix().encode() + b"\0" + path.read_bytes())
    return f"{release}+{digest.hexdigest()[:8]}"


def _libraries() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("numpy", "scipy", "torch", "torchvision", "onnxruntime", "openvino"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _content_digest(manifest: dict[str, Any]) -> str:
    content = {key: value for key, value in manifest.items() if key not in _NOT_IN_DIGEST}
    return _sha(canonical(content))[:_DIGEST_LENGTH]


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _hidden_folders(folder: Path) -> Iterator[Path]:
    if folder.is_dir():
        yield from (entry for entry in folder.iterdir() if entry.name.startswith((".draft-", ".trash-")))
