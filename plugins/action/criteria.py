"""Measures a plan's criteria; see the module's documentation."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any, ClassVar

from ..module_utils import criteria
from ..module_utils.http_probe import requests_of
from ..module_utils.run import Run, read_statements
from ..module_utils.units import format_duration
from ..plugin_utils.action import LEASE, RollbackAction

#: Seconds of measuring; for so long nobody need be told why nothing happens.
TOLD_FROM = 30.0
MARKS = {criteria.SAFE: "safe   ", criteria.UNSAFE: "UNSAFE ", criteria.UNKNOWN: "unknown"}


def measure(
    action: RollbackAction, since: datetime | None = None, first_back: datetime | None = None, cut: bool = False
) -> criteria.Evaluation:
    """All criteria of the plan, measured now, with the people's statements of the record.

    :param since: samples that are older do not count.
    :param first_back: nor do statements from before that.
    :param cut: nothing is watched for a while.
    """
    plan = action.plan
    context: criteria.Context = {"statements": lambda: read_statements(action.entries(), plan.launched, first_back)}
    asked = [each for each in plan.criteria if not (action.check_mode and writes(each.measure.get("http", {})))]
    found = criteria.evaluate(asked, context, since=since, trigger=plan.trigger, cut=cut)
    if len(asked) == len(plan.criteria):
        return found
    told = {verdict.criterion: verdict for verdict in found.verdicts}
    verdicts = tuple(told.get(each.name) or not_asked(each, found.at) for each in plan.criteria)
    whole = criteria.combine([each.verdict for each in verdicts], plan.trigger)
    return replace(found, verdict=whole, reason=criteria.summary(verdicts, whole), verdicts=verdicts)


def stated_unsafe(action: RollbackAction, run: Run) -> criteria.Verdict | None:
    """What somebody has stated since a run gave the traffic back first, and nobody has taken back: a watch would end by
    it."""
    plan = action.plan
    if run.first_back is None or plan.trigger != "any":
        return None
    stated = [each for each in plan.criteria if "statement" in each.measure]
    context: criteria.Context = {"statements": read_statements(action.entries(), plan.launched, run.first_back)}
    verdicts = criteria.evaluate(stated, context).verdicts
    return next((each for each in verdicts if each.verdict == criteria.UNSAFE), None)


def not_asked(criterion: criteria.Criterion, now: datetime) -> criteria.Verdict:
    """What a check run knows of a criterion that it must not measure: nothing."""
    reason = "not asked: it writes, and this is a check run"
    return criteria.Verdict(
        criterion.name, criterion.says, criteria.UNKNOWN, reason, (), "http", now, 0.0, criterion.touches
    )


def writes(spec: dict[str, Any]) -> bool:
    """Whether a sequence of requests has one that may change something."""
    return any(
        str(request.get("method") or ("POST" if {"body", "json"} & set(request) else "GET")).upper()
        not in ("GET", "HEAD", "OPTIONS")
        for request in (*requests_of(spec), *spec.get("after", ()))
    )


class ActionModule(RollbackAction):
    """Says whether the release is safe, unsafe, or unknown, and which remedy covers what is unsafe."""

    UNDER_LOCK = True
    ARGUMENTS: ClassVar[dict[str, Any]] = {"run": {"type": "str", "default": ""}}

    def act(self, arguments: dict[str, Any]) -> dict[str, Any]:
        if decided := self.run_of(arguments["run"]).decided:
            says = f"decided before: {decided['reason']}"
            return {"verdict": criteria.UNSAFE, "remedy": decided["remedy"], "says": says, "ask": False}
        takes = criteria.longest(self.plan.criteria)
        self.keep_lock(takes + LEASE)
        # Whoever breaks the glass and says what to do waits for no criterion: they are told as they are now.
        cut = bool(self.variables.get("rollback_break_glass")) and bool(
            self.wished_scope() or self.variables.get("rollback_remedy")
        )
        if takes > TOLD_FROM and not cut:
            self.say(f"measuring {len(self.plan.criteria)} criteria, which may take up to {format_duration(takes)}")
        found = measure(self, cut=cut)
        for verdict in found.verdicts:
            self.say(f"{MARKS[verdict.verdict]}  {verdict.says}: {verdict.reason}")
        # Asked for without a word about what is wrong: the application, where the plan has a remedy for that.
        usual = tuple(part for part in ("backend",) if any(part in each.covers for each in self.plan.remedies.values()))
        scope = self.wished_scope() or found.touches or usual
        remedy = self.plan.remedy(scope, self.variables.get("rollback_remedy"))
        result = {
            "verdict": found.verdict,
            "scope": list(scope),
            "remedy": remedy.name,
            "says": f"{found.verdict}: {found.reason}",
        }
        wished = self.variables.get("rollback_reason") or self.variables.get("rollback_break_glass")
        self.append("criteria", {**found.as_dict(), **result}, arguments["run"])
        return {
            **result,
            "changed": not self.check_mode,
            "ask": bool(wished) or found.verdict != criteria.SAFE,
            "hold": list(self.plan.hold),
            "revert": list(remedy.revert),
            "evaluation": found.as_dict(),
        }
