"""HTTP as a user meets it: requests in sequence, what they must answer, and how long they took.

Only the standard library, since it runs on targets too; and its own deadline, since the socket timeout of
the usual clients starts again with every byte, so that a server which drips one a second holds them for ever.
"""

from __future__ import annotations

import base64
import http.client
import io
import json
import math
import re
import socket
import ssl
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, unquote, urljoin, urlsplit

from . import specs
from .errors import BalikError, Unreachable
from .traffic.page import MARKER
from .units import format_duration, parse_duration

#: Bytes of an answer that are read; a page that is longer is judged by its beginning.
BODY_LIMIT = 1 << 20
_REDIRECTS = 5
#: Two classes up to Python 3.9, one since.
_TIMEOUTS = (TimeoutError, socket.timeout)
#: All other headers may hold a secret: they are never shown, nor sent on to another site.
_PLAIN_HEADERS = {"accept", "accept-encoding", "accept-language", "content-type", "user-agent"}


class NotReached(Unreachable):
    """Nothing was asked of the system: no such name, no route, no trust in its certificate, our own page before it."""


class NotAnswered(BalikError):
    """The system was asked and gave no (whole) answer: refused, cut off, too slow."""

    def __init__(self, what: str, found: str, expected: str = "", waited: float | None = None) -> None:
        super().__init__(what, found, expected)
        #: Seconds that were waited in vain; None where it was not a matter of time.
        self.waited = waited


class WrongAnswer(BalikError):
    """The system answered something else than expected."""


@dataclass(frozen=True)
class Request:
    """One request. ``ca`` is a file of certificates to trust; ``verify`` false trusts any."""

    url: str
    method: str = "GET"
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    follow: bool = True
    ca: str | None = None
    verify: bool = True


@dataclass(frozen=True)
class Response:
    """The answer: ``body`` is cut at :data:`BODY_LIMIT`, ``whole`` says whether it was; seconds in all."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    whole: bool
    seconds: float

    @property
    def text(self) -> str:
        charset = re.search(r"charset=\"?([\w-]+)", self.headers.get("content-type", ""))
        try:
            return self.body.decode(charset[1] if charset else "utf-8", "replace")
        except LookupError:
            return self.body.decode("utf-8", "replace")

    def json(self) -> Any:
        """:raises WrongAnswer: the body is no JSON."""
        if not self.whole:
            raise WrongAnswer("the answer", f"is longer than {BODY_LIMIT >> 20} MiB", "JSON")
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            raise WrongAnswer("the answer", f"is {shortened(self.text)}", "JSON") from None


def shortened(value: object, most: int = 80) -> str:
    """At most ``most`` characters of what was found, on one line."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = " ".join(text.split())
    text = text[:most] + ("…" if len(text) > most else "")
    return repr(text) if isinstance(value, str) else text


def shown_url(url: str) -> str:
    """A URL for people and records: without a password, and without a query, which may hold a token."""
    return re.sub(r"\?.*", "?…", re.sub(r"^(\w+://)[^/@]*@", r"\1", url))


# ---- one request ----------------------------------------------------------------------------------


