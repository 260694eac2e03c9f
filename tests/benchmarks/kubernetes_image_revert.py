"""What bringing many Deployments back costs, against other ways to do it on the same control plane.

    python -m tests.benchmarks.kubernetes_image_revert [--sizes 10 100 1000] [--loop 50]

The Deployments have no replicas, so that the API and the ways to use it are measured, and not how fast nodes start
pods; ``--replicas 1`` starts them too, on simulated nodes. Each way begins with the bad image everywhere. (b), (c) and
(d) end when the API has answered; so do the first lines of (a), with every Deployment read once more. That the
controllers have carried it out is waited for by (a) alone, and stands beside how long they take after (d). (a) and (d)
are measured in turn, and the middle of their times is shown.

a  this role: reading, patching, confirming, and the rollouts; and its module as a whole, in a process of its own
b  an Ansible loop over kubernetes.core.k8s, on ``--loop`` Deployments
c  ``kubectl set image``: one process for each Deployment (on at most 50), and one for all, by label
d  bare concurrent PATCH requests with the Python client
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[2] / "collections")]

import kubernetes.client  # noqa: E402 - after the path
from ansible_collections.balik.rollback.plugins.module_utils.kubernetes.client import THREADS, Cluster  # noqa: E402
from ansible_collections.balik.rollback.plugins.module_utils.kubernetes_revert import rollout, selection  # noqa: E402
from ansible_collections.balik.rollback.plugins.module_utils.kubernetes_revert.entry import Revert  # noqa: E402
from ansible_collections.balik.rollback.plugins.module_utils.kubernetes_revert.rollout import Account  # noqa: E402

from tests.servers import kubernetes as servers  # noqa: E402
from tests.servers.kubernetes_nodes import nodes  # noqa: E402
from tools.unpack_collections import wheel  # noqa: E402

Json = dict[str, Any]
ROOT = Path(__file__).parents[2]
BAD, GOOD = "registry.example/hub:2.0.0", "registry.example/hub:1.9.4"
NAMESPACE, LABEL = "benchmark", {"product": "hub"}


def deployment(name: str, replicas: int) -> Json:
    labels = {"app": name}
    environment = [{"name": f"SETTING_{number}", "value": "x" * 20} for number in range(20)]
    container = {"name": "app", "image": BAD, "env": environment, "ports": [{"containerPort": 8000}]}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": LABEL},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}},
        },
    }


class Bench:
    """One control plane with ``size`` Deployments of the bad image."""

    def __init__(self, cluster: servers.Cluster, replicas: int) -> None:
        self.cluster, self.replicas, self.size = cluster, replicas, 0
        cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})

    def grow(self, size: int) -> None:
        self.cluster.apply([deployment(f"web-{number}", self.replicas) for number in range(self.size, size)])
        self.size = size
        self.settle(BAD)

    def items(self) -> list[Json]:
        return list(self.cluster.get("apps/v1", "Deployment", namespace=NAMESPACE)["items"])

    def settled(self, image: str, count: int = 0) -> bool:
        """Whether so many (all) have the image, and the controller has nothing left to do for them."""
        done = [
            one
            for one in self.items()
            if one["spec"]["template"]["spec"]["containers"][0]["image"] == image
            and one.get("status", {}).get("observedGeneration") == one["metadata"]["generation"]
            and one["status"].get("availableReplicas", 0) == self.replicas
            and one["status"].get("replicas", 0) == self.replicas
        ]
        return len(done) >= (count or self.size)

    def settle(self, image: str, count: int = 0) -> None:
        """Wait until it is, and a little longer: a controller that still works would be measured too."""
        self.cluster.eventually(
            lambda: self.settled(image, count), limit=600, says=f"{count or self.size} with {image}"
        )
        time.sleep(1 + self.size / 500)

    def spoil(self) -> None:
        """The bad image everywhere again."""
        _bare(self.cluster, [one["metadata"]["name"] for one in self.items()], BAD)
        self.settle(BAD)

    def measured(self, act: Callable[[], object], count: int = 0) -> float:
        """Seconds; then everything is as before."""
        begun = time.monotonic()
        act()
        seconds = time.monotonic() - begun
        self.settle(GOOD, count)
        self.spoil()
        return seconds


def arguments(cluster: servers.Cluster, entry: str = "main") -> Json:
    return {
        "entry": entry,
        "labels": LABEL,
        "namespaces": [NAMESPACE],
        "kinds": ["Deployment"],
        "image": GOOD,
        "already": "refuse",
        "cronjobs": "revert",
        "owners": "refuse",
        "argocd_namespaces": [],
        "flux_namespaces": [],
        "product": "benchmark",
        "resume": "in_sync",
        "limit": "10m",
        "kubeconfig": str(cluster.kubeconfig),
    }


def role(bench: Bench) -> Json:
    """(a): seconds of reading, patching, confirming, and from then until the controllers have done it."""
    given = arguments(bench.cluster)
    begun = time.monotonic()
    step = Revert(Cluster.connect(given["kubeconfig"]), given)
    found = step.select()
    read = time.monotonic()
    account = Account()
    going = rollout.patch(step.cluster, found.changes, account)
    patched = time.monotonic()
    seen = selection.again(step.cluster, found.changes)
    assert not any(selection.renewed(one, seen[one.key]).needed for one in found.changes)
    confirmed = time.monotonic()
    rollout.follow(step.cluster, going, account)
    done = time.monotonic()
    account.refuse()
    assert len(account.good) == bench.size
    bench.settle(GOOD)
    bench.spoil()
    return {
        "reading": read - begun,
        "patching": patched - read,
        "confirming": confirmed - patched,
        "all three": confirmed - begun,
        "then the controllers": done - confirmed,
    }


def module(bench: Bench) -> tuple[float, float]:
    """(a) as Ansible calls it, with its start and the rollouts: seconds, and MB of memory at most."""
    memory = 0.0

    def call() -> None:
        nonlocal memory
        memory = _module(arguments(bench.cluster))

    return bench.measured(call), memory


def _module(given: Json) -> float:
    """Run the module as Ansible does on localhost, in a process of its own; its peak memory in MB."""
    code = (
        "import json, resource, sys\n"
        "from ansible.module_utils.testing import patch_module_args\n"
        "from ansible_collections.balik.rollback.plugins.modules import kubernetes_image_revert as module\n"
        "with patch_module_args(json.load(sys.stdin)):\n"
        "    try:\n"
        "        module.main()\n"
        "    finally:\n"
        "        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT / "collections")},
        timeout=900,
    )
    if ran.returncode:
        raise RuntimeError(ran.stdout[-2000:] + ran.stderr[-2000:])
    return int(ran.stderr.split()[-1]) / 1024


def bring_kubernetes_core(folder: Path) -> None:
    """Unpacks kubernetes.core, which only (b) needs, out of PyPI's ansible, and lets Ansible find it."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "balik"
    with zipfile.ZipFile(wheel(cache)) as archive:
        inside = [name for name in archive.namelist() if name.startswith("ansible_collections/kubernetes/core/")]
        archive.extractall(folder, inside)
    os.environ["ANSIBLE_COLLECTIONS_PATH"] = f"{folder}:{ROOT / 'collections'}"


