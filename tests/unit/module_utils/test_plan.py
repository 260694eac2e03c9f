"""The plan language: what is read, and every refusal with its key path, what was found and what was expected."""

from __future__ import annotations

import copy
from datetime import date, datetime, timedelta, timezone
from typing import Any

import pytest
from ansible_collections.balik.rollback.plugins.module_utils.errors import BalikError
from ansible_collections.balik.rollback.plugins.module_utils.plan import Plan, PlanRefused, read_plan
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

STEPS = (
    *("maintenance-page", "scale-freeze", "image-revert", "db-restore", "smoke-test"),
    *("traffic-restore", "scale-thaw"),
)
LAUNCHED = datetime(2026, 1, 10, 13, tzinfo=timezone.utc)


def variables() -> dict[str, Any]:
    """A small product's plan that says something under every key."""
    return {
        "rollback_product": "court-files",
        "rollback_environment": "staging",
        "rollback_language": "id",
        "rollback_plan_reviewed": date(2026, 1, 10),
        "rollback_plan_review_every": "90d",
        "rollback_release": {"name": "2.0.0", "launched": "2026-01-10T20:00:00+07:00", "stable": "1.9.4"},
        "rollback_people": {
            "lead": {
                "title": "Lead Engineer",
                "does": "memutuskan",
                "names": ["rina", "budi"],
                "reach": {"email": "lead@court.example", "phone": "+62 812 0000"},
                "escalates_to": "manager",
                "after": "5m",
            },
            "manager": {"title": "Product Manager", "reach": {"webhook": "https://chat.court.example/hook"}},
        },
        "rollback_criteria": [
            {
                "name": "error-rate",
                "measure": {"prometheus": {"url": "http://prometheus:9090", "query": "rate(errors[1m])"}},
                "unsafe": "> 5 %",
                "for": "15m",
                "every": "1m",
                "touches": ["backend"],
            },
            {"name": "leak", "measure": {"statement": {"by": ["lead"], "without": "safe"}}, "touches": ["frontend"]},
        ],
        "rollback_decision": {"trigger": "any", "go": ["lead"], "wait": "15m", "valid": "1h", "break_glass": ["lead"]},
        "rollback_procedures": [
            {"name": "quick", "until": "1h", "watch": "30m", "every": "30s", "gather": ["log"]},
            {"name": "standard", "says": "biasa", "since": "1h", "until": "48h", "watch": "60m", "go": ["manager"]},
        ],
        "rollback_hold": ["maintenance-page"],
        "rollback_remedies": {
            "deployment": {
                "says": "Image kembali",
                "covers": ["frontend", "backend"],
                "takes": "1m",
                "revert": ["image-revert"],
            },
            "database": {
                "covers": ["frontend", "backend", "database"],
                "takes": "10m",
                "revert": ["image-revert", "db-restore"],
                "go": ["manager"],
            },
        },
        "rollback_verify": ["smoke-test"],
        "rollback_restore": ["traffic-restore"],
        "rollback_sign_offs": [
            {
                "name": "looked",
                "role": "lead",
                "phase": "verify",
                "says": "Sudah dilihat",
                "wait": "15m",
                "remedies": ["database"],
            }
        ],
        "rollback_checklist": [{"when": "after", "role": "lead", "says": "Akar masalah"}],
        "rollback_smtp": "mail:25",
        "rollback_mail_from": "rollback@court.example",
        "rollback_messages": {"asked": {"to": ["lead"], "subject": "Go?", "says": "<reason>"}},
    }


def read(**changes: Any) -> Plan:
    return read_plan({**variables(), **changes}, STEPS)


def changed(path: str, value: Any) -> dict[str, Any]:
    """The plan with another value at a key path such as ``rollback_criteria[0].unsafe``; ``KeyError`` removes it."""
    plan = variables()
    keys = [int(key) if key.isdigit() else key for key in path.replace("[", ".").replace("]", "").split(".")]
    place: Any = plan
    for key in keys[:-1]:
        place = place[key]
    if value is KeyError:
        del place[keys[-1]]
    else:
        place[keys[-1]] = value
    return plan


def refused(plan: dict[str, Any]) -> list[BalikError]:
    with pytest.raises(PlanRefused) as refusal:
        read_plan(plan, STEPS)
    return refusal.value.problems


