"""The network of a cluster whose pods run as containers: what kube-proxy and an ingress controller do, by one HAProxy.

``with network(cluster, "hub", "10.177.90.0/24", port=18080, …) as entrance: requests.get(entrance.url)``

HAProxy runs as a container on the pods' network, where it answers for all addresses of Services, and its port 80,
published on loopback, is the entrance that Ingresses open. A process of the caller watches Services, Endpoints and
Ingresses: pods that come and go and routes that lead elsewhere are changed over HAProxy's runtime socket, so that no
connection is touched. Only a new Service makes it reload. A pod that has not answered within 15 s is answered for: 504.

Paths are prefixes, whatever their ``pathType``; of TLS, ``ingressClassName`` and annotations nothing is honoured. The
ready pods of a Service with the annotation ``prometheus.io/scrape: "true"`` stand in ``entrance.targets``, a file for
Prometheus' ``file_sd_configs``.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker

from tests.servers.kubernetes import Api, Cluster

_IMAGE = "balik/server:12"
_SLOTS = 12
_LIMIT = 20.0
_INSIDE = "/srv/network"
_KINDS = {
    "services": "/api/v1/services",
    "endpoints": "/api/v1/endpoints",
    "ingresses": "/apis/networking.k8s.io/v1/ingresses",
}
_HEAD = """\
global
    log stdout format raw local0 warning
    stats socket {inside}/admin.sock mode 666 level admin expose-fd listeners
    description {generation}
    maxconn 4096

defaults
    mode http
    log global
    timeout connect 2s
    timeout client 60s
    timeout server 15s
    timeout http-keep-alive 60s
    retries 3
    option redispatch

frontend entrance
    bind :80
    http-request set-var(txn.to) base,map_beg({inside}/routes.map)
    http-request set-var(txn.to) path,map_beg({inside}/routes.map) if !{{ var(txn.to) -m found }}
    use_backend %[var(txn.to)]
