"""The check of a store on a server: the same rules as of any store, and those of its tables.

Each prefix is read in a snapshot of its own. A record is not newer than the
row of its bucket, and its column `expires` says what it says itself. Of
sessions and fences each must be one. It changes nothing.
"""

from __future__ import annotations

import msgpack

from inmem.changes import Table
from inmem.engines.postgres.buckets import buckets_of_range
from inmem.engines.postgres.connections import Connections
from inmem.engines.postgres.whole import WholeMoment
from inmem.keys import Key, fence_of
from inmem.maintenance.findings import Findings
from inmem.maintenance.records_check import RecordsCheck
from inmem.primitives import import_mark
from inmem.record import expires_at
from inmem.reports import CheckReport


def check(connections: Connections, version: int) -> CheckReport:
    """Look at everything. Cost: that of reading it, and four round trips a run."""
    findings = Findings()
    findings.counts["version"] = version
    checking = StoreCheck(connections, findings)
    start: bytes | None = b""
    while start is not None:
        start = checking.prefix_from(start)
    checking.tables()
    return findings.report()


class StoreCheck:
    """Checks the tables of one store."""

    def __init__(self, connections: Connections, findings: Findings) -> None:
        self._connections = connections
        self._findings = findings
        self._records = RecordsCheck(findings)

    def prefix_from(self, start: bytes) -> bytes | None:
        """Look at the first prefix from a key on; where the next one begins, None at the end."""
        moment = WholeMoment(self._connections)
        try:
            found = moment.ask("select key from records where key >= %s order by key limit 1", start)
            if not found:
                return None
            key: bytes = found[0][0]
            prefix, nul, _ = key.partition(b"\0")
            if not nul:
                self._records.take(key, b"", 0)
                return key + b"\0"
            self._prefix(moment, prefix)
            return prefix + b"\1"
        finally:
            moment.close()

    def _prefix(self, moment: WholeMoment, prefix: bytes) -> None:
        name, problem = prefix.decode(errors="replace"), self._findings.problem
        start, end = prefix + b"\0", prefix + b"\1"
        moment.look(start, end)
        missing: set[tuple[bytes, ...]] = set()
        for key, record, expires in moment.rows(start, end):
            is_key = len(key) > len(prefix) + 1 and key[len(prefix) + 1] in self._records.known
            rows = tuple(buckets_of_range(key, key + b"\0")) if is_key else ()
            version = max(map(moment.seen, rows), default=0)
            if is_key and not version and rows not in missing:
                missing.add(rows)
                problem(f"{Key(key)!r}: its bucket has no row, or was never written")
            self._records.take(key, record, version or 1 << 63)
            if len(record) >= 24 and expires != (expires_at(record) or None):
                problem(f"{Key(key)!r}: expires at {expires_at(record)}, and its row says {expires}")
        self._records.finish()
        fence = moment.fence(fence_of(prefix))
        if fence is not None and not import_mark.is_mark(fence):
            problem(f"{name}: was deleted, but has records")

    def tables(self) -> None:
        """Look at what lies beside the records."""
        moment = WholeMoment(self._connections)
        try:
            for session, result in moment.table(Table.SESSIONS):
                try:
                    msgpack.unpackb(result or b"\x90")
                except Exception as error:  # whatever a decoder says of bytes that are not its own
                    self._findings.problem(f"session {session.hex()} cannot be read: {error}")
            for digest, fence in moment.table(Table.FENCES):
                try:
                    if import_mark.is_mark(fence):
                        import_mark.unpack(fence)
                    elif len(fence) != import_mark.FENCE_BYTES:
                        raise ValueError(f"it has {len(fence)} bytes")
                except ValueError as error:
                    self._findings.problem(f"the fence {digest.hex()} cannot be read: {error}")
        finally:
            moment.close()
