"""What a statement's threats come to in a database: which rows would be lost, how many, and how they are kept.

What goes with what is read from ``pg_depend``, which the server itself goes by when it drops something.
"""

from __future__ import annotations

import hashlib
import json
import os
import pwd
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ..errors import BalikError
from .sql import Statement, Threat, quoted, taking

try:
    import psycopg
except ImportError:  # said by `down`, on the host where it is missing
    psycopg = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from psycopg import Connection

_NO_ANSWER: tuple[type[Exception], ...] = ()
if psycopg is not None:
    _NO_ANSWER = (
        *(psycopg.errors.QueryCanceled, psycopg.errors.LockNotAvailable, psycopg.errors.ReadOnlySqlTransaction),
        *(psycopg.ProgrammingError, psycopg.DataError),
    )

MANIFEST, SCRIPT = "manifest.json", "restore.sql"
#: From this place on in what is held, it is about unique keys.
KEYS_AWAY = 3

# Everything that goes when the root goes: (classid, objid, objsubid). `a`, `i`, `P`, `S`, `e`: with it in any case.
# Generated columns hold nothing of their own; servers before 12 have none, nor a column that says so.
_GONE = """
WITH RECURSIVE gone(classid, objid, objsubid) AS (
    SELECT %(class)s::regclass::oid, %(oid)s::oid, %(sub)s::int
  UNION
    SELECT d.classid, d.objid, d.objsubid FROM pg_depend d JOIN gone g
      ON d.refclassid = g.classid AND d.refobjid = g.objid AND (g.objsubid = 0 OR d.refobjsubid = g.objsubid)
    WHERE d.deptype IN ('a', 'i', 'P', 'S', 'e') OR (%(cascade)s AND d.deptype = 'n')
)
SELECT DISTINCT c.oid, c.relkind::text, coalesce(a.attname, '') FROM gone g
  JOIN pg_class c ON g.classid = 'pg_class'::regclass AND c.oid = g.objid AND c.relkind IN ('r', 'p', 'S')
  LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = g.objsubid AND g.objsubid > 0
WHERE g.objsubid = 0 OR (a.attnum IS NOT NULL AND coalesce(to_jsonb(a) ->> 'attgenerated', '') = '')
ORDER BY 1, 3
"""
# Tables whose rows go, or lose a value, with rows of a table: by foreign keys, and so on from there. The table itself
# is among them where that comes back to it.
_REFERRING = """
WITH RECURSIVE hit(oid) AS (
    SELECT %(oid)s::oid
  UNION
    SELECT k.conrelid FROM pg_constraint k JOIN hit ON k.confrelid = hit.oid WHERE k.contype = 'f' AND {which}
)
SELECT DISTINCT k.conrelid FROM pg_constraint k JOIN hit ON k.confrelid = hit.oid WHERE k.contype = 'f' AND {which}
"""
_BY = {
    "truncate": "true",
    "deleted": "k.confdeltype IN ('c', 'n', 'd')",
    "changed": "k.confrelid = %(oid)s AND k.confupdtype IN ('c', 'n', 'd') AND EXISTS (SELECT FROM pg_attribute a"
    " WHERE a.attrelid = k.confrelid AND a.attnum = ANY (k.confkey) AND a.attname = ANY (%(sets)s))",
}
_TABLE = """
SELECT n.nspname, c.relname,
       array(SELECT attname::text FROM pg_attribute a
             WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped
               AND coalesce(to_jsonb(a) ->> 'attgenerated', '') = '' ORDER BY attnum),
       array(SELECT a.attname::text FROM pg_index i, unnest(i.indkey) WITH ORDINALITY k(num, nth)
             JOIN pg_attribute a ON a.attnum = k.num
             WHERE i.indrelid = c.oid AND i.indisprimary AND a.attrelid = c.oid ORDER BY k.nth)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = %s
"""
# By which a row is found again: the primary key, else a unique key that takes no NULL. None where a table has heirs:
# their rows may have the same values.
_KEYS = """
SELECT array_agg(a.attname::text ORDER BY k.nth)
FROM pg_index i, unnest(i.indkey) WITH ORDINALITY k(num, nth), pg_attribute a
WHERE i.indrelid = to_regclass(%s) AND i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
  AND a.attrelid = i.indrelid AND a.attnum = k.num
  AND k.nth <= coalesce((to_jsonb(i) ->> 'indnkeyatts')::int, i.indnatts)
  AND NOT EXISTS (SELECT FROM pg_inherits h JOIN pg_class c ON c.oid = h.inhparent
                  WHERE h.inhparent = i.indrelid AND c.relkind = 'r')
GROUP BY i.indexrelid, i.indisprimary HAVING bool_and(a.attnotnull)
ORDER BY i.indisprimary DESC, count(*), i.indexrelid
"""
# The tables' own sequences; all of them, or those of a column.
_SEQUENCES = """
SELECT DISTINCT s.oid FROM pg_depend d
  JOIN pg_class s ON s.oid = d.objid AND s.relkind = 'S'
  JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')
  AND d.refobjid = ANY (%(tables)s) AND %(column)s::text IN ('', a.attname::text)
"""
_PROGRAMS = """
SELECT 'trigger ' || tgname FROM pg_trigger WHERE tgrelid = %(oid)s AND NOT tgisinternal AND tgenabled <> 'D'
UNION ALL
SELECT 'rule ' || rulename FROM pg_rewrite WHERE ev_class = %(oid)s AND rulename <> '_RETURN' AND ev_enabled <> 'D'
ORDER BY 1
"""
# All functions that a name may mean: whether each is the server's own (or an extension's in C), and whether it always
# gives the same within a statement. Of the volatile ones those are harmless that are told by name.
_FUNCTIONS = """
SELECT coalesce(bool_and(
           (p.oid < 16384 OR l.lanname = 'c' AND EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_proc'::regclass
                AND d.objid = p.oid AND d.deptype = 'e'))
           AND (p.provolatile <> 'v' OR p.proname = ANY (%(harmless)s))), false),
       coalesce(bool_and(p.provolatile <> 'v'), false)
FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang JOIN pg_namespace n ON n.oid = p.pronamespace
WHERE p.proname = %(name)s
  AND (n.nspname = %(schema)s OR %(schema)s = '' AND n.nspname IN ('pg_catalog', current_schema()))
"""
_HARMLESS = [
    *("random", "random_normal", "clock_timestamp", "timeofday", "gen_random_uuid", "nextval", "setval", "currval"),
    *("lastval", "uuid_generate_v1", "uuid_generate_v1mc", "uuid_generate_v4"),
]
_TREE = """
WITH RECURSIVE down(oid) AS (
    SELECT to_regclass(%s)::oid UNION SELECT i.inhrelid FROM pg_inherits i JOIN down ON i.inhparent = down.oid
)
SELECT oid FROM down WHERE oid IS NOT NULL
"""
# A partition's foreign key is its parent's, and is altered there. What refers to a unique key of columns whose values
# come back is away meanwhile: nothing shall follow them. From 3 on: the unique keys themselves are away, which is only
# needed where a row gets a value that another row still has. Where a key is also what replicas go by, that is the whole
# row meanwhile.
_HELD = """
WITH RECURSIVE up(oid) AS (
    SELECT one::regclass::oid FROM unnest(ARRAY[{names}]) AS one
  UNION
    SELECT i.inhparent FROM pg_inherits i JOIN up ON i.inhrelid = up.oid
), filled(oid, attnum) AS (
    SELECT a.attrelid, a.attnum FROM unnest(ARRAY[{relations}]::text[], ARRAY[{columns}]::text[]) AS one(relation, name)
      JOIN pg_attribute a ON a.attrelid = one.relation::regclass AND a.attname = one.name
), keys(oid) AS (
    SELECT DISTINCT i.indexrelid FROM pg_index i JOIN filled ON filled.oid = i.indrelid
    WHERE i.indisunique AND (filled.attnum = ANY (i.indkey) OR EXISTS (
        SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = i.indexrelid
           AND d.refclassid = 'pg_class'::regclass AND d.refobjid = filled.oid AND d.refobjsubid = filled.attnum))
), parts(oid) AS (
    SELECT oid FROM keys UNION SELECT i.inhrelid FROM pg_inherits i JOIN parts ON i.inhparent = parts.oid
), marks(oid, again) AS (
    SELECT i.indexrelid, format('COMMENT ON INDEX %s IS %L', i.indexrelid::regclass, obj_description(i.indexrelid))
           || CASE WHEN i.indisclustered THEN format('; ALTER TABLE %s CLUSTER ON %I', i.indrelid::regclass, c.relname)
              ELSE '' END
    FROM pg_index i JOIN keys ON keys.oid = i.indexrelid JOIN pg_class c ON c.oid = i.indexrelid
)
SELECT 1 AS nth, format('ALTER TABLE %s ALTER CONSTRAINT %I DEFERRABLE INITIALLY DEFERRED', conrelid::regclass, conname)
           AS before,
       format('ALTER TABLE %s ALTER CONSTRAINT %I NOT DEFERRABLE', conrelid::regclass, conname) AS after
FROM pg_constraint k JOIN up ON k.conrelid = up.oid
WHERE contype = 'f' AND NOT condeferrable AND coalesce(to_jsonb(k) ->> 'conparentid', '0') = '0'
UNION ALL
SELECT 1, format('ALTER TABLE %s DISABLE TRIGGER %I', tgrelid::regclass, tgname),
       format('ALTER TABLE %s ENABLE %sTRIGGER %I', tgrelid::regclass,
              CASE tgenabled WHEN 'A' THEN 'ALWAYS ' WHEN 'R' THEN 'REPLICA ' ELSE '' END, tgname)
FROM pg_trigger WHERE tgrelid = ANY (ARRAY[{names}]::regclass[]) AND NOT tgisinternal AND tgenabled <> 'D'
UNION ALL
SELECT CASE contype WHEN 'f' THEN 2 ELSE 4 END,
       format('ALTER TABLE %s DROP CONSTRAINT %I', conrelid::regclass, conname),
       format('ALTER TABLE %1$s ADD CONSTRAINT %2$I %3$s; COMMENT ON CONSTRAINT %2$I ON %1$s IS %4$L',
              conrelid::regclass, conname, pg_get_constraintdef(k.oid), obj_description(k.oid, 'pg_constraint'))
           || CASE contype WHEN 'f' THEN '' ELSE '; ' || marks.again END
FROM pg_constraint k JOIN marks ON k.conindid = marks.oid
WHERE contype IN ('f', 'p', 'u') AND coalesce(to_jsonb(k) ->> 'conparentid', '0') = '0'
UNION ALL
SELECT 4, format('DROP INDEX %s', c.oid::regclass),
       CASE c.relkind WHEN 'I' THEN replace(pg_get_indexdef(c.oid), ' ON ONLY ', ' ON ') ELSE pg_get_indexdef(c.oid) END
           || '; ' || marks.again
FROM marks JOIN pg_class c ON c.oid = marks.oid
WHERE NOT EXISTS (SELECT FROM pg_constraint k WHERE k.conindid = c.oid AND contype IN ('p', 'u'))
UNION ALL
SELECT 3, format('ALTER TABLE %s REPLICA IDENTITY FULL', c.oid::regclass),
       format('ALTER TABLE %s REPLICA IDENTITY ', c.oid::regclass)
           || CASE c.relreplident WHEN 'd' THEN 'DEFAULT' ELSE format('USING INDEX %I', x.relname) END
FROM parts JOIN pg_class x ON x.oid = parts.oid JOIN pg_index i ON i.indexrelid = parts.oid
  JOIN pg_class c ON c.oid = i.indrelid
WHERE c.relreplident = 'd' AND i.indisprimary OR c.relreplident = 'i' AND i.indisreplident
ORDER BY nth
"""

