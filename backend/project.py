"""One project as a worker sees it: its settings in Label Studio, its list of tasks, its model, its folder.

A worker keeps one Workshop for its life, and the Workshop keeps a ProjectDesk per project: embeddings and heads stay
warm in memory between jobs. Whatever is cached says how it becomes stale.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections import OrderedDict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from training import api as training

from .control_options import ControlOptions, parse_extra_params
from .images import ImageFetcher
from .labeling_config import LabelingConfig, parse
from .ls_client import LabelStudioClient, Project
from .settings import Settings
from .state import State

PROJECTS_IN_MEMORY = 4


@dataclass(frozen=True)
class Tasks:
    """The project's tasks: ids rise, `uris[i]` is the image of `ids[i]` ("" when the task has none)."""

    image_key: str
    ids: tuple[int, ...]
    uris: tuple[str, ...]
    inputs: tuple[str, ...] = ()  # data fields that questions look at beside the picture
    facts: tuple[tuple[Any, ...], ...] = ()  # of each of them, one value for each task; None: missing

    @property
    def last_id(self) -> int:
        return self.ids[-1] if self.ids else 0

    @property
    def empty_inputs(self) -> list[str]:
        """Names of data fields that no task has a value for: misspelt, likely."""
        columns = zip(self.inputs, self.facts, strict=True)
        return [name for name, column in columns if self.ids and all(value is None for value in column)]


NO_TASKS = Tasks("", (), ())


