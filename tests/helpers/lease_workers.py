"""What processes do that hold leases, wait for them, and die or sleep meanwhile."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from support import wait_until

import inmem
from inmem.host.clock import boot_us

RUN = "leased"
NAME = "one"
STUCK_S = 60.0
TTL_S = 5.0


def hold_and_work(words: Any, index: int, path: str, ttl_s: float = TTL_S) -> dict[str, Any]:
    """Acquire, do three commits under the lease and release, until told to end.

    How many additions were acknowledged, how often the lease was lost, and when each was asked for.
    """
    added = lost = 0
    asked: list[tuple[int, int]] = []
    with inmem.open(path, timeout_s=STUCK_S) as db:
        run = db.run(RUN)
        while not words.stopping():
            began = boot_us()
            with run.leases.hold(NAME, ttl_s=ttl_s, wait_s=STUCK_S) as held:
                asked.append((began, held.token))
                try:
                    held.transact(lambda txn, token=held.token: txn.events.append("begin", [index, token]))
                    held.transact(lambda txn: txn.kv.put("sum", txn.kv.get("sum", 0) + 1))
                    added += 1
                    held.transact(lambda txn, token=held.token: txn.events.append("end", [index, token]))
                except inmem.LeaseLostError:
                    lost += 1
            words[index] = added + lost
    return {"added": added, "lost": lost, "asked": asked}


def hold_until_told(words: Any, path: str, ttl_s: float) -> dict[str, Any]:
    """Hold a lease until told; what it is like then, and what a commit under it comes to."""
    with inmem.open(path) as db, db.leases.hold(RUN, NAME, ttl_s=ttl_s, wait_s=STUCK_S) as held:
        words[0] = held.token
        while not words[1]:
            time.sleep(0.005)
        is_lost = held.lost.is_set()
        try:
            held.transact(lambda txn: txn.kv.put("by", "late"))
            said = "stored"
        except inmem.InmemError as error:
            said = error.code
        try:
            held.check()
            checked = "held"
        except inmem.InmemError as error:
            checked = error.code
    return {"is_lost": is_lost, "said": said, "checked": checked}


def wait_for_it(words: Any, path: str) -> int:
    """Wait for the lease for ever; its token."""
    with inmem.open(path) as db:
        words[0] = 1
        return db.leases.acquire(RUN, NAME, ttl_s=TTL_S, wait_s=None).token


def wait_in_tasks(words: Any, path: str, count: int) -> None:
    """As many tasks of a loop wait for ever."""

    async def main() -> None:
        async with inmem.aio.open(path) as db:
            words[0] = 1
            await asyncio.gather(*(
                db.leases.acquire(RUN, NAME, ttl_s=TTL_S, wait_s=None) for _ in range(count)
            ))

    asyncio.run(main())


def waits(db: inmem.Database, count: int) -> None:
    """Return once so many wait."""
    from inmem.primitives.leases.rules import waiters_of

    prefix = db.run(RUN).prefix
    wait_until(
        lambda: db.engine.latest().count(*waiters_of(prefix, NAME.encode())) == count, f"{count} wait"
    )
