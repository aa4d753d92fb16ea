"""Leases as bytes and as lines: what is written, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

import pytest
from procedures import RUN, Stored
from support import stop_writer
from typer.testing import CliRunner

import inmem
from inmem.cli.app import app
from inmem.keys import MAX_KEY_BYTES, MAX_NAME_BYTES, Namespace
from inmem.primitives import holding
from inmem.primitives.leases import procedures, rules
from inmem.primitives.leases.records import LEASE, LEASE_WAITER
from inmem.primitives.leases.rules import LeaseRecord, Waiter
from inmem.primitives.line_fields import LineFields

RECORD = LeaseRecord(7, 1_000, 2_000, 500, 9, b"host, process 1")
WAITER = Waiter(3_000, 500, 9, b"me")
PREFIX = b"t/a/g/run"


def test_the_bytes_are_these() -> None:
    """They are on disks: a change needs another format."""
    assert rules.pack(RECORD).hex() == (
        "0000000000000007" "00000000000003e8" "00000000000007d0" "00000000000001f4" "0000000000000009"
        + b"host, process 1".hex()
    )
    assert rules.pack_waiter(WAITER).hex() == (
        "0000000000000bb8" "00000000000001f4" "0000000000000009" + b"me".hex()
    )
    assert rules.lease_key(PREFIX, b"a") == PREFIX + b"\0\x06a"
    assert rules.waiter_key(PREFIX, b"a", 5) == PREFIX + b"\0\x16a\0" + bytes(7) + b"\x05"
    assert rules.unpack(rules.pack(RECORD)) == RECORD
    assert rules.unpack_waiter(rules.pack_waiter(WAITER)) == WAITER
    for unpack, size in ((rules.unpack, 39), (rules.unpack_waiter, 23)):
        with pytest.raises(ValueError, match="not"):
            unpack(bytes(size))  # type: ignore[operator]


def test_the_longest_names_fit() -> None:
    prefix = Namespace("t" * 32, "a" * 32, "g" * 32).run_prefix("r" * 64)
    assert len(rules.waiter_key(prefix, b"x" * MAX_NAME_BYTES, (1 << 63) - 1)) <= MAX_KEY_BYTES


def test_waiters_are_in_the_order_in_which_they_came() -> None:
    start, end = rules.waiters_of(PREFIX, b"a")
    keys = [rules.waiter_key(PREFIX, b"a", ticket) for ticket in (1, 2, 255, 256, 1 << 40)]
    assert keys == sorted(keys) and all(start <= key < end for key in keys)
    for other in (b"a-", b"", b"aa", b"b"):
        assert not start <= rules.waiter_key(PREFIX, other, 1) < end


@pytest.mark.parametrize(("rest", "record"), [
    (b"a", RECORD._replace(token=0)), (b"a", RECORD._replace(ttl_us=0)),
    (b"a", RECORD._replace(holder=b"x" * 257)), (b"", RECORD), (b"a\0b", RECORD), (b"x" * 321, RECORD),
])  # fmt: skip
def test_what_check_finds_in_a_lease(rest: bytes, record: LeaseRecord) -> None:
    check = LEASE.check()
    assert check(b"a", rules.pack(RECORD)) is None
    assert check(b"a", rules.pack(RECORD._replace(holder=b"", expires_at=0))) is None
    assert check(rest, rules.pack(record))
    with pytest.raises(ValueError, match="utf-8"):
        check(b"a", rules.pack(RECORD._replace(holder=b"\xff")))


@pytest.mark.parametrize(("rest", "waiter"), [
    (b"a" + bytes(8), WAITER), (bytes(8), WAITER), (bytes(9), WAITER), (b"a\0" + bytes(7), WAITER),
    (b"a\0" + bytes(8), WAITER._replace(holder=b"")),
])  # fmt: skip
def test_what_check_finds_in_a_waiter(rest: bytes, waiter: Waiter) -> None:
    check = LEASE_WAITER.check()
    assert check(b"a\0" + bytes(8), rules.pack_waiter(WAITER)) is None
    assert check(rest, rules.pack_waiter(waiter))


def test_those_who_are_gone_are_forgotten_in_parts() -> None:
    """However many they are, a release fits one commit; and nobody who waits is overtaken."""
    stored = Stored()
    stored.run(procedures.acquire, RUN, b"a", "first", 10**9, 0, 1)
    lease = rules.unpack(stored.payload(rules.lease_key(RUN, b"a")) or b"")
    for claim in range(2, 152):
        stored.run(procedures.acquire, RUN, b"a", "gone", 10**6, 1, claim)
    ticket = stored.run(procedures.acquire, RUN, b"a", "alive", 10**6, 10**12, 9999)[1]
    stored.now += 10
    count = len(stored.records)
    assert stored.run(procedures.release, RUN, b"a", lease.token, lease.acquired_at) is True
    assert count - len(stored.records) == 64 + 1  # and the lease
    assert stored.run(procedures.acquire, RUN, b"a", "late", 10**6, 0, 10_000) == [0, 0, 0, 0, ""]
    assert stored.run(procedures.acquire, RUN, b"a", "late", 10**6, 0, 10_001)[4] == "alive"
    assert stored.run(procedures.confirm, RUN, b"a", 9999, ticket)[0] > lease.token


class Wrong(Exception):
    """A line is."""


def parser() -> Any:
    def fail(problem: str) -> NoReturn:
        raise Wrong(problem)

    assert LEASE.lines is not None
    return LEASE.lines.parser(LineFields(fail), 0)


LINE = {
    "kind": "lease", "name": "a", "holder": "me", "token": 7, "acquired_at": 1, "expires_at": 2, "ttl_us": 3
}


@pytest.mark.parametrize("change", [
    {"name": ""}, {"name": 7}, {"holder": None}, {"holder": "x" * 257}, {"holder": "\ud800"}, {"token": 0},
    {"token": (1 << 62) + 1}, {"token": 1 << 63},
    {"token": "7"}, {"acquired_at": 0}, {"acquired_at": None}, {"expires_at": -1},
    {"ttl_us": 0}, {"more": 1},
])  # fmt: skip
def test_lines_that_are_refused(change: dict[str, Any]) -> None:
    assert parser()(dict(LINE)) == [b"a", "me", 7, 1, 2, 3]
    assert parser()(LINE | {"holder": "", "expires_at": 0}) == [b"a", "", 7, 1, 0, 3]
    with pytest.raises(Wrong):
        parser()(LINE | change)
    with pytest.raises(Wrong, match="after the name"):
        parse = parser()
        parse(dict(LINE))
        parse(dict(LINE))


def test_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the lease is given back."""

    class NoThread:
        def __init__(self, **_: Any) -> None:
            pass

        def start(self) -> None:
            raise RuntimeError("can't start new thread")

        def is_alive(self) -> bool:
            return False

    monkeypatch.setattr(holding, "_renewals", holding.Renewals())
    with inmem.open() as db:
        db.kv.put("r", "k", 1)
        with monkeypatch.context() as patch:
            patch.setattr(holding.threading, "Thread", NoThread)
            with pytest.raises(inmem.LimitError, match="to renew"), db.leases.hold("r", "a"):
                raise AssertionError
        assert db.leases.get("r", "a") is None
        with db.leases.hold("r", "a"):
            pass


