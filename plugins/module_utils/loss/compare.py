"""Two databases compared row by row, in three looks that each see less.

1. The server adds up a hash of each row, for ranges of keys, in both databases: what adds up alike is alike.
2. Keys and hashes of the ranges that differ are copied beside the backup's rows, and joined with them.
3. Only what differs then is read as rows, when it is exported.

A table of ten million rows with a few thousand changes is read once on each side, and a few ranges of it twice. A row's
hash has 64 bits: of all changed rows, one in 2^64 would not be seen.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from ..database import definition
from ..errors import BalikError
from .psql import Psql, literal, name

#: How many ranges of keys a large table is looked at in.
RANGES = 131072
#: Bytes; a smaller table is one range.
_SMALL = 8 * 1024**2
_WORKERS = 2
_OURS = "balik_loss"

# Values of these are equal only where they are the same in every bit, so that their own hash tells.
_EXACT = {
    *("bool", "int2", "int4", "int8", "oid", "uuid", "date", "time", "timestamp", "timestamptz"),
    *("text", "varchar", "bpchar", "bytea", "char", "name"),
}
_SENT = {"numeric": "numeric_send", "float4": "float4send", "float8": "float8send", "interval": "interval_send"}
_INTEGERS = ("int2", "int4", "int8")
_TIMES = ("timestamp", "timestamptz", "date")
# The plainest names first; a day of birth (tanggal_lahir) says nothing of when its row was written.
_WRITTEN = (
    r"updated_?(at|on)?",
    r"(last_?)?(updat|modifi|chang|edit)\w*|mtime|tanggal_?(di)?(ubah|perbarui)\w*|diubah\w*",
)
_CREATED = (
    r"created_?(at|on)?",
    r"(date_?)?(creat|insert|add(ed)?(_|$)|regist|join|submit|posted)\w*|ctime|tanggal_?(di)?(buat|daftar|masuk)\w*|dibuat\w*",
)
#: What stands in the place of a table's title for the large objects, which belong to none.
LARGE_OBJECTS = "large objects"
NOT_AS_FILES = "they are kept in the replaced database, and not as files"

_TABLES = """
SELECT n.nspname AS schema, c.relname AS relation, c.oid, c.relkind AS kind,
  -- Not by pg_table_size(), which waits for whoever holds the table.
  (WITH RECURSIVE p AS (SELECT c.oid UNION ALL SELECT i.inhrelid FROM pg_inherits i JOIN p ON i.inhparent = p.oid)
    SELECT sum(greatest(b.relpages, 0)) * current_setting('block_size')::int8 FROM p JOIN pg_class b USING (oid))::int8
    AS bytes,
  (SELECT coalesce(json_agg(json_build_object('name', a.attname, 'type', t.typname,
      'base', t.typnamespace = 'pg_catalog'::regnamespace, 'full', format_type(a.atttypid, a.atttypmod),
      'exact', coalesce((SELECT l.collisdeterministic FROM pg_collation l WHERE l.oid = a.attcollation), true),
      'generated', a.attgenerated <> '') ORDER BY a.attnum), '[]')
    FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
    WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped) AS columns,
  (SELECT json_agg(a.attname ORDER BY k.place) FROM (
      SELECT i.indkey[:i.indnkeyatts - 1] AS indkey FROM pg_index i
      WHERE i.indrelid = c.oid AND i.indisunique AND i.indisvalid AND i.indpred IS NULL
        AND i.indexprs IS NULL AND NOT EXISTS (
          SELECT FROM unnest(i.indkey[:i.indnkeyatts - 1]) u JOIN pg_attribute b ON b.attrelid = c.oid AND b.attnum = u
          WHERE NOT b.attnotnull)
      ORDER BY i.indisprimary DESC, i.indnkeyatts, i.indexrelid LIMIT 1) best,
    LATERAL unnest(best.indkey) WITH ORDINALITY AS k(number, place)
    JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.number) AS key
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence <> 't'
  AND n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'balik_loss')
  AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = c.oid AND d.classid = 'pg_class'::regclass
    AND d.deptype = 'e')
