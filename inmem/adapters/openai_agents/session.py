"""A session of the Agents SDK: `InmemSession`. See `layout` for what is stored.

Invariant: what is added by one call is one commit. Items are in the order of
their commits, those of one call together. Items are serialised before anything
is sent, so a program may change them right after.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final, Literal, NamedTuple, TypeVar

from agents import TResponseInputItem
from agents.memory import SessionSettings

import inmem
from inmem.adapters.openai_agents.layout import UNREADABLE, run_of
from inmem.adapters.openai_agents.work import MANY, Batch, Prune, SessionWork, batches_of
from inmem.aio import AsyncDatabase

T = TypeVar("T")

Fence = Literal["lease"] | None
_LEASE: Final = "@run"


class StoredSuffix(NamedTuple):
    """What the SDK's compaction wants to know of a history, and how it replaces the end of it."""

    items: list[TResponseInputItem]
    complete: bool
    replace_suffix: Callable[[int, list[TResponseInputItem]], Awaitable[bool]]


class InmemSession:
    """A session of the OpenAI Agents SDK in a store of inmem, for many processes that share it.

    `db` is an `AsyncDatabase` of the loop that runs the agent, which uses no
    thread. A `Database` does too: its calls do their work in the loop, which
    stands still meanwhile: for some ten microseconds to read a few items, for a
    commit to write. It is the one for `Runner.run_sync`, and for several loops.

    Each call of `add_items` is one commit: all of its items or none, together,
    whatever other processes add. Calls with more than 3,000 items take several.

    With `fence="lease"` the session is written within `async with
    session.alease()` alone (`with session.lease()` for a `Database`), which one
    at a time can enter. So turns of several agents do not mix.

    >>> import asyncio, inmem
    >>> from inmem.adapters.openai_agents import InmemSession
    >>> async def main():
    ...     async with inmem.aio.open() as db:
    ...         session = InmemSession("user 7", db)
    ...         await session.add_items([{"role": "user", "content": "Hello"}])
    ...         return await session.get_items()
    >>> asyncio.run(main())
    [{'role': 'user', 'content': 'Hello'}]

    Raises:
        InvalidInputError: an argument is wrong.
    """

    session_id: str
    session_settings: SessionSettings | None

    def __init__(
        self, session_id: str, db: inmem.Database | AsyncDatabase, *, fence: Fence = None,
        session_settings: SessionSettings | dict[str, Any] | None = None,
    ) -> None:
        self.run_id = run_of(session_id)
        if not isinstance(db, inmem.Database | AsyncDatabase):
            problem = f"db must be a Database or an AsyncDatabase, not {type(db).__name__}"
            raise inmem.InvalidInputError(problem, argument="db")
        if fence not in (None, "lease"):
            raise inmem.InvalidInputError(f"fence must be None or 'lease', not {fence!r}", argument="fence")
        self.session_id = session_id
        self.session_settings = _settings_of(session_settings)
        self.db = db
        self._fence = fence
        self._work = SessionWork(session_id)
        self._lease: Any = None  # while it is held

    def __repr__(self) -> str:
        return f"InmemSession({self.session_id!r}, {self.db!r}, fence={self._fence!r})"

    # --- in one transaction, by a thread or a loop --------------------------------------------

    async def _do(self, fn: Callable[[Any], T], lease: Any = None) -> T:
        db, run_id = self.db, self.run_id
        if isinstance(db, inmem.Database):
            done: T = db.transact(run_id, fn, lease=lease)
        else:
            done = await db.transact(run_id, fn, lease=lease)
        return done

    async def _write(self, writing: Callable[[Any], Awaitable[T]]) -> T:
        """Change something under the lease, if there is one. Who is cancelled meanwhile waits for the end."""
        if self._fence == "lease" and self._lease is None:
            raise inmem.InvariantError(
                f"session {self.session_id!r} is written without its lease",
                hint="async with session.alease(): ..., or with session.lease(): ... for a Database.",
            )
        return await _settled(writing(self._lease))

    async def _with_parts(self, batch: Batch, fn: Callable[[Any], T | None], lease: Any) -> T:
        """Store parts, then what names them; again if the session was cleared in between."""
        while True:
            for part in self._work.put_parts(batch):
                await self._do(part, lease)
            done = await self._do(fn, lease)
            if done is not None:
                return done

    # --- the SDK's protocol ---------------------------------------------------------------

    async def get_items(self, limit: int | None = None) -> list[TResponseInputItem]:
        """The items, the oldest first; with a limit the newest ones. All are of one moment.

        Without a limit that of `session_settings` holds. A negative one is none,
        as with the SDK's own sessions. What other programs have put among the
        items, and is no item, is passed over and does not count. Cost: about 20 µs,
        and 1 to 2 µs for each item of a few hundred bytes.

        Raises:
            InvalidInputError: the limit is no number.
        """
        if limit is None:
            limit = _settings_of(self.session_settings).limit
        elif not isinstance(limit, int) or isinstance(limit, bool):
            raise inmem.InvalidInputError(f"limit must be an int or None, not {limit!r}", argument="limit")
        return await self._do(self._work.get(None if limit is None or limit < 0 else limit))

    async def add_items(self, items: list[TResponseInputItem]) -> None:
        """Add items after all others, in one commit: see `InmemSession`.

        Items may have any size. What is over 8 MiB goes before it, in parts.
        When the call returns, the items are as durable as the store's other commits.

        Raises:
            InvalidValueError: an item cannot be JSON; nothing is added.
            InvariantError: the session has a fence, and is not owned.
            LeaseLostError: another program has the lease.
            RunDeletedError: the run of the session was deleted.
        """
        if not isinstance(items, list | tuple):
            problem = f"items must be a list, not {type(items).__name__}"
            raise inmem.InvalidInputError(problem, argument="items")
        batches = batches_of(items)

        async def add(lease: Any) -> None:
            if not batches:
                await self._do(_nothing, lease)
            for batch in batches:
                await self._with_parts(batch, self._work.add(batch), lease)

        await self._write(add)

    async def pop_item(self) -> TResponseInputItem | None:
        """Remove and return the newest item; None if there is none. Of many who pop, each gets another one.

        Raises:
            InvariantError, LeaseLostError: see `add_items`.
        """
        return await self._write(lambda lease: self._do(self._work.pop, lease))

    async def clear_session(self) -> None:
        """Remove all items, in one commit. The session can be used again; its run stays.

        Of more than 1,000 items the rest is unseen from then on, and removed by more commits.

        Raises:
            InvariantError, LeaseLostError: see `add_items`.
        """

        async def clear(lease: Any) -> None:
            if await self._do(self._work.clear, lease):
                await self._sweep(lease)

        await self._write(clear)

    async def _sweep(self, lease: Any) -> None:
        while await self._do(self._work.sweep, lease):
            pass

    # --- what the SDK's compaction uses if it is there: since 0.23 the first, since 0.24 the second --------

    async def _get_compaction_snapshot(
        self, limit: int, *, prune_prefix: Prune | None = None
    ) -> StoredSuffix | None:
        """The newest items, and how they are replaced in one commit if they are still the newest ones."""
        if type(self) is not InmemSession:  # a subclass may keep more than items
            return None
        found = await self._do(self._work.suffix(limit))
        if any(item is UNREADABLE for item in found.items):
            return None

        async def replace_suffix(start: int, output: list[TResponseInputItem]) -> bool:
            expected = found.entries[start:]
            if not expected:
                return False
            batch = _one_batch(output)
            work = self._work.replace(expected, batch, prune_prefix)
            return await self._write(lambda lease: self._with_parts(batch, work, lease))

        return StoredSuffix(found.items, found.is_complete, replace_suffix)

    async def _atomic_replace_items(self, items: list[TResponseInputItem]) -> bool:
        """Replace all items in one commit. False: it is for a subclass to say how."""
        if type(self) is not InmemSession:
            return False
        batch = _one_batch(items)

        async def replace(lease: Any) -> bool:
            if await self._with_parts(batch, self._work.replace_all(batch), lease):
                await self._sweep(lease)
            return True

        return await self._write(replace)

    # --- leases -------------------------------------------------------------------------

    @contextmanager
    def lease(self, *, ttl_s: float = 30.0, wait_s: float | None = 0.0) -> Iterator[inmem.HeldLease]:
        """Own the session while a block runs: what this object adds is refused once that is over.

        For a `Database`. A program that dies gives the session back after `ttl_s` seconds.

        Raises:
            LeaseHeldError: another one has it, and did not give it back within `wait_s` seconds.
        """
        if not isinstance(self.db, inmem.Database):
            raise inmem.InvariantError(
                "this session has an AsyncDatabase", hint="async with session.alease(), or a Database."
            )
        with self.db.leases.hold(self.run_id, _LEASE, ttl_s=ttl_s, wait_s=wait_s) as held:
            self._lease = held
            try:
                yield held
            finally:
                self._lease = None

    @asynccontextmanager
    async def alease(self, *, ttl_s: float = 30.0, wait_s: float | None = 0.0) -> AsyncIterator[Any]:
        """See `lease`; for an `AsyncDatabase`."""
        if not isinstance(self.db, AsyncDatabase):
            raise inmem.InvariantError(
                "this session has a Database", hint="with session.lease(), or an AsyncDatabase."
            )
        async with self.db.leases.hold(self.run_id, _LEASE, ttl_s=ttl_s, wait_s=wait_s) as held:
            self._lease = held
            try:
                yield held
            finally:
                self._lease = None