# The tables that own a sequence, or whose defaults ask it.
_ASKING = """
SELECT format('%%I.%%I', n.nspname, c.relname)
FROM pg_depend d LEFT JOIN pg_attrdef f ON d.classid = 'pg_attrdef'::regclass AND f.oid = d.objid
JOIN pg_class c ON c.relkind IN ('r', 'p') AND c.oid = coalesce(f.adrelid, d.refobjid)
JOIN pg_namespace n ON n.oid = c.relnamespace,
  (SELECT %s::regclass::oid AS oid) s
WHERE d.refclassid = 'pg_class'::regclass AND CASE WHEN f.oid IS NULL
  THEN d.classid = 'pg_class'::regclass AND d.objid = s.oid AND d.deptype IN ('a', 'i') ELSE d.refobjid = s.oid END
GROUP BY 1 ORDER BY 1
"""
# What partitions belong to, the topmost first.
_ABOVE = """
WITH RECURSIVE up(oid, nth) AS (
    SELECT one::regclass::oid, 0 FROM unnest(%s::text[]) AS one
  UNION
    SELECT i.inhparent, up.nth + 1 FROM pg_inherits i JOIN up ON i.inhrelid = up.oid
)
SELECT format('%%I.%%I', n.nspname, c.relname)
FROM up JOIN pg_class c ON c.oid = up.oid AND c.relkind = 'p' JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE pg_has_role(c.relowner, 'USAGE')
GROUP BY 1 ORDER BY max(up.nth) DESC
"""


