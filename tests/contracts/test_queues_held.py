"""Whose job it is: acks late and twice, in transactions with all else, of elsewhere, and without a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from forms import new_run
from test_queues import LONG_S, SHORT_S, WRITERS, claimed, counts, until_ready, within

import inmem
from inmem import ConflictError, InvalidInputError, InvariantError, JobLostError, RunDeletedError
from inmem.client.direct import DirectSink
from inmem.primitives.queues import rules
from inmem.primitives.queues.shown import Job, QueueCounts


@pytest.fixture
def run(shared_db: inmem.Database) -> inmem.RunScope:
    """A run of its own."""
    return shared_db.run(new_run())


END: dict[str, Callable[[Any, Any], Any]] = {
    "ack": lambda queues, job: queues.ack(job),
    "ack with a result": lambda queues, job: queues.ack(job, "r"),
    "nack": lambda queues, job: queues.nack(job, error="broke"),
    "nack for good": lambda queues, job: queues.nack(job, retry=False),
    "extend": lambda queues, job: queues.extend(job, 60),
}


# --- acks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [*WRITERS, "pipeline", "pipelined"])
def test_an_acked_job_is_gone_and_one_with_a_result_stays(run: inmem.RunScope, form: str) -> None:
    run.queues.put_many("q", [{"n": n} for n in range(3)])
    first, second, third = run.queues.claim_many("q", 3)
    assert within(form, run, lambda q: q.ack(first)) is None
    assert within(form, run, lambda q: q.ack(second, {"sum": 1})) is None
    assert within(form, run, lambda q: q.ack(third, 0)) is None
    assert run.queues.get("q/0") is None
    done = run.queues.get("q/1")
    assert done is not None and (done.state, done.payload, done.result) == ("done", None, {"sum": 1})
    assert done.enqueued_at == second.enqueued_at <= done.time
    assert run.queues.get("q/2").result == 0  # type: ignore[union-attr]
    assert counts(run) == (0, 0, 0, 0) and run.queues.claim("q") is None
    assert run.queues.purge("q", state="done") == 2 and run.queues.get("q/1") is None


@pytest.mark.parametrize("form", WRITERS)
def test_extending_gives_time_from_now(run: inmem.RunScope, form: str) -> None:
    run.queues.put("q", 1)
    job = claimed(run, lease_s=10)
    longer = within(form, run, lambda q: q.extend(job, 100))
    assert 85e6 < longer.claimed_until - job.claimed_until < 95e6
    assert dataclasses.replace(longer, claimed_until=job.claimed_until) == job
    assert run.queues.get("q/0").time == longer.claimed_until  # type: ignore[union-attr]
    shorter = run.queues.extend(longer)
    assert shorter.claimed_until < longer.claimed_until
    run.queues.ack(job)  # the claim is the same, whichever says so


@pytest.mark.parametrize("first", END)
@pytest.mark.parametrize("then", END)
def test_what_ends_a_claim_ends_it_once(run: inmem.RunScope, first: str, then: str) -> None:
    run.queues.put("q", 1)
    job = claimed(run)
    END[first](run.queues, job)
    if first == "extend":
        END[then](run.queues, job)
        return
    before = run.queues.get("q/0")
    with pytest.raises(JobLostError) as caught:
        END[then](run.queues, job)
    assert (caught.value.job_id, caught.value.token) == ("q/0", job.token)
    assert run.queues.get("q/0") == before


# --- late -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", END)
@pytest.mark.parametrize("was_moved", [False, True])
def test_late_but_not_taken_again_it_still_holds(run: inmem.RunScope, end: str, was_moved: bool) -> None:
    """Also when a claim that took something better has moved it to those that are ready."""
    run.queues.put("q", "mine")
    job = claimed(run, lease_s=SHORT_S)
    until_ready(run)
    if was_moved:
        run.queues.put("q", "better", priority=1)
        assert claimed(run).payload == "better"
        assert run.queues.get("q/0").state == "ready"  # type: ignore[union-attr]
    END[end](run.queues, job)
    info = run.queues.get("q/0")
    if info is not None:
        assert info.state == {
            "ack with a result": "done", "nack": "delayed", "nack for good": "dead", "extend": "claimed"
        }[end]
        assert info.attempt == 1
    assert run.queues.claim("q") is None, "in no order that is behind"


@pytest.mark.parametrize("end", END)
def test_late_and_taken_again_it_is_lost(run: inmem.RunScope, end: str) -> None:
    run.queues.put("q", 1)
    job = claimed(run, lease_s=SHORT_S)
    again = run.queues.claim("q", wait_s=LONG_S)
    assert again is not None and again.id == job.id
    before = run.queues.get("q/0")
    for call in (
        lambda: END[end](run.queues, job),
        lambda: run.transact(lambda txn: (txn.kv.put("late", 1), END[end](txn.queues, job))),
    ):
        with pytest.raises(JobLostError):
            call()
    assert run.queues.get("q/0") == before and run.kv.get("late") is None
    run.queues.ack(again)


def test_late_after_the_last_attempt(run: inmem.RunScope) -> None:
    """What was done is done, although the job has died meanwhile; unless its key went to another."""
    run.queues.put_many("q", range(3), max_attempts=1)
    run.queues.put("q", 3, max_attempts=1, key="k")
    acked, failed, longer, keyed = run.queues.claim_many("q", 4, lease_s=SHORT_S)
    run.wait(lambda view: view.queues.counts("q").ready == 4, timeout_s=LONG_S)
    assert run.queues.claim("q") is None and counts(run) == (0, 0, 0, 4)
    run.queues.ack(acked)
    run.queues.nack(failed, error="broke")
    run.queues.extend(longer)
    assert run.queues.put("q", 4, key="k") == "q/4"
    with pytest.raises(JobLostError):
        run.queues.extend(keyed)
    assert counts(run) == (1, 0, 1, 2)
    assert [info.errors[1:] for info in run.queues.dead("q")] == [("broke",), ()]
    run.queues.ack(keyed)
    with pytest.raises(JobLostError):
        run.queues.ack(failed)


def test_a_job_that_was_put_back_is_nobody_s(run: inmem.RunScope) -> None:
    run.queues.put("q", 1, max_attempts=1)
    job = claimed(run, lease_s=SHORT_S)
    until_ready(run)
    assert run.queues.claim("q") is None
    run.queues.requeue("q/0")
    for end in END.values():
        with pytest.raises(JobLostError):
            end(run.queues, job)


# --- in one commit with all else --------------------------------------------------------------------


def test_a_job_its_result_and_the_next_jobs_are_one_commit(run: inmem.RunScope) -> None:
    run.queues.put("add", [1, 2])
    job = claimed(run, "add")

    def work(txn: inmem.Transaction) -> Any:
        txn.kv.put("sum", sum(job.payload))
        txn.events.append("added")
        next_id = txn.queues.put("print", "sum", key="sum")
        txn.queues.ack(job)
        return next_id

    assert run.transact(work) == "print/0"
    version = run._database.status().version
    versioned = run.kv.get_versioned("sum")
    assert versioned is not None and versioned.version == version
    assert (run.kv.get("sum"), run.events.count(), counts(run, "add")) == (3, 1, (0, 0, 0, 0))
    assert run.queues.get("add/0") is None and claimed(run, "print").payload == "sum"


class Stop(Exception):
    pass


@pytest.mark.parametrize("how", ["raises", "conflicts", "aborts", "refused"])
def test_what_does_not_commit_leaves_the_job_claimed(run: inmem.RunScope, how: str) -> None:
    run.queues.put("q", 1)
    run.cells.init("c", 1)
    job = claimed(run)
    before = run.queues.get("q/0")

    def work() -> None:
        with run.transaction() as txn:
            txn.kv.get("k")
            txn.queues.ack(job, "done")
            txn.queues.put("next", 1)
            txn.kv.put("late", 1)
            if how == "raises":
                raise Stop
            if how == "aborts":
                txn.abort()
            if how == "conflicts":
                run.kv.put("k", 1)
            if how == "refused":
                txn.cells.init("c", 2)

    error: Any = {"raises": Stop, "conflicts": ConflictError, "refused": inmem.CellExistsError}.get(how)
    if error is None:
        work()
    else:
        with pytest.raises(error):
            work()
    assert run.queues.get("q/0") == before and run.queues.list() == ["q"] and run.kv.get("late") is None
    run.queues.ack(job)


def test_a_transaction_sees_what_it_does_to_a_queue(run: inmem.RunScope) -> None:
    run.queues.put_many("q", range(3))
    first, second = run.queues.claim_many("q", 2)
    with run.transaction() as txn:
        queues = txn.queues
        assert (queues.counts("q").ready, queues.counts("q").claimed) == (1, 2)
        queues.put("q", "better", priority=1)
        queues.put("q", "late", delay_s=100)
        queues.ack(first, "result")
        queues.nack(second, retry=False, error="no")
        assert queues.counts("q") == QueueCounts(2, 1, 0, 1)
        assert [info.payload for info in queues.peek("q", limit=9)] == ["better", 2]
        assert queues.get("q/0").result == "result"  # type: ignore[union-attr]
        assert [info.errors for info in queues.dead("q")] == [("no",)]
        queues.requeue("q/1")
        assert [info.payload for info in queues.peek("q", limit=9)] == ["better", 1, 2]
        assert queues.put("q2", 1, key="k") is not queues.put("q2", 2, key="k")
        assert queues.list() == ["q", "q2"]
    assert counts(run) == (3, 1, 0, 0) and counts(run, "q2") == (1, 0, 0, 0)
    assert [claimed(run).payload for _ in range(3)] == ["better", 1, 2]


def test_blind_puts_and_acks_do_not_conflict(run: inmem.RunScope) -> None:
    run.queues.put("q", 0)
    job = claimed(run)
    with run.transaction() as txn:
        mine = txn.queues.put("q", "mine")
        txn.queues.ack(job)
        run.queues.put_many("q", range(3))
        assert run.queues.claim("q") is not None
    assert mine.id == "q/4" and counts(run) == (3, 0, 1, 0)


@pytest.mark.parametrize("look", [
    lambda queues: queues.counts("q"), lambda queues: queues.peek("q"), lambda queues: queues.has_ready("q"),
])
def test_who_has_looked_at_a_queue_conflicts_with_its_changes(run: inmem.RunScope, look: Any) -> None:
    run.queues.put("q", 0)
    with pytest.raises(ConflictError), run.transaction() as txn:
        look(txn.queues)
        txn.queues.put("q", 1)
        assert run.queues.claim("q") is not None
    assert counts(run) == (0, 0, 1, 0)
    assert run.transact(lambda txn: (look(txn.queues), txn.queues.put("q", 1))[1]) == "q/1"


def test_who_has_looked_at_the_time_conflicts_when_it_comes(run: inmem.RunScope) -> None:
    run.queues.put("q", 0, delay_s=0.2)
    with pytest.raises(ConflictError), run.transaction() as txn:
        assert txn.queues.counts("q").delayed == 1
        until_ready(run)
        txn.kv.put("k", "one is delayed")


@pytest.mark.parametrize("call", [
    lambda queues: queues.claim("q"), lambda queues: queues.claim_many("q", 2),
    lambda queues: queues.consume("q"), lambda queues: queues.purge("q"),
])
def test_a_claim_is_a_commit_of_its_own(run: inmem.RunScope, call: Any) -> None:
    """So a snapshot and a pipeline have none, and a transaction says why."""
    with run.snapshot() as held, pytest.raises(AttributeError):
        call(held.queues)
    with run._database.pipeline() as pipe, pytest.raises(AttributeError):
        call(pipe.run(run).queues)
    with run.transaction() as txn, pytest.raises(InvariantError, match="cannot be part of a trans") as one:
        call(txn.queues)
    name = str(one.value).partition(" ")[0]
    assert name in ("claim", "claim_many", "consume", "purge")


def test_a_pipeline_whose_ack_is_lost(run: inmem.RunScope) -> None:
    run.queues.put_many("q", range(2))
    lost, job = run.queues.claim_many("q", 2)
    run.queues.purge("q", state="ready")
    run.queues.nack(lost)
    pipe = run._database.pipeline()
    with pytest.raises(JobLostError), pipe:
        pipe.queues.ack(lost)
        pipe.flush()
    with run._database.pipeline() as other:
        acked = other.queues.ack(job, 5)
        put = other.queues.put(run, "q", 1)
    assert (acked.value, put.id, run.queues.get(job.id).result) == (None, "q/2", 5)  # type: ignore[union-attr]


# --- of elsewhere -----------------------------------------------------------------------------------


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The procedures that were sent."""
    names: list[str] = []
    real = DirectSink.ask

    def ask(self: Any, procedure: str, *args: Any, **kwargs: Any) -> Any:
        names.append(procedure)
        return real(self, procedure, *args, **kwargs)

    monkeypatch.setattr(DirectSink, "ask", ask)
    return names


