"""A table as the catalog describes it: what it is made of, what hangs on it, and how one becomes like another."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import BalikError

try:
    from psycopg import sql
except ImportError:  # said by `check`, on the host where it is missing
    sql = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from psycopg import Connection

_PART = re.compile(r'"((?:[^"]|"")+)"|([^".]+)')
# One object per table, so that two tables, or the same one before and after, are compared as a whole.
_READ = """
select jsonb_build_object(
  'structure', jsonb_build_object(
    'columns', (select coalesce(jsonb_agg(jsonb_build_object(
        'name', attname, 'type', format_type(atttypid, atttypmod), 'not_null', attnotnull,
        'default', pg_get_expr(adbin, adrelid), 'identity', attidentity, 'generated', attgenerated,
        'collation', (select case when attcollation <> typcollation then collname end
                      from pg_type t left join pg_collation l on l.oid = attcollation where t.oid = atttypid),
        'comment', col_description(attrelid, attnum)) order by attnum), '[]')
      from pg_attribute left join pg_attrdef on adrelid = attrelid and adnum = attnum
      where attrelid = c.oid and attnum > 0 and not attisdropped),
    'constraints', (select coalesce(jsonb_object_agg(conname, pg_get_constraintdef(oid)), '{{}}')
      from pg_constraint where conrelid = c.oid and contype in ('c', 'u', 'p', 'x', 'f')),
    'indexes', (select coalesce(jsonb_object_agg(i.relname, pg_get_indexdef(x.indexrelid)
        || case when x.indisvalid or i.relkind = 'I' then '' else ' (invalid)' end), '{{}}')
      from pg_index x join pg_class i on i.oid = x.indexrelid
      where x.indrelid = c.oid and not exists (select from pg_constraint where conindid = i.oid and conrelid = c.oid)),
    'triggers', (select coalesce(jsonb_object_agg(tgname, jsonb_build_array(pg_get_triggerdef(oid), tgenabled)), '{{}}')
      from pg_trigger where tgrelid = c.oid and not tgisinternal),
    'rules', (select coalesce(jsonb_object_agg(rulename, jsonb_build_array(pg_get_ruledef(oid), ev_enabled)), '{{}}')
      from pg_rewrite where ev_class = c.oid and rulename <> '_RETURN'),
    'policies', (select coalesce(jsonb_object_agg(polname, jsonb_build_array(polcmd, polpermissive,
        array(select coalesce(rolname, 'public') from unnest(polroles) r left join pg_roles o on o.oid = r order by 1),
        pg_get_expr(polqual, polrelid), pg_get_expr(polwithcheck, polrelid))), '{{}}')
      from pg_policy where polrelid = c.oid),
    'row_security', jsonb_build_array(relrowsecurity, relforcerowsecurity)),
  'around', jsonb_build_object(
    'kind', relkind, 'owner', pg_get_userbyid(relowner), 'comment', obj_description(c.oid, 'pg_class'),
    'privileges', array(select a::text from unnest(relacl) a order by 1),
    'options', reloptions, 'persistence', relpersistence, 'replica identity', relreplident,
    'publications', (select coalesce(jsonb_object_agg(pubname, {published}), '{{}}')
      from pg_publication_rel join pg_publication p on p.oid = prpubid where prrelid = c.oid),
    'statistics', (select coalesce(jsonb_object_agg(format('%%I.%%I', s.nspname, stxname), jsonb_build_object(
        'made', pg_get_statisticsobjdef(x.oid), 'target', coalesce(stxstattarget, -1),
        'owner', pg_get_userbyid(stxowner), 'comment', obj_description(x.oid, 'pg_statistic_ext'))), '{{}}')
      from pg_statistic_ext x join pg_namespace s on s.oid = stxnamespace where stxrelid = c.oid),
    'parents', (select coalesce(jsonb_agg(inhparent::regclass::text order by inhseqno), '[]')
      from pg_inherits where inhrelid = c.oid),
    'children', (select coalesce(jsonb_agg(inhrelid::regclass || coalesce(' ' || pg_get_expr(relpartbound, k.oid), '')
        order by inhrelid::regclass::text), '[]')
      from pg_inherits join pg_class k on k.oid = inhrelid where inhparent = c.oid),
    'views', (select coalesce(jsonb_agg(distinct ev_class::regclass::text), '[]')
      from pg_depend d join pg_rewrite r on r.oid = d.objid
      where d.classid = 'pg_rewrite'::regclass and d.refobjid = c.oid and ev_class <> c.oid),
    'referenced by', (select coalesce(jsonb_object_agg(conrelid::regclass || ' ' || conname, pg_get_constraintdef(oid)),
        '{{}}') from pg_constraint where confrelid = c.oid and conrelid <> c.oid)))
