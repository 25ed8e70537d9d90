"""The status page as HTML. Pure: an `Overview` and the time in, a text out; no Flask, no clock, no store.

Everything shown may come from task data or from people, hence from enemies: Jinja escapes all of it, and
addresses become links only if they are plain http(s).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any
from urllib.parse import urlsplit

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from .ports import Overview, ProjectOverview

# Why a task stands where it stands, in words for annotators' managers.
REASONS = {
    "uncertain": "the model is unsure",
    "diverse": "unlike what is labelled so far",
    "explore": "drawn at random",
    "probe": "unlike anything else: is this junk?",
    "audit": "measures accuracy, never trained on",
    "pending": "open in a browser now",
    "unread": "picture not read yet",
}
_JOB_TONES = {
    "failed": "bad", "stopped": "bad", "lost": "bad", "started": "busy", "queued": "busy", "finished": "good",
}  # fmt: skip
_UNITS = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"))


def render(overview: Overview, *, now: float, base: str = "") -> str:
    """The page.

    Args:
        now: unix seconds, to say how long ago things happened.
        base: path under which the app is mounted, "" or "/prefix".
    """
    return (
        _environment()
        .get_template("status.html")
        .render(overview=overview, now=now, base=base, label_studio=safe_url(overview.label_studio_url))
    )


def render_problem(message: str, *, base: str = "") -> str:
    """The page when there is nothing to show; `message` says what to do."""
    return _environment().get_template("problem.html").render(message=message, base=base)


@dataclass(frozen=True)
class Progress:
    """How far a job is."""

    done: int
    total: int


def progress(text: object) -> Progress | None:
    """ "3/10" as numbers; None for what is not of that form."""
    done, slash, total = str(text).partition("/")
    if not slash or not _is_count(done) or not _is_count(total) or int(total) == 0:
        return None
    return Progress(min(int(done), int(total)), int(total))


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 16


def ago(seconds: object, now: float) -> str:
    """Time since `seconds` (unix) in one unit: "12 s ago"; "" for what is no time."""
    if not isinstance(seconds, (int, float)) or not math.isfinite(seconds) or seconds <= 0:
        return ""
    passed = now - seconds
    for unit_s, name in _UNITS:
        if passed >= unit_s:
            return f"{passed // unit_s:.0f} {name} ago"
    return "now"


def percent(share: float) -> str:
    """0.873 as "87 %"; never "100 %" below 1 nor "0 %" above 0, which would claim too much."""
    if not math.isfinite(share):
        return "?"
    rounded = round(share * 100)
    if rounded >= 100 and share < 1:
        return "> 99 %"
    if rounded <= 0 and share > 0:
        return "< 1 %"
    return f"{rounded} %"


def safe_url(url: str) -> str | None:
    """`url` without trailing slash if it may become a link, else None."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    return url.rstrip("/") if parts.scheme in ("http", "https") and parts.netloc else None


def labelled(project: ProjectOverview) -> Progress | None:
    """Tasks that have a label, of all tasks."""
    if project.tasks <= 0:
        return None
    return Progress(max(0, min(project.tasks, project.tasks - project.unlabelled)), project.tasks)


def bar_width(share: float) -> float:
    """Share of 1 as length on a bar of 100 units."""
    return round(100 * min(max(share, 0.0), 1.0), 1) if math.isfinite(share) else 0.0


def prose(text: object) -> Markup:
    """A sentence with its `commands` set as code; everything in it is escaped."""
    pieces = str(text).split("`")
    if len(pieces) % 2 == 0:  # a lonely backtick is a backtick
        pieces[-2:] = ["`".join(pieces[-2:])]
    return Markup("").join(
        Markup("<code>{}</code>").format(piece) if i % 2 else escape(piece) for i, piece in enumerate(pieces)
    )


def job_tone(state: object) -> str:
    """Class of a job's badge."""
    return _JOB_TONES.get(str(state), "")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("backend"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    helpers: dict[str, Any] = {
        "ago": ago, "progress": progress, "percent": percent, "labelled": labelled, "bar_width": bar_width,
        "job_tone": job_tone, "prose": prose, "reasons": REASONS,
    }  # fmt: skip
    environment.globals.update(helpers)
    return environment
