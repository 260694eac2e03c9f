"""image-revert of services of a Compose project, with each Compose that this machine has."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.balik.rollback.plugins.module_utils.docker_revert.compose import program
from ansible_collections.balik.rollback.plugins.module_utils.errors import BalikError

from tests.integration.test_image_revert import BAD, GOOD, RUN
from tests.integration.test_image_revert import step as single_step
from tests.servers.docker_engine import Lab, docker, docker_lab, eventually, image_id, inspect, version_of

pytestmark = pytest.mark.docker
PLUGIN, ONE = ("docker", "compose"), ("docker-compose",)


def _has(command: tuple[str, ...]) -> bool:
    if shutil.which(command[0]) is None:
        return False
    return subprocess.run([*command, "version"], capture_output=True, timeout=30, check=False).returncode == 0


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with docker_lab() as made:
        for version in (BAD, GOOD):
            made.image(version)
        yield made


@dataclass
class Shop:
    """A project of two services; ``web`` twice."""

    folder: Path
    lab: Lab
    compose: tuple[str, ...]

    def up(self) -> None:
        command = [*self.compose, "up", "--detach", "--scale", "web=2"]
        subprocess.run(command, cwd=self.folder, capture_output=True, timeout=120, check=True)

    def down(self) -> None:
        command = [*self.compose, "down", "--volumes", "--timeout", "0"]
        subprocess.run(command, cwd=self.folder, capture_output=True, timeout=120, check=False)

    def containers(self, service: str) -> list[str]:
        labels = (f"label=com.docker.compose.{key}" for key in (f"project={self.folder.name}", f"service={service}"))
        filters = [part for label in labels for part in ("--filter", label)]
        return sorted(docker("ps", "--all", *filters, "--format", "{{.Names}}").split())

    def versions(self) -> list[str]:
        return [version_of(name) for name in self.containers("web")]

    def step(self, entry: str, image: str, **more: Any) -> dict[str, Any]:
        project = {"project_dir": str(self.folder), "services": {"web": image}}
        return single_step(entry, containers=[], compose={**project, **more.pop("compose", {})}, **more)


@pytest.fixture(params=[PLUGIN, ONE], ids=["plugin", "docker-compose 1"], name="shop")
def _shop(request: pytest.FixtureRequest, lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    if not _has(request.param):
        pytest.skip(f"no {' '.join(request.param)} here")
    folder = tmp_path / f"{lab.prefix}shop"
    folder.mkdir()
    web = {
        "image": f"{lab.prefix}app:{BAD}-healthy",
        "ports": ["127.0.0.1::8000"],
        "environment": {"DSN": "${DSN}"},
        "volumes": ["store:/store"],
        "stop_grace_period": "1s",
    }
    other = {"image": web["image"], "command": "sleep 600", "init": True, "stop_grace_period": "0s"}
    content = {"version": "3.7", "services": {"web": web, "other": other}, "volumes": {"store": {}}}
    (folder / "docker-compose.yml").write_text(f'version: "3.7"\n{_yaml(content)}')
    (folder / ".env").write_text("DSN=secret\n")
    if request.param == ONE:
        # Where the plugin is installed too, it would be taken.
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin" / "docker-compose").symlink_to(str(shutil.which("docker-compose")))
        monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert program() == request.param
    made = Shop(folder, lab, request.param)
    try:
        made.up()
        eventually(lambda: made.versions() == [BAD, BAD])
        yield made
    finally:
        made.down()


def _yaml(content: dict[str, Any]) -> str:
    """Each key of a mapping as YAML; what is below is JSON, which is YAML."""
    return "".join(f"{key}: {json.dumps(value)}\n" for key, value in content.items() if key != "version")


def test_check_main_verify_undo(shop: Shop) -> None:
    good, bad = (f"{shop.lab.prefix}app:{version}-healthy" for version in (GOOD, BAD))
    others = [inspect(name)["Id"] for name in shop.containers("other")]
    own, was = (shop.folder / "docker-compose.yml").read_text(), image_id(bad)

    seen = shop.step("check", good)
    assert seen["before"].keys() == {"web-1", "web-2"} and seen["before"]["web-1"]["image"] == bad
    would = shop.step("main", good, check_mode=True)
    assert would["changed"] and shop.versions() == [BAD, BAD]
    with pytest.raises(BalikError, match=f"runs {bad}"):
        shop.step("verify", good)

    done = shop.step("main", good)
    assert done["changed"] and "secret" not in json.dumps(done)
    eventually(lambda: shop.versions() == [GOOD, GOOD])
    override = shop.folder / f".balik-image-revert-{RUN}.yml"
    assert done["evidence"]["containers"]["web-1"]["override"] == str(override)
    assert json.loads(override.read_text()) == {"version": "3.7", "services": {"web": {"image": good}}}
    shop.step("verify", good)
    again = shop.step("main", good)
    assert not again["changed"] and "already" in again["says"]
    assert "DSN=secret" in inspect(shop.containers("web")[0])["Config"]["Env"]

    # The old image's name means another image by now, so that its id must do.
    docker("tag", bad, f"{bad}-too")
    docker("tag", good, bad)
    try:
        assert shop.step("undo", good, saved=seen["before"])["changed"]
    finally:
        docker("tag", was, bad)
    eventually(lambda: shop.versions() == [BAD, BAD])
    assert {inspect(name)["Image"] for name in shop.containers("web")} == {was}
    assert not shop.step("undo", good, saved=seen["before"])["changed"]
    assert [inspect(name)["Id"] for name in shop.containers("other")] == others
    assert (shop.folder / "docker-compose.yml").read_text() == own


def test_what_does_not_come_up_and_what_cannot_be_found(shop: Shop, tmp_path: Path) -> None:
    good, bad = (f"{shop.lab.prefix}app:{version}-healthy" for version in (GOOD, BAD))
    sick = shop.lab.image("1.9.3", "unhealthy")
    with pytest.raises(BalikError, match="its services run again what they ran before") as told:
        shop.step("main", sick)
    assert "unhealthy: " in str(told.value) and "secret" not in str(told.value)
    eventually(lambda: shop.versions() == [BAD, BAD])
    assert {inspect(name)["Config"]["Image"] for name in shop.containers("web")} == {bad}

    with pytest.raises(BalikError, match="none of its containers exists"):
        shop.step("check", good, compose={"project_dir": str(tmp_path)})
    with pytest.raises(BalikError, match=r"has no file other\.yml"):
        shop.step("check", good, compose={"files": ["other.yml"]})
    with pytest.raises(BalikError, match=r"service mail of Compose project .* has no container"):
        shop.step("check", good, compose={"services": {"mail": good}})
    with pytest.raises(BalikError, match="No container was touched"):
        shop.step("check", "balik-test-ir-nobody:1", pull="never")
    own = (shop.folder / "docker-compose.yml").read_text()
    (shop.folder / "docker-compose.yml").write_text("services: [")
    with pytest.raises(BalikError, match="its files cannot be read"):
        shop.step("check", good)
    (shop.folder / "docker-compose.yml").write_text(own)
