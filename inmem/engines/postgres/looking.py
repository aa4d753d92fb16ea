"""What the thread that looks for all who wait knows: see `polling`."""

from __future__ import annotations

import heapq
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, Protocol

import psycopg

from inmem.client.waiting import Watched, check_not_deleted
from inmem.engines.base import Item
from inmem.engines.postgres.asking import AskedConnection
from inmem.engines.postgres.connections import CLOCK, Connections
from inmem.engines.postgres.hints import LISTEN, is_hint_for
from inmem.engines.postgres.moment import SUM, ServerMoment
from inmem.errors import ClosedError, InmemError, WriterUnavailableError
from inmem.primitives.server import HANDED_OUT
from inmem.record import version_of

_FIRST_S: Final = 0.002  # between two looks, after something has changed; grows
_BUSY_S: Final = 0.02  # at most, for a while
_QUIET_S: Final = 0.05  # at most, later
_GROWS: Final = 1.5
_CALM_S: Final = 0.1  # without a change, before it is said that somebody waits
_SAID_US: Final = 30_000_000  # for how long that holds
_SAY_AGAIN_S: Final = 2.0  # where it could not be said: there is no row, or somebody was writing it
_RETRY_S: Final = 0.25  # where there is no server
_CONNECT_S: Final = 2.0
_CLOCK_S: Final = 5.0  # between two looks at the server's clock
_LATER_US: Final = 20_000  # after the first of several takers whose reads have expired
_SUM: Final = SUM.format("%s", "%s")
Wide = tuple[bytes, bytes]  # a range over several runs


class ServerWaiter:
    """Who waits: for what, and how he is told. `owner` is the handle that he waits through."""

    __slots__ = ("expiry_us", "is_over", "owner", "tell", "versions", "watched")

    def __init__(
        self, watched: Watched, versions: dict[bytes | Wide, int], owner: object,
        tell: Callable[[InmemError | None], None],
    ) -> None:
        self.watched = watched
        self.versions = versions  # of buckets, when it was looked last; of a wide range, their sum
        self.owner = owner
        self.tell = tell
        self.expiry_us = watched.expiry_us
        self.is_over = False


class Begins(Protocol):
    """A store, as far as it is looked at here."""

    connections: Connections
    listens: bool

    def moment(self) -> ServerMoment: ...


