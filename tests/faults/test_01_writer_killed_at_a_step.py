"""The writer is killed at every step of a commit and of a recovery: what was acknowledged stays, once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from crash_workers import RUN
from support import alive, control_state, epoch, kill, kill_writer

import inmem


class Script:
    """A fixed order of commits of every kind, and what must be stored after each."""

    def __init__(self, db: inmem.Database) -> None:
        self.db = db
        self.added = self.counted = 0
        self.log: list[Any] = []
        self.piped: list[Any] = []

    def round(self, number: int) -> None:
        db = self.db
        self.added += 1
        assert db.kv.add(RUN, "added") == self.added
        appended = db.events.append(RUN, "note", number)
        assert appended.sequence == len(self.log)
        self.log.append(number)
        self.counted += 1

        def step(txn: Any) -> Any:
            count = txn.kv.get("counted", 0) + 1
            txn.kv.put("counted", count)
            return txn.events.append("counted", count)

        assert db.transact(RUN, step).sequence == len(self.log)
        self.log.append(self.counted)
        with db.pipeline() as pipe:
            for part in range(4):
                pipe.events.append(f"{RUN}-{part % 2}", "piped", [number, part])
                pipe.kv.put(f"{RUN}-{part % 2}", "last", [number, part])
                self.piped.append([number, part])
        self.check()

    def check(self) -> None:
        db = self.db
        assert db.kv.get(RUN, "added", 0) == self.added
        assert db.kv.get(RUN, "counted", 0) == self.counted
        assert [e.payload for e in db.events.iter(RUN)] == self.log
        for half in range(2):
            expected = [item for item in self.piped if item[1] % 2 == half]
            assert [e.payload for e in db.events.iter(f"{RUN}-{half}")] == expected
            if expected:
                assert db.kv.get(f"{RUN}-{half}", "last") == expected[-1]
        assert db.events.verify_chain(RUN).is_valid


@pytest.mark.parametrize("durability", ["memory", "buffered", "sync"])
@pytest.mark.parametrize("name", ["logged", "synced", "published", "answering"])
def test_killed_at_a_step_of_a_commit(
    store_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch, durability: str, name: str
) -> None:
    """Each writer in turn dies at a later arrival at the step; every commit has one result."""
    counts = (4, 7)
    with inmem.open(store_path, durability=durability) as db:
        script = Script(db)
        script.round(0)
        for count in counts:
            flag = scratch / f"died-{count}"
            # Picked up by the writer that the client starts after this kill.
            monkeypatch.setenv("INMEM_FAILPOINT", f"{name}:{count}:{flag}")
            kill_writer(store_path)
            first = epoch(store_path)
            for number in range(10):
                script.round(number)
                if flag.exists():
                    break
            assert flag.exists(), f"{name} was not reached {count} times"
            assert epoch(store_path) == first + 2
        assert db.check().problems == []
    print(f"{name} in {durability}: {len(counts)} deaths, lost 0, doubled 0, reordered 0")


@pytest.mark.parametrize("durability", ["buffered", "sync"])
@pytest.mark.parametrize("name", ["tail", "replayed"])
@pytest.mark.parametrize("image", ["kept", "removed"])
def test_killed_inside_recovery(
    store_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch, durability: str, name: str, image: str
) -> None:
    flag = scratch / "died"
    with inmem.open(store_path, durability=durability) as db:
        script = Script(db)
        script.round(0)
        state = control_state(store_path)
        kill(state.pid)
        if image == "removed":
            for entry in Path(state.image).iterdir():
                entry.unlink()
            os.rmdir(state.image)
        monkeypatch.setenv("INMEM_FAILPOINT", f"{name}:1:{flag}")
        script.round(1)  # its first commit starts the writer that dies, and must not notice
        assert flag.exists()
        monkeypatch.delenv("INMEM_FAILPOINT")
        script.round(2)
        assert db.check().problems == []
    assert not alive(state.pid)
