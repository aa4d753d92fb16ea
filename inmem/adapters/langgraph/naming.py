"""Which run a thread has: functions of a transaction in what all runs of the agent share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import inmem
from inmem.adapters.langgraph.layout import thread_key


def run_of(thread_id: str) -> Callable[[Any], str]:
    """The run of a thread, created if need be."""

    def run_of(txn: Any) -> str:
        run_id = _living(txn, thread_id)
        return _name(txn, thread_id, str(inmem.RunId.new())) if run_id is None else run_id

    return run_of


def name_copy(thread_id: str, run_id: str) -> Callable[[Any], None]:
    """A copied thread becomes visible, unless it was there before and got the copies itself."""

    def name(txn: Any) -> None:
        if _living(txn, thread_id) is None and txn.at(run_id).kv.count("n/"):
            _name(txn, thread_id, run_id)

    return name


def named_run(thread_id: str) -> Callable[[Any], str | None]:
    """The run that a thread has."""

    def named_run(txn: Any) -> str | None:
        named = txn.kv.get(thread_key(thread_id))
        return None if named is None else named["run_id"]

    return named_run


def forget(thread_id: str, run_id: str) -> Callable[[Any], None]:
    """A thread is gone whose run was deleted, unless it has another one already."""

    def forget(txn: Any) -> None:
        if named_run(thread_id)(txn) == run_id:
            txn.kv.discard(thread_key(thread_id))

    return forget


def _living(txn: Any, thread_id: str) -> str | None:
    """The run of a thread, if it was not deleted: whoever did that may have died before he could say so."""
    run_id = named_run(thread_id)(txn)
    return None if run_id is None or txn.at(run_id).runs.get_run() is None else run_id


def _name(txn: Any, thread_id: str, run_id: str) -> str:
    txn.kv.put(thread_key(thread_id), {"thread_id": thread_id, "run_id": run_id})
    txn.at(run_id).runs.create_run(tags=["langgraph"], metadata={"thread_id": thread_id})
    return run_id
