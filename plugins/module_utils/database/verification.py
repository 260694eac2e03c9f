"""Whether a restored copy is what the backup holds, and sound: rows, checksums, constraints, indexes, questions.

A table's rows are read out of the copy as ``pg_dump`` reads them, and have the checksum of what the backup holds, in
whatever order. Where they differ, only their spelling may do so (another time zone, an older server's way to write a
number): then the backup's rows are read once more, by the server, into a temporary table, and compared as values.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BalikError
from . import backup
from .access import Access, Deadline, Programs, complaint, first_line, limited, run, too_long
from .definition import Table, table
from .fitness import TABLES, same_product
from .likeness import lacking
from .rows import RowSum
from .script import CHUNK, Block, Contents, codec_of
from .task import Task, scalar, unwatched

try:
    import psycopg
    from psycopg import sql
except ImportError:  # said by `check`, on the host where it is missing
    psycopg = sql = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from psycopg import Connection, Copy

_SMALL = 20_000  # rows that are read within one session; above, a process of its own is faster
# As pg_dump asks for rows, and without the server's liking to begin in the middle of a table.
_AS_DUMPED = {
    "datestyle": "ISO",
    "intervalstyle": "postgres",
    "extra_float_digits": "3",
    "bytea_output": "hex",
    "synchronize_seqscans": "off",
    "row_security": "off",
}
_INVALID = """
select i.indexrelid::regclass::text from pg_index i join pg_class c on c.oid = i.indexrelid
where c.relkind = 'i' and not (i.indisvalid and i.indisready and i.indislive)
"""
_NOT_VALID = "select conname || ' on ' || conrelid::regclass from pg_constraint where not convalidated order by 1"
# Tables that may have rows of their own and are in no COPY of the backup, nor is what they are partitions of.
_NOT_COPIED = f"""
select format('%%I.%%I', n.nspname, c.relname) from pg_class c join pg_namespace n on n.oid = c.relnamespace
where c.relkind = 'r' and (n.nspname, c.relname) in ({TABLES})
and not exists (select from unnest(%s::text[]) b where to_regclass(b) = c.oid
  or to_regclass(b) in (select relid from pg_partition_ancestors(c.oid)))
order by 1
"""
# COPY takes no rows out of one; its partitions' rows stand under its name where the dump was made so.
_PARTITIONED = "select b from unnest(%s::text[]) b join pg_class c on c.oid = to_regclass(b) where c.relkind = 'p'"
_AMCHECK = "select default_version from pg_available_extensions where name = 'amcheck'"
_OUR_SCHEMA = "balik_amcheck"


def prove(
    task: Task, copy: str, contents: Contents, path: Path, kind: str, programs: Programs, deadline: Deadline
) -> dict[str, Any]:
    """Compares the database ``copy`` with the backup and with the live database; what was found.

    :raises BalikError: a difference, or something that is not sound.
    """
    with task.access.connect(copy) as connection:
        names = {tuple(row) for row in connection.execute(TABLES)}
        if len(names) != contents.tables:
            raise BalikError(
                f"the copy restored from {path}", f"{len(names)} tables", f"{contents.tables}, as in the backup"
            )
        if not names:
            raise BalikError(str(path), "it holds no table at all", "a dump of the whole database", backup.ANOTHER)
        with task.access.connect(task.database) as live:
            same_product(names, {tuple(row) for row in live.execute(TABLES)}, str(path), task.accept)
            lacks = lacking(task, connection, live, f"the copy restored from {path}")
        broken = [row[0] for row in connection.execute(_INVALID)]
        if broken:
            raise BalikError(f"the copy restored from {path}", f"invalid indexes: {', '.join(broken[:10])}", "none")
        not_valid = [row[0] for row in connection.execute(_NOT_VALID)]
        # All of them, where no comparison was wanted.
        left = not_copied(connection, contents.blocks if task.compare else [])
    compared = same_rows(task, copy, contents, path, kind, programs, deadline) if task.compare else 0
    checked = amcheck(task, copy, programs, deadline)
    return {
        "rows": contents.rows,
        "tables": contents.tables,
        "tables_compared": compared,
        "tables_not_compared": left,
        "lacks": lacks,
        "constraints_not_valid": not_valid,
        "amcheck": checked,
        "checks": hold(task, copy),
    }


def same_rows(
    task: Task, copy: str, contents: Contents, path: Path, kind: str, programs: Programs, deadline: Deadline
) -> int:
    """Compares each table's rows with the backup's; how many tables.

    :raises BalikError: they differ; which tables, and how many rows.
    """
    by_table: dict[str, list[Block]] = {}
    for block in contents.blocks:
        by_table.setdefault(block.table, []).append(block)
    settings = {**_AS_DUMPED, "client_encoding": contents.encoding or "UTF8"}
    with task.access.connect(copy) as connection:
        partitioned = {row[0] for row in connection.execute(_PARTITIONED, [list(by_table)])}
    alone = [each[0] for table, each in by_table.items() if len(each) == 1 and table not in partitioned]
    large = [block for block in alone if block.rows > _SMALL]
    small = [block for block in alone if block.rows <= _SMALL]
    with ThreadPoolExecutor(task.workers) as pool:
        begun = [
            pool.submit(_sum_alone, task.access, copy, block, programs, deadline, settings)
            for block in sorted(large, key=lambda block: -block.rows)
        ]
        sums = dict(zip((id(block) for block in sorted(large, key=lambda block: -block.rows)), begun))
        with task.access.connect(copy) as connection:
            _set(connection, settings)
            in_session = {id(block): _sum(connection, block, deadline) for block in small}
        found = {**in_session, **{key: future.result() for key, future in sums.items()}}
    unsure = {table for table, blocks in by_table.items() if found.get(id(blocks[0])) != blocks[0].sum}
    if unsure:
        _same_values(task, copy, contents, unsure, path, kind, programs, deadline)
    return len(by_table)


def not_copied(connection: Connection[Any], blocks: Sequence[Block]) -> list[str]:
    """The tables of a restored copy whose rows are in none of the backup's ``blocks``, and so cannot be compared."""
    return [row[0] for row in connection.execute(_NOT_COPIED, [[block.table for block in blocks]])]


