"""An fsync fails: nothing is acknowledged, it is not tried again, and recovery finds a prefix."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import msgpack
import pytest
from damaged_log import TINY, Failing, Log, expected, load, recover_and_append
from small_disks import MIB

from inmem.primitives.events.rules import CHAIN_IDS
from inmem.primitives.server import PROCEDURES
from inmem.storage.environment import Table
from inmem.storage.store import Store
from inmem.storage.wal.files import Files
from inmem.storage.wal.log import Wal, WalBrokenError
from inmem.storage.wal.scan import rewrite_tail, scan
from inmem.wire import APPLIED
from inmem.writer.committer import Committer, Request
from inmem.writer.outcomes import Sessions


def test_a_failed_fsync_is_never_tried_again(tmp_path: Path) -> None:
    files = Failing()
    log = Log(tmp_path / "wal", segment_bytes=1 << 20, files=files)
    log.append()
    assert log.wal.sync() == 1
    log.append()
    mark = log.wal.position()
    files.plan["fdatasync"] = [errno.EIO]
    with pytest.raises(WalBrokenError) as caught:
        log.wal.sync()
    assert caught.value.errno == errno.EIO and log.wal.failed
    assert log.wal.durable_version == 1
    files.calls.clear()
    for call in (
        log.wal.sync,
        lambda: log.wal.append([], version=9, epoch=1, clock_us=0),
        lambda: log.wal.cut(mark),
        lambda: log.wal.release(1),
    ):
        with pytest.raises(WalBrokenError):
            call()
    assert files.calls == [], "a broken log makes no system call"
    assert log.wal.durable_version == 1
    log.wal.close()
    log.wal.close()
    assert load(log.directory)[1] == expected(log.entries)


@pytest.mark.parametrize("call", ["fdatasync", "fsync"])
def test_a_failed_fsync_in_a_rotation(tmp_path: Path, call: str) -> None:
    files = Failing()
    log = Log(tmp_path / "wal", files=files)
    while log.wal.position().offset < TINY:
        log.append()
    files.plan[call] = [errno.EIO]
    with pytest.raises(WalBrokenError):
        log.wal.append([], version=99, epoch=1, clock_us=0)
    assert log.wal.failed
    if call == "fdatasync":
        assert log.wal.durable_version == 0 and not log.path(2).exists()
    log.wal.close()
    recover_and_append(log.directory, log.entries)


class FailingSync(Files):
    """fdatasync that fails from a given call on."""

    def __init__(self) -> None:
        self.fail = False
        self.calls = 0

    def fdatasync(self, fd: int) -> None:
        self.calls += 1
        if self.fail:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        super().fdatasync(fd)


def test_a_failed_fsync_acknowledges_nothing(tmp_path: Path) -> None:
    """EIO in `sync` mode: no answer, nothing published, no second try; recovery finds a prefix."""
    files = FailingSync()
    database_id, session = bytes(range(16)), bytes(16)
    image = tmp_path / "image"
    image.mkdir(mode=0o700)
    store = Store(image, max_readers=8, quota_bytes=8 * MIB)
    log = Wal.create(tmp_path / "wal", database_id, segment_bytes=MIB, files=files)
    sessions = Sessions([], ttl_s=1e6, max_in_flight=16)
    committer = Committer(
        store, log, sessions, version=0, epoch=1, owner=(database_id, b"boot", 1, 2),
        chain=CHAIN_IDS["xxh3"], always_sync=True, procedures=PROCEDURES,
    )
    sessions.register(session, 1)

    def put(sequence: int) -> list[Any]:
        body = msgpack.packb((0, 0, [], [], [[0, b"a/b/c/run\0\x01key", b"%d" % sequence, 0]]))
        return committer.commit([Request(session, sequence, sequence, body)], sequence)

    assert put(1)[0].status == put(2)[0].status == APPLIED
    position = store.position
    files.fail = True
    calls = files.calls
    for sequence in (3, 3, 4):
        with pytest.raises(WalBrokenError):
            put(sequence)
        assert store.position == position, "nothing was published"
    with pytest.raises(WalBrokenError):
        log.sync()
    assert files.calls == calls + 1, "a failed fsync is never asked again"
    committed = [bytes(record)[-1:] for _, record in store.items(Table.DATA)]
    assert committed == [b"2"]
    log.close()
    store.close()
    result = scan(tmp_path / "wal", database_id)
    rewrite_tail(result)
    versions = [record.version for record in result.iter_records()]
    assert versions in ([1, 2], [1, 2, 3]), "at most the one that was never answered"
