"""A cluster's API as plain JSON over a pool of kept connections.

The official client finds the cluster and the credentials (kubeconfig, exec plugins, a pod's own service account); its
models are left out, because making them costs more time and memory than the requests.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import ssl
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

from ..errors import BalikError, Unreachable

Json = dict[str, Any]
T = TypeVar("T")

#: The name under which this project's changes stand in ``metadata.managedFields``.
MANAGER = "balik"
#: How many requests at once.
THREADS = 8
#: Objects per page of a list; what bounds the memory.
PAGE = 250
_WORD = r"[A-Za-z0-9](?:[\w.-]{0,61}[A-Za-z0-9])?"
_TERM = re.compile(rf"(?:[a-z0-9][a-z0-9.-]{{0,252}}/)?{_WORD}(?:={_WORD})?", re.ASCII)
#: Said of a namespace in which nothing was found, and which may as well be misspelt.
UNKNOWN = ", nor may these credentials see whether that exists"
MERGE = "application/merge-patch+json"
JSON_PATCH = "application/json-patch+json"
#: Seconds to connect and to wait for an answer.
_CONNECT, _READ = 5.0, 60.0


class Refused(BalikError):
    """An answer of the API other than success; ``status`` is its HTTP code."""

    def __init__(self, status: int, what: str, found: str, expected: str = "", do: str = "") -> None:
        self.status = status
        super().__init__(what, found, expected, do)


class Cluster:
    """One cluster. Safe for several threads.

    :param configuration: a ``kubernetes.client.Configuration`` that is ready for use.
    :param name: how messages call it, such as ``context prod at https://10.0.0.1:6443``.
    :param credentials: where they are from, for messages.
    """

    def __init__(self, configuration: Any, name: str, credentials: str) -> None:
        from urllib3 import Retry, Timeout

        from kubernetes.client import ApiClient

        configuration.connection_pool_maxsize = THREADS
        self.name, self.host, self._credentials = name, configuration.host.rstrip("/"), credentials
        self._configuration = configuration
        self._pool = ApiClient(configuration).rest_client.pool_manager
        self._timeout = Timeout(connect=_CONNECT, read=_READ)
        # A refused connection has changed nothing; a lost answer is asked for again only where that does no harm.
        # 429 with Retry-After is the API's own wish.
        self._retry, self._once, self._never = (
            Retry(
                total=None,
                connect=connect,
                read=read,
                status=5,
                other=0,
                status_forcelist=(429,),
                allowed_methods=None,
                backoff_factor=0.2,
                raise_on_status=False,
            )
            for connect, read in ((4, 2), (4, 0), (0, 0))
        )
        self._patience: float | None = None
        self._offered: dict[str, set[str]] = {}
        self._lock = threading.Lock()

    @classmethod
    def connect(cls, kubeconfig: str = "", context: str = "") -> Cluster:
        """The cluster of a kubeconfig, of ``K8S_AUTH_*`` (which AWX sets), or around this pod.

        :param kubeconfig: a file; by default ``K8S_AUTH_KUBECONFIG``, ``KUBECONFIG`` or ``~/.kube/config``.
        :param context: by default ``K8S_AUTH_CONTEXT`` or the file's current one.
        :raises BalikError: no such file or context, or nothing to go by at all.
        """
        try:
            import kubernetes.client  # noqa: PLW0406 - the official one, not this file
            import kubernetes.config
        except ImportError as error:
            raise BalikError(
                "The Kubernetes client for Python",
                f"{error} (looked for by {sys.executable})",
                do="Install `kubernetes` for that Python, or run the step on the control node "
                "(ansible_python_interpreter: '{{ ansible_playbook_python }}').",
            ) from None
        config, wanted = kubernetes.config, kubernetes.client.Configuration()
        file = kubeconfig or os.environ.get("K8S_AUTH_KUBECONFIG", "")
        context = context or os.environ.get("K8S_AUTH_CONTEXT", "")
        host = os.environ.get("K8S_AUTH_HOST", "")
        if host and not file and not context:
            return cls(_from_environment(wanted, host), f"the API at {host}", "K8S_AUTH_API_KEY")
        place = os.path.expanduser(file or os.environ.get("KUBECONFIG", "") or "~/.kube/config")  # noqa: PTH111
        if not file and not any(os.path.exists(one) for one in place.split(os.pathsep)):  # noqa: PTH110
            own = _of_this_pod(config, wanted, place)
            return cls(own, f"the cluster of this pod at {wanted.host}", "its service account")
        try:
            contexts, current = config.list_kube_config_contexts(place)
            chosen = context or current["name"]
            names = [one["name"] for one in contexts]
            if chosen not in names:
                raise BalikError(
                    f"context {chosen}", f"does not stand in {place}", f"one of: {', '.join(names) or 'none'}"
                )
            config.load_kube_config(place, chosen, client_configuration=wanted, persist_config=False)
            _must_be_logged_in(config, place, chosen, wanted)
        except BalikError:
            raise
        except Exception as error:  # noqa: BLE001 - broken YAML, a missing key, a folder: each raises something else
            words = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise BalikError(
                f"kubeconfig {place}", f"cannot be used ({words})", "a kubeconfig with a current context"
            ) from None
        return cls(wanted, f"context {chosen} at {wanted.host}", f"kubeconfig {place}")

    @contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """Meanwhile wait for an answer so long only, and ask for no lost one again: the caller has a limit, and looks
        again itself."""
        self._patience = seconds
        try:
            yield
        finally:
            self._patience = None

    def get(self, path: str, **query: Any) -> Json:
        """One object, or whatever stands at the path.

        :raises Refused: any answer but success.
        :raises Unreachable: no answer.
        """
        return self._ask("GET", path, query)

    def find(self, path: str) -> Json | None:
        """One object, or ``None`` where there is none."""
        try:
            return self.get(path)
        except Refused as error:
            if error.status == 404:
                return None
            raise

    def list(self, path: str, labels: str = "", fields: str = "") -> Iterator[Json]:
        """All objects of a collection, page by page, so that not all of them are in memory at once.

        :param labels: a label selector, such as ``app=web,tier``.
        :param fields: a field selector.
        """
        query: Json = {"limit": PAGE}
        if labels:
            query["labelSelector"] = labels
        if fields:
            query["fieldSelector"] = fields
        while True:
            page = self._ask("GET", path, query)
            yield from page["items"]
            following = page["metadata"].get("continue")
            if not following:
                return
            query["continue"] = following

    def patch(self, path: str, body: Any, kind: str = MERGE, dry_run: bool = False, force: bool = False) -> Json:
        """Change an object (``kind``: :data:`MERGE` or :data:`JSON_PATCH`); what it became.

        :param force: of a server-side apply: also what somebody else has set.
        """
        query = {**_writing(dry_run), **({"force": "true"} if force else {})}
        return self._ask("PATCH", path, query, body, kind)

    def create(self, path: str, body: Json, dry_run: bool = False) -> Json:
        """Put a new object into a collection; what it became."""
        return self._ask("POST", path, _writing(dry_run), body, "application/json")

    def replace(self, path: str, body: Json, dry_run: bool = False) -> Json:
        """Put an object in the place of one that is there; what it became."""
        return self._ask("PUT", path, _writing(dry_run), body, "application/json")

    def delete(self, path: str, uid: str = "") -> None:
        """Delete an object, if it is still the one with this uid; one that is gone already is well too."""
        body = {"preconditions": {"uid": uid}} if uid else {}
        try:
            self._ask("DELETE", path, {}, body, "application/json")
        except Refused as error:
            if error.status != 404:
                raise

    def has(self, namespace: str) -> bool | None:
        """Whether there is such a namespace; ``None`` where these credentials may not know."""
        try:
            return self.find(path_of("v1", "namespaces", "", namespace)) is not None
        except Refused as error:
            if error.status == 403:
                return None
            raise

    def must_be_gone(self, namespace: str, refused: Refused) -> None:
        """Read that reading in a namespace was refused because it was deleted: with it went the right to read there.

        :raises Refused: that is not why, or these credentials may not know.
        """
        there = self.has(namespace) if refused.status == 403 else True
        if there is None:
            raise Refused(
                refused.status,
                refused.what,
                f"{refused.found}; nor may these credentials see whether namespace {namespace} exists",
                do="If it was deleted, give them `get namespaces` in the whole cluster (docs/kubernetes/rbac.yml); "
                "else the role in that namespace. Then run again.",
            )
        if there and refused.status == 403 and self._is_ending(namespace):
            raise Refused(
                refused.status,
                refused.what,
                f"{refused.found}; namespace {namespace} is being deleted, and its roles may be gone already",
                do=f"Wait until it is gone, then run again. What holds it: kubectl get namespace {namespace} -o yaml.",
            )
        if there:
            raise refused

    def _is_ending(self, namespace: str) -> bool:
        found = self.find(path_of("v1", "namespaces", "", namespace)) or {"metadata": {}}
        return "deletionTimestamp" in found["metadata"]

    def offers(self, group_version: str, resource: str) -> bool:
        """Whether the API serves a resource, such as ``("autoscaling/v2", "horizontalpodautoscalers")``."""
        with self._lock:
            if group_version not in self._offered:
                path = f"/apis/{group_version}" if "/" in group_version else f"/api/{group_version}"
                found = self.find(path) or {"resources": []}
                self._offered[group_version] = {one["name"] for one in found["resources"]}
            return resource in self._offered[group_version]

    def first_offered(self, group: str, versions: Iterable[str], resource: str) -> str:
        """The first of ``versions`` that serves the resource, as ``group/version``; empty where none does."""
        return next((f"{group}/{one}" for one in versions if self.offers(f"{group}/{one}", resource)), "")

    def _ask(self, method: str, path: str, query: Mapping[str, Any], body: Any = None, kind: str = "") -> Json:
        from urllib3 import Timeout
        from urllib3.exceptions import HTTPError, SSLError

        url = f"{self.host}{path}" + (f"?{urlencode(query)}" if query else "")
        headers = {"Accept": "application/json", "User-Agent": MANAGER}
        if body is not None:
            headers["Content-Type"] = kind
        headers |= self._login()
        content = None if body is None else json.dumps(body, separators=(",", ":"))
        retries, timeout = self._once if method == "POST" else self._retry, self._timeout
        if self._patience is not None:
            retries, timeout = self._never, Timeout(connect=min(_CONNECT, self._patience), read=self._patience)
        try:
            answer = self._pool.request(method, url, body=content, headers=headers, timeout=timeout, retries=retries)
        except HTTPError as error:
            reason = getattr(error, "reason", None) or error
            # An end in the middle of the handshake is an API that goes down.
            if isinstance(reason, SSLError) and not any(isinstance(one, ssl.SSLEOFError) for one in reason.args):
                raise Unreachable(
                    f"The Kubernetes API ({self.name})",
                    f"TLS with it fails ({_cause(error)})",
                    do="See that address, certificate authority and client certificate are this cluster's "
                    f"({self._credentials}), and run again.",
                ) from None
            raise Unreachable(
                f"The Kubernetes API ({self.name})",
                f"does not answer ({_cause(error)})",
                do="See that it is up and that the context is the right one, and run again.",
            ) from None
        if answer.status >= 400:
            raise self._refused(method, path, answer.status, answer.data)
        try:
            return json.loads(answer.data)
        except ValueError:
            raise Unreachable(
                f"The Kubernetes API ({self.name})", f"answered {answer.status} with something that is not JSON"
            ) from None

    def _login(self) -> dict[str, str]:
        """The header with the token; asked for anew each time, because the client renews one that expires.

        :raises BalikError: no header can hold it. The client's own error would quote it.
        """
        headers = {one["key"]: str(one["value"]) for one in self._configuration.auth_settings().values()}
        text = "".join(headers.values())
        if text.isascii() and text.isprintable():
            return headers
        found = "a line break" if {"\n", "\r"} & set(text) else "a character outside printable ASCII"
        raise BalikError(
            f"The token for {self.name} ({self._credentials})",
            f"holds {found}, which no HTTP header may",
            do="Write it anew without that, and run again.",
        )

    def _refused(self, method: str, path: str, status: int, content: bytes) -> Refused:
        try:
            says = str(json.loads(content).get("message") or "")
        except (ValueError, AttributeError):
            says = ""
        says = " ".join(says.split())[:500] or f"HTTP {status}"
        if status == 401:
            return Refused(
                status,
                f"The Kubernetes API ({self.name})",
                "does not take these credentials (401: expired, revoked, or another cluster's)",
                do="Log in to the cluster again, or renew the token, and run again.",
            )
        if status == 403:
            return Refused(
                status, name_of(path), f"not permitted: {says}", do="Apply the role's RBAC manifest, and run again."
            )
        if status == 404:
            return Refused(status, name_of(path), f"does not exist ({self.name})")
        return Refused(status, name_of(path), f"{method} was refused ({status}): {says}")


def at_once(keys: Iterable[str], act: Callable[[str], T]) -> tuple[dict[str, T], dict[str, BalikError]]:
    """``act`` on each key, :data:`THREADS` at a time; (key → result, key → what it raised), in the keys' order.

    One failure does not stop the others; but an API that stopped answering, or credentials that it no longer takes,
    stop all that have not begun: those stand in neither.
    """
    keys = list(keys)
    done: dict[str, T] = {}
    failed: dict[str, BalikError] = {}
    over = threading.Event()

    def one(key: str) -> None:
        if over.is_set():
            return
        try:
            done[key] = act(key)
        except BalikError as error:
            failed[key] = error
            if isinstance(error, Unreachable) or getattr(error, "status", 0) == 401:
                over.set()

    with ThreadPoolExecutor(max_workers=THREADS) as pool:
        list(pool.map(one, keys))
    return {key: done[key] for key in keys if key in done}, {key: failed[key] for key in keys if key in failed}


def path_of(group_version: str, resource: str, namespace: str = "", name: str = "") -> str:
    """``/apis/apps/v1/namespaces/shop/deployments/web``; without a name the collection, without a namespace all."""
    parts = ["/apis" if "/" in group_version else "/api", group_version]
    parts += ["namespaces", quote(namespace, safe="")] if namespace else []
    parts.append(resource)
    parts += [quote(name, safe="")] if name else []
    return "/".join(parts)


def check_terms(terms: Iterable[str], variable: str) -> None:
    """:raises BalikError: one of these terms of a label selector can be no object's label."""
    if wrong := [term for term in terms if not _TERM.fullmatch(term)]:
        raise BalikError(
            variable,
            f"{', '.join(repr(term if len(term) <= 200 else f'{term[:200]}…') for term in wrong)} can be no label in "
            "Kubernetes",
            "at most 63 letters of a to z, digits, `-`, `_` and `.`, with a letter or digit at both ends",
            "Correct it as it stands on the objects.",
        )


