"""The protocol of the wait file, in every interleaving: no wake is lost, and each other order loses one.

Two waiters and a writer with three commits, one word. A state is what is in
memory and where each of them is; all states that can be reached are visited.
A wake is lost where nobody can take a step, and one sleeps for what is there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

import pytest

COMMITS: Final = 3
RIGHT_WAITER: Final = ("read the word", "set the flag", "set the byte", "take a snapshot", "sleep")
RIGHT_WRITER: Final = ("publish", "look")
RIGHT_PAY: Final = ("clear", "change", "wake")
RIGHT_SWEEP: Final = ("byte", "flags")
ASLEEP: Final = -1
DONE: Final = -2


class Waiter(NamedTuple):
    step: int = 0  # of its program, ASLEEP or DONE
    word: int = 0  # as it has read it
    target: int = COMMITS


class State(NamedTuple):
    version: int = 0
    word: int = 0
    flag: bool = False
    byte: bool = False
    owed: bool = False
    publishing: int = 0  # the next step for the commit
    paying: int = 0  # the next step of waking
    sweeping: int = 0  # the next step of clearing all flags; it happens once at most
    waiters: tuple[Waiter, ...] = ()


class Model:
    def __init__(
        self, waiter: tuple[str, ...] = RIGHT_WAITER, writer: tuple[str, ...] = RIGHT_WRITER,
        pay: tuple[str, ...] = RIGHT_PAY, sweep: tuple[str, ...] = RIGHT_SWEEP,
    ) -> None:
        self.waiter, self.writer, self.pay, self.sweep = waiter, writer, pay, sweep

    def steps(self, state: State) -> Iterator[State]:
        for number, waiter in enumerate(state.waiters):
            if waiter.step >= 0:
                moved, after = self._waiter_step(state, waiter)
                yield after._replace(
                    waiters=(*state.waiters[:number], moved, *state.waiters[number + 1 :])
                )
        yield from self._writer_steps(state)

    def _waiter_step(self, state: State, waiter: Waiter) -> tuple[Waiter, State]:
        on = waiter._replace(step=waiter.step + 1)
        match self.waiter[waiter.step]:
            case "read the word":
                return on._replace(word=state.word), state
            case "set the flag":
                return on, state._replace(flag=True)
            case "set the byte":
                return on, state._replace(byte=True)
            case "take a snapshot":
                return (waiter._replace(step=DONE) if state.version >= waiter.target else on), state
            case _:  # the kernel compares the word, and sleeps, in one step
                return waiter._replace(step=ASLEEP if state.word == waiter.word else 0), state

    def _writer_steps(self, state: State) -> Iterator[State]:
        """The writer is one thread: what it has begun it ends, and then does whatever is next."""
        if state.paying:
            yield self._pay_step(state)
        elif 0 < state.sweeping < len(self.sweep):
            yield self._sweep_step(state)
        elif state.publishing:
            yield self._commit_step(state)
        else:
            if state.version < COMMITS:
                yield self._commit_step(state)
            if state.owed:
                yield self._pay_step(state)
            if not state.sweeping:
                yield self._sweep_step(state)

    def _commit_step(self, state: State) -> State:
        after = state._replace(publishing=(state.publishing + 1) % len(self.writer))
        if self.writer[state.publishing] == "publish":
            return after._replace(version=state.version + 1)
        return after._replace(owed=state.owed or (state.byte and state.flag))

    def _pay_step(self, state: State) -> State:
        after = state._replace(paying=(state.paying + 1) % len(self.pay))
        if not after.paying:
            after = after._replace(owed=False)
        match self.pay[state.paying]:
            case "clear":
                return after._replace(flag=False)
            case "change":
                return after._replace(word=state.word + 1)
            case _:
                woken = (w._replace(step=0) if w.step == ASLEEP else w for w in state.waiters)
                return after._replace(waiters=tuple(woken))

    def _sweep_step(self, state: State) -> State:
        after = state._replace(sweeping=state.sweeping + 1)
        if self.sweep[state.sweeping] == "byte":
            return after._replace(byte=False)
        return after._replace(owed=state.owed or state.flag)


def lost(model: Model, targets: tuple[int, int]) -> tuple[State | None, int]:
    """A state in which a wake is lost, None if there is none; how many states there are."""
    first = State(waiters=tuple(Waiter(target=target) for target in targets))
    seen, todo = {first}, [first]
    while todo:
        state = todo.pop()
        following = [*model.steps(state)]
        if not following and any(w.step == ASLEEP and state.version >= w.target for w in state.waiters):
            return state, len(seen)
        for after in following:
            if after not in seen:
                seen.add(after)
                todo.append(after)
    return None, len(seen)


TARGETS: Final = [(first, second) for first in (1, 2, 3) for second in (1, 2, 3)]


@pytest.mark.parametrize("targets", TARGETS)
def test_no_wake_is_lost(targets: tuple[int, int]) -> None:
    state, states = lost(Model(), targets)
    assert state is None and states > 1000
    print(f"{states} states")


WRONG: Final = {
    "the snapshot before the word": Model(
        ("take a snapshot", "read the word", "set the flag", "set the byte", "sleep")
    ),
    "the flag after the snapshot": Model(
        ("read the word", "take a snapshot", "set the flag", "set the byte", "sleep")
    ),
    "the word after the flag": Model(
        ("set the flag", "set the byte", "read the word", "take a snapshot", "sleep")
    ),
    "the byte before the flag": Model(
        ("read the word", "set the byte", "set the flag", "take a snapshot", "sleep")
    ),
    "a look before publishing": Model(writer=("look", "publish")),
    "a change before clearing": Model(pay=("change", "clear", "wake")),
    "a wake before the change": Model(pay=("clear", "wake", "change")),
    "the byte cleared after the flags": Model(sweep=("flags", "byte")),
}


@pytest.mark.parametrize("order", WRONG)
def test_each_other_order_loses_one(order: str) -> None:
    assert any(lost(WRONG[order], targets)[0] is not None for targets in TARGETS), order
