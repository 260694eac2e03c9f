"""A backup made before go-live, with its manifest: all of one moment, under a name that nobody has.

``pg_dump`` and the counting of rows see the same snapshot. The file appears under its name when it is whole.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from ..database import backup
from ..database.access import Access, Deadline, Programs, complaint, limited, run, too_long
from ..database.space import human
from ..database.topology import LOCKERS, lock_wait, lockers_named
from ..errors import BalikError
from ..loss.compare import counters, tables
from ..loss.psql import Psql, literal, reach
from ..units import iso, parse_time, utc_now
from .choosing import ENDINGS, fill, zone_of
from .manifest import FORMAT, UNSTORED, manifest_of, read_text, sums, verify, write_manifest
from .places import Place, give_name, private, taken

TOOL = "balik 0.1.0"
_PACKERS = {".gz": ["gzip", "-c", "-6"], ".zst": ["zstd", "-c", "-q", "-3"], ".zstd": ["zstd", "-c", "-q", "-3"]}
_ABOUT = """
SELECT current_setting('server_version') AS version, pg_database_size(current_database()) AS size,
  (SELECT to_char(stats_reset, 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') FROM pg_stat_database
    WHERE datname = current_database()) AS since
"""


@dataclass(frozen=True)
class Wanted:
    """What is to be backed up, and where to.

    :param pattern: path whose name may hold ``YYYYMMDD`` and the like; its ending says the format.
    :param golive: ISO 8601; a name's date is written in its zone (UTC without it).
    :param lock_limit: seconds to wait for a lock that another session holds.
    :param elsewhere: it goes to another place then; one that was made for that and never stored is taken again.
    """

    access: Access
    database: str
    pattern: str
    golive: str = ""
    jobs: int = 1
    limit: float = 7200
    lock_limit: float = 10
    ignore_space: bool = False
    maintenance: str = "postgres"
    programs: str = ""
    elsewhere: bool = False


def make(wanted: Wanted, dry: bool = False) -> dict[str, Any]:
    """Makes it.

    :param dry: only find every reason why it could not be made.
    :return: ``path``, ``manifest``, ``says``, ``changed``.
    :raises BalikError: the name is taken, the disk too small, or ``pg_dump`` failed; nothing is left half-done.
    """
    deadline = Deadline(wanted.limit)
    server, _major = reach(wanted.access, wanted.maintenance, deadline, wanted.programs)
    if not server.rows(f"SELECT 1 AS one FROM pg_database WHERE datname = {literal(wanted.database)}"):
        raise BalikError(f"database {wanted.database}", f"not on {wanted.access.where}", do="Check its name.")
    final = Path(fill(wanted.pattern, utc_now().astimezone(zone_of(wanted.golive))))
    if not final.name.endswith(ENDINGS):
        raise BalikError(str(final), "its ending says no format", f"one of {', '.join(ENDINGS)}")
    if final.exists():
        return _made_before(wanted, final)
    database = server.to(wanted.database)
    about = database.one(_ABOUT)
    _room(final, about["size"], wanted.ignore_space)
    late = _late(wanted.golive, utc_now())
    if dry:
        return {
            "changed": True,
            "path": str(final),
            "manifest": {},
            "says": f"would back up {wanted.database} ({human(about['size'])}) as {final}{late}",
        }
    private(final.parent)
    with _part_of(final) as part:
        manifest = _dumped(wanted, database, final, part, deadline)
        manifest.update(server_version=about["version"].split()[0], statistics_since=about["since"])
        _publish(part, final, manifest, wanted.elsewhere)
    rows = sum(each["rows"] or 0 for each in manifest["tables"].values())
    size, moment = human(manifest["size"]), manifest["taken"]
    says = f"{wanted.database} is backed up as {final}: {size}, {rows:,} rows, of {moment}{late}"
    return {"changed": True, "path": str(final), "manifest": manifest, "says": says}


def _made_before(wanted: Wanted, final: Path) -> dict[str, Any]:
    """One that is whole and as its manifest says, and could not be stored where it belongs.

    One that was stored is none: where the place has it no more, somebody wanted that.

    :raises BalikError: it is none, is another database's, or belongs here, where nothing is replaced.
    """
    if not (wanted.elsewhere and _unstored(final).exists()):
        raise taken(final.name, str(final.parent))
    try:
        manifest, said = verify(final, backup.kind_of(final))
    except BalikError as error:
        error.do = "It cannot be stored. Remove it, and run again."
        raise
    if manifest is None:
        raise taken(final.name, str(final.parent))
    if manifest["database"] != wanted.database:
        raise BalikError(
            f"{final.name} in {final.parent}",
            f"exists already, of the database {manifest['database']}",
            f"a free name for one of {wanted.database}",
            "Nothing is replaced: give this one another name or prefix.",
        )
    late = _late(wanted.golive, parse_time(manifest["taken"]))
    return {"changed": True, "path": str(final), "manifest": manifest, "says": f"{final} was made before, {said}{late}"}


def _late(golive: str, moment: datetime) -> str:
    """By its manifest, a snapshot that is made after go-live is refused, also where it is named; so who makes it should
    know."""
    if not golive or moment < parse_time(golive, "golive"):
        return ""
    return f". BEWARE: go-live was at {golive}; this backup is younger, and no rollback of that release will take it"


def _room(final: Path, size: int, ignore_space: bool) -> None:
    parent = final.parent
    while not parent.is_dir() and parent != parent.parent:
        parent = parent.parent
    if not os.access(parent, os.W_OK | os.X_OK):
        raise BalikError(str(final.parent), "cannot be written by this user", "a folder for the backup")
    # Without its indexes, a database as SQL is rarely larger than itself; compressed, than half of it.
    wanted = size if final.name.endswith(".sql") else size // 2
    free = shutil.disk_usage(parent).free
    if wanted > free and not ignore_space:
        raise BalikError(
            f"the disk of {parent}",
            f"{human(free)} free",
            f"about {human(wanted)}",
            "Make room, or set db_restore_ignore_space after having looked.",
        )


def _dumped(wanted: Wanted, database: Psql, final: Path, part: Path, deadline: Deadline) -> dict[str, Any]:
    programs = Programs(Path(database.programs), 0)
    before = counters(database)
    with database.steady() as now, ThreadPoolExecutor(1) as counter:
        moment = utc_now()
        patient = {**now.settings, "lock_timeout": f"{round(wanted.lock_limit * 1000)}ms"}
        counted = counter.submit(_counted, replace(now, settings=patient))
        with lockers_named(wanted.database, lambda: [(row["datname"], row["who"]) for row in database.rows(LOCKERS)]):
            try:
                _dump(wanted, now, programs, part, deadline, final.name)
            except BalikError as error:
                if "permission denied" in error.found:
                    error.do = (
                        f"Take a role that may read all, or: GRANT pg_read_all_data TO {wanted.access.user or 'it'}"
                    )
                raise
        rows = counted.result()
    kind = backup.kind_of(part)
    backup.glance(part, kind, programs, deadline)
    told = subprocess.run([programs["pg_dump"], "--version"], capture_output=True, text=True, check=True, timeout=30)
    return {
        "format": FORMAT,
        "tool": TOOL,
        "pg_dump": told.stdout.split()[2],
        "file": final.name,
        "kind": kind,
        "database": wanted.database,
        "taken": iso(moment),
        "finished": iso(utc_now()),
        "tables": {title: {"rows": count, **before.get(title, {})} for title, count in rows.items()},
        **sums(part),
    }


def _counted(now: Psql) -> dict[str, int | None]:
    """Rows of each table at the snapshot; None where they may not be read."""
    there = tables(now)
    answers = now.each([f"SELECT count(*) AS n FROM {table.source}" for table in there.values()], tolerant=True)
    return {title: found[0].get("n") for title, found in zip(there, answers)}


def _dump(wanted: Wanted, now: Psql, programs: Programs, part: Path, deadline: Deadline, name: str) -> None:
    environment = wanted.access.environment(wanted.database)
    command = [programs["pg_dump"], "-w", f"--snapshot={now.snapshot}", lock_wait(wanted.lock_limit)]
    what = f"the backup of {wanted.database}"
    packer = next((pack for ending, pack in _PACKERS.items() if name.endswith(ending)), None)
    if packer:
        _packed([*command, "-Fp"], packer, environment, part, deadline, what)
    elif name.endswith(".sql"):
        run([*command, "-Fp", "-f", str(part)], environment, deadline, what)
    elif name.endswith(".dir"):
        run([*command, "-Fd", "-j", str(wanted.jobs), "-f", str(part)], environment, deadline, what)
    else:
        run([*command, "-Fc", "-f", str(part)], environment, deadline, what)


def _packed(
    command: list[str], packer: list[str], environment: dict[str, str], part: Path, deadline: Deadline, what: str
) -> None:
    if not shutil.which(packer[0]):
        raise BalikError(packer[0], "not installed on this host", do=f"Run: apt-get install {packer[0]}")
    with part.open("wb") as file, tempfile.TemporaryFile() as err, tempfile.TemporaryFile() as err2:
        dumping = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=err, env=environment
        )
        packing = subprocess.Popen(packer, stdin=dumping.stdout, stdout=file, stderr=err2)
        assert dumping.stdout
        dumping.stdout.close()
        with limited(dumping, deadline) as over, limited(packing, deadline):
            codes = packing.wait(), dumping.wait()
        if over.is_set():
            raise too_long(what, deadline)
        for code, said, program in ((codes[1], err, "pg_dump"), (codes[0], err2, packer[0])):
            if code:
                raise BalikError(what, f"{program} ended with {code}: {complaint(said)}")


def _publish(part: Path, final: Path, manifest: dict[str, Any], elsewhere: bool = False) -> None:
    """The part under its name, on the disk; never in the place of another, and never without its manifest.

    Whoever is killed in between leaves a manifest of nothing, which the next one replaces.

    :param elsewhere: it is to be stored in another place yet, and marked so.
    """
    for each in sorted(part.iterdir()) if part.is_dir() else [part]:
        _sync(each)
    with _alone_in(final.parent):
        if final.exists():
            raise taken(final.name, str(final.parent))
        try:
            write_manifest(final, manifest)
            _write_sums(final, manifest)
            if elsewhere:
                _unstored(final).touch(mode=0o600)
            if part.is_dir():
                part.rename(final)  # replaces an empty folder only
            else:
                give_name(part, final)
        except BaseException as error:
            for beside in (manifest_of(final), _sums_of(final), _unstored(final)):
                beside.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise BalikError(
                    str(final.parent),
                    f"the backup is whole, and cannot get its name or manifest: {error.strerror}",
                    do="It is removed again. Make room, or set that right, and run again.",
                ) from None
            raise
        _sync(final.parent)


@contextmanager
def _part_of(final: Path) -> Iterator[Path]:
    """A new file or folder for what is written, which is removed again if that fails; it is locked meanwhile, so that
    nobody takes it for what a killed start left, which is removed here.

    :raises BalikError: somebody else is making this backup.
    """
    part = final.with_name(f"{final.name}.part-{os.getpid()}")
    with _alone_in(final.parent):
        for left in final.parent.glob(f"{final.name}.part-*"):
            _remove_left(left, final)
        if final.name.endswith(".dir"):
            part.mkdir(mode=0o700)
        else:
            part.touch(mode=0o600, exist_ok=False)
        try:
            handle = _locked(part)
        except BaseException:
            _remove(part)
            raise
    try:
        yield part
    except BaseException:
        _remove(part)
        raise
    finally:
        os.close(handle)


def _remove_left(left: Path, final: Path) -> None:
    """Remove what a killed start left.

    :raises BalikError: somebody is at work on it, or it is another user's.
    """
    try:
        os.close(_locked(left))
    except FileNotFoundError:
        return  # finished or given up just now
    except BlockingIOError:
        raise BalikError(
            str(final), "another process is making it", "nobody else", "Wait for it, and look at its result."
        ) from None
    except OSError as error:
        raise BalikError(
            str(left),
            f"an unfinished backup that cannot be looked at: {error.strerror}",
            do="See whose it is; remove it if nobody is making it any more.",
        ) from None
    _remove(left)


def _locked(path: Path) -> int:
    """A handle of a file or folder of ours, which holds its lock until it is closed.

    :raises BlockingIOError: somebody else has it.
    """
    # NFS locks a file only for who may write to it; a folder nobody opens for writing.
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        _lock(handle, path.parent, fcntl.LOCK_NB)
    except BaseException:
        os.close(handle)
        raise
    return handle


def _lock(handle: int, folder: Path, how: int = 0) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | how)
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP):
            raise
        raise BalikError(
            str(folder), "nothing can be locked there", "a file system with locks", "Name another folder."
        ) from None


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Nobody else gives a file of this folder its name meanwhile."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        _lock(handle, folder)
        yield
    finally:
        os.close(handle)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sums_of(final: Path) -> Path:
    return final.with_name(final.name + ".sha256")


def _unstored(final: Path) -> Path:
    return final.with_name(final.name + UNSTORED)


def _write_sums(final: Path, manifest: dict[str, Any]) -> None:
    """For ``sha256sum -c``, and for whoever has no eye for manifests."""
    files = {name: each["sha256"] for name, each in (manifest.get("files") or {}).items()}
    lines = [f"{sha}  {final.name}/{name}" for name, sha in files.items()] or [f"{manifest['sha256']}  {final.name}"]
    with os.fdopen(os.open(_sums_of(final), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write("\n".join([*lines, ""]))


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def store(place: Place, path: Path, deadline: Deadline, dry: bool = False) -> str:
    """A backup with its manifest in another place; the manifest last, so that who finds it finds all.

    The checksum goes first: where the place has it and no manifest, an earlier start of this broke off, and is gone on
    with.

    :param dry: only find whether the name is free.
    :raises BalikError: a name is taken, or the place refused; the backup on this host stays.
    """
    if path.is_dir():
        raise BalikError(str(path), "a directory", "one file (.sql, .sql.gz, .sql.zst or .dump) for another place")
    there = {each.name: each.size for each in place.list()}
    sums, manifest = _sums_of(path), manifest_of(path)
    in_the_way = [each.name for each in (path, sums, manifest) if each.name in there]
    same = (
        path.exists()
        and sums.name in there
        and place.read(sums.name) == read_text(sums)
        and there.get(path.name) in (None, path.stat().st_size)
    )
    broke_off = same and manifest.name not in there
    if same and path.name in there and not broke_off and not dry:
        _unstored(path).unlink(missing_ok=True)  # an earlier start was killed at its very end
    if in_the_way and not broke_off:
        raise taken(in_the_way[0], place.title)
    if dry:
        return f"would be stored in {place.title}"
    for each in (sums, path, manifest):
        if not (broke_off and each.name in there):
            place.store(each, each.name, deadline)
    _unstored(path).unlink(missing_ok=True)
    return f"stored in {place.title}"
