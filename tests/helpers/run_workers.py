"""Workers of the tests of runs: their statuses, their neighbours, and runs that go away."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

from primitive_workers import PATIENT, READY, open_store, refusal

import inmem
from inmem import RunStatus

Write = tuple[str, int, Callable[[], Any]]  # its name, the events that it appends, the write itself


# --- runs next to each other ----------------------------------------------------------------------


def run_name(number: int) -> str:
    return f"run-{number:03}"


def create_with_parent(db: inmem.Database, number: int) -> None:
    """Create a run unless somebody has; each odd one has its neighbour as parent."""
    if number % 2:
        create_with_parent(db, number - 1)
    run = run_name(number)
    try:
        db.runs.create_run(
            run_id=run, tags=["all", f"only-{run}"], metadata={"run": run},
            parent_run=run_name(number - 1) if number % 2 else None,
        )
    except inmem.RunExistsError:
        pass


def write_parts(words: Any, index: int, path: str, runs: int, seed: int) -> int:
    """This worker's part of each run, over all primitives and in every way to write."""
    order = list(range(runs))
    random.Random(seed * 1000 + index).shuffle(order)
    with open_store(path) as db:
        for number in order:
            write_part(db, number, index)
            words[index] += 1
    return len(order)


def write_part(db: inmem.Database, number: int, index: int) -> None:
    run = run_name(number)
    create_with_parent(db, number)

    def step(txn: Any) -> None:
        txn.kv.put(f"mine-{index}", [run, index])
        txn.events.append(f"type-{index}", [run, index])
        txn.cells.set(f"cell-{index}", [run, index])
        txn.traces.record(inmem.Thought(run), id=f"top-{index}", tags=["all", f"by-{index}"])
        txn.traces.record_child(f"top-{index}", inmem.ToolCall("tool", [run, index]), id=f"sub-{index}")
        txn.runs.add_tags([f"part-{index}"])
        txn.runs.update_metadata({f"part-{index}": run})

    db.transact(run, step, max_attempts=PATIENT)
    db.kv.put(run, f"brief-{index}", [run, index], ttl=3600.0)
    db.kv.put(run, "same", run)
    db.kv.add(run, "count")
    with db.pipeline() as pipe:
        pipe.events.append(run, "piped", [run, index])
        pipe.kv.put(run, f"piped-{index}", run)
    db.cells.init(run, f"gone-{index}", run)
    db.cells.delete(run, f"gone-{index}")


def check_run(db: inmem.Database, number: int, workers: int) -> None:
    """A run has exactly what the workers wrote into it, and nothing of another run."""
    run = run_name(number)
    every = range(workers)
    expected = {f"mine-{i}": [run, i] for i in every} | {f"brief-{i}": [run, i] for i in every}
    expected |= {f"piped-{i}": run for i in every} | {"same": run, "count": workers}
    assert db.kv.list_with_values(run) == sorted(expected.items())
    events = list(db.events.iter(run))
    both = sorted([f"type-{i}", [run, i]] for i in every) + sorted(["piped", [run, i]] for i in every)
    assert sorted([e.event_type, e.payload] for e in events) == sorted(both)
    for i in every:
        assert [e.payload for e in db.events.query_by_type(run, f"type-{i}")] == [[run, i]]
    assert db.events.verify_chain(run).length == 2 * workers
    assert db.cells.list(run) == [f"cell-{i}" for i in every]
    for i in every:
        state = db.cells.read(run, f"cell-{i}")
        assert state is not None and state.value == [run, i]
    tops = {f"top-{i}" for i in every}
    assert {t.id for t in db.traces.list(run)} == tops | {f"sub-{i}" for i in every}
    assert {t.id for t in db.traces.roots(run)} == {t.id for t in db.traces.query_by_tag(run, "all")} == tops
    assert {t.body for t in db.traces.query_by_type(run, "Thought")} == {inmem.Thought(run)}
    for i in every:
        assert [t.id for t in db.traces.query_by_tag(run, f"by-{i}")] == [f"top-{i}"]
        (child,) = db.traces.get_children(run, f"top-{i}")
        assert (child.id, child.body) == (f"sub-{i}", inmem.ToolCall("tool", [run, i]))
    found = db.runs.get_run(run)
    assert found is not None and found.status is RunStatus.ACTIVE
    assert found.metadata == {"run": run} | {f"part-{i}": run for i in every}
    assert sorted(found.tags) == sorted(["all", f"only-{run}", *(f"part-{i}" for i in every)])
    assert [r.run_id for r in db.runs.query_runs(tags=[f"only-{run}"])] == [run]


