"""The quota is reached and freed: a typed error, then service, and reads all the while."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from crash_workers import RUN, fill
from small_disks import MIB
from support import Workers, epoch, kill_writer

import inmem


def test_quota_reached_and_freed(store_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INMEM_QUOTA_BYTES", str(4 * MIB))
    with inmem.open(store_path) as db:
        written = 0
        with pytest.raises(inmem.StoreFullError) as caught:
            while written < 2000:
                db.kv.put(RUN, f"k{written:05}", os.urandom(20_000))
                written += 1
        assert 20 < written < 200
        error = caught.value
        assert error.quota_bytes == 4 * MIB and error.used_bytes <= 4 * MIB and error.hint
        assert db.kv.count(RUN) == written and len(db.kv.get(RUN, "k00000")) == 20_000
        before = epoch(store_path)
        for number in range(written):  # deletes have room of their own
            assert db.kv.delete(RUN, f"k{number:05}")
            if number == written // 2:
                db.kv.put(RUN, "again", os.urandom(20_000))
        db.events.append(RUN, "resumed")
        assert db.kv.list(RUN) == ["again"]
        assert db.check().problems == []
        status = db.status()
        assert status.image_bytes < 4 * MIB and epoch(store_path) == before


def test_a_full_store_refuses_writers_and_serves_readers(
    store_path: Path, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INMEM_QUOTA_BYTES", str(4 * MIB))
    with inmem.open(store_path) as db:
        db.kv.put(RUN, "k", "v")
        for index in range(3):
            workers.start(fill, index, store_path, 9_000)
        written = [(result["written"], result["code"], result["hint"]) for result in workers.results()]
        assert [(code, hint) for _, code, hint in written] == [("store_full", True)] * 3
        assert db.kv.get(RUN, "k") == "v"
        assert [db.kv.count(f"filler-{i}") for i in range(3)] == [count for count, _, _ in written]
        assert sum(count for count, _, _ in written) > 50
        kill_writer(store_path)  # full is no reason not to recover
        for index, (count, _, _) in enumerate(written):  # who came late found no room for even one
            assert db.kv.delete(f"filler-{index}", "k0") == (count > 0)
        assert db.check().problems == []