@pytest.mark.parametrize("end", END)
@pytest.mark.parametrize("where", ["run", "namespace"])
def test_a_job_of_elsewhere_is_refused_before_anything_is_sent(
    home: Any, run: inmem.RunScope, sent: list[str], where: str, end: str
) -> None:
    with home.open(**({} if where == "run" else {"agent": "another"})) as other:
        there = other.run(new_run() if where == "run" else run.run_id)
        for scope in (run, there):
            scope.queues.put("q", 1)
        job = claimed(there)
        claimed(run)
        del sent[:]
        holders: list[Any] = [run.queues, run._database.pipeline().run(run).queues]
        if where == "namespace":
            holders += [run._database.queues, run._database.pipeline().queues]
        for queues in holders:
            if end.startswith("ack") or hasattr(queues, "nack"):
                with pytest.raises(InvalidInputError, match="is of another run") as caught:
                    END[end](queues, job)
                assert caught.value.argument == "job"
        with run.transaction() as txn, pytest.raises(InvalidInputError):
            END[end](txn.queues, job)
        assert sent == []
        END[end](other.queues, job)


@pytest.mark.parametrize("end", END)
def test_a_job_of_another_database_is_refused(run: inmem.RunScope, end: str) -> None:
    """Although run, queue, number and token are the same: a claim is known by its mark too."""
    with inmem.open() as other:
        there = other.run(run.run_id)
        for scope in (run, there):
            scope.queues.put("q", 1)
        theirs, ours = claimed(there), claimed(run)
        like_ours = dataclasses.replace(theirs, token=ours.token)
        assert like_ours == dataclasses.replace(
            ours, mark=theirs.mark, claimed_until=theirs.claimed_until, enqueued_at=theirs.enqueued_at
        )
        with pytest.raises(JobLostError):
            END[end](run._database.queues, like_ours)
        END[end](other.queues, theirs)
        END[end](run._database.queues, ours)


