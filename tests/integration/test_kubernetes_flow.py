"""A whole rollback while the cluster misbehaves: what the record says, and that the next run ends right."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.balik.rollback.plugins.module_utils.record import Entry, Holder, Record

from tests.integration.flow.product import BREAK_GLASS, Product
from tests.servers.kubernetes import Cluster, control_plane
from tests.servers.kubernetes_nodes import Nodes, nodes

BAD, GOOD = "registry.example/hub:2.0.0", "registry.example/hub:1.9.4"
NAMES = [f"web-{number}" for number in range(12)]
NAMESPACE = "hub"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with control_plane(tmp_path_factory.mktemp("cluster")) as started:
        if not started.own:
            pytest.skip("a cluster named by the user has nodes and images of its own")
        yield started


@pytest.fixture(scope="module")
def lab(cluster: Cluster) -> Iterator[Nodes]:
    with nodes(cluster, {BAD: "", GOOD: ""}) as started:
        yield started


def deployment(name: str) -> dict[str, Any]:
    labels = {"app": name}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "app", "image": BAD}]}}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"replicas": 1, "selector": {"matchLabels": labels}, "template": template},
    }


def plan(cluster: Cluster, **more: Any) -> dict[str, Any]:
    return {
        "rollback_remedies": {"all": {"covers": ["frontend", "backend"], "takes": "1m", "revert": ["image-revert"]}},
        "image_revert_backend": "kubernetes",
        "image_revert_image": GOOD,
        "image_revert_kubeconfig": str(cluster.kubeconfig),
        **more,
    }


def images(cluster: Cluster) -> list[str]:
    found = cluster.get("apps/v1", "Deployment", namespace=NAMESPACE)["items"]
    return [one["spec"]["template"]["spec"]["containers"][0]["image"] for one in found]


def test_whatever_the_cluster_does_the_record_is_whole_and_the_next_run_ends_right(
    cluster: Cluster, lab: Nodes, tmp_path: Path
) -> None:
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    cluster.apply([deployment(name) for name in NAMES])
    workloads = [{"namespace": NAMESPACE, "name": name} for name in NAMES]
    product = Product(tmp_path, **plan(cluster, image_revert_workloads=workloads, image_revert_context="prod"))
    steps = ("step-started", "step-failed", "step-done")

    def refused(reason: str) -> None:
        """The run fails with a reason that says what to do, and nothing of image-revert has begun."""
        assert product.play(*BREAK_GLASS).returncode != 0
        said = product.outcome()["reason"]
        assert reason in said and "Traceback" not in said, said
        assert [one for one in product.entries("step-started", "step-done") if one.body["step"] == "image-revert"] == []
        assert set(images(cluster)) == {BAD}

    refused("context prod: does not stand in")
    expired = cluster.kubeconfig_for("somebody", expired=True)
    product.write(image_revert_context=None, image_revert_kubeconfig=str(expired))
    refused("does not take these credentials")

    # The API is killed while some have been patched; the run ends by itself, and says so.
    product.write(image_revert_kubeconfig=str(cluster.kubeconfig), image_revert_limit="3s")
    lab.delays(ready=2)
    with product.started(*BREAK_GLASS) as run:
        run.until(lambda: GOOD in images(cluster))
        cluster.stop_api()
        assert run.wait() != 0
    outcome = product.outcome()
    assert outcome["outcome"] == "failed"
    assert "does not answer" in outcome["reason"] and "Run again" in outcome["reason"], outcome["reason"]
    assert [one.kind for one in product.entries(*steps) if one.body["step"] == "image-revert"][-2:] == [
        "step-started",
        "step-failed",
    ]

    cluster.start_api()
    product.write(image_revert_limit="1m")
    done = product.play(*BREAK_GLASS)
    assert done.returncode == 0, done.stdout
    assert set(images(cluster)) == {GOOD}
    assert product.outcome()["outcome"] == "rolled-back"
    last = [one for one in product.entries(*steps) if one.body["step"] == "image-revert"][-1]
    assert last.kind == "step-done"

    keys = yaml.safe_load(cluster.kubeconfig.read_text())["users"][0]["user"]["client-key-data"]
    for secret in (keys, base64.b64decode(keys).decode().splitlines()[1]):
        assert [name for name, text in product.everything_written().items() if secret in text] == []


def flux(cluster: Cluster, name: str) -> None:
    """The API of Flux' Kustomizations, without their controller, and one in a namespace of this name."""
    group = "kustomize.toolkit.fluxcd.io"
    anything = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    served = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": anything}}
    names = {"kind": "Kustomization", "plural": "kustomizations"}
    cluster.apply(
        {
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": f"kustomizations.{group}"},
            "spec": {"group": group, "names": names, "scope": "Namespaced", "versions": [served]},
        }
    )
    metadata = {"name": "apps", "namespace": name}
    cluster.apply({"apiVersion": f"{group}/v1", "kind": "Kustomization", "metadata": metadata, "spec": {"path": "."}})


