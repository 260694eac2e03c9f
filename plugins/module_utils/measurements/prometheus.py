"""Prometheus' query API, and whatever speaks it (Thanos, Mimir, VictoriaMetrics)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from typing import Any
from urllib.parse import urlencode

from .. import specs
from ..conditions import Condition
from ..errors import BalikError
from ..http_probe import NotAnswered, NotReached, Request, Response, basic, send, shortened, shown_url
from ..units import format_duration, parse_duration
from .base import Ask, Measured, Sample

_SPEC = specs.keys(
    required={"url": specs.url("http", "https"), "query": specs.text},
    optional={
        "headers": specs.table(specs.secret),
        "bearer": specs.secret,
        "user": specs.text,
        "password": specs.secret,
        "ca": specs.text,
        "verify": specs.flag,
        "lookback": specs.duration,
    },
)
#: A series by its name and labels and nothing else: ``up{job="app"}``.
_BARE = re.compile(r"\s*[a-zA-Z_:][\w:]*\s*(\{[^{}]*\})?\s*")
#: Longer queries go in a body; gateways that let reads through and nothing else see GET where they can.
_LONGEST_GET = 1500
_SHORTEST_LOOKBACK = 15.0
_LONGEST_LOOKBACK = 300.0


class Prometheus:
    """``{url, query}`` and, if needed, ``headers``, ``bearer``, ``user`` and ``password``, ``ca``, ``lookback``.

    The query must give one series. A range query repeats a series' last value for five minutes after it
    ended, so that old data look fresh; ``lookback`` (default twice ``every``, at least 15 s) shortens that where
    the server understands it (2.43 and later); for a bare series the time of its samples is asked for as well,
    which works with any version. Ranges such as ``rate(…[1m])`` do not look back beyond themselves.
    """

    def check(self, spec: object, where: str) -> list[BalikError]:
        problems = _SPEC(spec, where)
        if isinstance(spec, Mapping) and ("user" in spec) != ("password" in spec):
            problems.append(BalikError(where, "has one of user and password", "both or none"))
        return problems

    def check_with(self, spec: Any, unsafe: Condition, hold: float, limit: float, where: str) -> list[BalikError]:
        return []

    def implied(self, spec: Any) -> Condition | None:
        return None

    def query(self, spec: Any, criterion: str) -> str:
        return spec["query"]

    def patience(self, spec: Any, hold: float, limit: float) -> float:
        return limit + 1

    def lasts(self, hold: float) -> bool:
        return False

    def measure(self, spec: Any, ask: Ask) -> Measured:
        moments = _moments(ask)
        lookback = parse_duration(spec.get("lookback", min(max(2 * ask.every, _SHORTEST_LOOKBACK), _LONGEST_LOOKBACK)))
        values = _series(spec, spec["query"], moments, ask, lookback)
        taken = _series(spec, f"timestamp({spec['query']})", moments, ask, lookback) if _is_bare(spec) else None
        samples = []
        for index, at in enumerate(moments):
            value, note = values.get(index), ""
            if value is None:
                note = "no data"
            elif value != value:  # noqa: PLR0124 - NaN
                value, note = None, "NaN, as 0/0 is: was there any traffic?"
            elif taken is not None and at.timestamp() - taken.get(index, 0.0) > lookback + 0.001:
                age = format_duration(at.timestamp() - taken.get(index, 0.0))
                value, note = None, f"the last scrape was {age} before"
            samples.append(Sample(at, value, note))
        return Measured(samples, moments[-1])


def _is_bare(spec: Any) -> bool:
    return _BARE.fullmatch(spec["query"]) is not None


def _moments(ask: Ask) -> list[datetime]:
    """The moments to ask for, oldest first; the last is now, the first where the window begins."""
    # Prometheus keeps milliseconds.
    now = datetime.fromtimestamp(round(ask.now.timestamp(), 3), timezone.utc)
    begin = now - timedelta(seconds=ask.hold)
    if ask.since and ask.since > begin:
        begin = min(ask.since, now)
    count = int((now - begin).total_seconds() / ask.every + 0.001)
    return [now - timedelta(seconds=ask.every * back) for back in range(count, -1, -1)]


def _series(spec: Any, query: str, moments: list[datetime], ask: Ask, lookback: float) -> dict[int, float]:
    """Index of the moment → value, of the one series that the query gives."""
    first, step = moments[0].timestamp(), ask.every
    form = urlencode(
        {
            "query": query,
            "start": f"{first:.3f}",
            "end": f"{moments[-1].timestamp():.3f}",
            "step": f"{step:.3f}",
            "timeout": f"{ask.limit:g}s",
            "lookback_delta": f"{lookback:.3f}",
            # Thanos' own: rather an error than the part of the data that it could reach.
            "partial_response": "false",
        }
    )
    where = shown_url(spec["url"])
    data = _answer(_send(spec, form, ask.limit, where), where)
    if data.get("resultType") != "matrix":
        raise BalikError(f"Prometheus at {where}", f"answered a {data.get('resultType')}", "numbers over time")
    result = data["result"]
    if len(result) > 1:
        labels = "; ".join(str(each.get("metric")) for each in result[:2])
        raise BalikError(
            "the query", f"gives {len(result)} series ({labels}…)", "one", "Aggregate them: sum(…), max(…)."
        )
    values = result[0].get("values", ()) if result else ()
    return {round((float(at) - first) / step): float(value) for at, value in values}


def _send(spec: Any, form: str, limit: float, where: str) -> Response:
    headers = dict(spec.get("headers", {}))
    if "bearer" in spec:
        headers["Authorization"] = f"Bearer {spec['bearer']}"
    if "user" in spec:
        headers["Authorization"] = basic(spec["user"], spec["password"])
    url, body = spec["url"].rstrip("/") + "/api/v1/query_range", None
    if len(form) <= _LONGEST_GET:
        url += f"?{form}"
    else:
        body, headers = form.encode(), {**headers, "Content-Type": "application/x-www-form-urlencoded"}
    method = "GET" if body is None else "POST"
    request = Request(url, method, headers, body, ca=spec.get("ca"), verify=spec.get("verify", True))
    try:
        return send(request, limit)
    except (NotReached, NotAnswered) as error:
        raise BalikError(
            f"Prometheus at {where}", error.found, do=error.do or "Is it up, and is the url right?"
        ) from None


def _answer(response: Response, where: str) -> Mapping[str, Any]:
    what = f"Prometheus at {where}"
    try:
        answer = response.json()
    except BalikError:
        answer = None
    if not isinstance(answer, Mapping) or answer.get("status") not in {"success", "error"}:
        do = {401: "Check bearer or user and password.", 403: "Check what this user may read."}.get(
            response.status, "Does the url end where /api/v1 begins?"
        )
        raise BalikError(what, f"answered {response.status}, {shortened(response.text)}", "its JSON", do)
    if answer["status"] != "success":
        raise BalikError(what, f"refused the query: {answer.get('error')}")
    if answer.get("warnings"):
        # Half of the data is no data: a store that could not be read may hold the errors.
        raise BalikError(what, f"answered with a warning: {'; '.join(map(str, answer['warnings']))}")
    return answer["data"]
