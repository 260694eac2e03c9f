"""The folder against the database's rows."""

from __future__ import annotations

import hashlib
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.balik.rollback.plugins.module_utils.errors import BalikError
from ansible_collections.balik.rollback.plugins.module_utils.prisma.history import (
    NONE_STAYS,
    Migration,
    Row,
    compare,
    read_folder,
)

START = datetime(2026, 1, 10, tzinfo=timezone.utc)


def migrations(*names: str) -> list[Migration]:
    return [Migration(name, Path(name), f"-- {name}\n", "") for name in names]


def row(name: str, at: int = 0, **more: Any) -> Row:
    when = START + timedelta(minutes=at or int(name[-1]))
    given = {"finished_at": when, "rolled_back_at": None, "logs": None, **more}
    checksum = hashlib.sha256(f"-- {name}\n".encode()).hexdigest()
    return Row(f"{name}-{at}", checksum, given["finished_at"], name, given["logs"], given["rolled_back_at"], when, 1)


def down(*arguments: Any) -> list[str]:
    found = compare(*arguments)
    assert found.problems == []
    return [one.name for one in found.down]


def test_newest_first_to_the_target() -> None:
    folder, rows = migrations("m1", "m2", "m3", "m4"), [row("m1"), row("m2"), row("m3")]
    assert down(folder, rows, "m1") == ["m3", "m2"]
    assert down(folder, rows, "m3") == []
    assert down(folder, rows, NONE_STAYS) == ["m3", "m2", "m1"]


def test_rows_that_were_rolled_back_do_not_count_as_applied() -> None:
    rows = [row("m1"), row("m2", finished_at=None, rolled_back_at=START), row("m2", 5)]
    assert down(migrations("m1", "m2"), rows, "m1") == ["m2"]
    assert down(migrations("m1", "m2"), rows[:2], "m1") == []


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_a_checksum_forgives_the_ends_of_lines(ends: str) -> None:
    written = hashlib.sha256(f"SELECT 1;{ends}SELECT 2;{ends}".encode()).hexdigest()
    for here in ("\n", "\r\n"):
        assert Migration("m", Path("m"), f"SELECT 1;{here}SELECT 2;{here}", "").is_the_one(written)
    assert not Migration("m", Path("m"), "SELECT 1;\nSELECT 3;\n", "").is_the_one(written)


def test_an_order_that_is_not_the_names_matters_only_where_something_goes() -> None:
    folder, rows = migrations("m1", "m2", "m3"), [row("m1", 2), row("m2", 1), row("m3", 3)]
    found = compare(folder, rows, "m2")
    assert ([one.name for one in found.down], found.problems) == (["m3"], [])
    assert found.notes == ["m1 was applied after m2, which its name puts later"]
    assert "prisma_down_order: applied" in compare(folder, rows, NONE_STAYS).problems[0]
    assert down(folder, rows, NONE_STAYS, "applied") == ["m3", "m1", "m2"]


def test_a_folder_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(BalikError, match="No such file"):
        read_folder(str(tmp_path / "none"))
    with pytest.raises(BalikError, match="holds no <name>/migration"):
        read_folder(str(tmp_path))
    (tmp_path / "m1").mkdir()
    (tmp_path / "m1" / "migration.sql").write_bytes(b"SELECT '\xff'")
    with pytest.raises(BalikError, match=r"m1/migration\.sql: it is not UTF-8"):
        read_folder(str(tmp_path))
    (tmp_path / "m1" / "migration.sql").write_bytes(b"SELECT 1")
    (tmp_path / "m1" / "down.sql").write_bytes(b"ALTER TABLE a DROP COLUMN b;\n\0 DROP TABLE c;")
    with pytest.raises(BalikError, match=r"m1/down\.sql: it has a NUL byte, at 29"):
        read_folder(str(tmp_path))
    (tmp_path / "m1" / "down.sql").unlink()
    (tmp_path / "migration_lock.toml").write_text('# by Prisma\nprovider = "mysql"\n')
    with pytest.raises(BalikError, match="is for mysql"):
        read_folder(str(tmp_path))
