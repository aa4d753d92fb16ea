"""What queues promise on each engine: putting, order, claims, retries, and what is put back."""

from __future__ import annotations

import itertools
import pickle
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from forms import new_run

import inmem
from inmem import InvalidInputError, InvalidKeyError, InvariantError, JobLostError, JobNotFoundError
from inmem.primitives.queues.job import JobId
from inmem.primitives.queues.rules import MAX_ERROR_CHARS, MAX_ERRORS
from inmem.primitives.queues.shown import QueueCounts

SHORT_S = 0.02  # a lease that has run out soon
LONG_S = 30.0  # no test waits as long


@pytest.fixture
def run(shared_db: inmem.Database) -> inmem.RunScope:
    """A run of its own."""
    return shared_db.run(new_run())


class ByRunQueues:
    """`db.queues` or `pipe.queues` with the run filled in, where it takes one."""

    def __init__(self, facade: Any, run_id: str) -> None:
        self._facade, self._run_id = facade, run_id

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._facade, name)
        if name in ("ack", "nack", "extend", "holds"):
            return call
        return lambda *a, **k: call(self._run_id, *a, **k)


def within(form: str, run: inmem.RunScope, fn: Callable[[Any], Any]) -> Any:
    """What `fn(queues)` gives in a form of the run's queues; a pending result once it is known."""
    db: inmem.Database = run._database
    if form == "facade":
        return fn(ByRunQueues(db.queues, run.run_id))
    if form == "scope":
        return fn(run.queues)
    if form == "transaction":
        with run.transaction() as txn:
            result = fn(txn.queues)
    elif form == "elsewhere":
        with db.transaction("elsewhere") as txn:
            result = fn(txn.at(run.run_id).queues)
    elif form == "snapshot":
        with run.snapshot() as view:
            return fn(view.queues)
    else:
        with db.pipeline() as pipe:
            result = fn(ByRunQueues(pipe.queues, run.run_id) if form == "pipeline" else pipe.run(run).queues)
    if isinstance(result, list):
        return [each.id if isinstance(each, inmem.Pending) else each for each in result]
    return result.value if isinstance(result, inmem.Pending) else result


WRITERS = ("facade", "scope", "transaction", "elsewhere")
PUTTERS = (*WRITERS, "pipeline", "pipelined")
READERS = (*WRITERS, "snapshot")


def claimed(run: inmem.RunScope, queue: str = "q", **options: Any) -> Any:
    """A job, which must be there."""
    job = run.queues.claim(queue, **options)
    assert job is not None
    return job


def counts(run: inmem.RunScope, queue: str = "q") -> tuple[int, int, int, int]:
    """Ready, delayed, claimed, dead."""
    found = run.queues.counts(queue)
    assert isinstance(found, QueueCounts)
    return found.ready, found.delayed, found.claimed, found.dead


def until_ready(run: inmem.RunScope, queue: str = "q") -> None:
    """Until a delay or a claim has run out."""
    run.wait(lambda view: view.queues.has_ready(queue), timeout_s=LONG_S)


# --- putting, and what is there ---------------------------------------------------------------------


@pytest.mark.parametrize("form", PUTTERS)
def test_a_job_comes_out_as_it_was_put(run: inmem.RunScope, form: str) -> None:
    payload = {"to": ["ada", None, 1.5, b"\0"], "deep": {"n": -1}}
    job_id = within(form, run, lambda q: q.put("mail", payload, priority=7, key="k", max_attempts=3))
    assert (job_id, type(job_id), job_id.queue, job_id.number) == ("mail/0", JobId, "mail", 0)
    assert within(form, run, lambda q: q.put_many("mail", [1, 2], priority=1)) == ["mail/1", "mail/2"]
    before = time.time_ns() // 1000
    job = claimed(run, "mail", lease_s=60, worker="ada")
    assert (job.id, job.queue, job.payload, job.attempt, job.errors) == ("mail/0", "mail", payload, 1, ())
    assert (job.run_id, job.priority, job.max_attempts, job.key) == (run.run_id, 7, 3, "k")
    assert before + 50_000_000 < job.claimed_until < before + 120_000_000
    assert 0 < job.enqueued_at < job.claimed_until - 59_000_000 and job.token > 0
    assert pickle.loads(pickle.dumps(job)) == job  # noqa: S301