@dataclass(frozen=True)
class Loss:
    """Rows that a statement would destroy.

    :param kind: ``table`` (with all its rows), ``column`` (its values), ``rows`` (deleted or changed ones of a table
        that stays), ``values`` (of a column whose type changes), ``unknown`` (nothing can be counted or kept),
        ``absent`` (not there now), ``view`` (rows behind what is no table: nothing can be kept, and it is not done),
        ``sequence`` (how far it is: no row goes, and no yes is needed).
    :param relation: the table's name, with its schema, quoted.
    :param select: what is kept; its rows are what is lost, and of a ``column`` those that have a value. The others are
        kept, too, where a key finds them again: ``migration.sql`` may fill them.
    :param changed: of ``values``, the condition in ``select`` under which a value is lost.
    :param filled: ``migration.sql`` gives a column's rows a default: they are kept also where none has a value.
    :param takes: the statement itself, written so that it gives back what it destroys: it runs once, and what is kept
        is what is lost.
    :param guess: ``select`` runs functions that may do anything, or answer otherwise the next time: it is not asked.
    :param keys: the columns by which a row is found again, which go down and come back with it as they are; empty where
        there are none.
    :param rows: ``None`` is unknown, and never 0.
    """

    kind: str
    relation: str
    says: str
    select: str = field(default="", repr=False)
    changed: str = field(default="", repr=False)
    columns: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    rows: int | None = None
    takes: str = field(default="", repr=False)
    guess: bool = False
    filled: bool = False

    @property
    def sentence(self) -> str:
        """``table "Score": 12 rows``."""
        if self.rows is None:
            return f"{self.says}: how many rows is not known"
        return f"{self.says}: {self.rows} row{'' if self.rows == 1 else 's'}"

    @property
    def harmless(self) -> bool:
        return self.rows == 0