def uncopied(contents: Contents) -> list[str]:
    """The same of a backup that was read and not restored; also a partitioned table without partitions."""
    copied = {block.table for block in contents.blocks}
    # Where the rows of partitions stand under the name of the whole (pg_dump --load-via-partition-root).
    copied |= {each for each, parent in contents.partitions.items() if parent in copied}
    known: set[tuple[str, str]] = set()
    for text in copied.union(contents.partitions.values()):
        with suppress(BalikError):  # a name without its schema is none of those
            known.add(table(text))
    return [Table(*name).said for name in sorted(contents.names - known)]


def not_compared(tables: Sequence[str], compare: bool) -> list[str]:
    """What people must hear of tables whose rows were not compared with the backup; nothing where there are none."""
    if not tables:
        return []
    more = f" and {len(tables) - 10} more tables" if len(tables) > 10 else ""
    why = (
        "the backup has them otherwise than by COPY as pg_dump writes it (pg_dump --inserts?), or without rows"
        if compare
        else "db_restore_compare is false"
    )
    return [f"NOT compared with the backup's rows: {', '.join(tables[:10])}{more}, since {why}"]


def _out(block: Block) -> str:
    return f"COPY {block.table} {block.columns} TO STDOUT"


def _set(connection: Connection[Any], settings: dict[str, str]) -> None:
    for name, value in settings.items():
        connection.execute("select set_config(%s, %s, false)", [name, value])


def _sum(connection: Connection[Any], block: Block, deadline: Deadline) -> str:
    if not deadline.left():
        raise too_long(f"comparing {block.table}", deadline)
    found = RowSum()
    with connection.cursor().copy(_out(block)) as rows:  # type: ignore[arg-type]
        for row in rows:
            found.add(bytes(row))
    return found.text()


def _sum_alone(
    access: Access, database: str, block: Block, programs: Programs, deadline: Deadline, settings: dict[str, str]
) -> str:
    """The same through psql, which hands on a hundred megabytes a second."""
    found, what = RowSum(), f"comparing {block.table}"
    environment = {**access.environment(database, settings), "PGCLIENTENCODING": settings["client_encoding"]}
    statement = _out(block).encode(codec_of(settings["client_encoding"]))  # psql hands it on as it is
    command: list[str | bytes] = [programs["psql"], "-X", "-w", "-q", "-v", "ON_ERROR_STOP=1", "-c", statement]
    with tempfile.TemporaryFile() as err:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=err, env=environment
        )
        assert process.stdout
        with limited(process, deadline) as over, process.stdout:
            for chunk in iter(lambda: process.stdout.read(CHUNK), b""):  # type: ignore[union-attr]
                found.feed(chunk)
            code = process.wait()
        if over.is_set():
            raise too_long(what, deadline)
        if code:
            raise BalikError(what, f"psql ended with {code}: {complaint(err)}")
    return found.text()


class Staged:
    """Takes the wanted tables' rows out of a backup into temporary tables of one session."""

    def __init__(self, connection: Connection[Any], wanted: Callable[[str], bool]) -> None:
        self._connection, self._wanted = connection, wanted
        self.stages: dict[str, tuple[str, str]] = {}  # table → (temporary table, columns)
        self._copy: Copy | None = None
        self._manager: Any = None

    def sql(self, text: bytes) -> None:
        """The copy has it already."""

    def rows(self, block: Block, text: bytes) -> None:
        if not self._wanted(block.table):
            return
        if self._copy is None:
            self._begin(block)
        assert self._copy
        self._copy.write(text)

    def end(self, block: Block) -> None:
        if self._manager:
            self._manager.__exit__(None, None, None)
            self._manager = self._copy = None

    def _begin(self, block: Block) -> None:
        columns = block.columns[1:-1] or "*"
        if block.table not in self.stages:
            name = f"pg_temp.balik_{len(self.stages)}"
            self.stages[block.table] = (name, columns)
            self._connection.execute(
                f"CREATE TEMP TABLE {name[8:]} AS SELECT {columns} FROM {block.table} WITH NO DATA"  # type: ignore[arg-type]
            )
        stage = self.stages[block.table][0]
        self._manager = self._connection.cursor().copy(f"COPY {stage} FROM STDIN")  # type: ignore[arg-type]
        self._copy = self._manager.__enter__()


