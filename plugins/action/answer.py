"""Records one person's word; see the module's documentation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from ..module_utils import run as runs
from ..module_utils.errors import BalikError
from ..module_utils.printable import one_line
from ..module_utils.units import utc_now
from ..plugin_utils.action import RollbackAction, lost_words, no_text, too_long

KIND_OF = {answer: kind for kind, answers in runs.ANSWERS.items() for answer in answers}

LATE = (
    " What runs is stopped where it runs, with Ctrl-C or by cancelling the job; it does not go on after that without "
    "your Go"
)


class ActionModule(RollbackAction):
    """Go, No-Go, a sign-off or a statement, in a role, with a reason."""

    ARGUMENTS: ClassVar[dict[str, Any]] = {
        "role": {"type": "str", "required": True},
        "answer": {"type": "str", "required": True},
        "reason": {"type": "str", "required": True},
        "by": {"type": "str", "default": ""},
        "item": {"type": "str", "default": ""},
        "remedy": {"type": "str", "default": ""},
    }

    def act(self, arguments: dict[str, Any]) -> dict[str, Any]:
        problems = list(self._missing(arguments))
        if problems:
            raise BalikError(
                "nothing was written down", "; ".join(str(each).removesuffix(".") for each in problems) + "."
            )
        kind = KIND_OF[arguments["answer"]]
        by, reason = (one_line(arguments[name]).strip() for name in ("by", "reason"))
        body = {**arguments, "by": by or self.operator, "reason": reason}
        self._check(kind, body)
        self.believe_record()
        found = runs.unfinished_run(self.entries())
        if found and runs.why_not_resumed(found, self.plan.release, utc_now()):
            found = None  # the next rollback leaves that run as it is, and must not leave this answer with it
        self.append(kind, body, found.id if found else "")
        title = self.plan.people[body["role"]].title
        about = f" on {body['item']}" if body["item"] else ""
        says = f"{body['by']} ({title}): {body['answer']}{about}: {body['reason']}"
        if body["answer"] == runs.GO and body["role"] not in self._asked(body["remedy"]):
            says += f" (written down; nobody asked {title}, so it decides nothing but to take back a No-Go of theirs)"
        elif kind == "decision" and not found:
            place = self.record.place
            says += f" (no rollback is running by the record {place}; it counts for one within the plan's `valid` time)"
        elif kind == "decision" and found and found.decided:
            says += f" (run {found.id} is decided already: {found.decided['reason']}."
            if body["answer"] == runs.NO_GO:
                says += LATE
            says += ")"
        if self.check_mode:
            says = f"would write down: {says}"
        self.say(says)
        return {"changed": not self.check_mode, "says": says}

    def _asked(self, remedy: str) -> set[str]:
        """The roles whose Go a rollback by this remedy, or by any where it is empty, may need."""
        remedies = [self.plan.remedies[remedy]] if remedy else self.plan.remedies.values()
        return {*self.plan.go, *(role for each in (*self.plan.procedures, *remedies) for role in each.go)}

    def _missing(self, arguments: dict[str, Any]) -> Iterator[BalikError]:
        """Of role, answer and reason, those that cannot be read."""
        for name in ("decide_role", "decide_answer", "decide_reason", "decide_by", "decide_item", "decide_remedy"):
            yield from no_text(name, self.task_vars.get(name) or "")
        if arguments["role"] not in self.plan.people:
            yield BalikError("decide_role", f"found {arguments['role']!r}", f"one of {', '.join(self.plan.people)}")
        if arguments["answer"] not in KIND_OF:
            yield BalikError("decide_answer", f"found {arguments['answer']!r}", f"one of {', '.join(KIND_OF)}")
        yield from lost_words(self.task_vars)
        for name in ("reason", "by"):
            yield from too_long(f"decide_{name}", arguments[name])
        if not arguments["reason"].strip(". …"):
            found = f"found {arguments['reason']!r}"
            yield BalikError("decide_reason", found, "why, in a sentence: it stands in the report")

    def _check(self, kind: str, body: dict[str, Any]) -> None:
        plan = self.plan
        names = plan.people[body["role"]].names
        if names and body["by"] not in names:
            raise BalikError(
                "decide_by",
                f"found {body['by']!r}",
                f"somebody who is {plan.people[body['role']].title}: {', '.join(names)}",
                "Answer in your own role, or mend rollback_people.",
            )
        if body["remedy"] and body["remedy"] not in plan.remedies:
            raise BalikError("decide_remedy", f"found {body['remedy']!r}", f"one of {', '.join(plan.remedies)}")
        if kind == "decision" and body["item"]:
            expected = f"none with {body['answer']}, which is about the whole rollback"
            do = "An item is what a sign-off, refuse, unsafe or safe is about; leave it out."
            raise BalikError("decide_item", f"found {body['item']!r}", expected, do)
        if kind == "sign-off":
            mine = [item.name for item in plan.sign_offs if item.role == body["role"]]
            self._check_item(body, mine, "sign-off")
        if kind == "statement":
            stated = [c for c in plan.criteria if "statement" in c.measure]
            mine = [c.name for c in stated if body["role"] in c.measure["statement"]["by"]]
            self._check_item(body, mine, "criterion")

    def _check_item(self, body: dict[str, Any], mine: list[str], what: str) -> None:
        if body["item"] not in mine:
            expected = f"a {what} of {body['role']} ({', '.join(mine) or 'there is none'})"
            raise BalikError("decide_item", f"found {body['item']!r}", expected)