# --- a run that goes away under its workers -------------------------------------------------------


def writes_into(db: inmem.Database, run: str, other: str, mark: str) -> list[Write]:
    """Every way to write into a run; `mark` makes the names new."""

    def in_transaction(step: Callable[[Any], Any]) -> Callable[[], Any]:
        return lambda: db.transact(run, step, max_attempts=PATIENT)

    def two_runs(txn: Any) -> None:
        txn.at(other).kv.put(f"leak-{mark}", mark)
        txn.at(other).events.append("leak", mark)
        txn.kv.put("two", mark)
        txn.events.append("two", mark)

    def from_elsewhere() -> None:
        with db.transaction(other) as txn:
            txn.kv.put(f"leak-from-{mark}", mark)
            txn.at(run).events.append("elsewhere", mark)

    def piped() -> None:
        with db.pipeline() as pipe:
            pipe.kv.put(run, "piped", mark)
            pipe.events.append(run, "piped", mark)

    new = inmem.NewTrace
    thought = inmem.Thought(mark)
    return [
        ("kv.put", 0, lambda: db.kv.put(run, "k", mark)),
        ("kv.put_with_ttl", 0, lambda: db.kv.put_with_ttl(run, "brief", mark, 3600.0)),
        ("kv.put_many", 0, lambda: db.kv.put_many(run, {"a": mark, "b": mark})),
        ("kv.add", 0, lambda: db.kv.add(run, "n")),
        ("kv.delete", 0, lambda: db.kv.delete(run, "a")),
        ("events.append", 1, lambda: db.events.append(run, "one", mark)),
        ("events.append_many", 2, lambda: db.events.append_many(run, [("many", 1), ("many", 2)])),
        ("cells.init", 0, lambda: db.cells.init(run, f"new-{mark}", mark)),
        ("cells.set", 0, lambda: db.cells.set(run, "cell", mark)),
        ("cells.cas", 0, lambda: db.cells.cas(run, "cell", 1, mark)),
        ("cells.transition", 0, lambda: db.cells.transition(run, "cell", lambda s: (mark, None))),
        ("cells.delete", 0, lambda: db.cells.delete(run, "other cell")),
        ("traces.record", 0, lambda: db.traces.record(run, thought, id=f"t-{mark}", tags=["x"])),
        ("traces.record_child", 0, lambda: db.traces.record_child(run, "top", thought)),
        ("traces.record_many", 0, lambda: db.traces.record_many(run, [new(thought), new(thought)])),
        ("runs.create_run", 0, lambda: db.runs.create_run(run_id=run)),
        ("runs.update_status", 0, lambda: db.runs.update_status(run, RunStatus.PAUSED)),
        ("runs.resume_run", 0, lambda: db.runs.resume_run(run)),
        ("runs.add_tags", 0, lambda: db.runs.add_tags(run, [f"tag-{mark}"])),
        ("runs.update_metadata", 0, lambda: db.runs.update_metadata(run, {"last": mark})),
        ("txn.kv", 0, in_transaction(lambda t: t.kv.put("k", t.kv.get("n", 0)))),
        ("txn.kv.add", 0, in_transaction(lambda t: t.kv.add("n"))),
        ("txn.events", 1, in_transaction(lambda t: t.events.append("txn", mark))),
        ("txn.events, pinned", 1, in_transaction(lambda t: t.events.append("txn", t.events.count()))),
        ("txn.cells.init", 0, in_transaction(lambda t: t.cells.init(f"txn-{mark}", 1))),
        ("txn.cells.set", 0, in_transaction(lambda t: t.cells.set("cell", mark))),
        ("txn.traces", 0, in_transaction(lambda t: t.traces.record(thought))),
        ("txn.runs.create_run", 0, in_transaction(lambda t: t.runs.create_run())),
        ("txn of two runs", 1, in_transaction(two_runs)),
        ("txn of another run", 1, from_elsewhere),
        ("pipeline", 1, piped),
        ("transactional", 0, lambda: _put_twice(db.run(run), mark)),
    ]