def _same_values(
    task: Task,
    copy: str,
    contents: Contents,
    unsure: set[str],
    path: Path,
    kind: str,
    programs: Programs,
    deadline: Deadline,
) -> None:
    """Compares as values what differs as text."""
    with task.access.connect(copy) as connection, unwatched(connection):
        _set(connection, {**_AS_DUMPED, "client_encoding": contents.encoding or "UTF8"})
        staged = Staged(connection, unsure.__contains__)
        backup.inspect(path, kind, programs, deadline, sink=staged)
        wrong = []
        for table, (stage, columns) in staged.stages.items():
            connection.execute("select set_config('statement_timeout', %s, false)", [f"{int(deadline.left()) + 1}s"])
            # COPY reads a parent without its children; a partitioned table has no rows but theirs.
            kind = scalar(connection, "select relkind from pg_class where oid = %s::regclass", table)
            source = table if kind == "p" else f"ONLY {table}"
            found, wanted = (fingerprint(connection, rows, columns) for rows in (source, stage))
            if found != wanted:
                wrong.append(f"{table} ({found[0]:,} rows; {wanted[0]:,} in the backup)")
    if wrong:
        raise BalikError(
            f"the copy restored from {path}",
            f"not the backup's rows in {', '.join(wrong[:10])}",
            "the same rows",
            "Does something in the database change rows as they are inserted (a rule, an event trigger)?",
        )


def fingerprint(connection: Connection[Any], table: str, columns: str = "*") -> tuple[int, str]:
    """How many rows, and the sum of a 64-bit hash of each, whatever their order.

    :param table: as SQL.
    :param columns: as SQL.
    """
    row = connection.execute(
        f"select count(*), coalesce(sum(hashtextextended(x::text, 0)::numeric), 0)::text"  # type: ignore[arg-type]
        f" from (select {columns} from {table}) x"
    ).fetchone()
    assert row
    return int(row[0]), str(row[1])


def amcheck(task: Task, copy: str, programs: Programs, deadline: Deadline) -> str:
    """Has ``pg_amcheck`` read every table and index, where server and role have it; what came of it.

    :raises BalikError: it found something.
    """
    program = Path(programs["pg_amcheck"])
    if task.amcheck == "never":
        return "not asked for"
    if not program.exists():
        return f"not done: no pg_amcheck in {program.parent}"
    with task.access.connect(copy) as connection:
        if not scalar(connection, _AMCHECK):
            return "not done: the server has no extension amcheck"
        if not scalar(connection, "select current_setting('is_superuser')::bool"):
            return "not done: it takes a superuser"
        mine = not scalar(connection, "select true from pg_extension where extname = 'amcheck'")
        flags = ["--heapallindexed"] if task.amcheck == "heapallindexed" else []
        command = [str(program), "-w", "-j", str(task.workers), *flags, "--database", _pattern(copy)]
        with unwatched(connection):
            if mine:
                connection.execute(f"CREATE SCHEMA {_OUR_SCHEMA}")  # type: ignore[arg-type]
                connection.execute(f"CREATE EXTENSION amcheck SCHEMA {_OUR_SCHEMA}")  # type: ignore[arg-type]
            run(command, task.access.environment(task.maintenance), deadline, f"pg_amcheck of {copy}")
            if mine:
                connection.execute("DROP EXTENSION amcheck")
                connection.execute(f"DROP SCHEMA {_OUR_SCHEMA}")  # type: ignore[arg-type]
    return "sound, every heap tuple indexed" if flags else "sound"


def _pattern(name: str) -> str:
    """A name as the pattern that matches it alone."""
    return '"' + name.replace('"', '""') + '"'


def hold(task: Task, database: str) -> str:
    """Asks the plan's own questions, in a transaction that cannot write."""
    with task.access.connect(database) as connection:
        connection.read_only = True
        for number, asked in enumerate(task.checks, 1):
            what = f"check {asked.get('name') or number} in {database}"
            try:
                with connection.transaction():
                    connection.execute("SET LOCAL statement_timeout = '60s'")
                    row = connection.execute(asked["query"]).fetchone()
            except psycopg.Error as error:
                raise BalikError(what, first_line(error), do="Correct its query in db_restore_checks.") from None
            found = row[0] if row else None
            if not _equal(found, asked["expect"]):
                raise BalikError(what, f"found {str(found)[:80]}", str(asked["expect"]))
    return f"{len(task.checks)} checks hold"


def _equal(found: object, expected: object) -> bool:
    if isinstance(found, bool) or isinstance(expected, bool):
        return str(found).lower() == str(expected).lower()
    one, other = str(found), str(expected)
    if not (isinstance(found, str) and isinstance(expected, str)):  # a version is no number: 1.10 is not 1.1
        with suppress(ArithmeticError):
            return Decimal(one) == Decimal(other)
    return one == other
