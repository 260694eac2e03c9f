"""Smoke tests: does what was rolled back answer as it should? All checks at once, each with its limit."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import re
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from . import specs
from .concurrently import Late, as_done
from .conditions import Condition
from .errors import BalikError
from .http_probe import (
    Deadline,
    NotAnswered,
    NotReached,
    WrongAnswer,
    cleaning_limit,
    connect,
    dig,
    masked,
    requests_of,
    run_sequence,
    secrets_of,
    sequence_spec,
    shortened,
    url_passwords,
)
from .units import format_duration, parse_duration

TIMEOUT = 5.0
#: Seconds between two tries of a check that failed.
_PAUSE = 0.5
_OUTPUT = 64 << 10
ANSWER, NOT_ANSWER = "answer", "not-answer"


@dataclass(frozen=True)
class Outcome:
    """What became of one check. ``ms``: how long its last try took."""

    name: str
    kind: str
    ok: bool
    ms: int
    tries: int
    found: str
    expected: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        expected = f"; expected {self.expected}" if self.expected and not self.ok else ""
        return f"{self.name}: {self.found}{expected}"


class SmokeFailed(BalikError):
    """Some checks failed; ``evidence`` has all outcomes."""

    def __init__(self, says: str, evidence: dict[str, Any]) -> None:
        self.evidence = evidence
        super().__init__("smoke-test", says)


# ---- the kinds of checks: each gives back what it found, or raises ----------------------------------


def _http(spec: Mapping[str, Any], limit: float) -> str:
    answers = run_sequence(spec, limit)
    return answers.says + (f"; {answers.cleaned}" if answers.cleaned else "")


def _tcp(spec: Mapping[str, Any], limit: float) -> str:
    what = f"{spec['host']}:{spec['port']}"
    connect(str(spec["host"]), int(spec["port"]), what, Deadline(limit)).close()
    return "connected"


def _postgresql(spec: Mapping[str, Any], limit: float) -> str:
    psycopg = importlib.import_module("psycopg")
    conninfo = importlib.import_module("psycopg.conninfo")
    try:
        parts = conninfo.conninfo_to_dict(spec["dsn"])
    except psycopg.Error:
        # libpq quotes what it could not read, which may be the password.
        raise BalikError("the DSN", "cannot be read", "postgresql://user:password@host/database") from None
    # libpq takes whole seconds and at least two; the thread's limit is the finer one.
    timeout = max(2, round(limit))
    try:
        with psycopg.connect(spec["dsn"], connect_timeout=timeout, application_name="balik smoke test") as connection:
            connection.read_only = True
            milliseconds = f"{limit * 1000:.0f}"
            connection.execute("SELECT set_config('statement_timeout', %s, true)", [milliseconds])
            row = connection.execute(spec.get("query", "SELECT 1")).fetchone()
    except psycopg.Error as error:
        where = f"{parts.get('host', 'local')}/{parts.get('dbname', '')}"
        raise NotAnswered(f"PostgreSQL at {where}", _words(error)) from None
    value = row[0] if row else None
    wanted = spec.get("expect")
    if row is None or (wanted is not None and not _is(value, wanted)):
        found = "no row" if row is None else shortened(value)
        raise WrongAnswer("the query", f"gave {found}", "a row" if wanted is None else str(wanted))
    return f"gave {shortened(value)}"


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _is(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, str) and wanted.startswith(("<", ">", "=", "!")):
        try:
            return Condition.parse(wanted).holds(float(value))
        except (TypeError, ValueError):
            return False
    return value == wanted or str(value) == str(wanted)


def _redis(spec: Mapping[str, Any], limit: float) -> str:
    redis = importlib.import_module("redis")
    no_retry = importlib.import_module("redis.retry").Retry(importlib.import_module("redis.backoff").NoBackoff(), 0)
    try:
        client = redis.Redis.from_url(spec["url"], socket_timeout=limit, socket_connect_timeout=limit, retry=no_retry)
        client.ping()
        if not spec.get("write"):
            return "PONG"
        key, value = f"balik:smoke-test:{uuid.uuid4().hex}", uuid.uuid4().hex
        client.set(key, value, ex=60)
        back = client.get(key)
        client.delete(key)
    except (redis.RedisError, ValueError, OSError) as error:
        raise NotAnswered("Redis", _words(error)) from None
    if back != value.encode():
        raise WrongAnswer("Redis", f"gave back {shortened(repr(back))}", "what was written")
    return "PONG, wrote and read a key"


def _ai_gateway(spec: Mapping[str, Any], limit: float) -> str:
    headers = {"Authorization": f"Bearer {spec['key']}"} if "key" in spec else {}
    messages = [{"role": "user", "content": spec.get("prompt", "Reply with the word OK.")}]
    requests: list[dict[str, Any]] = [{"url": spec["health"]}] if "health" in spec else []
    if "model" not in spec:
        requests.append({"url": "/v1/models", "save": {"model": "data.0.id"}})
    body = {"model": spec.get("model", "<model>"), "messages": messages}
    requests.append({"url": "/v1/chat/completions", "json": body})
    trust = {key: spec[key] for key in ("ca", "verify") if key in spec}
    base = re.sub(r"/v1/?$", "", spec["url"])
    answers = run_sequence({"base": base, "headers": headers, "requests": requests, **trust}, limit)
    text = dig(answers.last.json(), "choices.0.message.content", "the gateway")
    if not isinstance(text, str) or not text.strip():
        raise WrongAnswer("the gateway", f"answered {shortened(text)}", "a text")
    return f"answered {shortened(text)} after {format_duration(answers.slowest)}"


def _command(spec: Mapping[str, Any], limit: float) -> str:
    argv = [str(word) for word in spec["argv"]]
    # A file, not a pipe: what the command leaves running could hold a pipe open for ever.
    with tempfile.TemporaryFile() as output:
        try:
            process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        except OSError as error:
            raise NotAnswered(argv[0], f"cannot be run ({error.strerror})") from None
        try:
            rc = process.wait(limit)
        except subprocess.TimeoutExpired:
            raise NotAnswered(argv[0], f"did not end within {format_duration(limit)}") from None
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        output.seek(max(0, output.seek(0, os.SEEK_END) - _OUTPUT))
        text = output.read().decode(errors="replace")
    wanted = int(spec.get("rc", 0))
    if rc != wanted:
        raise WrongAnswer(argv[0], f"ended with {rc}, {shortened(text)}", f"rc {wanted}")
    if "output" in spec and not re.search(spec["output"], text):
        raise WrongAnswer(argv[0], f"said {shortened(text)}", f"it to match {spec['output']!r}")
    return f"ended with {rc}"


@dataclass(frozen=True)
class _Kind:
    ask: Callable[[Mapping[str, Any], float], str]
    check: specs.Check
    library: str = ""
    package: str = ""


def _expectation(value: object, where: str) -> list[BalikError]:
    if isinstance(value, str) and value.startswith(("<", ">", "=", "!")):
        try:
            Condition.parse(value, where)
        except BalikError as error:
            return [error]
    return []


KINDS: dict[str, _Kind] = {
    "http": _Kind(_http, sequence_spec()),
    "tcp": _Kind(_tcp, specs.keys(required={"host": specs.text, "port": specs.integer(1, 65535)})),
    "postgresql": _Kind(
        _postgresql,
        specs.keys(required={"dsn": specs.secret}, optional={"query": specs.text, "expect": _expectation}),
        "psycopg",
        "python3-psycopg",
    ),
    "redis": _Kind(
        _redis,
        specs.keys(required={"url": specs.url("redis", "rediss", "unix")}, optional={"write": specs.flag}),
        "redis",
        "python3-redis",
    ),
    "ai_gateway": _Kind(
        _ai_gateway,
        specs.keys(
            required={"url": specs.url("http", "https")},
            optional={
                "model": specs.text,
                "key": specs.secret,
                "prompt": specs.text,
                "health": specs.text,
                "ca": specs.text,
                "verify": specs.flag,
            },
        ),
    ),
    "command": _Kind(
        _command,
        specs.keys(
            required={"argv": specs.listing(specs.word)},
            optional={"rc": specs.integer(0, 255), "output": specs.regex},
        ),
    ),
}


# ---- the step ----------------------------------------------------------------------------------------


def run_step(entry: str, checks: Sequence[Mapping[str, Any]], limit: float, pretend: bool = False) -> dict[str, Any]:
    """What an entry point of the role gives back: says, evidence, and before for ``check``.

    :param entry: ``check`` asks nobody anything; ``main`` tries until ``limit``; ``verify`` asks once more.
    :raises BalikError: the checks cannot be run, or (``main``, ``verify``) some failed.
    """
    problems = check_checks(checks) or missing_libraries(checks)
    if problems:
        raise BalikError("smoke-test", "; ".join(map(str, problems)))
    names = ", ".join(check["name"] for check in checks)
    if entry == "check":
        return {"says": f"{len(checks)} checks are ready: {names}", "before": {}}
    if pretend:
        return {"says": f"would ask {len(checks)} checks: {names}", "evidence": {}}
    outcomes = run_checks(checks, limit if entry == "main" else 0.0)
    evidence = {"checks": [outcome.as_dict() for outcome in outcomes]}
    if not all(outcome.ok for outcome in outcomes):
        raise SmokeFailed(summary(outcomes), evidence)
    return {"says": summary(outcomes), "evidence": evidence}


# ---- reading ----------------------------------------------------------------------------------------

_CHECK = specs.keys(
    required={"name": specs.text},
    optional={
        "timeout": specs.duration,
        "must": specs.one_of(ANSWER, NOT_ANSWER),
        **{kind: known.check for kind, known in KINDS.items()},
    },
)


def check_checks(checks: object, where: str = "smoke_test_checks") -> list[BalikError]:
    """Everything that is wrong with the checks as the plan wrote them; each error names its key path."""
    problems = specs.listing(_CHECK)(checks, where)
    if problems or not isinstance(checks, Sequence):
        return problems
    names: set[str] = set()
    for index, check in enumerate(checks):
        here = f"{where}[{index}]"
        if check["name"] in names:
            problems.append(BalikError(f"{here}.name", f"{check['name']} is taken", "a name of its own"))
        names.add(check["name"])
        kinds = [kind for kind in KINDS if kind in check]
        if len(kinds) != 1:
            found = " and ".join(kinds) or "none"
            problems.append(BalikError(here, f"asks {found}", f"exactly one of {', '.join(KINDS)}"))
        elif check.get("must") == NOT_ANSWER and kinds[0] not in {"http", "tcp"}:
            problems.append(BalikError(f"{here}.must", f"is {NOT_ANSWER} for {kinds[0]}", "it for http or tcp only"))
    return problems


def missing_libraries(checks: Sequence[Mapping[str, Any]]) -> list[BalikError]:
    """The Python libraries that these checks need and this host lacks."""
    return [
        BalikError(
            f"check {check['name']}",
            f"this host's Python has no {known.library}",
            do=f"Install {known.package} there, or name another host in smoke_test_hosts.",
        )
        for check in checks
        for kind, known in KINDS.items()
        if kind in check and known.library and importlib.util.find_spec(known.library) is None
    ]


# ---- running ----------------------------------------------------------------------------------------


def run_checks(checks: Sequence[Mapping[str, Any]], limit: float = 0.0) -> list[Outcome]:
    """Run all checks at once, and those that fail again and again until ``limit`` seconds are over.

    :param checks: as :func:`check_checks` accepts them.
    :param limit: with 0 each is tried once.
    :returns: one outcome per check, in their order.
    """
    jobs = {check["name"]: (_tries(check, limit), limit + _patience(check)) for check in checks}
    found = dict(as_done(jobs))
    return [_outcome(check, found[check["name"]]) for check in checks]


def _outcome(check: Mapping[str, Any], found: Outcome | Exception) -> Outcome:
    if isinstance(found, Outcome):
        return found
    # Not an unforeseen exception's text: it may quote a header or a DSN.
    says = str(found) if isinstance(found, Late) else f"the check broke with {type(found).__name__}"
    return Outcome(check["name"], _kind(check), False, 0, 1, says)


def summary(outcomes: Sequence[Outcome]) -> str:
    """One sentence: how many passed, or each one that failed with what was found and expected."""
    failed = [each for each in outcomes if not each.ok]
    if failed:
        return f"{len(failed)} of {len(outcomes)} checks failed: " + "; ".join(map(str, failed))
    slowest = max(outcomes, key=lambda each: each.ms)
    return f"{len(outcomes)} checks passed, the slowest ({slowest.name}) in {slowest.ms} ms"


def _kind(check: Mapping[str, Any]) -> str:
    return next(kind for kind in KINDS if kind in check)


def _timeout(check: Mapping[str, Any]) -> float:
    return parse_duration(check.get("timeout", TIMEOUT))


def _patience(check: Mapping[str, Any]) -> float:
    # libpq waits two seconds at least.
    return max(2.0, _timeout(check)) + cleaning_limit(check[_kind(check)], _timeout(check)) + 1


def _tries(check: Mapping[str, Any], limit: float) -> Callable[[], Outcome]:
    def job() -> Outcome:
        end, tries = time.monotonic() + limit, 0
        while True:
            tries += 1
            outcome = _try(check, tries)
            if outcome.ok or time.monotonic() + _PAUSE >= end:
                return outcome
            time.sleep(_PAUSE)

    return job


def _try(check: Mapping[str, Any], tries: int) -> Outcome:
    kind = _kind(check)
    began = time.monotonic()
    ok, expected = True, ""
    try:
        found = _asked(kind, check)
    except BalikError as error:
        ok, found, expected = False, f"{error.what}: {error.found}", error.expected
    ms = round((time.monotonic() - began) * 1000)
    found, expected = (masked(text, _secrets(check)) for text in (found, expected))
    return Outcome(check["name"], kind, ok, ms, tries, found, expected)


def _asked(kind: str, check: Mapping[str, Any]) -> str:
    spec, limit = check[kind], _timeout(check)
    if check.get("must", ANSWER) == ANSWER:
        return KINDS[kind].ask(spec, limit)
    try:
        found = KINDS[kind].ask(spec, limit)
    except NotReached as error:
        # A typing mistake in the name must not pass for a system that is down.
        raise NotReached(error.what, f"cannot tell whether it answers: {error.found}") from None
    except NotAnswered as error:
        return error.found
    if kind == "http" and any("expect" in request for request in requests_of(spec)):
        return found
    raise WrongAnswer("it", f"answers ({found})", "no answer")


def _secrets(check: Mapping[str, Any]) -> list[str]:
    spec = check[_kind(check)]
    dsn = str(spec.get("dsn", ""))
    in_words = re.findall(r"password\s*=\s*'?([^'\s&]+)", dsn)
    return [*secrets_of(spec), spec.get("key", ""), *in_words, *url_passwords(dsn)]