def loop(bench: Bench, count: int) -> float:
    """(b): seconds for each of ``count`` Deployments in a loop of kubernetes.core.k8s."""
    names = [f"web-{number}" for number in range(min(count, bench.size))]
    task = {
        "name": "Set the image",
        "kubernetes.core.k8s": {
            "state": "patched",
            "api_version": "apps/v1",
            "kind": "Deployment",
            "namespace": NAMESPACE,
            "name": "{{ item }}",
            "kubeconfig": str(bench.cluster.kubeconfig),
            "definition": {"spec": {"template": {"spec": {"containers": [{"name": "app", "image": GOOD}]}}}},
        },
        "loop": names,
    }
    play = [{"hosts": "localhost", "gather_facts": False, "tasks": [task]}]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "loop.yml"
        file.write_text(json.dumps(play))
        command = [
            str(Path(sys.executable).parent / "ansible-playbook"),
            "-e",
            f"ansible_python_interpreter={sys.executable}",
        ]

        def play_it() -> None:
            ran = subprocess.run(
                [*command, str(file)], check=False, capture_output=True, text=True, cwd=ROOT, timeout=1800
            )
            if ran.returncode:
                raise RuntimeError(ran.stdout[-2000:] + ran.stderr[-2000:])

        return bench.measured(play_it, len(names)) / len(names)