def refuses_bad_calls(product: Product, resume: str) -> None:
    """Each is told, and nothing is written down."""
    untouched = len(product.entries())
    for call, reason in (
        (("-e", "gitops_resume_hosts=nosuch"), "gitops_resume_hosts: 'nosuch' matches no host"),
        (("--limit", "web-1"), "localhost is not among the hosts of this call. Leave --limit out"),
    ):
        refused = product.play(*call, playbook=resume)
        assert refused.returncode != 0 and reason in refused.stdout, refused.stdout
    refused = product.play("-e", "image_revert_resume=alway", playbook=resume)
    assert refused.returncode != 0 and refused.stdout.count("alway") > 0
    assert len(product.entries()) == untouched


def another_cluster_is_let_go_by_itself(product: Product, resume: str) -> None:
    """One in which the same product holds off the same names, as a rehearsal leaves it; then as a run of this record
    does that was begun there by mistake."""
    with control_plane(product.folder / "other") as other:
        other.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "told"}})
        flux(other, "told")
        path = other.api.path("kustomize.toolkit.fluxcd.io/v1", "Kustomization", "told", "apps")
        note = {"balik.dev/held": json.dumps({"product": "flow", "was": {"suspend": None}})}
        held = {"metadata": {"annotations": note}, "spec": {"suspend": True}}
        other.api.request("PATCH", path, held, "application/merge-patch+json")
        there = ("-e", f"image_revert_kubeconfig={other.kubeconfig}")
        untouched = len(product.entries())
        refused = product.play(*there, playbook=resume)
        assert refused.returncode != 0, refused.stdout
        assert "this run began in another cluster" in " ".join(refused.stdout.split())
        assert other.api.request("GET", path)["spec"]["suspend"] is True
        assert len(product.entries()) == untouched

        uid = other.get("v1", "Namespace", "kube-system")["metadata"]["uid"]
        (ours,) = {one.body["saved"]["localhost"]["cluster"] for one in reverts(product)}
        address = yaml.safe_load(other.kubeconfig.read_text())["clusters"][0]["cluster"]["server"]
        saved = {"localhost": {"held": [path], "cluster": address, "cluster_uid": uid}}
        with Record(str(product.state / "record.sqlite"), "flow") as record:
            begun = {"phase": "revert", "step": "image-revert", "by": "rina", "saved": saved}
            record.append("step-started", begun, reverts(product)[-1].run)
        resumed = product.play(*there, playbook=resume)
        assert resumed.returncode == 0, resumed.stdout
        assert f"WARNING: what localhost has held off in the cluster at {ours} stays so." in resumed.stdout
        assert "suspend" not in other.api.request("GET", path)["spec"]


def reverts(product: Product) -> list[Entry]:
    return [one for one in product.entries("step-started") if one.body["step"] == "image-revert"]


