"""What freezing and thawing many HorizontalPodAutoscalers costs, against other ways on the same control plane.

    python -m tests.benchmarks.kubernetes_scale_freeze [--sizes 10 100 500] [--loop 50]

Each way begins with all autoscalers as users wrote them. The middle of several rounds is shown.

a  this role: reading, patching and reading again, freeze and thaw; and its module, in a process of its own
b  an Ansible loop over kubernetes.core.k8s that sets the same, on ``--loop``
c  ``kubectl patch``, a process for each, on at most 50
d  bare concurrent PATCH requests with the Python client
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[2] / "collections")]

from ansible_collections.balik.rollback.plugins.module_utils.kubernetes.client import (  # noqa: E402
    MERGE,
    THREADS,
)
from ansible_collections.balik.rollback.plugins.module_utils.kubernetes.client import (  # noqa: E402
    Cluster as Client,
)
from ansible_collections.balik.rollback.plugins.module_utils.scale.freeze import Freezer  # noqa: E402

from tests.benchmarks.kubernetes_image_revert import bring_kubernetes_core  # noqa: E402
from tests.servers.kubernetes import Cluster, control_plane  # noqa: E402

ROOT = Path(__file__).parents[2]
NAMESPACE, HPA = "benchmark", "HorizontalPodAutoscaler"
FROZEN = {"spec": {"behavior": {way: {"selectPolicy": "Disabled"} for way in ("scaleUp", "scaleDown")}}}


def autoscaler(version: str, number: int) -> dict[str, Any]:
    name = f"web-{number}"
    target = {"type": "Utilization", "averageUtilization": 60}
    return {
        "apiVersion": version,
        "kind": HPA,
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name},
            "minReplicas": 2,
            "maxReplicas": 10,
            "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": target}}],
        },
    }


class Bench:
    """One control plane with ``size`` autoscalers."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.size = 0
        self.version = "autoscaling/v2" if cluster.version >= (1, 23) else "autoscaling/v2beta2"
        cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})

    def grow(self, size: int) -> None:
        self.cluster.apply([autoscaler(self.version, number) for number in range(self.size, size)])
        self.size = size

    def freezer(self) -> Freezer:
        return Freezer(Client.connect(str(self.cluster.kubeconfig)), "hub", "r1", [NAMESPACE])

    def role(self) -> dict[str, float]:
        it = self.freezer()
        found: dict[str, float] = {}
        for name, act in (
            ("freeze", it.freeze),
            ("verify frozen", it.verify_frozen),
            ("thaw", it.thaw),
            ("verify thawed", it.verify_thawed),
        ):
            found[name] = timed(act)
        found["freeze and verify"] = found["freeze"] + found["verify frozen"]
        return found

    def module(self, state: str) -> tuple[float, float]:
        """Seconds and memory (MB) of the module as Ansible runs it on localhost."""
        code = (
            "import json, resource, sys\n"
            "from ansible.module_utils.testing import patch_module_args\n"
            "from ansible_collections.balik.rollback.plugins.modules import scale_freeze as module\n"
            "with patch_module_args(json.load(sys.stdin)):\n"
            "    try:\n"
            "        module.main()\n"
            "    finally:\n"
            "        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)\n"
        )
        where = {"kubeconfig": str(self.cluster.kubeconfig), "namespaces": [NAMESPACE]}
        given = json.dumps({"state": state, "product": "hub", "kubernetes": where})
        begun = time.monotonic()
        ran = subprocess.run(
            [sys.executable, "-c", code],
            input=given,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": str(ROOT / "collections")},
            timeout=900,
        )
        seconds = time.monotonic() - begun
        if ran.returncode:
            raise RuntimeError(ran.stdout[-2000:] + ran.stderr[-2000:])
        return seconds, int(ran.stderr.split()[-1]) / 1024

    def bare(self, body: dict[str, Any]) -> None:
        client = self.cluster.client()
        client.configuration.connection_pool_maxsize = THREADS
        client.set_default_header("Content-Type", MERGE)
        path = f"/apis/{self.version}/namespaces/{NAMESPACE}/horizontalpodautoscalers/web-"

        def one(number: int) -> None:
            client.call_api(
                f"{path}{number}",
                "PATCH",
                header_params={"Content-Type": MERGE, "Accept": "application/json"},
                body=body,
                auth_settings=["BearerToken"],
                _preload_content=False,
            )[0].read()

        with ThreadPoolExecutor(THREADS) as threads:
            list(threads.map(one, range(self.size)))

    def unfreeze(self) -> None:
        self.bare({"spec": {"behavior": None}})

    def kubectl(self, count: int) -> float:
        """Seconds for each, in a process of its own."""
        command = ["kubectl", f"--kubeconfig={self.cluster.kubeconfig}", "-n", NAMESPACE, "patch"]
        resource = f"horizontalpodautoscalers.{self.version.split('/')[1]}.autoscaling"

        def patch() -> None:
            for number in range(count):
                patched = [*command, resource, f"web-{number}", "--type=merge", "-p", json.dumps(FROZEN)]
                subprocess.run(patched, check=True, capture_output=True, timeout=60)

        seconds = timed(patch)
        self.unfreeze()
        return seconds / count

    def loop(self, count: int) -> float:
        """Seconds for each in a loop of kubernetes.core.k8s."""
        task = {
            "name": "Freeze",
            "kubernetes.core.k8s": {
                "state": "patched",
                "api_version": self.version,
                "kind": HPA,
                "namespace": NAMESPACE,
                "name": "{{ item }}",
                "kubeconfig": str(self.cluster.kubeconfig),
                "definition": FROZEN,
            },
            "loop": [f"web-{number}" for number in range(count)],
        }
        play = [{"hosts": "localhost", "gather_facts": False, "tasks": [task]}]
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "loop.yml"
            file.write_text(json.dumps(play))
            command = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", "localhost,", "-c", "local"]

            def run() -> None:
                ran = subprocess.run(
                    [*command, "-e", f"ansible_python_interpreter={sys.executable}", str(file)],
                    check=False,
                    capture_output=True,
                    text=True,
                    cwd=folder,
                    timeout=1800,
                )
                if ran.returncode:
                    raise RuntimeError(ran.stdout[-2000:] + ran.stderr[-2000:])

            seconds = timed(run)
        self.unfreeze()
        return seconds / count