def kubectl(bench: Bench) -> dict[str, float]:
    """(c): seconds for all, each in a process of its own (as 50 of them tell), and by label in one."""
    program = shutil.which("kubectl")
    if not program:
        return {}
    base = [program, f"--kubeconfig={bench.cluster.kubeconfig}", "-n", NAMESPACE, "set", "image"]

    def call(*more: str) -> None:
        subprocess.run([*base, *more, f"app={GOOD}"], check=True, capture_output=True, timeout=1800)

    some = [f"deployment/web-{number}" for number in range(min(50, bench.size))]

    def one_by_one() -> None:
        for one in some:
            call(one)

    each = bench.measured(one_by_one, len(some)) / len(some) * bench.size
    return {"each": each, "by label": bench.measured(lambda: call("deployment", "-l", "product=hub"))}


def bare(bench: Bench) -> Json:
    """(d): nothing but the PATCH requests, with as many threads as the role has; and then the controllers' work."""
    names = [one["metadata"]["name"] for one in bench.items()]
    begun = time.monotonic()
    _bare(bench.cluster, names, GOOD)
    patched = time.monotonic()
    bench.cluster.eventually(lambda: bench.settled(GOOD), limit=600)
    done = time.monotonic()
    bench.settle(GOOD)
    bench.spoil()
    return {"bare PATCH": patched - begun, "then the controllers": done - patched}


def _bare(cluster: servers.Cluster, names: list[str], image: str) -> None:
    client = cluster.client()
    client.configuration.connection_pool_maxsize = THREADS
    api = kubernetes.client.AppsV1Api(client)
    body = {"spec": {"template": {"spec": {"containers": [{"name": "app", "image": image}]}}}}

    def one(name: str) -> None:
        # _preload_content=False leaves out the models, which cost more than the request.
        api.patch_namespaced_deployment(name, NAMESPACE, body, _preload_content=False).read()

    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(one, names))


def _middle(rounds: Sequence[Json]) -> Json:
    return {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}


def main() -> None:
    """Print a table for each size."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--loop", type=int, default=50, help="Deployments for (b); 0 leaves it out")
    parser.add_argument("--repeat", type=int, default=3, help="how often (a) and (d) are measured")
    parser.add_argument("--replicas", type=int, default=0)
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        servers.control_plane(Path(folder)) as cluster,
        nodes(cluster, {BAD: "", GOOD: ""}),
    ):
        bench = Bench(cluster, options.replicas)
        looped = 0.0
        if options.loop:
            bring_kubernetes_core(Path(folder))
        for size in sorted(options.sizes):
            bench.grow(size)
            print(f"\n{size} Deployments with {options.replicas} replicas", flush=True)
            rounds = [(bare(bench), role(bench)) for _ in range(options.repeat)]
            limit, ours = (_middle(one) for one in zip(*rounds, strict=True))
            whole, memory = module(bench)
            for way, times in (("d", limit), ("a", {**ours, "module, with start": whole})):
                for name, seconds in times.items():
                    print(f"  {way}  {name:30} {seconds:8.2f} s  {seconds / size * 1000:6.2f} ms each")
            print(f"  a  patching / bare PATCH          {ours['patching'] / limit['bare PATCH']:8.2f}    (at most 1.3)")
            print(f"  a  memory of the module           {memory:8.0f} MB (less than 300)", flush=True)
            for name, seconds in kubectl(bench).items():
                print(f"  c  kubectl set image, {name:12} {seconds:12.2f} s", flush=True)
            if options.loop and size >= options.loop:
                looped = looped or loop(bench, options.loop)
                all_of_them = looped * size
                print(f"  b  loop of kubernetes.core.k8s    {all_of_them:8.2f} s  (from {options.loop})")
                print(f"  b / a                             {all_of_them / ours['all three']:8.0f}    (80 at 1,000)")
    print(f"\npeak memory of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")


if __name__ == "__main__":
    main()
