"""Checkpoints: whatever dies, fills or is exchanged, the old or the new one is there with its log.

In the default form every step is met once in each durability, with the image
in memory removed, as after a reboot, every other time;
INMEM_TEST_CHECKPOINT_ROUNDS=2 and more meets every step both ways.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from crash_workers import RUN, keep_working, write_until_told
from support import (
    Workers,
    alive,
    control_state,
    epoch,
    kill,
    kill_writer,
    launches_held,
    processes_of,
    stop_writer,
    wait_until,
    writer_pid,
)
from test_limits import ballast, needs_root, tmpfs

import inmem
from inmem.errors import (
    CorruptionError,
    InmemError,
    InvalidInputError,
    StoreFullError,
    WriterUnavailableError,
)
from inmem.host.control import DURABLE
from inmem.host.directory import DataDirectory
from inmem.maintenance.check import check
from inmem.storage.checkpoint import (
    CheckpointHeader,
    CheckpointReader,
    checkpoint_files,
    checkpoint_path,
    verify_checkpoint,
    write_checkpoint,
)
from inmem.storage.wal.files import segment_files
from inmem.storage.wal.scan import scan

ROUNDS = int(os.environ.get("INMEM_TEST_CHECKPOINT_ROUNDS", "1"))
SEED = int(os.environ.get("INMEM_TEST_SEED", "20260701"))
WORKERS = 2
MIB = 1 << 20

# Where the writer dies while a checkpoint is taken, and while the next one recovers.
TAKING = (
    "segment_finished", "segment_created", "segment_durable", "checkpoint_copied", "checkpoint_renamed",
    "checkpoint_durable", "segment_released", "checkpoint_released",
)  # fmt: skip
RECOVERING = ("loaded", "tail", "replayed")  # without an image only


def checkpoints(path: Path) -> list[Path]:
    return checkpoint_files(path / "checkpoints")


def remove_image(path: Path) -> None:
    """What a reboot does, to a store without a writer."""
    shutil.rmtree(control_state(path).image)


def recovered(path: Path) -> dict[str, str]:
    """What the last writer says of its recovery."""
    lines = [line for line in (path / "writer.log").read_text().splitlines() if " event=recovered " in line]
    return dict(re.findall(r"(\w+)=('[^']*'|\S+)", lines[-1]))


class Asking(threading.Thread):
    """Asks for a checkpoint, and goes on asking across the deaths of writers."""

    def __init__(self, db: inmem.Database) -> None:
        super().__init__(daemon=True)
        self._db = db
        self.outcome: Any = None

    def run(self) -> None:
        deadline = time.monotonic() + 90.0
        while self.outcome is None:
            try:
                self.outcome = self._db.checkpoint(timeout_s=30.0)
            except WriterUnavailableError as error:  # nobody may start one for a while
                if time.monotonic() > deadline:
                    self.outcome = error
            except Exception as error:
                self.outcome = error


# --- killed at every step ------------------------------------------------------------------------


class Dying:
    """Writers that die where they are told to, while others work."""

    def __init__(self, path: Path, scratch: Path, db: inmem.Database, workers: Workers) -> None:
        self.path = path
        self.scratch = scratch
        self.db = db
        self.workers = workers
        self.deaths = 0
        self.asking: list[tuple[str, Asking]] = []

    @contextmanager
    def nobody_starts_one(self) -> Iterator[None]:
        with launches_held(self.path):
            yield

    def start(self, name: str, flag: Path) -> None:
        """A writer that dies the first time that it comes to a step; waits until it serves, or died."""
        read_fd, write_fd = os.pipe()
        with os.fdopen(read_fd, "rb") as ready:
            process = subprocess.Popen(
                [sys.executable, "-m", "inmem.writer", str(self.path), "--ready-fd", str(write_fd)],
                pass_fds=[write_fd], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL, env=dict(os.environ) | {"INMEM_FAILPOINT": f"{name}:1:{flag}"},
            )
            os.close(write_fd)
            said = ready.readline()
            process.wait()  # it has detached
        assert b"error" not in said, said

    def one(self, name: str, reboot: bool) -> None:
        """One death; what is on the disk then is whole, and the workers do not notice."""
        flag = self.scratch / f"{name}-{self.deaths}"
        self.deaths += 1
        (self.path / "launches").unlink(missing_ok=True)  # launching backs off when writers die one by one
        with self.nobody_starts_one():
            kill_writer(self.path)
            if name in RECOVERING:
                remove_image(self.path)
            self.start(name, flag)
            if name not in RECOVERING:
                self.asking.append((name, Asking(self.db)))
                self.asking[-1][1].start()
            wait_until(flag.exists, f"{name} is reached")
            wait_until(lambda: not writer_pid(self.path), f"the writer dies at {name}")
            assert checkpoints(self.path), f"no checkpoint is left after {name}"
            for file in checkpoints(self.path):
                verify_checkpoint(file)
            if reboot and name not in RECOVERING:
                remove_image(self.path)
                report = check(self.path)  # of checkpoint and log, replayed
                assert report.problems == [], (name, report.problems)
        progress = self.workers.words.total(WORKERS)
        wait_until(lambda: self.workers.words.total(WORKERS) > progress + WORKERS, "commits go on")
        self.workers.check()

    def all_have_been_told(self) -> None:
        """Whoever asked for a checkpoint has got one; it, or a newer one, is all that is left."""
        for name, asking in self.asking:
            asking.join(60.0)
            assert isinstance(asking.outcome, inmem.CheckpointReport), (name, asking.outcome)
        wait_until(lambda: len(checkpoints(self.path)) == 1, "the older ones are removed")
        newest = verify_checkpoint(checkpoints(self.path)[0])[0].version
        assert newest >= max(asking.outcome.version for _, asking in self.asking)


def verify_work(db: inmem.Database, acked: list[dict[str, Any]]) -> None:
    """Nothing that was acknowledged is lost or doubled."""
    assert db.kv.get(RUN, "transacted", 0) == sum(one["transacted"] for one in acked)
    assert db.kv.get(RUN, "added", 0) == sum(one["added"] for one in acked)
    for index, one in enumerate(acked):
        assert db.kv.get(RUN, f"last-{index}") == one["last"]
    stored = [[event.sequence, event.payload] for event in db.events.iter(RUN)]
    assert stored == sorted(entry for one in acked for entry in one["appended"])
    for part in range(2):
        names = Counter(event.payload for event in db.events.iter(f"{RUN}-{part}"))
        assert names == Counter(n for one in acked for n in one["piped"] if int(n[-1]) % 2 == part)


@pytest.mark.timeout(120 + 120 * ROUNDS)
@pytest.mark.parametrize("durability", ["buffered", "sync"])
def test_killed_at_every_step(store_path: Path, scratch: Path, workers: Workers, durability: str) -> None:
    print(f"seed {SEED}, {ROUNDS} rounds")
    with inmem.open(store_path, durability=durability) as db:
        for index in range(WORKERS):
            workers.start(keep_working, index, store_path, SEED)
        wait_until(lambda: all(workers.words[i] for i in range(WORKERS)), "all workers have begun")
        first = db.checkpoint()
        assert first.released_segments >= 1
        dying = Dying(store_path, scratch, db, workers)
        for number in range(ROUNDS):
            for index, name in enumerate((*TAKING, *RECOVERING)):
                dying.one(name, (index + number + (durability == "sync")) % 2 == 0)
        dying.all_have_been_told()
        workers.words.stop()
        acked = workers.results()
        verify_work(db, acked)
        kill_writer(store_path)
        remove_image(store_path)
        verify_work(db, acked)
        assert int(recovered(store_path)["checkpoint"]) >= first.version
        assert db.check().problems == []
    operations = workers.words.total(WORKERS)
    print(f"{durability}: {dying.deaths} deaths, {operations} operations, lost 0, doubled 0")


def test_a_helper_that_is_killed(
    store_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one who asked is told, the writer goes on, and the next one works."""
    with monkeypatch.context() as patch:
        patch.setenv("INMEM_FAILPOINT", f"copying:1:{scratch / 'died'}")
        db = inmem.open(store_path)
    with db:
        db.kv.put(RUN, "k", 1)
        pid = writer_pid(store_path)
        with pytest.raises(InmemError, match="ended with status -9"):
            db.checkpoint()
        assert checkpoints(store_path) == [] and os.listdir(store_path / "checkpoints") == []
        db.kv.put(RUN, "k", 2)
        report = db.checkpoint()
        assert [file.name for file in checkpoints(store_path)] == [f"{report.version:020d}.checkpoint"]
        assert writer_pid(store_path) == pid


