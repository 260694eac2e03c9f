"""Migration scripts as PostgreSQL's own grammar reads them: what a script would do, and what of it is not for here.

Nothing here looks at a database. The grammar is pglast's, the server's own source; a regular expression would take a
comment for a statement, or a text for a comment.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import BalikError

try:
    from pglast import ast, enums, parse_sql
    from pglast.parser import ParseError, scan
    from pglast.stream import RawStream
except ImportError:  # said by `require`, on the host where it is missing
    ast = None  # type: ignore[assignment]

#: A draft that nobody has read yet has this line.
DRAFT = "-- balik: draft. Read it, mend it, then delete this line."
#: A script that has nothing to do must say so: an empty file may be a forgotten one.
NOTHING = "-- balik: nothing to undo"
BOOKKEEPING = "_prisma_migrations"
#: From this major version on, a value can be added to an enum within a transaction.
ENUM_IN_TRANSACTION = 12
# A row of a B-tree takes 2704 bytes with its own head, and other kinds of index no less. Each value may begin at a
# multiple of eight.
_INDEX_ROW, _ALIGNED = 2600, 8
_ALWAYS_ALLOWED = ("pg_catalog", "information_schema")
# What a migration may call and still only add: PostgreSQL's own functions that change nothing.
_HARMLESS = {
    *("now", "clock_timestamp", "timezone", "date_trunc", "extract", "gen_random_uuid", "uuid_generate_v4", "random"),
    *("nextval", "generate_series", "unnest", "row_number", "count", "sum", "min", "max", "avg", "md5", "lower"),
    *("upper", "initcap", "btrim", "length", "replace", "substring", "concat", "concat_ws", "format", "round"),
    *("array_agg", "string_agg", "jsonb_agg", "to_jsonb", "jsonb_build_object", "jsonb_build_array"),
}

#: Nodes that name something of a schema → where they have its name.
_NAMED_BY = {
    **{"TypeName": "names", "ObjectWithArgs": "objname", "CreateEnumStmt": "typeName", "AlterEnumStmt": "typeName"},
    **{"CreateRangeStmt": "typeName", "CreateDomainStmt": "domainname", "AlterDomainStmt": "typeName"},
    **{"CreateFunctionStmt": "funcname", "RenameStmt": "object"},
}

# What a script may set, beside settings of the product's own (app.quiet). Any other may take away a limit, a guard
# (track_counts, row_security), or the sense of what is read (standard_conforming_strings) and kept (datestyle).
_SETTINGS = {
    *("work_mem", "maintenance_work_mem", "max_parallel_maintenance_workers", "max_parallel_workers_per_gather"),
    *("client_min_messages", "check_function_bodies", "default_tablespace", "default_table_access_method", "timezone"),
}
# Statements whose effect the grammar shows. Whatever is not here is refused: to be unknown is not to be safe.
_KNOWN = (
    *("AlterTable", "Drop", "Rename", "Index", "Create", "CreateTableAs", "View", "CreateEnum", "AlterEnum"),
    *("CreateFunction", "AlterFunction", "CreateTrig", "Comment", "Grant", "Insert", "Update", "Delete", "Truncate"),
    *("CreateSeq", "AlterSeq", "CreateSchema", "CreateExtension", "AlterExtension", "CompositeType", "CreateDomain"),
    *("AlterDomain", "CreateRange", "Define", "Rule", "CreatePolicy", "AlterPolicy", "AlterOwner", "CreateStats"),
    *("AlterObjectSchema", "RefreshMatView", "Reindex", "Vacuum", "Lock", "VariableSet", "ConstraintsSet", "Select"),
    *("AlterDefaultPrivileges", "AlterType", "SecLabel", "AlterStats", "Cluster"),
)
_TRANSACTION = "ends or begins a transaction, which prisma-down does itself; take it out"
_WHY_REFUSED = {
    "TransactionStmt": _TRANSACTION,
    "DoStmt": "runs a program that no parser can judge; write the statements themselves",
    "CallStmt": "runs a program that no parser can judge; write the statements themselves",
    "CopyStmt": "reads or writes a file; prisma-down keeps by itself what would be lost",
    "DropdbStmt": "is about a whole database",
    "CreatedbStmt": "is about a whole database",
    "MergeStmt": "may change and delete at once; write UPDATE and DELETE",
}


def require() -> None:
    """:raises BalikError: the parser is not installed."""
    if ast is None:
        raise BalikError(
            "Python's pglast",
            "is not installed for the Python that runs the step",
            "pglast 7",
            "Run prisma-down on the control node (prisma_down_hosts: localhost, ansible_python_interpreter: "
            "'{{ ansible_playbook_python }}'), or install pglast where it runs.",
        )


@dataclass(frozen=True)
class Threat:
    """Something that a statement may destroy; which rows those are, the database knows (see ``loss``).

    :param kind: ``table``, ``type``, ``schema``, ``extension``, ``relation`` (a sequence, and what goes with a view),
        ``column``, ``deleted`` and ``changed`` (rows), ``truncate``, ``retype``, ``identity`` (its sequence), and
        ``inserted`` (by triggers only).
    :param name: the object as SQL writes it, quoted.
    :param column: of ``column`` and ``retype``, not quoted.
    :param query: of rows the SELECT of those that go; of ``retype`` a condition that holds where a value changes, with
        ``{old}`` for the column's present type; empty where only the statement itself knows.
    :param calls: the functions in ``query``, as SQL writes them.
    :param sets: of ``changed`` the columns that get a new value.
    """

    kind: str
    name: str
    column: str = ""
    cascade: bool = False
    missing_ok: bool = False
    query: str = ""
    calls: tuple[str, ...] = ()
    sets: tuple[str, ...] = ()


@dataclass(frozen=True)
class Statement:
    """One statement of a script, beginning at ``line``; ``outside`` when a transaction cannot hold it.

    :param calls: the functions that run when it does, as SQL writes their names.
    """

    text: str
    line: int
    node: Any = field(repr=False)
    outside: bool = False
    repeatable: bool = False
    threats: tuple[Threat, ...] = ()
    calls: tuple[str, ...] = ()

    @property
    def short(self) -> str:
        words = " ".join(self.text.split())
        return words if len(words) <= 90 else words[:89] + "…"


@dataclass(frozen=True)
class Script:
    """A script and all that forbids running it."""

    statements: list[Statement]
    problems: list[str]

    @property
    def outside(self) -> list[Statement]:
        return [one for one in self.statements if one.outside]

    @property
    def inside(self) -> list[Statement]:
        return [one for one in self.statements if not one.outside]


def split(text: str) -> list[Statement]:
    """The statements of a text, judged in nothing.

    :raises BalikError: it is no SQL; ``found`` says the line.
    """
    try:
        raw = parse_sql(text)
        starts = [token.start for token in scan(text) if not token.name.endswith("COMMENT")]
    except ParseError as error:
        message, at = error.args[0], (error.args[1:] or (0,))[0] or 0
        line = text.count("\n", 0, at) + 1
        if "\\" in message:
            message = "a line of psql's own (\\…), which is no SQL"
        raise BalikError(f"line {line}", message) from None
    found = []
    for one in raw:
        begin = next(start for start in starts if start >= one.stmt_location)
        end = one.stmt_location + one.stmt_len if one.stmt_len else len(text)
        found.append(Statement(text[begin:end].rstrip(), text.count("\n", 0, begin) + 1, one.stmt))
    return found


def read(text: str | None, schemas: Sequence[str], major: int = 17) -> Script:
    """A ``down.sql`` with all that forbids running it.

    :param text: ``None`` where there is no such file.
    :param schemas: those that it may name.
    :param major: the server's major version.
    """
    if text is None:
        return Script([], ["has no down.sql; draft one with playbooks/prisma-down-draft.yml, and have it read"])
    problems = []
    if any(line.lstrip().startswith(DRAFT) for line in text.splitlines()):
        problems.append(f"its down.sql is a draft that nobody has read: the line {DRAFT!r} still stands in it")
    try:
        bare = split(text.lstrip("\ufeff"))
    except BalikError as error:
        return Script([], [*problems, f"down.sql, {error}"])
    created = {_name_of(one.node) for one in bare if isinstance(one.node, ast.CreateEnumStmt)}
    statements = [_judged(one, major, created) for one in bare]
    if not statements and NOTHING not in (line.strip() for line in text.splitlines()):
        problems.append(f"its down.sql has no statement; if nothing is to be undone, it must say so: {NOTHING}")
    later = False
    for one in statements:
        why = list(dict.fromkeys(_refused(one, schemas)))
        if one.outside and not one.repeatable:
            why.append(
                "cannot run in a transaction, and cannot be repeated after an interruption; write IF [NOT] EXISTS"
            )
        elif one.outside and later:
            why.append("cannot run in a transaction, so it must stand before all that can")
        later = later or not one.outside
        problems += [f"down.sql, line {one.line}: {one.short}: {each}" for each in why]
    return Script(statements, problems)


def walk(node: Any) -> Iterator[Any]:
    """A node and all below it."""
    if isinstance(node, tuple):
        for one in node:
            yield from walk(one)
    elif isinstance(node, ast.Node):
        yield node
        for slot in node:
            yield from walk(getattr(node, slot))


def shown(script: Script) -> Iterator[str]:
    """The tables whose rows a script itself makes all visible to their owner."""
    kinds = (enums.AlterTableType.AT_NoForceRowSecurity, enums.AlterTableType.AT_DisableRowSecurity)
    for one in script.statements:
        if isinstance(one.node, ast.AlterTableStmt) and any(each.subtype in kinds for each in one.node.cmds):
            yield one.node.relation.relname


def renamed(script: Script) -> Iterator[tuple[Statement, str, str, list[Threat]]]:
    """Where a script renames a table, or a column of one: the statement, the table's name from then on, the column's
    name before (empty for a table), and what goes of that table afterwards."""
    kinds = (enums.ObjectType.OBJECT_TABLE, enums.ObjectType.OBJECT_COLUMN)
    for number, one in enumerate(script.statements):
        if isinstance(one.node, ast.RenameStmt) and one.node.renameType in kinds:
            column = one.node.subname or ""
            table = quoted(one.node.relation.relname if column else one.node.newname)
            later = (threat for each in script.statements[number + 1 :] for threat in each.threats)
            yield one, table, column, [each for each in later if f".{each.name}".endswith(f".{table}")]


def quoted(*parts: str) -> str:
    """A name as SQL takes it, whatever letters it has."""
    return ".".join('"' + part.replace('"', '""') + '"' for part in parts)


def additive(text: str, sizes: Mapping[tuple[str, str], int]) -> list[str]:
    """Why a release that does not know this ``migration.sql`` could not work on top of it; empty when it could.

    Conservative: what is not known to be harmless to the old code is a reason.

    :param sizes: how many bytes a value takes at most, by table and column, of those that have such a limit.
    """
    try:
        statements = split(text)
    except BalikError as error:
        return [str(error)]
    made: set[str] = set()
    reasons, sizes = [], dict(sizes)
    for one in statements:
        if why := _disturbs(one.node, made, sizes):
            reasons.append(f"line {one.line}: {one.short}: {why}")
        sizes.update(_unwritten(one.node))
    return reasons


def retyped(text: str) -> Iterator[tuple[str, str]]:
    """The tables and columns to which a ``migration.sql`` gives another type."""
    try:
        statements = split(text)
    except BalikError:
        return
    for one in statements:
        for command in one.node.cmds if isinstance(one.node, ast.AlterTableStmt) else ():
            if command.subtype == enums.AlterTableType.AT_AlterColumnType:
                yield one.node.relation.relname, command.name


def _unwritten(node: Any) -> Iterator[tuple[tuple[str, str], int]]:
    """The columns that a statement adds, which the old code does not write."""
    for one in node.cmds if isinstance(node, ast.AlterTableStmt) else ():
        if one.subtype == enums.AlterTableType.AT_AddColumn and not one.missing_ok:
            yield (node.relation.relname, one.def_.colname), 0


# What is refused


def _refused(one: Statement, schemas: Sequence[str]) -> Iterator[str]:
    node, kind = one.node, type(one.node).__name__
    if kind in _WHY_REFUSED:
        yield _WHY_REFUSED[kind]
        return
    if kind.removesuffix("Stmt") not in _KNOWN:
        yield "is a kind of statement that prisma-down does not run"
        return
    yield from _beside_the_rules(node)
    for catalog, schema, name in names(node):
        if catalog:
            yield f"names another database ({catalog})"
        if name == BOOKKEEPING:
            yield f"is about {BOOKKEEPING}, which prisma-down keeps itself"
        if schema and schema not in schemas and schema not in _ALWAYS_ALLOWED:
            yield (
                f"names the schema {schema}; expected {' or '.join(schemas)}. If it belongs to this product, add it to "
                "prisma_down_schemas"
            )


def _beside_the_rules(node: Any) -> Iterator[str]:
    """What of a kind that is known is refused all the same."""
    if isinstance(node, ast.SelectStmt) and not _only_setval(node):
        yield "a SELECT may do anything through the functions that it calls; only setval() is taken"
    if isinstance(node, ast.VariableSetStmt):
        if node.kind == enums.VariableSetKind.VAR_RESET_ALL:
            yield "takes back what prisma-down has set"
        elif "." not in node.name and node.name.lower() not in _SETTINGS:
            yield f"sets {node.name}, which prisma-down sets itself or goes by; leave it out"
    if any(_strings(one.funcname)[-1] == "set_config" for one in walk(node) if isinstance(one, ast.FuncCall)):
        yield "calls set_config(), which may set anything; write SET LOCAL"
    if isinstance(node, ast.ClusterStmt) and node.relation is None:
        yield "is about all tables"
    if isinstance(node, ast.DropStmt) and _cascades(node) and node.removeType not in _DROPS:
        yield "CASCADE takes what is not named with it; name it"
    for command in node.cmds if isinstance(node, ast.AlterTableStmt) else ():
        if command.subtype == enums.AlterTableType.AT_DetachPartition and command.def_.concurrent:
            yield "cannot run in a transaction, nor be repeated; leave CONCURRENTLY out"
        if node.objtype == enums.ObjectType.OBJECT_TYPE and command.subtype in _LOSSY:
            yield "changes values in all columns of that type; make a new type"


def _only_setval(node: Any) -> bool:
    targets = node.targetList or ()
    calls = [one.val for one in targets if isinstance(one.val, ast.FuncCall)]
    inner = [one for one in walk(node) if isinstance(one, ast.FuncCall)]
    return (
        len(calls) == len(targets) > 0
        and node.intoClause is None
        and all(one.funcname[-1].sval == "setval" for one in calls)
        and all(
            one.funcname[-1].sval in ("setval", "max", "coalesce", "greatest", "pg_get_serial_sequence")
            for one in inner
        )
        and not any(isinstance(one, (ast.DeleteStmt, ast.UpdateStmt, ast.InsertStmt)) for one in walk(node))
    )


def names(node: Any) -> Iterator[tuple[str, str, str]]:
    """Catalog, schema and name of all objects that a statement names; empty where it leaves them out."""
    for one in walk(node):
        kind = type(one).__name__
        if kind == "RangeVar":
            yield one.catalogname or "", one.schemaname or "", one.relname
        elif kind in _NAMED_BY and isinstance(getattr(one, _NAMED_BY[kind]), tuple):
            yield _apart(_strings(getattr(one, _NAMED_BY[kind])))
        elif kind in ("CreateSchemaStmt", "AlterObjectSchemaStmt"):
            yield "", (one.schemaname if kind == "CreateSchemaStmt" else one.newschema) or "", ""
        elif kind == "RenameStmt" and one.renameType == enums.ObjectType.OBJECT_SCHEMA:
            yield "", one.subname, ""
            yield "", one.newname, ""
    if isinstance(node, ast.DropStmt):
        for parts in _dropped(node):
            if node.removeType == enums.ObjectType.OBJECT_SCHEMA:
                yield "", parts[0], ""
            elif node.removeType in _ON_TABLES:
                yield _apart(parts[:-1])
            elif node.removeType != enums.ObjectType.OBJECT_EXTENSION:
                yield _apart(parts)


def _strings(parts: Any) -> list[str]:
    return [str(part.sval) for part in parts or () if isinstance(part, ast.String)]


def _apart(parts: Sequence[str]) -> tuple[str, str, str]:
    padded = ["", "", "", *parts][-3:]
    return padded[0], padded[1], padded[2]


def _dropped(node: Any) -> list[list[str]]:
    """The names in a DROP, each in its parts."""
    return [
        _strings((one,) if isinstance(one, ast.String) else one.names if isinstance(one, ast.TypeName) else one)
        for one in node.objects
        if isinstance(one, (ast.String, ast.TypeName, tuple))
    ]


def _cascades(node: Any) -> bool:
    return bool(node.behavior == enums.DropBehavior.DROP_CASCADE)


if ast is not None:
    _ONLY_ADDING = (
        *(ast.CreateEnumStmt, ast.CreateSeqStmt, ast.CreateSchemaStmt, ast.CreateExtensionStmt, ast.CommentStmt),
        *(ast.ViewStmt, ast.CompositeTypeStmt, ast.IndexStmt, ast.InsertStmt),
    )
    # What these name runs later, when somebody uses what they make.
    _FOR_LATER = (
        *(ast.ViewStmt, ast.CreateFunctionStmt, ast.AlterFunctionStmt, ast.CreateTrigStmt, ast.CreatePolicyStmt),
        *(ast.AlterPolicyStmt, ast.CreateDomainStmt, ast.CommentStmt, ast.CreateStatsStmt),
    )
    _WRITING = (ast.InsertStmt, ast.UpdateStmt, ast.DeleteStmt, ast.MergeStmt)
    # Of these an index may be made that takes whatever the old code writes.
    _TAKES_ALL = (
        *(ast.ColumnRef, ast.A_Const, ast.Integer, ast.Float, ast.Boolean, ast.String, ast.BoolExpr, ast.NullTest),
        *(ast.BooleanTest, ast.CoalesceExpr, ast.A_Expr, ast.FuncCall, ast.TypeCast, ast.TypeName),
    )
    _ON_TABLES = (enums.ObjectType.OBJECT_TRIGGER, enums.ObjectType.OBJECT_POLICY, enums.ObjectType.OBJECT_RULE)
    _LOSSY = (enums.AlterTableType.AT_DropColumn, enums.AlterTableType.AT_AlterColumnType)
    #: Kinds of DROP that may take rows with them → kind of threat, and whether they do so without CASCADE too.
    _DROPS = {
        enums.ObjectType.OBJECT_TABLE: ("table", True),
        enums.ObjectType.OBJECT_FOREIGN_TABLE: ("relation", False),
        enums.ObjectType.OBJECT_VIEW: ("relation", False),
        enums.ObjectType.OBJECT_MATVIEW: ("relation", False),
        enums.ObjectType.OBJECT_SEQUENCE: ("relation", True),
        enums.ObjectType.OBJECT_TYPE: ("type", False),
        enums.ObjectType.OBJECT_DOMAIN: ("type", False),
        enums.ObjectType.OBJECT_SCHEMA: ("schema", False),
        enums.ObjectType.OBJECT_EXTENSION: ("extension", True),
    }


# What a statement does


def _judged(one: Statement, major: int, created: set[str]) -> Statement:
    node = one.node
    outside, repeatable = _outside(node, major)
    return Statement(one.text, one.line, node, outside, repeatable, tuple(_threats(node, created)), _running(node))


def _running(node: Any) -> tuple[str, ...]:
    """The functions that a statement runs, and not only writes down for later."""
    if isinstance(node, _FOR_LATER):
        return ()
    if isinstance(node, ast.CreateStmt):
        return _calls(node.partbound)
    if isinstance(node, ast.AlterTableStmt):
        later = enums.AlterTableType.AT_ColumnDefault
        return _calls(tuple(one for one in node.cmds if one.subtype != later))
    return _calls(node)


def _calls(node: Any) -> tuple[str, ...]:
    """The functions named in a node and below it, quoted."""
    found = (quoted(*_strings(one.funcname)) for one in walk(node) if isinstance(one, ast.FuncCall))
    return tuple(dict.fromkeys(found))


def taking(statement: Statement, columns: Sequence[str]) -> str:
    """A DELETE or UPDATE that gives back what it takes: of each row that goes, or gets other values, the values it had.

    :param columns: those of the table that are to be given; at least one.
    :raises BalikError: it cannot be written so.
    """
    node = statement.node
    target = quoted(node.relation.alias.aliasname if node.relation.alias else node.relation.relname)
    only = "" if node.relation.inh else "ONLY "
    if isinstance(node, ast.DeleteStmt):
        given = ", ".join(f"{target}.{quoted(one)}" for one in columns)
        frame = parse_sql(f"DELETE FROM x RETURNING {given}")[0].stmt
        made: Any = ast.DeleteStmt(node.relation, node.usingClause, node.whereClause, frame.returningList)
    else:
        # Before version 18 RETURNING knows the new values only; the old ones come by the row's place, beside it.
        given = ", ".join(f"(balik_before.balik_row).{quoted(one)}" for one in columns)
        frame = parse_sql(
            f"UPDATE x SET a = 1 FROM (SELECT o.tableoid AS balik_table, o.ctid AS balik_place, o AS balik_row"
            f" FROM {only}{_of(node.relation)} o) balik_before WHERE {target}.tableoid = balik_before.balik_table"
            f" AND {target}.ctid = balik_before.balik_place RETURNING {given}"
        )[0].stmt
        same = frame.whereClause.args
        conditions = (*same, node.whereClause) if node.whereClause is not None else same
        made = ast.UpdateStmt(
            relation=node.relation,
            targetList=node.targetList,
            fromClause=(*(node.fromClause or ()), *frame.fromClause),
            whereClause=ast.BoolExpr(enums.BoolExprType.AND_EXPR, conditions),
            returningList=frame.returningList,
        )
    text = str(RawStream()(made))
    if parse_sql(text)[0].stmt != made:
        raise BalikError(f"line {statement.line}: {statement.short}", "cannot be read back as it is written")
    return text


def _outside(node: Any, major: int) -> tuple[bool, bool]:
    """Whether no transaction can hold it, and whether it can be run twice."""
    if isinstance(node, ast.IndexStmt) and node.concurrent:
        return True, bool(node.if_not_exists and node.idxname)
    if isinstance(node, ast.DropStmt) and node.concurrent:
        return True, bool(node.missing_ok)
    if isinstance(node, ast.ReindexStmt):
        wide = node.relation is None
        return wide or any(one.defname == "concurrently" for one in node.params or ()), True
    if isinstance(node, ast.VacuumStmt):
        return bool(node.is_vacuumcmd), True
    if isinstance(node, ast.AlterEnumStmt) and node.newVal and not node.oldVal:
        return major < ENUM_IN_TRANSACTION, bool(node.skipIfNewValExists)
    return False, False


def _threats(node: Any, created: set[str]) -> Iterator[Threat]:
    if isinstance(node, ast.DropStmt) and node.removeType in _DROPS:
        kind, always = _DROPS[node.removeType]
        for parts in _dropped(node) if always or _cascades(node) else ():
            yield Threat(kind, quoted(*parts), cascade=_cascades(node), missing_ok=node.missing_ok)
    elif isinstance(node, ast.AlterTableStmt):
        for one in node.cmds:
            yield from _altered(node, one, created)
    elif isinstance(node, ast.TruncateStmt):
        for one in node.relations:
            yield Threat("truncate", _of(one), cascade=_cascades(node))
    else:
        for one in walk(node):
            yield from _written(one, node)


def _altered(node: Any, command: Any, created: set[str]) -> Iterator[Threat]:
    table, missing = _of(node.relation), bool(command.missing_ok or node.missing_ok)
    if command.subtype == enums.AlterTableType.AT_DropColumn:
        yield Threat("column", table, command.name, _cascades(command), missing)
    elif command.subtype == enums.AlterTableType.AT_DropIdentity:
        yield Threat("identity", table, command.name)
    elif command.subtype == enums.AlterTableType.AT_AlterColumnType and not _by_texts(command, created):
        query, calls = _changes(command), _calls(command.def_.raw_default)
        yield Threat("retype", table, command.name, missing_ok=missing, query=query, calls=calls)


def _written(one: Any, statement: Any) -> Iterator[Threat]:
    """Rows that a part of a statement deletes or changes; ``statement`` is the whole."""
    if isinstance(one, (ast.DeleteStmt, ast.UpdateStmt)):
        query = _rows(one) if one is statement else ""
        if isinstance(one, ast.DeleteStmt):
            yield Threat("deleted", _of(one.relation), query=query, calls=_calls((one.usingClause, one.whereClause)))
        else:
            calls, sets = _calls((one.fromClause, one.whereClause)), _set(one.targetList)
            yield Threat("changed", _of(one.relation), query=query, calls=calls, sets=sets)
    elif isinstance(one, ast.InsertStmt):
        conflict = one.onConflictClause
        if conflict is not None and conflict.action == enums.OnConflictAction.ONCONFLICT_UPDATE:
            yield Threat("changed", _of(one.relation), sets=_set(conflict.targetList))
        else:
            yield Threat("inserted", _of(one.relation))


def _set(targets: Any) -> tuple[str, ...]:
    return tuple(one.name for one in targets)


def _of(relation: Any) -> str:
    return quoted(*(part for part in (relation.schemaname, relation.relname) if part))


def _rows(node: Any) -> str:
    """The SELECT of the rows that a DELETE or UPDATE is about; empty where only the statement itself can tell."""
    if node.withClause is not None:
        return ""
    others = node.usingClause if isinstance(node, ast.DeleteStmt) else node.fromClause
    alias = node.relation.alias.aliasname if node.relation.alias else ""
    only = "ONLY " if not node.relation.inh else ""
    name = f"{only}{_of(node.relation)}" + (f" AS {quoted(alias)}" if alias else "")
    where = RawStream()(node.whereClause) if node.whereClause is not None else "true"
    if others:
        where = f"EXISTS (SELECT FROM {', '.join(RawStream()(one) for one in others)} WHERE {where})"
    return f"SELECT {quoted(alias or node.relation.relname)}.* FROM {name} WHERE {where}"


def _changes(command: Any) -> str:
    """The condition under which a column's new type does not give back the value that was there."""
    column, definition = quoted(command.name), command.def_
    new = RawStream()(definition.typeName)
    using = RawStream()(definition.raw_default) if definition.raw_default is not None else column
    return f"CAST(CAST({using} AS {new}) AS {{old}}) IS DISTINCT FROM {column}"


