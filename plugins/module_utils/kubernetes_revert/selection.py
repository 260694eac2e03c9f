"""From what a plan names to what would change: which workloads, which of their containers, to which image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from ..errors import BalikError
from ..kubernetes.client import JSON_PATCH, UNKNOWN, Cluster, at_once, check_terms, path_of
from ..units import label_terms, parse_duration
from .images import Image, parse, same, short
from .workloads import KINDS, Workload, finished, key_of

Json = dict[str, Any]

#: How many lines of one message a person reads.
_LINES = 20
#: How many characters Kubernetes takes.
_LONGEST = {"namespace": 63, "name": 253}


@dataclass(frozen=True)
class Wanted:
    """One workload of the plan; ``images`` are for whichever containers run their repository, ``limit`` in seconds."""

    kind: str
    namespace: str
    name: str
    images: tuple[str, ...] = ()
    containers: Mapping[str, str] = field(default_factory=dict)
    limit: float = 120.0

    @property
    def key(self) -> str:
        return key_of(self.kind, self.namespace, self.name)


class Replaced(NamedTuple):
    """One container: its name, JSON pointer, image as configured, and image to go back to."""

    container: str
    path: str
    old: str
    new: str


@dataclass(frozen=True)
class Change:
    """What shall become of one workload.

    ``replaced`` holds each container that is meant, also where its image stands there already. ``suspend`` is the
    value that ``spec.suspend`` shall have, ``None`` where it is left alone. ``ran``: container → the content that ran
    under another name before, which a tag must not bring again.
    """

    workload: Workload
    replaced: tuple[Replaced, ...]
    limit: float
    suspend: bool | None = None
    ran: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        return self.workload.key

    @property
    def suspends(self) -> bool:
        return self.suspend is not None and self.suspend != self.workload.suspended

    @property
    def needed(self) -> bool:
        """Whether anything differs from what is configured."""
        return self.suspends or any(not same(one.old, one.new) for one in self.replaced)

    @property
    def unchanged(self) -> list[str]:
        """Containers that go to the very digest that ran under another name before."""
        digests = {one.container: target.digest for one in self.replaced if (target := parse(one.new))}
        return [container for container, digest in digests.items() if digest and digest == self.ran.get(container)]

    @property
    def line(self) -> str:
        """``Deployment shop/web: web app:2.0.0 -> app:1.9.4``."""
        parts = [
            f"{one.container} already {short(one.new)}"
            if same(one.old, one.new)
            else f"{one.container} {short(one.old)} -> {short(one.new)}"
            for one in self.replaced
        ]
        if self.suspend is not None:
            word = "suspended" if self.suspend else "not suspended"
            parts.append(f"to be {word}" if self.suspends else f"already {word}")
        return f"{self.key}: {', '.join(parts)}"

    @property
    def before(self) -> Json:
        """For the record: container → image as configured, and whether it was suspended."""
        saved: Json = {"images": {one.container: one.old for one in self.replaced}}
        if self.suspend is not None:
            saved["suspend"] = self.workload.suspended
        return saved

    def patch(self) -> list[Json]:
        """A JSON patch that touches these fields only, and only while they are what was read.

        A strategic merge would make a container anew that somebody removed meanwhile.
        """
        steps: list[Json] = [{"op": "test", "path": "/metadata/uid", "value": self.workload.uid}]
        for one in self.replaced:
            if not same(one.old, one.new):
                steps += [
                    {"op": "test", "path": f"{one.path}/name", "value": one.container},
                    {"op": "test", "path": f"{one.path}/image", "value": one.old},
                    {"op": "replace", "path": f"{one.path}/image", "value": one.new},
                ]
        if self.suspends:
            steps.append({"op": "add", "path": "/spec/suspend", "value": self.suspend})
        return steps

    def carry_out(self, cluster: Cluster, dry_run: bool = False) -> Workload:
        """Send the patch; the workload as it became."""
        answer = cluster.patch(self.workload.path, self.patch(), JSON_PATCH, dry_run)
        return Workload(self.workload.kind, self.workload.version, answer)


class Selection(NamedTuple):
    """What a plan means in this cluster now."""

    changes: list[Change]
    #: Workloads that carry the labels and run none of the images, and Jobs that run on.
    left: list[str]
    #: Every workload that was read on the way, with those that are not meant.
    seen: list[Workload]
    #: What is named and stands for nothing there.
    nothing: Sequence[str] = ()
    #: Label selectors of those that stand beside them, of the same kinds, and were not read.
    unread: Sequence[str] = ()


def targets(images: Iterable[str]) -> tuple[str, ...]:
    """The images, each checked.

    :raises BalikError: one is no reference, says no release, or two are for the same repository.
    """
    found: dict[str, str] = {}
    for one in images:
        repository = Image.target(one).repository
        if found.setdefault(repository, one) != one:
            raise BalikError(
                f"image {repository}", f"has two targets, {found[repository]} and {one}", "one image for a repository"
            )
    return tuple(found.values())


def wanted_of(entries: Sequence[Mapping[str, Any]], images: tuple[str, ...], limit: float) -> list[Wanted]:
    """The plan's entries, checked.

    :raises BalikError: an unknown kind, no image to go back to, or a workload that is named twice.
    """
    for number, entry in enumerate(entries, 1):
        if empty := [key for key in ("namespace", "name") if not entry[key]]:
            raise BalikError(
                f"image_revert_workloads, entry {number}", f"{' and '.join(empty)}: empty", "each by its name"
            )
        for key, longest in _LONGEST.items():
            if len(entry[key]) > longest:
                raise BalikError(
                    f"image_revert_workloads, entry {number}, {key}",
                    f"{entry[key][:40]}… has {len(entry[key])} characters",
                    f"at most {longest}",
                )
    wanted: dict[str, Wanted] = {}
    limits = limits_of(entries)
    for entry in entries:
        kind = entry.get("kind") or "Deployment"
        if kind not in KINDS:
            raise BalikError(f"workload {entry['name']}", f"kind {kind!r}", f"one of: {', '.join(KINDS)}")
        containers = {str(name): str(image) for name, image in (entry.get("containers") or {}).items()}
        if containers and entry.get("image"):
            raise BalikError(
                f"image_revert_workloads, {key_of(kind, entry['namespace'], entry['name'])}",
                "image and containers are both given",
                "one of them",
                "Name every container that shall go back in `containers`.",
            )
        one = Wanted(
            kind,
            entry["namespace"],
            entry["name"],
            () if containers else targets([entry["image"]] if entry.get("image") else images),
            containers,
            limits.get(key_of(kind, entry["namespace"], entry["name"]), limit),
        )
        for image in containers.values():
            Image.target(image)
        if kind != "Job" and not one.images and not containers:
            raise BalikError(one.key, "has no image to go back to", "its own `image` or `containers`, or a common one")
        if one.key in wanted:
            raise BalikError(one.key, "is named twice", do="Name it once; several containers stand in `containers`.")
        wanted[one.key] = one
    return list(wanted.values())


def limits_of(entries: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Key of a workload → its own limit, in seconds; without those that have none.

    :raises BalikError: one is no duration.
    """
    return {
        key_of(one.get("kind") or "Deployment", one["namespace"], one["name"]): limit_of(
            one["limit"], f"limit of {one['name']}"
        )
        for one in entries
        if one.get("limit")
    }


