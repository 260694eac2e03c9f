"""A mutating admission webhook on loopback, which rewrites images to a mirror's name as many clusters do.

``with mirror(cluster, "shop", "pods", "registry.example", "mirror.example"): ...`` gives each new pod of the namespace
``mirror.example/hub:1`` where ``registry.example/hub:1`` was asked for; with ``deployments``, the workload itself.
"""

from __future__ import annotations

import base64
import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.servers.kubernetes import Cluster, ControlPlane


@contextmanager
def mirror(
    cluster: Cluster, namespace: str, resource: str, old: str, new: str, rehearses: bool = True
) -> Iterator[None]:
    """The webhook, in force for one namespace until the end.

    :param resource: ``pods`` or ``deployments``.
    :param old, new: registries.
    :param rehearses: whether it says already in a dry run what it would do.
    """

    assert isinstance(cluster, ControlPlane), "only a cluster of ours reaches this machine's loopback"

    class Webhook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["request"]
            spec, root = request["object"]["spec"], "/spec"
            if resource != "pods":
                spec, root = spec["template"]["spec"], "/spec/template/spec"
            ops = [
                {"op": "replace", "path": f"{root}/{part}/{number}/image", "value": new + one["image"][len(old) :]}
                for part in ("initContainers", "containers")
                for number, one in enumerate(spec.get(part) or [])
                if one["image"].startswith(f"{old}/") and (rehearses or not request["dryRun"])
            ]
            patch = base64.b64encode(json.dumps(ops).encode()).decode()
            answer = {"uid": request["uid"], "allowed": True, "patchType": "JSONPatch", "patch": patch}
            body = json.dumps({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": answer})
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Webhook)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cluster.serving_certificate("127.0.0.1"))
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    labels = {"metadata": {"labels": {"mirrored": namespace}}}
    cluster.api.request("PATCH", f"/api/v1/namespaces/{namespace}", labels, "application/merge-patch+json")
    configuration = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": f"mirror-{resource}-{namespace}"},
        "webhooks": [
            {
                "name": "images.mirror.example",
                "clientConfig": {
                    "url": f"https://127.0.0.1:{server.server_port}/",
                    "caBundle": base64.b64encode(cluster.authority).decode(),
                },
                "rules": [
                    {
                        "apiGroups": ["apps" if resource != "pods" else ""],
                        "apiVersions": ["v1"],
                        "operations": ["CREATE", "UPDATE"] if resource != "pods" else ["CREATE"],
                        "resources": [resource],
                    }
                ],
                "namespaceSelector": {"matchLabels": {"mirrored": namespace}},
                "sideEffects": "NoneOnDryRun",
                "admissionReviewVersions": ["v1"],
                "failurePolicy": "Fail",
            }
        ],
    }
    cluster.apply(configuration)
    try:
        yield
    finally:
        cluster.delete(configuration)
        server.shutdown()
        server.server_close()
        thread.join(10)
