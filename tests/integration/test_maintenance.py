"""The maintenance page in a real nginx and a real HAProxy, before a real application."""

from __future__ import annotations

import http.client
import json
import multiprocessing
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.balik.rollback.plugins.module_utils.errors import BalikError
from ansible_collections.balik.rollback.plugins.module_utils.traffic.door import Door
from ansible_collections.balik.rollback.plugins.module_utils.traffic.haproxy import HAProxy
from ansible_collections.balik.rollback.plugins.module_utils.traffic.maintenance import Maintenance
from ansible_collections.balik.rollback.plugins.module_utils.traffic.nginx import Nginx
from ansible_collections.balik.rollback.plugins.module_utils.traffic.page import Page

from tests.servers import haproxy as haproxy_server
from tests.servers import nginx as nginx_server
from tests.servers.loopback import hanging
from tests.servers.upstream import Upstream, upstream

SECRET = "0123456789abcdef-bypass"
PAGE = Page("<p>Mohon maaf \u2013 sedang dipulihkan</p>\n", "Sedang dipulihkan", 600, ("/healthz",))

pytestmark = pytest.mark.skipif(
    not (shutil.which("nginx") and shutil.which("haproxy") and shutil.which("wrk")), reason="needs nginx, haproxy, wrk"
)


@dataclass
class Entrance:
    """One load balancer with its maintenance page."""

    server: Any
    maintenance: Maintenance

    @property
    def lines(self) -> str:
        """What its owner writes into its configuration."""
        balancer = self.maintenance.balancer
        return balancer.lines() if isinstance(balancer, HAProxy) else self.server.include

    def ask(self, path: str = "/", method: str = "GET", body: bytes | None = None, **headers: str) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=5)
        try:
            connection.request(method, path, body, {k.replace("_", "-"): v for k, v in headers.items()})
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read().decode()
        finally:
            connection.close()


@pytest.fixture(scope="module")
def app() -> Iterator[Upstream]:
    with upstream() as application:
        yield application


@contextmanager
def entrance(backend: str, app: Upstream) -> Iterator[Entrance]:
    """A load balancer whose owner has not written anything yet."""
    if backend == "nginx":
        with nginx_server.nginx(app.address) as server:
            yield Entrance(server, _maintenance(server, Nginx(str(server.switch), server.command)))
    else:
        with haproxy_server.haproxy(app.address) as server:
            balancer = HAProxy(
                str(server.switch), str(server.socket), [str(server.config)], reload_command=server.reload
            )
            yield Entrance(server, _maintenance(server, balancer))


def _maintenance(server: Any, balancer: Any) -> Maintenance:
    return Maintenance("lb1", balancer, Door(server.url), SECRET, PAGE.health, within=3.0)


@pytest.fixture(params=["nginx", "haproxy"])
def bare(request: pytest.FixtureRequest, app: Upstream) -> Iterator[Entrance]:
    with entrance(request.param, app) as one:
        yield one


@pytest.fixture
def ready(bare: Entrance) -> Entrance:
    prepare(bare)
    return bare


def prepare(one: Entrance) -> None:
    assert one.maintenance.prepare(PAGE)["missing"]
    one.server.configure(one.lines)
    assert one.maintenance.prepare(PAGE)["missing"] == []


def test_prepare_says_what_is_missing_then_loads_it_once(bare: Entrance) -> None:
    first = bare.maintenance.prepare(PAGE)
    assert first["changed"]
    assert any(word in first["missing"][0] for word in ("hub.example", "frontend hub"))
    with pytest.raises(BalikError, match=r"first line of the block|frontend\.cfg") as refused:
        bare.maintenance.check(PAGE)
    assert "Run maintenance-page's `prepare`" in str(refused.value)
    bare.server.configure(bare.lines)
    with pytest.raises(BalikError, match=r"Was \w+ reloaded|Run maintenance-page's `prepare`"):
        replace(bare.maintenance, within=0.2).check(PAGE)
    assert bare.maintenance.prepare(PAGE)["changed"]
    assert not bare.maintenance.prepare(PAGE)["changed"]
    assert bare.maintenance.check(PAGE)["before"] == {"page": "off"}
    assert bare.ask()[2] == "application"