"""
_SERVICE = """
listen tcp_{name}
    mode tcp
    bind {address}:{port}
{servers}
backend http_{name}
{servers}"""

Json = dict[str, Any]
#: Address and port of a pod.
Place = tuple[str, int]


@dataclass(frozen=True)
class Wanted:
    """What Services and Ingresses say.

    :param services: backend → its Service's address and port.
    :param pods: backend → the ready pods behind it.
    :param routes: what a request begins with (``host/path`` or ``/path``) → backend.
    """

    services: Mapping[str, Place]
    pods: Mapping[str, frozenset[Place]]
    routes: Mapping[str, str]
    targets: tuple[str, ...]


def wanted(things: Mapping[str, Iterable[Json]]) -> Wanted:
    """:param things: all ``services``, ``endpoints`` and ``ingresses``."""
    endpoints = {_key(one): one for one in things["endpoints"]}
    services, pods, numbers, targets = {}, {}, {}, set()
    for service in things["services"]:
        address = service["spec"].get("clusterIP", "None")
        for port in service["spec"].get("ports") or [] if address not in ("", "None") else []:
            name = _backend(*_key(service), port["port"])
            services[name] = (address, port["port"])
            pods[name] = frozenset(_ready(endpoints.get(_key(service), {}), port.get("name")))
            for called in (port["port"], port.get("name")):
                numbers[(*_key(service), called)] = name
            if (service["metadata"].get("annotations") or {}).get("prometheus.io/scrape") == "true":
                targets |= {f"{host}:{number}" for host, number in pods[name]}
    routes = {}
    for ingress in things["ingresses"]:
        namespace = ingress["metadata"]["namespace"]
        for host, path, service in _rules(ingress["spec"]):
            port = service["port"].get("number") or service["port"].get("name")
            if backend := numbers.get((namespace, service["name"], port)):
                routes[f"{host}{path}"] = f"http_{backend}"
    return Wanted(services, pods, routes, tuple(sorted(targets)))


def _rules(spec: Json) -> Iterator[tuple[str, str, Json]]:
    if default := spec.get("defaultBackend", {}).get("service"):
        yield "", "/", default
    for rule in spec.get("rules") or []:
        for path in rule.get("http", {}).get("paths", []):
            if service := path["backend"].get("service"):
                yield rule.get("host", ""), path.get("path", "/"), service


def _ready(endpoints: Json, port_name: str | None) -> Iterator[Place]:
    for subset in endpoints.get("subsets") or []:
        for port in subset.get("ports") or []:
            if port.get("name") == port_name:
                for one in subset.get("addresses") or []:
                    yield one["ip"], port["port"]


def _key(thing: Json) -> tuple[str, str]:
    return thing["metadata"]["namespace"], thing["metadata"]["name"]


def _backend(namespace: str, service: str, port: int) -> str:
    return f"{namespace}_{service}_{port}"


class Proxy:
    """HAProxy's configuration, and what was changed since over its runtime socket."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._now = Wanted({}, {}, {}, ())
        #: Backend → the pod of each slot.
        self._slots: dict[str, list[Place | None]] = {}
        self._generation = 0
        self.container: Any = None

    def write(self, to: Wanted) -> None:
        """The whole configuration, with what stands there now; every reload begins with it."""
        self._generation += 1
        text = _HEAD.format(inside=_INSIDE, generation=self._generation)
        for name, (address, port) in sorted(to.services.items()):
            self._slots[name] = list(_seated(self._slots.get(name, [None] * _SLOTS), to.pods[name]))
            servers = "".join(_server(number, place) for number, place in enumerate(self._slots[name]))
            text += _SERVICE.format(name=name, address=address, port=port, servers=servers)
        (self._folder / "haproxy.cfg").write_text(text)
        (self._folder / "routes.map").write_text("".join(f"{at} {to.routes[at]}\n" for at in sorted(to.routes)))
        self._now = to

    def bring(self, to: Wanted) -> None:
        """Changes what is to be changed, by a reload only where there is another Service."""
        targets = [{"targets": list(to.targets), "labels": {}}]
        _write_whole(self._folder / "targets.json", json.dumps(targets))
        if to.services != self._now.services:
            self.write(to)
            self.reload()
            return
        self._order(list(self._orders(to)))
        self._now = to

    def reload(self) -> None:
        """:raises TimeoutError: HAProxy has not taken its configuration."""
        end = time.monotonic() + _LIMIT
        while True:
            self.container.kill(signal="SIGUSR2")
            # A master that has just started does not hear it.
            if self.runs(2.0):
                return
            if time.monotonic() > end:
                raise TimeoutError(f"HAProxy has not taken its configuration: {self.container.logs(tail=5).decode()}")

    def runs(self, within: float = _LIMIT) -> bool:
        """Whether the configuration that was written last is the one that runs, at the latest after some seconds."""
        end = time.monotonic() + within
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                if f"description: {self._generation}\n" in self._ask("show info"):
                    return True
            time.sleep(0.02)
        return False

    def _orders(self, to: Wanted) -> Iterator[str]:
        # A route never leads to where nobody is: pods come before it does, and go after it has gone.
        coming, going = [], []
        for name, pods in to.pods.items():
            before = self._slots[name]
            self._slots[name] = list(_seated(before, pods))
            for number, (old_place, new_place) in enumerate(zip(before, self._slots[name])):
                for server in (f"http_{name}/pod{number}", f"tcp_{name}/pod{number}") if old_place != new_place else ():
                    if new_place:
                        coming.append(f"set server {server} addr {new_place[0]} port {new_place[1]}")
                        coming.append(f"set server {server} state ready")
                    else:
                        going.append(f"set server {server} state maint")
        yield from coming
        place = f"{_INSIDE}/routes.map"
        for at in to.routes.keys() | self._now.routes.keys():
            old, new = self._now.routes.get(at), to.routes.get(at)
            if old and not new:
                yield f"del map {place} {at}"
            elif old != new:
                yield f"{'set' if old else 'add'} map {place} {at} {new}"
        yield from going

    def _order(self, orders: list[str]) -> None:
        for one in orders:
            self._ask(one)

    def _ask(self, order: str) -> str:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(5)
            connection.connect(str(self._folder / "admin.sock"))
            connection.sendall(order.encode() + b"\n")
            connection.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: connection.recv(65536), b"")).decode()