@pytest.mark.parametrize("form", READERS)
def test_every_form_sees_the_same(run: inmem.RunScope, form: str) -> None:
    queues = run.queues
    for state in ("ready", "delayed", "claimed", "dead", "done"):
        queues.put(state, {"of": state}, delay_s=100 if state == "delayed" else 0, priority=3, key="key")
    queues.nack(claimed(run, "dead", worker="w"), retry=False, error="broke")
    queues.ack(claimed(run, "done"), "result")
    job = claimed(run, "claimed", worker="me")

    def look(q: Any) -> None:
        assert q.list() == ["claimed", "dead", "delayed", "done", "ready"]
        for state in q.list():
            found = q.get(f"{state}/0")
            assert (found.id, found.queue, found.state) == (f"{state}/0", state, state)
            assert (found.payload, found.result) == (
                (None, "result") if state == "done" else ({"of": state}, None)
            )
            assert (found.priority, found.key, found.max_attempts) == (3, "key", 5)
            assert found.attempt == (state in ("claimed", "dead", "done"))
            assert q.has_ready(state) is (state == "ready")
            assert [each.id for each in q.peek(state)] == (["ready/0"] if state == "ready" else [])
            assert [each.id for each in q.dead(state)] == (["dead/0"] if state == "dead" else [])
            assert q.counts(state) == QueueCounts(*(each == state for each in STATES[:4]))
        assert (q.get("claimed/0").worker, q.get("claimed/0").time) == ("me", job.claimed_until)
        assert (q.get("dead/0").errors, q.get("ready/1"), q.get("none/0")) == (("broke",), None, None)

    within(form, run, look)


def test_what_is_not_there(run: inmem.RunScope) -> None:
    queues = run.queues
    assert (queues.list(), queues.claim("q"), queues.claim_many("q", 5)) == ([], None, [])
    assert (counts(run), queues.has_ready("q")) == ((0, 0, 0, 0), False)
    assert queues.peek("q") == queues.dead("q") == []
    assert queues.purge("q") == 0
    assert list(queues.consume("q", wait_s=0)) == []
    with pytest.raises(JobNotFoundError) as caught:
        queues.requeue("q/0")
    assert caught.value.job_id == "q/0"
    assert queues.list() == [], "looking makes no queue"


def test_queues_are_apart(shared_db: inmem.Database, run: inmem.RunScope) -> None:
    other = shared_db.run(new_run())
    for name in ("q", "q2", "q/1", "q ", "Q"):
        run.queues.put(name, name)
        other.queues.put(name, name * 2)
    assert run.queues.put("q/1", 2) == "q/1/1" and JobId("q/1/1").queue == "q/1"
    assert claimed(run, "q/1").payload == "q/1" and claimed(run, "q").payload == "q"
    assert run.queues.claim("q") is None and claimed(other, "q").payload == "qq"
    assert run.queues.get("q/1/1").payload == 2  # type: ignore[union-attr]
    assert run.queues.list() == ["Q", "q", "q ", "q/1", "q2"]


def test_names_and_keys_have_limits(run: inmem.RunScope) -> None:
    queues = run.queues
    assert queues.put("q" * 100, 1, key="k" * 200) == "q" * 100 + "/0"
    assert queues.put("é" * 50, 1, key="é" * 100) == "é" * 50 + "/0"
    assert queues.put("é" * 50, 2, key="é" * 100) == "é" * 50 + "/0"
    for queue, key in (("q" * 101, None), ("q", "k" * 201), ("q", "é" * 101), ("", None), ("q", "")):
        with pytest.raises(InvalidKeyError):
            queues.put(queue, 1, key=key)
    assert len(queues.list()) == 2


# --- order ------------------------------------------------------------------------------------------


def test_higher_priorities_first_then_the_order_of_commits(run: inmem.RunScope) -> None:
    top = (1 << 31) - 1
    priorities = [0, 5, -3, 5, top, 0, -top, 1, 5, -3]
    for number, priority in enumerate(priorities):
        run.queues.put("q", number, priority=priority)
    expected = sorted(range(len(priorities)), key=lambda n: (-priorities[n], n))
    assert [job.payload for job in run.queues.peek("q", limit=4)] == expected[:4]
    found = [claimed(run) for _ in range(3)]
    found += run.queues.claim_many("q", 4)
    found += [claimed(run) for _ in range(3)]
    assert [job.payload for job in found] == expected
    assert [job.priority for job in found] == [priorities[n] for n in expected]
    assert run.queues.claim("q") is None


def test_several_at_a_time(run: inmem.RunScope) -> None:
    run.queues.put_many("q", range(5))
    two = run.queues.claim_many("q", 2)
    assert [job.payload for job in two] == [0, 1] and len({job.token for job in two}) == 1
    options: Any = {"limit": 9}
    assert [job.payload for job in run.queues.claim("q", **options)] == [2, 3, 4]  # type: ignore[union-attr]
    assert run.queues.claim_many("q", 1) == []
    run.queues.ack(two[1])
    run.queues.nack(two[0], delay_s=0)
    assert counts(run) == (1, 0, 3, 0)