@pytest.mark.parametrize("end", END)
def test_jobs_of_what_runs_share(home: Any, end: str) -> None:
    with home.open(app=new_run()) as db, db.pipeline() as pipe:
        shared = db.shared("app")
        shared.queues.put("q", 1)
        assert db.queues.put(shared, "q", 2) == "q/1"
        job, other = shared.queues.claim_many("q", 2)
        assert (job.run_id, counts(shared)) == ("@app", (0, 0, 2, 0))
        END[end](db.queues, job)
        pipe.queues.ack(other)
        pipe.shared("app").queues.put("q", 3)
        pipe.flush()
        assert shared.queues.get("q/1") is None
        assert shared.queues.get("q/2").payload == 3  # type: ignore[union-attr]


def test_another_handle_of_the_store_may_end_it(home: Any, run: inmem.RunScope) -> None:
    run.queues.put("q", 1)
    job = claimed(run)
    with home.open() as other:
        longer = other.queues.extend(job, 60)
        assert isinstance(longer, Job) and longer.claimed_until > job.claimed_until
        other.queues.ack(longer)
    assert run.queues.get("q/0") is None


# --- poison -----------------------------------------------------------------------------------------


def put_bytes(run: inmem.RunScope, payload: bytes, **options: Any) -> str:
    """Put encoded bytes as they are, as a client that is not ours may."""
    sink = run._database.engine.direct()
    item = [payload, 0, rules.rank_of(0), options.get("key", b""), 5]
    numbers: list[Any] = sink.ask("queue.put", [[run.prefix, b"q"], [item]], lambda result: result[1])
    return f"q/{numbers[0]}"


