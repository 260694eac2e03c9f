"""Messages to people, sent to real servers on loopback, and to such as hang, lie or are not there."""

from __future__ import annotations

import dataclasses
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from ansible_collections.balik.rollback.plugins.module_utils.messages import tell
from ansible_collections.balik.rollback.plugins.module_utils.plan import Person, Plan

from tests.servers.mail import mail_server
from tests.servers.webhook import webhook
from tests.unit.module_utils.test_plan import read

# The test's mail server asks for a password without TLS, and warns of itself.
pytestmark = pytest.mark.filterwarnings("ignore:Requiring AUTH:UserWarning")
MODULE = "ansible_collections.balik.rollback.plugins.module_utils.messages"


def plan(smtp: str = "", subject: str = "Rollback <product> <release>", **reach: dict[str, str]) -> Plan:
    """A plan whose message ``asked`` goes to these people, each with ways to reach them."""
    people = {role: Person(role, role.capitalize(), "", (), ways, None, 600.0) for role, ways in reach.items()}
    message = {"to": tuple(people), "subject": subject, "says": "Alasan: <reason> — 委任状\nCara: <remedy>"}
    return dataclasses.replace(read(), smtp=smtp, people=people, messages={"asked": message})


def send(sent_by: Plan, **facts: str) -> tuple[list[str], list[dict[str, Any]]]:
    told = tell(sent_by, "asked", facts={"reason": "error rate 12 %", "remedy": "database", **facts})
    return [line for line, _body in told], [body for _line, body in told]


@contextmanager
def talker(greeting: bytes, every: float | None = None) -> Iterator[int]:
    """A port where somebody says this to whoever connects, over and over, and never hangs up."""
    stop = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)

        def serve() -> None:
            open_ones: list[socket.socket] = []
            while not stop.is_set():
                try:
                    connection, _address = server.accept()
                    connection.sendall(greeting)
                    open_ones.append(connection)
                except TimeoutError:
                    pass
                if every is not None:
                    for connection in open_ones:
                        try:
                            connection.sendall(b"x")
                        except OSError:
                            open_ones.remove(connection)
            for connection in open_ones:
                connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            stop.set()
            thread.join(10)


def test_a_mail_and_a_hook_say_what_the_plan_says() -> None:
    with mail_server() as mail, webhook() as hook:
        lines, bodies = send(plan(mail.address, lead={"email": "lead@court.example"}, chat={"webhook": hook.url}))
    assert lines == ["told Lead by email", "told Chat by webhook"]
    assert bodies[0] == {
        "moment": "asked",
        "role": "lead",
        "subject": "Rollback court-files 2.0.0",
        "ways": {"email": "sent"},
    }
    (message,) = mail.messages
    assert (message["To"], message["From"]) == ("lead@court.example", "rollback@court.example")
    assert message["Subject"] == "Rollback court-files 2.0.0"
    assert message.get_content().split("\r\n") == ["Alasan: error rate 12 % — 委任状", "Cara: database", ""]
    assert hook.bodies == [
        {
            "product": "court-files",
            "to": "chat",
            "subject": "Rollback court-files 2.0.0",
            "text": "Alasan: error rate 12 % — 委任状\nCara: database",
        }
    ]


def test_roles_can_be_named_instead_of_the_messages_own() -> None:
    with webhook() as hook:
        sent_by = plan(lead={"webhook": hook.url}, manager={"webhook": hook.url})
        told = tell(sent_by, "asked", ["manager"])
    assert [body["role"] for _line, body in told] == ["manager"]
    assert [body["to"] for body in hook.bodies] == ["manager"]


def test_no_message_for_a_moment_sends_nothing() -> None:
    assert tell(plan(lead={"phone": "+62 812 0000"}), "rolled-back") == []


@pytest.mark.parametrize("reason", ["line\nBcc: all@court.example", "a\r\n\r\nbody", "tab\tand\0nul", "x" * 2000])
def test_a_reason_with_line_ends_neither_forges_a_header_nor_stops_the_mail(reason: str) -> None:
    with mail_server() as mail:
        lines, _bodies = send(plan(mail.address, "Go? <reason>", lead={"email": "lead@court.example"}), reason=reason)
    assert lines == ["told Lead by email"]
    (message,) = mail.messages
    assert message["Bcc"] is None
    assert message["Subject"].startswith("Go? ")
    assert "Alasan" in message.get_content()


def test_a_reason_is_not_read_for_places_to_fill() -> None:
    with webhook() as hook:
        send(plan(lead={"webhook": hook.url}), reason="<remedy> failed <twice>")
    assert hook.bodies[0]["text"].startswith("Alasan: <remedy> failed <twice>")


def test_half_a_character_in_a_reason_does_not_stop_a_message() -> None:
    with mail_server() as mail, webhook() as hook:
        sent_by = plan(mail.address, lead={"email": "lead@court.example", "webhook": hook.url})
        lines, _bodies = send(sent_by, reason="caf\udce9")
    assert lines == ["told Lead by email, webhook"]
    assert "caf?" in mail.messages[0].get_content()


