"""Smoke checks against real servers: HTTP, PostgreSQL, Redis, TCP, commands, and an AI gateway's API."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.balik.rollback.plugins.module_utils.errors import BalikError
from ansible_collections.balik.rollback.plugins.module_utils.smoke import (
    Outcome,
    SmokeFailed,
    check_checks,
    run_checks,
    run_step,
    summary,
)

from tests.servers import http_app as web
from tests.servers import postgresql as database
from tests.servers import redis as cache
from tests.servers.loopback import free_port

ROOT = Path(__file__).parents[2]
PASSWORD = "hunter2-s3cret"


@pytest.fixture(scope="module")
def app() -> Iterator[web.Server]:
    with web.http_app() as server:
        yield server


@pytest.fixture(scope="module")
def postgresql() -> Iterator[database.Server]:
    with database.postgresql() as server:
        server.psql("CREATE TABLE documents AS SELECT 'Akta ' || n AS title FROM generate_series(1, 3) n")
        yield server


@pytest.fixture(scope="module")
def redis() -> Iterator[cache.Server]:
    with cache.redis_server(password=PASSWORD) as server:
        yield server


@pytest.fixture
def silent() -> Iterator[int]:
    """A port that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def one(check: dict, limit: float = 0.0) -> Outcome:
    whole = {"name": "it", "timeout": "1s", **check}
    assert check_checks([whole]) == []
    return run_checks([whole], limit)[0]


# ---- each kind ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "ok", "says"),
    [
        ({}, True, "gave 1"),
        ({"query": "SELECT count(*) FROM documents", "expect": 3}, True, "gave 3"),
        ({"query": "SELECT count(*) FROM documents", "expect": "3"}, True, "gave 3"),
        ({"query": "SELECT count(*) FROM documents", "expect": ">= 1"}, True, "gave 3"),
        ({"query": "SELECT count(*) > 0 FROM documents", "expect": True}, True, "gave true"),
        ({"query": "SELECT count(*) FROM documents", "expect": "> 100"}, False, "gave 3; expected > 100"),
        ({"query": "SELECT title FROM documents", "expect": ">= 1"}, False, "gave 'Akta 1'"),
        ({"query": "SELECT 1 WHERE false"}, False, "gave no row; expected a row"),
        ({"query": "SELECT * FROM missing"}, False, 'relation "missing" does not exist'),
        ({"query": "DELETE FROM documents RETURNING 1"}, False, "read-only transaction"),
        ({"query": "SELECT pg_sleep(10)"}, False, "statement timeout"),
    ],
)
def test_postgresql(postgresql: database.Server, spec: dict, ok: bool, says: str) -> None:
    outcome = one({"postgresql": {"dsn": postgresql.dsn(), **spec}})
    assert outcome.ok is ok, outcome
    assert says in str(outcome)
    assert outcome.ms < 1500


@pytest.mark.parametrize(
    ("dsn", "says"),
    [
        (f"postgresql://postgres:{PASSWORD}@127.0.0.1:9/postgres", "refused"),
        (f"host=no-such-name.invalid password={PASSWORD}", "no-such-name.invalid"),
        (f"postgresql postgres {PASSWORD}", "the DSN: cannot be read"),
    ],
)
def test_postgresql_that_is_not_there(dsn: str, says: str) -> None:
    outcome = one({"postgresql": {"dsn": dsn}})
    assert not outcome.ok
    assert says in str(outcome)
    assert PASSWORD not in str(outcome.as_dict())


def test_postgresql_that_says_nothing(silent: int) -> None:
    began = time.monotonic()
    outcome = one({"postgresql": {"dsn": f"postgresql://postgres:x@127.0.0.1:{silent}/x"}})
    assert not outcome.ok
    assert time.monotonic() - began < 3.5


def test_redis(redis: cache.Server) -> None:
    assert one({"redis": {"url": redis.url}}).found == "PONG"
    assert one({"redis": {"url": redis.url, "write": True}}).found == "PONG, wrote and read a key"


