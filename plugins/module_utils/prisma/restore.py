"""One migration applied again, with its rows of Prisma's bookkeeping and the rows that were kept when it went down."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BalikError
from ..units import counted
from . import loss
from .database import quote_bookkeeping
from .sql import quoted

try:
    import psycopg
except ImportError:  # said by `down`, on the host where it is missing
    psycopg = None  # type: ignore[assignment]

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
    folder, others = _carried_out(connection, base, name)
    manifest = _manifest(folder) if folder else {"items": [], "sequences": {}}
    back, by_hand = [], [f"{each['says']} ({folder}/{each['file']})" for each in manifest["items"] if not _comes(each)]
    if folder:
        back = _fill(connection, folder, [each for each in manifest["items"] if _comes(each)])
    went_on = 0
    for sequence, state in manifest["sequences"].items():
        there = connection.execute("SELECT to_regclass(%s)", [sequence]).fetchone()
        if there and there[0]:
            went_on += connection.execute(loss.counted(sequence, state)).rowcount  # type: ignore[arg-type]
        else:
            by_hand.append(f"the sequence {sequence}, which was at {state[0]}")
    if went_on:
        back.append(f"{counted(went_on, 'sequence')} where {'it was' if went_on == 1 else 'they were'}")
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
    says += f"; kept when it went down before in this run: {', '.join(map(str, others))}" if others else ""
    return {"name": name, "says": says, "back": back, "by_hand": by_hand}


def see_kept(connection: Connection[Any], saved: Mapping[str, Any], base: Path) -> None:
    """:raises BalikError: ``check`` told of rows that would be lost, and nothing is found of what was kept."""
    told = (saved.get("lost") or {}).items()
    lost = [f"{says}: {'unknown' if rows is None else counted(rows, 'row')}" for says, rows in told]
    if lost and not _carried_out(connection, base, saved["name"])[0]:
        raise BalikError(
            f"{base}",
            f"nothing is kept there of {saved['name']}",
            f"what check said would be lost ({', '.join(lost)})",
            "Nothing was changed. Run undo where main ran, as its user and with its prisma_down_keep_dir. If there was "
            f"nothing to keep by then, the new release's `prisma migrate deploy` applies {saved['name']} again.",
        )


def kept_before(connection: Connection[Any], base: Path, but: Iterable[str]) -> list[Json]:
    """What earlier starts of a run kept of migrations that are down since: ``name``, ``lost``, ``kept``; newest first.

    :param base: the run's folder of what was kept.
    :param but: migrations that are not down.
    """
    names = {path.name.rpartition(".")[0] for path in loss.listed(base) if path.suffix[1:].isdigit()}
    found = []
    for name in sorted(names.difference(but), reverse=True):
        folder, _ = _carried_out(connection, base, name)
        told = _told(folder) if folder else {}
        if _has_kept(told):
            lost = {item["says"]: item["rows"] for item in told["items"] if item["rows"]}
            found.append({"name": name, "lost": lost, "kept": str(folder)})
    return found


def kept_folders(base: Path, name: str) -> list[str]:
    """Those of a migration's attempts that have kept something, carried out or not."""
    ended = [one for one in loss.attempts(base, name) if one / loss.MANIFEST in loss.listed(one)]
    return [str(one) for one in ended if _has_kept(_told(one))]


def _has_kept(manifest: Json) -> bool:
    return bool(manifest.get("items") or manifest.get("sequences"))