def test_a_life(ready: Entrance) -> None:
    page = ready.maintenance
    would = replace(page, dry=True).on()
    assert would["changed"] and would["diff"] == {"before": "page: off\n", "after": "page: on\n"}
    assert ready.ask()[0] == 200

    assert page.on()["changed"]
    status, headers, body = (answer := ready.ask(Accept="text/html,*/*;q=0.8"))
    headers = {name.lower(): value for name, value in headers.items()}
    assert (status, body) == (503, PAGE.html), answer
    assert headers["retry-after"] == "600" and headers["cache-control"] == "no-store"
    assert headers["content-type"] == "text/html; charset=utf-8"
    assert not page.on()["changed"]
    verified = page.verify_on()
    assert verified["evidence"]["passing"] == {"/healthz": 200, "bypass by header": 200, "bypass by cookie": 200}
    assert page.check(PAGE)["before"] == {"page": "on"}
    with pytest.raises(BalikError, match="expected off"):
        page.verify_off()

    assert page.off(app_must_answer=True)["changed"]
    assert ready.ask()[2] == "application"
    assert not page.off(app_must_answer=True)["changed"]
    page.verify_off()
    with pytest.raises(BalikError, match="expected on"):
        page.verify_on()


def test_every_kind_of_visitor(ready: Entrance) -> None:
    ready.maintenance.on()
    status, headers, body = ready.ask("/documents/1?x=1", Accept="application/json")
    assert (status, json.loads(body)["message"]) == (503, "Sedang dipulihkan")
    assert {k.lower(): v for k, v in headers.items()}["content-type"] == "application/json; charset=utf-8"
    for method, body_sent in (("POST", b"{}"), ("PUT", b"x" * 300_000), ("DELETE", None), ("HEAD", None)):
        assert ready.ask("/documents", method, body_sent)[0] == 503, method
    assert ready.ask("/healthz")[2] == "ok"
    assert ready.ask("/healthz/more")[0] == 503
    assert ready.ask(X_Maintenance_Bypass=SECRET)[2] == "application"
    assert ready.ask(Cookie=f"theme=dark; maintenance_bypass={SECRET}")[2] == "application"
    assert ready.ask(X_Maintenance_Bypass="wrong")[0] == 503
    assert ready.ask(X_Maintenance_Bypass="")[0] == 503
    assert ready.ask("/.maintenance/switch.conf", X_Maintenance_Bypass=SECRET)[2] != PAGE.html
    for path in ("/.maintenance/switch.conf", "/.maintenance/../switch.conf", "/.maintenance/index.html"):
        assert SECRET not in ready.ask(path)[2]


def test_the_page_survives_reload_and_restart(ready: Entrance) -> None:
    ready.maintenance.on()
    ready.maintenance.balancer.reload()
    end = time.monotonic() + 1
    while time.monotonic() < end:
        assert ready.ask()[0] == 503
        time.sleep(0.05)
    ready.server.stop()
    ready.server.start()
    assert ready.ask()[0] == 503
    ready.maintenance.verify_on()
    ready.maintenance.off(app_must_answer=True)
    ready.server.stop()
    ready.server.start()
    assert ready.ask()[2] == "application"


def test_no_request_is_dropped_and_a_post_in_flight_finishes(ready: Entrance, app: Upstream) -> None:
    page, before = ready.maintenance, app.arrived()
    load = subprocess.Popen(
        ["wrk", "-t1", "-c50", "-d3s", "--timeout", "5s", ready.server.url], stdout=subprocess.PIPE, text=True
    )
    try:
        time.sleep(0.3)
        answers: list[Any] = []
        body = b"x" * 10_000
        post = threading.Thread(target=lambda: answers.append(ready.ask("/slow", "POST", body)))
        post.start()
        while app.arrived() == before:
            assert post.is_alive(), answers
            time.sleep(0.02)
        times = []
        for _ in range(3):
            times.append(page.on()["evidence"]["served_after_ms"])
            time.sleep(0.3)
            times.append(page.off(app_must_answer=True)["evidence"]["passed_after_ms"])
            time.sleep(0.2)
        post.join(5)
        printed = load.communicate(timeout=20)[0]
    finally:
        load.kill()
        load.wait(5)
    print(ready.maintenance.balancer.title, times, printed)
    assert answers and (answers[0][0], answers[0][2]) == (200, "10000")
    assert "Socket errors" not in printed
    requests = int(re.search(r"(\d+) requests in", printed)[1])  # type: ignore[index]
    pages = int(re.search(r"Non-2xx or 3xx responses: (\d+)", printed)[1])  # type: ignore[index]
    assert requests >= 1_000, "there was load"
    assert 0 < pages < requests


