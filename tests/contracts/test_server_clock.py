"""Clients whose clocks are hours apart agree on what has expired, who has a lease, and which job is due."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from typing import Any

import pytest
from homes import PostgresHome
from postgres_server import PostgresServer

import inmem

RUN = "run"
HOURS = (-7, 0, 5)
TTL_S = 3.0


@pytest.fixture
def there(postgres_server: PostgresServer) -> Iterator[PostgresHome]:
    home = PostgresHome(postgres_server)
    yield home
    home.close()


def shift(hours: float) -> None:
    """Set this process's clocks; the monotonic one as of a machine that was started at another time."""
    for name, by in (("time", hours), ("monotonic", abs(3 * hours))):
        real, real_ns = getattr(time, name), getattr(time, f"{name}_ns")
        setattr(time, name, lambda real=real, by=by: real() + by * 3600)
        setattr(time, f"{name}_ns", lambda real=real_ns, by=by: real() + round(by * 3600e9))


def client(url: str, hours: float, calls: Any) -> None:
    shift(hours)
    with inmem.open(url) as db:
        while (call := calls.recv()) is not None:
            name, kind, arguments, options = call
            try:
                calls.send(getattr(getattr(db, kind), name)(*arguments, **options))
            except inmem.InmemError as error:
                calls.send(error)


class Client:
    """A process with a clock of its own."""

    def __init__(self, url: str, hours: float) -> None:
        self._ours, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        self._process = context.Process(target=client, args=(url, hours, theirs), daemon=True)
        self._process.start()

    def __call__(self, kind: str, name: str, *arguments: Any, **options: Any) -> Any:
        self._ours.send((name, kind, arguments, options))
        return self._ours.recv()

    def end(self) -> None:
        self._ours.send(None)
        self._process.join(10)
        assert self._process.exitcode == 0


def test_clients_hours_apart(there: PostgresHome) -> None:
    there.open().close()
    clients = [Client(there.url, hours) for hours in HOURS]
    for number, one in enumerate(clients):
        one("kv", "put", RUN, f"k{number}", number, ttl=TTL_S)
        began = time.monotonic()
        for other in clients:
            left = other("kv", "ttl", RUN, f"k{number}")
            if time.monotonic() - began < TTL_S / 2:
                assert TTL_S / 4 < left <= TTL_S + 0.5  # its clock is known late, by an answer
                assert other("kv", "get", RUN, f"k{number}") == number
        time.sleep(max(0.0, began + TTL_S + 0.3 - time.monotonic()))
        assert [other("kv", "get", RUN, f"k{number}") for other in clients] == [None] * 3
    for number, one in enumerate(clients):
        lease = one("leases", "acquire", RUN, f"l{number}", ttl_s=TTL_S, holder=str(number))
        began = time.monotonic()
        for other in clients:
            if other is not one:
                refused = other("leases", "acquire", RUN, f"l{number}", ttl_s=TTL_S)
                if time.monotonic() - began < TTL_S / 2:
                    assert isinstance(refused, inmem.LeaseHeldError) and refused.holder == str(number)
        next_one = clients[(number + 1) % 3]
        taken = next_one("leases", "acquire", RUN, f"l{number}", ttl_s=TTL_S, wait_s=3 * TTL_S)
        assert isinstance(taken, inmem.Lease) and taken.token > lease.token
        assert time.monotonic() - began > TTL_S - 0.3
        assert abs(taken.acquired_at / 1e6 - time.time()) < TTL_S, "it is the server's time"
    for one in clients:
        one.end()


def test_jobs_of_clients_hours_apart(there: PostgresHome) -> None:
    there.open().close()
    clients = [Client(there.url, hours) for hours in HOURS]
    began_us = time.time_ns() // 1000
    for number, one in enumerate(clients):
        queue, others = f"q{number}", [other for other in clients if other is not one]
        began = time.monotonic()
        job_id = one("queues", "put", RUN, queue, number, delay_s=TTL_S)
        early = [other("queues", "claim", RUN, queue, lease_s=TTL_S) for other in others]
        if time.monotonic() - began < TTL_S:
            assert early == [None, None]
        job = others[0]("queues", "claim", RUN, queue, lease_s=TTL_S, wait_s=3 * TTL_S)
        assert job.id == job_id
        assert time.monotonic() - began > TTL_S - 0.3, "it is due by the server's time"
        claimed = time.monotonic()
        assert abs(job.claimed_until / 1e6 - time.time() - TTL_S) < TTL_S
        second = others[1]("queues", "claim", RUN, queue, lease_s=TTL_S)
        if time.monotonic() - claimed < TTL_S:
            assert second is None
        again = one("queues", "claim", RUN, queue, lease_s=600.0, wait_s=3 * TTL_S)
        assert (again.id, again.attempt) == (job_id, 2)
        assert time.monotonic() - claimed > TTL_S - 0.3, "the claim runs out by the server's time"
        assert isinstance(others[0]("queues", "ack", job), inmem.JobLostError)
        one("queues", "ack", again)
    for one in clients * 3:
        one("events", "append", RUN, "e")
    ids = [one("runs", "create_run").run_id for one in clients]
    events = clients[0]("events", "read_range", RUN, 0)
    times = [event.timestamp for event in events]
    times += [clients[0]("runs", "get_run", run_id).created_at for run_id in ids]
    now_us = time.time_ns() // 1000
    assert times == sorted(times) and len(times) == 12
    assert began_us - 1e6 < times[0] and times[-1] < now_us + 1e6
    assert clients[0]("events", "verify_chain", RUN).is_valid
    for one in clients:
        one.end()
