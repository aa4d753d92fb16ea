"""One attempt at some commits: what is sent, and what is decided here.

Invariant: a commit locks all its buckets in their order, then its session's row,
and reads in statements of their own after that. So it decides on what nobody can
change before it has committed, and of two that meet one waits.

Two shorter ways lead to the same: what looks at nothing the server decides itself,
in one statement; and what looks only at what this process knows is decided before
the lock, and made if the buckets have still the versions at which they were known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import msgpack

from inmem.client.applied import Applied, Shown
from inmem.commit.decide import Effects, decide
from inmem.commit.footprint import Looks
from inmem.engines.postgres.ahead import Ahead
from inmem.engines.postgres.asking import BEGIN, COMMIT, ROLLBACK, Ask, Row
from inmem.engines.postgres.buckets import (
    buckets_of,
    is_of_one_prefix,
    looks_of,
    owner_of_row,
    owners_of,
    registry_of,
    row_of,
    rows_of_bucket,
)
from inmem.engines.postgres.connections import Connections, ServerConnection
from inmem.engines.postgres.failures import ForgottenError
from inmem.engines.postgres.known import Bucket, KnownState, Memory, Noted, NotKnownError, Told, is_simple
from inmem.engines.postgres.moment import SeenBuckets
from inmem.engines.postgres.statements import (
    ADD_BUCKETS,
    CHANGE_REGISTRIES,
    CLOSE,
    DELETE_RANGE,
    FENCES,
    LAST,
    LOCKED,
    LOCKED_BETWEEN,
    OPEN,
    PUT,
    REGISTRIES,
    SESSION,
    STATE,
    SYNC_ON,
    USED,
    WRITE,
    WRITE_BLIND,
    WRITE_LOCKED,
)
from inmem.engines.postgres.stored import Changes, Fences, LockedState
from inmem.engines.postgres.taking import TakenEntry, asked, taken
from inmem.engines.postgres.written import blind_writes, packed, rows_of_ops, unpacked, written_if
from inmem.errors import (
    ConflictError,
    CorruptionError,
    InmemError,
    InvariantError,
)
from inmem.keys import fence_of
from inmem.primitives.server import PROCEDURES
from inmem.writeset import OP_CALL, WriteSet

_NO_LOOKS: Final = Looks()
_TAKES: Final = 3  # tries to take one of some entries


class Commit:
    """One of some commits."""

    __slots__ = ("_buckets", "_rows", "looks", "request")

    def __init__(self, request: WriteSet) -> None:
        self.request = request
        self.looks = _NO_LOOKS
        ops = request.ops
        if len(ops) == 1 and ops[0][0] == OP_CALL and not request.reads and not request.ranges:
            self.looks = looks_of(ops[0][1], ops[0][2])
        place = self.looks.place
        self._buckets: list[bytes] | None = None
        self._rows = None if place is None else [row_of(place)]

    @property
    def buckets(self) -> list[bytes]:
        """The rows that it locks, in order."""
        if self._buckets is None:
            self._buckets = self._rows if self._rows and self.looks.is_of_place else buckets_of(self.request)
        return self._buckets

    @property
    def rows(self) -> list[bytes]:
        """Those that tell of all that it looks at."""
        return self.buckets if self._rows is None else self._rows


Outcome = Applied | InmemError


class Locked:
    """What commits find under their locks."""

    __slots__ = ("clock_us", "closed", "session", "state", "versions", "waiting_us")

    def __init__(
        self, versions: dict[bytes, int], state: LockedState, closed: dict[bytes, bytes | None],
        clock_us: int, session: tuple[Any, ...] | None, waiting_us: int,
    ) -> None:
        self.versions = versions  # of the rows of buckets
        self.state = state
        self.closed = closed  # fences, by digest
        self.clock_us = clock_us
        self.session = session
        self.waiting_us = waiting_us  # until when somebody waits for one of the buckets


class Attempt:
    """One attempt, on a connection, under the number of a session."""

    def __init__(
        self, connection: ServerConnection, connections: Connections, memory: Memory, chain: int,
        session: bytes, sequence: int, digest: int,
    ) -> None:
        self._connection = connection
        self._connections = connections
        self._memory = memory
        self._chain = chain
        self._session = session
        self._sequence = sequence
        self._digest = digest
        self.is_made = False
        self.may_be_made = False  # if no answer comes

    def make(
        self, commits: list[Commit], told: Told, *, sync: bool, is_in_doubt: bool,
        held: frozenset[bytes] = frozenset(),
    ) -> list[Outcome]:
        """Decide some commits in their order, and make those that are not refused, as one transaction.

        `held` are rows that this connection has locked before, in a transaction that is open.
        """
        if held and not all(held.issuperset(commit.buckets) for commit in commits):
            self._connection.ask((ROLLBACK, ()))
            held = frozenset()
        if len(commits) == 1 and not is_in_doubt and not sync and not held:
            one = commits[0]
            applied = self._blindly(one) or self._took(one) or self._guessed(one, told)
            if applied is not None:
                self.is_made = True
                return [applied]
        locked = self._lock(commits, told, sync, is_in_doubt, is_begun=bool(held))
        if locked.session is not None and locked.session[0] < self._sequence - 1:
            self._connection.ask((ROLLBACK, ()))
            raise self._forgotten()
        if locked.session is not None and locked.session[0] >= self._sequence:
            self.is_made = True
            return self._known(locked.session, len(commits))
        outcomes: list[Outcome] = []
        made: list[Effects] = []
        for commit in commits:
            now_us = max([locked.clock_us, *locked.versions.values()])
            try:
                effects = self._decided(commit.request, locked, told, now_us)
            except InmemError as error:
                if len(commits) == 1 or error.is_foreign:
                    raise
                outcomes.append(error)
                continue
            results = msgpack.unpackb(effects.results)
            if not effects.ops:
                outcomes.append(Applied(now_us, results))
                continue
            made.append(effects)
            outcomes.append(Applied(now_us + 1, results))
            if len(commits) > 1:
                locked.clock_us = now_us + 1
                locked.state.made(effects.ops)
                locked.closed.update(Changes(effects.ops).fences)
        if not made:
            self._connection.ask((ROLLBACK, ()))
            return outcomes
        version = max(outcome.version for outcome in outcomes if isinstance(outcome, Applied))
        result = made[0].results if len(commits) == 1 else packed(outcomes)
        self._write(made, version, result, locked)
        self.is_made = True
        self._hint([*locked.versions], (version, locked.waiting_us))
        if len(commits) == 1:
            self._remember(commits[0], locked, version, made[0])
        return outcomes

    def _hint(self, rows: list[bytes], made: Row) -> None:
        """Tell who waits for one of the buckets, if somebody does."""
        _, waiting_us = made
        if waiting_us and waiting_us > self._connections.now_us():
            self._connections.hints.give(self._connection, rows)

    def _remember(self, commit: Commit, locked: Locked, version: int, effects: Effects) -> None:
        """What a commit has left of the only row that tells of all that it has looked at."""
        rows = commit.rows
        if len(rows) != 1 or rows[0] not in rows_of_ops(effects.ops) or not is_simple(effects.ops):
            return
        bucket = Bucket(version, locked.state.known, locked.state.windows, is_ours=False)
        self._keep(commit, rows[0], locked.versions[rows[0]], bucket, version, effects)

    def _keep(
        self, commit: Commit, row: bytes, before: int, bucket: Bucket, version: int, effects: Effects
    ) -> None:
        known = self._memory.take(row)
        if known is None:  # of a stripe of many things others have some most likely
            bucket.is_ours = commit.looks.takes is None and not commit.looks.is_of_place
        else:
            bucket.is_ours = known.version == before
        bucket.wrote(version, effects.ops)
        self._memory.give_back(row, bucket)

    def _took(self, commit: Commit) -> Applied | None:
        """Make a commit that takes any one of some entries: one that nobody else has locked.

        None: it is another commit, or there is none, or it has to look at more.
        """
        takes = commit.looks.takes
        if takes is None:
            return None
        waits = False
        for _ in range(_TAKES):
            found = taken(takes, self._connection.ask((BEGIN, ()), *asked(takes, waits=waits))[-1])
            if found is not None and found.is_current:
                applied = self._take(commit, found)
                if applied is not None:
                    return applied
                break
            self._connection.tell(ROLLBACK)
            if found is None:
                if waits:
                    break
                waits = True  # all of them may be busy
        else:
            return None
        if self._connection.in_transaction:
            self._connection.tell(ROLLBACK)
        return None

    def _take(self, commit: Commit, found: TakenEntry) -> Applied | None:
        self._connections.saw(found.clock_us)
        now_us = max(found.clock_us, found.version)
        versions = {found.row: found.version}
        try:
            effects = decide(
                commit.request, found.state(), SeenBuckets(versions, versions), PROCEDURES,
                version=now_us + 1, now_us=now_us, fences=(), marks={}, chain=self._chain,
            )
        except NotKnownError:
            return None
        except InmemError as error:
            if error.is_foreign:
                raise
            return None
        if not is_simple(effects.ops) or rows_of_ops(effects.ops) != {found.row}:
            return None
        version = now_us + 1
        write = WRITE_LOCKED.asked(
            (self._sequence, self._digest, self._session, version, effects.results, found.row),
            Changes(effects.ops),
        )
        self.may_be_made = True
        written, _ = self._connection.ask(write, (COMMIT, ()))
        if not written:
            raise self._forgotten()
        self._hint([found.row], (version, found.waiting_us))
        bucket = Bucket(version, found.records, [], is_ours=False)
        self._keep(commit, found.row, found.version, bucket, version, effects)
        applied = Shown(version, msgpack.unpackb(effects.results))
        applied.records = bucket.records.copy()
        return applied

    def _guessed(self, commit: Commit, told: Told) -> Applied | None:
        """Decide a commit from what is known, and make it if that is so. None: it has to be looked at."""
        memory, rows, request = self._memory, commit.rows, commit.request
        if not self._connections.is_fresh():
            return None
        if not owners_of(request, rows) <= {*map(owner_of_row, rows)} or not all(
            is_of_one_prefix(start, end) for start, end, _ in request.ranges
        ):
            return None  # these rows do not tell of every fence, or not of every run
        is_wrong = memory.avoids(rows)
        bucket: Bucket | None = None
        state: KnownState
        noted: Noted | None = None
        if told.versions:
            if is_wrong:
                return None
            versions = {row: told.versions[row] for row in rows if row in told.versions}
            state = KnownState(told.records)
        elif request.reads or request.ranges or len(rows) != 1 or (bucket := memory.take(rows[0])) is None:
            return None
        elif bucket.is_ours and not is_wrong:
            versions = {rows[0]: bucket.version}
            state = KnownState(bucket.records, bucket.windows)
        else:  # others have written in it, but maybe not what this looks at
            versions = {}
            state = noted = Noted(bucket.records)
        now_us = max([self._connections.now_us(), *versions.values()])
        try:
            effects = decide(
                request, state, SeenBuckets(versions, versions), PROCEDURES, version=now_us + 1,
                now_us=now_us, fences=(), marks={}, chain=self._chain,
            )
        except (NotKnownError, InmemError) as error:
            if isinstance(error, InmemError) and error.is_foreign:
                raise
            effects = None
        what = None
        if effects is not None and effects.ops and is_simple(effects.ops):
            who = self._sequence, self._digest, self._session, now_us + 1, effects.results
            what = written_if(who, Changes(effects.ops), rows, versions, noted)
        if what is None or effects is None:
            if bucket is not None:
                memory.give_back(rows[0], bucket)
            return None
        self.may_be_made = True
        [found] = self._connection.ask(what)
        self.may_be_made = False
        if not found:
            memory.was_wrong(rows)
            return None
        self._hint(rows, found[0])
        if bucket is not None:
            bucket.is_ours = noted is None
            bucket.wrote(now_us + 1, effects.ops)
            memory.give_back(rows[0], bucket)
        return Applied(now_us + 1, msgpack.unpackb(effects.results))

    def _blindly(self, commit: Commit) -> Applied | None:
        """Make a commit that looks at nothing, in one statement. None: it has to be decided."""
        blind = blind_writes(commit.request)
        if blind is None:
            return None
        buckets = commit.buckets
        keys, payloads, ends, deleted = blind
        what: Ask
        who = self._sequence, self._digest, self._session
        if len(keys) == 1 and not deleted and not ends[0]:
            what = PUT, (*who, buckets[0], keys[0], payloads[0])
        else:
            what = WRITE_BLIND, (*who, buckets, keys, payloads, ends, deleted)
        self.may_be_made = True
        [found] = self._connection.ask(what)
        self.may_be_made = False
        if not found:
            return None
        self._hint(buckets, found[0])
        return Applied(found[0][0], [])

    def _decided(self, request: WriteSet, locked: Locked, told: Told, now_us: int) -> Effects:
        for start, end, _ in request.ranges:
            if not is_of_one_prefix(start, end) and (
                _between(locked.versions, start, end) != _between(told.versions, start, end)
            ):
                raise ConflictError("runs were written since they were read", key=start)
        ranges = [each for each in request.ranges if is_of_one_prefix(*each[:2])]
        request = replace(request, ranges=ranges)  # it may be decided again
        state, closed = locked.state, locked.closed
        return decide(
            request, state, SeenBuckets(locked.versions, told.versions), PROCEDURES, version=now_us + 1,
            now_us=now_us, fences=Fences(state, closed, marks=False), marks=Fences(state, closed, marks=True),
            chain=self._chain,
        )

    def _lock(
        self, commits: list[Commit], told: Told, sync: bool, is_in_doubt: bool, *, is_begun: bool
    ) -> Locked:
        """Lock all that some commits concern, and read what they surely look at, in one round trip."""
        buckets = sorted({bucket for commit in commits for bucket in commit.buckets})
        owners: set[bytes] = set()
        wide = []
        for commit in commits:
            owners |= owners_of(commit.request, commit.buckets)
            wide += [each[:2] for each in commit.request.ranges if not is_of_one_prefix(*each[:2])]
        ahead = Ahead([commit.request for commit in commits])
        unlocked = [fence_of(owner) for owner in owners - {*map(owner_of_row, buckets)}]
        before: list[Ask] = [] if is_begun else [(BEGIN, ())]
        if sync:
            before.append((SYNC_ON, ()))
        lock: Ask = (LOCKED, (buckets,))
        if wide:
            # Rows between two ranges are locked too: that is one statement in the order of rows.
            lock = (LOCKED_BETWEEN, (buckets, min(start for start, _ in wide), max(end for _, end in wide)))
        looks = ahead.asked()
        if is_in_doubt:
            looks.insert(0, (SESSION, (self._session,)))
        if unlocked:
            looks.append((FENCES, (unlocked,)))
        while True:
            answers = self._connection.ask(*before, lock, *looks)
            rows, *more = answers[len(before) :]
            session = (more.pop(0) or [(1 << 62, 0)])[0] if is_in_doubt else None
            versions: dict[bytes, int] = {row[0]: row[1] for row in rows}
            missing = [bucket for bucket in buckets if bucket not in versions]
            if not missing:
                break
            self._create(missing, told.versions)
            if is_begun:
                before, is_begun = [(BEGIN, ()), *before], False
        state = ahead.state(self._connection, more)
        closed: dict[bytes, bytes | None] = dict.fromkeys(map(fence_of, owners))
        if any(row[2] for row in rows):
            [fences] = self._connection.ask((FENCES, ([*closed],)))
            closed.update(fences)
        elif unlocked:
            closed.update(more[-1])
        clock_us = max((row[3] for row in rows), default=0)
        if rows:
            self._connections.saw(clock_us)
        else:  # its arguments are no procedure's
            clock_us = self._connections.now_us()
        waiting_us = max((row[4] for row in rows), default=0)
        return Locked(versions, state, closed, clock_us, session, waiting_us)

    def _create(self, missing: list[bytes], told: dict[bytes, int]) -> None:
        """Make rows of buckets, in a transaction of its own; of a bucket all.

        The registries of their namespaces change before.
        If that was all that has changed since a transaction has read them, it is told so.
        """
        missing = sorted({row for bucket in missing for row in rows_of_bucket(bucket)})
        registries = sorted({registry_of(bucket) for bucket in missing})
        *_, found, changed, _, _ = self._connection.ask(
            (ROLLBACK, ()), (BEGIN, ()), (REGISTRIES, (registries,)), (CHANGE_REGISTRIES, (registries,)),
            (ADD_BUCKETS, (missing,)), (COMMIT, ()),
        )
        before: dict[bytes, int] = dict(found)
        after: dict[bytes, int] = dict(changed)
        for registry in registries:
            if told.get(registry, -1) == before.get(registry, 0):
                told[registry] = after[registry]
        told.update({bucket: 0 for bucket in missing if bucket not in told})

    def _known(self, row: tuple[Any, ...], count: int) -> list[Outcome]:
        """The outcome of what was made by an earlier attempt."""
        if row[0] != self._sequence or row[1] != self._digest:
            self._connection.ask((ROLLBACK, ()))
            raise self._forgotten()
        try:
            found = msgpack.unpackb(row[3])
        except ValueError:
            raise CorruptionError("the result of a commit is damaged") from None
        # A server that was restarted shows what its standby may not have; this waits for that.
        self._connection.ask((USED, (self._session,)), (COMMIT, ()))
        return [Applied(row[2], found)] if count == 1 else [*map(unpacked, found)]

    def _write(self, made: list[Effects], version: int, result: bytes, locked: Locked) -> None:
        connection = self._connection
        buckets = {row for effects in made for row in rows_of_ops(effects.ops)}
        changes = Changes([op for effects in made for op in effects.ops])
        # A range may cover buckets of a run that were never made: nothing can be in them.
        if not buckets <= locked.versions.keys() and not changes.ranges:
            raise InvariantError(f"a commit writes in buckets that it has not locked: {sorted(buckets)!r}")
        written = sorted(buckets & locked.versions.keys())
        before: list[Ask] = [(DELETE_RANGE, each) for each in changes.ranges]
        for fenced, fence in changes.fences.items():
            before.append((OPEN, (fenced,)) if fence is None else (CLOSE, (fenced, fence)))
            rows = [row for row in locked.versions if fence_of(owner_of_row(row)) == fenced]
            before.append((STATE, (rows, 0 if fence is None else 1)))
        write = WRITE.asked(
            (self._sequence, self._digest, self._session, version, result, written), changes
        )
        self.may_be_made = True
        if before:
            [found] = connection.ask(*before, write)[len(before) :]
            connection.ask((COMMIT if found else ROLLBACK, ()))
        else:
            found, _ = connection.ask(write, (COMMIT, ()))
        if not found:
            raise self._forgotten()

    def _forgotten(self) -> ForgottenError:
        """What is there in place of what was expected. Nothing of this attempt is."""
        self.may_be_made = False
        [[(last, database_id)]] = self._connection.ask((LAST, (self._session,)))
        return ForgottenError(last, database_id)


def _between(versions: Mapping[bytes, int], start: bytes, end: bytes) -> dict[bytes, int]:
    """The versions of the buckets in a range over runs, and of their registry."""
    registry = registry_of(start)
    return {
        bucket: version for bucket, version in versions.items() if bucket == registry or start <= bucket < end
    }
