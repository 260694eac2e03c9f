"""Drafts of the missing down.sql files, by Prisma's own ``migrate diff``, with what a person must look at."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import BalikError
from ..units import format_duration
from . import sql
from .address import Address
from .database import connect
from .history import Migration, read_folder

try:
    from pglast.parser import scan
except ImportError:  # said by `sql.require`, on the host where it is missing
    scan = None  # type: ignore[assignment]

LOOK = "-- balik: look: "
_HEAD = f"{sql.DRAFT} It was written by `prisma migrate diff`, which sees the schema, not the rows."
_BY_HAND = f"{LOOK}to be written by hand: "
#: What `migrate diff` knows of, so that the way back of these is in the draft.
_SEEN = (
    *("CreateStmt", "AlterTableStmt", "IndexStmt", "DropStmt", "CreateEnumStmt", "AlterEnumStmt", "CreateSchemaStmt"),
    *("CommentStmt", "TransactionStmt", "VariableSetStmt", "CreateSeqStmt", "AlterSeqStmt"),
)
_CONFIG = (
    "export default {{ {engine}datasource: {{ url: process.env.{key}, shadowDatabaseUrl: process.env.{key} }} }}\n"
)
_KEY = "BALIK_SHADOW_URL"
_TABLES = """
SELECT n.nspname || '.' || c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'v', 'm') AND n.nspname NOT LIKE 'pg\\_%' AND n.nspname <> 'information_schema'
  AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = c.oid AND d.deptype = 'e') ORDER BY 1 LIMIT 3
