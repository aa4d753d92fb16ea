"""Bytes that no client sends, to every decoder and to the rules of commit: only documented errors."""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
from committing import Bench, call, kv_key, put
from hostile_bytes import ARGUMENTS, HOME, PREFIX, documents, payloads, sessions_of

from inmem import values, wire
from inmem.errors import CorruptionError, LimitError
from inmem.keys import MAX_KEY_BYTES
from inmem.primitives.events import rules as event_log
from inmem.primitives.runs import rules as run
from inmem.primitives.server import PROCEDURES
from inmem.primitives.traces import rules as trace
from inmem.storage.wal.format import decode_ops
from inmem.wire import APPLIED, FAILED
from inmem.writer.committer import NoLog, Request
from inmem.writer.outcomes import Outcome
from inmem.writeset import MalformedError, decode

PAYLOADS = int(os.environ.get("INMEM_TEST_PAYLOADS", "20000"))
SEED = int(os.environ.get("INMEM_TEST_SEED", "20260701"))
MIB = 1 << 20


# What takes bytes from elsewhere, what it may raise, its share of the payloads.
DECODERS: dict[str, tuple[Callable[[bytes], Any], tuple[type[Exception], ...], float]] = {
    "writeset": (decode, (MalformedError, LimitError), 0.4),
    "hello": (lambda data: wire.parse_hello(b"\1" + data), (ValueError,), 0.15),
    "log": (decode_ops, (ValueError,), 0.15),
    "value": (values.decode, (ValueError,), 0.1),
    "session": (sessions_of, (CorruptionError,), 0.1),
    "run": (lambda data: run.unpack("run", data), (ValueError,), 0.03),
    "trace": (lambda data: trace.unpack("id", data), (ValueError,), 0.03),
    "event": (lambda data: event_log.unpack(0, data), (ValueError,), 0.04),
}


