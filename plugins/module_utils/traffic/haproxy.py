"""HAProxy: the page is on while a map says so; the map is changed in memory, and in its file for the next start."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path

from ..errors import BalikError, Unreachable
from ..files import write_whole
from .balancer import Balancer, File, State, names, need_writable, read_text, run
from .page import BYPASS, COOKIE, MARKER, PREVIEW, Page

_SOCKET_LIMIT = 3.0
_SECTIONS = frozenset(
    (
        *("global", "defaults", "frontend", "listen", "backend", "cache", "peers", "resolvers", "userlist", "mailers"),
        *("program", "http-errors", "ring", "log-forward", "log-profile", "fcgi-app", "crt-store", "traces"),
    )
)

# What changes is read from files, so that these lines stay as they are whatever the plan says.
_LINES = """\
http-request set-var(txn.maintenance) str(page),map({folder}/switch.map)
http-request set-var(txn.maintenance) str(off) if {{ path -f {folder}/health.lst }}
http-request set-var(txn.maintenance) str(off) if {{ req.cook({cookie}) -f {folder}/bypass.lst }}
http-request set-var(txn.maintenance) str(off) if {{ req.hdr({bypass}) -f {folder}/bypass.lst }}
http-request set-var(txn.maintenance) str(on) if {{ req.hdr({preview}) -f {folder}/bypass.lst }}
http-request return status 503 content-type "application/json; charset=utf-8" file {folder}/page.json {headers} if \
{{ var(txn.maintenance) -m str on }} {{ req.hdr(accept) -m sub application/json }}
http-request return status 503 content-type "text/html; charset=utf-8" file {folder}/page.html {headers} if \
{{ var(txn.maintenance) -m str on }}
"""
_HEADERS = (
    "hdr Retry-After %[str(retry-after),map({folder}/switch.map)] hdr Cache-Control no-store "
    "hdr {marker} %[str(revision),map({folder}/switch.map)]"
)


class HAProxy(Balancer):
    """HAProxy with the lines of ``frontend.cfg`` in its frontends.

    :param folder: holds the map ``switch.map``, the pages, and ``frontend.cfg`` to copy from.
    :param stats_socket: path of the runtime socket; its default level, ``operator``, is enough.
    :param config: the configuration files, as they are given to ``-f``.
    :param frontends: those that need the switch; empty: every ``frontend`` and ``listen`` does.
    :param command: how HAProxy is called to try a configuration.
    :param reload_command: how a running HAProxy is told to load it.
    """

    title = "HAProxy"

    def __init__(
        self,
        folder: str,
        stats_socket: str = "/run/haproxy/admin.sock",
        config: Sequence[str] = ("/etc/haproxy/haproxy.cfg",),
        frontends: Sequence[str] = (),
        command: str = "haproxy",
        reload_command: str = "systemctl reload haproxy",
    ) -> None:
        self.folder = Path(folder)
        self.map = self.folder / "switch.map"
        self._socket = Path(stats_socket)
        self._config = [Path(path) for path in config]
        self._frontends = frontends
        self._command = command
        self._reload = reload_command

    def read(self) -> State:
        need_writable(self.folder, self.title)
        live = self._live()
        return State(live["page"] == "on", self._kept().get("page") == "on")

    def switch(self, on: bool) -> None:
        word = "on" if on else "off"
        try:
            write_whole(self.map, _render({**self._live(), **self._kept(), "page": word}))
        except OSError as error:
            raise BalikError(str(self.map), f"not written: {error.strerror}") from error
        said = self._tell(f"set map {self.map} page {word}").strip()
        live = self._live()["page"]
        if live != word:
            raise BalikError(
                f"map {self.map} in HAProxy",
                f"page is {live} after `set map`, which said {said or 'nothing'!r}",
                word,
            )

    def files(self, page: Page, bypass: str) -> list[File]:
        try:
            on = self.read().on
        except BalikError:  # not yet running with the map: what the next start would do
            on = self._kept().get("page") == "on"
        switch = {
            "page": "on" if on else "off",
            "revision": page.revision,
            "retry-after": str(page.retry_after),
        }
        return [
            File(self.map, _render(switch)),
            File(self.folder / "bypass.lst", f"{bypass}\n", secret=True),
            File(self.folder / "health.lst", "".join(f"{path}\n" for path in page.health)),
            File(self.folder / "page.html", page.html),
            File(self.folder / "page.json", page.json),
            File(self.folder / "frontend.cfg", self.lines()),
        ]

    def lines(self) -> str:
        """What each frontend needs, in this order, before its other ``http-request`` rules."""
        headers = _HEADERS.format(folder=self.folder, marker=MARKER)
        return _LINES.format(folder=self.folder, headers=headers, cookie=COOKIE, bypass=BYPASS, preview=PREVIEW)

    def missing(self) -> list[str]:
        texts = {path: read_text(path) for path in self._config}
        absent = [str(path) for path, text in texts.items() if text is None]
        if absent:
            raise BalikError(
                "maintenance_page_haproxy_config", f"no file {names(absent)}", "HAProxy's configuration files"
            )
        frontends = {
            name: found for path, text in texts.items() for name, found in parse_frontends(str(path), text or "")
        }
        problems = [
            f"no frontend is called {name}; found {names(sorted(frontends))}"
            for name in self._frontends
            if name not in frontends
        ]
        if not frontends:
            problems.append(f"no frontend in {names(list(map(str, self._config)))}")
        needed = [_squeeze(line) for line in self.lines().splitlines()]
        for name, (where, lines) in frontends.items():
            if self._frontends and name not in self._frontends:
                continue
            if [line for line in lines if line in needed] != needed:
                problems.append(
                    f"frontend {name} ({where}): put the {len(needed)} lines of {self.folder}/frontend.cfg, in their "
                    "order, before its other http-request rules, and reload HAProxy"
                )
        return problems

    def validate(self) -> None:
        arguments = [part for path in self._config for part in ("-f", str(path))]
        do = "What was written is taken back; HAProxy goes on as before."
        run("HAProxy", self._command, "-c", *arguments, do=do)

    def reload(self) -> None:
        run("HAProxy", self._reload, do="maintenance_page_haproxy_reload says how HAProxy is reloaded here.")

    def _live(self) -> dict[str, str]:
        said = self._tell(f"show map {self.map}")
        pairs = dict(line.split(maxsplit=2)[1:] for line in said.splitlines() if len(line.split(maxsplit=2)) == 3)
        if pairs.get("page") in ("on", "off"):
            return pairs
        raise BalikError(
            f"map {self.map} in HAProxy",
            f"`show map` says {said.strip() or 'nothing'!r}",
            "a line `page off` or `page on`",
            f"Run maintenance-page's `prepare`, and put the lines of {self.folder}/frontend.cfg into the frontends.",
        )

    def _kept(self) -> dict[str, str]:
        lines = [line.split(maxsplit=1) for line in (read_text(self.map) or "").splitlines()]
        return {pair[0]: pair[1].strip() for pair in lines if len(pair) == 2 and not pair[0].startswith("#")}

    def _tell(self, command: str) -> str:
        """One command over the runtime socket, and its answer.

        :raises Unreachable: no socket, or nobody who answers on it.
        """
        do = f"Is HAProxy running, with `stats socket {self._socket}` in `global`?"
        if not self._socket.exists():
            raise Unreachable(str(self._socket), "no such socket", "HAProxy's runtime socket", do)
        try:
            with socket.socket(socket.AF_UNIX) as runtime:
                runtime.settimeout(_SOCKET_LIMIT)
                runtime.connect(str(self._socket))
                runtime.sendall(f"{command}\n".encode())
                answer = b""
                while chunk := runtime.recv(65536):
                    answer += chunk
        except OSError as error:
            raise Unreachable(str(self._socket), f"`{command}`: {error}", "an answer", do) from error
        return answer.decode(errors="replace")


def parse_frontends(path: str, text: str) -> list[tuple[str, tuple[str, list[str]]]]:
    """Name, place and lines (blanks squeezed, comments left out) of each ``frontend`` and ``listen`` in a file."""
    found: list[tuple[str, tuple[str, list[str]]]] = []
    inside = False
    for number, raw in enumerate(text.splitlines(), 1):
        line = _squeeze(raw)
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if words[0] in _SECTIONS:
            inside = words[0] in ("frontend", "listen") and len(words) > 1
            if inside:
                found.append((words[1], (f"{path}:{number}", [])))
        elif inside:
            found[-1][1][1].append(line)
    return found


def _squeeze(line: str) -> str:
    return " ".join(line.split())


def _render(switch: dict[str, str]) -> str:
    return "# Written by balik (role maintenance-page).\n" + "".join(f"{k} {v}\n" for k, v in switch.items())
