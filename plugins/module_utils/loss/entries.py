"""What the record says of losses: told before the decision, kept after the restore."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..record import Entry

TOLD = "loss"
EXPORTED = "loss-exported"
#: The steps whose doing loses something: what was written since a backup, and what a migration's way down drops.
STEP = "db-restore"
DOWN = "prisma-down"


def newest(entries: Iterable[Entry], kind: str, run: str) -> Mapping[str, Any]:
    """What was told, or exported, in a run, by host; ``{}`` where nothing was."""
    found: Mapping[str, Any] = {}
    for entry in entries:
        if entry.kind == kind and entry.run == run and isinstance(entry.body.get("hosts"), dict):
            found = entry.body["hosts"]
    return found


def text(found: Mapping[str, Any]) -> str:
    """What was told, as lines for a message; empty where nothing was."""
    lines = []
    for host, lost in found.items():
        said = [str(line) for line in lost.get("says") or ()]
        lines += [f"{host}: {line}" if number == 0 else line for number, line in enumerate(said)]
    return "\n".join(lines)