"""
_THREATS = {
    "table": "destroys all rows of {name}; making it again makes it empty",
    "column": "destroys the values of {name}.{column}",
    "retype": "may change values of {name}.{column}, or fail on some",
    "deleted": "deletes rows of {name}",
    "changed": "changes rows of {name}",
    "truncate": "destroys all rows of {name}",
}


@dataclass(frozen=True)
class Project:
    """A product's source on a developer's machine.

    :param shadow: an empty database that Prisma may fill.
    :param environment: for Prisma, beside this process's own.
    """

    folder: Path
    migrations: Path
    shadow: Address
    shadow_url: str = field(repr=False)
    limit: float = 120
    environment: dict[str, str] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if not self.limit:
            raise BalikError("prisma_draft_limit", "found 0s", "more than that, such as 2m")

    @property
    def major(self) -> int:
        """Of the project's Prisma.

        :raises BalikError: there is none, or one that was never tried.
        """
        file = self.folder / "node_modules" / "prisma" / "package.json"
        try:
            version = str(json.loads(file.read_text())["version"])
        except (OSError, ValueError, KeyError, TypeError):
            raise BalikError(
                f"{file}", "is not there", "Prisma in the project's node_modules", "Run `npm install` in the project."
            ) from None
        major = version.partition(".")[0]
        if major not in ("6", "7"):
            raise BalikError(f"Prisma in {self.folder}", f"version {version}", "6 or 7")
        return int(major)


def write(project: Project, check_mode: bool) -> dict[str, Any]:
    """Writes each missing down.sql; none that is there is touched, also one that comes meanwhile.

    :raises BalikError: the shadow database is not empty or cannot be reached, Prisma's own words, or no place to write.
    """
    sql.require()
    migrations = read_folder(str(project.migrations), "prisma_draft_project")
    missing = [number for number, one in enumerate(migrations) if one.down is None]
    if not missing:
        return {"changed": False, "says": "each migration has its down.sql", "drafts": [], "diff": {}}
    for number in missing:
        file = migrations[number].folder / "down.sql"
        if file.is_symlink():
            raise BalikError(f"{file}", "is a link that leads nowhere", "a down.sql, or none", "Mend or remove it.")
    _empty(project.shadow)
    drafts = {migrations[number]: draft(project, migrations, number) for number in missing}
    came = [] if check_mode else [one for one, text in drafts.items() if not _written(one.folder / "down.sql", text)]
    drafts = {one: text for one, text in drafts.items() if one not in came}
    names = ", ".join(one.name for one in drafts) or "nothing"
    marks = sum(text.count(LOOK) for text in drafts.values())
    hard = [one.name for one, text in drafts.items() if _BY_HAND in text]
    by_hand = f"; to be written by hand: {', '.join(hard)}, which cannot be read" if hard else ""
    others = f"; written by somebody else meanwhile: {', '.join(one.name for one in came)}" if came else ""
    return {
        "changed": bool(drafts),
        "says": f"{'would draft' if check_mode else 'drafted'} {names}; {marks} places to look at{by_hand}{others}",
        "drafts": [str(one.folder / "down.sql") for one in drafts],
        "diff": {
            "before": "",
            "after": "\n".join(f"-- {one.name}/down.sql\n{text}" for one, text in drafts.items()),
        },
    }


def _written(file: Path, text: str) -> bool:
    """Whether a draft was written: whoever has written the file meanwhile keeps it."""
    try:
        with file.open("x") as opened:
            try:
                opened.write(text)
                opened.flush()
            except OSError:
                file.unlink()  # the next run would take half a draft for a whole one
                raise
    except FileExistsError:
        return False
    except OSError as error:
        raise BalikError(
            f"{file}", f"cannot be written: {error.strerror}", do="Drafts that were written by then stay. Run again."
        ) from None
    return True


def draft(project: Project, migrations: Sequence[Migration], number: int) -> str:
    """One draft: Prisma's script from this migration back to the one before it, with comments; as it is where it or the
    migration cannot be read (Prisma does not double the quotes in a name)."""
    text, up = _diff(project, migrations[: number + 1]), migrations[number].up
    for what, script in (("what Prisma wrote", text), ("migration.sql", up)):
        try:
            sql.split(script)
        except BalikError as error:
            body = text.strip("\n")
            return f"{_HEAD}\n{_BY_HAND}{what} cannot be read ({error}), so nothing else is said here\n\n{body}\n"
    return marked(text, up)


def _empty(shadow: Address) -> None:
    connection = connect(shadow, "draft", "prisma_draft_shadow_url")
    try:
        found = [name for (name,) in connection.execute(_TABLES).fetchall()]
    finally:
        connection.close()
    if found:
        raise BalikError(
            f"the shadow database {shadow.where}",
            f"holds {', '.join(found)}",
            "an empty database, which Prisma may fill and empty",
            "Make a new one (createdb shadow); never name one with anything in it.",
        )


def _diff(project: Project, migrations: Sequence[Migration]) -> str:
    """What ``prisma migrate diff --script`` prints."""
    with tempfile.TemporaryDirectory(prefix="balik-draft-") as name:
        folder = Path(name)
        new, old = _tree(folder / "new", migrations), _tree(folder / "old", migrations[:-1])
        config = folder / "prisma.config.mjs"
        # The URL goes by the environment: arguments are seen by everybody on the machine.
        config.write_text(_CONFIG.format(key=_KEY, engine="engine: 'classic', " if project.major < 7 else ""))
        to = ["--to-migrations", str(old)] if len(migrations) > 1 else ["--to-empty"]
        program = project.folder / "node_modules" / ".bin" / "prisma"
        command = [
            str(program),
            "migrate",
            "diff",
            "--config",
            str(config),
            "--from-migrations",
            str(new),
            *to,
            "--script",
        ]
        ours = {_KEY: project.shadow_url, "PRISMA_HIDE_UPDATE_MESSAGE": "1", "NO_COLOR": "1"}
        try:
            done = subprocess.run(
                command,
                cwd=project.folder,
                env={**os.environ, **project.environment, **ours},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=project.limit,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise BalikError(
                f"prisma migrate diff for {migrations[-1].name}", f"not done within {format_duration(project.limit)}"
            ) from None
        except OSError as error:
            raise BalikError(f"{program}", f"cannot be run: {error.strerror}", do="Run `npm install`.") from None
    if done.returncode:
        words = " ".join((done.stderr or done.stdout).replace(project.shadow_url, "(the shadow database)").split())[
            -600:
        ]
        raise BalikError(f"prisma migrate diff for {migrations[-1].name}", f"ended with {done.returncode}: {words}")
    return done.stdout


def _tree(folder: Path, migrations: Sequence[Migration]) -> Path:
    folder.mkdir()
    (folder / "migration_lock.toml").write_text('provider = "postgresql"\n')
    for one in migrations:
        (folder / one.name).mkdir()
        shutil.copy(one.folder / "migration.sql", folder / one.name)
    return folder


# What a person must look at


def marked(text: str, up: str) -> str:
    """Prisma's script as a draft: without the transaction's ends and the shadow database's schema, with a comment above
    each statement that somebody must think about.

    :param up: the ``migration.sql`` whose way back it is.
    :raises BalikError: one of the two is no SQL.
    """
    text = _without_schema(text, up)
    statements = sql.split(text)
    judged = sql.read(text, ["public"]).statements
    lines = text.strip("\n").split("\n")
    offset = len(text) - len(text.lstrip("\n"))
    notes: dict[int, list[str]] = {}
    dropped = set()
    for one, other in zip(statements, judged):
        at = one.line - 1 - offset
        if isinstance(one.node, sql.ast.TransactionStmt):
            dropped.add(at)
        else:
            notes.setdefault(at, []).extend(dict.fromkeys(_looks(other)))
    body = []
    for number, line in enumerate(lines):
        if number not in dropped:
            indent = line[: len(line) - len(line.lstrip())]
            body += [f"{indent}{LOOK}{note}" for note in notes.get(number, [])] + [line]
    head = [_HEAD, *(f"{LOOK}{note}" for note in _unseen(up))]
    if not statements:
        head.append(f"{LOOK}Prisma sees nothing to undo. If that is so, write the line: {sql.NOTHING}")
        body = []
    return "\n".join([*head, "", *body]).rstrip() + "\n"


def _looks(one: sql.Statement) -> Iterator[str]:
    """What to say above a statement of a draft."""
    for threat in one.threats:
        if threat.kind in _THREATS:
            yield _THREATS[threat.kind].format(name=threat.name, column=sql.quoted(threat.column))
    if one.outside:
        yield "no transaction can hold this: it is run before the others (prisma_down_outside_transaction)"
    node = one.node
    if isinstance(node, sql.ast.CreateStmt):
        yield "the table comes back empty; what it held is only in a backup"
    if isinstance(node, sql.ast.AlterTableStmt):
        for command in node.cmds:
            if command.subtype == sql.enums.AlterTableType.AT_AddColumn:
                yield from _comes_back(command.def_)
            elif command.subtype == sql.enums.AlterTableType.AT_SetNotNull:
                yield f"fails where {sql.quoted(command.name)} is empty by then; fill it first"
    if isinstance(node, sql.ast.CreateEnumStmt):
        yield "rows that have a value which is not in this list make it fail; move them first"
    if isinstance(node, sql.ast.IndexStmt) and node.unique:
        yield "fails where values stand twice by then"


def _comes_back(column: Any) -> Iterator[str]:
    kinds = {one.contype for one in column.constraints or ()}
    yield f"the column {sql.quoted(column.colname)} comes back empty; what it held is only in a backup"
    if sql.enums.ConstrType.CONSTR_NOTNULL in kinds and sql.enums.ConstrType.CONSTR_DEFAULT not in kinds:
        yield f"{sql.quoted(column.colname)} may not be empty and has no default: it fails as soon as there is a row"


def _unseen(up: str) -> Iterator[str]:
    """What the migration did that a comparison of two schemas does not show."""
    for one in sql.split(up):
        kind, short = type(one.node).__name__, f"migration.sql, line {one.line}: {one.short}"
        if kind == "RenameStmt":
            yield f"{short}: the draft drops and makes anew, which loses the rows; write the RENAME back instead"
        elif kind in ("UpdateStmt", "DeleteStmt", "InsertStmt", "TruncateStmt"):
            yield f"{short}: changes rows; the draft does not put them back"
        elif kind not in _SEEN:
            yield f"{short}: Prisma does not see this; write its way back yourself"


def _without_schema(text: str, up: str) -> str:
    """The script with bare names where ``migration.sql`` has bare names: Prisma writes the shadow database's schema
    before each, and the product's may be called otherwise."""
    if any(schema for one in sql.split(up) for _catalog, schema, _name in sql.names(one.node) if schema == "public"):
        return text
    tokens = [token for token in scan(text) if not token.name.endswith("COMMENT")]
    cut = [
        (token.start, following.end + 1)
        for before, token, following in zip([None, *tokens], tokens, tokens[1:])
        if text[token.start : token.end + 1] == '"public"'
        and text[following.start] == "."
        and (before is None or text[before.start] != ".")
    ]
    for start, end in reversed(cut):
        text = text[:start] + text[end:]
    return text
