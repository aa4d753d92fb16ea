"""One store in all its forms: each takes the same calls, so one suite judges them all.

A writer form turns `write(lambda kv: ...)` into stored data, a reader form
answers `read(lambda kv: ...)`; both hand over facades bound to one run.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import inmem

_numbers = itertools.count()


def new_run() -> str:
    """A run that no other test uses."""
    return f"contract-{next(_numbers)}"


class Bound:
    """A facade of the database or a pipeline, with the run id filled in."""

    def __init__(self, facade: Any, run_id: str) -> None:
        self._facade = facade
        self._run_id = run_id

    def __getattr__(self, name: str) -> Any:
        return functools.partial(getattr(self._facade, name), self._run_id)


class Form:
    """A way to read or write one run. `kind` is the facade: `kv` or `events`."""

    name = ""
    waits = False  # results of writes are known only after the commit

    def __init__(self, db: inmem.Database, run_id: str, kind: str) -> None:
        self.db = db
        self.run_id = run_id
        self.kind = kind

    def __call__(self, fn: Callable[[Any], Any]) -> Any:
        raise NotImplementedError


class FacadeForm(Form):
    name = "facade"

    def __call__(self, fn: Callable[[Any], Any]) -> Any:
        return fn(Bound(getattr(self.db, self.kind), self.run_id))


class ScopeForm(Form):
    name = "scope"

    def __call__(self, fn: Callable[[Any], Any]) -> Any:
        return fn(getattr(self.db.run(self.run_id), self.kind))


class TransactionForm(Form):
    name = "transaction"
    waits = True

    def __call__(self, fn: Callable[[Any], Any]) -> Any:
        with self.db.transaction(self.run_id) as txn:
            return fn(getattr(txn, self.kind))


class ElsewhereForm(Form):
    """A transaction that began in another run and came here with `at`."""

    name = "transaction.at"
    waits = True

    def __call__(self, fn: Callable[[Any], Any]) -> Any:
        with self.db.transaction("elsewhere") as txn:
            return fn(getattr(txn.at(self.run_id), self.kind))


class PipelineForm(Form):
    name = "pipeline"
    waits = True

    def __call__(self, fn: Callable[[Any], Any]) -> Any:
        with self.db.pipeline() as pipe:
            return fn(Bound(getattr(pipe, self.kind), self.run_id))


class SnapshotForm(Form):
    name = "snapshot"

    def __call__(self, fn: Callable[[Any], Any]) -> Any:
        with self.db.snapshot(self.run_id) as view:
            return fn(getattr(view, self.kind))


WRITERS = (FacadeForm, ScopeForm, TransactionForm, ElsewhereForm, PipelineForm)
READERS = (FacadeForm, ScopeForm, TransactionForm, ElsewhereForm, SnapshotForm)
WITHIN = "within"  # writes and reads in one transaction that is still open


class Pair:
    """One form to write through and one to read through."""

    def __init__(self, db: inmem.Database, writer: type[Form], reader: type[Form], kind: str) -> None:
        self.db = db
        self.run_id = new_run()
        self.write: Any = writer(db, self.run_id, kind)
        self.read: Any = reader(db, self.run_id, kind)

    def close(self) -> None:
        """Nothing to end."""


class Within:
    """Both in one transaction, which is committed at the end."""

    def __init__(self, db: inmem.Database, kind: str) -> None:
        self.db = db
        self.run_id = new_run()
        self._txn = db.transaction(self.run_id)
        self._kind = kind

    def write(self, fn: Callable[[Any], Any]) -> Any:
        return fn(getattr(self._txn, self._kind))

    read = write

    def close(self) -> None:
        self._txn.commit()


PAIRS = [(writer, reader) for writer in WRITERS for reader in READERS]
IDS = [f"{writer.name}-{reader.name}" for writer, reader in PAIRS] + [WITHIN]


def pair(db: inmem.Database, param: Any, kind: str) -> Any:
    """The store under test for one entry of `[*PAIRS, WITHIN]`."""
    return Within(db, kind) if param == WITHIN else Pair(db, *param, kind)