POISON = [b"\xc1", b"\x92\x01", b"\xd9\x02\xff\xff", b"\x81\x01\x01", b"\x01\x01"]


@pytest.mark.parametrize("poison", POISON)
def test_a_payload_that_does_not_decode_is_dead_with_the_reason(run: inmem.RunScope, poison: bytes) -> None:
    assert put_bytes(run, poison, key=b"k") == "q/0"
    run.queues.put("q", "good")
    assert [each.payload for each in run.queues.peek("q", limit=2)] == [None, "good"]
    job = claimed(run)
    assert job.payload == "good"
    assert run.queues.claim("q", wait_s=0) is None
    assert counts(run) == (0, 0, 1, 1)
    info = run.queues.dead("q")
    assert len(info) == 1 and info[0].payload is None
    assert info[0].errors[0].startswith("the payload does not decode: ")
    assert run.queues.put("q", 1, key="k") == "q/2", "its key is free"


def test_poison_among_many(run: inmem.RunScope) -> None:
    for number in range(6):
        put_bytes(run, b"\xc1" if number % 2 else b"\x05")
    assert [job.id for job in run.queues.claim_many("q", 4)] == ["q/0", "q/2"]
    assert [job.id for job in run.queues.claim_many("q", 4)] == ["q/4"]
    for _ in range(3):
        put_bytes(run, b"\xc1")
    assert run.queues.claim_many("q", 2) == [] and counts(run) == (0, 0, 3, 6)
    assert run.queues.purge("q", state="dead") == 6


