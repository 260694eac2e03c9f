"""Whether the new release still runs, read from the real Docker engine and a real API server."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.balik.rollback.plugins.module_utils.errors import BalikError
from ansible_collections.balik.rollback.plugins.module_utils.prisma import address, down
from ansible_collections.balik.rollback.plugins.module_utils.prisma.workload import Places, look

from tests.integration.roles_in_a_play import play
from tests.servers.docker_engine import docker, docker_lab
from tests.servers.kubernetes import control_plane
from tests.servers.kubernetes_nodes import nodes
from tests.servers.postgresql import postgresql

ENGINE = "unix:///var/run/docker.sock"
BAD, GOOD = "registry.example/hub:2.0.0", "registry.example/hub:1.9.4"


@pytest.mark.docker
def test_a_container_of_the_new_release_is_found_by_its_image_whatever_its_name(tmp_path: Path) -> None:
    with docker_lab() as lab:
        new, old = lab.image("2.0.0", "unchecked"), lab.image("1.9.4", "unchecked")
        again = lab.prefix + "again:latest"
        docker("tag", new, again)
        one = lab.run("one", again)
        other = lab.run("other", old, command=("sh", "-c", "npx prisma migrate deploy; sleep 600"))
        seen = look(Places([new], [ENGINE]))
        assert seen.problems == [f"container {one} still runs the new release ({new}); revert it first (image-revert)"]
        (note,) = [note for note in seen.notes if lab.prefix in note]
        assert note.startswith(
            f"container {other} runs `migrate deploy` when it starts: if that is the new release, it"
        )
        way_down_is_refused(new, one, tmp_path)
        docker("stop", "--time", "0", one)
        assert look(Places([new], [ENGINE])).problems == []


def way_down_is_refused(image: str, container: str, folder: Path) -> None:
    """While it runs nothing goes down; a check run, and a look before the decision, before which nothing was reverted,
    only say so."""
    (folder / "m1").mkdir()
    (folder / "m1" / "migration.sql").write_text("CREATE TABLE a (b int);")
    (folder / "m1" / "down.sql").write_text("DROP TABLE a;")
    with postgresql() as server:
        checksum = hashlib.sha256(b"CREATE TABLE a (b int);").hexdigest()
        server.psql(
            f"""CREATE TABLE a (b int); CREATE TABLE _prisma_migrations AS SELECT 'id' AS id, '{checksum}' AS checksum,
            now() AS finished_at, 'm1' AS migration_name, NULL AS logs, NULL::timestamptz AS rolled_back_at,
            now() AS started_at, 1 AS applied_steps_count"""
        )
        url = address.read(f"postgresql://postgres@{server.host}:{server.port}/postgres")
        task = down.Task(url, str(folder), "no-migration", "r1", str(folder), places=Places([image], [ENGINE]))
        with pytest.raises(BalikError, match=f"container {container} still runs the new release"):
            down.main(task, check_mode=False)
        assert server.psql("SELECT count(*) FROM _prisma_migrations") == "1"
        found = down.check(replace(task, rehearsal=True))
        assert f"container {container} still runs" in found["says"] and "would be refused now" in found["says"]
        before_the_decision = {
            "rollback_step_early": True,
            "prisma_down_url": f"postgresql://postgres@{server.host}:{server.port}/postgres",
            "prisma_down_migrations": str(folder),
            "prisma_down_to": "no-migration",
            "prisma_down_keep_dir": str(folder),
            "prisma_down_new_images": [image],
            "prisma_down_docker_hosts": [ENGINE],
        }
        (found,) = play(folder, [("prisma-down", "check")], before_the_decision, {})
        assert f"container {container} still runs" in found["says"] and "would be refused now" in found["says"]


def test_a_pod_of_the_new_release_is_found_while_it_ends_too(tmp_path: Path) -> None:
    with control_plane(tmp_path) as cluster:
        if not cluster.own:
            pytest.skip("a cluster named by the user has nodes and images of its own")
        with nodes(cluster, {BAD: "", GOOD: ""}) as lab:
            places = Places([BAD], namespaces=["default"], kubeconfig=str(cluster.kubeconfig))
            cluster.apply(
                [deployment("old", GOOD), deployment("new", BAD, "npx prisma migrate deploy && node server.js")]
            )
            cluster.eventually(lambda: len(look(places).problems) == 1, says="the pod of the new release")
            seen = look(places)
            assert "pod default/new-" in seen.problems[0] and f"still runs the new release ({BAD})" in seen.problems[0]
            assert [note.partition(":")[0] for note in seen.notes] == [
                "Deployment default/new runs `migrate deploy` when it starts"
            ]
            lab.delays(stop=2)
            cluster.apply(deployment("new", BAD, replicas=0))
            assert look(places).problems, "a pod that is being ended runs still"
            cluster.eventually(lambda: not look(places).problems, says="no pod of the new release")


def deployment(name: str, image: str, command: str = "node server.js", replicas: int = 1) -> dict[str, Any]:
    labels = {"app": name}
    container = {"name": "app", "image": image, "command": ["sh", "-c", command]}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [container]}}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"replicas": replicas, "selector": {"matchLabels": labels}, "template": template},
    }


def test_images_without_a_place_and_a_place_without_images_are_refused() -> None:
    for places in (Places([BAD]), Places([], [ENGINE])):
        with pytest.raises(BalikError, match="both the new release's images"):
            look(places)
    assert look(Places()).notes == ["whether the new release still runs was not looked at (prisma_down_new_images)"]
