"""How much memory does it take, and does it give it back? `python -m bench.memory`

The image beside the encoded bytes of keys and values that are in it; what a
client process has for itself; the writer over many commits; the image while
entries are replaced and deleted over and over. Private memory is
Private_Clean + Private_Dirty of the kernel's smaps_rollup, Pss its share of
what is shared, the image included.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import inmem
from bench import workloads
from bench.harness import Options, bench, main
from bench.peers import Client
from bench.peers.ours import Ours

CLIENTS = 4
STEPS = 5
_MIB = 2**20


def memory_of(pid: int | str = "self") -> dict[str, float]:
    """Private memory, proportional share and anonymous memory of a process, MiB.

    Pages of the image count as private where nobody else has them mapped at
    the moment: what a process has of its own is the anonymous memory.
    """
    found = dict.fromkeys(("Private_Clean", "Private_Dirty", "Pss", "Anonymous"), 0)
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name in found:
            found[name] = int(rest.split()[0])
    return {
        "private": (found["Private_Clean"] + found["Private_Dirty"]) / 1024, "pss": found["Pss"] / 1024,
        "own": found["Anonymous"] / 1024,
    }  # fmt: skip


def read_all(client: Client, count: int) -> dict[str, float]:
    """A client's memory after it has read and written as clients do."""
    for n in range(count):
        if client.get(workloads.key(n)) != workloads.value(n):
            raise AssertionError(workloads.key(n))
    client.put("own", workloads.value(0))
    return memory_of()


def churn(client: Client, count: int, times: int) -> None:
    """Replace all entries, and write and delete as many others."""
    kv = client._run.kv  # type: ignore[attr-defined]  # deletes are no peer's
    before = kv.count()
    for n in range(times):
        for start in range(0, count, 1000):
            numbers = range(start, min(count, start + 1000))
            kv.put_many({workloads.key(m): workloads.value(m + n) for m in numbers})
            kv.put_many({f"gone-{m}": workloads.value(m) for m in numbers})
            client._db.transact("bench", lambda txn, numbers=numbers: [  # type: ignore[attr-defined]
                txn.kv.delete(f"gone-{m}") for m in numbers
            ])  # fmt: skip
    if kv.count() != before:
        raise AssertionError(f"{kv.count()} entries instead of {before}")


def commits(client: Client, count: int) -> None:
    """Single commits."""
    for n in range(count):
        client.put("own", workloads.value(n))


def run(options: Options) -> dict[str, Any]:
    """Sizes and shares."""
    keys, turns = options.size(1_000_000, 50_000), options.size(10, 3)
    each = options.size(50_000, 1_000)
    with bench("memory", "how much memory does it take?", options, ("inmem",)) as b:
        connector = b.subjects[b.ours].connector
        ours = b.subjects[b.ours].peer
        assert isinstance(ours, Ours)
        database = ours.database
        assert database is not None
        b.processes.need(CLIENTS)
        for index in range(CLIENTS):
            bare = b.processes.call(index, memory_of)
            b.figure("private memory of a process before it opens: MiB", bare["private"])

        empty = database.status().image_bytes
        b.processes.with_client(0, connector, workloads.load, keys)
        # As SPEC.md has it: the stored key, and the value in MessagePack (a `str` of 50 bytes has 2 more).
        stored = inmem.Key.kv(database.namespace, "bench", workloads.key(0))
        encoded = keys * (len(bytes(stored)) + workloads.VALUE_BYTES + 2)
        status = database.status()
        b.figure("image / encoded keys and values", (status.image_bytes - empty) / encoded)
        b.figure("image file / encoded keys and values", status.image_file_bytes / encoded)
        b.note(f"{keys:,} entries: {encoded / _MIB:,.1f} MiB encoded, "
               f"image {status.image_bytes / _MIB:,.1f} MiB in use of {status.image_file_bytes / _MIB:,.1f}")

        for index in range(CLIENTS):
            b.processes.with_client(index, connector, read_all, keys)
        for index in range(CLIENTS):  # when all have read everything, the image is nobody's own
            found = b.processes.call(index, memory_of)
            b.figure("private memory of a client: MiB", found["private"])
            b.figure("share of a client, the image included: MiB", found["pss"])

        before, loaded = memory_of(status.writer_pid), status.image_bytes
        for _ in range(turns):
            b.processes.with_client(0, connector, churn, keys, 1)
            b.figure("image after replacing and deleting everything, to what it was before",
                     database.status().image_bytes / loaded)
        b.figure("writer, own memory after that, less what it had before: MiB",
                 memory_of(status.writer_pid)["own"] - before["own"])
        b.processes.with_client(0, connector, commits, each)
        first = last = memory_of(status.writer_pid)["own"]
        for _ in range(STEPS):
            b.processes.with_client(0, connector, commits, each)
            last = memory_of(status.writer_pid)["own"]
            b.figure(f"writer, own memory after {each:,} commits more: MiB", last)
        b.figure(f"writer, own memory gained in {STEPS * each:,} commits: MiB", last - first)
        report = database.check()
        if report.problems:
            b.fail(f"check: {report.problems[:3]}")
        return b.document()


if __name__ == "__main__":
    sys.exit(main("memory", __doc__, run))
