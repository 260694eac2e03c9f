"""Freezing the autoscalers of a cluster's namespaces, and thawing them: all at once, a patch for each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

from ..errors import BalikError
from ..kubernetes.client import JSON_PATCH, UNKNOWN, Cluster, Json, Refused, at_once, check_terms, path_of
from ..kubernetes.identity import identity_of, must_be_the_recorded
from ..kubernetes.permissions import Permission, require
from . import kinds
from .kinds import NOTE, Kind, Note, Values, note_of

Result = dict[str, Any]
"""``changed``, ``says``, and where they apply ``before``, ``evidence``, ``diff``."""

MANIFEST = "roles/scale-freeze/files/rbac-kubernetes.yml"
#: How often a patch is computed anew when its object was changed in between; controllers write often.
_TRIES = 6
_SHOWN = 5


@dataclass(frozen=True)
class Autoscaler:
    """One autoscaler as it was read."""

    kind: Kind
    thing: Json

    @property
    def namespace(self) -> str:
        return str(self.thing["metadata"]["namespace"])

    @property
    def name(self) -> str:
        return str(self.thing["metadata"]["name"])

    def __str__(self) -> str:
        return f"{self.kind.name} {self.namespace}/{self.name}"

    @property
    def path(self) -> str:
        return path_of(f"{self.kind.group}/{self.kind.version}", self.kind.plural, self.namespace, self.name)

    @property
    def note(self) -> Note | None:
        """What the freeze has left, where it holds just the settings that this kind gets back; else as good as lost."""
        found = note_of(self.thing)
        return found if found and found.product and set(found.was) == set(self.kind.settings) else None

    @property
    def holder(self) -> str:
        """The product that the annotation names, whatever else it lacks; empty where it names none."""
        found = note_of(self.thing)
        return found.product if found else ""

    @property
    def is_still(self) -> bool:
        return self.kind.is_still(self.thing)


@dataclass(frozen=True)
class Freezer:
    """The autoscalers of one product in one cluster.

    :param namespaces: where they are; at least one.
    :param labels: a label selector; empty: all in the namespaces.
    :param names: ``name`` or ``namespace/name``; empty: all that the labels choose.
    :param wanted: kinds to hold still, of :data:`kinds.NAMES`; those that the cluster does not have are left out.
    :param recorded: what this run's record says it was about to freeze: its settings by ``Kind namespace/name``. A thaw
        looks for these too, wherever the plan says the autoscalers are by now; and where a note is gone from what
        stands as the freeze left it, these settings are the ones to give back.
    :param began: in which cluster the record says that it froze them; see :func:`identity_of`.
    """

    cluster: Cluster
    product: str
    run: str
    namespaces: Sequence[str]
    labels: str = ""
    names: Sequence[str] = ()
    wanted: Sequence[str] = kinds.NAMES
    dry: bool = False
    recorded: Mapping[str, Values] = field(default_factory=dict)
    began: Mapping[str, Any] = field(default_factory=dict)

    # Before

    def ready(self) -> Result:
        """Finds the autoscalers, and every reason why they could not be frozen; ``before`` has their settings."""
        self._permitted(self.namespaces)
        chosen = self._chosen()
        there = self._empty(chosen)
        pins = [one for one in chosen if one.kind.pins and not (one.note and one.is_still)]
        self._each(pins, self._replicas, "ready")
        before = {str(one): self._kept_settings(one) or one.kind.values(one.thing) for one in chosen}
        return {
            "changed": False,
            "before": {"autoscalers": before, **identity_of(self.cluster, {str(one): one.thing for one in chosen})},
            "says": f"{_counted(chosen)} can be frozen ({', '.join(self._ways)})"
            + "".join(f"; none in namespace {one}{UNKNOWN if there[one] is None else ''}" for one in there),
        }

    def ready_to_thaw(self) -> Result:
        """Finds what is frozen; ``before`` names it, so that an undo can freeze it again."""
        self._with_recorded._permitted(self.namespaces)
        frozen, told = self._frozen()
        if others := {one.namespace for one in frozen} - set(self.namespaces):
            self._with_recorded._permitted(sorted(others))
        says = f"{_counted(frozen)} can be thawed" if frozen else "no autoscaler is frozen"
        return {"changed": False, "before": {"frozen": [str(one) for one in frozen]}, "says": says + told}

    # Freezing

    def freeze(self, only: Iterable[str] | None = None) -> Result:
        """Holds the chosen ones still, and reads each again in the API's own answer.

        :param only: just these, by ``Kind namespace/name``; those that are gone are left out.
        """
        chosen = self._chosen() if only is None else self._named(set(only))
        moving = [one for one in chosen if not (one.note and one.is_still)]
        if not self.dry:
            self._each(moving, self._freeze, "frozen")
        return {
            "changed": bool(moving),
            "says": f"{_counted(chosen)} {'would be held' if self.dry else 'held'} still",
            "evidence": {"frozen": len(chosen), "patched": len(moving)},
            "diff": _diff(moving, "scaled", "frozen"),
        }

    def verify_frozen(self) -> Result:
        chosen = self._chosen()
        if moving := [one for one in chosen if not (one.note and one.is_still)]:
            raise BalikError(_listed(moving), "not frozen", "to stand still", "Did GitOps or a deployment put it back?")
        return {"changed": False, "says": f"{_counted(chosen)} held still", "evidence": {"frozen": len(chosen)}}

    # Thawing

    def thaw(self) -> Result:
        """Gives everything that this product's freeze holds still exactly the settings that it had."""
        frozen, told = self._frozen()
        changed = [one for one in frozen if not one.is_still]
        if not self.dry:
            self._each(frozen, self._thaw, "thawed")
        says = f"{_counted(frozen)} {'would be let' if self.dry else 'let'} go" if frozen else "no autoscaler is frozen"
        if changed:
            says += f"; what somebody else changed meanwhile of {_listed(changed)} stays"
        return {
            "changed": bool(frozen),
            "says": says + told,
            "evidence": {"thawed": len(frozen), "changed_meanwhile": [str(one) for one in changed]},
            "diff": _diff(frozen, "frozen", "as before"),
        }

    def verify_thawed(self) -> Result:
        frozen, told = self._frozen()
        if frozen:
            raise BalikError(_listed(frozen), "still frozen", "to be let go", "Run scale-thaw again.")
        where = ", ".join(self._with_recorded.namespaces)
        return {
            "changed": False,
            "says": f"no autoscaler of {self.product} is frozen in {where}{told}",
            "evidence": {},
        }

    # One autoscaler

    def _freeze(self, one: Autoscaler) -> None:
        values = one.kind.values(one.thing)
        # What is frozen and was changed since has new settings, which are the ones to keep.
        was = (self._kept_settings(one) if one.kind.holds(values) else None) or values
        still = one.kind.still(values, self._replicas(one) if one.kind.pins else 0)
        got = self._patch(one, still, Note(self.product, self.run, was))
        if not got.is_still:
            raise BalikError(str(one), "the API took the change and dropped it", "an API that has the field")

    def _thaw(self, one: Autoscaler) -> None:
        was = self._kept_settings(one)
        if was is not None:
            self._patch(one, was if one.is_still else one.kind.rest(was, one.kind.values(one.thing)), None)

    def _kept_settings(self, one: Autoscaler) -> Values | None:
        """What the note has, or, where it is gone from what stands as the freeze left it, the record."""
        return one.note.was if one.note else self._recorded_of(one)

    def _recorded_of(self, one: Autoscaler) -> Values | None:
        """The record's settings of one that has no note, and stands still although these did not."""
        was = self.recorded.get(str(one), {})
        fits = not one.note and self._may_be_ours(one) and set(was) == set(one.kind.settings)
        return was if fits and one.is_still and not one.kind.holds(was) else None

    def _may_be_ours(self, one: Autoscaler) -> bool:
        return one.holder in ("", self.product)

    def _patch(self, one: Autoscaler, values: Values, note: Note | None) -> Autoscaler:
        body = kinds.patch(one.thing, values, note)
        return Autoscaler(one.kind, self.cluster.patch(one.path, body, JSON_PATCH))

    def _again(self, one: Autoscaler, act: Callable[[Autoscaler], object]) -> None:
        """The act, on the object as it is now whenever it was changed in between; one that is gone needs none."""
        for left in reversed(range(_TRIES)):
            try:
                act(one)
                return
            except Refused as error:
                if error.status == 404:
                    return
                if error.status != 409 or not left:
                    raise
            found = self.cluster.find(one.path)
            if found is None:
                return
            one = Autoscaler(one.kind, found)

    def _replicas(self, one: Autoscaler) -> int:
        """How many replicas the target has now, by its own word: an autoscaler's status is one round old."""
        target = one.thing["spec"]["scaleTargetRef"]
        resource = f"{target['kind'].lower()}s"
        path = path_of(target.get("apiVersion") or "apps/v1", resource, one.namespace, target["name"])
        found = self.cluster.find(f"{path}/scale")
        if found is None:
            raise BalikError(
                str(one),
                f"its target {target['kind']} {target['name']} does not exist, so that nobody knows how many replicas",
                do="Delete this autoscaler, or leave it out (scale_freeze_names, scale_freeze_labels).",
            )
        return int(found["spec"].get("replicas") or 0)

    def _each(self, all_of_them: Sequence[Autoscaler], act: Callable[[Autoscaler], object], word: str) -> None:
        by_name = {str(one): one for one in all_of_them}
        done, failed = at_once(by_name, lambda name: self._again(by_name[name], act))
        if not failed:
            return
        # One reason for many stands there once.
        reasons: dict[str, list[str]] = {}
        for name, error in failed.items():
            reasons.setdefault(f"{error.found}. {error.do}".strip(), []).append(name)
        told = "; ".join(f"{_short(names)}: {reason}" for reason, names in reasons.items())
        raise BalikError(
            f"{self.cluster.name}",
            f"{len(done)} of {len(by_name)} autoscalers are {word}, not so {told}",
            do="Mend that and run again: it goes on with the rest.",
        )

    # Which ones

    @cached_property
    def _kinds(self) -> list[Kind]:
        """Those that are wanted and that the cluster has.

        :raises BalikError: it has none of them.
        """
        if not self.wanted:
            raise BalikError("scale_freeze_kinds", "names no kind", f"some of {', '.join(kinds.NAMES)}")
        versions = [
            v for v in ("v2", "v2beta2", "v1") if self.cluster.offers(f"autoscaling/{v}", "horizontalpodautoscalers")
        ]
        found = [kinds.horizontal(versions, _minor(self.cluster.get("/version")))] if versions else []
        others = (kinds.SCALED_OBJECT, kinds.SCALED_JOB, kinds.VERTICAL)
        found += [kind for kind in others if self.cluster.offers(f"{kind.group}/{kind.version}", kind.plural)]
        chosen = [kind for kind in found if kind.name in self.wanted]
        if not chosen:
            raise BalikError(
                f"scale_freeze_kinds ({self.cluster.name})",
                f"the cluster has none of {', '.join(self.wanted)}",
                f"some of {', '.join(kind.name for kind in found)}",
            )
        return chosen

    @property
    def _ways(self) -> list[str]:
        return [f"{kind.name} {kind.version}{' by min = max' if kind.pins else ''}" for kind in self._kinds]

    def _permitted(self, namespaces: Sequence[str]) -> None:
        wanted = [
            Permission(verb, kind.group, kind.plural, namespace)
            for namespace in namespaces
            for kind in self._kinds
            for verb in ("get", "list", "patch")
        ]
        if any(kind.pins for kind in self._kinds):
            targets = ("deployments/scale", "statefulsets/scale")
            wanted += [Permission("get", "apps", target, namespace) for namespace in namespaces for target in targets]
        require(self.cluster, wanted, MANIFEST)

    def _all(self, labels: str = "") -> Iterator[Autoscaler]:
        if not self.namespaces or not all(self.namespaces):
            wrong = "one is empty" if self.namespaces else "names no namespace"
            raise BalikError("scale_freeze_namespaces", wrong, "at least one, each by its name")
        check_terms(filter(None, labels.split(",")), "scale_freeze_labels")
        jobs = {
            path_of(f"{kind.group}/{kind.version}", kind.plural, namespace): kind
            for namespace in self.namespaces
            for kind in self._kinds
        }
        found, failed = at_once(jobs, lambda path: list(self.cluster.list(path, labels)))
        if failed:
            raise next(iter(failed.values()))
        for path, things in found.items():
            yield from (Autoscaler(jobs[path], thing) for thing in things)

    def _chosen(self) -> list[Autoscaler]:
        """:raises BalikError: this is not the record's cluster, one that is named is not there, there is none, or
        another product holds one."""
        self._must_be_its_cluster()
        if not all(self.names):
            raise BalikError("scale_freeze_names", "one is empty", "each by its name")
        every = list(self._all(self.labels))
        chosen = [one for one in every if not self.names or {one.name, f"{one.namespace}/{one.name}"} & set(self.names)]
        there = {name for one in chosen for name in (one.name, f"{one.namespace}/{one.name}")}
        where = f"in {', '.join(self.namespaces)} of {self.cluster.name}"
        if missing := [name for name in self.names if name not in there]:
            self._empty(every)
            raise BalikError(
                f"scale_freeze_names: {', '.join(missing)}",
                f"not {where}, which has {_listed(every) if every else 'none'}",
                do="Correct the name, the namespace or the context.",
            )
        if not chosen:
            self._empty(every)
            labelled = f" with labels {self.labels}" if self.labels else ""
            raise BalikError(
                "scale-freeze",
                f"no autoscaler{labelled} {where}",
                "at least one",
                "Correct scale_freeze_namespaces or scale_freeze_labels, or take scale-freeze out of the plan.",
            )
        if foreign := [one for one in chosen if not self._may_be_ours(one)]:
            holders = sorted({one.holder for one in foreign})
            raise BalikError(
                _listed(foreign), f"frozen by the rollback of {', '.join(holders)}", do="Let that end first."
            )
        self._readable(chosen)
        if strange := [
            one for one in chosen if one.kind.rare and one.is_still and not one.note and self._recorded_of(one) is None
        ]:
            raise BalikError(
                _listed(strange),
                f"stands still already (selectPolicy: {kinds.DISABLED} both ways) without the annotation {NOTE}",
                "settings to give back when it is let go",
                "Put its settings back by hand, or leave it out (scale_freeze_names, scale_freeze_labels).",
            )
        return self._kept(chosen)

    def _empty(self, found: Sequence[Autoscaler]) -> dict[str, bool | None]:
        """The namespaces of the plan in which nothing was found, and whether each exists (None: nobody knows).

        :raises BalikError: one does not.
        """
        empty = [one for one in self.namespaces if not any(each.namespace == one for each in found)]
        there = {one: self.cluster.has(one) for one in empty}
        if absent := [one for one in empty if there[one] is False]:
            raise BalikError(
                "scale_freeze_namespaces",
                f"{', '.join(absent)} does not exist ({self.cluster.name})",
                do="Correct the name or the context.",
            )
        return there

    def _kept(self, chosen: list[Autoscaler]) -> list[Autoscaler]:
        """Without those that a ScaledObject owns and would put back: that one is to be frozen.

        :raises BalikError: it is not among the chosen.
        """
        keepers = {(one.namespace, one.name) for one in chosen if one.kind == kinds.SCALED_OBJECT}
        owned = {str(one): (one.namespace, keeper) for one in chosen if (keeper := kinds.keeper_of(one.thing))}
        if lost := {name: keeper for name, keeper in owned.items() if keeper not in keepers}:
            owners = sorted({"/".join(keeper) for keeper in lost.values()})
            raise BalikError(
                _short(lost),
                f"made by ScaledObject {_short(owners)}, which would undo a freeze",
                do="Choose the ScaledObject (scale_freeze_names, scale_freeze_labels, scale_freeze_kinds) instead.",
            )
        return [one for one in chosen if str(one) not in owned]

    def _must_be_its_cluster(self) -> None:
        def uids(namespace: str) -> dict[str, str]:
            return {str(one): str(one.thing["metadata"]["uid"]) for one in self._in(namespace)}

        places = [partial(uids, namespace) for namespace in self._with_recorded.namespaces]
        must_be_the_recorded(self.cluster, self.began, places, "scale_freeze_kubeconfig, scale_freeze_context")

    def _named(self, names: set[str]) -> list[Autoscaler]:
        self._must_be_its_cluster()
        return self._readable([one for one in self._everywhere() if str(one) in names])

    @cached_property
    def _with_recorded(self) -> Freezer:
        """The same one, looking also where the recorded ones are."""
        namespaces = dict.fromkeys([*self.namespaces, *map(_namespace_of, self.recorded)])
        wanted = dict.fromkeys([*self.wanted, *(name.partition(" ")[0] for name in self.recorded)])
        return replace(self, namespaces=tuple(namespaces), wanted=tuple(wanted))

    def _in(self, namespace: str) -> list[Autoscaler]:
        """All of one namespace, also of kinds that only the record names."""
        return list(replace(self._with_recorded, namespaces=(namespace,))._all())

    def _everywhere(self) -> list[Autoscaler]:
        """All in the namespaces of the plan, and in those of the record that were not deleted.

        :raises Refused: one may not be read, and is there, or may be.
        """
        every = list(replace(self._with_recorded, namespaces=self.namespaces)._all())
        for namespace in sorted({*self._with_recorded.namespaces} - {*self.namespaces}):
            try:
                every += self._in(namespace)
            except Refused as error:
                self.cluster.must_be_gone(namespace, error)
        return every

    def _frozen(self) -> tuple[list[Autoscaler], str]:
        """All that this product's freeze holds, whatever labels and names the plan has by now; and what to say of those
        of the record that are not there any more.

        :raises BalikError: this is another cluster than the record's; or not one of the record is there, so that it may
            be.
        """
        self._must_be_its_cluster()
        every = self._everywhere()
        self._readable([one for one in every if self._may_be_ours(one)])
        there = {str(one) for one in every}
        gone = [name for name in self.recorded if name not in there]
        ours = [one for one in every if one.note and one.note.product == self.product]
        frozen = [*ours, *(one for one in every if self._recorded_of(one) is not None)]
        if gone and len(gone) == len(self.recorded) and not frozen:
            raise BalikError(
                _short(gone),
                f"the record names these, and not one exists ({self.cluster.name})",
                do="See that kubeconfig and context are those of scale-freeze. If all were deleted, create them again, "
                "or take scale-thaw out of the plan.",
            )
        return frozen, _told(gone)

    def _readable(self, found: list[Autoscaler]) -> list[Autoscaler]:
        """:raises BalikError: a note does not say what stood there, and neither does the record."""
        noted = [one for one in found if NOTE in (one.thing["metadata"].get("annotations") or {})]
        if broken := [one for one in noted if not one.note and self._recorded_of(one) is None]:
            raise BalikError(
                _listed(broken),
                f"its annotation {NOTE} cannot be read, or does not hold the settings that this kind has",
                "what the freeze wrote",
                "Put its settings back by hand (the record has them: playbooks/record.yml), and remove the annotation.",
            )
        return found


def _minor(version: Json) -> int:
    digits = "".join(each for each in str(version.get("minor", "")) if each.isdigit())
    return int(digits or 0)


def _namespace_of(name: str) -> str:
    return name.partition(" ")[2].partition("/")[0]


def _counted(found: Sequence[Autoscaler]) -> str:
    return f"{len(found)} autoscaler{'' if len(found) == 1 else 's'} ({_listed(found)})"


def _listed(found: Iterable[Autoscaler]) -> str:
    return _short([str(one) for one in found])


def _short(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _told(gone: Sequence[str]) -> str:
    return f"; {_short(gone)}, which the record names, {'is' if len(gone) == 1 else 'are'} not there" if gone else ""


def _diff(found: Sequence[Autoscaler], before: str, after: str) -> dict[str, str]:
    return {
        "before": "".join(f"{one}: {before}\n" for one in found),
        "after": "".join(f"{one}: {after}\n" for one in found),
    }