# --- what is refused, and what is not ----------------------------------------------------------------


def open_refused(path: Path) -> CorruptionError:
    with pytest.raises(CorruptionError) as caught:
        inmem.open(path).close()
    assert caught.value.file and caught.value.offset is not None and caught.value.hint
    assert writer_pid(path) == 0
    return caught.value


@pytest.fixture
def released(scratch: Path) -> Path:
    """A stopped store of three checkpoints, of which the last is left, and a log after it."""
    path = scratch / "store"
    with inmem.open(path, durability="sync") as db:
        for number in range(3):
            db.kv.put_many(RUN, {f"k{n}": [number, n] for n in range(20)})
            db.events.append(RUN, "round", number)
            report = db.checkpoint()
            shutil.copy(checkpoints(path)[0], scratch / f"checkpoint-{number}")
        assert report.wal_bytes == 64, "all of the log went"
        for n in range(5):
            db.events.append(RUN, "after", n)
    stop_writer(path)
    assert [number for number, _ in segment_files(path / "wal")] == [4]
    return path


def test_an_idle_store_opens_after_its_checkpoint(store_path: Path) -> None:
    """With all of the log released, it is the checkpoint that says up to where all was durable."""
    for ending in (stop_writer, kill_writer):
        with inmem.open(store_path) as db:
            db.kv.add(RUN, "n")
            version = db.checkpoint().version
            assert db.checkpoint().version >= version
        ending(store_path)
        if control_state(store_path).image:
            remove_image(store_path)
        assert scan(store_path / "wal", DataDirectory(store_path).identity().database_id).records == 0
        assert check(store_path).problems == []
    with inmem.open(store_path) as db:
        assert db.kv.get(RUN, "n") == 2 and db.kv.put(RUN, "m", 1) > version


