"""A stopped store with a known history, in whose copy recovery runs again and again."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from crash_workers import RUN
from support import copied, stop_writer

import inmem
from inmem import values
from inmem.host.control import DURABLE
from inmem.host.directory import DataDirectory
from inmem.keys import TypeTag
from inmem.record import payload_of
from inmem.storage.environment import Table, remove_image
from inmem.storage.recovery import Recovered, recover
from inmem.storage.wal import files as wal_module

State = dict[str, Any]
COMMITS = 30


@dataclass
class History:
    """What was acknowledged: (bytes of the log, state) after each commit, oldest first."""

    states: list[tuple[int, State]] = field(default_factory=list)

    def at(self, size: int) -> State:
        """The state that the whole commits within the first `size` bytes make."""
        return next((state for end, state in reversed(self.states) if end <= size), {})


def segment(path: Path) -> Path:
    (only,) = sorted((path / "wal").glob("*.wal"))
    return only


def make_history(path: Path, rng: random.Random) -> History:
    """A stopped store with known commits of every kind; each commit is a group, and a record, of its own."""
    history = History()
    state: State = {}
    with inmem.open(path, durability="sync") as db:
        for number in range(COMMITS):
            kind = rng.randrange(4)
            key = f"k{rng.randrange(6)}"
            if kind == 0:
                state[key] = rng.randbytes(rng.randrange(1, 40))
                db.kv.put(RUN, key, state[key])
            elif kind == 1:
                state["n"] = db.kv.add(RUN, "n", number)
            elif kind == 2:
                db.kv.delete(RUN, key)
                state.pop(key, None)
            else:
                state["a"] = state["b"] = number

                def step(txn: Any, number: int = number) -> None:
                    txn.kv.put("a", number)
                    txn.kv.put("b", number)

                db.transact(RUN, step)
            history.states.append((segment(path).stat().st_size, dict(state)))
    stop_writer(path)
    return history


def state_of(recovered: Recovered) -> State:
    """All KV entries of the image, straight from its records."""
    tag = b"\0%c" % TypeTag.KV
    found = {}
    for key, record in recovered.store.items(Table.DATA):
        if tag in key:
            found[key.partition(tag)[2].decode()] = values.decode(payload_of(bytes(record)))
    return found


class Bench:
    """A copied data directory in which recovery runs, in this process, again and again."""

    def __init__(self, source: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        copied(source, target)
        self.directory = DataDirectory(target)
        self.log = segment(target)
        self.whole = self.log.read_bytes()
        self._control = (target / "control").read_bytes()
        self._images = target.with_name("images")
        self._images.mkdir(mode=0o700)
        identity = self.directory.identity()
        stored = dict(identity.stored) | {"image_dir": str(self._images), "max_readers": 8}
        self.identity = type(identity)(identity.database_id, identity.ephemeral, stored)
        # No power fails here, and hundreds of recoveries would wait for the disk.
        for name in ("fsync", "fdatasync"):
            monkeypatch.setattr(wal_module.Files, name, lambda self, fd: None)

    def recover(self, data: bytes, *, knows_durable: bool = False) -> State:
        """The state that recovery makes of a log with these bytes; raises what it raises.

        `knows_durable`: the control file still says up to which version the log was durable.
        """
        self.log.write_bytes(data)
        (self.directory.path / "control").write_bytes(self._control)
        control = self.directory.control(writable=True)
        try:
            if not knows_durable:
                control.words[DURABLE] = 0
            recovered = recover(self.directory, self.identity, control)
            try:
                assert recovered.log is not None
                return state_of(recovered)
            finally:
                if recovered.log is not None:
                    recovered.log.close()
                recovered.store.close()
                remove_image(recovered.store.path)
        finally:
            control.close()


@pytest.fixture
def bench(scratch: Path, monkeypatch: pytest.MonkeyPatch, rng: random.Random) -> tuple[Bench, History]:
    history = make_history(scratch / "store", rng)
    return Bench(scratch / "store", scratch / "copy", monkeypatch), history


def last_record(history: History) -> tuple[int, int]:
    ends = sorted({end for end, _ in history.states})
    return ends[-2], ends[-1]


def recovered_line(path: Path) -> str:
    lines = [line for line in (path / "writer.log").read_text().splitlines() if " event=recovered " in line]
    return lines[-1]


def flip(file: Path, *offsets: int) -> None:
    data = bytearray(file.read_bytes())
    for offset in offsets:
        data[offset] ^= 0x41
    file.write_bytes(data)
