"""A mail server on loopback that keeps what it gets.

``with mail_server() as mail: ...; mail.messages[0]["Subject"]``
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, Envelope, Session

from tests.servers.loopback import free_port


@dataclass
class Mail:
    """``address`` is ``127.0.0.1:port``; ``messages`` what came, in order; ``logins`` the (user, password) pairs."""

    address: str = ""
    messages: list[EmailMessage] = field(default_factory=list)
    logins: list[tuple[str, str]] = field(default_factory=list)


class _Keep:
    def __init__(self, mail: Mail) -> None:
        self.mail = mail

    async def handle_DATA(self, _server: Any, _session: Session, envelope: Envelope) -> str:
        content = envelope.original_content or b""
        self.mail.messages.append(message_from_bytes(content, EmailMessage, policy=policy.default))
        return "250 kept"


@contextmanager
def mail_server(password: str = "") -> Iterator[Mail]:
    """A running server; with a ``password``, one that asks for it."""
    mail = Mail()

    def log_in(_server: Any, _session: Any, _envelope: Any, _how: str, given: Any) -> AuthResult:
        mail.logins.append((given.login.decode(), given.password.decode()))
        return AuthResult(success=given.password.decode() == password, handled=False)

    port = free_port()
    asking: dict[str, Any] = (
        {"authenticator": log_in, "auth_required": True, "auth_require_tls": False} if password else {}
    )
    controller = Controller(_Keep(mail), hostname="127.0.0.1", port=port, **asking)
    controller.start()
    try:
        mail.address = f"127.0.0.1:{port}"
        yield mail
    finally:
        controller.stop()
