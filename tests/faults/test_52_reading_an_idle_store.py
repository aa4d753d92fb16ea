"""Reading a store that nobody serves by a command costs what opening costs, once; and nothing on the disk."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
from forked import run_command
from small_disks import needs_root, read_only
from support import epoch, kill_writer, stop_writer, wait_until, writer_pid

import inmem

PROGRAM = [sys.executable, "-c", "from inmem.cli import main; main()"]
MIB = int(os.environ.get("INMEM_TEST_IDLE_MIB", "16"))


@pytest.fixture
def idle(store_path: Path, scratch: Path) -> Path:
    config = scratch / "c.toml"
    config.write_text("[store]\nlinger_s = 12.0\n")  # longer than a command takes on a busy machine
    with inmem.open(store_path, config=config) as db:
        db.kv.put("r", "key", "value")
        for number in range(MIB):
            db.kv.put_many("r", {f"{number}-{n}": os.urandom(1000) for n in range(1000)})
    stop_writer(store_path)
    return store_path


def get(path: Path, *more: str) -> tuple[float, int]:
    """Seconds, and bytes written to the disk by the command."""
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN).ru_oublock
    done = subprocess.run(
        [*PROGRAM, "kv", "get", "r", "key", "-d", str(path), *more],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, '"value"\n', "")
    written = resource.getrusage(resource.RUSAGE_CHILDREN).ru_oublock - before
    return time.monotonic() - began, written * 512


def test_the_first_starts_a_writer_and_the_next_finds_it(idle: Path) -> None:
    size = sum(file.stat().st_size for file in idle.rglob("*"))
    first = get(idle)
    pid = writer_pid(idle)
    assert pid, "it lingers"
    second = get(idle)
    assert writer_pid(idle) == pid
    assert sum(file.stat().st_size for file in idle.rglob("*")) < size + 100_000
    stop_writer(idle)
    private = get(idle, "--no-writer")
    assert not writer_pid(idle)
    for what, (seconds, written) in (("first", first), ("second", second), ("private", private)):
        print(f"{what}: {seconds:.2f} s, {written:,} bytes to the disk by the command")
        assert written < 1_000_000


def test_a_writer_that_a_command_started_leaves(
    store_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that a program started."""
    monkeypatch.setenv("INMEM_LINGER_S", "0.2")
    with inmem.open(store_path) as db:
        db.kv.put("r", "key", "value")
    stop_writer(store_path)
    before = epoch(store_path)
    get(store_path)
    assert epoch(store_path) == before + 1
    wait_until(lambda: not writer_pid(store_path), "it leaves")


def test_an_image_in_memory_is_read_without_a_writer(idle: Path) -> None:
    with inmem.open(idle):
        kill_writer(idle)
    get(idle)
    assert not writer_pid(idle)


@needs_root
def test_a_read_only_directory_is_read_as_it_is(idle: Path, tmp_path: Path) -> None:
    with read_only(idle):
        get(idle)
        assert not writer_pid(idle)
        for words in ("runs --all", "check", f"export -o {tmp_path}/f", f"backup {tmp_path}/b"):
            done = run_command([*words.split(), "-d", idle])
            assert done.returncode == 0, done.stderr
