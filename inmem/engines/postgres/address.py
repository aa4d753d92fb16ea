"""The address of a store on a server: `postgresql://…` as libpq takes it, with two words more.

`schema=NAME` among the words after `?` names the schema that the store's tables
are in, `inmem` by default; `connections=N` says how many connections the threads
of a process use at once, and the coroutines of each loop, 16 by default. All
else is libpq's: several hosts, `sslmode`, `passfile`, `service`,
`target_session_attrs` and the rest.
"""

from __future__ import annotations

import os
import re
import socket
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

import psycopg.conninfo

from inmem.errors import InvalidInputError

SCHEMA: Final = "inmem"
_HOST: Final = socket.gethostname()
_NAME: Final = re.compile(r"[a-z_][a-z0-9_]{0,62}")
_PLACE: Final = re.compile(r"(?:\[[^]]*\]|[^:]*)(?::[0-9]*)?")  # a host, and a port
_SECRET: Final = frozenset({"password", "sslpassword", "passfile", "sslkey"})  # also paths of secrets


@dataclass(frozen=True, slots=True)
class Address:
    """Where a store is. `shown` and `repr` have no secret; `conninfo` may have one."""

    conninfo: str = field(repr=False)
    schema: str
    shown: str
    """The URL without passwords: what is printed, logged and pickled."""
    connections: int = 0  # at once, by the threads of a process and by the coroutines of a loop; 0: not said

    @property
    def programs(self) -> str:
        """How the names begin that the server shows of a store's programs, unless these name themselves."""
        return f"inmem {self.schema[:24]} "

    def program(self) -> str:
        """The name of this one."""
        return f"{self.programs}{os.getpid()}@{_HOST}"


def parse(url: str) -> Address:
    """Take a URL apart.

    Raises:
        InvalidInputError: libpq would not take it, or the schema's name is none. Its message has no
            part of the URL.
    """
    try:
        parts = urlsplit(url)
        words = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:
        raise _refused("it is no URL") from None
    user, at, hosts = parts.netloc.rpartition("@")
    # libpq would take a part of a password for a host, and show it.
    if "@" in user + parts.path or parts.fragment or not all(map(_PLACE.fullmatch, hosts.split(","))):
        raise _refused("user or password has special characters, or a port is no number")
    schema = dict(words).get("schema", SCHEMA)
    if _NAME.fullmatch(schema) is None or schema.startswith("pg_"):
        raise _refused(f"schema is {schema!r}: 1-63 of a-z, 0-9 and _, not a digit first, nor pg_")
    connections = dict(words).get("connections", "0")
    if re.fullmatch("[0-9]{1,4}", connections) is None:
        raise _refused("connections is not a number of 1-9999")
    # As libpq decodes them: it knows %20, and no +.
    words = [(name, value) for name, value in words if name not in ("schema", "connections")]
    conninfo = _url(parts.netloc, parts.path, words)
    try:
        known: dict[str, Any] = psycopg.conninfo.conninfo_to_dict(conninfo)
    except psycopg.Error as error:
        raise _refused(_without(str(error), url)) from None
    shown_words = [(name, value) for name, value in words if name not in _SECRET]
    if schema != SCHEMA:
        shown_words.append(("schema", schema))
    if int(connections):
        shown_words.append(("connections", connections))
    place = user.partition(":")[0] + at + hosts
    shown = _url(place, parts.path, shown_words)
    return Address(psycopg.conninfo.make_conninfo(**known), schema, shown, int(connections))


def _url(place: str, path: str, words: list[tuple[str, str]]) -> str:
    """A URL as libpq takes it: without a host too its slashes are there, which `urlunsplit` leaves out."""
    query = urlencode(words, quote_via=quote)
    return f"postgresql://{place}{path}{'?' if query else ''}{query}"


def _without(text: str, url: str) -> str:
    """What libpq says is wrong, unless that shows a part of the URL."""
    said = text.strip().splitlines()[0] if text.strip() else ""
    return said if '"' not in said else "libpq cannot read it"


def _refused(problem: str) -> InvalidInputError:
    return InvalidInputError(
        f"path is a URL of PostgreSQL that cannot be used: {problem}", argument="path",
        hint="postgresql://user@host:5432/database?schema=inmem; special characters as %XX.",
    )