def _by_texts(command: Any, created: set[str]) -> bool:
    """Whether a column moves to an enum that the script itself makes, by its texts: Prisma's way to take a value out of
    an enum. A row that has such a value makes it fail; nothing is changed."""
    new, value = command.def_.typeName, command.def_.raw_default
    if quoted(*(part.sval for part in new.names)) not in created:
        return False
    while isinstance(value, ast.TypeCast) and _keeps_text(value.typeName, created):
        value = value.arg
    return isinstance(value, ast.ColumnRef) and value.fields[-1].sval == command.name


def _keeps_text(named: Any, created: set[str]) -> bool:
    """Whether a cast leaves a value's text as it is, or fails: varchar(1) cuts it off."""
    names = _strings(named.names)
    whole = names[-1] in ("text", "varchar") and names[:-1] in ([], ["pg_catalog"])
    return (whole and not named.typmods) or quoted(*names) in created


def _name_of(node: Any) -> str:
    return quoted(*(part.sval for part in node.typeName))


# What the old code can live with


def _disturbs(node: Any, made: set[str], sizes: Mapping[tuple[str, str], int]) -> str:
    """Why a statement of a ``migration.sql`` may disturb code that does not know it; ``made``: the tables that the
    migration itself has made, with which it can do what it likes; ``sizes`` as in :func:`additive`."""
    if isinstance(node, ast.CreateStmt):
        return _creating(node, made)
    if isinstance(node, ast.AlterTableStmt):
        reasons = (_altering(one, _of(node.relation) in made, made) for one in node.cmds)
        return next(filter(None, (_strange(node), *reasons)), "")
    if isinstance(node, ast.IndexStmt) and _of(node.relation) not in made:
        return _indexing(node, sizes)
    if isinstance(node, ast.InsertStmt):
        foreign = any(_of(one.relation) not in made for one in walk(node) if isinstance(one, _WRITING))
        return "writes into a table of the old code" if foreign else _strange(node)
    if isinstance(node, ast.ViewStmt) and node.replace:
        return "replaces a view"
    known = isinstance(node, _ONLY_ADDING) and not (isinstance(node, ast.CreateSchemaStmt) and node.schemaElts)
    return "" if known else "is not known to be harmless to the old code"