ORDER BY 1, 2
"""
# A partition's writes are its table's.
_COUNTERS = """
SELECT n.nspname || '.' || c.relname AS title, sum(s.n_tup_ins)::int8 AS inserted, sum(s.n_tup_upd)::int8 AS changed,
  sum(s.n_tup_del)::int8 AS deleted
FROM pg_stat_user_tables s JOIN pg_class c ON c.oid = coalesce(pg_partition_root(s.relid), s.relid)
JOIN pg_namespace n ON n.oid = c.relnamespace GROUP BY 1
"""
_SEQUENCES = """
SELECT schemaname AS schema, sequencename AS sequence, last_value AS value,
  (SELECT n.nspname || '.' || c.relname FROM pg_depend d JOIN pg_class c ON c.oid = d.refobjid
    JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')
    AND d.objid = format('%I.%I', schemaname, sequencename)::regclass) AS owner
FROM pg_sequences WHERE schemaname !~ '^pg_' ORDER BY 1, 2
"""
# Prisma writes UTC into its columns without a zone, whatever the database has set for itself.
_ZONE = """
SELECT CASE WHEN EXISTS (SELECT FROM pg_class WHERE relname = '_prisma_migrations' AND relkind = 'r') THEN 'UTC'
  ELSE current_setting('TimeZone') END AS zone
