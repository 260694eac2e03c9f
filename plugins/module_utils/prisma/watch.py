"""What a statement really did to rows, by the server's own counters: no parser knows what a trigger, a rule, a view or
a function does, the server does.

Within a transaction PostgreSQL counts each row that this session deletes or updates, table by table
(``pg_stat_get_xact_tuples_*``, with ``track_counts``). Truncating or rewriting a table gives it another file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import loss
from .loss import Loss
from .sql import Statement, ast, quoted

if TYPE_CHECKING:
    from psycopg import Connection

_TABLES = """
SELECT c.oid, quote_ident(n.nspname) || '.' || quote_ident(c.relname),
       pg_stat_get_xact_tuples_deleted(c.oid) + pg_stat_get_xact_tuples_updated(c.oid),
       pg_relation_filenode(c.oid),
       (SELECT count(*) FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
          AND coalesce(to_jsonb(a) ->> 'attgenerated', '') = '')
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND c.oid >= 16384 OR c.oid = 'pg_largeobject'::regclass
"""


@dataclass(frozen=True)
class Table:
    """A table as it stands: how many of its rows this session has deleted or updated, its file, its columns that hold
    something."""

    name: str
    touched: int
    file: int | None
    columns: int


def look(connection: Connection[Any]) -> dict[int, Table]:
    """All tables with rows of their own, by oid."""
    return {oid: Table(*found) for oid, *found in connection.execute(_TABLES).fetchall()}


def counts(connection: Connection[Any]) -> bool:
    """Whether the server counts at all."""
    row = connection.execute("SHOW track_counts").fetchone()
    return bool(row and row[0] == "on")


@dataclass(frozen=True)
class Covered:
    """What one statement may destroy, because it is kept.

    :param rows: how many rows by the oids of the tables that hold them; ``None`` where all of them are kept.
    :param whole: tables that may go.
    :param columns: tables that may lose columns.
    :param rewritten: tables that may get another file.
    """

    rows: list[tuple[set[int], int | None]]
    whole: set[int]
    columns: set[int]
    rewritten: set[int]


def covered(connection: Connection[Any], statement: Statement, losses: Iterable[Loss]) -> Covered:
    """Read before the statement, while all is there that may go."""
    rows: list[tuple[set[int], int | None]] = []
    whole, columns, rewritten = set[int](), set[int](), set[int]()
    for one in losses:
        tables = loss.tree(connection, one.relation) if one.select else set[int]()
        if one.kind == "rows":
            rows.append((tables, one.rows if one.takes else None))
            rewritten |= tables
        elif one.kind == "table":
            whole |= tables
        elif one.kind == "column":
            columns |= tables
    relation = getattr(statement.node, "relation", None)
    if isinstance(statement.node, (ast.AlterTableStmt, ast.ClusterStmt)) and relation is not None:
        name = quoted(*(part for part in (relation.schemaname, relation.relname) if part))
        rewritten |= loss.tree(connection, name)
    return Covered(rows, whole, columns, rewritten)


def compare(before: Mapping[int, Table], after: Mapping[int, Table], kept: Covered) -> list[str]:
    """What went, or was changed, and is not among what is kept."""
    touched = {oid: count for oid, table in after.items() if (count := table.touched - _was(before, oid)) > 0}
    for tables, limit in sorted(kept.rows, key=lambda one: one[1] is not None):
        ours = {oid: count for oid, count in touched.items() if oid in tables}
        if limit is None or sum(ours.values()) <= limit:
            touched = {oid: count for oid, count in touched.items() if oid not in ours}
    wrong = [f"{count} rows of {after[oid].name} went or were changed" for oid, count in touched.items()]
    for oid, table in before.items():
        now = after.get(oid)
        if now is None:
            wrong += [] if oid in kept.whole else [f"{table.name} went"]
        elif now.file != table.file and oid not in kept.rewritten:
            wrong.append(f"{table.name} was emptied or rewritten")
        elif now.columns < table.columns and oid not in kept.columns:
            wrong.append(f"a column of {table.name} went")
    return wrong


def _was(before: Mapping[int, Table], oid: int) -> int:
    return before[oid].touched if oid in before else 0