def limit_of(value: object, what: str) -> float:
    """Seconds of a duration, above zero.

    :raises BalikError: it is none, or zero, within which nothing can be rolled out.
    """
    seconds = parse_duration(value, what)
    if not seconds:
        raise BalikError(what, f"found {value!r}", "a duration above zero, such as 30s or 15m")
    return seconds


def version_of(cluster: Cluster, kind: str) -> str:
    """``batch/v1beta1``: the best version of a kind's API that the cluster has.

    :raises BalikError: it has none.
    """
    known = KINDS[kind]
    found = cluster.first_offered(known.group, known.versions, known.resource)
    if not found:
        raise BalikError(f"{known.resource}.{known.group}", f"not served by the cluster ({cluster.name})")
    return found


def read(cluster: Cluster, kind: str, namespace: str, labels: str = "") -> list[Workload]:
    """All workloads of a kind in a namespace (empty: in all)."""
    version = version_of(cluster, kind)
    path = path_of(version, KINDS[kind].resource, namespace)
    return [Workload(KINDS[kind], version, raw) for raw in cluster.list(path, labels)]


def by_name(cluster: Cluster, wanted: Sequence[Wanted], cronjobs: str) -> Selection:
    """Find the workloads that are named; each namespace is read once for each kind.

    :param cronjobs: ``revert`` or ``suspend``.
    :raises BalikError: everything that is not there, or has no such container.
    """
    places = {f"{one.kind} {one.namespace}": one for one in wanted}
    lists, failed = at_once(places, lambda at: read(cluster, places[at].kind, places[at].namespace))
    _first(failed)
    seen = {one.key: one for workloads in lists.values() for one in workloads}
    changes, wrong = [], []
    for one in wanted:
        try:
            if one.key not in seen:
                raise _absent(cluster, one, lists[f"{one.kind} {one.namespace}"])
            changes.append(_change(seen[one.key], one.images, one.containers, one.limit, cronjobs))
        except BalikError as error:
            wrong.append(str(error))
    if wrong:
        raise BalikError("Cannot revert", "\n".join(told(wrong)), do="The check touched no workload.")
    return Selection(changes, [], list(seen.values()))