@pytest.mark.parametrize("write", [True, False])
def test_redis_leaves_nothing_behind(redis: cache.Server, write: bool) -> None:
    import redis as client

    one({"redis": {"url": redis.url, "write": write}})
    assert client.Redis.from_url(redis.url).dbsize() == 0


def test_redis_that_refuses(redis: cache.Server, silent: int) -> None:
    wrong = redis.url.replace(PASSWORD, "wrong-password")
    for url, says in (
        (wrong, "password"),
        (f"redis://:{PASSWORD}@127.0.0.1:9/0", "refused"),
        (f"redis://:{PASSWORD}@127.0.0.1:{silent}/0", "imeout"),
        (f"redis://:{PASSWORD}@no-such-name.invalid/0", "no-such-name.invalid"),
        (f"redis://:{PASSWORD}@127.0.0.1:{redis.port}/999", "out of range"),
    ):
        outcome = one({"redis": {"url": url}})
        assert not outcome.ok
        assert says in str(outcome)
        assert PASSWORD not in str(outcome.as_dict())
        assert "wrong-password" not in str(outcome.as_dict())
        assert outcome.ms < 1500


@pytest.mark.parametrize(
    ("spec", "ok", "says"),
    [
        ({"key": "sk-test"}, True, "answered 'OK'"),
        ({"key": "sk-test", "model": "large", "prompt": "Halo?", "health": "/ok"}, True, "answered 'OK'"),
        ({"key": "sk-test", "model": "empty"}, False, "answered ''; expected a text"),
        ({"key": "sk-test", "health": "/status/503"}, False, "/status/503: answered 503"),
        ({"key": "sk-wrong"}, False, "answered 401"),
    ],
)
def test_ai_gateway(app: web.Server, spec: dict, ok: bool, says: str) -> None:
    for suffix in ("", "/v1", "/v1/"):
        outcome = one({"ai_gateway": {"url": app.url + suffix, **spec}})
        assert outcome.ok is ok, outcome
        assert says in str(outcome)
        assert "sk-" not in str(outcome)


@pytest.mark.parametrize(
    ("spec", "ok", "says"),
    [
        ({"argv": ["true"]}, True, "ended with 0"),
        ({"argv": ["sh", "-c", "echo ready; exit 3"], "rc": 3, "output": "^ready$"}, True, "ended with 3"),
        ({"argv": ["sh", "-c", "echo no"], "output": "^ready"}, False, "said 'no'; expected it to match '^ready'"),
        ({"argv": ["sh", "-c", "echo broken >&2; exit 1"]}, False, "ended with 1, 'broken'; expected rc 0"),
        ({"argv": ["no-such-command"]}, False, "cannot be run (No such file or directory)"),
        ({"argv": ["sleep", 30]}, False, "did not end within 1s"),
        ({"argv": ["sh", "-c", "sleep 30 & sleep 30"]}, False, "did not end within 1s"),
        # What it leaves running keeps its output open.
        ({"argv": ["sh", "-c", "sleep 3 & echo ready"], "output": "ready"}, True, "ended with 0"),
        ({"argv": ["cat"]}, True, "ended with 0"),
        ({"argv": ["sh", "-c", "head -c 3000000 /dev/zero; echo the end"], "output": "the end"}, True, "ended"),
    ],
)
def test_command(spec: dict, ok: bool, says: str) -> None:
    began = time.monotonic()
    outcome = one({"command": spec})
    assert outcome.ok is ok, outcome
    assert says in str(outcome)
    assert time.monotonic() - began < 2