"""
_CONTENT = (
    "coalesce((SELECT sum(hashtextextended(encode(data, 'hex'), pageno)) FROM pg_largeobject WHERE loid = oid), 0)"
)


@dataclass(frozen=True)
class Table:
    """A table as one database's catalog has it.

    :param columns: name → what the catalog says of it, in order.
    :param key: columns that name a row; empty: nothing does.
    """

    schema: str
    relation: str
    kind: str
    bytes: int
    columns: Mapping[str, Mapping[str, Any]]
    key: tuple[str, ...]

    @property
    def title(self) -> str:
        """``public.documents``."""
        return f"{self.schema}.{self.relation}"

    @property
    def source(self) -> str:
        """What stands after FROM: without the rows of tables that inherit from it."""
        return ("" if self.kind == "p" else "ONLY ") + name(self.schema, self.relation)

    @property
    def writable(self) -> list[str]:
        """The columns that are not computed from others."""
        return [column for column, about in self.columns.items() if not about["generated"]]


def tables(database: Psql, only: Iterable[str] = ()) -> dict[str, Table]:
    """A database's own tables by title; partitions count as their table.

    :param only: titles, or names of tables in ``public``; all where it is empty.
    """
    wanted = {title_of(each) for each in only}
    found = {}
    for row in database.rows(_TABLES):
        columns = {column["name"]: column for column in row["columns"]}
        key = tuple(row["key"] or ())
        table = Table(row["schema"], row["relation"], row["kind"], row["bytes"], columns, key)
        if not wanted or table.title in wanted:
            found[table.title] = table
    return found


def title_of(table: str) -> str:
    """A table as :attr:`Table.title` has it.

    >>> title_of("clicks"), title_of('"law firm"."Case Files"'), title_of('"Skor ""x"" 1.0"')
    ('public.clicks', 'law firm.Case Files', 'public.Skor "x" 1.0')

    :raises BalikError: it is no such name.
    """
    try:
        found = definition.table(table)
    except BalikError:
        found = definition.table(f"public.{table}")
    return ".".join(found)


def views(database: Psql) -> dict[str, str]:
    """What holds no rows of its own, by title: dropping it loses none."""
    kinds = "SELECT n.nspname || '.' || c.relname AS title, c.relkind AS kind FROM pg_class c JOIN pg_namespace n"
    found = database.rows(f"{kinds} ON n.oid = c.relnamespace WHERE c.relkind IN ('v', 'm', 'f')")
    return {row["title"]: row["kind"] for row in found}


def sequences(database: Psql, only: Iterable[str] = ()) -> dict[str, int | None]:
    """Each sequence's last value by title; None where it was never used.

    :param only: those that belong to these tables; all where it is empty.
    """
    owners = {title_of(each) for each in only}
    return {
        f"{row['schema']}.{row['sequence']}": row["value"]
        for row in database.rows(_SEQUENCES)
        if not owners or row["owner"] in owners
    }


def counters(database: Psql) -> dict[str, dict[str, int]]:
    """How many rows of each table the server has counted as ``inserted``, ``changed`` and ``deleted``, by title."""
    return {row.pop("title"): row for row in database.rows(_COUNTERS)}


def own_zone(database: Psql) -> str:
    """The zone in which a time without one is read: UTC where Prisma writes, else what the database has set."""
    own = replace(database, snapshot="", settings={**database.settings, "TimeZone": ""})
    return str(own.one(_ZONE)["zone"])


@dataclass
class Times:
    """The columns that say when a row was written; empty where there is none.

    >>> day, moment = {"type": "date"}, {"type": "timestamptz"}
    >>> Times.of({"id": {"type": "int8"}, "tanggal_lahir": day, "addedOn": moment, "createdAt": moment})
    Times(created='createdAt', updated='', zone='UTC')

    :param zone: of those that have none themselves.
    """

    created: str = ""
    updated: str = ""
    zone: str = "UTC"

    @classmethod
    def of(
        cls, columns: Mapping[str, Mapping[str, Any]], named: Mapping[str, str] | None = None, zone: str = "UTC"
    ) -> Times:
        """Those that the plan names, or else those that are called so.

        :param zone: where the plan names none.
        """
        given = named or {}
        zone = given.get("zone") or zone
        if given.get("created") or given.get("updated"):
            return cls(given.get("created", ""), given.get("updated", ""), zone)
        there = [column for column, about in columns.items() if about["type"] in _TIMES]
        created, updated = (
            next((column for pattern in patterns for column in there if re.fullmatch(pattern, column, re.I)), "")
            for patterns in (_CREATED, _WRITTEN)
        )
        return cls(created, updated, zone)


def named_times(
    there: Mapping[str, Table], named: Mapping[str, Mapping[str, str]], only: Sequence[str] = ()
) -> tuple[dict[str, dict[str, str]], list[str]]:
    """The plan's columns of times without those that are none, and a sentence about each of these."""
    fitting, wrong = {}, []
    for title, columns in named.items():
        table = there.get(title)
        if not table:
            wrong += [] if only else [f"rollback_loss.times: there is no table {title}"]
            continue
        fitting[title] = dict(columns)
        for kind in {"created", "updated"} & set(columns):
            column = table.columns.get(columns[kind])
            if not column or column["type"] not in _TIMES:
                found = f"is {column['full']}, and no time" if column else f"is no column of {title}"
                wrong.append(f"rollback_loss.times: {title}: {kind}: {columns[kind]} {found}")
                del fitting[title][kind]
    return fitting, wrong


@dataclass
class Difference:
    """What one table lost or got since the backup; None is what is not known.

    :param how: ``key``, ``rows`` (no key: a changed row is a deleted and an inserted one), ``new``, ``dropped``,
        ``objects`` (large ones), ``unknown``; ``times`` and ``statistics`` come from elsewhere.
    :param least: whether it may be more than these counts.
    :param columns: added since: values in them, which are lost whatever became of the row.
    """

    table: str
    how: str
    inserted: int | None = None
    changed: int | None = None
    deleted: int | None = None
    oldest: str | None = None
    newest: str | None = None
    by: str | None = None
    note: str = ""
    columns: dict[str, int] = field(default_factory=dict)
    least: bool = False

    @property
    def lost(self) -> int | None:
        """Rows whose content goes; None where that is not known."""
        parts = [self.inserted] if self.how == "rows" else [self.inserted, self.changed]
        return None if None in parts else sum(part or 0 for part in parts)

    @property
    def none(self) -> bool:
        """Whether it certainly is as it was."""
        same = self.how in ("key", "rows") and not self.inserted and not self.changed and not self.deleted
        return same and not self.note and not self.columns

    def as_dict(self) -> dict[str, Any]:
        return {**vars(self), "lost": self.lost}


