"""Calls of every kind that count what they were told, so that the store can be asked whether it is so."""

from __future__ import annotations

import itertools
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import inmem

RUN = "run"


class Calls:
    """Calls under names of their own. Each adds one to its number in the store."""

    def __init__(self, db: inmem.Database, path: Path, name: str) -> None:
        self._told: list[str] = []  # appending is one step: these calls come in the middle of each other
        self._numbers = itertools.count()
        self._db = db
        self._path = path
        self._name = name
        self.kinds: dict[str, Callable[[], None]] = {
            "put": self.put, "add": self.add, "append": self.append, "transact": self.transact,
            "pipeline": self.pipeline, "transition": self.transition, "get": self.get,
            "lease": self.lease,
            "snapshot": self.snapshot, "status": self.status, "stream": self.stream,
        }

    def make(self, kind: str) -> None:
        """Make a call of a kind, and count it when it has returned."""
        self.kinds[kind]()
        self._told.append(kind)

    @property
    def acked(self) -> Counter[str]:
        """How often a call of each kind returned."""
        return Counter(self._told)

    def _key(self, kind: str) -> str:
        return f"{self._name}-{kind}"

    def put(self) -> None:
        self._db.kv.put(RUN, f"{self._key('put')}-{next(self._numbers):07}", 1)

    def add(self) -> None:
        self._db.kv.add(RUN, self._key("add"))

    def append(self) -> None:
        self._db.events.append(self._key("log"), "happened")

    def transact(self) -> None:
        key = self._key("transact")
        self._db.transact(RUN, lambda txn: txn.kv.put(key, txn.kv.get(key, 0) + 1))

    def pipeline(self) -> None:
        with self._db.pipeline() as pipe:
            pipe.kv.add(RUN, self._key("pipeline"), 0.5)
            pipe.kv.add("other-run", "n")
            pipe.kv.add(RUN, self._key("pipeline"), 0.5)

    def transition(self) -> None:
        name = self._key("cell")
        self._db.transact(RUN, lambda txn: txn.cells.set(
            name, 1 if (state := txn.cells.read(name)) is None else state.value + 1
        ))

    def lease(self) -> None:
        """One that was interrupted may be held until it runs out: so each has a name of its own."""
        key = self._key("lease")
        lease = self._db.leases.acquire(RUN, f"{key}-{next(self._numbers):07}", ttl_s=0.01)
        self._db.transact(RUN, lambda txn: txn.kv.put(key, txn.kv.get(key, 0) + 1), lease=lease)
        self._db.leases.release(lease)

    def get(self) -> None:
        assert self._db.kv.get(RUN, self._key("add"), 0) >= 0

    def snapshot(self) -> None:
        with self._db.snapshot(RUN) as view:
            first = dict(view.kv.list_with_values(limit=1))
            assert first == {key: view.kv.get(key) for key in first}

    def status(self) -> None:
        assert self._db.status().writer_pid > 0

    def stream(self) -> None:
        if self._db.events.count("streamed") < 3:
            self._db.events.append_many("streamed", [("happened", n) for n in range(3)])
        assert sum(1 for _ in self._db.events.iter("streamed")) >= 3

    # --- what sets up anew what other calls find set up ------------------------------------

    def connect(self) -> None:
        """An add over a new connection."""
        for session in self._db.engine.attachment.session()._free:
            session._drop_link()
        self.add()

    def attach(self) -> None:
        """A read that opens the image first, as after a switch of generation."""
        now = self._db.engine.attachment.image._now
        if now is not None:
            now.generation -= 1  # as if the control file named another one
        self.get()

    def second(self) -> None:
        """A second handle of the same store, an add through it, and its end."""
        with inmem.open(self._path) as again:
            again.kv.add(RUN, self._key("second"))

    def another(self) -> None:
        """Another store."""
        with tempfile.TemporaryDirectory(dir=self._path.parent) as place, inmem.open(place) as other:
            assert other.kv.add(RUN, "n") == 1

    def stored(self) -> dict[str, float]:
        """How often each kind that writes has taken effect, as the store says."""
        db = self._db
        cell = db.cells.read(RUN, self._key("cell"))
        found = {
            "put": db.kv.count(RUN, self._key("put")),
            "add": db.kv.get(RUN, self._key("add"), 0),
            "append": db.events.count(self._key("log")),
            "transact": db.kv.get(RUN, self._key("transact"), 0),
            "pipeline": db.kv.get(RUN, self._key("pipeline"), 0),
            "transition": 0 if cell is None else cell.value,
            "second": db.kv.get(RUN, self._key("second"), 0),
            "lease": db.kv.get(RUN, self._key("lease"), 0),
        }
        return {kind: count for kind, count in found.items() if count}

    def expected(self) -> dict[str, float]:
        """The same, as those who called were told."""
        told = {kind: self.acked[kind] for kind in (
            "put", "append", "transact", "pipeline", "transition", "second", "lease"
        )}
        told["add"] = self.acked["add"] + self.acked["connect"]
        return {kind: count for kind, count in told.items() if count}
