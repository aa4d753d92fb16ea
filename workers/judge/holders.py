"""The checks of what is held for a while: jobs and leases.

Who holds what, and from when until when, is told by the store's own clock, so
two holders are compared without any slack. A token is the version of the
commit that gave it, so it is compared with the versions of commits.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from typing import Any, Final, NamedTuple

from workers.judge.checks import Check
from workers.judge.final_state import FinalRun, FinalState, Table, check_effect
from workers.judge.history import OK, REFUSED, UNKNOWN, Op, by_run
from workers.judge.values import shorten

# What a question may be refused with.
LOST: Final = {
    **dict.fromkeys(("job.done", "job.nack", "job.extend"), frozenset({"JobLostError"})),
    **dict.fromkeys(("lease.write", "lease.renew"), frozenset({"LeaseLostError"})),
    "lease.acquire": frozenset({"LeaseHeldError"}),
}
Identity = tuple[int, int, int]  # of a job: who put it, in which question, as which part


class Held(NamedTuple):
    """That somebody held something, by the store's clock; until when at least."""

    what: Any  # its name, or a job's number
    token: int
    since: int
    until: int
    attempt: int  # of a job
    op: Op


def check_jobs(check: Check, asked: list[Op], final: FinalState) -> None:
    """Each job that was put was done once, or is there; each claim was an attempt, one after the other."""
    for run, ops in by_run(asked).items():
        _check_jobs_of(check, run, ops, final.runs[run])


def _check_jobs_of(check: Check, run: str, ops: list[Op], there: FinalRun) -> None:
    made = _effects(there, "job")
    effects = dict(made)
    done = Counter(tuple(name) for _, (name,) in made)
    left = {tuple(payload): (state, attempt) for payload, state, attempt in there.jobs.values()}
    counted = there.job_count
    fits = counted == len(there.jobs) == len(left)
    check.require(fits, f"{run}: {counted} jobs are counted, there are {shorten(left)}")
    acked = there.kv.get("jobs", 0)
    check.require(acked == len(made), f"{run}: {acked} acks are counted, {len(made)} were made")
    name_of = {number: tuple(payload) for number, (payload, _, _) in there.jobs.items()}
    for op in _of(ops, "job.put"):
        names: list[Identity] = [(op.worker, op.n, part) for part in range(op.args["count"])]
        times = [done.pop(name, 0) + (name in left) for name in names]
        check_effect(check, op, set(times) == {1}, not any(times), times)
        most = op.args["attempts"]
        for name, found in zip(names, times, strict=True):
            check.count(op.outcome == OK, found, 1)
            state, attempt = left.pop(name, ("", 0))
            fits = attempt <= most and (state != "dead" or attempt == most)
            check.require(fits, f"{run}: job {name} is {state} after {attempt} attempts of {most}")
        for number, name in zip(op.result or (), names, strict=op.outcome == OK):
            known = name_of.setdefault(number, name)
            check.require(known == name, f"{run}: job {number} is {known} and {name}")
    check.require(not (done or left), f"{run}: jobs that nobody put: {shorten([*done, *left])}")
    claims = _claims(check, ops, name_of)
    attempts = {number: attempt for number, (_, _, attempt) in there.jobs.items()}
    for op in _of(ops, "job.done"):
        payload = effects.pop((op.worker, op.n), [None])[0]
        name = name_of.get(op.args["number"], ())
        check_effect(check, op, payload is not None and tuple(payload) == name, payload is None, payload)
        if payload is not None:
            last = claims[op.args["number"]][-1]
            fits = last.token == op.args["token"]
            check.require(fits, f"{op}: done with token {op.args['token']}, after {last.op} had {last.token}")
            attempts[op.args["number"]] = last.attempt
    check.require(not effects, f"{run}: jobs that nobody did: {shorten([*effects])}")
    _check_held(check, claims.values(), _ended(ops, "job.nack"))
    missing = sum(attempt - len(claims.get(number, ())) for number, attempt in attempts.items())
    unknown = sum(op.outcome == UNKNOWN for op in _of(ops, "job.claim"))
    check.require(
        0 <= missing <= unknown, f"{run}: {missing} attempts beside those told of, {unknown} had no answer"
    )


def _claims(check: Check, ops: list[Op], name_of: dict[int, Identity]) -> dict[int, list[Held]]:
    """The claims that were told of, of each job, in the order of their tokens."""
    claims: dict[int, list[Held]] = {}
    extended = _lasts(ops, "job.extend")
    for op in _of(ops, "job.claim"):
        if op.outcome == OK and op.result is not None:
            number, token, until = (op.result[name] for name in ("number", "token", "claimed_until"))
            name = name_of.setdefault(number, tuple(op.result["payload"]))  # put by one who was killed
            check.equal(tuple(op.result["payload"]), name, f"the job of {op}")
            held = Held(
                number, token, until - op.args["lease_us"], max(until, extended.get((number, token), 0)),
                op.result["attempt"], op,
            )
            claims.setdefault(number, []).append(held)
    for of_job in claims.values():
        of_job.sort(key=lambda held: held.token)
        for before, after in pairwise(of_job):
            fits = after.attempt > before.attempt
            check.require(fits, f"{after.op} is attempt {after.attempt}, {before.op} was {before.attempt}")
    return claims


