"""A deleted run answers alike in every form: `RunDeletedError`, and never as if nothing were there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from forms import new_run

import inmem
from inmem.errors import RunDeletedError

CALLS: dict[str, Callable[[Any], object]] = {
    "kv.put": lambda run: run.kv.put("k", 1),
    "kv.delete": lambda run: run.kv.delete("k"),
    "kv.add": lambda run: run.kv.add("n"),
    "kv.merge": lambda run: run.kv.merge("m", {"a": 1}),
    "events.append": lambda run: run.events.append("t"),
    "cells.init": lambda run: run.cells.init("c", 1),
    "cells.set": lambda run: run.cells.set("c", 1),
    "cells.cas": lambda run: run.cells.cas("c", 1, 2),
    "cells.delete": lambda run: run.cells.delete("c"),
    "cells.transition": lambda run: run.cells.transition("c", lambda state: (1, None)),
    "traces.record": lambda run: run.traces.record(inmem.Thought("so")),
    "traces.record_child": lambda run: run.traces.record_child("root", inmem.Thought("so")),
    "runs.create_run": lambda run: run.runs.create_run(),
    "runs.add_tags": lambda run: run.runs.add_tags(["x"]),
    "runs.complete_run": lambda run: run.runs.complete_run(),
}


@pytest.fixture
def gone(shared_db: inmem.Database) -> str:
    """A run that had something of everything, and was deleted."""
    run_id = new_run()
    run = shared_db.run(run_id)
    run.runs.create_run()
    run.kv.put("k", 1)
    run.cells.init("c", 0)
    run.traces.record(inmem.Thought("so"), id="root")
    shared_db.runs.delete_run(run_id)
    return run_id


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("form", ["direct", "transaction", "after a look"])
def test_every_call_says_so(shared_db: inmem.Database, gone: str, form: str, call: str) -> None:
    with pytest.raises(RunDeletedError):
        if form == "direct":
            CALLS[call](shared_db.run(gone))
        else:
            with shared_db.transaction(gone) as txn:
                if form == "after a look":
                    assert txn.kv.get("k") is None and txn.cells.read("c") is None
                CALLS[call](txn)
