"""Recorded transactions, judged: is there one order that explains what each of them read?

Invariant: the checker sees histories as plain data and asks no store. It
reports an anomaly only with proof, whatever the outcome of transactions that
were never answered; so a history without anomalies passes, however unlikely.

There are two kinds of objects. A *list* is appended to and read whole, and no
element is appended twice. So every read says which appends came before it and
in which order, and the longest read of a list is the order of its versions.
That is the idea of Elle (Kingsbury and Alvaro, "Elle: Inferring Isolation
Anomalies from Experimental Observations", VLDB 2020). From it follow edges
between transactions, "must come before":

    ww          appended the element before the other's
    wr          appended the last element that the other read
    rw          read a list without the element that the other appended next
    session     one worker did it before the other
    real-time   was answered before the other was asked

A cycle is an anomaly: of ww alone G0 (writes of two are interleaved), with wr
G1c (two see each other), with one rw G-single (lost update, read skew), with
more G2 (write skew, phantom). A cycle that needs an edge of the last two kinds
has it in its name. Serializability forbids only cycles without these. The
store promises more, since an answer is sent after the commit was published
and every snapshot is of the newest version: both are on unless switched off.

A *counter* is added to and read. A sum does not tell who is in it, so it is
judged by bounds: what was answered before a read was asked is in it, and what
was asked after its answer is not.

A second judge, `versions`, needs no graph: it replays the transactions in the
order of the versions that they were told.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

from workers.judge.cycles import Graph, components_of, cycle_in, cycle_with_one
from workers.judge.history import OK, REFUSED, UNKNOWN
from workers.judge.transactions import (
    ADD,
    APPEND,
    FINAL,
    KINDS,
    READ,
    VALUE,
    Anomaly,
    Evidence,
    Txn,
    Verdict,
    brief,
    from_history,
    from_ops,
)
from workers.judge.versions import check_replay, check_versions

__all__ = [
    "ADD", "APPEND", "KINDS", "READ", "VALUE",
    "Anomaly", "Txn", "Verdict", "check", "from_history", "from_ops",
]

_DATA: Final = ("ww", "wr", "rw")
_NEVER: Final = float("inf")


def check(
    txns: Iterable[Txn], final: Mapping[str, Any] | None = None, *,
    session_order: bool = True, real_time: bool = True, replay: bool = True,
) -> Verdict:
    """Judge a history. `final` is every list and counter at the end; one that is missing was empty."""
    history = Evidence(list(txns), final)
    verdict = history.verdict
    _check_lists(history)
    _check_counters(history, real_time)
    graph = _edges(history, session_order, real_time)
    edges = Counter(kind for targets in graph.values() for kinds in targets.values() for kind in kinds)
    verdict.edges = dict(edges)
    _check_cycles(history, graph, session_order, real_time)
    if replay:
        check_versions(history)
        check_replay(history)
    return verdict


# --- lists ------------------------------------------------------------------------------------------


def _check_lists(history: Evidence) -> None:
    """Elements that should not be there, are there twice, in another order, in part, or no more."""
    torn: dict[str, list[int | None]] = {}
    for key, order in history.order.items():
        _check_elements(history, key, order)
        torn[key] = _torn(history, key, order)
    for index, txn in history.acknowledged():
        for key, found in list(history.lists[index].items()):
            if found != history.order[key][: len(found)]:
                _check_elements(history, key, found)
                history.report("order", f"{key} was {brief(found)} and {brief(history.order[key])}", txn)
                del history.lists[index][key]  # in no order with the others: it proves nothing more
                continue
            half = torn[key][len(found)]
            if half is not None and half != index:
                history.report("G1b", f"{key} was read between two appends of one", txn, history.txns[half])
    if history.final is not None:
        for key, writers in history.writers.items():
            at_the_end = set(history.final.get(key, ()))
            for element, index in writers.items():
                if history.txns[index].outcome == OK and element not in at_the_end:
                    history.report("lost", f"{element!r} is not in {key}", history.txns[index])


def _check_elements(history: Evidence, key: str, elements: list[Any]) -> None:
    writers = history.writers.get(key, {})
    for element, count in Counter(elements).items():
        if count > 1:
            history.report("duplicate", f"{element!r} is in {key} {count} times")
        if element not in writers:
            history.report("garbage", f"{element!r} is in {key}")
        elif history.txns[writers[element]].outcome == REFUSED:
            history.report("G1a", f"{element!r} is in {key}", history.txns[writers[element]])


def _torn(history: Evidence, key: str, order: list[Any]) -> list[int | None]:
    """For each length of a list, the transaction of which such a read has some appends and not all."""
    torn: list[int | None] = [None] * (len(order) + 1)
    appended = Counter(history.writers.get(key, {}).values())
    places: dict[int, list[int]] = {}
    for place, writer in enumerate(map(history.writers.get(key, {}).get, order)):
        if writer is not None and appended[writer] > 1:
            places.setdefault(writer, []).append(place)
    for writer, found in places.items():
        last = found[-1] if len(found) >= appended[writer] else len(order)
        torn[found[0] + 1 : last + 1] = [writer] * (last - found[0])
    return torn


# --- counters ---------------------------------------------------------------------------------------


class _Sums:
    """What was added up to some time."""

    def __init__(self, adds: Iterable[tuple[float, float]]) -> None:
        ordered = sorted(adds)
        self._times = [at for at, _ in ordered]
        self._sums = [0.0]
        for _, delta in ordered:
            self._sums.append(self._sums[-1] + delta)

    def before(self, at: float) -> float:
        return self._sums[bisect_left(self._times, at)]


def _check_counters(history: Evidence, real_time: bool) -> None:
    adds: dict[str, list[tuple[Txn, float]]] = {key: [] for key in history.counters}
    own: list[dict[str, list[float]]] = [{} for _ in history.txns]
    for index, txn in history.possible():
        for kind, key, what in txn.steps:
            if kind == ADD:
                adds[key].append((txn, what))
                own[index].setdefault(key, []).append(what)
    must: dict[str, tuple[_Sums, _Sums]] = {}
    may: dict[str, tuple[_Sums, _Sums]] = {}
    for key, some in adds.items():
        sure = [(txn.answered_at or 0, delta) for txn, delta in some if txn.outcome == OK and real_time]
        must[key] = _Sums(a for a in sure if a[1] < 0), _Sums(a for a in sure if a[1] > 0)
        asked = [(txn.asked_at, delta) for txn, delta in some]
        may[key] = _Sums(a for a in asked if a[1] < 0), _Sums(a for a in asked if a[1] > 0)
    for index, txn in history.acknowledged():
        if txn.worker == FINAL:
            continue  # the sum of all is judged below
        begin = txn.asked_at
        end = _NEVER if txn.answered_at is None else txn.answered_at
        for key, value in history.values[index].items():
            mine = own[index].get(key, ())
            low = must[key][1].before(begin) + may[key][0].before(end) - sum(d for d in mine if d < 0)
            high = must[key][0].before(begin) + may[key][1].before(end) - sum(d for d in mine if d > 0)
            if not low <= value <= high:
                history.report("bounds", f"{key} was {value}, not within {low:g} and {high:g}", txn)
    if history.final is not None:
        for key, some in adds.items():
            rest = history.values[-1][key] - sum(delta for txn, delta in some if txn.outcome == OK)
            if rest not in _sums_of([delta for txn, delta in some if txn.outcome == UNKNOWN]):
                history.report("total", f"{key} ends {rest:+g} off the sum of what was acknowledged")


def _sums_of(deltas: Iterable[float]) -> set[float]:
    """What any of some numbers can add up to."""
    sums = {0.0}
    for delta in deltas:
        sums |= {total + delta for total in sums}
    return sums


# --- cycles -----------------------------------------------------------------------------------------

def _edges(history: Evidence, session_order: bool, real_time: bool) -> Graph:
    graph: Graph = {}

    def edge(before: int | None, after: int | None, kind: str, key: str = "") -> None:
        if before is not None and after is not None and before != after:
            graph.setdefault(before, {}).setdefault(after, {}).setdefault(kind, key)

    chains: dict[str, list[int | None]] = {}
    unseen: dict[str, list[int]] = {}
    for key in history.order.keys() | history.writers.keys():
        order, writers = history.order.get(key, []), history.writers.get(key, {})
        chain = chains[key] = [writers.get(element) for element in order]
        for before, after in pairwise(chain):
            edge(before, after, "ww", key)
        # Acknowledged, but in no read: it came after all that was read.
        seen = set(order)
        unseen[key] = [
            writer for element, writer in writers.items()
            if element not in seen and history.txns[writer].outcome == OK
        ]
        for writer in unseen[key] if chain else ():
            edge(chain[-1], writer, "ww", key)
    for index, _ in history.acknowledged():
        for key, found in history.lists[index].items():
            chain, length = chains[key], len(found)
            if found:
                edge(chain[length - 1], index, "wr", key)
            later: Sequence[int | None] = chain[length : length + 1] or unseen[key]
            for after in later:
                edge(index, after, "rw", key)
    if session_order:
        _session_edges(history, edge)
    if real_time:
        _real_time_edges(history, edge)
    return graph


def _session_edges(history: Evidence, edge: Any) -> None:
    # Who was not answered may take effect later than what its worker did next, and comes before nothing.
    last: dict[int, int] = {}
    for index, txn in sorted(history.possible(), key=lambda item: item[1].n):
        edge(last.get(txn.worker), index, "session")
        if txn.outcome == OK:
            last[txn.worker] = index


def _real_time_edges(history: Evidence, edge: Any) -> None:
    # An edge from everybody who was answered before would be too many. `latest` are those whom no
    # other of them comes after: there are never more of them than workers.
    moments = []
    for index, txn in history.possible():
        moments.append((txn.asked_at, False, index))
        if txn.outcome == OK and txn.answered_at is not None:
            moments.append((txn.answered_at, True, index))
    latest: set[int] = set()
    preceded: dict[int, set[int]] = {}
    for _, answered, index in sorted(moments):
        if answered:
            latest -= preceded[index]
            latest.add(index)
        else:
            for before in latest:
                edge(before, index, "real-time")
            preceded[index] = set(latest)


def _check_cycles(history: Evidence, graph: Graph, session_order: bool, real_time: bool) -> None:
    """One cycle for each component of transactions, of the kind that is hardest to excuse."""
    found: list[set[int]] = []
    more: list[tuple[str, ...]] = [()]
    more += [("session",)] if session_order else []
    more += [("session", "real-time")] if real_time else []
    for extra in more:
        suffix = f"-{extra[-1]}" if extra else ""
        for name, data in (("G0", ("ww",)), ("G1c", ("ww", "wr")), ("G2", _DATA)):
            kinds = frozenset(data + extra)
            for component in components_of(graph, kinds):
                if any(cycle <= component for cycle in found):
                    continue
                cycle, label = cycle_in(graph, component, kinds), name
                if name == "G2":
                    single = cycle_with_one(graph, component, "rw", kinds - {"rw"})
                    cycle, label = (single, "G-single") if single else (cycle, name)
                found.append(set(cycle))
                history.report(
                    label + suffix, _told(history, graph, cycle, data + extra),
                    *(history.txns[index] for index in cycle),
                )


def _told(history: Evidence, graph: Graph, cycle: list[int], kinds: Sequence[str]) -> str:
    parts = []
    for before, after in pairwise([*cycle, cycle[0]]):
        kind = next(kind for kind in kinds if kind in graph[before][after])
        parts.append(f"{history.txns[before]} -{kind} {graph[before][after][kind]}-> ")
    return "".join(parts) + str(history.txns[cycle[0]])