def by_labels(
    cluster: Cluster,
    labels: Mapping[str, Any],
    namespaces: Sequence[str],
    kinds: Sequence[str],
    images: tuple[str, ...],
    limit: float,
    cronjobs: str,
) -> Selection:
    """All workloads with these labels whose containers run one of the images' repositories; all namespaces by default.

    :param labels: an empty value takes any.
    :raises BalikError: there is none.
    """
    if not images:
        raise BalikError("The image to go back to", "is not given", "image_revert_image, or image_revert_images")
    if not kinds:
        raise BalikError("image_revert_kinds", "names no kind", f"some of {', '.join(KINDS)}")
    if not all(namespaces):
        raise BalikError("image_revert_namespaces", "one is empty", "names; an empty list means the whole cluster")
    terms = label_terms(labels)
    check_terms(terms, "image_revert_labels")
    selector = ",".join(terms)
    places = {f"{kind} {namespace}": (kind, namespace) for kind in kinds for namespace in namespaces or [""]}
    lists, failed = at_once(places, lambda at: read(cluster, *places[at], selector))
    _first(failed)
    seen = [one for workloads in lists.values() for one in workloads]
    changes, left = [], []
    for one in seen:
        if not list(_matching(one, images)):
            left.append(f"{one.key} runs none of the images")
        elif one.kind.name != "Job" or not finished(one):
            changes.append(_change(one, images, {}, limit, cronjobs))
    if not changes:
        where = f"namespace {', '.join(namespaces)}" if namespaces else "any namespace"
        others = f"; {'; '.join(sorted(left)[:20])}" if left else ""
        raise BalikError(
            f"workloads labelled {selector} that run {', '.join(map(short, images))}",
            f"there is none in {where} ({cluster.name}){others}",
            do="See that context, namespaces, labels and the image's repository are the right ones.",
        )
    empty = [one for one in namespaces if not any(each.namespace == one for each in seen)]
    there = {one: cluster.has(one) for one in empty}
    absent = [one for one in empty if there[one] is False]
    left += [
        f"namespace {one} has no workload labelled {selector}{UNKNOWN if there[one] is None else ''}"
        for one in empty
        if one not in absent
    ]
    nothing = [f"namespace {one} does not exist ({cluster.name})" for one in absent]
    running = {now.repository for one in seen for each in one.containers() if (now := parse(each.image))}
    unused = [one for one in images if Image.of(one).repository not in running]
    nothing += [f"no workload labelled {selector} runs any version of {short(one)}" for one in unused]
    return Selection(changes, left, seen, nothing, all_but(terms))


def all_but(terms: Sequence[str]) -> list[str]:
    """Selectors that take, together, whatever does not fulfil all of these terms."""
    lacking = [term.replace("=", "!=", 1) if "=" in term else f"!{term}" for term in terms]
    return [",".join([*terms[:number], lack]) for number, lack in enumerate(lacking)]