@dataclass
class Pair:
    """One table in both databases, and how its rows are told apart.

    :param number: stands in the names of what is made for it.
    """

    number: int
    now: Table
    then: Table
    times: Times
    server: int

    @property
    def common(self) -> list[str]:
        """Columns that both have, without computed ones."""
        return [column for column in self.now.writable if column in self.then.columns]

    @property
    def key(self) -> tuple[str, ...]:
        """Columns that name a row in both."""
        return self.now.key if set(self.now.key) <= set(self.then.columns) else ()

    @property
    def hash(self) -> str:
        """A row's hash, the same in both databases for the same values."""
        return self._hashed([self._exactly(column) for column in self.common])

    def _hashed(self, values: Sequence[str]) -> str:
        if self.server >= 14:
            return f"hash_record_extended(ROW({', '.join(values) or '0'}), 0)"
        return self.hashed_as_text(values)

    def hashed_as_text(self, values: Sequence[str]) -> str:
        """The same for PostgreSQL 13, three times as slowly."""
        return f"hashtextextended(ROW({', '.join(values) or '0'})::text, 0)"

    def _exactly(self, column: str) -> str:
        """A value such that what differs in any bit hashes differently: 1.0 is not 1.00, and in citext A is not a."""
        now, then, quoted = self.now.columns[column], self.then.columns[column], name(column)
        if now["full"] != then["full"] or not now["base"]:
            return f"{quoted}::text"
        if now["type"] in _SENT:
            return f"{_SENT[now['type']]}({quoted})"
        if now["type"] not in _EXACT:
            return f"{quoted}::text"
        return quoted if now["exact"] else f"textsend({quoted}::text)"

    @property
    def keys(self) -> list[str]:
        """The key's values, each as a type that both databases compare alike."""
        return self.keys_of("")

    def keys_of(self, alias: str) -> list[str]:
        """The same, of a relation: ``t.``."""
        return [self._key_of(column, alias + name(column)) for column in self.key]

    def _key_of(self, column: str, value: str) -> str:
        if self.plain_key(column):
            return value
        numbers = {side.columns[column]["type"] for side in (self.now, self.then)} == {"numeric"}
        return f"trim_scale({value})::text" if numbers else f"{value}::text"  # 1.0 and 1.00 are one key

    def plain_key(self, column: str) -> bool:
        """Whether a key's values are told apart by their own type."""
        now, then = self.now.columns[column], self.then.columns[column]
        return bool(now["full"] == then["full"] and now["base"] and now["exact"] and now["type"] in _EXACT)

    def key_type(self, column: str) -> str:
        """The SQL type that a key's column has where it is copied to."""
        return str(self.now.columns[column]["full"]) if self.plain_key(column) else "text"

    @property
    def range_column(self) -> str:
        """The number that ranges are made of; empty where the key begins with none."""
        first = self.key[0] if self.key else ""
        counted = first and self.now.columns[first]["type"] in _INTEGERS and self.plain_key(first)
        return name(first) if counted else ""

    def range_of(self, ends: tuple[int, int] | None) -> str:
        """The SQL of the range that a row is in.

        :param ends: least and greatest key now; None: the ranges are of a hash, or there is only one.
        """
        if self.now.bytes < _SMALL:
            return "0"
        if ends and self.range_column:
            width, low, high = _ranges(*ends)
            return f"greatest({low}, least({high}, {self.range_column}::int8 / {width}))"
        return f"{self._hashed(self.keys) if self.key else self.hash} & {RANGES - 1}"

    def time(self, column: str) -> str:
        """A time as UTC, whatever type it has; one without a zone is read in :attr:`Times.zone`."""
        zone = literal(self.times.zone)
        return f"{name(column)}::timestamp AT TIME ZONE {zone}" if self._zoneless(column) else name(column)

    @property
    def by(self) -> str | None:
        """For people: the columns that say when a row was written."""
        return ", ".join(filter(None, (self.times.created, self.times.updated))) + self.zone_note or None

    @property
    def zone_note(self) -> str:
        """For people: how columns without a zone are read; empty where there are none."""
        zoneless = any(self._zoneless(column) for column in (self.times.created, self.times.updated))
        return f" (without a zone, read as {self.times.zone})" if zoneless else ""

    def _zoneless(self, column: str) -> bool:
        return column in self.now.columns and self.now.columns[column]["type"] != "timestamptz"