def of(connection: Connection[Any], statement: Statement, passing: Iterable[tuple[str, str]] = ()) -> list[Loss]:
    """All that a statement may destroy now; nothing is counted yet. Functions that are not known to be harmless are
    unknown losses of their own.

    :param passing: tables and columns by which no row is found again, beside those that the statement itself takes.
    """
    strange = [name for name in statement.calls if not _function(connection, name)[0]]
    found = [Loss("unknown", "", f"what the function {name} does") for name in strange]
    for threat in statement.threats:
        found += find(connection, threat, statement)
    without = {*passing, *changing(one for one in found if one.kind == "column")}
    return [_with_keys(connection, one, without) if one.kind in ("column", "values") else one for one in found]


def changing(losses: Iterable[Loss]) -> set[tuple[str, str]]:
    """The tables and columns whose values are not, or may not be, the same after going down and up again."""
    return {(one.relation, one.columns[-1]) for one in losses if one.kind in ("column", "values") and not one.harmless}


def _function(connection: Connection[Any], name: str) -> tuple[bool, bool]:
    """Whether a function is known to be harmless, and whether it is known to give the same when asked again."""
    parts = [part[1:-1].replace('""', '"') for part in re.findall(r'"(?:[^"]|"")*"', name)]
    asked = {"schema": parts[-2] if len(parts) > 1 else "", "name": parts[-1], "harmless": _HARMLESS}
    row = connection.execute(_FUNCTIONS, asked).fetchone()
    return (row[0], row[1]) if row else (False, False)


def _guess(connection: Connection[Any], threat: Threat) -> bool:
    """Whether a threat's condition may do anything, or answer otherwise when it is asked again."""
    return not all(all(_function(connection, name)) for name in threat.calls)


def find(connection: Connection[Any], threat: Threat, statement: Statement) -> list[Loss]:
    """The tables, columns and rows that a threat comes to now; nothing is counted yet.

    An object that is not there (yet) gives one ``absent`` loss, unless the statement may miss it.
    """
    if threat.kind in ("table", "relation", "type", "schema", "extension"):
        catalog, oid = _object(connection, threat)
        if oid is None:
            return _absent(threat, threat.kind)
        return _gone(connection, catalog, oid, 0, threat.cascade)
    oid = _regclass(connection, threat.name)
    if oid is None:
        what = "column" if threat.column else "table"
        return _absent(threat, what) if threat.kind not in ("inserted", "identity") else []
    if threat.kind == "identity":
        return _own_sequences(connection, [oid], threat.column)
    if threat.kind in ("column", "retype"):
        return _column(connection, threat, oid)
    return _rows(connection, threat, oid, statement)


def _rows(connection: Connection[Any], threat: Threat, oid: int, statement: Statement) -> list[Loss]:
    """What goes of tables that stay."""
    schema, name, columns, keys = _described(connection, oid)
    relation = quoted(schema, name)
    programs = [
        Loss("unknown", relation, f"what the {program} of {relation} does")
        for (program,) in connection.execute(_PROGRAMS, {"oid": oid}).fetchall()
    ]
    if threat.kind == "inserted":
        return programs
    if not _is_table(connection, oid):
        return [Loss("view", relation, f"rows behind {relation}, which is no table (write the table itself)")]
    others = []
    if threat.kind in ("deleted", "changed") or (threat.kind == "truncate" and threat.cascade):
        asked = {"oid": oid, "sets": list(threat.sets)}
        others = [one for (one,) in connection.execute(_REFERRING.format(which=_BY[threat.kind]), asked).fetchall()]
    if oid in others:
        threat = replace(threat, query="")  # its own rows go with its rows: all are kept
    says = {"deleted": f"rows of {relation}", "changed": f"old values in rows of {relation}"}
    if not threat.query:
        says = {kind: f"{words}, at most" for kind, words in says.items()}
    select = threat.query or f"SELECT {_list(columns)} FROM {relation}"
    found = [
        Loss("rows", relation, says.get(threat.kind, f"all rows of {relation}"), select, "", (*columns,), (*keys,))
    ]
    if threat.query:
        # The statement's own SELECT gives all columns, generated ones too.
        select = f"SELECT {_list(columns)} FROM ({threat.query}) AS gone"
        found = [
            replace(
                found[0],
                select=select,
                takes=taking(statement, columns) if columns else "",
                guess=_guess(connection, threat),
            )
        ]
    for other in others:
        if other != oid:
            found.append(_whole(connection, other, "rows", "of those that refer to them, all rows of {}"))
    if threat.kind == "truncate" and statement.node.restart_seqs:
        tables = [each for one in found for each in tree(connection, one.relation)]
        found += _own_sequences(connection, tables)
    return found + programs


def _is_table(connection: Connection[Any], oid: int) -> bool:
    row = connection.execute("SELECT relkind IN ('r', 'p') FROM pg_class WHERE oid = %s", [oid]).fetchone()
    return bool(row and row[0])


def _absent(threat: Threat, kind: str) -> list[Loss]:
    name = f"{threat.name}.{quoted(threat.column)}" if threat.column else threat.name
    # With a sequence, which goes without what hangs on it, goes no row.
    rows = 0 if threat.missing_ok or (threat.kind == "relation" and not threat.cascade) else None
    return [Loss("absent", threat.name, f"{kind} {name}, which is not there now", rows=rows)]


