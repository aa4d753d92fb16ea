"""The tools that put and do jobs, and that own things: queues and leases.

What was claimed is named by a text that the tool returns. So a claim is the client's and not this
process's: another process of this server can go on with it.
"""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal

from pydantic import BaseModel, Field

import inmem
import inmem.aio
from inmem.adapters.mcp.arguments import JsonValue, Run, WaitS, is_tool, value_of
from inmem.adapters.mcp.reading import Queue, scope_of
from inmem.adapters.mcp.shown import Cut, LeaseShown, Time, Value, shown_together, time_of
from inmem.adapters.mcp.writing import RemovedShown

_JOB: Final = re.compile(
    r"(?P<id>(?P<queue>[^\0\ud800-\udfff]{1,100})/[0-9]{1,18})#(?P<token>[0-9]{1,18})\.(?P<mark>[0-9]{1,17})"
)
_LEASE: Final = re.compile(r"(?P<token>[0-9]{1,18})\.(?P<acquired_at>[0-9]{1,18})")

JobClaim = Annotated[str, Field(description="The `claim` that queues_claim has returned.")]
LeaseClaim = Annotated[str, Field(description="The `claim` that leases_acquire has returned.")]
JobIdGiven = Annotated[str, Field(description="The job's id.")]
LeaseName = Annotated[str, Field(description="The name of what is owned.")]
LeaseS = Annotated[
    float, Field(gt=0, le=86_400, description="Yours for so many seconds. Then others may take it.")
]
TtlGiven = Annotated[
    float, Field(gt=0, le=86_400, description="For how many seconds from now on it is yours.")
]


class JobPut(BaseModel):
    """A job was put."""

    id: str


class ClaimedShown(BaseModel):
    """A job that is yours for a while."""

    claim: str = Field(description="Give this to queues_ack, queues_nack and queues_extend.")
    id: str
    queue: str
    payload: Value
    cut: Cut
    attempt: int = Field(description="How often it was claimed, this time included.")
    max_attempts: int
    priority: int
    errors: list[str] = Field(description="Why earlier attempts have failed.")
    claimed_until: Time


class ClaimAnswer(BaseModel):
    """The job that was taken."""

    job: ClaimedShown | None = Field(description="Null if there is none.")


class DoneShown(BaseModel):
    """It is done."""

    done: Literal[True] = True


class ReleasedShown(BaseModel):
    """A lease was given back."""

    released: bool = Field(description="False if it had run out, and was taken or released before.")


