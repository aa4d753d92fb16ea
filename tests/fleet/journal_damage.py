"""Ways to damage the journals of a chaos, or what is in its store at the end: each has to be noticed.

`DAMAGE` says by which check, and what of the sums tells of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from workers.chaos.holders import ATTEMPTS
from workers.judge.chaos import Journal
from workers.judge.final_state import FinalState
from workers.judge.history import OK, REFUSED, UNKNOWN, Op

Journals = list[Journal]


def an_op(journals: Journals, name: str, which: Callable[[Op], bool] = lambda _: True) -> Op:
    """The last acknowledged question of its kind."""
    ops = [op for journal in journals for op in journal.ops if op.op == name and op.outcome == OK]
    return next(op for op in reversed(ops) if which(op))


def lose_an_event(journals: Journals, final: FinalState) -> None:
    op = an_op(journals, "append")
    events = final.runs[op.run].events
    del events[next(i for i, event in enumerate(events) if event[1] == "tick")]


def double_an_event(journals: Journals, final: FinalState) -> None:
    op = an_op(journals, "append")
    events = final.runs[op.run].events
    events.append((len(events), *events[op.result[0]][1:]))


def double_a_block(journals: Journals, final: FinalState) -> None:
    op = an_op(journals, "pipe")
    final.runs[op.args["blocks"][0][0]].kv["piped"] += op.args["blocks"][0][1]


def lose_a_block(journals: Journals, final: FinalState) -> None:
    op = an_op(journals, "pipe")
    run = op.args["blocks"][-1][0]
    final.runs[run].kv[f"p:{op.worker}:0"] = [0, 0]


def lose_an_addition(journals: Journals, final: FinalState) -> None:
    final.runs[an_op(journals, "add").run].kv["counter"] -= 1


def double_an_addition(journals: Journals, final: FinalState) -> None:
    final.runs[an_op(journals, "add").run].kv["counter"] += 1


def lose_an_update(journals: Journals, final: FinalState) -> None:
    final.runs[an_op(journals, "rmw").run].kv["rmw"] -= 1


def tell_one_number_twice(journals: Journals, final: FinalState) -> None:
    an_op(journals, "rmw", lambda op: op.result > 1).result -= 1


def show_an_older_entry(journals: Journals, final: FinalState) -> None:
    op = an_op(journals, "entry", lambda op: op.args["key"] in final.runs[op.run].kv)
    final.runs[op.run].kv[op.args["key"]] -= 1


def lose_an_entry(journals: Journals, final: FinalState) -> None:
    op = an_op(journals, "entry", lambda op: op.args["key"] in final.runs[op.run].kv)
    del final.runs[op.run].kv[op.args["key"]]


def find_a_stranger(journals: Journals, final: FinalState) -> None:
    final.runs[final.hot[0]].kv["s:99:0"] = 1


def scan_too_little(journals: Journals, final: FinalState) -> None:
    an_op(journals, "scan", lambda op: op.result).result.popitem()


def keep_what_expired(journals: Journals, final: FinalState) -> None:
    final.runs[final.hot[0]].kv["t:0:0"] = 1


def see_what_expired(journals: Journals, final: FinalState) -> None:
    op = an_op(journals, "look", lambda op: op.result is not None)
    op.asked_at += 10_000_000_000


def change_a_snapshot(journals: Journals, final: FinalState) -> None:
    an_op(journals, "hold").result[1][1] += 1


def delete_too_little(journals: Journals, final: FinalState) -> None:
    an_op(journals, "own.delete").result["events"] -= 1


def delete_too_much(journals: Journals, final: FinalState) -> None:
    an_op(journals, "own.delete").result["kv"] += 1


def lose_a_read(journals: Journals, final: FinalState) -> None:
    op = an_op(journals, "txn", lambda op: any(step[0] == "read" and step[2] for step in op.result["steps"]))
    step = next(step for step in op.result["steps"] if step[0] == "read" and step[2])
    step[2] = step[2][:-1]


def lose_a_list_element(journals: Journals, final: FinalState) -> None:
    run = final.hot[0]
    key = next(key for key in final.runs[run].kv if key.startswith("l:") and final.runs[run].kv[key])
    final.runs[run].kv[key] = final.runs[run].kv[key][:-1]


def reorder_a_worker(journals: Journals, final: FinalState) -> None:
    op = an_op(journals, "append", lambda op: op.args["count"] > 1)
    events, (first, second, *_) = final.runs[op.run].events, op.result
    left, right = events[first], events[second]
    events[first], events[second] = (first, *right[1:]), (second, *left[1:])


def lose_a_job(journals: Journals, final: FinalState) -> None:
    events = final.runs[an_op(journals, "job.done").run].events
    events.remove(next(event for event in events if event[1] == "job"))


def lose_a_job_that_waits(journals: Journals, final: FinalState) -> None:
    run, number = a_job_that_waits(final)
    del final.runs[run].jobs[number]
    final.runs[run].job_count -= 1


def a_job_that_waits(final: FinalState) -> tuple[str, int]:
    return next((run, number) for run in final.hot for number in final.runs[run].jobs)


def double_a_job(journals: Journals, final: FinalState) -> None:
    events = final.runs[an_op(journals, "job.done").run].events
    events.append((len(events), *next(event for event in events if event[1] == "job")[1:]))


def keep_a_job_that_is_done(journals: Journals, final: FinalState) -> None:
    op = an_op(journals, "job.done")
    there = final.runs[op.run]
    made = (event[2] for event in there.events if event[1] == "job")
    payload = next(name for worker, n, name in made if (worker, n) == (op.worker, op.n))
    there.jobs[op.args["number"]] = (payload, "claimed", 1)
    there.job_count += 1


def do_a_job_late(journals: Journals, final: FinalState) -> None:
    """Whoever has done it had lost it to the next claim."""
    op = an_op(journals, "job.done", lambda op: claim_before(journals, op) is not None)
    op.args["token"] = claim_before(journals, op).result["token"]


def claim_before(journals: Journals, done: Op) -> Any:
    """An earlier claim of the same job, which has run out."""
    nacked = {op.args["token"] for journal in journals for op in journal.ops if op.op == "job.nack"}
    return next(
        (
            op for op in ops_of(journals, "job.claim", done.run)
            if op.result["number"] == done.args["number"]
            and op.result["token"] < done.args["token"] and op.result["token"] not in nacked
        ),
        None,
    )  # fmt: skip


def ops_of(journals: Journals, kind: str, run: str) -> list[Op]:
    """The acknowledged questions of a kind that came to something."""
    return [
        op for journal in journals for op in journal.ops
        if (op.op, op.run, op.outcome) == (kind, run, OK) and op.result is not None
    ]  # fmt: skip


def give_a_job_to_two(journals: Journals, final: FinalState) -> None:
    done = an_op(journals, "job.done", lambda op: claim_before(journals, op) is not None)
    claim_before(journals, done).result["claimed_until"] += 60_000_000


def skip_an_attempt(journals: Journals, final: FinalState) -> None:
    done = an_op(journals, "job.done")
    claim = next(
        op for op in ops_of(journals, "job.claim", done.run) if op.result["token"] == done.args["token"]
    )
    claim.result["attempt"] += 1


def count_an_attempt_too_many(journals: Journals, final: FinalState) -> None:
    run, number = a_job_that_waits(final)
    payload, state, attempt = final.runs[run].jobs[number]
    final.runs[run].jobs[number] = (payload, state, attempt + 1)


def bury_a_job_too_early(journals: Journals, final: FinalState) -> None:
    run, number = next(
        (run, number) for run in final.hot for number, (_, state, attempt) in final.runs[run].jobs.items()
        if state != "dead" and attempt < ATTEMPTS
    )
    payload, _, attempt = final.runs[run].jobs[number]
    final.runs[run].jobs[number] = (payload, "dead", attempt)


def store_a_late_write(journals: Journals, final: FinalState) -> None:
    """It is in the log, and its version is above the token of who came next."""
    first, second, *_ = two_holders(journals)
    write = next(
        op for op in ops_of(journals, "lease.write", first.run) if op.args["token"] == first.result[0]
    )
    write.result = second.result[0] + 1


def write_out_of_turn(journals: Journals, final: FinalState) -> None:
    run = an_op(journals, "lease.write").run
    events = final.runs[run].events
    places = [place for place, event in enumerate(events) if event[1] == "held"]
    first = events[places[0]]
    _, _, name, token = first[2]
    last = next(p for p in reversed(places) if events[p][2][2] == name and events[p][2][3] > token)
    events[places[0]], events[last] = (places[0], *events[last][1:]), (last, *first[1:])


def lose_a_write_under_a_lease(journals: Journals, final: FinalState) -> None:
    events = final.runs[an_op(journals, "lease.write").run].events
    events.remove(next(event for event in events if event[1] == "held"))


def two_holders(journals: Journals) -> list[Op]:
    """Who had one lease, in order, of whom the first has written under it and kept it to its end."""
    run = an_op(journals, "lease.acquire").run
    released = {op.args["token"] for op in ops_of(journals, "lease.release", run)}
    wrote = {op.args["token"] for op in ops_of(journals, "lease.write", run)}
    for name in "01":
        ops = [op for op in ops_of(journals, "lease.acquire", run) if op.args["name"] == name]
        for place, op in enumerate(ops[:-1]):
            if op.result[0] in wrote - released:
                return ops[place:]
    raise AssertionError("nobody has kept a lease to its end")


def have_two_holders(journals: Journals, final: FinalState) -> None:
    first, second, *_ = two_holders(journals)
    second.result[1] = first.result[2] - 1


def give_a_token_twice(journals: Journals, final: FinalState) -> None:
    first, second, *_ = two_holders(journals)
    second.result[0] = first.result[0]


def meet_an_error(journals: Journals, final: FinalState) -> None:
    op = an_op(journals, "audit")
    op.outcome, op.error = REFUSED, "WriterUnavailableError"


def never_be_answered(journals: Journals, final: FinalState) -> None:
    op = an_op(journals, "audit")
    op.outcome = UNKNOWN


def be_told_of_a_full_store(journals: Journals, final: FinalState) -> None:
    op = an_op(journals, "audit")
    op.outcome, op.error = REFUSED, "StoreFullError"


def break_an_index(journals: Journals, final: FinalState) -> None:
    final.problems.append("an index entry without its record")


def break_a_chain(journals: Journals, final: FinalState) -> None:
    final.runs[final.hot[0]].chain = "event 3 does not follow event 2"


DAMAGE: list[tuple[Callable[[Journals, FinalState], None], str, str]] = [
    (lose_an_event, "exactly once", "lost"),
    (double_an_event, "exactly once", "doubled"),
    (double_a_block, "pipelines", "doubled"),
    (lose_a_block, "pipelines", "lost"),
    (lose_an_addition, "counted once", "lost"),
    (double_an_addition, "counted once", "doubled"),
    (lose_an_update, "read-modify-write", "lost"),
    (tell_one_number_twice, "read-modify-write", ""),
    (show_an_older_entry, "own entries", "lost"),
    (lose_an_entry, "own entries", "lost"),
    (find_a_stranger, "own entries", ""),
    (scan_too_little, "own entries", ""),
    (keep_what_expired, "expiry", ""),
    (see_what_expired, "expiry", ""),
    (change_a_snapshot, "held snapshots", ""),
    (delete_too_little, "private runs", "lost"),
    (delete_too_much, "private runs", "doubled"),
    (lose_a_read, "serializable histories", ""),
    (lose_a_list_element, "serializable histories", ""),
    (reorder_a_worker, "order of workers", ""),
    (lose_a_job, "jobs", "lost"),
    (lose_a_job_that_waits, "jobs", "lost"),
    (double_a_job, "jobs", "doubled"),
    (keep_a_job_that_is_done, "jobs", "doubled"),
    (do_a_job_late, "jobs", ""),
    (give_a_job_to_two, "jobs", ""),
    (skip_an_attempt, "jobs", ""),
    (count_an_attempt_too_many, "jobs", ""),
    (bury_a_job_too_early, "jobs", ""),
    (store_a_late_write, "leases", ""),
    (write_out_of_turn, "leases", ""),
    (lose_a_write_under_a_lease, "leases", "lost"),
    (have_two_holders, "leases", ""),
    (give_a_token_twice, "leases", ""),
    (meet_an_error, "answers", "errors"),
    (never_be_answered, "answers", "errors"),
    (be_told_of_a_full_store, "answers", "errors"),
    (break_an_index, "integrity", ""),
    (break_a_chain, "chains", ""),
]
