"""Recovery with the real engine: whatever happened to log and image, a prefix or a refusal.

The history is known: after each acknowledged commit the test notes the state
and how long the log was. A log that is cut or damaged must come back as one
of those states, the one that its whole records make, or not at all.
"""

from __future__ import annotations

import os
import random
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from crash_workers import RUN, hold_open
from support import (
    Workers,
    alive,
    control_state,
    kill,
    kill_writer,
    runtime_entries,
    stop_writer,
    wait_until,
    writer_pid,
)

import inmem
from inmem import values
from inmem.config import Settings
from inmem.errors import CorruptionError, FormatVersionError, InmemError
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
        shutil.copytree(source, target)
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


def test_log_cut_at_many_offsets(bench: tuple[Bench, History], rng: random.Random) -> None:
    """A cut is a prefix, or a refusal that names the file: never another state."""
    store, history = bench
    begin, end = last_record(history)
    size = len(store.whole)
    assert store.recover(store.whole) == history.states[-1][1]
    offsets = sorted({*range(begin, size), *rng.sample(range(begin), 150), 0, 1, 63, 64})
    assert len(offsets) >= 200
    refused = 0
    for offset in offsets:
        try:
            assert store.recover(store.whole[:offset]) == history.at(offset), offset
        except (CorruptionError, FormatVersionError) as error:
            refused += 1
            assert getattr(error, "file", "") == str(store.log), error
    assert end <= size
    assert refused == 0, "a log that only lost its end is never refused"
    print(f"{len(offsets)} cuts of {size} bytes, wrong 0")


def test_a_control_file_that_knows_better_refuses_every_loss(
    bench: tuple[Bench, History], rng: random.Random
) -> None:
    """After a clean stop all of the log is durable: no cut and no flip passes for a torn tail."""
    store, history = bench
    begin, end = last_record(history)
    assert store.recover(store.whole, knows_durable=True) == history.states[-1][1]
    for offset in sorted({begin, end - 1, *rng.sample(range(64, end), 60)}):
        flipped = bytearray(store.whole)
        flipped[offset] ^= 1 << rng.randrange(8)
        for damaged in (store.whole[:offset], bytes(flipped)):
            with pytest.raises(CorruptionError) as caught:
                store.recover(damaged, knows_durable=True)
            assert caught.value.file == str(store.log) and caught.value.offset <= offset


def test_log_with_a_flipped_byte(bench: tuple[Bench, History], rng: random.Random) -> None:
    """In `sync` all but the newest record is proven durable: damage there refuses to open."""
    store, history = bench
    begin, _ = last_record(history)
    size = len(store.whole)
    offsets = sorted({*range(begin, size), *rng.sample(range(begin), 150), *range(0, 64, 7)})
    refused = cut = 0
    prefixes = [state for _, state in history.states]
    for offset in offsets:
        damaged = bytearray(store.whole)
        damaged[offset] ^= 1 << rng.randrange(8)
        try:
            state = store.recover(bytes(damaged))
        except (CorruptionError, FormatVersionError) as error:
            refused += 1
            if isinstance(error, CorruptionError):
                assert error.file == str(store.log) and error.offset <= offset, (offset, error)
            continue
        cut += 1
        assert offset >= begin, f"damage at {offset}, in what was durable, went unnoticed"
        assert state in prefixes[-2:], offset
    assert refused > 100 and cut > 20
    print(f"{len(offsets)} flips: {refused} refused, {cut} torn tails cut, silent wrong 0")


def test_a_damaged_log_refuses_to_open_and_changes_nothing(scratch: Path, rng: random.Random) -> None:
    path = scratch / "store"
    history = make_history(path, rng)
    log = segment(path)
    data = bytearray(log.read_bytes())
    data[history.states[5][0] + 40] ^= 1
    log.write_bytes(data)
    with pytest.raises(CorruptionError) as caught:
        inmem.open(path)
    assert caught.value.file == str(log) and caught.value.offset == history.states[5][0]
    assert str(log) in str(caught.value) and caught.value.hint
    assert log.read_bytes() == data
    assert writer_pid(path) == 0 and runtime_entries(path) == []