def test_what_the_check_found_without_refusing_is_told_and_kept(cluster: Cluster, lab: Nodes, tmp_path: Path) -> None:
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "told"}})
    kustomized = {"kustomize.toolkit.fluxcd.io/name": "apps", "kustomize.toolkit.fluxcd.io/namespace": "told"}
    metadata = {"namespace": "told", "labels": {"part-of": "hub", "app.kubernetes.io/managed-by": "Helm", **kustomized}}
    helm = {"meta.helm.sh/release-name": "hub", "meta.helm.sh/release-namespace": "told"}
    web, other = deployment("web"), deployment("other")
    web["metadata"] |= {**metadata, "annotations": helm}
    other["metadata"] |= {**metadata, "labels": {"part-of": "hub"}}
    other["spec"]["template"]["spec"]["containers"][0]["image"] = "redis:7"
    budget = {"minAvailable": 5, "selector": {"matchLabels": {"app": "web"}}}
    cluster.apply(
        [
            web,
            other,
            {
                "apiVersion": cluster.offered("policy/v1", "policy/v1beta1"),
                "kind": "PodDisruptionBudget",
                "spec": budget,
                "metadata": {"name": "pdb-web", "namespace": "told"},
            },
        ]
    )
    flux(cluster, "told")
    product = Product(
        tmp_path,
        **plan(cluster, image_revert_labels={"part-of": "hub"}, image_revert_namespaces=["told"]),
        rollback_restore=["restore-it", "gitops-resume"],
        image_revert_owners="suspend",
    )
    notes = ("belongs to Helm release told/hub", "PodDisruptionBudget pdb-web allows no", "told/other runs none of")
    looked = product.play("--check", "-e", "rollback_reason=complaints")
    done = product.play(*BREAK_GLASS)
    for run in (looked, done):
        assert run.returncode == 0, run.stdout
        (line,) = [each for each in run.stdout.splitlines() if each.startswith("balik: image-revert: checked. ")]
        assert [note for note in notes if note not in line] == []
    (started,) = reverts(product)
    report = Path(product.outcome()["report"]).read_text()
    for note in notes:
        assert note in started.body["says"]["localhost"] and note in report
    (ended,) = [one for one in product.entries("step-done") if one.body["step"] == "image-revert"]
    assert "told/other runs none of the images" in ended.body["says"]["localhost"]

    # Flux does not tell what Git wants: it stays held off, which is said for as long.
    status = product.play(playbook="playbooks/status.yml").stdout
    assert "outcome: rolled-back" in status and "GITOPS IS HELD OFF since 20" in status, status
    assert "kustomizations apps in namespace told" in status
    assert "GitOps is still held off" in report
    product.write(image_revert_resume="always", image_revert_already="accept")

    # By hand, after the incident: it stands in the record, and the run stays what it was.
    resume = "playbooks/gitops-resume.yml"
    with Record(str(product.state / "record.sqlite"), "flow") as record:
        mine = Holder.of_process("budi", os.getpid())
        record.acquire(mine, 300)
        refused = product.play(playbook=resume)
        assert refused.returncode != 0 and "is rolling it back. Let that end first" in refused.stdout, refused.stdout
        record.release(mine)
    refuses_bad_calls(product, resume)
    another_cluster_is_let_go_by_itself(product, resume)
    assert "HELD OFF" in product.play(playbook="playbooks/status.yml").stdout
    would = product.play("--check", playbook=resume)
    assert "would be: localhost: acting again: kustomizations apps in namespace told" in would.stdout, would.stdout
    assert "HELD OFF" in product.play(playbook="playbooks/status.yml").stdout
    resumed = product.play("-e", "rollback_by=rina", playbook=resume)
    assert resumed.returncode == 0, resumed.stdout
    begun, entry = [(one.run, one.kind, one.body["step"], one.body["by"]) for one in product.entries()[-2:]]
    assert (begun, entry) == (("", "step-started", "gitops-resume", "rina"), ("", "step-done", "gitops-resume", "rina"))
    assert product.entries()[-1].body["says"] == {"localhost": "acting again: kustomizations apps in namespace told"}
    status = product.play(playbook="playbooks/status.yml").stdout
    assert "outcome: rolled-back" in status and "HELD OFF" not in status

    assert product.play(*BREAK_GLASS).returncode == 0
    assert "HELD OFF" not in product.play(playbook="playbooks/status.yml").stdout


def test_git_ops_is_not_let_go_in_the_middle_of_a_rollback(cluster: Cluster, lab: Nodes, tmp_path: Path) -> None:
    name = "middle"
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    web = deployment("web")
    kustomized = {"kustomize.toolkit.fluxcd.io/name": "apps", "kustomize.toolkit.fluxcd.io/namespace": name}
    web["metadata"] |= {"namespace": name, "labels": kustomized}
    cluster.apply(web)
    flux(cluster, name)
    product = Product(
        tmp_path,
        **plan(cluster, image_revert_workloads=[{"namespace": name, "name": "web"}], image_revert_resume="always"),
        rollback_restore=["restore-it", "gitops-resume"],
        image_revert_owners="suspend",
    )

    def suspended() -> bool:
        spec = cluster.get("kustomize.toolkit.fluxcd.io/v1", "Kustomization", "apps", name)["spec"]
        return bool(spec.get("suspend"))

    restores = tmp_path / "verify-it"
    restores.rename(tmp_path / "kept")
    restores.write_text("no folder")
    assert product.play(*BREAK_GLASS).returncode != 0 and suspended()
    refused = product.play(playbook="playbooks/gitops-resume.yml")
    assert refused.returncode != 0 and suspended()
    assert "is not over, and what acts again now may put the bad version back. Let it end first:" in refused.stdout
    restores.unlink()
    (tmp_path / "kept").rename(restores)

    # Somebody lets it go by hand all the same: the next call holds it off anew before it goes on.
    path = cluster.api.path("kustomize.toolkit.fluxcd.io/v1", "Kustomization", name, "apps")
    cluster.api.request("PATCH", path, {"spec": {"suspend": False}}, "application/merge-patch+json")
    product.write(image_revert_resume="in_sync")
    done = product.play(*BREAK_GLASS)
    assert done.returncode == 0, done.stdout
    assert "image-revert: done before, but no longer so: Flux' Kustomization middle/apps: acts again" in done.stdout
    assert suspended()
