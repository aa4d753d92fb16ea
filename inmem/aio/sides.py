"""What an event loop has of the engine that serves a database: a local one, or a server's."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

from inmem.aio.session import LoopSession
from inmem.aio.sink import LoopCommits
from inmem.aio.waiting import LoopWaiting
from inmem.client.applied import Applied
from inmem.client.retry import resolved_as
from inmem.client.transaction import OptimisticTransaction
from inmem.client.waiting import Watched
from inmem.engines.base import Engine
from inmem.engines.local import LocalEngine, attachment_of
from inmem.errors import CommitUnknownError, InmemError

C = TypeVar("C", bound=type)


class LoopWaiters(Protocol):
    """Waits of coroutines: see `inmem.aio.waiting`."""

    async def wait(self, watched: Watched, deadline: float) -> None: ...

    def close(self) -> None: ...


class LoopSide(Protocol):
    """What an event loop has of an engine."""

    engine: Any

    @property
    def session(self) -> LoopCommits: ...

    @property
    def waits(self) -> LoopWaiters: ...

    def twin(self, cls: C) -> C:
        """The class whose coroutines run where what they read is awaited; itself if reads do not wait."""

    def adopt(self, handle: Any, view: Any = None) -> None:
        """Give the facades of a handle their twins. Calls with one `view` take turns."""

    async def commit(self, draft: OptimisticTransaction, *, sync: bool, timeout_s: float) -> None:
        """See `Draft.commit`. If this is cancelled, it may or may not take effect."""

    def in_order(self) -> LoopCommits:
        """Commits that take effect in the order in which they were made."""


class LocalSide:
    """The engine of this machine: its reads never wait."""

    def __init__(self, engine: LocalEngine) -> None:
        self.engine = engine
        attachment = attachment_of(engine)
        self.session = LoopSession(attachment)
        self.waits = LoopWaiting(attachment)

    def twin(self, cls: C) -> C:
        """See `LoopSide`."""
        return cls

    def adopt(self, handle: Any, view: Any = None) -> None:
        """See `LoopSide`."""

    async def commit(self, draft: OptimisticTransaction, *, sync: bool, timeout_s: float) -> None:
        """See `LoopSide`."""
        draft.check_open()
        body = draft.prepare()
        if body is None:
            return
        try:
            applied = await self.session.commit(body, _itself, sync=sync, timeout_s=timeout_s)
        except CommitUnknownError as error:
            raise resolved_as(error, draft.applied) from None
        except InmemError:
            draft.refused()
            raise
        draft.applied(applied)

    def in_order(self) -> LoopSession:
        """See `LoopSide`."""
        return self.session


def _itself(applied: Applied) -> Applied:
    return applied


def side_of(engine: Engine) -> LoopSide:
    """What the loop that runs has of an engine."""
    if isinstance(engine, LocalEngine):
        return LocalSide(engine)
    from inmem.aio.served import ServedSide

    return ServedSide(engine)
