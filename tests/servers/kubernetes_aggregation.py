"""APIs that a server of the test's own has, behind the API server of :mod:`tests.servers.kubernetes`.

``with autoscaling_v2(cluster): …``: what clusters have since 1.23, on an older one.
"""

from __future__ import annotations

import base64
import contextlib
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import urllib3

from tests.servers.kubernetes import Api, ApiError, Cluster, ControlPlane

_LIMIT = 30.0
_SERVICES = "/api/v1/namespaces/kube-system/services"
_API_SERVICES = "/apis/apiregistration.k8s.io/v1/apiservices"

Json = dict[str, Any]


class AggregatedApi:
    """A group and version whose requests the API server passes on, once it has seen that the user may make them.

    :param group_version: such as ``metrics.k8s.io/v1beta1``.
    :param trust: of :func:`trusted`.
    :param answer: from method, path with query, content type and body to an object. Its :class:`KeyError` is told as
        404, its :class:`~tests.servers.kubernetes.ApiError` as it is, no connection as 503.
    """

    def __init__(
        self, api: Api, group_version: str, trust: dict[str, str], answer: Callable[[str, str, str, bytes], Json]
    ) -> None:
        group, version = group_version.split("/")
        self._api = api
        self._group_version, self._service = group_version, _service(group_version)
        self._name = f"{version}.{group}"
        self._spec: Json = {"group": group, "version": version, "caBundle": trust["authority"]}

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _answer(self) -> None:
                sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                try:
                    status, content = 200, answer(self.command, self.path, self.headers.get("Content-Type", ""), sent)
                except KeyError:
                    status, content = 404, _failure(404, "NotFound", self.path)
                except ApiError as error:
                    status, content = error.status, _failure(error.status, error.reason, error.message)
                except urllib3.exceptions.HTTPError as error:
                    status, content = 503, _failure(503, "ServiceUnavailable", str(error))
                body = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _answer

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(trust["certificate"])
        self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        # Already here: what does not serve cannot be shut down.
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def begin(self) -> None:
        """Returns when the API server passes requests on.

        :raises TimeoutError: it does not.
        """
        port = self._server.server_address[1]
        service = {"type": "ExternalName", "externalName": "localhost", "ports": [{"port": port}]}
        self._api.request("POST", _SERVICES, {"metadata": {"name": self._service}, "spec": service})
        # The last of the versions: nobody has it who does not ask for it.
        spec = {**self._spec, "groupPriorityMinimum": 100, "versionPriority": 1}
        spec["service"] = {"name": self._service, "namespace": "kube-system", "port": port}
        self._api.request("POST", _API_SERVICES, {"metadata": {"name": self._name}, "spec": spec})
        end = time.monotonic() + _LIMIT
        while True:
            try:
                self._api.request("GET", f"/apis/{self._group_version}")
            except ApiError as error:
                if time.monotonic() > end:
                    raise TimeoutError(f"{self._name} is not available: {error}") from None
                time.sleep(0.05)
            else:
                return

    def end(self) -> None:
        """An API without its server would hold up the deletion of every namespace."""
        with contextlib.suppress(ApiError, urllib3.exceptions.HTTPError):
            self._api.request("DELETE", f"{_API_SERVICES}/{self._name}", limit=5)
            self._api.request("DELETE", f"{_SERVICES}/{self._service}", limit=5)
        self._server.shutdown()
        self._server.server_close()


def trusted(cluster: ControlPlane, group_version: str) -> dict[str, str]:
    """What an :class:`AggregatedApi` needs to be believed by this cluster; may be sent to another process."""
    certificate = cluster.serving_certificate(f"{_service(group_version)}.kube-system.svc", "localhost")
    return {"certificate": str(certificate), "authority": base64.b64encode(cluster.authority).decode()}


@contextmanager
def autoscaling_v2(cluster: Cluster) -> Iterator[None]:
    """``autoscaling/v2``: the cluster's own, else its ``v2beta2`` under the newer name. Their objects are the same.

    Watches are not passed on.
    """
    if not isinstance(cluster, ControlPlane) or cluster.version >= (1, 23):
        yield
        return
    new, old = "autoscaling/v2", "autoscaling/v2beta2"

    def answer(method: str, path: str, content: str, sent: bytes) -> Json:
        body = json.loads(sent.replace(f'"{new}"'.encode(), f'"{old}"'.encode())) if sent else None
        got = cluster.api.request(method, path.replace(f"/apis/{new}", f"/apis/{old}", 1), body, content)
        renamed: Json = json.loads(json.dumps(got).replace(f'"{old}"', f'"{new}"'))
        return renamed

    served = AggregatedApi(cluster.api, new, trusted(cluster, new), answer)
    try:
        served.begin()
        yield
    finally:
        served.end()


def _service(group_version: str) -> str:
    return "balik-" + group_version.replace("/", "-").replace(".", "-")


def _failure(status: int, reason: str, message: str) -> Json:
    told = {"kind": "Status", "apiVersion": "v1", "status": "Failure"}
    return {**told, "code": status, "reason": reason, "message": message}
