"""Checks a product's plan and the settings of its steps; see the module's documentation."""

from __future__ import annotations

from typing import Any

from ansible.errors import AnsibleError
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

from ..module_utils.errors import BalikError
from ..module_utils.plan import PlanRefused
from ..module_utils.smoke import check_checks
from ..module_utils.units import utc_now
from ..plugin_utils.action import RollbackAction, read_specs, step_roles

#: What selects something for image-revert, by backend.
SELECTIONS = {
    "docker": ("containers", "labels"),
    "compose": ("compose",),
    "kubernetes": ("workloads", "labels"),
}
#: Set by the wrapper when a step is called, not by a plan.
FROM_WRAPPER = ("rollback_step_saved", "rollback_run_id")


class ActionModule(RollbackAction):
    """Refuses a plan that could fail later for a reason that can be read now."""

    def act(self, arguments: dict[str, Any]) -> dict[str, Any]:
        problems: list[BalikError] = []
        try:
            plan = self.plan
            steps = {step for remedy in plan.remedies for _phase, step in plan.steps(remedy)}
        except PlanRefused as refused:
            problems, steps = refused.problems, set(refused.steps)
        if not problems and self.variables.get("rollback_break_glass"):
            self.glass_role()
        roles = step_roles()
        for step in sorted(steps):
            specs = read_specs(roles[step] / "meta" / "argument_specs.yml")
            options = {k: v for entry in ("check", "main") for k, v in (specs[entry].get("options") or {}).items()}
            if step == "smoke-test":
                del options["smoke_test_checks"]  # what follows says it better
            problems += self._check_step(step, options)
        if "image-revert" in steps:
            problems += self._check_selection("image-revert")
        if "smoke-test" in steps:
            # A spec cannot say what a check may hold, and the step itself comes when the page is up already.
            checks = self.variables.get("smoke_test_checks", [])
            found = {str(each): each for each in (*self.variables.problems, *check_checks(checks))}
            problems += map(self.with_place, found.values())
        if problems:
            raise PlanRefused(problems)
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

    def _check_selection(self, step: str) -> list[BalikError]:
        """A step that would select nothing: a spec knows no "one of these", and takes an empty list for a value."""
        problems = []
        for host in self.step_hosts(step):
            variables = self.variables_of(host)
            backend = variables.get("image_revert_backend") or self.step_setting(step, "backend")
            names = [f"image_revert_{name}" for name in SELECTIONS.get(str(backend), ())]
            if names and not any(variables.get(name) for name in names):
                found = f"image_revert_backend is {backend}, and nothing is selected"
                problems.append(BalikError(f"{step} on {host}", found, f"{' or '.join(names)}"))
        return problems

    def _check_step(self, step: str, options: dict[str, Any]) -> list[BalikError]:
        hosts = self.step_hosts(step)
        if not hosts:
            name = f"{step.replace('-', '_')}_hosts"
            return [BalikError(name, "no host of the inventory matches it", "a group or a host", "Mend the inventory.")]
        if left_out := sorted(set(hosts) - set(self.task_vars.get("ansible_play_hosts_all", hosts))):
            found = "the inventory does not have it, or --limit leaves it out"
            return [BalikError(f"{step} on {', '.join(left_out)}", found, do="Name it in hosts.yml.")]
        spec = {name: option for name, option in options.items() if name not in FROM_WRAPPER}
        problems: dict[str, list[str]] = {}
        for host in hosts:
            for problem in _refused(spec, self.task_vars["hostvars"][host]):
                problems.setdefault(problem, []).append(host)
        return [
            BalikError(f"{step} on {', '.join(where)}", problem, do=f"See roles/{step}/README.md.")
            for problem, where in problems.items()
        ]


def _refused(spec: dict[str, Any], hostvars: Any) -> list[str]:
    """What a step's spec has against one host's variables."""
    values, problems = {}, []
    for name in spec:
        if name in hostvars:
            try:
                values[name] = hostvars[name]
            except AnsibleError as error:
                problems.append(f"{name} cannot be read: {str(error).splitlines()[0]}")
    unreadable = {problem.split(" ")[0] for problem in problems}
    validator = ArgumentSpecValidator({name: _without_text(o) for name, o in spec.items() if name not in unreadable})
    return problems + list(validator.validate(values).error_messages)


def _without_text(option: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in option.items() if key not in ("description", "version_added")}
    if kept.get("options"):
        kept["options"] = {name: _without_text(sub) for name, sub in kept["options"].items()}
    return kept
