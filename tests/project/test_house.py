"""The rules of the house that no linter knows."""

from __future__ import annotations

import configparser
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tomllib
import yaml

PROJECT = Path(__file__).resolve().parents[2]
COLLECTION = PROJECT / "collections" / "ansible_collections" / "balik" / "rollback"
MODULES = sorted(path.stem for path in (PROJECT / "plugins" / "modules").glob("[a-z]*.py"))


def files(*patterns: str) -> list[Path]:
    """What git has, or would have once it was added."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *patterns],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    return [path for name in listed.stdout.split("\0") if name and (path := PROJECT / name).is_file()]


def texts(*patterns: str) -> list[tuple[Path, str]]:
    found = []
    for path in files(*patterns):
        try:
            found.append((path, path.read_text()))
        except UnicodeDecodeError:
            continue
    return found


# The Python layer


def test_the_collections_plugins_are_the_projects_through_a_relative_link() -> None:
    link = COLLECTION / "plugins"
    assert str(link.readlink()) == "../../../../plugins"
    assert link.resolve() == PROJECT / "plugins"
    assert importlib.import_module("ansible_collections.balik.rollback.plugins.module_utils.errors").BalikError


@pytest.fixture(scope="module")
def documentation() -> dict[str, dict]:
    """What ``ansible-doc`` makes of every module."""
    done = subprocess.run(
        [Path(sys.executable).parent / "ansible-doc", "--json", *(f"balik.rollback.{name}" for name in MODULES)],
        cwd=PROJECT,
        env={**os.environ, "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, dict] = json.loads(done.stdout)
    return {name.rpartition(".")[2]: document for name, document in found.items()}


@pytest.mark.parametrize("module", MODULES)
def test_a_modules_documentation_is_rendered(module: str, documentation: dict[str, dict]) -> None:
    found = documentation[module]
    assert found["doc"]["short_description"]
    assert f"balik.rollback.{module}:" in found["examples"]
    assert found["return"], "what it returns"


def arguments_of(module: str) -> dict[str, Any]:
    """What a module takes: its own, or an action's where it is documentation only."""
    plugins = "ansible_collections.balik.rollback.plugins"
    own = importlib.import_module(f"{plugins}.modules.{module}")
    if hasattr(own, "OPTIONS"):
        return own.OPTIONS
    return importlib.import_module(f"{plugins}.action.{module}").ActionModule.ARGUMENTS


@pytest.mark.parametrize("module", MODULES)
def test_a_module_is_documented_as_it_is(module: str, documentation: dict[str, dict]) -> None:
    def compare(arguments: dict[str, Any], documented: dict[str, Any], where: str) -> None:
        assert set(arguments) == set(documented), where
        for name, spec in arguments.items():
            said = documented[name]
            assert said["description"], f"{where}.{name}"
            # A default that is made of those of the options stands there once a module has read it in this process.
            keys = ("type", "required", "elements", *(() if spec.get("apply_defaults") else ("default",)))
            for key in keys:
                assert spec.get(key) in (said.get(key), None if key != "required" else False), f"{where}.{name}.{key}"
            assert list(spec.get("choices", [])) == said.get("choices", []), f"{where}.{name}.choices"
            if "options" in spec:
                compare(spec["options"], said["suboptions"], f"{where}.{name}")

    compare(arguments_of(module), documentation[module]["doc"].get("options") or {}, module)


def test_each_unit_test_stands_where_what_it_tests_does() -> None:
    for test in (PROJECT / "tests" / "unit").rglob("test_*.py"):
        folder = PROJECT / "plugins" / test.parent.relative_to(PROJECT / "tests" / "unit")
        name = test.stem.removeprefix("test_")
        fitting = [path for path in folder.rglob("*") if path.stem == name or path.stem == name.split("_")[0]]
        assert fitting, f"{test.relative_to(PROJECT)} tests nothing of its name"


# What others find here


def test_nothing_tells_of_the_workplace_it_was_made_in() -> None:
    words = ["/work" + "/", "/tmp" + "/lab"]
    words += [f"{name}.{end}" for name, end in [("pypi", "org"), ("pythonhosted", "org"), ("npmjs", "org")]]
    found = [f"{path.relative_to(PROJECT)}: {word}" for path, text in texts() for word in words if word in text]
    assert found == []


def test_nothing_is_left_for_later() -> None:
    marks = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X)\b")
    assert [
        str(path.relative_to(PROJECT)) for path, text in texts("*.py", "*.yml", "*.md", "*.j2") if marks.search(text)
    ] == []


def test_links_between_documents_lead_somewhere() -> None:
    broken = []
    for path, text in texts("*.md"):
        for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
            if not re.match(r"[a-z]+:", link) and not (path.parent / link).exists():
                broken.append(f"{path.relative_to(PROJECT)}: {link}")
    assert broken == []


def test_every_benchmark_that_is_named_exists_and_each_has_its_figures() -> None:
    named = {
        name
        for _path, text in texts("*.md", "*.py")
        for name in re.findall(r"tests[/.]benchmarks[/.](\w+)(?:\.py)?\b", text)
    }
    there = {path.stem for path in (PROJECT / "tests" / "benchmarks").glob("*.py")}
    assert named - there == set()
    assert there - named == set(), "benchmarks that no document names"


def test_annotations_have_one_prefix_and_are_documented_in_one_place() -> None:
    plugins = "".join(text for _, text in texts("plugins/*.py"))
    written = set(re.findall(r'"(balik[a-z.]*/[a-z]+)"', plugins))
    documented = set(re.findall(r"`(balik\.dev/[a-z]+)`", (PROJECT / "docs" / "kubernetes.md").read_text()))
    assert written == documented


def test_settings_are_read_the_same_by_everybody() -> None:
    """AWX reads ansible.cfg with a plain parser: an inline comment would become a part of the value."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(PROJECT / "ansible.cfg")
    assert [value for section in parser.values() for value in section.values() if re.search(r"\s[#;]", value)] == []


# What is brought from elsewhere


def test_collections_are_pinned() -> None:
    wanted = yaml.safe_load((PROJECT / "collections" / "requirements.yml").read_text())["collections"]
    assert [each for each in wanted if not re.search(r"<|==", each.get("version", ""))] == []


def test_python_packages_are_pinned() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(each for extra in project["optional-dependencies"].values() for each in extra),
    ]
    assert [each for each in wanted if not re.search(r"<|==", each.partition(";")[0])] == []


@pytest.mark.parametrize("playbook", files("playbooks/*.yml", "rollback.yml"), ids=lambda path: path.name)
def test_a_playbook_is_one_that_awx_lists(playbook: Path) -> None:
    """AWX looks for a line that begins with a play's hosts or with an import."""
    if playbook.parent.name != "tasks":
        assert re.search(
            r"^\s{0,2}-?\s*(hosts|(ansible\.builtin\.)?import_playbook):", playbook.read_text(), re.MULTILINE
        )
