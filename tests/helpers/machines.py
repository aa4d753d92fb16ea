"""What the state machines of the primitives share: a transaction that may be open, and two models.

`stored` is what is committed, `inside` what the open transaction must see;
without one they are the same object.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

import inmem

opened: list[inmem.Database] = []  # by the fixture of the module that runs
numbers = itertools.count()


@pytest.fixture(scope="module", autouse=True)
def database() -> Iterator[None]:
    """A store for the machines of a module, which imports this."""
    with inmem.open() as db:
        opened[:] = [db]
        yield
        opened.clear()


class TransactionalMachine(RuleBasedStateMachine):
    """One run per example; every rule works inside and outside of a transaction."""

    def new_model(self) -> Any:
        raise NotImplementedError

    def committed(self) -> None:
        """What only the commit could know is known now."""

    def dropped(self) -> None:
        """The transaction has ended without a commit."""

    @initialize()
    def begin(self) -> None:
        self.db = opened[0]
        self.run = f"run-{next(numbers)}"
        self.scope = self.db.run(self.run)
        self.stored = self.new_model()
        self.inside = self.stored
        self.txn: inmem.Transaction | None = None

    def teardown(self) -> None:
        if getattr(self, "txn", None) is not None:
            assert self.txn is not None
            self.txn.abort()

    @property
    def begun(self) -> bool:
        return hasattr(self, "stored")

    @precondition(lambda self: self.txn is None)
    @rule()
    def open_transaction(self) -> None:
        self.txn = self.scope.transaction()
        self.inside = self.stored.copy()

    # One rule for all ends, so that transactions live long enough to read what they wrote.
    @precondition(lambda self: self.txn is not None)
    @rule(how=st.sampled_from(["commit", "commit", "commit", "abort", "conflict"]))
    def end(self, how: str) -> None:
        assert self.txn is not None
        if how == "commit":
            self.txn.commit()
            self.txn, self.stored = None, self.inside
            self.committed()
            return
        if how == "abort":
            self.txn.abort()
        else:  # somebody else changes what this transaction reads: it must leave nothing
            self.txn.kv.get("contended")
            self.txn.kv.put("lost", 1)
            self.scope.kv.put("contended", 1)
            with pytest.raises(inmem.ConflictError):
                self.txn.commit()
            assert not self.scope.kv.exists("lost")
        self.txn, self.inside = None, self.stored
        self.dropped()
