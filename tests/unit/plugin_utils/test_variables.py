"""A play's variables: read with their places, and their secrets kept out of everything that is written or said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.parsing.vault import EncryptedString, VaultLib, VaultSecret, VaultSecretsContext
from ansible.template import Templar, trust_as_template
from ansible_collections.balik.rollback.plugins.plugin_utils.variables import HIDDEN, Variables, scrub
from hypothesis import given
from hypothesis import strategies as st

VAULT = VaultLib([("default", VaultSecret(b"the vault's own"))])


@pytest.fixture(scope="module", autouse=True)
def vault() -> None:
    """As ansible-playbook sets it up from --vault-password-file."""
    VaultSecretsContext.initialize(VaultSecretsContext(VAULT.secrets))


def of(variables: dict[str, Any]) -> Variables:
    return Variables(variables, Templar(DataLoader(), variables=variables))


def from_file(path: Path, text: str) -> Variables:
    """Variables with the places that a file gives them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return of(DataLoader().load_from_file(str(path), trusted_as_template=True))


# Reading


def test_a_variable_is_templated_to_its_leaves() -> None:
    variables = of({"a": {"b": [trust_as_template("{{ c }}1")]}, "c": "x"})
    assert variables.get("a") == {"b": ["x1"]}
    assert (variables.get("none"), variables.get("none", 5), "c" in variables) == (None, 5, True)


def test_what_cannot_be_templated_is_a_problem_with_its_key_path() -> None:
    variables = of({"a": {"b": [trust_as_template("{{ nowhere }}")]}})
    assert variables.get("a") == {"b": [None]}
    (problem,) = variables.problems
    assert problem.what == "a.b[0]"
    assert "nowhere" in problem.found


def test_names_by_their_beginning() -> None:
    variables = of({"rollback_a": 1, "rollback_step_x": 2, "other": 3})
    assert variables.starting_with("rollback_", ("rollback_step",)) == {"rollback_a": 1}


def test_a_place_is_file_and_line_of_the_key_or_of_the_nearest_above(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    variables = from_file(tmp_path / "plan.yml", "a:\n  b:\n    - c: 1\n    - d: text\n")
    variables.get("a")
    assert variables.place("a.b[1].d") == "plan.yml:4"
    assert variables.place("a.b[1].nothing") == "plan.yml:4"
    assert variables.place("a.nothing.at.all").startswith("plan.yml:")
    assert variables.place("other") == ""


# Which values are secrets


@pytest.mark.parametrize(
    "name",
    [
        *("db_password", "db_passwd", "SMTP_PASSWORD", "ansible_become_pass", "ansible_ssh_pass", "key_passphrase"),
        *("my_secret", "lawyers_hub_secret_x", "api_token", "bearer", "private_key", "api_key", "rollback_record_key"),
        *("database_dsn", "rollback_record_dsn", "aws_credentials"),
    ],
)
def test_by_name(name: str) -> None:
    assert of({name: "geheimnis"}).secrets() == {"geheimnis"}


@pytest.mark.parametrize("name", ["product", "keyboard", "monkey_name", "passenger_count", "path", "ansible_host"])
def test_other_names_are_none(name: str) -> None:
    assert of({name: "geheimnis"}).secrets() == set()


@pytest.mark.parametrize(
    "variables",
    [
        {"databases": [{"name": "one", "password": "geheimnis"}]},
        {"gateway": {"url": "http://x", "key": "geheimnis"}},
        {"db_secrets": {"one": "geheimnis"}},
        {"tokens": ["geheimnis"]},
        {"headers": {"Authorization": "geheimnis"}},
        {"db_secret": trust_as_template("{{ inner }}"), "inner": "geheimnis"},
        {"db_secret": trust_as_template("{{ {'a': inner} }}"), "inner": "geheimnis"},
    ],
)
def test_to_any_depth(variables: dict[str, Any]) -> None:
    assert of(variables).secrets() == {"geheimnis"}


def test_what_ansible_vault_encrypted_whatever_its_name() -> None:
    value = EncryptedString(ciphertext=VAULT.encrypt("geheimnis").decode())
    assert of({"colour": value, "deep": {"list": [value]}}).secrets() == {"geheimnis"}


@pytest.mark.parametrize("path", ["vault.yml", "vault-production.yml", "vault/app.yml"])
def test_what_stands_in_a_file_named_vault_whatever_its_name(tmp_path: Path, path: str) -> None:
    assert from_file(tmp_path / path, "colour: geheimnis\ndeep: {list: [verborgen]}\n").secrets() == {
        "geheimnis",
        "verborgen",
    }
    assert from_file(tmp_path / "plan.yml", "colour: geheimnis\n").secrets() == set()


def test_a_number_is_one_too() -> None:
    variables = of({"pin_secret": 12345678, "use_secret": True})
    assert variables.secrets() == {"12345678"}
    assert scrub({"a": 12345678, "b": "it is 12345678", "c": 9}, variables.secrets()) == {
        "a": HIDDEN,
        "b": f"it is {HIDDEN}",
        "c": 9,
    }


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://rina:geheimnis@db/balik",
        "host=db dbname=balik password=geheimnis",
        "host=db dbname=balik password='geheimnis'",
        "postgresql://db/balik?user=rina&password=geheimnis",
    ],
)
def test_the_password_in_a_dsn_is_one_of_its_own(dsn: str) -> None:
    secrets = of({"record_dsn": dsn}).secrets()
    assert secrets == {dsn, "geheimnis"}
    assert scrub("login failed with geheimnis", secrets) == f"login failed with {HIDDEN}"


