"""Nodes for :mod:`tests.servers.kubernetes`: what scheduler, kubelet and metrics-server do, without running anything.

``with nodes(cluster, {"hub:1.9.4": ""}) as lab: lab.push("hub:2.0.0"); lab.behave("hub:2.0.0", "unready")``

A process of its own watches the pods through the API, binds them, and reports them Running and Ready, with the digest
that their image's name had when they started; or ``ImagePullBackOff`` for a name that was never pushed. What it says in
statuses and events, it says as kubelet does.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import heapq
import itertools
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import urllib3

from tests.servers.kubernetes import Api, ApiError, Cluster, ControlPlane
from tests.servers.kubernetes_aggregation import AggregatedApi, trusted

_ROOT = Path(__file__).parents[2]
_LIMIT = 30.0
_RETRY = 0.3
_WORKERS = 8
_METRICS = "metrics.k8s.io/v1beta1"

#: How the containers of an image can behave. ``unready``: run, but are never ready (of a Job: never end);
#: ``crash``: exit with 1 again and again.
BEHAVIOURS = ("ok", "unready", "crash")

Json = dict[str, Any]


class Nodes:
    """The nodes as a test sees them; every method has taken effect when it returns."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._lock = threading.Lock()

    def push(self, image: str, digest: str = "") -> str:
        """Gives an image's name a digest, perhaps another one than before; pods that wait for it then start.

        :param digest: ``sha256:…``; made of the name when empty.
        :returns: the digest.
        """
        return str(self._ask("push", image=image, digest=digest))

    def remove(self, image: str) -> None:
        """Takes an image away, by its name or by ``repository@digest``, from the nodes also; new pods wait for it."""
        self._ask("remove", image=image)

    def behave(self, image: str, how: str) -> None:
        """Decides how the containers of a pushed image behave, by whatever name, those that run already included.

        :param how: one of :data:`BEHAVIOURS`.
        """
        self._ask("behave", image=image, how=how)

    def delays(self, **seconds: float) -> None:
        """Changes how long things take: ``start`` (pulling and starting), ``ready`` (after that), ``stop``, ``job``."""
        self._ask("delays", seconds=seconds)

    def load(self, labels: Mapping[str, str], cpu: int, memory: int = 64) -> None:
        """What each container of the pods with these labels uses from now on: millicores, MiB."""
        self._ask("load", labels=dict(labels), cpu=cpu, memory=memory)

    def _ask(self, do: str, **values: object) -> object:
        assert self._process.stdin and self._process.stdout
        with self._lock:
            self._process.stdin.write(json.dumps({"do": do, **values}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the nodes have ended ({self._process.poll()}), see nodes.log")
        answer = json.loads(line)
        if "error" in answer:
            raise ValueError(answer["error"])
        return answer["result"]


@contextmanager
def nodes(
    cluster: Cluster,
    images: Mapping[str, str] | None = None,
    *,
    count: int = 3,
    delays: Mapping[str, float] | None = None,
    metrics: bool = False,
    cache: bool = False,
    image_id: str = "docker-pullable://",
    engine: Mapping[str, str] | None = None,
) -> Iterator[Nodes]:
    """Nodes that carry the pods of a cluster of our own; ended afterwards.

    :param images: name → digest (``""``: one is made of the name) of what can be pulled at first.
    :param delays: seconds, as for :meth:`Nodes.delays`; 0 by default.
    :param metrics: serve ``metrics.k8s.io``, so that a HorizontalPodAutoscaler sees :meth:`Nodes.load`.
    :param cache: nodes keep what they pulled, and with ``IfNotPresent`` do not see that a tag was reused.
    :param image_id: what an ``imageID`` begins with; containerd's begin with nothing.
    :param engine: run the pods, as :mod:`tests.servers.kubernetes_pods` says; images are then those of Docker's engine.
    """
    if not isinstance(cluster, ControlPlane):
        raise RuntimeError(f"the cluster of {cluster.kubeconfig} has nodes of its own")
    settings: Json = {"kubeconfig": str(cluster.kubeconfig), "count": count, "cache": cache, "image_id": image_id}
    settings |= {"delays": dict(delays or {}), "engine": dict(engine or {})}
    if metrics:
        settings["metrics"] = trusted(cluster, _METRICS)
    with (cluster.folder / "nodes.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.servers.kubernetes_pods" if engine else __name__, json.dumps(settings)],
            cwd=_ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    lab = Nodes(process)
    try:
        for image, digest in (images or {}).items():
            lab.push(image, digest)
        lab._ask("begin")
        yield lab
    finally:
        assert process.stdin and process.stdout
        with contextlib.suppress(OSError):
            process.stdin.close()  # its sign to end
        try:
            process.wait(_LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(_LIMIT)
        process.stdout.close()


class Registry:
    """Names, digests, and how their containers behave. All names are ``repository:tag`` or ``repository@sha256:…``."""

    def __init__(self) -> None:
        self._tags: dict[str, str] = {}
        self._behaviours: dict[str, str] = {}

    def push(self, image: str, digest: str) -> str:
        repository, tag, _ = _parts(image)
        digest = digest or "sha256:" + hashlib.sha256(image.encode()).hexdigest()
        if not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
            raise ValueError(f"{image}: {digest!r} is no digest, expected sha256:<64 hexadecimal digits>")
        self._tags[f"{repository}:{tag}"] = digest
        self._behaviours.setdefault(f"{repository}@{digest}", "ok")
        return digest

    def remove(self, image: str) -> None:
        repository, tag, digest = _parts(image)
        if digest:
            self._behaviours.pop(f"{repository}@{digest}", None)
            self._tags = {name: at for name, at in self._tags.items() if (_parts(name)[0], at) != (repository, digest)}
        elif gone := self._tags.pop(f"{repository}:{tag}", None):
            if not any(_parts(name)[0] == repository and at == gone for name, at in self._tags.items()):
                self._behaviours.pop(f"{repository}@{gone}", None)

    def behave(self, image: str, how: str) -> None:
        if how not in BEHAVIOURS:
            raise ValueError(f"{how!r} is no behaviour, expected one of {', '.join(BEHAVIOURS)}")
        resolved = self.resolve(image)
        if not resolved:
            raise ValueError(f"{image} was not pushed")
        self._behaviours[resolved] = how

    def resolve(self, image: str) -> str:
        """``repository@sha256:…``, or nothing when it cannot be pulled."""
        repository, tag, digest = _parts(image)
        name = f"{repository}@{digest or self._tags.get(f'{repository}:{tag}', '')}"
        return name if name in self._behaviours else ""

    def behaviour(self, resolved: str) -> str:
        return self._behaviours.get(resolved, "ok")


@dataclass
class Pod:
    """One pod, and what its kubelet remembers of it."""

    shown: Json
    node: str = ""
    address: str = ""
    bound: float = 0.0
    begun: str = ""
    #: Container → ``repository@sha256:…``, from when it started.
    images: dict[str, str] = field(default_factory=dict)
    #: Condition → its state and since when.
    conditions: dict[str, tuple[str, str]] = field(default_factory=dict)
    #: Container → how often it was started again.
    restarts: dict[str, int] = field(default_factory=dict)
    told: set[tuple[str, str]] = field(default_factory=set)
    sent: Json = field(default_factory=dict)
    ended: bool = False
    stopping: float = 0.0
    busy: bool = False
    again: bool = False

    @property
    def name(self) -> str:
        return str(self.shown["metadata"]["name"])

    @property
    def namespace(self) -> str:
        return str(self.shown["metadata"]["namespace"])

    @property
    def path(self) -> str:
        return f"/api/v1/namespaces/{self.namespace}/pods/{self.name}"

    @property
    def restart(self) -> str:
        return str(self.shown["spec"].get("restartPolicy", "Always"))


class Kubelets:
    """All nodes' work on pods, done by a few threads; each pod is looked at by one of them at a time."""

    def __init__(self, settings: Json) -> None:
        self.api = Api(settings["kubeconfig"])
        self.registry = Registry()
        self.nodes = [f"node-{number + 1}" for number in range(settings["count"])]
        self.delays = {"start": 0.0, "ready": 0.0, "stop": 0.0, "job": 0.0, **settings["delays"]}
        self._image_id = settings["image_id"]
        #: Node, name → what it pulled under that name; None where nodes keep nothing.
        self._cache: dict[tuple[str, str], str] | None = {} if settings["cache"] else None
        self._pods: dict[str, Pod] = {}
        self._lock = threading.Condition()
        self._timers: list[tuple[float, str]] = []
        self._turn = itertools.count()
        self._threads = ThreadPoolExecutor(_WORKERS)

    def begin(self) -> None:
        for name in self.nodes:
            self._register(name)
        for work in (self._follow, self._keep_time):
            threading.Thread(target=work, daemon=True).start()

    def look_again(self) -> None:
        """At every pod: something outside of it has changed."""
        for uid in list(self._pods):
            self._wake(uid)

    def _register(self, name: str) -> None:
        room = {"cpu": "512", "memory": "2Ti", "pods": "5000", "ephemeral-storage": "10Ti"}
        labels = {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64"}
        ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "kubelet is posting ready"}
        ready |= {"lastTransitionTime": _now(), "lastHeartbeatTime": _now()}
        node = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": name, "labels": labels},
            "status": {"capacity": room, "allocatable": room, "conditions": [ready]},
        }
        with _unless(409):
            self.api.request("POST", "/api/v1/nodes", node)
        # Admission marks a new node as not ready, and DaemonSets then keep away from it.
        no_taints = {"spec": {"taints": None}}
        self.api.request("PATCH", f"/api/v1/nodes/{name}", no_taints, "application/merge-patch+json")

    def _follow(self) -> None:
        """Watches all pods for ever."""
        for event in self.api.follow("/api/v1/pods"):
            shown = event["object"]
            if event["type"] == "LISTED":
                there = {item["metadata"]["uid"] for item in shown["items"]}
                for uid in self._pods.keys() - there:
                    self._pods.pop(uid)
                for item in shown["items"]:
                    self._see(item)
            elif event["type"] == "DELETED":
                self._pods.pop(shown["metadata"]["uid"], None)
            else:
                self._see(shown)

    def _see(self, shown: Json) -> None:
        uid = shown["metadata"]["uid"]
        pod = self._pods.setdefault(uid, Pod(shown))
        pod.shown = shown
        deleted = "deletionTimestamp" in shown["metadata"]
        # Most events are echoes of what was sent from here.
        if deleted or not pod.node:
            self._wake(uid)

    def _wake(self, uid: str) -> None:
        pod = self._pods.get(uid)
        if pod is None:
            return
        with self._lock:
            if pod.busy:
                pod.again = True
                return
            pod.busy = True
        self._threads.submit(self._work, uid, pod)

    def _work(self, uid: str, pod: Pod) -> None:
        while True:
            wait = self._carry(pod)
            if wait is not None:
                with self._lock:
                    heapq.heappush(self._timers, (time.monotonic() + wait, uid))
                    self._lock.notify()
            with self._lock:
                if not pod.again:
                    pod.busy = False
                    return
                pod.again = False

    def _keep_time(self) -> None:
        while True:
            with self._lock:
                while not self._timers or self._timers[0][0] > time.monotonic():
                    self._lock.wait(self._timers[0][0] - time.monotonic() if self._timers else None)
                uid = heapq.heappop(self._timers)[1]
            self._wake(uid)

    def _carry(self, pod: Pod) -> float | None:
        """Does what is to be done for a pod now; seconds until there is more to do, None when there is nothing."""
        try:
            if "deletionTimestamp" in pod.shown["metadata"]:
                return self._stop(pod)
            if not pod.ended and (pod.node or self._bind(pod)):
                return self._say(pod)
        except urllib3.exceptions.HTTPError:
            return _RETRY
        except ApiError as error:
            # 404, 409: it is gone, or another pod has its name.
            if error.status not in (404, 409):
                _log(f"{pod.path}: {error}")
            return _RETRY if error.status == 429 or error.status >= 500 else None
        except Exception as error:
            _log(f"{pod.path}: {error!r}")
            raise
        return None

    def _say(self, pod: Pod) -> float | None:
        """Reports the pod's status when it is another one than before."""
        status, wait = self._status(pod)
        if status != pod.sent:
            self.api.request("PATCH", pod.path + "/status", {"status": status}, "application/merge-patch+json")
            pod.sent = status
        return wait

    def _stop(self, pod: Pod) -> float | None:
        grace = pod.shown["metadata"].get("deletionGracePeriodSeconds") or 0
        pod.stopping = pod.stopping or time.monotonic() + min(self.delays["stop"], grace)
        left = pod.stopping - time.monotonic()
        if left > 0:
            return left
        now = {"gracePeriodSeconds": 0, "preconditions": {"uid": pod.shown["metadata"]["uid"]}}
        self.api.request("DELETE", pod.path, now)
        return None

    def _bind(self, pod: Pod) -> bool:
        """Schedules it; False when it must wait."""
        if pod.shown["spec"].get("schedulingGates"):
            return False
        node, turn = pod.shown["spec"].get("nodeName", ""), next(self._turn)
        if not node:
            node = _demanded_node(pod.shown["spec"]) or self.nodes[turn % len(self.nodes)]
            binding = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": pod.name}}
            target = {"target": {"apiVersion": "v1", "kind": "Node", "name": node}}
            self.api.request("POST", pod.path + "/binding", binding | target)
        pod.node, pod.bound, pod.begun = node, time.monotonic(), _now()
        pod.address = f"10.{1 + (turn >> 16) % 250}.{(turn >> 8) & 255}.{turn & 255}"
        pod.conditions["PodScheduled"] = ("True", pod.begun)
        return True

    def _status(self, pod: Pod) -> tuple[Json, float | None]:
        """What kubelet would report now, and in how many seconds it would report something else."""
        spec = pod.shown["spec"]
        age = time.monotonic() - pod.bound
        if age < self.delays["start"]:
            waiting = {"reason": "ContainerCreating"}
            states = [self._container(pod, one, {"waiting": waiting}) for one in spec["containers"]]
            return self._report(pod, "Pending", states, []), self.delays["start"] - age
        age -= self.delays["start"]
        inits = [self._init(pod, one) for one in spec.get("initContainers", [])]
        if not all("terminated" in one["state"] for one in inits):
            waiting = {"reason": "PodInitializing"}
            states = [self._container(pod, one, {"waiting": waiting}) for one in spec["containers"]]
            return self._report(pod, "Pending", states, inits), None
        waits: list[float] = []
        states = [self._main(pod, one, age, waits) for one in spec["containers"]]
        phase = "Running"
        if any("waiting" in one["state"] and "lastState" not in one for one in states):
            phase = "Pending"
        elif all("terminated" in one["state"] for one in states):
            pod.ended = True
            failed = any(one["state"]["terminated"]["exitCode"] for one in states)
            phase = "Failed" if failed else "Succeeded"
        return self._report(pod, phase, states, inits), min(waits, default=None)

    def _init(self, pod: Pod, container: Json) -> Json:
        """An init container has done its work as soon as its image is there, unless it crashes."""
        resolved = self._pull(pod, container)
        if not resolved:
            return self._container(pod, container, self._not_pulled(pod, container))
        if self.registry.behaviour(resolved) == "crash":
            return self._crashing(pod, container, restarts=1)
        return self._container(pod, container, {"terminated": self._terminated(pod, 0)}, ready=True)

    def _main(self, pod: Pod, container: Json, age: float, waits: list[float]) -> Json:
        """:param age: seconds since it started.
        :param waits: gets how long this status will hold.
        """
        resolved = self._pull(pod, container)
        if not resolved:
            return self._container(pod, container, self._not_pulled(pod, container))
        behaviour, running = self.registry.behaviour(resolved), {"running": {"startedAt": pod.begun}}
        if behaviour == "crash" and pod.restart != "Never":
            # The first crashes come at once, the later ones each after twice the time.
            restarts = max(1, int(age + 1).bit_length())
            waits.append(2.0**restarts - 1 - age)
            return self._crashing(pod, container, restarts)
        task = pod.restart != "Always"
        limit = self.delays["job" if task else "ready"]
        if behaviour != "unready" and age < limit:
            waits.append(limit - age)
        elif task and behaviour != "unready":
            code = 1 if behaviour == "crash" else 0
            return self._container(pod, container, {"terminated": self._terminated(pod, code)})
        if behaviour == "unready" and not task:
            said = "Readiness probe failed: HTTP probe failed with statuscode: 503"
            self._tell(pod, container, "Unhealthy", said)
        # What has an end has no probe.
        ready = task or (behaviour != "unready" and age >= limit)
        return self._container(pod, container, running, ready)

    def _pull(self, pod: Pod, container: Json) -> str:
        """What runs in a container from its start on: ``repository@sha256:…``; nothing when that cannot be pulled."""
        name, image = container["name"], container["image"]
        if pod.images.get(name):
            return pod.images[name]
        key = (pod.node, image)
        cached = self._cache.get(key, "") if self._cache is not None else ""
        may_use = container.get("imagePullPolicy") != "Always"
        resolved = (self.registry.resolve(cached) if cached and may_use else "") or self.registry.resolve(image)
        if resolved and self._cache is not None:
            self._cache[key] = resolved
        pod.images[name] = resolved
        return resolved

    def _not_pulled(self, pod: Pod, container: Json) -> Json:
        image = container["image"]
        missing = f'failed to pull and unpack image "{image}": {image}: not found'
        self._tell(pod, container, "Failed", f'Failed to pull image "{image}": rpc error: code = NotFound: {missing}')
        self._tell(pod, container, "BackOff", f'Back-off pulling image "{image}"', kind="Normal")
        self._tell(pod, container, "Failed", "Error: ImagePullBackOff")
        return {"waiting": {"reason": "ImagePullBackOff", "message": f'Back-off pulling image "{image}"'}}

    def _crashing(self, pod: Pod, container: Json, restarts: int) -> Json:
        said = "Back-off restarting failed container"
        self._tell(pod, container, "BackOff", said)
        pod.restarts[container["name"]] = restarts
        shown = self._container(pod, container, {"waiting": {"reason": "CrashLoopBackOff", "message": said}})
        return {**shown, "lastState": {"terminated": self._terminated(pod, 1)}}

    def _terminated(self, pod: Pod, code: int) -> Json:
        reason = "Error" if code else "Completed"
        return {"exitCode": code, "reason": reason, "startedAt": pod.begun, "finishedAt": pod.begun}

    def _container(self, pod: Pod, container: Json, state: Json, ready: bool = False) -> Json:
        name, pulled = container["name"], pod.images.get(container["name"])
        shown = {"name": name, "image": container["image"], "restartCount": pod.restarts.get(name, 0), "ready": ready}
        shown |= {"state": state, "imageID": self._image_id + pulled if pulled else ""}
        if "running" in state:
            shown["started"] = True
        return shown

    def _report(self, pod: Pod, phase: str, containers: list[Json], inits: list[Json]) -> Json:
        unready = [one["name"] for one in containers if not one["ready"]]
        waiting = [one["name"] for one in inits if "terminated" not in one["state"]]
        over = phase == "Succeeded"
        why = {"reason": "PodCompleted"} if over else {}
        if unready and not over:
            why = {"reason": "ContainersNotReady", "message": f"containers with unready status: [{' '.join(unready)}]"}
        uninitialised = {"reason": "ContainersNotInitialized", "message": f"incomplete: [{' '.join(waiting)}]"}
        conditions = [
            self._condition(pod, "Initialized", not waiting, uninitialised if waiting else {}),
            self._condition(pod, "Ready", not unready and not over, why),
            self._condition(pod, "ContainersReady", not unready and not over, why),
            self._condition(pod, "PodScheduled", True, {}),
        ]
        host = f"192.168.0.{1 + self.nodes.index(pod.node) % 250}" if pod.node in self.nodes else "192.168.0.254"
        status: Json = {"phase": phase, "conditions": conditions, "containerStatuses": containers}
        status |= {"hostIP": host, "startTime": pod.begun}
        if inits:
            status["initContainerStatuses"] = inits
        if phase != "Pending":
            status |= {"podIP": pod.address, "podIPs": [{"ip": pod.address}]}
        return status

    def _condition(self, pod: Pod, kind: str, true: bool, why: Json) -> Json:
        state = "True" if true else "False"
        if pod.conditions.get(kind, ("", ""))[0] != state:
            pod.conditions[kind] = (state, _now())
        return {"type": kind, "status": state, "lastTransitionTime": pod.conditions[kind][1], **why}

    def _tell(self, pod: Pod, container: Json, reason: str, message: str, kind: str = "Warning") -> None:
        """An event, once for each message."""
        if (container["name"], message) in pod.told:
            return
        pod.told.add((container["name"], message))
        meta = pod.shown["metadata"]
        part = "initContainers" if container in pod.shown["spec"].get("initContainers", []) else "containers"
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"generateName": f"{pod.name}.", "namespace": pod.namespace},
            "involvedObject": {
                "apiVersion": "v1",
                "kind": "Pod",
                "name": pod.name,
                "namespace": pod.namespace,
                "uid": meta["uid"],
                "fieldPath": f"spec.{part}{{{container['name']}}}",
            },
            "reason": reason,
            "message": message,
            "type": kind,
            "count": 1,
            "firstTimestamp": _now(),
            "lastTimestamp": _now(),
            "source": {"component": "kubelet", "host": pod.node},
        }
        with _unless(403, 404):  # its namespace is going
            self.api.request("POST", f"/api/v1/namespaces/{pod.namespace}/events", event)


