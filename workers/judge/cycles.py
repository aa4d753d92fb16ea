"""Cycles in a graph with several kinds of edges, and the knots that they are in.

Invariant: what is called a cycle is one, by edges of the kinds that were asked
for alone. It knows numbers and names of kinds, and not what they stand for.
"""

from __future__ import annotations

from collections import deque
from typing import Final

# node -> node -> kind of edge -> what it is about
Graph = dict[int, dict[int, dict[str, str]]]

_TRIES: Final = 50  # edges from which a cycle with only one of their kind is looked for


def targets_of(graph: Graph, node: int, kinds: frozenset[str]) -> list[int]:
    """Where edges of some kinds lead."""
    return [target for target, have in graph.get(node, {}).items() if not kinds.isdisjoint(have)]


def knots_of(graph: Graph, kinds: frozenset[str]) -> list[set[int]]:
    """Strongly connected components of more than one node (Tarjan, without recursion)."""
    number: dict[int, int] = {}
    low: dict[int, int] = {}
    stack: list[int] = []
    inside: set[int] = set()
    knots = []
    for root in graph:
        if root in number:
            continue
        work = [(root, iter(targets_of(graph, root, kinds)))]
        number[root] = low[root] = len(number)
        stack.append(root)
        inside.add(root)
        while work:
            node, targets = work[-1]
            for target in targets:
                if target not in number:
                    number[target] = low[target] = len(number)
                    stack.append(target)
                    inside.add(target)
                    work.append((target, iter(targets_of(graph, target, kinds))))
                    break
                if target in inside:
                    low[node] = min(low[node], number[target])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
                if low[node] == number[node]:
                    knot: set[int] = set()
                    while node not in knot:
                        knot.add(stack.pop())
                    inside -= knot
                    if len(knot) > 1:
                        knots.append(knot)
    return knots


def path(graph: Graph, start: int, end: int, within: set[int], kinds: frozenset[str]) -> list[int]:
    """A shortest way from one node to another, both included; empty if there is none."""
    came: dict[int, int] = {}
    waiting = deque([start])
    while waiting:
        node = waiting.popleft()
        for target in targets_of(graph, node, kinds):
            if target in within and target not in came:
                came[target] = node
                if target == end:
                    way = [end]
                    while len(way) == 1 or way[-1] != start:
                        way.append(came[way[-1]])
                    return way[::-1]
                waiting.append(target)
    return []


def cycle_in(graph: Graph, knot: set[int], kinds: frozenset[str]) -> list[int]:
    """A short cycle in a knot, each node named once."""
    start = min(knot)
    return path(graph, start, start, knot, kinds)[:-1]


def cycle_with_one(graph: Graph, knot: set[int], kind: str, others: frozenset[str]) -> list[int]:
    """A cycle with one edge of a kind and else only others; empty if none is found."""
    tries = [
        (node, target)
        for node in sorted(knot) for target in targets_of(graph, node, frozenset({kind})) if target in knot
    ]
    for node, target in tries[:_TRIES]:
        way = path(graph, target, node, knot, others)
        if way:
            return [way[-1], *way[:-1]]
    return []
