"""PgBouncers in front of a database: paused for the moment of a swap, so that their clients wait and see no error."""

from __future__ import annotations

import csv
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec

from ..errors import BalikError
from . import keeper
from .access import Deadline, Programs, run

try:
    from psycopg import ProgrammingError, conninfo
except ImportError:  # said by `check`, on the host where it is missing
    conninfo = ProgrammingError = None  # type: ignore[assignment,misc]

HOLD = 30.0  # seconds for the swap; then the clients go on without it
_INSIST = 60.0  # seconds in which resuming is tried again
_KEYWORDS = {"host": "PGHOST", "port": "PGPORT", "user": "PGUSER", "password": "PGPASSWORD", "dbname": "PGDATABASE"}
_KEYWORDS |= {"sslmode": "PGSSLMODE", "sslrootcert": "PGSSLROOTCERT", "passfile": "PGPASSFILE"}


@dataclass(frozen=True)
class Pool:
    """What one PgBouncer calls the database.

    :param console: number of the PgBouncer in the settings, from 0.
    """

    console: int
    name: str
    mode: str
    paused: bool


def find(consoles: Sequence[str], database: str, programs: Programs) -> list[Pool]:
    """How each PgBouncer calls ``database``; one that it has not been asked for yet is not among them.

    :param consoles: connection strings of libpq for the admin consoles.
    :raises BalikError: a console does not answer, or the user may not give orders there.
    """
    found = []
    for number, console in enumerate(consoles):
        what = f"PgBouncer {number + 1} in db_restore_pgbouncer"
        listing = run(
            [*_psql(programs), "--csv", "-c", "SHOW DATABASES"],
            _environment(console, what),
            Deadline(10),
            f"{what}: SHOW DATABASES",
        )
        for row in csv.DictReader(listing.splitlines()):
            if row["database"] == database:
                found.append(Pool(number, row["name"], row.get("pool_mode") or "", row.get("paused") == "1"))
    return found


def ready(consoles: Sequence[str], database: str, programs: Programs) -> str:
    """What is said of the PgBouncers in front.

    :raises BalikError: see :func:`find`; or the database is paused already.
    """
    pools = find(consoles, database, programs)
    paused = sorted({pool.name for pool in pools if pool.paused})
    if paused:
        raise BalikError(
            f"PgBouncer: database {', '.join(paused)}",
            "is paused already",
            "not paused",
            f'If nobody paused it on purpose: RESUME "{paused[0]}" on its admin console.',
        )
    if not pools:
        return f"PgBouncer has no client of {database} yet" if consoles else ""
    slow = " (in session mode: clients that stay connected are ended after the limit)"
    named = ", ".join(f"{pool.name}{slow if pool.mode == 'session' else ''}" for pool in pools)
    return f"PgBouncer would be paused for the swap: {named}"


@contextmanager
def paused(consoles: Sequence[str], database: str, programs: Programs, limit: float) -> Iterator[dict[str, object]]:
    """No query gets through to ``database`` within; afterwards all go on, also if this process dies.

    Transactions that are not over within ``limit`` are left to whoever swaps, who ends them.

    :returns: ``paused`` (names), ``late`` (whether transactions were still open); ``ms`` afterwards.
    :raises BalikError: a console refused; everything is as it was.
    """
    pools = find(consoles, database, programs)
    told: dict[str, object] = {"paused": [pool.name for pool in pools], "late": False}
    if not pools:
        yield told
        return
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-c", _source()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # what ends us does not end it
        cwd="/",
    )
    assert process.stdin
    try:
        orders = {
            "pause": [_order("PAUSE", pool, consoles, programs) for pool in pools],
            "resume": [_order("RESUME", pool, consoles, programs) for pool in pools],
            "limit": limit,
            "hold": HOLD,
            "insist": _INSIST,
        }
        process.stdin.write(json.dumps(orders).encode() + b"\n")
        process.stdin.flush()
        answer = _answer(process, limit + 10)
        if answer not in ("paused", "late"):
            raise BalikError(
                f"PgBouncer: PAUSE of {', '.join(pool.name for pool in pools)}",
                answer or "no answer",
                do="Nothing was swapped. The user of db_restore_pgbouncer must be one of PgBouncer's admin_users.",
            )
        told["late"] = answer == "late"
        yield told
    finally:
        with suppress(BrokenPipeError):
            process.stdin.close()
        if _answer(process, 10) != "resumed":  # it was killed, or insists: so do we
            for pool in pools:
                command, environment = _order("RESUME", pool, consoles, programs)
                with suppress(BalikError):  # not paused any more; else the next `check` says so
                    run(command, environment, Deadline(5), f"RESUME of {pool.name}")
        told["ms"] = round((time.monotonic() - began) * 1000)
        with suppress(subprocess.TimeoutExpired):
            process.wait(1)


def _answer(process: subprocess.Popen[bytes], limit: float) -> str:
    assert process.stdout
    if not select.select([process.stdout], [], [], limit)[0]:
        return ""
    return process.stdout.readline().decode().strip()


def _source() -> str:
    """The keeper's own text, wherever this collection was loaded from."""
    spec = find_spec(keeper.__name__)
    assert spec
    return spec.loader.get_source(keeper.__name__)  # type: ignore[union-attr,no-any-return]


def _order(verb: str, pool: Pool, consoles: Sequence[str], programs: Programs) -> tuple[list[str], dict[str, str]]:
    name = pool.name.replace('"', '""')
    what = f"PgBouncer {pool.console + 1} in db_restore_pgbouncer"
    return [*_psql(programs), "-c", f'{verb} "{name}"'], _environment(consoles[pool.console], what)


def _psql(programs: Programs) -> list[str]:
    return [programs["psql"], "-X", "-w", "-q"]


def _environment(console: str, what: str) -> dict[str, str]:
    try:
        given = conninfo.conninfo_to_dict(console)
    except ProgrammingError:
        raise BalikError(
            what,
            "not a connection string",
            "such as host=/run/postgresql port=6432 user=pgbouncer",
            "Write it as libpq does: keyword=value.",
        ) from None
    unknown = sorted(set(given) - set(_KEYWORDS))
    if unknown:
        raise BalikError(what, f"keywords {', '.join(unknown)}", ", ".join(_KEYWORDS))
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PG")}
    named = {_KEYWORDS[key]: str(value) for key, value in {"dbname": "pgbouncer", **given}.items()}
    return {**environment, **named, "PGCONNECT_TIMEOUT": "5", "LC_ALL": "C.UTF-8"}
