"""From a module's arguments to its result: which backend, which entry point, what it says."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from ..errors import BalikError
from ..units import format_duration, parse_duration
from . import compose, revert
from .engine import Engine, shorten
from .revert import Job, Settings, Wanted

Json = dict[str, Any]


def run(arguments: Mapping[str, Any], check_mode: bool) -> Json:
    """Do what ``arguments["entry"]`` says; the module's result.

    :raises BalikError: for whatever a person must read.
    """
    given = [key for key in ("containers", "labels", "compose") if arguments.get(key)]
    if len(given) != 1:
        raise BalikError(
            "What to bring back",
            f"{' and '.join(given)} are given"
            if given
            else "neither containers nor labels nor a Compose project is given",
            "exactly one of containers, labels and compose",
        )
    engine = Engine(arguments["docker_host"], arguments.get("cert_path") or "")
    settings = Settings(
        arguments["run_id"],
        arguments["pull"],
        parse_duration(arguments["steady"], "steady"),
        arguments["parallel"],
    )
    project = compose.Project.of(engine, arguments["compose"]) if arguments.get("compose") else None
    wanted = project.wanted(_limit(arguments)) if project else _wanted(engine, arguments)
    entry, saved = arguments["entry"], arguments.get("saved") or {}
    begun = time.monotonic()
    if entry == "check" or (entry == "main" and check_mode):
        jobs = project.examine(wanted, settings) if project else revert.examine(engine, wanted, settings)
        return _found(jobs, entry)
    if entry == "undo" and check_mode:
        return _would_undo(engine, wanted, saved)
    if entry == "verify":
        seen = project.verify(wanted, settings) if project else revert.verify(engine, wanted, settings)
        return {
            "changed": False,
            "says": "; ".join(f"{name}: {words}" for name, words in seen.items()),
            "evidence": {"containers": seen, "seconds": _since(begun)},
        }
    if entry == "undo":
        if project:
            done, changed = project.undo(wanted, settings, saved)
        else:
            done, changed = revert.undo(engine, wanted, settings, saved)
        says = "; ".join(f"{name}: {seen['from']}, {seen['health']}" for name, seen in done.items())
        return _done(f"put back: {says}", done, changed, begun)
    if project:
        jobs, done, changed = project.main(wanted, settings)
    else:
        jobs, done, changed = revert.main(engine, wanted, settings)
    return {**_done(_account(jobs, done), done, changed, begun), "diff": _diff(jobs)}


def _limit(arguments: Mapping[str, Any]) -> float:
    return parse_duration(arguments["limit"], "limit")


def _wanted(engine: Engine, arguments: Mapping[str, Any]) -> list[Wanted]:
    common, limit = arguments.get("image"), _limit(arguments)
    entries = arguments.get("containers") or [
        {"name": name} for name in revert.select(engine, arguments["labels"], arguments["run_id"])
    ]
    wanted = {}
    for entry in entries:
        name, image = entry["name"], entry.get("image") or common
        if not image:
            raise BalikError(f"container {name}", "has no image to go back to", "its own `image`, or a common one")
        if name in wanted:
            raise BalikError(f"container {name}", "is named twice")
        own = parse_duration(entry["limit"], f"limit of {name}") if entry.get("limit") else limit
        wanted[name] = Wanted(name, image, own)
    return list(wanted.values())


def _found(jobs: list[Job], entry: str) -> Json:
    return {
        "changed": entry == "main" and not all(job.already for job in jobs),
        "says": "; ".join(job.line for job in jobs),
        "before": {job.wanted.name: job.before for job in jobs},
        "evidence": {},
        "diff": _diff(jobs),
    }


def _diff(jobs: list[Job]) -> Json:
    def page(images: list[str]) -> str:
        return "".join(f"{job.wanted.name}: {image}\n" for job, image in zip(jobs, images))

    return {
        "before": page([job.target.short if job.already else job.was.short for job in jobs]),
        "after": page([job.target.short for job in jobs]),
    }


def _would_undo(engine: Engine, wanted: list[Wanted], saved: Json) -> Json:
    changes = {}
    for one in wanted:
        now, was = engine.container(one.name), saved.get(one.name)
        if was and (now is None or now["Image"] != was["image_id"]):
            changes[one.name] = shorten(was["image"])
    says = "; ".join(f"{name}: would go back to {image}" for name, image in changes.items())
    return {"changed": bool(changes), "says": says or "nothing to put back", "evidence": {}}


def _account(jobs: list[Job], done: Mapping[str, Json]) -> str:
    lines = []
    for job in jobs:
        seen = done[job.wanted.name]
        gap = seen.get("without_service")
        lines.append(f"{job.line}, {seen['health']}" + (f" after {format_duration(gap)}" if gap is not None else ""))
    return "; ".join(lines)


def _done(says: str, done: Mapping[str, Json], changed: bool, begun: float) -> Json:
    return {"changed": changed, "says": says, "evidence": {"containers": dict(done), "seconds": _since(begun)}}


def _since(begun: float) -> float:
    return round(time.monotonic() - begun, 2)