class ProjectFiles:
    """Small records in the project's folder that must survive an emptied Redis. Written whole, then renamed."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self._tasks: tuple[tuple[int, int], Tasks] | None = None

    def _write(self, name: str, value: Any) -> None:
        self.home.mkdir(parents=True, exist_ok=True)
        part = self.home / f".{name}.{uuid.uuid4().hex}"
        part.write_text(json.dumps(value), encoding="utf-8")
        os.replace(part, self.home / name)

    def _read(self, name: str) -> Any:
        try:
            return json.loads((self.home / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None

    def write_tasks(self, tasks: Tasks) -> None:
        self._write("tasks.json", asdict(tasks))

    def tasks(self) -> Tasks:
        """The list as last written; parsed again only when the file is another one."""
        try:
            stat = (self.home / "tasks.json").stat()
        except FileNotFoundError:
            return NO_TASKS
        stamp = (stat.st_ino, stat.st_mtime_ns)
        if self._tasks is None or self._tasks[0] != stamp:
            raw = self._read("tasks.json")
            facts = tuple(map(tuple, raw.get("facts", ())))
            inputs = tuple(raw.get("inputs", ()))
            self._tasks = (stamp, Tasks(raw["image_key"], tuple(raw["ids"]), tuple(raw["uris"]), inputs, facts))
        return self._tasks[1]

    def write_connection(self, connection: dict[str, Any] | None) -> None:
        """Remember on disk that the project is connected ({"id", "url"}); None: it is not any more."""
        if connection is None:
            (self.home / "connection.json").unlink(missing_ok=True)
        else:
            self._write("connection.json", connection)

    def pin(self) -> dict[str, Any] | None:
        """A choice made by a person that the loop respects: {"kind": "version in Label Studio" | "model version",
        "version": ..., "since": unix seconds}; None when the loop is free."""
        found = self._read("pin.json")
        return found if isinstance(found, dict) else None

    def write_pin(self, pin: dict[str, Any] | None) -> None:
        if pin is None:
            (self.home / "pin.json").unlink(missing_ok=True)
        else:
            self._write("pin.json", pin)


class ProjectDesk:
    """Everything about one project, for the length of a process."""

    def __init__(self, workshop: Workshop, project: Project) -> None:
        self.workshop = workshop
        self.project = project
        self.home = workshop.settings.model_dir / "projects" / project.key
        self.files = ProjectFiles(self.home)
        self.model = training.ProjectModel(self.home, model_spec(workshop.settings))
        self._config: tuple[str, LabelingConfig] | None = None

    @property
    def id(self) -> int:
        return self.project.id

    @property
    def config(self) -> LabelingConfig:
        """The labelling config, parsed once per text. Raises: UnsupportedLabelConfig."""
        if self._config is None or self._config[0] != self.project.label_config:
            self._config = (self.project.label_config, parse(self.project.label_config))
        return self._config[1]

    @property
    def options(self) -> ControlOptions:
        """Options of the project: attributes on the control, then the extra params typed into Label Studio."""
        extra, _ = parse_extra_params(self.workshop.state.get(self.id, "extra_params"))
        return self.config.options.or_else(extra)

    @property
    def audit(self) -> training.AuditStream:
        """Which tasks measure accuracy and are never trained on: decided by hash, before any score, for ever."""
        return training.AuditStream(share=self.workshop.settings.audit_share, salt=self.project.created_at)


class Workshop:
    """What a worker process has at hand: settings, Label Studio, shared state, the projects it worked on."""

    def __init__(self, settings: Settings, state: State, ls: LabelStudioClient) -> None:
        self.settings = settings
        self.state = state
        self.ls = ls
        self.fetcher = ImageFetcher(
            label_studio_url=settings.label_studio_url,
            ls_auth=ls.auth_headers,
            cache_dir=settings.model_dir / "cache" / "images",
            cache_bytes=settings.image_cache_bytes,
            max_bytes=settings.image_max_bytes,
            timeout_s=settings.image_timeout_s,
            document_root=settings.local_files_document_root,
            media_dir=settings.label_studio_media_dir,
            verify_ssl=settings.verify_ssl,
        )
        self._desks: OrderedDict[str, ProjectDesk] = OrderedDict()

    def close(self) -> None:
        """Close all connections."""
        self.fetcher.close()
        self.ls.close()
        self.state.close()

    def desk(self, project_id: int, *, fresh: bool = False) -> ProjectDesk:
        """The project's desk; settings are read from Label Studio when `fresh` or not cached in the shared state.

        Raises:
            LabelStudioUnavailable, LabelStudioRejected (404: the project is gone)
        """
        cached = None if fresh else self.state.get(project_id, "project")
        if cached is None:
            project = self.ls.project(project_id)
            self.remember(project)
        else:
            project = Project(**cached)
        desk = self._desks.get(project.key)
        if desk is None:
            desk = self._desks[project.key] = ProjectDesk(self, project)
            while len(self._desks) > PROJECTS_IN_MEMORY:
                self._desks.popitem(last=False)
        self._desks.move_to_end(project.key)
        desk.project = project
        return desk

    def is_quiet(self, project_id: int) -> bool:
        """Whether nobody has labelled for a while: time for work that makes Label Studio slow."""
        return time.time() - self.state.last_annotation(project_id) > self.settings.quiet_s

    def remember(self, project: Project) -> None:
        """Cache the project's settings for all processes."""
        self.state.put(project.id, "project", asdict(project))


def connected_projects(settings: Settings) -> list[dict[str, Any]]:
    """Connections remembered on disk ({"id", "url"}): what an emptied Redis is filled from."""
    found = []
    for path in sorted((settings.model_dir / "projects").glob("*/connection.json")):
        try:
            found.append(dict(json.loads(path.read_text(encoding="utf-8"))))
        except (OSError, ValueError):
            continue  # half written by a dying machine: connecting again writes it anew
    return found


def model_spec(settings: Settings) -> training.ModelSpec:
    """Which representation the settings ask for."""
    return training.ModelSpec(
        backbone=settings.backbone,
        weights=settings.weights or None,
        mean=settings.weights_mean,
        std=settings.weights_std,
        input_size=settings.input_size or None,
        engines_dir=settings.model_dir / "engines",
        seed=settings.seed,
    )