def test_what_is_exchanged_or_missing_is_refused(released: Path, scratch: Path) -> None:
    """Each time the file is named, nothing is changed, and a check says the same."""
    (newest,) = checkpoints(released)
    ((number, log),) = segment_files(released / "wal")
    whole = {file: file.read_bytes() for file in (newest, log)}
    stand = verify_checkpoint(newest)[0]

    def damage(kind: str) -> Path:
        """Do it; the file that must be named."""
        if kind == "another database":
            newest.unlink()
            write_checkpoint(newest, CheckpointHeader(bytes(16), *list(fields_of(stand))[1:]), [])
            return newest
        if kind == "an older one":
            newest.unlink()
            shutil.copy(scratch / "checkpoint-1", newest)
            return log
        if kind == "a flipped bit":
            data = bytearray(whole[newest])
            data[len(data) // 2] ^= 4
            newest.write_bytes(data)
            return newest
        if kind == "cut short":
            os.truncate(newest, len(whole[newest]) - 1)
            return newest
        if kind == "missing":
            newest.unlink()
            return log
        assert kind == "no first segment"
        log.unlink()
        return log.parent

    for kind in ("another database", "an older one", "a flipped bit", "cut short", "missing",
                 "no first segment"):  # fmt: skip
        named = damage(kind)
        files = {file: file.read_bytes() for file in (released / "wal").iterdir()}
        error = open_refused(released)
        assert error.file == str(named), (kind, error)
        problems = check(released).problems
        assert any(str(named) in problem or named == log.parent for problem in problems), (kind, problems)
        assert {file: file.read_bytes() for file in (released / "wal").iterdir()} == files
        for file, data in whole.items():
            file.write_bytes(data)
    assert number == 4

    # A writer that died before it removed an older one: the newest counts, and the others go.
    with CheckpointReader(scratch / "checkpoint-0") as reader:
        older = checkpoint_path(newest.parent, reader.header.version)
    shutil.copy(scratch / "checkpoint-0", older)
    (newest.parent / "unfinished").write_bytes(b"half of one")
    with inmem.open(released) as db:
        assert os.listdir(newest.parent) == [newest.name]
        assert [event.payload for event in db.events.iter(RUN)] == [0, 1, 2, 0, 1, 2, 3, 4]
        assert db.check().problems == [] and db.check().checkpoint == stand.version


def fields_of(stand: CheckpointHeader) -> Iterator[Any]:
    return (getattr(stand, name) for name in stand.__slots__)


def test_a_checkpoint_never_gets_ahead_of_the_durable_log(store_path: Path, scratch: Path) -> None:
    """Before the file gets its name, the log is durable up to the snapshot that it is of."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    config = scratch / "c.toml"
    config.write_text("[store]\nfsync_interval_ms = 60000\n")
    trace = scratch / "trace"
    with inmem.open(store_path, config=config) as db:
        db.kv.put(RUN, "before", 1)
        process = subprocess.Popen(
            [strace, "-f", "-y", "-e", "trace=pwrite64,fdatasync,fsync,rename", "-o", str(trace),
             "-p", str(writer_pid(store_path))],
            stderr=subprocess.PIPE,
        )  # fmt: skip
        try:
            assert process.stderr is not None
            if b"attached" not in process.stderr.readline():
                pytest.skip("no process can be traced here")
            asking = Asking(db)
            asking.start()
            version = 0
            while asking.is_alive():  # commits come after the rotation, and before the snapshot
                version = db.kv.put(RUN, "during", version)
            asking.join()
            assert isinstance(asking.outcome, inmem.CheckpointReport), asking.outcome
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=30)
    calls = trace.read_text().splitlines()
    renamed = next(n for n, line in enumerate(calls) if "rename(" in line and ".checkpoint" in line)
    log = [n for n, line in enumerate(calls[:renamed]) if "/wal/" in line and "pwrite64(" in line]
    synced = [n for n, line in enumerate(calls[:renamed]) if "/wal/" in line and "fdatasync(" in line]
    named = [n for n, line in enumerate(calls) if "fsync(" in line and line.count("/checkpoints>")]
    released = [n for n, line in enumerate(calls) if "fsync(" in line and line.count("/wal>")]
    assert log and synced and named and released
    stand = verify_checkpoint(checkpoints(store_path)[0])[0]
    found = scan(store_path / "wal", stand.database)
    assert found.find(stand.version, stand.checksum) is not None
    # The last sync before the name covers the record: it was written before that began.
    written_after = len([n for n in log if n > synced[-1]])
    later = [record.version for record in found.iter_records() if record.version > stand.version]
    assert written_after <= len(later), "a record that the checkpoint holds was not synced"
    after = [n for n in named if n > renamed]
    assert after and after[0] < released[-1], "the name is durable before the log goes"


def test_a_log_cut_to_where_it_was_durable_still_reaches_the_checkpoint(
    store_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed right after the rename, then a power cut: the log ends at the checkpoint or later."""
    with monkeypatch.context() as patch:
        patch.setenv("INMEM_FAILPOINT", f"checkpoint_renamed:1:{scratch / 'died'}")
        patch.setenv("INMEM_FSYNC_INTERVAL_MS", "60000")
        db = inmem.open(store_path)
    with db:
        for n in range(10):
            db.kv.put(RUN, "k", n)
        with launches_held(store_path):
            asking = Asking(db)
            asking.start()
            wait_until(lambda: not writer_pid(store_path), "the writer dies")
            remove_image(store_path)
            directory = DataDirectory(store_path)
            stand = verify_checkpoint(checkpoints(store_path)[0])[0]
            found = scan(directory.wal, stand.database)
            position = found.find(stand.version, stand.checksum)
            assert position is not None
            os.truncate(found.segments[position.segment - found.segments[0].number].file, position.offset)
            for segment in found.segments:
                if segment.number > position.segment:
                    segment.file.unlink()
            control = directory.control()
            assert control.words[DURABLE] <= stand.version
            control.close()
            assert check(store_path).problems == []
        asking.join(60.0)
        assert isinstance(asking.outcome, inmem.CheckpointReport)
        assert db.kv.get(RUN, "k") == 9


def test_a_memory_store_has_none(store_path: Path) -> None:
    with inmem.open(store_path, durability="memory") as db:
        with pytest.raises(InvalidInputError, match="has no log"):
            db.checkpoint()
        assert db.kv.put(RUN, "k", 1)
    assert not (store_path / "checkpoints").exists()


# --- by themselves ---------------------------------------------------------------------------------


def test_the_log_stays_bounded_under_writes(
    store_path: Path, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit, segment = 256 * 1024, 64 * 1024
    monkeypatch.setenv("INMEM_CHECKPOINT_WAL_BYTES", str(limit))
    monkeypatch.setenv("INMEM_SEGMENT_BYTES", str(segment))
    largest = 0
    with inmem.open(store_path) as db:
        for index in range(2):
            workers.start(write_until_told, index, store_path)
        versions: set[str] = set()

        def grown() -> bool:
            nonlocal largest
            largest = max(largest, db.status().wal_bytes)
            versions.update(file.name for file in checkpoints(store_path))
            workers.check()
            report = db.check()  # while checkpoint and log are replaced under it
            assert report.problems == [], report
            return len(versions) >= 3

        wait_until(grown, "three checkpoints by size")
        workers.words.stop()
        workers.results()
        begun = segment_files(store_path / "wal")[-1][0]
        final = db.status()
        largest = max(largest, final.wal_bytes)
        # A copy takes a few tenths of a second, in which the log goes on growing.
        assert largest < max(4 * limit, begun * segment * 3 // 4), (begun, largest)
        wait_until(lambda: len(checkpoints(store_path)) == 1, "the older ones are removed")
        assert db.check().problems == []
    print(f"{begun} segments were begun, the log had {largest / MIB:.1f} MiB at most")


def test_a_little_log_is_copied_after_a_while(store_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the interval a sixteenth of what makes one due by size is enough."""
    monkeypatch.setenv("INMEM_CHECKPOINT_WAL_BYTES", str(4 * MIB))
    monkeypatch.setenv("INMEM_CHECKPOINT_INTERVAL_S", "0.3")
    with inmem.open(store_path) as db:
        db.kv.put(RUN, "k", os.urandom(MIB // 8))
        assert db.status().wal_bytes < 4 * MIB // 16
        began = time.monotonic()
        while time.monotonic() - began < 0.8:  # four ticks, in which too little has come to copy
            assert checkpoints(store_path) == []
            db.kv.exists(RUN, "k")
        db.kv.put(RUN, "more", os.urandom(MIB // 4))
        wait_until(lambda: checkpoints(store_path), "one by time")
        wait_until(lambda: db.status().wal_bytes < MIB // 8, "the log is released")
        assert db.check().problems == []


# --- large ones ----------------------------------------------------------------------------------------


def test_many_keys(store_path: Path) -> None:
    """Helpers and writers killed in the middle of a copy; how fast a restart is, and what bounds it."""
    keys, batch = 200_000, 5_000
    with inmem.open(store_path) as db:
        for start in range(0, keys, batch):
            some = range(start, start + batch)
            db.kv.put_many(RUN, {f"key-{n:07}": "x" * 24 + str(n) for n in some})
        pid = writer_pid(store_path)
        directory = store_path / "checkpoints"

        def helper() -> int:
            line = f"inmem.maintenance checkpoint {store_path}"
            copying = (directory / "unfinished").exists()
            return next((pid for pid, text in processes_of(store_path) if copying and line in text), 0)

        asking = Asking(db)
        asking.start()
        kill(wait_until(helper, "a helper copies"))
        asking.join(60.0)
        assert isinstance(asking.outcome, InmemError) and "status -9" in str(asking.outcome)
        assert writer_pid(store_path) == pid and os.listdir(directory) == []

        before = epoch(store_path)
        asking = Asking(db)
        asking.start()
        orphan = wait_until(helper, "a helper copies")
        kill(pid)
        asking.join(60.0)  # it asks the next writer, which has one made from the beginning
        assert isinstance(asking.outcome, inmem.CheckpointReport), asking.outcome
        wait_until(lambda: not alive(orphan), "the helper of the dead writer ends")
        assert epoch(store_path) == before + 1
        assert asking.outcome.entries >= keys and len(os.listdir(directory)) == 1

        after = 50
        for n in range(after):
            db.kv.put(RUN, "after", n)
        db.close()
    stop_writer(store_path)
    with inmem.open(store_path) as db:
        line = recovered(store_path)
        assert db.kv.count(RUN) == keys + 1 and db.kv.get(RUN, "after") == after - 1
        assert db.kv.get(RUN, f"key-{keys - 1:07}") == "x" * 24 + str(keys - 1)
    assert int(line["checkpoint"]) == asking.outcome.version
    # Of the log no more than what came after the checkpoint, and each session's coming and going.
    assert after <= int(line["replayed"]) <= after + 20
    seconds = float(line["seconds"])
    print(
        f"{asking.outcome.entries} entries: copied in {asking.outcome.seconds:.2f} s, "
        f"recovered in {seconds:.2f} s, {keys / seconds:,.0f} keys/s"
    )
    assert keys / seconds > 20_000, "a tenth of the aim, on any machine"


@needs_root
def test_no_room_for_a_checkpoint(scratch: Path) -> None:
    """A typed error, the old one intact, service goes on; with room again the next one succeeds."""
    rng = random.Random(SEED)
    print(f"seed {SEED}")
    with tmpfs(scratch / "disk", 6 * MIB) as disk:
        path = disk / "store"
        try:
            with inmem.open(path, durability="sync") as db:
                for n in range(8):
                    db.kv.put(RUN, f"k{n}", rng.randbytes(100_000))
                first = db.checkpoint()
                pid = writer_pid(path)
                taken = ballast(disk, leave=500_000)
                for _ in range(2):
                    with pytest.raises(StoreFullError) as caught:
                        db.checkpoint()
                    assert "disk" in caught.value.hint
                    assert [file.name for file in (path / "checkpoints").iterdir()] == [
                        f"{first.version:020d}.checkpoint"
                    ]
                    assert verify_checkpoint(checkpoints(path)[0])[0].version == first.version
                    db.kv.add(RUN, "n")
                assert writer_pid(path) == pid
                kill_writer(path)
                remove_image(path)
                assert db.kv.add(RUN, "n") == 3, "the old checkpoint and the log hold everything"
                taken.unlink()
                second = db.checkpoint()
                assert second.version > first.version and len(checkpoints(path)) == 1
                assert db.check().problems == []
        finally:
            stop_writer(path)