# What is read


def test_all_of_a_plan() -> None:
    plan = read()
    assert (plan.product, plan.environment, plan.language) == ("court-files", "staging", "id")
    assert (plan.release, plan.launched, plan.stable) == ("2.0.0", LAUNCHED, "1.9.4")
    assert (plan.reviewed, plan.review_every) == (date(2026, 1, 10), 90 * 86400)
    assert plan.people["lead"].names == ("rina", "budi")
    assert (plan.people["lead"].escalates_to, plan.people["lead"].after) == ("manager", 300)
    assert plan.people["manager"].reach == {"webhook": "https://chat.court.example/hook"}
    assert [criterion.name for criterion in plan.criteria] == ["error-rate", "leak"]
    assert (plan.trigger, plan.go, plan.wait, plan.valid) == ("any", ("lead",), 900, 3600)
    assert plan.steps("database") == [
        ("hold", "maintenance-page"),
        ("revert", "image-revert"),
        ("revert", "db-restore"),
        ("verify", "smoke-test"),
        ("restore", "traffic-restore"),
    ]
    assert plan.sign_offs[0].remedies == ("database",)
    assert plan.messages["asked"]["to"] == ("lead",)


def test_what_may_be_left_out_has_a_default() -> None:
    plan = variables()
    for name in (
        "environment",
        "language",
        "plan_review_every",
        "sign_offs",
        "checklist",
        "smtp",
        "mail_from",
        "messages",
    ):
        del plan[f"rollback_{name}"]
    found = read_plan(plan, STEPS)
    assert (found.environment, found.language, found.speed) == ("production", "en", 1)
    assert (found.sign_offs, found.checklist, found.messages) == ((), (), {})


@pytest.mark.parametrize(
    "name",
    ["environment", "language", "sign_offs", "checklist", "messages", "speed", "record_dsn", "record_key", "smtp"],
)
def test_nothing_after_the_colon_is_the_default_too(name: str) -> None:
    plan = read(**{f"rollback_{name}": None})
    assert "None" not in (plan.record_dsn, plan.record_key, plan.smtp, plan.environment)
    assert plan.language in ("id", "en")


@pytest.mark.parametrize("speed", [60, 60.0, "60"])
def test_a_sandboxs_speed_shortens_what_is_waited_for_and_nothing_else(speed: object) -> None:
    plan = read(rollback_speed=speed)
    assert (plan.wait, plan.valid, plan.people["lead"].after) == (15, 60, 5)
    assert [(p.since, p.until, p.watch, p.every) for p in plan.procedures] == [(0, 60, 30, 0.5), (60, 2880, 60, 1)]
    assert (plan.sign_offs[0].wait, plan.criteria[0].hold, plan.criteria[0].every) == (15, 15, 1)
    assert plan.people["manager"].after == 10, "the default is the plan's time too"
    assert plan.review_every == 90 * 86400, "a review is due by the calendar"
    assert plan.remedies["database"].takes == 600, "a restore takes what it takes"


@pytest.mark.parametrize("speed", [0, 0.5, -1, True, "fast", [], float("inf"), float("nan"), 10**400])
def test_no_speed(speed: object) -> None:
    assert refused(changed("rollback_speed", speed))[0].what == "rollback_speed"


# Choosing


@pytest.mark.parametrize(
    ("age", "speed", "name"),
    [
        (0, 1, "quick"),
        (3599, 1, "quick"),
        (3600, 1, "standard"),
        (48 * 3600 - 1, 1, "standard"),
        (30, 60, "quick"),
        (60, 60, "standard"),
    ],
)
def test_the_procedure_is_for_the_releases_age(age: float, speed: int, name: str) -> None:
    assert read(rollback_speed=speed).procedure(LAUNCHED + timedelta(seconds=age)).name == name


def test_no_procedure_for_an_older_release_says_how_old_it_is_in_the_plans_time() -> None:
    for speed in (1, 60):
        with pytest.raises(BalikError) as refusal:
            read(rollback_speed=speed).procedure(LAUNCHED + timedelta(hours=72 / speed))
        assert "launched 3d ago" in refusal.value.found
        assert "quick, standard" in refusal.value.do


def test_a_release_that_is_not_launched_yet_is_told_so() -> None:
    with pytest.raises(BalikError) as refusal:
        read().procedure(LAUNCHED - timedelta(hours=2))
    assert refusal.value.found == "none is for a release that is launched only in 2h"