def timed(act: Callable[[], object]) -> float:
    begun = time.monotonic()
    act()
    return time.monotonic() - begun


def main() -> None:
    """Print a table for each size."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 100, 500])
    parser.add_argument("--loop", type=int, default=50, help="autoscalers for (b); 0 leaves it out")
    parser.add_argument("--repeat", type=int, default=3, help="how often (a) and (d) are measured")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, control_plane(Path(folder)) as cluster:
        bench = Bench(cluster)
        looped = 0.0
        if options.loop:
            bring_kubernetes_core(Path(folder))
        for size in sorted(options.sizes):
            bench.grow(size)
            print(f"\n{size} autoscalers ({bench.version})", flush=True)
            rounds = [bench.role() for _ in range(options.repeat)]
            ours = {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}
            alone = []
            for _ in range(options.repeat):
                alone.append(timed(lambda: bench.bare(FROZEN)))
                bench.unfreeze()
            limit = statistics.median(alone)
            print(f"  d  bare PATCH, {THREADS} threads           {limit:8.2f} s  {limit / size * 1000:6.2f} ms each")
            for name, seconds in ours.items():
                print(f"  a  {name:30} {seconds:8.2f} s  {seconds / size * 1000:6.2f} ms each")
            print(f"  a  freeze / bare PATCH            {ours['freeze'] / limit:8.2f}", flush=True)
            for state in ("frozen", "thawed"):
                seconds, memory = bench.module(state)
                print(f"  a  module, {state:22} {seconds:8.2f} s  {memory:6.0f} MB of memory", flush=True)
            if shutil.which("kubectl"):
                each = bench.kubectl(min(size, 50))
                print(f"  c  kubectl patch, one by one      {each * size:8.2f} s  (from {min(size, 50)})", flush=True)
            if options.loop and size >= options.loop:
                looped = looped or bench.loop(options.loop)
                print(f"  b  loop of kubernetes.core.k8s    {looped * size:8.2f} s  (from {options.loop})")
                print(f"  b / a                             {looped * size / ours['freeze and verify']:8.0f}")


if __name__ == "__main__":
    main()