from pg_class c join pg_namespace n on n.oid = relnamespace where nspname = %s and relname = %s
"""
_SEQUENCES = """
select attname, s.oid::regclass::text from pg_depend d join pg_class s on s.oid = d.objid and s.relkind = 'S'
join pg_attribute on attrelid = refobjid and attnum = refobjsubid
where d.classid = 'pg_class'::regclass and d.refobjid = %s::regclass and deptype in ('a', 'i')
"""
# Which columns and rows of a table a publication tells; from PostgreSQL 15 on it need not be all.
_PUBLISHED = """jsonb_build_array(
        (select jsonb_agg(attname order by attnum) from pg_attribute
          where attrelid = prrelid and attnum = any(prattrs)),
        pg_get_expr(prqual, prrelid))"""
_PUBLISHED_WHOLE = "'[null, null]'::jsonb"
_UNCHANGEABLE = ("type", "default", "identity", "generated", "collation", "not_null")


class Table(NamedTuple):
    """A table's schema and name, as they are, without quotes."""

    schema: str
    name: str

    @property
    def sql(self) -> str:
        """As SQL."""
        return ".".join('"' + part.replace('"', '""') + '"' for part in self)

    @property
    def said(self) -> str:
        """As a person reads it, and as :func:`table` takes it."""
        return ".".join(
            part if re.fullmatch(r'[^".]+', part) else f'"{part.replace(chr(34), chr(34) * 2)}"' for part in self
        )


def table(text: str, where: str = "db_restore_tables") -> Table:
    """Reads ``schema.name``; a part with a dot or a quote in it is quoted as in SQL. Capitals count.

    >>> table('"a.b".Skor')
    Table(schema='a.b', name='Skor')

    :raises BalikError: it is no such name.
    """
    parts, at = [], 0
    while at < len(text):
        found = _PART.match(text, at)
        if not found or (found.end() < len(text) and text[found.end()] != "."):
            break
        parts.append(found[1].replace('""', '"') if found[1] else found[2])
        at = found.end() + 1
    if len(parts) != 2 or at != len(text) + 1:
        raise BalikError(where, f"found {text!r}", 'a schema and a name: public.leaderboard, or "a.b".Skor')
    return Table(*parts)


def describe(connection: Connection[Any], wanted: Table) -> dict[str, Any]:
    """``structure`` and ``around`` of a table; ``{}`` when it is not there. The session's search_path must be empty."""
    published = _PUBLISHED if connection.info.server_version >= 150000 else _PUBLISHED_WHOLE
    row = connection.execute(_READ.format(published=published), wanted).fetchone()
    return dict(row[0]) if row else {}


def sequences(connection: Connection[Any], wanted: Table) -> dict[str, tuple[str, int, bool]]:
    """Column → its own sequence, the last value, and whether that was given out."""
    found = {}
    for column, name in connection.execute(_SEQUENCES, [wanted.sql]).fetchall():
        row = connection.execute(f"select last_value, is_called from {name}").fetchone()  # type: ignore[arg-type]
        assert row
        found[column] = (name, row[0], row[1])
    return found


