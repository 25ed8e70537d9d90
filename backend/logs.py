"""Logging of all our processes: one line per event on standard error, JSON or for a terminal; never a secret.

Masking happens twice. Values under telling keys ("token", "authorization", ...) are masked while they are
still structured; the finished line, tracebacks included, is searched for the secrets of the settings and for
what looks like credentials. So a library that logs headers, or an exception that quotes a payload, gives
nothing away.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TextIO

import structlog
from pydantic import SecretStr
from structlog.typing import EventDict, Processor, WrappedLogger

from .settings import Settings

Format = Literal["auto", "json", "console"]
MASK = "***"
# Chatty below WARNING: one line per request to Label Studio or per job, with full URLs.
_CHATTY = ("httpx", "httpcore", "werkzeug", "rq.worker", "rq.cron", "asyncio", "PIL")
_MIN_SECRET_CHARS = 6  # masking a shorter one would punch holes into ordinary words
_KEY = (
    r"(?:access_?|api_?|refresh_?|user_?|csrf_?|session_?)?(?:token|secret|key_id)|api_?key|authorization|password"
    r"|passwd|basic_auth_pass|cookie|x-ask-first-secret|webhook_secret"
)
_SECRET_KEY = re.compile(rf"(?:{_KEY})", re.IGNORECASE)
_PATTERNS = (
    # token=..., "token": "...", 'Authorization': 'Token ...', also with quotes escaped inside JSON
    re.compile(
        rf"""(?P<keep>(?:{_KEY})(?:\\*["'])?\s*[:=]\s*(?:\\*["'])?(?:(?:basic|bearer|token)\s+)?)"""
        r"""[^\s"'\\,;&})\]]+""",
        re.IGNORECASE,
    ),
    re.compile(r"(?P<keep>\b(?:basic|bearer|token)\s+)[\w.+/=~-]{8,}", re.IGNORECASE),  # a bare header value
    re.compile(r"(?P<keep>\b)eyJ[\w-]{4,}\.[\w-]{4,}(?:\.[\w-]*)?"),  # JSON web token, such as a PAT
    re.compile(r"(?P<keep>\b)[0-9a-f]{40}\b"),  # legacy token of Label Studio
    re.compile(r"(?P<keep>://[^/\s:@'\"]*:)[^@\s/'\"]+(?=@)"),  # redis://user:password@host
)


def configure(
    level: str = "INFO", *, secrets: Iterable[str] = (), fmt: Format = "auto", stream: TextIO | None = None
) -> None:
    """Send everything that is logged in this process, by libraries too, through one masked handler.

    Args:
        level: least level shown.
        secrets: texts that may not appear anywhere; see `secrets_of`.
        fmt: "auto" is "console" on a terminal, "json" elsewhere.
        stream: default standard error.
    """
    stream = stream or sys.stderr
    console = fmt == "console" or (fmt == "auto" and stream.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.stdlib.PositionalArgumentsFormatter(),
        _mask_keys,
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_MaskingFormatter(Masker(secrets), _renderers(console, stream), shared))
    root = logging.getLogger()
    for old in list(root.handlers):
        if isinstance(old.formatter, _MaskingFormatter):  # ours, from an earlier call; pytest's stay
            root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))


def adopt(name: str) -> None:
    """Take the handlers of a library's logger away, so that its lines pass through ours."""
    logger = logging.getLogger(name)
    logger.handlers.clear()
    logger.propagate = True


def secrets_of(settings: Settings) -> list[str]:
    """Every secret value of the settings, for `configure`."""
    values = (getattr(settings, name) for name in type(settings).model_fields)
    secrets = (value.get_secret_value() for value in values if isinstance(value, SecretStr))
    return [secret for secret in secrets if secret]


class Masker:
    """Replaces secrets in finished text."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        # The longest first: a secret may hold another one.
        known = sorted({s for s in secrets if len(s) >= _MIN_SECRET_CHARS}, key=len, reverse=True)
        self._known = re.compile("|".join(re.escape(s) for s in known)) if known else None

    def __call__(self, text: str) -> str:
        if self._known:
            text = self._known.sub(MASK, text)
        for pattern in _PATTERNS:
            text = pattern.sub(rf"\g<keep>{MASK}", text)
        return text


class _MaskingFormatter(structlog.stdlib.ProcessorFormatter):
    def __init__(self, mask: Masker, renderers: list[Processor], foreign: list[Processor]) -> None:
        super().__init__(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers],
            foreign_pre_chain=foreign,
        )
        self._mask = mask

    def format(self, record: logging.LogRecord) -> str:
        return self._mask(super().format(record))


def _renderers(console: bool, stream: TextIO) -> list[Processor]:
    if console:
        # The prettier tracebacks show local variables, and those hold payloads.
        return [
            structlog.dev.ConsoleRenderer(colors=stream.isatty(), exception_formatter=structlog.dev.plain_traceback)
        ]
    return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]


def _mask_keys(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    return {key: _masked(key, value) for key, value in event.items()}


def _masked(key: object, value: Any, depth: int = 0) -> Any:
    if isinstance(key, str) and _SECRET_KEY.fullmatch(key) and value not in (None, ""):
        return MASK
    if depth < 8:  # what is nested deeper is caught in the finished line
        if isinstance(value, Mapping):
            return {k: _masked(k, v, depth + 1) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [_masked(None, v, depth + 1) for v in value]
    return value
