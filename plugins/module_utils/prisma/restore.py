"""One migration applied again, with its rows of Prisma's bookkeeping and the rows that were kept when it went down."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BalikError
from . import loss
from .database import quote_bookkeeping
from .sql import quoted

if TYPE_CHECKING:
    from psycopg import Connection

Json = dict[str, Any]
_BLOCK = 1 << 20
_COLUMNS = ("id", "checksum", "finished_at", "migration_name", "rolled_back_at", "started_at", "applied_steps_count")


def put_back(connection: Connection[Any], schema: str, up: str, saved: Mapping[str, Any], base: Path) -> Json:
    """Runs ``migration.sql``, puts the kept rows into what it made, and Prisma's rows back, in the open transaction.

    :param saved: what ``check`` kept: ``name`` and ``rows``.
    :param base: the run's folder of what was kept.
    :raises BalikError: a kept file is not what was written.
    """
    name = saved["name"]
    connection.execute(up)  # type: ignore[arg-type]
    folders = loss.attempts(base, name)
    manifest = _manifest(folders[-1]) if folders else {"items": []}
    back, by_hand = [], []
    # The last to go is the first to come: what refers to a table was dropped before it.
    for number, item in reversed(list(enumerate(manifest["items"]))):
        if item["kind"] == "table":
            _table(connection, folders[-1], item)
        elif item["kind"] == "column" and item["keys"]:
            _column(connection, folders[-1], item, f"balik_kept_{number}")
        else:
            by_hand.append(f"{item['says']} ({folders[-1] / item['file']})")
            continue
        back.append(f"{item['says']}: {item['rows']} rows")
    table = quote_bookkeeping(schema)
    logs = {row["id"]: row.get("logs") for row in manifest.get("rows") or []}
    for row in saved["rows"]:
        values = [row[column] for column in _COLUMNS]
        connection.execute(
            f"INSERT INTO {table} ({', '.join(_COLUMNS)}, logs) VALUES ({', '.join(['%s'] * len(_COLUMNS))}, %s)",  # type: ignore[arg-type]
            [*values, logs.get(row["id"])],
        )
    says = f"{name} is applied again"
    says += f" with {', '.join(back)}" if back else ""
    says += f"; to be put back by hand: {', '.join(by_hand)}" if by_hand else ""
    return {"name": name, "says": says, "back": back, "by_hand": by_hand}


def _manifest(folder: Path) -> Json:
    try:
        found: Json = json.loads((folder / loss.MANIFEST).read_text())
        for item in found["items"]:
            content = hashlib.sha256()
            with (folder / item["file"]).open("rb") as file:
                while block := file.read(_BLOCK):
                    content.update(block)
            if content.hexdigest() != item["sha256"]:
                raise BalikError(
                    f"{folder / item['file']}", "is not what was kept (checksum)", do="Nothing was changed."
                )
    except (OSError, ValueError, KeyError) as error:
        raise BalikError(f"{folder}", f"what was kept cannot be read: {error}", do="Nothing was changed.") from None
    return found


def _table(connection: Connection[Any], folder: Path, item: Mapping[str, Any]) -> None:
    # What the migration itself has just written there is among what was kept.
    connection.execute(f"DELETE FROM ONLY {item['relation']}")  # type: ignore[arg-type]
    _copy(connection, item["relation"], item["columns"], folder / item["file"])
    for sequence, state in item["sequences"].items():
        connection.execute(loss.counted(sequence, state))  # type: ignore[arg-type]


def _column(connection: Connection[Any], folder: Path, item: Mapping[str, Any], name: str) -> None:
    columns = ", ".join(quoted(one) for one in item["columns"])
    relation = item["relation"]
    connection.execute(f"CREATE TEMPORARY TABLE {name} ON COMMIT DROP AS SELECT {columns} FROM {relation} WITH NO DATA")  # type: ignore[arg-type]
    _copy(connection, f"pg_temp.{name}", item["columns"], folder / item["file"])
    connection.execute(loss.assignment(item, f"pg_temp.{name}"))  # type: ignore[arg-type]


def _copy(connection: Connection[Any], relation: str, columns: Iterable[str], file: Path) -> None:
    names = ", ".join(quoted(one) for one in columns)
    with (
        connection.cursor() as cursor,
        cursor.copy(f"COPY {relation} ({names}) FROM STDIN") as rows,
        file.open("rb") as content,
    ):  # type: ignore[arg-type]
        while block := content.read(_BLOCK):
            rows.write(block)
