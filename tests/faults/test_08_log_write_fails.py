"""Writes to the log that fail or fall short: the log is as it was, or says that it is broken."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from damaged_log import TINY, Failing, Log, expected, load, recover_and_append

from inmem.storage.wal.log import WalBrokenError


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
@pytest.mark.parametrize("written", [None, 1, 3, 50, 71, 72, 73, 90])
def test_a_failed_write_leaves_the_log_as_it_was(tmp_path: Path, number: int, written: int | None) -> None:
    files = Failing()
    log = Log(tmp_path / "wal", files=files)
    for _ in range(2):
        log.append()
    before = log.path(1).read_bytes()
    files.short = [] if written is None else [written]
    files.plan["write"] = [number] if written is None else [None, number]
    with pytest.raises(OSError) as caught:
        log.append(40)
    assert caught.value.errno == number and not isinstance(caught.value, WalBrokenError)
    assert log.path(1).read_bytes() == before
    assert not log.wal.failed and log.wal.version == 2
    assert load(log.directory)[1] == expected(log.entries)
    while log.wal.position().segment < 2:  # space is back
        log.append()
    log.wal.close()
    assert load(log.directory)[1] == expected(log.entries)


def test_short_writes_are_carried_on(tmp_path: Path) -> None:
    files = Failing()
    log = Log(tmp_path / "wal", files=files)
    for version in range(1, 12):
        files.short = [1] * (version * 8) if version < 8 else [7, 64, 2]
        log.append(20)
    log.wal.close()
    assert load(log.directory)[1] == expected(log.entries)


def test_a_write_that_writes_nothing_ends(tmp_path: Path) -> None:
    files = Failing()
    log = Log(tmp_path / "wal", files=files)
    files.short = [5, 0]
    with pytest.raises(OSError, match="wrote nothing"):
        log.append()
    log.append()
    log.wal.close()
    assert load(log.directory)[1] == expected(log.entries)


def test_a_tail_that_cannot_be_trimmed_breaks_the_log(tmp_path: Path) -> None:
    files = Failing()
    log = Log(tmp_path / "wal", files=files)
    log.append()
    files.short, files.plan = [30], {"write": [None, errno.ENOSPC], "ftruncate": [errno.EIO]}
    with pytest.raises(WalBrokenError):
        log.append()
    with pytest.raises(WalBrokenError):
        log.append()
    log.wal.close()
    result, records = load(log.directory)
    assert records == expected(log.entries)
    assert result.torn is not None and result.torn.dropped_bytes == 30
    recover_and_append(log.directory, log.entries)


@pytest.mark.parametrize("call", ["open", "write"])
def test_no_space_for_a_new_segment(tmp_path: Path, call: str) -> None:
    files = Failing()
    log = Log(tmp_path / "wal", files=files)
    while log.wal.position().offset < TINY:
        log.append()
    files.plan[call] = [errno.ENOSPC]
    with pytest.raises(OSError) as caught:
        log.append()
    assert caught.value.errno == errno.ENOSPC and not log.wal.failed
    assert not log.path(2).exists(), "a half-made segment would call the one before it finished"
    log.append()
    log.wal.close()
    assert log.wal.position().segment == 2
    assert load(log.directory)[1] == expected(log.entries)


def test_a_half_made_segment_that_cannot_be_removed_breaks_the_log(tmp_path: Path) -> None:
    files = Failing()
    log = Log(tmp_path / "wal", files=files)
    while log.wal.position().offset < TINY:
        log.append()
    files.short, files.plan = [20], {"write": [None, errno.ENOSPC], "unlink": [errno.EIO]}
    with pytest.raises(WalBrokenError):
        log.append()
    assert log.wal.failed and log.path(2).stat().st_size == 20
    log.wal.close()
    recover_and_append(log.directory, log.entries)


@pytest.mark.parametrize("call", ["ftruncate", "fsync", "unlink"])
def test_a_cut_that_fails_breaks_the_log(tmp_path: Path, call: str) -> None:
    files = Failing()
    log = Log(tmp_path / "wal", files=files)
    log.append()
    mark = log.wal.position()
    while log.wal.position().segment < 2:
        log.append()
    log.wal.sync()
    files.plan[call] = [errno.EIO]
    with pytest.raises(WalBrokenError):
        log.wal.cut(mark)
    assert log.wal.failed and log.wal.durable_version == 1
    log.wal.close()
    _, records = load(log.directory)
    assert records == expected(log.entries)[: len(records)] and len(records) >= 1