def _object(connection: Connection[Any], threat: Threat) -> tuple[str, int | None]:
    if threat.kind in ("schema", "extension"):
        catalog, column = {"schema": ("pg_namespace", "nspname"), "extension": ("pg_extension", "extname")}[threat.kind]
        bare = threat.name[1:-1].replace('""', '"')
        row = connection.execute(f"SELECT oid FROM {catalog} WHERE {column} = %s", [bare]).fetchone()
        return catalog, row[0] if row else None
    if threat.kind == "type":
        row = connection.execute("SELECT to_regtype(%s)::oid", [threat.name]).fetchone()
        return "pg_type", row[0] if row else None
    return "pg_class", _regclass(connection, threat.name)


def _regclass(connection: Connection[Any], name: str) -> int | None:
    row = connection.execute("SELECT to_regclass(%s)::oid", [name]).fetchone()
    return row[0] if row else None


def _gone(connection: Connection[Any], catalog: str, oid: int, sub: int, cascade: bool) -> list[Loss]:
    asked = {"class": catalog, "oid": oid, "sub": sub, "cascade": cascade}
    rows = connection.execute(_GONE, asked).fetchall()
    whole = {relation for relation, _, column in rows if not column}
    found = []
    for relation, kind, column in rows:
        if kind == "S":
            found.append(_sequence(connection, relation))
        elif not column and kind == "r":
            found.append(_whole(connection, relation, "table", "table {}"))
        elif relation not in whole:
            found.append(_values(connection, relation, column))
    return found


def _whole(connection: Connection[Any], oid: int, kind: str, says: str) -> Loss:
    schema, name, columns, keys = _described(connection, oid)
    relation = quoted(schema, name)
    # Partitions and heirs are losses of their own.
    only = "ONLY " if kind == "table" else ""
    select = f"SELECT {_list(columns)} FROM {only}{relation}"
    return Loss(kind, relation, says.format(relation), select, "", (*columns,), (*keys,))


def _own_sequences(connection: Connection[Any], tables: Sequence[int], column: str = "") -> list[Loss]:
    rows = connection.execute(_SEQUENCES, {"tables": tables, "column": column}).fetchall()
    return [_sequence(connection, oid) for (oid,) in rows]


def _sequence(connection: Connection[Any], oid: int) -> Loss:
    schema, name, _columns, _keys = _described(connection, oid)
    relation = quoted(schema, name)
    return Loss("sequence", relation, f"how far the sequence {relation} is", rows=0)


def _column(connection: Connection[Any], threat: Threat, oid: int) -> list[Loss]:
    row = connection.execute(
        "SELECT attnum, coalesce(to_jsonb(a) ->> 'attgenerated', '') <> '', format_type(atttypid, atttypmod)"
        " FROM pg_attribute a"
        " WHERE attrelid = %s AND attname = %s AND NOT attisdropped",
        [oid, threat.column],
    ).fetchone()
    if row is None:
        return _absent(threat, "column")
    number, generated, old = row
    if threat.kind == "retype":
        # What cannot be asked beforehand may change every value.
        condition = (
            f"{quoted(threat.column)} IS NOT NULL" if _guess(connection, threat) else threat.query.replace("{old}", old)
        )
        return [_values(connection, oid, threat.column, condition)]
    found = [] if generated else [_values(connection, oid, threat.column)]
    others = _gone(connection, "pg_class", oid, number, threat.cascade)
    return found + [one for one in others if one.says not in {here.says for here in found}]


def _values(connection: Connection[Any], oid: int, column: str, changed: str = "") -> Loss:
    """With all of the table's columns, the lost one last."""
    schema, name, columns, _keys = _described(connection, oid)
    relation, value = quoted(schema, name), quoted(column)
    loss = Loss("values" if changed else "column", relation, f"values of column {relation}.{value}", changed=changed)
    return _selecting(loss, [*(one for one in columns if one != column), column])


def _selecting(loss: Loss, columns: Sequence[str], keys: Sequence[str] = ()) -> Loss:
    select = f"SELECT {_list(columns)} FROM {loss.relation}"
    if loss.changed or not keys:
        select += f" WHERE {loss.changed or f'{quoted(columns[-1])} IS NOT NULL'}"
    return replace(loss, select=select, columns=(*columns,), keys=(*keys,))


def _with_keys(connection: Connection[Any], loss: Loss, without: set[tuple[str, str]]) -> Loss:
    """A column's loss with a key of the table and the column itself, where there is a key without certain columns."""
    column = loss.columns[-1]
    passing = {column, *(one for relation, one in without if relation == loss.relation)}
    found = connection.execute(_KEYS, [loss.relation]).fetchall()
    keys: list[str] = next((one for (one,) in found if passing.isdisjoint(one)), [])
    if not keys:
        return loss
    filled = loss.kind == "column" and _is_filled_again(connection, loss)
    return replace(_selecting(loss, [*keys, column], keys), filled=filled)


