"""Fault 40: a writer with nothing to do sleeps, and misses nothing of what it should notice."""

from __future__ import annotations

import os
import time
from collections import deque
from contextlib import ExitStack
from pathlib import Path

import pytest
from crash_workers import hold_open
from support import Workers, alive, control_state, epoch, kill, wait_until, writer_pid

import inmem
from inmem.config import DURABILITIES

STORES = int(os.environ.get("INMEM_TEST_STORES", "3"))
WINDOW_S = 5.0
LOOK_S = 0.25
SETTLED_S = 30.0  # how long after work a writer may take to come to rest, beside others
MOST_PER_S = 2.0
MOST_CPU = 0.003  # of a core, each: three times what is promised, as other work makes each wake-up dearer


def wake_ups(pid: int) -> int:
    """How often all threads of a process together have gone to sleep."""
    count = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        lines = (task / "status").read_text().splitlines()
        count += next(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches"))
    return count


def cpu_s(pid: int) -> float:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def test_idle_stores(scratch: Path) -> None:
    """Of each durability a third."""
    with ExitStack() as stack:
        stores = [
            stack.enter_context(inmem.open(scratch / f"store-{n}", durability=DURABILITIES[n % 3]))
            for n in range(STORES)
        ]
        for db in stores:
            db.kv.put("run", "k", 1)
            db.kv.put("run", "later", 1, ttl=3600)
        pids = [writer_pid(scratch / f"store-{n}") for n in range(STORES)]

        per_s, cpu = at_rest(pids, WINDOW_S, MOST_PER_S * STORES)
        per_s /= STORES
        print(f"{STORES} idle stores: {per_s:.2f} wake-ups/s each, {cpu:.2%} of a core in all")
        assert cpu < MOST_CPU * STORES
        for number, db in enumerate(stores):
            assert db.kv.put("run", "k", number) and db.kv.get("run", "k") == number


def at_rest(pids: list[int], window_s: float, most_per_s: float) -> tuple[float, float]:
    """Wait until writers have come to rest: wake-ups and CPU time a second in the first such window."""
    seen: deque[tuple[float, int, float]] = deque()
    deadline = time.monotonic() + SETTLED_S + window_s
    while True:
        seen.append((time.monotonic(), sum(map(wake_ups, pids)), sum(map(cpu_s, pids))))
        while len(seen) > 1 and seen[-1][0] - seen[1][0] >= window_s:
            seen.popleft()
        (began, woken, used), (ended, now, spent) = seen[0], seen[-1]
        if (took_s := ended - began) >= window_s and now - woken <= most_per_s * took_s:
            return (now - woken) / took_s, (spent - used) / took_s
        assert ended < deadline, f"no rest: {(now - woken) / took_s:.1f} wake-ups/s"
        time.sleep(LOOK_S)


def rest(pid: int) -> None:
    """Wait until a writer has come to rest."""
    at_rest([pid], 2.0, MOST_PER_S)


def test_what_a_resting_writer_must_not_sleep_over(
    store_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An expiry that is due, a removed socket, a sync that is due, and the end of its last client."""
    monkeypatch.setenv("INMEM_LINGER_S", "0.5")
    with inmem.open(store_path) as db:
        db.kv.put("run", "k", 1)
        pid = writer_pid(store_path)
        expiring = 0
        for ttl in (5, 12, 40):  # it is to rest when the time comes
            expiring += 1
            db.kv.put("run", f"brief-{ttl}", 1, ttl=ttl)
            rest(pid)
            if db.kv.get("run", f"brief-{ttl}") == 1:
                break
        wait_until(lambda: db.status().expired == expiring, "what has expired is removed")
        rest(pid)
        db.kv.put("run", "k", 2)
        wait_until(lambda: (s := db.status()).durable_version == s.version, "what was written is synced")
        before = epoch(store_path)
        rest(pid)
        Path(control_state(store_path).endpoint.removeprefix("ipc://")).unlink()
        wait_until(lambda: epoch(store_path) > before, "a removed socket is replaced")
        assert db.kv.put("run", "k", 3) and writer_pid(store_path) == pid
    wait_until(lambda: not alive(pid), "the writer leaves")


def test_a_killed_client_is_noticed(
    store_path: Path, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing tells the writer that its last client was killed. It looks about once a second."""
    monkeypatch.setenv("INMEM_LINGER_S", "0.5")
    client = workers.start(hold_open, 1, store_path)
    wait_until(lambda: workers.check() or workers.words[1], "the client is there")
    pid = writer_pid(store_path)
    rest(pid)
    kill(client.pid, wait=False)
    wait_until(lambda: not alive(pid), "the writer leaves after its last client", 10.0)
