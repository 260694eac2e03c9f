"""What a restore takes away, kept as files: CSV with a header, one for each table and kind, and a manifest.

Written for its owner only, into a folder that appears when it is whole. Rows go from the server into the files; only
keys pass through this process, a few thousand at a time.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Any

from ..backups.manifest import digest
from ..database.access import limited
from ..errors import BalikError
from ..units import counted, iso
from .compare import LARGE_OBJECTS, Difference, Pair, Table
from .psql import Psql, literal, name
from .statement import Asked, Compared, compared, taken_at

FORMAT = 1
_OURS = "balik_loss"
_KEYS = 2000
_HASHES = 50_000


def export(asked: Asked, folder: str, kept: str = "") -> dict[str, Any]:
    """Compares and writes down what differs; nothing if this run did so before.

    :param folder: where the run's own folder is made: ``<folder>/<database>-<run>.lost``.
    :param kept: the database that was live before the restore; it takes no connections but ours, so that this is
        exactly what was lost, to the last write before the swap. Empty: the live one, as it is now.
    :return: the manifest with ``folder`` and ``changed``.
    :raises BalikError: it could not be compared or written; nothing is left half-done.
    """
    final = Path(folder) / f"{_plain(asked.database)}-{asked.run}.lost"
    if final.is_dir():
        return {**_read(final), "folder": str(final), "changed": False}
    part = final.with_name(f"{final.name}.part-{os.getpid()}")
    for stale in final.parent.glob(f"{final.name}.part-*"):
        shutil.rmtree(stale, ignore_errors=True)
    final.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    part.mkdir(mode=0o700)
    source = asked if not kept else Asked(**{**vars(asked), "database": kept})
    try:
        with compared(source, closed=bool(kept)) as done:
            manifest = _write(asked, done, part, kept)
        part.rename(final)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return {**manifest, "folder": str(final), "changed": True}


def told(manifest: Mapping[str, Any]) -> list[str]:
    """What was exported, as people read it."""
    files = manifest["files"]
    rows = sum(each["rows"] for each in files)
    source = f"{manifest['from']} (kept, to the last write before the swap)"
    if manifest["from"] == manifest["database"]:
        source = f"{manifest['database']} as it was {manifest['at'][:19]}Z"
    objects = [f"  {each['table']}: {each['note']}" for each in manifest["tables"] if each["table"] == LARGE_OBJECTS]
    if not files and objects:
        return [f"what was lost of {source} stands in no file", *objects]
    if not files:
        return [f"nothing was lost: {source} holds nothing that {manifest['backup']} does not"]
    return [
        f"what was lost is kept: {counted(rows, 'row')} in {counted(len(files), 'file')} in {manifest['folder']},"
        f" from {source}",
        *(f"  {each['file']}: {counted(each['rows'], 'row')} {each['kind']} of {each['table']}" for each in files[:20]),
        *([f"  and {counted(len(files) - 20, 'more file')}; manifest.json has all"] if len(files) > 20 else []),
        *objects,
    ]


def _read(final: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((final / "manifest.json").read_text())
    except (OSError, ValueError) as error:
        raise BalikError(str(final), f"its manifest cannot be read: {error}", do="Move the folder away.") from None
    return found


def _write(asked: Asked, done: Compared, folder: Path, kept: str) -> dict[str, Any]:
    pairs = {pair.now.title: pair for pair in done.pairs}
    files: list[dict[str, Any]] = []
    for found in done.differences:
        if found.how == "unknown" and found.table != LARGE_OBJECTS:
            raise BalikError(f"table {found.table}", found.note, do="Mend that, then export again.")
        table = done.comparison.tables.get(found.table)
        if table is None or found.none:
            continue  # dropped since: the restore brings its rows back
        for kind, rows, columns, write in _parts(done, found, table, pairs.get(found.table)):
            place = folder / f"{len(files):03}-{_plain(found.table)}.{kind}.csv"
            with _new(place) as file:
                write(file)
            files.append(_entry(place, found.table, kind, rows, columns, table))
    taken, taken_by = taken_at(asked.backup)
    manifest = {
        "format": FORMAT,
        "database": asked.database,
        "run": asked.run,
        "from": kept or asked.database,
        "backup": asked.backup,
        "backup_taken": iso(taken) if taken else None,
        "backup_taken_by": taken_by,
        "at": iso(done.at),
        "files": files,
        "sequences": done.sequences,
        "tables": [each.as_dict() for each in done.differences if not each.none],
    }
    with _new(folder / "manifest.json") as file:
        file.write((json.dumps(manifest, ensure_ascii=False, indent=1) + "\n").encode())
    return manifest


# A value may be as long as PostgreSQL's longest; Python's own limit is 128 KB.
csv.field_size_limit(1 << 30)


def _entry(place: Path, table: str, kind: str, rows: int, columns: Sequence[str], of: Table) -> dict[str, Any]:
    with place.open(newline="") as file:
        found = sum(1 for _ in csv.reader(file)) - 1
    if found != rows:
        raise BalikError(str(place), f"{found:,} rows were written", f"{rows:,}, as were counted", "Export again.")
    return {
        "file": place.name,
        "table": table,
        "kind": kind,
        "rows": rows,
        "columns": list(columns),
        "key": list(of.key),
        "sha256": digest(place),
    }


def _new(place: Path) -> IO[bytes]:
    return os.fdopen(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")


def _plain(text: str) -> str:
    return re.sub(r"[^\w.-]", "_", text)


def _parts(
    done: Compared, found: Difference, table: Table, pair: Pair | None
) -> Iterator[tuple[str, int, list[str], Callable[[IO[bytes]], None]]]:
    """For each file of a table: kind, rows, columns, and what writes it."""
    now, scratch, columns = done.comparison.now, done.scratch, table.writable
    if pair is None:
        if found.inserted:
            query = f"SELECT {_listed(columns)} FROM {table.source}"
            yield "inserted", found.inserted, columns, partial(_copy, now, [query], columns)
        return
    by_key = bool(pair.key)
    for kind in ("inserted", "changed"):
        rows = getattr(found, kind)
        if rows:
            reader = _by_key if by_key else _by_hash
            yield kind, rows, columns, partial(_copy, now, reader(done, pair, kind), columns)
    if found.deleted:
        then = [column for column in pair.then.columns if not pair.then.columns[column]["generated"]]
        query = _deleted_by_key(pair, then) if by_key else _deleted_by_hash(pair, then)
        yield "deleted", found.deleted, then, partial(_copy, scratch, [query], then)
    added = [column for column, values in found.columns.items() if values]
    if added:
        kept = [*pair.key, *(column for column in added if column not in pair.key)] if by_key else columns
        where = " OR ".join(f"{name(column)} IS NOT NULL" for column in added)
        rows = now.one(f"SELECT count(*) AS n FROM {table.source} WHERE {where}")["n"]
        query = f"SELECT {_listed(kept)} FROM {table.source} WHERE {where}"
        yield "columns", rows, kept, partial(_copy, now, [query], kept)


def _listed(columns: Sequence[str], of: str = "") -> str:
    return ", ".join(f"{of}{name(column)}" for column in columns)


def _by_key(done: Compared, pair: Pair, kind: str) -> Iterator[str]:
    """The rows of now whose keys differ, a few thousand at a time: found by the key's index."""
    names = [f"k{number}" for number in range(len(pair.key))]
    differs = name(_OURS, f"d{pair.number}")
    keys = _stream(done.scratch, f"SELECT {', '.join(names)} FROM {differs} WHERE kind = {literal(kind)}")
    types = [f"v.{k}::{pair.key_type(column)}" for k, column in zip(names, pair.key)]
    same = " AND ".join(f"{key} = {k}" for key, k in zip(pair.keys_of("t."), types))
    while batch := list(islice(keys, _KEYS)):
        values = ", ".join("(" + ", ".join(map(literal, row)) + ")" for row in batch)
        yield (
            f"SELECT {_listed(pair.now.writable, 't.')} FROM {pair.now.source} t"
            f" JOIN (VALUES {values}) v({', '.join(names)}) ON {same}"
        )