def _is_filled_again(connection: Connection[Any], loss: Loss) -> bool:
    """Whether ``ADD COLUMN`` has a default for the rows that are there, so that those without a value would get it."""
    row = connection.execute(
        "SELECT NOT attnotnull AND (atthasdef OR atthasmissing) FROM pg_attribute"
        " WHERE attrelid = %s::regclass AND attname = %s",
        [loss.relation, loss.columns[-1]],
    ).fetchone()
    return bool(row and row[0])


def _described(connection: Connection[Any], oid: int) -> tuple[str, str, list[str], list[str]]:
    row = connection.execute(_TABLE, [oid]).fetchone()
    if row is None:
        raise BalikError(f"table with oid {oid}", "vanished while it was read", do="Run again.")
    return row[0], row[1], row[2], row[3]


def _list(columns: Sequence[str]) -> str:
    return ", ".join(quoted(one) for one in columns)


def count(connection: Connection[Any], loss: Loss, limit: float) -> Loss:
    """The loss with its rows counted exactly, or unknown where that does not end within ``limit`` seconds or cannot be
    asked yet (a type that the script itself makes, a function that may do anything).

    What the script says is asked as it stands there, so the transaction must be one that cannot write, and is taken
    back."""
    if not loss.select or loss.guess:
        return loss
    try:
        with connection.transaction():
            connection.execute("SELECT set_config('statement_timeout', %s, true)", [str(max(1, round(limit * 1000)))])
            return replace(loss, rows=_count(connection, loss))
    except _NO_ANSWER:
        return loss


def _count(connection: Connection[Any], loss: Loss) -> int:
    what = quoted(loss.columns[-1]) if loss.kind == "column" else "*"
    row = connection.execute(f"SELECT count({what}) FROM ({loss.select}) AS gone").fetchone()  # type: ignore[arg-type]
    return int(row[0]) if row else 0


def position(connection: Connection[Any], sequence: str) -> list[Any]:
    """How far a sequence is; empty where nothing has asked it yet, since it comes back so by itself."""
    row = connection.execute(
        f"SELECT last_value, is_called FROM {sequence} WHERE is_called OR last_value <> "  # type: ignore[arg-type]
        f"(SELECT seqstart FROM pg_sequence WHERE seqrelid = {sequence}.tableoid)"
    ).fetchone()
    return [*(row or ())]


def hold_above(connection: Connection[Any], losses: Iterable[Loss]) -> None:
    """Locks what the partitions belong to that go, as dropping them does: who reads it has it before its partitions,
    and the other way round each would wait for the other."""
    partitions = [one.relation for one in losses if one.kind == "table"]
    for (table,) in connection.execute(_ABOVE, [partitions]).fetchall():
        connection.execute(f"LOCK TABLE ONLY {table} IN ACCESS EXCLUSIVE MODE")  # type: ignore[arg-type]


def hold(connection: Connection[Any], sequence: str) -> None:
    """Waits for all who have asked a sequence and not ended, and lets nobody ask until the transaction ends. LOCK TABLE
    takes no sequence; altering one does that, here to what it is. The tables that ask it come first: an INSERT locks
    its table before the sequence, and the other way round each would wait for the other."""
    for (table,) in connection.execute(_ASKING, [sequence]).fetchall():
        connection.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")  # type: ignore[arg-type]
    asked = "SELECT seqincrement FROM pg_sequence WHERE seqrelid = %s::regclass"
    if row := connection.execute(asked, [sequence]).fetchone():
        connection.execute(f"ALTER SEQUENCE {sequence} INCREMENT BY {row[0]}")  # type: ignore[arg-type]


def tree(connection: Connection[Any], relation: str) -> set[int]:
    """The tables that hold a table's rows: itself, its partitions and heirs; empty where it is not there."""
    return {oid for (oid,) in connection.execute(_TREE, [relation]).fetchall()}


