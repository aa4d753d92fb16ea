"""What the tests of the invariants share: rows, threads, and a run with something of each primitive."""

from __future__ import annotations

from typing import Any

import inmem
from inmem import Custom
from inmem.keys import MAX_KEY_BYTES


def rows(db: inmem.Database) -> dict[bytes, bytes]:
    """All stored records of a database's namespace, raw."""
    found = db.engine.latest().scan(b"\0", b"\xff" * MAX_KEY_BYTES)
    return {bytes(key): bytes(record) for key, record in found if key.startswith(db.namespace.prefix())}


def fill(db: inmem.Database, run_id: str, name: str = "same") -> None:
    """One name in all five primitives."""
    db.runs.create_run(run_id=run_id, tags=[name], metadata={name: 1})
    db.kv.put(run_id, name, "kv")
    db.events.append(run_id, name, "event")
    db.cells.init(run_id, name, "cell")
    db.traces.record(run_id, Custom(name, "trace"), id=name, tags=[name])


def contents(db: inmem.Database, run_id: str) -> list[Any]:
    """What each of the five primitives says of a run."""
    with db.snapshot(run_id) as view:
        return [
            view.kv.list_with_values(), view.events.read_range(0),
            [(name, view.cells.read(name)) for name in view.cells.list()],
            view.traces.list(), view.runs.get_run(),
        ]


class Stop(Exception):
    pass
