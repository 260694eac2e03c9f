"""What an author of smoke checks may write."""

from __future__ import annotations

import pytest
from ansible_collections.balik.rollback.plugins.module_utils.smoke import Outcome, check_checks, summary

WHERE = "smoke_test_checks"
TCP = {"tcp": {"host": "db", "port": 5432}}


@pytest.mark.parametrize(
    "check",
    [
        {"name": "a", **TCP},
        {"name": "a", "timeout": "20s", "must": "not-answer", **TCP},
        {"name": "a", "http": {"url": "https://app/ok"}},
        {"name": "a", "http": {"url": "https://app/ok", "ca": "/ca.pem", "after": [{"url": "https://app/x"}]}},
        {"name": "a", "http": {"base": "https://app", "requests": [{"url": "/ok"}]}},
        {"name": "a", "redis": {"url": "rediss://cache/0"}},
        {"name": "a", "postgresql": {"dsn": "host=db", "expect": ">= 1"}},
        {"name": "a", "ai_gateway": {"url": "http://gateway/v1"}},
        {"name": "a", "command": {"argv": ["sleep", 1]}},
    ],
)
def test_right(check: dict) -> None:
    assert check_checks([check]) == []


@pytest.mark.parametrize(
    ("checks", "path", "says"),
    [
        ([], "", "at least one"),
        ({"name": "a"}, "", "a list"),
        ([TCP], "[0].name", "is missing"),
        ([{"name": "a"}], "[0]", "exactly one of http, tcp"),
        ([{"name": "a", **TCP, "command": {"argv": ["x"]}}], "[0]", "tcp and command"),
        ([{"name": "a", **TCP}, {"name": "a", **TCP}], "[1].name", "taken"),
        ([{"name": "a", "postgres": {}}], "[0].postgres", "Did you mean postgresql?"),
        ([{"name": "a", "tcp": {"host": "x", "port": 70000}}], "[0].tcp.port", "65535"),
        ([{"name": "a", "tcp": {"host": "x"}}], "[0].tcp.port", "is missing"),
        ([{"name": "a", "must": "no", **TCP}], "[0].must", "not-answer"),
        ([{"name": "a", "must": "not-answer", "redis": {"url": "redis://c"}}], "[0].must", "http or tcp"),
        ([{"name": "a", "timeout": "soon", **TCP}], "[0].timeout", "a duration"),
        ([{"name": "a", "http": {"url": "app/ok"}}], "[0].http.url", "http://"),
        ([{"name": "a", "http": {"url": "http://a", "requests": [{"url": "/x"}]}}], "[0].http.url", "known key"),
        ([{"name": "a", "http": {"url": "http://a", "expect": {"code": 1}}}], "[0].http.expect.code", "known key"),
        ([{"name": "a", "http": {"url": "http://a", "body": "x", "json": {}}}], "[0].http", "one of them"),
        ([{"name": "a", "command": {"argv": "ls -l"}}], "[0].command.argv", "a list"),
        ([{"name": "a", "command": {"argv": ["ls"], "output": "("}}], "[0].command.output", "regular expression"),
        ([{"name": "a", "postgresql": {"dsn": "x", "expect": "> x"}}], "[0].postgresql.expect", "'x'"),
        ([{"name": "a", "redis": {"url": "redis:/x:hunter2"}}], "[0].redis.url", "redis://"),
    ],
)
def test_wrong(checks: object, path: str, says: str) -> None:
    problems = check_checks(checks)
    assert any(each.what == WHERE + path and says in str(each) for each in problems), list(map(str, problems))


def test_one_sentence_for_all() -> None:
    good = Outcome("a", "tcp", True, 3, 1, "connected")
    slow = Outcome("b", "tcp", True, 30, 1, "connected")
    bad = Outcome("c", "tcp", False, 30, 4, "db:5432: refused", "a connection")
    assert summary([good, slow]) == "2 checks passed, the slowest (b) in 30 ms"
    assert summary([good, bad, slow]) == "1 of 3 checks failed: c: db:5432: refused; expected a connection"
