"""The traffic in the flow of ``rollback.yml``: the real page on two real load balancers, one of which hangs."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from tests.integration.balancers import Balancers, balancers, needed
from tests.integration.flow.product import BREAK_GLASS, Process, Product
from tests.servers.loopback import hanging

pytestmark = needed


class Entrances(Product):
    """A product behind nginx and HAProxy, with a sign-off between the revert and the traffic."""

    def __init__(self, folder: Path, balancers: Balancers) -> None:
        self.balancers = balancers
        super().__init__(
            folder,
            rollback_hold=["maintenance-page"],
            rollback_restore=["traffic-restore"],
            rollback_procedures=[{"name": "standard", "watch": "10m", "every": "1m"}],
            rollback_sign_offs=[{"name": "looked", "role": "lead", "phase": "verify", "says": "It is well"}],
            maintenance_page_hosts="balancers",
            maintenance_page_bypass="0123456789abcdef-bypass",
            maintenance_page_within="1s",
        )
        self.hosts["all"]["children"]["balancers"] = {
            "vars": self.hosts["all"]["children"]["web"]["vars"],
            "hosts": balancers.hosts,
        }
        self.write()
        self._prepare()

    def _prepare(self) -> None:
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


@pytest.fixture
def product(tmp_path: Path) -> Iterator[Entrances]:
    with balancers() as both:
        yield Entrances(tmp_path, both)


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
    product.write(rollback_procedures=[{"name": "standard", "watch": "2h", "every": "1m"}])
    with product.started(*BREAK_GLASS) as rollback:
        rollback.until(lambda: product.entries("asked"))
        assert product.decide("sign-off", decide_item="looked").returncode == 0
        rollback.until(lambda: "traffic is back; watching" in rollback.stdout())
        product.decide("unsafe", "bocor lagi", decide_item="leak")
        assert rollback.wait() != 0
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
    product.decide("safe", "sudah ditutup", decide_item="leak")
    with product.started() as again:
        again.until(lambda: len(product.entries("asked")) == 2)
        assert product.decide("sign-off", decide_item="looked").returncode == 0
        assert again.wait() == 0, again.stdout()
    assert product.answers() == [200, 200]


def watching(product: Entrances) -> AbstractContextManager[Process]:
    product.write(rollback_sign_offs=[], rollback_procedures=[{"name": "standard", "watch": "4h", "every": "1m"}])
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