@inmem.transactional
def _put_twice(txn: Any, mark: str) -> None:
    txn.kv.put("twice-1", mark)
    txn.kv.put("twice-2", mark)


def write_until_refused(words: Any, index: int, path: str, run: str) -> dict[str, Any]:
    """Write into a run in every way until it is deleted, then try them all again, three times over.

    Acknowledged writes into the other run are counted: what was refused must not be there.
    """
    appended = leaks = n = 0
    refusals = []
    deleted = inmem.RunDeletedError.__name__
    with open_store(path) as db:
        open_before = db.transaction(run)
        open_before.kv.put("from before", index)  # blind: only the fence can refuse it
        gone = False
        while not gone:
            n += 1
            for name, events, write in writes_into(db, run, f"other-{index}", f"{index}-{n}"):
                error = refusal(write)
                gone |= error == deleted
                if not error:
                    appended += events
                    leaks += name in ("txn of two runs", "txn of another run")
                words[index] += 1
        with_open = refusal(open_before.commit)
        for phase in range(1, 4):
            words.pass_gate(phase)
            some = writes_into(db, run, f"other-{index}", f"after-{index}-{phase}")
            some.append(("runs.delete_run", 0, lambda: db.runs.delete_run(run)))
            refusals.append({name: refusal(write) for name, _, write in some})
            words[READY + index] = phase
        left = db.kv.count(f"other-{index}", "leak-")
    return {"appended": appended, "leaks": leaks, "left": left, "open": with_open, "refusals": refusals,
            "rounds": n}


# --- the status of runs ---------------------------------------------------------------------------


STORIES = {
    "ended": ("completed", "failed", "cancelled"),  # from active: whichever is first, no other may follow
    "resumed": ("active",),  # from paused: the second finds it active already
    "archived": ("archived",),
    "paused": ("paused",),
}


def race_for_status(words: Any, index: int, path: str, workers: int, rounds: int) -> list[Any]:
    """All at once each round, each to its own end; (what was wanted, what came) of each round."""
    outcomes = []
    with open_store(path) as db:
        for number in range(rounds):
            story = list(STORIES)[number % len(STORIES)]
            wanted = STORIES[story][index % len(STORIES[story])]
            run = f"{story}-{number}"
            words.meet(index, workers, number + 1, 0.0001)
            try:
                _change_status(db, run, RunStatus(wanted), how=(number + index) % 3)
                outcomes.append([wanted, "won", None])
            except inmem.InvalidTransitionError as error:
                assert error.to_status == wanted, error
                outcomes.append([wanted, "refused", error.from_status])
            except inmem.ConflictError:
                outcomes.append([wanted, "conflict", None])
    return outcomes


def _change_status(db: inmem.Database, run: str, status: RunStatus, how: int) -> None:
    error = "why not" if status is RunStatus.FAILED else None
    if how == 0:
        db.runs.update_status(run, status, error=error)
    elif how == 1:
        db.transact(run, lambda txn: txn.runs.update_status(status, error=error), max_attempts=PATIENT)
    else:
        with db.transaction(run) as txn:
            txn.runs.update_status(status, error=error)
            txn.events.append("changed", str(status))


def live_and_die(words: Any, index: int, path: str, runs: int, seed: int) -> dict[str, str]:
    """Lead runs through random lives; how each of them ended, `deleted` among the ends."""
    rng = random.Random(seed * 1000 + index)
    ends: dict[str, str] = {}
    with open_store(path) as db:
        for number in range(runs):
            run = f"life-{index}-{number}"
            db.runs.create_run(run_id=run, tags=[f"by-{index}", "all"], metadata={"n": number})
            status = RunStatus.ACTIVE
            if rng.random() < 0.3:
                db.kv.put(run, "k", number)
                db.runs.pause_run(run)
                db.runs.resume_run(run)
            way = rng.choice(["complete", "fail", "cancel", "pause", "stay", "archive", "txn"])
            if way == "complete":
                status = db.runs.complete_run(run).status
            elif way == "fail":
                status = db.runs.fail_run(run, "went wrong").status
            elif way == "cancel":
                status = db.runs.cancel_run(run).status
            elif way == "pause":
                status = db.runs.pause_run(run).status
            elif way == "archive":
                status = db.runs.archive_run(run).status
            elif way == "txn":
                with db.transaction(run) as txn:
                    txn.runs.pause_run()
                    txn.runs.resume_run()
                    status = txn.runs.complete_run().status
            ends[run] = status.value
            if rng.random() < 0.3:
                db.runs.delete_run(run)
                ends[run] = "deleted"
            words[index] += 1
    return ends


