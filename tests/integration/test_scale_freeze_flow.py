"""scale-freeze and scale-thaw in a whole rollback: what status and report say while anything is frozen."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.integration.flow.product import BREAK_GLASS, Product
from tests.servers.kubernetes import Cluster, control_plane

AUTOSCALER = {
    "apiVersion": "autoscaling/v1",
    "kind": "HorizontalPodAutoscaler",
    "metadata": {"name": "web", "namespace": "hub"},
    "spec": {
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"},
        "minReplicas": 2,
        "maxReplicas": 9,
    },
}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with control_plane(tmp_path_factory.mktemp("cluster")) as started:
        started.apply([{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "hub"}}, AUTOSCALER])
        yield started


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Another cluster with the same names."""
    with control_plane(tmp_path_factory.mktemp("elsewhere")) as started:
        started.apply([{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "hub"}}, AUTOSCALER])
        yield started


def frozen(cluster: Cluster, namespace: str = "hub") -> bool:
    metadata = cluster.get("autoscaling/v1", "HorizontalPodAutoscaler", "web", namespace)["metadata"]
    return "balik.dev/frozen" in metadata.get("annotations", {})


def server(cluster: Cluster) -> str:
    """The address of its API."""
    found = yaml.safe_load(cluster.kubeconfig.read_text())
    return str(found["clusters"][0]["cluster"]["server"])


def test_what_an_edited_plan_no_longer_names_is_thawed_by_the_record(cluster: Cluster, tmp_path: Path) -> None:
    other = {**AUTOSCALER, "metadata": {"name": "web", "namespace": "desk"}}
    cluster.apply([{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "desk"}}, other])
    product = Product(
        tmp_path,
        web=False,
        rollback_hold=["scale-freeze"],
        rollback_restore=["scale-thaw", "restore-it"],
        scale_freeze_kubeconfig=str(cluster.kubeconfig),
        scale_freeze_namespaces=["hub", "desk"],
    )
    (tmp_path / "revert-it" / "break-localhost").touch()
    assert product.play(*BREAK_GLASS).returncode != 0
    assert frozen(cluster)
    assert frozen(cluster, "desk")
    (tmp_path / "revert-it" / "break-localhost").unlink()
    product.write(scale_freeze_namespaces=["hub"])
    done = product.play(*BREAK_GLASS)
    assert done.returncode == 0, done.stdout
    assert not frozen(cluster)
    assert not frozen(cluster, "desk")


def test_a_later_call_in_another_cluster_is_refused_and_says_which_one_is_frozen(
    cluster: Cluster, elsewhere: Cluster, tmp_path: Path
) -> None:
    product = Product(
        tmp_path,
        web=False,
        rollback_hold=["scale-freeze"],
        rollback_restore=["scale-thaw", "restore-it"],
        scale_freeze_kubeconfig=str(cluster.kubeconfig),
        scale_freeze_namespaces=["hub"],
    )
    (tmp_path / "revert-it" / "break-localhost").touch()
    assert product.play(*BREAK_GLASS).returncode != 0
    (tmp_path / "revert-it" / "break-localhost").unlink()
    product.write(scale_freeze_kubeconfig=str(elsewhere.kubeconfig))
    refused = product.play(*BREAK_GLASS)
    assert refused.returncode != 0, refused.stdout
    assert f"this run began in another cluster, at {server(cluster)}" in product.outcome()["reason"]
    assert not frozen(elsewhere)
    assert "AUTOSCALERS ARE FROZEN" in product.play(playbook="playbooks/status.yml").stdout

    product.write(scale_freeze_kubeconfig=str(cluster.kubeconfig))
    done = product.play(*BREAK_GLASS)
    assert done.returncode == 0, done.stdout
    assert not frozen(cluster)


def test_whatever_fails_it_is_told_that_autoscalers_are_frozen_until_they_are_not(
    cluster: Cluster, tmp_path: Path
) -> None:
    product = Product(
        tmp_path,
        web=False,
        rollback_hold=["scale-freeze", "hold-it"],
        rollback_restore=["scale-thaw", "restore-it"],
        scale_freeze_kubeconfig=str(cluster.kubeconfig),
        scale_freeze_namespaces=["hub"],
    )
    (tmp_path / "revert-it" / "break-localhost").touch()
    failed = product.play(*BREAK_GLASS)
    assert failed.returncode != 0
    assert frozen(cluster)
    status = product.play(playbook="playbooks/status.yml").stdout
    assert "AUTOSCALERS ARE FROZEN since 20" in status, status
    assert "1 autoscaler (HorizontalPodAutoscaler hub/web) held still" in status, status
    report = Path(product.outcome()["report"])
    assert "Autoscalers are still frozen" in report.read_text()
    assert json.loads(report.with_suffix(".json").read_text())["frozen"]["says"]

    # It breaks once more, after the thaw: traffic was not given back, so all before is held to again.
    (tmp_path / "revert-it" / "break-localhost").unlink()
    (tmp_path / "restore-it" / "break-localhost").touch()
    failed = product.play(*BREAK_GLASS)
    assert failed.returncode != 0, failed.stdout
    assert not frozen(cluster)
    assert "AUTOSCALERS ARE FROZEN" not in product.play(playbook="playbooks/status.yml").stdout

    (tmp_path / "restore-it" / "break-localhost").unlink()
    done = product.play(*BREAK_GLASS)
    assert done.returncode == 0, done.stdout
    assert not frozen(cluster)
    assert "AUTOSCALERS ARE FROZEN" not in product.play(playbook="playbooks/status.yml").stdout
    assert "still frozen" not in Path(product.outcome()["report"]).read_text()
