"""Criteria over a real Prometheus with a history of the test's choice."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone

import pytest
from ansible_collections.balik.rollback.plugins.module_utils.criteria import Criterion, evaluate, parse_criterion

from tests.servers.http_app import http_app
from tests.servers.prometheus import History, Server, prometheus

NOW = datetime.fromtimestamp(int(time.time()) - 60, timezone.utc)


def row(minutes: float, value: float, until: float = 0, step: float = 15) -> list[tuple[float, float]]:
    """Samples from ``minutes`` ago until ``until`` minutes ago, both included."""
    first, last = NOW.timestamp() - minutes * 60, NOW.timestamp() - until * 60
    return [(first + step * index, value) for index in range(int((last - first) / step) + 1)]


HISTORY: History = {
    'bad{app="1"}': row(30, 0.125),
    'good{app="1"}': row(30, 0.01),
    'recovered{app="1"}': row(30, 0.125, until=5) + row(4.75, 0.01, until=2) + row(1.75, 0.125),
    'new{app="1"}': row(4, 0.125),
    'gap{app="1"}': row(30, 0.125, until=11) + row(5, 0.125),
    'dead{app="1"}': row(30, 0.01, until=4),
    'two{app="1"}': row(30, 0.1),
    'two{app="2"}': row(30, 0.1),
    'idle{app="1"}': row(30, 0),
    'requests{app="1"}': [(at, index * 10) for index, (at, _) in enumerate(row(30, 0))],
    'errors{app="1"}': [(at, index * 2) for index, (at, _) in enumerate(row(30, 0))],
}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with prometheus(HISTORY) as running:
        yield running


def criterion(url: str, query: str, **more: object) -> Criterion:
    written = {"name": "c", "unsafe": "> 0.05", "for": "15m", "every": "1m", **more}
    spec = {"url": url, "query": query}
    extra = written.pop("spec", {})
    return parse_criterion({**written, "measure": {"prometheus": {**spec, **extra}}}, "c")  # type: ignore[dict-item]


def found(one: Criterion, **more: object) -> tuple[str, str]:
    evaluation = evaluate([one], now=NOW, **more)  # type: ignore[arg-type]
    return evaluation.verdict, evaluation.verdicts[0].reason


@pytest.mark.parametrize(
    ("query", "verdict", "reason"),
    [
        ("bad", "unsafe", "0.125, > 0.05 for 15m (16 samples)"),
        ("good", "safe", "0.01, not > 0.05"),
        ("recovered", "safe", "but only for 2m of 15m"),
        ("new", "unknown", "0.125, > 0.05 for 4m of 15m so far"),
        ("gap", "unknown", "no data between"),
        ("nothing_of_this_name", "unknown", "no data in the last 15m: no data"),
        ("idle / idle", "unknown", "0/0"),
        ("bad / 0", "unsafe", "inf, > 0.05 for 15m"),
        ("two", "unknown", "gives 2 series"),
        ("max(two)", "unsafe", "0.1, > 0.05"),
        ("sum(rate(errors[1m])) / sum(rate(requests[1m]))", "unsafe", "0.2, > 0.05"),
        ("vector(0.2)", "unsafe", "0.2"),
        ("sum(bad", "unknown", "refused the query: 1:8: parse error"),
        ('label_replace(bad, "x", "$1", "app", "(.*)"', "unknown", "parse error"),
    ],
)
def test_verdicts_of_real_histories(server: Server, query: str, verdict: str, reason: str) -> None:
    is_found, why = found(criterion(server.url, query))
    assert is_found == verdict, why
    assert reason in why


def test_the_evidence_has_every_sample_and_the_query(server: Server) -> None:
    one = criterion(server.url.replace("//", "//user:hunter2@"), "bad", spec={"headers": {"X-Token": "hunter2"}})
    evidence = evaluate([one], now=NOW).as_dict()["criteria"][0]
    assert evidence["query"] == "bad"
    assert evidence["samples"][0]["at"] == (NOW - timedelta(minutes=15)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    assert [sample["value"] for sample in evidence["samples"]] == [0.125] * 16
    assert "hunter2" not in str(evidence)


@pytest.mark.parametrize("query", ["dead", 'dead{app="1"}'])
def test_old_data_do_not_look_fresh(server: Server, query: str) -> None:
    """Prometheus repeats the last value for five minutes; 2.42 cannot be told otherwise, so the time is asked for."""
    verdict, why = found(criterion(server.url, query, **{"for": "1m", "every": "30s"}))
    assert verdict == "unknown"
    assert "the last scrape was 4m before" in why


def test_without_for_the_newest_value_decides(server: Server) -> None:
    assert found(criterion(server.url, "recovered", **{"for": 0}))[0] == "unsafe"
    assert found(criterion(server.url, "dead", **{"for": 0}))[0] == "unknown"


def test_since_cuts_the_history(server: Server) -> None:
    verdict, why = found(criterion(server.url, "bad"), since=NOW - timedelta(minutes=3))
    assert (verdict, why) == ("unknown", "0.125, > 0.05 for 3m of 15m so far")


def test_a_for_that_every_does_not_divide(server: Server) -> None:
    assert found(criterion(server.url, "bad", **{"for": "100s", "every": "1m"}))[0] == "unsafe"
    assert found(criterion(server.url, "bad", **{"for": "10s", "every": "3s"}))[0] == "unsafe"


def test_a_long_query_goes_in_a_body(server: Server) -> None:
    long = " + ".join(["bad * 1"] * 200)
    assert found(criterion(server.url, long))[0] == "unsafe"


def test_many_samples(server: Server) -> None:
    began = time.monotonic()
    verdict, why = found(criterion(server.url, "bad", **{"for": "25m", "every": "1s"}))
    assert verdict == "unsafe", why
    assert time.monotonic() - began < 2


def test_users_and_passwords() -> None:
    # As htpasswd makes it of "hunter2".
    user = "basic_auth_users: {ana: $2b$04$e1f27rLdAsjUKGTk.hZAcOz12vmfQ/.JCB/55f/rG4VVe5Pjsax6W}\n"
    with prometheus(web=user) as server:
        verdict, why = found(criterion(server.url, "vector(1)"))
        assert (verdict, "answered 401" in why, "Check bearer" in why) == ("unknown", True, True)
        login = {"user": "ana", "password": "hunter2"}
        assert found(criterion(server.url, "vector(1)", spec=login))[0] == "unsafe"
        login = {"user": "ana", "password": "hunter3"}
        verdict, why = found(criterion(server.url, "vector(1)", spec=login))
        assert (verdict, "hunter3" in why) == ("unknown", False)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/hang", "no whole answer within 500ms"),
        ("/drip", "no whole answer within 500ms"),
        ("/bad-json", "its JSON"),
        ("/big", "answered 200"),
        ("/status/503", "answered 503"),
        ("/garbage", "not whole HTTP"),
        ("/reset", "cut the connection"),
        ("/ok", "its JSON"),
    ],
)
def test_what_is_no_prometheus_is_unknown(path: str, reason: str) -> None:
    with http_app() as app:
        url = app.url + path
        # With the question mark, Prometheus' own path becomes a query, which the app does not mind.
        began = time.monotonic()
        verdict, why = found(criterion(url + "?", "up", timeout="500ms"))
        assert verdict == "unknown"
        assert reason in why
        assert time.monotonic() - began < 1.5


def test_a_prometheus_that_is_not_there() -> None:
    verdict, why = found(criterion("http://127.0.0.1:9", "up"))
    assert verdict == "unknown"
    assert why == "Prometheus at http://127.0.0.1:9: refused the connection on port 9. Is it up, and is the url right?"
    verdict, why = found(criterion("http://prometheus.invalid", "up"))
    assert "the name prometheus.invalid is not known here" in why
