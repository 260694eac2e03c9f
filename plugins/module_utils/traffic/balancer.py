"""What the two load balancers have in common."""

from __future__ import annotations

import os
import shlex
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import BalikError
from .page import Page

_COMMAND_LIMIT = 30.0


@dataclass(frozen=True)
class State:
    """What stands now.

    :param on: the page is served.
    :param kept: the page will be served after a reload or restart; the same as ``on`` unless a switch was interrupted.
    """

    on: bool
    kept: bool

    def is_fully(self, on: bool) -> bool:
        return self.on is on and self.kept is on


@dataclass(frozen=True)
class File:
    """A file that the load balancer reads; a ``secret`` one is for its owner and group, and never shown."""

    path: Path
    content: str
    secret: bool = False


class Balancer(ABC):
    """A load balancer on this host that was told once how to serve the page, and is now told whether.

    :cvar title: its name for people.
    """

    title: str

    @abstractmethod
    def read(self) -> State:
        """:raises BalikError: the switch cannot be read, so it cannot be thrown either."""

    @abstractmethod
    def switch(self, on: bool) -> None:
        """Throws the switch, at once and without a reload; first what survives a restart, then what is live.

        :raises BalikError: it could not be thrown.
        """

    @abstractmethod
    def files(self, page: Page, bypass: str) -> list[File]:
        """What :meth:`validate` and :meth:`reload` need to find on the disk."""

    @abstractmethod
    def missing(self) -> list[str]:
        """What its owner still has to write into its configuration, as instructions; empty when all is there."""

    @abstractmethod
    def validate(self) -> None:
        """:raises BalikError: it refuses its configuration; with its own words."""

    @abstractmethod
    def reload(self) -> None:
        """:raises BalikError: the reload could not be asked for."""


def run(what: str, command: str, *arguments: str, do: str = "") -> str:
    """What a command printed on standard output.

    :param command: as in a shell, without expansions: ``docker exec web nginx``.
    :raises BalikError: it is not there, takes longer than half a minute, or fails; with the end of its words.
    """
    line = [*shlex.split(command), *arguments]
    try:
        done = subprocess.run(
            line,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_COMMAND_LIMIT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired, IndexError) as error:
        raise BalikError(what, f"`{shlex.join(line)}` could not be run: {error}", do=do) from error
    if done.returncode:
        words = " / ".join((done.stderr.strip() or done.stdout.strip()).splitlines()[-4:])
        raise BalikError(what, f"`{shlex.join(line)}` ended with {done.returncode}: {words}", do=do)
    return done.stdout


def read_text(path: Path) -> str | None:
    """The file's text, or ``None`` where there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None


def need_writable(folder: Path, title: str) -> None:
    """:raises BalikError: files cannot be made in ``folder``."""
    if not folder.is_dir():
        raise BalikError(
            str(folder), "no such folder", f"the one that holds {title}'s switch", "Run maintenance-page's `prepare`."
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise BalikError(
            str(folder),
            f"not writable for user id {os.geteuid()}",
            f"to be, since the switch of {title} is in it",
            "Use `become: true`, or give the folder to the user that Ansible logs in as.",
        )


def names(values: Sequence[str]) -> str:
    """``a, b``, or ``none``."""
    return ", ".join(values) or "none"
