"""A real Kubernetes control plane on loopback: etcd, API server and controller manager, with RBAC and aggregation.

``with control_plane(tmp_path) as cluster: cluster.apply(manifests)``. No kubelet and no scheduler run: pods are carried
by :mod:`tests.servers.kubernetes_nodes`. The programs are looked for in ``$KUBEBUILDER_ASSETS``, then where
``tools/control-plane`` puts them. ``$BALIK_TEST_KUBECONFIG`` names a cluster that is used instead (``cluster.own`` is
then False, and nothing is started or stopped).
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import kubernetes.client
import kubernetes.config
import urllib3
import yaml
from cryptography.hazmat.primitives.asymmetric import ec

from tests.servers.certificates import Authority, pem
from tests.servers.loopback import WITH_PARENT, free_port, hanging

_PROGRAMS = ("kube-apiserver", "kube-controller-manager", "etcd")
_START_LIMIT = 60.0
_STOP_LIMIT = 20.0
_CONCURRENCY = 8
_AGAIN = 0.3
_SERVICES = "10.0.0.0/16"
_SERVICE_ACCOUNT = re.compile(r"system:serviceaccount:([^:]+):([^:]+)$")

#: A manifest as a dictionary, several as YAML, or a file of them.
Manifests = Mapping[str, Any] | Iterable[Mapping[str, Any]] | str | Path


class ApiError(Exception):
    """What the API server refused: ``status`` (HTTP), ``reason`` and ``message`` as it said them."""

    def __init__(self, status: int, body: Mapping[str, Any]) -> None:
        self.status = status
        self.reason = str(body.get("reason", ""))
        self.message = str(body.get("message", ""))
        super().__init__(f"{status} {self.reason}: {self.message}")


class Api:
    """Plain JSON requests as the user of a kubeconfig; may be shared by threads."""

    def __init__(self, kubeconfig: str | Path) -> None:
        configuration = kubernetes.client.Configuration()
        kubernetes.config.load_kube_config(str(kubeconfig), client_configuration=configuration)
        configuration.connection_pool_maxsize = 64
        self._pool = kubernetes.client.ApiClient(configuration).rest_client.pool_manager
        self._host = configuration.host
        token = configuration.get_api_key_with_prefix("authorization")
        self._headers = {"Accept": "application/json", **({"Authorization": token} if token else {})}
        self._resources: dict[str, dict[str, tuple[str, str, bool]]] = {}

    def request(
        self, method: str, path: str, body: object = None, content: str = "application/json", limit: float = 30.0
    ) -> dict[str, Any]:
        """:param path: with its query, such as ``/api/v1/pods?limit=5``.
        :param content: the type of the body, such as ``application/merge-patch+json``.
        :raises ApiError: it was refused.
        :raises urllib3.exceptions.HTTPError: no server answered.
        """
        answer = self._pool.request(
            method,
            self._host + path,
            body=None if body is None else json.dumps(body),
            headers={**self._headers, "Content-Type": content},
            timeout=limit,
            retries=False,
        )
        got = _json(answer.data)
        if answer.status >= 400:
            raise ApiError(answer.status, got)
        return got

    def watch(self, path: str, resource_version: str, seconds: int = 300) -> Iterator[dict[str, Any]]:
        """Events (``{type, object}``) after a resource version, until the server ends the watch.

        :raises ApiError: it was refused; 410 when the version is too old.
        :raises urllib3.exceptions.HTTPError: the connection was lost.
        """
        joint = "&" if "?" in path else "?"
        query = f"watch=1&allowWatchBookmarks=true&resourceVersion={resource_version}&timeoutSeconds={seconds}"
        answer = self._pool.request(
            "GET",
            f"{self._host}{path}{joint}{query}",
            headers=self._headers,
            preload_content=False,
            timeout=urllib3.Timeout(connect=10, read=seconds + 10),
            retries=False,
        )
        try:
            if answer.status >= 400:
                raise ApiError(answer.status, _json(answer.read()))
            rest = b""
            # What has come is handed on at once: read1 does not wait for a full buffer.
            while chunk := answer.read1(1 << 20):
                *lines, rest = (rest + chunk).split(b"\n")
                yield from map(json.loads, lines)
        finally:
            answer.close()

    def follow(self, path: str, over: threading.Event | None = None) -> Iterator[dict[str, Any]]:
        """Events, also over an absence of the server; whenever it had to look anew, first all there is (``{"type":
        "LISTED", "object": list}``).

        :param over: when set, it ends with the server; else never.
        """
        over = over or threading.Event()
        while not over.is_set():
            try:
                listed = self.request("GET", path, limit=120)
                yield {"type": "LISTED", "object": listed}
                version = listed["metadata"]["resourceVersion"]
                while True:
                    for event in self.watch(path, version):
                        if event["type"] == "ERROR":
                            raise ApiError(int(event["object"].get("code", 500)), event["object"])
                        version = event["object"]["metadata"]["resourceVersion"]
                        if event["type"] != "BOOKMARK":
                            yield event
            except (ApiError, urllib3.exceptions.HTTPError, OSError) as error:
                if not over.wait(_AGAIN):
                    print(f"watch of {path}: {error}; looking again", file=sys.stderr, flush=True)

    def path(self, api_version: str, kind: str, namespace: str = "", name: str = "") -> str:
        """The path of an object, or of all of a kind; a namespaced kind without a namespace means every namespace's.

        :raises ApiError: 404 when the API has no such kind.
        """
        if kind not in self._resources.get(api_version, {}):
            prefix = "/apis/" if "/" in api_version else "/api/"
            listed = self.request("GET", prefix + api_version)["resources"]
            self._resources[api_version] = {
                entry["kind"]: (f"{prefix}{api_version}", entry["name"], entry["namespaced"])
                for entry in listed
                if "/" not in entry["name"]
            }
        try:
            base, plural, namespaced = self._resources[api_version][kind]
        except KeyError:
            raise ApiError(404, {"reason": "NotFound", "message": f"{api_version} has no {kind}"}) from None
        inside = f"/namespaces/{quote(namespace)}" if namespaced and namespace else ""
        return f"{base}{inside}/{plural}" + (f"/{quote(name)}" if name else "")


class Cluster:
    """A cluster that is already there: the one of ``$BALIK_TEST_KUBECONFIG``."""

    own = False

    def __init__(self, folder: Path, kubeconfig: Path) -> None:
        self.folder = folder
        #: A file; its user may do everything.
        self.kubeconfig = kubeconfig
        self._api: Api | None = None

    @property
    def api(self) -> Api:
        """Plain requests as the administrator."""
        self._api = self._api or Api(self.kubeconfig)
        return self._api

    def client(self) -> kubernetes.client.ApiClient:
        """A new official client, as the administrator; for ``kubernetes.client.AppsV1Api(cluster.client())``."""
        return kubernetes.config.new_client_from_config(str(self.kubeconfig))

    @property
    def version(self) -> tuple[int, int]:
        """Such as ``(1, 20)``."""
        said = self.api.request("GET", "/version")
        return int(said["major"]), int(said["minor"].rstrip("+"))

    def kubeconfig_for(self, user: str, groups: Sequence[str] = (), expired: bool = False) -> Path:
        """A kubeconfig of somebody with the rights that RBAC gives them, at first none.

        :param user: any name, or ``system:serviceaccount:<namespace>:<name>`` of an existing ServiceAccount.
        :param expired: with credentials that are no longer valid.
        """
        account = _SERVICE_ACCOUNT.match(user)
        if not account or expired:
            raise NotImplementedError(f"{self.kubeconfig} can only give valid tokens of ServiceAccounts, not of {user}")
        return self._write_kubeconfig(user, {"token": self._token(*account.groups())})

    def apply(self, manifests: Manifests) -> None:
        """Server-side apply, in the order given; many of one kind at once. A new kind's API is waited for.

        :raises ApiError: one was refused.
        """
        for _, same in itertools.groupby(_objects(manifests), key=lambda item: (item["apiVersion"], item["kind"])):
            self._each(same, self._apply)

    def delete(self, manifests: Manifests) -> None:
        """Deletes what is there of these, without waiting for what depends on them."""
        self._each(_objects(manifests), self._delete)

    def get(self, api_version: str, kind: str, name: str = "", namespace: str = "") -> dict[str, Any]:
        """An object (``{}`` when there is none), or without a name the list of a kind."""
        try:
            return self.api.request("GET", self.api.path(api_version, kind, namespace, name))
        except ApiError as error:
            if error.status == 404:
                return {}
            raise

    def offered(self, *versions: str) -> str:
        """The first of these versions of an API group (``autoscaling/v2``) that the cluster has now; ``""``: none."""
        groups = self.api.request("GET", "/apis")["groups"]
        there = {one["groupVersion"] for group in groups for one in group["versions"]}
        return next((version for version in versions if version in there), "")

    def eventually(self, true: Callable[[], object], limit: float = 30.0, says: str = "it") -> Any:
        """What ``true`` returned when it first was true.

        :raises AssertionError: it was not within the limit (seconds).
        """
        end = time.monotonic() + limit
        while not (got := true()):
            assert time.monotonic() < end, f"{says} did not come true within {limit:g} s"
            time.sleep(0.05)
        return got

    def stop_api(self) -> None:
        raise RuntimeError(f"the cluster of {self.kubeconfig} is not ours to stop")

    def start_api(self) -> None:
        raise RuntimeError(f"the cluster of {self.kubeconfig} is not ours to start")

    def _each(self, items: Iterable[dict[str, Any]], do: Callable[[dict[str, Any]], None]) -> None:
        with ThreadPoolExecutor(_CONCURRENCY) as threads:
            list(threads.map(do, items))

    def _apply(self, item: dict[str, Any]) -> None:
        query = "?fieldManager=balik-test&force=true"
        self.api.request("PATCH", self._path_of(item) + query, item, "application/apply-patch+yaml")

    def _delete(self, item: dict[str, Any]) -> None:
        try:
            self.api.request("DELETE", self._path_of(item) + "?propagationPolicy=Background")
        except ApiError as error:
            if error.status != 404:
                raise

    def _path_of(self, item: dict[str, Any]) -> str:
        namespace, name = item["metadata"].get("namespace", "default"), item["metadata"]["name"]
        kind = (item["apiVersion"], item["kind"])
        end = time.monotonic() + 10
        while True:  # the API of a CustomResourceDefinition appears a moment after it
            try:
                return self.api.path(*kind, namespace, name)
            except ApiError as error:
                if error.status != 404 or time.monotonic() > end:
                    raise
                time.sleep(0.1)

    def _token(self, namespace: str, name: str) -> str:
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token"
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"audiences": []}}
        return str(self.api.request("POST", path, body)["status"]["token"])

    def _write_kubeconfig(self, user: str, credentials: Mapping[str, str]) -> Path:
        shown = yaml.safe_load(self.kubeconfig.read_text())
        context = next(item["context"] for item in shown["contexts"] if item["name"] == shown["current-context"])
        cluster = next(item["cluster"] for item in shown["clusters"] if item["name"] == context["cluster"])
        return self._write(user, cluster, credentials)

    def _write(self, user: str, cluster: Mapping[str, Any], credentials: Mapping[str, str]) -> Path:
        name = re.sub(r"[^\w.-]+", "-", user)
        handle, path = tempfile.mkstemp(prefix=f"{name}-", suffix=".kubeconfig", dir=self.folder)
        with os.fdopen(handle, "w") as file:
            content = {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "balik-test", "cluster": dict(cluster)}],
                "users": [{"name": user, "user": dict(credentials)}],
                "contexts": [{"name": "balik-test", "context": {"cluster": "balik-test", "user": user}}],
                "current-context": "balik-test",
            }
            yaml.safe_dump(content, file)
        return Path(path)


class ControlPlane(Cluster):
    """A cluster of our own."""

    own = True

    def __init__(self, folder: Path, data: Path, services: str = _SERVICES) -> None:
        self._services = services
        self._programs = programs()
        self._data = data
        self._authority = Authority()
        self._ports = {name: free_port() for name in ("api", "manager", "etcd", "peer")}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._minor = _minor(self._programs)
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.url = f"https://127.0.0.1:{self._ports['api']}"
        super().__init__(folder, self.kubeconfig_for("balik-admin", ["system:masters"]))
        self._keys()

    def start(self) -> None:
        """:raises RuntimeError: one of the programs ended or did not become ready; with the end of its log."""
        self._start_etcd()
        self.start_api()
        self._start_manager()

    def stop(self) -> None:
        """Ends everything; the data stays until the folder is removed."""
        for name in ("kube-controller-manager", "kube-apiserver", "etcd"):
            self._end(name)

    def stop_api(self) -> None:
        """``kill -9`` of the API server: requests in flight are lost. The data stays."""
        self._end("kube-apiserver")

    def silent_api(self) -> AbstractContextManager[None]:
        """Meanwhile the API server takes connections, and answers none."""
        return hanging(self._processes["kube-apiserver"])

    def start_api(self) -> None:
        """Starts the API server, after :meth:`stop_api` on the port and the data it had.

        :raises RuntimeError: it ended or did not become ready; with the end of its log.
        """
        at = self._data
        self._start(
            "kube-apiserver",
            f"--etcd-servers=http://127.0.0.1:{self._ports['etcd']}",
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            f"--secure-port={self._ports['api']}",
            # Nobody routes to it by its Service.
            "--endpoint-reconciler-type=none",
            f"--service-cluster-ip-range={self._services}",
            f"--cert-dir={at}",
            f"--tls-cert-file={at / 'server.crt'}",
            f"--tls-private-key-file={at / 'server.key'}",
            f"--client-ca-file={at / 'ca.crt'}",
            "--authorization-mode=RBAC",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={at / 'accounts.key'}",
            f"--service-account-signing-key-file={at / 'accounts.key'}",
            # Without it a pod can be created before its namespace's default ServiceAccount has come, and no pod here
            # ever mounts a token.
            "--disable-admission-plugins=ServiceAccount",
            "--allow-privileged=true",
            # The aggregation layer, for metrics.k8s.io.
            f"--requestheader-client-ca-file={at / 'ca.crt'}",
            "--requestheader-allowed-names=balik-proxy",
            "--requestheader-extra-headers-prefix=X-Remote-Extra-",
            "--requestheader-group-headers=X-Remote-Group",
            "--requestheader-username-headers=X-Remote-User",
            f"--proxy-client-cert-file={at / 'proxy.crt'}",
            f"--proxy-client-key-file={at / 'proxy.key'}",
        )
        self._wait("kube-apiserver", f"{self.url}/readyz")

    def kubeconfig_for(self, user: str, groups: Sequence[str] = (), expired: bool = False) -> Path:
        account = _SERVICE_ACCOUNT.match(user)
        if account and not expired:
            credentials = {"token": self._token(*account.groups())}
        else:
            identity = self._authority.issue(user, groups, days=-1 if expired else 1)
            credentials = {
                "client-certificate-data": base64.b64encode(identity.certificate).decode(),
                "client-key-data": base64.b64encode(identity.key).decode(),
            }
        authority = base64.b64encode(self._authority.certificate).decode()
        return self._write(user, {"server": self.url, "certificate-authority-data": authority}, credentials)

    def serving_certificate(self, *hosts: str) -> Path:
        """A file with a certificate for these hosts, signed by the cluster's authority, and its key."""
        identity = self._authority.issue(hosts[0], hosts=hosts)
        path = self._data / f"{hosts[0]}.pem"
        path.write_bytes(identity.certificate + identity.key)
        return path

    @property
    def authority(self) -> bytes:
        """The certificate that signed all others, PEM."""
        return self._authority.certificate

    def _keys(self) -> None:
        hosts = ("127.0.0.1", "localhost", "kubernetes.default.svc")
        for name, identity in {
            "server": self._authority.issue("kube-apiserver", hosts=hosts),
            "proxy": self._authority.issue("balik-proxy"),
        }.items():
            (self._data / f"{name}.crt").write_bytes(identity.certificate)
            (self._data / f"{name}.key").write_bytes(identity.key)
        (self._data / "ca.crt").write_bytes(self.authority)
        (self._data / "accounts.key").write_bytes(pem(ec.generate_private_key(ec.SECP256R1())))

    def _start_etcd(self) -> None:
        client, peer = (f"http://127.0.0.1:{self._ports[name]}" for name in ("etcd", "peer"))
        self._start(
            "etcd",
            f"--data-dir={self._data / 'etcd'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            # Alone, it need not wait for others before it leads.
            "--heartbeat-interval=50",
            "--election-timeout=250",
        )
        self._wait("etcd", f"{client}/health")

    def _start_manager(self) -> None:
        options = [
            f"--kubeconfig={self.kubeconfig}",
            "--bind-address=127.0.0.1",
            f"--secure-port={self._ports['manager']}",
            f"--cert-dir={self._data}",
            f"--root-ca-file={self._data / 'ca.crt'}",
            f"--service-account-private-key-file={self._data / 'accounts.key'}",
            "--leader-elect=false",
            # Nobody sends the heartbeats of the nodes, and these would call them lost.
            "--controllers=*,-nodelifecycle,-nodeipam,-attachdetach,-persistentvolume-binder,-service,-route",
            # A thousand Deployments are not to wait for the client's own limit of 20 requests a second.
            "--kube-api-qps=1000",
            "--kube-api-burst=2000",
            "--concurrent-deployment-syncs=20",
            "--concurrent-replicaset-syncs=20",
            # An autoscaler answers within seconds instead of minutes.
            "--horizontal-pod-autoscaler-sync-period=1s",
            "--horizontal-pod-autoscaler-cpu-initialization-period=1s",
            "--horizontal-pod-autoscaler-initial-readiness-delay=1s",
            "--horizontal-pod-autoscaler-downscale-stabilization=3s",
        ]
        if self._minor < 24:
            options.append("--port=0")  # a second, open port, taken away in 1.24
        self._start("kube-controller-manager", *options)
        self._wait("kube-controller-manager", f"https://127.0.0.1:{self._ports['manager']}/healthz")

    def _start(self, name: str, *options: str) -> None:
        # To the kernel the parent is a thread, and a test may start one of these in a thread that ends before it.
        parent = WITH_PARENT if threading.current_thread() is threading.main_thread() else ()
        with (self.folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [*parent, self._programs[name], *options], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def _wait(self, name: str, url: str) -> None:
        """Until the URL answers 200."""
        process, end = self._processes[name], time.monotonic() + _START_LIMIT
        with urllib3.PoolManager(cert_reqs="CERT_NONE", assert_hostname=False) as pool, _no_warnings():
            while time.monotonic() < end and process.poll() is None:
                with contextlib.suppress(urllib3.exceptions.HTTPError):
                    if pool.request("GET", url, timeout=5, retries=False).status == 200:
                        return
                time.sleep(0.05)
        said = (self.folder / f"{name}.log").read_text(errors="replace").splitlines()[-10:]
        raise RuntimeError(f"{name} is not ready (ended with {process.poll()}):\n" + "\n".join(said))

    def _end(self, name: str) -> None:
        process = self._processes.pop(name, None)
        if process:
            process.kill()
            process.wait(_STOP_LIMIT)


def programs() -> dict[str, Path]:
    """Name → path of the control plane's programs.

    :raises FileNotFoundError: one is missing; says how to get it.
    """
    named = os.environ.get("KUBEBUILDER_ASSETS", "")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "balik"
    folders = [Path(named)] if named else sorted(cache.glob("kubernetes-*"), reverse=True)
    for folder in folders:
        found = {name: folder / name for name in _PROGRAMS if (folder / name).is_file()}
        if "etcd" not in found and (system := shutil.which("etcd")):
            found["etcd"] = Path(system)
        if len(found) == len(_PROGRAMS):
            return found
    where = f"$KUBEBUILDER_ASSETS ({named})" if named else f"{cache}/kubernetes-*"
    raise FileNotFoundError(
        f"no kube-apiserver, kube-controller-manager and etcd in {where}. "
        "Build them once with: tools/control-plane (or set KUBEBUILDER_ASSETS, or BALIK_TEST_KUBECONFIG)"
    )


@contextmanager
def control_plane(folder: Path, services: str = _SERVICES) -> Iterator[Cluster]:
    """A ready cluster; kubeconfigs and logs are written to ``folder``. All that was started is ended afterwards.

    :param services: where the addresses of its Services are from.
    """
    named = os.environ.get("BALIK_TEST_KUBECONFIG")
    if named:
        yield Cluster(folder, Path(named))
        return
    memory = Path("/dev/shm")
    data = Path(tempfile.mkdtemp(prefix="balik-k8s-", dir=memory if os.access(memory, os.W_OK) else None))
    try:
        cluster = ControlPlane(folder, data, services)
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()
    finally:
        shutil.rmtree(data, ignore_errors=True)


def _objects(manifests: Manifests) -> Iterator[dict[str, Any]]:
    if isinstance(manifests, Path):
        manifests = manifests.read_text()
    if isinstance(manifests, str):
        manifests = [item for item in yaml.safe_load_all(manifests) if item]
    for item in [manifests] if isinstance(manifests, Mapping) else manifests:
        yield dict(item)


def _json(data: bytes) -> dict[str, Any]:
    try:
        got = json.loads(data)
    except ValueError:
        return {"message": data.decode(errors="replace")}
    return got if isinstance(got, dict) else {"message": str(got)}


def _minor(found: Mapping[str, Path]) -> int:
    said = subprocess.run(
        [found["kube-apiserver"], "--version"], capture_output=True, text=True, check=True, timeout=30
    ).stdout
    version = re.search(r"v1\.(\d+)", said)
    if not version:
        raise RuntimeError(f"{found['kube-apiserver']} --version says {said!r}, expected Kubernetes v1.…")
    return int(version[1])


@contextmanager
def _no_warnings() -> Iterator[None]:
    """Before it is ready, a server's certificate is not looked at."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", urllib3.exceptions.InsecureRequestWarning)
        yield