def test_a_procedure_by_name() -> None:
    assert read().procedure(LAUNCHED + timedelta(days=9), "quick").name == "quick"
    with pytest.raises(BalikError, match="found 'slow'; expected one of quick, standard"):
        read().procedure(LAUNCHED, "slow")


@pytest.mark.parametrize(
    ("scope", "name"),
    [
        (["backend"], "deployment"),
        (["frontend", "backend"], "deployment"),
        (["database"], "database"),
        (["backend", "database"], "database"),
        ([], "deployment"),
    ],
)
def test_the_fastest_remedy_that_covers_the_scope(scope: list[str], name: str) -> None:
    assert read().remedy(scope).name == name


def test_a_remedy_by_name_and_the_ways_to_have_none() -> None:
    assert read().remedy(["backend"], "database").name == "database"
    with pytest.raises(BalikError, match="found 'magic'; expected one of deployment, database"):
        read().remedy([], "magic")
    with pytest.raises(BalikError, match="expected one of frontend, backend, database"):
        read().remedy(["network"])
    with pytest.raises(BalikError, match="none covers database"):
        read_plan(changed("rollback_remedies.database", KeyError) | {"rollback_sign_offs": []}, STEPS).remedy(
            ["database"]
        )


# Refusals: key path, what was found, what was expected