class Deadline:
    """A moment after which nothing is waited for."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds left. :raises TimeoutError: none."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left

    def missed(self, what: str, found: str) -> NotAnswered:
        within = format_duration(self.seconds)
        return NotAnswered(what, f"{found} within {within}", waited=self.seconds)


class _Reader(io.RawIOBase):
    """Reads a socket until a deadline, however slowly the bytes drip."""

    def __init__(self, sock: socket.socket, deadline: Deadline) -> None:
        self._sock, self._deadline = sock, deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._sock.settimeout(self._deadline.left())
        return self._sock.recv_into(buffer)


class _Socket:
    """The part of a socket that ``http.client`` uses, under a deadline."""

    def __init__(self, sock: socket.socket, deadline: Deadline) -> None:
        self._sock, self._deadline = sock, deadline

    def sendall(self, data: bytes) -> None:
        self._sock.settimeout(self._deadline.left())
        self._sock.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Reader(self._sock, self._deadline))

    def close(self) -> None:
        """Nothing: the answer is read after ``http.client`` closes its end."""


def send(request: Request, limit: float = 10.0) -> Response:
    """Send a request and read the answer, redirects included, all within ``limit`` seconds.

    Only the name look-up can take longer, where the system's resolver does.

    :raises NotReached: no such name, no route, no trust.
    :raises NotAnswered: refused, cut off, not HTTP, or no whole answer in time.
    """
    deadline = Deadline(limit)
    started = time.monotonic()
    for _ in range(_REDIRECTS + 1):
        response = _exchange(request, deadline, started)
        target = response.headers.get("location")
        if not (request.follow and target and response.status in {301, 302, 303, 307, 308}):
            return response
        request = _redirected(request, response.status, urljoin(request.url, target))
    raise NotAnswered(shown_url(request.url), f"redirected more than {_REDIRECTS} times", "an answer")


def _redirected(request: Request, status: int, url: str) -> Request:
    headers = dict(request.headers)
    if urlsplit(url)[:2] != urlsplit(request.url)[:2]:
        headers = {name: value for name, value in headers.items() if name.lower() in _PLAIN_HEADERS}
    method, body = request.method, request.body
    if status == 303 or (status in {301, 302} and method == "POST"):
        method, body = ("HEAD" if method == "HEAD" else "GET"), None
    return Request(url, method, headers, body, True, request.ca, request.verify)


def _exchange(request: Request, deadline: Deadline, started: float) -> Response:
    what, parts = shown_url(request.url), urlsplit(request.url)
    try:
        host, port = parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        host = None
    if parts.scheme not in {"http", "https"} or not host:
        raise NotReached(what, "is not a URL", "http://… or https://…")
    headers = {"User-Agent": "balik", "Accept": "*/*", **request.headers, "Connection": "close"}
    if parts.username is not None and "Authorization" not in headers:
        headers["Authorization"] = basic(unquote(parts.username), unquote(parts.password or ""))
    path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
    path += "?" + quote(parts.query, safe="/%:@!$&'()*+,;=~-._?[]") if parts.query else ""
    sock = connect(host, port, what, deadline)
    try:
        if parts.scheme == "https":
            sock = _trust(sock, host, request, what, deadline)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(host, port)
        connection.sock = _Socket(sock, deadline)  # type: ignore[assignment]
        connection.request(request.method, path, body=request.body, headers=headers)
        return _read(connection.getresponse(), deadline, started)
    except _TIMEOUTS:
        raise deadline.missed(what, "no whole answer") from None
    except OSError as error:
        raise NotAnswered(what, f"cut the connection ({error.strerror or type(error).__name__})") from None
    except http.client.HTTPException as error:
        raise NotAnswered(what, f"answered with something that is not whole HTTP ({type(error).__name__})") from None
    except ValueError:
        # http.client refuses control characters and quotes the whole header, which may be a secret.
        raise NotReached(what, "the request's headers or URL hold characters that HTTP forbids") from None
    finally:
        sock.close()


def _read(answer: http.client.HTTPResponse, deadline: Deadline, started: float) -> Response:
    body = answer.read(BODY_LIMIT + 1)
    whole = len(body) <= BODY_LIMIT
    if whole and answer.length:
        raise http.client.IncompleteRead(b"", answer.length)
    headers = {name.lower(): value for name, value in answer.getheaders()}
    return Response(answer.status, headers, body[:BODY_LIMIT], whole, time.monotonic() - started)


def connect(host: str, port: int, what: str, deadline: Deadline) -> socket.socket:
    """A connected socket; ``what`` names it in messages.

    :raises NotReached, NotAnswered: no such name or no way; refused or too slow.
    """
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise NotReached(what, f"the name {host} is not known here", do="Check the name and the DNS.") from None
    refused: OSError | None = None
    for index, (family, kind, protocol, _, address) in enumerate(addresses):
        sock = socket.socket(family, kind, protocol)
        try:
            # A dead address leaves time for the next one.
            sock.settimeout(deadline.left() / (len(addresses) - index))
            sock.connect(address)
            return sock
        except OSError as error:
            sock.close()
            refused = error
    if isinstance(refused, _TIMEOUTS):
        raise deadline.missed(what, f"no connection to port {port}")
    if isinstance(refused, ConnectionError):
        raise NotAnswered(what, f"refused the connection on port {port}")
    raise NotReached(what, f"no way to port {port} ({refused.strerror if refused else 'no address'})")


def _trust(sock: socket.socket, host: str, request: Request, what: str, deadline: Deadline) -> ssl.SSLSocket:
    try:
        context = ssl.create_default_context(cafile=request.ca)
    except (OSError, ssl.SSLError) as error:
        raise NotReached(str(request.ca), f"cannot be read ({error.strerror})", "a file of PEM certificates") from None
    if not request.verify:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    sock.settimeout(deadline.left())
    try:
        return context.wrap_socket(sock, server_hostname=host)
    except ssl.SSLCertVerificationError as error:
        raise NotReached(
            what,
            f"its certificate is not trusted ({error.verify_message})",
            do="Name the authority's file as ca, or renew the certificate.",
        ) from None
    except ssl.SSLError as error:
        raise NotAnswered(what, f"does not speak TLS as it should ({error.reason})") from None


def basic(user: str, password: str) -> str:
    """The value of an ``Authorization`` header."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


