"""What the folder of migrations holds, what the database says was applied, and where the two differ. Pure but for
reading the folder."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from ..errors import BalikError

#: The target's name when no migration is to stay. Not an empty text, which a template may give by mistake.
NONE_STAYS = "no-migration"


@dataclass(frozen=True)
class Migration:
    """A migration's folder; ``up`` is what was applied, ``down`` what undoes it, ``None`` where there is no such
    file."""

    name: str
    folder: Path
    up: str
    down: str | None

    def is_the_one(self, checksum: str) -> bool:
        """Whether Prisma's checksum is of this ``migration.sql``, whatever Git made of the ends of its lines."""
        variants = (self.up, self.up.replace("\r\n", "\n"), self.up.replace("\r\n", "\n").replace("\n", "\r\n"))
        return checksum in (hashlib.sha256(text.encode()).hexdigest() for text in variants)


@dataclass(frozen=True)
class Row:
    """A line of ``_prisma_migrations``."""

    id: str
    checksum: str
    finished_at: datetime | None
    migration_name: str
    logs: str | None
    rolled_back_at: datetime | None
    started_at: datetime
    applied_steps_count: int

    @property
    def applied(self) -> bool:
        return self.finished_at is not None and self.rolled_back_at is None

    @property
    def failed(self) -> bool:
        """It began and did not end well, and nobody has said ``migrate resolve`` about it."""
        return self.finished_at is None and self.rolled_back_at is None

    def as_kept(self) -> dict[str, Any]:
        """For the record: all but the log, which may quote data."""
        times = {key: str(value) if (value := getattr(self, key)) else None for key in _TIMES}
        return {
            **{"id": self.id, "checksum": self.checksum, "migration_name": self.migration_name},
            **{**times, "applied_steps_count": self.applied_steps_count},
        }


_TIMES = ("started_at", "finished_at", "rolled_back_at")


def read_folder(path: str, setting: str = "prisma_down_migrations") -> list[Migration]:
    """The migrations of a folder, in the order of their names, as Prisma takes them.

    :param setting: what the plan calls the folder.
    :raises BalikError: no such folder, none in it, another database's, or files that cannot be read.
    """
    folder = Path(path)
    what = f"{setting}: {path}"
    try:
        lock = folder / "migration_lock.toml"
        provider = re.search(r'^\s*provider\s*=\s*"(\w+)"', lock.read_text() if lock.exists() else "", re.MULTILINE)
        names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
        if provider and provider[1] not in ("postgresql", "postgres"):
            raise BalikError(what, f"is for {provider[1]}", "migrations for PostgreSQL")
        found = [
            Migration(name, folder / name, up, _text(folder / name / "down.sql"))
            for name in names
            if (up := _text(folder / name / "migration.sql")) is not None
        ]
    except OSError as error:
        raise BalikError(
            what,
            f"{error.filename or path}: {error.strerror}",
            "the new release's folder prisma/migrations, with a down.sql beside each migration.sql",
        ) from None
    if not found:
        raise BalikError(what, "holds no <name>/migration.sql", "the new release's folder prisma/migrations")
    return found


def _text(file: Path) -> str | None:
    # Not read_text(), which changes the ends of lines, and with them the checksum.
    content = file.read_bytes() if file.exists() else None
    try:
        text = content.decode() if content is not None else None
    except UnicodeDecodeError as error:
        raise BalikError(str(file), f"it is not UTF-8 ({error.reason} at byte {error.start})", "SQL in UTF-8") from None
    if text is not None and "\0" in text:  # where PostgreSQL's parser would see the end of the text
        raise BalikError(str(file), f"it has a NUL byte, at {text.index(chr(0))}", "SQL in UTF-8", "Write it anew.")
    return text


@dataclass(frozen=True)
class History:
    """The comparison: every ``problem`` forbids going down, a ``note`` does not.

    :param down: what goes, newest first.
    :param rows: all of the database's lines, by migration.
    """

    down: list[Migration]
    problems: list[str]
    notes: list[str]
    rows: Mapping[str, list[Row]]
    stays: str


def compare(migrations: Sequence[Migration], rows: Iterable[Row], target: str, order: str = "strict") -> History:
    """What has to go down from the applied migrations so that ``target`` is the newest, and all that forbids it.

    :param target: a migration's name, or :data:`NONE_STAYS`.
    :param order: ``strict`` refuses what was applied in another order than the names'; ``applied`` takes that order.
    """
    known = {one.name: one for one in migrations}
    by_name: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row.started_at):
        by_name.setdefault(row.migration_name, []).append(row)
    problems, notes = _states(by_name)
    applied = [name for name, several in by_name.items() if any(row.applied for row in several)]
    problems += [
        f"{name} is applied, and unknown to the folder: it is another release's folder, or the migration was deleted "
        "from it"
        for name in applied
        if name not in known
    ]
    names = sorted(name for name in applied if name in known)
    newest = names[-1] if names else ""
    problems += [
        f"{name} was never applied, though the newer {newest} is"
        for name in known
        if name not in applied and name < newest
    ]
    if target != NONE_STAYS and target not in known:
        problems.append(f"prisma_down_to: {target} is not in the folder; expected one of its names, or {NONE_STAYS}")
    elif target != NONE_STAYS and target not in applied:
        problems.append(f"prisma_down_to: {target} is not applied, so it cannot be what stays")
    # In the order of application, a name's first success counts.
    when = {name: min(row.started_at for row in by_name[name] if row.applied) for name in names}
    in_time = sorted(names, key=lambda name: (when[name], name))
    sequence = in_time if order == "applied" else names
    first = sequence.index(target) + 1 if target in sequence else 0
    going = sequence[first:] if target in sequence or target == NONE_STAYS else []
    turned = [(late, early) for early, late in zip(in_time, in_time[1:]) if late < early]
    for late, early in turned:
        words = f"{late} was applied after {early}, which its name puts later"
        if order == "applied" or not {late, early} & set(going):
            notes.append(words)
        else:
            problems.append(
                f"{words}; where going down in the order of application is right: prisma_down_order: applied"
            )
    for name in names:
        if not known[name].is_the_one(next(row for row in by_name[name][::-1] if row.applied).checksum):
            if name in going:
                problems.append(
                    f"{name}: its migration.sql is not what was applied (checksum), so its down.sql may not fit"
                )
            else:
                notes.append(f"{name} stays, and its migration.sql is not what was applied (checksum)")
    return History([known[name] for name in reversed(going)], problems, notes, by_name, target)


def _states(by_name: Mapping[str, list[Row]]) -> tuple[list[str], list[str]]:
    """What is wrong with a migration's rows, and what is odd."""
    problems, notes = [], []
    for name, several in by_name.items():
        if any(row.failed for row in several):
            problems.append(
                f"{name} failed, or was never ended, and may stand half-way: look what of it stands in the database, "
                f"then `prisma migrate resolve --rolled-back {name}` (nothing) or `--applied {name}` (all)"
            )
        if sum(row.applied for row in several) > 1:
            notes.append(f"{name} stands {sum(row.applied for row in several)} times as applied; all of its rows go")
    return problems, notes
