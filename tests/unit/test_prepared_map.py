"""Writing through a map: the same image as otherwise, all of the map allocated, a full memory an error."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_disks import MIB, needs_root, tmpfs

from inmem.record import pack
from inmem.storage.environment import Table
from inmem.storage.position import Position
from inmem.storage.store import PublishError, Store
from inmem.storage.wal.format import DELETE, PUT, Op
from inmem.writer.outcomes import Outcome, Sessions

ROUNDS = 120


@pytest.fixture
def memory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = Path("/dev/shm") / tmp_path_factory.mktemp("map").name
    path.mkdir()
    yield path
    for directory, _, files in os.walk(path, topdown=False):
        for file in files:
            os.unlink(Path(directory, file))
        os.rmdir(directory)


def opened(path: Path, quota: int = 64 * MIB) -> Store:
    path.mkdir(mode=0o700, exist_ok=True)
    return Store(path, max_readers=8, quota_bytes=quota)


def some_ops(random_: random.Random, version: int, largest: int) -> list[Op]:
    ops: list[Op] = []
    for _ in range(random_.randint(1, 60)):
        key = b"a/b/c/r\0" + bytes([1, random_.randrange(250)]) + b"k"
        if random_.random() < 0.25:
            ops.append((DELETE, 0, key))
        else:
            payload = random_.randbytes(random_.choice([1, 60, 900, 3000, random_.randrange(largest)]))
            ops.append((PUT, 0, key, pack(version, version, version * random_.randrange(2), payload)))
    return ops


def commit(store: Store, ops: list[Op], version: int) -> None:
    def step() -> None:
        txn = store.begin()
        try:
            txn.apply(ops)
            txn.publish(Position(version, 0, version, 1, ()))
        except BaseException:
            txn.abort()
            raise

    store.with_room(step)


def content(store: Store) -> list[list[tuple[bytes, bytes]]]:
    return [list(store.items(table)) for table in (Table.DATA, Table.EXPIRY, Table.META)]


def sizes(store: Store) -> tuple[int, int]:
    """The size of the image's file, and how much of it is allocated."""
    info = store.files[0].stat()
    return info.st_size, info.st_blocks * 512


@pytest.mark.parametrize("seed", range(4))
def test_an_image_is_the_same_with_and_without_a_map(memory: Path, seed: int) -> None:
    random_ = random.Random(seed)
    plain, mapped = opened(memory / "plain"), opened(memory / "mapped")
    mapped.write_through_map()
    for version in range(1, ROUNDS):
        ops = some_ops(random_, version, 60_000)
        commit(plain, ops, version)
        commit(mapped, ops, version)
        if version % 20 == 0:
            assert content(plain) == content(mapped), (seed, version)
        size, allocated = sizes(mapped)
        assert allocated >= size >= mapped.file_bytes, (seed, version)
    mapped.close()
    again = opened(memory / "mapped")  # as the next writer finds it
    assert content(plain) == content(again)
    again.close()
    plain.close()


def test_a_commit_that_is_larger_than_the_map_makes_it_larger(memory: Path) -> None:
    store = opened(memory / "image")
    store.write_through_map()
    before, _ = sizes(store)
    ops: list[Op] = [
        (PUT, 0, b"a/b/c/r\0\1%06d" % number, pack(1, 1, 0, bytes(1000))) for number in range(30_000)
    ]
    commit(store, ops, 1)
    size, allocated = sizes(store)
    assert before < 2 * MIB and allocated >= size > 30_000_000
    assert len(list(store.items(Table.DATA))) == 30_000
    store.close()


