"""The traffic in the flow of ``rollback.yml``: the real page on two real load balancers, one of which hangs."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from ansible_collections.balik.rollback.plugins.module_utils.record import Record

from tests.integration.balancers import Balancers, balancers, needed
from tests.integration.flow.product import BREAK_GLASS, Process, Product
from tests.servers.http_app import http_app
from tests.servers.loopback import hanging
from tests.servers.webhook import webhook

pytestmark = needed


class Entrances(Product):
    """A product behind nginx and HAProxy, with a sign-off between the revert and the traffic."""

    def __init__(self, folder: Path, balancers: Balancers) -> None:
        self.balancers = balancers
        super().__init__(
            folder,
            web=False,
            rollback_hold=["maintenance-page"],
            rollback_restore=["traffic-restore"],
            rollback_procedures=[{"name": "standard", "watch": "10m", "every": "1m"}],
            rollback_sign_offs=[
                {"name": "looked", "role": "lead", "phase": "verify", "says": "It is well", "wait": "2h"}
            ],
            maintenance_page_hosts="balancers",
            maintenance_page_bypass="0123456789abcdef-bypass",
            maintenance_page_within="1s",
        )
        self.hosts["all"]["children"]["balancers"] = {
            "vars": self.hosts["all"]["hosts"]["localhost"],
            "hosts": balancers.hosts,
        }
        self.write()

    def prepare(self) -> None:
        """What its owner does once: the lines that each load balancer needs."""
        tasks = [{"ansible.builtin.include_role": {"name": "maintenance-page", "tasks_from": "prepare"}}]
        prepare = self.folder / "prepare.yml"
        prepare.write_text(json.dumps([{"hosts": "balancers", "gather_facts": False, "tasks": tasks}]))
        assert self.play(playbook=str(prepare)).returncode == 0
        self.balancers.configure()
        assert self.play(playbook=str(prepare)).returncode == 0

    def answers(self) -> list[int]:
        """What a visitor gets at each entrance."""
        return [_status(server.url) for server in (self.balancers.nginx, self.balancers.haproxy)]

    def silent(self) -> AbstractContextManager[None]:
        """Meanwhile the application does not answer."""
        return hanging(self.balancers.app.process)

    def told(self, *kinds: str) -> list[Any]:
        return [entry.body.get("step") or entry.kind for entry in self.entries(*kinds)]


def _status(url: str) -> int:
    try:
        with urlopen(url, timeout=5) as answer:
            return int(answer.status)
    except HTTPError as error:
        return error.code


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Balancers]:
    with balancers() as both:
        Entrances(tmp_path_factory.mktemp("owner"), both).prepare()
        yield both


@pytest.fixture
def product(tmp_path: Path, prepared: Balancers) -> Iterator[Entrances]:
    with prepared.as_they_are():
        yield Entrances(tmp_path, prepared)


def given_back(product: Entrances) -> str:
    """What a run says that has given the traffic back, and failed since a load balancer hung after a safe watch."""
    with product.started(*BREAK_GLASS) as rollback:
        rollback.until(lambda: product.entries("asked"))
        assert product.answers() == [503, 503]
        assert product.decide("sign-off", decide_item="looked").returncode == 0
        rollback.until(lambda: "traffic is back; watching" in rollback.stdout())
        with product.balancers.haproxy.hangs():
            assert rollback.wait() != 0
    return rollback.stdout()


def test_after_a_safe_watch_nothing_takes_the_application_from_visitors(product: Entrances) -> None:
    said = given_back(product)
    assert "balik: FAILED: traffic-restore failed on lb-api: " in said, said
    assert "timed out, asked for 3 s" in said
    assert "balik: visitors have the application; the maintenance page is off" in said.splitlines()
    assert product.outcome()["page"] == "off"
    assert product.answers() == [200, 200]
    report = json.loads(Path(product.outcome()["report"]).with_name("report.json").read_text())
    assert report["warnings"] == ["traffic-back", "sandbox-clock", "glass-broken"]
    up = report["held"]["seconds"]

    before = product.told("step-started", "asked")
    with product.balancers.haproxy.hangs():
        assert product.play().returncode != 0
    assert product.answers() == [200, 200]
    with product.silent():
        silent = product.play()
    assert silent.returncode != 0
    assert "looked once: safe: " in silent.stdout
    assert "The traffic stays on the application. Mend that, and run again" in silent.stdout
    assert "balik: visitors have the application; the maintenance page is off" in silent.stdout.splitlines()
    assert (product.answers(), product.outcome()["page"]) == ([200, 200], "off")
    again = product.play()

    assert again.returncode == 0, again.stdout
    assert product.outcome()["outcome"] == "rolled-back"
    assert product.answers() == [200, 200]
    assert product.told("step-started", "asked") == [*before, "traffic-restore", "traffic-restore"]
    report = json.loads(Path(product.outcome()["report"]).with_name("report.json").read_text())
    assert (report["held"]["seconds"], len(report["held"]["times"])) == (up, 1)
    assert "maintenance-page: done before, and proved before the traffic was given back" in again.stdout


def test_what_is_said_between_two_calls_is_heard_by_the_second(product: Entrances) -> None:
    given_back(product)
    product.decide("unsafe", "bocor lagi", decide_item="leak")
    with product.silent():
        again = product.play()
    assert again.returncode != 0
    assert "looked once: unsafe: " in again.stdout
    assert "balik: visitors see the maintenance page" in again.stdout.splitlines()
    assert (product.answers(), product.outcome()["page"]) == ([503, 503], "on")


def test_what_is_said_after_a_safe_watch_is_heard_too(product: Entrances) -> None:
    asked = {"name": "looked", "role": "lead", "phase": "restore", "says": "It is well", "wait": "2h"}
    watch = [{"name": "standard", "watch": "1m", "every": "1m"}]
    restore = ["traffic-restore", "restore-it"]
    product.write(rollback_sign_offs=[], rollback_restore=restore, rollback_procedures=watch)
    broken = product.folder / "restore-it" / "break-localhost"
    broken.touch()
    assert product.play(*BREAK_GLASS).returncode != 0
    assert (product.told("step-done")[-1], product.answers()) == ("traffic-restore", [200, 200])
    broken.unlink()

    product.decide("unsafe", "bocor lagi", decide_item="leak")
    again = product.play()
    assert again.returncode != 0
    assert "traffic-restore: done before, but since then " in again.stdout, again.stdout
    assert (product.answers(), product.outcome()["page"]) == ([503, 503], "on")

    # Said while somebody was waited for at the very end.
    product.decide("safe", "sudah ditutup", decide_item="leak")
    product.write(rollback_sign_offs=[asked])
    with product.started() as rollback:
        rollback.until(lambda: product.entries("asked"))
        product.decide("unsafe", "bocor lagi", decide_item="leak")
        assert product.decide("sign-off", decide_item="looked").returncode == 0
        assert rollback.wait() != 0
    assert "Run again, and the maintenance page goes up. When that is mended" in " ".join(rollback.stdout().split())
    assert (product.answers(), product.outcome()["outcome"]) == ([200, 200], "failed")
    assert product.play().returncode != 0
    assert product.answers() == [503, 503]


def test_a_page_that_somebody_puts_up_during_the_watch_is_told(product: Entrances) -> None:
    product.write(rollback_procedures=[{"name": "standard", "watch": "20m", "every": "1m"}])
    with product.started(*BREAK_GLASS) as rollback:
        rollback.until(lambda: product.entries("asked"))
        assert product.decide("sign-off", decide_item="looked").returncode == 0
        rollback.until(lambda: "traffic is back; watching" in rollback.stdout())
        (product.balancers.nginx.switch / "on").touch()
        assert rollback.wait() != 0
    assert (
        "balik: FAILED: traffic-restore failed on lb-web: nginx's switch: on, and on after a restart; expected off"
        in (rollback.stdout())
    )
    assert "balik: it is not certain whether visitors see the maintenance page or the application" in rollback.stdout()
    assert (product.answers(), product.outcome()["page"]) == ([503, 200], "unknown")

    again = product.play()
    assert again.returncode == 0, again.stdout
    assert (product.answers(), product.outcome()["page"]) == ([200, 200], "off")
    assert product.told("step-started")[-2:] == ["traffic-restore", "traffic-restore"]
    assert len(product.told("asked")) == 1


def test_an_unsafe_watch_puts_the_page_up_again_and_says_so(product: Entrances) -> None:
    # Ends as soon as the word is heard, however long the playbook takes that gives it.
    with webhook() as hook:
        product.write(
            rollback_procedures=[{"name": "standard", "watch": "2h", "every": "1m"}],
            rollback_record_key="kunci-catatan-rahasia",
            rollback_language="id",
            rollback_people={"lead": {"title": "Lead", "reach": {"webhook": hook.url}}},
            rollback_messages={"failed": {"to": ["lead"], "subject": "gagal", "says": "Belum selesai: <visitors>."}},
        )
        with product.started(*BREAK_GLASS) as rollback:
            rollback.until(lambda: product.entries("asked"))
            assert product.decide("sign-off", decide_item="looked").returncode == 0
            rollback.until(lambda: "traffic is back; watching" in rollback.stdout())
            product.decide("unsafe", "bocor lagi", decide_item="leak")
            assert rollback.wait() != 0
        assert [body["text"] for body in hook.bodies] == ["Belum selesai: pengguna melihat halaman maintenance."]
    assert product.answers() == [503, 503]
    assert "balik: visitors see the maintenance page" in rollback.stdout().splitlines(), rollback.stdout()
    assert product.outcome()["page"] == "on"
    report = json.loads(Path(product.outcome()["report"]).with_name("report.json").read_text())
    assert "traffic-held" in report["warnings"]
    first, second = report["held"]["times"]
    assert first["until"] < second["from"]
    assert second["until"] is None

    product.write(rollback_procedures=[{"name": "standard", "watch": "1m"}])
    refused = product.play()
    assert refused.returncode != 0
    assert "criterion leak: stated since the traffic was given back: " in " ".join(refused.stdout.split())
    assert product.answers() == [503, 503]
    # Nor does a mistyped call let whoever reads its outcome forget where the page is.
    assert product.play("-e", "rollback_scope=basisdata").returncode != 0
    assert (product.outcome()["run"], product.outcome()["page"]) == (None, "on")
    product.decide("safe", "sudah ditutup", decide_item="leak")
    with product.started() as again:
        again.until(lambda: len(product.entries("asked")) == 2)
        assert product.decide("sign-off", decide_item="looked").returncode == 0
        assert again.wait() == 0, again.stdout()
    assert product.answers() == [200, 200]


def watching(product: Entrances, watch: str = "4h", every: str = "1m") -> AbstractContextManager[Process]:
    product.write(rollback_sign_offs=[], rollback_procedures=[{"name": "standard", "watch": watch, "every": every}])
    return product.started(*BREAK_GLASS)


def test_a_record_that_fails_in_the_watch_takes_nothing_from_visitors(product: Entrances) -> None:
    with watching(product) as rollback:
        rollback.until(lambda: "watch: safe" in rollback.stdout())
        with closing(sqlite3.connect(product.state / "record.sqlite", isolation_level=None)) as another:
            another.execute("BEGIN IMMEDIATE")
            rollback.until(lambda: "The traffic stays where it is, unproved" in rollback.stdout())
        assert rollback.wait() != 0
    assert "record.sqlite: cannot be locked: database is locked" in rollback.stdout()
    assert (product.answers(), product.outcome()["page"]) == ([200, 200], "off")
    assert "could not be reached" not in rollback.stdout()


def test_a_watch_that_could_not_be_written_down_takes_nothing_from_visitors(product: Entrances) -> None:
    with watching(product) as rollback:
        rollback.until(lambda: product.told("step-started")[-1:] == ["traffic-restore"])
        with closing(sqlite3.connect(product.state / "record.sqlite", isolation_level=None)) as another:
            another.execute("BEGIN IMMEDIATE")
            rollback.until(lambda: "The traffic stays where it is, unproved" in rollback.stdout())
        assert rollback.wait() != 0
    assert "record.sqlite: cannot be written: database is locked" in rollback.stdout()
    assert product.told("watching") == []
    assert (product.answers(), product.outcome()["page"]) == ([200, 200], "off")

    before = product.told("step-started")
    with product.silent():
        silent = product.play()
    assert "looked once: safe: " in silent.stdout, silent.stdout
    assert product.answers() == [200, 200]
    product.write(rollback_procedures=[{"name": "standard", "watch": "1m", "every": "1m"}])
    again = product.play()
    assert again.returncode == 0, again.stdout
    assert (product.answers(), product.outcome()["outcome"]) == ([200, 200], "rolled-back")
    assert product.told("step-started") == [*before, "traffic-restore", "traffic-restore"]


def test_criteria_that_turn_unsafe_put_the_page_up_though_nothing_can_be_written_down(product: Entrances) -> None:
    with http_app() as app, webhook() as hook:
        seen = {"name": "app", "measure": {"http": {"url": app.url + "/status/200"}}}
        product.write(
            rollback_criteria=[*product.plan["rollback_criteria"], seen],
            rollback_people={"lead": {"title": "Lead", "reach": {"webhook": hook.url}}},
            rollback_messages={"failed": {"to": ["lead"], "subject": "failed", "says": "<visitors>"}},
        )
        with watching(product, every="16m") as rollback:
            rollback.until(lambda: "watch: safe" in rollback.stdout())
            time.sleep(3)  # it has said so, keeps its lock, and holds the record no more for 8 s
            with closing(sqlite3.connect(product.state / "record.sqlite", isolation_level=None)) as another:
                another.execute("BEGIN IMMEDIATE")
                app.failing = {"GET /status/200": [500] * 9}
                rollback.until(lambda: "traffic-restore failed on lb" in rollback.stdout())
            assert rollback.wait() != 0
    last = next(line for line in rollback.stdout().splitlines() if line.startswith("balik: FAILED"))
    assert ": unsafe: app: GET " in last, last
    assert "that is not written down: record " in last
    assert "The maintenance page is on again" in last
    assert (product.answers(), product.outcome()["page"]) == ([503, 503], "on")
    assert [body["text"] for body in hook.bodies] == ["visitors see the maintenance page"]
    # All is proved and signed again before visitors get it back.
    assert "proved before the traffic was given back" not in product.play("--check").stdout


def test_an_unsafe_watch_is_told_where_the_page_cannot_go_up_again(product: Entrances) -> None:
    del product.hosts["all"]["children"]["balancers"]["hosts"]["lb-api"]
    with watching(product) as rollback:
        rollback.until(lambda: "watch: safe" in rollback.stdout())
        switch = product.balancers.nginx.switch
        switch.rename(switch.with_name("gone"))
        product.decide("unsafe", "bocor lagi", decide_item="leak")
        assert rollback.wait() != 0
    reason = product.outcome()["reason"]
    assert "unsafe" in reason, reason
    assert "bocor lagi" in reason
    assert "The maintenance page could not be put up again: " in reason
    assert "no such folder" in reason
    assert product.outcome()["page"] == "unknown"
    assert f"balik: FAILED: {reason}" in rollback.stdout().splitlines()

    # Somebody puts it up by hand, and the next call sees that, and writes it down.
    switch.with_name("gone").rename(switch)
    (switch / "on").touch()
    assert product.play().returncode != 0
    assert product.outcome()["page"] == "on"


def test_the_lock_of_a_watch_lasts_from_one_look_to_the_next(product: Entrances) -> None:
    def lease() -> float:
        with Record(str(product.state / "record.sqlite"), "flow") as record:
            lock = record.lock()
        return (lock.until - lock.since).total_seconds() if lock else 0

    # At this speed a look comes every 12 minutes and may take 18, and a lease that is not told of it lasts 10.
    answers = {
        "name": "answers",
        "says": "It answers",
        "measure": {"http": {"url": f"http://{product.balancers.app.address}/"}},
        "for": "36h",
    }
    product.write(rollback_criteria=[*product.plan["rollback_criteria"], answers])
    with watching(product, watch="96h", every="24h") as rollback:
        rollback.until(lambda: "watch: safe" in rollback.stdout())
        rollback.until(lambda: lease() > 38 * 60, 10)


def test_who_has_lost_the_lock_in_the_watch_touches_no_load_balancer(product: Entrances) -> None:
    with watching(product) as first:
        first.until(lambda: "watch: safe" in first.stdout())
        product.write(rollback_procedures=[{"name": "standard", "watch": "1m", "every": "1m"}])
        with product.started("-e", "rollback_take_lock=true", log="second") as second:
            assert first.wait() != 0
            assert product.answers() == [200, 200]
            assert second.wait() == 0, second.stdout()
    assert "it was taken over" in first.stdout()
    assert (product.answers(), product.outcome()["outcome"]) == ([200, 200], "rolled-back")
    assert product.told("watched") == ["watched"], "the first one's watch is not for it to write down"


def test_a_load_balancer_with_the_page_is_not_forgotten(product: Entrances) -> None:
    (product.folder / "revert-it" / "break-localhost").touch()
    assert product.play(*BREAK_GLASS).returncode != 0
    (product.folder / "revert-it" / "break-localhost").unlink()
    assert product.answers() == [503, 503]

    product.write(maintenance_page_hosts="lb-web", rollback_sign_offs=[])
    forgotten = product.play()
    assert forgotten.returncode != 0
    assert "maintenance_page_hosts: lb-api got the page from this run" in product.outcome()["reason"]
    assert "take it out of the inventory" in product.outcome()["reason"]
    assert product.answers() == [503, 503]
    product.write(maintenance_page_hosts="balancers", traffic_restore_hosts="lb-web")
    assert product.play().returncode != 0
    assert "traffic_restore_hosts: lb-api got the page from this run" in product.outcome()["reason"]
    assert product.answers() == [503, 503]

    # It is gone for good.
    del product.hosts["all"]["children"]["balancers"]["hosts"]["lb-api"]
    product.write(traffic_restore_hosts=None)
    again = product.play()
    assert again.returncode == 0, again.stdout
    assert "WARNING: not in the inventory any more, but got the page from this run: lb-api" in again.stdout
    assert product.answers() == [200, 503]
    assert (product.outcome()["outcome"], product.outcome()["page"]) == ("rolled-back", "unknown")
    assert "it is not certain whether visitors see" in again.stdout.splitlines()[-2], again.stdout
    (done,) = (one for one in product.entries("step-done") if one.body["step"] == "traffic-restore")
    assert done.body["gone"] == ["lb-api"]
