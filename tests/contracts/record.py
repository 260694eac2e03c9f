"""What a record promises at either place, SQLite and PostgreSQL: one class of tests, run over both.

A subclass gives the fixtures ``place`` (what :class:`Record` takes) and ``tamper`` (a function that runs SQL past the
triggers, as somebody with the file or the server's superuser can), and the place's name of a parameter in SQL.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from ansible_collections.balik.rollback.plugins.module_utils.errors import BalikError
from ansible_collections.balik.rollback.plugins.module_utils.record import GENESIS, Holder, Record

Tamper = Callable[..., None]
PROJECT = Path(__file__).resolve().parents[2]
WRITERS, EACH = 4, 200

ACKNOWLEDGED = re.compile(r"\d+ [0-9a-f]{64}\n")
APPENDER = """
import sys
from ansible_collections.balik.rollback.plugins.module_utils.record import Record
place, product, name, count = sys.argv[1:]
with Record(place, product) as record:
    for number in range(int(count)):
        entry = record.append("written", {"by": name, "number": number}, name)
        print(entry.seq, entry.hash, flush=True)
"""


def appender(place: str, name: str, count: int, product: str = "shop") -> subprocess.Popen[str]:
    """A process that appends ``count`` entries, and prints the number and hash of each once it is acknowledged."""
    return subprocess.Popen(
        [sys.executable, "-c", APPENDER, place, product, name, str(count)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(PROJECT / "collections")},
    )


def sleeper() -> subprocess.Popen[bytes]:
    """Some process of this machine, to hold a lock and to die."""
    return subprocess.Popen(["sleep", "60"])


def ended(process: subprocess.Popen) -> None:
    process.kill()
    process.wait(10)


class RecordContract:
    """See the module. Each test gets an empty place."""

    # Appending

    def test_the_first_entry_continues_nothing_and_each_other_the_one_before(self, place: str) -> None:
        with Record(place, "shop") as record:
            assert record.head() == GENESIS
            first = record.append("run-opened", {"by": "rina"}, "r1")
            second = record.append("note", {})
            assert (first.seq, first.previous) == (1, GENESIS)
            assert (second.seq, second.previous) == (2, first.hash)
            assert record.head() == second.hash
            assert list(record.entries()) == [first, second]
            assert list(record.entries("r1")) == [first]
            assert list(record.entries("")) == [second]
            assert record.verify() == record.verify(first.hash)
            assert (record.verify().whole, record.verify().entries, record.verify().head) == (True, 2, second.hash)

    def test_an_empty_record_is_whole(self, place: str) -> None:
        with Record(place, "shop") as record:
            found = record.verify()
            assert (found.whole, found.entries, found.head) == (True, 0, GENESIS)
            assert list(record.entries()) == []

    def test_what_was_written_is_there_after_it_is_opened_again(self, place: str) -> None:
        with Record(place, "shop") as record:
            entry = record.append("note", {"n": 1})
        with Record(place, "shop") as record:
            assert list(record.entries()) == [entry]

    @pytest.mark.parametrize(
        "body",
        [
            {"teks": "Surat kuasa — § 1795 KUH Perdata, 委任状 🙏"},
            {"nul": "a\0b", "lines": "a\nb\r\n\t"},
            {"quotes": "'; DROP TABLE balik_entries; -- %s ? {{ x }}"},
            {"deep": {"list": [None, True, 1.5, -1, "", {}, []]}},
        ],
        ids=["unicode", "control characters", "sql", "nested"],
    )
    def test_a_body_comes_back_as_it_was(self, place: str, body: dict) -> None:
        with Record(place, "shop") as record:
            assert record.append("note", body).body == body
            assert next(record.entries()).body == body
            assert record.verify().whole

    def test_half_a_character_does_not_stop_a_run(self, place: str) -> None:
        """A program's output with bytes that are no UTF-8 arrives as lone surrogates, which no database takes."""
        with Record(place, "shop") as record:
            entry = record.append("step-failed", {"msg": "caf\udce9"}, "r1")
            assert entry.body == {"msg": "caf?"}
            assert next(record.entries()) == entry
            assert record.verify().whole

    def test_what_json_has_no_word_for_is_written_as_text(self, place: str) -> None:
        """A step's ``before`` may hold whatever YAML makes: a date, for one."""
        from datetime import date

        with Record(place, "shop") as record:
            assert (
                record.append("step-started", {"saved": {"on": date(2026, 1, 10)}}).body["saved"]["on"] == "2026-01-10"
            )
            assert record.verify().whole

    def test_five_megabytes_in_one_body(self, place: str) -> None:
        with Record(place, "shop") as record:
            record.append("note", {"text": "x" * 5_000_000})
            assert len(next(record.entries()).body["text"]) == 5_000_000
            assert record.verify().whole

    def test_two_products_in_one_place_know_nothing_of_each_other(self, place: str) -> None:
        with Record(place, "shop") as shop, Record(place, "court") as court:
            shop.append("note", {"of": "shop"})
            court.append("note", {"of": "court"})
            shop.append("note", {"of": "shop"})
            assert [e.seq for e in shop.entries()] == [1, 2]
            assert [e.body["of"] for e in court.entries()] == ["court"]
            assert shop.verify().whole
            assert court.verify().whole
            shop.acquire(Holder.of_process("rina", os.getpid()), 60)
            assert court.lock() is None

    def test_writers_at_once_make_one_chain_and_lose_nothing(self, place: str) -> None:
        """From the very beginning: the place does not exist when they start."""
        writers = [appender(place, f"w{number}", EACH) for number in range(WRITERS)]
        seqs = []
        for writer in writers:
            out, err = writer.communicate(timeout=120)
            assert writer.returncode == 0, err
            seqs += [int(line.split()[0]) for line in out.splitlines()]
        assert sorted(seqs) == list(range(1, WRITERS * EACH + 1))
        with Record(place, "shop") as record:
            assert record.verify().whole
            for number in range(WRITERS):
                written = [e.body["number"] for e in record.entries(f"w{number}")]
                assert written == list(range(EACH)), "its own entries stand in the order it wrote them"

    def test_killed_while_appending_the_chain_is_whole_and_has_all_that_was_acknowledged(self, place: str) -> None:
        acknowledged: list[str] = []
        for number in range(8):
            writer = appender(place, f"w{number}", 100_000)
            assert writer.stdout
            acknowledged.append(writer.stdout.readline())  # it is under way
            time.sleep(0.02 * number)
            writer.send_signal(signal.SIGKILL)
            # Not communicate(), which forgets what readline() has read ahead; the last line may be half of one.
            acknowledged += [line for line in writer.stdout if ACKNOWLEDGED.fullmatch(line)]
            ended(writer)
        with Record(place, "shop") as record:
            assert record.verify().whole
            written = {f"{e.seq} {e.hash}\n" for e in record.entries()}
            assert set(acknowledged) <= written
            record.append("note", {"after": "the kills"})
            assert record.verify().whole

    # Tampering

    @pytest.fixture
    def five(self, place: str) -> list[str]:
        """Five entries; their hashes."""
        with Record(place, "shop") as record:
            return [record.append("note", {"n": number}).hash for number in range(1, 6)]

    @pytest.mark.parametrize(
        "sql",
        [
            "UPDATE balik_entries SET body = '{}' WHERE seq = 1",
            "DELETE FROM balik_entries WHERE seq = 5",
            "DELETE FROM balik_entries",
        ],
    )
    def test_the_database_itself_refuses_changes(self, place: str, five: list[str], sql: str) -> None:
        with Record(place, "shop") as record, pytest.raises(Exception, match="only appended to"):
            record._connection.execute(sql)
        with Record(place, "shop") as record:
            assert record.verify().entries == 5

    @pytest.mark.parametrize(
        ("sql", "broken_at", "reason"),
        [
            ("""UPDATE balik_entries SET body = '{"n":7}' WHERE seq = 3""", 3, "was changed"),
            ("UPDATE balik_entries SET body = 'no json' WHERE seq = 3", 3, "was changed"),
            ("UPDATE balik_entries SET kind = 'decided' WHERE seq = 2", 2, "was changed"),
            ("UPDATE balik_entries SET at = '2020-01-01T00:00:00.000000Z' WHERE seq = 1", 1, "was changed"),
            ("UPDATE balik_entries SET run = 'other' WHERE seq = 5", 5, "was changed"),
            ("UPDATE balik_entries SET hash = previous WHERE seq = 4", 4, "was changed"),
            ("UPDATE balik_entries SET previous = hash WHERE seq = 4", 4, "does not continue entry 3"),
            ("DELETE FROM balik_entries WHERE seq = 3", 3, "entry 3 is missing; entry 4 follows"),
            ("DELETE FROM balik_entries WHERE seq = 1", 1, "entry 1 is missing; entry 2 follows"),
            (
                # Two entries change places.
                "UPDATE balik_entries SET seq = 9 WHERE seq = 2; UPDATE balik_entries SET seq = 2 WHERE seq = 3;"
                "UPDATE balik_entries SET seq = 3 WHERE seq = 9",
                2,
                "does not continue entry 1",
            ),
            (
                # A deletion in the middle, hidden by new numbers.
                "DELETE FROM balik_entries WHERE seq = 3; UPDATE balik_entries SET seq = 3 WHERE seq = 4;"
                "UPDATE balik_entries SET seq = 4 WHERE seq = 5",
                3,
                "does not continue entry 2",
            ),
            (
                "INSERT INTO balik_entries SELECT product, 6, at, run, kind, body, hash, hash FROM balik_entries "
                "WHERE seq = 5",
                6,
                "was changed",
            ),
        ],
    )
    def test_whoever_goes_round_the_triggers_is_found_out(
        self, place: str, five: list[str], tamper: Tamper, sql: str, broken_at: int, reason: str
    ) -> None:
        for statement in sql.split(";"):
            tamper(statement)
        with Record(place, "shop") as record:
            found = record.verify()
        assert (found.whole, found.broken_at, found.entries) == (False, broken_at, broken_at - 1)
        assert reason in found.reason

    def test_a_body_that_is_no_json_is_said_to_be_so(self, place: str, five: list[str], tamper: Tamper) -> None:
        """Whoever reads a spoilt record gets a message that says where, and how to look at the rest."""
        tamper("UPDATE balik_entries SET body = '{half' WHERE seq = 3")
        with Record(place, "shop") as record, pytest.raises(BalikError, match=r"entry 3.*verify=true"):
            list(record.entries())

    def test_a_cut_off_end_is_found_with_a_head_that_was_kept(
        self, place: str, five: list[str], tamper: Tamper
    ) -> None:
        tamper("DELETE FROM balik_entries WHERE seq > 3")
        with Record(place, "shop") as record:
            assert record.verify().whole, "the chain alone cannot show it"
            assert record.verify(five[2]).whole
            found = record.verify(five[4])
        assert (found.whole, found.broken_at, found.entries) == (False, 4, 3)
        assert "cut off" in found.reason

    def test_a_chain_written_anew_without_the_key_is_found(self, place: str, tamper: Tamper) -> None:
        with Record(place, "shop", "the key") as record:
            record.append("decided", {"outcome": "no-go"})
            record.append("note", {})
        tamper("DELETE FROM balik_entries")
        with Record(place, "shop") as forger:
            forger.append("decided", {"outcome": "go"})
            forger.append("note", {})
            assert forger.verify().whole
        with Record(place, "shop", "the key") as record:
            found = record.verify()
        assert (found.broken_at, "another record key" in found.reason) == (1, True)

    def test_a_wrong_key_does_not_verify(self, place: str) -> None:
        with Record(place, "shop", "the key") as record:
            record.append("note", {})
            assert record.verify().whole
        with Record(place, "shop", "another") as record:
            assert record.verify().broken_at == 1

    # The lock

    def test_the_second_is_told_who_holds_it_and_since_when(self, place: str) -> None:
        other = sleeper()
        try:
            rina, budi = Holder.of_process("rina", other.pid), Holder.of_process("budi", os.getpid())
            with Record(place, "shop") as record:
                assert record.acquire(rina, 60) is None
                held = record.lock()
                assert held
                with pytest.raises(BalikError) as refused:
                    record.acquire(budi, 60)
                assert f"rina (process {other.pid} on " in refused.value.found
                assert f"since {held.since:%Y-%m-%dT%H:%M:%SZ}" in refused.value.found
                assert "rollback_take_lock=true" in refused.value.do
                assert record.lock() == held
        finally:
            ended(other)

    def test_a_dead_process_is_taken_over_at_once(self, place: str) -> None:
        other = sleeper()
        rina, budi = Holder.of_process("rina", other.pid), Holder.of_process("budi", os.getpid())
        with Record(place, "shop") as record:
            record.acquire(rina, 3600)
            assert not rina.is_gone()
            ended(other)
            assert rina.is_gone()
            taken = record.acquire(budi, 60)
            assert taken
            assert taken.holder == rina
            assert record.lock().holder == budi  # type: ignore[union-attr]

    def test_a_living_process_keeps_it_though_its_lease_is_over(self, place: str) -> None:
        other = sleeper()
        rina, budi = Holder.of_process("rina", other.pid), Holder.of_process("budi", os.getpid())
        try:
            with Record(place, "shop") as record:
                record.acquire(rina, 0)
                with pytest.raises(BalikError, match="That process lives, and keeps it until it ends") as refused:
                    record.acquire(budi, 60)
                assert "rollback_take_lock=true" in refused.value.do
                other.kill()
                os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)
                assert rina.is_gone(), "it has ended, though its parent has not noticed yet"
                taken = record.acquire(budi, 60)
                assert taken
                assert taken.holder == rina
        finally:
            ended(other)

    def test_a_process_with_a_dead_ones_number_is_another(self, place: str) -> None:
        me = Holder.of_process("rina", os.getpid())
        before_me = Holder(**{**vars(me), "born": me.born - 1})
        assert before_me.is_gone()
        assert not me.same_process(before_me)

    def test_another_machines_process_counts_as_alive_until_its_lease_is_over(self, place: str) -> None:
        me = Holder.of_process("budi", os.getpid())
        far = Holder("rina", "jkt-1", "another boot", 1, 1)
        with Record(place, "shop") as record:
            record.acquire(far, 60)
            with pytest.raises(BalikError, match="rina"):
                record.acquire(me, 60)
            record.acquire(far, 0)
            taken = record.acquire(me, 60)
            assert taken
            assert taken.holder == far

    def test_take_over_is_for_a_person_who_knows(self, place: str) -> None:
        me = Holder.of_process("budi", os.getpid())
        far = Holder("rina", "jkt-1", "another boot", 1, 1)
        with Record(place, "shop") as record:
            record.acquire(far, 60)
            taken = record.acquire(me, 60, take_over=True)
            assert taken
            assert taken.holder == far
            with pytest.raises(BalikError, match="budi"):
                record.acquire(far, 60)

    def test_renewing_keeps_since_and_moves_until(self, place: str) -> None:
        me = Holder.of_process("budi", os.getpid())
        with Record(place, "shop") as record:
            record.acquire(me, 10)
            first = record.lock()
            assert record.acquire(me, 60) is None
            second = record.lock()
            assert first
            assert second
            assert (second.since, second.until > first.until) == (first.since, True)

    def test_release_by_another_does_nothing(self, place: str) -> None:
        me = Holder.of_process("budi", os.getpid())
        far = Holder("rina", "jkt-1", "another boot", 1, 1)
        with Record(place, "shop") as record:
            record.release(me)
            record.acquire(far, 60)
            record.release(me)
            assert record.lock()
            record.release(far)
            assert record.lock() is None

    def test_of_many_at_once_one_gets_it(self, place: str) -> None:
        code = """
import os, sys, time
from ansible_collections.balik.rollback.plugins.module_utils.record import Holder, Record
from ansible_collections.balik.rollback.plugins.module_utils.errors import BalikError
with Record(sys.argv[1], "shop") as record:
    try:
        record.acquire(Holder.of_process(sys.argv[2], os.getpid()), 60)
    except BalikError:
        print("refused", flush=True)
    else:
        print("mine", flush=True)
    sys.stdin.read()
"""
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", code, place, f"w{number}"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "PYTHONPATH": str(PROJECT / "collections")},
            )
            for number in range(6)
        ]
        try:
            said = [process.stdout.readline().strip() for process in processes]  # type: ignore[union-attr]
            assert sorted(said) == ["mine"] + ["refused"] * 5
        finally:
            for process in processes:
                process.communicate(timeout=30)

    def test_an_entry_is_plain_json(self, place: str) -> None:
        with Record(place, "shop") as record:
            entry = record.append("note", {"n": 1}, "r1")
        assert json.loads(json.dumps(vars(entry)))["hash"] == entry.hash