def test_a_retried_job_keeps_its_place(run: inmem.RunScope) -> None:
    run.queues.put_many("q", ["a", "b", "c"])
    run.queues.nack(claimed(run), delay_s=0)
    assert [claimed(run).payload for _ in range(3)] == ["a", "b", "c"]


def test_many_jobs_at_once(run: inmem.RunScope) -> None:
    ids = run.queues.put_many("q", range(2500))
    assert ids == [f"q/{n}" for n in range(2500)]
    jobs = run.queues.claim_many("q", 2000)
    assert [job.payload for job in jobs] == list(range(2000))
    assert counts(run) == (500, 0, 2000, 0)
    assert run.queues.purge("q", state="claimed") == 2000
    assert run.queues.purge("q") == 500
    assert counts(run) == (0, 0, 0, 0) and run.queues.put("q", 1) == "q/2500"
    assert run.queues.put_many("q", []) == []


def test_a_claim_takes_what_fits_into_a_commit(run: inmem.RunScope) -> None:
    for _ in range(2):
        run.queues.put_many("q", range(2500), max_attempts=1)
    with pytest.raises(inmem.LimitError):
        run.queues.put_many("q", range(5000))
    found = run.queues.claim_many("q", 10_000, lease_s=60)
    assert 3000 < len(found) < 4000
    found += run.queues.claim_many("q", 10_000, lease_s=60)
    assert [job.id.number for job in found] == list(range(5000))
    assert run.queues.claim_many("q", 10_000) == []


# --- delays -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", PUTTERS)
def test_a_delayed_job_is_ready_in_time_and_nobody_helps(run: inmem.RunScope, form: str) -> None:
    within(form, run, lambda q: q.put("q", "late", delay_s=0.25))
    within(form, run, lambda q: q.put_many("q", ["never"], delay_s=timedelta(days=1)))
    assert run.queues.claim("q") is None
    assert counts(run) == (0, 2, 0, 0) and run.queues.get("q/0").state == "delayed"  # type: ignore[union-attr]
    job = run.queues.claim("q", wait_s=LONG_S)
    assert job is not None and job.payload == "late"
    info = run.queues.get("q/1")
    assert info is not None and info.time - info.enqueued_at == 86_400_000_000
    assert run.queues.claim("q", wait_s=0.01) is None


def test_counts_go_by_the_clock(run: inmem.RunScope) -> None:
    run.queues.put("q", 1, delay_s=SHORT_S)
    run.queues.put("q", 2, priority=1)
    claimed(run, lease_s=SHORT_S)
    run.wait(lambda view: view.queues.counts("q").ready == 2, timeout_s=LONG_S)
    assert counts(run) == (2, 0, 0, 0)
    states = {each: run.queues.get(each).state for each in ("q/0", "q/1")}  # type: ignore[union-attr]
    assert states == {"q/0": "delayed", "q/1": "claimed"}, "no commit was needed"
    assert [job.payload for job in run.queues.claim_many("q", 5)] == [2, 1]


def test_more_that_come_due_than_one_claim_moves(run: inmem.RunScope) -> None:
    run.queues.put_many("q", range(50), delay_s=SHORT_S)
    run.wait(lambda view: view.queues.counts("q").ready == 50, timeout_s=LONG_S)
    found = list(iter(lambda: run.queues.claim("q"), None))
    assert sorted(job.payload for job in found if job) == list(range(50))


def test_a_claim_finds_what_is_behind_many_that_have_died(run: inmem.RunScope) -> None:
    run.queues.put_many("q", range(40), max_attempts=1)
    run.queues.put("q", "alive", priority=-1)
    assert len(run.queues.claim_many("q", 41, lease_s=SHORT_S)) == 41
    run.wait(lambda view: view.queues.counts("q").ready == 41, timeout_s=LONG_S)
    assert claimed(run).payload == "alive"
    assert counts(run) == (0, 0, 1, 40)


# --- keys -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", PUTTERS)
def test_a_key_is_one_live_job(run: inmem.RunScope, form: str) -> None:
    def put(payload: Any, **options: Any) -> Any:
        return within(form, run, lambda q: q.put("q", payload, key="k", **options))

    assert [put("first"), put("second", priority=9, delay_s=9)] == ["q/0", "q/0"]
    assert run.queues.put("q", 1, key="other") == "q/1" and run.queues.put("q2", 1, key="k") == "q2/0"
    job = claimed(run)
    assert job.payload == "first" and put("while claimed") == "q/0"
    run.queues.nack(job, delay_s=100)
    assert put("while delayed") == "q/0"
    assert counts(run) == (1, 1, 0, 0)


