"""The public entrance, asked from the load balancer's own host as a visitor would ask."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from ..errors import BalikError, Unreachable
from .page import MARKER

_ONE_REQUEST = 3.0
_DO = "Is the load balancer running, and listening where maintenance_page_url says?"
_FIRST_PAUSE, _LONGEST_PAUSE = 0.002, 0.1


@dataclass(frozen=True)
class Answer:
    """One HTTP answer. Header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: str

    @property
    def revision(self) -> str | None:
        """The revision of the maintenance page; ``None`` when something else has answered."""
        return self.headers.get(MARKER.lower())

    @property
    def is_page(self) -> bool:
        return self.status == 503 and self.revision is not None

    @property
    def is_app(self) -> bool:
        """Somebody other than the page has answered, and not with an error of its own."""
        return self.revision is None and self.status < 500

    def __str__(self) -> str:
        page = f"with {MARKER}: {self.revision}" if self.revision is not None else f"without {MARKER}"
        passed = [f"{name}: {self.headers[name]}" for name in ("server", "via") if name in self.headers]
        return f"answered {self.status} {page}" + (f" ({', '.join(passed)})" if passed else "")


@dataclass(frozen=True)
class Door:
    """Where visitors come in.

    :param url: ``http`` or ``https``, as the load balancer answers it on its own host.
    :param host: ``Host`` header and TLS name, where they differ from the URL's.
    """

    url: str
    host: str = ""
    validate_certs: bool = True

    def ask(self, headers: Mapping[str, str] | None = None, path: str = "") -> Answer:
        """GET of the URL, or of ``path`` on the same host, on a connection of its own; redirects are not followed.

        :raises Unreachable: no HTTP answer within three seconds.
        """
        # Only here: the switch is thrown before the first request, and should not wait for these to load.
        from http.client import HTTPConnection, HTTPException

        parts = urlsplit(self.url)
        secure = parts.scheme == "https"
        try:
            port = parts.port or (443 if secure else 80)
        except ValueError:
            port = 0
        if parts.scheme not in ("http", "https") or not parts.hostname or not port:
            raise BalikError("maintenance_page_url", f"found {self.url!r}", "one such as http://127.0.0.1/")
        target = path or (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection = HTTPConnection(parts.hostname, port, timeout=_ONE_REQUEST)
        try:
            connection.sock = socket.create_connection((parts.hostname, port), _ONE_REQUEST)
            if secure:
                connection.sock = self._tls().wrap_socket(connection.sock, server_hostname=self.host or parts.hostname)
            names = {"Host": self.host or parts.netloc.rpartition("@")[2], "Accept": "text/html"}
            connection.request("GET", target, headers={**names, **(headers or {})})
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, found, answer.read(1 << 20).decode(errors="replace"))
        except (OSError, HTTPException) as error:
            raise Unreachable(self.url, f"no answer: {error or type(error).__name__}", do=_DO) from error
        finally:
            connection.close()

    def _tls(self):  # type: ignore[no-untyped-def]  # ssl is loaded only where it is needed
        import ssl

        return ssl.create_default_context() if self.validate_certs else ssl._create_unverified_context()

    def wait(
        self,
        right: Callable[[Answer], bool],
        within: float,
        headers: Mapping[str, str] | None = None,
        steady: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> tuple[Answer | Unreachable, bool, float]:
        """Asks until the answer is ``right``: the last answer, whether it was right, and the seconds until it was.

        :param steady: seconds for which all answers must be right; old and new processes may share a port for a while.
        """
        start, pause = clock(), _FIRST_PAUSE
        since: float | None = None
        last: Answer | Unreachable
        while True:
            try:
                last = self.ask(headers)
                good = right(last)
            except Unreachable as error:
                last, good = error, False
            now = clock()
            since = (since if since is not None else now) if good else None
            if since is not None and now - since >= steady:
                return last, True, since - start
            if now - start >= within:
                return last, False, now - start
            sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE if since is None else steady / 20)