def again(cluster: Cluster, changes: Sequence[Change]) -> dict[str, Workload]:
    """Read these workloads anew: key → workload, without those that are gone.

    A few are read one by one, many with one list for each namespace.
    """
    places: dict[str, list[Change]] = {}
    for one in changes:
        places.setdefault(f"{one.workload.kind.name} {one.workload.namespace}", []).append(one)
    calls: dict[str, Change] = {}
    for same_place in places.values():
        for one in same_place if len(same_place) <= 4 else same_place[:1]:
            calls[one.key] = one

    def look(key: str) -> list[Workload]:
        one = calls[key].workload
        if len(places[f"{one.kind.name} {one.namespace}"]) > 4:
            return read(cluster, one.kind.name, one.namespace)
        raw = cluster.find(one.path)
        return [Workload(one.kind, one.version, raw)] if raw else []

    found, failed = at_once(calls, look)
    _first(failed)
    keys = {one.key for one in changes}
    return {one.key: one for workloads in found.values() for one in workloads if one.key in keys}


def renewed(change: Change, now: Workload) -> Change:
    """The same intention for the workload as it stands there now.

    :raises BalikError: a container is gone.
    """
    replaced = []
    for one in change.replaced:
        place = next((container for container in now.containers() if container.name == one.container), None)
        if place is None:
            raise _no_container(now, one.container)
        replaced.append(Replaced(place.name, place.path, place.image, one.new))
    return replace(change, workload=now, replaced=tuple(replaced))


def back(workload: Workload, saved: Mapping[str, Any], limit: float) -> Change:
    """The change that puts back what :attr:`Change.before` saved.

    :raises BalikError: a container is gone.
    """
    replaced = tuple(Replaced(container, "", "", image) for container, image in (saved.get("images") or {}).items())
    return renewed(Change(workload, replaced, limit, saved.get("suspend")), workload)


def told(lines: list[str]) -> list[str]:
    """As many of these lines as a person reads, and how many more there are."""
    more = len(lines) - _LINES
    return lines if more <= 0 else [*lines[:_LINES], f"and {more} more like these"]


def _change(
    workload: Workload, images: tuple[str, ...], containers: Mapping[str, str], limit: float, cronjobs: str
) -> Change:
    kind = workload.kind.name
    if kind == "Job":
        if finished(workload):
            raise BalikError(workload.key, "has ended", do="Leave it out: what it did cannot be taken back here.")
        # A Job's template cannot be changed; what it still does can be stopped.
        return Change(workload, (), limit, suspend=True)
    if kind == "CronJob" and cronjobs == "suspend":
        return Change(workload, (), limit, suspend=True)
    replaced = []
    for name, new in containers.items():
        place = next((one for one in workload.containers() if one.name == name), None)
        if place is None:
            raise _no_container(workload, name)
        replaced.append(Replaced(name, place.path, place.image, new))
    replaced += _matching(workload, images)
    if not replaced:
        runs = ", ".join(f"{one.name} ({short(one.image)})" for one in workload.containers())
        raise BalikError(
            workload.key,
            f"no container runs {', '.join(map(short, images))} in any version; it has {runs}",
            do="Name the container and its image in `containers`.",
        )
    return Change(workload, tuple(replaced), limit)


def _matching(workload: Workload, images: tuple[str, ...]) -> Iterator[Replaced]:
    for one in workload.containers():
        now = parse(one.image)
        for new in images:
            if now and Image.of(new).repository == now.repository:
                yield Replaced(one.name, one.path, one.image, new)


def _no_container(workload: Workload, name: str) -> BalikError:
    names = ", ".join(one.name for one in workload.containers())
    return BalikError(workload.key, f"has no container {name}", f"one of: {names}")


def _absent(cluster: Cluster, one: Wanted, there: list[Workload]) -> BalikError:
    others = sorted(workload.name for workload in there)
    more = f" and {len(others) - 20} more" if len(others) > 20 else ""
    return BalikError(
        one.key,
        f"does not exist ({cluster.name})",
        f"one of: {', '.join(others[:20])}{more}" if others else f"a {one.kind} in that namespace; there is none",
        "See that the context and the namespace are the right ones.",
    )


def _first(failed: Mapping[str, BalikError]) -> None:
    for error in failed.values():
        raise error
