"""Values and runs, as arguments of commands that write."""

from __future__ import annotations

import json
import sys
from typing import Any

from inmem.database import Database
from inmem.errors import InvalidInputError
from inmem.jsonvalues import from_json
from inmem.scopes import RunScope


def scope_of(database: Database, run: str) -> RunScope:
    """A run, or what runs share."""
    return database.shared(run[1:]) if run.startswith("@") else database.run(run)


def value_of(argument: str, name: str, *, is_text: bool = False) -> Any:
    """What an argument says, in JSON or as a text; - is what standard input says.

    Raises:
        InvalidInputError: it is no JSON.
    """
    said = sys.stdin.read() if argument == "-" else argument
    return said if is_text else _parsed(said, name)


def _parsed(text: str, name: str) -> Any:
    def refused(constant: str) -> Any:
        raise ValueError(f"{constant} is no JSON")

    try:
        return from_json(json.loads(text, parse_constant=refused))
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(
            f"{name.upper()} is no JSON: {error}", argument=name,
            hint="A text needs quotes of its own, or --text.",
        ) from None
