"""Lawyers Hub's cluster on this machine: a control plane, nodes whose pods are containers, their network, Prometheus.

``cluster.py start FOLDER ENTRANCE_PORT PROMETHEUS_PORT``: starts it behind the terminal, and returns when it is ready.
``cluster.py apply FOLDER < manifests.yml``: applies, and waits until all Deployments in them are rolled out.
``cluster.py show FOLDER API_VERSION KIND NAMESPACE [NAME]``: an object, or all of a kind, as JSON.
``cluster.py stop FOLDER``: ends it and removes its containers; also one that was killed.

In FOLDER: ``admin.kubeconfig``, and of docs/kubernetes/rbac.yml's accounts ``rollback.kubeconfig`` and
``prepare.kubeconfig``; the servers' logs.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import yaml

HOUSE = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(HOUSE))

from tests.servers.kubernetes import Cluster, control_plane  # noqa: E402
from tests.servers.kubernetes_network import network  # noqa: E402
from tests.servers.kubernetes_nodes import nodes  # noqa: E402
from tests.servers.kubernetes_pods import remove  # noqa: E402
from tests.servers.prometheus import prometheus  # noqa: E402

NETWORK, LABEL, ENTRANCE = "balik-lawyers-hub-kubernetes", "balik.cluster=lawyers-hub-kubernetes", "balik-lhk-entrance"
#: A part of the network that Docker gives to no container; see vars/servers.yml.
SERVICES = "10.177.90.0/24"
NAMESPACE = "lawyers-hub"
RIGHTS = [*HOUSE.glob("roles/*/files/rbac-kubernetes.yml"), HOUSE / "docs/kubernetes/rbac.yml"]
START_LIMIT, STOP_LIMIT, ROLLOUT_LIMIT = 90.0, 60.0, 90.0
PROMETHEUS = """\
global: {{scrape_interval: 1s, scrape_timeout: 1s}}
scrape_configs:
  - {{job_name: lawyers-hub, file_sd_configs: [{{files: ["{targets}"]}}]}}
"""


def start(folder: Path, *ports: str) -> None:
    stop(folder)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    log = folder / "cluster.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, __file__, "run", str(folder), *ports],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    (folder / "pid").write_text(str(process.pid))
    end = time.monotonic() + START_LIMIT
    while not (folder / "ready").exists():
        if process.poll() is not None or time.monotonic() > end:
            sys.exit(f"the cluster is not ready; the end of {log}:\n" + "\n".join(log.read_text().splitlines()[-15:]))
        time.sleep(0.1)


def run(folder: Path, entrance_port: str, prometheus_port: str) -> None:
    """Until SIGTERM."""
    over = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: over.set())
    (folder / "network").mkdir()
    engine = {"network": NETWORK, "folder": str(folder / "volumes"), "label": LABEL}
    with (
        control_plane(folder, SERVICES) as cluster,
        nodes(cluster, metrics=True, engine=engine) as lab,
        network(
            cluster, NETWORK, SERVICES, folder / "network", label=LABEL, port=int(entrance_port), container=ENTRANCE
        ) as entrance,
        prometheus(config=PROMETHEUS.format(targets=entrance.targets), port=int(prometheus_port)),
    ):
        lab.load({"app.kubernetes.io/name": "api"}, cpu=50)
        cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
        for rights in RIGHTS:
            cluster.apply(rights)
        shutil.copy(cluster.kubeconfig, folder / "admin.kubeconfig")
        for account in ("rollback", "prepare"):
            made = cluster.kubeconfig_for(f"system:serviceaccount:balik:{account}")
            made.rename(folder / f"{account}.kubeconfig")
        (folder / "ready").touch()
        over.wait()


def apply(folder: Path) -> None:
    manifests = [one for one in yaml.safe_load_all(sys.stdin) if one]
    cluster = existing(folder)
    cluster.apply(manifests)
    for one in manifests:
        if one["kind"] == "Deployment":
            name, namespace = one["metadata"]["name"], one["metadata"]["namespace"]
            cluster.eventually(lambda: rolled_out(cluster, namespace, name), ROLLOUT_LIMIT, f"Deployment {name}")  # noqa: B023


def rolled_out(cluster: Cluster, namespace: str, name: str) -> bool:
    found = cluster.get("apps/v1", "Deployment", name, namespace)
    status, wanted = found.get("status", {}), found["spec"]["replicas"]
    seen = status.get("observedGeneration", 0) >= found["metadata"]["generation"]
    return seen and all(status.get(key, 0) == wanted for key in ("replicas", "updatedReplicas", "availableReplicas"))


def show(folder: Path, api_version: str, kind: str, namespace: str, name: str = "") -> None:
    found: Any = existing(folder).get(api_version, kind, name, namespace)
    print(json.dumps(found if name else found["items"]))


def existing(folder: Path) -> Cluster:
    return Cluster(folder, folder / "admin.kubeconfig")


def stop(folder: Path) -> None:
    noted = folder / "pid"
    if noted.exists() and ours(pid := int(noted.read_text())):
        os.kill(pid, signal.SIGTERM)
        end = time.monotonic() + STOP_LIMIT
        while ours(pid):
            if time.monotonic() > end:
                os.kill(pid, signal.SIGKILL)  # its servers end with it
            time.sleep(0.1)
        print("ended the cluster")
    remove(LABEL)
    shutil.rmtree(folder, ignore_errors=True)


def ours(pid: int) -> bool:
    """Whether the number is still that of a cluster; a machine that restarts gives it to others."""
    try:
        return b"cluster.py\0run" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return False


if __name__ == "__main__":
    command, given, *more = sys.argv[1:]
    {"start": start, "run": run, "apply": apply, "show": show, "stop": stop}[command](Path(given).resolve(), *more)
