"""What docs/sizing.md says of memory, log and open files is what a store takes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support import stop_writer

import inmem

PAGE = (Path(__file__).parents[2] / "docs" / "sizing.md").read_text(encoding="utf-8")
VALUE = "x" * 50
COUNT = 2_000
OTHERS = 50  # of each kind, in runs before and behind
NEAR = 0.1  # what the page rounds, and the pages of the image

WRITES: dict[str, Callable[[inmem.Database, str, int], object]] = {
    "an entry": lambda db, run, n: db.kv.put(run, f"key-{n:06}", VALUE),
    "an event": lambda db, run, n: db.events.append(run, "noted", VALUE),
    "a job": lambda db, run, n: db.queues.put(run, "mail", VALUE),
    "a trace with two tags": lambda db, run, n: db.traces.record(
        run, inmem.Thought(VALUE), tags=["a", "b"]
    ),
}


def row(first: str) -> list[int]:
    """The numbers of the row with that first cell."""
    (found,) = re.findall(rf"^\| {re.escape(first)} \|(.*)\|$", PAGE, re.MULTILINE)
    return [int(cell.replace(",", "")) for cell in re.findall(r"(?<= )[\d,]+(?= )", found)]


@pytest.mark.parametrize("kind", WRITES)
def test_what_one_of_a_kind_takes(kind: str, scratch: Path) -> None:
    memory, log = row(kind)
    try:
        with inmem.open(scratch / "data") as db:
            for write in WRITES.values():
                for n in range(OTHERS):
                    write(db, "run-0", n)
                    write(db, "run-2", n)
            before = db.status()
            for n in range(COUNT):
                WRITES[kind](db, "run-1", n)
            after = db.status()
    finally:
        stop_writer(scratch / "data")
    assert (after.image_bytes - before.image_bytes) / COUNT == pytest.approx(memory, rel=NEAR)
    assert (after.wal_bytes - before.wal_bytes) / COUNT == pytest.approx(log, rel=NEAR)


# A program of its own: which files a test process has open already is not the page's matter.
PROGRAM = """
import asyncio, json, os, threading
import inmem, inmem.aio

def files(pid="self"):
    return len(os.listdir(f"/proc/{pid}/fd"))

first = files()
db = inmem.open("./data")
db.kv.get("run-1", "key")
db.kv.put("run-1", "key", 1)
writer = db.status().writer_pid
counted = {"first": files() - first, "writer": files(writer)}

ready, done = threading.Barrier(9), threading.Event()

def work():
    db.kv.put("run-1", "key", 1)
    ready.wait(60)
    done.wait(60)

threads = [threading.Thread(target=work) for _ in range(8)]
before = files()
for thread in threads:
    thread.start()
ready.wait(60)
counted |= {"threads": files() - before, "of the writer": files(writer) - counted["writer"]}
done.set()
for thread in threads:
    thread.join()

before = files()
with inmem.open() as other:
    other.kv.put("run-1", "key", 1)
    counted["store"] = files() - before

async def main():
    async with inmem.aio.open("./data") as awaited:
        await awaited.kv.put("run-1", "key", 1)
        counted["loop"] = files() - before

before = files()
asyncio.run(main())
print(json.dumps(counted))
"""


def test_how_many_files_are_open(scratch: Path) -> None:
    try:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], cwd=scratch, capture_output=True, text=True,
            timeout=60, check=True,
        )
    finally:
        stop_writer(scratch / "data")
    counted = json.loads(done.stdout)
    assert counted["first"] == row("a program with a store open, in the thread that commits")[0]
    assert counted["threads"] <= 8 * row("each further thread that commits")[0]
    assert counted["store"] <= row("each further store")[0]
    assert counted["loop"] <= row("an event loop with a handle of `inmem.aio`")[0]
    assert counted["writer"] <= row("the writer")[0]
    assert counted["of the writer"] == 8 * row("the writer, for each thread or loop that commits")[0]


def test_the_small_files_are_small(scratch: Path) -> None:
    try:
        with inmem.open(scratch / "data") as db:
            db.kv.put("run-1", "key", 1)
            files = [file for file in (scratch / "data").rglob("*") if file.is_file()]
            assert len(files) > 5 and sum(file.stat().st_size for file in files) < 1_000_000
    finally:
        stop_writer(scratch / "data")
