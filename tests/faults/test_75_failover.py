"""The primary is killed and its standby promoted: a synchronous one has all that was acknowledged."""

from __future__ import annotations

import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest
from postgres_server import PostgresServer, binaries
from postgres_shared import MISSING
from server_workers import judged, no_error, progress, started, summary
from support import Workers, wait_until
from wire_proxy import STALL, TO_CLIENT, WireProxy

import inmem

FAILOVERS = int(os.environ.get("INMEM_TEST_FAILOVERS", "2"))
SEED = int(os.environ.get("INMEM_TEST_SEED", "20260701"))
COUNT = int(os.environ.get("INMEM_TEST_WORKERS", "8"))
DEADLINE_S = 60.0
FAST = ("-c", "wal_retrieve_retry_interval=100ms")


class Pair:
    """A primary and a standby, which change places."""

    def __init__(self) -> None:
        self.primary = PostgresServer(*FAST, shared=False)
        self.standby = PostgresServer(*FAST, copied_from=self.primary, shared=False)
        self.nodes = [self.primary, self.standby]
        self.promoted_s: list[float] = []

    def url(self, schema: str) -> str:
        hosts = ",".join(f"{quote(str(node.place), safe='')}:5432" for node in self.nodes)
        return f"postgresql://inmem@{hosts}/postgres?target_session_attrs=read-write&schema={schema}"

    def follow(self, host: Path | None = None) -> None:
        """Start the standby, which takes what there is from the primary, or from there."""
        place = self.standby.data
        (place / "standby.signal").touch()
        shutil.chown(place / "standby.signal", place.stat().st_uid, place.stat().st_gid)
        with open(place / "postgresql.auto.conf", "a") as settings:
            settings.write(f"primary_conninfo = 'host={host or self.primary.place} port=5432 user=inmem'\n")
            settings.write("synchronous_standby_names = ''\n")
        self.standby.start()
        wait_until(lambda: self._states(), "the standby streams", 60)

    def _states(self) -> list[str]:
        return [state for state, in self.ask("select sync_state from pg_stat_replication")]

    def ask(self, query: str) -> list[tuple[str, ...]]:
        with psycopg.connect(self.primary.conninfo, autocommit=True) as connection:
            cursor = connection.execute(query)  # type: ignore[call-overload]
            return cursor.fetchall() if cursor.description else []

    def wait_for_standby(self) -> None:
        """From now on a commit is answered when the standby has it."""
        self.ask("alter system set synchronous_standby_names = '*'")
        self.ask("select pg_reload_conf()")
        wait_until(lambda: "sync" in self._states(), "the standby is synchronous", 60)

    def fail_over(self) -> None:
        """Kill the primary, promote the standby; they have changed places."""
        self.primary.signal(signal.SIGKILL)
        began = time.monotonic()
        self.standby.run("pg_ctl", "-D", str(self.standby.data), "promote", "-w")
        self.promoted_s.append(time.monotonic() - began)
        self.primary, self.standby = self.standby, self.primary

    def renew(self) -> None:
        """The one that was killed begins anew as a copy."""
        for stale in (self.standby.place / ".s.PGSQL.5432.lock", self.standby.place / ".s.PGSQL.5432"):
            stale.unlink(missing_ok=True)
        shutil.rmtree(self.standby.data)
        self.standby.run(
            "pg_basebackup", "-d", self.primary.conninfo, "-D", str(self.standby.data), "-c", "fast", "-N"
        )
        self.follow()

    def remove(self) -> None:
        for node in self.nodes:
            node.remove()


@pytest.fixture
def pair() -> Iterator[Pair]:
    if binaries() is None:
        pytest.skip(MISSING)
    pair = Pair()
    yield pair
    pair.remove()


@pytest.mark.timeout(180 + 20 * FAILOVERS)
def test_a_synchronous_standby_has_every_commit_once(pair: Pair, workers: Workers) -> None:
    pair.follow()
    rng = random.Random(SEED)
    url = pair.url("store")
    with inmem.open(url, timeout_s=DEADLINE_S):
        pass
    some = started(workers, COUNT, url, DEADLINE_S)
    for _ in range(FAILOVERS):
        pair.wait_for_standby()
        progress(workers, COUNT)
        time.sleep(rng.uniform(0, 0.3))
        pair.fail_over()
        progress(workers, COUNT)
        pair.renew()
    workers.words.stop()
    told = [worker.result() for worker in some]
    lost, doubled = judged(url, told)
    done = summary(told)
    middle = sorted(pair.promoted_s)[len(pair.promoted_s) // 2]
    print(f"{FAILOVERS} failovers, promoted in {middle:.2f} s, {done}; lost {lost}, doubled {doubled}")
    no_error(told)
    assert (lost, doubled) == (0, 0)


@pytest.mark.timeout(180)
def test_without_one_the_same_test_sees_losses(pair: Pair, workers: Workers) -> None:
    """The control: the standby is asynchronous, and what it is sent stalls."""
    proxy = WireProxy(pair.primary.place)
    try:
        shutil.chown(proxy.place, *[pair.standby.data.stat().st_uid] * 2)
        for each in [proxy.place, *proxy.place.iterdir()]:
            each.chmod(0o777)
        pair.follow(proxy.place)
        url = pair.url("store")
        with inmem.open(url, timeout_s=DEADLINE_S):
            pass
        some = started(workers, COUNT, url, DEADLINE_S, is_kept=False)
        progress(workers, COUNT)
        proxy.arm(TO_CLIENT, 1, STALL, refuse=True)
        progress(workers, COUNT, 3)
        workers.words.stop()
        told = [worker.result() for worker in some]
        pair.primary.signal(signal.SIGKILL)
        proxy.cut_all()
        proxy.close()
        pair.standby.run("pg_ctl", "-D", str(pair.standby.data), "promote", "-w")
        lost, _ = judged(url, told)  # a job whose ack is lost is there once more
    finally:
        proxy.release()
    print(f"asynchronous and stalled: {summary(told)}; lost {lost}")
    assert lost > COUNT


def test_a_commit_that_no_standby_has_is_in_doubt(pair: Pair) -> None:
    """Somebody cancels the wait for the standby: the server answers that all is well, with a warning."""
    pair.follow()
    with inmem.open(pair.url("store"), timeout_s=2.0) as db:
        db.kv.put("r", "a", 1)
        pair.wait_for_standby()
        db.kv.put("r", "a", 2)
        pair.standby.signal(signal.SIGKILL)
        with psycopg.connect(pair.primary.conninfo, autocommit=True) as other:
            def cancel() -> None:
                for _ in range(60):
                    time.sleep(0.05)
                    other.execute("select pg_cancel_backend(pid) from pg_stat_activity"
                                  " where wait_event = 'SyncRep'")

            thread = threading.Thread(target=cancel)
            thread.start()
            with pytest.raises(inmem.CommitUnknownError) as caught:
                db.kv.put("r", "a", 3)
            thread.join()
        pair.ask("alter system set synchronous_standby_names = ''")
        pair.ask("select pg_reload_conf()")
        version = caught.value.resend(20.0)
        entry = db.kv.get_versioned("r", "a")
        assert entry is not None
        assert (entry.value, entry.version) == (3, version)
