"""A transaction: reads of one snapshot, writes that wait, one commit.

Invariant: whatever a transaction reads, its own writes included, is either
still true when it commits or the commit is refused; and nothing leaves this
process before the commit. It knows keys and records, no primitives.

Own writes go through the writer's own procedures, run here on a workspace over
the tracked reads. A call whose result may wait is put off: it runs here only
once something that it concerns is read, or if that was read before. So it adds
nothing to what the transaction depends on by itself, and appends, counters and
cells stay free of conflicts. The writer runs every call again, and its results
are compared with those that were computed here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from threading import get_ident
from typing import Any, Protocol, TypeVar

from inmem.client.applied import Applied
from inmem.client.batch import AwaitedCall, Call, Entry, JoinedCall, operations, resolve_all
from inmem.client.retry import resolved_as
from inmem.client.tracking import DraftWorkspace, StoredVersion, TrackedReads
from inmem.client.waiting import Waits, Watched
from inmem.commit.footprint import Footprint, Range, exactly, is_exact, overlap
from inmem.engines.base import Item, VersionView
from inmem.errors import ClosedError, CommitUnknownError, ForkError, InmemError, InvariantError
from inmem.host.interrupts import OneThread
from inmem.keys import fence_of
from inmem.pending import Pending
from inmem.primitives.import_mark import is_mark
from inmem.primitives.server import FOOTPRINTS, PROCEDURES
from inmem.record import end_of, is_live, pack
from inmem.stepping import Steps, driven
from inmem.writeset import OP_CALL, OP_DELETE, OP_PUT, WriteSet

T = TypeVar("T")


class Owner(Protocol):
    """Whose transaction it is."""

    incarnation: int  # another one in a forked child


class OptimisticTransaction(OneThread):
    """An optimistic transaction: a View and a Sink. For one thread at a time."""

    default: Callable[[Any], Any] | None = None  # see `Sink`

    def __init__(
        self, begin: Callable[[], StoredVersion], commit: Callable[..., Applied], now_us: Callable[[], int],
        owner: Owner, waits: Waits, *, chain: int, timeout_s: float, sync: bool,
        dropped: Callable[[], None] | None = None,
    ) -> None:
        """`dropped` is called when it ends without a commit that is sent."""
        super().__init__()
        self._dropped = dropped
        self._commit = commit
        self._owner = owner
        self._waits = waits
        self._timeout_s = timeout_s
        self._sync = sync
        self.now_us = now_us
        self._reads = TrackedReads(begin)
        self._work = DraftWorkspace(self._reads, chain=chain)
        self._entries: list[Entry] = []
        self._late: dict[Footprint, list[Call]] = {}  # calls that have not run here, in order
        self._wide: set[Footprint] = set()  # of these and earlier ones, those of more than one key
        self._known: set[Footprint] = set()  # of calls that run here at once
        self._unseen: list[tuple[Footprint, Call]] = []  # that ran here when nothing has shown
        self._is_over = False
        self._incarnation = owner.incarnation
        self.version: int | None = None

    def after_fork_in_child(self) -> bool:
        """It is the parent's, and so is the database while it is open."""
        return True

    def check_open(self) -> None:
        """Refuse to go on after the end, or in a child.

        Raises:
            ClosedError: the transaction was committed or aborted.
            ForkError: it belongs to the parent process, which may commit it.
            BusyError: another thread is in the middle of a call with it.
        """
        if self._is_over:
            raise ClosedError("the transaction is over")
        if self._incarnation != self._owner.incarnation:
            raise ForkError("this transaction belongs to the parent process")
        if self.thread != get_ident():
            self.take_over()

    # --- reads ------------------------------------------------------------------------

    def read(self, key: bytes) -> bytes | None:
        """The live record under a key, own writes first; what was stored becomes a read."""
        self.check_open()
        if self._late:
            self._catch_up(looks_at=(exactly(key),))
        if self._unseen:
            self._show(exactly(key))
        return self._work.record(key)

    def read_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The live records under some keys."""
        self.check_open()
        for key in keys:
            if self._late:
                self._catch_up(looks_at=(exactly(key),))
            if self._unseen:
                self._show(exactly(key))
        work = self._work
        stored = self._reads.get_many([key for key in keys if not work.has(key)])
        return [work.own(key) if work.has(key) else stored.get(key) for key in keys]

    def scan(
        self, start: bytes, end: bytes, *, limit: int | None = None, reverse: bool = False,
        max_bytes: int | None = None,
    ) -> list[Item]:
        """The live records of a range, own writes included; the range becomes a read.

        With a limit, of number or bytes, only the part up to the last returned key is read.
        """
        self.check_open()
        snapshot = self._reads.snapshot()
        if limit == 0:
            return []
        if self._late:
            self._catch_up(looks_at=((start, end),))
        if self._unseen:
            self._show((start, end))
        work, reads = self._work, self._reads
        own = work.own_keys(start, end, reverse=reverse)
        found: list[Item] = []
        met = at = size = 0
        is_full = False

        def take(key: bytes, record: bytes | None) -> None:
            nonlocal size, is_full
            if record is not None:
                found.append((key, record))
                size += len(record)
                is_full = len(found) == limit or (max_bytes is not None and size >= max_bytes)

        for key, record in snapshot.scan(start, end, reverse=reverse, limit=limit):
            while at < len(own) and not is_full and (own[at] > key if reverse else own[at] < key):
                take(own[at], work.own(own[at]))
                at += 1
            if is_full:
                break
            is_own = at < len(own) and own[at] == key
            if is_live(record, snapshot.now_us):
                met += 1
                reads.met(record)
                if not is_own:
                    take(key, record)
            if is_own:
                take(key, work.own(key))
                at += 1
            if is_full:
                break
        while at < len(own) and not is_full:
            take(own[at], work.own(own[at]))
            at += 1
        if is_full:
            last = found[-1][0]
            start, end = (last, end) if reverse else (start, last + b"\0")
        reads.ranges.append([start, end, met])
        return found

    def _show(self, looked_at: Range) -> None:
        """Keep the times of calls that may have written what is read now."""
        self._unseen = [each for each in self._unseen if not overlap(each[0].changes, (looked_at,))]

    def count(self, start: bytes, end: bytes) -> int:
        """How many live records a range has, own writes included."""
        return len(self.scan(start, end))

    def for_one(self, name: bytes, starts: Collection[bytes]) -> None:
        """See `View`."""
        self._reads.for_one(name, starts)

    def until(self, time_us: int) -> None:
        """What was read holds until then only: later the commit is refused."""
        self.check_open()
        self._reads.until(time_us)

    def is_deleted(self, prefix: bytes) -> bool:
        """Whether the run with this prefix was deleted, as of the snapshot."""
        self.check_open()
        found = self._reads.snapshot().fence(fence_of(prefix))
        return found is not None and not is_mark(found)

    @contextmanager
    def moment(self) -> Iterator[VersionView]:
        """Itself: all reads here are of one version."""
        yield self

    # --- writes -----------------------------------------------------------------------

    def put(self, key: bytes, payload: bytes, expires: int) -> None:
        """Write a record at commit."""
        self.check_open()
        self._overwrite(key)
        # Version and time are those of the commit: not known yet, and shown as 0.
        self._work.show(key, pack(0, 0, end_of(expires, self.now_us()), payload))
        self._entries.append([OP_PUT, key, payload, expires])

    def write(self, ops: list[list[Any]]) -> None:
        """Some operations at commit."""
        for op in ops:
            if op[0] == OP_PUT:
                self.put(op[1], op[2], op[3])
            elif op[0] == OP_CALL:
                self._add(Call(op[1], op[2]), FOOTPRINTS[op[1]](*op[2]))
            else:
                self.check_open()
                self._overwrite(op[1])
                self._work.show(op[1], None)
                self._entries.append([OP_DELETE, op[1]])

    def call(self, procedure: str, arguments: list[Any], pending: type[Pending[Any]]) -> Pending[Any]:
        """Run a procedure at commit; the result is there after it, or as soon as it has run here."""
        result = pending()
        self._add(AwaitedCall(procedure, arguments, result), FOOTPRINTS[procedure](*arguments))
        return result

    def join(
        self, procedure: str, head: Any, items: list[Any], part: Callable[[Any, int], Any],
        pending: type[Pending[Any]], *, is_one: bool = False,
    ) -> Any:
        """Run a procedure on items at commit, in one call with items that were put off before."""
        self.check_open()
        if not items:
            return []
        footprint = FOOTPRINTS[procedure](head)
        late = self._late.get(footprint) if self._late else None
        added = late[-1].join(procedure, items, pending) if late else None
        if added is None:
            call = JoinedCall(procedure, head)
            added = call.join(procedure, items, pending)
            assert added is not None
            self._add(call, footprint)
        return added[0] if is_one else added

    def ask(
        self, procedure: str, arguments: list[Any], convert: Callable[[Any], T], *, alone: str = "",
        shows_time: bool = True, is_sure: bool = False,
    ) -> T:
        """Run a procedure here, and again at commit if it changes anything.

        Raises:
            InvariantError: it must be a commit of its own.
        """
        self.check_open()
        if alone:
            raise InvariantError(
                f"{alone} cannot be part of a transaction: it is a commit of its own",
                hint="Call it outside of the transaction.",
            )
        call = Call(procedure, arguments, shows_time=shows_time)
        footprint = FOOTPRINTS[procedure](*arguments)
        if is_sure:
            self._add(call, footprint)
            return convert(None)
        with self._whole(call, footprint):
            before = len(self._work.ops)
            result = self._run(call)
            if len(self._work.ops) != before:
                self._entries.append(call)
            return convert(result)

    def drive(self, steps: Steps[T]) -> T:
        """Take steps; what they return."""
        return driven(steps)

    def _add(self, call: Call, footprint: Footprint) -> None:
        self.check_open()
        late = self._late.get(footprint) if self._late else None
        if late is not None:
            self._entries.append(call)
            late.append(call)
        elif self._has_met(footprint):
            with self._whole(call, footprint):
                self._run(call)
                self._entries.append(call)
        else:
            self._entries.append(call)
            self._late[footprint] = [call]
            if footprint != Footprint.of(footprint.changes[0]) or not is_exact(footprint.changes[0]):
                self._wide.add(footprint)

    def _has_met(self, footprint: Footprint) -> bool:
        """Whether the transaction has read something that a call changes, or put it."""
        if self._known and footprint in self._known:
            return True
        for start, end in footprint.changes:
            is_put = end == start + b"\0" and self._work.has(start)
            if is_put or self._reads.overlaps(start, end):
                self._known.add(footprint)
                return True
        return False

    def _near(self, ranges: tuple[Range, ...]) -> Iterable[Footprint]:
        """The calls put off that may concern these ranges: for single keys, few of many."""
        late = self._late
        exact: set[Footprint] = set()
        for each in ranges:
            if not is_exact(each):
                return late
            if (alone := Footprint.of(each)) in late:
                exact.add(alone)
        return [*exact, *self._wide.intersection(late)] if exact or self._wide else ()

    def _overwrite(self, key: bytes) -> None:
        """What comes next replaces what is under a key, whatever calls put off would make of it."""
        if self._late:
            place = exactly(key)
            self._late.pop(Footprint.of(place), None)
            self._catch_up(changes=(place,))

    def _catch_up(self, *, looks_at: tuple[Range, ...] = (), changes: tuple[Range, ...] = ()) -> None:
        """Run the calls that were put off, if they concern what comes next."""
        due: list[Footprint] = []
        while more := [
            f for f in self._near(looks_at + changes) if f not in due and f.concerns(looks_at, changes)
        ]:
            due += more  # these may depend on others
            looks_at = tuple(r for f in more for r in f.looks_at)
            changes = tuple(r for f in more for r in f.changes)
        if not due:
            return
        late = self._late[due[0]]
        if len(due) > 1:  # in the order in which they were made
            together = {id(call) for footprint in due for call in self._late[footprint]}
            late = [entry for entry in self._entries if isinstance(entry, Call) and id(entry) in together]
        with self._work.savepoint():
            for call in late:
                self._run(call)
            self._known.update(due)
            for footprint in due:
                del self._late[footprint]

    @contextmanager
    def _whole(self, call: Call, footprint: Footprint) -> Iterator[None]:
        """Run and note a call with this footprint: both, or if it raises neither."""
        if self._late:
            self._catch_up(looks_at=footprint.looks_at, changes=footprint.changes)
        try:
            with self._work.savepoint():
                yield
        except BaseException:
            self._entries = [entry for entry in self._entries if entry is not call]
            raise

    def _run(self, call: Call) -> Any:
        """Run a call here."""
        self._work.stamp_us = at_us = self.now_us()
        arguments = call.arguments()
        result = PROCEDURES[call.procedure](self._work, *arguments)
        call.ran(at_us, result)
        if not call.shows_time:
            self._unseen.append((FOOTPRINTS[call.procedure](*arguments), call))
        return result

    # --- the end ----------------------------------------------------------------------

    def commit(self) -> None:
        """Send what was read and written, as one; a transaction that wrote nothing sends nothing.

        Raises:
            ConflictError: something that was read has changed.
            CommitUnknownError: no answer before the deadline.
            InmemError: whatever a procedure refused.
        """
        self.check_open()
        body = self.prepare()
        if body is None:
            return
        try:
            applied = self._commit(body, sync=self._sync, timeout_s=self._timeout_s)
        except CommitUnknownError as error:
            raise resolved_as(error, self.applied) from None
        except InmemError as error:
            if not error.is_foreign:
                self.refused()
            raise
        self.applied(applied)

    def prepare(self) -> bytes | None:
        """End the transaction; what is to be sent, None if nothing was written."""
        reads = self._reads
        self._is_over = True  # before its writes are taken: a nested call must not add one that is left out
        try:
            if not self._entries:
                if self._dropped is not None:
                    self._dropped()
                return None
            for _, call in self._unseen:
                call.leave_time()
            version = reads.snapshot().version if reads.ranges else 0
            return WriteSet(
                version, reads.expiry_us, reads.reads, [(s, e, n) for s, e, n in reads.ranges],
                operations(self._entries),
            ).encode()
        finally:
            self._end()  # the reads are noted, so the snapshot can go

    def applied(self, applied: Applied) -> None:
        """The commit took effect: give everybody what they wait for.

        Raises:
            InvariantError: the writer came to another result than was shown here.
        """
        self.version = applied.version
        resolve_all(self._entries, applied.results)

    @property
    def is_over(self) -> bool:
        """Whether it was committed or aborted."""
        return self._is_over

    def abort(self) -> None:
        """End it; nothing is sent after this. May be called twice."""
        if self._is_over:
            return
        self._is_over = True
        if self.thread == get_ident() or not self.is_inside():  # else its snapshot goes with it
            self._end()
            self.refused()
            if self._dropped is not None:
                self._dropped()

    def watched(self, prefix: bytes) -> Watched:
        """End it; what it has read, to be waited for. `prefix` is that of its run.

        Raises:
            InvariantError: it has read nothing.
        """
        self.check_open()
        try:
            return Watched(self._reads, prefix, self._waits)
        finally:
            self.abort()

    @property
    def seen_version(self) -> int:
        """The commit version that is read."""
        self.check_open()
        return self._reads.snapshot().version

    def _end(self) -> None:
        self._is_over = True
        self._reads.close()

    def refused(self) -> None:
        """No result of this transaction is stored: take back those that were computed here."""
        for entry in self._entries:
            if isinstance(entry, Call):
                entry.forget()