def test_a_torn_tail_is_cut_and_told(scratch: Path, rng: random.Random) -> None:
    path = scratch / "store"
    history = make_history(path, rng)
    log = segment(path)
    with log.open("ab") as file:
        file.write(b"half a record")
    with inmem.open(path) as db:
        assert dict(db.kv.list_with_values(RUN)) == history.states[-1][1]
        db.kv.put(RUN, "after", 1)
        assert db.check().problems == []
    assert "torn tail cut" in (path / "writer.log").read_text()


# --- images that are not ours ----------------------------------------------------------------------


def recovered_line(path: Path) -> str:
    lines = [line for line in (path / "writer.log").read_text().splitlines() if " event=recovered " in line]
    return lines[-1]


def test_the_image_of_a_killed_writer_is_adopted(store_path: Path) -> None:
    with inmem.open(store_path) as db:
        db.kv.put(RUN, "k", 1)
        before = control_state(store_path)
        kill_writer(store_path)
        db.kv.put(RUN, "k", 2)
        after = control_state(store_path)
    assert (after.image, after.generation, after.epoch) == (before.image, before.generation, before.epoch + 1)
    assert "adopted=True" in recovered_line(store_path)


def test_the_image_of_another_database_is_set_aside(scratch: Path) -> None:
    mine, other = scratch / "mine", scratch / "other"
    with inmem.open(mine) as db, inmem.open(other) as foreign:
        db.kv.put(RUN, "whose", "mine")
        foreign.kv.put(RUN, "whose", "other")
        kill_writer(other)
        kill_writer(mine)
        image = Path(control_state(mine).image)
        shutil.rmtree(image)
        shutil.copytree(control_state(other).image, image)
        os.chmod(image, 0o700)
        with inmem.open(mine) as again:
            assert again.kv.put(RUN, "n", 1)
            assert again.kv.get(RUN, "whose") == "mine"
    assert "belongs to another database, boot or directory" in recovered_line(mine)


@pytest.mark.parametrize("what", ["boot", "empty", "garbage", "older"])
def test_an_image_that_is_not_the_newest_is_set_aside(store_path: Path, scratch: Path, what: str) -> None:
    """An image of another boot, an empty or damaged one, an older copy: the log is believed instead."""
    with inmem.open(store_path) as db:
        db.kv.put(RUN, "k", "old")
        if what == "older":
            kill_writer(store_path)
            shutil.copytree(control_state(store_path).image, scratch / "older")
        for n in range(5):
            db.kv.put(RUN, "k", n)
        top = db.kv.get_versioned(RUN, "k").version
        kill_writer(store_path)
    image = Path(control_state(store_path).image)
    data = image / "data.mdb"
    if what == "boot":
        control = DataDirectory(store_path).control(writable=True)
        control.update(boot=bytes(16))
        control.close()
        rewrite_owner(image, boot=bytes(16))
    elif what == "older":
        shutil.copyfile(scratch / "older" / "data.mdb", data)
    else:
        data.unlink()
        if what == "garbage":
            data.write_bytes(os.urandom(65536))
    with inmem.open(store_path) as again:
        version = again.kv.put(RUN, "n", 1)
        assert again.kv.get(RUN, "k") == 4
        assert version > top
        assert again.check().problems == []
    line = recovered_line(store_path)
    # An older image of this very directory is a prefix of the log: it may be adopted and brought up to date.
    assert ("adopted=True" if what == "older" else "adopted=False") in line, line


def rewrite_owner(image: Path, *, boot: bytes) -> None:
    """Make an image say that it is of another boot."""
    from inmem.storage.store import Store

    settings = Settings()
    store = Store(image, max_readers=settings.max_readers, quota_bytes=settings.quota_bytes)
    assert store.position is not None
    database_id, _, *inode = store.position.owner
    txn = store.begin()
    txn.publish(store.position._replace(owner=(database_id, boot, *inode)))
    store.close()


@pytest.mark.parametrize("original", ["live", "killed", "stopped"])
def test_a_copied_data_directory_leaves_the_original_alone(scratch: Path, original: str) -> None:
    path, copy = scratch / "store", scratch / "copy"
    with inmem.open(path) as db:
        for n in range(20):
            db.kv.put(RUN, "k", n)
        if original != "live":
            (kill_writer if original == "killed" else stop_writer)(path)
        before = control_state(path)
        shutil.copytree(path, copy)
        with inmem.open(copy) as other:
            assert other.kv.get(RUN, "k") == 19
            other.kv.put(RUN, "k", "of the copy")
            after = control_state(path)
            if original == "live":
                assert (after.pid, after.image, after.epoch) == (before.pid, before.image, before.epoch)
                assert alive(before.pid) and writer_pid(copy) != before.pid
            assert control_state(copy).image != after.image or not after.image
            if original == "killed":
                assert Path(before.image).is_dir(), "the original's image is still there to be adopted"
            db.kv.put(RUN, "mine", True)
            assert db.kv.get(RUN, "k") == 19
            assert other.kv.get(RUN, "k") == "of the copy" and not other.kv.exists(RUN, "mine")
    if original == "killed":
        assert "adopted=True" in recovered_line(path)


