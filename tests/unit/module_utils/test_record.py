"""The record in a SQLite file: its contract, and what only a file can suffer."""

from __future__ import annotations

import os
import resource
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from ansible_collections.balik.rollback.plugins.module_utils.errors import BalikError, Unreachable
from ansible_collections.balik.rollback.plugins.module_utils.record import (
    Record,
    _without_password,
    is_there,
    see_that_it_can_be_made,
)

from tests.contracts.record import PROJECT, RecordContract, Tamper


class TestSqlite(RecordContract):
    @pytest.fixture
    def place(self, tmp_path: Path) -> str:
        return str(tmp_path / "shop" / "record.sqlite")

    @pytest.fixture
    def tamper(self, place: str) -> Tamper:
        def run(sql: str) -> None:
            with sqlite3.connect(place) as connection:
                connection.executescript(
                    "DROP TRIGGER IF EXISTS balik_no_update; DROP TRIGGER IF EXISTS balik_no_delete"
                )
                connection.execute(sql)
            connection.close()

        return run


def test_the_file_is_its_owners_only(tmp_path: Path) -> None:
    os.umask(before := os.umask(0))
    with Record(str(tmp_path / "shop" / "record.sqlite"), "shop") as record:
        record.append("note", {})
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "shop").iterdir()}
    assert set(modes.values()) == {0o600}, modes
    assert stat.S_IMODE((tmp_path / "shop").stat().st_mode) == 0o700
    assert before == os.umask(before)


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    place = tmp_path / "notes.txt"
    place.write_text("Rapat go-live, Sabtu\n" * 100)
    with pytest.raises(Unreachable, match="not a database") as refused:
        Record(str(place), "shop")
    assert str(place) in refused.value.what
    assert "rollback_state_dir" in refused.value.do
    assert place.read_text().startswith("Rapat")


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Unreachable, match="cannot be opened"):
        Record(str(tmp_path / "file" / "record.sqlite"), "shop")
    with pytest.raises(Unreachable, match=r"cannot be opened: .*/file is no folder"):
        see_that_it_can_be_made(tmp_path / "file" / "shop" / "record.sqlite")


def test_a_file_that_cannot_be_looked_for_is_told(tmp_path: Path) -> None:
    assert not is_there(tmp_path / "record.sqlite")
    with pytest.raises(Unreachable, match="cannot be opened: File name too long"):
        is_there(tmp_path / ("a" * 300) / "record.sqlite")


def test_what_sees_whether_a_record_can_be_made_makes_nothing(tmp_path: Path) -> None:
    see_that_it_can_be_made(tmp_path / "state" / "shop" / "record.sqlite")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user, as which this is tried")
def test_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    code = (
        # The checkout may be where only root can read.
        "import os, sys\n"
        "from ansible_collections.balik.rollback.plugins.module_utils import record\n"
        "from ansible_collections.balik.rollback.plugins.module_utils.errors import Unreachable\n"
        "from pathlib import Path\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "try:\n  record.Record(sys.argv[1], 'shop')\nexcept Unreachable as error:\n  print(error)\n"
        "try:\n  record.see_that_it_can_be_made(Path(sys.argv[1]))\nexcept Unreachable as error:\n  print(error)\n"
    )
    for parent in tmp_path.parents:
        if parent == Path("/tmp"):
            break
        parent.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "record.sqlite")],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
        env={**os.environ, "PYTHONPATH": str(PROJECT / "collections")},
    )
    assert "Permission denied" in done.stdout, done.stderr
    assert f"{tmp_path} may not be written to" in done.stdout
    assert not (tmp_path / "record.sqlite").exists()


def test_opening_it_twice_in_one_process_lets_nobody_take_its_log_away(tmp_path: Path) -> None:
    place = str(tmp_path / "record.sqlite")
    code = (
        "import sys; from ansible_collections.balik.rollback.plugins.module_utils.record import Record\n"
        "with Record(sys.argv[1], 'shop') as record: print(record.verify().entries)\n"
    )

    def elsewhere() -> str:
        command = [sys.executable, "-c", code, place]
        env = {**os.environ, "PYTHONPATH": str(PROJECT / "collections")}
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30, env=env).stdout.strip()

    with Record(place, "shop") as record:
        record.append("note", {})
        Record(place, "shop").close()  # must not give up the lock by which others know that somebody has it open
        assert elsewhere() == "1"  # the last one to close a record tidies its log up
        record.append("note", {})
        assert elsewhere() == "2"
    assert elsewhere() == "2"


