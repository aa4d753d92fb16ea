"""What a worker of a chaos holds for a while: jobs of a queue, and leases.

Invariant: as of `StressWorker`. A job is done by the transaction that acks it:
its event is the effect. What is written under a lease is blind, so nothing but
the lease keeps a late holder out. Both are often held for longer than they
last: whoever was stopped, or waits for a writer, finds others in its place.
"""

from __future__ import annotations

import time
from typing import Any, Final

import inmem
from workers.stress.worker import StressWorker

QUEUE: Final = "jobs"
JOBS: Final = 3  # of one put, at most
ATTEMPTS: Final = 4
REST_S: Final = 0.05  # of a job that was given back
HELD_S: Final = (0.05, 0.2)  # jobs and leases
LEASES: Final = 2  # of each hot run
WAITS_S: Final = (0.0, 0.0, 0.1, 0.5)
LATE_SHARE: Final = 0.2  # of pauses: longer than it is held


class HoldingWorker(StressWorker):
    """Moves with jobs and leases."""

    def _pause(self, held_s: float) -> None:
        is_late = self._random.random() < LATE_SHARE
        time.sleep(held_s * (self._random.uniform(1, 2) if is_late else self._random.uniform(0, 0.2)))

    def _held_s(self) -> float:
        return round(self._random.uniform(*HELD_S), 3)

    def _put_jobs(self, run: str) -> None:
        worker, chance = self.task.worker, self._random
        args = {"count": chance.randrange(1, JOBS + 1), "attempts": ATTEMPTS}
        delay_s, priority = chance.choice((0.0, 0.0, 0.0, 0.3)), chance.randrange(2)

        def call(n: int) -> list[int]:
            jobs = [[worker, n, part] for part in range(args["count"])]
            put = self.db.queues.put_many(
                run, QUEUE, jobs, delay_s=delay_s, priority=priority, max_attempts=ATTEMPTS
            )
            return [job_id.number for job_id in put]

        self._ask("job.put", run, args, call)

    def _job(self, run: str) -> None:
        """Take the next one, and mostly do it; give it back, or forget it."""
        lease_s, wait_s = self._held_s(), self._random.choice(WAITS_S)
        found: list[Any] = []

        def claim(_: int) -> dict[str, Any] | None:
            found[:] = [self.db.queues.claim(run, QUEUE, lease_s=lease_s, wait_s=wait_s)]
            names = ("payload", "attempt", "token", "claimed_until")
            job = found[0]
            return job and {"number": job.id.number} | {name: getattr(job, name) for name in names}

        self._ask("job.claim", run, {"lease_us": round(lease_s * 1e6)}, claim)
        if found and found[0] is not None:
            self._pause(lease_s)
            self._finish(run, found[0], lease_s)

    def _finish(self, run: str, job: Any, lease_s: float) -> None:
        kind, worker = self._random.random(), self.task.worker
        args = {"number": job.id.number, "token": job.token}

        def call(n: int) -> None:
            def done(txn: Any) -> None:
                txn.events.append("job", [worker, n, job.payload])
                txn.kv.add("jobs")
                txn.queues.ack(job)

            self._transact(run, done)

        if kind < 0.1:
            return
        if kind < 0.2:
            nack = self.db.queues.nack
            self._ask("job.nack", run, args, lambda _: nack(job, delay_s=REST_S, error="not now"))
            return
        if kind < 0.35:
            extend = self.db.queues.extend
            self._ask("job.extend", run, args, lambda _: extend(job, lease_s).claimed_until)
            self._pause(lease_s)
        self._ask("job.done", run, args, call)

    def _lease(self, run: str) -> None:
        """Take one that others want too, write under it for a while, and mostly give it back."""
        chance, leases = self._random, self.db.leases
        name, ttl_s, wait_s = f"{chance.randrange(LEASES)}", self._held_s(), chance.choice(WAITS_S)
        found: list[Any] = []

        def acquire(_: int) -> list[int]:
            found[:] = [leases.acquire(run, name, ttl_s=ttl_s, wait_s=wait_s)]
            return [found[0].token, found[0].acquired_at, found[0].expires_at]

        self._ask("lease.acquire", run, {"name": name}, acquire)
        if not found:
            return
        lease = found[0]
        args = {"name": name, "token": lease.token}
        for _ in range(chance.randrange(1, 4)):
            self._pause(ttl_s)
            if chance.random() < 0.3:
                self._ask("lease.renew", run, args, lambda _: leases.renew(lease).expires_at)
            answer = self._write_under(run, lease, args)
            if isinstance(answer, inmem.LeaseLostError):
                return
        if chance.random() < 0.8:
            self._ask("lease.release", run, args, lambda _: leases.release(lease))

    def _write_under(self, run: str, lease: Any, args: dict[str, Any]) -> Any:
        worker = self.task.worker
        last: list[Any] = []

        def call(n: int) -> int:
            def write(txn: Any) -> None:
                last[:] = [txn]
                txn.events.append("held", [worker, n, lease.name, lease.token])
                txn.kv.put(f"x:{lease.name}", [worker, n])

            self._transact(run, write, lease=lease)
            return int(last[0].version)

        return self._ask("lease.write", run, args, call)