def _creating(node: Any, made: set[str]) -> str:
    if not node.if_not_exists:
        made.add(_of(node.relation))
    if any(_of(one) not in made for one in node.inhRelations or ()):
        return "its rows are rows of a table of the old code"
    return _new_constraints(node.tableElts or (), made)


def _strange(node: Any) -> str:
    """Whether a statement calls a function that is not known to be harmless."""
    names = (_strings(one.funcname) for one in walk(node) if isinstance(one, ast.FuncCall))
    strange = (one for one in names if one[-1] not in _HARMLESS or one[:-1] not in ([], ["pg_catalog"]))
    return next((f"calls {quoted(*one)}, which may do anything" for one in strange), "")


def _indexing(node: Any, sizes: Mapping[tuple[str, str], int]) -> str:
    """A plain index takes whatever the old code writes; a unique one, or one on an expression or on what may be long,
    may not."""
    if node.unique:
        return "a unique index may refuse what the old code writes"
    expressions = (*(one.expr for one in node.indexParams if one.expr is not None), node.whereClause)
    if not all(isinstance(one, _TAKES_ALL) and not _fails(one) for one in walk(expressions)):
        return "an index on an expression may refuse what the old code writes"
    elements = (*node.indexParams, *(node.indexIncludingParams or ()))
    columns = [one.name for one in elements if one.name]
    columns += [_strings(one.fields)[-1] for one in walk(expressions[:-1]) if isinstance(one, ast.ColumnRef)]
    table = node.relation.relname
    room = sum(sizes.get((table, one), _INDEX_ROW) + _ALIGNED for one in columns)
    if room > _INDEX_ROW and node.accessMethod != "hash":
        return "an index may refuse what the old code writes where that is too long for it"
    return ""


