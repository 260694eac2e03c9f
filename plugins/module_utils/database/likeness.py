"""What the live database has and a backup of it has not.

Much of it the release brought, and it rightly goes: that is told. What shows that the dump was made without owners,
privileges, indexes or schemas is refused, since the application could not work with the copy.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import BalikError
from .fitness import ANOTHER_PRODUCT, WITHOUT_INDEXES
from .script import Contents
from .task import Task

if TYPE_CHECKING:
    from psycopg import Connection

#: Kinds of things that ``pg_dump`` writes behind the rows.
_AFTER_ROWS = ("index", "key", "trigger", "policy")
_OWNS = "OWNER"
_TOLD = 10  # how many names a sentence may have
# What extensions brought is theirs, and comes back with them.
_MINE = """
nspname !~ '^pg_' and nspname <> 'information_schema' and not exists (
  select from pg_depend d where d.objid = o.oid and d.classid = %s::regclass and d.deptype = 'e')
"""
_RELATIONS = f"""
relations as (
  select o.*, nspname, o.oid::regclass::text as name from pg_class o join pg_namespace n on n.oid = relnamespace
  where relkind in ('r', 'p', 'f', 'v', 'm', 'S') and relpersistence <> 't' and {_MINE % "'pg_class'"}),
functions as (
  select o.*, o.oid::regprocedure::text as name from pg_proc o join pg_namespace n on n.oid = pronamespace
  where {_MINE % "'pg_proc'"}),
schemas as (
  select o.*, quote_ident(nspname) as name from pg_namespace o where {_MINE % "'pg_namespace'"})
"""
# Each with the relation that it belongs to. What a partition has from the whole is not counted again.
_THINGS = f"""
with {_RELATIONS}
select 'schema', nspname::text, null from schemas
union all select case when relkind in ('v', 'm') then 'view' else 'table' end, name, null
  from relations where relkind <> 'S'
union all select 'function', name, null from functions
union all select 'index', quote_ident(i.relname), r.name from pg_index x
  join relations r on r.oid = x.indrelid join pg_class i on i.oid = x.indexrelid
  where not i.relispartition and not exists (select from pg_constraint where conindid = i.oid and conrelid = r.oid)
union all select 'key', quote_ident(conname), r.name from pg_constraint k join relations r on r.oid = conrelid
  where contype in ('p', 'u', 'f', 'x') and conparentid = 0
union all select 'check', quote_ident(conname), r.name from pg_constraint k join relations r on r.oid = conrelid
  where contype = 'c' and coninhcount = 0
union all select 'trigger', quote_ident(tgname), r.name from pg_trigger join relations r on r.oid = tgrelid
  where not tgisinternal and tgparentid = 0
union all select 'policy', quote_ident(polname), r.name from pg_policy join relations r on r.oid = polrelid
"""
# Who may do what with which, also by default; PUBLIC is null. A schema `public` has its own defaults.
_POWERS = f"""
with {_RELATIONS}, objects as (
  select 'table' as kind, name, relowner as owner, relacl as acl, nspname, relname,
         case relkind when 'S' then 's'::"char" else 'r' end as type from relations
  union all select 'schema', name, nspowner, nspacl, nspname, null, 'n' from schemas
  union all select 'function', name, proowner, proacl, null, null, 'f' from functions
  union all select 'column', format('%I of %s', attname, name), relowner, attacl, nspname, relname, 'c'
    from pg_attribute join relations r on r.oid = attrelid where attacl is not null)
select kind, name, nspname, relname, pg_get_userbyid(owner), '{_OWNS}', true, false from objects where kind <> 'column'
union all
select kind, name, nspname, relname, case grantee when 0 then null else pg_get_userbyid(grantee) end, privilege_type,
       grantee = owner, grantee = 0 and (acl is null or kind = 'schema' and name = 'public' or exists (
         select from aclexplode(acldefault(type, owner)) d where d.grantee = 0 and d.privilege_type = a.privilege_type))
