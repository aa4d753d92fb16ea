"""How fast is each operation for one client, beside its peers and the probes? `python -m bench.single`

One process, `buffered` durability, values of 50 bytes, at the facade. Writes
are measured quiet and beside processes that compute without end, one call at a
time; they are checked by reading them back, counts by counting.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from typing import Any

from bench import probes, workloads
from bench.harness import Options, bench, main
from bench.targets import ECHO

SUBJECTS = (
    "inmem", "inmem before", "redis", "redis no log", "sqlite", "stratadb", "stratadb in process",
    "diskcache", "manager",
)  # fmt: skip

GET, PUT, PUT_MANY, PIPELINE = "kv get", "kv put", "kv put_many of 100", "kv pipeline of 100"
APPEND, CAS, TRACE = "event append", "cell cas", "trace record, 2 tags"
STEP, MODIFY = "transaction: kv + event + cell + trace", "transaction: read, modify, write"
WRITES = {
    PUT: workloads.put, PUT_MANY: workloads.put_many, PIPELINE: workloads.pipeline, APPEND: workloads.append,
    CAS: workloads.cas, TRACE: workloads.trace, STEP: workloads.step, MODIFY: workloads.increment,
}  # fmt: skip


def run(options: Options) -> dict[str, Any]:
    """All operations, one client."""
    with bench("single", "one client: how fast is each operation?", options, SUBJECTS) as b, \
            contextlib.ExitStack() as stack:
        b.load()
        get = stack.enter_context(probes.lmdb_get())
        put = stack.enter_context(probes.lmdb_put())
        zmq_echo = stack.enter_context(probes.zmq_echo())
        b.cases(GET, workloads.get)
        for operation, build in WRITES.items():
            b.cases(operation, build, sample=True, situations=options.situations)
        if probes.FUTEX is not None:
            # What waking each other costs here and now, with nothing else in it: every write beside it.
            futex_echo = functools.partial(stack.enter_context(probes.futex_echo()), options.seconds)
            for operation in WRITES:
                for count in options.situations:
                    b.case(operation, ECHO, futex_echo, count)
        b.case(GET, "probe: lmdb get", lambda: get(options.seconds))
        b.case(GET, "probe: msgpack decode", lambda: probes.msgpack_decode(options.seconds))
        b.case(PUT, "probe: zmq echo", lambda: zmq_echo(options.seconds))
        b.case(PUT, "probe: lmdb put", lambda: put(options.seconds))
        b.case(PUT, "probe: msgpack encode", lambda: probes.msgpack_encode(options.seconds))
        b.rounds()
        return b.document()


if __name__ == "__main__":
    sys.exit(main("single", __doc__, run))
