"""A writer that a client with other settings starts has the settings of the store."""

from __future__ import annotations

from pathlib import Path

import pytest
from crash_workers import RUN
from support import kill_writer

import inmem
from inmem.config import Settings


@pytest.mark.parametrize(
    ("stored", "asked"),
    [("buffered", "memory"), ("buffered", "sync"), ("sync", "memory"), ("sync", "buffered")],
)
def test_a_respawned_writer_never_weakens_durability(
    store_path: Path, monkeypatch: pytest.MonkeyPatch, stored: str, asked: str
) -> None:
    """The client that starts the next writer has another durability in its environment."""
    with inmem.open(store_path, durability=stored) as db:
        monkeypatch.setenv("INMEM_DURABILITY", asked)
        kill_writer(store_path)
        version = db.kv.put(RUN, "k", 2)
        assert db.status().durability == stored
        if stored == "sync":
            assert db.status().durable_version >= version
        monkeypatch.delenv("INMEM_DURABILITY")
    assert f'"durability": "{stored}"' in (store_path / "settings.json").read_text()


def test_stored_settings_win_over_those_of_a_respawning_client(
    store_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with inmem.open(store_path, durability="sync") as db:
        db.kv.put(RUN, "k", 1)
        with pytest.raises(inmem.ConfigMismatchError) as caught:
            inmem.open(store_path, durability="buffered")
        assert (caught.value.setting, caught.value.stored) == ("durability", "sync")
        monkeypatch.setenv("INMEM_DURABILITY", "memory")
        monkeypatch.setenv("INMEM_QUOTA_BYTES", str(8 << 20))
        with pytest.raises(inmem.ConfigMismatchError):
            inmem.open(store_path)
        kill_writer(store_path)
        db.kv.put(RUN, "k", 2)  # this process, with those variables, starts the next writer
        status = db.status()
        assert (status.durability, status.quota_bytes) == ("sync", Settings().quota_bytes)
        assert status.durable_version >= db.kv.get_versioned(RUN, "k").version, "it syncs before it answers"
    monkeypatch.delenv("INMEM_DURABILITY")
    monkeypatch.delenv("INMEM_QUOTA_BYTES")
    with inmem.open(store_path, durability="sync") as db:
        assert db.kv.get(RUN, "k") == 2
