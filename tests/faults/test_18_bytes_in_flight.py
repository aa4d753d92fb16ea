"""What one client may have on its way to the writer, and what of a flood goes into one group."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from crash_workers import RUN
from mailboxes import mailbox, peers
from support import writer_pid

import inmem
from inmem.config import MAX_BATCH, MAX_IN_FLIGHT_BYTES
from inmem.errors import BusyError
from inmem.writer import mailbox as mailbox_module

MIB = 1 << 20
SHARE = mailbox_module._PEER_MESSAGES


# --- groups ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        ({"a": [1] * 500}, False),  # alone it may have all
        ({"a": [MIB] * 60}, False),
        ({"a": [1] * (SHARE - 1), "b": [1]}, False),
        ({"a": [1] * SHARE, "b": [1]}, True),
        ({"a": [1] * (SHARE - 1), "b": [1] * (SHARE - 1), "c": [1] * (SHARE - 1)}, False),
        ({"a": [MIB // 2], "b": [MIB // 2]}, False),
        ({"a": [MIB], "b": [1]}, True),
        ({}, False),
    ],
)
def test_who_crowds_out_whom(sent: dict[str, list[int]], expected: bool) -> None:
    messages = [(peer.encode(), bytes(size)) for peer, sizes in sent.items() for size in sizes]
    assert mailbox_module._one_fills(messages) is expected


@pytest.mark.parametrize("size", [20, 300_000], ids=["many", "large"])
def test_a_group_has_something_of_each_that_waits(scratch: Path, size: int) -> None:
    """A flood fills groups only while nobody else is there; who comes late is in the next group."""
    flood = 6000 if size < 1000 else 500
    with mailbox(scratch / "s") as box, peers(box.endpoint, 4) as (loud, *quiet):
        for _ in range(flood):
            loud.send(b"f" * size)
        taken = len(box.take(MAX_BATCH))
        assert taken > 0
        for number, one in enumerate(quiet):
            one.send(b"q%d" % number)
        answered: dict[bytes, int] = {}
        deadline = time.monotonic() + 30.0
        while taken < flood + len(quiet):
            group = box.take(MAX_BATCH)
            taken += len(group)
            # From where the group has something of two on, it ends when it is seen that one has its share.
            first = {peer: at for at, (peer, _) in reversed(list(enumerate(group)))}
            if len(first) > 1:
                shared = [frame for _, frame in group[sorted(first.values())[1] :]]
                assert len(shared) <= 2 * SHARE, len(shared)
                assert sum(map(len, shared)) <= MIB + 2 * size, sum(map(len, shared))
            for _, frame in group:
                if frame.startswith(b"q"):
                    answered[frame] = taken
            assert time.monotonic() < deadline
        assert sorted(answered) == [b"q0", b"q1", b"q2"]
        assert max(answered.values()) < flood, "nobody waits until the flood is over"
        print(f"of {flood} messages of a flood, taken when the others' were: {sorted(answered.values())}")


# --- bytes in flight ------------------------------------------------------------------------------


def test_too_many_bytes_in_flight_are_refused_before_they_are_sent(store_path: Path) -> None:
    values = {f"part-{n}": os.urandom(15 * MIB) for n in range(4)}  # a commit each
    others = {"other-0": values["part-0"]}
    unknown = []
    with inmem.open(store_path, durability="memory") as db:
        db.kv.put(RUN, "k", 0)
        pid = writer_pid(store_path)
        os.kill(pid, signal.SIGSTOP)
        try:
            for key, value in values.items():
                with pytest.raises(inmem.CommitUnknownError) as one:  # noqa: SIM117
                    with db.transaction(RUN, timeout_s=0.2) as txn:
                        txn.kv.put(key, value)
                unknown.append(one.value)
            began = time.monotonic()
            for _ in range(3):
                with pytest.raises(BusyError, match="too large") as busy, db.transaction(RUN) as txn:
                    txn.kv.put_many(others)
                assert (busy.value.what, busy.value.limit) == ("bytes in flight", MAX_IN_FLIGHT_BYTES)
                assert busy.value.retryable
            assert time.monotonic() - began < 10.0, "nobody was asked"
            with pytest.raises(inmem.CommitUnknownError) as small:  # noqa: SIM117
                with db.transaction(RUN, timeout_s=0.2) as txn:
                    txn.kv.add("n")
        finally:
            os.kill(pid, signal.SIGCONT)
        for each in unknown:
            each.resend(timeout_s=30.0)
        small.value.resend(timeout_s=30.0)
        assert {key: db.kv.get(RUN, key) for key in values} == values and db.kv.get(RUN, "n") == 1
        assert db.kv.count(RUN, "other-") == 0, "what was refused was not applied"
        with db.transaction(RUN) as txn:  # and what was answered counts no more
            txn.kv.put_many(others)
        assert {key: db.kv.get(RUN, key) for key in others} == others and writer_pid(store_path) == pid


def test_a_pipeline_of_large_values_waits(store_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than may be in flight, in order, without an error."""
    count, size = 12, 8 * MIB
    base = os.urandom(size - 8)
    highest = 0
    monkeypatch.setenv("INMEM_PIPELINE_GROUP", "1")
    with inmem.open(store_path, durability="memory") as db:
        with db.pipeline() as pipe:
            pipe.kv.put("other-run", "first", 0)
            pipe.flush()
            waiting = pipe._batches._session.protocol.unanswered
            for number in range(count):
                pipe.kv.put(RUN, f"large-{number % 3}", base + number.to_bytes(8, "big"))
                pipe.kv.add(RUN, "n")
                highest = max(highest, sum(len(pending.body) for pending in waiting.values()))
        assert db.kv.get(RUN, "n") == count
        for number in range(count - 3, count):
            assert db.kv.get(RUN, f"large-{number % 3}") == base + number.to_bytes(8, "big")
    assert size < highest <= MAX_IN_FLIGHT_BYTES
    print(f"{count} values of {size // MIB} MiB, at most {highest / MIB:.0f} MiB in flight")
