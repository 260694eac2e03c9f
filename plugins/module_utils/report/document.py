"""From the plan and the record's entries to one document that holds all of a report.

The document is plain JSON. Times are UTC in ISO 8601, durations seconds, names and states the record's own words; what
is not known is null. Texts of the plan and of people stay in their language; ``timeline[].says`` and the sentences in
``post_mortem`` are in the plan's. The keys, of which none goes away or changes its meaning while ``format`` is 1:

=============  =====================================================================================================
``format``     1
``language``, ``product``, ``environment``, ``release``, ``stable``, ``run``
``outcome``    ``rolled-back``, ``nothing-to-do``, ``not-decided``, ``failed``, ``abandoned``, or ``open``
``reason``, ``opened_at``, ``closed_at``, ``last_at``, ``seconds``
``by``, ``job``, ``resumed``: list of ``{at, by}``
``remedy``     ``{name, says}``; ``procedure`` likewise
``speed``      by which waiting times were divided; 1 but in a sandbox
``held``       how long the maintenance page was up: ``{now, from, until, seconds, times: [{from, until}]}``, or null;
               ``now`` is on, off or unknown; ``seconds`` are those of all ``times``; ``until`` and ``seconds`` are null
               while it is not off
``warnings``   list of ``sandbox-clock``, ``traffic-held``, ``traffic-unknown``, ``traffic-back``, ``still-open``,
               ``glass-broken``, ``record-cut``, ``unreadable``, ``plan-changed``, ``still-frozen``, ``still-held-off``
``frozen``     the autoscalers that this run has frozen and nobody has thawed: ``{since, says: [str]}``, or null
``held_off``   the GitOps objects that this run holds off, as the record says: ``{since, names: [str]}``, or null
``unreadable`` how many entries were not as they should be
``criteria``   the newest evaluation: ``{at, verdict, reason, trigger, evaluations, criteria: [...]}``, or null; each
               of its criteria ``{name, says, verdict, reason, query, at, took, touches, unsafe, threshold, hold,
               sample_count, samples: [{at, value, note}]}``
``watch``      the newest watch, the same with ``seconds`` for how long; or null
``decision``   ``{outcome, reason, at, asked_at, seconds, answers: [...], glass_broken}``; each answer ``{role, title,
               by, answer, reason, at, after}``, with ``answer`` null for who was asked and did not answer
``loss``       what a restore would lose and has lost, or null: ``{at, told: [{host, reason, says, exact, database,
               backup, taken, taken_by, at, more, lost, at_least, tables: [{table, how, inserted, changed, deleted,
               oldest, newest, by, note, columns}], down}], exported: [{at, host, folder, from,
               files: [{file, table, kind, rows}]}], kept: [{host, step, files: [path]}]}``; ``kept`` by the steps
               themselves, before they destroy it. ``down``: ``{says, refused, migrations}``, or null
``steps``      list of ``{phase, step, state, started_at, seconds, attempts, hosts: [{host, says, checked: [str], saved,
               evidence}], failures: [{at, stage, host, says}]}``; ``state`` is done, failed, started or not-begun;
               ``checked`` is what was said before each attempt, each sentence once
``sign_offs``  list of ``{name, role, title, phase, says, asked_at, answer, by, reason, at, after}``
``messages``   list of ``{at, moment, role, title, subject, ways: {way: result}}``
``checklist``  list of ``{when, items: [{role, title, says, sign_off, done, answer, by, at, reason}]}``
``people``     list of ``{role, title, does, names, reach: [way], escalates_to, after}``
``timeline``   list of ``{seq, at, kind, tone, key, says}``
``post_mortem``  ``{summary, well, badly, actions: [{role, title, says}]}``
``record``     ``{entries, first, last, head, verify}``; ``verify`` is the command that proves the chain
=============  =====================================================================================================
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from itertools import groupby
from typing import Any

from .. import run as runs
from ..criteria import SAFE, UNKNOWN
from ..errors import BalikError
from ..loss import entries as losses
from ..plan import CHECKLIST_MOMENTS, PHASES, Plan
from ..printable import printable
from ..record import Entry
from ..units import format_duration, iso, parse_time
from .words import WORDS

FORMAT = 1
OPEN = "open"
NOT_BEGUN = "not-begun"
NOT_MEASURED = "not-measured"

#: A longer text (a program's whole output, say) is cut; the record has all of it.
LONGEST = 4000
DEEPEST = 12

#: What an entry must hold for the functions of ``run`` to read it. The record outlives the code that wrote it, and who
#: can write to its place can write anything: what does not fit is shown as it is.
_SHAPE: dict[str, dict[str, type]] = {
    "step-started": {"step": str, "phase": str, "saved": dict},
    "step-done": {"step": str, "phase": str},
    "step-failed": {"step": str, "phase": str},
    "decided": {"outcome": str},
    "watched": {"verdict": str},
    "outcome": {"outcome": str},
    **{kind: {"role": str, "by": str, "answer": str, "reason": str} for kind in runs.ANSWERS},
}
_OPTIONAL_TEXT = ("item", "remedy")

_GOOD, _BAD, _WARN, _PLAIN = "good", "bad", "warn", "plain"
_TONES = {
    **{"safe": _GOOD, "unsafe": _BAD, "unknown": _WARN, "not-measured": _WARN},
    **{"go": _GOOD, "no-go": _BAD, "sign-off": _GOOD, "refuse": _BAD},
    **{
        "rolled-back": _GOOD,
        "nothing-to-do": _GOOD,
        "failed": _BAD,
        "not-decided": _WARN,
        "abandoned": _WARN,
        OPEN: _WARN,
    },
    **{"done": _GOOD, "started": _WARN, "not-begun": _PLAIN, "skipped": _PLAIN},
}
_KEY_KINDS = {
    *("run-opened", "criteria", "glass-broken", "decided", "step-done", "step-failed", "sign-off", "statement"),
    *("watched", "outcome", "loss", "loss-exported", "record-cut"),
}


def tone_of(word: Any) -> str:
    """``good``, ``bad``, ``warn`` or ``plain``: what a verdict, state, answer or outcome means to a reader."""
    return _TONES.get(word, _PLAIN) if isinstance(word, str) else _PLAIN


def build(plan: Plan, entries: Sequence[Entry], run_id: str, inventory: Sequence[str] = ()) -> dict[str, Any]:
    """The document of one run; see above for its keys.

    :param entries: the product's whole record, oldest first; what is told about a run depends on the runs before it.
    :param inventory: what was given to ``ansible-playbook`` with ``-i``, for the command that verifies the record.
    :raises BalikError: the record has no such run.
    """
    readable = [entry for entry in entries if _readable(entry)]
    run = next((each for each in runs.read_runs(readable) if each.id == run_id), None)
    if run is None:
        known = [entry.run for entry in entries if entry.kind == "run-opened"]
        raise BalikError(
            "the run",
            f"found {run_id!r}, which is not in the record",
            f"one of {', '.join(known[-10:])}" if known else "",
            "" if known else f"No rollback of {plan.product} was ever begun here.",
        )
    return _cleaned(_Builder(plan, readable, entries, run, inventory).document())


#: What went well or badly: the name of its sentence, and the facts in it.
Lesson = tuple[str, Mapping[str, Any]]


class _Builder:
    """Holds what the parts of a document are made of."""

    def __init__(
        self, plan: Plan, readable: list[Entry], entries: Sequence[Entry], run: runs.Run, inventory: Sequence[str]
    ) -> None:
        self.plan, self.run, self.inventory = plan, run, inventory
        self.words = WORDS.get(plan.language, WORDS["en"])
        self.of_run = [entry for entry in readable if entry.run == run.id]
        # An answer to no run in particular that came after this one's end belongs to what comes next.
        answers = runs.answers_for_run(readable, run, plan.valid)
        self.answers = [answer for answer in answers if answer.run == run.id or answer.at <= run.last_at]
        given = {iso(answer.at) for answer in self.answers}
        self.shown = [e for e in entries if e.run == run.id or (not e.run and e.at in given and e.kind in runs.ANSWERS)]
        self.unreadable = [entry for entry in self.shown if not _readable(entry)]
        decided = run.decided or {}
        newest = run.verdict or {}
        self.remedy_name = _text(decided.get("remedy") or newest.get("remedy"))
        self.remedy = plan.remedies.get(self.remedy_name or "")
        self.procedure_name = _text(decided.get("procedure"))
        self.procedure = next((each for each in plan.procedures if each.name == self.procedure_name), None)
        self.glass = self.newest("glass-broken")
        frozen = runs.still_frozen(readable)
        self.frozen = frozen if frozen and frozen.run == run.id else None
        held_off = runs.still_held_off(readable)
        self.held_off = held_off if held_off and held_off.run == run.id else None

    def newest(self, kind: str) -> Entry | None:
        return next((entry for entry in reversed(self.of_run) if entry.kind == kind), None)

    def all(self, kind: str) -> list[Entry]:
        return [entry for entry in self.of_run if entry.kind == kind]

    def title(self, role: Any) -> str | None:
        person = self.plan.people.get(role) if isinstance(role, str) else None
        return person.title if person else _text(role)

    def document(self) -> dict[str, Any]:
        head, steps, sign_offs = self.head(), self.steps(), self.sign_offs()
        found = {
            **head,
            "held": self.held(),
            "frozen": self.still_frozen(),
            "held_off": self.still_held_off(),
            "warnings": self.warnings(head, steps),
            "unreadable": len(self.unreadable),
            "criteria": self.criteria(self.newest("criteria")),
            "decision": self.decision(),
            "loss": self.loss(),
            "steps": steps,
            "sign_offs": sign_offs,
            "watch": self.watch(),
            "messages": self.messages(),
            "checklist": self.checklist(sign_offs),
            "people": self.people(),
            "timeline": [self.event(entry) for entry in self.shown],
        }
        return {**found, "post_mortem": self.post_mortem(found), "record": self.record()}

    def head(self) -> dict[str, Any]:
        run, opened = self.run, self.run.opened
        outcome = self.newest("outcome") if run.outcome else None
        job = opened.get("job")
        return {
            "format": FORMAT,
            "language": self.plan.language,
            "product": _text(opened.get("product")) or self.plan.product,
            "environment": _text(opened.get("environment")) or self.plan.environment,
            "release": _text(opened.get("release")) or self.plan.release,
            "stable": _text(opened.get("stable")) or self.plan.stable,
            "run": run.id,
            "outcome": run.outcome or OPEN,
            "reason": _text(run.outcome_body.get("reason")),
            "opened_at": iso(run.opened_at),
            "closed_at": outcome.at if outcome else None,
            "last_at": iso(run.last_at),
            "seconds": _between(run.opened_at, parse_time(outcome.at) if outcome else run.last_at),
            "by": _text(opened.get("by")),
            "job": None if job is None else str(job),
            "resumed": [{"at": e.at, "by": _text(e.body.get("by"))} for e in self.all("run-resumed")],
            "remedy": _named(self.remedy_name, self.remedy),
            "procedure": _named(self.procedure_name, self.procedure),
            "speed": _number(opened.get("speed")) or self.plan.speed,
        }

    def held(self) -> dict[str, Any] | None:
        """While the maintenance page was up: each time from when it was read back until traffic-restore took it down,
        which is before the watch where that step watches."""
        page, times = self.run.page, self.run.page_times
        up = self.run.steps.get(runs.PAGE_UP)
        if page is None or up is None:
            return None
        off = page == runs.OFF
        return {
            "now": page,
            "from": iso(times[0].since if times else up.started_at),
            "until": iso(times[-1].until) if off and times and times[-1].until else None,
            "seconds": sum(_between(each.since, each.until or each.since) for each in times) if off else None,
            "times": [{"from": iso(e.since), "until": iso(e.until) if e.until else None} for e in times],
        }

    def still_frozen(self) -> dict[str, Any] | None:
        if self.frozen is None:
            return None
        said = (named(host, _text(says)) for host, says in _mapping(self.frozen.says).items())
        return {"since": iso(self.frozen.since), "says": list(said)}

    def still_held_off(self) -> dict[str, Any] | None:
        held = self.held_off
        return {"since": iso(held.since), "names": [_short(name) for name in held.names]} if held else None

    def warnings(self, head: Mapping[str, Any], steps: list[dict[str, Any]]) -> list[str]:
        known = {step for _phase, step in self.plan.steps(self.remedy.name)} if self.remedy else set()
        found = {
            "still-open": head["outcome"] == OPEN,
            "traffic-held": self.run.page == runs.ON,
            "traffic-unknown": self.run.page == runs.UNKNOWN,
            "traffic-back": self.run.page == runs.OFF and head["outcome"] == runs.FAILED,
            "still-frozen": self.frozen is not None,
            "still-held-off": self.held_off is not None,
            "sandbox-clock": head["speed"] != 1,
            "glass-broken": self.glass is not None,
            "plan-changed": bool(
                (self.remedy_name and not self.remedy)
                or (self.procedure_name and not self.procedure)
                or (self.remedy and any(step["step"] not in known for step in steps))
                or head["release"] != self.plan.release
            ),
            "record-cut": bool(self.all("record-cut")),
            "unreadable": bool(self.unreadable),
        }
        return [name for name, holds in found.items() if holds]

    # Criteria

    def criteria(self, entry: Entry | None) -> dict[str, Any] | None:
        if entry is None:
            return None
        body = entry.body
        measured = [self.criterion(each) for each in _list(body.get("criteria")) if isinstance(each, dict)]
        seen = {each["name"] for each in measured}
        measured += [self.criterion({"criterion": c.name}) for c in self.plan.criteria if c.name not in seen]
        return {
            "at": entry.at,
            "verdict": _text(body.get("verdict")) or UNKNOWN,
            "reason": _text(body.get("reason")),
            "trigger": _text(body.get("trigger")) or self.plan.trigger,
            "evaluations": len(self.all(entry.kind)),
            "criteria": measured,
        }

    def criterion(self, found: Mapping[str, Any]) -> dict[str, Any]:
        name = _text(found.get("criterion"))
        planned = next((each for each in self.plan.criteria if each.name == name), None)
        samples = [_sample(each) for each in _list(found.get("samples")) if isinstance(each, dict)]
        count = found.get("sample_count")
        return {
            "name": name,
            "says": _text(found.get("says")) or (planned.says if planned else None),
            "verdict": _text(found.get("verdict")) or NOT_MEASURED,
            "reason": _text(found.get("reason")),
            "query": _text(found.get("query")),
            "at": _time(found.get("at")),
            "took": _number(found.get("took")),
            "touches": [scope for scope in _list(found.get("touches")) if isinstance(scope, str)],
            "unsafe": str(planned.unsafe) if planned else None,
            "threshold": planned.unsafe.threshold if planned and not planned.unsafe.implied else None,
            "hold": planned.hold if planned else None,
            "sample_count": count if isinstance(count, int) else len(samples),
            "samples": samples,
        }

    def watch(self) -> dict[str, Any] | None:
        entry = self.newest("watched")
        watch = self.criteria(entry)
        if entry is not None and watch is not None:
            watch["seconds"] = _number(entry.body.get("seconds"))
        return watch

    # People's words

    def decision(self) -> dict[str, Any]:
        asked = [entry for entry in self.all("asked") if not entry.body.get("item")]
        first = parse_time(asked[0].at) if asked else None
        # A run that is taken up again forgets what was not a Go.
        entry = self.newest("decided") if self.run.decided else None
        body = entry.body if entry else {}
        answers = [self.answer(a, first) for a in self.answers if a.kind == "decision"]
        answered = {each["role"] for each in answers}
        silent = dict.fromkeys(
            role for e in asked for role in _list(e.body.get("roles")) if isinstance(role, str) and role not in answered
        )
        answers += [
            {**dict.fromkeys(("by", "answer", "reason", "at", "after")), "role": role, "title": self.title(role)}
            for role in silent
        ]
        return {
            "outcome": _text(body.get("outcome")),
            "reason": _text(body.get("reason")),
            "at": entry.at if entry else None,
            "asked_at": asked[0].at if asked else None,
            "seconds": _between(first, parse_time(entry.at)) if entry and first else None,
            "answers": answers,
            "glass_broken": self.broken_glass(),
        }

    def answer(self, answer: runs.Answer, asked: datetime | None) -> dict[str, Any]:
        return {
            "role": answer.role,
            "title": self.title(answer.role),
            "by": answer.by,
            "answer": answer.answer,
            "reason": _text(answer.reason),
            "at": iso(answer.at),
            "after": _between(asked, answer.at) if asked and asked <= answer.at else None,
        }

    def broken_glass(self) -> dict[str, Any] | None:
        if not self.glass:
            return None
        body = self.glass.body
        role = _text(body.get("role"))
        by, reason = _text(body.get("by")), _text(body.get("reason"))
        return {"role": role, "title": self.title(role), "by": by, "reason": reason, "at": self.glass.at}

    def sign_offs(self) -> list[dict[str, Any]]:
        asked = {e.body["item"]: parse_time(e.at) for e in reversed(self.all("asked")) if _text(e.body.get("item"))}
        found = []
        for item in self.plan.sign_offs:
            # Steps of later phases come after this sign-off by rights, and take nothing from it.
            later = PHASES[PHASES.index(item.phase) + 1 :]
            until = [e for e in self.of_run if not (e.kind.startswith("step-") and e.body.get("phase") in later)]
            answer = runs.sign_off_of(runs.answers_since_last_step(until), item.name, item.role)
            if self.remedy_name not in item.remedies and self.remedy and not answer:
                continue
            given = self.answer(answer, asked.get(item.name)) if answer else {}
            found.append(
                {
                    "name": item.name,
                    "role": item.role,
                    "title": self.title(item.role),
                    "phase": item.phase,
                    "says": item.says,
                    "asked_at": iso(asked[item.name]) if item.name in asked else None,
                    **{key: given.get(key) for key in ("answer", "by", "reason", "at", "after")},
                }
            )
        return found

    def messages(self) -> list[dict[str, Any]]:
        return [
            {
                "at": entry.at,
                "moment": _text(entry.body.get("moment")),
                "role": _text(entry.body.get("role")),
                "title": self.title(entry.body.get("role")),
                "subject": _text(entry.body.get("subject")),
                "ways": {way: _text(result) for way, result in _mapping(entry.body.get("ways")).items()},
            }
            for entry in self.all("message")
        ]

    # What a restore takes away

    def loss(self) -> dict[str, Any] | None:
        told = self.newest(losses.TOLD)
        exported = self.all(losses.EXPORTED)
        kept = list(self.kept())
        if told is None and not exported and not kept:
            return None
        return {
            "at": told.at if told else None,
            "told": [lost_on(host, lost) for host, lost in _hosts(told)],
            "exported": [
                {
                    "at": entry.at,
                    "host": host,
                    "folder": _text(files.get("folder")),
                    "from": _text(files.get("from")),
                    "files": [
                        {
                            **{key: _text(file.get(key)) for key in ("file", "table", "kind")},
                            "rows": _count(file, "rows"),
                        }
                        for file in _list(files.get("files"))
                        if isinstance(file, dict)
                    ],
                }
                for entry in exported
                for host, files in _hosts(entry)
            ],
            "kept": kept,
        }

    def kept(self) -> Iterator[dict[str, Any]]:
        """What steps have kept as files of their own before they destroyed it."""
        for entry in self.of_run:
            if entry.kind != "step-done":
                continue
            for host, evidence in _mapping(entry.body.get("evidence")).items():
                main = _mapping(_mapping(evidence).get("main"))
                paths = [
                    *_list(main.get("kept")),
                    *(_mapping(each).get("kept") for each in _list(main.get("migrations"))),
                ]
                files = [path for path in paths if _text(path)]
                if files:
                    yield {"host": host, "step": _text(entry.body.get("step")), "files": files}

    # Steps

    def steps(self) -> list[dict[str, Any]]:
        """The plan's steps in its order, then those that only the record knows; none where nothing was to be done."""
        wanted = (
            self.plan.steps(self.remedy.name)
            if self.remedy and (self.run.decided or {}).get("outcome") == runs.GO
            else []
        )
        names = dict.fromkeys([step for _phase, step in wanted] + list(self.run.steps))
        phases = {step: phase for phase, step in wanted}
        entries: dict[str, list[Entry]] = {name: [] for name in names}
        for entry in self.of_run:
            if entry.kind in ("step-started", "step-done", "step-failed"):
                entries[entry.body["step"]].append(entry)
        return [self.step(name, phases.get(name), entries[name]) for name in names]

    def step(self, name: str, phase: str | None, entries: list[Entry]) -> dict[str, Any]:
        state = self.run.steps.get(name)
        done = next((entry for entry in reversed(entries) if entry.kind == "step-done"), None)
        evidence = _mapping(done.body.get("evidence")) if done else {}
        says = _mapping(done.body.get("says")) if done else {}
        saved = state.saved if state else {}
        begun = [_mapping(entry.body.get("says")) for entry in entries if entry.kind == "step-started"]
        failures = [
            {"at": entry.at, "stage": _text(entry.body.get("stage")), "host": host, "says": _text(why)}
            for entry in entries
            if entry.kind == "step-failed"
            for host, why in (_mapping(entry.body.get("failures")) or {"": None}).items()
        ]
        hosts = dict.fromkeys([*saved, *says, *evidence, *(failure["host"] for failure in failures if failure["host"])])
        return {
            "phase": state.phase if state else phase,
            "step": name,
            "state": state.state if state else NOT_BEGUN,
            "started_at": iso(state.started_at) if state else None,
            "seconds": state.seconds if state else None,
            "attempts": sum(entry.kind == "step-started" for entry in entries),
            "hosts": [
                {
                    "host": host,
                    "says": _text(says.get(host)),
                    "checked": list(dict.fromkeys(said for each in begun if (said := _text(each.get(host))))),
                    "saved": saved.get(host),
                    "evidence": evidence.get(host),
                }
                for host in hosts
            ],
            "failures": failures,
        }

    # What people do

    def checklist(self, sign_offs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        found = []
        for moment in CHECKLIST_MOMENTS:
            items: list[dict[str, Any]] = [
                {
                    **{key: item[key] for key in ("role", "title", "says", "answer", "by", "at", "reason")},
                    "sign_off": item["name"],
                    "done": item["answer"] == runs.SIGN_OFF,
                }
                for item in sign_offs
                if item["phase"] == moment
            ]
            items += [
                {
                    **dict.fromkeys(("answer", "by", "at", "reason", "sign_off")),
                    **{"role": item["role"], "title": self.title(item["role"]), "says": item["says"], "done": False},
                }
                for item in self.plan.checklist
                if item["when"] == moment
            ]
            if items:
                found.append({"when": moment, "items": items})
        return found

    def people(self) -> list[dict[str, Any]]:
        # Not the addresses: a report is sent around, and a web hook's URL is a secret.
        return [
            {
                "role": person.role,
                "title": person.title,
                "does": person.does or None,
                "names": list(person.names),
                "reach": list(person.reach),
                "escalates_to": self.title(person.escalates_to) if person.escalates_to else None,
                "after": person.after if person.escalates_to else None,
            }
            for person in self.plan.people.values()
        ]

    # The timeline

    def event(self, entry: Entry) -> dict[str, Any]:
        body = entry.body if isinstance(entry.body, dict) else {"body": entry.body}
        texts = self.words["event"]
        kind = "asked-item" if entry.kind == "asked" and body.get("item") else entry.kind
        if kind not in texts or kind == "other" or not _readable(entry):
            text = texts["other"].format(
                kind=_short(entry.kind), body=_short(json.dumps(entry.body, ensure_ascii=False))
            )
            tone = _WARN if not _readable(entry) else _PLAIN
        else:
            text, tone = texts[kind].format_map(_Words(self.facts(kind, body))).strip(), self.tone(kind, body)
        return {
            "seq": entry.seq,
            "at": entry.at,
            "kind": entry.kind,
            "tone": tone,
            "key": entry.kind in _KEY_KINDS,
            "says": text,
        }

    def facts(self, kind: str, body: Mapping[str, Any]) -> dict[str, str | None]:
        words = self.words
        verdict, phase = _text(body.get("verdict")), _text(body.get("phase"))
        outcomes = words["decided" if kind == "decided" else "outcome"]
        hosts = _mapping(body.get("hosts"))
        step = {key: _text(body.get(key)) for key in ("step", "stage", "item", "by", "reason", "remedy", "why", "head")}
        return {
            **step,
            "release": _text(body.get("release")),
            "stable": _text(body.get("stable")),
            "title": self.title(body.get("role")),
            "roles": ", ".join(self.title(role) or "" for role in _list(body.get("roles"))) or None,
            "verdict": words["verdict"].get(verdict, verdict),
            "outcome": outcomes.get(_text(body.get("outcome")), _text(body.get("outcome"))),
            "answer": words["answer"].get(_text(body.get("answer")), _text(body.get("answer"))),
            "phase": words["phase"].get(phase, phase),
            "moment": words["told_at"].get(_text(body.get("moment")), _text(body.get("moment"))),
            "took": self.duration(_number(body.get("seconds"))),
            "says": _listed(body.get("says")) if kind == "step-done" else "",
            "lost": _listed({host: _first_lines(_mapping(lost)) for host, lost in hosts.items()}) or None,
            "folders": _listed({host: _mapping(said).get("folder") for host, said in hosts.items()}) or None,
            "failures": _listed(body.get("failures")),
            "ways": self.ways(_mapping(body.get("ways"))),
        }

    def ways(self, ways: Mapping[str, Any]) -> str | None:
        named = [f"{self.words['way'].get(way, way)}: {self.result(_text(result))}" for way, result in ways.items()]
        return "; ".join(named) or None

    def result(self, result: str | None) -> str:
        return self.words["label"]["sent"] if result == "sent" else result or self.words["none"]

    def tone(self, kind: str, body: Mapping[str, Any]) -> str:
        if kind == "message":
            return _PLAIN if _arrived(body) else _WARN
        fixed = {
            "step-done": _GOOD,
            "step-failed": _BAD,
            "glass-broken": _WARN,
            "run-resumed": _WARN,
            "record-cut": _BAD,
        }
        return fixed.get(kind) or tone_of(body.get("verdict") or body.get("outcome") or body.get("answer"))

    def duration(self, seconds: float | None) -> str | None:
        return spoken_duration(seconds, self.words) if seconds is not None else None

    # The post-mortem, as far as the record can write it

    def post_mortem(self, found: Mapping[str, Any]) -> dict[str, Any]:
        texts = self.words["post_mortem"]
        outcome = self.words["outcome"].get(found["outcome"], found["outcome"])
        lessons = [
            *self.lessons_of_measuring(found["criteria"], found["watch"]),
            *self.lessons_of_people(found["decision"], found["sign_offs"]),
            *self.lessons_of_steps(found["steps"]),
            *self.lessons_of_messages(),
        ]
        if found["resumed"]:
            lessons.append(("resumed_badly", {"count": len(found["resumed"])}))
        said = [(name, texts[name].format_map(_Words(facts))) for name, facts in lessons]
        return {
            "summary": texts["summary_text"].format_map(_Words({**found, "outcome": outcome})),
            "well": [text for name, text in said if name.endswith("_well")],
            "badly": [text for name, text in said if name.endswith("_badly")],
            "actions": [
                {"role": item["role"], "title": self.title(item["role"]), "says": item["says"]}
                for item in self.plan.checklist
                if item["when"] == "after"
            ],
        }

    def lessons_of_measuring(self, criteria: dict[str, Any] | None, watch: dict[str, Any] | None) -> Iterator[Lesson]:
        for each in (criteria or {}).get("criteria", []):
            if each["verdict"] == UNKNOWN:
                yield "unknown_badly", {"criterion": each["says"] or each["name"], "reason": each["reason"]}
        if watch and watch["verdict"] == SAFE:
            yield "watch_well", {}
        elif watch:
            verdict = self.words["verdict"].get(watch["verdict"], watch["verdict"])
            yield "watch_badly", {"verdict": verdict, "reason": watch["reason"]}

    def lessons_of_people(self, decision: dict[str, Any], sign_offs: list[dict[str, Any]]) -> Iterator[Lesson]:
        for each in decision["answers"]:
            if each["answer"] is None:
                yield "answer_badly", each
            elif each["after"] is not None:
                yield "decision_well", {**each, "took": self.duration(each["after"])}
        if decision["glass_broken"]:
            yield "glass_badly", decision["glass_broken"]
        for item in sign_offs:
            if item["answer"]:
                name = "sign_off_well" if item["answer"] == runs.SIGN_OFF else "refused_badly"
                yield name, {**item, "item": item["name"]}

    def lessons_of_steps(self, steps: list[dict[str, Any]]) -> Iterator[Lesson]:
        for step in steps:
            if step["state"] == "done" and step["attempts"] == 1 and not step["failures"]:
                yield "step_well", {**step, "took": self.duration(step["seconds"])}
            elif step["state"] == "started":
                yield "open_badly", step
            # A failure that each of twenty hosts had is one line.
            for (_at, stage), many in groupby(step["failures"], key=lambda each: (each["at"], each["stage"])):
                failures = _listed({each["host"]: each["says"] for each in many}, 500)
                yield "step_badly", {"step": step["step"], "stage": stage, "failures": failures or None}

    def lessons_of_messages(self) -> Iterator[Lesson]:
        missed = {
            (self.title(entry.body.get("role")), self.ways(_mapping(entry.body.get("ways"))))
            for entry in self.all("message")
            if not _arrived(entry.body)
        }
        for title, ways in sorted(missed, key=str):
            yield "message_badly", {"title": title, "ways": ways}

    def record(self) -> dict[str, Any]:
        of_run = [entry for entry in self.shown if entry.run == self.run.id]
        last = of_run[-1]
        places = self.inventory or [f"inventories/{self.plan.product}"]
        given = " ".join(f"-i {shlex.quote(place)}" for place in places)
        verify = f"ansible-playbook {given} playbooks/record.yml -e verify=true -e record_head={shlex.quote(last.hash)}"
        return {"entries": len(of_run), "first": of_run[0].seq, "last": last.seq, "head": last.hash, "verify": verify}


def lost_on(host: str, lost: Mapping[str, Any]) -> dict[str, Any]:
    """What was told of one host, in the report's shape; figures that are not known are null."""
    tables = [each for each in _list(lost.get("tables")) if isinstance(each, dict)]
    return {
        "host": host,
        "says": [said for line in _list(lost.get("says")) if (said := _text(line))],
        "down": _went_down(lost.get("down")),
        "exact": lost.get("exact") is True,
        "lost": _count(_mapping(lost.get("total")), "lost"),
        "at_least": _mapping(lost.get("total")).get("at_least") is True,
        "more": _count(lost, "more") or 0,
        **{key: _text(lost.get(key)) for key in ("reason", "database", "backup", "taken_by")},
        **{key: _time(lost.get(key)) for key in ("taken", "at")},
        "tables": [
            {
                **{key: _text(each.get(key)) for key in ("table", "how", "by", "note")},
                **{key: _count(each, key) for key in ("inserted", "changed", "deleted")},
                **{key: _time(each.get(key)) for key in ("oldest", "newest")},
                "columns": {
                    str(name): _count(_mapping(each["columns"]), name) for name in _mapping(each.get("columns"))
                },
            }
            for each in tables
        ],
    }


def _first_lines(lost: Mapping[str, Any]) -> str | None:
    """Of what was told of one host, the sentences without their details."""
    says, down = (_list(of.get("says"))[:1] for of in (lost, _mapping(lost.get("down"))))
    return "; ".join(dict.fromkeys(map(str, says + down))) or None


def _went_down(down: Any) -> dict[str, Any] | None:
    """What a way down would destroy, as it was told; null where the remedy has none."""
    if not isinstance(down, dict):
        return None
    migrations = {str(name): _mapping(lost) for name, lost in _mapping(down.get("migrations")).items()}
    says = [said for line in _list(down.get("says")) if (said := _text(line))]
    return {"says": says, "refused": _text(down.get("refused")), "migrations": migrations}


def _count(values: Mapping[str, Any], key: str) -> int | None:
    number = _number(values.get(key))
    return None if number is None else int(number)


def _hosts(entry: Entry | None) -> list[tuple[str, dict[str, Any]]]:
    hosts = _mapping(entry.body.get("hosts")) if entry else {}
    return [(host, said) for host, said in hosts.items() if isinstance(said, dict)]


class _Words(dict):
    """Facts for a sentence: what is missing or empty is a dash, and no reader stumbles over *None*."""

    def __missing__(self, key: str) -> str:
        return "—"

    def __getitem__(self, key: str) -> Any:
        value = super().__getitem__(key) if key in self else None
        return "—" if value is None else value


def spoken_duration(seconds: float, words: Mapping[str, Any]) -> str:
    """``93.4`` as ``1 min 33 s``, or ``1 menit 33 detik``."""
    text = re.sub(r"([\d.]+)(ms|[dhms])", lambda m: f"{m[1]} {words['unit'][m[2]]} ", format_duration(seconds))
    return text.strip().replace(".", words["decimal"])


# Reading what may be anything


def _readable(entry: Entry) -> bool:
    body = entry.body
    if not isinstance(body, dict) or not isinstance(entry.kind, str):
        return False
    wanted = _SHAPE.get(entry.kind, {})
    if not all(isinstance(body.get(key, ""), str) for key in _OPTIONAL_TEXT):
        return False
    return all(isinstance(body.get(key), kind) for key, kind in wanted.items())


def _text(value: Any, longest: int = LONGEST) -> str | None:
    if value is None or value == "":
        return None
    return _short(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str), longest)


