"""The four entry points of image-revert on one Docker engine, for many containers at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from ..errors import BalikError
from .engine import Engine, Image, image_of, repository, shorten
from .swap import Names, Patience, Swap, base_name

Json = dict[str, Any]
T = TypeVar("T")

_OWNERS = {
    "com.docker.swarm.service.id": ("belongs to a Swarm service", "Use `docker service update --image`."),
    "io.kubernetes.pod.name": ("belongs to a Kubernetes pod", "Use the kubernetes backend."),
}


@dataclass(frozen=True)
class Wanted:
    """One container and the image it shall run; ``limit`` in seconds."""

    name: str
    image: str
    limit: float


@dataclass(frozen=True)
class Settings:
    """What holds for all containers: seconds without a health check, threads, ``missing``/``always``/``never``."""

    run_id: str
    pull: str = "missing"
    steady: float = 5.0
    parallel: int = 10


@dataclass(frozen=True)
class Job:
    """One container as it was found, with what its target image means."""

    wanted: Wanted
    old: Json
    was: Image
    target: Image
    already: bool
    note: str = ""

    @property
    def line(self) -> str:
        """``app-1: lawyers-hub:2.0.0 (sha256:…) -> lawyers-hub:1.9.4 (sha256:…)``."""
        change = f"already {self.target.short}" if self.already else f"{self.was.short} -> {self.target.short}"
        return f"{self.wanted.name}: {change}" + (f" ({self.note})" if self.note else "")

    @property
    def before(self) -> Json:
        return {
            "id": self.old["Id"],
            "image": self.was.reference,
            "image_id": self.was.id,
            "digest": self.was.digest,
        }


def in_parallel(names: Sequence[str], act: Callable[[str], T], threads: int) -> tuple[dict[str, T], dict[str, str]]:
    """Do ``act`` for each name; (name → result, name → the error's sentence). One failure does not stop the others."""
    done: dict[str, T] = {}
    failed: dict[str, str] = {}

    def one(name: str) -> None:
        try:
            done[name] = act(name)
        except BalikError as error:
            failed[name] = str(error)

    with ThreadPoolExecutor(max_workers=max(1, threads)) as pool:
        list(pool.map(one, names))
    return {name: done[name] for name in names if name in done}, failed


def refuse(failed: Mapping[str, str], done: Iterable[str] = ()) -> None:
    """:raises BalikError: anything failed; says exactly what did and what did not."""
    if not failed:
        return
    good = sorted(done)
    raise BalikError(
        f"{len(failed)} of {len(failed) + len(good)} containers",
        "\n".join(failed[name] for name in sorted(failed)),
        do=f"Done: {', '.join(good)}." if good else "",
    )


def select(engine: Engine, labels: Mapping[str, str], run_id: str) -> list[str]:
    """The names in service of all containers that carry the labels, also those that an earlier attempt renamed.

    :raises BalikError: there is none.
    """
    found = {
        base_name(container["Name"].lstrip("/"), run_id)
        for container in engine.containers(labels)
        if (container["Config"]["Labels"] or {}).get("com.docker.compose.oneoff") != "True"
    }
    # What earlier runs kept carries the same labels.
    names = sorted(name for name in found if not any(f"--{part}-" in name for part in ("before", "after", "failed")))
    if not names:
        listed = ", ".join(f"{key}={value}" for key, value in labels.items())
        raise BalikError(f"containers labelled {listed}", f"there is none at {engine.docker_host}")
    return names


def examine(engine: Engine, wanted: Sequence[Wanted], settings: Settings, fetch: bool = False) -> list[Job]:
    """Find every container and every image, and every reason why one could not be reverted; changes no container.

    :param fetch: pull images that are missing.
    :raises BalikError: all the reasons there are, not only the first.
    """
    resolve = engine.fetch_image if fetch else engine.find_image
    references = sorted({one.image for one in wanted})
    images, unknown = in_parallel(references, lambda name: resolve(name, settings.pull), settings.parallel)
    if unknown:
        raise BalikError("The image to go back to", "\n".join(unknown.values()), do="No container was touched.")
    everything = {container["Name"].lstrip("/"): container for container in engine.containers()}
    by_name = {one.name: one for one in wanted}

    def look(name: str) -> Job:
        swap = Swap(engine, Names(name, settings.run_id), Patience(0, 0))
        now, old = swap.now(), swap.old()
        if old is None:
            others = ", ".join(sorted(everything)[:20]) or "none"
            raise BalikError(f"container {name}", f"does not exist at {engine.docker_host}", f"one of: {others}")
        target = images[by_name[name].image]
        already = bool(now and target.id and now["Image"] == target.id)
        if not already:
            _refuse_container(engine, name, old, target, everything.values())
        project = (old["Config"]["Labels"] or {}).get("com.docker.compose.project")
        note = f"of the Compose project {project}, whose file still names the other image" if project else ""
        was = image_of(engine, old)
        return Job(by_name[name], old, was, target, already, "" if already else note)

    jobs, failed = in_parallel(list(by_name), look, settings.parallel)
    if failed:
        raise BalikError("Cannot revert", "\n".join(failed.values()), do="No container was touched.")
    return [jobs[name] for name in by_name]


def _refuse_container(engine: Engine, name: str, old: Json, target: Image, everything: Iterable[Json]) -> None:
    what, host, labels = f"container {name}", old["HostConfig"], old["Config"]["Labels"] or {}
    if host["AutoRemove"]:
        raise BalikError(
            what,
            "was started with --rm: the engine would remove it when it stops, and nothing would be left to go back to",
            do="Start it without --rm (with --restart, say).",
        )
    for label, (found, do) in _OWNERS.items():
        if label in labels:
            raise BalikError(what, f"{found}, which would undo this", do=do)
    old_image = engine.local_image(old["Image"])
    if old_image is None:
        raise BalikError(
            what,
            f"its image {shorten(old['Config']['Image'])} is no longer on this engine, so that its own settings "
            "cannot be told from the image's",
            do="Load or pull that image again.",
        )
    engine.check_platform(target, old_image)
    sharing = [other["Name"].lstrip("/") for other in everything if _depends(other, old)]
    if sharing:
        raise BalikError(
            what,
            f"{', '.join(sorted(sharing))} live in its network, process or IPC namespace (or link to it) and would "
            "stay behind with the old one",
            do="Stop and remove them first, and start them again afterwards.",
        )


def _depends(other: Json, container: Json) -> bool:
    host, name = other["HostConfig"], container["Name"]
    shared = {f"container:{container['Id']}", f"container:{name.lstrip('/')}"}
    links = any(link.startswith(f"{name}:") for link in host.get("Links") or ())
    alive = other["State"]["Running"]
    return alive and (links or bool(shared & {host.get(key) for key in ("NetworkMode", "PidMode", "IpcMode")}))


def check(engine: Engine, wanted: Sequence[Wanted], settings: Settings) -> list[Job]:
    """:func:`examine` without fetching."""
    return examine(engine, wanted, settings)


def main(engine: Engine, wanted: Sequence[Wanted], settings: Settings) -> tuple[list[Job], dict[str, Json], bool]:
    """Revert all containers at once; (what was found, name → evidence, whether anything changed).

    :raises BalikError: some did not come up; the message says which, and that their old ones are back.
    """
    jobs = {job.wanted.name: job for job in examine(engine, wanted, settings, fetch=True)}
    changed = []

    def revert(name: str) -> Json:
        job = jobs[name]
        swap = Swap(engine, Names(name, settings.run_id), Patience(job.wanted.limit, settings.steady))
        before = _start_of(swap.now())
        evidence = swap.revert(job.target)
        changed.append(before != _start_of(swap.now()))
        return {"image_id": job.target.id, "digest": job.target.digest, **evidence}

    done, failed = in_parallel(list(jobs), revert, settings.parallel)
    refuse(failed, done)
    return list(jobs.values()), done, any(changed)


def _start_of(container: Json | None) -> tuple[str, str] | None:
    return (container["Id"], container["State"]["StartedAt"]) if container else None


def verify(engine: Engine, wanted: Sequence[Wanted], settings: Settings) -> dict[str, str]:
    """Read what runs; name → a few words.

    :raises BalikError: a container runs another image, or does not serve.
    """

    def see(one: Wanted) -> str:
        image = engine.find_image(one.image, "never")
        swap = Swap(engine, Names(one.name, settings.run_id), Patience(one.limit, settings.steady))
        return f"{image.short}, {swap.verify(image)}"

    by_name = {one.name: one for one in wanted}
    seen, failed = in_parallel(list(by_name), lambda name: see(by_name[name]), settings.parallel)
    refuse(failed, seen)
    return seen


def undo(
    engine: Engine, wanted: Sequence[Wanted], settings: Settings, saved: Mapping[str, Json]
) -> tuple[dict[str, Json], bool]:
    """Put back what stood there before this run; (name → evidence, whether anything changed).

    :param saved: name → what :attr:`Job.before` was the first time.
    :raises BalikError: nothing is known of a container, or it did not come up.
    """
    limits = {one.name: one.limit for one in wanted}
    changed = []

    def put_back(name: str) -> Json:
        swap = Swap(engine, Names(name, settings.run_id), Patience(limits[name], settings.steady))
        before = _start_of(swap.now())
        evidence = swap.undo(saved_image(engine, name, saved.get(name), swap))
        changed.append(before != _start_of(swap.now()))
        return evidence

    done, failed = in_parallel(list(limits), put_back, settings.parallel)
    refuse(failed, done)
    return done, any(changed)


def saved_image(engine: Engine, name: str, saved: Json | None, swap: Swap) -> Image:
    """The image that ran before: by its name where that still means the same, by its id otherwise."""
    if saved:
        reference, image_id = saved["image"], saved["image_id"]
    else:
        kept = engine.container(swap.names.before)
        if kept is None:
            raise BalikError(
                f"container {name}", "nothing was saved of it in this run, and no container was kept", swap.names.before
            )
        reference, image_id = kept["Config"]["Image"], kept["Image"]
    named = engine.local_image(reference)
    if named is not None and named["Id"] == image_id:
        return Image(reference, image_id)
    here = engine.local_image(image_id)
    if here is None and engine.container(swap.names.before) is None:
        if not saved or not saved.get("digest"):
            raise BalikError(
                f"container {name}",
                f"neither the kept container nor its image {reference} ({shorten(image_id)}) is on this engine",
                do="Load that image again.",
            )
        return engine.fetch_image(f"{repository(reference)}@{saved['digest']}", "missing")
    return Image(image_id, image_id)