class Comparison:
    """What differs between a database and a backup of it.

    :param now: the database, :meth:`Psql.steady`.
    :param server: its major version.
    :param named: the plan's columns of times, by table: ``{"public.documents": {"created": …, "updated": …}}``.
    :param only: tables; all where it is empty.
    """

    def __init__(self, now: Psql, server: int, named: Mapping[str, Mapping[str, str]], only: Iterable[str]) -> None:
        self.now, self.server = now, server
        self.only = tuple(only)
        self.tables = tables(now, self.only)
        self.named, self.misnamed = named_times(self.tables, named, self.only)
        self.sequences = sequences(now, self.only)
        self._zone = own_zone(now)
        self._ends = self._key_ends()

    # The first look

    def _key_ends(self) -> dict[str, tuple[int, int]]:
        """The least and the greatest key of the large tables whose key begins with a number."""
        asked = {
            title: table
            for title, table in self.tables.items()
            if table.bytes >= _SMALL and table.key and table.columns[table.key[0]]["type"] in _INTEGERS
        }
        queries = [
            f"SELECT min({name(table.key[0])}) AS low, max({name(table.key[0])}) AS high FROM {table.source}"
            for table in asked.values()
        ]
        answers = self.now.each(queries, tolerant=True) if queries else []
        return {
            title: (row["low"], row["high"]) for title, (row, *_) in zip(asked, answers) if row.get("low") is not None
        }

    def pairs(self, then: Mapping[str, Table]) -> list[Pair]:
        """The tables that both have."""
        both = [title for title in self.tables if title in then]
        return [
            Pair(number, self.tables[title], then[title], self.times(title), self.server)
            for number, title in enumerate(both)
        ]

    def times(self, title: str) -> Times:
        return Times.of(self.tables[title].columns, self.named.get(title), self._zone)

    def sums(self, side: Psql, pairs: Sequence[Pair], of_now: bool) -> list[dict[Any, Any]]:
        """For each table its ranges with number of rows and sum of hashes; ``{"error": …}`` where it cannot be read."""
        queries = [
            f"SELECT r, count(*) AS n, sum(h)::text AS s FROM (SELECT {pair.range_of(self._ends.get(pair.now.title))}"
            f" AS r, {pair.hash} AS h FROM {(pair.now if of_now else pair.then).source}) x GROUP BY r"
            for pair in pairs
        ]
        answers = side.each(queries, tolerant=True) if queries else []
        return [
            rows[0] if rows and "error" in rows[0] else {row["r"]: (row["n"], row["s"]) for row in rows}
            for rows in answers
        ]

    # The second look

    def differences(
        self, scratch: Psql, then: Mapping[str, Table], pairs: Sequence[Pair], sums: Sequence[dict[Any, Any]]
    ) -> list[Difference]:
        """Each table's difference.

        :param then: the backup's tables.
        :param sums: what :meth:`sums` said of the database, for each of ``pairs``.
        """
        before = self.sums(scratch, pairs, False)
        scratch.do(f"CREATE SCHEMA {_OURS}")
        jobs = []
        for pair, one, other in zip(pairs, sums, before):
            wrong = one.get("error") or other.get("error")
            differing = [] if wrong else [r for r in {**one, **other} if one.get(r) != other.get(r)]
            jobs.append((pair, wrong, differing))
        with ThreadPoolExecutor(_WORKERS) as pool:
            found = list(pool.map(lambda job: self._difference(scratch, *job), jobs))
        found += self.whole([title for title in self.tables if title not in then])
        return found + self._only_then(scratch, [title for title in then if title not in self.tables], then)

    def _difference(self, scratch: Psql, pair: Pair, wrong: str | None, differing: list[int]) -> Difference:
        title = pair.now.title
        if wrong:
            return Difference(title, "unknown", note=f"it cannot be read: {wrong}")
        found = Difference(title, "key" if pair.key else "rows", 0, 0 if pair.key else None, 0)
        if differing:
            where = self.within(pair, differing)
            join = self._join_keys if pair.key else self._join_rows
            found = join(scratch, pair, where)
        added = [column for column in pair.now.writable if column not in pair.then.columns]
        if added:
            counts = ", ".join(f"count({name(column)}) AS {name(column)}" for column in added)
            found.columns = self.now.one(f"SELECT {counts} FROM {pair.now.source}")
        if len(added) < len(pair.now.columns):
            gone = [column for column in pair.then.columns if column not in pair.now.columns]
            notes = [f"columns that were dropped come back: {', '.join(gone)}"] if gone else []
            found.note = "; ".join([*notes, *self._other_types(pair)])
        return found

    @staticmethod
    def _other_types(pair: Pair) -> list[str]:
        """What people must hear of columns with another type: a value that is written otherwise counts as another."""
        now, then = pair.now.columns, pair.then.columns
        return [
            f"column {column} is {now[column]['full']}, and {then[column]['full']} in the backup: rows may count as"
            " changed for that alone"
            for column in pair.common
            if now[column]["full"] != then[column]["full"]
        ]

    def within(self, pair: Pair, differing: Sequence[int]) -> str:
        """The SQL that holds for rows in these ranges; the key's index helps where they lie together."""
        ends = self._ends.get(pair.now.title)
        of_range = pair.range_of(ends)
        if of_range == "0":
            return "true"
        where = f"{of_range} = ANY ({literal('{' + ','.join(map(str, sorted(differing))) + '}')}::int8[])"
        if ends and pair.range_column:
            width, low, high = _ranges(*ends)
            first, last = min(differing), max(differing)
            if low < first and last < high:
                where += f" AND {pair.range_column} BETWEEN {(first - 1) * width} AND {(last + 1) * width}"
        return where

    def _join_keys(self, scratch: Psql, pair: Pair, where: str) -> Difference:
        names = [f"k{number}" for number in range(len(pair.key))]
        types = [f"{k} {pair.key_type(column)}" for k, column in zip(names, pair.key)]
        columns = ", ".join([*types, "h int8", "c timestamptz", "u timestamptz"])
        copied, had, differs = (name(_OURS, f"{letter}{pair.number}") for letter in "lsd")
        created, updated = (
            pair.time(column) if column in pair.now.columns else "NULL"
            for column in (pair.times.created, pair.times.updated)
        )
        read = ", ".join([*pair.keys, pair.hash, created, updated])
        scratch.do(f"CREATE UNLOGGED TABLE {copied} ({columns})")
        kept = ", ".join(f"{expression} AS {k}" for expression, k in zip(pair.keys, names))
        keep = f"CREATE UNLOGGED TABLE {had} AS SELECT {kept}, {pair.hash} AS h FROM {pair.then.source} WHERE {where}"
        with ThreadPoolExecutor(1) as other:
            keeping = other.submit(scratch.do, keep)
            self.now.copy_to(scratch, f"SELECT {read} FROM {pair.now.source} WHERE {where}", copied)
            keeping.result()
        same = " AND ".join(f"l.{k} = s.{k}" for k in names)
        either = ", ".join(f"coalesce(l.{k}, s.{k}) AS {k}" for k in names)
        scratch.do(
            f"CREATE UNLOGGED TABLE {differs} AS SELECT {either}, CASE WHEN s.h IS NULL THEN 'inserted'"
            f" WHEN l.h IS NULL THEN 'deleted' ELSE 'changed' END AS kind, l.c, l.u FROM {copied} l"
            f" FULL JOIN {had} s ON {same} WHERE l.h IS DISTINCT FROM s.h",
            f"DROP TABLE {copied}, {had}",
        )
        # When an inserted row was written first, and when last; of a changed one, only the latter can be known.
        oldest = in_iso("min(CASE kind WHEN 'inserted' THEN coalesce(c, u) WHEN 'changed' THEN u END)")
        newest = in_iso("max(CASE kind WHEN 'inserted' THEN greatest(c, u) WHEN 'changed' THEN u END)")
        row = scratch.one(
            "SELECT count(*) FILTER (WHERE kind = 'inserted') AS inserted,"
            " count(*) FILTER (WHERE kind = 'changed') AS changed, count(*) FILTER (WHERE kind = 'deleted') AS deleted,"
            f" {oldest} AS oldest, {newest} AS newest FROM {differs}"
        )
        return self._timed(Difference(pair.now.title, "key", **row), pair)

    def _join_rows(self, scratch: Psql, pair: Pair, where: str) -> Difference:
        """Without a key: how many rows of the same content there are on each side."""
        copied, differs = (name(_OURS, f"{letter}{pair.number}") for letter in "ld")
        times = [pair.time(column) for column in (pair.times.created, pair.times.updated) if column in pair.now.columns]
        written = f"greatest({', '.join(times)})" if times else "NULL::timestamptz"
        scratch.do(f"CREATE UNLOGGED TABLE {copied} (h int8, n int8, c timestamptz, u timestamptz)")
        query = (
            f"SELECT h, count(*), min(w), max(w) FROM (SELECT {pair.hash} AS h, {written} AS w FROM {pair.now.source}"
            f" WHERE {where}) x GROUP BY h"
        )
        self.now.copy_to(scratch, query, copied)
        scratch.do(
            f"CREATE UNLOGGED TABLE {differs} AS SELECT coalesce(l.h, s.h) AS h, coalesce(l.n, 0) - coalesce(s.n, 0)"
            f" AS n, l.c, l.u FROM {copied} l FULL JOIN (SELECT {pair.hash} AS h, count(*) AS n FROM"
            f" {pair.then.source} WHERE {where} GROUP BY 1) s ON l.h = s.h WHERE l.n IS DISTINCT FROM s.n",
            f"DROP TABLE {copied}",
        )
        row = scratch.one(
            "SELECT coalesce(sum(n) FILTER (WHERE n > 0), 0) AS inserted,"
            " coalesce(-sum(n) FILTER (WHERE n < 0), 0) AS deleted,"
            f" {in_iso('min(c) FILTER (WHERE n > 0)')} AS oldest, {in_iso('max(u) FILTER (WHERE n > 0)')} AS newest"
            f" FROM {differs}"
        )
        return self._timed(Difference(pair.now.title, "rows", changed=None, **row), pair)

    @staticmethod
    def _timed(found: Difference, pair: Pair) -> Difference:
        found.by = pair.by if found.newest else None
        return found

    def whole(self, titles: Sequence[str]) -> list[Difference]:
        """Tables that the backup does not have: all their rows go."""
        found = []
        queries = []
        pairs = [Pair(0, self.tables[title], self.tables[title], self.times(title), self.server) for title in titles]
        for pair in pairs:
            table, times = pair.now, pair.times
            written = [pair.time(column) for column in (times.created, times.updated) if column in table.columns]
            least, most = (f"{f}({', '.join(written)})" if written else "NULL::timestamptz" for f in _ENDS)
            low, high = in_iso(f"min({least})"), in_iso(f"max({most})")
            queries.append(f"SELECT count(*) AS n, {low} AS low, {high} AS high FROM {table.source}")
        for pair, (row, *_) in zip(pairs, self.now.each(queries, tolerant=True) if queries else []):
            title = pair.now.title
            if "error" in row:
                found.append(Difference(title, "unknown", note=f"new, and cannot be read: {row['error']}"))
                continue
            by = pair.by if row["high"] else None
            found.append(Difference(title, "new", row["n"], 0, 0, row["low"], row["high"], by))
        return found

    def large_objects(self, scratch: Psql) -> list[Difference]:
        """What differs of the large objects, as one; nothing where all are as they were."""
        readable = self.now.one("SELECT has_table_privilege('pg_largeobject', 'SELECT') AS it")["it"]
        query = f"SELECT oid, {_CONTENT if readable else 0} AS h FROM pg_largeobject_metadata"
        copied = name(_OURS, "objects")
        scratch.do(f"CREATE UNLOGGED TABLE {copied} (oid oid, h numeric)")
        self.now.copy_to(scratch, query, copied)
        row = scratch.one(
            "SELECT count(*) FILTER (WHERE s.h IS NULL) AS inserted, count(*) FILTER (WHERE l.h <> s.h) AS changed,"
            " count(*) FILTER (WHERE l.h IS NULL) AS deleted, count(*) FILTER (WHERE l.h = s.h) AS same"
            f" FROM {copied} l FULL JOIN ({query}) s USING (oid)"
        )
        same = row.pop("same")
        if not readable and same:
            note = f"{row['inserted']:,} inserted, {row['deleted']:,} deleted; only a superuser can compare the others"
            return [Difference(LARGE_OBJECTS, "unknown", note=note)]
        return [Difference(LARGE_OBJECTS, "objects", **row, note=NOT_AS_FILES)] if any(row.values()) else []

    def _only_then(self, scratch: Psql, titles: Sequence[str], then: Mapping[str, Table]) -> list[Difference]:
        """Tables that were dropped since: their rows come back."""
        queries = [f"SELECT count(*) AS n FROM {then[title].source}" for title in titles]
        answers = scratch.each(queries) if queries else []
        return [Difference(title, "dropped", 0, 0, rows[0]["n"]) for title, rows in zip(titles, answers)]


