"""The arguments by which a module reaches a server; plugins/doc_fragments/postgresql.py documents them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .access import Access

CONNECTION: dict[str, Any] = {
    "login_host": {"type": "str", "default": ""},
    "login_port": {"type": "int", "default": 0},
    "login_user": {"type": "str", "default": ""},
    "login_password": {"type": "str", "default": "", "no_log": True},
    "ssl_mode": {"type": "str", "default": ""},
    "ca_cert": {"type": "str", "default": ""},
    "maintenance_database": {"type": "str", "default": "postgres"},
    "bin_dir": {"type": "str", "default": ""},
}


def access_of(options: Mapping[str, Any], application: str) -> Access:
    """The server that these arguments mean.

    :param application: by which the server's own views name our sessions.
    """
    return Access(
        options["login_host"],
        options["login_port"],
        options["login_user"],
        options["login_password"],
        options["ssl_mode"],
        options["ca_cert"],
        application=application,
    )
