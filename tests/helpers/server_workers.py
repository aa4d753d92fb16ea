"""What worker processes do on a store on a server, while that dies, and what must be there afterwards."""

from __future__ import annotations

import time
from typing import Any

from support import Workers, wait_until

import inmem
from inmem import CommitUnknownError, InmemError

SHARED = "shared"


def work_on(words: Any, index: int, url: str, deadline_s: float, is_kept: bool) -> dict[str, Any]:
    """Commits of several kinds until told to stop; how many were acknowledged, and what went wrong.

    With `is_kept` each addition must give one more than the one before: nothing acknowledged was lost.
    """
    told: dict[str, Any] = {"own": 0, "all": 0, "log": 0, "moved": 0, "jobs": 0, "unknown": 0}
    errors: list[str] = []
    wrong: list[str] = []
    longest = 0.0
    with inmem.open(url, timeout_s=deadline_s) as db:
        run, shared = db.run(f"own-{index}"), db.run(SHARED)

        def own() -> None:
            found = run.kv.add("n", 1)
            if found != told["own"] + 1 and is_kept:
                wrong.append(f"addition {told['own'] + 1} of worker {index} gave {found}")

        def everybody() -> None:
            shared.kv.add("n", 1)

        def log() -> None:
            shared.events.append("done", f"{index}.{told['log']}")

        def move(txn: Any) -> None:
            txn.kv.put("a", txn.kv.get("a", 0) - 1)
            other = txn.at(f"own-{index}-b").kv
            other.put("b", other.get("b", 0) + 1)

        def moved() -> None:
            run.transact(move, timeout_s=deadline_s)

        def jobs() -> None:
            run.queues.put("q", told["jobs"])
            job = run.queues.claim("q", lease_s=600)
            if job is None:
                wrong.append(f"worker {index} put a job and there is none")
            else:
                run.queues.ack(job)

        kinds = {"own": own, "all": everybody, "log": log, "moved": moved, "jobs": jobs}
        words[64 + index] = 1
        words.pass_gate()
        while not words.stopping():
            for name, call in kinds.items():
                began = time.monotonic()
                try:
                    call()
                except CommitUnknownError as error:
                    told["unknown"] += 1
                    errors.append(f"{name}: {error!r}")
                except InmemError as error:
                    errors.append(f"{name}: {error!r}")
                else:
                    told[name] += 1
                longest = max(longest, time.monotonic() - began)
            words[index] += 1
    return told | {"errors": errors[:20], "wrong": wrong[:20], "longest_s": longest}


def judged(url: str, told: list[dict[str, Any]]) -> tuple[int, int]:
    """How many acknowledged commits are missing, and how many are there twice."""
    lost = doubled = 0
    with inmem.open(url, timeout_s=30.0) as db:
        def compare(wanted: int, found: int) -> None:
            nonlocal lost, doubled
            lost += max(0, wanted - found)
            doubled += max(0, found - wanted)

        shared = db.run(SHARED)
        compare(sum(each["all"] for each in told), shared.kv.get("n", 0))
        assert shared.events.verify_chain().is_valid
        found = [event.payload for event in shared.events.iter()]
        wanted = {f"{index}.{n}" for index, each in enumerate(told) for n in range(each["log"])}
        lost += len(wanted - {*found})
        doubled += len(found) - len({*found})
        for index, each in enumerate(told):
            run = db.run(f"own-{index}")
            compare(each["own"], run.kv.get("n", 0))
            compare(each["moved"], -run.kv.get("a", 0))
            there = db.run(f"own-{index}-b").kv.get("b", 0)
            assert there == -run.kv.get("a", 0), "a transaction is whole"
            counts = run.queues.counts("q")
            doubled += counts.ready + counts.claimed + counts.dead
    return lost, doubled


def started(workers: Workers, count: int, url: str, deadline_s: float, *, is_kept: bool = True) -> list[Any]:
    """Workers that are about to begin."""
    some = [workers.start(work_on, index, url, deadline_s, is_kept) for index in range(count)]
    wait_until(
        lambda: workers.check() or all(workers.words[64 + i] for i in range(count)), "all are there", 60
    )
    workers.words.open_gate()
    return some


def progress(workers: Workers, count: int, rounds: int = 1) -> None:
    """Wait until each worker has gone on."""
    before = [workers.words[index] for index in range(count)]
    wait_until(
        lambda: workers.check() or all(workers.words[i] >= before[i] + rounds for i in range(count)),
        "all workers work", 120,
    )


def summary(told: list[dict[str, Any]]) -> str:
    """What they did, in a line."""
    kinds = {name: sum(each[name] for each in told) for name in ("own", "all", "log", "moved", "jobs")}
    longest = max(each["longest_s"] for each in told)
    return f"{sum(kinds.values()) + 2 * kinds['jobs']} commits of {len(told)} workers {kinds}, " \
        f"longest wait {longest:.2f} s"


def no_error(told: list[dict[str, Any]]) -> None:
    """Nobody was told of an error, and nobody has seen anything wrong."""
    errors = [error for each in told for error in each["errors"] + each["wrong"]]
    assert not errors, "\n".join(errors)