class WorkingTools:
    """The tools of workers."""

    def __init__(self, db: inmem.aio.AsyncDatabase) -> None:
        self._db = db

    # --- queues -------------------------------------------------------------------------------

    @is_tool("Put a job into a queue", changes=True)
    async def queues_put(
        self,
        run: Run,
        queue: Queue,
        payload: JsonValue,
        delay_s: Annotated[float, Field(ge=0, description="It is ready after so many seconds.")] = 0.0,
        priority: Annotated[int, Field(description="Higher ones are taken first.")] = 0,
        key: Annotated[
            str | None, Field(description="While a job with this key is there, no second one is put.")
        ] = None,
        max_attempts: Annotated[
            int | None, Field(ge=1, description="After so many failed attempts it is dead; none: 5.")
        ] = None,
    ) -> JobPut:
        """Put a job into a queue of a run, for any worker to take."""
        content = value_of(payload, "payload")
        put = await scope_of(self._db, run).queues.put(
            queue, content, delay_s=delay_s, priority=priority, key=key, max_attempts=max_attempts
        )
        return JobPut(id=str(put))

    @is_tool("Take a job", changes=True)
    async def queues_claim(
        self,
        run: Run,
        queue: Queue,
        lease_s: LeaseS = 60.0,
        wait_s: WaitS = 0.0,
        worker: Annotated[str | None, Field(description="Who takes it, for others to see.")] = None,
    ) -> ClaimAnswer:
        """Take the next job of a queue. It is yours for `lease_s` seconds, and nobody else's.

        When it is done call queues_ack, if it failed queues_nack, if you need more time queues_extend. If you
        do nothing in time it goes to another worker.
        """
        scope = scope_of(self._db, run)
        job = await scope.queues.claim(queue, lease_s=lease_s, wait_s=wait_s, worker=worker)
        return ClaimAnswer(job=None if job is None else _claimed(job))

    @is_tool("Finish a job", changes=True)
    async def queues_ack(self, run: Run, claim: JobClaim, result: JsonValue = None) -> DoneShown:
        """End a job that is done. A result, if you give one, can be read later with queues_job.

        If the claim ran out and another worker has the job, it fails with the code job_lost.
        """
        scope = scope_of(self._db, run)
        await scope.queues.ack(_job_of(scope, claim), value_of(result, "result"))
        return DoneShown()

    @is_tool("Give a job back", changes=True)
    async def queues_nack(
        self,
        run: Run,
        claim: JobClaim,
        error: Annotated[str | None, Field(description="Why it failed.")] = None,
        delay_s: Annotated[
            float | None, Field(ge=0, description="Ready after so many seconds; none: longer each time.")
        ] = None,
        retry: Annotated[bool, Field(description="False: nobody shall try it again.")] = True,
    ) -> DoneShown:
        """Give back a job whose attempt has failed, to be tried again."""
        scope = scope_of(self._db, run)
        await scope.queues.nack(_job_of(scope, claim), delay_s=delay_s, error=error, retry=retry)
        return DoneShown()

    @is_tool("Keep a job for longer", changes=True)
    async def queues_extend(self, run: Run, claim: JobClaim, lease_s: LeaseS = 60.0) -> DoneShown:
        """Keep a job for `lease_s` seconds from now on. The claim stays the same."""
        scope = scope_of(self._db, run)
        await scope.queues.extend(_job_of(scope, claim), lease_s)
        return DoneShown()

    @is_tool("Try a dead job again", changes=True)
    async def queues_requeue(self, run: Run, id: JobIdGiven) -> DoneShown:
        """Put a dead job back into its queue."""
        await scope_of(self._db, run).queues.requeue(id)
        return DoneShown()

    @is_tool("Remove the jobs of a queue", changes=True, destroys=True, repeatable=True)
    async def queues_purge(
        self,
        run: Run,
        queue: Queue,
        state: Annotated[
            Literal["ready", "delayed", "claimed", "dead", "done"] | None,
            Field(description="Only jobs in this state; none: all of them."),
        ] = None,
    ) -> RemovedShown:
        """Remove the jobs of a queue, also those that somebody works on."""
        return RemovedShown(removed=await scope_of(self._db, run).queues.purge(queue, state=state))

    # --- leases -------------------------------------------------------------------------------

    @is_tool("Take a lease", changes=True)
    async def leases_acquire(
        self,
        run: Run,
        name: LeaseName,
        ttl_s: TtlGiven,
        holder: Annotated[str | None, Field(description="Who you are, for others to see.")] = None,
        wait_s: WaitS = 0.0,
    ) -> LeaseShown:
        """Own a name for a while, so that nobody else does the same work.

        If somebody else has it, it fails with the code lease_held.
        """
        scope = scope_of(self._db, run)
        return LeaseShown.of(await scope.leases.acquire(name, ttl_s=ttl_s, holder=holder, wait_s=wait_s))

    @is_tool("Keep a lease for longer", changes=True)
    async def leases_renew(self, run: Run, name: LeaseName, claim: LeaseClaim, ttl_s: TtlGiven) -> LeaseShown:
        """Keep a lease for `ttl_s` seconds from now on. The claim stays the same."""
        scope = scope_of(self._db, run)
        renewed = await scope.leases.renew(await _lease_of(scope, name, claim), ttl_s)
        stored = await scope.leases.get(name)  # which knows the holder too
        return LeaseShown.of(stored if stored is not None and stored.token == renewed.token else renewed)

    @is_tool("Give a lease back", changes=True, repeatable=True)
    async def leases_release(self, run: Run, name: LeaseName, claim: LeaseClaim) -> ReleasedShown:
        """Give a lease back before it runs out."""
        scope = scope_of(self._db, run)
        return ReleasedShown(released=await scope.leases.release(await _lease_of(scope, name, claim)))


def _claimed(job: inmem.Job) -> ClaimedShown:
    # As queues_job shows it, which gives the rest of a long one.
    (payload, _), cut = shown_together({"payload": job.payload, "result": None}, 0)
    return ClaimedShown(
        claim=f"{job.id}#{job.token}.{job.mark}", id=str(job.id), queue=job.queue, payload=payload, cut=cut,
        attempt=job.attempt, max_attempts=job.max_attempts, priority=job.priority, errors=[*job.errors],
        claimed_until=time_of(job.claimed_until),
    )


def _job_of(scope: inmem.aio.AsyncRunScope, claim: str) -> inmem.Job:
    """The job that a claim names, with what the store needs to know it again.

    Raises:
        InvalidInputError: it is no claim of a job.
    """
    found = _JOB.fullmatch(claim)
    if found is None:
        raise inmem.InvalidInputError(
            f"claim must be one that queues_claim has returned, not {claim[:60]!r}", argument="claim"
        )
    return inmem.Job(
        id=inmem.JobId(found["id"]), queue=found["queue"], payload=None, attempt=0, token=int(found["token"]),
        claimed_until=0, enqueued_at=0, errors=(), run_id=scope.run_id, prefix=scope.prefix,
        mark=int(found["mark"]),
    )


async def _lease_of(scope: inmem.aio.AsyncRunScope, name: str, claim: str) -> inmem.Lease:
    """The lease that a claim names.

    Raises:
        InvalidInputError: it is no claim of a lease.
        InvalidKeyError: the name cannot be one.
    """
    await scope.leases.get(name)  # which checks the name: a Lease that is made by hand is not checked
    found = _LEASE.fullmatch(claim)
    if found is None:
        raise inmem.InvalidInputError(
            f"claim must be one that leases_acquire has returned, not {claim[:60]!r}", argument="claim"
        )
    return inmem.Lease(
        name=name, holder="", token=int(found["token"]), acquired_at=int(found["acquired_at"]), expires_at=0,
        run_id=scope.run_id, prefix=scope.prefix,
    )
