"""A web-hook receiver on loopback that keeps what it gets. As a web server does, it answers any GET.

``with webhook() as hook: ...; hook.bodies[0]["text"]``
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Hook:
    """``url`` is where it listens; ``bodies`` what was posted, in order; ``status`` what it answers."""

    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    status: int = 204


@contextmanager
def webhook(status: int = 204) -> Iterator[Hook]:
    """A running receiver."""
    hook = Hook(status=status)

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            hook.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(hook.status)
            self.send_header("Location", "/login")
            self.end_headers()

        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    hook.url = f"http://127.0.0.1:{server.server_port}/hooks/rollback"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield hook
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