class Metrics:
    """``metrics.k8s.io`` behind the API server: what the containers of running pods use."""

    def __init__(self, api: Api, trust: dict[str, str]) -> None:
        self._api = api
        self._loads: list[tuple[dict[str, str], int, int]] = []
        self._served = AggregatedApi(api, _METRICS, trust, self._answer)
        self.begin, self.end = self._served.begin, self._served.end

    def load(self, labels: dict[str, str], cpu: int, memory: int) -> None:
        self._loads.insert(0, (labels, cpu, memory))

    def _answer(self, method: str, path: str, _content: str, _sent: bytes) -> Json:
        """:raises KeyError: there is nothing to do at that path."""
        base = f"/apis/{_METRICS}"
        path, _, query = path.partition("?")
        if method != "GET":
            raise KeyError(path)
        if path == base:
            verbs = ["get", "list"]
            pods = {"name": "pods", "singularName": "", "namespaced": True, "kind": "PodMetrics", "verbs": verbs}
            return {
                "kind": "APIResourceList",
                "apiVersion": "v1",
                "groupVersion": _METRICS,
                "resources": [pods],
            }
        wanted = re.fullmatch(base + r"((?:/namespaces/[^/]+)?/pods)(/[^/]+)?", path)
        if not wanted:
            raise KeyError(path)
        shown = self._api.request("GET", f"/api/v1{wanted[1]}{wanted[2] or ''}" + (f"?{query}" if query else ""))
        if wanted[2]:
            return self._usage(shown)
        items = [self._usage(pod) for pod in shown["items"] if pod["status"].get("phase") == "Running"]
        return {"kind": "PodMetricsList", "apiVersion": _METRICS, "metadata": {}, "items": items}

    def _usage(self, pod: Json) -> Json:
        labels = pod["metadata"].get("labels", {})
        fitting = ((cpu, memory) for wanted, cpu, memory in self._loads if wanted.items() <= labels.items())
        cpu, memory = next(fitting, (1, 16))
        usage = {"cpu": f"{cpu}m", "memory": f"{memory}Mi"}
        return {
            "kind": "PodMetrics",
            "apiVersion": _METRICS,
            "metadata": {key: pod["metadata"].get(key) for key in ("name", "namespace", "labels")},
            "timestamp": _now(),
            "window": "15s",
            "containers": [{"name": one["name"], "usage": usage} for one in pod["spec"]["containers"]],
        }


