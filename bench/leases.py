"""What does a lease cost, and how soon is it handed on? `python -m bench.leases`

A lease that nobody else wants, acquired and released, beside Redis: `SET NX PX`
and a release by a script that compares who holds it. A transaction under a
lease beside one without. And eight processes that want one lease, each of
which waits for it; beside Redis with redis-py's `Lock`, which looks again
after a pause.
"""

from __future__ import annotations

import itertools
import sys
from typing import Any, Final

from bench import workloads
from bench.harness import Options, bench, main
from bench.measuring import Work
from bench.peers import Client, Unsupported
from bench.peers.redis import RedisClient
from bench.processes import label

TTL_S: Final = 30.0
PROCESSES: Final = 8
FREE: Final = "lease, acquired and released"
PLAIN, UNDER = "transaction: read, modify, write", "the same under a lease"
WANTED: Final = label("one lease, waited for", PROCESSES)
_RELEASE: Final = (
    'if redis.call("get", KEYS[1]) == ARGV[1] then return redis.call("del", KEYS[1]) end return 0'
)
_PAUSE_S: Final = 0.001  # of a Lock of redis-py: its default is 0.1


def _free(client: Client, index: int) -> Work:
    """A lease of this process alone."""
    name = f"lease-{index}"
    if isinstance(client, RedisClient):
        db = client.db
        release, tokens = db.register_script(_RELEASE), itertools.count()

        def use(_: Any) -> Any:
            token = f"{index}-{next(tokens)}"
            assert db.set(name, token, nx=True, px=round(1000 * TTL_S))
            return release(keys=[name], args=[token])

        return Work(use, [None], lambda _, released: bool(released))
    leases = _run_of(client).leases
    return Work(
        lambda _: leases.release(leases.acquire(name, ttl_s=TTL_S)), [None], lambda _, released: released
    )


def _wanted(client: Client, index: int) -> Work:
    """One lease of all processes."""
    if isinstance(client, RedisClient):
        db = client.db

        def use(_: Any) -> Any:
            with db.lock("wanted", timeout=TTL_S, sleep=_PAUSE_S):
                return True

        return Work(use, [None])
    leases = _run_of(client).leases
    return Work(lambda _: leases.release(leases.acquire("wanted", ttl_s=TTL_S, wait_s=None)), [None])


def _modify(client: Client, index: int, is_under: bool) -> Work:
    run = _run_of(client)
    key = f"n-{index}"
    lease = run.leases.acquire(f"of-{index}-{is_under}", ttl_s=0.001, wait_s=1.0) if is_under else None

    def add(txn: Any) -> None:
        txn.kv.put(key, txn.kv.get(key, 0) + 1)

    return Work(lambda _: run.transact(add, lease=lease), [None])


def _run_of(client: Client) -> Any:
    run = getattr(client, "_run", None)
    if run is None:
        raise Unsupported("no leases")
    return run


def run(options: Options) -> dict[str, Any]:
    """Leases that are free, and one that all want."""
    with bench("leases", "what does a lease cost?", options, ("inmem", "redis")) as b:
        b.cases("kv put", workloads.put, sample=True, situations=options.situations)
        b.cases(FREE, _free, sample=True, situations=options.situations)
        b.cases(PLAIN, _modify, False, subjects=["inmem"])
        b.cases(UNDER, _modify, True, subjects=["inmem"])
        b.cases(WANTED, _wanted, processes=PROCESSES, sample=True, situations=options.situations)
        b.rounds()
        b.compare("a transaction under a lease / without", UNDER, PLAIN)
        return b.document()


if __name__ == "__main__":
    sys.exit(main("leases", __doc__, run))
