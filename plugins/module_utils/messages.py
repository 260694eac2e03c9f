"""Telling people: by mail and web hook, all at once, each with a limit.

A message that cannot be delivered never stops a rollback; it is said on the screen and in the record, with how
else the person can be reached. ``community.general.mail`` and ``ansible.builtin.uri`` would take a task of 0.4 s for
each person and stop the play at the first mail server that does not answer.
"""

from __future__ import annotations

import http.client
import json
import re
import smtplib
import ssl
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from email.message import EmailMessage
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, unquote, urlsplit

from .concurrently import Late, as_done
from .errors import BalikError

if TYPE_CHECKING:
    from .plan import Person, Plan

#: Seconds for one message, from looking up the server's name to its last word.
LIMIT = 5.0
#: What may become of a message without anything being wrong with this project.
_UNSENT = (OSError, smtplib.SMTPException, http.client.HTTPException, ValueError, BalikError, Late)

#: What a text may have filled in, by ``<name>``; ``asked`` also knows ``<loss>``.
NAMES = ("product", "release", "stable", "remedy", "reason", "run")
#: Where the visitors are at a run's end, by language and by where its maintenance page is.
VISITORS = {
    "en": {
        "on": "visitors see the maintenance page",
        "off": "visitors have the application; the maintenance page is off",
        "unknown": "it is not certain whether visitors see the maintenance page or the application; look there",
        "": "visitors have what they had before: the rollback did not touch the traffic",
    },
    "id": {
        "on": "pengguna melihat halaman maintenance",
        "off": "pengguna memakai aplikasi; halaman maintenance tidak tampil",
        "unknown": "belum pasti apakah pengguna melihat halaman maintenance atau aplikasi; silakan periksa",
        "": "pengguna tetap seperti sebelumnya: lalu lintas tidak disentuh",
    },
}
_NAME = re.compile(r"<(\w[\w -]*)>")
_SCHEMES = ("smtp", "smtps", "smtp+starttls")
_LABEL = r"\w([\w-]*\w)?"
_HOST = re.compile(rf"{_LABEL}(\.{_LABEL})*\.?|[0-9a-f.]*:[0-9a-f:.]+(%\w+)?")  # a name, or an IPv6 address


def names_for(moment: str) -> tuple[str, ...]:
    """What may be filled into the message of a moment."""
    return (*NAMES, "loss" if moment == "asked" else "visitors")


def names_in(text: str) -> Iterator[str]:
    """The names that a text wants filled in, known or not."""
    return (found[1] for found in _NAME.finditer(text))


def mail_server(address: str, where: str = "rollback_smtp") -> SplitResult:
    """The parts of ``host[:port]``, ``smtps://…`` or ``smtp+starttls://user:password@…``.

    :raises BalikError: it is none of these; what stands before an ``@`` is not shown.
    """
    try:
        server = urlsplit(address if "://" in address else f"smtp://{address}")
        plain = not (server.path.strip("/") or server.query or server.fragment)
        host = _HOST.fullmatch(server.hostname or "")
        right = plain and host is not None and server.port != 0 and server.scheme in _SCHEMES
    except ValueError:  # a port that is no number, or none of a server
        right = False
    if not right:
        expected = "host:port (a port from 1 to 65535), smtps://… or smtp+starttls://user:password@…"
        do = "In user and password, @ : / are %40 %3A %2F." if "@" in address else ""
        if address.count(":") > 1 and "[" not in address and not do:
            do = f"An IPv6 address stands in brackets: [{address.rpartition('//')[2]}]."
        raise BalikError(where, f"found {address.rsplit('@', maxsplit=1)[-1][:60]!r}", expected, do)
    return server


def tell(
    plan: Plan, moment: str, roles: Sequence[str] = (), facts: Mapping[str, str] | None = None
) -> list[tuple[str, dict]]:
    """Send the plan's message of a moment.

    :param moment: a key of ``rollback_messages``; nothing is sent where the plan has no message for it.
    :param roles: to whom, instead of the message's own ``to``.
    :param facts: what those of :data:`NAMES` in its text stand for that are not the plan's.
    :return: for each person a line for the screen and a body for the record.
    """
    message = plan.messages.get(moment)
    if not message:
        return []
    words = {"product": plan.product, "release": plan.release, "stable": plan.stable, **(facts or {})}
    # One line: what stands after the end of a line in a header would be a header of its own.
    subject = " ".join(_filled(message["subject"], words).split())[:200]
    text = _filled(message["says"], words)
    people = [plan.people[role] for role in roles or message["to"]]
    jobs: dict[str, tuple[Callable[[], None], float]] = {}
    for person in people:
        for way, address in person.reach.items():
            if way == "email":
                jobs[f"{person.role} {way}"] = (_mail(plan, address, subject, text), LIMIT)
            elif way == "webhook":
                body = {"product": plan.product, "to": person.role, "subject": subject, "text": text}
                jobs[f"{person.role} {way}"] = (_hook(address, body), LIMIT)
    results = dict(as_done(jobs))
    told = []
    for person in people:
        ways = {way: _became(results[key]) for way in person.reach if (key := f"{person.role} {way}") in results}
        told.append(_account(moment, person, subject, ways))
    return told


def _filled(text: str, words: Mapping[str, str]) -> str:
    filled = _NAME.sub(lambda found: str(words.get(found[1], found[0])), text)
    # A program's output may hold bytes that are no UTF-8, and no message could carry them.
    return filled.encode("utf-8", "replace").decode().replace("\0", "")


def _became(result: object) -> str:
    """What became of a message: ``sent``, or why not."""
    if isinstance(result, _UNSENT):
        return f"not sent: {result}"
    if isinstance(result, Exception):
        raise result
    return "sent"


def _account(moment: str, person: Person, subject: str, ways: dict[str, str]) -> tuple[str, dict[str, Any]]:
    missed = [f"{way} {result}" for way, result in ways.items() if result != "sent"]
    body = {"moment": moment, "role": person.role, "subject": subject, "ways": ways}
    if "sent" in ways.values() and not missed:
        return f"told {person.title} by {', '.join(ways)}", body
    call = f"; call {person.reach['phone']}" if "phone" in person.reach else ""
    return f"{person.title} was not told everywhere ({'; '.join(missed) or 'no mail or web hook'}){call}", body


def _mail(plan: Plan, address: str, subject: str, text: str) -> Callable[[], None]:
    def send() -> None:
        if not plan.smtp:
            raise ValueError("rollback_smtp is not set")
        mail = EmailMessage()
        mail["From"], mail["To"], mail["Subject"] = plan.mail_from, address, subject
        mail.set_content(text)
        server = mail_server(plan.smtp)
        where = (server.hostname or "localhost", server.port or 0)
        trusted = ssl.create_default_context()
        if server.scheme == "smtps":
            client: smtplib.SMTP = smtplib.SMTP_SSL(*where, timeout=LIMIT, context=trusted)
        else:
            client = smtplib.SMTP(*where, timeout=LIMIT)
        with client:
            if server.scheme == "smtp+starttls":
                client.starttls(context=trusted)
            if server.username:
                client.login(unquote(server.username), unquote(server.password or ""))
            client.send_message(mail)

    return send


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirected POST goes on as a GET without its body: it would be answered, and nobody told."""

    def redirect_request(self, *_args: Any) -> None:
        return None


def _hook(url: str, body: dict[str, str]) -> Callable[[], None]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def send() -> None:
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=LIMIT):
            pass

    return send
