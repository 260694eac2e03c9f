"""What the maintenance page reads from configurations, and what it refuses, without a load balancer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from ansible_collections.balik.rollback.plugins.module_utils.errors import BalikError, Unreachable
from ansible_collections.balik.rollback.plugins.module_utils.traffic.door import Answer, Door
from ansible_collections.balik.rollback.plugins.module_utils.traffic.haproxy import HAProxy, parse_frontends
from ansible_collections.balik.rollback.plugins.module_utils.traffic.nginx import Nginx, parse_servers
from ansible_collections.balik.rollback.plugins.module_utils.traffic.page import (
    Page,
    check_bypass,
    check_folder,
    check_health,
)
from hypothesis import given
from hypothesis import strategies as st

SNIPPET = Path("/etc/nginx/maintenance/switch.conf")
PAGE = Page("<p>Tutup</p>", "Tutup", 600, ("/healthz",))


def dump(site: str, http: str = "") -> str:
    """What `nginx -T` prints for one site."""
    return f"""\
# configuration file /etc/nginx/nginx.conf:
events {{}}
http {{ {http} include /etc/nginx/sites-enabled/*; }}  # server {{ not one }}

# configuration file /etc/nginx/sites-enabled/hub:
{site}

# configuration file {SNIPPET}:
set $maintenance "";
"""


@pytest.mark.parametrize(
    ("site", "said"),
    [
        ("server { server_name hub.example; include maintenance/switch.conf; }", None),
        ("server { server_name hub.example; include /etc/nginx/maintenance/*.conf; return 301 /; }", None),
        ("server { server_name hub.example; }", "add `include /etc/nginx/maintenance/switch.conf;` as the first line"),
        ("server {\n server_name hub.example;\n return 301 /;\n include maintenance/*; }", "`return` in line 3"),
        ('server { server_name hub.example; set $a "; include maintenance/*; }"; }', "as the first line"),
        ("server { server_name hub.example; # include maintenance/*;\n }", "as the first line"),
        ("server { server_name hub.example; location / { include maintenance/*; } }", "as the first line"),
    ],
)
def test_a_server_block_has_the_switch_or_is_told(site: str, said: str | None) -> None:
    [server] = parse_servers(dump(site))
    assert server.names == ["hub.example"]
    problems = server.problems(SNIPPET)
    if said is None:
        assert problems == []
    else:
        [problem] = problems
        assert problem.startswith("server hub.example (/etc/nginx/sites-enabled/hub:1)") and said in problem


@pytest.mark.parametrize(
    ("http", "server", "cached"),
    [
        ("open_file_cache max=1000;", "", True),
        ("open_file_cache off;", "", False),
        ("open_file_cache max=1000;", "open_file_cache off;", False),
        ("", "open_file_cache max=10;", True),
    ],
)
def test_a_cache_of_open_files_would_hide_the_switch(http: str, server: str, cached: bool) -> None:
    [found] = parse_servers(dump(f"server {{ include maintenance/*; {server} }}", http))
    assert bool(found.problems(SNIPPET)) is cached


def test_servers_of_streams_are_none_of_ours() -> None:
    assert parse_servers("# configuration file /n.conf:\nstream { server { listen 53; } }\n") == []


@given(st.text(alphabet="server {};\"'#\\\n$ainclude/*", max_size=80))
def test_any_configuration_is_read_to_its_end(text: str) -> None:
    parse_servers(dump(text))


def test_frontends_are_found_with_their_own_lines() -> None:
    text = "global\n  a\nfrontend web\n  # no\n  bind   :80\nbackend web\n  server x\nlisten api\n\n  mode http\n"
    assert parse_frontends("h.cfg", text) == [
        ("web", ("h.cfg:3", ["bind :80"])),
        ("api", ("h.cfg:8", ["mode http"])),
    ]


def test_a_frontend_needs_all_lines_in_their_order(tmp_path: Path) -> None:
    config = tmp_path / "haproxy.cfg"
    balancer = HAProxy(str(tmp_path / "m"), config=[str(config)], frontends=["web"])
    lines = balancer.lines().splitlines()
    for found, complete in (
        ([*lines], True),
        (["bind :80", *lines[:2], "log global", *lines[2:]], True),
        (lines[:-1], False),
        ([lines[1], lines[0], *lines[2:]], False),
    ):
        config.write_text("frontend web\n" + "".join(f"    {line}\n" for line in found) + "frontend other\n")
        assert (balancer.missing() == []) is complete
    config.write_text("frontend other\n")
    assert balancer.missing() == ["no frontend is called web; found other"]


@pytest.mark.parametrize(
    ("check", "wrong", "said"),
    [
        (check_bypass, "short", "maintenance_page_bypass: found 5 characters; expected 16 or more"),
        (check_bypass, 'a-"quote"-in-a-secret', "maintenance_page_bypass: found 21 characters"),
        (check_health, "healthz", "maintenance_page_health: found 'healthz'; expected a path"),
        (check_health, "/a?b=c", "maintenance_page_health: found '/a?b=c'"),
        (check_folder, "etc", "maintenance_page_dir: found 'etc'; expected an absolute path"),
        (check_folder, "/a b", "maintenance_page_dir"),
    ],
)
def test_what_would_need_quoting_is_refused(check: Callable[[str], str], wrong: str, said: str) -> None:
    with pytest.raises(BalikError) as caught:
        check(wrong)
    assert str(caught.value).startswith(said)


def test_the_revision_changes_with_all_that_is_served_and_not_with_the_secret() -> None:
    changes = ({"html": "x"}, {"message": "x"}, {"retry_after": 1}, {"health": ()})
    assert len({PAGE.revision, *(replace(PAGE, **change).revision for change in changes)}) == 5
    one, other = (Nginx("/m").files(PAGE, secret) for secret in ("a" * 16, "b" * 16))
    assert [file.path for file, twin in zip(one, other) if file != twin] == [Path("/m/switch.conf")]
    assert [file.path for file in one if file.secret] == [Path("/m/switch.conf")]


class _Door(Door):
    """Answers from a list; the clock ticks a tenth of a second at each reading."""

    answers: list[Answer | Unreachable]

    def ask(self, headers: object = None, path: str = "") -> Answer:
        answer = self.answers.pop(0)
        if isinstance(answer, Unreachable):
            raise answer
        return answer


SERVED, PASSED = Answer(503, {"x-maintenance": "1"}, ""), Answer(200, {}, "")
SILENT = Unreachable("url", "refused")


@pytest.mark.parametrize(
    ("answers", "steady", "good", "left"),
    [
        ([PASSED, SILENT, SERVED], 0.0, True, 0),
        ([PASSED] * 20, 0.0, False, 9),
        ([SERVED, PASSED, SERVED, SERVED, SERVED, SERVED], 0.25, True, 0),
        ([SERVED, PASSED] * 10, 0.25, False, 9),
    ],
)
def test_waiting_has_a_limit_and_may_ask_for_steadiness(
    answers: list[Answer | Unreachable], steady: float, good: bool, left: int
) -> None:
    door = _Door("http://x/")
    object.__setattr__(door, "answers", list(answers))
    ticks = iter(n / 10 for n in range(100))
    last, was_good, _ = door.wait(
        lambda answer: answer.is_page, 1.05, steady=steady, clock=lambda: next(ticks), sleep=lambda _: None
    )
    assert was_good is good
    assert len(door.answers) == left
    assert last == answers[-1 - left]


@pytest.mark.parametrize("url", ["ftp://x/", "hub.example", "http://", "http://x:99999999/"])
def test_an_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(BalikError, match="maintenance_page_url: found"):
        Door(url).ask()
