"""Two hundred clients come and go: the writer's descriptors and memory stay as they were."""

from __future__ import annotations

from pathlib import Path

from fault_workers import RUN, visit
from processes import descriptors, memory_kib
from support import Workers, wait_until, writer_pid

import inmem


def test_two_hundred_clients_come_and_go(store_path: Path, workers: Workers) -> None:
    """Four waves of fifty at once; each leaves politely, is killed, or just exits. Nothing is kept."""
    waves = 4
    with inmem.open(store_path) as db:
        db.kv.put(RUN, "k", 1)
        pid = writer_pid(store_path)
        settled: list[tuple[int, int]] = []
        came = 0
        for wave in range(1, waves + 1):
            hosts = [workers.start(visit, part * 25, 25, store_path, wave) for part in range(2)]
            wait_until(
                lambda w=wave: workers.check() or all(workers.words[i] == w for i in range(50)),
                "all are here",
            )
            at_once = descriptors(pid)
            assert db.status().clients >= 50
            workers.words.open_gate(wave)
            came += sum(host.result() for host in hosts)
            wait_until(lambda: db.status().clients <= 1, "the dead are forgotten")
            wait_until(lambda n=at_once: descriptors(pid) < n - 40, "their connections are closed")
            settled.append((descriptors(pid), memory_kib(pid)))
        assert came == waves * 50 and db.kv.get("guests", "n") == came == db.events.count("guests")
        assert writer_pid(store_path) == pid
        files, memory = zip(*settled, strict=True)
        print(f"{came} clients in {waves} waves: descriptors {files}, RssAnon {memory} KiB after each")
        assert max(files) - min(files[1:]) <= 2, "no descriptor is kept"
        assert memory[-1] - memory[0] < 8 * 1024, "no memory is kept"