ENDS: dict[str, Callable[[inmem.RunScope, Any], Any]] = {
    "acked": lambda run, job: run.queues.ack(job),
    "acked with a result": lambda run, job: run.queues.ack(job, 5),
    "dead": lambda run, job: run.queues.nack(job, retry=False),
    "purged": lambda run, job: run.queues.purge("q"),
}


@pytest.mark.parametrize("end", ENDS)
def test_what_has_ended_frees_its_key(run: inmem.RunScope, end: str) -> None:
    assert run.queues.put("q", 1, key="k") == "q/0"
    ENDS[end](run, claimed(run))
    assert run.queues.put("q", 2, key="k") == "q/1" and run.queues.put("q", 3, key="k") == "q/1"
    assert claimed(run).payload == 2


def test_keys_of_one_call_and_one_transaction(run: inmem.RunScope) -> None:
    with run.transaction() as txn:
        ids = [txn.queues.put("q", n, key=key) for n, key in enumerate(["a", "b", "a", None, "b"])]
        many = txn.queues.put_many("q", ["x", "y"])
        with pytest.raises(InvariantError):
            _ = ids[0].id
    assert [each.id.number for each in ids] == [0, 1, 0, 2, 1]
    assert [each.id for each in many] == ["q/3", "q/4"] and counts(run) == (5, 0, 0, 0)
    assert repr(ids[0]) == "PendingJobId(JobId('q/0'))"


def test_a_key_that_another_begins_with(run: inmem.RunScope) -> None:
    assert [run.queues.put("q", 1, key=key) for key in ("ab", "a", "abc", "a\x01")] == [
        "q/0", "q/1", "q/2", "q/3"
    ]


# --- failing, retries, death ------------------------------------------------------------------------


@pytest.mark.parametrize("form", WRITERS)
def test_a_failed_attempt(run: inmem.RunScope, form: str) -> None:
    run.queues.put("q", 1)
    job = claimed(run)
    assert within(form, run, lambda q: q.nack(job, delay_s=0, error="broke")) is None
    again = claimed(run)
    assert (again.id, again.attempt, again.errors, again.payload) == ("q/0", 2, ("broke",), 1)
    assert again.token > job.token
    within(form, run, lambda q: q.nack(again, delay_s=100, error="once more"))
    assert counts(run) == (0, 1, 0, 0)
    assert run.queues.get("q/0").errors == ("broke", "once more")  # type: ignore[union-attr]