def name_of(path: str) -> str:
    """What a path of the API stands for, in words: ``deployments web in namespace shop``."""
    parts = path.strip("/").split("/")[2 if path.startswith("/api/") else 3 :]
    where = ""
    if parts[:1] == ["namespaces"] and len(parts) > 2:
        where, parts = f" in namespace {parts[1]}", parts[2:]
    return (" ".join(parts) or path) + where


def _writing(dry_run: bool) -> Json:
    return {"fieldManager": MANAGER, **({"dryRun": "All"} if dry_run else {})}


def _cause(error: Exception) -> str:
    """The last of a chain of reasons, without object addresses."""
    reason = getattr(error, "reason", None) or error
    text = str(reason).rsplit("object at 0x", 1)[-1]
    text = text.split(">: ", 1)[-1].split("): ", 1)[-1]
    return text.strip() or type(reason).__name__


def _must_be_logged_in(config: Any, place: str, context: str, wanted: Any) -> None:
    """:raises BalikError: the context's login program gave nothing; the client would go on as nobody."""
    known = config.kube_config.KubeConfigMerger(place).config
    chosen = known["contexts"].get_with_name(context)["context"]
    user = known["users"].get_with_name(chosen["user"])["user"] if "user" in chosen else {}
    if not user or "exec" not in user or wanted.api_key or wanted.cert_file or wanted.username:
        return
    program = user["exec"]["command"]
    absent = "/" not in program and not shutil.which(program)
    raise BalikError(
        f"kubeconfig {place}, context {context}",
        f"its login program {program} {'is not installed here' if absent else 'gave no credentials'}",
        do=f"Install {program}, or see by hand what it says, and run again.",
    )


def _from_environment(wanted: Any, host: str) -> Any:
    wanted.host = host
    if os.environ.get("K8S_AUTH_API_KEY"):
        wanted.api_key = {"authorization": f"Bearer {os.environ['K8S_AUTH_API_KEY']}"}
    wanted.ssl_ca_cert = os.environ.get("K8S_AUTH_SSL_CA_CERT") or wanted.ssl_ca_cert
    wanted.verify_ssl = os.environ.get("K8S_AUTH_VERIFY_SSL", "true").lower() not in ("no", "false", "0", "off")
    return wanted


def _of_this_pod(config: Any, wanted: Any, place: str) -> Any:
    try:
        config.load_incluster_config(client_configuration=wanted)
    except config.ConfigException:
        raise BalikError(
            "Kubernetes",
            f"no cluster is named: {place} does not exist, and this is not a pod of a cluster",
            do="Name a kubeconfig (and a context), set KUBECONFIG, or K8S_AUTH_HOST and K8S_AUTH_API_KEY.",
        ) from None
    return wanted
