"""Cycles and strongly connected components of a graph with several kinds of edges.

Invariant: what is called a cycle is one, by edges of the kinds that were asked
for alone. It knows numbers and names of kinds, and not what they mean.
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


def components_of(graph: Graph, kinds: frozenset[str]) -> list[set[int]]:
    """Strongly connected components of more than one node (Tarjan, without recursion)."""
    number: dict[int, int] = {}
    low: dict[int, int] = {}
    stack: list[int] = []
    inside: set[int] = set()
    components = []
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
                    component: set[int] = set()
                    while node not in component:
                        component.add(stack.pop())
                    inside -= component
                    if len(component) > 1:
                        components.append(component)
    return components


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


def cycle_in(graph: Graph, component: set[int], kinds: frozenset[str]) -> list[int]:
    """A short cycle in a component, each node named once."""
    start = min(component)
    return path(graph, start, start, component, kinds)[:-1]


def cycle_with_one(graph: Graph, component: set[int], kind: str, others: frozenset[str]) -> list[int]:
    """A cycle with one edge of a kind and else only others; empty if none is found."""
    only = frozenset({kind})
    edges = ((node, target) for node in sorted(component) for target in targets_of(graph, node, only))
    tries = [(node, target) for node, target in edges if target in component]
    for node, target in tries[:_TRIES]:
        way = path(graph, target, node, component, others)
        if way:
            return [way[-1], *way[:-1]]
    return []
