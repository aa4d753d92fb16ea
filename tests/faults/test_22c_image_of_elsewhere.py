"""Images of another database, another boot or another time, and copied directories: set aside and told."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from crash_workers import RUN
from damaged_store import recovered_line
from support import alive, control_state, copied, kill_writer, runtime_entries, stop_writer, writer_pid

import inmem
from inmem.config import Settings
from inmem.host.directory import DataDirectory


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
        copied(path, copy)
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
