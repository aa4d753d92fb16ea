"""A checkpoint never gets ahead of the log that is durable, so a power cut leaves its log."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from checkpointing import Asking, checkpoints, remove_image
from crash_workers import RUN
from support import launches_held, wait_until, writer_pid

import inmem
from inmem.host.control import DURABLE
from inmem.host.directory import DataDirectory
from inmem.maintenance.check import check
from inmem.storage.checkpoint import verify_checkpoint
from inmem.storage.wal.scan import scan


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
    header = verify_checkpoint(checkpoints(store_path)[0])[0]
    found = scan(store_path / "wal", header.database)
    assert found.find(header.version, header.checksum) is not None
    # The last sync before the name covers the record: it was written before that began.
    written_after = len([n for n in log if n > synced[-1]])
    later = [record.version for record in found.iter_records() if record.version > header.version]
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
            header = verify_checkpoint(checkpoints(store_path)[0])[0]
            found = scan(directory.wal, header.database)
            position = found.find(header.version, header.checksum)
            assert position is not None
            os.truncate(found.segments[position.segment - found.segments[0].number].file, position.offset)
            for segment in found.segments:
                if segment.number > position.segment:
                    segment.file.unlink()
            control = directory.control()
            assert control.words[DURABLE] <= header.version
            control.close()
            assert check(store_path).problems == []
        asking.join(60.0)
        assert isinstance(asking.outcome, inmem.CheckpointReport)
        assert db.kv.get(RUN, "k") == 9