def serve(kubelets: Kubelets, settings: Json, orders: IO[str]) -> None:
    """Obeys one order a line until there are no more; each is answered by a line on stdout."""
    metrics = Metrics(kubelets.api, settings["metrics"]) if "metrics" in settings else None

    def obey(do: str, **values: Any) -> object:
        if do == "begin":
            kubelets.begin()
            if metrics:
                metrics.begin()
        elif do == "load":
            if not metrics:
                raise ValueError("nobody would see a load: start the nodes with metrics=True")
            metrics.load(**values)
        elif do == "delays":
            unknown = values["seconds"].keys() - kubelets.delays.keys()
            if unknown:
                raise ValueError(f"unknown delays {sorted(unknown)}, expected {sorted(kubelets.delays)}")
            kubelets.delays |= values["seconds"]
        else:
            result = getattr(kubelets.registry, do)(**values)
            kubelets.look_again()
            return result
        return None

    try:
        for line in orders:
            try:
                answer = {"result": obey(**json.loads(line))}
            except (ValueError, ApiError, TimeoutError, urllib3.exceptions.HTTPError) as error:
                answer = {"error": str(error)}
            print(json.dumps(answer), flush=True)
    finally:
        if metrics:
            metrics.end()


def _parts(image: str) -> tuple[str, str, str]:
    """Repository, tag, digest; the tag is ``latest`` when neither is named."""
    name, _, digest = image.partition("@")
    repository, colon, tag = name.rpartition(":")
    if not colon or "/" in tag:
        repository, tag = name, "latest"
    return repository, tag, digest


def _demanded_node(spec: Json) -> str:
    """The node that a DaemonSet wants its pod on."""
    wanted = spec.get("affinity", {}).get("nodeAffinity", {}).get("requiredDuringSchedulingIgnoredDuringExecution", {})
    for term in wanted.get("nodeSelectorTerms", []):
        for rule in term.get("matchFields", []):
            if rule["key"] == "metadata.name":
                return str(rule["values"][0])
    return ""


def _now() -> str:
    """As Kubernetes writes a time."""
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


@contextmanager
def _unless(*statuses: int) -> Iterator[None]:
    try:
        yield
    except ApiError as error:
        if error.status not in statuses:
            raise


def _log(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    serve(Kubelets(given), given, sys.stdin)
