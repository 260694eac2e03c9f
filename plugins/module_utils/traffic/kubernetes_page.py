"""The maintenance page in a cluster: what is made of it, and which of its ports stands for which Service.

A small nginx serves the page on one port for each Service that the routes lead to. A request with the bypass, and the
health paths, go on to that very Service; so a route needs only another backend, whatever paths and hosts it has.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from .kubernetes_routes import Upstream
from .nginx import Nginx
from .page import Page

FOLDER = "/srv/maintenance"
UPSTREAMS = "balik.dev/upstreams"
"""Annotation on the page's Service: JSON, Service → port of the page."""
REVISION = "balik.dev/revision"
"""Annotation on what is made, by which a page of another plan is noticed."""
READY = 8000
_FIRST = 8001

_HEAD = """\
# The maintenance page. Written by balik (role maintenance-page): changes are lost.
pid /tmp/nginx.pid;
error_log /dev/stderr warn;
worker_processes 1;
events { worker_connections 4096; }
http {
    access_log off;
    server_tokens off;
    client_max_body_size 0;
    client_body_temp_path /tmp/body;
    proxy_temp_path /tmp/proxy;
    fastcgi_temp_path /tmp/fastcgi;
    uwsgi_temp_path /tmp/uwsgi;
    scgi_temp_path /tmp/scgi;
    map $http_upgrade $connection_upgrade { default upgrade; "" ""; }
    server {
        listen READY;
        location / { return 200; }
    }
"""
_SERVER = """\
    # {upstream}
    server {{
        listen {port};
        include {folder}/switch.conf;
        location / {{
            proxy_pass http://{address};
            proxy_http_version 1.1;
            proxy_set_header Host $http_host;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $connection_upgrade;
        }}
    }}
"""


def assign(known: Mapping[str, int], wanted: Iterable[Upstream]) -> dict[str, int]:
    """Service → port of the page: those that have one keep it, for a route may lead there right now."""
    ports = dict(known)
    for upstream in sorted(wanted, key=str):
        if str(upstream) not in ports:
            ports[str(upstream)] = max([_FIRST - 1, *ports.values()]) + 1
    return ports


def configuration(ports: Mapping[str, int], addresses: Mapping[str, str], folder: str = FOLDER) -> str:
    """nginx's whole configuration.

    :param addresses: Service → ``host:port`` as nginx is to reach it.
    """
    servers = "".join(
        _SERVER.format(upstream=upstream, port=port, folder=folder, address=addresses[upstream])
        for upstream, port in sorted(ports.items(), key=lambda item: item[1])
        if upstream in addresses
    )
    return _HEAD.replace("READY", str(READY)) + servers + "}\n"


def objects(
    name: str,
    namespace: str,
    image: str,
    replicas: int,
    page: Page,
    bypass: str,
    ports: Mapping[str, int],
    addresses: Mapping[str, str],
) -> list[dict[str, Any]]:
    """ConfigMap (the page), Secret (the configuration, which holds the bypass), Deployment and Service."""
    switch, html, json_page = (file.content for file in Nginx(FOLDER).files(page, bypass))
    texts = {"index.html": html, "index.json": json_page, "on": "The page is on wherever a route leads here.\n"}
    secrets = {"switch.conf": switch, "nginx.conf": configuration(ports, addresses)}
    parts = [image, str(replicas), *texts.values(), *secrets.values()]
    revision = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:10]
    labels = {"app.kubernetes.io/name": name, "app.kubernetes.io/managed-by": "balik"}
    select = {"app.kubernetes.io/name": name}
    matching = {"matchLabels": select}

    def made(api: str, kind: str, annotations: Mapping[str, str] | None = None, **rest: Any) -> dict[str, Any]:
        notes = {REVISION: revision, **(annotations or {})}
        metadata = {"name": name, "namespace": namespace, "labels": labels, "annotations": notes}
        return {"apiVersion": api, "kind": kind, "metadata": metadata, **rest}

    mounted = {
        "projected": {
            "sources": [
                {
                    "configMap": {
                        "name": name,
                        "items": [
                            {"key": "on", "path": "on"},
                            {"key": "index.html", "path": "page/index.html"},
                            {"key": "index.json", "path": "page/index.json"},
                        ],
                    }
                },
                {"secret": {"name": name, "items": [{"key": key, "path": key} for key in secrets]}},
            ]
        }
    }
    container = {
        "name": "nginx",
        "image": image,
        "command": ["nginx", "-c", f"{FOLDER}/nginx.conf", "-g", "daemon off;"],
        "ports": [{"name": "ready", "containerPort": READY, "protocol": "TCP"}],
        "readinessProbe": {"httpGet": {"path": "/", "port": READY}, "periodSeconds": 2},
        "resources": {"requests": {"cpu": "20m", "memory": "32Mi"}, "limits": {"memory": "128Mi"}},
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 101,
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "page", "mountPath": FOLDER, "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},
        ],
    }
    pod = {
        # A new page or configuration is served by new pods.
        "metadata": {"labels": labels, "annotations": {REVISION: revision}},
        "spec": {
            "automountServiceAccountToken": False,
            # Namespaces with the Pod Security Standard "restricted" ask for the profile.
            "securityContext": {"fsGroup": 101, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [container],
            "volumes": [{"name": "page", **mounted}, {"name": "tmp", "emptyDir": {}}],
        },
    }
    listening = [
        {"name": f"p{port}", "port": port, "targetPort": port, "protocol": "TCP"} for port in sorted(ports.values())
    ]
    return [
        made("v1", "ConfigMap", data=texts),
        made("v1", "Secret", type="Opaque", data={key: _base64(text) for key, text in secrets.items()}),
        made("apps/v1", "Deployment", spec={"replicas": replicas, "selector": matching, "template": pod}),
        made(
            "v1",
            "Service",
            {UPSTREAMS: json.dumps(dict(ports), sort_keys=True)},
            spec={"selector": select, "ports": listening},
        ),
    ]


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
