"""Who may come in: HTTP basic auth on every route, and a shared secret that opens `/webhook` alone.

Label Studio sends basic auth with its own calls (health, setup, predict, START_TRAINING) but not with event
webhooks, to which only fixed headers can be added; hence the second key. Pure: header texts in, an exception
or nothing out. All comparisons take the same time whatever comes.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256

from .errors import ConfigError, Unauthorized
from .settings import Settings

SECRET_HEADER = "X-Ask-First-Secret"
CHALLENGE = 'Basic realm="Ask First", charset="UTF-8"'
_WEBHOOK_PATH = "/webhook"


@dataclass(frozen=True)
class Gate:
    """Digests of what is accepted. Empty `basic`: no basic auth; `secret` None: no webhook secret known."""

    basic: tuple[bytes, ...] = field(default=(), repr=False)
    secret: bytes | None = field(default=None, repr=False)

    @classmethod
    def from_settings(cls, settings: Settings, webhook_secret: str = "") -> Gate:
        """Gate for these settings; `webhook_secret` wins over the one in the settings.

        Raises:
            ConfigError: half of the credentials is set, which would leave the door open unnoticed.
        """
        user, password = settings.basic_auth_user, settings.basic_auth_pass.get_secret_value()
        secret = webhook_secret or settings.webhook_secret.get_secret_value()
        if bool(user) != bool(password):
            missing, present = ("PASS", "USER") if user else ("USER", "PASS")
            raise ConfigError(
                f"is empty although BASIC_AUTH_{present} is set; set both, or neither",
                setting=f"BASIC_AUTH_{missing}",
            )
        if ":" in user:
            raise ConfigError("may not hold a colon: basic auth could not be read", setting="BASIC_AUTH_USER")
        basic = _accepted(user, password) if user else ()
        return cls(basic, _digest(_header_bytes(secret)) if secret else None)

    def check(self, path: str, authorization: str | None, secret: str | None) -> None:
        """Let a request pass, or refuse it.

        Args:
            path: path of the URL, "/webhook".
            authorization: header Authorization as it came.
            secret: header X-Ask-First-Secret as it came.
        Raises:
            Unauthorized: the message says which key is wrong and never repeats what came.
        """
        if path == _WEBHOOK_PATH and secret is not None and self.secret is not None:
            # Wrong ones are refused even where no basic auth is asked for: the sender means another backend.
            if hmac.compare_digest(_digest(_header_bytes(secret)), self.secret):
                return
            raise Unauthorized(
                f"The header {SECRET_HEADER} does not match. `askfirst connect` sets it in Label Studio."
            )
        if self.basic and not self._basic_matches(authorization):
            raise Unauthorized()

    def _basic_matches(self, authorization: str | None) -> bool:
        came = _digest(_decode_basic(authorization))
        matches = [hmac.compare_digest(came, digest) for digest in self.basic]
        return any(matches)


def _accepted(user: str, password: str) -> tuple[bytes, ...]:
    """Digests of "user:password" in UTF-8, as browsers send it, and Latin-1, as Python's requests does."""
    pair = f"{user}:{password}"
    encodings = {pair.encode("utf-8")}
    with suppress(UnicodeEncodeError):
        encodings.add(pair.encode("latin-1"))
    return tuple(sorted(_digest(encoding) for encoding in encodings))


def _decode_basic(authorization: str | None) -> bytes:
    scheme, _, encoded = (authorization or "").partition(" ")
    if scheme.lower() != "basic":
        return b""
    try:
        return base64.b64decode(encoded.strip().encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        return b""


def _header_bytes(text: str) -> bytes:
    """Bytes of a header value; WSGI hands header bytes over as Latin-1."""
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        return text.encode("utf-8")


def _digest(data: bytes) -> bytes:
    # Digests have one length, so that comparing them does not tell the length of the secret.
    return sha256(data).digest()
