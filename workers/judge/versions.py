"""Replay in the order of versions: does every transaction read what a plain dictionary gives?

Invariant: every commit names its version, so this needs no graph. Who has no
version (never answered, or a single call that does not tell it) is applied,
whole, when its first element is needed; adds of such leave a margin.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Any

from workers.judge.transactions import ADD, APPEND, Evidence, Txn, brief


def check_versions(history: Evidence) -> None:
    """No version of two commits, and none below what was answered before it was asked."""
    owner: dict[int, Txn] = {}
    told = [txn for _, txn in history.acknowledged() if txn.version is not None]
    for txn in told:
        if txn.writes and owner.setdefault(txn.version or 0, txn) is not txn:
            history.report("version", f"version {txn.version} is of two", owner[txn.version or 0], txn)
    answered = [txn for txn in told if txn.answered_at is not None]
    answered.sort(key=lambda txn: txn.answered_at or 0)
    times = [txn.answered_at or 0 for txn in answered]
    highest = [-1]
    for txn in answered:
        highest.append(max(highest[-1], txn.version or 0))
    for txn in told:
        before = highest[bisect_left(times, txn.asked_at)]
        if (txn.version or 0) < before + txn.writes:
            history.report("version", f"version {txn.version} after {before} was told to somebody", txn)


class _Replay:
    """The state of all lists and counters between two versions."""

    def __init__(self, history: Evidence) -> None:
        self.history = history
        self.lists: dict[str, list[Any]] = {key: [] for key in history.order}
        self.sums: dict[str, float] = dict.fromkeys(history.counters, 0)
        # Writers without a version: theirs is the place that their elements need.
        self.floating = {
            index for index, txn in history.possible() if txn.writes and txn.version is None
        }
        self.margin: dict[str, list[float]] = {key: [0, 0] for key in history.counters}
        for index in self.floating:
            self._loosen(index, 1)

    def _loosen(self, index: int, sign: int) -> None:
        for kind, key, what in self.history.txns[index].steps:
            if kind == ADD:
                self.margin[key][what > 0] += sign * what

    def apply(self, index: int) -> None:
        """Do what a transaction wrote; first those without a version whose elements come before its own."""
        txn = self.history.txns[index]
        if index in self.floating:
            self.floating.discard(index)
            self._loosen(index, -1)
        for kind, key, what in txn.steps:
            if kind == ADD:
                self.sums[key] += what
            elif kind == APPEND and key in self.lists:
                order = self.history.order[key]
                if what in order:
                    self.catch_up(key, order.index(what))
                self.lists[key].append(what)

    def catch_up(self, key: str, length: int) -> None:
        """Let a list grow to a length, as far as writers without a version make it."""
        order, state = self.history.order[key], self.lists[key]
        writers = self.history.writers.get(key, {})
        while len(state) < length:
            writer = writers.get(order[len(state)])
            if writer not in self.floating:
                return
            self.apply(writer)


def check_replay(history: Evidence) -> None:
    state = _Replay(history)
    placed = [(index, txn) for index, txn in history.acknowledged() if txn.version is not None]
    # A snapshot sees its version; so does a commit that changed nothing and has no version of its own.
    placed.sort(key=lambda item: (item[1].version, not item[1].writes))
    history.verdict.replayed = len(placed)
    if history.final is not None:
        placed.append((len(history.txns) - 1, history.txns[-1]))
    for index, txn in placed:
        for key, found in history.lists[index].items():
            state.catch_up(key, len(found))
            if state.lists[key] != found:
                have = brief(state.lists[key])
                history.report("replay", f"{key} is {have}{_when(txn)}, and was read as {brief(found)}", txn)
        for key, value in history.values[index].items():
            less, more = state.margin[key]
            if not state.sums[key] + less <= value <= state.sums[key] + more:
                have = f"{state.sums[key]:g}"
                history.report("replay", f"{key} is {have}{_when(txn)}, and was read as {value}", txn)
        state.apply(index)


def _when(txn: Txn) -> str:
    if txn.version is None:
        return ""
    return f" {'before' if txn.writes else 'at'} version {txn.version}"
