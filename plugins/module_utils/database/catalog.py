"""A database as the server's catalog describes it: read, created like another, made like another, marked."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import BalikError

try:
    from psycopg import sql
except ImportError:  # said by `check`, on the host where it is missing
    sql = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from psycopg import Connection

_RUN = re.compile(r"[A-Za-z0-9_-]{1,32}")
_MARK = "balik: "
_MARK_KEYS = {"run", "of"}
#: What :func:`marking` adds for a copy of a backup that the loss statement compares with.
COMPARED = {"for": "loss"}
# Their values are stored as a list of quoted names; given back as one text they would become one name.
_LISTS = ("local_preload_libraries", "search_path", "session_preload_libraries", "temp_tablespaces")
_READ = """
select to_jsonb(d) - 'datacl', pg_get_userbyid(d.datdba), pg_encoding_to_char(d.encoding), t.spcname,
       shobj_description(d.oid, 'pg_database'),
       array(select row_to_json(a) from (
           select pg_get_userbyid(grantor) as grantor,
                  case grantee when 0 then null else pg_get_userbyid(grantee) end as grantee,
                  privilege_type as privilege, is_grantable as grantable
           from aclexplode(coalesce(d.datacl, acldefault('d', d.datdba)))) a),
       array(select row_to_json(s) from (
           select r.rolname as role, split_part(c, '=', 1) as name, substr(c, strpos(c, '=') + 1) as value
           from pg_db_role_setting left join pg_roles r on r.oid = setrole, unnest(setconfig) c
           where setdatabase = d.oid) s)
from pg_database d join pg_tablespace t on t.oid = d.dattablespace where d.datname = %s
"""


@dataclass(frozen=True)
class Names:
    """The names that one run gives, so that whoever finds a database knows what it is.

    :param beside: the copy while it is restored.
    :param kept: the database that was live before the swap.
    :param aside: the restored one after an undo.
    """

    live: str
    beside: str
    kept: str
    aside: str


def names(database: str, run: str) -> Names:
    """Names for one run, each within PostgreSQL's 63 bytes.

    :raises BalikError: ``run`` cannot stand in a name.
    """
    if not _RUN.fullmatch(run):
        raise BalikError("the run's name", f"found {run!r}", "1 to 32 letters, digits, - and _")
    return Names(database, *(_named(database, f"__{part}_{run}") for part in ("restore", "before", "restored")))


def _named(database: str, ending: str) -> str:
    room = 63 - len(ending)
    raw = database.encode()
    if len(raw) > room:
        raw = raw[: room - 7].decode("utf-8", "ignore").encode()
        return f"{raw.decode()}~{hashlib.sha256(database.encode()).hexdigest()[:6]}{ending}"
    return database + ending


@dataclass(frozen=True)
class Database:
    """What belongs to a database and is in no dump of it (except with ``pg_dump --create``).

    :param row: its line of ``pg_database``; columns differ between versions.
    :param acl: sets of grantor, grantee (``None``: PUBLIC), privilege, grantable.
    :param settings: sets of role (``None``: all), name, value.
    """

    name: str
    row: dict[str, Any]
    owner: str
    encoding: str
    tablespace: str
    comment: str | None
    acl: frozenset[tuple[str, str | None, str, bool]]
    settings: frozenset[tuple[str | None, str, str]]

    @property
    def oid(self) -> int:
        """Its identity, which a rename does not change."""
        return int(self.row["oid"])

    @property
    def open(self) -> bool:
        """Whether it accepts connections."""
        return bool(self.row["datallowconn"])

    @property
    def mark(self) -> dict[str, Any]:
        """What this project wrote on it, or ``{}``."""
        return mark_of(self.comment)

    @property
    def carried(self) -> dict[str, object]:
        """What a restored copy must have in common with it."""
        return {
            "owner": self.owner,
            "privileges": sorted(self.acl, key=str),
            "settings": sorted(self.settings, key=str),
            "connection limit": self.row["datconnlimit"],
            "template flag": self.row["datistemplate"],
            "tablespace": self.tablespace,
        }


def find(connection: Connection[Any], name: str) -> Database | None:
    """The database of this name, or ``None``."""
    row = connection.execute(_READ, [name]).fetchone()
    if row is None:
        return None
    line, owner, encoding, tablespace, comment, acl, settings = row
    return Database(
        name,
        line,
        owner,
        encoding,
        tablespace,
        comment,
        frozenset((a["grantor"], a["grantee"], a["privilege"], a["grantable"]) for a in acl),
        frozenset((s["role"], s["name"], s["value"]) for s in settings),
    )


def marking(run: str, of: str, **more: object) -> str:
    """The comment that marks a database as this run's."""
    return _MARK + json.dumps({"run": run, "of": of, **more}, ensure_ascii=False, sort_keys=True)


def mark_of(comment: str | None) -> dict[str, Any]:
    """What :func:`marking` wrote, or ``{}`` for a comment of somebody else's."""
    if not (comment or "").startswith(_MARK):
        return {}
    try:
        found = json.loads((comment or "")[len(_MARK) :])
    except ValueError:
        return {}
    return found if isinstance(found, dict) and found.keys() >= _MARK_KEYS else {}