@pytest.mark.parametrize(
    ("path", "value", "what", "found", "expected"),
    [
        ("rollback_product", "Court Files", "rollback_product", "found 'Court Files'", "small letters"),
        ("rollback_product", "a/../b", "rollback_product", "found 'a/../b'", "small letters"),
        ("rollback_product", None, "rollback_product", "it is missing", ""),
        ("rollback_product", KeyError, "rollback_product", "it is missing", ""),
        ("rollback_language", "fr", "rollback_language", "found 'fr'", "one of id, en"),
        ("rollback_plan_reviewed", "soon", "rollback_plan_reviewed", "found 'soon'", "a date such as 2026-01-10"),
        ("rollback_plan_review_every", "often", "rollback_plan_review_every", "found 'often'", "a duration"),
        ("rollback_release.name", 2.1, "rollback_release.name", "found 2.1", "in quotes"),
        ("rollback_release.name", "", "rollback_release.name", "found ''", "a text"),
        ("rollback_release.launched", "2026-01-10T20:00", "rollback_release.launched", "no time zone", "+07:00"),
        ("rollback_release", [], "rollback_release", "found []", "a mapping with name, launched, stable"),
        ("rollback_release", None, "rollback_release", "it is missing", ""),
        ("rollback_people", {}, "rollback_people", "found {}", "a mapping with at least one name"),
        ("rollback_people.manager", None, "rollback_people.manager", "found None", "a mapping with title"),
        ("rollback_people.manager.title", KeyError, "rollback_people.manager.title", "it is missing", ""),
        ("rollback_people.manager.reach", KeyError, "rollback_people.manager.reach", "it is missing", "email, webhook"),
        ("rollback_decision.wait", KeyError, "rollback_decision.wait", "it is missing", "a duration such as"),
        ("rollback_people.manager.reach", {}, "rollback_people.manager.reach", "found {}", "at least one way"),
        (
            "rollback_people.manager.reach.pigeon",
            "x",
            "rollback_people.manager.reach.pigeon",
            "no way",
            "email, webhook",
        ),
        (
            "rollback_people.lead.reach.email",
            "rina",
            "rollback_people.lead.reach.email",
            "found 'rina'",
            "rina@example.com",
        ),
        ("rollback_people.lead.reach.phone", 62812, "rollback_people.lead.reach.phone", "found 62812", "+62"),
        (
            "rollback_people.manager.reach.webhook",
            "chat",
            "rollback_people.manager.reach.webhook",
            "found 'chat'",
            "https",
        ),
        ("rollback_people.lead.names", "rina", "rollback_people.lead.names", "found 'rina'", "a list of texts"),
        (
            "rollback_people.lead.escalates_to",
            "ceo",
            "rollback_people.lead.escalates_to",
            "found 'ceo'",
            "one of manager",
        ),
        ("rollback_people.lead.escalates_to", "lead", "rollback_people.lead.escalates_to", "'lead'", "one of manager"),
        (
            "rollback_people.manager.reach",
            {"webhook": "http://[::1"},
            "rollback_people.manager.reach.webhook",
            "found 'http://[::1'",
            "a URL such as",
        ),
        ("rollback_criteria", [], "rollback_criteria", "found []", "a list with at least one entry"),
        ("rollback_criteria[0].unsafe", "much", "rollback_criteria[0].unsafe", "found 'much'", ""),
        ("rollback_criteria[1].name", "error-rate", "rollback_criteria[1].name", "found 'error-rate'", "no other"),
        (
            "rollback_criteria[1].measure.statement.by",
            ["intern"],
            "rollback_criteria[1].measure.statement.by",
            "found 'intern'",
            "a role of rollback_people (lead, manager)",
        ),
        ("rollback_decision.go", ["ceo"], "rollback_decision.go", "found 'ceo'", "a role of rollback_people"),
        ("rollback_decision.go", "lead", "rollback_decision.go", "found 'lead'", "a list of texts"),
        ("rollback_decision.wait", KeyError, "rollback_decision.wait", "it is missing", ""),
        ("rollback_decision.wait", ".inf", "rollback_decision.wait", "found '.inf'", "a duration"),
        ("rollback_decision.trigger", "most", "rollback_decision.trigger", "found 'most'", "one of any, all"),
        ("rollback_decision", None, "rollback_decision", "it is missing", ""),
        ("rollback_procedures[0]", None, "rollback_procedures[0]", "found None", "a mapping with name"),
        ("rollback_procedures[0].watch", -5, "rollback_procedures[0].watch", "found -5", "a duration"),
        ("rollback_procedures[0].watch", 0, "rollback_procedures[0].watch", "found 0", "longer than nothing"),
        ("rollback_procedures[0].every", "0s", "rollback_procedures[0].every", "found '0s'", "longer than nothing"),
        ("rollback_procedures[1].name", "quick", "rollback_procedures", "quick stands there twice", "each name once"),
        (
            "rollback_hold",
            ["maintenance-pag"],
            "rollback_hold",
            "found 'maintenance-pag', which is no step",
            "one of db-",
        ),
        ("rollback_procedures[0].until", "30m", "rollback_procedures", "launched 30m to 1h ago", "without a gap"),
        ("rollback_procedures[0].since", "1m", "rollback_procedures", "launched less than 1m ago", "without a gap"),
        ("rollback_procedures[1].until", "30m", "rollback_procedures", "standard ends before it", "later than since"),
        ("rollback_remedies.database.covers", [], "rollback_remedies.database.covers", "found []", "at least one of"),
        ("rollback_hold", [None], "rollback_hold[0]", "found None", "a text"),
        ("rollback_verify", [], "rollback_verify", "found []", "at least one step"),
        ("rollback_remedies.database.revert", [], "rollback_remedies.database.revert", "found []", "at least one step"),
        ("rollback_remedies.database.covers", ["net"], "rollback_remedies.database.covers", "found 'net'", "frontend"),
        ("rollback_remedies.database.takes", KeyError, "rollback_remedies.database.takes", "it is missing", ""),
        (
            "rollback_remedies.database.revert",
            ["image-revert", "image-revert"],
            "rollback_remedies.database.revert",
            "found image-revert, which stands in one rollback twice",
            "it once",
        ),
        (
            "rollback_restore",
            ["traffic-restore", "db-restore"],
            "rollback_restore",
            "db-restore, in",
            "revert of a remedy",
        ),
        (
            "rollback_remedies.deployment.revert",
            ["maintenance-page", "image-revert"],
            "rollback_remedies.deployment.revert",
            "found maintenance-page, in the wrong phase",
            "it in rollback_hold only",
        ),
        ("rollback_product", "x" * 101, "rollback_product", "found 'xxx", "hyphens"),
        (
            "rollback_hold",
            ["traffic-restore"],
            "rollback_hold",
            "traffic-restore, in the wrong",
            "rollback_restore only",
        ),
        (
            "rollback_hold",
            ["scale-freeze"],
            "rollback_hold",
            "let the autoscalers go",
            "scale-thaw in rollback_restore",
        ),
        ("rollback_verify", ["scale-thaw"], "rollback_verify", "in the wrong phase", "rollback_restore only"),
        (
            "rollback_verify",
            ["traffic-restore"],
            "rollback_verify",
            "traffic-restore, in the wrong",
            "rollback_restore only",
        ),
        (
            "rollback_remedies.database.revert",
            ["traffic-restore"],
            "rollback_remedies.database.revert",
            "traffic-restore, in the wrong",
            "rollback_restore only",
        ),
        ("rollback_criteria[0].name", "fehlerräte 🙂", "rollback_criteria[0].name", "found 'fehlerräte 🙂'", "hyphens"),
        ("rollback_remedies.Back Up", {}, "rollback_remedies.Back Up", "found 'Back Up'", "hyphens"),
        ("rollback_sign_offs[0].role", "ceo", "rollback_sign_offs[0].role", "found 'ceo'", "a role of rollback_people"),
        ("rollback_sign_offs[0].phase", "party", "rollback_sign_offs[0].phase", "found 'party'", "one of hold"),
        (
            "rollback_sign_offs[0].remedies",
            ["x"],
            "rollback_sign_offs[0].remedies",
            "found 'x'",
            "deployment, database",
        ),
        ("rollback_checklist[0].when", "later", "rollback_checklist[0].when", "found 'later'", "one of before, hold"),
        ("rollback_checklist", "x", "rollback_checklist", "found 'x'", "a list"),
        ("rollback_messages.never", {}, "rollback_messages.never", "found 'never'", "one of asked"),
        (
            "rollback_messages.asked.to",
            ["ceo"],
            "rollback_messages.asked.to",
            "found 'ceo'",
            "a role of rollback_people",
        ),
        ("rollback_messages.asked", None, "rollback_messages.asked", "found None", "a mapping with to"),
        ("rollback_loss", {"limit": "soon"}, "rollback_loss.limit", "found 'soon'", "a duration"),
        ("rollback_loss", {"exact": "maybe"}, "rollback_loss.exact", "found 'maybe'", "one of auto, always, never"),
        ("rollback_loss", {"export": "no"}, "rollback_loss.export", "found 'no'", "true or false"),
        ("rollback_loss", {"times": {"a.b": {"made": "x"}}}, "rollback_loss.times.a.b", "made", "created and updated"),
        ("rollback_loss", {"times": []}, "rollback_loss.times", "found []", "tables with their columns"),
    ],
)
def test_a_refusal(path: str, value: Any, what: str, found: str, expected: str) -> None:
    problems = [problem for problem in refused(changed(path, value)) if problem.what == what]
    assert len(problems) == 1, [str(problem) for problem in refused(changed(path, value))]
    assert found in problems[0].found
    assert expected in problems[0].expected