def test_an_old_snapshot_keeps_its_pages_while_the_map_grows(memory: Path) -> None:
    store = opened(memory / "image")
    store.write_through_map()
    key = b"a/b/c/r\0\1k"
    commit(store, [(PUT, 0, key, pack(1, 1, 0, b"first"))], 1)
    reader = subprocess.Popen(
        [sys.executable, "-c", READER, str(store.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert reader.stdin is not None and reader.stdout is not None
    assert reader.stdout.readline() == b"open\n"
    for version in range(2, 60):
        commit(store, [(PUT, 0, key, pack(version, 1, 0, bytes(100_000)))], version)
    reader.stdin.close()
    assert reader.stdout.readline().strip() == pack(1, 1, 0, b"first").hex().encode()
    reader.stdout.close()
    assert reader.wait() == 0
    store.close()


READER = """
import sys
from pathlib import Path
from inmem.storage.environment import Table, open_for_reading
env, tables = open_for_reading(Path(sys.argv[1]))
with env.begin(tables[Table.DATA]) as txn:
    print("open", flush=True)
    sys.stdin.read()
    print(txn.get(b"a/b/c/r\\0\\1k").hex(), flush=True)
"""


def test_a_full_memory_is_an_error_and_the_image_stays_as_it_was(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    with tmpfs(tmp_path / "memory", 3 * MIB) as small:
        done = subprocess.run(
            [sys.executable, __file__, str(small)], capture_output=True, text=True, check=False, timeout=100,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert done.returncode != -signal.SIGBUS and done.returncode == 0, done.stderr
        refused, taken = map(int, done.stdout.split())
        assert refused > 20 and taken > 20, "the memory was full for some commits, and not for others"


def fill(memory: Path) -> None:
    """Commit until the memory is full, free some, and again; what was refused must have changed nothing."""
    seed = random.randrange(1 << 30)
    print(f"seed {seed}", file=sys.stderr)
    random_ = random.Random(seed)
    store = opened(memory / "image")
    store.write_through_map()
    known: dict[bytes, bytes] = {}
    refused = taken = 0
    for version in range(1, 400):
        ops = some_ops(random_, version, 200_000)
        try:
            commit(store, ops, version)
        except PublishError as error:
            assert error.is_full, error
            refused += 1
            commit(store, [(DELETE, 0, key) for key in list(known)[::2]], version)
            known = dict(list(known.items())[1::2])
        else:
            taken += 1
            for op in ops:
                known.pop(op[2], None)
                if op[0] == PUT:
                    known[op[2]] = op[3]
        known = dict(sorted(known.items()))
        assert dict(store.items(Table.DATA)) == known, (seed, version)
    print(refused, taken)


def test_a_map_grows_also_when_its_file_was_removed(memory: Path) -> None:
    store = opened(memory / "image")
    store.write_through_map()
    store.files[0].unlink()
    commit(store, [(PUT, 0, b"a/b/c/r\0\1%03d" % number, bytes(100_000)) for number in range(80)], 1)
    assert len(list(store.items(Table.DATA))) == 80
    store.close()


def test_the_time_of_the_file_is_that_of_its_last_use(memory: Path) -> None:
    store = opened(memory / "image")
    store.write_through_map()
    os.utime(store.files[0], (1.0, 1.0))
    commit(store, [(PUT, 0, b"a/b/c/r\0\1k", bytes(100))], 1)
    store.touch()
    assert store.files[0].stat().st_mtime > 1.0
    store.close()


def test_an_image_on_a_disk_is_written_without_a_map(tmp_path: Path) -> None:
    store = opened(tmp_path / "image")
    size = store.files[0].stat().st_size
    store.write_through_map()
    in_memory = tmp_path.stat().st_dev == Path("/dev/shm").stat().st_dev
    assert in_memory or store.files[0].stat().st_size == size == store.file_bytes
    store.close()


@needs_root
def test_a_memory_without_room_for_a_map_is_written_to_without_one(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "memory", MIB // 2) as small:
        store = opened(small / "image", quota=MIB)
        store.write_through_map()
        assert store.files[0].stat().st_size == store.file_bytes, "no map was made"
        commit(store, [(PUT, 0, b"a/b/c/r\0\1k", pack(1, 1, 0, b"v"))], 1)
        assert len(list(store.items(Table.DATA))) == 1
        store.close()


def test_a_session_that_has_said_hello_stays_when_its_group_is_undone() -> None:
    sessions = Sessions([], ttl_s=10.0, max_in_flight=8)
    sessions.register(b"s" * 16, 1_000_000)
    sessions.record(b"s" * 16, 1, 0, 2_000_000, Outcome(7, 0, 3, b""))
    sessions.undo()
    assert b"s" * 16 in sessions and sessions.must_write and sessions.last_sequence(b"s" * 16) == 0
    assert sessions.find(b"s" * 16, 1, 0, 7) is None, "its commit was not decided"
    assert [session for session, record in sessions.changes() if record] == [b"s" * 16]
    sessions.written()
    assert not sessions.must_write


if __name__ == "__main__":
    fill(Path(sys.argv[1]))
