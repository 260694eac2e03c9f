"""What is carried over into a new container, what a reference means, and when a container serves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible_collections.balik.rollback.plugins.module_utils.docker_revert.engine import (
    Engine,
    parse_reference,
    repository,
    shorten,
)
from ansible_collections.balik.rollback.plugins.module_utils.docker_revert.recreate import (
    creation,
    endpoints,
    host_config,
    user_config,
)
from ansible_collections.balik.rollback.plugins.module_utils.docker_revert.revert import in_parallel, refuse
from ansible_collections.balik.rollback.plugins.module_utils.docker_revert.swap import Names, base_name, verdict
from ansible_collections.balik.rollback.plugins.module_utils.errors import BalikError, Unreachable

Json = dict[str, Any]
OLD_API, NEW_API = (1, 41), (1, 48)
ID = "d192c329eca7" + "0" * 52
DIGEST = "sha256:" + "ab" * 32

IMAGE: Json = {
    "Env": ["PATH=/bin", "APP_VERSION=2.0.0"],
    "Cmd": ["serve"],
    "Entrypoint": ["/entry"],
    "Labels": {"version": "2.0.0", "vendor": "a"},
    "ExposedPorts": {"8000/tcp": {}},
    "Volumes": {"/data": {}},
    "WorkingDir": "/srv",
    "User": "app",
    "StopSignal": "SIGINT",
    "Healthcheck": {"Test": ["CMD", "probe"], "Interval": 5},
}


def container(**changes: Any) -> Json:
    """An inspected container that was started from IMAGE without any option."""
    config = {**IMAGE, "Hostname": ID[:12], "Image": "app:2.0.0", "OnBuild": None}
    host: Json = {"NetworkMode": "default", "Binds": None, "PortBindings": {}, "AutoRemove": False}
    networks = {"bridge": {"Aliases": None, "IPAMConfig": None, "MacAddress": "02:42:ac:11:00:02"}}
    return {
        "Id": ID,
        "Name": "/app",
        "Config": {**config, **changes.get("config", {})},
        "HostConfig": {**host, **changes.get("host", {})},
        "NetworkSettings": {"Ports": changes.get("ports", {}), "Networks": changes.get("networks", networks)},
        "Mounts": changes.get("mounts", []),
    }


def created(api: tuple[int, ...] = OLD_API, **changes: Any) -> Json:
    return creation(container(**changes), {"Config": IMAGE}, "app:1.9.4", api)[0]


def test_nothing_of_the_image_is_carried_over() -> None:
    body = created()
    assert {key: body[key] for key in body if body[key]} == {
        "Image": "app:1.9.4",
        "HostConfig": body["HostConfig"],
        "NetworkingConfig": {"EndpointsConfig": {"bridge": {}}},
    }


def test_what_the_user_set_is_carried_over_and_only_that() -> None:
    kept = user_config(
        {
            **IMAGE,
            "Env": ["PATH=/bin", "APP_VERSION=mine", "DSN=x"],
            "Labels": {"version": "2.0.0", "vendor": "b", "com.docker.compose.service": "app"},
            "WorkingDir": "/elsewhere",
            "ExposedPorts": {"8000/tcp": {}, "9000/tcp": {}},
        },
        IMAGE,
    )
    assert kept["Env"] == ["APP_VERSION=mine", "DSN=x"]
    assert kept["Labels"] == {"vendor": "b", "com.docker.compose.service": "app"}
    assert kept["ExposedPorts"] == {"9000/tcp": {}}
    assert kept["WorkingDir"] == "/elsewhere"
    assert "User" not in kept and "StopSignal" not in kept and "Cmd" not in kept


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, {}),
        ({"Cmd": ["work"]}, {"Cmd": ["work"]}),
        ({"Entrypoint": ["/mine"], "Cmd": None}, {"Entrypoint": ["/mine"], "Cmd": None}),
        ({"Entrypoint": ["/mine"], "Cmd": ["serve"]}, {"Entrypoint": ["/mine"], "Cmd": ["serve"]}),
        # --entrypoint "" leaves none; the engine wants [""] to be told so.
        ({"Entrypoint": None, "Cmd": ["sh"]}, {"Entrypoint": [""], "Cmd": ["sh"]}),
        # The image's own entrypoint said again takes the image's command away.
        ({"Cmd": None}, {"Entrypoint": ["/entry"], "Cmd": None}),
    ],
)
def test_command_follows_the_rule_of_the_engine(config: Json, expected: Json) -> None:
    kept = user_config({**IMAGE, **config}, IMAGE)
    assert {key: kept[key] for key in ("Entrypoint", "Cmd") if key in kept} == expected


def test_a_health_check_is_compared_field_by_field() -> None:
    slower = {"Test": ["CMD", "probe"], "Interval": 60, "Retries": 2}
    assert user_config({**IMAGE, "Healthcheck": slower}, IMAGE)["Healthcheck"] == {"Interval": 60, "Retries": 2}
    assert user_config({**IMAGE, "Healthcheck": {"Test": ["NONE"]}}, IMAGE)["Healthcheck"] == {"Test": ["NONE"]}


def test_an_image_without_any_settings() -> None:
    assert user_config({"Env": None, "Cmd": ["sleep", "9"], "Labels": None}, {}) == {
        "Env": [],
        "Labels": {},
        "ExposedPorts": {},
        "Volumes": {},
        "Healthcheck": None,
        "Cmd": ["sleep", "9"],
    }


def test_a_chosen_hostname_stays_and_the_generated_one_goes() -> None:
    assert "Hostname" not in created()
    assert created(config={"Hostname": "web"})["Hostname"] == "web"


def test_random_ports_are_named_and_fixed_ones_left_alone() -> None:
    wanted = {"8000/tcp": [{"HostIp": "", "HostPort": ""}], "9/tcp": [{"HostIp": "", "HostPort": "9000"}]}
    actual = {
        "8000/tcp": [{"HostIp": "0.0.0.0", "HostPort": "32768"}, {"HostIp": "::", "HostPort": "32769"}],
        "9/tcp": [{"HostIp": "0.0.0.0", "HostPort": "9000"}],
        "10/tcp": None,
    }
    body = created(host={"PortBindings": wanted}, ports=actual)
    assert body["HostConfig"]["PortBindings"] == {"8000/tcp": actual["8000/tcp"], "9/tcp": wanted["9/tcp"]}
    assert set(body["ExposedPorts"]) == {"8000/tcp", "9/tcp"}


def test_ports_published_with_publish_all_are_named() -> None:
    actual = {"8000/tcp": [{"HostIp": "0.0.0.0", "HostPort": "32768"}]}
    assert host_config(container(host={"PublishAllPorts": True}, ports=actual))["PortBindings"] == actual


def test_anonymous_volumes_are_mounted_by_name() -> None:
    mounts = [
        {"Type": "volume", "Name": "v1", "Destination": "/data", "RW": True},
        {"Type": "volume", "Name": "v2", "Destination": "/ro", "RW": False},
        {"Type": "volume", "Name": "named", "Destination": "/named", "RW": True},
        {"Type": "volume", "Name": "v3", "Destination": "/mnt", "RW": True},
        {"Type": "bind", "Source": "/etc", "Destination": "/etc2", "RW": True},
    ]
    host = {"Binds": ["named:/named", "/etc:/etc2"], "Mounts": [{"Type": "volume", "Target": "/mnt"}]}
    body = created(host=host, mounts=mounts, config={"Volumes": {"/data": {}, "/ro": {}}})
    assert body["HostConfig"]["Binds"] == ["named:/named", "/etc:/etc2", "v1:/data", "v2:/ro:ro"]
    assert body["HostConfig"]["Mounts"] == [{"Type": "volume", "Target": "/mnt", "Source": "v3"}]
    assert body["Volumes"] == {}


def test_links_are_written_as_they_are_given() -> None:
    assert host_config(container(host={"Links": ["/db:/app/store"]}))["Links"] == ["db:store"]


def test_the_network_of_another_container_takes_hostname_and_ports_away() -> None:
    body = created(host={"NetworkMode": "container:abc"}, config={"Hostname": "web", "Domainname": "x"}, networks={})
    assert not {"Hostname", "Domainname", "ExposedPorts", "MacAddress"} & set(body)
    assert body["NetworkingConfig"] == {"EndpointsConfig": {}}


def test_networks_keep_addresses_aliases_and_links_without_the_generated_ones() -> None:
    networks = {
        "front": {
            "Aliases": ["web", ID[:12]],
            "IPAMConfig": {"IPv4Address": "10.0.0.9"},
            "Links": ["db:store"],
            "DriverOpts": None,
            "NetworkID": "f" * 64,
            "IPAddress": "10.0.0.9",
        },
        "back": {"Aliases": [ID[:12]], "IPAMConfig": {}, "NetworkID": "b" * 64},
    }
    found = container(host={"NetworkMode": "front"}, networks=networks)
    body, later = creation(found, {"Config": IMAGE}, "app:1.9.4", OLD_API)
    front = {"Aliases": ["web"], "IPAMConfig": {"IPv4Address": "10.0.0.9"}, "Links": ["db:store"]}
    assert body["NetworkingConfig"]["EndpointsConfig"] == {"front": front}
    assert later == {"back": {}}
    body, later = creation(found, {"Config": IMAGE}, "app:1.9.4", NEW_API)
    assert body["NetworkingConfig"]["EndpointsConfig"] == {"front": front, "back": {}} and not later


@pytest.mark.parametrize("mode", ["front", "f" * 12, "gone"])
def test_the_first_network_is_found_by_name_by_id_or_by_what_is_there(mode: str) -> None:
    body = created(host={"NetworkMode": mode}, networks={"front": {"NetworkID": "f" * 64}})
    assert body["HostConfig"]["NetworkMode"] == "front"


def test_only_a_chosen_mac_address_is_kept() -> None:
    def mac(value: str) -> Json:
        networks = {"front": {"IPAddress": "172.17.0.2", "MacAddress": value, "NetworkID": "f" * 64}}
        return endpoints(container(host={"NetworkMode": "front"}, networks=networks), NEW_API)["front"]

    assert mac("02:42:ac:11:00:02") == {}
    assert mac("de:ad:be:ef:ca:fe") == {"MacAddress": "de:ad:be:ef:ca:fe"}
    assert created(config={"MacAddress": "de:ad:be:ef:ca:fe"})["MacAddress"] == "de:ad:be:ef:ca:fe"
    assert "MacAddress" not in created(NEW_API, config={"MacAddress": "de:ad:be:ef:ca:fe"})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("app:1.0", "app:1.0"),
        ("registry:5000/team/app:1.0", "registry:5000/team/app:1.0"),
        (f"app@{DIGEST}", f"app@{DIGEST}"),
        (f"registry:5000/app:1.0@{DIGEST}", f"registry:5000/app@{DIGEST}"),
        (DIGEST, DIGEST),
        ("ab" * 32, DIGEST),
    ],
)
def test_references(given: str, expected: str) -> None:
    assert parse_reference(given) == expected


@pytest.mark.parametrize("given", ["", "app", "registry:5000/app", "app:", "app@sha256:abc", "app@latest"])
def test_references_that_could_be_anything_are_refused(given: str) -> None:
    with pytest.raises(BalikError, match="image"):
        parse_reference(given)


def test_names_of_repositories_and_short_ids() -> None:
    assert repository("registry:5000/team/app:1.0@" + DIGEST) == "registry:5000/team/app"
    assert shorten(f"app@{DIGEST}") == "app@sha256:" + "ab" * 6


def state(status: str, **more: Any) -> Json:
    return {"State": {"Status": status, "ExitCode": 3, **more}, "RestartCount": more.get("times", 1)}


@pytest.mark.parametrize(
    ("found", "running_for", "expected"),
    [
        (state("running", Health={"Status": "healthy"}), 0, "serves"),
        (state("running", Health={"Status": "starting", "Log": []}), 99, "wait"),
        (state("running", Health={"Status": "unhealthy", "FailingStreak": 3, "Log": [{"ExitCode": 1}]}), 0, "failed"),
        (state("running"), 4.9, "wait"),
        (state("running"), 5, "serves"),
        (state("created"), 99, "wait"),
        (state("restarting"), 99, "wait"),
        (state("restarting", times=8), 0, "failed"),
        (state("exited", OOMKilled=True), 0, "failed"),
        (state("paused"), 0, "failed"),
    ],
)
def test_when_a_container_serves(found: Json, running_for: float, expected: str) -> None:
    assert verdict(found, running_for, steady=5)[0] == expected


def test_what_a_health_check_printed_is_not_repeated() -> None:
    health = {"Status": "unhealthy", "FailingStreak": 3, "Log": [{"ExitCode": 7, "Output": "password=secret"}]}
    assert verdict(state("running", Health=health), 0, 5)[1] == (
        "unhealthy: 3 health checks failed in a row, last exit code 7"
    )


def test_names_of_a_run() -> None:
    names = Names("app-1", "r1")
    assert {base_name(name, "r1") for name in (names.name, names.before, names.after, names.failed)} == {"app-1"}
    assert base_name(names.before, "r2") == names.before


def test_one_failure_does_not_stop_the_others_and_all_are_told() -> None:
    def act(name: str) -> str:
        if name == "b":
            raise BalikError("container b", "is sick")
        return name.upper()

    done, failed = in_parallel(["a", "b", "c"], act, 2)
    assert done == {"a": "A", "c": "C"}
    with pytest.raises(BalikError, match=r"1 of 3 containers: container b: is sick. Done: a, c."):
        refuse(failed, done)


@pytest.mark.parametrize(
    ("host", "says"),
    [
        ("unix:///nowhere/docker.sock", "there is no such socket"),
        ("tcp://127.0.0.1:1", "the connection is refused"),
    ],
)
def test_an_engine_that_is_not_there(host: str, says: str) -> None:
    with pytest.raises(Unreachable, match=f"Docker engine at {host}: {says}.*image_revert_docker_host"):
        Engine(host)


def test_an_engine_whose_keys_are_not_where_the_plan_says(tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match=f"{tmp_path} lacks a file; expected ca.pem, cert.pem and key.pem"):
        Engine("tcp://127.0.0.1:1", str(tmp_path))


@pytest.mark.parametrize("host", ["ssh://root@docker-1", "127.0.0.1:2375", ""])
def test_an_engine_that_is_asked_for_in_a_way_that_there_is_not(host: str) -> None:
    says = f"image_revert_docker_host: found '{host}'; expected unix://.* image_revert_hosts"
    with pytest.raises(BalikError, match=says):
        Engine(host)
