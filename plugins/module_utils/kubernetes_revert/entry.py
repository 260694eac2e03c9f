"""From a module's arguments to its result: which entry point, what it says."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from ..errors import BalikError, Unreachable
from ..kubernetes.client import Cluster, at_once, name_of
from ..kubernetes.identity import Place, identity_of, must_be_the_recorded
from ..kubernetes.permissions import Permission, require
from . import gitops, guards, pods, rollout, selection
from .gitops import Held, Owner, Where
from .images import parse, same, short
from .rollout import Account
from .selection import Change, Selection
from .workloads import KINDS, ROLLING, Workload, parts_of

Json = dict[str, Any]

MANIFEST = "roles/image-revert/files/rbac-kubernetes.yml"
#: How many workloads a sentence names.
_NAMED = 10
#: Seconds that Argo CD may take to compare its Applications once more.
_COMPARED = 120.0


def run(arguments: Mapping[str, Any], check_mode: bool) -> Json:
    """Do what ``arguments["entry"]`` says; the module's result.

    :raises BalikError: for whatever a person must read; :class:`rollout.Partial` where some workloads are as asked for.
    """
    cluster = Cluster.connect(arguments.get("kubeconfig") or "", arguments.get("context") or "")
    return Revert(cluster, arguments).run(check_mode)


class Revert:
    """One call of the step."""

    def __init__(self, cluster: Cluster, arguments: Mapping[str, Any]) -> None:
        self.cluster, self.arguments = cluster, arguments
        self.limit = selection.limit_of(arguments["limit"], "limit")
        self.owners: str = arguments["owners"]
        self.argocd = Where.named(arguments.get("argocd_namespaces"), gitops.ARGO_HOME, gitops.ARGO_PLACES)
        self.flux = Where.named(arguments.get("flux_namespaces"), gitops.FLUX_HOME, gitops.FLUX_PLACES)
        self.product: str = arguments["product"]
        self.saved: Json = arguments.get("saved") or {}
        self.recorded: Sequence[str] | None = arguments.get("recorded")
        self.unseen: Sequence[str] = []
        self.gone: Sequence[str] = []
        self.begun = time.monotonic()

    def run(self, check_mode: bool) -> Json:
        """The result of the entry point."""
        entry = self.arguments["entry"]
        given = "image_revert_kubeconfig, image_revert_context"
        began = self.arguments.get("recorded_in") or self.saved
        # GitOps is let go after a rollback; to begin that anew would harm.
        must_be_the_recorded(self.cluster, began, self._places(began), given, ended=entry.endswith("resume"))
        if entry == "undo":
            return self.undo(check_mode)
        if entry in ("resume", "undo_resume"):
            return {"resume": self.resume, "undo_resume": self.undo_resume}[entry](check_mode)
        if entry in ("check_resume", "verify_resume"):
            return {"check_resume": self.check_resume, "verify_resume": self.verify_resume}[entry]()
        if entry == "check":
            require(self.cluster, self.permissions(), MANIFEST)
        found = self.select()
        if entry == "check":
            return self.check(found)
        if entry == "verify":
            account = rollout.verify(self.cluster, self._knowing(found.changes, self.saved.get("workloads") or {}))
            account.refuse()
            self._must_be_held_off(found.changes)
            return self._result(account.good, False, "")
        return self.main(found, check_mode)

    def _places(self, began: Mapping[str, Any]) -> list[Place]:
        """Each kind in each namespace where the run has workloads."""

        def uids(kind: str, namespace: str) -> dict[str, str]:
            there = selection.read(self.cluster, kind, namespace)
            return {one.key: str(one.raw["metadata"]["uid"]) for one in there}

        places = {parts_of(key)[:2] for key in began.get("uids") or {}}
        return [partial(uids, *place) for place in sorted(places)]

    def permissions(self) -> list[Permission]:
        """All that the step takes, as far as the plan alone tells (Flux' objects are named by the workloads)."""
        given = self.arguments
        places: dict[tuple[str, str], list[str]] = {}
        for one in given.get("workloads") or []:
            places.setdefault((one.get("kind") or "Deployment", one["namespace"]), []).append(one["name"])
        if not places:
            places = {(kind, where): [] for kind in given["kinds"] for where in given.get("namespaces") or [""]}
        wanted = gitops.argocd_permissions(self.cluster, self.argocd.namespaces, self.owners)
        for (kind, namespace), names in places.items():
            known = KINDS[kind]
            wanted.append(Permission("list", known.group, known.resource, namespace))
            wanted += [
                Permission(verb, known.group, known.resource, namespace, tuple(names)) for verb in ("get", "patch")
            ]
            if kind == "CronJob":
                wanted.append(Permission("list", "batch", "jobs", namespace))
            if kind == "StatefulSet":
                wanted.append(Permission("delete", "", "pods", namespace))
            if kind in ROLLING:
                read = ("pods", "events", "resourcequotas", "limitranges")
                wanted += [Permission("list", "", name, namespace) for name in read]
                wanted.append(Permission("list", "policy", "poddisruptionbudgets", namespace))
        return wanted

    def select(self) -> Selection:
        """The workloads and what shall become of them.

        :raises BalikError: whatever of the plan does not fit the cluster.
        """
        given = self.arguments
        images = selection.targets([*([given["image"]] if given.get("image") else []), *(given.get("images") or [])])
        if bool(given.get("workloads")) == bool(given.get("labels")):
            both = "both workloads and labels are given" if given.get("labels") else "nothing is named"
            raise BalikError("What to bring back", both, "either workloads or labels")
        if given.get("workloads"):
            wanted = selection.wanted_of(given["workloads"], images, self.limit)
            return selection.by_name(self.cluster, wanted, given["cronjobs"])
        return selection.by_labels(
            self.cluster,
            given["labels"],
            given.get("namespaces") or [],
            given["kinds"],
            images,
            self.limit,
            given["cronjobs"],
        )

    def check(self, found: Selection) -> Json:
        """Every reason why it could not be done, at once; what stands there."""
        changes = found.changes
        require(self.cluster, gitops.flux_permissions(changes, self.owners), MANIFEST)
        owners = gitops.find(self.cluster, changes, self.argocd.namespaces)
        refusals, notes = gitops.judge(owners, self.owners, self.product)
        refusals += gitops.absent(self.cluster, self.argocd.namespaces)
        running = self._running(changes)
        findings = guards.examine(self.cluster, found)
        refusals += findings.refusals
        notes += [*findings.notes, *self._running_jobs(changes)]
        before = _before(changes, running)
        # Of what has come since the run began, nobody knows what it was then.
        at_first = self.saved.get("workloads") or before
        begun = [_as_begun(one, at_first[one.key]) for one in changes if one.key in at_first]
        notes += [f"{one.key} was no part of this run when it began" for one in changes if one.key not in at_first]
        has = "had" if self.saved else "has"
        notes += [
            f"{one.key}: {', '.join(one.unchanged)} {has} what is asked for already, under another name"
            for one in begun
            if one.unchanged
        ]
        if self.arguments["already"] == "refuse":
            refusals += self._nothing_to_revert(begun, at_first)
        refusals += self._rehearse(changes)
        refusals += found.nothing
        if refusals:
            raise BalikError("Cannot revert", "\n".join(selection.told(refusals)), do="The check touched no workload.")
        held = [one.path for one in owners if self._holds(one)]
        return {
            "changed": False,
            "says": _sentence([one.line for one in changes], notes, found.left),
            "before": {
                "workloads": before,
                **identity_of(self.cluster, {one.workload.key: one.workload.raw for one in changes}),
                **({"held": held} if held else {}),
            },
            "evidence": {"notes": notes, "left": found.left, "cluster": self.cluster.name},
            "diff": _diff(changes),
        }

    def main(self, found: Selection, check_mode: bool) -> Json:
        """Hold off who would put the version back, patch, wait, read back."""
        before = self.saved.get("workloads") or _before(found.changes, self._running(found.changes))
        changes = self._knowing(found.changes, before)
        everybody = gitops.find(self.cluster, changes, self.argocd.namespaces)
        owners = [one for one in everybody if self._holds(one)]
        busy = [one for one in everybody if self.owners == "suspend" and one.busy and not self._holds(one)]
        if check_mode:
            loose = [f"would hold off {one.name}" for one in owners if not one.held]
            says = _sentence([one.line for one in changes], loose, found.left)
            needed = any(one.needed for one in changes)
            return {"changed": needed or bool(loose), "says": says, "evidence": {}, "diff": _diff(changes)}
        held = self._hold_off(owners, busy)
        account = rollout.carry_out(self.cluster, changes)
        account.refuse("Run again once that is mended: what is done stays done. Nothing else was touched.")
        more = f"; held off until resumed: {', '.join(held)}" if held else ""
        more += f"; {_sentence(found.left)}" if found.left else ""
        result = self._result(account.good, bool(account.patched or held), more, account)
        return {**result, "diff": _diff(changes)}

    def _hold_off(self, owners: Sequence[Owner], busy: Sequence[Owner]) -> list[str]:
        """Keep these from acting, and wait for what they and the busy ones are doing just now; whom there was need to.

        :raises BalikError: with those that are held off by now.
        """
        held: list[str] = []
        try:
            for one in owners:
                held += [one.name] if gitops.hold(self.cluster, one.path, self.product) else []
            gitops.wait_until_idle(self.cluster, [one.path for one in (*owners, *busy)], self.limit)
        except BalikError as error:
            now = ", ".join([*(one.name for one in owners if one.held), *held]) or "nobody"
            told = f"{error.do} No image was touched; held off by now: {now}".strip()
            raise BalikError(error.what, error.found, error.expected, told) from None
        return held

    def _must_be_held_off(self, changes: Sequence[Change]) -> None:
        """:raises BalikError: somebody whom the plan wants held off acts again."""
        owners = gitops.find(self.cluster, changes, self.argocd.namespaces) if self.owners == "suspend" else []
        if loose := [one.name for one in owners if self._holds(one) and not one.held]:
            raise BalikError(
                ", ".join(loose), "acts again, and may put the version back", do="Run again: it is held off anew."
            )

    def undo(self, check_mode: bool) -> Json:
        """Put the saved images back, then let those act again that were held off. What was deleted is told."""
        saved = self.saved.get("workloads") or {}
        changes, gone, bad = self._saved_changes(saved)
        if gone and len(gone) == len(saved):
            raise BalikError(
                _sentence(list(saved)),
                f"not one of these exists ({self.cluster.name})",
                do="See that kubeconfig and context are those of the rollback. If all were deleted, create them again.",
            )
        if check_mode:
            needed = [one for one in changes if one.needed]
            says = _sentence([one.line for one in needed], gone, list(bad.values())) or "nothing to put back"
            return {"changed": bool(needed), "says": says, "evidence": {}, "diff": _diff(changes)}
        done = rollout.carry_out(self.cluster, changes)
        done.bad.update(bad)
        done.refuse("Put these back by hand, or run again once that is mended.")
        resumed = [gitops.held_at(self.cluster, path, self.product) for path in self.saved.get("held") or []]
        for one in filter(None, resumed):
            gitops.give_back(self.cluster, one)
        names = ", ".join(one.name for one in resumed if one)
        more = "".join(f"; {one}" for one in gone) + (f"; acting again: {names}" if names else "")
        return self._result(done.good, bool(done.patched or names), more, done)

    def check_resume(self) -> Json:
        """Who is held off, and for whom Git already wants what runs."""
        if self.recorded is None:
            require(self.cluster, gitops.search_permissions(self.cluster, self.argocd, self.flux), MANIFEST)
        require(self.cluster, gitops.resume_permissions(self.recorded or []), MANIFEST)
        held = self._held()
        require(self.cluster, gitops.resume_permissions([one.path for one in held]), MANIFEST)
        before = {"held": [one.path for one in held], **identity_of(self.cluster, {})}
        return {"changed": False, "says": self._resumable(held), "before": before}

    def resume(self, check_mode: bool) -> Json:
        """Let those act again for whom Git wants what runs."""
        end = time.monotonic() + min(self.limit, _COMPARED)
        resumed: list[Held] = []
        while held := self._held():
            if not check_mode and self.arguments["resume"] != "always":
                gitops.compare_anew(self.cluster, [one for one in held if not one.acts], end - time.monotonic())
                held = self._held()
            ready = [one for one in held if self._ready(one)]
            resumed += ready
            if check_mode or not ready:
                break
            for one in ready:
                gitops.give_back(self.cluster, one)
            # An Application of Applications was other than Git wants it by what these lacked: it is asked again.
        left = [one for one in held if not self._ready(one)]
        evidence = {"resumed": [one.name for one in resumed], "left": [one.name for one in left]}
        return {"changed": bool(resumed), "says": self._resumable([*resumed, *left]), "evidence": evidence}

    def verify_resume(self) -> Json:
        """Read that nobody is held off without a reason."""
        held = self._held()
        ready = [one.name for one in held if self._ready(one)]
        if ready:
            raise BalikError(", ".join(ready), "is still held off", do="Run again.")
        return {"changed": False, "says": self._resumable(held), "evidence": {"left": [one.name for one in held]}}

    def undo_resume(self, check_mode: bool) -> Json:
        """Hold off again those that were. What was deleted is told."""
        found = {path: self.cluster.find(path) for path in self.saved.get("held") or []}
        gone = [path for path, raw in found.items() if raw is None]
        loose = [path for path, raw in found.items() if raw and gitops.holder(path, raw) != self.product]
        if not check_mode:
            for path in loose:
                gitops.hold(self.cluster, path, self.product)
            gitops.wait_until_idle(self.cluster, loose, self.limit)
        says = f"held off again: {', '.join(map(name_of, loose))}" if loose else "nothing was resumed"
        says += "".join(f"; {name_of(path)} does not exist any more" for path in gone)
        return {"changed": bool(loose), "says": says, "evidence": {}}

    def _held(self) -> list[Held]:
        found, self.unseen = gitops.held(self.cluster, self.product, self.argocd, self.flux, self.recorded)
        others = set(self.recorded or []) - {one.path for one in found}
        self.gone = [name_of(path) for path in sorted(others) if self.cluster.find(path) is None]
        return found

    def _ready(self, one: Held) -> bool:
        return not one.apart or self.arguments["resume"] == "always"

    def _resumable(self, held: Sequence[Held]) -> str:
        ready = [one.name for one in held if self._ready(one)]
        parts = [f"acting again: {', '.join(ready)}"] if ready else []
        parts += [
            f"{one.name} stays held off ({one.apart}); revert there, then resume it"
            for one in held
            if not self._ready(one)
        ]
        parts = parts or [f"nothing is held off for {self.product}"]
        says = "; ".join([*parts, *(f"{name} does not exist any more" for name in self.gone)])
        unseen = f"; not looked for, since these credentials may not list them: {', '.join(self.unseen)}"
        return says + unseen if self.unseen else says

    def _saved_changes(self, saved: Mapping[str, Json]) -> tuple[list[Change], list[str], dict[str, str]]:
        """What puts each back, a line for each that is gone, and (by key) why others cannot be put back."""
        places = {(kind, namespace) for kind, namespace, _ in map(parts_of, saved)}
        there: dict[str, Workload] = {}
        for kind, namespace in sorted(places):
            there.update((one.key, one) for one in selection.read(self.cluster, kind, namespace))
        changes, bad = [], {}
        limits = selection.limits_of(self.arguments.get("workloads") or [])
        gone = [f"{key} does not exist any more" for key in saved if key not in there]
        for key in (one for one in saved if one in there):
            try:
                changes.append(selection.back(there[key], saved[key], limits.get(key, self.limit)))
            except BalikError as error:
                bad[key] = str(error)
        return changes, gone, bad

    def _holds(self, owner: Owner) -> bool:
        return self.owners == "suspend" and bool(owner.path) and not owner.cannot and (owner.fights or bool(owner.held))

    def _running(self, changes: Sequence[Change]) -> dict[str, list[pods.Pod]]:
        rolling = [one.workload for one in changes if one.workload.kind.name in ROLLING]
        return rollout.pods_of(self.cluster, {one.namespace for one in rolling})

    def _knowing(self, changes: Sequence[Change], before: Mapping[str, Json]) -> list[Change]:
        """The changes with what ran before, unless the same may come again."""
        if self.arguments["already"] == "accept":
            return list(changes)
        return [replace(one, ran=before.get(one.key, {}).get("ran") or {}) for one in changes]

    def _nothing_to_revert(self, changes: Sequence[Change], before: Mapping[str, Json]) -> list[str]:
        """Where the target is what ran when the run began: a name that has moved, or the release's own image.

        :param changes: as they would have been then, by ``before``.
        """
        is_, runs, since = ("was", "ran", " when this run began") if self.saved else ("is", "runs", "")
        refusals = []
        for change in changes:
            # What another container goes to is a target that is seen to change.
            going = {one.new for one in change.replaced if not same(one.old, one.new)}
            for one in change.replaced:
                target = parse(one.new)
                if same(one.old, one.new) and one.new not in going and target and not target.digest:
                    refusals.append(
                        f"{change.key}: {one.container} {is_} set to {one.new} already{since}, and a tag that has "
                        "moved is not seen as a change; nodes may go on with what they keep under it. Name the image "
                        "by its digest, or accept it (image_revert_already: accept)"
                    )
        if changes and not refusals and all(_ran_already(one, before[one.key]) for one in changes):
            names = _sentence([one.key for one in changes])
            images = ", ".join(sorted({short(one.new) for change in changes for one in change.replaced}))
            refusals.append(
                f"{images or 'What is asked for'} is what {runs} already{since}: {names}. Name the image of the "
                "release before, or accept it (image_revert_already: accept)"
            )
        return refusals

    def _rehearse(self, changes: Sequence[Change]) -> list[str]:
        """What the API, with all its admission rules, would say to the patches, and make of them."""
        by_key = {one.key: one for one in changes if one.needed}
        _, failed = at_once(by_key, lambda key: rollout.rehearse(self.cluster, by_key[key]))
        refusals = []
        for key, error in failed.items():
            if isinstance(error, Unreachable):
                raise error
            # Changed since it was read: main reads it anew. A hook that cannot rehearse says nothing of the patch.
            if getattr(error, "status", 0) not in (404, 409) and "dry run" not in str(error):
                refusals.append(f"{key}: {error}")
        return refusals

    def _running_jobs(self, changes: Sequence[Change]) -> list[str]:
        namespaces = {one.workload.namespace for one in changes if one.workload.kind.name == "CronJob"}
        jobs = [job for namespace in sorted(namespaces) for job in selection.read(self.cluster, "Job", namespace)]
        return guards.running_jobs(changes, jobs)

    def _result(self, good: Mapping[str, str], changed: bool, more: str, account: Account | None = None) -> Json:
        evidence = account.evidence() if account else {"workloads": dict(good)}
        seconds = round(time.monotonic() - self.begun, 2)
        says = _sentence([f"{key}: {words}" for key, words in good.items()]) + more
        says = says.removeprefix("; ")
        return {"changed": changed, "says": says or "nothing to do", "evidence": {**evidence, "seconds": seconds}}


def _before(changes: Sequence[Change], running: Mapping[str, Sequence[pods.Pod]]) -> dict[str, Json]:
    """For the record, of each workload: how it is configured, and what content runs under the names to be replaced."""
    found = {}
    for one in changes:
        ran = pods.content(one, running.get(one.key, []))
        found[one.key] = {**one.before, **({"ran": ran} if ran else {})}
    return found


def _as_begun(change: Change, before: Json) -> Change:
    """The change as it would have been when the run began, by what :func:`_before` says of it."""
    images = before.get("images") or {}
    replaced = tuple(one._replace(old=images.get(one.container, "")) for one in change.replaced)
    return replace(change, replaced=replaced, ran=before.get("ran") or {})


def _ran_already(change: Change, before: Json) -> bool:
    if change.suspend is not None:
        return bool(before.get("suspend") == change.suspend)
    return all(same(one.old, one.new) or one.container in change.unchanged for one in change.replaced)


def _sentence(*groups: Sequence[str]) -> str:
    """The first lines of each group, and how many more it has."""
    parts: list[str] = []
    for some in groups:
        parts += some[:_NAMED]
        parts += [f"and {len(some) - _NAMED} more"] if len(some) > _NAMED else []
    return "; ".join(parts)


def _diff(changes: Sequence[Change]) -> Json:
    def page(old: bool) -> str:
        lines = []
        for change in changes:
            lines += [f"{change.key} {one.container}: {one.old if old else one.new}\n" for one in change.replaced]
            if change.suspend is not None:
                lines.append(f"{change.key} suspend: {change.workload.suspended if old else change.suspend}\n")
        return "".join(lines)

    return {"before": page(True), "after": page(False)}
