"""Which engine serves what `inmem.open` is given: a path is of this machine, a URL names another engine."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from inmem.engines.base import Engine
from inmem.engines.local import open_local
from inmem.errors import InvalidInputError

_POSTGRES: Final = re.compile(r"postgres(?:ql)?://")


def is_url(path: object) -> bool:
    """Whether this is the URL of a store on a server."""
    return isinstance(path, str) and _POSTGRES.match(path) is not None


@contextmanager
def needing_psycopg() -> Iterator[None]:
    """For imports of what serves URLs.

    Raises:
        InvalidInputError: psycopg is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "psycopg":
            raise
        raise InvalidInputError(
            "path is a URL of PostgreSQL, and psycopg is not installed", argument="path",
            hint="pip install 'inmem[postgres]'",
        ) from None


def open_engine(
    path: str | os.PathLike[str] | None, *, config: Any, arguments: Mapping[str, Any], autostart: bool,
    create: bool, known: bytes | None, default: Callable[[Any], Any] | None,
) -> Engine:
    """The engine for a path or a URL. Raises as `inmem.open` does."""
    if not is_url(path):
        return open_local(
            path, config=config, arguments=arguments, autostart=autostart, create=create, known=known,
            default=default,
        )
    with needing_psycopg():
        from inmem.engines.postgres.opening import open_postgres
    assert isinstance(path, str)
    return open_postgres(
        path, config=config, arguments=arguments, create=create, known=known, default=default
    )