def differences(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """What the structure ``found`` has that ``wanted`` has not, and the other way; comments do not count.

    :returns: ``column points: new``, ``index a_b: missing``, ``trigger t: another``.
    """
    return [f"{what} {name}: {how}" for what, name, how in _differ(found, wanted)] + (
        ["columns: in another order"] if _order(found, wanted) != _order(wanted, found) else []
    )


def _differ(found: dict[str, Any], wanted: dict[str, Any]) -> list[tuple[str, str, str]]:
    out = []
    kinds = {"columns": "column", "constraints": "constraint", "indexes": "index", "triggers": "trigger"}
    for kind, singular in {**kinds, "rules": "rule", "policies": "policy"}.items():
        here, there = _named(found[kind]), _named(wanted[kind])
        out += [(singular, name, "new") for name in here if name not in there]
        out += [(singular, name, "missing") for name in there if name not in here]
        out += [(singular, name, "another") for name in here if name in there and here[name] != there[name]]
    if found["row_security"] != wanted["row_security"]:
        out.append(("row", "security", "another"))
    return out


def _named(part: Any) -> dict[str, Any]:
    if isinstance(part, dict):
        return part
    return {column["name"]: {key: column[key] for key in _UNCHANGEABLE} for column in part}


def _order(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    names = {column["name"] for column in other["columns"]}
    return [column["name"] for column in one["columns"] if column["name"] in names]


def unchangeable(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """Those differences that :func:`before_rows` and :func:`after_rows` cannot take away."""
    have, want = ([column["name"] for column in each["columns"]] for each in (found, wanted))
    common = [name for name in want if name in have]
    out = [
        f"{what} {name}: {how}"
        for what, name, how in _differ(found, wanted)
        if what in ("rule", "policy", "row") or (what == "column" and how == "another")
    ]
    out += [
        f"column {column['name']}: new, with a sequence of its own"
        for column in found["columns"]
        if column["name"] not in want and "nextval(" in str(column["default"])
    ]
    if want[: len(common)] != common:
        out.append("columns: one that is missing stood before others, and can only be added at the end")
    return out + (["columns: in another order"] if common != [name for name in have if name in want] else [])


def before_rows(of: Table, found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """SQL that takes from the emptied table what ``wanted`` has not, and gives it the columns that it lacks."""
    ways = {
        "constraint": "ALTER TABLE {table} DROP CONSTRAINT {name}",
        "index": "DROP INDEX {schema}.{name}",
        "trigger": "DROP TRIGGER {name} ON {table}",
        "column": "ALTER TABLE {table} DROP COLUMN {name}",
    }
    gone = [(what, name) for what, name, how in _differ(found, wanted) if how in ("new", "another") and what in ways]
    # Foreign keys before the keys that they need, and all of them before the columns that they stand on.
    gone.sort(key=lambda each: (list(ways).index(each[0]), _rank(found, each[1])), reverse=False)
    out = [ways[what].format(table=of.sql, schema=_quoted(of.schema), name=_quoted(name)) for what, name in gone]
    missing = {name for what, name, how in _differ(found, wanted) if (what, how) == ("column", "missing")}
    for column in wanted["columns"]:
        if column["name"] in missing:
            out += _add(of, column)
    return out


def _rank(found: dict[str, Any], name: str) -> int:
    return 0 if str(found["constraints"].get(name, "")).startswith("FOREIGN KEY") else 1


def after_rows(of: Table, found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """SQL that gives the filled table the indexes, constraints and triggers of ``wanted``."""
    made = [(what, name) for what, name, how in _differ(found, wanted) if how in ("missing", "another")]
    out = [wanted["indexes"][name] for what, name in made if what == "index"]
    constraints = sorted((name for what, name in made if what == "constraint"), key=lambda name: -_rank(wanted, name))
    out += [
        f"ALTER TABLE {of.sql} ADD CONSTRAINT {_quoted(name)} {wanted['constraints'][name]}" for name in constraints
    ]
    for what, name in made:
        if what == "trigger":
            text, enabled = wanted["triggers"][name]
            out += [text, enabling(of, name, enabled)]
    return out


def again(of: Table, found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """SQL that gives a table which was made anew what no archive of it alone holds.

    :param found: what is ``around`` it; ``wanted`` likewise.
    """
    out = []
    for name, (columns, rows) in wanted["publications"].items():
        some = f" ({', '.join(map(_quoted, columns))})" if columns else ""
        where = f" WHERE ({rows})" if rows else ""
        out.append(f"ALTER PUBLICATION {_quoted(name)} ADD TABLE {of.sql}{some}{where}")
    for name, each in wanted["statistics"].items():
        if name not in found["statistics"]:  # newer versions of pg_dump have them
            out += [each["made"], f"ALTER STATISTICS {name} SET STATISTICS {each['target']}"]
            out.append(f"ALTER STATISTICS {name} OWNER TO {_quoted(each['owner'])}")
            if each["comment"]:
                out.append(f"COMMENT ON STATISTICS {name} IS {sql.Literal(each['comment']).as_string(None)}")
    return out


def enabling(of: Table, trigger: str, state: str) -> str:
    """SQL that gives a trigger its state: ``O``, ``D``, ``R`` or ``A``, as the catalog writes it."""
    verb = {"O": "ENABLE", "D": "DISABLE", "R": "ENABLE REPLICA", "A": "ENABLE ALWAYS"}[state]
    return f"ALTER TABLE {of.sql} {verb} TRIGGER {_quoted(trigger)}"


def _add(of: Table, column: dict[str, Any]) -> list[str]:
    text = f"ALTER TABLE {of.sql} ADD COLUMN {_quoted(column['name'])} {column['type']}"
    if column["collation"]:
        text += f" COLLATE {_quoted(column['collation'])}"
    if column["generated"]:
        text += f" GENERATED ALWAYS AS ({column['default']}) STORED"
    elif column["identity"]:
        text += f" GENERATED {'ALWAYS' if column['identity'] == 'a' else 'BY DEFAULT'} AS IDENTITY"
    elif column["default"]:
        text += f" DEFAULT {column['default']}"
    out = [text + (" NOT NULL" if column["not_null"] else "")]
    if column["comment"]:
        comment = sql.Literal(column["comment"]).as_string(None)
        out.append(f"COMMENT ON COLUMN {of.sql}.{_quoted(column['name'])} IS {comment}")
    return out


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
