"""What a demo leaves behind: a block for a person, a JSON file for scripts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .bots import BotError, Record
from .files import write_atomic
from .stats import CurvePoint


@dataclass
class Outcome:
    """Addresses, credentials, times; with bots also what they were served and what the model learnt."""

    label_studio_url: str
    backend_url: str
    project_id: int
    username: str
    password: str
    api_key: str
    phases: Mapping[str, float]  # name -> seconds
    settings: Path  # shell file with the environment of the backend
    record: Record | None = None
    curve: tuple[CurvePoint, ...] = ()
    troubles: tuple[BotError, ...] = ()  # children that failed by themselves
    restarts: Mapping[str, int] = field(default_factory=dict)

    @property
    def errors(self) -> list[BotError]:
        """Everything that went wrong."""
        return [*(self.record.in_time_order()[1] if self.record else ()), *self.troubles]

    def as_json(self) -> dict[str, Any]:
        """The document of `--json`; the keys about bots are there only when there were any."""
        body: dict[str, Any] = {
            "label_studio_url": self.label_studio_url,
            "backend_url": self.backend_url,
            "project_id": self.project_id,
            "username": self.username,
            "password": self.password,
            "api_key": self.api_key,
            "settings": str(self.settings),
            "phases": dict(self.phases),
            "restarts": dict(self.restarts),
            "errors": [asdict(error) for error in self.errors],
        }
        if self.record is not None:
            served, _ = self.record.in_time_order()
            body |= {
                "served": [
                    {"bot": s.bot, "task": s.task, "score": s.score, "version": s.version, "label": s.label}
                    for s in served
                ],
                "curve": [asdict(point) for point in self.curve],
                "waits": {"next_task": self.record.next_task.summary(), "submit": self.record.submit.summary()},
            }
        return body

    def write(self, path: Path) -> None:
        """Replace the file in one step; readable by its owner alone, since passwords are in it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(self.as_json(), indent=1).encode(), mode=0o600)


def announcement(outcome: Outcome, images: int) -> str:
    """The block that tells a person where to go and what to press."""
    return "\n".join(
        [
            "",
            f"  Open      {outcome.label_studio_url}/projects/{outcome.project_id}/data",
            f"  Log in    {outcome.username}   password  {outcome.password}",
            f"  Press     Label All Tasks: of {images:,} images, the one the model learns most from comes first",
            f"  Watch     {outcome.backend_url}/status",
            f"  Ask       . {outcome.settings}; .venv/bin/askfirst doctor --project {outcome.project_id}",
            "",
        ]
    )