@pytest.mark.timeout(120 + PAYLOADS // 2000)
@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_knows_every_way_to_fail(name: str) -> None:
    function, documented, share = DECODERS[name]
    rng = random.Random(f"{SEED} {name}")
    print(f"seed {SEED}")
    count = int(PAYLOADS * share)
    accepted = 0
    slowest = 0.0
    source = payloads(rng, documents()[name])
    for _ in range(count):
        payload = next(source)
        began = time.perf_counter()
        try:
            function(payload)
            accepted += 1
        except documented:
            pass
        except BaseException as error:
            shown = payload.hex() if len(payload) < 500 else f"{payload[:60].hex()}... ({len(payload)} bytes)"
            raise AssertionError(f"{name}: {type(error).__name__}: {error}, for {shown}") from error
        slowest = max(slowest, time.perf_counter() - began)
    assert accepted < count, "all of it passed: that was no hostile input"
    print(f"{name}: {count} payloads, {accepted} of them right by chance, slowest {slowest * 1000:.1f} ms")


@pytest.mark.timeout(120 + PAYLOADS // 500)
def test_a_committer_answers_everything(tmp_path: Path) -> None:
    """What passes the decoder meets validation and the procedures: an answer each, whatever it is."""
    assert set(ARGUMENTS) <= set(PROCEDURES), "a right call of a procedure that there is not"
    rng = random.Random(f"{SEED} committer")
    print(f"seed {SEED}")
    count = PAYLOADS // 4
    bench = Bench(tmp_path / "image", log=NoLog())
    try:
        session = bench.client().session
        known = bench.client("known")
        statuses: Counter[int] = Counter()
        longest = 0
        source = payloads(rng, documents()["writeset"])
        sequence = 0
        while sequence < count:
            group = [Request(session, sequence + n, sequence + n, next(source)) for n in range(1, 33)]
            sequence += len(group)
            try:
                answers = bench.commit(*group)
            except BaseException as error:
                shown = [one.body[:300].hex() for one in group]
                raise AssertionError(f"{type(error).__name__}: {error}, in the group {shown}") from error
            assert [answer.sequence for answer in answers] == [one.sequence for one in group]
            statuses.update(answer.status for answer in answers)
            longest = max(longest, *(len(answer.result) for answer in answers))
            if rng.random() < 0.02:
                assert known.send(put(kv_key("good", "k"), sequence)).status == APPLIED
                assert bench.value(kv_key("good", "k")) == sequence
        assert set(statuses) <= {APPLIED, FAILED} and statuses[FAILED] > count // 2
        assert longest < 64 * 1024
    finally:
        bench.close()
    print(f"committer: {sequence} requests, {statuses[FAILED]} refused, {statuses[APPLIED]} applied")


def with_each_string(document: Any, huge: int) -> Iterator[Any]:
    """The document with each string in it, in turn, made huge; so are wrong types that are."""
    if isinstance(document, str | bytes):
        yield from (b"x" * huge, "x" * huge)
    elif isinstance(document, int | None):
        yield "x" * huge
    else:
        for at, part in enumerate(document):
            for changed in with_each_string(part, huge):
                yield [*document[:at], changed, *document[at + 1 :]]


def test_a_refusal_does_not_repeat_what_it_refuses(tmp_path: Path) -> None:
    """An error's text goes into the outcome, so into image and log: it must not be as big as the request."""
    cases = 0
    bench = Bench(tmp_path / "image", log=NoLog())
    try:
        client = bench.client()
        client.send(call("run.create", *ARGUMENTS["run.create"]))
        for name, arguments in ARGUMENTS.items():
            for wrong in with_each_string(arguments, 200_000):
                answer = client.send_body(msgpack.packb([0, 0, [], [], [call(name, *wrong)]]))
                if answer.status == FAILED:
                    assert len(answer.result) < 4096, f"{name}: {answer.result[:100]!r}"
                    cases += 1
        answer = client.send(call("x" * MIB))
        assert answer.status == FAILED and len(answer.result) < 4096
    finally:
        bench.close()
    assert cases > 20
    print(f"{cases} refusals of huge arguments, none of them huge")


@pytest.mark.parametrize(
    "length", [*range(MAX_KEY_BYTES - 200, MAX_KEY_BYTES - 3, 14), 508, 509, 510, 511, 512]
)
def test_names_at_the_longest_key(tmp_path: Path, length: int) -> None:
    """Procedures with prefixes and names that just fit or just do not: never an error of the store."""
    bench = Bench(tmp_path / "image", log=NoLog())
    try:
        client = bench.client()
        for name, arguments in ARGUMENTS.items():
            for at, argument in enumerate(arguments):
                if isinstance(argument, bytes) and argument != b"\x80":
                    filler = b"a/b/" + b"c" * (length - 4) if argument in (HOME, PREFIX) else b"n" * length
                    for wrong in (filler, filler[: length // 2], b"a\0\x01" + filler[3:]):
                        changed = [*arguments[:at], wrong, *arguments[at + 1 :]]
                        answer = client.send_body(msgpack.packb([0, 0, [], [], [call(name, *changed)]]))
                        assert answer.status in (APPLIED, FAILED)
        key = b"a\0\x01" + b"k" * (length - 3)
        for expires in (0, 5):
            answer = client.send_body(msgpack.packb([0, 0, [], [], [[0, key, b"", expires]]]))
            assert answer.status == (APPLIED if length + 8 * bool(expires) <= MAX_KEY_BYTES else FAILED)
        answer = client.send_body(msgpack.packb([0, 0, [[key, 1]], [[key, key, 0]], []]))
        assert answer.status == FAILED
    finally:
        bench.close()


def test_a_session_record_keeps_its_outcomes(tmp_path: Path) -> None:
    """The right document of the decoder above is what the store writes."""
    sessions = sessions_of(msgpack.packb(documents()["session"][0]))
    assert sessions.find(bytes(16), 2, 0, 77) == Outcome(77, 0, 5, b"\x90")
    assert sessions.last_sequence(bytes(16)) == 3
