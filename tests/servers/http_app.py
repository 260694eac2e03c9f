"""A small web application on loopback: it keeps documents, and it can misbehave in every way that HTTP allows.

``with http_app() as app: app.url, app.requests`` - ``app.requests`` is the log: ``POST /documents``, …
"""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from typing import Any

#: How long a hanging answer hangs, and a dripping one drips; longer than any limit of a test.
_FOREVER = 20.0


class Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    #: The default of 5 makes the sixth client of the same moment wait for a second.
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.documents: dict[str, Any] = {}
        self.ids = count(1)
        #: Method and path of a request → the statuses that it gets before it works.
        self.failing: dict[str, list[int]] = {}
        self.ending = threading.Event()
        self.scheme = "http"
        self.ca: Path | None = None

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no news here."""


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do(self) -> None:
        app, path = self.server, self.path.split("?")[0]
        app.requests.append(f"{self.command} {self.path}")
        app.headers.append({name.lower(): value for name, value in self.headers.items()})
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        statuses = app.failing.get(f"{self.command} {path}")
        if statuses:
            self.answer(statuses.pop(0), {"detail": "not now"})
        elif path.startswith("/documents"):
            self.document(path.removeprefix("/documents").strip("/"), body)
        elif path.startswith("/status/"):
            self.answer(int(path.split("/")[2]), {"detail": "as you wish"})
        elif path.startswith("/v1/"):
            self.gateway(path, body)
        else:
            getattr(self, "get_" + path.strip("/").replace("-", "_").replace("/", "_"), self.get_nothing)()

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = do

    def answer(self, status: int, content: object, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content, ensure_ascii=False).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def document(self, number: str, body: bytes) -> None:
        documents = self.server.documents
        if self.command == "POST":
            number = str(next(self.server.ids))
            documents[number] = json.loads(body)
            self.answer(201, {"id": number})
        elif number not in documents:
            self.answer(404, {"detail": "no such document"})
        elif self.command == "DELETE":
            del documents[number]
            self.answer(204, b"")
        else:
            self.answer(200, {"id": number, **documents[number]})

    def gateway(self, path: str, body: bytes) -> None:
        if self.headers.get("Authorization") != "Bearer sk-test":
            self.answer(401, {"error": {"message": "no valid key"}})
        elif path == "/v1/models":
            self.answer(200, {"data": [{"id": "small"}]})
        else:
            empty = json.loads(body)["model"] == "empty"
            self.answer(200, {"choices": [{"message": {"content": "" if empty else "OK"}}]})

    def get_held(self) -> None:
        """As the maintenance page of this project answers."""
        self.answer(503, b"Sedang dirawat", X_Maintenance="1f2e", Retry_After="120")

    def get_nothing(self) -> None:
        self.answer(404, {"detail": "nothing here"})

    def get_ok(self) -> None:
        self.answer(200, {"status": "ok", "version": "1.9.4", "load": 0.25, "parts": [{"name": "db"}]})

    def get_echo(self) -> None:
        sent = {name: value for name, value in self.headers.items() if name.startswith(("X-", "Auth"))}
        self.answer(200, {"you sent": sent})

    def get_unicode(self) -> None:
        self.answer(200, "Dokumen hukum telah disimpan — ✓ §".encode(), Content_Type="text/html; charset=utf-8")

    def get_latin(self) -> None:
        self.answer(200, "café".encode("latin-1"), Content_Type="text/html; charset=iso-8859-1")

    def get_bad_json(self) -> None:
        self.answer(200, b'{"status": "ok')

    def get_deep_json(self) -> None:
        self.answer(200, b"[" * 200_000)

    def get_big(self) -> None:
        self.answer(200, b"start " + b"x" * (10 << 20))

    def get_slow(self) -> None:
        time.sleep(0.25)
        self.get_ok()

    def get_hang(self) -> None:
        self.server.ending.wait(_FOREVER)

    def get_drip(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.drip(b"x")

    def get_drip_headers(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\n")
        self.drip(b"X-Drip: 1\r\n")

    def drip(self, piece: bytes) -> None:
        while not self.server.ending.wait(0.1):
            self.wfile.write(piece)
            self.wfile.flush()

    def get_cut(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf")
        self.close()

    def get_reset(self) -> None:
        linger = b"\x01\0\0\0\0\0\0\0"  # on, for 0 seconds: close() sends a reset
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.close()

    def get_garbage(self) -> None:
        self.wfile.write(b"220 mail.example ESMTP\r\n")
        self.close()

    def close(self) -> None:
        self.close_connection = True
        self.wfile.flush()
        self.connection.close()

    def get_moved(self) -> None:
        self.answer(302, {}, Location="/ok")

    def get_loop(self) -> None:
        self.answer(302, {}, Location="/loop")

    def get_away(self) -> None:
        # Another name of the same machine is another site.
        self.answer(302, {}, Location=f"http://localhost:{self.server.port}/ok")


@contextmanager
def http_app(tls: bool = False) -> Iterator[Server]:
    """:param tls: speak TLS with a certificate for ``localhost`` that signed itself; ``app.ca`` is its file."""
    app = Server()
    with tempfile.TemporaryDirectory(prefix="http-app-") as name:
        if tls:
            app.scheme, app.ca = "https", Path(name) / "cert.pem"
            app.socket = _context(Path(name)).wrap_socket(app.socket, server_side=True)
        thread = threading.Thread(target=app.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield app
        finally:
            app.ending.set()
            app.shutdown()
            app.server_close()


def _context(folder: Path) -> ssl.SSLContext:
    key, certificate = folder / "key.pem", folder / "cert.pem"
    request = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    about = ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run([*request, *about, "-keyout", key, "-out", certificate], check=True, capture_output=True, timeout=20)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context