class Kept:
    """The folder of what one migration's way down destroys, written before that happens.

    :param folder: of this attempt; a new one for each, so that nothing that is kept is ever written over.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made = False
        self.losses: list[tuple[Loss, str, str]] = []
        self.sequences: dict[str, list[Any]] = {}

    @classmethod
    def begin(cls, base: Path, migration: str) -> Kept:
        """A new attempt's folder; it is made when there is something to keep."""
        before = [int(path.suffix[1:]) for path in attempts(base, migration)]
        return cls(base / f"{migration}.{max(before, default=0) + 1}")

    def write(self, connection: Connection[Any], loss: Loss) -> Loss:
        """Copies what is lost into a file, counting it; no file where there is nothing.

        :raises BalikError: the disk is full, or the folder cannot be written.
        """
        statement = loss.takes or loss.select
        if loss.kind == "sequence" and (state := position(connection, loss.relation)):
            self.sequences[loss.relation] = state
        if not statement:
            return loss
        values = _count(connection, loss) if loss.kind == "column" else None
        if values == 0 and not loss.filled:
            return replace(loss, rows=0)
        name = f"{len(self.losses) + 1:02}.copy"
        try:
            self._make()
            try:
                with connection.transaction():
                    lines, digest = self._copy(connection, statement, name)
            except (psycopg.ProgrammingError, psycopg.DataError):
                if loss.kind != "values":
                    raise
                # There is no way back from the new type by which to compare: all values are kept.
                loss = replace(
                    loss, select=loss.select.replace(loss.changed, f"{quoted(loss.columns[-1])} IS NOT NULL")
                )
                (self.folder / name).unlink()
                lines, digest = self._copy(connection, loss.select, name)
        except OSError as error:
            raise self._unwritten(error) from error
        loss = replace(loss, rows=lines if values is None else values)
        if lines:
            self.losses.append((loss, name, digest))
        else:
            (self.folder / name).unlink()
        return loss

    def _make(self) -> None:
        """The folder, and those above it that are not there: for their owner only. No other attempt may have it."""
        if not self.made:
            for above in reversed([one for one in self.folder.parents if not one.exists()]):
                above.mkdir(mode=0o700, exist_ok=True)
            self.folder.mkdir(mode=0o700)
            self.made = True

    def _copy(self, connection: Connection[Any], select: str, name: str) -> tuple[int, str]:
        content, lines = hashlib.sha256(), 0
        with _private(self.folder / name) as file:
            with connection.cursor() as cursor, cursor.copy(f"COPY ({select}) TO STDOUT") as rows:  # type: ignore[arg-type]
                for block in rows:
                    file.write(block)
                    content.update(block)
                    # A line of COPY's text format is a row: ends of lines within values are written as \\n.
                    lines += bytes(block).count(b"\n")
            file.flush()
            os.fsync(file.fileno())
        return lines, content.hexdigest()

    def close(self, rows: Sequence[Mapping[str, Any]], migration: str, transaction: int, expected: bool = False) -> str:
        """Writes down what the files are and how they come back; the folder's path, empty where nothing is kept.

        That nothing is kept is written down, too, where an earlier attempt kept something, which ``undo`` would put
        back else, and where ``undo`` will look for something.

        :param rows: the migration's lines of ``_prisma_migrations``.
        :param transaction: the server's number of the transaction, by which it can be asked whether it was carried out.
        :param expected: ``check`` said that something would be lost.
        """
        nothing = not self.losses and not self.sequences
        if nothing and not expected and all(one == self.folder for one in attempts(self.folder.parent, migration)):
            self.discard()
            return ""
        items = [
            {
                **{"kind": loss.kind, "relation": loss.relation, "says": loss.says, "rows": loss.rows, "file": name},
                **{"columns": loss.columns, "keys": loss.keys, "sha256": digest},
            }
            for loss, name, digest in self.losses
        ]
        manifest = {"migration": migration, "transaction": transaction, "rows": list(rows), "items": items}
        manifest["sequences"] = self.sequences
        text_of = {MANIFEST: json.dumps(manifest, indent=2), SCRIPT: script(items, self.sequences, migration)}
        try:
            self._make()
            for name, text in text_of.items():
                with _private(self.folder / name) as file:
                    file.write(text.encode())
                    file.flush()
                    os.fsync(file.fileno())
            for folder in (self.folder, self.folder.parent):
                handle = os.open(folder, os.O_RDONLY)
                os.fsync(handle)
                os.close(handle)
        except OSError as error:
            raise self._unwritten(error) from error
        return "" if nothing else str(self.folder)

    def discard(self) -> None:
        """Removes what was written for a transaction that was not carried out."""
        if self.made:
            for file in self.folder.iterdir():
                file.unlink()
            self.folder.rmdir()

    def _unwritten(self, error: OSError) -> BalikError:
        return BalikError(
            f"prisma_down_keep_dir: {self.folder}",
            f"what would be lost cannot be written there: {error.strerror}",
            do="Nothing of this migration was changed. Make room or name another folder, and run again.",
        )


def _private(path: Path) -> IO[bytes]:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")


def listed(folder: Path) -> list[Path]:
    """What stands in a folder of what was kept; nothing where there is no such folder.

    :raises BalikError: this user may not look into it, so it is not known.
    """
    try:
        return list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise BalikError(
            f"prisma_down_keep_dir: {folder}",
            f"cannot be looked into by {user()}: {error.strerror}",
            "the folder of what this run keeps",
            "Nothing was changed. Run it as the user who has made that folder.",
        ) from None


def user() -> str:
    """Who works here; a container's user may have no name."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return f"user id {os.geteuid()}"


def attempts(base: Path, migration: str) -> list[Path]:
    """The folders of a migration's attempts in a run, the last last."""
    found = [path for path in listed(base) if path.name.rpartition(".")[0] == migration]
    return sorted((path for path in found if path.suffix[1:].isdigit()), key=lambda path: int(path.suffix[1:]))


