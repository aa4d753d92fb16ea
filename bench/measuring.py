"""Processes that stay for a whole benchmark and measure what they are told, together.

Starting an interpreter takes longer than a measurement, so each process opens
a client of every store once and keeps it. A measurement has five steps, and
all processes have finished one before any begins the next: prepare, warm up,
run from one common moment, check, and compare what the store counts with what
the processes did. A failing operation can therefore not look fast.

Linux may share processors out by sessions first (autogroup), and a store's
server often has one of its own. So that this favours nobody, every process
that takes part has: those that measure, servers, and what is busy beside them.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import multiprocessing
import multiprocessing.reduction
import os
import signal
import time
import traceback
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.peers import Client, Connector, Unsupported

_WARM_S = 0.05  # at most, and half of what is measured
_WARM_LEAST = 20  # operations
_FAST_US = 10.0  # operations that cost less processor time are timed in batches: a look at the clock counts
_BATCH = 64
_LEAD_S = 0.03  # until a common start, for the message to reach everyone
_LEAD_EACH_S = 0.003
_NEAR_NS = 1_000_000  # before the start: then the clocks of servers are read
_PATIENCE_S = 300.0
_CLOCK = time.perf_counter_ns  # of the whole machine: the same in all processes
_CPU_CLOCK_OF_PROCESS = 2  # CPUCLOCK_SCHED of the kernel's linux/posix-timers.h: all threads, in nanoseconds


class BenchError(Exception):
    """A measurement that is worth nothing: an operation failed, or the store does not hold what it should."""


@dataclass
class Work:
    """An operation, ready to be repeated on its items over and over.

    `verify` looks at the result of an operation while it is being measured,
    once in each batch; `check(n)` looks at the store after `n` operations;
    `total` is a count in the store that all processes together advance by one
    for each operation. `weight` is how many single operations one counts for.
    """

    operation: Callable[[Any], Any]
    items: Sequence[Any]
    verify: Callable[[Any, Any], bool] | None = None
    check: Callable[[int], None] | None = None
    total: Callable[[], int] | None = None
    weight: int = 1


Build = Callable[..., Work]  # (client, index of the process, *arguments)


@dataclass(frozen=True)
class Job:
    """What one process is to do: `build(client, index, *arguments)` on a client of its own."""

    connector: Connector
    build: Build
    arguments: tuple[Any, ...] = ()


@dataclass
class Done:
    """What one process did. Latencies in nanoseconds, of each operation or none.

    `cpu_ns` is the processor time of all its threads meanwhile, `operations` the number of single ones.
    """

    rate: float
    count: int
    samples: array[int] = field(default_factory=lambda: array("q"))
    cpu_ns: int = 0
    operations: int = 0


@dataclass
class Measurement:
    """What processes did together: operations a second in sum and each, latencies in µs.

    `cpu_us` is the processor time of one operation, of all processes that take
    part: those that measure and those of the store. None where it cannot be told.
    """

    rate: float
    each: list[float]
    latency_us: dict[str, float] | None
    cpu_us: float | None = None

    @property
    def fairness(self) -> float:
        """The slowest process, as a part of the mean."""
        return min(self.each) / (sum(self.each) / len(self.each)) if any(self.each) else 0.0


def combine(parts: Sequence[Done], servers_ns: int | None = None) -> Measurement:
    """The sum of what processes did at the same time; servers took `servers_ns` of processor time for it."""
    samples = array("q")
    for part in parts:
        samples.extend(part.samples)
    each = [part.rate for part in parts]
    operations = sum(part.operations for part in parts)
    cpu_us = None
    if servers_ns is not None and operations:
        cpu_us = (sum(part.cpu_ns for part in parts) + servers_ns) / operations / 1000
    return Measurement(sum(each), each, percentiles(samples), cpu_us)


def cpu_ns(pid: int) -> int:
    """The processor time that all threads of a process have taken, in nanoseconds.

    The number of the clock is what clock_getcpuclockid(3) computes.

    Raises:
        OSError: there is no such process.
    """
    return time.clock_gettime_ns((~pid << 3) | _CPU_CLOCK_OF_PROCESS)


def percentiles(samples_ns: Sequence[int]) -> dict[str, float] | None:
    """p50, p95, p99 and the largest, in µs; None without samples."""
    if not samples_ns:
        return None
    ordered = sorted(samples_ns)
    last = len(ordered) - 1
    found = {f"p{p}": ordered[min(last, len(ordered) * p // 100)] / 1000 for p in (50, 95, 99)}
    return found | {"max": ordered[-1] / 1000}


# --- in the processes -----------------------------------------------------------------------------


class _Worker:
    """The state of one measuring process."""

    def __init__(self, index: int) -> None:
        self._index = index
        self._clients: dict[bytes, Client] = {}
        self._work: Work | None = None
        self._stream: Iterator[Any] = iter(())
        self._count = 0
        self._batch = 1

    def _client(self, connector: Connector) -> Client:
        key = bytes(multiprocessing.reduction.ForkingPickler.dumps(connector))
        if key not in self._clients:
            self._clients[key] = connector()
        return self._clients[key]

    def prepare(self, job: Job, sample: bool) -> int | None:
        """Open, build, and tell what the store counts now."""
        self._work = None
        work = job.build(self._client(job.connector), self._index, *job.arguments)
        self._work, self._stream, self._count = work, itertools.cycle(work.items), 0
        self._sample = sample
        return self.total()

    def warm(self, seconds: float) -> None:
        """Run for a moment, less than the measurement, and find out how often to look at the clock."""
        work, began = self._work, time.monotonic()
        assert work is not None
        warm_s = min(_WARM_S, seconds / 2)
        cpu = time.thread_time_ns()
        while self._count < _WARM_LEAST or time.monotonic() - began < warm_s:
            item = next(self._stream)
            result = work.operation(item)
            self._count += 1
            self._verify(item, result)
        cost_us = (time.thread_time_ns() - cpu) / self._count / 1000
        self._batch = _BATCH if cost_us < _FAST_US and not self._sample else 1
        gc.collect()  # now, so that none is due while it is being measured
        gc.freeze()  # what has stayed need not be looked at before the next one

    def _verify(self, item: Any, result: Any) -> None:
        work = self._work
        assert work is not None
        if work.verify is not None and not work.verify(item, result):
            raise BenchError(f"a wrong result for {item!r:.100}: {result!r:.200}")

    def run(self, begin_ns: int, seconds: float) -> Done:
        """Repeat the operation from a moment on, at least once, without the garbage collector.

        Who comes late for want of a processor has been late: the rate counts from that moment.
        """
        gc.disable()
        try:
            return self._timed(begin_ns, seconds)
        finally:
            gc.enable()

    def _timed(self, begin_ns: int, seconds: float) -> Done:
        work = self._work
        assert work is not None
        operation, stream, batch, verify = work.operation, self._stream, self._batch, self._verify
        clock, islice = _CLOCK, itertools.islice
        samples = array("q")
        end_ns = begin_ns + int(seconds * 1e9)
        count, item, result = 0, None, None
        time.sleep(max(0, begin_ns - clock()) / 1e9)
        cpu = time.process_time_ns()
        now = begin_ns
        while now < end_ns:
            if batch == 1:
                item = next(stream)
                before = clock()
                result = operation(item)
                samples.append(clock() - before)
            else:
                for item in islice(stream, batch):
                    result = operation(item)
            now = clock()
            count += batch
            verify(item, result)
        cpu = time.process_time_ns() - cpu
        self._count += count
        operations = count * work.weight
        return Done(operations * 1e9 / (now - begin_ns), count, samples, cpu, operations)

    def check(self) -> int:
        """Compare the store with what was done; how many operations that were, warm-up included."""
        work = self._work
        assert work is not None
        if work.check is not None:
            work.check(self._count)
        return self._count

    def total(self) -> int | None:
        """What the store counts, in the process that is asked."""
        assert self._work is not None
        return self._work.total() if self._work.total is not None and self._index == 0 else None

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Anything else, in this process."""
        return function(*arguments)

    def with_client(self, connector: Connector, function: Callable[..., Any], *arguments: Any) -> Any:
        """Anything else, with this process's client of a store."""
        return function(self._client(connector), *arguments)

    def close(self) -> None:
        """Give all clients back."""
        for client in self._clients.values():
            client.close()
        self._clients.clear()


