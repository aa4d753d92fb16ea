"""Workers that resume one thread of LangGraph at once, and are killed in it."""

from __future__ import annotations

import operator
import os
import time
from contextlib import nullcontext
from typing import Annotated, Any, TypedDict

from langgraph.graph import END, START, StateGraph

import inmem
from inmem.adapters.langgraph import InmemSaver

STEPS = 60
THREAD: Any = {"configurable": {"thread_id": "t"}, "recursion_limit": 10 * STEPS}
LOG = "executions"


class State(TypedDict):
    """What the steps have added, in their order."""

    items: Annotated[list[int], operator.add]


def graph_of(saver: InmemSaver) -> Any:
    """One node, taken `STEPS` times; what it does elsewhere is told by events of the run `LOG`."""

    def work(state: State) -> State:
        number = len(state["items"])
        saver.db.events.append(LOG, "executed", {"step": number, "by": os.getpid()})
        time.sleep(0.002)
        return {"items": [number]}

    def where_to(state: State) -> str:
        return END if len(state["items"]) >= STEPS else "work"

    graph = StateGraph(State)
    graph.add_node("work", work)
    graph.add_edge(START, "work")
    graph.add_conditional_edges("work", where_to, ["work", END])
    return graph.compile(checkpointer=saver)


def resume(words: Any, path: str, fence: Any) -> list[int]:
    """Go on with the thread, with whoever else does, until it is at its end; the items."""
    with inmem.open(path, timeout_s=60.0) as db:
        saver = InmemSaver(db, fence=fence)
        graph = graph_of(saver)
        while True:
            try:
                with saver.lease("t", ttl_s=0.3, wait_s=60.0) if fence == "lease" else nullcontext():
                    state = graph.get_state(THREAD)
                    if not state.tasks:  # `next` leaves out those that have written already
                        items: list[int] = state.values["items"]
                        return items
                    graph.invoke(None, THREAD, durability="sync")
            except (inmem.InvariantError, inmem.LeaseLostError):
                continue  # another worker has gone on
