"""Settings of a step that are refused with the plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible_collections.balik.rollback.plugins.plugin_utils.settings import StepSettings

WEB = {"namespace": "shop", "name": "web"}
WEB_1 = {"name": "web-1"}
ROLES = Path(__file__).parents[3] / "roles"


def problems(role: str, settings: dict[str, Any]) -> dict[str, str]:
    return dict(StepSettings(ROLES / role, {role}).problems(settings, settings))  # type: ignore[arg-type]


@pytest.mark.parametrize(("backend", "refused"), [("kubernetes", False), ("nginx", True)])
def test_the_page_s_url_may_be_empty_on_kubernetes_alone(backend: str, refused: bool) -> None:
    found = problems("maintenance-page", {"maintenance_page_backend": backend, "maintenance_page_url": ""})
    assert ("maintenance_page_url" in found) is refused


def test_workloads_beside_labels_and_an_empty_namespace() -> None:
    workloads = [{"namespace": "", "name": "web", "image": "hub:1"}]
    kubernetes = {"image_revert_backend": "kubernetes", "image_revert_workloads": workloads}
    found = problems("image-revert", kubernetes)
    assert "expected the workload's namespace" in found["image_revert_workloads[0].namespace"]
    both = problems("image-revert", {**kubernetes, "image_revert_labels": {"app": "web"}})
    assert both["image_revert_workloads"] == "given beside image_revert_labels; expected one of the two"
    assert "image_revert_workloads" not in problems("image-revert", kubernetes)


@pytest.mark.parametrize("zero", [0, "0", "0s", "0m"])
@pytest.mark.parametrize(
    ("role", "name"),
    [
        ("image-revert", "image_revert_limit"),
        ("maintenance-page", "maintenance_page_within"),
        ("maintenance-page", "maintenance_page_kubernetes_limit"),
        ("db-restore", "db_restore_limit"),
        ("db-restore", "db_restore_lock_limit"),
        ("prisma-down", "prisma_down_limit"),
        ("prisma-down", "prisma_down_count_limit"),
        ("prisma-down", "prisma_down_lock_timeout"),
    ],
)
def test_a_limit_of_zero_is_refused(role: str, name: str, zero: object) -> None:
    assert problems(role, {name: zero})[name] == f"found {zero!r}; expected a duration above zero"
    assert name not in problems(role, {name: "1s"})


@pytest.mark.parametrize(
    ("role", "name"),
    [
        ("smoke-test", "smoke_test_limit"),
        ("image-revert", "image_revert_steady"),
        ("db-restore", "db_restore_pgbouncer_limit"),
        ("db-restore", "db_restore_jobs"),
    ],
)
def test_zero_is_taken_where_it_means_something(role: str, name: str) -> None:
    assert name not in problems(role, {name: 0})


def test_a_limit_within_a_list_is_named_by_its_key_path() -> None:
    workloads = [{"namespace": "shop", "name": "web", "limit": limit} for limit in ("", "1s", 0, "soon")]
    found = problems("image-revert", {"image_revert_backend": "kubernetes", "image_revert_workloads": workloads})
    limits = {name: what for name, what in found.items() if name.endswith("limit")}
    assert limits == {
        "image_revert_workloads[2].limit": "found 0; expected a duration above zero",
        "image_revert_workloads[3].limit": "found 'soon'; expected a duration such as 30s, 15m, 1h30m or 7d",
    }


@pytest.mark.parametrize(
    ("name", "value", "where", "what"),
    [
        ("labels", "app", "", "found 'app'; expected a dictionary"),
        ("labels", 5, "", "found 5; expected a dictionary"),
        ("labels", ["app"], "", "found a list; expected a dictionary"),
        ("workloads", "web", "", "found 'web'; expected a list of dictionaries"),
        ("workloads", {"name": "web"}, "", "found a dictionary; expected a list of dictionaries"),
        ("workloads", [WEB, "web"], "[1]", "found 'web'; expected a dictionary"),
        ("workloads", [{**WEB, "containers": 5}], "[0].containers", "found 5; expected a dictionary"),
        ("workloads", [{**WEB, "image": ["hub:1"]}], "[0].image", "found a list; expected a text"),
        ("image", {"app": "hub:1"}, "", "found a dictionary; expected a text"),
        ("images", [{"app": "hub:1"}], "[0]", "found a dictionary; expected a text"),
        ("parallel", "many", "", "found 'many'; expected a whole number"),
        ("limit", ["1m"], "", "found a list; expected a text"),
    ],
)
def test_a_value_of_another_type_is_one_message(name: str, value: object, where: str, what: str) -> None:
    name = f"image_revert_{name}"
    settings = {"image_revert_backend": "kubernetes", name: value}
    roles = StepSettings(ROLES / "image-revert", {"image-revert"})
    found = [each for each in roles.problems(settings, settings) if each[0].startswith(name)]  # type: ignore[arg-type]
    assert [each for each in found if "found no image" not in each[1]] == [(name + where, what)]


@pytest.mark.parametrize(
    ("item", "found"),
    [
        (
            {"nmae": "web"},
            {".nmae": "it is no key here; expected one of name, image, limit. Did you mean name?"},
        ),
        ({"image": "hub:1"}, {".name": "it is missing; expected a text"}),
        (
            {"name": "web", "colour": "red", 5: "x"},
            {
                ".colour": "it is no key here; expected one of name, image, limit",
                ".5": "it is no key here; expected one of name, image, limit",
            },
        ),
        ({"nmae": "web", "image": ["hub:1"]}, {".nmae": None, ".image": "found a list; expected a text"}),
        ({"name": "web", "image": "hub:1", "limit": "1m"}, {}),
    ],
)
def test_a_key_of_a_list_s_item_is_one_message(item: dict[Any, Any], found: dict[str, str | None]) -> None:
    settings = {
        "image_revert_backend": "docker",
        "image_revert_image": "hub:1",
        "image_revert_containers": [WEB_1, item],
    }
    roles = StepSettings(ROLES / "image-revert", {"image-revert"})
    told = list(roles.problems(settings, settings))  # type: ignore[arg-type]
    assert [where for where, _what in told] == [f"image_revert_containers[1]{where}" for where in found]
    for (_where, what), expected in zip(told, found.values()):
        assert expected in (None, what)


def test_what_ansible_itself_takes_is_taken() -> None:
    settings = {
        "image_revert_backend": "kubernetes",
        "image_revert_hosts": ["one", "two"],
        "image_revert_labels": "app=web",
        "image_revert_namespaces": "shop,jobs",
        "image_revert_image": "hub:1",
        "image_revert_parallel": "5",
        "image_revert_context": None,
    }
    assert problems("image-revert", settings) == {}


def test_a_secret_of_another_type_is_not_shown() -> None:
    found = problems("db-restore", {"db_restore_s3": "kunci-rahasia", "db_restore_login_password": ["kunci"]})
    assert found["db_restore_s3"] == "found what is not shown: it may be a secret; expected a dictionary"
    assert found["db_restore_login_password"] == "found a list; expected a text"