def test_a_new_record_that_another_opens_at_the_same_moment_is_waited_for(tmp_path: Path) -> None:
    place = tmp_path / "record.sqlite"
    other = sqlite3.connect(place, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    ends = threading.Timer(0.3, other.execute, ["COMMIT"])
    ends.start()
    with Record(str(place), "shop") as record:
        assert record.append("note", {"n": 1}).seq == 1
    ends.join()
    other.close()


def test_a_full_disk_is_named_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    place = str(tmp_path / "record.sqlite")
    with Record(place, "shop") as record:
        record.append("note", {"n": 1})
    room = resource.getrlimit(resource.RLIMIT_FSIZE)
    handled = __import__("signal").signal(__import__("signal").SIGXFSZ, __import__("signal").SIG_IGN)
    try:
        with Record(place, "shop") as record:
            resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, room[1]))
            with pytest.raises(BalikError) as refused:
                for _ in range(100):
                    record.append("note", {"text": "x" * 20_000})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, room)
        __import__("signal").signal(__import__("signal").SIGXFSZ, handled)
    assert "cannot be written" in refused.value.found
    assert "disk" in str(refused.value)
    assert "rollback - no transaction" not in str(refused.value)
    with Record(place, "shop") as record:
        assert record.verify().whole
        count = record.verify().entries
        record.append("note", {"n": 2})
        assert record.verify().entries == count + 1


def test_a_kill_while_the_place_is_made_leaves_no_record_without_triggers(tmp_path: Path) -> None:
    """Tables and triggers come at once or not at all: the next one to open it cannot see half of them."""
    for number in range(12):
        place = tmp_path / f"{number}.sqlite"
        code = (
            "import sys; from ansible_collections.balik.rollback.plugins.module_utils.record import Record\n"
            "print('go', flush=True); Record(sys.argv[1], 'shop')"
        )
        maker = subprocess.Popen(
            [sys.executable, "-c", code, str(place)],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(PROJECT / "collections")},
        )
        assert maker.stdout
        maker.stdout.readline()
        time.sleep(0.002 * number)
        maker.kill()
        maker.communicate(timeout=10)
        with Record(str(place), "shop") as record:
            record.append("note", {})
            with pytest.raises(sqlite3.IntegrityError, match="only appended to"):
                record._connection.execute("DELETE FROM balik_entries")


def test_a_writer_that_does_not_end_is_not_waited_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ansible_collections.balik.rollback.plugins.module_utils.record.BUSY_SECONDS", 0.2)
    place = str(tmp_path / "record.sqlite")
    with Record(place, "shop") as slow, Record(place, "shop") as record:
        slow._connection.execute("BEGIN IMMEDIATE")
        with pytest.raises(BalikError, match="locked"):
            record.append("note", {})
        slow._connection.execute("ROLLBACK")
        record.append("note", {})


def test_without_psycopg_a_dsn_is_refused_with_what_to_install() -> None:
    code = (
        "import sys; sys.modules['psycopg'] = None\n"
        "from ansible_collections.balik.rollback.plugins.module_utils.record import Record\n"
        "from ansible_collections.balik.rollback.plugins.module_utils.errors import BalikError\n"
        "try:\n  Record('postgresql://rina:geheim@db/balik', 'shop')\nexcept BalikError as error:\n  print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
        env={**os.environ, "PYTHONPATH": str(PROJECT / "collections")},
    )
    assert "psycopg is missing" in done.stdout, done.stderr
    assert "geheim" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://rina:geheim@db/balik",
        "postgresql://rina:ge@geheim@db/balik",
        "postgresql://db/balik?user=rina&password=geheim&sslmode=require",
        "host=db dbname=balik password=geheim",
        "host=db dbname=balik password = geheim",
        r"host=db dbname=balik password='a \'geheim'",
        "host=db dbname=balik PASSWORD='geheim'",
    ],
)
def test_a_dsns_password_is_not_shown(dsn: str) -> None:
    assert "geheim" not in _without_password(dsn)
    assert "db" in _without_password(dsn)


def test_appending_is_quick_enough(tmp_path: Path) -> None:
    """The quickest tenth: a disk that others use slows some, a slow program all; benchmarks/record.py has figures."""
    with Record(str(tmp_path / "record.sqlite"), "shop") as record:
        took = []
        for number in range(100):
            began = time.perf_counter()
            record.append("note", {"n": number})
            took.append(time.perf_counter() - began)
    assert sorted(took)[10] < 0.02


HIDDEN = """
import os, sys
from ansible_collections.balik.rollback.plugins.module_utils.record import Holder
living = Holder.of_process("rina", int(sys.argv[1]))
ended = Holder("rina", living.host, living.machine, 2**22 - 1, living.born)
os.setgid(65534), os.setuid(65534)
print(living.born > 0, os.access(f"/proc/{living.pid}/stat", os.R_OK), living.is_gone(), ended.is_gone())
"""


@pytest.mark.parametrize("hidepid", ["1", "2"])
def test_a_process_that_proc_hides_may_live(hidepid: str) -> None:
    """As where servers are hardened: only its own user sees it."""
    mount = f'mount -t proc -o hidepid={hidepid} proc /proc && exec "$0" "$@"'
    if subprocess.run(["unshare", "--mount", "bash", "-c", mount, "true"], capture_output=True, check=False).returncode:
        pytest.skip("/proc with hidepid needs the right to mount it")
    program = [sys.executable, "-c", HIDDEN, str(os.getpid())]
    done = subprocess.run(
        ["unshare", "--mount", "bash", "-c", mount, *program],
        env={**os.environ, "PYTHONPATH": str(PROJECT / "collections")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.split() == ["True", "False", "False", "True"], done.stdout + done.stderr