# ---- requests in sequence -------------------------------------------------------------------------


def _status(value: object, where: str) -> list[BalikError]:
    if isinstance(value, str) and re.fullmatch(r"[1-5]xx", value):
        return []
    if specs.integer(100, 599)(value, where):
        return [BalikError(where, f"found {value!r}", "a status such as 200 or 2xx, or a list of such")]
    return []


def _statuses(value: object, where: str) -> list[BalikError]:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return specs.listing(_status)(value, where)
    return _status(value, where)


_TRUST = {"ca": specs.text, "verify": specs.flag}
_EXPECT = specs.keys(
    optional={
        "status": _statuses,
        "contains": specs.text,
        "matches": specs.regex,
        "json": specs.table(specs.anything),
        "within": specs.duration,
    }
)
_REQUEST_KEYS: dict[str, specs.Check] = {
    "method": specs.text,
    "headers": specs.table(specs.secret),
    "body": specs.text,
    "json": specs.anything,
    "expect": _EXPECT,
    "save": specs.table(specs.text),
    "follow": specs.flag,
    "timeout": specs.duration,
}
_REQUEST = specs.keys(required={"url": specs.text}, optional=_REQUEST_KEYS)
_AFTER = specs.listing(_REQUEST)


def sequence_spec(more: Mapping[str, specs.Check] | None = None) -> specs.Check:
    """The check of what :func:`run_sequence` takes.

    :param more: keys that may stand beside the sequence's own.
    """
    beside = {"after": _AFTER, **_TRUST, **(more or {})}
    of_all = {"base": specs.url("http", "https"), "headers": specs.table(specs.secret)}
    several = specs.keys(required={"requests": specs.listing(_REQUEST)}, optional={**of_all, **beside})
    single = specs.keys(required={"url": specs.text}, optional={**_REQUEST_KEYS, **beside})

    def check(value: object, where: str) -> list[BalikError]:
        one = isinstance(value, Mapping) and "url" in value and "requests" not in value
        problems = (single if one else several)(value, where)
        if not problems:
            assert isinstance(value, Mapping)
            problems = _check_requests(value, where)
        return problems

    return check