def test_what_the_criteria_touch_together_has_a_remedy() -> None:
    plan = variables()
    plan["rollback_remedies"]["database"]["covers"] = ["database"]
    read_plan(plan, STEPS)
    plan["rollback_criteria"][0]["touches"] = ["database"]  # and the other one the frontend
    assert [str(problem) for problem in refused(plan)] == [
        "rollback_remedies: none covers database, frontend together, which rollback_criteria touch; "
        "expected one with covers: [database, frontend]"
    ]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("rollback_hold", ["maintenance-page", "traffic-restore"]),
        ("rollback_verify", ["smoke-test", "maintenance-page"]),
    ],
)
def test_a_step_in_the_wrong_phase_or_in_two_is_one_problem(path: str, value: list[str]) -> None:
    (problem,) = refused(changed(path, value))
    assert (problem.what, value[1] in problem.found) == (path, True)


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("rollback_critera", "rollback_criteria"),
        ("rollback_decision.brake_glass", "break_glass"),
        ("rollback_people.lead.tittle", "title"),
        ("rollback_sign_offs[0].roles", "role"),
        ("rollback_remedies.database.cover", "covers"),
    ],
)
def test_an_unknown_key_is_refused_with_what_was_meant(path: str, meant: str) -> None:
    (problem,) = (p for p in refused(changed(path, ["x"])) if p.what == path)
    assert problem.found == "it is no key of a plan"
    assert problem.do == f"Did you mean {meant}?"


def test_an_unknown_key_that_is_like_no_other_is_to_be_removed() -> None:
    (problem,) = refused(changed("rollback_colour", "red"))
    assert problem.do == "Remove it."


