"""Where backups lie: a folder of this host, a folder behind SSH, or an S3-compatible bucket.

All three list names, read a small file, fetch a file (from where an earlier attempt stopped) and store one under a
name that nobody has. Fetching and storing end within a deadline.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any, Protocol
from urllib.parse import unquote, urlsplit

from ..database.access import Deadline, limited, too_long, without_values
from ..errors import BalikError, Unreachable
from .choosing import Candidate
from .manifest import decoded, read_text

_CHUNK = 1024 * 1024
#: Bytes of a file that is read as a whole.
_SMALL = 16 * 1024**2
#: How a remote shell says that a file is not there; ssh's own errors are 255.
_MISSING = 44
#: What a file system without hard links says (CIFS, exFAT, FUSE).
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)
#: How often a fetch that broke off is gone on with.
_ATTEMPTS = 5
_SSH = ("-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3")

#: The arguments of a module that looks for backups; plugins/doc_fragments/backup_place.py documents them.
PLACE: dict[str, Any] = {
    "golive": {"type": "str", "default": ""},
    "ssh_options": {"type": "list", "elements": "str", "default": []},
    "s3": {
        "type": "dict",
        "default": {},
        "options": {
            "endpoint_url": {"type": "str"},
            "region": {"type": "str"},
            "access_key": {"type": "str", "no_log": True},
            "secret_key": {"type": "str", "no_log": True},
            "session_token": {"type": "str", "no_log": True},
        },
    },
}


class Place(Protocol):
    """A folder of backups."""

    @property
    def title(self) -> str:
        """As people call it, without secrets."""

    @property
    def identity(self) -> str:
        """What tells it from every other place, without secrets: two of one title may be of different servers."""

    def list(self) -> list[Candidate]:
        """All files; of a local folder also directories."""

    def read(self, name: str) -> str | None:
        """A small text file; None where it is not there."""

    def fetch(self, name: str, part: Path, deadline: Deadline) -> None:
        """Writes a file into ``part``, after what is there of it already."""

    def store(self, path: Path, name: str, deadline: Deadline) -> None:
        """Writes a file under a name that must be free; nobody sees half of it."""


@dataclass(frozen=True)
class Options:
    """What reaching a place takes beside its address.

    :param ssh: more options of ``ssh`` and ``sftp``.
    :param s3: ``endpoint_url``, ``region``, ``access_key``, ``secret_key``, ``session_token``; without them boto3's own
        chain (environment, ~/.aws, the instance's role).
    """

    ssh: Sequence[str] = ()
    s3: Mapping[str, str] = field(default_factory=dict, repr=False)


def place_of(address: str, options: Options | None = None) -> tuple[Place, str]:
    """The place of an address, and the name or pattern in it.

    :param address: ``/backups/x-YYYYMMDD.sql``, ``ssh://user@host:22/backups/x-YYYYMMDD.sql`` or
        ``s3://bucket/prefix/x-YYYYMMDD.sql``.
    :raises BalikError: it is none of these.
    """
    options = options or Options()
    if not address.strip():
        raise BalikError(
            "where the backup is (db_restore_backup)",
            "not set",
            "/folder/name, ssh://user@host/folder/name or s3://bucket/name",
        )
    if "://" not in address:
        path = Path(address)
        if not path.is_absolute():  # of what, the person and this process would say otherwise
            raise BalikError(
                "a backup's address", f"found {address!r}, a relative path", "/folder/name", "Write the whole path."
            )
        return Local(path.parent), path.name
    url = urlsplit(address)
    folder, _, name = unquote(url.path).rpartition("/")
    try:
        port = url.port or 0
    except ValueError:
        port = -1
    if url.password:
        raise BalikError("a backup's address", "it holds a password", "none: keys for SSH, credentials for S3 apart")
    if not name or not url.hostname or port < 0 or url.scheme not in ("ssh", "sftp", "s3"):
        raise BalikError(
            "a backup's address", f"found {address!r}", "/folder/name, ssh://user@host/folder/name or s3://bucket/name"
        )
    if url.scheme == "s3":
        return Bucket(url.netloc, folder.strip("/"), options.s3), name
    return Ssh(url.hostname, unquote(url.username or ""), port, folder or "/", options.ssh), name


@dataclass(frozen=True)
class Local:
    """A folder of this host."""

    folder: Path

    @property
    def title(self) -> str:
        return str(self.folder)

    @property
    def identity(self) -> str:
        return str(self.folder.absolute())

    def list(self) -> list[Candidate]:
        if not self.folder.is_dir():
            raise BalikError(str(self.folder), "no directory on this host", "the folder of the backups")
        found = []
        for entry in self.folder.iterdir():
            file = entry / "toc.dat" if entry.is_dir() else entry
            if file.is_file():
                about = file.stat()
                written = datetime.fromtimestamp(about.st_mtime, timezone.utc)
                found.append(Candidate(entry.name, about.st_size, written))
        return found

    def read(self, name: str) -> str | None:
        path = self.folder / name
        return read_text(path) if os.path.lexists(path) else None

    def fetch(self, name: str, part: Path, deadline: Deadline) -> None:
        with (self.folder / name).open("rb") as source, _appended(part) as target:
            source.seek(target.tell())
            for chunk in iter(lambda: source.read(_CHUNK), b""):
                _in_time(deadline, f"fetching {name}")
                target.write(chunk)

    def store(self, path: Path, name: str, deadline: Deadline) -> None:
        final = self.folder / name
        part = final.with_name(f"{name}.part-{os.getpid()}")
        part.unlink(missing_ok=True)
        try:
            with path.open("rb") as source, _appended(part) as target:
                for chunk in iter(lambda: source.read(_CHUNK), b""):
                    _in_time(deadline, f"storing {name}")
                    target.write(chunk)
            give_name(part, final)
        finally:
            part.unlink(missing_ok=True)


@dataclass(frozen=True)
class Ssh:
    """A folder on another host, by OpenSSH's own client: its configuration, its keys, its known hosts.

    The account needs sftp, and to list with times a shell with ``find``.
    """

    host: str
    user: str
    port: int
    folder: str
    options: Sequence[str] = ()

    @property
    def title(self) -> str:
        return f"{self._target}:{self.folder}"

    @property
    def identity(self) -> str:
        return repr(("ssh", self._target, self.port, self.folder, list(self.options)))

    @property
    def _target(self) -> str:
        return f"{self.user}@{self.host}" if self.user else self.host

    def _arguments(self, program: str, port: str) -> list[str]:
        if not shutil.which(program):
            raise BalikError(program, "not installed on this host", do="Run: apt-get install openssh-client")
        return [program, *_SSH, *self.options, *([port, str(self.port)] if self.port else [])]

    def _shell(self, command: str, limit: float = 30) -> subprocess.CompletedProcess[bytes]:
        try:
            return subprocess.run(
                [*self._arguments("ssh", "-p"), "--", self._target, command],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=limit,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise Unreachable(
                self.title, f"no answer within {limit:g} s", do="Check the host, and try it by hand."
            ) from None

    def list(self) -> list[Candidate]:
        done = self._shell(f"find {_quoted(self.folder)}/ -maxdepth 1 -type f -printf '%f\\0%s\\0%T@\\0'")
        if done.returncode:
            raise Unreachable(
                self.title,
                f"its files cannot be listed: {_complaint(done.stderr)}",
                do="Try it by hand: ssh " + self._target,
            )
        told = iter(done.stdout.decode("utf-8", "replace").split("\0"))  # which no name has in it
        return [
            Candidate(name, int(size), datetime.fromtimestamp(float(written), timezone.utc))
            for name, size, written in zip(told, told, told)
        ]

    def read(self, name: str) -> str | None:
        path = _quoted(f"{self.folder}/{name}")
        done = self._shell(f"test -e {path} || exit {_MISSING}; head -c {_SMALL} {path}")
        if done.returncode == _MISSING:
            return None
        if done.returncode:
            raise Unreachable(self.title, f"{name} cannot be read: {_complaint(done.stderr)}")
        return decoded(done.stdout, f"{name} in {self.title}")

    def fetch(self, name: str, part: Path, deadline: Deadline) -> None:
        _appended(part).close()
        self._sftp(
            [f"get -a {_sftp_path(f'{self.folder}/{name}')} {_sftp_path(str(part))}"], deadline, f"fetching {name}"
        )

    def store(self, path: Path, name: str, deadline: Deadline) -> None:
        final, part = f"{self.folder}/{name}", f"{self.folder}/{name}.part-{os.getpid()}"
        if self._shell(f"test -e {_quoted(final)}").returncode == 0:
            raise taken(name, self.title)
        # A plain rename fails where the name has been taken meanwhile; OpenSSH's own would replace it.
        steps = [f"put {_sftp_path(str(path))} {_sftp_path(part)}", f"chmod 600 {_sftp_path(part)}"]
        steps += [f"rename -l {_sftp_path(part)} {_sftp_path(final)}"]
        try:
            self._sftp(steps, deadline, f"storing {name}")
        except BalikError:
            self._shell(f"rm -f {_quoted(part)}")
            raise

    def _sftp(self, steps: Sequence[str], deadline: Deadline, what: str) -> None:
        with tempfile.TemporaryFile() as batch, tempfile.TemporaryFile() as err:
            batch.write("\n".join([*steps, ""]).encode())
            batch.seek(0)
            process = subprocess.Popen(
                [*self._arguments("sftp", "-P"), "-q", "-b", "-", "--", self._target],
                stdin=batch,
                stdout=subprocess.DEVNULL,
                stderr=err,
            )
            with limited(process, deadline) as over:
                code = process.wait()
            if over.is_set():
                raise too_long(what, deadline)
            if code:
                err.seek(0)
                raise Unreachable(self.title, f"{what}: {_complaint(err.read(100_000))}")


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _sftp_path(text: str) -> str:
    """A path as sftp's batch reads it: quoted, and with nothing left that would stand for other files."""
    return '"' + re.sub(r'([\\"*?\[\]])', r"\\\1", text) + '"'


def _complaint(stderr: bytes) -> str:
    lines = [line for line in stderr.decode("utf-8", "replace").splitlines() if line.strip()]
    return without_values(lines[-1]) if lines else "it said nothing"


@dataclass(frozen=True)
class Bucket:
    """A bucket of S3, or of what speaks its language (MinIO, Ceph, …), by boto3."""

    bucket: str
    prefix: str
    settings: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def title(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    @property
    def identity(self) -> str:
        return repr(("s3", self.settings.get("endpoint_url") or "", self.bucket, self.prefix))

    def _key(self, name: str) -> str:
        return f"{self.prefix}/{name}" if self.prefix else name

    def _client(self) -> Any:
        try:
            import boto3
            from botocore.config import Config
        except ImportError:
            raise BalikError(
                "Python's boto3", "not installed on this host", do="Run: apt-get install python3-boto3"
            ) from None
        given = self.settings
        names = {
            "endpoint_url": "endpoint_url",
            "region_name": "region",
            "aws_access_key_id": "access_key",
            "aws_secret_access_key": "secret_key",
            "aws_session_token": "session_token",
        }
        with _told(self.title):
            return boto3.client(
                "s3",
                config=Config(connect_timeout=10, read_timeout=30, retries={"max_attempts": 3}),
                **{name: given[key] for name, key in names.items() if given.get(key)},
            )

    def list(self) -> list[Candidate]:
        prefix = f"{self.prefix}/" if self.prefix else ""
        client, found = self._client(), []
        with _told(self.title):
            pages = client.get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self.bucket, Prefix=prefix, Delimiter="/"):
                for each in page.get("Contents", ()):
                    written = each["LastModified"].astimezone(timezone.utc)
                    found.append(Candidate(each["Key"][len(prefix) :], each["Size"], written))
        return [each for each in found if each.name]

    def read(self, name: str) -> str | None:
        client = self._client()
        with _told(self.title, missing=True):
            data = client.get_object(Bucket=self.bucket, Key=self._key(name))["Body"].read(_SMALL)
            return decoded(data, f"{name} in {self.title}")
        return None

    def fetch(self, name: str, part: Path, deadline: Deadline) -> None:
        client, key, what = self._client(), self._key(name), f"fetching {name}"
        from botocore.exceptions import BotoCoreError, IncompleteReadError

        with _told(self.title):
            about = client.head_object(Bucket=self.bucket, Key=key)
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                with _appended(part) as target:
                    if target.tell() >= about["ContentLength"]:
                        return
                    with _told(self.title):
                        body = client.get_object(
                            Bucket=self.bucket, Key=key, Range=f"bytes={target.tell()}-", IfMatch=about["ETag"]
                        )["Body"]
                    for chunk in body.iter_chunks(_CHUNK):
                        _in_time(deadline, what)
                        target.write(chunk)
                return
            except (OSError, BotoCoreError, IncompleteReadError) as error:
                if attempt == _ATTEMPTS or (isinstance(error, OSError) and error.errno == 28):
                    raise Unreachable(
                        self.title, f"{what}: {without_values(str(error))} ({attempt} attempts)", do="Run it again."
                    ) from None

    def store(self, path: Path, name: str, deadline: Deadline) -> None:
        client, key = self._client(), self._key(name)
        with _told(self.title, missing=True):
            client.head_object(Bucket=self.bucket, Key=key)
            raise taken(name, self.title)
        with _told(self.title):
            client.upload_file(
                str(path), self.bucket, key, Callback=lambda _bytes: _in_time(deadline, f"storing {name}")
            )


@contextmanager
def _told(title: str, missing: bool = False) -> Iterator[None]:
    """What boto3 raises, as ours.

    :param missing: an object that is not there is no error: what follows the block goes on.
    """
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        if missing and code in ("404", "NoSuchKey", "NotFound"):
            return
        raise Unreachable(
            title, f"refused: {code}", do="Check the bucket's name, the endpoint and the rights."
        ) from None
    except (BotoCoreError, Boto3Error) as error:
        raise Unreachable(
            title, without_values(str(error)), do="Check the endpoint and the credentials (db_restore_s3)."
        ) from None


def private(folder: Path) -> None:
    """Makes a folder for its owner only, and so what is missing above it.

    :raises BalikError: it cannot be made.
    """
    try:
        for each in (*reversed(folder.parents), folder):
            each.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        found = "no folder" if isinstance(error, FileExistsError) else f"cannot be made: {error.strerror}"
        raise BalikError(
            str(error.filename),
            found,
            f"a folder, for {folder}",
            "Name another folder (db_restore_backup_dir), or let its user make this one.",
        ) from None


def give_name(part: Path, final: Path) -> None:
    """A file's name, which nobody may have. A link never takes another's place, as a rename does.

    :raises BalikError: somebody has it.
    """
    try:
        os.link(part, final)
    except FileExistsError:
        raise taken(final.name, str(final.parent)) from None
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        part.rename(final)  # a name that is taken would have been said first
    else:
        part.unlink()


def taken(name: str, title: str) -> BalikError:
    """The error for a name that somebody has."""
    return BalikError(
        f"{name} in {title}", "exists already", "a free name", "Nothing is replaced: choose another name."
    )


def _in_time(deadline: Deadline, what: str) -> None:
    if deadline.left() <= 0:
        raise too_long(what, deadline)


def _appended(path: Path) -> IO[bytes]:
    """A file for its owner only, to be written at its end."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab")
