"""Runs through the public API against a dictionary: life, queries, deletion."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule
from machines import TransactionalMachine, database, numbers, opened  # noqa: F401

import inmem
from inmem import RunStatus

IDS = ["a", "ab", "a.b", "b"]
ids = st.sampled_from(IDS)
TAGS = ["x", "xy", "y"]
tags = st.lists(st.sampled_from(TAGS), max_size=3)
limits = st.none() | st.integers(0, 3)
statuses = st.sampled_from(RunStatus)
metadata = st.dictionaries(st.sampled_from("kl"), st.integers(0, 3) | st.just([None]), max_size=2)
METHODS = {
    "complete_run": RunStatus.COMPLETED, "cancel_run": RunStatus.CANCELLED, "pause_run": RunStatus.PAUSED,
    "resume_run": RunStatus.ACTIVE, "archive_run": RunStatus.ARCHIVED,
}


@dataclass(frozen=True)
class Known:
    parent: str | None
    status: RunStatus
    tags: tuple[str, ...]
    metadata: dict[str, Any]
    error: str | None
    version: int
    created_at: int
    ended: bool = False


def known(run: inmem.RunMetadata) -> Known:
    assert run.updated_at >= run.created_at
    assert run.completed_at is None or run.completed_at >= run.created_at
    return Known(
        run.parent_run, run.status, run.tags, run.metadata, run.error, run.version, run.created_at,
        run.completed_at is not None,
    )


class Runs:
    def __init__(self) -> None:
        self.runs: dict[str, Known] = {}
        self.deleted: set[str] = set()
        self.entries: dict[str, int] = {}  # of KV, per run

    def copy(self) -> Runs:
        other = Runs()
        other.runs, other.deleted, other.entries = dict(self.runs), set(self.deleted), dict(self.entries)
        return other

    def find(self, wanted: Any) -> list[str]:
        return [n for _, n in sorted((k.created_at, n) for n, k in self.runs.items() if wanted(k))]


class RunMachine(TransactionalMachine):
    """A namespace of its own for each example: queries see all runs of one."""

    def new_model(self) -> Runs:
        return Runs()

    @initialize()
    def begin(self) -> None:
        super().begin()
        self.db = inmem.open(opened[0].path, agent=f"agent-{next(numbers)}")
        self.scope = self.db.run("base")

    def teardown(self) -> None:
        super().teardown()
        if self.begun:
            self.db.close()

    def committed(self) -> None:
        """The time of creation is that of the commit."""
        for name, some in self.stored.runs.items():
            found = self.db.runs.get_run(name)
            assert found is not None
            self.stored.runs[name] = replace(some, created_at=found.created_at)

    def of(self, run_id: str) -> Any:
        return self.db.run(run_id).runs if self.txn is None else self.txn.at(run_id).runs

    @property
    def any(self) -> Any:
        return self.db.runs if self.txn is None else self.txn.runs

    @rule(run_id=ids, parent=st.none() | ids, some_tags=tags, some=st.none() | metadata)
    def create(self, run_id: str, parent: str | None, some_tags: list[str], some: Any) -> None:
        def call() -> inmem.RunMetadata:
            found: inmem.RunMetadata = self.of(run_id).create_run(
                parent_run=parent, tags=some_tags, metadata=some
            )
            return found

        if run_id == parent:
            expected: type[inmem.InmemError] | None = inmem.InvalidRunIdError
        elif run_id in self.inside.deleted:
            if self.txn is not None:
                return  # only the commit can know
            expected = inmem.RunDeletedError
        elif run_id in self.inside.runs:
            expected = inmem.RunExistsError
        elif parent is not None and parent not in self.inside.runs:
            expected = inmem.RunNotFoundError
        else:
            run = call()
            new = Known(parent, RunStatus.ACTIVE, tuple(dict.fromkeys(some_tags)), some or {}, None, 1,
                        run.created_at)
            assert known(run) == new
            self.inside.runs[run_id] = new
            return
        with pytest.raises(expected):
            call()

    def change(self, run_id: str, call: Any, status: RunStatus | None = None, error: str | None = None,
               some_tags: list[str] | None = None, some: dict[str, Any] | None = None) -> None:
        if run_id in self.inside.deleted:
            with pytest.raises(inmem.RunDeletedError):
                call()
            return
        old = self.inside.runs.get(run_id)
        if old is None:
            with pytest.raises(inmem.RunNotFoundError):
                call()
            return
        if status is not None and not inmem.is_valid_transition(old.status, status):
            with pytest.raises(inmem.InvalidTransitionError) as caught:
                call()
            assert (caught.value.from_status, caught.value.to_status) == (old.status, status)
            return
        ended = status in (RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.CANCELLED)
        new = replace(
            old, status=status or old.status, error=old.error if error is None else error,
            tags=tuple(dict.fromkeys((*old.tags, *(some_tags or ())))), metadata=old.metadata | (some or {}),
            version=old.version + 1, ended=old.ended or ended,
        )
        found = known(call())
        assert found == new
        self.inside.runs[run_id] = new

    @rule(run_id=ids, status=statuses, error=st.none() | st.just("why"))
    def update_status(self, run_id: str, status: RunStatus, error: str | None) -> None:
        self.change(run_id, lambda: self.of(run_id).update_status(status, error=error), status, error)

    @rule(run_id=ids, method=st.sampled_from(sorted(METHODS)))
    def named(self, run_id: str, method: str) -> None:
        self.change(run_id, lambda: getattr(self.of(run_id), method)(), METHODS[method])

    @rule(run_id=ids)
    def fail(self, run_id: str) -> None:
        self.change(run_id, lambda: self.of(run_id).fail_run("broke"), RunStatus.FAILED, "broke")

    @rule(run_id=ids, some_tags=tags)
    def add_tags(self, run_id: str, some_tags: list[str]) -> None:
        self.change(run_id, lambda: self.of(run_id).add_tags(some_tags), some_tags=some_tags)

    @rule(run_id=ids, some=metadata)
    def update_metadata(self, run_id: str, some: dict[str, Any]) -> None:
        self.change(run_id, lambda: self.of(run_id).update_metadata(some), some=some)

    @rule(run_id=ids)
    def store_something(self, run_id: str) -> None:
        if run_id in self.inside.deleted:
            if self.txn is None:
                with pytest.raises(inmem.RunDeletedError):
                    self.db.kv.put(run_id, "k", 1)
            return
        count = self.inside.entries.get(run_id, 0)
        scope = self.db.run(run_id) if self.txn is None else self.txn.at(run_id)
        scope.kv.put(f"k{count}", 1)
        self.inside.entries[run_id] = count + 1

    @rule(run_id=ids)
    def delete(self, run_id: str) -> None:
        if self.txn is not None:
            with pytest.raises(inmem.InvariantError, match="transaction"):
                self.of(run_id).delete_run()
        elif run_id in self.stored.deleted:
            with pytest.raises(inmem.RunDeletedError):
                self.db.runs.delete_run(run_id)
        elif run_id not in self.stored.runs and run_id not in self.stored.entries:
            with pytest.raises(inmem.RunNotFoundError):
                self.db.runs.delete_run(run_id)
        else:
            deleted = self.db.runs.delete_run(run_id)
            had_record = self.stored.runs.pop(run_id, None) is not None
            entries = self.stored.entries.pop(run_id, 0)
            assert deleted == inmem.DeletedRun(run_id, entries, 0, 0, 0, had_record)
            assert self.db.kv.count(run_id) == 0
            self.stored.deleted.add(run_id)

    @precondition(lambda self: self.txn is None and self.stored.deleted)
    @rule(data=st.data(), how=st.sampled_from(["create", "put"]))
    def late(self, data: Any, how: str) -> None:
        """A transaction that writes into a deleted run stores nothing, elsewhere neither."""
        run_id = data.draw(st.sampled_from(sorted(self.stored.deleted)))
        txn = self.db.transaction("elsewhere")
        txn.kv.put("k", 1)
        with pytest.raises(inmem.RunDeletedError):
            if how == "create":  # it looks, and is told at once
                txn.at(run_id).runs.create_run()
            else:
                txn.at(run_id).kv.put("k", 1)
                txn.commit()
        txn.abort()
        assert not self.db.kv.exists("elsewhere", "k")

    @rule(status=st.none() | statuses, some_tags=st.just([]) | tags, parent=st.none() | ids, limit=limits,
          archived=st.booleans(), reverse=st.booleans(), pivot=st.none() | ids, as_object=st.booleans())
    def query(self, status: RunStatus | None, some_tags: list[str], parent: str | None, limit: int | None,
              archived: bool, reverse: bool, pivot: str | None, as_object: bool) -> None:
        times = [self.inside.runs[pivot].created_at] if pivot in self.inside.runs else []
        after = times[0] if times and limit != 1 else None
        before = times[0] if times and limit == 1 else None

        def wanted(some: Known) -> bool:
            return (
                (some.status == status if status else archived or some.status is not RunStatus.ARCHIVED)
                and set(some_tags) <= set(some.tags) and parent in (None, some.parent)
                and (after is None or some.created_at >= after)
                and (before is None or some.created_at < before)
            )

        expected = self.inside.find(wanted)
        expected = (expected[::-1] if reverse else expected)[:limit]
        conditions: dict[str, Any] = {
            "status": status, "tags": some_tags, "parent_run": parent, "limit": limit, "reverse": reverse,
            "include_archived": archived, "created_after": after, "created_before": before,
        }
        if as_object:
            found = self.any.query_runs(inmem.RunQuery(**conditions))
        else:
            found = self.any.query_runs(**conditions)
        assert [run.run_id for run in found] == expected
        assert [known(run) for run in found] == [self.inside.runs[name] for name in expected]

    @rule(run_id=ids, limit=limits, reverse=st.booleans(), archived=st.booleans())
    def listings(self, run_id: str, limit: int | None, reverse: bool, archived: bool) -> None:
        found = self.of(run_id).get_run()
        assert (None if found is None else known(found)) == self.inside.runs.get(run_id)
        expected = sorted(
            (n for n, k in self.inside.runs.items() if archived or k.status is not RunStatus.ARCHIVED),
            reverse=reverse,
        )
        options: dict[str, Any] = {"limit": limit, "reverse": reverse}
        assert self.any.list_runs(include_archived=archived, **options) == expected[:limit]
        children = self.inside.find(lambda some: some.parent == run_id)
        children = (children[::-1] if reverse else children)[:limit]
        assert [run.run_id for run in self.of(run_id).get_child_runs(**options)] == children

    @rule()
    def stats(self) -> None:
        found = self.any.get_stats()
        assert found.total == len(self.inside.runs)
        assert found.by_status == {
            status: sum(k.status is status for k in self.inside.runs.values()) for status in RunStatus
        }

    @invariant()
    def others_see_what_is_stored(self) -> None:
        if not self.begun:
            return
        with self.db.snapshot("base") as view:
            found = {run.run_id: known(run) for run in view.runs.query_runs(include_archived=True)}
            assert found == self.stored.runs
            assert view.runs.list_runs(include_archived=True) == sorted(self.stored.runs)
            for run_id, count in self.stored.entries.items():
                assert view.at(run_id).kv.count() == count


TestRunMachine = RunMachine.TestCase
TestRunMachine.settings = settings(max_examples=150, stateful_step_count=35)