def _server(number: int, place: Place | None) -> str:
    host, port = place or ("127.0.0.1", 1)
    return f"    server pod{number} {host}:{port}{'' if place else ' disabled'}\n"


def _seated(slots: Iterable[Place | None], places: frozenset[Place]) -> Iterator[Place | None]:
    """The same slots: who stays keeps the seat, who is new takes a free one."""
    kept = [one if one in places else None for one in slots]
    new = iter(sorted(places - set(kept)))
    return (one or next(new, None) for one in kept)


class Watch:
    """Brings HAProxy to what the cluster says, until it is over."""

    def __init__(self, api: Api, proxy: Proxy) -> None:
        self._api, self._proxy = api, proxy
        self._things: dict[str, dict[str, Json]] = {}
        self._lock = threading.Lock()
        self._changed, self._over = threading.Event(), threading.Event()

    def begin(self) -> None:
        for kind in _KINDS:
            threading.Thread(target=self._follow, args=(kind,), daemon=True).start()
        threading.Thread(target=self._work, daemon=True).start()

    def end(self) -> None:
        """Nothing is changed any more; the threads end with the API server's connections."""
        self._over.set()
        self._changed.set()

    def _follow(self, kind: str) -> None:
        for event in self._api.follow(_KINDS[kind], self._over):
            shown = event["object"]
            with self._lock:
                if event["type"] == "LISTED":
                    self._things[kind] = {one["metadata"]["uid"]: one for one in shown["items"]}
                elif event["type"] == "DELETED":
                    self._things[kind].pop(shown["metadata"]["uid"], None)
                else:
                    self._things[kind][shown["metadata"]["uid"]] = shown
            self._changed.set()

    def _work(self) -> None:
        last = None
        while self._changed.wait() and not self._over.is_set():
            self._changed.clear()
            with self._lock:
                if len(self._things) < len(_KINDS):
                    continue
                to = wanted({kind: list(found.values()) for kind, found in self._things.items()})
            if to == last:
                continue
            try:
                self._proxy.bring(to)
                last = to
            except (OSError, docker.errors.DockerException) as error:
                print(f"network: {error}; trying again", file=sys.stderr, flush=True)
                self._over.wait(1)
                self._changed.set()


@dataclass(frozen=True)
class Entrance:
    """Where Ingresses let in, and Prometheus' file of ready pods."""

    url: str
    targets: Path


@contextmanager
def network(
    cluster: Cluster, name: str, services: str, folder: Path, *, label: str, port: int, container: str
) -> Iterator[Entrance]:
    """The network of a cluster; its container is removed afterwards.

    :param name: of Docker's network that the pods are on.
    :param services: the addresses of Services, a part of that network that no container gets.
    :param folder: for HAProxy's files; emptied at first.
    :param label: on its container, ``key=value``.
    :param port: of the entrance, on loopback.
    :param container: its container's name.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    engine = docker.from_env(timeout=60)
    proxy = Proxy(folder)
    proxy.write(Wanted({}, {}, {}, ()))
    _write_whole(folder / "targets.json", "[]")
    # All addresses of Services are this container's own; no other one has them.
    start = f"ip route add local {services} dev lo && exec haproxy -W -f {_INSIDE}/haproxy.cfg"
    proxy.container = engine.containers.run(
        _IMAGE,
        ["sh", "-c", start],
        name=container,
        hostname=container,
        network=name,
        ports={"80/tcp": ("127.0.0.1", port)},
        volumes=[f"{folder}:{_INSIDE}"],
        cap_add=["NET_ADMIN"],
        labels=dict([label.split("=", 1)]),
        detach=True,
    )
    watch = Watch(cluster.api, proxy)
    try:
        if not proxy.runs():
            raise TimeoutError(f"HAProxy did not start: {proxy.container.logs(tail=5).decode()}")
        watch.begin()
        yield Entrance(f"http://127.0.0.1:{port}", folder / "targets.json")
    finally:
        watch.end()
        proxy.container.remove(v=True, force=True)


def _write_whole(path: Path, text: str) -> None:
    part = path.with_suffix(".part")
    part.write_text(text)
    part.rename(path)