def test_a_misspelt_step_is_refused_with_the_one_that_was_meant() -> None:
    assert refused(changed("rollback_hold", ["maintenance-pag"]))[0].do == "Did you mean maintenance-page?"


def test_a_secret_is_not_shown_when_it_is_refused() -> None:
    for name in ("rollback_record_dsn", "rollback_record_key", "rollback_smtp"):
        (problem,) = refused(changed(name, ["geheim"]))
        assert (problem.what, "geheim" in str(problem)) == (name, False)


@pytest.mark.parametrize(
    "address",
    [
        *("mail", "mail:25", "10.0.0.1:25", "smtp://[fd00::1]:25", "[::1]:2525", "smtps://mail.court.example/", ""),
        *("smtp+starttls://rina:p%40ss@mail.court.example:587", "mail_relay:25", "mail.court.example.:25"),
    ],
)
def test_where_mail_is_sent(address: str) -> None:
    assert read_plan(changed("rollback_smtp", address), STEPS).smtp == address


@pytest.mark.parametrize(
    ("address", "found"),
    [
        *(("not a host:99999", "'not a host:99999'"), ("mail:many", "'mail:many'"), ("mail:0", "'mail:0'")),
        *(("http://mail:25", "'http://mail:25'"), ("mail:25/inbox", "'mail:25/inbox'"), (":25", "':25'")),
        *(("smtps://rina:geheim@mail:99999", "'mail:99999'"), ("smtp://rina:ge/heim@mail", "'mail'")),
        ("smtp://[mail", "'smtp://[mail'"),
        *(("...", "'...'"), ("ma..il:25", "'ma..il:25'"), ("-x", "'-x'"), ("mail-", "'mail-'"), ("::1", "'::1'")),
    ],
)
def test_where_no_mail_can_be_sent(address: str, found: str) -> None:
    (problem,) = refused(changed("rollback_smtp", address))
    assert (problem.what, problem.found) == ("rollback_smtp", f"found {found}")
    assert problem.expected.startswith("host:port (a port from 1 to 65535)")
    assert "heim" not in str(problem)


def test_who_can_be_reached_by_mail_only_needs_a_mail_server() -> None:
    plan = changed("rollback_smtp", "")
    plan["rollback_people"]["lead"]["reach"] = {"email": "rina@court.example"}
    plan["rollback_people"]["manager"]["reach"] = {"email": "budi@court.example", "phone": "+62 812 0000"}
    (problem,) = refused(plan)
    assert (problem.what, problem.found) == ("rollback_smtp", "it is not set")
    assert "(lead) is to be reached by email only" in problem.expected


def test_an_ipv6_address_of_a_mail_server_is_shown_in_brackets() -> None:
    (problem,) = refused(changed("rollback_smtp", "smtp://fd00::1"))
    assert problem.do == "An IPv6 address stands in brackets: [fd00::1]."


@pytest.mark.parametrize(
    ("moment", "text", "name", "do"),
    [
        ("asked", "<prodcut> failed", "prodcut", "Did you mean <product>?"),
        ("failed", "<loss>", "loss", ""),
        ("asked", "<b>now</b>", "b", ""),
        ("asked", "<release name> failed", "release name", "Did you mean <release>?"),
        ("asked", "<sta-ble>", "sta-ble", "Did you mean <stable>?"),
    ],
)
@pytest.mark.parametrize("key", ["subject", "says"])
def test_a_message_with_a_name_that_nothing_is_filled_in_for(
    moment: str, text: str, name: str, do: str, key: str
) -> None:
    message = {"to": ["lead"], "subject": "Go?", "says": "<reason>", key: text}
    (problem,) = refused(changed("rollback_messages", {moment: message}))
    assert (problem.what, problem.found, problem.do) == (f"rollback_messages.{moment}.{key}", f"found <{name}>", do)
    assert problem.expected.startswith("one of <product>, <release>, <stable>")


@pytest.mark.parametrize(
    "text",
    [
        "< 5s, a <b, c> d",
        "<https://court.example>, <!here> <@U1> <two words> <>",
        "<product><loss> <<run>> </b> <de-e>",
    ],
)
def test_what_else_a_message_may_say(text: str) -> None:
    message = {"to": ["lead"], "subject": text, "says": text}
    assert read_plan(changed("rollback_messages", {"asked": message}), STEPS).messages["asked"]["says"] == text


