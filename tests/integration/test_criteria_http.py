"""Criteria by HTTP requests to a real server that behaves in every way."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from ansible_collections.balik.rollback.plugins.module_utils import criteria
from ansible_collections.balik.rollback.plugins.module_utils.criteria import (
    Criterion,
    Evaluation,
    evaluate,
    parse_criterion,
)
from ansible_collections.balik.rollback.plugins.module_utils.errors import BalikError
from ansible_collections.balik.rollback.plugins.module_utils.units import iso, utc_now

from tests.servers.http_app import Server, http_app


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    with http_app() as server:
        yield server


@pytest.fixture
def app(running: Server) -> Server:
    running.requests.clear()
    running.headers.clear()
    running.documents.clear()
    running.failing = {}
    return running


def criterion(spec: dict, **more: object) -> Criterion:
    return parse_criterion({"name": "c", "measure": {"http": spec}, **more}, "c")


def get(app: Server, path: str, **request: object) -> dict:
    return {"url": app.url + path, **request}


def found(one: Criterion) -> tuple[str, str]:
    evaluation = evaluate([one])
    return evaluation.verdict, evaluation.verdicts[0].reason


SAVE_AND_READ = [
    {"url": "/documents", "json": {"title": "Akta <unique>"}, "expect": {"status": 201}, "save": {"id": "id"}},
    {"url": "/documents/<id>", "expect": {"json": {"title": "Akta <unique>"}}},
]


def test_a_legal_document_can_be_saved_and_read_back(app: Server) -> None:
    spec = {"base": app.url, "requests": SAVE_AND_READ, "after": [{"url": "/documents/<id>", "method": "DELETE"}]}
    verdict, why = found(criterion(spec))
    assert verdict == "safe", why
    assert [line.split("/")[0] for line in app.requests] == ["POST ", "GET ", "DELETE "]
    assert app.documents == {}


def test_a_document_that_cannot_be_saved_is_unsafe_and_needs_no_cleaning(app: Server) -> None:
    app.failing = {"POST /documents": [500]}
    spec = {"base": app.url, "requests": SAVE_AND_READ, "after": [{"url": "/documents/<id>", "method": "DELETE"}]}
    verdict, why = found(criterion(spec))
    assert verdict == "unsafe"
    assert why == f"POST {app.url}/documents: answered 500; expected 201"
    assert app.requests == ["POST /documents"]


def test_what_was_saved_is_cleaned_up_when_reading_fails(app: Server) -> None:
    app.failing = {"GET /documents/1": [500], "GET /documents/2": [500], "GET /documents/3": [500]}
    app.failing = {f"GET /documents/{number}": [500] for number in range(1, 50)}
    spec = {"base": app.url, "requests": SAVE_AND_READ, "after": [{"url": "/documents/<id>", "method": "DELETE"}]}
    assert found(criterion(spec))[0] == "unsafe"
    assert app.documents == {}


@pytest.mark.parametrize(
    ("path", "request_", "verdict", "reason"),
    [
        ("/ok", {}, "safe", "200 after"),
        ("/ok", {"expect": {"json": {"version": "1.9.4", "parts.0.name": "db"}}}, "safe", "200"),
        ("/ok", {"expect": {"json": {"version": "2.0.0"}}}, "unsafe", "version is '1.9.4'; expected '2.0.0'"),
        ("/ok", {"expect": {"json": {"parts.3.name": "db"}}}, "unsafe", "expected parts.3.name in it"),
        ("/ok", {"expect": {"json": {"version.x.y": "db"}}}, "unsafe", "expected version.x.y in it"),
        ("/ok", {"expect": {"status": [404, 410]}}, "unsafe", "answered 200; expected 404 or 410"),
        ("/slow", {"expect": {"within": "100ms"}}, "unsafe", "expected within 100ms"),
        ("/status/404", {}, "unsafe", "answered 404; expected 2xx"),
        ("/status/404", {"expect": {"status": "4xx"}}, "safe", "404"),
        ("/unicode", {"expect": {"contains": "disimpan — ✓"}}, "safe", "200"),
        ("/unicode", {"expect": {"matches": "hukum.*§$"}}, "safe", "200"),
        ("/unicode", {"expect": {"contains": "gagal"}}, "unsafe", "'Dokumen hukum telah disimpan — ✓ §'"),
        ("/latin", {"expect": {"contains": "café"}}, "safe", "200"),
        ("/bad-json", {"expect": {"json": {"status": "ok"}}}, "unsafe", "expected JSON"),
        ("/deep-json", {"expect": {"json": {"status": "ok"}}}, "unsafe", "expected JSON"),
        ("/big", {"expect": {"contains": "start"}}, "safe", "200"),
        ("/big", {"expect": {"json": {"a": 1}}}, "unsafe", "is longer than 1 MiB"),
        ("/moved", {"expect": {"json": {"status": "ok"}}}, "safe", "200"),
        ("/moved", {"expect": {"status": 302}}, "safe", "302"),
        ("/moved", {"follow": False}, "unsafe", "answered 302"),
        ("/loop", {}, "unsafe", "redirected more than 5 times"),
        ("/ok", {"method": "HEAD"}, "safe", "200"),
        ("/reset", {}, "unsafe", "cut the connection"),
        ("/cut", {}, "unsafe", "not whole HTTP (IncompleteRead)"),
        ("/garbage", {}, "unsafe", "not whole HTTP"),
        ("/hang", {}, "unsafe", "no whole answer within 500ms"),
        ("/drip", {}, "unsafe", "no whole answer within 500ms"),
        ("/drip-headers", {}, "unsafe", "no whole answer within 500ms"),
    ],
)
def test_what_an_answer_means(app: Server, path: str, request_: dict, verdict: str, reason: str) -> None:
    began = time.monotonic()
    is_found, why = found(criterion(get(app, path, **request_), timeout="500ms"))
    assert is_found == verdict, why
    assert reason in why
    assert time.monotonic() - began < 1


@pytest.mark.parametrize(
    ("url", "verdict", "reason"),
    [
        ("http://127.0.0.1:9/", "unsafe", "refused the connection on port 9"),
        # Nothing was asked of the system, so nothing is known about it.
        ("http://no-such-name.invalid/", "unknown", "the name no-such-name.invalid is not known here"),
        ("http://[::1]:9/", "", "port 9"),
        ("http://127.0.0.1:99999/", "unknown", "is not a URL"),
        ("http://exa mple/", "unknown", "is not known here"),
        (f"http://{'a' * 300}.example/", "unknown", "is not known here"),
    ],
)
def test_systems_that_are_not_there(url: str, verdict: str, reason: str) -> None:
    is_found, why = found(criterion({"requests": [{"url": url}]}))
    assert reason in why
    assert is_found == verdict or not verdict


def test_our_own_page_says_nothing_of_the_application_behind_it(app: Server) -> None:
    is_found, why = found(criterion(get(app, "/held"), **{"for": "200ms", "every": "100ms"}))
    assert (is_found, "answered by the maintenance page" in why) == ("unknown", True), why
    assert found(criterion(get(app, "/held", expect={"status": 503})))[0] == "safe"
    assert found(criterion(get(app, "/status/503")))[0] == "unsafe"


def test_a_server_that_takes_connections_and_says_nothing_else_waits() -> None:
    with http_app() as app:
        criteria = [criterion(get(app, "/hang"), timeout="600ms", name=f"hangs-{i}") for i in range(10)]
        quick = criterion(get(app, "/ok"), name="quick")
        began = time.monotonic()
        evaluation = evaluate([*criteria, quick])
        assert time.monotonic() - began < 1.5
        assert evaluation.verdicts[-1].took < 0.5
        assert [each.verdict for each in evaluation.verdicts] == ["unsafe"] * 10 + ["safe"]


# ---- what is measured -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "value", "unsafe", "verdict", "reason"),
    [
        ("/slow", "latency", "> 200ms", "unsafe", "> 200ms"),
        ("/ok", "latency", "> 200ms", "safe", "not > 200ms"),
        # A quick error is not a good latency.
        ("/status/500", "latency", "> 200ms", "unknown", "answered 500"),
        ("/hang", "latency", "> 200ms", "unsafe", "no whole answer within 500ms"),
        ("/reset", "latency", "> 200ms", "unknown", "cut the connection"),
        ("/status/503", "status", ">= 500", "unsafe", "503, >= 500"),
        ("/status/404", "status", ">= 500", "safe", "404, not >= 500"),
        ("/hang", "status", ">= 500", "unknown", "no whole answer"),
        ("/ok", "load", "> 0.9", "safe", "0.25, not > 0.9"),
        ("/ok", "load", "> 10%", "unsafe", "0.25, > 10%"),
        ("/ok", "status.x", "> 1", "unknown", "status.x in it"),
        ("/ok", "version", "> 1", "unknown", "version is '1.9.4'; expected a number"),
        ("/bad-json", "load", "> 1", "unknown", "expected JSON"),
    ],
)
def test_values(app: Server, path: str, value: str, unsafe: str, verdict: str, reason: str) -> None:
    one = criterion({**get(app, path), "value": value}, unsafe=unsafe, timeout="500ms")
    is_found, why = found(one)
    assert is_found == verdict, why
    assert reason in why


def test_waiting_in_vain_for_less_than_the_threshold_proves_nothing(app: Server) -> None:
    one = criterion({**get(app, "/hang", timeout="200ms"), "value": "latency"}, unsafe="> 1s", timeout="2s")
    assert found(one)[0] == "unknown"


# ---- over time ------------------------------------------------------------------------------------


def test_with_for_it_samples_until_the_time_is_over(app: Server) -> None:
    one = criterion(get(app, "/status/500"), **{"for": "1500ms", "every": "500ms"})
    evaluation = evaluate([one])
    assert evaluation.verdict == "unsafe", evaluation.reason
    assert 1.5 <= evaluation.took < 4
    assert len(app.requests) == 4


def test_with_for_one_good_sample_ends_it(app: Server) -> None:
    app.failing = {"GET /ok": [500, 500]}
    evaluation = evaluate([criterion(get(app, "/ok"), **{"for": "10s", "every": "100ms"})])
    assert (evaluation.verdict, len(app.requests)) == ("safe", 3)
    assert evaluation.took < 1


def test_probes_that_take_longer_than_every_leave_no_gap(app: Server) -> None:
    one = criterion(get(app, "/hang"), **{"for": "900ms", "every": "100ms", "timeout": "400ms"})
    evaluation = evaluate([one])
    assert evaluation.verdict == "unsafe", evaluation.reason
    assert evaluation.took < 2


def test_what_cannot_be_reached_stays_unknown_over_time() -> None:
    one = criterion({"requests": [{"url": "http://x.invalid/"}]}, **{"for": "300ms", "every": "100ms"})
    assert evaluate([one]).verdict == "unknown"


def _watched_and_decided(app: Server, trigger: str) -> Evaluation:
    long = criterion(get(app, "/status/500"), name="long", **{"for": "20s", "every": "100ms"})
    decisive = criterion(get(app, "/status/500" if trigger == "any" else "/ok"), name="decisive")
    return evaluate([long, decisive], trigger=trigger)


@pytest.mark.parametrize(("trigger", "verdict"), [("any", "unsafe"), ("all", "safe")])
def test_nobody_waits_for_what_is_decided(app: Server, trigger: str, verdict: str) -> None:
    evaluation = _watched_and_decided(app, trigger)
    assert evaluation.verdict == verdict
    assert evaluation.took < 2
    assert evaluation.verdicts[0].verdict == "unknown"
    assert "of 20s so far" in evaluation.verdicts[0].reason


@pytest.mark.parametrize(("touches", "waits"), [(["backend", "database"], True), (["backend"], False)])
def test_what_may_widen_the_remedy_is_watched_to_its_end(app: Server, touches: list[str], waits: bool) -> None:
    """Whether the database is touched, too, decides the remedy; that all is unsafe is known at once."""
    long = criterion(
        get(app, "/status/500"), name="long", touches=touches, **{"for": "1500ms" if waits else "20s", "every": "500ms"}
    )
    evaluation = evaluate([long, criterion(get(app, "/status/500"), name="decisive", touches=["backend"])])
    assert evaluation.verdict == "unsafe"
    assert evaluation.touches == (("backend", "database") if waits else ("backend",))
    assert evaluation.verdicts[0].verdict == ("unsafe" if waits else "unknown"), evaluation.verdicts[0].reason


def _statement(criterion: str, verdict: str = "unsafe") -> dict[str, str]:
    return {"criterion": criterion, "verdict": verdict, "by": "rina", "role": "lead", "at": iso(utc_now())}


def _stated(name: str, **more: object) -> Criterion:
    return criterion({}, name=name, measure={"statement": {"by": ["lead"], "without": "safe"}}, **more)


def test_what_is_stated_while_a_probe_is_watched_is_heard_at_once(app: Server) -> None:
    long = criterion(get(app, "/status/500"), name="long", **{"for": "20s", "every": "100ms"})
    began = time.monotonic()
    said: list[dict[str, str]] = []

    def statements() -> list[dict[str, str]]:
        if time.monotonic() - began > 0.5 and not said:
            said.append(_statement("leak"))
        return said

    evaluation = evaluate([long, _stated("leak", every="100ms")], {"statements": statements})
    assert (evaluation.verdict, evaluation.verdicts[1].verdict) == ("unsafe", "unsafe")
    assert 0.5 < evaluation.took < 3


def test_a_record_that_goes_away_meanwhile_takes_no_verdict_with_it(app: Server) -> None:
    long = criterion(get(app, "/status/500"), name="long", **{"for": "1500ms", "every": "500ms"})
    answers: Iterator[list[dict[str, str]]] = iter([[]])

    def statements() -> list[dict[str, str]]:
        for answer in answers:
            return answer
        raise BalikError("the record", "is away")

    evaluation = evaluate([long, _stated("leak", every="100ms")], {"statements": statements})
    assert [each.verdict for each in evaluation.verdicts] == ["unsafe", "safe"]
    with pytest.raises(BalikError, match="the record"):
        evaluate([_stated("leak")], {"statements": statements})


def test_when_the_watched_one_is_good_at_last_the_others_are_asked_again(
    app: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(criteria, "_FRESH", 0.3)
    app.failing = {"GET /ok": [500] * 8}
    long = criterion(get(app, "/ok"), name="long", **{"for": "20s", "every": "100ms"})
    began = time.monotonic()

    def statements() -> list[dict[str, str]]:
        return [_statement("leak")] if time.monotonic() - began > 0.4 else []

    evaluation = evaluate([long, _stated("leak")], {"statements": statements})
    assert [each.verdict for each in evaluation.verdicts] == ["safe", "unsafe"]
    assert evaluation.verdict == "unsafe"


def test_of_two_that_are_watched_the_one_that_was_good_long_ago_is_watched_again(
    app: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(criteria, "_FRESH", 0.3)
    app.failing = {"GET /ok": [500] * 8, "GET /json": [200, *[500] * 100]}
    one = criterion(get(app, "/ok"), name="one", **{"for": "2s", "every": "100ms"})
    other = criterion(get(app, "/json"), name="other", **{"for": "1500ms", "every": "500ms"})
    evaluation = evaluate([one, other])
    assert [each.verdict for each in evaluation.verdicts] == ["safe", "unsafe"]


def test_one_that_never_answers_keeps_none_from_the_end(app: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(criteria, "_FRESH", 0.1)
    watched = [criterion(get(app, "/ok"), name=name, **{"for": "20s", "every": "100ms"}) for name in ("one", "two")]
    silent = criterion({**get(app, "/hang"), "value": "status"}, name="silent", unsafe="!= 200", timeout="500ms")
    evaluation = evaluate([*watched, silent])
    assert [each.verdict for each in evaluation.verdicts] == ["safe", "safe", "unknown"]
    assert evaluation.took < 3


def test_what_was_unsafe_once_is_not_asked_again_until_it_is_safe(app: Server) -> None:
    """The remedy may be widened by what is watched; that there is one to choose stays."""
    wide = criterion(get(app, "/status/500"), name="wide", touches=["database"], **{"for": "1500ms", "every": "500ms"})
    said = iter([[_statement("leak")]])
    evaluation = evaluate(
        [wide, _stated("leak", every="100ms", touches=["backend"])], {"statements": lambda: next(said, [])}
    )
    assert evaluation.touches == ("backend", "database")


def test_cut_it_takes_one_sample_of_each(app: Server) -> None:
    long = criterion(get(app, "/status/500"), name="long", **{"for": "20s", "every": "100ms"})
    evaluation = evaluate([long, criterion(get(app, "/ok"), name="other")], cut=True)
    assert [each.verdict for each in evaluation.verdicts] == ["unknown", "safe"]
    assert evaluation.took < 2
    assert len(app.requests) == 2


# ---- secrets and trust ----------------------------------------------------------------------------


def test_secrets_stay_with_the_site_they_are_for_and_out_of_evidence(app: Server) -> None:
    secret = {"Authorization": "Bearer hunter2", "X-Api-Key": "hunter2", "Accept-Language": "id"}
    url = app.url.replace("//", "//user:hunter2@") + "/away?token=hunter2"
    evaluation = evaluate([criterion({"headers": secret, "requests": [{"url": url}]})])
    assert evaluation.verdict == "safe", evaluation.reason
    first, second = app.headers
    assert first["authorization"] == "Bearer hunter2"
    assert "hunter2" not in str(second)
    assert second["accept-language"] == "id"
    assert "hunter2" not in str(evaluation.as_dict())


def test_a_server_that_echoes_secrets_does_not_bring_them_into_evidence(app: Server) -> None:
    url = app.url.replace("//", "//ana:hunter2@") + "/echo"
    request = {"url": url, "headers": {"X-Bypass": "hunter2"}, "expect": {"contains": "no such text"}}
    evaluation = evaluate([criterion({"requests": [request]})])
    assert "you sent" in evaluation.reason
    assert "hunter2" not in str(evaluation.as_dict())
    assert "YW5hOmh1bnRlcjI" not in str(evaluation.as_dict())
    # Cut in the middle it is still a secret.
    request["headers"] = {"X-Bypass": "correct-horse-" * 10}
    evaluation = evaluate([criterion({"requests": [request]})])
    assert "correct" not in str(evaluation.as_dict())


def test_a_user_in_the_url_becomes_a_header(app: Server) -> None:
    found(criterion({"requests": [{"url": app.url.replace("//", "//ana:s3cret@") + "/ok"}]}))
    assert app.headers[0]["authorization"] == "Basic YW5hOnMzY3JldA=="


def test_a_header_that_http_forbids_does_not_show(app: Server) -> None:
    spec = {"headers": {"X-Token": "hunter2\r\nX: y"}, **get(app, "/ok")}
    with pytest.raises(Exception, match="not shown") as caught:
        criterion(spec)
    assert "hunter2" not in str(caught.value)
    evaluation = evaluate([criterion({"headers": {"X-Token": "hunter2\x7f☃"}, **get(app, "/ok")})])
    assert evaluation.verdict == "unknown"
    assert "hunter2" not in str(evaluation.as_dict())


def test_certificates() -> None:
    with http_app(tls=True) as app:
        local = {"requests": [{"url": f"https://localhost:{app.port}/ok"}]}
        verdict, why = found(criterion(local))
        assert verdict == "unknown"
        assert "its certificate is not trusted" in why
        assert found(criterion({**local, "ca": str(app.ca)}))[0] == "safe"
        assert found(criterion({**local, "verify": False}))[0] == "safe"
        # The certificate is for another name.
        verdict, why = found(criterion({"requests": [{"url": app.url + "/ok"}], "ca": str(app.ca)}))
        assert verdict == "unknown"
        assert "not trusted" in why
        verdict, why = found(criterion({**local, "ca": "/nowhere.pem"}))
        assert "/nowhere.pem: cannot be read" in why
        plain = {"requests": [{"url": f"http://localhost:{app.port}/ok"}]}
        assert found(criterion(plain, timeout="1s"))[0] == "unsafe"
    with http_app() as app:
        verdict, why = found(criterion({"requests": [{"url": f"https://127.0.0.1:{app.port}/ok"}]}, timeout="1s"))
        assert verdict == "unsafe"
        assert "does not speak TLS" in why
