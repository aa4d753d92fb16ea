"""What the page may change, when it was started with `--write`: each is one call of the public API."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from inmem.cli.text import plain
from inmem.database import Database
from inmem.errors import InvalidInputError, VersionMismatchError
from inmem.jsonvalues import from_json
from inmem.keys import shorten
from inmem.scopes import Transaction


def _text(given: Mapping[str, Any], name: str) -> str:
    value = given.get(name)
    if not isinstance(value, str):
        raise InvalidInputError(f"{name} must be a text, not {shorten(value)}", argument=name)
    return value


def _scope(db: Database, given: Mapping[str, Any]) -> Any:
    run = _text(given, "run")
    return db.shared(run[1:]) if run.startswith("@") else db.run(run)


def _put(db: Database, given: Mapping[str, Any]) -> None:
    """Put a value, unless it has changed since the version that was seen. Its time to live stays."""
    scope, key, text = _scope(db, given), _text(given, "key"), _text(given, "value")
    seen = given.get("version")
    try:
        value = from_json(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"value must be JSON: {error}", argument="value") from None

    def put(txn: Transaction) -> None:
        found = txn.kv.get_versioned(key)
        if "version" in given and (found.version if found else None) != seen:
            problem = f"{plain(key)} has changed since it was read" if found else f"{plain(key)} is gone"
            raise VersionMismatchError(problem, expected=seen, actual=found.version if found else 0)
        txn.kv.put(key, value, ttl=txn.kv.ttl(key))

    scope.transact(put)


ACTIONS: Final[dict[str, Callable[[Database, Mapping[str, Any]], Any]]] = {
    "complete": lambda db, given: db.runs.complete_run(_text(given, "run")),
    "cancel": lambda db, given: db.runs.cancel_run(_text(given, "run")),
    "pause": lambda db, given: db.runs.pause_run(_text(given, "run")),
    "resume": lambda db, given: db.runs.resume_run(_text(given, "run")),
    "delete": lambda db, given: db.runs.delete_run(_text(given, "run")),
    "put": _put,
    "remove": lambda db, given: _scope(db, given).kv.delete(_text(given, "key")),
    "requeue": lambda db, given: _scope(db, given).queues.requeue(_text(given, "job")),
}


def change(db: Database, given: Any) -> None:
    """Do what the page asks for: `{"do": one of ACTIONS, "run": ..., ...}`.

    Raises:
        InvalidInputError: it asks for something else.
        InmemError: as the call says.
    """
    action = given.get("do") if isinstance(given, dict) else None
    if not isinstance(action, str) or action not in ACTIONS:
        known = ", ".join(ACTIONS)
        raise InvalidInputError(f"do must be one of {known}, not {shorten(action)}", argument="do")
    ACTIONS[action](db, given)
