"""What the maintenance page says, and the names by which it is told from the application."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass

from ..errors import BalikError

MARKER = "X-Maintenance"
"""Response header of the page; its value is the page's :attr:`Page.revision`."""
BYPASS = "X-Maintenance-Bypass"
"""Request header with the secret: the application answers although the page is on."""
PREVIEW = "X-Maintenance-Preview"
"""Request header with the secret: the page answers although it is off, for this one request."""
COOKIE = "maintenance_bypass"
"""Cookie with the secret: the same as :data:`BYPASS`, for a browser."""


class PageIsOn(BalikError):
    """Visitors see the page where they should have the application."""


@dataclass(frozen=True)
class Page:
    """The answer that visitors get: HTML for people, JSON for programs that ask for it.

    :param retry_after: seconds, sent as ``Retry-After``.
    :param health: paths that the application goes on answering.
    """

    html: str
    message: str
    retry_after: int
    health: tuple[str, ...] = ()

    @property
    def json(self) -> str:
        answer = {"status": 503, "error": "maintenance", "message": self.message}
        return json.dumps({**answer, "retry_after": self.retry_after}, ensure_ascii=False) + "\n"

    @property
    def revision(self) -> str:
        """Ten hex digits of all that is served, so that a load balancer with an older page is noticed."""
        parts = (self.html, self.message, str(self.retry_after), *self.health)
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:10]


def check_plain(what: str, value: str, pattern: str, expected: str, secret: bool = False) -> str:
    """``value``, which may be written into a load balancer's configuration without quoting.

    :raises BalikError: it does not match ``pattern``; a ``secret`` is not repeated in the message.
    """
    if re.fullmatch(pattern, value):
        return value
    found = f"found {len(value)} characters" if secret else f"found {value!r}"
    raise BalikError(what, found, expected)


def check_bypass(secret: str) -> str:
    """A bypass that fits into a header, a cookie and a configuration file.

    :raises BalikError: it does not.
    """
    expected = "16 or more of A-Z a-z 0-9 _ -, such as `openssl rand -hex 16` prints"
    return check_plain("maintenance_page_bypass", secret, r"[A-Za-z0-9_-]{16,}", expected, secret=True)


def check_health(path: str) -> str:
    """A path that the page leaves alone.

    :raises BalikError: no path, or one with a query or with characters that need quoting.
    """
    return check_plain("maintenance_page_health", path, r"/[\w./~-]*", "a path such as /healthz")


def check_folder(path: str) -> str:
    """An absolute path.

    :raises BalikError: it is relative, or holds characters that need quoting.
    """
    return check_plain("maintenance_page_dir", path, r"/[\w./-]+", "an absolute path without blanks").rstrip("/")