def test_a_command_that_is_stopped_takes_its_children_along(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    one({"timeout": "2s", "command": {"argv": ["sh", "-c", f"sleep 30 & echo $! > {pid}; wait"]}})
    child = Path(f"/proc/{pid.read_text().strip()}/stat")

    def ended() -> bool:
        try:
            return child.read_text().split()[2] == "Z"
        except (FileNotFoundError, ProcessLookupError):
            return True

    end = time.monotonic() + 10
    while not ended() and time.monotonic() < end:
        time.sleep(0.02)
    assert ended()


def test_tcp(app: web.Server, silent: int) -> None:
    assert one({"tcp": {"host": "127.0.0.1", "port": app.port}}).ok
    assert one({"tcp": {"host": "127.0.0.1", "port": str(silent)}}).ok
    assert "refused the connection" in str(one({"tcp": {"host": "127.0.0.1", "port": free_port()}}))
    assert "is not known here" in str(one({"tcp": {"host": "no-such-name.invalid", "port": 80}}))


def test_http(app: web.Server) -> None:
    assert one({"http": {"url": f"{app.url}/ok", "expect": {"json": {"version": "1.9.4"}}}}).ok
    outcome = one({"http": {"url": f"{app.url}/ok", "expect": {"json": {"version": "2.0.0"}}}})
    assert str(outcome) == f"it: GET {app.url}/ok: version is '1.9.4'; expected '2.0.0'"
    sequence = [
        {"url": "/documents", "json": {"title": "<unique>"}, "expect": {"status": 201}, "save": {"id": "id"}},
        {"url": "/documents/<id>", "expect": {"json": {"title": "<unique>"}, "within": "500ms"}},
    ]
    after = [{"url": "/documents/<id>", "method": "DELETE"}]
    assert one({"http": {"base": app.url, "requests": sequence, "after": after}}).ok
    assert app.documents == {}


def test_secrets_that_come_back_do_not_show(app: web.Server, postgresql: database.Server) -> None:
    headers = {"X-Bypass": PASSWORD}
    checks: list[dict] = [
        {"http": {"url": f"{app.url}/echo", "headers": headers, "expect": {"contains": "no such text"}}},
        {"postgresql": {"dsn": f"{postgresql.dsn()} password={PASSWORD}", "query": f"SELECT '{PASSWORD}'"}},
    ]
    for check in checks:
        outcome = one(check)
        assert "***" in outcome.found
        assert PASSWORD not in str(outcome.as_dict())


# ---- must: not-answer -----------------------------------------------------------------------------


def test_must_not_answer(app: web.Server, silent: int) -> None:
    def not_answering(check: dict) -> Outcome:
        return one({"must": "not-answer", "timeout": "300ms", **check})

    assert not_answering({"tcp": {"host": "127.0.0.1", "port": free_port()}}).ok
    assert not_answering({"http": {"url": f"http://127.0.0.1:{free_port()}/"}}).ok
    assert not_answering({"http": {"url": f"http://127.0.0.1:{silent}/"}}).ok
    assert not_answering({"http": {"url": f"{app.url}/status/404", "expect": {"status": [404, 410]}}}).ok
    for check, says in (
        ({"tcp": {"host": "127.0.0.1", "port": app.port}}, "answers (connected); expected no answer"),
        ({"http": {"url": f"{app.url}/ok"}}, "answers (200"),
        ({"http": {"url": f"{app.url}/status/500"}}, "answered 500"),
        ({"http": {"url": f"{app.url}/ok", "expect": {"status": 404}}}, "answered 200; expected 404"),
        # A typing mistake must not pass.
        ({"tcp": {"host": "no-such-name.invalid", "port": 1}}, "cannot tell whether it answers"),
        ({"http": {"url": "http://no-such-name.invalid/"}}, "cannot tell whether it answers"),
    ):
        outcome = not_answering(check)
        assert not outcome.ok
        assert says in str(outcome)


# ---- all of them ----------------------------------------------------------------------------------


def test_all_at_once_and_every_failure_in_one_message(app: web.Server, silent: int) -> None:
    checks = [{"name": f"slow {n}", "http": {"url": f"{app.url}/slow"}} for n in range(10)]
    checks += [
        {"name": "hangs", "timeout": "700ms", "http": {"url": f"http://127.0.0.1:{silent}/"}},
        {"name": "gone", "tcp": {"host": "127.0.0.1", "port": 9}},
    ]
    began = time.monotonic()
    outcomes = run_checks(checks)
    assert time.monotonic() - began < 1.2
    assert [each.name for each in outcomes] == [check["name"] for check in checks]
    assert summary(outcomes) == (
        f"2 of 12 checks failed: hangs: http://127.0.0.1:{silent}/: no whole answer within 700ms;"
        " gone: 127.0.0.1:9: refused the connection on port 9"
    )


def test_what_needs_to_warm_up_is_tried_again(app: web.Server) -> None:
    app.failing = {"GET /ok": [503, 503]}
    outcome = one({"http": {"url": f"{app.url}/ok"}}, limit=10)
    assert (outcome.ok, outcome.tries) == (True, 3)


def test_a_server_that_starts_late() -> None:
    port = free_port()
    servers: list[socket.socket] = []
    late = threading.Timer(0.8, lambda: servers.append(socket.create_server(("127.0.0.1", port))))
    late.start()
    outcome = one({"tcp": {"host": "127.0.0.1", "port": port}}, limit=10)
    late.join()
    servers[0].close()
    assert outcome.ok
    assert 2 <= outcome.tries <= 4


def test_the_limit_ends_it() -> None:
    began = time.monotonic()
    outcome = one({"tcp": {"host": "127.0.0.1", "port": 9}}, limit=1.2)
    assert not outcome.ok
    assert 2 <= outcome.tries <= 3
    assert time.monotonic() - began < 3


# ---- the step -------------------------------------------------------------------------------------


def test_check_and_check_mode_ask_nobody(app: web.Server) -> None:
    app.requests.clear()
    checks = [{"name": "app", "http": {"url": f"{app.url}/ok"}}]
    assert run_step("check", checks, 5) == {"says": "1 checks are ready: app", "before": {}}
    assert run_step("main", checks, 5, pretend=True)["says"] == "would ask 1 checks: app"
    assert app.requests == []


def test_main_and_verify(app: web.Server) -> None:
    good = {"name": "app", "http": {"url": f"{app.url}/ok"}}
    for entry in ("main", "verify"):
        result = run_step(entry, [good], 5)
        assert result["says"].startswith("1 checks passed")
        assert result["evidence"]["checks"][0]["ok"] is True
    app.failing = {"GET /ok": [503]}
    with pytest.raises(SmokeFailed) as caught:
        run_step("verify", [good], 5)
    assert caught.value.evidence["checks"][0]["tries"] == 1


def test_checks_that_are_wrong_run_nothing(app: web.Server) -> None:
    app.requests.clear()
    with pytest.raises(BalikError, match="Did you mean http"):
        run_step("main", [{"name": "a", "http": {"url": f"{app.url}/ok"}}, {"name": "b", "htp": {}}], 5)
    assert app.requests == []


# ---- in a play ------------------------------------------------------------------------------------


def played(folder: Path, checks: list[dict], *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The role in a play of its own, as an operator who looks closely sees it."""
    book = folder / "play.yml"
    known = {"smoke_test_checks": checks, "smoke_test_limit": "0s", **variables}
    book.write_text(json.dumps([{"hosts": "all", "gather_facts": False, "vars": known, "roles": ["smoke-test"]}]))
    inventory = f"localhost ansible_connection=local ansible_python_interpreter={sys.executable}\n"
    (folder / "hosts").write_text(inventory)
    return subprocess.run(
        [Path(sys.executable).with_name("ansible-playbook"), "-i", folder / "hosts", "-vvv", *arguments, book],
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )


def test_ansible_itself_shows_no_secret_and_no_query(app: web.Server, tmp_path: Path) -> None:
    checks = [
        {"name": "app", "http": {"url": f"{app.url}/ok?session=s1-from-the-plan"}},
        {"name": "queue", "command": {"argv": ["sh", "-c", "echo the key is $0; exit 3", "{{ queue_token }}"]}},
    ]
    done = played(tmp_path, checks, queue_token=PASSWORD + "-and-more" * 20)
    assert done.returncode != 0
    assert "1 of 2 checks failed: queue: sh: ended with 3, 'the key is ********" in done.stdout, done.stdout
    assert PASSWORD not in done.stdout
    assert "s1-from-the-plan" not in done.stdout


def test_a_play_with_check_asks_nobody(app: web.Server, tmp_path: Path) -> None:
    app.requests.clear()
    done = played(tmp_path, [{"name": "app", "http": {"url": f"{app.url}/ok"}}], "--check")
    assert done.returncode == 0, done.stdout
    assert "would ask 1 checks: app" in done.stdout
    assert app.requests == []