def _short(text: str, longest: int = 300) -> str:
    return text if len(text) <= longest else f"{text[:longest]}… (+{len(text) - longest})"


def _number(value: Any) -> float | None:
    return (
        float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1e15 else None
    )


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _arrived(message: Mapping[str, Any]) -> bool:
    return set(map(str, _mapping(message.get("ways")).values())) == {"sent"}


def _listed(value: Any, longest: int = 1000) -> str:
    """``{host: text}`` as one line; a text that names its host already, and the control node, need no name."""
    texts = [named(host, text) for host, said in _mapping(value).items() if (text := _text(said))]
    return _short("; ".join(texts), longest)


def named(host: str, text: str | None) -> str:
    """What a host said, with its name where that is not plain."""
    if not text:
        return host
    return text if host in ("", "localhost") or text.startswith(host) else f"{host}: {text}"


def _time(value: Any) -> str | None:
    try:
        return iso(parse_time(value)) if isinstance(value, str) else None
    except (BalikError, OverflowError):
        return None


def _sample(data: Mapping[str, Any]) -> dict[str, Any]:
    value = data.get("value")
    known = isinstance(value, (int, float, str)) and not isinstance(value, bool)
    return {"at": _time(data.get("at")), "value": value if known else None, "note": _text(data.get("note"))}


def _named(name: str | None, part: Any) -> dict[str, Any] | None:
    return {"name": name, "says": part.says or None if part else None} if name else None


def _between(begin: datetime, end: datetime) -> float:
    return round(max((end - begin).total_seconds(), 0.0), 3)


def _cleaned(value: Any, depth: int = 0) -> Any:
    """The value as JSON that any reader takes: no control characters, no endless depth, no infinity."""
    if isinstance(value, str):
        return printable(value)
    if depth > DEEPEST:
        return "…"
    if isinstance(value, dict):
        return {printable(str(key)): _cleaned(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list):
        return [_cleaned(item, depth + 1) for item in value]
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return str(value)
    return value if value is None or isinstance(value, (bool, int, float)) else str(value)
