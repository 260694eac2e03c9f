"""nginx: the page is on while a file exists, which nginx looks for at each request."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import BalikError
from ..files import sync_folder, write_whole
from .balancer import Balancer, File, State, names, need_writable, run
from .page import BYPASS, COOKIE, MARKER, PREVIEW, Page

_FILE = re.compile(r"^# configuration file (.+):\n", re.MULTILINE)
_TOKEN = re.compile(
    r"""\s+|\#[^\n]*|[{};]|"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|(?:\\.|\$\{|[^\s{};"'\\])+|.""", re.DOTALL
)

# `error_page` stands in the locations only: in the server it would cut off those that the server inherits, and would
# catch the application's own 503. The page is reached by an internal redirect to a file, because that turns every
# method into GET; nginx would answer 405 to a POST in a named location. `satisfy any; allow all;` shows it also where
# the server asks for a password or for another service's permission, which may be what is down.
_SWITCH = """\
# The switch of the maintenance page. Written by balik (role maintenance-page): changes are lost.
# It stands in a server block, before everything that returns or rewrites:
#     include {folder}/switch.conf;
set $maintenance "";
set $maintenance_type html;
if (-f {folder}/on) {{ set $maintenance on; }}
{health}if ($cookie_{cookie} = "{bypass}") {{ set $maintenance ""; }}
if ($http_{bypass_header} = "{bypass}") {{ set $maintenance ""; }}
if ($http_{preview_header} = "{bypass}") {{ set $maintenance on; }}
if ($uri ~ "^/\\.maintenance/") {{ set $maintenance ""; }}
if ($http_accept ~ "application/json") {{ set $maintenance_type json; }}
if ($maintenance) {{ rewrite ^ /.maintenance/answer last; }}
location = /.maintenance/answer {{
    internal;
    error_page 503 /.maintenance/index.$maintenance_type;
    return 503;
}}
location ^~ /.maintenance/ {{
    internal;
    satisfy any;
    allow all;
    alias {folder}/page/;
    types {{ text/html html; application/json json; }}
    charset utf-8;
    charset_types application/json;
    etag off;
    add_header Retry-After {retry_after} always;
    add_header Cache-Control no-store always;
    add_header {marker} {revision} always;
}}
"""


class Nginx(Balancer):
    """nginx with ``switch.conf`` included in its server blocks.

    :param command: how nginx is called, as the user that may read its configuration.
    :param folder: holds ``switch.conf``, ``page/`` and, while the page is on, ``on``.
    :param servers: names of the server blocks that need the switch; empty: every server block does.
    """

    title = "nginx"

    def __init__(self, folder: str, command: str = "nginx", servers: Sequence[str] = ()) -> None:
        self.folder = Path(folder)
        self.snippet = self.folder / "switch.conf"
        self.flag = self.folder / "on"
        self._command = command
        self._servers = servers

    def read(self) -> State:
        need_writable(self.folder, self.title)
        on = self.flag.is_file()
        return State(on, on)

    def switch(self, on: bool) -> None:
        try:
            if on:
                write_whole(self.flag, "The maintenance page is on while this file is here.\n")
            else:
                self.flag.unlink(missing_ok=True)
                sync_folder(self.folder)
        except OSError as error:
            raise BalikError(str(self.flag), f"not {'made' if on else 'removed'}: {error.strerror}") from error

    def files(self, page: Page, bypass: str) -> list[File]:
        health = "".join(f'if ($uri = {path}) {{ set $maintenance ""; }}\n' for path in page.health)
        switch = _SWITCH.format(
            folder=self.folder,
            health=health,
            bypass=bypass,
            cookie=COOKIE,
            bypass_header=_variable(BYPASS),
            preview_header=_variable(PREVIEW),
            marker=MARKER,
            retry_after=page.retry_after,
            revision=page.revision,
        )
        return [
            File(self.snippet, switch, secret=True),
            File(self.folder / "page/index.html", page.html),
            File(self.folder / "page/index.json", page.json),
        ]

    def missing(self) -> list[str]:
        printed = run("nginx", self._command, "-T", do="Correct nginx's configuration first.")
        servers = parse_servers(printed)
        problems = [
            f"no server block has server_name {name}; found {names(sorted({n for s in servers for n in s.names}))}"
            for name in self._servers
            if not any(name in server.names for server in servers)
        ]
        if not servers:
            problems.append("nginx has no server block")
        for server in servers:
            if not self._servers or set(self._servers) & set(server.names):
                problems += server.problems(self.snippet)
        return problems

    def validate(self) -> None:
        run("nginx", self._command, "-t", "-q", do="What was written is taken back; nginx goes on as before.")

    def reload(self) -> None:
        run("nginx", self._command, "-s", "reload", do="Is nginx running?")