def _nothing(txn: Any) -> None:
    """A call without items fails as others do: where the handle is closed, or the lease lost."""


def _one_batch(items: list[TResponseInputItem]) -> Batch:
    """Items that replace others, in one commit.

    Raises:
        LimitError: they are too many.
    """
    batches = batches_of(items)
    if len(batches) > 1:
        raise inmem.LimitError(
            f"{len(items)} items would replace others in one commit, the limit is {MANY}",
            what="items", size=len(items), limit=MANY,
        )
    return batches[0] if batches else Batch([], {})


def _settings_of(settings: Any) -> SessionSettings:
    if settings is None:
        return SessionSettings()
    if isinstance(settings, SessionSettings):
        return settings
    if isinstance(settings, dict):
        try:
            return SessionSettings().resolve(settings)  # with the SDK's own checks
        except AttributeError:
            raise inmem.InvalidInputError(
                "this version of openai-agents takes no dict for settings", argument="session_settings",
                hint="Give it SessionSettings.",
            ) from None
    problem = f"session_settings must be SessionSettings or a dict, not {type(settings).__name__}"
    raise inmem.InvalidInputError(problem, argument="session_settings")


async def _settled(work: Awaitable[T]) -> T:
    """Wait for the end of a change, whoever cancels: a caller who sees it cancelled knows that it is over."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = cancelled or error
    try:
        return task.result()
    finally:
        if cancelled is not None:
            raise cancelled from None