def test_shared_memory_removed_while_no_writer_runs(store_path: Path) -> None:
    with inmem.open(store_path) as db:
        db.kv.put(RUN, "k", 1)
        for event in range(10):
            db.events.append(RUN, "e", event)
    kill_writer(store_path)
    for entry in runtime_entries(store_path):
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    with inmem.open(store_path) as db:
        assert db.kv.get(RUN, "k") == 1 and db.events.verify_chain(RUN).length == 10
        assert db.check().problems == []


@pytest.mark.parametrize("durability", ["buffered", "sync"])
def test_every_process_killed_at_once(store_path: Path, workers: Workers, durability: str) -> None:
    with inmem.open(store_path, durability=durability) as db:
        db.kv.put(RUN, "k", 1)
    some = [workers.start(hold_open, index, store_path) for index in range(3)]
    wait_until(lambda: workers.words.total(3) == 3, "three clients have committed")
    pid = writer_pid(store_path)
    for worker in some:
        kill(worker.pid, wait=False)
    kill(pid)
    with inmem.open(store_path) as db:
        assert db.kv.list(RUN) == ["here-0", "here-1", "here-2", "k"]
        assert db.check().problems == []


def test_a_clean_stop_leaves_nothing_in_memory(store_path: Path) -> None:
    with inmem.open(store_path) as db:
        db.kv.put(RUN, "k", 1)
        kinds = {entry.suffix for entry in runtime_entries(store_path)}
        assert kinds >= {".image", ".sock"}
    stop_writer(store_path)
    assert runtime_entries(store_path) == []
    state = control_state(store_path)
    assert (state.pid, state.image, state.endpoint) == (0, "", "")


def test_a_throw_away_database_goes_with_its_last_holder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INMEM_LINGER_S", "0.1")
    db = inmem.open()
    path = db.path
    pid = writer_pid(path)
    try:
        db.kv.put(RUN, "k", 1)
        entries = runtime_entries(path)
        assert path.is_dir() and entries
    finally:
        db.close()
        wait_until(lambda: not alive(pid), "the writer leaves")
    assert not path.exists()
    assert not any(entry.exists() for entry in entries)


def test_memory_mode_survives_its_writer_but_not_a_clean_stop(store_path: Path) -> None:
    with inmem.open(store_path, durability="memory") as db:
        db.kv.put(RUN, "k", 1)
        version = db.kv.put(RUN, "k", 2)
        kill_writer(store_path)
        assert db.kv.get(RUN, "k") == 2
        assert db.kv.put(RUN, "k", 3) > version
        top = db.kv.get_versioned(RUN, "k").version
    stop_writer(store_path)
    with inmem.open(store_path) as db:
        assert db.kv.get(RUN, "k") is None
        assert db.kv.put(RUN, "k", 1) > top, "versions never repeat"
        stop_writer(store_path)
        # The session went with the memory: a commit that a writer may have had is told as unknown.
        with pytest.raises(inmem.CommitUnknownError):
            db.kv.add(RUN, "n")
        assert not db.kv.exists(RUN, "n")
        assert db.kv.add(RUN, "n") == 1


def test_versions_grow_over_every_kind_of_restart(store_path: Path) -> None:
    last = 0
    for ending in (kill_writer, stop_writer, kill_writer, stop_writer):
        with inmem.open(store_path) as db:
            for n in range(3):
                version = db.kv.put(RUN, "k", n)
                assert version > last
                last = version
        ending(store_path)
    shutil.rmtree(store_path / "wal")
    (store_path / "wal").mkdir(mode=0o700)
    try:  # a log that is gone as a whole cannot be told from a new one: but no version comes twice
        with inmem.open(store_path) as db:
            assert db.kv.put(RUN, "k", 0) > last
    except InmemError as error:
        assert error.code in ("corruption", "writer_unavailable")