def test_the_command(store_path: Path) -> None:
    def said(*words: str, code: int = 0) -> str:
        result = CliRunner().invoke(app, [*words, "-d", str(store_path)])
        assert result.exit_code == code, result.output
        return result.output

    with inmem.open(store_path) as db:
        db.kv.put("r", "k", 1)
    assert "r has no leases" in said("leases", "r")
    with inmem.open(store_path) as db:
        lease = db.leases.acquire("r", "deploy", ttl_s=100, holder="me")
        db.leases.acquire("r", "ran-out", ttl_s=0.001, holder="somebody")
        db.shared("agent").leases.acquire("of-all", ttl_s=9)
    out = said("leases", "r")
    assert "deploy" in out and f"#{lease.token}" in out and "left" in out and "me" in out
    assert "ran out" in out and "somebody" in out
    assert "ran-out" not in said("leases", "r", "--prefix", "d")
    assert "leases    2" in (out := said("run", "r")) and "deploy (me) · ran-out (somebody)" in out
    assert "no such leases" in said("leases", "r", "--prefix", "zz")
    lines = [json.loads(line) for line in said("leases", "r", "--json", "--limit", "1").splitlines()]
    assert lines == [{
        "name": "deploy", "holder": "me", "token": lease.token, "acquired_at": lease.acquired_at,
        "expires_at": lease.expires_at, "waiting": 0,
    }]
    assert "of-all" in said("leases", "@agent")
    assert "deploy is taken from me" in said("lease", "release", "r", "deploy")
    assert "nobody has lease 'deploy'" in said("lease", "release", "r", "deploy", code=1)
    said("lease", "release", "@agent", "of-all")
    with inmem.open(store_path) as db, pytest.raises(inmem.LeaseLostError):
        db.leases.check(lease)
    stop_writer(store_path)
