"""What an error of the server's means: nothing was made, it is open, or it may pass; and ours for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import psycopg

from inmem.errors import (
    CorruptionError,
    DatabaseGoneError,
    InmemError,
    InvalidInputError,
    LimitError,
    PermissionDeniedError,
    StoreFullError,
    WriterUnavailableError,
)

# What libpq says without a state of SQL, where trying again is of no use: of the URL's words, else of rights.
_WRONG: Final = (
    "invalid integer value", "invalid sslmode value", "invalid target_session_attrs value",
    "invalid gssencmode value", "invalid channel_binding value", "invalid require_auth value",
    "invalid load_balance_hosts value", "invalid ssl_min_protocol_version value",
    "invalid ssl_max_protocol_version value", "invalid SSL protocol version range", "definition of service",
    "service file", "could not match", "does not support SSL", "certificate", "private key file",
)
_LASTING: Final = ("authentication failed", "no pg_hba.conf entry", "does not exist", "no password supplied")


class ForgottenError(Exception):
    """The server has no row of a session, or one of another number."""

    def __init__(self, last: int | None, database_id: bytes | None) -> None:
        super().__init__()
        self.last = last  # the number of the session's last commit; None: it has no row
        self.database_id = database_id  # of the store that is there


def is_lost(error: psycopg.Error, connection: psycopg.Connection[Any]) -> bool:
    """Whether an error says that the connection is gone, or the server is not to be written to now."""
    return is_gone(connection) or is_passing(error)


def is_gone(connection: psycopg.Connection[Any]) -> bool:
    """Whether it is lost: else the server has refused a statement, and what that was part of was not made."""
    return connection.closed or connection.broken


def is_passing(error: psycopg.Error) -> bool:
    """Whether it may be better in a moment: no server, no connection left, one that only reads, a timeout."""
    state = error.sqlstate
    if state is None:
        said = str(error)
        return isinstance(error, psycopg.OperationalError | psycopg.InterfaceError) and not any(
            part in said for part in (*_LASTING, *_WRONG)
        )
    return state[:2] in ("08", "57") or state in ("25006", "53200", "53300", "55P03", "25P03", "25P04")


# Errors of the server's as ours, by the beginning of their state; a longer one is looked for first.
_OURS: Final[dict[str, Callable[[str], InmemError]]] = {
    "28": lambda text: PermissionDeniedError(
        f"the server refused the connection: {text}", hint="Check user, password and database."
    ),
    "42501": lambda text: PermissionDeniedError(
        f"the server's user may not do this: {text}", hint="Who may create tables runs: inmem init -d URL"
    ),
    "3D": lambda text: InvalidInputError(f"the server has no such database: {text}", argument="path"),
    "3F": lambda text: DatabaseGoneError(f"the store's tables are not there any more: {text}"),
    "42P01": lambda text: DatabaseGoneError(f"the store's tables are not there any more: {text}"),
    "42703": lambda text: CorruptionError(f"the store's tables are not as they were made: {text}"),
    "42804": lambda text: CorruptionError(f"the store's tables are not as they were made: {text}"),
    "53100": lambda text: StoreFullError(
        f"the server's disk is full: {text}", hint="Make room on the server."
    ),
    "54": lambda text: LimitError(f"more than the server takes: {text}"),
    "XX001": lambda text: CorruptionError(f"the server found damaged data: {text}"),
    "XX002": lambda text: CorruptionError(f"the server found a damaged index: {text}"),
}


def as_ours(error: psycopg.Error) -> InmemError:
    """An error of the server's as one of ours, without what the connection string says."""
    # Of several hosts the last one; a line with a tab is advice.
    said = [line for line in str(error).splitlines() if line.strip() and not line.startswith("\t")]
    text = said[0 if error.sqlstate else -1].strip()[:300] if said else type(error).__name__
    state = error.sqlstate or ("28" if any(part in text for part in _LASTING) else "")
    if "invalid integer value" in text:  # what it shows is a part of the URL, and may be of a password
        return InvalidInputError("path is a URL with a number that libpq cannot read", argument="path")
    if not error.sqlstate and any(part in text for part in _WRONG):
        return InvalidInputError(f"path is a URL that cannot be used: {text}", argument="path")
    for part in (state, state[:2]):
        if part in _OURS:
            return _OURS[part](text)
    if is_passing(error):
        return WriterUnavailableError(f"the server cannot be used: {text}", hint="Is PostgreSQL running?")
    return InmemError(f"the server refused a statement: {text}")
