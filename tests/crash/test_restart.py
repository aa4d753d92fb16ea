"""Clean stops and restarts: what stays, what goes, and versions that only grow."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from crash_workers import RUN
from support import alive, control_state, kill_writer, runtime_entries, stop_writer, wait_until, writer_pid

import inmem
from inmem.errors import InmemError


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
