"""Each plan that was written by hand is wholly in its inventory, and each inventory's plan can be read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.balik.rollback.plugins.module_utils.plan import PHASES, read_plan

PROJECT = Path(__file__).resolve().parents[2]
PLANS = sorted(PROJECT.glob("docs/plans/*.md"))
#: ``rollback_hold[maintenance-page]``: an entry that is, is named, or begins with what stands in the brackets.
PATH = re.compile(r"`([a-z_]+(?:\.[a-z-]+|\[[^\]`]+\])*)`")


def variables(product: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for file in (PROJECT / "inventories" / product / "group_vars" / "all").glob("*.yml"):
        found |= yaml.safe_load(file.read_text())
    return found


def at(path: str, value: Any) -> Any:
    """What stands at a key path; a ``LookupError`` where nothing does."""
    for name, entry in re.findall(r"([\w-]+)|\[([^\]]+)\]", path):
        value = value[name] if name else next(each for each in value if entry in called(each))
    return value


def called(entry: Any) -> tuple[str, ...]:
    if isinstance(entry, dict):
        words = entry.get("says", "").split()
        return (entry.get("name", ""), *(" ".join(words[:n]).rstrip(":") for n in range(1, len(words) + 1)))
    return (entry,)


@pytest.mark.parametrize("document", PLANS, ids=lambda path: path.stem)
def test_each_line_of_the_document_stands_where_its_table_says(document: Path) -> None:
    rows = [line for line in document.read_text().splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 20
    plan = variables(document.stem)
    for row in rows:
        paths = PATH.findall(row.split("|")[3])
        assert paths, f"no key path: {row}"
        for path in paths:
            try:
                assert at(path, plan) not in (None, [], {}), path
            except (LookupError, StopIteration, TypeError):
                pytest.fail(f"{path} is not in inventories/{document.stem}: {row}")


@pytest.mark.parametrize("document", PLANS, ids=lambda path: path.stem)
def test_what_the_text_below_the_table_names_is_there_too(document: Path) -> None:
    plan = variables(document.stem)
    for path in PATH.findall(document.read_text().rpartition("|")[2]):
        if not path.endswith(".yml"):
            at(path, plan)


@pytest.mark.parametrize("document", PLANS, ids=lambda path: path.stem)
def test_nothing_of_the_plan_is_without_a_line(document: Path) -> None:
    """The other way round: each criterion, person, step, sign-off and item of the checklist has its line."""
    plan, text = variables(document.stem), document.read_text()
    said = {PATH_ENTRY for path in PATH.findall(text) for PATH_ENTRY in re.findall(r"[.\[]([^\].\[]+)", path)}
    names = [each["name"] for key in ("criteria", "sign_offs", "procedures") for each in plan[f"rollback_{key}"]]
    names += list(plan["rollback_people"]) + list(plan["rollback_remedies"])
    names += [step for phase in PHASES if phase != "revert" for step in plan[f"rollback_{phase}"]]
    names += [step for remedy in plan["rollback_remedies"].values() for step in remedy["revert"]]
    assert set(names) <= said, set(names) - said
    for item in plan["rollback_checklist"]:
        assert set(called(item)) & said, item


def test_every_inventory_of_a_product_has_its_table() -> None:
    products = {path.parents[2].name for path in PROJECT.glob("inventories/*/group_vars/all/plan.yml")}
    assert products == {path.stem for path in PLANS}


def test_the_readmes_plan_is_one_and_is_as_long_as_it_says() -> None:
    written = re.search(
        r"## A plan in twenty lines\n+```yaml\n(.*?)```", (PROJECT / "README.md").read_text(), re.DOTALL
    )
    assert written
    assert 18 <= len([line for line in written[1].splitlines() if line]) <= 22
    # Beside it stand the endpoints.
    text = written[1].replace("{{ prometheus }}", "http://prometheus:9090")
    plan = {**yaml.safe_load(text), "rollback_smtp": "mail.example.com"}
    assert (
        read_plan(plan, [path.name for path in (PROJECT / "roles").iterdir()]).remedy(["backend"]).name == "deployment"
    )
