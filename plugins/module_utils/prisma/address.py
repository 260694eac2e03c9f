"""The database's URL as Prisma writes it, turned into what libpq takes. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote, urlsplit

from ..errors import BalikError

#: Prisma's parameter → libpq's, where they mean the same.
_SAME = {
    "host": "host",
    "sslmode": "sslmode",
    "sslcert": "sslrootcert",  # Prisma's word for the server's certificate authority
    "channel_binding": "channel_binding",
}
#: Of Prisma's own pool and cache: no matter to one connection.
_OF_PRISMA = (
    *("connection_limit", "pool_timeout", "socket_timeout", "statement_cache_size", "connect_timeout"),
    *("application_name", "max_connection_lifetime", "max_idle_connection_lifetime", "single_use_connections"),
)


@dataclass(frozen=True)
class Address:
    """libpq's keywords, and the schema in which ``_prisma_migrations`` stands."""

    keywords: Mapping[str, str] = field(repr=False)
    schema: str

    @property
    def where(self) -> str:
        """``lawyers_hub at db.example:5432``, without any secret."""
        return f"{self.keywords['dbname']} at {self.keywords['host']}:{self.keywords['port']}"


def read(url: str, what: str = "prisma_down_url") -> Address:
    """What a ``DATABASE_URL`` of Prisma means; messages never show the URL, which holds a password.

    :param what: the setting that holds it.

    :raises BalikError: another database's URL, a pooler's, or a parameter that libpq does not have.
    """
    try:
        parts = urlsplit(url.strip().strip("\"'"))
        host, port = parts.hostname, parts.port
    except ValueError:
        raise BalikError(
            what, "is no URL (it is not shown)", "postgresql://user:password@host:5432/database?schema=public"
        ) from None
    if parts.scheme in ("prisma", "prisma+postgres"):
        raise BalikError(
            what, f"is a URL {parts.scheme}://, of Prisma's own proxy", "a direct connection to PostgreSQL"
        )
    database = unquote(parts.path.lstrip("/"))
    if parts.scheme not in ("postgresql", "postgres") or not host or not database:
        raise BalikError(
            what,
            f"begins with {parts.scheme or 'no scheme'}:// or lacks host or database (it is not shown)",
            "postgresql://user:password@host:5432/database?schema=public",
        )
    given = dict(parse_qsl(parts.query, keep_blank_values=True))
    if given.pop("pgbouncer", "false").lower() == "true":
        raise BalikError(
            what,
            "goes through a pooler (pgbouncer=true), where a session's locks belong to whoever comes next",
            "a direct connection",
            "Name the server itself, as in Prisma's directUrl.",
        )
    keywords = {"host": host, "port": str(port or 5432), "dbname": database}
    if parts.username:
        keywords["user"] = unquote(parts.username)
    if parts.password:
        keywords["password"] = unquote(parts.password)
    schema = given.pop("schema", "") or "public"
    strict = given.pop("sslaccept", "") == "strict"
    for name, value in given.items():
        if name in _SAME:
            keywords[_SAME[name]] = value
        elif name == "options":
            keywords["options"] = value
        elif name not in _OF_PRISMA:
            raise BalikError(
                f"{what}: ?{name}=", "has no meaning for libpq", f"one of: schema, sslaccept, {', '.join(_SAME)}"
            )
    if strict:
        keywords["sslmode"] = "verify-full"
    return Address(keywords, schema)