def test_a_password_written_for_a_url_is_known_as_it_is_said_too() -> None:
    assert "p@ss/word" in of({"dsn": "postgresql://rina:p%40ss%2Fword@db/balik"}).secrets()


def test_a_key_of_many_lines_is_hidden_line_by_line() -> None:
    secrets = of({"private_key": "-----BEGIN-----\nabcdefgh\nijklmnop\n"}).secrets()
    assert "abcdefgh" not in scrub(r"cannot read -----BEGIN-----\nabcdefgh\nijklmnop\n", secrets)


def test_a_short_value_hides_nothing() -> None:
    assert of({"db_password": "app", "use_token": "yes"}).secrets() == set()


def test_a_secret_that_cannot_be_read_is_none() -> None:
    assert of({"db_password": trust_as_template("{{ nowhere }}"), "api_token": "geheimnis"}).secrets() == {"geheimnis"}


# Keeping them out


def test_nested_results_lose_their_secrets() -> None:
    result = {"msg": "got geheimnis", "list": ["a", ("geheimnis",), {"geheimnis": None}], "n": 1, "ok": True}
    assert scrub(result, {"geheimnis"}) == {
        "msg": f"got {HIDDEN}",
        "list": ["a", [HIDDEN], {HIDDEN: None}],
        "n": 1,
        "ok": True,
    }


def test_a_secret_that_holds_another_goes_wholly() -> None:
    assert scrub("x geheimnis-und-mehr y", {"geheimnis", "geheimnis-und-mehr"}) == f"x {HIDDEN} y"


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("'the key is geheim…'", f"'the key is {HIDDEN}…'"),
        ("said geheimnis-und-m…, then geheimni…", f"said {HIDDEN}…, then {HIDDEN}…"),
        ("said gehei…, geheimer…, and … at last", "said gehei…, geheimer…, and … at last"),
    ],
)
def test_a_text_that_was_cut_shows_no_beginning_of_a_secret(text: str, hidden: str) -> None:
    assert scrub(text, {"geheimnis", "geheimnis-und-mehr"}) == hidden


def test_a_secret_is_known_as_messages_quote_it_too() -> None:
    secrets = of({"db_password": "a\\b'c\"d"}).secrets()
    assert scrub("said " + repr("a\\b'c\"d"), secrets) == f"said '{HIDDEN}'"


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("at postgresql://rina:pw@db/x now", f"at postgresql://rina:{HIDDEN}@db/x now"),
        ("redis://:pw@cache:6379/0", f"redis://:{HIDDEN}@cache:6379/0"),
        ("https://rina:p@w@host/", f"https://rina:{HIDDEN}@host/"),
        ("https://host:8080/@rina", "https://host:8080/@rina"),
        ("http://host/?a=b:c@d", "http://host/?a=b:c@d"),
        ("host=db password=pw user=rina", f"host=db password={HIDDEN} user=rina"),
        ("no password given", "no password given"),
    ],
)
def test_passwords_in_urls_are_hidden_though_nobody_named_them(text: str, hidden: str) -> None:
    assert scrub(text, set()) == hidden


NESTED = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20) | st.just("xx geheimnis yy"),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.just("geheimnis"), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(NESTED)
def test_no_secret_is_left_in_whatever_shape(value: Any) -> None:
    assert "geheimnis" not in repr(scrub(value, {"geheimnis"}))