class WaitersOfStore:
    """What the thread knows: the waiters by the buckets that they wait for."""

    def __init__(self, store: Begins) -> None:
        self.waiters: dict[ServerWaiter, None] = {}
        self.connection: AskedConnection | None = None
        self.statements = 0
        self._store = store
        self._at: dict[bytes | Wide, dict[ServerWaiter, None]] = {}  # in the order in which they came
        self._takers: dict[bytes, dict[ServerWaiter, None]] = {}
        self._known: dict[bytes | Wide, int] = {}  # versions, as they were found last
        self._unseen: dict[ServerWaiter, None] = {}  # that were not looked at yet
        self._expiries: list[tuple[int, int, ServerWaiter]] = []
        self._numbers = itertools.count()
        self._pause_s = _FIRST_S
        self._changed_at = -math.inf
        self._clock_at = 0.0
        self._said: dict[bytes, float] = {}  # until when, in buckets' rows

    def add(self, waiter: ServerWaiter) -> None:
        """He is looked at with the next look."""
        self.waiters[waiter] = self._unseen[waiter] = None
        for bucket in waiter.versions:
            self._at.setdefault(bucket, {})[waiter] = None
        if (name := waiter.watched.taken_from) is not None:
            self._takers.setdefault(name, {})[waiter] = None
        if waiter.expiry_us:
            heapq.heappush(self._expiries, (waiter.expiry_us, next(self._numbers), waiter))
        if len(self._expiries) > 2 * len(self.waiters) + 64:  # most are of waits that have ended
            self._expiries = [each for each in self._expiries if not each[2].is_over]
            heapq.heapify(self._expiries)

    def discard(self, waiter: ServerWaiter) -> None:
        """He waits no more."""
        if waiter not in self.waiters:
            return
        waiter.is_over = True
        del self.waiters[waiter]
        self._unseen.pop(waiter, None)
        for bucket in waiter.versions:
            _remove(self._at, bucket, waiter)
            if bucket not in self._at:
                self._known.pop(bucket, None)
        if waiter.watched.taken_from is not None:
            _remove(self._takers, waiter.watched.taken_from, waiter)

    def _end(self, waiter: ServerWaiter, error: InmemError | None = None) -> None:
        self.discard(waiter)
        waiter.tell(error)

    def end_all(self, error: InmemError, owner: object = None) -> None:
        """No wait of this handle, or of any, goes on."""
        for waiter in [*self.waiters]:
            if owner is None or waiter.owner is owner:
                self._end(waiter, type(error)(error.message, hint=error.hint, **error.fields))

    def pass_on(self, name: bytes) -> None:
        """Wake a taker."""
        for waiter in self._takers.get(name, ()):
            self._end(waiter)
            return

    def close(self) -> None:
        """Its connection goes."""
        if self.connection is not None:
            self.connection.close()

    def was_told(self) -> bool:
        """Whether the server says that something has changed that somebody here waits for."""
        connection = self.connection
        assert connection is not None
        try:
            connection.pgconn.consume_input()
        except psycopg.Error:
            return True  # the next look says so
        told = False
        while (notified := connection.pgconn.notifies()) is not None:
            told = told or is_hint_for(notified.extra.decode(), (b for b in self._at if type(b) is bytes))
        return told

    # --- looking ----------------------------------------------------------------------

    def look(self) -> float:
        """Look once; after how many seconds to look again."""
        try:
            changed = self._changed()
            if changed or self._unseen:
                self._look_at(changed)
        except WriterUnavailableError:
            self._lose()
            return _RETRY_S
        except psycopg.Error:
            self._lose()
            return 0.0 if self._unseen else _FIRST_S
        except ClosedError:
            return 0.0
        except InmemError as error:
            self.end_all(error)
            return 0.0
        now = time.monotonic()
        if changed:
            self._changed_at, self._pause_s = now, _FIRST_S
        most_s = _BUSY_S if now - self._changed_at < _CALM_S else _QUIET_S
        self._pause_s = min(self._pause_s * _GROWS, most_s)
        sleep_s = self._pause_s
        self._expire()
        if self._expiries:
            due_us = self._expiries[0][0] - self._store.connections.now_us()
            sleep_s = min(sleep_s, max(0.0, due_us / 1e6))
        return sleep_s

    def _lose(self) -> None:
        """The connection is gone."""
        self.close()
        self.connection = None
        self._said.clear()

    def _connected(self) -> AskedConnection:
        connection = self.connection
        if connection is None or connection.closed:
            connection = self.connection = self._store.connections.connect(time.monotonic() + _CONNECT_S)
            if connection.is_direct:
                connection.execute("select set_config('synchronous_commit', 'off', false)")
                if self._store.listens:
                    connection.execute(LISTEN)
        return connection

    def _ask(self, query: str, *arguments: Any) -> list[Any]:
        connection = self._connected()
        self.statements += 1
        return connection.execute(query, arguments, binary=True).fetchall()

    def _changed(self) -> list[bytes | Wide]:
        """What has other versions than at the last look."""
        known = self._known
        buckets = [each for each in self._at if type(each) is bytes]
        found: dict[bytes | Wide, int] = dict.fromkeys(self._at, 0)
        if buckets:
            now = time.monotonic()
            if now - self._changed_at >= _CALM_S and any(self._said.get(b, 0.0) < now for b in buckets):
                self._say(buckets, now)
            if now >= self._clock_at:  # this machine's clock may be set meanwhile
                self._clock_at = now + _CLOCK_S
                self._store.connections.saw(self._ask(f"select {CLOCK}")[0][0])
            found.update(self._ask("select bucket, version from buckets where bucket = any(%s)", buckets))
        for each in self._at:
            if type(each) is tuple:
                found[each] = int(self._ask(_SUM, *each)[0][0])
        changed = [each for each, version in found.items() if known.get(each, version) != version]
        self._known = found
        return changed

    def _say(self, buckets: list[bytes], now: float) -> None:
        """Say in the rows of buckets that somebody waits; not in those that are being written."""
        until = {bucket: self._said[bucket] for bucket in buckets if self._said.get(bucket, 0.0) >= now}
        unsaid = [bucket for bucket in buckets if bucket not in until]
        self._said = until | dict.fromkeys(unsaid, now + _SAY_AGAIN_S)
        if self._store.listens and self._connected().is_direct:
            said = self._ask(
                "with quiet as (select bucket from buckets where bucket = any(%s)"
                " order by bucket for no key update skip locked)"
                f" update buckets set waiting = {CLOCK} + %s where bucket in (select bucket from quiet)"
                " returning bucket", unsaid, _SAID_US,
            )
            self._said.update((bucket, now + _SAID_US / 2e6) for bucket, in said)

    def _look_at(self, changed: list[bytes | Wide]) -> None:
        """Look at those who have read what has changed, all in one snapshot."""
        due: dict[ServerWaiter, None] = {}
        for bucket in changed:
            due.update(self._at.get(bucket, {}))
        due.update(self._unseen)
        known = self._known
        due = {
            waiter: None for waiter in due
            if any(known.get(bucket) != version for bucket, version in waiter.versions.items())
        }
        self._unseen.clear()
        if not due:
            return
        takers: dict[bytes, None] = {}
        try:
            moment = self._store.moment()
            try:
                seen = SeenByAll(moment, due)
                self.statements += 3
                for waiter in due:
                    name = waiter.watched.taken_from
                    if name is not None:
                        takers[name] = None
                    else:
                        self._look_at_one(waiter, seen)
                for name in takers:
                    self._hand_out(name, seen)
            finally:
                moment.close()
        except BaseException:
            self._unseen.update((waiter, None) for waiter in due if not waiter.is_over)
            raise

    def _look_at_one(self, waiter: ServerWaiter, seen: SeenByAll) -> None:
        try:
            has_changed = waiter.watched.has_changed(seen)
        except InmemError as error:
            if isinstance(error, WriterUnavailableError | ClosedError):
                raise
            self._end(waiter, error)
            return
        if has_changed:
            self._end(waiter)
        else:
            seen.note(waiter)

    def _hand_out(self, name: bytes, seen: SeenByAll) -> None:
        """Of takers as many look as there is new, those who have waited longest first."""
        takers = [*self._takers[name]]
        try:
            check_not_deleted(seen, takers[0].watched.prefix)
        except InmemError as error:
            for waiter in takers:
                self._end(waiter, error)
            return
        new = seen.handed_out(takers[0])
        for waiter in takers[:new]:
            self._end(waiter)
        for waiter in takers[new:]:
            seen.note(waiter)

    def _expire(self) -> None:
        """Wake those who have read what holds until now only."""
        now_us = self._store.connections.now_us()
        served: set[bytes] = set()
        while self._expiries and self._expiries[0][0] <= now_us:
            waiter = heapq.heappop(self._expiries)[2]
            name = waiter.watched.taken_from
            if waiter.is_over:
                continue
            if name in served:  # it is for one of them: the others look later
                heapq.heappush(self._expiries, (now_us + _LATER_US, next(self._numbers), waiter))
                continue
            if name is not None:
                served.add(name)
            self._end(waiter)


