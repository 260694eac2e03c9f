"""Prisma's URLs, as libpq takes them."""

from __future__ import annotations

import pytest
from ansible_collections.balik.rollback.plugins.module_utils.errors import BalikError
from ansible_collections.balik.rollback.plugins.module_utils.prisma.address import read


def test_a_whole_url_is_taken_apart() -> None:
    found = read(
        '"postgresql://us%40er:p%2Fw@db.example:6543/lawyers%20hub?schema=law&sslmode=require&sslcert=/ca.pem'
        '&sslaccept=strict&connection_limit=5&pool_timeout=2"'
    )
    assert found.schema == "law"
    assert found.keywords == {
        **{"host": "db.example", "port": "6543", "dbname": "lawyers hub", "user": "us@er", "password": "p/w"},
        **{"sslmode": "verify-full", "sslrootcert": "/ca.pem"},
    }
    assert found.where == "lawyers hub at db.example:6543"
    assert "p/w" not in repr(found)


def test_what_is_left_out_is_prismas_default() -> None:
    found = read("postgres://localhost/hub?host=/run/postgresql")
    assert (found.schema, found.keywords["port"], found.keywords["host"]) == ("public", "5432", "/run/postgresql")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("postgresql://u:geheim@h/db?pgbouncer=true", "goes through a pooler"),
        ("prisma+postgres://accelerate.example/?api_key=geheim", "Prisma's own proxy"),
        ("mysql://u:geheim@h/db", "begins with mysql://"),
        ("postgresql://u:geheim@h", "lacks host or database"),
        ("postgresql://u:ge[heim@h/db", "is no URL"),
        ("geheim", "begins with no scheme"),
        ("postgresql://u:geheim@h/db?sslidentity=x.p12", "has no meaning for libpq"),
    ],
)
def test_what_cannot_be_used_is_refused_without_being_shown(url: str, words: str) -> None:
    with pytest.raises(BalikError) as caught:
        read(url)
    assert words in str(caught.value)
    assert "heim" not in str(caught.value)
