"""What does each layer add? `python -m bench.tax`

Reads: LMDB itself, then the image, then a snapshot, then the facade. Writes: a
round trip of an echo, then a session's commit of ready bytes, then the facade.
Microseconds a call, and of each layer what it adds. The one benchmark that
looks inside: layers are what it is about.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from bench import probes, workloads
from bench.harness import Options, bench, main
from bench.measuring import Work
from bench.peers import Client
from inmem.keys import TypeTag, encode_name
from inmem.values import decode, encode
from inmem.writeset import OP_PUT, WriteSet

IMAGE, IMAGE_DECODED = "get: image", "get: image, decoded"
SNAPSHOT, GET = "get: in a snapshot", "get: facade"
COMMIT, PUT = "put: session.commit", "put: facade"
LMDB, ECHO = "get: lmdb, decoded", "put: zmq echo"


def _stored(client: Client, name: str) -> bytes:
    prefix: bytes = client._run.prefix  # type: ignore[attr-defined]
    return prefix + b"\0" + bytes([TypeTag.KV]) + encode_name(name)


def _reads(client: Client, read: Callable[[Any], Any], raw: bool) -> Work:
    """A read of a loaded entry; `raw` ones take the stored key."""
    numbers = range(0, workloads.KEYS, 7)
    names = [workloads.key(n) for n in numbers]
    items: list[Any] = [_stored(client, name) for name in names] if raw else names
    expected = {item: workloads.value(n) for item, n in zip(items, numbers, strict=True)}

    def verify(item: Any, found: Any) -> bool:
        return expected[item] in (found if isinstance(found, str) else found.decode(errors="replace"))

    return Work(read, items, verify)


def image(client: Client, index: int) -> Work:
    """A record from the image: what a snapshot costs is in it."""
    return _reads(client, client._db.engine.attachment.image.get, True)  # type: ignore[attr-defined]


def image_decoded(client: Client, index: int) -> Work:
    """The same, with the value unpacked."""
    from inmem.record import payload_of

    get = client._db.engine.attachment.image.get  # type: ignore[attr-defined]
    return _reads(client, lambda key: decode(payload_of(get(key))), True)


def snapshot(client: Client, index: int) -> Work:
    """A get in a snapshot that stays open."""
    view = client._run.snapshot()  # type: ignore[attr-defined]
    return _reads(client, view.kv.get, False)


def commit(client: Client, index: int) -> Work:
    """A commit of bytes that are ready: the round trip and the writer's work."""
    session = client._db.engine.attachment.session()  # type: ignore[attr-defined]
    stored = _stored(client, "own")
    bodies = [WriteSet(ops=[[OP_PUT, stored, encode(workloads.value(n)), 0]]).encode() for n in range(64)]

    def check(done: int) -> None:
        if client.get("own") != workloads.value((done - 1) % len(bodies)):
            raise AssertionError("the last commit is not there")

    return Work(lambda body: session.commit(body, sync=False, timeout_s=60.0), bodies, None, check)


def run(options: Options) -> dict[str, Any]:
    """Every layer in every round."""
    with bench("tax", "what does each layer add?", options, ("inmem",)) as b, \
            probes.lmdb_get() as lmdb_get, probes.zmq_echo() as echo:
        b.load()
        b.case(LMDB, "inmem", lambda: lmdb_get(options.seconds))
        b.case(ECHO, "inmem", lambda: echo(options.seconds))
        for name, build in {
            IMAGE: image, IMAGE_DECODED: image_decoded, SNAPSHOT: snapshot, GET: workloads.get,
            COMMIT: commit, PUT: workloads.put,
        }.items():
            b.cases(name, build)
        b.rounds()
        cost = {
            name: [1e6 / getattr(found, "rate", found) for found in b.found(name)]
            for name in (LMDB, IMAGE, IMAGE_DECODED, SNAPSHOT, GET, ECHO, COMMIT, PUT)
        }
        for name, values in cost.items():
            b.figure(f"us of {name}", *values)
        for outer, inner in ((IMAGE_DECODED, LMDB), (GET, IMAGE_DECODED), (GET, SNAPSHOT), (COMMIT, ECHO),
                             (PUT, COMMIT)):
            b.figure(f"us of {outer}, less {inner}", *(
                a - c for a, c in zip(cost[outer], cost[inner], strict=True)
            ))
        return b.document()


if __name__ == "__main__":
    sys.exit(main("tax", __doc__, run))
