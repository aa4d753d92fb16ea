"""The protocol of a session against every order of events; the other side has the writer's own book-keeping.

Answers are lost, doubled and reordered; a commit in the board's buffer is
overtaken by those in the socket; connections break, and what was under way on
them arrives late or never; the driver is interrupted; the writer is busy or
forgets the session. Whatever happens, a commit takes effect at most once and
in order, what the client is told is true, and when the faults end every
commit is answered or known to be lost.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import msgpack
import pytest

from inmem import wire
from inmem.client.protocol import BUSY_DELAY_S, PATIENCE_S, VOID, SessionProtocol
from inmem.writer.outcomes import GAP, Outcome, Sessions, describe_refusal

DATABASE = b"d" * 16
DEPTH = 11 if os.environ.get("INMEM_EXHAUSTIVE") else 8
WALKS, STEPS = 400, 120
MOST_IN_FLIGHT = 3


class World:
    """A client's protocol, a writer's sessions, and the messages between them."""

    def __init__(self, commits: int) -> None:
        self.ids = iter(range(1, 1000))
        self.protocol = SessionProtocol(max_in_flight=1000, new_id=self.new_id)
        self.sessions = Sessions([], ttl_s=1e9, max_in_flight=MOST_IN_FLIGHT)
        self.now = 0.0
        self.left = commits
        self.submitted: list[int] = []  # sequence of each commit; its body is its place here
        self.applied: list[int] = []  # places, in the order in which they took effect
        self.told: dict[int, int] = {}  # place -> version, as the client was told
        self.voided: set[int] = set()  # places of interrupted commits, which nobody asks for
        self.never: set[int] = set()  # of these, the ones that were not sent before
        self.buffer: list[bytes] = []  # on the board: one commit, sent while no other was under way
        self.to_writer: list[bytes] = []  # through the socket, in order
        self.to_client: list[bytes] = []
        self.late: list[bytes] = []  # of connections that are gone; they may still arrive
        self.is_connected = False
        self.connect()

    def new_id(self) -> bytes:
        return next(self.ids).to_bytes(16, "big")

    def __deepcopy__(self, memo: dict[int, Any]) -> World:
        other = World.__new__(World)
        memo[id(self)] = other
        number = next(self.ids)
        self.ids = iter(range(number, 1000))
        other.ids = iter(range(number, 1000))
        for name, value in self.__dict__.items():
            if name != "ids":
                other.__dict__[name] = deepcopy(value, memo)
        return other

    def key(self) -> Any:
        protocol = self.protocol
        sessions = [
            (name, each.last, each.answered_below, sorted(each.outcomes))
            for name, each in self.sessions._sessions.items()
        ]
        return repr((
            protocol.session_id, protocol.next_sequence, protocol.is_registered, sorted(protocol.lost),
            [(n, c.sent, c.under_way) for n, c in protocol.unanswered.items()], sorted(protocol._answers),
            protocol._send_from, protocol._busy_from, protocol._silent_since is None, sessions, self.applied,
            self.buffer, self.to_writer, self.to_client, self.late, self.is_connected, self.left, self.told,
            sorted(self.voided), sorted(self.never), [c.body for c in protocol.unanswered.values()],
        ))

    # --- the client ---------------------------------------------------------------------

    def send(self, frames: list[bytes]) -> None:
        if self.is_connected:
            self.to_writer += frames

    def submit(self) -> None:
        is_alone = not self.protocol.unanswered
        sequence, frame = self.protocol.submit(b"%d" % len(self.submitted), 0)
        self.submitted.append(sequence)
        self.left -= 1
        if is_alone and not self.buffer:
            self.buffer.append(frame)
        else:
            self.send([frame])

    def submit_interrupted(self, *, is_awaited: bool) -> None:
        """Numbered, and interrupted before it was sent; if it was awaited, nobody asks for it any more."""
        sequence, _ = self.protocol.submit(b"%d" % len(self.submitted), 0)
        self.submitted.append(sequence)
        self.left -= 1
        if is_awaited:
            self.never.add(len(self.submitted) - 1)
            self.interrupt_awaited()
        else:
            self.interrupt()

    def interrupt_awaited(self) -> None:
        """Interrupted while the last commit was waited for."""
        self.interrupt()
        if self.protocol.unanswered:
            last = max(self.protocol.unanswered)
            self.protocol.void(last)
            self.voided.add(self.submitted.index(last))

    def interrupt(self) -> None:
        self.break_off()
        self.protocol.settle()

    def break_off(self) -> None:
        self.late += self.buffer + self.to_writer
        self.buffer, self.to_writer, self.to_client, self.is_connected = [], [], [], False

    def connect(self) -> None:
        """Greet the writer, which answers at once."""
        protocol = self.protocol
        while True:
            greeting = wire.parse_hello(protocol.greeting(
                pid=1, database=DATABASE, protocol=1, format_version=1
            ))
            session = greeting["session"]
            if session not in self.sessions and not greeting["resume"]:
                self.sessions.register(session, 0)
            known = session in self.sessions
            protocol.receive(wire.welcome(known=known, slot=-1, board=""), self.now)
            if protocol.welcomed():
                break
        self.is_connected = True
        self.send(protocol.outgoing())

    def receive(self, at: int, *, keep: bool = False) -> None:
        frame = self.to_client[at] if keep else self.to_client.pop(at)
        self.protocol.receive(frame, self.now)
        if not self.protocol.is_welcome:
            self.break_off()
            self.connect()
        self.send(self.protocol.outgoing())

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.protocol.tick(self.now)
        self.send(self.protocol.outgoing())

    def fetch(self) -> None:
        for place, sequence in enumerate(self.submitted):
            answered = self.protocol.fetch(sequence)
            if answered is not None and place not in self.voided:
                status, version, _ = answered
                assert place not in self.told and sequence not in self.protocol.unanswered
                assert status == wire.APPLIED, "the writer refused for good what it never saw before"
                self.told[place] = version

    # --- the writer ---------------------------------------------------------------------

    def take(self, frame: bytes, *, is_late: bool = False) -> None:
        """Decide a commit, as the committer does, and answer on the connection that it came over."""
        _, _, session, sequence, answered_below = wire.COMMIT_HEADER.unpack_from(frame)
        body = frame[wire.COMMIT_HEADER.size :]
        digest = -1 if body == VOID else int(body)
        known = self.sessions.find(session, sequence, answered_below, digest)
        if known is None:
            if body != VOID:
                self.applied.append(digest)
            known = Outcome(digest, wire.APPLIED, len(self.applied), b"\x90")
            self.sessions.record(session, sequence, answered_below, 0, known)
        if isinstance(known, Outcome):
            answer = wire.answer(known.status, sequence, known.version, known.result)
        elif known == GAP:
            answer = wire.answer(wire.RESEND, sequence, self.sessions.last_sequence(session) + 1, b"\x90")
        else:
            answer = wire.answer(wire.REFUSED, sequence, 0, msgpack.packb(describe_refusal(known)))
        if not is_late:
            self.to_client.append(answer)

    def forget_session(self) -> None:
        self.sessions.drop(self.protocol.session_id)

    # --- what may happen ------------------------------------------------------------------

    def steps(self) -> Iterator[tuple[str, Callable[[World], None]]]:
        if self.left:
            if self.is_connected:
                yield "submit", World.submit
            yield "submit, interrupted", lambda w: w.submit_interrupted(is_awaited=False)
            yield "submit and wait, interrupted", lambda w: w.submit_interrupted(is_awaited=True)
        if self.is_connected:
            yield "interrupt", World.interrupt
            if self.protocol.unanswered:
                yield "interrupt who waits", World.interrupt_awaited
            yield "wait", lambda w: w.wait(2 * PATIENCE_S)
            if self.protocol._busy_from:
                yield "wait a little", lambda w: w.wait(BUSY_DELAY_S)
        else:
            yield "connect", World.connect
        if self.to_writer:
            yield "take", lambda w: w.take(w.to_writer.pop(0))
        if self.buffer:
            yield "take from the buffer", lambda w: w.take(w.buffer.pop(0))
        if self.late:
            yield "take a late one", lambda w: w.take(w.late.pop(0), is_late=True)
            yield "lose a late one", lambda w: w.late.pop(0) and None
        for at in range(min(2, len(self.to_client))):
            yield f"receive {at}", lambda w, at=at: w.receive(at)
            yield f"receive {at}, which comes again", lambda w, at=at: w.receive(at, keep=True)
            yield f"lose answer {at}", lambda w, at=at: w.to_client.pop(at) and None
        if self.protocol.session_id in self.sessions:
            yield "forget the session", World.forget_session

    def check(self) -> None:
        assert len(set(self.applied)) == len(self.applied), f"applied twice: {self.applied}"
        assert self.applied == sorted(self.applied), f"out of order: {self.applied}"
        assert not self.never & set(self.applied), "applied after it was taken back"
        for place, version in self.told.items():
            assert self.applied[version - 1] == place, "told of another commit's outcome"

    def finish(self) -> None:
        """No more faults: everything is settled, within a bounded number of steps."""
        if not self.is_connected:
            self.connect()
        for _ in range(40):
            while self.buffer or self.to_writer:
                self.take((self.buffer or self.to_writer).pop(0))
            while self.to_client:
                self.receive(0)
            self.fetch()
            if not self.protocol.unanswered:
                break
            self.wait(4 * PATIENCE_S)
        self.check()
        for place, sequence in enumerate(self.submitted):
            if sequence in self.protocol.lost:
                assert place not in self.told
            else:
                is_settled = place in self.told or place in self.voided
                assert is_settled, f"commit {place} is neither answered nor lost"


def explore(world: World, depth: int, seen: set[str], trace: tuple[str, ...], counts: list[int]) -> None:
    key = world.key() + f"@{depth}"
    if key in seen:
        return
    seen.add(key)
    counts[0] += 1
    last = deepcopy(world)
    try:
        last.finish()
    except AssertionError as error:
        raise AssertionError(f"{error} after {trace}") from error
    if not depth:
        return
    for name, step in list(world.steps()):
        after = deepcopy(world)
        try:
            step(after)
            after.check()
        except AssertionError as error:
            raise AssertionError(f"{error} after {(*trace, name)}") from error
        explore(after, depth - 1, seen, (*trace, name), counts)


@pytest.mark.timeout(300)
def test_every_order_of_events() -> None:
    counts = [0]
    explore(World(commits=2), DEPTH, set(), (), counts)
    print(f"{counts[0]} states, each brought to an end")
    assert counts[0] > 1000


@pytest.mark.parametrize("part", range(4))
def test_long_random_walks(part: int) -> None:
    seed = 20261128 + part
    print(f"seed {seed}")
    rng = random.Random(seed)
    done = lost = 0
    for _ in range(WALKS // 4):
        world = World(commits=12)
        trace = []
        for _ in range(STEPS):
            steps = [step for step in world.steps() if step[0] != "forget the session" or rng.random() < 0.02]
            name, step = rng.choice(steps)
            trace.append(name)
            step(world)
            if rng.random() < 0.3:
                world.fetch()
            world.check()
        try:
            world.finish()
        except AssertionError as error:
            raise AssertionError(f"{error} after {trace}") from error
        done += len(world.told)
        lost += len(world.protocol.lost)
    assert done > 100 and lost > 0
    print(f"{done} commits answered, {lost} lost with their session")


def test_a_planted_bug_is_found() -> None:
    """Without numbers that stay with their commits, the exploration fails."""

    class Renumbers(SessionProtocol):
        def settle(self) -> None:
            super().settle()
            self.unanswered = dict(enumerate(self.unanswered.values(), self.next_sequence))
            self.next_sequence += len(self.unanswered)

    world = World(commits=2)
    world.protocol.__class__ = Renumbers
    with pytest.raises(AssertionError, match=r"twice|another|neither"):
        explore(world, 5, set(), (), [0])
