"""Pods that really run: for :mod:`tests.servers.kubernetes_nodes`, each container of a pod is one of Docker's engine.

``with nodes(cluster, engine={"network": "hub", "folder": str(tmp_path), "label": "balik.test=hub"}) as lab:``

``network`` is a network of the engine, from which pods get their addresses; in ``folder`` stand their volumes;
``label`` is on each container, by which they are found and removed afterwards. Images are the engine's own: nothing is
pulled, a name that it does not have gives ``ImagePullBackOff`` until it has it, and an ``imageID`` is the engine's.

What is honoured of a pod: command, args, env, envFrom, volumes (configMap, secret, projected, emptyDir), user,
read-only root, dropped capabilities, HTTP readiness probes, the grace period, and being started again when it ends.
"""

from __future__ import annotations

import base64
import http.client
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import docker.errors

from tests.servers.kubernetes import Api
from tests.servers.kubernetes_nodes import _RETRY, Json, Kubelets, Pod, _log, serve

#: Seconds between two looks at a container that is not ready, and at one that is.
_SOON, _LATER = 0.3, 2.0
#: After so many failed probes in a row, a container that was ready is so no longer.
_FAILURES = 3
_GRACE = 30


class Engine:
    """The containers of pods, on one network of Docker's engine."""

    def __init__(self, api: Api, settings: Json) -> None:
        self._api = api
        self._docker = docker.from_env(timeout=60, max_pool_size=16)
        self._network = settings["network"]
        self._folder = Path(settings["folder"])
        self._labels = dict([settings["label"].split("=", 1)])

    def image(self, name: str) -> str:
        """The engine's id of an image; empty when it has none of that name."""
        try:
            return str(self._docker.images.get(name).id)
        except docker.errors.ImageNotFound:
            return ""

    def see(self, pod: Pod, container: Json, image: str) -> tuple[str, str]:
        """How a container of a pod is (``running``, ``exited``, …), and its address; it is started the first time."""
        name = _name(pod, container)
        try:
            found = self._docker.containers.get(name)
        except docker.errors.NotFound:
            found = self._docker.containers.create(image, name=name, **self._options(pod, container))
            found.start()
            found.reload()
        return found.status, found.attrs["NetworkSettings"]["Networks"].get(self._network, {}).get("IPAddress", "")

    def start(self, pod: Pod, container: Json) -> None:
        self._docker.containers.get(_name(pod, container)).start()

    def stop(self, pod: Pod, grace: int) -> None:
        """SIGTERM, the grace period, SIGKILL; then the containers and their volumes are removed."""
        for container in pod.shown["spec"]["containers"]:
            try:
                found = self._docker.containers.get(_name(pod, container))
                found.stop(timeout=grace)
                found.remove(v=True, force=True)
            except docker.errors.NotFound:
                continue
        shutil.rmtree(self._folder / pod.shown["metadata"]["uid"], ignore_errors=True)

    def _options(self, pod: Pod, container: Json) -> dict[str, Any]:
        security = {**pod.shown["spec"].get("securityContext", {}), **container.get("securityContext", {})}
        first = pod.shown["spec"]["containers"][0]
        if container["name"] == first["name"]:
            place = {"network": self._network, "hostname": pod.name}
        else:  # the containers of a pod share its address
            place = {"network_mode": f"container:{_name(pod, first)}"}
        volumes = dict(self._volumes(pod))
        mounts = {one["mountPath"]: volumes[one["name"]] for one in container.get("volumeMounts", [])}
        return {
            **place,
            "labels": self._labels,
            "healthcheck": {"test": ["NONE"]},  # a cluster has its own probes
            "entrypoint": container.get("command"),
            "command": container.get("args"),
            "environment": dict(self._environment(pod, container)),
            "user": str(security.get("runAsUser", "")),
            "read_only": bool(security.get("readOnlyRootFilesystem")),
            "cap_drop": security.get("capabilities", {}).get("drop"),
            "volumes": [f"{source}:{target}:ro" for target, source in mounts.items() if source],
            "tmpfs": {target: "mode=1777" for target, source in mounts.items() if not source},
        }

    def _environment(self, pod: Pod, container: Json) -> Iterator[tuple[str, str]]:
        for one in container.get("envFrom", []):
            for kind in ("secretRef", "configMapRef"):
                if kind in one:
                    yield from self._content(pod, kind.removesuffix("Ref"), one[kind]["name"]).items()
        for one in container.get("env", []):
            if "value" in one:
                yield one["name"], one["value"]
            for kind in ("secretKeyRef", "configMapKeyRef"):
                if wanted := one.get("valueFrom", {}).get(kind):
                    content = self._content(pod, kind.removesuffix("KeyRef"), wanted["name"])
                    yield one["name"], content[wanted["key"]]

    def _volumes(self, pod: Pod) -> Iterator[tuple[str, Path | None]]:
        """Name → folder with its files; ``None`` for one that begins empty."""
        for volume in pod.shown["spec"].get("volumes", []):
            sources = volume.get("projected", {}).get("sources") or [volume]
            if "emptyDir" in volume:
                yield volume["name"], None
                continue
            folder = self._folder / pod.shown["metadata"]["uid"] / volume["name"]
            for source in sources:
                kind = "secret" if "secret" in source else "configMap"
                wanted = source[kind]
                content = self._content(pod, kind, wanted.get("name") or wanted["secretName"])
                for item in wanted.get("items") or [{"key": key, "path": key} for key in content]:
                    path = folder / item["path"]
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_text(content[item["key"]])
            yield volume["name"], folder

    def _content(self, pod: Pod, kind: str, name: str) -> dict[str, str]:
        """:raises ApiError: there is none of that name (yet): the pod waits for it."""
        found = self._api.request("GET", f"/api/v1/namespaces/{pod.namespace}/{kind.lower()}s/{name}")
        content: dict[str, str] = found.get("data") or {}
        if kind == "secret":
            return {key: base64.b64decode(value).decode() for key, value in content.items()}
        return content


