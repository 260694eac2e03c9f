"""What docs/writing-a-step.md asks of each step, and the house rules for the variables of roles."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.balik.rollback.plugins.module_utils.plan import INTERNAL_PREFIXES

PROJECT = Path(__file__).resolve().parents[2]
ROLES = sorted(path for path in (PROJECT / "roles").iterdir() if path.is_dir())
STEPS = [role for role in ROLES if not role.name.startswith("rollback-")]
ENTRY_POINTS = ("check", "main", "verify", "undo")
#: Set by the wrapper, and no input of a role.
FROM_WRAPPER = {
    "rollback_step_saved",
    "rollback_step_early",
    "rollback_step_remedy",
    "rollback_run_saved",
    "rollback_run_id",
}


def test_what_the_wrapper_sets_is_taken_for_no_key_of_a_plan() -> None:
    """A step may read the plan while it runs."""
    assert {name for name in FROM_WRAPPER if not name.startswith(INTERNAL_PREFIXES)} == set()


steps = pytest.mark.parametrize("role", STEPS, ids=lambda role: role.name)
entry_points = pytest.mark.parametrize("entry", ENTRY_POINTS)


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text()) if path.exists() else None


def prefix(role: Path) -> str:
    return role.name.replace("-", "_") + "_"


def specs(role: Path) -> dict[str, Any]:
    return read(role / "meta" / "argument_specs.yml")["argument_specs"]


def tasks(file: Path) -> Iterator[dict[str, Any]]:
    """All tasks of a file, out of their blocks too, and of the files and roles that they include."""
    yield from _with_included(read(file) or [], file)


def _with_included(listed: list[dict[str, Any]], file: Path) -> Iterator[dict[str, Any]]:
    for task in _out_of_blocks(listed):
        yield task
        for module in ("include_tasks", "import_tasks"):
            named = task.get(f"ansible.builtin.{module}")
            if named:
                name = named if isinstance(named, str) else named["file"]
                for included in sorted(file.parent.glob(re.sub(r"\{\{.*?\}\}", "*", name))):
                    yield from tasks(included)
        role = task.get("ansible.builtin.include_role") or task.get("ansible.builtin.import_role")
        if role and "{{" not in role["name"]:
            yield from tasks(PROJECT / "roles" / role["name"] / "tasks" / f"{role.get('tasks_from', 'main')}.yml")


def _out_of_blocks(listed: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for task in listed:
        yield task
        for part in ("block", "rescue", "always"):
            yield from _out_of_blocks(task.get(part, []))


def _rescued(listed: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """The blocks, at any depth, that have a rescue."""
    for task in listed:
        if "rescue" in task:
            yield task["block"]
        for part in ("block", "rescue", "always"):
            yield from _rescued(task.get(part, []))


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_no_task_of_one_for_all_fails_in_a_block_with_a_rescue(role: Path) -> None:
    """Ansible lets only the first host come to that rescue; the others fail beyond it."""
    for file in (role / "tasks").glob("*.yml"):
        for block in _rescued(read(file) or []):
            for_all = [task for task in _with_included(block, file) if task.get("run_once")]
            assert [task["name"] for task in for_all if task.get("failed_when") is not False] == [], file.name


def test_there_are_steps() -> None:
    assert {role.name for role in STEPS} >= {
        "maintenance-page",
        "image-revert",
        "db-restore",
        "smoke-test",
        "traffic-restore",
    }


@steps
def test_a_step_has_its_four_entry_points_and_a_spec_for_each(role: Path) -> None:
    for entry in ENTRY_POINTS:
        assert (role / "tasks" / f"{entry}.yml").exists(), entry
        assert specs(role)[entry]["short_description"], entry


@steps
@entry_points
def test_an_entry_point_registers_what_the_wrapper_reads(role: Path, entry: str) -> None:
    wanted = f"rollback_step_{entry}"
    found = tasks(role / "tasks" / f"{entry}.yml")
    assert any(task.get("register") == wanted or wanted in task.get("ansible.builtin.set_fact", {}) for task in found)


@steps
def test_a_step_waits_inline_and_has_no_handler(role: Path) -> None:
    assert not (role / "handlers").exists()
    for entry in ENTRY_POINTS:
        assert not [task["name"] for task in tasks(role / "tasks" / f"{entry}.yml") if "notify" in task]


@steps
def test_a_step_runs_where_its_hosts_are_and_delegates_nothing(role: Path) -> None:
    assert f"{prefix(role)}hosts" in read(role / "defaults" / "main.yml")
    for entry in ENTRY_POINTS:
        assert not [task["name"] for task in tasks(role / "tasks" / f"{entry}.yml") if "delegate_to" in task]


@steps
def test_a_step_has_a_readme_of_about_a_screen(role: Path) -> None:
    text = (role / "README.md").read_text()
    assert f"# {role.name}" in text.splitlines()[0]
    assert "undo" in text.lower(), "what undo gives back"
    assert len(text.splitlines()) <= 120


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_a_roles_name_for_galaxy_is_its_folders_with_underscores(role: Path) -> None:
    meta = read(role / "meta" / "main.yml")
    if meta:
        assert meta["galaxy_info"]["role_name"] == role.name.replace("-", "_")
    else:
        assert role not in STEPS


@steps
def test_every_default_is_in_the_spec_and_every_input_in_the_defaults_or_required(role: Path) -> None:
    defaults = set(read(role / "defaults" / "main.yml"))
    options = {name: option for entry in specs(role).values() for name, option in (entry.get("options") or {}).items()}
    required = {name for name, option in options.items() if option.get("required")}
    assert defaults - set(options) == set(), "defaults that no spec has"
    assert set(options) - defaults - required - FROM_WRAPPER - unset(role) == set(), "inputs without a default"
    assert defaults & required == set(), "required, and with a default"


def unset(role: Path) -> set[str]:
    """Inputs that defaults/main.yml names in a comment because to have none means something."""
    return set(re.findall(rf"^# ?({prefix(role)}\w+):", (role / "defaults" / "main.yml").read_text(), re.MULTILINE))


@steps
def test_what_must_be_above_zero_is_an_input(role: Path) -> None:
    def paths(options: dict[str, Any], before: str) -> set[str]:
        here = {before + name for name in options}
        return here.union(*(paths(option.get("options") or {}, f"{before}{name}.") for name, option in options.items()))

    named = (read(role / "meta" / "settings.yml") or {"above_zero": []}).pop("above_zero")
    assert set(named) - paths(specs(role)["main"].get("options") or {}, "") == set()


@steps
def test_every_input_is_described(role: Path) -> None:
    def described(options: dict[str, Any], where: str) -> list[str]:
        bare = [f"{where}.{name}" for name, option in options.items() if not option.get("description")]
        return bare + [
            each
            for name, option in options.items()
            for each in described(option.get("options") or {}, f"{where}.{name}")
        ]

    assert [each for name, entry in specs(role).items() for each in described(entry.get("options") or {}, name)] == []


@steps
def test_every_default_says_why_above_it(role: Path) -> None:
    """A comment opens each group of defaults: a line that begins a group without one says nothing to its user."""
    lines = (role / "defaults" / "main.yml").read_text().splitlines()
    opening = [
        line for before, line in zip(["", *lines], lines) if re.match(r"\w+:", line) and before.strip() in ("", "---")
    ]
    assert opening == []


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_names_have_the_roles_prefix(role: Path) -> None:
    public, private = prefix(role), "__" + prefix(role)
    flow = role.name.startswith("rollback-")
    for name in read(role / "defaults" / "main.yml") or {}:
        assert name.startswith(public), name
    for name in read(role / "vars" / "main.yml") or {}:
        assert name.startswith(private), name
    allowed = (private, public, "rollback_step_", *(["__rollback_", "rollback_"] if flow else []))
    for file in (role / "tasks").rglob("*.yml"):
        for task in _out_of_blocks(read(file) or []):
            made = [task["register"]] if "register" in task else []
            made += [name for name in task.get("ansible.builtin.set_fact", {}) if name != "cacheable"]
            assert [name for name in made if not name.startswith(allowed)] == [], f"{file.name}: {task.get('name')}"