def is_compared(comment: str | None, of: str) -> bool:
    """Whether a database with this comment is a copy that ``of`` is compared with."""
    mark = mark_of(comment)
    return mark.get("of") == of and mark.items() >= COMPARED.items()


def comment_on(name: str, comment: str | None) -> sql.Composed:
    """``COMMENT ON DATABASE``; ``None`` takes the comment away."""
    return sql.SQL("COMMENT ON DATABASE {} IS {}").format(sql.Identifier(name), sql.Literal(comment))


# Where what somebody makes in a database is listed first; what needs one of these is not looked for.
_MADE = (
    "class",
    "proc",
    "type",
    "namespace",
    "extension",
    "publication",
    "foreign_data_wrapper",
    "collation",
    "ts_dict",
)
#: Whether nobody has made anything in a database since it was created; what PostgreSQL brings has lower numbers.
#: Those of large objects are chosen by whoever makes them.
IS_EMPTY = "SELECT NOT EXISTS ({} UNION ALL SELECT FROM pg_largeobject_metadata) AS empty".format(
    " UNION ALL ".join(f"SELECT FROM pg_{each} WHERE oid >= 16384" for each in _MADE)
)


def create_like(connection: Connection[Any], live: Database, name: str, mark: str) -> None:
    """Creates an empty database with the encoding, collation, tablespace and owner of ``live``, for us alone."""
    row = live.row
    options = {"ENCODING": live.encoding, "LC_COLLATE": row["datcollate"], "LC_CTYPE": row["datctype"]}
    provider = row.get("datlocprovider", "c")
    locale = row.get("datlocale") or row.get("daticulocale")
    if provider == "i":
        options.update(LOCALE_PROVIDER="icu", ICU_LOCALE=locale)
        if row.get("daticurules"):
            options["ICU_RULES"] = row["daticurules"]
    elif provider == "b":
        options.update(LOCALE_PROVIDER="builtin", BUILTIN_LOCALE=locale)
    given = [sql.SQL(key + " ") + sql.Literal(value) for key, value in options.items()]  # type: ignore[arg-type]
    if live.tablespace != "pg_default":  # naming it takes a right that leaving it out does not
        given.append(sql.SQL("TABLESPACE ") + sql.Identifier(live.tablespace))
    connection.execute(
        sql.SQL("CREATE DATABASE {} WITH OWNER {} TEMPLATE template0 {}").format(
            sql.Identifier(name), sql.Identifier(live.owner), sql.SQL(" ").join(given)
        )
    )
    connection.execute(comment_on(name, mark))
    connection.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(sql.Identifier(name)))


def carry_over(connection: Connection[Any], live: Database, name: str) -> None:
    """Gives the database ``name`` the privileges, settings and limits of ``live``, and reads them again.

    :raises BalikError: something did not arrive.
    """
    database = sql.Identifier(name)
    with connection.transaction():
        connection.execute(
            sql.SQL("ALTER DATABASE {} WITH CONNECTION LIMIT {} IS_TEMPLATE {}").format(
                database, sql.Literal(live.row["datconnlimit"]), sql.Literal(live.row["datistemplate"])
            )
        )
        for role, setting, value in sorted(live.settings, key=str):
            of = sql.SQL("ROLE {} IN ").format(sql.Identifier(role)) if role else sql.SQL("")
            connection.execute(
                sql.SQL("ALTER {}DATABASE {} SET {} TO {}").format(
                    of, database, sql.Identifier(*setting.split(".")), _value(setting, value)
                )
            )
        connection.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM {}").format(database, sql.Identifier(live.owner)))
        for grantor, grantee, privilege, grantable in _in_order(live):
            if grantor != live.owner:
                connection.execute(sql.SQL("SET LOCAL ROLE {}").format(sql.Identifier(grantor)))
            connection.execute(
                sql.SQL("GRANT {} ON DATABASE {} TO {}{}").format(
                    sql.SQL(privilege),  # type: ignore[arg-type]
                    database,
                    sql.Identifier(grantee) if grantee else sql.SQL("PUBLIC"),
                    sql.SQL(" WITH GRANT OPTION" if grantable else ""),
                )
            )
            if grantor != live.owner:
                connection.execute("RESET ROLE")
    copy = find(connection, name)
    for what, wanted in live.carried.items():
        found = copy.carried[what] if copy else "no such database"
        if found != wanted:
            raise BalikError(f"{what} of {name}", f"found {found}", f"{wanted}, as of {live.name}")


def _value(setting: str, value: str) -> sql.Composable:
    if setting in _LISTS and value:
        parts: Iterable[str] = next(csv.reader([value], skipinitialspace=True))
        return sql.SQL(", ").join(sql.Literal(part) for part in parts)
    return sql.Literal(value)


def _in_order(live: Database) -> list[tuple[str, str | None, str, bool]]:
    """Grants such that whoever grants has been given the right to do so before."""
    waiting, ordered = sorted(live.acl, key=str), []
    may = {(live.owner, privilege) for privilege in ("CREATE", "CONNECT", "TEMPORARY")}
    while waiting:
        ready = [grant for grant in waiting if (grant[0], grant[2]) in may]
        if not ready:
            break
        ordered += ready
        waiting = [grant for grant in waiting if grant not in ready]
        may |= {(grant[1], grant[2]) for grant in ready if grant[1] and grant[3]}
    return ordered
