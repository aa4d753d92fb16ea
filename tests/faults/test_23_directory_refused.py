"""Directories that are open to others, linked, foreign, read-only or no store: refused, with the reason."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from crash_workers import RUN
from small_disks import MIB, needs_root, tmpfs
from support import control_state, stop_writer

import inmem
from inmem.config import FORMAT_VERSION
from inmem.host.directory import DataDirectory


def test_a_directory_that_others_can_enter_is_refused(store_path: Path) -> None:
    with inmem.open(store_path) as db:
        db.kv.put(RUN, "k", 1)
    stop_writer(store_path)
    os.chmod(store_path, 0o755)
    with pytest.raises(inmem.PermissionDeniedError, match="0755"):
        inmem.open(store_path)
    os.chmod(store_path, 0o700)
    with inmem.open(store_path) as db:
        assert db.kv.get(RUN, "k") == 1


def test_all_files_are_private(store_path: Path) -> None:
    old = os.umask(0)
    try:
        with inmem.open(store_path) as db:
            db.kv.put(RUN, "k", 1)
            image = Path(control_state(store_path).image)
            endpoint = Path(control_state(store_path).endpoint.removeprefix("ipc://"))
            memory = [image, *image.rglob("*"), endpoint, image.parent]
            everything = [store_path, *store_path.rglob("*"), *memory]
            open_to_others = [p for p in everything if p.lstat().st_mode & 0o077]
    finally:
        os.umask(old)
    assert open_to_others == [] and len(everything) > 8


def test_a_symlink_is_refused(store_path: Path, scratch: Path) -> None:
    with inmem.open(store_path) as db:
        db.kv.put(RUN, "k", 1)
    link = scratch / "link"
    link.symlink_to(store_path)
    with pytest.raises(inmem.PermissionDeniedError, match="symlink"):
        inmem.open(link)
    link.unlink()
    (scratch / "target").mkdir(mode=0o700)
    link.symlink_to(scratch / "target")
    with pytest.raises(inmem.PermissionDeniedError, match="symlink"):
        inmem.open(link)
    assert os.listdir(scratch / "target") == []


@needs_root
def test_a_directory_of_somebody_else_is_refused(store_path: Path) -> None:
    with inmem.open(store_path) as db:
        db.kv.put(RUN, "k", 1)
    stop_writer(store_path)
    before = sorted(os.listdir(store_path))
    os.chown(store_path, 12345, 12345)
    try:
        with pytest.raises(inmem.PermissionDeniedError, match="12345"):
            inmem.open(store_path)
        assert sorted(os.listdir(store_path)) == before
    finally:
        os.chown(store_path, os.geteuid(), os.getegid())


@needs_root
def test_a_read_only_directory_is_refused(scratch: Path) -> None:
    with tmpfs(scratch / "disk", 4 * MIB) as disk:
        (disk / "empty").mkdir(mode=0o700)
        with inmem.open(disk / "store") as db:
            db.kv.put(RUN, "k", 1)
        stop_writer(disk / "store")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        for name in ("empty", "store", "missing"):
            with pytest.raises(inmem.PermissionDeniedError, match=r"read-only|Read-only"):
                inmem.open(disk / name)


def test_a_directory_that_holds_other_things_is_left_alone(store_path: Path) -> None:
    store_path.mkdir()
    (store_path / "letter.txt").write_text("dear")
    mode = store_path.stat().st_mode
    with pytest.raises(inmem.InvalidInputError, match="not empty"):
        inmem.open(store_path)
    assert os.listdir(store_path) == ["letter.txt"] and store_path.stat().st_mode == mode


def test_another_format_version_is_refused(store_path: Path) -> None:
    with inmem.open(store_path) as db:
        db.kv.put(RUN, "k", 1)
    stop_writer(store_path)
    settings = store_path / "settings.json"
    text = settings.read_text()
    settings.write_text(text.replace(f'"format": {FORMAT_VERSION}', '"format": 999'))
    with pytest.raises(inmem.FormatVersionError) as caught:
        inmem.open(store_path)
    assert (caught.value.found, caught.value.supported) == (999, FORMAT_VERSION)
    settings.write_text(text)
    control = DataDirectory(store_path).control()
    control.close()