def _by_hash(done: Compared, pair: Pair, _kind: str) -> Iterator[str]:
    """Of each content, as many rows as there are more of now."""
    hashes = _stream(done.scratch, f"SELECT h, n FROM {name(_OURS, f'd{pair.number}')} WHERE n > 0")
    while batch := list(islice(hashes, _HASHES)):
        values = ", ".join(f"({h}, {n})" for h, n in batch)
        yield (
            f"SELECT {_listed(pair.now.writable, 'x.')} FROM {_numbered(pair, pair.now)} x"
            f" JOIN (VALUES {values}) v(h, n) ON x.balik_h = v.h WHERE x.balik_n <= v.n"
        )


def _deleted_by_key(pair: Pair, columns: Sequence[str]) -> str:
    same = " AND ".join(f"{key} = d.k{number}" for number, key in enumerate(pair.keys_of("t.")))
    differs = name(_OURS, f"d{pair.number}")
    return (
        f"SELECT {_listed(columns, 't.')} FROM {pair.then.source} t JOIN {differs} d ON {same} WHERE d.kind = 'deleted'"
    )


def _deleted_by_hash(pair: Pair, columns: Sequence[str]) -> str:
    return (
        f"SELECT {_listed(columns, 'x.')} FROM {_numbered(pair, pair.then)} x"
        f" JOIN {name(_OURS, f'd{pair.number}')} d ON x.balik_h = d.h WHERE x.balik_n <= -d.n"
    )


