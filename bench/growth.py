"""Does it stay as fast when there is more in it? `python -m bench.growth`

Get and put of random keys in stores of 10^4 to 10^7 keys, each a store of its
own, all of them in every round, beside lookups by LMDB alone in as many keys.
Lists and queries of k results in a small run and in a large one: they should
cost as much as they return. The chain of a long log, verified.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import inmem
from bench import probes, workloads
from bench.harness import Options, bench, main
from bench.measuring import Work
from bench.peers import Client
from bench.peers.ours import CONFIG, Ours

FEWEST, MOST, QUICK_MOST = 4, 7, 5  # powers of ten
_CHUNK = 1000
_PROBE = "probe: lmdb get"
_TAGGED = (10, 100, 1000, 10_000)  # results of a query: the last two are compared
_EPOCH_US = 1_700_000_000_000_000  # of traces: a time that does not depend on now


def build(path: str, longest: int, size: int) -> None:
    """A run of `size` entries and traces; of them, for each k up to `longest`, k that one query finds."""
    with inmem.open(path, config=CONFIG) as db:
        run = db.run(f"run-{size}")
        first = 0
        for k in (k for k in _TAGGED if k <= longest):
            _entries(run, f"of-{k}-", k)
            parent = run.traces.record(inmem.Custom("parent", None), id=f"parent-{k}", timestamp=_EPOCH_US)
            _traces(run, k, first, f"type-{k}", f"tag-{k}", parent)
            first += k
        _entries(run, "other-", max(0, size - run.kv.count()))
        _traces(run, max(0, size - run.traces.count()), first, "other", "other", None)
        if run.kv.count() < size or run.traces.count() < size:
            raise AssertionError("the run is smaller than it should be")


def _entries(run: inmem.RunScope, prefix: str, count: int) -> None:
    for start in range(0, count, _CHUNK):
        numbers = range(start, min(count, start + _CHUNK))
        run.kv.put_many({f"{prefix}{n:08}": workloads.value(n) for n in numbers})


def _traces(run: inmem.RunScope, count: int, first: int, kind: str, tag: str, parent: str | None) -> None:
    body = inmem.Custom(kind, "x" * workloads.VALUE_BYTES)
    for start in range(first, first + count, _CHUNK):
        run.traces.record_many([
            inmem.NewTrace(body, tags=[tag], parent_id=parent, timestamp=_EPOCH_US + 1 + n)
            for n in range(start, min(first + count, start + _CHUNK))
        ])


def queries(run: inmem.RunScope, k: int) -> dict[str, Callable[[], list[Any]]]:
    """What gives k results, by name."""
    first = sum(other for other in _TAGGED if other < k)
    begin = _EPOCH_US + 1 + first
    return {
        "list": lambda: run.kv.list(f"of-{k}-"),
        "query_by_type": lambda: run.traces.query_by_type(f"type-{k}"),
        "query_by_tag": lambda: run.traces.query_by_tag(f"tag-{k}"),
        "query_by_time": lambda: run.traces.query_by_time(begin, begin + k),
        "get_children": lambda: run.traces.get_children(f"parent-{k}"),
    }


QUERIES = ("list", "query_by_type", "query_by_tag", "query_by_time", "get_children")


def query(client: Client, index: int, path: str, size: int, name: str, k: int) -> Work:
    """One query, over and over."""
    # Beside the client's own handle: the process shares what is behind both.
    ask = queries(inmem.open(path, config=CONFIG).run(f"run-{size}"), k)[name]
    return Work(lambda _: ask(), [None], lambda _, found: len(found) == k)


def append_many(path: str, count: int) -> None:
    """A log of `count` events."""
    with inmem.open(path, config=CONFIG) as db:
        for start in range(0, count, _CHUNK):
            numbers = range(start, min(count, start + _CHUNK))
            db.events.append_many("long", [("tick", workloads.value(n)) for n in numbers])


def verify(path: str, count: int) -> float:
    """Events verified a second."""
    with inmem.open(path, config=CONFIG) as db:
        began = time.perf_counter()
        found = db.events.verify_chain("long")
        elapsed = time.perf_counter() - began
    if not found.is_valid or found.length != count:
        raise AssertionError(f"{found}")
    return count / elapsed


def run(options: Options) -> dict[str, Any]:
    """Stores of every size, queries in runs of two sizes, and a long log."""
    most = options.largest or options.size(MOST, QUICK_MOST)
    powers = range(FEWEST, most + 1)
    small, large = options.size(20_000, 2_000), options.size(500_000, 10_000)
    longest = options.size(10_000, 1000)
    events = options.size(200_000, 20_000)
    with bench("growth", "does it stay as fast when there is more in it?", options, ("inmem",)) as b, \
            ExitStack() as probing:
        stores = []
        try:
            for power in powers:
                store = Ours("buffered")
                stores.append(store)
                place = b.scratch / f"keys-{power}"
                place.mkdir()
                connector = store.start(place)
                b.processes.with_client(0, connector, workloads.load, 10**power)
                assert store.database is not None
                b.note(f"10^{power} keys: image of {store.database.status().image_bytes / 2**20:,.0f} MiB")
                for name, work in (("kv get", workloads.get), ("kv put", workloads.put)):
                    b.case(f"{name}, 10^{power} keys", b.ours, functools.partial(
                        b.processes.measure, connector, work, 10**power, seconds=options.seconds,
                        sample=name == "kv put", servers=store.pids,
                    ))  # fmt: skip
                lmdb_get = probing.enter_context(probes.lmdb_get(10**power))
                b.case(f"kv get, 10^{power} keys", _PROBE, functools.partial(lmdb_get, options.seconds))
            ours = b.subjects[b.ours].peer
            assert isinstance(ours, Ours)
            path = str(ours.path)
            for size in (small, large):
                b.processes.call(0, build, path, longest, size)
                for name in QUERIES:
                    for k in (longest // 10, longest):
                        b.cases(f"{name} of {k:,}, run of {size:,}", query, path, size, name, k)
            b.processes.call(0, append_many, path, events)
            b.case("verify_chain", b.ours, lambda: b.processes.call(0, verify, path, events))
            b.rounds()
            for power in powers[1:]:
                name = "most keys" if power == most else f"10^{power}"
                for operation in ("kv get", "kv put"):
                    of = f"{operation}, 10^{power} keys", f"{operation}, 10^{FEWEST} keys"
                    b.compare(f"{operation}: {name} / fewest", *of)
                    if operation == "kv get":
                        b.compare(f"{_PROBE}: {name} / fewest", *of, _PROBE)
            for name in QUERIES:
                few, many = (f"{name} of {k:,}, run of {large:,}" for k in (longest // 10, longest))
                b.compare(f"{name}: large run / small", f"{name} of {longest:,}, run of {small:,}", many)
                pairs = [(a, c) for a, c in zip(b.found(few), b.found(many), strict=True) if a and c]
                b.figure(f"{name}: an item of 10 k / of k", *(a.rate / c.rate / 10 for a, c in pairs))
            b.figure("verify_chain: events per second", *(v for v in b.found("verify_chain") if v))
            return b.document()
        finally:
            b.processes.close()  # which holds clients of the stores
            for store in stores:
                store.stop()


if __name__ == "__main__":
    sys.exit(main("growth", __doc__, run))