def check_leases(check: Check, asked: list[Op], final: FinalState) -> None:
    """One holder at a time, with a token that grows; what was written late is nowhere."""
    for run, ops in by_run(asked).items():
        there = final.runs[run]
        renewed = _lasts(ops, "lease.renew")
        held: dict[str, list[Held]] = {}
        for op in _of(ops, "lease.acquire"):
            if op.outcome == OK:
                token, since, until = op.result
                until = max(until, renewed.get((op.args["name"], token), 0))
                held.setdefault(op.args["name"], []).append(Held(op.args["name"], token, since, until, 0, op))
        for of_name in held.values():
            of_name.sort(key=lambda one: one.token)
        _check_held(check, held.values(), _ended(ops, "lease.release"))
        _check_written(check, run, _of(ops, "lease.write"), held, there)


def _check_written(
    check: Check, run: str, writes: list[Op], held: dict[str, list[Held]], there: FinalRun
) -> None:
    last: dict[str, tuple[int, list[int]]] = {}
    made = _effects(there, "held")
    effects = dict(made)
    check.require(len(effects) == len(made), f"{run}: of {len(made)} writes {len(effects)} were asked for")
    for (worker, n), (name, token) in made:  # as they come in the log
        before, _ = last.get(name, (0, []))
        check.require(
            token >= before, f"{run}: {n} of worker {worker}, with token {token}, comes after {before}"
        )
        last[name] = (token, [worker, n])
    for name, (_, writer) in last.items():
        check.equal(there.kv.get(f"x:{name}"), writer, f"{run}: who wrote under {name} last")
    for op in writes:
        name, token = op.args["name"], op.args["token"]
        found = effects.pop((op.worker, op.n), None)
        check_effect(check, op, found == [name, token], found is None, found)
        check.count(op.outcome == OK, found is not None, 1)
        tokens = [one.token for one in held[name]]
        after = bisect_right(tokens, token)
        if op.outcome == OK and after < len(tokens):
            check.require(
                token < op.result < tokens[after],
                f"{op}: version {op.result} with token {token}, and {tokens[after]} was given",
            )
    check.require(not effects, f"{run}: written under leases by nobody: {shorten([*effects])}")


def _check_held(check: Check, held: Iterable[list[Held]], ended: set[tuple[Any, int]]) -> None:
    """Of what is in the order of its tokens: each is later, and begins when the one before is over."""
    for one in held:
        asked_at = 0
        for before, after in pairwise(one):
            asked_at = max(asked_at, before.op.asked_at)
            check.require(
                after.token > before.token and (after.op.answered_at or 0) >= asked_at,
                f"{after.op} was given token {after.token}, after {before.op} {before.token}",
            )
            check.require(
                after.since >= before.until or before[:2] in ended,
                f"{after.op} began {before.until - after.since} us before {before.op} was over",
            )


def _of(ops: list[Op], kind: str) -> list[Op]:
    return [op for op in ops if op.op == kind]


def _effects(there: FinalRun, kind: str) -> list[tuple[tuple[int, int], list[Any]]]:
    """Of the events of one kind: worker and question, and what they say; in their order."""
    return [((payload[0], payload[1]), payload[2:]) for _, each, payload in there.events if each == kind]


def _lasts(ops: list[Op], kind: str) -> dict[tuple[Any, int], int]:
    """Until when what is held lasts that was renewed, by what it is and its token."""
    found: dict[tuple[Any, int], int] = {}
    for op in _of(ops, kind):
        if op.outcome == OK:
            place = _place(op)
            found[place] = max(found.get(place, 0), op.result)
    return found


def _ended(ops: list[Op], kind: str) -> set[tuple[Any, int]]:
    """What may have been given back before its time."""
    return {_place(op) for op in _of(ops, kind) if op.outcome != REFUSED}


def _place(op: Op) -> tuple[Any, int]:
    return op.args.get("name", op.args.get("number")), op.args["token"]


HOLDERS: Final[Table] = (
    ("jobs", check_jobs, frozenset({"job.put", "job.claim", "job.done", "job.nack", "job.extend"})),
    ("leases", check_leases, frozenset({"lease.acquire", "lease.renew", "lease.write", "lease.release"})),
)