def _fails(node: Any) -> bool:
    """Whether a part of an expression may fail on a value, as a division does."""
    if isinstance(node, ast.A_Expr):
        return node.name[-1].sval not in ("=", "<>", "<", ">", "<=", ">=")
    if isinstance(node, ast.FuncCall):
        return _strings(node.funcname) not in (["lower"], ["upper"])
    return isinstance(node, ast.TypeCast) and not isinstance(node.arg, ast.A_Const)


def _altering(command: Any, own: bool, made: set[str]) -> str:
    kinds = enums.AlterTableType
    if own:
        return _altering_own(command, made)
    if command.subtype == kinds.AT_AddConstraint:
        return "a constraint may refuse what the old code writes"
    if command.subtype == kinds.AT_AddColumn:
        constraints = {one.contype for one in command.def_.constraints or ()}
        types = enums.ConstrType
        if constraints - {types.CONSTR_NULL, types.CONSTR_DEFAULT, types.CONSTR_NOTNULL, types.CONSTR_IDENTITY}:
            return "the new column's constraint may refuse what the old code writes"
        if types.CONSTR_NOTNULL in constraints and not constraints & {types.CONSTR_DEFAULT, types.CONSTR_IDENTITY}:
            serial = command.def_.typeName.names[-1].sval in ("serial", "bigserial", "smallserial")
            return "" if serial else "the old code does not fill the new column, which has no default"
        return ""
    return "changes a table of the old code"


def _altering_own(command: Any, made: set[str]) -> str:
    kinds = enums.AlterTableType
    if command.subtype in (kinds.AT_AddInherit, kinds.AT_AttachPartition):
        other = command.def_ if isinstance(command.def_, ast.RangeVar) else command.def_.name
        return "" if _of(other) in made else "joins a table of the old code with another"
    return _new_constraints([command.def_] if command.def_ is not None else [], made)


def _new_constraints(elements: Iterable[Any], made: set[str]) -> str:
    """A foreign key to a table of the old code may forbid it to delete there."""
    foreign = (
        one
        for one in walk(tuple(elements))
        if isinstance(one, ast.Constraint) and one.contype == enums.ConstrType.CONSTR_FOREIGN
    )
    if any(_of(one.pktable) not in made and one.fk_del_action in ("a", "r") for one in foreign):
        return "its foreign key forbids the old code to delete what it refers to"
    return ""