def _serve(connection: Any, index: int, begin: Callable[[], None]) -> None:
    os.setsid()
    begin()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the starter ends us
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    worker = _Worker(index)
    connection.send(("done", None))
    while True:
        try:
            name, arguments = connection.recv()
        except (EOFError, OSError):  # the starter has closed its end, or died
            worker.close()
            return
        try:
            reply = "done", getattr(worker, name)(*arguments)
        except Unsupported as error:
            reply = "unsupported", str(error)
        except Exception:
            reply = "failed", traceback.format_exc()
        connection.send(reply)


# --- in the starter -------------------------------------------------------------------------------


def _cpu_ns_of(servers: Sequence[int]) -> int:
    try:
        return sum(map(cpu_ns, servers))
    except OSError:
        raise BenchError(f"of the store's processes {servers} one has ended") from None


def _nothing() -> None:
    pass


class MeasuringProcesses:
    """The processes, started when they are first needed; `begin` is what each calls first."""

    def __init__(self, begin: Callable[[], None] = _nothing) -> None:
        self._begin = begin
        self._context = multiprocessing.get_context("spawn")
        self._workers: list[tuple[Any, Any]] = []

    def need(self, count: int) -> None:
        """See to it that there are so many processes."""
        fresh = range(len(self._workers), count)
        for index in fresh:
            ours, theirs = self._context.Pipe()
            process = self._context.Process(target=_serve, args=(theirs, index, self._begin), daemon=True)
            process.start()
            theirs.close()
            self._workers.append((process, ours))
        for index in fresh:
            self.collect(index)

    def begin(self, index: int, name: str, *arguments: Any) -> None:
        """Have a process do something; `collect` waits for it."""
        self._workers[index][1].send((name, arguments))

    def collect(self, index: int, patience_s: float = _PATIENCE_S) -> Any:
        """The result of what a process was told to do.

        Raises:
            Unsupported: the store has no such operation.
            BenchError: it failed, with its traceback, or did not end in time.
        """
        process, connection = self._workers[index]
        try:
            if not connection.poll(patience_s):
                process.kill()  # a late answer must not be taken for that to the next question
                process.join()
                raise BenchError(f"process {index} has not answered within {patience_s} s")
            kind, value = connection.recv()
        except (EOFError, OSError):
            process.join(1)
            raise BenchError(f"process {index} ended with {process.exitcode}") from None
        if kind == "unsupported":
            raise Unsupported(value)
        if kind == "failed":
            raise BenchError(value)
        return value

    def all(self, count: int, name: str, each: Callable[[int], tuple[Any, ...]] = lambda _: ()) -> list[Any]:
        """Have the first `count` processes do something, and wait for all; the first error is raised."""
        for index in range(count):
            self.begin(index, name, *each(index))
        return self.collect_all(count)

    def collect_all(self, count: int) -> list[Any]:
        """The results of the first `count` processes; the first error is raised when all have answered."""
        results, first = [], None
        for index in range(count):
            try:
                results.append(self.collect(index))
            except (BenchError, Unsupported) as error:
                first = first or error
        if first is not None:
            raise first
        return results

    def call(self, index: int, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run a function in a process."""
        self.need(index + 1)
        self.begin(index, "call", function, *arguments)
        return self.collect(index)

    def with_client(
        self, index: int, connector: Connector, function: Callable[..., Any], *arguments: Any
    ) -> Any:
        """Run `function(client, *arguments)` in a process."""
        self.need(index + 1)
        self.begin(index, "with_client", connector, function, *arguments)
        return self.collect(index)

    def run(
        self, jobs: Sequence[Job], seconds: float, *, sample: bool = False, servers: Sequence[int] = ()
    ) -> tuple[list[Done], int]:
        """Do the jobs at the same time, one in each process. With `sample` every operation is timed.

        Also tells the processor time, in nanoseconds, that the processes `servers` took meanwhile.

        Raises:
            Unsupported, BenchError: see `collect`; also if the store does not count what was done.
        """
        count = len(jobs)
        self.need(count)
        try:
            before = self.all(count, "prepare", lambda i: (jobs[i], sample))[0]
            self.all(count, "warm", lambda _: (seconds,))
            begin_ns = _CLOCK() + int((_LEAD_S + _LEAD_EACH_S * count) * 1e9)
            at_rest = _cpu_ns_of(servers)
            for index in range(count):
                self.begin(index, "run", begin_ns, seconds)
            time.sleep(max(0, begin_ns - _NEAR_NS - _CLOCK()) / 1e9)
            try:
                at_start = _cpu_ns_of(servers)
                # Who comes late for want of a processor would miss a part. They rest until the start anyway.
                spent = -(at_start if begin_ns > _CLOCK() else at_rest)
            finally:  # also when that fails: an answer left here would be taken for that to another question
                done: list[Done] = self.collect_all(count)
            spent += _cpu_ns_of(servers)
            counted = self.all(count, "check")
            if before is not None:
                # The first process's operation is what is counted; others may have another one.
                same = [i for i in range(count) if jobs[i].build is jobs[0].build]
                after = self.all(1, "total")[0]
                expected = sum(counted[i] for i in same)
                if after - before != expected:
                    raise BenchError(f"{expected} operations were done, the store counts {after - before}")
        except BenchError:
            if not all(process.is_alive() for process, _ in self._workers):
                self.close()
            raise
        return done, spent

    def measure(
        self, connector: Connector, build: Build, *arguments: Any, processes: int = 1, seconds: float,
        sample: bool = False, servers: Callable[[], Sequence[int]] = tuple,
    ) -> Measurement:
        """Have some processes do the same thing at the same time. `servers` tells those of the store."""
        job = Job(connector, build, arguments)
        return combine(*self.run([job] * processes, seconds, sample=sample, servers=servers()))

    def close(self) -> None:
        """Let the processes close their clients and end; those that do not are killed."""
        workers, self._workers = self._workers, []
        for _, connection in workers:
            with contextlib.suppress(OSError):
                connection.close()
        for process, _ in workers:
            process.join(20)
            if process.is_alive():
                process.kill()
                process.join()
