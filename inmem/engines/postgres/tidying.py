"""What has to be tidied now and then, by whoever is there: expired records, old sessions, idle connections.

Invariant: an expired record is shown to nobody, so to remove it is no write: no
version changes. It is done under the locks of commits, so none finds a record
gone that it saw alive; and in slices, so none waits for long.
"""

from __future__ import annotations

import random
import threading
import time
from _thread import allocate_lock
from typing import Any, Final, Protocol

import psycopg

from inmem.engines.postgres.buckets import row_of
from inmem.engines.postgres.connections import Connections
from inmem.errors import InmemError
from inmem.primitives.holding import ring

SLICE: Final = 1000
_LOOK_S: Final = 5.0  # between two looks at idle connections
_SWEEP_S: Final = 20.0  # between two sweeps of a process, on average
_SESSIONS_S: Final = 600.0
LOCK: Final = 0x696E7377  # of who sweeps; the other half is of the schema
_WAIT_MS: Final = 200  # for a bucket that is always locked
# Of the transaction: a clock that goes on would keep the index from being used.
_NOW: Final = "(extract(epoch from now()) * 1000000)::bigint"


class Tidied(Protocol):
    """A store, as far as it is tidied."""

    connections: Connections


class Tidying:
    """The thread of a process that tidies one store. It ends with the store."""

    def __init__(self, store: Tidied) -> None:
        self._store = store
        self._bell = allocate_lock()
        self._bell.acquire()
        self._threads: dict[int, threading.Thread] = {}

    def start(self) -> None:
        """Tidy from now on, unless it is done already."""
        thread = self._threads.get(0)
        if thread is None or not thread.is_alive():
            thread = self._threads[0] = threading.Thread(target=self._run, name="inmem-tidies", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # no more threads: others tidy
                self._threads.pop(0, None)

    def end(self) -> None:
        """The store is closed."""
        ring(self._bell)

    def after_fork_in_child(self) -> None:
        """The thread is the parent's."""
        self.__init__(self._store)  # type: ignore[misc]

    def _run(self) -> None:
        store = self._store
        sweep_at = time.monotonic() + random.uniform(0, _SWEEP_S)
        sessions_at = time.monotonic() + random.uniform(0, _SESSIONS_S)
        while not store.connections.is_closed:
            self._bell.acquire(timeout=_LOOK_S)
            store.connections.close_idle()
            now = time.monotonic()
            try:
                if now >= sweep_at:
                    sweep_at = now + random.uniform(_SWEEP_S / 2, _SWEEP_S * 3 / 2)
                    while sweep(store.connections) >= SLICE:
                        time.sleep(0.01)  # who waits for a lock has his turn
                if now >= sessions_at:
                    sessions_at = now + random.uniform(_SESSIONS_S / 2, _SESSIONS_S * 3 / 2)
                    while trim_sessions(store.connections, store.connections.session_ttl_s) >= SLICE:
                        time.sleep(0.01)
            except (InmemError, psycopg.Error):
                continue  # another time, or somebody else


def sweep(connections: Connections) -> int:
    """Remove expired records, a slice at most; how many. None if another process does so."""
    with connections.one() as connection, connection.transaction():
        if not _alone(connection):
            return 0
        keys = [key for key, in connection.execute(
            f"select key from records where expires <= {_NOW} order by expires limit {SLICE}", binary=True,
        ).fetchall()]  # fmt: skip
        if not keys:
            return 0
        of = {key: row_of(key) for key in keys}
        buckets = sorted(set(of.values()))
        locked = _locked(connection, buckets, "skip locked")
        if not locked:  # all of them are busy: wait for one
            connection.execute(f"set local lock_timeout = {_WAIT_MS}")
            locked = _locked(connection, buckets[:1], "")
        removed = connection.execute(
            f"delete from records where key = any(%s) and expires <= {_NOW}",
            ([key for key in keys if of[key] in locked],),
        )
        return removed.rowcount


def trim_sessions(connections: Connections, ttl_s: float) -> int:
    """Forget sessions that were not used for so long, a slice at most; how many."""
    with connections.one() as connection, connection.transaction():
        if not _alone(connection):
            return 0
        removed = connection.execute(
            "delete from sessions where session in (select session from sessions"
            f" where active < now() - make_interval(secs => %s) limit {SLICE} for update skip locked)",
            (ttl_s,),
        )
        return removed.rowcount


def _alone(connection: psycopg.Connection[Any]) -> bool:
    """Whether nobody else tidies this store now."""
    found = connection.execute(
        "select pg_try_advisory_xact_lock(%s, hashtext(current_schema()))", (LOCK,)
    ).fetchone()
    return found is not None and found[0] is True


def _locked(connection: psycopg.Connection[Any], buckets: list[bytes], how: str) -> set[bytes]:
    """Those of the buckets that could be locked, as a commit locks them."""
    return {bucket for bucket, in connection.execute(
        f"select bucket from buckets where bucket = any(%s) order by bucket for update {how}", (buckets,),
        binary=True,
    ).fetchall()}  # fmt: skip
