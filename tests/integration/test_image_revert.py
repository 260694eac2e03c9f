"""image-revert on this machine's own Docker engine, with tiny images."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.balik.rollback.plugins.module_utils.docker_revert.entry import run
from ansible_collections.balik.rollback.plugins.module_utils.errors import BalikError
from docker import APIClient

from tests.servers.certificates import Authority
from tests.servers.docker_engine import Lab, docker, docker_lab, eventually, image_id, inspect, version_of
from tests.servers.loopback import free_port, wait_for_port

pytestmark = pytest.mark.docker
Json = dict[str, Any]
HOST = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
ROOT = Path(__file__).parents[2]
RUN = "20260110T130000Z-3f9a"
BAD, GOOD = "2.0.0", "1.9.4"
# What `docker build` itself puts into every image.
PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
OPTIONS = ("--publish", "127.0.0.1::8000", "--restart", "always", "--env", "DSN=secret")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with docker_lab() as made:
        for version in (BAD, GOOD):
            made.image(version)
        yield made


@pytest.fixture(name="app")
def _app(lab: Lab) -> Iterator[str]:
    """One container of the bad release, and nothing of it left afterwards."""
    name = lab.run("app", bad(lab), *OPTIONS)
    yield name
    names = docker("ps", "--all", "--filter", f"name=^{name}", "--format", "{{.Names}}").split()
    docker("rm", "--force", "--volumes", *names)


def bad(lab: Lab) -> str:
    return f"{lab.prefix}app:{BAD}-healthy"


def good(lab: Lab) -> str:
    return f"{lab.prefix}app:{GOOD}-healthy"


def arguments(entry: str, *names: str, **more: Any) -> Json:
    return {
        "entry": entry,
        "run_id": RUN,
        "pull": "missing",
        "limit": "20s",
        "steady": "500ms",
        "parallel": 10,
        # Another engine, a newer one say, can be tested by this variable.
        "docker_host": HOST,
        "containers": [{"name": name} for name in names],
        **more,
    }


def step(entry: str, *names: str, check_mode: bool = False, **more: Any) -> Json:
    return run(arguments(entry, *names, **more), check_mode)


def kept(name: str) -> str:
    return f"{name}--before-{RUN}"


def coming(name: str) -> str:
    return f"{name}--after-{RUN}"


def failed(name: str) -> str:
    return f"{name}--failed-{RUN}"


def family(name: str) -> dict[str, str]:
    """Everything that goes by a name of this container: the ending of its name → its state."""
    lines = docker("ps", "--all", "--filter", f"name=^{name}", "--format", "{{.Names}} {{.State}}").splitlines()
    return {line.split()[0].removeprefix(name): line.split()[1] for line in lines}


def policy(name: str) -> str:
    return str(inspect(name)["HostConfig"]["RestartPolicy"]["Name"])


def reverted(name: str) -> None:
    """The end that every run must come to, however it was interrupted."""
    eventually(lambda: version_of(name) == GOOD, says=f"{name} answering {GOOD}")
    assert family(name) == {"": "running", f"--before-{RUN}": "exited"}
    assert (policy(name), policy(kept(name))) == ("always", "no")
    assert "DSN=secret" in inspect(name)["Config"]["Env"]


def not_reverted(name: str) -> None:
    eventually(lambda: version_of(name) == BAD, says=f"{name} answering {BAD}")
    assert policy(name) == "always"


def test_check_main_verify_undo(lab: Lab, app: str) -> None:
    was, now = inspect(app), image_id(good(lab))
    seen = step("check", app, image=good(lab))
    assert seen["before"] == {
        app: {"id": was["Id"], "image": bad(lab), "image_id": image_id(bad(lab)), "digest": ""},
    }
    assert seen["says"].startswith(f"{app}: {bad(lab)} (sha256:") and "secret" not in json.dumps(seen)

    would = step("main", app, image=good(lab), check_mode=True)
    assert would["changed"] and would["diff"]["before"] != would["diff"]["after"]
    assert inspect(app)["Id"] == was["Id"] and family(app) == {"": "running"}
    with pytest.raises(BalikError, match=f"runs {bad(lab)}"):
        step("verify", app, image=good(lab))

    done = step("main", app, image=good(lab))
    assert done["changed"] and done["evidence"]["containers"][app]["kept"] == kept(app)
    assert done["evidence"]["containers"][app]["image_id"] == now
    reverted(app)
    assert "healthy" in step("verify", app, image=good(lab))["says"]

    new = inspect(app)["Id"]
    again = step("main", app, image=good(lab))
    assert not again["changed"] and "already" in again["says"] and inspect(app)["Id"] == new
    assert not step("main", app, image=good(lab), check_mode=True)["changed"]

    assert step("undo", app, image=good(lab), saved=seen["before"], check_mode=True)["changed"]
    assert step("undo", app, image=good(lab), saved=seen["before"])["changed"]
    not_reverted(app)
    assert inspect(app)["Id"] == was["Id"] and family(app) == {"": "running"}
    assert not step("undo", app, image=good(lab), saved=seen["before"])["changed"]


def test_everything_but_the_image_is_carried_over(lab: Lab, app: str, tmp_path: Path) -> None:
    # Not the same at each run: one that was killed may have left its networks.
    there, behind = (f"10.213.{os.getpid() % 128 * 2 + number}" for number in (0, 1))
    networks = {lab.name("front"): f"{there}.0/24", lab.name("back"): f"{behind}.0/24"}
    for network, subnet in networks.items():
        docker("network", "create", "--subnet", subnet, network)
    docker("volume", "create", lab.name("store"))
    (tmp_path / "settings").write_text("x")
    front, back = networks
    options = f"""
        --env A=1 --env APP_HOME=/mine --label team=legal --restart on-failure:3 --memory 64m --cpus 0.5
        --publish 127.0.0.1::8000 --publish 127.0.0.1::9000/udp --expose 7000 --hostname web --domainname x.test
        --network {front} --ip {there}.9 --network-alias lawyers --add-host a.test:10.1.1.1 --dns 10.1.1.2
        --volume {lab.name("store")}:/store --volume {tmp_path}:/etc/app:ro --volume /scratch --tmpfs /tmp/t
        --ulimit nofile=512:1024 --cap-add NET_ADMIN --cap-drop CHOWN --sysctl net.core.somaxconn=99
        --log-driver json-file --log-opt max-size=1m --init --device /dev/null:/dev/null2 --shm-size 32m
        --user 0 --workdir / --stop-timeout 3 --group-add 5 --oom-score-adj 7 --pids-limit 99 --ipc private
        --security-opt no-new-privileges --health-interval 400ms --mount type=volume,target=/mnt/anonymous
    """
    name = lab.run("rich", bad(lab), *options.split(), command=("python3", "-u", "/srv/server.py"))
    docker("network", "connect", "--alias", "app.back", "--ip", f"{behind}.9", back, name)
    docker("exec", name, "sh", "-c", "for at in /scratch /srv/data /mnt/anonymous; do echo kept > $at/file; done")
    old = inspect(name)

    step("main", name, image=good(lab))
    new = inspect(name)

    # Ports and anonymous volumes have names now; nothing else is different.
    binds, ports = new["HostConfig"].pop("Binds"), new["HostConfig"].pop("PortBindings")
    assert {mount["Destination"]: mount["Source"] for mount in new["Mounts"]} == {
        mount["Destination"]: mount["Source"] for mount in old["Mounts"]
    }
    assert set(old["HostConfig"].pop("Binds")) < set(binds)
    assert ports.keys() == old["HostConfig"].pop("PortBindings").keys()
    assert new["NetworkSettings"]["Ports"] == old["NetworkSettings"]["Ports"] | {
        port: shown for port, shown in new["NetworkSettings"]["Ports"].items() if shown is None
    }
    assert new["HostConfig"].pop("Mounts")[0].pop("Source")
    old["HostConfig"].pop("Mounts")
    assert new["HostConfig"] == old["HostConfig"]
    assert set(new["Config"]["Env"]) - {PATH} == {"A=1", "APP_HOME=/mine", f"APP_VERSION={GOOD}"}
    assert new["Config"]["Labels"] == {"team": "legal", "org.opencontainers.image.version": GOOD}
    for key in ("Env", "Labels", "Image", "Volumes"):
        old["Config"].pop(key), new["Config"].pop(key)
    assert new["Config"] == old["Config"]
    for network, ip, alias in ((front, f"{there}.9", "lawyers"), (back, f"{behind}.9", "app.back")):
        seen, was = (one["NetworkSettings"]["Networks"][network] for one in (new, old))
        assert seen["IPAddress"] == ip and alias in seen["Aliases"]
        # The engine adds the short id.
        assert set(seen["Aliases"]) - {new["Id"][:12]} == set(was["Aliases"]) - {old["Id"][:12]}
    assert (
        docker("exec", name, "sh", "-c", "cat /scratch/file /srv/data/file /mnt/anonymous/file").split() == ["kept"] * 3
    )
    asked = "import urllib.request as u; print(u.urlopen('http://app.back:8000', timeout=5).read().decode())"
    assert docker("run", "--rm", "--network", back, good(lab), "python3", "-c", asked) == GOOD


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("unhealthy", r"unhealthy: \d+ health checks failed in a row, last exit code 1"),
        ("exits", r"(restarting, \d times so far, last exit code 3|running, .*, restarted \d times), after 3s"),
    ],
)
def test_one_that_does_not_come_up_gives_the_service_back(lab: Lab, app: str, kind: str, reason: str) -> None:
    was = inspect(app)["Id"]
    sick = lab.image("1.9.3", kind)
    with pytest.raises(
        BalikError, match=f"{app}: the new one did not come up .{reason}.; the old one is in service"
    ) as told:
        step("main", app, image=sick, limit="30s" if kind == "unhealthy" else "3s")
    assert "secret" not in str(told.value) and f"docker logs --tail 50 {failed(app)}" in str(told.value)
    not_reverted(app)
    assert inspect(app)["Id"] == was and family(app) == {"": "running", f"--failed-{RUN}": "exited"}
    assert policy(failed(app)) == "no"
    # The next attempt, with a better image, is not in the way of the failed one.
    step("main", app, image=good(lab))
    docker("rm", "--force", failed(app))
    reverted(app)


def test_one_of_three_fails_and_the_others_are_done(lab: Lab) -> None:
    names = [lab.run(f"three-{number}", bad(lab), "--publish", "127.0.0.1::8000") for number in (1, 2, 3)]
    wanted = [{"name": names[0]}, {"name": names[1], "image": lab.image("1.9.3", "unhealthy")}, {"name": names[2]}]
    with pytest.raises(BalikError) as told:
        step("main", containers=wanted, image=good(lab))
    assert str(told.value).startswith(f"1 of 3 containers: container {names[1]}: the new one did not come up")
    assert str(told.value).endswith(f"Done: {names[0]}, {names[2]}.")
    eventually(lambda: [version_of(name) for name in names] == [GOOD, BAD, GOOD])


def test_undo_without_the_kept_one_makes_it_anew(lab: Lab, app: str) -> None:
    before = step("check", app, image=good(lab))["before"]
    step("main", app, image=good(lab))
    docker("rm", kept(app))
    done = step("undo", app, image=good(lab), saved=before)
    assert "the kept one is gone" in done["says"]
    not_reverted(app)
    assert family(app) == {"": "running"} and inspect(app)["Config"]["Image"] == bad(lab)


def test_undo_that_does_not_come_up_leaves_the_reverted_one_in_service(lab: Lab, app: str) -> None:
    before = step("check", app, image=good(lab))["before"]
    step("main", app, image=good(lab))
    docker("start", kept(app))
    docker("exec", kept(app), "rm", "/srv/server.py")
    docker("stop", kept(app))
    with pytest.raises(BalikError, match=r"what was put back did not come up .* the reverted one is in service again"):
        step("undo", app, image=good(lab), saved=before, limit="2s")
    reverted(app)


def test_undo_of_what_nobody_saved(app: str) -> None:
    with pytest.raises(BalikError, match="nothing was saved of it in this run, and no container was kept"):
        step("undo", app, image="app:1", saved={})


def test_without_a_health_check_it_must_run_steadily(lab: Lab) -> None:
    name = lab.run("unchecked", lab.image(BAD, "unchecked"), "--publish", "127.0.0.1::8000")
    done = step("main", name, image=lab.image(GOOD, "unchecked"))
    assert "no health check" in done["evidence"]["containers"][name]["health"]
    assert done["evidence"]["containers"][name]["without_service"] >= 0.5
    assert "running" in step("verify", name, image=f"{lab.prefix}app:{GOOD}-unchecked")["says"]
    docker("stop", "--time", "0", name)
    with pytest.raises(BalikError, match="exited with exit code 137"):
        step("verify", name, image=f"{lab.prefix}app:{GOOD}-unchecked")


def test_a_container_in_a_restart_loop_comes_back(lab: Lab) -> None:
    name = lab.run("loop", lab.image(BAD, "exits"), "--publish", "127.0.0.1::8000", "--restart", "always")
    eventually(lambda: inspect(name)["State"]["Status"] == "restarting")
    step("main", name, image=good(lab))
    eventually(lambda: version_of(name) == GOOD)


def test_labels_select_also_what_an_interrupted_run_renamed_and_nothing_that_was_kept(lab: Lab, app: str) -> None:
    label = {"team": lab.prefix}
    names = [lab.run(f"labelled-{number}", bad(lab), "--label", f"team={lab.prefix}") for number in (1, 2)]
    docker("run", "--detach", "--name", f"{names[0]}--before-earlier", "--label", f"team={lab.prefix}", bad(lab))
    docker("stop", "--time", "0", names[1])
    docker("rename", names[1], kept(names[1]))
    step("main", containers=None, labels=label, image=good(lab))
    assert step("verify", containers=None, labels=label, image=good(lab))["evidence"]["containers"].keys() == set(names)
    with pytest.raises(BalikError, match="containers labelled team=nobody: there is none"):
        step("main", containers=None, labels={"team": "nobody"}, image=good(lab))


def test_a_chosen_mac_address(lab: Lab) -> None:
    # Not through the command line: newer ones refuse it for older engines.
    body = {"Image": bad(lab), "MacAddress": "de:ad:be:ef:00:01"}
    name, client = lab.name("mac"), APIClient(HOST)
    client.create_container_from_config(body, name=name)
    client.start(name)
    step("main", name, image=good(lab))
    assert inspect(name)["NetworkSettings"]["Networks"]["bridge"]["MacAddress"] == "de:ad:be:ef:00:01"


def test_the_network_of_another_container(lab: Lab, app: str) -> None:
    side = lab.run("side", bad(lab), "--network", f"container:{app}", command=("sleep", "99"))
    with pytest.raises(BalikError, match=f"{side} live in its network"):
        step("check", app, image=good(lab))
    step("main", side, image=good(lab))
    assert inspect(side)["HostConfig"]["NetworkMode"] == f"container:{inspect(app)['Id']}"
    docker("rm", "--force", side)


# Interrupted


def by_hand(*acts: str) -> Callable[[str, str], None]:
    """What `main` does up to a moment, with the command line: each act with the names put in."""

    def do(app: str, image: str) -> None:
        names = {"app": app, "kept": kept(app), "coming": coming(app), "failed": failed(app)}
        for act in acts:
            docker(*act.format(**names, image=image, options=" ".join(OPTIONS)).split())

    return do


CREATED = ("create --name {coming} {options} {image}",)
STOPPED = (*CREATED, "stop --time 0 {app}", "update --restart no {app}")
RENAMED = (*STOPPED, "rename {app} {kept}")
RENAMED_BOTH = (*RENAMED, "rename {coming} {app}")
# An attempt failed, and was killed on its way back: the old one has its policy again, the new one has none.
WAY_BACK = (*RENAMED_BOTH, "update --restart always {kept}", "update --restart no {app}")

STATES = {
    "half made": by_hand("create --name {coming} --restart always {image}"),
    "of another image": by_hand("create --name {coming} balik/debian:12 true"),
    "created": by_hand(*CREATED),
    "stopped": by_hand(*STOPPED),
    "renamed": by_hand(*RENAMED),
    "both renamed": by_hand(*RENAMED_BOTH),
    "started": by_hand(*RENAMED_BOTH, "start {app}"),
    "way back": by_hand(*WAY_BACK),
    "way back, renamed": by_hand(*WAY_BACK, "rename {app} {failed}"),
    "the kept one started": by_hand(*WAY_BACK, "start {kept}"),
}


@pytest.fixture(name="half_done")
def _half_done(lab: Lab) -> Iterator[tuple[dict[str, str], str, Json]]:
    """A container for each half-done state: (state → name, the image to go to, what stood there before)."""
    # Without health checks: ten containers' would keep the machine busy.
    bad_image, good_image = (lab.image(version, "unchecked") for version in (BAD, GOOD))
    names = {state: lab.run(f"half-{number}", bad_image, *OPTIONS) for number, state in enumerate(STATES)}
    before = step("check", *names.values(), image=good_image)["before"]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda state: STATES[state](names[state], good_image), STATES))
    yield names, good_image, before
    docker("rm", "--force", "--volumes", *docker("ps", "-aq", "--filter", f"name={lab.name('half-')}").split())


def test_every_half_done_state_comes_right(half_done: tuple[dict[str, str], str, Json]) -> None:
    names, image, before = half_done
    assert step("check", *names.values(), image=image)["before"] == before
    step("main", *names.values(), image=image)
    docker("rm", failed(names["way back, renamed"]))
    for name in names.values():
        reverted(name)


def test_undo_from_every_half_done_state(half_done: tuple[dict[str, str], str, Json]) -> None:
    names, image, before = half_done
    step("undo", *names.values(), image=image, saved=before)
    docker("rm", failed(names["way back, renamed"]))
    for name in names.values():
        not_reverted(name)
        assert inspect(name)["Id"] == before[name]["id"] and family(name) == {"": "running"}


def test_replaced_by_somebody_else_meanwhile(lab: Lab, app: str) -> None:
    step("main", app, image=good(lab))
    docker("rm", "--force", app)
    docker("run", "--detach", "--name", app, bad(lab))
    with pytest.raises(BalikError, match=f"somebody else has replaced it since; .* Remove {kept(app)}"):
        step("main", app, image=good(lab))


def killed(entry: str, app: str, when: Callable[[], bool], **more: Any) -> None:
    """Run an entry point in a process of its own, and kill it when a condition holds (or let it end)."""
    code = (
        "import json, sys; "
        "from ansible_collections.balik.rollback.plugins.module_utils.docker_revert.entry import run; "
        "run(json.loads(sys.argv[1]), False)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, json.dumps(arguments(entry, app, **more))],
        env={"PYTHONPATH": str(ROOT / "collections"), "PATH": "/usr/bin:/bin"},
        stderr=subprocess.DEVNULL,
    )
    try:
        eventually(lambda: process.poll() is not None or when())
    finally:
        process.kill()
        process.wait(10)


MOMENTS: dict[str, Callable[[str], Callable[[], bool]]] = {
    "created": lambda app: lambda: f"--after-{RUN}" in family(app),
    "stopped": lambda app: lambda: family(app).get("") == "exited",
    "renamed": lambda app: lambda: f"--before-{RUN}" in family(app),
    "started": lambda app: lambda: {"": "running", f"--before-{RUN}": "exited"}.items() <= family(app).items(),
    "any time": lambda app: _after(random.uniform(0.3, 1.2)),
}


def _after(seconds: float) -> Callable[[], bool]:
    end = time.monotonic() + seconds
    return lambda: time.monotonic() > end


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_and_run_again(lab: Lab, app: str, moment: str) -> None:
    before = step("check", app, image=good(lab))["before"]
    killed("main", app, MOMENTS[moment](app), image=good(lab))
    step("main", app, image=good(lab))
    reverted(app)
    killed("undo", app, _after(random.uniform(0.3, 1.2)), image=good(lab), saved=before)
    step("undo", app, image=good(lab), saved=before)
    not_reverted(app)
    assert inspect(app)["Id"] == before[app]["id"] and family(app) == {"": "running"}


# Bad input


def test_every_reason_is_told_at_once_and_nothing_is_touched(lab: Lab, app: str) -> None:
    fleeting = lab.run("fleeting", bad(lab), "--rm")
    swarm = lab.run("swarm", bad(lab), "--label", "com.docker.swarm.service.id=x")
    with pytest.raises(BalikError) as told:
        step("main", app, fleeting, swarm, lab.name("nobody"), image=good(lab))
    for reason in (
        f"container {lab.name('nobody')}: does not exist at {HOST}; expected one of: ",
        f"container {fleeting}: was started with --rm",
        f"container {swarm}: belongs to a Swarm service",
        "No container was touched.",
    ):
        assert reason in str(told.value)
    assert family(app) == {"": "running"} and inspect(app)["Config"]["Image"] == bad(lab)


@pytest.mark.parametrize(
    ("image", "pull", "says"),
    [
        ("balik-test-ir-nobody:1", "never", "is not on this engine. Load it"),
        ("sha256:" + "12" * 32, "missing", "an image id cannot be fetched"),
        ("127.0.0.1:9/app:1", "missing", "its registry could not give it"),
        ("app", "missing", "names neither a tag nor a digest"),
    ],
)
def test_images_that_cannot_be_had(app: str, image: str, pull: str, says: str) -> None:
    for entry in ("check", "main"):
        with pytest.raises(BalikError, match=f"{says}.*No container was touched"):
            step(entry, app, image=image, pull=pull)
    not_reverted(app)


def test_an_image_for_another_machine(lab: Lab, app: str) -> None:
    foreign = lab.foreign_image("s390x")
    with pytest.raises(BalikError, match="is built for linux/s390x; expected linux/"):
        step("check", app, image=foreign)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"containers": []}, "neither containers nor labels nor a Compose project"),
        ({"labels": {"a": "b"}}, "containers and labels are given"),
        ({"image": ""}, "has no image to go back to"),
        ({"limit": "soon"}, "limit: found 'soon'"),
        ({"containers": [{"name": "a"}, {"name": "a"}]}, "container a: is named twice"),
    ],
)
def test_arguments_that_say_nothing_clear(app: str, more: Json, says: str) -> None:
    with pytest.raises(BalikError, match=says):
        step("check", app, **{"image": "app:1", **more})


def test_an_engine_that_this_user_may_not_talk_to() -> None:
    code = (
        # The checkout may be where only root can read.
        "import os, sys; sys.path.insert(0, 'collections'); "
        "from ansible_collections.balik.rollback.plugins.module_utils.docker_revert.engine import Engine; Engine(); "
        "os.setgid(65534); os.setgroups([]); os.setuid(65534); Engine()"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=30, check=False
    )
    assert "unix:///var/run/docker.sock: this user may not talk to it (permission denied)" in ended.stderr
    assert "become: true" in ended.stderr


_BEFORE_THE_ENGINE = """\
defaults
    mode tcp
    timeout connect 2s
    timeout client 60s
    timeout server 60s