def _numbered(pair: Pair, table: Table) -> str:
    """The table with each row's hash, and its number among those of the same content; it may have no column at all."""
    hashed = f"(SELECT *, {pair.hash} AS balik_h FROM {table.source})"
    return f"(SELECT *, row_number() OVER (PARTITION BY balik_h) AS balik_n FROM {hashed} y)"


def _stream(database: Psql, query: str) -> Iterator[list[str]]:
    """Rows of a query as they come."""
    script = "\n".join(["\\set ON_ERROR_STOP 1", *database.begin, f"COPY ({query}) TO STDOUT (FORMAT csv);"])
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as err:
        given.write(script.encode() + b"\n")
        given.seek(0)
        process = subprocess.Popen(
            database.command, stdin=given, stdout=subprocess.PIPE, stderr=err, env=database.environment
        )
        assert process.stdout
        with limited(process, database.deadline) as over, process.stdout:
            yield from csv.reader(io.TextIOWrapper(process.stdout, "utf-8", newline=""))
            database.judge(process.wait(), over.is_set(), err)


def _copy(database: Psql, queries: Iterator[str] | Sequence[str], columns: Sequence[str], file: IO[bytes]) -> None:
    """Rows of all queries into one CSV file, of one moment."""
    header = io.StringIO()
    csv.writer(header, lineterminator="\n").writerow(columns)
    file.write(header.getvalue().encode())
    file.flush()
    with tempfile.TemporaryFile() as err:
        process = subprocess.Popen(
            database.command, stdin=subprocess.PIPE, stdout=file, stderr=err, env=database.environment
        )
        assert process.stdin
        with limited(process, database.deadline) as over:
            try:
                process.stdin.write("\n".join(["\\set ON_ERROR_STOP 1", *database.begin, ""]).encode())
                for query in queries:
                    process.stdin.write(f"COPY ({query}) TO STDOUT (FORMAT csv);\n".encode())
                process.stdin.close()
            except BrokenPipeError:
                process.stdin = None  # psql ended before; it says why
            code = process.wait()
        database.judge(code, over.is_set(), err)
    file.flush()
    os.fsync(file.fileno())