class Running(Kubelets):
    """Nodes whose containers are the engine's."""

    def __init__(self, settings: Json) -> None:
        super().__init__({**settings, "image_id": "docker://"})
        self._engine = Engine(self.api, settings["engine"])
        #: Container → how many probes in a row have failed; above the limit at first.
        self._failures: dict[str, int] = {}

    def _carry(self, pod: Pod) -> float | None:
        try:
            return super()._carry(pod)
        except (docker.errors.DockerException, OSError) as error:
            _log(f"{pod.path}: {error}")
            return _RETRY

    def _pull(self, pod: Pod, container: Json) -> str:
        name = container["name"]
        pod.images[name] = pod.images.get(name) or self._engine.image(container["image"])
        return pod.images[name]

    def _main(self, pod: Pod, container: Json, age: float, waits: list[float]) -> Json:
        image, name = self._pull(pod, container), _name(pod, container)
        if not image:
            waits.append(_SOON)
            return self._container(pod, container, self._not_pulled(pod, container))
        state, address = self._engine.see(pod, container, image)
        if state != "running":
            waits.append(_SOON)
            self._failures.pop(name, None)
            restarts = pod.restarts.get(container["name"], 0)
            if age >= 2.0**restarts - 1:  # at once, then each time after twice as long
                self._engine.start(pod, container)
                restarts += 1
            return self._crashing(pod, container, restarts)
        pod.address = address or pod.address
        failures = 0 if self._probe(pod, container) else self._failures.get(name, _FAILURES) + 1
        self._failures[name] = failures
        ready = failures < _FAILURES
        waits.append(_SOON if failures else _LATER)
        return self._container(pod, container, {"running": {"startedAt": pod.begun}}, ready)

    def _probe(self, pod: Pod, container: Json) -> bool:
        """Whether a container says that it is ready; one without a probe is."""
        probe = container.get("readinessProbe", {})
        wanted = probe.get("httpGet")
        if not wanted:
            return True
        named = {one.get("name"): one["containerPort"] for one in container.get("ports", [])}
        port = named.get(wanted["port"], wanted["port"])
        connection = http.client.HTTPConnection(pod.address, int(port), timeout=probe.get("timeoutSeconds", 1))
        try:
            connection.request("GET", wanted.get("path", "/"))
            answer = connection.getresponse()
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()
        if answer.status >= 400:
            said = f"Readiness probe failed: HTTP probe failed with statuscode: {answer.status}"
            self._tell(pod, container, "Unhealthy", said)
        return answer.status < 400

    def _stop(self, pod: Pod) -> float | None:
        grace = pod.shown["metadata"].get("deletionGracePeriodSeconds")
        self._engine.stop(pod, _GRACE if grace is None else grace)
        return super()._stop(pod)


def _name(pod: Pod, container: Json) -> str:
    return f"{pod.namespace}_{pod.name}_{container['name']}"


def remove(label: str) -> None:
    """Removes all containers with a label, also those whose nodes were killed."""
    engine = docker.from_env(timeout=60)
    for container in engine.containers.list(all=True, filters={"label": label}, ignore_removed=True):
        container.remove(v=True, force=True)


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    serve(Running(given), given, sys.stdin)
