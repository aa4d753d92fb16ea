"""A claimed job that is ended by leaving a block, and kept until then."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import fields
from types import TracebackType
from typing import Any, Protocol

from inmem.errors import InmemError, InvariantError, JobLostError
from inmem.host.clock import boot_us
from inmem.host.interrupts import let_through
from inmem.primitives.holding import Holding, insisted
from inmem.primitives.queues.shown import Job
from inmem.steps import FacadeWaits, Steps


class OfQueues(Protocol):
    """The facade by which a job was claimed: see `RunQueues`."""

    def ack(self, job: Job, result: Any = None) -> Any: ...

    def nack(
        self, job: Job, *, delay_s: float | None = None, error: str | None = None, retry: bool = True
    ) -> Any: ...

    def extend(self, job: Job, lease_s: float) -> Any: ...

    def holds(self, job: Job) -> bool: ...


class _Kept(Holding):
    """The claim of a job while its block runs."""

    def __init__(self, queues: OfQueues, job: Job, lease_us: int) -> None:
        super().__init__(lease_us)
        self._queues = queues
        self._job = job

    def renewing(self) -> Steps[None]:
        yield self._queues.extend(self._job, self.lasts_us / 1e6)


class HeldJob(Job):
    """A job from `consume`, for one block: `with`, in a coroutine `async with`. See there.

    `lost` is an event that says whether the claim may be lost; in a coroutine
    its `wait` is awaited. Within the block the job can be acked, with a result
    or in a transaction, or nacked: then leaving the block does nothing more.
    """

    __slots__ = ("_give_back", "_has_begun", "_kept", "_queues", "_waits", "is_ended", "lost")

    is_ended: bool  # something else than leaving the block ends it
    lost: Any
    _give_back: Callable[[], Steps[None]]
    _has_begun: bool
    _kept: _Kept
    _queues: OfQueues
    _waits: FacadeWaits

    def __init__(
        self, job: Job, queues: OfQueues, waits: FacadeWaits, give_back: Callable[[], Steps[None]],
        lease_us: int, now_us: int,
    ) -> None:
        kept = _Kept(queues, job, lease_us)
        kept.hold(boot_us() + job.claimed_until - now_us - lease_us)
        kept.lost = waits.loss(kept)
        own = {
            "_kept": kept, "_queues": queues, "_waits": waits, "_give_back": give_back, "is_ended": False,
            "lost": kept.lost, "_has_begun": False,
        }
        of_job = {each.name: getattr(job, each.name) for each in fields(Job)}
        for name, value in (of_job | own).items():
            object.__setattr__(self, name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        return Job, tuple(getattr(self, each.name) for each in fields(Job))

    def end(self) -> None:
        """Leaving the block need not end it: something in the block does."""
        object.__setattr__(self, "is_ended", True)

    def __enter__(self) -> HeldJob:
        return self._begun(is_awaited=False)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._waits.drop(self._kept)
        self._waits.drive(self._ending(error))

    async def __aenter__(self) -> HeldJob:
        return self._begun(is_awaited=True)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._waits.drop(self._kept)
        await self._waits.drive(self._ending(error))

    def _begun(self, *, is_awaited: bool) -> HeldJob:
        if self._waits.is_awaited is not is_awaited:
            wanted = "async with" if self._waits.is_awaited else "with"
            raise InvariantError(f"job {self.id} is for `{wanted}`", hint=f"Write `{wanted} job:`.")
        if self._has_begun:
            raise InvariantError(f"job {self.id} has had its block", hint="Take the next one.")
        if not self._kept.is_mine or not self._queues.holds(self):
            problem = "its claim has ended, or is of the process that has forked this one"
            raise JobLostError(f"job {self.id}: {problem}", job_id=self.id, token=self.token)
        object.__setattr__(self, "_has_begun", True)
        self._waits.keep(self._kept)
        return self

    def _ending(self, error: BaseException | None) -> Steps[None]:
        """End the job, if nothing in the block did."""
        if not self._kept.is_mine:
            return
        if error is None:
            if not self.is_ended:  # else a transaction or a pipeline will end it, when it commits
                yield from insisted(self._acked)
        elif self._queues.holds(self):
            try:
                # What ends the program is no fault of the job: others may have it, and it was no attempt.
                yield from insisted(
                    (lambda: self._nacked(error)) if isinstance(error, Exception) else self._give_back
                )
            except InmemError as failed:  # then it runs out; what happened in the block is told
                let_through(failed)
                error.add_note(f"the job could not be given back: {failed}")

    def _acked(self) -> Steps[None]:
        yield self._queues.ack(self)

    def _nacked(self, error: Exception) -> Steps[None]:
        yield self._queues.nack(self, error=text_of(error))


def text_of(error: Exception) -> str:
    """What a job keeps of an exception."""
    return "".join(traceback.format_exception_only(error)).strip()