class SeenByAll:
    """A snapshot that several look at: a `StoredVersion` that asks for what they have read at once."""

    def __init__(self, moment: ServerMoment, due: Iterable[ServerWaiter]) -> None:
        self._moment = moment
        self.now_us = moment.now_us
        self.version = moment.version
        buckets = {bucket for waiter in due for bucket in waiter.versions}
        self.versions: dict[bytes | Wide, int] = {
            each: moment.sum_of(*each) for each in buckets if type(each) is tuple
        }
        plain = [each for each in buckets if type(each) is bytes]
        moment.see(plain)
        self.versions.update((each, moment.seen[each]) for each in plain)
        keys = {key for waiter in due for key in waiter.watched.reads.reads}
        self._records: dict[bytes, bytes | None] = dict.fromkeys(keys)
        if keys:
            self._records.update(moment.get_many([*keys]))
        self._fences: dict[bytes, bytes | None] = {}

    def note(self, waiter: ServerWaiter) -> None:
        """For him nothing has changed until now."""
        for bucket in waiter.versions:
            waiter.versions[bucket] = self.versions.get(bucket, waiter.versions[bucket])

    def get(self, key: bytes) -> bytes | None:
        """See `StoredVersion`."""
        return self._records[key] if key in self._records else self._moment.get(key)

    def get_many(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """See `StoredVersion`."""
        return {key: record for key in keys if (record := self.get(key)) is not None}

    def scan(
        self, start: bytes, end: bytes, *, reverse: bool = False, limit: int | None = None
    ) -> Iterator[Item]:
        """See `StoredVersion`."""
        return self._moment.scan(start, end, reverse=reverse, limit=limit)

    def count(self, start: bytes, end: bytes) -> int:
        """See `StoredVersion`."""
        return self._moment.count(start, end)

    def fence(self, digest: bytes) -> bytes | None:
        """See `StoredVersion`."""
        if digest not in self._fences:
            self._fences[digest] = self._moment.fence(digest)
        return self._fences[digest]

    def close(self) -> None:
        """It is closed by who began it."""

    def handed_out(self, taker: ServerWaiter) -> int:
        """How many records are new, of those that are for one taker each."""
        new = 0
        for start, end, _ in taker.watched.reads.ranges:
            if start[start.index(0) + 1] in HANDED_OUT:
                since = min(version for each, version in taker.versions.items() if type(each) is bytes)
                new += sum(version_of(record) > since for _, record in self._moment.scan(start, end))
        return new


def _remove(at: dict[Any, dict[ServerWaiter, None]], name: Any, waiter: ServerWaiter) -> None:
    others = at.get(name)
    if others is not None:
        others.pop(waiter, None)
        if not others:
            del at[name]