from objects, aclexplode(coalesce(acl, acldefault(type, owner))) a
"""
# Without those of the extensions, which come back with them.
_SCHEMAS = f"""
select nspname::text from pg_namespace o where {_MINE % "'pg_namespace'"}
and not exists (select from pg_extension e where e.extnamespace = o.oid)
"""
_MAY_ACT_AS = """
select r.rolname, a.rolname from pg_roles r, pg_roles a
where not r.rolsuper and r.rolname = any(%s::text[]) and a.rolname = any(%s::text[])
and pg_has_role(r.oid, a.oid, 'USAGE')
"""
_ORDINARY = "select rolname from pg_roles where not rolsuper and rolname = any(%s::text[])"


class _Power(NamedTuple):
    """One privilege of a role, or that it owns something.

    :param role: ``None`` for everybody.
    :param schema: and ``relation``, as they are called, where it is one.
    :param owners: it is the owner's.
    :param usual: everybody has it unless it was taken away.
    """

    kind: str
    name: str
    schema: str | None
    relation: str | None
    role: str | None
    privilege: str
    owners: bool
    usual: bool

    @property
    def what(self) -> tuple[str, str, str]:
        return self.kind, self.name, self.privilege

    @property
    def given(self) -> bool:
        """Whether a dump must say it: somebody granted it, or owns the thing."""
        return self.privilege == _OWNS or not (self.owners or self.usual)

    @property
    def said(self) -> str:
        what = f"{self.kind} {self.name}"
        return f"owner of {what}" if self.privilege == _OWNS else f"{self.privilege} on {what}"


def lacking(task: Task, copy: Connection[Any], live: Connection[Any], what: str) -> list[str]:
    """What the restored ``copy`` has not and the live database has, for people to hear.

    :raises BalikError: a role may do nothing any more of what it was granted or nothing is its own; a whole schema is
        missing; or all that is made behind the rows.
    """
    found, wanted = (_read(connection, _THINGS) for connection in (copy, live))
    schemas, expected = ([row[1] for row in rows if row[0] == "schema"] for rows in (found, wanted))
    _schemas(expected, schemas, what, task.accept)
    names = {row[1] for row in found if row[0] in ("table", "view")}
    there = set(found)
    gone = [row for row in wanted if row not in there and (row[2] is None or row[2] in names)]
    behind = [row for row in gone if row[0] in _AFTER_ROWS]
    if behind and not any(row[0] in _AFTER_ROWS for row in found) and not _accepted(WITHOUT_INDEXES, task.accept):
        raise BalikError(
            what,
            f"no index, key, trigger or policy at all (pg_dump --section?), not even {_listed(map(_said, behind))}",
            "those of the live database",
            f"Take a backup that has them. If it is right all the same, list '{WITHOUT_INDEXES}' in db_restore_accept.",
        )
    lost = _lost(copy, live, what, task.accept)
    told = [f"not in the backup: {_listed(map(_said, gone))}"] if gone else []
    return told + ([f"not allowed any more: {_listed(lost)}"] if lost else [])


def foreseen(
    task: Task, contents: Contents, live: Connection[Any], tables: set[tuple[str, str]], what: str
) -> list[str]:
    """The same of a backup that was read and not restored, as far as it can be known.

    :param tables: schema and name of each in the live database.
    """
    if not contents.names:
        return []
    _schemas(
        [row[0] for row in _read(live, _SCHEMAS)],
        contents.schemas | {name[0] for name in contents.names},
        what,
        task.accept,
    )
    powers = [_Power(*row) for row in _read(live, _POWERS)]
    given = [each for each in powers if each.given and (each.schema, each.relation) in contents.names]
    lost: list[_Power] = []
    for owns, named in (True, contents.owners), (False, contents.roles):
        those = [each for each in given if each.role and (each.privilege == _OWNS) == owns]
        acting = _acting(live, those, named)
        lost += [each for each in those if each.role in acting and not acting[each.role]]
    _roles(lost, given, what, task.accept)
    gone = [f"table {'.'.join(name)}" for name in sorted(tables - contents.names)]
    return [f"not in the backup: {_listed(gone)}"] if gone else []


def _schemas(wanted: Iterable[str], found: Iterable[str], what: str, accept: Sequence[str]) -> None:
    missing = [name for name in sorted(set(wanted) - set(found)) if not _accepted(f"schema {name}", accept)]
    if missing:
        raise BalikError(
            what,
            f"the live database's schemas are not in it: {', '.join(missing[:_TOLD])}",
            "all of its schemas",
            f"Take a backup of the whole database. If the release brought them, list 'schema {missing[0]}' (and so on)"
            " in db_restore_accept: they would be gone.",
        )


def _lost(copy: Connection[Any], live: Connection[Any], what: str, accept: Sequence[str]) -> list[str]:
    """What roles may do in the live database and could not in the copy, with what both have."""
    found, wanted = ([_Power(*row) for row in _read(each, _POWERS)] for each in (copy, live))
    names = {(each.kind, each.name) for each in found}
    # A column is found by its privileges, so that one without any is not: its table is.
    tables = {(each.schema, each.relation) for each in found if each.kind == "table"}
    given = [
        each
        for each in wanted
        if each.given
        and ((each.schema, each.relation) in tables if each.kind == "column" else (each.kind, each.name) in names)
    ]
    held: dict[str | None, set[tuple[str, str, str]]] = defaultdict(set)
    for each in found:
        held[each.role].add(each.what)
    acting = _acting(copy, given, {each.role for each in found if each.role})
    lost = [
        each
        for each in given
        if each.role in acting and not any(each.what in held[role] for role in (None, *acting[each.role]))
    ]
    _roles(lost, [each for each in given if each.role is None or each.what not in held[None]], what, accept)
    return [f"{each.role or 'PUBLIC'} ({each.said})" for each in lost]


def _acting(
    connection: Connection[Any], powers: Sequence[_Power], others: Iterable[str]
) -> dict[str | None, list[str]]:
    """For each role of ``powers`` that is no superuser, which of the ``others`` it may act as; for PUBLIC none."""
    roles = list({each.role for each in powers if each.role})
    acting: dict[str | None, list[str]] = {row[0]: [] for row in connection.execute(_ORDINARY, [roles])}
    for role, other in connection.execute(_MAY_ACT_AS, [roles, list(others)]):
        acting[role].append(other)
    return {**acting, None: []}


def _roles(lost: Sequence[_Power], given: Sequence[_Power], what: str, accept: Sequence[str]) -> None:
    """Refuses where a role loses all that it owns, or all that it was granted."""
    before: dict[tuple[str, bool], list[_Power]] = defaultdict(list)
    after: dict[tuple[str, bool], list[_Power]] = defaultdict(list)
    for powers, by in ((given, before), (lost, after)):
        for each in powers:
            by[each.role or "PUBLIC", each.privilege == _OWNS].append(each)
    all_lost = {key: each for key, each in after.items() if len(each) >= len(before[key])}
    refused = {key: each for key, each in all_lost.items() if not _accepted(f"role {key[0]}", accept)}
    if refused:
        said = [f"{role} loses {_listed([each.said for each in powers], 3)}" for (role, _), powers in refused.items()]
        raise BalikError(
            what,
            f"owners or privileges of the live database are not in it (pg_dump -O, -x?): {'; '.join(sorted(said)[:5])}",
            "those of the live database",
            "Take a backup that was made without -O and -x. If the release brought them, list"
            f" 'role {min(refused)[0]}' (and so on) in db_restore_accept.",
        )


def _read(connection: Connection[Any], query: str) -> list[tuple[Any, ...]]:
    """Everything is named with its schema, as in the other database."""
    with connection.transaction():
        connection.execute("SET LOCAL search_path = ''")
        return connection.execute(query).fetchall()  # type: ignore[arg-type]


def _accepted(difference: str, accept: Sequence[str]) -> bool:
    return difference in accept or ANOTHER_PRODUCT in accept


def _said(row: Sequence[Any]) -> str:
    kind, name, of = row
    return f"{kind} {name} of {of}" if of else f"{kind} {name}"


def _listed(names: Iterable[str], most: int = _TOLD) -> str:
    every = list(names)
    return ", ".join(every[:most]) + (f" and {len(every) - most} more" if len(every) > most else "")