frontend engine
    bind 127.0.0.1:{port} ssl crt {folder}/server.pem ca-file {folder}/ca.pem verify required
    default_backend engine
backend engine
    server engine unix@{socket}
"""


@pytest.fixture(name="over_tls")
def _over_tls(tmp_path: Path) -> Iterator[str]:
    """The engine behind TLS that asks for a client's certificate, as dockerd's --tlsverify does; its address."""
    authority = Authority()
    server, client = authority.issue("engine", hosts=["127.0.0.1"]), authority.issue("balik")
    for name, content in {
        "ca.pem": authority.certificate,
        "server.pem": server.certificate + server.key,
        "cert.pem": client.certificate,
        "key.pem": client.key,
    }.items():
        (tmp_path / name).write_bytes(content)
    port, config = free_port(), tmp_path / "haproxy.cfg"
    config.write_text(_BEFORE_THE_ENGINE.format(port=port, folder=tmp_path, socket=HOST.removeprefix("unix://")))
    with subprocess.Popen(["haproxy", "-db", "-f", config]) as process:
        try:
            wait_for_port(port, process)
            yield f"tcp://127.0.0.1:{port}"
        finally:
            process.terminate()


def test_an_engine_over_tls(lab: Lab, app: str, over_tls: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/etc/ssl/certs/ca-certificates.crt")  # of others, for other servers
    there: Json = {"docker_host": over_tls, "cert_path": str(tmp_path), "image": good(lab)}
    seen = step("check", app, **there)
    step("main", app, **there)
    reverted(app)
    step("verify", app, **there)
    step("undo", app, **there, saved=seen["before"])
    not_reverted(app)
    with pytest.raises(BalikError, match=f"Docker engine at {over_tls}"):
        step("check", app, **{**there, "cert_path": ""})
    another = Authority()
    stranger = another.issue("balik")
    (tmp_path / "cert.pem").write_bytes(stranger.certificate)
    (tmp_path / "key.pem").write_bytes(stranger.key)
    with pytest.raises(BalikError, match=f"Docker engine at {over_tls}"):
        step("check", app, **there)
    (tmp_path / "ca.pem").write_bytes(another.certificate)
    with pytest.raises(BalikError, match="its certificate is not to be trusted"):
        step("check", app, **there)
