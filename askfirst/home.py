"""The demo's folder: what is where, and what must be remembered between two starts."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from .errors import DataDirProblem
from .files import write_atomic

USERNAME = "demo@example.com"


@dataclass(frozen=True)
class Memory:
    """Credentials and projects; kept in demo.json, readable by its owner alone."""

    username: str
    password: str
    bot_password: str
    api_key: str = ""  # personal access token; Label Studio shows it once
    projects: dict[str, int] = field(default_factory=dict)  # "<images>#<control>" -> project id

    @classmethod
    def fresh(cls) -> Memory:
        return cls(USERNAME, _readable_password(), secrets.token_urlsafe(18))

    def with_project(self, key: str, project_id: int) -> Memory:
        return replace(self, projects={**self.projects, key: project_id})


def _readable_password() -> str:
    """59 random bits in characters that nobody mixes up, so that it can be typed."""
    letters = "abcdefghjkmnpqrstuvwxyz23456789"
    return "-".join("".join(secrets.choice(letters) for _ in range(4)) for _ in range(3))


@dataclass(frozen=True)
class Home:
    """Paths inside the data folder."""

    root: Path  # absolute

    @property
    def label_studio(self) -> Path:
        """Label Studio's data: its data base and uploads."""
        return self.root / "label-studio"

    @property
    def media(self) -> Path:
        return self.label_studio / "media"

    @property
    def files(self) -> Path:
        """Document root of Label Studio's local files: one entry per folder of images."""
        return self.root / "files"

    @property
    def models(self) -> Path:
        """MODEL_DIR of the backend."""
        return self.root / "models"

    @property
    def redis(self) -> Path:
        return self.root / "redis"

    def log(self, name: str) -> Path:
        return self.root / "logs" / f"{name}.log"

    def prepare(self) -> None:
        """Make the folders; the root is readable by its owner alone, since tokens are in it."""
        self.root.mkdir(parents=True, exist_ok=True)
        for folder in (self.label_studio, self.files, self.models, self.redis, self.root / "logs"):
            folder.mkdir(exist_ok=True, mode=0o700)

    # ------------------------------------------------------------------ memory
    @property
    def _memory(self) -> Path:
        return self.root / "demo.json"

    def recall(self) -> Memory:
        """What the start before left; a fresh memory, already stored, at the first start.

        Raises: DataDirProblem when Label Studio has data but its password is lost.
        """
        try:
            return Memory(**json.loads(self._memory.read_text()))
        except FileNotFoundError:
            if any(self.label_studio.glob("*.sqlite3")):
                raise DataDirProblem(
                    f"{self._memory} is missing, and with it the password of the Label Studio in {self.root}. "
                    "Put it back, or start with another --data-dir DIR; nothing here was changed."
                ) from None
        except (ValueError, TypeError) as error:
            raise DataDirProblem(
                f"{self._memory} is damaged ({error}). Put a good copy back, or start with another "
                "--data-dir DIR; nothing here was changed."
            ) from None
        memory = Memory.fresh()
        self.remember(memory)
        return memory

    def remember(self, memory: Memory) -> None:
        write_atomic(self._memory, json.dumps(asdict(memory), indent=1).encode(), mode=0o600)

    @property
    def backend_env(self) -> Path:
        """Shell file with the settings of the running backend, for `askfirst doctor` and its like."""
        return self.root / "backend.env"

    def write_backend_env(self, settings: Mapping[str, str]) -> None:
        lines = [f"export {name}={shlex.quote(value)}" for name, value in sorted(settings.items())]
        write_atomic(self.backend_env, ("\n".join(lines) + "\n").encode(), mode=0o600)

    # ------------------------------------------------------------------ images
    def link(self, folder: Path) -> str:
        """Name under `files` through which Label Studio reaches a folder of images; made if it is not there.

        A link, not a copy: the pictures stay where they are, and Label Studio sees nothing beside them.
        """
        target = folder.resolve()
        if target.is_relative_to(self.files.resolve()):
            return target.relative_to(self.files.resolve()).as_posix()
        slug = re.sub(r"[^A-Za-z0-9]+", "-", target.name).strip("-") or "images"
        name = f"{slug}-{hashlib.sha256(str(target).encode()).hexdigest()[:8]}"
        link = self.files / name
        if not link.is_symlink():
            link.symlink_to(target, target_is_directory=True)
        return name
