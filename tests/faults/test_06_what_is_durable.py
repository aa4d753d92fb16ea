"""What the log takes for durable is: syncs, cuts and recovery in each other's way."""

from __future__ import annotations

import os
import random
import stat
import threading
from pathlib import Path

from damaged_log import DATABASE, SEED, TINY, Log, Unsynced, build, expected, load

from inmem.storage.wal.scan import rewrite_tail, scan


def test_recovery_writes_the_tail_anew_and_syncs_in_order(tmp_path: Path) -> None:
    log = build(tmp_path / "wal")
    with log.path(3).open("ab") as file:
        file.write(b"torn")

    class Recording(Unsynced):
        def __init__(self) -> None:
            self.events: list[tuple[str, int, int]] = []

        def write(self, fd: int, data: bytes | memoryview, offset: int) -> int:
            self.events.append(("write", offset, len(data)))
            return super().write(fd, data, offset)

        def ftruncate(self, fd: int, size: int) -> None:
            self.events.append(("ftruncate", size, 0))
            super().ftruncate(fd, size)

        def fsync(self, fd: int) -> None:
            directory = stat.S_ISDIR(os.fstat(fd).st_mode)
            self.events.append(("fsync directory" if directory else "fsync file", 0, 0))

    before = log.path(3).read_bytes()[:-4]
    files = Recording()
    result = scan(log.directory, DATABASE, files=files)
    durable = next(e for e in log.entries if e.version == result.durable_version)
    assert rewrite_tail(result) == result.end
    assert files.events == [
        ("ftruncate", len(before), 0),
        ("write", durable.end, len(before) - durable.end),
        ("fsync file", 0, 0),
        ("fsync directory", 0, 0),
    ]
    assert log.path(3).read_bytes() == before


def test_what_a_scan_takes_for_durable_is(tmp_path: Path) -> None:
    """Never more than a later record proves, and as much at most as two fsyncs have made durable since."""
    rng = random.Random(SEED)
    exact = 0
    for round_number in range(60):
        log = Log(tmp_path / f"wal{round_number}", segment_bytes=rng.choice([TINY, 4 * TINY]))
        for _ in range(rng.randrange(1, 60)):
            log.append(rng.randrange(60), version=log.wal.version + rng.randrange(1, 4))
            if rng.random() < rng.choice([0.05, 0.5]):
                log.wal.sync()
        log.wal.close()
        some = rng.choice(log.entries)
        result = scan(log.directory, DATABASE, since=some.version, files=Unsynced())
        last = [e for e in log.entries if e.segment == log.entries[-1].segment]
        proven = [e.end for e in last if e.version <= result.durable_version]
        assert result.durable_end <= (proven[-1] if proven else 0), f"seed {SEED}, round {round_number}"
        assert result.durable_end in {0, *(e.end for e in last)}
        exact += result.durable_end == (proven[-1] if proven else 0)
        assert result.since_end is not None and result.since_end.offset == some.end
        assert result.find(some.version, result.since_end.checksum) == result.since_end
        assert result.find(some.version, result.since_end.checksum ^ 1) is None
        before = [log.path(n).read_bytes() for n in range(1, last[-1].segment + 1)]
        rewrite_tail(result)
        assert [log.path(n).read_bytes() for n in range(1, last[-1].segment + 1)] == before
    print(f"seed {SEED}: {exact} of 60 exact")
    assert exact > 20


class Gate(Unsynced):
    """Holds an fdatasync until told, and notes the order of calls."""

    def __init__(self) -> None:
        self.entered, self.leave = threading.Event(), threading.Event()
        self.order: list[str] = []

    def fdatasync(self, fd: int) -> None:
        self.order.append("fdatasync begins")
        self.entered.set()
        assert self.leave.wait(20)
        self.order.append("fdatasync ends")

    def ftruncate(self, fd: int, size: int) -> None:
        self.order.append("ftruncate")
        super().ftruncate(fd, size)


def test_a_sync_counts_only_what_was_there_when_it_began(tmp_path: Path) -> None:
    files = Gate()
    log = Log(tmp_path / "wal", segment_bytes=1 << 20, files=files)
    log.append()
    thread = threading.Thread(target=log.wal.sync)
    thread.start()
    assert files.entered.wait(20)
    entry = log.append()  # does not wait for the fdatasync
    assert log.wal.durable_version == 0 and entry.durable == 0
    files.leave.set()
    thread.join(20)
    assert log.wal.durable_version == 1
    assert log.wal.sync() == 2
    log.wal.close()
    assert load(log.directory)[1] == expected(log.entries)


def test_a_cut_waits_for_a_sync_under_way(tmp_path: Path) -> None:
    files = Gate()
    log = Log(tmp_path / "wal", segment_bytes=1 << 20, files=files)
    log.append()
    mark = log.wal.position()
    log.append()
    syncing = threading.Thread(target=log.wal.sync)
    syncing.start()
    assert files.entered.wait(20)
    begun = threading.Event()

    def cut() -> None:
        begun.set()
        log.wal.cut(mark)

    cutting = threading.Thread(target=cut)
    cutting.start()
    assert begun.wait(20)
    files.leave.set()
    syncing.join(20)
    cutting.join(20)
    assert files.order == ["fdatasync begins", "fdatasync ends", "ftruncate"]
    assert log.wal.durable_version == log.wal.version == 1
    log.wal.close()
    assert load(log.directory)[1] == expected(log.entries[:1])


def test_syncing_all_the_while(tmp_path: Path) -> None:
    """Rotations and cuts under a thread that syncs without a pause."""
    log = Log(tmp_path / "wal", segment_bytes=700)
    stop = threading.Event()
    wrong: list[object] = []

    def run() -> None:
        try:
            while not stop.is_set():
                log.wal.sync()
        except BaseException as error:
            wrong.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        for number in range(150):
            mark = log.wal.position()
            log.append(number % 50)
            if number % 5 == 0:
                log.wal.cut(mark)
                log.entries.pop()
            if log.wal.durable_version > log.wal.version:
                wrong.append(number)
    finally:
        stop.set()
        thread.join(20)
    assert wrong == []
    log.wal.sync()
    log.wal.close()
    result, records = load(log.directory)
    assert records == expected(log.entries) and len(result.segments) > 5
