"""Patch many workloads at once, wait until the new pods serve, read back what runs; say exactly what came of each."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import BalikError, Unreachable
from ..kubernetes.client import Cluster, Refused, at_once, path_of
from ..units import format_duration
from . import guards, pods
from .images import same, short
from .pods import Pod, Warned
from .selection import Change, again, renewed, told
from .workloads import ROLLING, Workload, awaits, changed_by, condition

Json = dict[str, Any]

#: Seconds between two looks at a rollout; more where a look itself takes long.
_PAUSE, _LONGEST_PAUSE = 0.25, 2.0
#: Seconds that an answer may take also where the limit is nearly over, or is.
_LAST_LOOK = 5.0
#: How many pods of a workload, and how many names a message tells.
_TOLD_PODS, _NAMED = 3, 50


class Partial(BalikError):
    """Some workloads did not come to what was asked for; ``evidence`` says of each how it stands."""

    def __init__(self, error: BalikError, evidence: Json) -> None:
        self.evidence = evidence
        super().__init__(error.what, error.found, error.expected, error.do)


@dataclass
class Account:
    """How each workload (by its key) stands.

    ``patched``: changed by this call. ``good``: key → what runs now. ``bad``: key → why it is not as it should be.
    ``unsure``: the API was asked to change it and did not answer (``silence`` says how). ``untouched``: not begun.
    """

    patched: list[str] = field(default_factory=list)
    good: dict[str, str] = field(default_factory=dict)
    bad: dict[str, str] = field(default_factory=dict)
    unsure: list[str] = field(default_factory=list)
    untouched: list[str] = field(default_factory=list)
    silence: str = ""
    deleted_pods: list[str] = field(default_factory=list)

    def evidence(self) -> Json:
        """For the record."""
        said: Json = {"workloads": dict(self.good)}
        for name in ("bad", "unsure", "untouched", "deleted_pods"):
            if getattr(self, name):
                said[name] = getattr(self, name)
        return said

    def refuse(self, do: str = "") -> None:
        """:raises Partial: anything is not as it should be."""
        if not (self.bad or self.unsure or self.untouched):
            return
        lines = told(list(self.bad.values()))
        count = len(self.bad) + len(self.unsure) + len(self.untouched)
        if self.unsure:
            lines.insert(0, self.silence)
            lines.append(f"Asked for, and not known whether it was done: {_names(self.unsure)}")
        if self.untouched:
            lines.append(f"Not touched: {_names(self.untouched)}")
        lines.append(f"As asked for: {_names(list(self.good)) or 'none'}")
        raise Partial(
            BalikError(f"{count} of {count + len(self.good)} workloads", "\n".join(lines), do=do), self.evidence()
        )


def _names(keys: Sequence[str]) -> str:
    more = len(keys) - _NAMED
    return ", ".join(keys[:_NAMED]) + (f" and {more} more (all stand in the evidence)" if more > 0 else "")


def carry_out(cluster: Cluster, changes: Sequence[Change]) -> Account:
    """Patch what differs, wait for every rollout, read back what runs. Nothing is taken back where one fails."""
    account = Account()
    going = patch(cluster, changes, account)
    if account.unsure or account.untouched:
        for key in going:
            word = "changed" if key in account.patched else "as asked for before"
            account.good[key] = f"{word}; its rollout was not waited for"
        return account
    follow(cluster, going, account)
    return account


def patch(cluster: Cluster, changes: Sequence[Change], account: Account) -> dict[str, Change]:
    """Send the patches; those (by key) whose object is now as asked for."""
    by_key = {one.key: one for one in changes}
    needed = [key for key, one in by_key.items() if one.needed]
    done, failed = at_once(needed, lambda key: _patch(cluster, by_key[key]))
    account.patched = list(done)
    account.untouched = [key for key in needed if key not in done and key not in failed]
    for key, error in failed.items():
        if isinstance(error, Unreachable):
            account.unsure.append(key)
            account.silence = str(error)
        else:
            account.bad[key] = f"{key}: {error}"
    return {key: done.get(key, one) for key, one in by_key.items() if key in done or key not in needed}


def _patch(cluster: Cluster, change: Change) -> Change:
    try:
        now = change.carry_out(cluster)
    except Refused as error:
        if error.status == 404:
            raise BalikError(
                "it", "was deleted meanwhile", do="Run again; a plan by names must leave it out."
            ) from None
        if error.status not in (409, 422, 500, 502, 503, 504):
            raise
        # Changed between the reading and the patch, or the API was not well: once more, with what stands there now.
        raw = cluster.find(change.workload.path)
        if raw is None:
            raise BalikError(
                "it", "was deleted meanwhile", do="Run again; a plan by names must leave it out."
            ) from None
        change = renewed(change, Workload(change.workload.kind, change.workload.version, raw))
        if not change.needed:
            return change
        now = change.carry_out(cluster)
    return _accepted(change, now)


def rehearse(cluster: Cluster, change: Change) -> None:
    """What the API, with all its admission rules, would make of the patch.

    :raises BalikError: it refuses it, or would write something else.
    """
    _accepted(change, change.carry_out(cluster, dry_run=True))


def _accepted(change: Change, answer: Workload) -> Change:
    """The change as it stands in the API's answer to its patch.

    :raises BalikError: the answer is not what was asked for.
    """
    after = renewed(change, answer)
    if after.suspends:
        raise BalikError(
            "spec.suspend",
            "is dropped by this cluster, which cannot suspend a Job",
            do="Delete the Job if it must end, or leave it out.",
        )
    if after.needed:
        others = [one for one in after.replaced if not same(one.old, one.new)]
        raise BalikError(
            "an admission rule of the cluster",
            f"sets {', '.join(f'{one.container} to {short(one.old) or repr(one.old)}' for one in others)}",
            ", ".join(dict.fromkeys(short(one.new) for one in others)),
            "Name in the plan what it sets (`containers`), or let it leave this workload alone.",
        )
    return after


def follow(cluster: Cluster, changes: Mapping[str, Change], account: Account) -> None:
    """Wait until each runs what was asked for, at most its own limit; an API that does not answer is waited for too."""
    begun = time.monotonic()
    pending = dict(changes)
    latest: dict[str, str] = {}
    stuck: dict[str, int] = {}
    while pending:
        look = time.monotonic()
        late = {key for key, one in pending.items() if look - begun > one.limit}
        left = min(one.limit for one in pending.values()) - (look - begun)
        try:
            with cluster.within(max(left, _LAST_LOOK)):
                seen = again(cluster, list(pending.values()))
                for key in _look(cluster, pending, seen, late, latest, account, begun):
                    del pending[key]
                _free(cluster, pending, seen, stuck, account)
        except BalikError as error:
            # An API that is away or not well may come back; credentials and permissions do not.
            for key in list(pending) if getattr(error, "status", 0) in (401, 403) else late & set(pending):
                within = format_duration(pending.pop(key).limit)
                account.bad[key] = f"{key}: changed, and not seen to be rolled out within {within}: {error}"
        if pending:
            took = time.monotonic() - look
            time.sleep(min(_LONGEST_PAUSE, max(_PAUSE, 2 * took)))


def _look(
    cluster: Cluster,
    pending: Mapping[str, Change],
    seen: Mapping[str, Workload],
    late: set[str],
    latest: dict[str, str],
    account: Account,
    begun: float,
) -> list[str]:
    """Judge those whose namespace is complete or whose limit is over; their keys. Notes what the others wait for."""
    settled: list[str] = []
    complete: dict[str, Change] = {}
    waiting = set()
    for key, change in pending.items():
        gone = _gone(cluster, change, seen.get(key))
        if gone:
            account.bad[key] = f"{key}: {gone}"
            settled.append(key)
            continue
        latest[key] = awaits(seen[key])
        if latest[key]:
            waiting.add(change.workload.namespace)
        else:
            complete[key] = change
    failing = {key: one for key, one in pending.items() if key in late and key not in settled and latest[key]}
    # The pods of a namespace are read once, when all its rollouts are complete.
    complete = {key: one for key, one in complete.items() if one.workload.namespace not in waiting or key in late}
    namespaces = {one.workload.namespace for one in (*complete.values(), *failing.values())}
    here = pods_of(cluster, namespaces)
    seconds = format_duration(time.monotonic() - begun)
    for key, change in complete.items():
        off = pods.wrong(change, here.get(key, []))
        unmoved = pods.unmoved(change, here.get(key, []))
        latest[key] = off
        if off:
            if key in late:
                failing[key] = change
        elif unmoved:
            account.bad[key] = f"{key}: {unmoved}"
            settled.append(key)
        else:
            account.good[key] = f"{_runs(change, here.get(key, []))} after {seconds}"
            settled.append(key)
    if failing:
        events = warnings(cluster, {one.workload.namespace for one in failing.values()})
        for key, change in failing.items():
            reasons = _reasons(seen[key], here.get(key, []), events)
            within = format_duration(change.limit)
            account.bad[key] = f"{key}: not rolled out within {within}: {latest[key]}" + "".join(
                f"; {reason}" for reason in reasons
            )
            settled.append(key)
    return settled


def _gone(cluster: Cluster, change: Change, now: Workload | None) -> str:
    """Why it makes no sense to wait any longer: deleted, or its image changed again; empty while it does."""
    if now is None or now.uid != change.workload.uid:
        return "was deleted meanwhile; leave it out of the plan, or create it again"
    for one in change.replaced:
        image = now.image(one.container)
        if image != change.workload.image(one.container):
            by = changed_by(now.kind, cluster.find(now.path) or now.raw, one.container)
            who = f" by {by}" if by else ""
            return f"its container {one.container} was changed to {short(image) or 'nothing'} meanwhile{who}"
    return ""


def _free(
    cluster: Cluster,
    pending: Mapping[str, Change],
    seen: Mapping[str, Workload],
    stuck: dict[str, int],
    account: Account,
) -> None:
    """Delete the pods of an older revision that keep a StatefulSet from going on.

    Its controller waits for a pod that is not ready before it replaces any, also where that pod has the bad image and
    will never be ready (a documented limitation of Kubernetes: "forced rollback").
    """
    sets = {
        key: one
        for key, one in pending.items()
        if one.workload.kind.name == "StatefulSet" and key in seen and awaits(seen[key])
    }
    for key in sets:
        status = seen[key].status
        settled = status.get("observedGeneration", 0) >= seen[key].raw["metadata"].get("generation", 0)
        stuck[key] = stuck.get(key, 0) + 1 if settled else 0
    sets = {key: one for key, one in sets.items() if stuck[key] >= 2}
    if not sets:
        return
    here = pods_of(cluster, {one.workload.namespace for one in sets.values()})
    for key in sets:
        for pod in here.get(key, []):
            if not (pod.ready or pod.ending) and pod.revision != seen[key].status.get("updateRevision"):
                cluster.delete(path_of("v1", "pods", pod.namespace, pod.name), pod.uid)
                account.deleted_pods.append(f"{pod.namespace}/{pod.name}")
        stuck[key] = 0


def pods_of(cluster: Cluster, namespaces: Iterable[str]) -> dict[str, list[Pod]]:
    """The pods of these namespaces by their workload's key; one list each.

    :raises BalikError: a namespace cannot be read.
    """
    found, failed = at_once(sorted(namespaces), lambda namespace: pods.read(cluster, namespace))
    for error in failed.values():
        raise error
    return {key: there for by_owner in found.values() for key, there in by_owner.items()}


def verify(cluster: Cluster, changes: Sequence[Change]) -> Account:
    """Read whether each is as asked for, changing nothing and waiting for nothing."""
    account = Account()
    here = pods_of(cluster, {one.workload.namespace for one in changes if one.workload.kind.name in ROLLING})
    failing: dict[str, str] = {}
    for one in changes:
        running = here.get(one.key, [])
        if one.needed:
            failing[one.key] = f"is not as asked for ({one.line.partition(': ')[2]})"
        else:
            off = awaits(one.workload) or pods.wrong(one, running) or pods.unmoved(one, running)
            if off:
                failing[one.key] = off
            else:
                account.good[one.key] = _runs(one, running)
    if failing:
        by_key = {one.key: one for one in changes}
        events = warnings(cluster, {by_key[key].workload.namespace for key in failing})
        for key, why in failing.items():
            reasons = _reasons(by_key[key].workload, here.get(key, []), events)
            account.bad[key] = f"{key}: {why}" + "".join(f"; {reason}" for reason in reasons)
    return account


def warnings(cluster: Cluster, namespaces: Iterable[str]) -> dict[str, list[Warned]]:
    """Warnings of these namespaces by the uid of the object that they are about, the earliest first."""
    found: dict[str, list[Warned]] = {}

    def look(namespace: str) -> None:
        for raw in cluster.list(path_of("v1", "events", namespace), fields="type=Warning"):
            found.setdefault((raw.get("involvedObject") or {}).get("uid", ""), []).append(pods.warned(raw))

    # Reasons make a message better; that they could not be had is no reason to say nothing.
    at_once(sorted(namespaces), look)
    # Of one second, the longest says most: `Error: ErrImagePull` comes along with what the registry answered.
    return {uid: sorted(told, key=lambda one: (one.first, -len(one.line))) for uid, told in found.items()}


def _reasons(workload: Workload, running: Sequence[Pod], events: Mapping[str, list[Warned]]) -> list[str]:
    """Why it is not as asked for, causes first: what its pods say, then what is said of them and of itself since it was
    patched."""
    ailing = [pod for pod in pods.staying(running) if not pod.ready]
    said = list(pods.troubles(ailing))
    more = [f"{len(said) - _TOLD_PODS} more pods like these"] if len(said) > _TOLD_PODS else []
    failure = condition(workload)
    few = ailing[:_TOLD_PODS]
    about = dict.fromkeys([*(pod.uid for pod in few), *(pod.made_by for pod in few), workload.uid])
    since = [one.line for uid in about for one in events.get(uid, []) if one.last >= workload.patched_at]
    lines = [f"event {line}" for line in dict.fromkeys(since)]
    return [*guards.held(workload), *said[:_TOLD_PODS], *more, *([failure] if failure else []), *lines]


def _runs(change: Change, running: Sequence[Pod]) -> str:
    if change.workload.kind.name not in ROLLING:
        if change.suspend is not None:
            return "suspended" if change.suspend else "not suspended"
        return f"{', '.join(short(one.new) for one in change.replaced)} from its next Job on"
    parts = []
    for container, ids in pods.digests(change, running).items():
        image = next(one.new for one in change.replaced if one.container == container)
        # The digest need not be said twice.
        new = [one for one in ids if not image.endswith(one)]
        told = short(", ".join(["as before", *new] if container in change.unchanged else new))
        parts.append(f"{container} {short(image)}" + (f" ({told})" if told else ""))
    count = len(pods.staying(running))
    if not count:
        images = ", ".join(f"{one.container} {short(one.new)}" for one in change.replaced)
        return f"{images} on no pod, so that nothing has shown whether it can be pulled and runs"
    return f"{', '.join(parts)} on {count} pod{'' if count == 1 else 's'}"
