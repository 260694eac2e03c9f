"""Checks a product's plan and the settings of its steps; see the module's documentation."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from ansible import context

from ..module_utils.errors import BalikError
from ..module_utils.plan import INTERNAL_PREFIXES, PlanRefused
from ..module_utils.run import WORDS
from ..module_utils.smoke import check_checks
from ..module_utils.units import iso, utc_now
from ..plugin_utils.action import RollbackAction, lost_words, no_text, step_roles, too_long
from ..plugin_utils.settings import Problem, StepSettings

#: What a call may wish.
TEXTS = (
    *("rollback_reason", "rollback_break_glass", "rollback_role", "rollback_by"),
    *("rollback_scope", "rollback_remedy", "rollback_procedure"),
)
#: Seconds by which a launch may lie in the future: clocks differ.
CLOCKS_DIFFER = 600


class ActionModule(RollbackAction):
    """Refuses a plan that could fail later for a reason that can be read now."""

    def act(self, arguments: dict[str, Any]) -> dict[str, Any]:
        problems: list[BalikError] = []
        try:
            plan = self.plan
            steps = {step for remedy in plan.remedies for _phase, step in plan.steps(remedy)}
            problems += self._check_call()
            problems += self._check_secrets(steps)
        except PlanRefused as refused:
            problems, steps = refused.problems, set(refused.steps)
        told = {problem.what for problem in problems}
        for step in sorted(steps):
            problems += self._check_step(step)
        if "smoke-test" in steps:
            # A spec cannot say what a check may hold, and the step itself comes when the page is up already.
            checks = self.variables.get("smoke_test_checks", [])
            found = map(self.with_place, (*self.variables.problems, *check_checks(checks)))
            problems += [problem for problem in found if problem.what not in told]
        if problems:
            raise PlanRefused(list({str(problem): problem for problem in problems}.values()))
        warnings = []
        age = (utc_now().date() - plan.reviewed).days
        if age * 86400 > plan.review_every:
            warnings.append(
                f"The plan of {plan.product} was last reviewed {age} days ago ({plan.reviewed}), and a review is due "
                f"every {plan.review_every / 86400:.0f} days."
            )
        return {
            "product": plan.product,
            "warnings": warnings,
            "says": f"the plan of {plan.product} is sound: {len(plan.criteria)} criteria, "
            f"{len(plan.remedies)} remedies, {len(steps)} steps",
        }

    def _check_call(self) -> list[BalikError]:
        """What this call wishes, and dates that have not come."""
        problems = list(lost_words(self.task_vars))
        now = utc_now()
        # The flow's own facts, of which there is none at its first task.
        for prefix in INTERNAL_PREFIXES:
            for name in self.variables.starting_with(prefix):
                problems.append(self.with_place(BalikError(name, "it is no key of a plan", do="Remove it.")))
        for name in TEXTS:
            problems += no_text(name, self.variables.get(name) or "")
        if problems:
            return problems
        for name in ("rollback_reason", "rollback_break_glass", "rollback_by"):
            problems += too_long(name, str(self.variables.get(name, "")))
        checks: list[Callable[[], object]] = []
        if name := self.variables.get("rollback_procedure"):
            checks.append(lambda: self.plan.procedure(now, str(name)))
        if self.variables.get("rollback_break_glass"):
            checks.append(self.glass_role)
        checks.append(lambda: self.plan.remedy(self.wished_scope(), self.variables.get("rollback_remedy")))
        for check in checks:
            try:
                check()
            except BalikError as problem:
                problems.append(problem)
        if (self.plan.launched - now).total_seconds() > CLOCKS_DIFFER:
            found = f"{iso(self.plan.launched)} has not come yet"
            problems.append(self.with_place(BalikError("rollback_release.launched", found, "when it was launched")))
        if self.plan.reviewed > now.date() + timedelta(days=1):
            found = f"{self.plan.reviewed} has not come yet"
            problems.append(self.with_place(BalikError("rollback_plan_reviewed", found, "the day of the last review")))
        return problems

    def _check_secrets(self, steps: set[str]) -> list[BalikError]:
        """A secret is hidden wherever it stands in the record: it must not stand in what is read back from there."""
        plan = self.plan
        hosts = {host for step in steps for host in self.step_hosts(step)} & set(
            self.task_vars["ansible_play_hosts_all"]
        )
        names = {
            "the product": [plan.product],
            "the release": [plan.release, plan.stable],
            "a role": plan.people,
            "a criterion": [criterion.name for criterion in plan.criteria],
            "a procedure": [procedure.name for procedure in plan.procedures],
            "a remedy": plan.remedies,
            "a sign-off": [item.name for item in plan.sign_offs],
            "a step": steps,
            "a host": hosts,
            "a field of the record": WORDS,
        }
        problems = []
        for variables in (self.variables, *map(self.variables_of, sorted(hosts))):
            for secret, path in variables.named_secrets().items():
                if what := next((w for w, each in names.items() if any(secret in name for name in each)), None):
                    variables.get(re.split(r"[.\[]", path)[0])  # which notes where it stands
                    found = f"its value, which is not shown, stands in the name of {what}"
                    expected = "a secret that is no word of the plan, whose names could not be told from it"
                    place = variables.place(path)
                    where = f"{place}: {path}" if place else path
                    problems.append(BalikError(where, found, expected, "Choose another password."))
        return problems

    def _check_step(self, step: str) -> list[BalikError]:
        hosts = self.step_hosts(step)
        if not hosts:
            name = f"{step.replace('-', '_')}_hosts"
            return [BalikError(name, "no host of the inventory matches it", "a group or a host", "Mend the inventory.")]
        if left_out := sorted(set(hosts) - set(self.task_vars.get("ansible_play_hosts_all", hosts))):
            limited = context.CLIARGS.get("subset")
            found = "--limit leaves it out" if limited else "the inventory does not have it"
            do = "Run without --limit." if limited else "Name it in hosts.yml."
            return [BalikError(f"{step} on {', '.join(left_out)}", found, do=do)]
        roles = step_roles()
        settings = StepSettings(roles[step], set(roles))
        if step == "smoke-test":
            del settings.options["smoke_test_checks"]  # its own check says it better
        problems: dict[Problem, list[str]] = {}
        places: dict[Problem, str | None] = {}
        for host in hosts:
            variables = self.variables_of(host)
            for problem in settings.problems(self.task_vars["hostvars"][host], variables):
                problems.setdefault(problem, []).append(host)
                variables.get(re.split(r"[.\[]", problem[0])[0])  # which notes where it stands
                places.setdefault(problem, variables.place(problem[0]))
        return [
            BalikError(
                f"{places[problem]}: {problem[0]}" if places[problem] else problem[0],
                f"{problem[1].removesuffix('.')} ({step} on {', '.join(where)})",
                do=f"See roles/{step}/README.md.",
            )
            for problem, where in problems.items()
        ]