def recount(words: Any, index: int, path: str) -> dict[str, int]:
    """In each snapshot the statistics must be what counting the records gives."""
    views = 0
    seen = set()
    with open_store(path) as db:
        while not words.stopping():
            with db.snapshot("-") as view:
                stats = view.runs.get_stats()
                names = view.runs.list_runs(include_archived=True)
                counts = dict.fromkeys(RunStatus, 0)
                for run in names:
                    found = view.runs.get_run(run)
                    assert found is not None, run
                    counts[found.status] += 1
                assert stats.by_status == counts, (stats, counts)
                assert stats.total == len(names) == sum(counts.values())
                assert len(view.runs.query_runs(include_archived=True)) == stats.total
                assert len(view.runs.query_runs(tags=["all"], include_archived=True)) == stats.total
            with db.transaction("mine") as txn:
                before = txn.runs.get_stats()
                txn.runs.create_run()
                assert txn.runs.get_stats().total == before.total + 1
                txn.abort()
            views += 1
            seen.add(tuple(counts.values()))
            words[index] += 1
    return {"views": views, "states": len(seen)}


# --- runs that are deleted beside others ----------------------------------------------------------


def write_on(words: Any, path: str) -> list[float]:
    """Put until told to stop; how long each put took."""
    waits = []
    with inmem.open(path) as db:
        while not words.stopping():
            began = time.monotonic()
            db.kv.put("bystander", "n", len(waits) + 1)
            waits.append(time.monotonic() - began)
            time.sleep(0.0005)
    return waits


def write_into(words: Any, number: int, path: str, run: str) -> int:
    """Put new keys into a run until it is deleted; how many."""
    done = 0
    with inmem.open(path) as db:
        while not words.stopping():
            try:
                db.kv.put(run, f"more-{number}-{done}", done)
            except inmem.RunDeletedError:
                break
            done += 1
    return done


# --- times in the order of commits ----------------------------------------------------------------

FOLLOWED = "followed"


def record_each_way(words: Any, index: int, path: str, count: int) -> list[str]:
    """Traces in every way to record one, those of transactions that run the call early too; their ids."""
    made = []
    with inmem.open(path) as db:
        for number in range(count):
            name = f"{index}-{number}"

            def early(txn: Any, name: str = name) -> None:
                txn.traces.record(inmem.Thought("early"), id=name)
                txn.traces.get(name)  # so that its time is known here, before the commit
                time.sleep(0.002)

            if number % 4 == 0:
                # Whoever else records meanwhile makes it lose, until it has its turn.
                db.transact(FOLLOWED, early)
            elif number % 4 == 1:
                db.traces.record(FOLLOWED, inmem.Thought("direct"), id=name)
            elif number % 4 == 2:
                with db.transaction(FOLLOWED) as txn:
                    txn.traces.record(inmem.Thought("late"), id=name)
            else:
                db.traces.record_many(FOLLOWED, [inmem.NewTrace(inmem.Thought("many"), name)])
            made.append(name)
            words[index] = number + 1
    return made


def create_each_way(words: Any, index: int, path: str, count: int) -> list[str]:
    """Runs that are created directly, and in transactions that know the time before; their ids."""
    made = []
    with inmem.open(path) as db:
        for number in range(count):
            name = f"{index}-{number}"

            def early(txn: Any) -> None:
                txn.runs.create_run()
                txn.runs.get_run()
                time.sleep(0.002)

            if number % 2:
                db.transact(name, early)
            else:
                db.runs.create_run(run_id=name)
            made.append(name)
            words[index] = number + 1
    return made