def test_the_page_stays_while_the_application_is_broken(ready: Entrance) -> None:
    page = replace(ready.maintenance, door=Door(f"{ready.server.url}broken"), within=0.3)
    page.on()
    with pytest.raises(BalikError, match=r"answered 500 .* The page is left on"):
        page.off(app_must_answer=True)
    assert ready.ask("/broken")[0] == 503
    page.off(app_must_answer=False)
    assert ready.ask("/broken")[0] == 500


def test_the_page_goes_up_before_an_application_that_hangs(ready: Entrance, app: Upstream) -> None:
    """It accepts connections and never answers: the reason to roll back, and none to stop."""
    with hanging(app.process):
        assert ready.maintenance.check(PAGE)["before"] == {"page": "off"}
        ready.maintenance.on()
        began = time.monotonic()
        found = ready.maintenance.verify_on()
        assert time.monotonic() - began < 5, "one wait, not one for each way past the page"
        assert found["evidence"]["passing"] == {
            "/healthz": "no answer",
            "bypass by header": "no answer",
            "bypass by cookie": "no answer",
        }
        assert "the application gives no answer" in found["says"]
        assert ready.maintenance.check(PAGE)["before"] == {"page": "on"}
        assert ready.ask()[0] == 503
    assert ready.maintenance.verify_on()["evidence"]["passing"]["/healthz"] == 200


def test_a_wrong_bypass_is_told_apart_from_a_broken_application(ready: Entrance) -> None:
    stranger = replace(ready.maintenance, bypass="another-secret-of-the-plan", within=0.3)
    with pytest.raises(BalikError, match="prepare"):
        stranger.check(PAGE)
    stranger.on()
    with pytest.raises(BalikError, match="holds another secret"):
        stranger.check(PAGE)
    with pytest.raises(BalikError, match="holds another secret") as caught:
        stranger.verify_on()
    assert SECRET not in str(caught.value) and "another-secret" not in str(caught.value)
    with pytest.raises(BalikError, match="does not know the plan's bypass"):
        stranger.off(app_must_answer=True)
    assert stranger.prepare(PAGE)["changed"]
    stranger.verify_on()


def test_an_older_page_is_noticed(ready: Entrance) -> None:
    new = replace(PAGE, html="<p>baru</p>")
    with pytest.raises(BalikError, match=r"revision \w+; expected the plan's"):
        ready.maintenance.check(new)
    ready.maintenance.on()
    result = ready.maintenance.prepare(new)
    assert "<p>baru</p>" in [diff["after"] for diff in result["diff"]]
    assert SECRET not in str(result)
    assert ready.ask()[2] == "<p>baru</p>"


def test_something_else_answers_at_the_url(ready: Entrance, app: Upstream) -> None:
    elsewhere = replace(ready.maintenance, door=Door(f"http://{app.address}/"), within=0.2)
    with pytest.raises(BalikError, match=r"answered 200 without X-Maintenance; .* not a CDN"):
        elsewhere.check(PAGE)
    with pytest.raises(BalikError, match=r"The switch stays on\. .* not a CDN"):
        elsewhere.on()


def test_nobody_listens(ready: Entrance) -> None:
    ready.server.stop()
    with pytest.raises(
        BalikError, match=r"refused.* Is the load balancer running|no such socket|admin\.sock.* Is HAProxy"
    ):
        replace(ready.maintenance, within=0.2).check(PAGE)


def test_the_last_look_is_taken_again_where_nobody_answers(ready: Entrance) -> None:
    """Its visitors have the application; a busy machine that needs longer than one request takes it from nobody."""
    with ThreadPoolExecutor(1) as pool:
        with ready.server.hangs():
            looked = pool.submit(ready.maintenance.verify_off)
            time.sleep(4)
            assert not looked.done()
        assert looked.result()["evidence"] == {"page": "off", "status": 200}
    impatient = replace(ready.maintenance, within=0.1)
    with (
        ready.server.hangs(),
        pytest.raises(BalikError, match=r"timed out, asked for 0\.3 s; .* Is the load balancer running"),
    ):
        impatient.verify_off()


