"""The commit layer without its process: a store, a log that can fail, and clients that can lie."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lmdb
import msgpack

from inmem import values
from inmem.errors import InmemError
from inmem.host.control import SIZE
from inmem.keys import Key, Namespace, fence_of
from inmem.primitives.server import PROCEDURES
from inmem.record import is_live, payload_of, version_of
from inmem.storage.environment import Table
from inmem.storage.position import Position
from inmem.storage.store import PublishError, Store, StoreTransaction
from inmem.storage.wal.format import DELETE, PUT, Op
from inmem.wire import APPLIED, REFUSED, from_wire
from inmem.writer.committer import Answer, Committer, NoLog, Request
from inmem.writer.outcomes import Sessions
from inmem.writer.suspects import Suspects
from inmem.writeset import OP_CALL, OP_DELETE, OP_PUT, WriteSet

NS = Namespace()
START_US = 1_000_000_000_000_000
SECOND = 1_000_000
QUOTA = 64 * 1024 * 1024


def kv_key(run: str, name: str) -> bytes:
    return bytes(Key.kv(NS, run, name))


def key(name: str) -> bytes:
    """The key of a KV entry of the run "r"."""
    return kv_key("r", name)


def put(key: bytes, value: Any, expires: int = 0) -> list[Any]:
    return [OP_PUT, key, values.encode(value), expires]


def delete(key: bytes) -> list[Any]:
    return [OP_DELETE, key]


def call(name: str, *arguments: Any) -> list[Any]:
    return [OP_CALL, name, list(arguments)]


def append(run: str, *events: tuple[str, Any]) -> list[Any]:
    items = [[event_type.encode(), values.encode(payload), 0] for event_type, payload in events]
    return call("event.append", NS.run_prefix(run), items)


def body(
    *ops: list[Any], reads: dict[bytes, int] | None = None,
    ranges: Sequence[tuple[bytes, bytes, int]] = (), snapshot: int = 0, expiry: int = 0,
) -> bytes:
    return WriteSet(snapshot, expiry, dict(reads or {}), list(ranges), list(ops)).encode()


def refusal(answer: Answer) -> str:
    """Why a commit was refused, by its code."""
    assert answer.status == REFUSED
    code: str = msgpack.unpackb(answer.result)[0]
    return code


def error_of(answer: Answer) -> InmemError:
    """The error in an answer; fails if there is none."""
    assert answer.status != APPLIED, answer
    return from_wire(msgpack.unpackb(answer.result))


def results_of(answer: Answer) -> list[Any]:
    """The results of the calls of an applied commit; fails with the error if it was not."""
    assert answer.status == APPLIED, msgpack.unpackb(answer.result)
    found: list[Any] = msgpack.unpackb(answer.result)
    return found


class RecordingLog(NoLog):
    """A log in memory: it can be replayed, cut, and made to fail."""

    def __init__(self) -> None:
        self.records: list[tuple[int, list[Op]]] = []
        self.durable = 0
        self.failures: list[OSError | None] = []  # of the next appends
        self.sync_failures: list[OSError | None] = []
        self.syncs = 0
        self.cuts = 0

    @property
    def durable_version(self) -> int:
        return self.durable

    def position(self) -> Any:
        return len(self.records)

    def append(self, ops: Sequence[Op], *, version: int, epoch: int, clock_us: int) -> int:
        failure = self.failures.pop(0) if self.failures else None
        if failure is not None:
            raise failure
        assert not self.records or version > self.records[-1][0]
        self.records.append((version, list(ops)))
        return len(self.records)

    def cut(self, position: Any) -> None:
        self.cuts += 1
        del self.records[position:]

    def sync(self) -> int:
        self.syncs += 1
        failure = self.sync_failures.pop(0) if self.sync_failures else None
        if failure is not None:
            raise failure
        self.durable = self.records[-1][0] if self.records else 0
        return self.durable

    def replayed(self) -> dict[Table, dict[bytes, bytes]]:
        """What the log says that the tables hold."""
        tables: dict[Table, dict[bytes, bytes]] = {table: {} for table in Table}
        for _, ops in self.records:
            for op in ops:
                table = tables[Table(op[1])]
                if op[0] == PUT:
                    table[op[2]] = op[3]
                elif op[0] == DELETE:
                    table.pop(op[2], None)
                else:
                    for key in [k for k in table if op[2] <= k < op[3]]:
                        del table[key]
        return tables


class FailingStore(Store):
    """A store whose publishing fails as planned: True for a full memory, False for another error."""

    def __init__(self, path: Path, *, max_readers: int = 64, quota_bytes: int = QUOTA) -> None:
        self.plan: list[bool | None] = []
        super().__init__(path, max_readers=max_readers, quota_bytes=quota_bytes)

    def begin(self) -> StoreTransaction:
        return _FailingTransaction(self, self._env.begin(self._tables[Table.DATA], write=True))


class _FailingTransaction(StoreTransaction):
    __slots__ = ()

    def publish(self, position: Position) -> None:
        store = self._store
        assert isinstance(store, FailingStore)
        failure = store.plan.pop(0) if store.plan else None
        if failure is not None:
            raise PublishError(lmdb.MapFullError("planned") if failure else lmdb.DiskError("planned"))
        super().publish(position)


class Bench:
    """A committer on a store of its own. Time stands still until it is moved."""

    def __init__(
        self, path: Path, *, log: Any = None, always_sync: bool = False, max_in_flight: int = 1024,
        ttl_s: float = 3600.0, quota: int = QUOTA, chain: int = 0,
    ) -> None:
        path.mkdir(mode=0o700)
        self.store = FailingStore(path, quota_bytes=quota)
        self.log = RecordingLog() if log is None else log
        self.now = START_US
        self.steps: list[str] = []
        self.reached: Callable[[str], None] = self.steps.append
        self.page = memoryview(bytearray(SIZE))  # of the control file: it outlives writers
        self.procedures = dict(PROCEDURES)
        self._settings = {"max_in_flight": max_in_flight, "ttl_s": ttl_s}
        self._always_sync = always_sync
        self._chain = chain
        self.writers = 0  # so far; the epoch of the last
        self.restart()

    def restart(self) -> None:
        """The next writer, on the image that the last one left."""
        self.writers += 1
        position = self.store.position
        sessions = Sessions(self.store.items(Table.SESSIONS), **self._settings)
        self.suspects = Suspects(self.page)
        self.suspects.take_over(self.writers - 1, same_boot=True)
        self.suspects.begin(self.writers)
        self.committer = Committer(
            self.store, self.log, sessions, version=position.version if position else 0,
            epoch=self.writers, owner=(b"d", b"b", 1, 2), chain=self._chain,
            always_sync=self._always_sync, procedures=self.procedures,
            reached=lambda step: self.reached(step), suspects=self.suspects,
        )

    @property
    def sessions(self) -> Sessions:
        return self.committer.sessions

    def client(self, name: str = "c") -> Client:
        """A registered session."""
        session = name.encode().ljust(16, b".")
        self.sessions.register(session, self.now)
        self.committer.commit([], self.now)
        return Client(self, session)

    def commit(self, *requests: Request) -> list[Answer]:
        """Decide one group."""
        return self.committer.commit(requests, self.now)

    def fence(self, owner: bytes) -> None:
        """Close a run as its deletion does, and let a new writer find it so."""
        version = self.committer.version + 1
        ops: list[Op] = [(PUT, int(Table.FENCES), fence_of(owner), version.to_bytes(8, "big"))]
        checksum = self.log.append(ops, version=version, epoch=self.writers, clock_us=self.now)
        txn = self.store.begin()
        txn.apply(ops)
        txn.publish(Position(version, checksum, self.now, self.writers, (b"d", b"b", 1, 2)))
        self.restart()

    def records(self) -> dict[bytes, bytes]:
        """All stored records, the expired too."""
        return {bytes(key): bytes(record) for key, record in self.store.items(Table.DATA)}

    def live(self) -> dict[bytes, tuple[int, bytes]]:
        """Version and payload of all live records."""
        return {
            key: (version_of(record), payload_of(record))
            for key, record in self.records().items() if is_live(record, self.now)
        }

    def value(self, key: bytes) -> Any:
        """The live value under a KV key; fails if there is none."""
        return values.decode(self.live()[key][1])

    def assert_log_is_image(self) -> None:
        """Replaying the log gives what is stored: nothing was published that is not logged, or back."""
        replayed = self.log.replayed()
        for table in (Table.DATA, Table.SESSIONS, Table.FENCES):
            stored = {bytes(k): bytes(v) for k, v in self.store.items(table)}
            assert replayed[table] == stored, table

    def close(self) -> None:
        self.store.close()


class Client:
    """One session: numbers its requests, and can send any of them again."""

    def __init__(self, bench: Bench, session: bytes) -> None:
        self.bench = bench
        self.session = session
        self.next = 1
        self.answered_below = 1

    def request(self, data: bytes, *, sync: bool = False) -> Request:
        """The next request, not sent."""
        request = Request(self.session, self.next, self.answered_below, data, sync)
        self.next += 1
        return request

    def send(self, *ops: list[Any], sync: bool = False, **reads: Any) -> Answer:
        """One commit in a group of its own, whose answer is taken."""
        return self.send_body(body(*ops, **reads), sync=sync)

    def send_body(self, data: bytes, *, sync: bool = False) -> Answer:
        """The same, of bytes."""
        answer = self.bench.commit(self.request(data, sync=sync))[0]
        self.answered_below = self.next
        return answer