_ENDS = ("least", "greatest")


def _ranges(least: int, greatest: int) -> tuple[int, int, int]:
    """How many keys a range has, and the ranges below the first and above the last key of now."""
    width = max(1, (greatest - least) // RANGES + 1)
    return width, least // width - 1, greatest // width + 1


def in_iso(moment: str) -> str:
    """The SQL of a ``timestamptz`` as ISO 8601 text in UTC; NULL for one outside of Python's calendar."""
    within = f"{moment} BETWEEN '0001-01-02' AND '9999-12-30'"
    return f'CASE WHEN {within} THEN to_char({moment}, \'YYYY-MM-DD"T"HH24:MI:SS.US"Z"\') END'


def would_drop(database: Psql, dropped: Iterable[tuple[str, str, str]]) -> dict[tuple[str, str, str], int | None]:
    """The rows that a down migration would destroy.

    :param dropped: schema, table, and column; the column is empty where the whole table goes.
    :return: rows of each table, or values that are not NULL in each column; None where that cannot be read.
    """
    asked = list(dropped)
    queries = [
        f"SELECT count({name(column) if column else '*'}) AS n FROM {name(schema, table)}"
        for schema, table, column in asked
    ]
    answers = database.each(queries, tolerant=True) if queries else []
    return {each: rows[0].get("n") if rows else None for each, rows in zip(asked, answers)}


def refuse_unknown_tables(only: Iterable[str], *sides: Mapping[str, object]) -> None:
    """
    :raises BalikError: a table that was asked for is on neither side.
    """
    for each in only:
        title = title_of(each)
        if not any(title in side for side in sides):
            raise BalikError(f"table {title}", "neither in the database nor in the backup", do="Correct its name.")