def _variable(header: str) -> str:
    return header.lower().replace("-", "_")


@dataclass
class Server:
    """A server block, with everything that its includes bring in."""

    names: list[str]
    where: str
    cached: bool
    directives: list[Directive] = field(default_factory=list)

    def problems(self, snippet: Path) -> list[str]:
        """What has to be done so that the switch works in this server; paths are compared as they are on the disk."""
        title = f"server {' '.join(self.names) or 'without a name'} ({self.where})"
        line = f"`include {snippet};`"
        real = snippet.resolve()
        for directive in self.directives:
            if Path(directive.file).resolve() == real:
                break
            if directive.name == "return":
                return [f"{title}: put {line} before the `return` in line {directive.line}, which leaves it no turn"]
        else:
            return [f"{title}: add {line} as the first line of the block"]
        own = [d.arguments[:1] != ["off"] for d in self.directives if d.name == "open_file_cache"]
        if own[-1] if own else self.cached:
            return [f"{title}: add `open_file_cache off;`, or nginx notices the switch only after its cache expires"]
        return []


@dataclass
class Directive:
    name: str
    arguments: list[str]
    file: str
    line: int
    block: list[Directive] | None = None


def parse_servers(printed: str) -> list[Server]:
    """The HTTP server blocks of what ``nginx -T`` printed, includes followed."""
    parts = _FILE.split(printed)
    files = {name: _parse(name, text) for name, text in zip(parts[1::2], parts[2::2])}
    if not files:
        return []
    main = next(iter(files))
    root = Path(main).parent
    servers = []
    for http in _expand(files[main], files, root):
        if http.name != "http":
            continue
        inside = list(_expand(http.block or [], files, root))
        cached = any(d.name == "open_file_cache" and d.arguments[:1] != ["off"] for d in inside)
        for block in inside:
            if block.name == "server":
                directives = list(_expand(block.block or [], files, root))
                found = [name for d in directives if d.name == "server_name" for name in d.arguments]
                servers.append(Server(found, f"{block.file}:{block.line}", cached, directives))
    return servers


def _expand(block: list[Directive], files: Mapping[str, list[Directive]], root: Path) -> Iterator[Directive]:
    for directive in block:
        if directive.name != "include" or not directive.arguments:
            yield directive
            continue
        pattern = str(root / directive.arguments[0])
        for name in sorted(files):
            if name.count("/") == pattern.count("/") and (name == pattern or fnmatch.fnmatchcase(name, pattern)):
                yield from _expand(files[name], files, root)


def _parse(name: str, text: str) -> list[Directive]:
    top: list[Directive] = []
    stack, line = [top], 1
    words: list[tuple[str, int]] = []
    for match in _TOKEN.finditer(text):
        token = match.group()
        if token in ("{", ";") and words:
            directive = Directive(words[0][0], [word for word, _ in words[1:]], name, words[0][1])
            stack[-1].append(directive)
            words = []
            if token == "{":
                directive.block = []
                stack.append(directive.block)
        elif token == "}" and len(stack) > 1:
            stack.pop()
            words = []
        elif not token.isspace() and token[0] not in "#{};":
            words.append((token[1:-1] if token[0] in "\"'" and len(token) > 1 else token, line))
        line += token.count("\n")
    return top