def test_a_rest_grows_with_the_attempt_and_is_bounded(run: inmem.RunScope) -> None:
    run.queues.put("q", 1, max_attempts=65_535)
    rests = []
    for _ in range(14):
        job = claimed(run)
        run.queues.nack(job)
        info = run.queues.get(job.id)
        assert info is not None and info.state == "delayed"
        rests.append(round((info.time - time.time_ns() // 1000) / 1e6))
        run.queues.purge("q")
        run.queues.put("q", 1, max_attempts=65_535)
        for _ in range(len(rests)):
            run.queues.nack(claimed(run), delay_s=0)
    assert rests == [min(2**n, 300) for n in range(14)]


@pytest.mark.parametrize("most", [1, 2, 5])
def test_after_its_last_attempt_a_job_is_dead(run: inmem.RunScope, most: int) -> None:
    run.queues.put("q", "x", max_attempts=None if most == 5 else most)
    for attempt in range(1, most + 1):
        job = claimed(run)
        assert (job.attempt, job.max_attempts) == (attempt, most)
        run.queues.nack(job, delay_s=0, error=f"e{attempt}")
    assert run.queues.claim("q") is None and counts(run) == (0, 0, 0, 1)
    (dead,) = run.queues.dead("q")
    assert (dead.payload, dead.attempt, dead.errors) == (
        "x", most, tuple(f"e{n}" for n in range(1, most + 1))
    )


def test_without_a_retry_it_is_dead_at_once(run: inmem.RunScope) -> None:
    run.queues.put("q", 1)
    run.queues.nack(claimed(run), retry=False, delay_s=5, error="no use")
    assert [dead.errors for dead in run.queues.dead("q")] == [("no use",)]


def test_the_last_errors_are_kept_and_not_all_of_each(run: inmem.RunScope) -> None:
    run.queues.put("q", 1, max_attempts=20)
    for number in range(MAX_ERRORS + 3):
        run.queues.nack(claimed(run), delay_s=0, error=f"{number:>3}" + "é" * 1000)
    errors = claimed(run).errors
    assert [error[:3] for error in errors] == [f"{n:>3}" for n in range(3, MAX_ERRORS + 3)]
    assert {len(error) for error in errors} == {MAX_ERROR_CHARS}


def test_a_claim_that_runs_out_is_an_attempt(run: inmem.RunScope) -> None:
    run.queues.put("q", 1, max_attempts=2)
    first = claimed(run, lease_s=SHORT_S, worker="ada")
    second = run.queues.claim("q", lease_s=SHORT_S, wait_s=LONG_S, worker="bob")
    assert second is not None and (second.attempt, second.token > first.token) == (2, True)
    assert second.errors == ("the claim of ada ran out",)
    until_ready(run)
    assert run.queues.claim("q") is None, "that was the last attempt"
    (dead,) = run.queues.dead("q")
    assert dead.errors == ("the claim of ada ran out", "the claim of bob ran out")


def test_the_default_worker_says_where_it_is(run: inmem.RunScope) -> None:
    run.queues.put("q", 1)
    claimed(run)
    info = run.queues.get("q/0")
    assert info is not None and ":" in info.worker


# --- requeue, purge ---------------------------------------------------------------------------------


@pytest.mark.parametrize("form", WRITERS)
def test_a_dead_job_is_put_back(run: inmem.RunScope, form: str) -> None:
    run.queues.put("q", 1, max_attempts=1, key="k", priority=4)
    run.queues.nack(claimed(run), error="broke")
    assert within(form, run, lambda q: q.requeue("q/0")) is None
    assert run.queues.put("q", 2, key="k") == "q/0", "it has its key again"
    job = claimed(run)
    assert (job.attempt, job.errors, job.priority) == (1, ("broke",), 4)


def test_what_is_not_dead_is_not_put_back(run: inmem.RunScope) -> None:
    for state, options in {"ready": {}, "delayed": {"delay_s": 100}, "claimed": {}, "done": {}}.items():
        run.queues.put(state, 1, **options)  # type: ignore[arg-type]
    claimed(run, "claimed")
    run.queues.ack(claimed(run, "done"), 1)
    for state in ("ready", "delayed", "claimed", "done"):
        with pytest.raises(InvalidInputError, match=f"is {state}: only a dead one"):
            run.queues.requeue(f"{state}/0")


def test_a_dead_job_whose_key_another_has_stays_dead(run: inmem.RunScope) -> None:
    run.queues.put("q", 1, key="k")
    run.queues.nack(claimed(run), retry=False)
    run.queues.put("q", 2, key="k")
    with pytest.raises(InvariantError, match="another job with its key"):
        run.queues.requeue("q/0")
    run.queues.ack(claimed(run))
    run.queues.requeue("q/0")
    assert claimed(run).payload == 1


STATES = ("ready", "delayed", "claimed", "dead", "done")


def one_of_each(run: inmem.RunScope) -> dict[str, Any]:
    """Two jobs of each state; those that are claimed."""
    for state, number in itertools.product(("done", "dead", "claimed", "delayed", "ready"), range(2)):
        job_id = run.queues.put("q", state, delay_s=100 if state == "delayed" else 0, key=f"{state}{number}")
        if state == "done":
            run.queues.ack(claimed(run), 1)
        elif state == "dead":
            run.queues.nack(claimed(run), retry=False)
        elif state == "claimed":
            assert claimed(run).id == job_id
    return {each: run.queues.get(f"q/{n}").state for n, each in enumerate("aabbccddee")}  # type: ignore[union-attr]


@pytest.mark.parametrize("state", STATES)
def test_purge_of_one_state(run: inmem.RunScope, state: str) -> None:
    one_of_each(run)
    assert run.queues.purge("q", state=state) == 2
    left = [info.state for n in range(10) if (info := run.queues.get(f"q/{n}")) is not None]
    assert sorted(left) == sorted(each for each in STATES if each != state for _ in range(2))
    assert run.queues.purge("q", state=state) == 0
    assert run.queues.purge("q") == 8 and counts(run) == (0, 0, 0, 0)
    assert run.queues.put("q", 1, key="ready0") == "q/10", "a number is never used again"


def test_who_holds_what_is_purged_finds_out(run: inmem.RunScope) -> None:
    run.queues.put("q", 1)
    job = claimed(run)
    assert run.queues.purge("q", state="claimed") == 1
    for end in (run.queues.ack, run.queues.nack, run.queues.extend):
        with pytest.raises(JobLostError):
            end(job)