# --- runs that are deleted --------------------------------------------------------------------------


CALLS: dict[str, Callable[[Any, Any], Any]] = {
    **END,
    "put": lambda queues, job: queues.put("q", 1),
    "put_many": lambda queues, job: queues.put_many("q", [1]),
    "requeue": lambda queues, job: queues.requeue("q/0"),
}
CLAIMS: dict[str, Callable[[Any], Any]] = {
    "claim": lambda queues: queues.claim("q"),
    "a claim that waits": lambda queues: queues.claim("q", wait_s=LONG_S),
    "claim_many": lambda queues: queues.claim_many("q", 3),
    "consume": lambda queues: next(queues.consume("q")),
    "purge": lambda queues: queues.purge("q"),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("form", ["facade", "scope", "transaction"])
def test_who_holds_a_job_of_a_deleted_run_is_told(run: inmem.RunScope, form: str, name: str) -> None:
    run.queues.put_many("q", range(2))
    job = claimed(run)
    deleted = run.runs.delete_run()
    assert deleted.others == {"jobs": 2, "queues": 1}
    with pytest.raises(RunDeletedError):
        within(form, run, lambda queues: CALLS[name](queues, job))


@pytest.mark.parametrize("name", CLAIMS)
def test_a_deleted_run_has_no_jobs_to_claim(run: inmem.RunScope, name: str) -> None:
    run.queues.put("q", 1)
    run.runs.delete_run()
    with pytest.raises(RunDeletedError):
        CLAIMS[name](run.queues)
    assert counts(run) == (0, 0, 0, 0)
