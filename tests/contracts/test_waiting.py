"""Waiting, on every engine: what ends a wait, what does not, and what each of them returns."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import inmem
from inmem import Change, RunStatus, Thought
from inmem.errors import (
    InvalidInputError,
    InvalidKeyError,
    InvariantError,
    RunDeletedError,
    TraceNotFoundError,
    WaitTimeoutError,
)

SHORT_S = 0.05
LONG_S = 30.0


class Later:
    """Calls in another thread, begun once this one sleeps."""

    def __init__(self) -> None:
        self._threads: list[threading.Thread] = []

    def do(self, *calls: Callable[[], Any], pause_s: float = 0.02) -> None:
        def run() -> None:
            for call in calls:
                time.sleep(pause_s)  # so that the other one is asleep, most of the time: any order is right
                call()

        thread = threading.Thread(target=run)
        self._threads.append(thread)
        thread.start()

    def join(self) -> None:
        for thread in self._threads:
            thread.join()


@pytest.fixture
def db(shared_db: inmem.Database) -> inmem.Database:
    return shared_db


@pytest.fixture
def run_id() -> str:
    return str(inmem.RunId.new())


@pytest.fixture
def later() -> Iterator[Later]:
    made = Later()
    yield made
    made.join()


def test_what_is_true_already_is_returned_at_once(db: inmem.Database, run_id: str) -> None:
    db.kv.put(run_id, "n", 7)
    assert db.wait(run_id, lambda view: view.kv.get("n"), timeout_s=LONG_S) == 7
    assert db.run(run_id).wait(lambda view: view.kv.list()) == ["n"]
    found = db.kv.wait(run_id, "n")
    assert found is not None and found.value == 7


def test_a_wait_ends_when_what_was_read_changes(db: inmem.Database, run_id: str, later: Later) -> None:
    run = db.run(run_id)
    cases: list[tuple[Callable[[Any], Any], Callable[[], Any]]] = [
        (lambda view: view.kv.get("a"), lambda: run.kv.put("a", 1)),
        (lambda view: view.kv.get("a") == 2, lambda: run.kv.add("a")),
        (lambda view: not view.kv.exists("a"), lambda: run.kv.delete("a")),
        (lambda view: view.kv.count("p-") == 2, lambda: run.kv.put_many({"p-1": 1, "p-2": 2})),
        (lambda view: view.kv.list("q-"), lambda: run.kv.put("q-1", 1)),
        (lambda view: len(view.kv.get_many(["x", "y"])) == 1, lambda: run.kv.put("y", 1)),
        (lambda view: view.events.head(), lambda: run.events.append("t", 1)),
        (lambda view: view.events.count() == 2, lambda: run.events.append("u", 2)),
        (lambda view: view.events.query_by_type("v"), lambda: run.events.append("v", 3)),
        (lambda view: view.cells.read("c"), lambda: run.cells.init("c", 1)),
        (lambda view: view.traces.query_by_tag("tag"), lambda: run.traces.record(Thought("x"), tags=["tag"])),
        (lambda view: view.runs.get_run(), run.runs.create_run),
        (lambda view: view.runs.query_runs(status=RunStatus.PAUSED), run.runs.pause_run),
        (lambda view: view.at("other").kv.get("z"), lambda: db.kv.put("other", "z", 1)),
    ]
    for condition, change in cases:
        later.do(change)
        assert run.wait(condition, timeout_s=LONG_S)


def test_what_concerns_others_costs_no_call_of_the_function(
    db: inmem.Database, run_id: str, later: Later
) -> None:
    calls = 0

    def condition(view: inmem.Snapshot) -> Any:
        nonlocal calls
        calls += 1
        return view.kv.get("mine")

    def others() -> None:
        for number in range(300):
            db.kv.put(run_id, f"other-{number}", number)
            db.events.append(run_id, "t", number)

    later.do(others, lambda: db.kv.put(run_id, "mine", 1))
    assert db.wait(run_id, condition, timeout_s=LONG_S) == 1
    assert calls == 2


def test_a_wait_that_takes_too_long_ends(db: inmem.Database, run_id: str) -> None:
    began = time.monotonic()
    waits: list[Callable[[], Any]] = [
        lambda: db.wait(run_id, lambda view: view.kv.get("no"), timeout_s=SHORT_S),
        lambda: db.kv.wait(run_id, "no", timeout_s=SHORT_S),
        lambda: db.cells.wait(run_id, "no", timeout_s=SHORT_S),
        lambda: db.runs.wait(run_id, timeout_s=SHORT_S),
        lambda: next(db.events.follow(run_id, timeout_s=SHORT_S)),
        lambda: next(db.kv.watch(run_id, timeout_s=SHORT_S)),
        lambda: next(db.traces.follow(run_id, timeout_s=SHORT_S)),
        lambda: db.transact(run_id, lambda txn: txn.kv.get("no") or txn.wait(), wait_s=SHORT_S),
    ]
    for wait in waits:
        with pytest.raises(WaitTimeoutError) as caught:
            wait()
        assert isinstance(caught.value, TimeoutError) and not caught.value.retryable
    assert time.monotonic() - began >= SHORT_S * len(waits)


def test_a_function_that_reads_nothing_is_an_error(db: inmem.Database, run_id: str) -> None:
    with pytest.raises(InvariantError, match="nothing was read"):
        db.wait(run_id, lambda view: None)
    with pytest.raises(InvariantError, match="nothing was read"):
        db.transact(run_id, lambda txn: txn.wait())


def test_an_exception_of_the_function_ends_the_wait(db: inmem.Database, run_id: str) -> None:
    with pytest.raises(ZeroDivisionError):
        db.wait(run_id, lambda view: 1 / view.kv.get("no", 0))


def test_a_view_has_no_writes(db: inmem.Database, run_id: str) -> None:
    with pytest.raises(AttributeError):
        db.wait(run_id, lambda view: view.kv.put("a", 1))  # type: ignore[attr-defined]


def test_bad_arguments_are_named(db: inmem.Database, run_id: str) -> None:
    bad: list[tuple[str, Callable[[], Any]]] = [
        ("timeout_s", lambda: db.wait(run_id, lambda view: view.kv.get("a"), timeout_s=0)),
        ("timeout_s", lambda: db.wait(run_id, lambda view: view.kv.get("a"), timeout_s=True)),
        ("fn", lambda: db.wait(run_id, 3)),  # type: ignore[arg-type]
        ("after", lambda: db.kv.wait(run_id, "a", after=-1)),
        ("after", lambda: db.cells.wait(run_id, "a", after=1.5)),  # type: ignore[arg-type]
        ("since", lambda: db.kv.watch(run_id, since="x")),  # type: ignore[arg-type]
        ("timeout_s", lambda: db.kv.watch(run_id, timeout_s=-1)),
        ("timeout_s", lambda: db.events.follow(run_id, timeout_s=0)),
        ("start", lambda: db.events.follow(run_id, -1)),
        ("until", lambda: db.runs.wait(run_id, until=())),
        ("until", lambda: db.runs.wait(run_id, until="done")),  # type: ignore[arg-type]
        ("wait_s", lambda: db.transact(run_id, lambda txn: None, wait_s=0)),
    ]
    for argument, call in bad:
        with pytest.raises(InvalidInputError) as caught:
            call()
        assert argument in str(caught.value), argument
    with pytest.raises(InvalidKeyError):
        db.kv.wait(run_id, "")
    with pytest.raises(TraceNotFoundError):
        db.traces.follow(run_id, start_after="no")


def test_kv_wait_returns_when_the_version_differs(db: inmem.Database, run_id: str, later: Later) -> None:
    kv = db.run(run_id).kv
    later.do(lambda: kv.put("k", "first"))
    first = kv.wait("k", timeout_s=LONG_S)
    assert first is not None and first.value == "first"
    later.do(lambda: kv.put("k", "second"))
    second = kv.wait("k", after=first.version, timeout_s=LONG_S)
    assert second is not None and second.value == "second" and second.version > first.version
    assert kv.wait("k", after=first.version) == second  # a version that was passed by
    later.do(lambda: kv.delete("k"))
    assert kv.wait("k", after=second.version, timeout_s=LONG_S) is None
    assert kv.wait("k", after=second.version) is None
    kv.put("k", "short", ttl=0.1)
    seen = kv.get_versioned("k")
    assert seen is not None
    assert kv.wait("k", after=seen.version, timeout_s=LONG_S) is None, "it expires without a commit"


def test_cells_wait_likewise(db: inmem.Database, run_id: str, later: Later) -> None:
    cells = db.run(run_id).cells
    later.do(lambda: cells.init("c", 1), lambda: cells.set("c", 2), lambda: cells.delete("c"), pause_s=0.1)
    first = cells.wait("c", timeout_s=LONG_S)
    assert first is not None and first.value == 1
    second = cells.wait("c", after=first.version, timeout_s=LONG_S)
    assert second is not None and second.value == 2
    assert cells.wait("c", after=second.version, timeout_s=LONG_S) is None


def test_runs_wait_for_a_status(db: inmem.Database, run_id: str, later: Later) -> None:
    runs = db.run(run_id).runs
    later.do(runs.create_run, runs.pause_run, runs.resume_run, lambda: runs.fail_run("why"), pause_s=0.05)
    assert runs.wait(until=RunStatus.PAUSED, timeout_s=LONG_S).status == RunStatus.PAUSED
    found = db.runs.wait(run_id, timeout_s=LONG_S)
    assert found.status == RunStatus.FAILED and found.error == "why"
    assert db.runs.wait(run_id, until=["failed", "active"]).status == RunStatus.FAILED  # type: ignore[list-item]


def test_follow_gives_each_event_once_in_order(db: inmem.Database, run_id: str, later: Later) -> None:
    log = db.run(run_id).events
    log.append_many([("a", number) for number in range(700)])
    more = (lambda n=number: log.append("b" if n % 3 else "a", n) for number in range(700, 760))
    later.do(*more, pause_s=0.001)
    followed = []
    for event in log.follow(timeout_s=LONG_S):
        assert event.sequence == event.payload == len(followed)
        followed.append(event)
        if len(followed) == 760:
            break
    of_type = log.follow(690, event_type="b", timeout_s=SHORT_S)
    assert [next(of_type).payload for _ in range(40)] == [n for n in range(700, 760) if n % 3]
    with pytest.raises(WaitTimeoutError):
        next(of_type)


def test_watch_gives_what_changed(db: inmem.Database, run_id: str) -> None:
    kv = db.run(run_id).kv
    kv.put_many({"p-1": 1, "p-2": 2, "q": 0})
    kv.put("p-0", 0)
    watch = kv.watch("p-", timeout_s=SHORT_S)
    seen = [next(watch) for _ in range(3)]
    assert [change.key for change in seen] == ["p-1", "p-2", "p-0"], "in commit order"
    kv.put("p-1", "new")
    kv.put("p-1", "newer")
    kv.put("p-3", "passes")
    kv.delete("p-3")
    kv.delete("p-2")
    changes = [next(watch), next(watch)]
    assert [(c.key, c.versioned and c.versioned.value) for c in changes] == [("p-1", "newer"), ("p-2", None)]
    with pytest.raises(WaitTimeoutError):
        next(watch)
    kv.put("p-4", 1, ttl=0.1)
    watch = kv.watch("p-4", timeout_s=LONG_S)
    assert [next(watch).versioned is None for _ in range(2)] == [False, True], "expired"


def test_watch_goes_on_where_another_ended(db: inmem.Database, run_id: str) -> None:
    """Wherever it is stopped, the next one gives the rest, and no commit in part."""
    kv = db.run(run_id).kv
    for group in range(4):
        kv.put_many({f"{group}-{number}": number for number in range(3)})
    everything = list(_first(kv.watch(timeout_s=SHORT_S), 12))
    for stop in range(1, 12):
        rest = list(_first(kv.watch(since=everything[stop - 1].version, timeout_s=SHORT_S), 12))
        assert [c.key for c in rest] == [c.key for c in everything[stop - stop % 3 :]]
    assert list(_first(kv.watch(since=everything[-1].version, timeout_s=SHORT_S), 1)) == []


def _first(changes: Iterator[Change], count: int) -> Iterator[Change]:
    try:
        for _ in range(count):
            yield next(changes)
    except WaitTimeoutError:
        return


def test_traces_follow_in_commit_order(db: inmem.Database, run_id: str, later: Later) -> None:
    traces = db.run(run_id).traces
    ids = [traces.record(Thought(str(n)), timestamp=1000 - n) for n in range(5)]
    later.do(*(lambda n=n: ids.append(traces.record(Thought(str(n)), timestamp=1)) for n in range(5, 9)))
    following = traces.follow(timeout_s=LONG_S)
    assert [next(following).body.content for _ in range(9)] == [str(n) for n in range(9)]
    later.join()  # a trace is there before its author knows its id
    after = traces.follow(start_after=ids[6], timeout_s=SHORT_S)
    assert [next(after).id, next(after).id] == ids[7:9]


def test_a_transaction_that_waits_runs_again(db: inmem.Database, run_id: str, later: Later) -> None:
    runs = 0

    def take(txn: inmem.Transaction) -> str:
        nonlocal runs
        runs += 1
        try:
            found = txn.kv.list("job-", limit=1)
            if not found:
                txn.kv.put("dropped", runs)
                txn.wait()
        except Exception as error:  # lets the wait through
            raise AssertionError from error
        txn.kv.delete(found[0])
        return found[0]

    later.do(lambda: db.kv.put(run_id, "other", 1), lambda: db.kv.put(run_id, "job-1", 1))
    assert db.transact(run_id, take, wait_s=LONG_S, max_attempts=1) == "job-1"
    assert db.kv.list(run_id) == ["other"] and runs == 2


def test_only_transact_waits(db: inmem.Database, run_id: str) -> None:
    with pytest.raises(InvariantError, match="transact"), db.transaction(run_id) as txn:
        txn.kv.get("a")
        txn.wait()

    def nested(txn: inmem.Transaction) -> Any:
        return txn.at("elsewhere").kv.get("a") or txn.at("elsewhere").wait()

    with pytest.raises(WaitTimeoutError):
        db.transact(run_id, nested, wait_s=SHORT_S)


def test_a_deleted_run_ends_its_waits(db: inmem.Database, run_id: str, later: Later) -> None:
    waits: list[Callable[[str], Any]] = [
        lambda run: db.wait(run, lambda view: view.kv.get("no"), timeout_s=LONG_S),
        lambda run: db.kv.wait(run, "no", timeout_s=LONG_S),
        lambda run: db.runs.wait(run, timeout_s=LONG_S),
        lambda run: next(db.events.follow(run, timeout_s=LONG_S)),
        lambda run: next(db.kv.watch(run, "no", timeout_s=LONG_S)),
        lambda run: db.transact(run, lambda txn: txn.kv.get("no") or txn.wait(), wait_s=LONG_S),
    ]
    for number, wait in enumerate(waits):
        run = f"{run_id}-{number}"
        db.kv.put(run, "something", 1)
        later.do(lambda run=run: db.runs.delete_run(run))
        with pytest.raises(RunDeletedError):
            wait(run)
        with pytest.raises(RunDeletedError):
            wait(run)  # as it was before