def requests_of(spec: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """The requests of a sequence; a single one may be written without the list around it."""
    if "requests" in spec:
        return spec["requests"]
    return [{key: value for key, value in spec.items() if key in _REQUEST_KEYS or key == "url"}]


def _check_requests(spec: Mapping[str, Any], where: str) -> list[BalikError]:
    """What of a sequence with the right keys is wrong all the same: URLs, bodies, saved names."""
    problems = []
    saved = {"unique"}
    for part, requests in (("requests", requests_of(spec)), ("after", spec.get("after", ()))):
        for index, request in enumerate(requests):
            here = f"{where}.{part}[{index}]" if part in spec else where
            whole = full_url(spec, str(request["url"]))
            if not re.match(r"https?://[^/\s]", whole):
                problems.append(
                    BalikError(f"{here}.url", f"found {shown_url(whole)!r}", "http://… or https://…", "Or give base.")
                )
            problems += [
                BalikError(
                    f"{here}.url",
                    f"uses <{name}>, which nothing saved before",
                    " or ".join(f"<{each}>" for each in sorted(saved)),
                )
                for name in re.findall(r"<([^<>]*)>", whole)
                if name not in saved
            ]
            if "body" in request and "json" in request:
                problems.append(BalikError(here, "has both body and json", "one of them"))
            saved |= set(request.get("save", ()))
    return problems


def full_url(spec: Mapping[str, Any], url: str) -> str:
    """A request's URL, which may be written without what the sequence's ``base`` says."""
    if re.match(r"\w+://", url) or "base" not in spec:
        return url
    return f"{spec['base'].rstrip('/')}/{url.lstrip('/')}"


@dataclass(frozen=True)
class Answers:
    """What a sequence answered. ``slowest`` in seconds; ``cleaned`` says what the ``after`` requests failed at."""

    last: Response
    slowest: float
    says: str
    cleaned: str = ""


def run_sequence(spec: Mapping[str, Any], limit: float) -> Answers:
    """Send the requests of ``spec`` one after the other, and afterwards those that clean up.

    :param spec: as :func:`sequence_spec` accepts it. ``<name>`` in a URL, a header, a body or an expected
        value stands for what an earlier request saved under this name; ``<unique>`` for a text that is new
        in every run. Any other ``<…>`` is left as it is.
    :param limit: seconds for the requests together; cleaning up gets :func:`cleaning_limit` more.
    :raises NotReached, NotAnswered, WrongAnswer: the first request that did not do as expected.
    """
    deadline = Deadline(limit)
    values = {"unique": uuid.uuid4().hex}
    slowest, last = 0.0, None
    try:
        for request in requests_of(spec):
            last = _step(spec, request, values, deadline)
            slowest = max(slowest, last.seconds)
    finally:
        cleaned = _clean(spec, values, cleaning_limit(spec, limit))
    assert last is not None  # a sequence has at least one request
    says = f"{last.status} after {format_duration(slowest)}"
    return Answers(last, slowest, says, cleaned)


def secrets_of(spec: Mapping[str, Any]) -> list[str]:
    """What a sequence or a request sends that nobody may read; also of one that is not written as it should."""
    lists = [spec.get(key) for key in ("requests", "after")]
    parts = [spec, *(part for each in lists if isinstance(each, list) for part in each)]
    found = []
    for part in (part for part in parts if isinstance(part, Mapping)):
        headers = part.get("headers")
        for name, value in headers.items() if isinstance(headers, Mapping) else ():
            found += [] if str(name).lower() in _PLAIN_HEADERS else [str(value)]
        found += url_passwords(part.get("url")) + url_passwords(part.get("base"))
    return found


def url_passwords(url: object) -> list[str]:
    """The password in a URL: as it is written, as it is meant, and as HTTP sends it."""
    try:
        parts = urlsplit(str(url))
    except ValueError:
        return []
    if not parts.password:
        return []
    sent = basic(unquote(parts.username or ""), unquote(parts.password))
    return [parts.password, unquote(parts.password), sent]


def masked(text: str, secrets: Sequence[str]) -> str:
    """``text`` without the secrets. Those of less than four letters would blot out half of it."""
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= 4:
            text = text.replace(secret, "***")
        for cut in range(len(secret) - 1, 3, -1):
            text = text.replace(f"{secret[:cut]}…", "***…")
    return text


def cleaning_limit(spec: Mapping[str, Any], limit: float) -> float:
    """Seconds that cleaning up may take beyond the limit of the requests."""
    return min(5.0, limit) if spec.get("after") else 0.0


def _clean(spec: Mapping[str, Any], values: dict[str, str], limit: float) -> str:
    deadline = Deadline(limit)
    failed = []
    for request in spec.get("after", ()):
        # What was never saved was never made, and needs no cleaning.
        if all(name in values for name in re.findall(r"<([^<>]*)>", str(request["url"]))):
            try:
                _step(spec, request, values, deadline)
            except BalikError as error:
                failed.append(f"not cleaned up: {error}")
    return "; ".join(failed)


def _step(spec: Mapping[str, Any], written: Mapping[str, Any], values: dict[str, str], deadline: Deadline) -> Response:
    def fill(value: Any, encode: Any = str) -> Any:
        return _filled(value, values, encode)

    expect = fill(written.get("expect", {}))
    wanted = expect.get("status", "2xx")
    url = full_url(spec, fill(written["url"], lambda text: quote(text, safe="")))
    headers = {**spec.get("headers", {}), **written.get("headers", {})}
    body = written.get("body")
    content = None if body is None else fill(body).encode()
    if "json" in written:
        content = json.dumps(fill(written["json"])).encode()
        headers = {"Content-Type": "application/json", **headers}
    request = Request(
        url=url,
        method=str(written.get("method", "GET" if content is None else "POST")).upper(),
        headers=fill(headers),
        body=content,
        follow=written.get("follow", True) and not _matches(302, wanted) and not _matches(301, wanted),
        ca=spec.get("ca"),
        verify=spec.get("verify", True),
    )
    what = f"{request.method} {shown_url(url)}"
    try:
        limit = min(deadline.left(), parse_duration(written.get("timeout", deadline.seconds)))
    except TimeoutError:
        raise deadline.missed(what, "not asked, since all requests together did not end") from None
    # Messages say 500ms, not the 499ms that are left.
    response = send(request, math.ceil(limit * 100) / 100)
    try:
        _expected(response, expect, wanted, what)
    except WrongAnswer:
        if MARKER.lower() in response.headers:
            raise NotReached(
                what, "answered by the maintenance page, which says nothing of the application behind it"
            ) from None
        raise
    for name, path in written.get("save", {}).items():
        values[name] = str(dig(response.json(), path, what))
    return response


def _filled(value: Any, values: Mapping[str, str], encode: Any = str) -> Any:
    if isinstance(value, str):
        return re.sub(r"<([^<>]*)>", lambda found: encode(values[found[1]]) if found[1] in values else found[0], value)
    if isinstance(value, Mapping):
        return {_filled(key, values): _filled(each, values) for key, each in value.items()}
    if isinstance(value, Sequence):
        return [_filled(each, values) for each in value]
    return value


def _matches(status: int, wanted: Any) -> bool:
    if isinstance(wanted, Sequence) and not isinstance(wanted, str):
        return any(_matches(status, each) for each in wanted)
    return str(status) == str(wanted) or f"{status // 100}xx" == wanted


def _expected(response: Response, expect: Mapping[str, Any], wanted: Any, what: str) -> None:
    if not _matches(response.status, wanted):
        raise WrongAnswer(what, f"answered {response.status}", _either(wanted))
    text = expect.get("contains")
    if text is not None and text not in response.text:
        raise WrongAnswer(what, f"answered {shortened(response.text)}", f"{shortened(text)} in it")
    pattern = expect.get("matches")
    if pattern is not None and not re.search(pattern, response.text):
        raise WrongAnswer(what, f"answered {shortened(response.text)}", f"it to match {pattern!r}")
    for path, value in expect.get("json", {}).items():
        found = dig(response.json(), path, what)
        if found != value and not (isinstance(value, str) and str(found) == value):
            raise WrongAnswer(what, f"{path} is {shortened(found)}", shortened(value))
    within = expect.get("within")
    if within is not None and response.seconds > parse_duration(within):
        raise WrongAnswer(what, f"answered after {format_duration(response.seconds)}", f"within {within}")


def _either(wanted: Any) -> str:
    if isinstance(wanted, Sequence) and not isinstance(wanted, str):
        return " or ".join(str(each) for each in wanted)
    return str(wanted)


def dig(document: Any, path: str, what: str) -> Any:
    """The value at ``choices.0.message.content`` of a JSON document.

    :raises WrongAnswer: there is nothing at this path.
    """
    here = document
    for key in str(path).split("."):
        try:
            here = here[int(key)] if isinstance(here, list) else here[key]
        except (KeyError, IndexError, ValueError, TypeError):
            raise WrongAnswer(what, f"answered {shortened(document)}", f"{path} in it") from None
    return here