def script(items: Sequence[Mapping[str, Any]], sequences: Mapping[str, Sequence[Any]], migration: str) -> str:
    """For people: how psql brings the rows back, run in the folder."""
    lines = [
        f"-- What {migration} held before it went down. Run in this folder, after the migration was applied again:"
    ]
    lines += ["-- psql -v ON_ERROR_STOP=1 --single-transaction -f restore.sql DATABASE", ""]
    filled = [item for item in items if item["kind"] == "table" or (item["kind"] == "column" and item["keys"])]
    if filled:
        lines += [
            "-- Until all is there: no foreign key is checked, no trigger of your own runs, and the unique keys of the",
            "-- columns below are away. They are made anew as they were, but in the default tablespace.",
            "-- A view that hangs on such a key (GROUP BY) refuses that: drop it before, and make it again afterwards.",
            "-- A row that had no value keeps what migration.sql gives it, where the column must have one (NOT NULL).",
            "SET CONSTRAINTS ALL IMMEDIATE;",
        ]
        lines += [f"CREATE TEMPORARY TABLE balik_held AS {held(filled)};"]
        lines += ["SELECT before FROM balik_held ORDER BY nth \\gexec"]
        lines += ["SET CONSTRAINTS ALL DEFERRED;", ""]
    for number, item in enumerate(tables_first(items)):
        columns = ", ".join(quoted(one) for one in item["columns"])
        lines.append(f"-- {item['says']}: {item['rows']} rows")
        if item["kind"] == "table":
            lines.append(f"\\copy {item['relation']} ({columns}) FROM '{item['file']}'")
        else:
            lines += [
                f"CREATE TEMPORARY TABLE kept_{number} AS SELECT {columns} FROM {item['relation']} WITH NO DATA;",
                f"\\copy kept_{number} FROM '{item['file']}'",
            ]
            if item["kind"] == "column" and item["keys"]:
                lines.append(assignment(item, f"kept_{number}") + ";")
            else:
                lines.append(
                    f"-- Compare kept_{number} with {item['relation']}, and take from it what is to come back."
                )
        lines.append("")
    if sequences:
        lines += ["-- How far sequences were.", *(f"{counted(*each)};" for each in sequences.items()), ""]
    if filled:
        lines += [
            "SET CONSTRAINTS ALL IMMEDIATE;",
            "SELECT after FROM balik_held ORDER BY nth DESC \\gexec",
            "DROP TABLE balik_held;",
            "",
        ]
    return "\n".join(lines)


def tables_first(items: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """In the order of putting back: a column's values may be of rows that went after it, with their table."""
    return sorted(items, key=lambda item: item["kind"] != "table")


def held(items: Sequence[Mapping[str, Any]]) -> str:
    """The query of the statements that hold foreign keys, own triggers and unique keys of what is filled back
    (``before``, in the order of ``nth``), and of those that make them as they were (``after``, in the opposite one).
    Their owner may run them; what refers to what, in which order or in a circle, does not matter then.

    :param items: of the manifest: tables, and columns whose values find their rows; all are there.
    """
    columns = [item for item in items if item["kind"] == "column"]
    return _HELD.format(
        names=_texts(dict.fromkeys(item["relation"] for item in items)),
        relations=_texts(item["relation"] for item in columns),
        columns=_texts(item["columns"][-1] for item in columns),
    )


def _texts(texts: Iterable[str]) -> str:
    return ", ".join("'" + one.replace("'", "''") + "'" for one in texts)


def counted(sequence: str, state: Sequence[Any]) -> str:
    """Takes a sequence to where it was, unless it is further: one that stayed has gone on since, or ``migration.sql``
    has put it where the rows of now ask for. One that nothing has asked yet is where it starts."""
    name, (last, called) = sequence.replace("'", "''"), state
    value = f"setval('{name}', {int(last)}, {str(bool(called)).lower()})"
    about = f"FROM pg_sequence WHERE seqrelid = {sequence}.tableoid"
    behind = (
        f"CASE WHEN (SELECT seqincrement > 0 {about}) THEN last_value < {int(last)} ELSE last_value > {int(last)} END"
    )
    unasked = f"NOT is_called AND last_value IN ({int(last)}, (SELECT seqstart {about}))"
    return f"SELECT {value} FROM {sequence} WHERE {behind} OR {unasked}"


def assignment(item: Mapping[str, Any], table: str) -> str:
    """The UPDATE that puts a column's kept values back where the rows still are. Rows that have none and had none are
    not written, nor those that had none where the column must have one by then."""
    value, name = quoted(item["columns"][-1]), _texts(item["columns"][-1:])
    must = (
        f"SELECT attnotnull FROM pg_attribute WHERE attrelid = {_texts([item['relation']])}::regclass"
        f" AND attname = {name}"
    )
    some = f"(k.{value} IS NOT NULL OR t.{value} IS NOT NULL AND NOT ({must}))"
    return f"UPDATE {item['relation']} t SET {value} = k.{value} FROM {table} k WHERE {_same(item)} AND {some}"


def there(item: Mapping[str, Any], table: str) -> str:
    """The query of how many of a column's kept values have their row still; and how many rows that had none have one
    after the ``assignment``."""
    value = quoted(item["columns"][-1])
    both = f"count(k.{value}), count(*) FILTER (WHERE k.{value} IS NULL AND t.{value} IS NOT NULL)"
    return f"SELECT {both} FROM {item['relation']} t, {table} k WHERE {_same(item)}"


def _same(item: Mapping[str, Any]) -> str:
    return " AND ".join(f"t.{quoted(key)} = k.{quoted(key)}" for key in item["keys"])