def test_a_refused_configuration_leaves_the_old_files(ready: Entrance) -> None:
    ready.server.configure("nonsense;")
    before = sorted((p.name, p.read_text()) for p in ready.server.switch.rglob("*") if p.is_file())
    with pytest.raises(BalikError, match="nonsense"):
        ready.maintenance.prepare(replace(PAGE, retry_after=60))
    assert sorted((p.name, p.read_text()) for p in ready.server.switch.rglob("*") if p.is_file()) == before
    assert ready.ask()[2] == "application"


def test_no_folder(ready: Entrance) -> None:
    ready.server.switch.rename(ready.server.switch.with_name("gone"))
    with pytest.raises(BalikError, match=r"no such folder; expected .* Run maintenance-page's `prepare`"):
        ready.maintenance.check(PAGE)


def test_no_right_to_write(ready: Entrance) -> None:
    folder, root = str(ready.server.switch), os.geteuid() == 0
    # Root may write everywhere but on what is mounted read-only.
    for command in (["mount", "--bind", folder], ["mount", "-o", "remount,bind,ro"]) if root else (["chmod", "555"],):
        subprocess.run([*command, folder], check=True)
    try:
        with pytest.raises(BalikError, match=r"not writable for user id \d+; expected .* Use `become: true`"):
            ready.maintenance.check(PAGE)
    finally:
        subprocess.run(["umount", folder] if root else ["chmod", "755", folder], check=True)


def test_haproxy_without_its_socket(app: Upstream) -> None:
    with entrance("haproxy", app) as one:
        prepare(one)
        one.server.socket.unlink()
        with pytest.raises(BalikError, match=r"no such socket; expected .* Is HAProxy running"):
            one.maintenance.check(PAGE)


def test_nginx_cache_and_order_and_unknown_server(app: Upstream) -> None:
    with entrance("nginx", app) as one:
        one.maintenance.prepare(PAGE)
        for lines, said in (
            (f"return 301 https://hub.example/; {one.lines}", "before the `return` in line"),
            (f"{one.lines} open_file_cache max=10;", "open_file_cache off"),
        ):
            one.server.configure(lines)
            with pytest.raises(BalikError, match=said):
                one.maintenance.check(PAGE)
        one.server.configure(one.lines)
        other = Nginx(str(one.server.switch), one.server.command, ["shop.example"])
        with pytest.raises(BalikError, match=r"no server block has server_name shop\.example; found hub\.example"):
            replace(one.maintenance, balancer=other).check(PAGE)


def test_nginx_with_a_password_still_serves_the_page(app: Upstream) -> None:
    with entrance("nginx", app) as one:
        prepare(one)
        (one.server.folder / "users").write_text("x:x\n")
        one.server.configure(f"{one.lines} auth_basic hub; auth_basic_user_file {one.server.folder}/users; deny all;")
        one.server.stop()
        one.server.start()
        one.maintenance.on()
        assert one.ask()[0] == 503
        assert one.ask(X_Maintenance_Bypass=SECRET)[0] in (401, 403)


def test_killed_between_the_file_and_the_runtime_map(app: Upstream) -> None:
    with entrance("haproxy", app) as one, _stalling_socket(one.server.socket) as stalling:
        prepare(one)
        balancer = HAProxy(str(one.server.switch), str(stalling), [str(one.server.config)])
        halfway = replace(one.maintenance, balancer=balancer)
        process = multiprocessing.get_context("fork").Process(target=halfway.on)
        process.start()
        end = time.monotonic() + 5
        while "page on" not in (one.server.switch / "switch.map").read_text() and time.monotonic() < end:
            time.sleep(0.01)
        assert process.pid
        os.kill(process.pid, signal.SIGKILL)
        process.join(5)
        assert one.maintenance.check(PAGE)["before"] == {"page": "off"}
        assert one.ask()[0] == 200
        result = one.maintenance.on()
        assert result["changed"]
        assert one.maintenance.verify_on()["evidence"]["page"] == "on"


@contextmanager
def _stalling_socket(real: Path) -> Iterator[Path]:
    """A runtime socket that passes commands on, and falls silent at ``set map``."""
    path = real.with_name("stalling.sock")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    held = []

    def serve() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            command = client.recv(4096)
            if command.startswith(b"set map"):
                held.append(client)
                continue
            with client, socket.socket(socket.AF_UNIX) as server:
                server.connect(str(real))
                server.sendall(command)
                while chunk := server.recv(65536):
                    client.sendall(chunk)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield path
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)
        for client in held:
            client.close()
