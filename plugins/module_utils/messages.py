"""Telling people: by mail and web hook, all at once, each with a limit.

A message that cannot be delivered never stops a rollback; it is said on the screen and in the record, with how
else the person can be reached. ``community.general.mail`` and ``ansible.builtin.uri`` would take a task of 0.4 s for
each person and stop the play at the first mail server that does not answer.
"""

from __future__ import annotations

import json
import smtplib
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from email.message import EmailMessage
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from .plan import Person, Plan

LIMIT = 5.0


def tell(
    plan: Plan, moment: str, roles: Sequence[str] = (), facts: Mapping[str, str] | None = None
) -> list[tuple[str, dict]]:
    """Send the plan's message of a moment.

    :param moment: a key of ``rollback_messages``; nothing is sent where the plan has no message for it.
    :param roles: to whom, instead of the message's own ``to``.
    :param facts: what ``<product>``, ``<release>``, ``<remedy>``, ``<reason>``, ``<run>`` in its text stand for.
    :return: for each person a line for the screen and a body for the record.
    """
    message = plan.messages.get(moment)
    if not message:
        return []
    words = {"product": plan.product, "release": plan.release, "stable": plan.stable, **(facts or {})}
    subject, text = (_filled(message[key], words) for key in ("subject", "says"))
    people = [plan.people[role] for role in roles or message["to"]]
    with ThreadPoolExecutor(max_workers=max(1, len(people))) as pool:
        sent = pool.map(lambda person: _send(plan, person, subject, text), people)
        return [_account(moment, person, subject, ways) for person, ways in zip(people, sent)]


def _filled(text: str, words: Mapping[str, str]) -> str:
    for name, word in words.items():
        text = text.replace(f"<{name}>", str(word))
    return text


def _send(plan: Plan, person: Person, subject: str, text: str) -> dict[str, str]:
    """What became of each way to reach a person: ``sent``, or why not."""
    ways = {}
    for way, address in person.reach.items():
        try:
            if way == "email":
                _mail(plan.smtp, plan.mail_from, address, subject, text)
            elif way == "webhook":
                _hook(address, {"product": plan.product, "to": person.role, "subject": subject, "text": text})
            else:
                continue
            ways[way] = "sent"
        except (OSError, smtplib.SMTPException, ValueError) as error:
            ways[way] = f"not sent: {error}"
    return ways


def _account(moment: str, person: Person, subject: str, ways: dict[str, str]) -> tuple[str, dict[str, Any]]:
    missed = [f"{way} {result}" for way, result in ways.items() if result != "sent"]
    body = {"moment": moment, "role": person.role, "subject": subject, "ways": ways}
    if "sent" in ways.values() and not missed:
        return f"told {person.title} by {', '.join(ways)}", body
    call = f"; call {person.reach['phone']}" if "phone" in person.reach else ""
    return f"{person.title} was not told everywhere ({'; '.join(missed) or 'no mail or web hook'}){call}", body


def _mail(smtp: str, sender: str, address: str, subject: str, text: str) -> None:
    if not smtp:
        raise ValueError("rollback_smtp is not set")
    server = urlsplit(smtp if "://" in smtp else f"smtp://{smtp}")
    mail = EmailMessage()
    mail["From"], mail["To"], mail["Subject"] = sender, address, subject
    mail.set_content(text)
    client = smtplib.SMTP_SSL if server.scheme == "smtps" else smtplib.SMTP
    with client(server.hostname or "localhost", server.port or 0, timeout=LIMIT) as connection:
        if server.scheme == "smtp+starttls":
            connection.starttls()
        if server.username:
            connection.login(server.username, server.password or "")
        connection.send_message(mail)


def _hook(url: str, body: dict[str, str]) -> None:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=LIMIT):
        pass