def _told(folder: Path) -> Json:
    try:
        found: Json = json.loads((folder / loss.MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise BalikError(f"{folder}", f"what was kept cannot be read: {error}", do="Nothing was changed.") from None
    return found


def _manifest(folder: Path) -> Json:
    found = _told(folder)
    try:
        for item in found["items"]:
            content = hashlib.sha256()
            with (folder / item["file"]).open("rb") as file:
                while block := file.read(_BLOCK):
                    content.update(block)
            if content.hexdigest() != item["sha256"]:
                raise BalikError(
                    f"{folder / item['file']}", "is not what was kept (checksum)", do="Nothing was changed."
                )
    except (OSError, KeyError) as error:
        raise BalikError(f"{folder}", f"what was kept cannot be read: {error}", do="Nothing was changed.") from None
    return found


def _carried_out(connection: Connection[Any], base: Path, name: str) -> tuple[Path | None, list[Path]]:
    """The folder of the last attempt that was carried out, and those of others that were and have kept something: the
    server knows by its transaction's number. One without a manifest never came to its end."""
    found = []
    for folder in loss.attempts(base, name):
        if folder / loss.MANIFEST in loss.listed(folder):
            number = _told(folder).get("transaction")
            row = connection.execute(
                "SELECT CASE WHEN %(n)s < txid_snapshot_xmax(txid_current_snapshot()) THEN txid_status(%(n)s) END",
                {"n": number},
            ).fetchone()
            if not row or row[0] != "aborted":
                found.append(folder)
    return (found[-1], [one for one in found[:-1] if _has_kept(_told(one))]) if found else (None, [])


def _comes(item: Mapping[str, Any]) -> bool:
    """Whether what was kept can be put back without a person."""
    return item["kind"] == "table" or (item["kind"] == "column" and bool(item["keys"]))


def _fill(connection: Connection[Any], folder: Path, items: Sequence[Mapping[str, Any]]) -> list[str]:
    """Puts kept rows and values back, exactly: foreign keys are checked when all is there, own triggers do not run.
    Unique keys stay where they are, unless a row gets a value that another row still has."""
    connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
    held = connection.execute(loss.held(items)).fetchall() if items else []  # type: ignore[arg-type]
    items = loss.tables_first(items)
    try:
        with connection.transaction():
            return _filled(connection, folder, items, [one for one in held if one[0] < loss.KEYS_AWAY])
    except psycopg.errors.UniqueViolation:
        return _filled(connection, folder, items, held)


def _filled(
    connection: Connection[Any], folder: Path, items: Sequence[Mapping[str, Any]], held: Sequence[tuple[int, str, str]]
) -> list[str]:
    """:param held: which place, what is done before, what is done afterwards (see ``loss.held``)."""
    for _, before, _ in held:
        connection.execute(before)  # type: ignore[arg-type]
    connection.execute("SET CONSTRAINTS ALL DEFERRED")
    tables = [item for item in items if item["kind"] == "table"]
    _empty(connection, [item["relation"] for item in tables])
    back = []
    for number, item in enumerate(items):
        if item["kind"] == "table":
            _copy(connection, item["relation"], item["columns"], folder / item["file"])
            back.append(f"{item['says']}: {item['rows']} rows")
        else:
            there, given = _column(connection, folder, item, f"balik_kept_{number}")
            rows = (
                f"{item['rows']} rows" if there == item["rows"] else f"{there} of {item['rows']} rows, which are there"
            )
            rows += (
                f"; migration.sql's value stays in {counted(given, 'row')} that had none (NOT NULL)" if given else ""
            )
            back += [f"{item['says']}: {rows}"] if item["rows"] or given else []
    connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
    for _, _, after in reversed(held):
        connection.execute(after)  # type: ignore[arg-type]
    for item in tables:
        row = connection.execute(f"SELECT count(*) FROM ONLY {item['relation']}").fetchone()  # type: ignore[arg-type]
        if not row or row[0] != item["rows"]:
            raise BalikError(
                item["says"], f"{row and row[0]} rows were put back", f"{item['rows']}", "Nothing was changed."
            )
    return back


def _empty(connection: Connection[Any], relations: Sequence[str]) -> None:
    """Takes out what the migration itself has just written: it is among what was kept. Some foreign keys forbid that at
    once (RESTRICT), so what refers to another goes before it."""
    while relations:
        refused: list[tuple[str, Exception]] = []
        for relation in relations:
            try:
                with connection.transaction():
                    connection.execute(f"DELETE FROM ONLY {relation}")  # type: ignore[arg-type]
            except psycopg.IntegrityError as error:
                refused.append((relation, error))
        if len(refused) == len(relations):
            raise refused[0][1]
        relations = [relation for relation, _ in refused]


def _column(connection: Connection[Any], folder: Path, item: Mapping[str, Any], name: str) -> tuple[int, int]:
    """:return: how many rows got their value back: those that are still there; how many had none, and must have one."""
    columns = ", ".join(quoted(one) for one in item["columns"])
    relation = item["relation"]
    connection.execute(f"CREATE TEMPORARY TABLE {name} ON COMMIT DROP AS SELECT {columns} FROM {relation} WITH NO DATA")  # type: ignore[arg-type]
    _copy(connection, f"pg_temp.{name}", item["columns"], folder / item["file"])
    connection.execute(loss.assignment(item, f"pg_temp.{name}"))  # type: ignore[arg-type]
    row = connection.execute(loss.there(item, f"pg_temp.{name}")).fetchone()  # type: ignore[arg-type]
    return (int(row[0]), int(row[1])) if row else (0, 0)


def _copy(connection: Connection[Any], relation: str, columns: Iterable[str], file: Path) -> None:
    names = ", ".join(quoted(one) for one in columns)
    with (
        connection.cursor() as cursor,
        cursor.copy(f"COPY {relation} ({names}) FROM STDIN") as rows,
        file.open("rb") as content,
    ):  # type: ignore[arg-type]
        while block := content.read(_BLOCK):
            rows.write(block)