def test_all_problems_are_said_at_once_and_that_nothing_was_touched() -> None:
    plan = changed("rollback_hold", ["no-such-step"])
    plan["rollback_decision"]["wait"] = "soon"
    del plan["rollback_people"]["manager"]["reach"]
    plan["rollback_colour"] = "red"
    with pytest.raises(PlanRefused) as refusal:
        read_plan(plan, STEPS)
    lines = str(refusal.value).splitlines()
    assert lines[0] == "the plan is refused: 4 problems, and nothing was touched"
    assert [line.split(":")[0] for line in lines[1:]] == [
        "  - rollback_people.manager.reach",
        "  - rollback_decision.wait",
        "  - rollback_hold",
        "  - rollback_colour",
    ]


def test_variables_of_one_run_are_no_part_of_the_plan() -> None:
    read(rollback_remedy="database", rollback_reason="x", rollback_by="rina", rollback_take_lock="true")


# Whatever is done to a plan, it is read or refused

JUNK = st.one_of(
    st.sampled_from([None, [], {}, 0, -1, 1.5, "x", "", True, [[]], {"a": {"b": [None]}}, [{}], 10**400, float("nan")]),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.dates() | st.datetimes(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=5,
    ),
)


def paths(value: Any, at: tuple = ()) -> list[tuple]:
    """The key paths of all that stands in a plan."""
    found = [at] if at else []
    if isinstance(value, dict):
        children = list(value.items())
    elif isinstance(value, list):
        children = list(enumerate(value))
    else:
        children = []
    return found + [path for key, child in children for path in paths(child, (*at, key))]


@settings(max_examples=600, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.tuples(st.sampled_from(paths(variables())), st.sampled_from(["drop", "rename", "put"]), JUNK), max_size=3
    )
)
def test_any_change_is_read_or_refused_and_nothing_else(changes: list[tuple[tuple, str, Any]]) -> None:
    plan = copy.deepcopy(variables())
    for path, what, junk in changes:
        place: Any = plan
        try:
            for key in path[:-1]:
                place = place[key]
            value = place.pop(path[-1]) if what != "put" else None
            if what == "rename" and isinstance(place, dict):
                place[str(junk)] = value
            elif what == "put":
                place[path[-1]] = junk
        except (KeyError, IndexError, TypeError, AttributeError):
            continue  # an earlier change took it away
    try:
        read_plan(plan, STEPS)
    except PlanRefused as refusal:
        assert refusal.problems
        assert str(refusal)


@pytest.mark.parametrize("junk", [None, [], {}, 0, -1, "", True, [[]], {"a": 1}], ids=repr)
def test_junk_is_never_taken_for_a_text_or_a_table(junk: Any) -> None:
    """At each key path: a plan that is read has no None where it needs something."""
    for path in sorted({".".join(map(str, path)) for path in paths(variables())}):
        try:
            plan = read_plan(changed(path, junk), STEPS)
        except PlanRefused:
            continue
        needed = (plan.product, plan.release, plan.launched, plan.stable, plan.reviewed, plan.wait, plan.valid)
        assert None not in needed, path
        assert all(person.title and person.reach for person in plan.people.values()), path
        assert all(procedure.name and procedure.watch is not None for procedure in plan.procedures), path
        assert all(remedy.revert and remedy.covers is not None for remedy in plan.remedies.values()), path
        assert all(item.name and item.role and item.says for item in plan.sign_offs), path
        assert all(all(item.values()) for item in plan.checklist), path


@pytest.mark.parametrize("value", [15, "15", 0.5, " 15 "])
@pytest.mark.parametrize(
    "path",
    ["rollback_decision.wait", "rollback_remedies.database.takes", "rollback_sign_offs[0].wait", "rollback_loss"],
)
def test_a_duration_without_a_unit_is_refused(path: str, value: object) -> None:
    wanted = f"{path}.limit" if path == "rollback_loss" else path
    (problem,) = refused(changed(path, {"limit": value} if path == "rollback_loss" else value))
    assert (problem.what, problem.found) == (wanted, f"found {value!r}, which has no unit")
    assert read_plan(changed(path, {"limit": 0} if path == "rollback_loss" else "0"), STEPS)