def test_a_server_that_asks_for_a_password_gets_it_and_no_message_shows_it() -> None:
    with mail_server("geheim") as mail:
        lines, _bodies = send(plan(f"smtp://rina:geheim@{mail.address}", lead={"email": "lead@court.example"}))
        assert lines == ["told Lead by email"]
        wrong, bodies = send(plan(f"smtp://rina:gehe1m@{mail.address}", lead={"email": "lead@court.example"}))
    assert mail.logins[0] == ("rina", "geheim")
    assert "was not told everywhere (email not sent: (535" in wrong[0]
    assert "gehe1m" not in f"{wrong} {bodies}"


def test_a_password_with_characters_of_a_url_is_written_as_in_any_url() -> None:
    with mail_server("p@ss:w/rd") as mail:
        lines, _ = send(plan(f"smtp://rina:p%40ss%3Aw%2Frd@{mail.address}", lead={"email": "lead@court.example"}))
    assert lines == ["told Lead by email"]


@pytest.mark.parametrize(
    ("smtp", "why"),
    [
        ("", "rollback_smtp is not set"),
        ("127.0.0.1:1", "Connection refused"),
        ("127.0.0.1:many", "a port from 1 to 65535"),
        ("no-such-host.invalid:25", "not known|resolution|No address"),
    ],
)
def test_a_mail_that_cannot_be_sent_is_said_with_how_else_to_reach_them(smtp: str, why: str) -> None:
    lines, bodies = send(plan(smtp, lead={"email": "lead@court.example", "phone": "+62 812 0000"}))
    assert lines[0].startswith("Lead was not told everywhere (email not sent: ")
    assert lines[0].endswith("; call +62 812 0000")
    assert re.search(why, bodies[0]["ways"]["email"]), bodies


def test_who_has_a_phone_only_is_to_be_called() -> None:
    lines, bodies = send(plan(lead={"phone": "+62 812 0000"}))
    assert lines == ["Lead was not told everywhere (no mail or web hook); call +62 812 0000"]
    assert bodies[0]["ways"] == {}


def test_one_way_that_works_is_said_beside_one_that_does_not() -> None:
    with webhook(status=500) as broken, mail_server() as mail:
        lines, bodies = send(plan(mail.address, lead={"email": "lead@court.example", "webhook": broken.url}))
    assert bodies[0]["ways"] == {"email": "sent", "webhook": "not sent: HTTP Error 500: Internal Server Error"}
    assert lines == ["Lead was not told everywhere (webhook not sent: HTTP Error 500: Internal Server Error)"]


def test_a_web_hook_that_leads_elsewhere_was_told_nothing() -> None:
    with webhook(status=302) as moved:
        lines, bodies = send(plan(lead={"webhook": moved.url}))
    assert bodies[0]["ways"] == {"webhook": "not sent: HTTP Error 302: Found"}
    assert lines == ["Lead was not told everywhere (webhook not sent: HTTP Error 302: Found)"]


@pytest.mark.parametrize("greeting", [b"SSH-2.0-OpenSSH_9.2\r\n", b"\x00\xff\x00\r\n", b"HTTP/9.9 what\r\n\r\n"])
def test_a_port_where_somebody_else_answers_does_not_stop_the_rollback(greeting: bytes) -> None:
    with talker(greeting) as port:
        lines, _bodies = send(
            plan(f"127.0.0.1:{port}", lead={"email": "lead@court.example", "webhook": f"http://127.0.0.1:{port}/"})
        )
    assert "email not sent" in lines[0]
    assert "webhook not sent" in lines[0]


@pytest.mark.parametrize("every", [None, 0.1], ids=["says nothing", "never comes to an end"])
def test_a_server_that_hangs_is_left_at_the_limit(every: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{MODULE}.LIMIT", 3.0)
    with talker(b"", every) as port, webhook() as hook:
        began = time.monotonic()
        lines, bodies = send(
            plan(
                f"127.0.0.1:{port}",
                lead={"email": "lead@court.example"},
                chat={"webhook": f"http://127.0.0.1:{port}/"},
                qa={"webhook": hook.url},
            )
        )
        took = time.monotonic() - began
    assert took < 12, "all at once, and none for longer than the limit"
    assert lines[2] == "told Qa by webhook"
    assert "3 s" in bodies[0]["ways"]["email"] or "timed out" in bodies[0]["ways"]["email"]
    assert "3 s" in bodies[1]["ways"]["webhook"] or "timed out" in bodies[1]["ways"]["webhook"]


def test_a_server_whose_certificate_nobody_knows_gets_no_password() -> None:
    """Proved at the handshake: nothing of the login is said before the certificate is known to be right."""
    with talker(b"220 hello\r\n") as port:
        lines, _bodies = send(plan(f"smtps://rina:geheim@127.0.0.1:{port}", lead={"email": "lead@court.example"}))
    assert "email not sent" in lines[0]
    assert "SSL" in lines[0]
