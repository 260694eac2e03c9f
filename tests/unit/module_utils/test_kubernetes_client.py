"""Which cluster, and with which credentials; no cluster answers here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.balik.rollback.plugins.module_utils.errors import BalikError, Unreachable
from ansible_collections.balik.rollback.plugins.module_utils.kubernetes.client import Cluster, check_terms

from tests.servers.loopback import free_port


def kubeconfig(tmp_path: Path, user: dict[str, Any]) -> str:
    """A file whose cluster nobody serves."""
    file = tmp_path / "kubeconfig"
    named = {
        "clusters": [{"name": "prod", "cluster": {"server": f"http://127.0.0.1:{free_port()}"}}],
        "users": [{"name": "prod", "user": user}],
        "contexts": [{"name": "prod", "context": {"cluster": "prod", "user": "prod"}}],
    }
    file.write_text(yaml.safe_dump({"apiVersion": "v1", "kind": "Config", "current-context": "prod", **named}))
    return str(file)


@pytest.mark.parametrize(
    ("token", "holds"),
    [
        ("s3cret\n", "a line break"),
        ("s3\r\ncret", "a line break"),
        ("s3cret\N{EM DASH}", "a character outside printable ASCII"),
        ("s3cret\N{LATIN SMALL LETTER E WITH ACUTE}", "a character outside printable ASCII"),
        ("s3\tcret", "a character outside printable ASCII"),
    ],
)
def test_a_token_that_no_header_may_hold_is_refused_and_not_quoted(tmp_path: Path, token: str, holds: str) -> None:
    file = kubeconfig(tmp_path, {"token": token})
    with pytest.raises(BalikError) as caught:
        Cluster.connect(file).get("/version")
    said = str(caught.value)
    assert "The token for context prod" in said
    assert f"kubeconfig {file}" in said
    assert f"holds {holds}" in said
    assert "cret" not in said
    assert caught.value.__context__ is None


def test_so_is_one_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("K8S_AUTH_HOST", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("K8S_AUTH_API_KEY", "s3cret\n")
    monkeypatch.delenv("K8S_AUTH_KUBECONFIG", raising=False)
    monkeypatch.delenv("K8S_AUTH_CONTEXT", raising=False)
    with pytest.raises(BalikError, match=r"\(K8S_AUTH_API_KEY\): holds a line break") as caught:
        Cluster.connect().get("/version")
    assert "s3cret" not in str(caught.value)


def test_a_token_that_a_header_may_hold_is_sent(tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match="does not answer"):
        Cluster.connect(kubeconfig(tmp_path, {"token": "s3cret"})).get("/version")


@pytest.mark.parametrize(
    ("program", "found"),
    [
        ("no-such-login", "no-such-login is not installed here"),
        ("/no/such-login", "such-login gave no credentials"),
        ("false", "false gave no credentials"),
    ],
)
def test_a_login_program_that_gives_nothing_is_named(tmp_path: Path, program: str, found: str) -> None:
    login = {"apiVersion": "client.authentication.k8s.io/v1", "command": program, "interactiveMode": "Never"}
    with pytest.raises(BalikError, match=rf"context prod: its login program .*{found}\. Install"):
        Cluster.connect(kubeconfig(tmp_path, {"exec": login}))


def test_one_that_gives_a_token_is_taken(tmp_path: Path) -> None:
    api = "client.authentication.k8s.io/v1"
    answer = f'{{"apiVersion": "{api}", "kind": "ExecCredential", "status": {{"token": "s3cret"}}}}'
    login = {"apiVersion": api, "command": "echo", "args": [answer], "interactiveMode": "Never"}
    with pytest.raises(Unreachable, match="does not answer"):
        Cluster.connect(kubeconfig(tmp_path, {"exec": login})).get("/version")


@pytest.mark.parametrize("term", ["app", f"app={'v' * 63}", f"{'p' * 253}/{'n' * 63}", "a.example/part-of=Hub_2.0"])
def test_a_term_that_may_be_a_label(term: str) -> None:
    check_terms([term], "image_revert_labels")


@pytest.mark.parametrize(
    "term", [f"app={'v' * 64}", "n" * 64, f"{'p' * 254}/app", "app=-x", "app=x-", "App/x", f"app={'v' * 5000}"]
)
def test_a_term_that_cannot_is_named_and_why(term: str) -> None:
    with pytest.raises(
        BalikError, match=r"image_revert_labels: '.*' can be no label .*; expected at most 63"
    ) as caught:
        check_terms(["app", term], "image_revert_labels")
    assert len(str(caught.value)) < 500
