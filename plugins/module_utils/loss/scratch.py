"""A backup loaded into a database of its own, without its indexes and constraints, to be compared with and dropped."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..database.catalog import COMPARED, IS_EMPTY, is_compared, marking
from ..database.space import estimate, human
from ..errors import BalikError
from .loading import load
from .psql import Psql, literal, name

_LONGEST_NAME = 63
_LOCAL = ("", "localhost", "127.0.0.1", "::1")
# The copy need not survive a crash: without a log of its writes, the disk has half of a large table to write. Each
# costs a file that is synced, so small ones stay as they are; and so do those that our role may not alter.
_LARGE_BYTES = 8 * 1024**2
_LARGE = """
SELECT format('%I.%I', n.nspname, c.relname) AS title FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND c.relpersistence = 'p' AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
  AND c.relpages * current_setting('block_size')::int8 >= {bytes}
"""
_UNLOGGED = "DO $balik$ BEGIN ALTER TABLE {} SET UNLOGGED; EXCEPTION WHEN OTHERS THEN NULL; END $balik$"


def scratch_name(database: str, run_id: str) -> str:
    """``lawyers_hub__loss_20260110T130000Z-3f9a``, within PostgreSQL's 63 bytes."""
    ending = f"__loss_{run_id}"
    return database.encode()[: _LONGEST_NAME - len(ending)].decode("utf-8", "ignore") + ending


def check_space(server: Psql, database: str) -> str:
    """Says what the copy needs and that it is there.

    :raises BalikError: the disk is too small, or cannot be seen from here: filling it would stop the live database.
    """
    found = server.one(
        # Who may not know the folder is told so by an error; a missing one is the answer that is wanted.
        "SELECT pg_database_size(oid) AS size, CASE WHEN pg_has_role('pg_read_all_settings', 'USAGE')"
        " THEN current_setting('data_directory', true) END AS data,"
        " pg_tablespace_location(dattablespace) AS place, pg_size_bytes(current_setting('max_wal_size')) AS wal"
        f" FROM pg_database WHERE datname = {literal(database)}"
    )
    wanted = estimate(found["size"], 0) + found["wal"]
    place = Path(found["place"] or found["data"] or "/nonexistent")
    host = server.access.host
    if not (host in _LOCAL or host.startswith("/")) or not os.access(place, os.X_OK):
        raise BalikError(
            f"the disk of {server.access.where}",
            "its free space cannot be seen from here",
            f"about {human(wanted)} free for a copy of {database}",
            "If there is room: rollback_loss: {exact: always}",
        )
    disk = os.statvfs(place)
    free = disk.f_bavail * disk.f_frsize
    if wanted > free:
        raise BalikError(
            f"the disk of {place}",
            f"{human(free)} free",
            f"about {human(wanted)} for a copy of {database} to compare with",
            "Make room, or if the estimate is wrong: rollback_loss: {exact: always}",
        )
    return f"about {human(wanted)} needed, {human(free)} free"


@contextmanager
def loaded(server: Psql, database: str, run_id: str, path: Path, jobs: int) -> Iterator[Psql]:
    """The backup as a database, dropped at the end whatever happens.

    :param server: a session that may create databases.
    :raises BalikError: it cannot be created or loaded.
    """
    beside = scratch_name(database, run_id)
    drop_leftovers(server, database, beside)
    like = server.one(
        "SELECT pg_encoding_to_char(encoding) AS encoding, datcollate, datctype, spcname AS tablespace,"
        " CASE WHEN pg_has_role(datdba, 'USAGE') THEN pg_get_userbyid(datdba) ELSE current_user END AS owner"
        f" FROM pg_database d JOIN pg_tablespace s ON s.oid = d.dattablespace WHERE datname = {literal(database)}"
    )
    mark = marking(run_id, database, **COMPARED)
    # The owner's, as the restored copy will be: a plain dump gives its tables to who may create in that database only.
    creating = (
        f"CREATE DATABASE {name(beside)} OWNER {name(like['owner'])} TEMPLATE template0"
        f" ENCODING {literal(like['encoding'])}"
        f" LC_COLLATE {literal(like['datcollate'])} LC_CTYPE {literal(like['datctype'])}"
    )
    if like["tablespace"] != "pg_default":  # naming it takes a right that leaving it out does not
        creating += f" TABLESPACE {name(like['tablespace'])}"
    server = server.to(server.database, writes=True)
    server.do(creating)
    try:
        server.do(
            f"COMMENT ON DATABASE {name(beside)} IS {literal(mark)}",
            f"REVOKE ALL ON DATABASE {name(beside)} FROM PUBLIC",
        )
        scratch = server.to(beside, writes=True)
        with scratch.kept_open():
            large = [row["title"] for row in server.to(database).rows(_LARGE.format(bytes=_LARGE_BYTES))]
            load(scratch, path, jobs, [_UNLOGGED.format(title) for title in large])
            yield scratch
    finally:
        with suppress(BalikError):  # the error that brought us here is the one to tell; the next start drops it
            _drop(server.afterwards(), beside)


def drop_leftovers(server: Psql, database: str, beside: str) -> list[str]:
    """Drops what a killed run has left, and nobody is using; the names.

    :param beside: the name of ours, which may have been left before it was marked; it is empty then.
    """
    found = server.rows(
        "SELECT datname, shobj_description(d.oid, 'pg_database') AS comment FROM pg_database d WHERE datname LIKE"
        " '%\\_\\_loss\\_%' AND NOT EXISTS (SELECT FROM pg_stat_activity a WHERE a.datid = d.oid)"
    )
    left = [
        row["datname"]
        for row in found
        if is_compared(row["comment"], database)
        or (row["datname"] == beside and row["comment"] is None and server.to(beside).one(IS_EMPTY)["empty"])
    ]
    for each in left:
        _drop(server.to(server.database, writes=True), each)
    return left


def _drop(server: Psql, database: str) -> None:
    server.do(f"DROP DATABASE IF EXISTS {name(database)} WITH (FORCE)")
