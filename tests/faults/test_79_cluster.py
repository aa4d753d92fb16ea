"""Three nodes under Patroni: the leader is killed, frozen or cut off, and they fail over by themselves."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator

import pytest
from patroni_cluster import Cluster, missing
from server_workers import judged, no_error, progress, started, summary
from support import Workers, wait_until

import inmem

FAILOVERS = int(os.environ.get("INMEM_TEST_FAILOVERS", "0"))
SEED = int(os.environ.get("INMEM_TEST_SEED", "20260701"))
COUNT = int(os.environ.get("INMEM_TEST_WORKERS", "8"))
DEADLINE_S = 120.0


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    if not FAILOVERS:
        pytest.skip("takes minutes: INMEM_TEST_FAILOVERS says how many times")
    if lacking := missing():
        pytest.skip(f"not installed: {lacking}")
    cluster = Cluster()
    yield cluster
    cluster.remove()


@pytest.mark.timeout(300 + 90 * FAILOVERS)
def test_it_fails_over_by_itself(cluster: Cluster, workers: Workers) -> None:
    rng = random.Random(SEED)
    url = cluster.url("store")
    ways = ["killed", "frozen", *(["cut off"] if cluster.can_cut else [])]  # the last needs root
    done = dict.fromkeys(ways, 0)
    took: list[float] = []
    with inmem.open(url, timeout_s=DEADLINE_S):
        pass
    some = started(workers, COUNT, url, DEADLINE_S)
    for number in range(FAILOVERS):
        cluster.wait_whole()
        progress(workers, COUNT)
        time.sleep(rng.uniform(0, 0.5))
        leader = cluster.leader()
        how = ways[number % len(ways)]
        began = time.monotonic()
        if how == "killed":
            cluster.kill(leader)
        elif how == "frozen":
            cluster.signal(leader, signal.SIGSTOP)
        else:
            cluster.cut(leader)
        wait_until(
            lambda gone=leader: (found := cluster.leader()) and found != gone, "another one leads", 90
        )
        progress(workers, COUNT)
        took.append(time.monotonic() - began)
        done[how] += 1
        if how == "killed":
            cluster.start(leader)
        elif how == "frozen":
            cluster.signal(leader, signal.SIGCONT)  # it thinks that it leads, and is told otherwise
        else:
            cluster.heal(leader)
        print(f"{number + 1}: {leader} was {how}, {took[-1]:.1f} s", flush=True)
    workers.words.stop()
    told = [worker.result(120) for worker in some]
    cluster.wait_whole()  # who was let go knows that it leads no more
    lost, doubled = judged(url, told)
    middle = sorted(took)[len(took) // 2]
    print(f"{done}, all worked again after {middle:.1f} s (median), {max(took):.1f} s at most; "
          f"{summary(told)}; lost {lost}, doubled {doubled}")
    no_error(told)
    assert (lost, doubled) == (0, 0)
