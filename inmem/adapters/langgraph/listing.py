"""Looking through checkpoints, a page in each transaction."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, Final

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import CheckpointTuple, get_checkpoint_id

from inmem.adapters.langgraph.layout import CheckpointRange, StoredCheckpoint, all_threads
from inmem.adapters.langgraph.thread import Thread
from inmem.adapters.langgraph.work import SaverWork

_PAGE: Final = 32  # checkpoints that one look loads

_Places = list[tuple[str, str, str | None]]  # thread, namespace, before which id; the next one is last


class CheckpointListing:
    """What is left to look through."""

    def __init__(
        self, work: SaverWork, config: RunnableConfig | None, wanted: dict[str, Any] | None,
        before: RunnableConfig | None, limit: int | None,
    ) -> None:
        self._work = work
        configurable = config["configurable"] if config else {}
        self._thread_id: str | None = configurable.get("thread_id")
        self._namespace: str | None = configurable.get("checkpoint_ns")
        self._only: str | None = configurable.get("checkpoint_id")
        self._wanted = wanted or {}
        self._before = get_checkpoint_id(before) if before else None
        self._left = limit
        self._places: _Places | None = None

    def next_look(self) -> Callable[[Any], tuple[list[StoredCheckpoint], _Places]] | None:
        """What reads the next page; None at the end."""
        is_over = self._places == [] or (self._left is not None and self._left <= 0)
        return None if is_over else self._look

    def taken(self, looked: tuple[list[StoredCheckpoint], _Places]) -> Iterator[CheckpointTuple]:
        """The checkpoints of a page, as far as they are wanted."""
        found, self._places = looked
        if self._left is not None:
            found = found[: self._left]
            self._left -= len(found)
        return map(self._work.loaded, found)

    def _look(self, txn: Any) -> tuple[list[StoredCheckpoint], _Places]:
        found: list[StoredCheckpoint] = []
        places = self._all_places(txn) if self._places is None else [*self._places]
        while places and len(found) < _PAGE:
            thread_id, namespace, before = places.pop()
            thread = self._work.found(txn, thread_id)
            if thread is None:
                continue
            seen = [*itertools.islice(self._seen(thread, namespace, before), _PAGE)]
            found += [thread.whole(namespace, each) for each in seen if self._matches(thread, each.entry)]
            if len(seen) == _PAGE:
                places.append((thread_id, namespace, seen[-1].id))
        return found, places

    def _all_places(self, txn: Any) -> _Places:
        places: _Places = []
        for thread_id in all_threads(txn) if self._thread_id is None else [self._thread_id]:
            thread = self._work.found(txn, thread_id)
            if thread is not None:
                namespaces = thread.namespaces() if self._namespace is None else [self._namespace]
                places += [(thread_id, namespace, self._before) for namespace in namespaces]
        return places[::-1]

    def _seen(self, thread: Thread, namespace: str, before: str | None) -> Iterator[CheckpointRange]:
        if self._only is None:
            return thread.checkpoints(namespace, before)
        found = thread.found(namespace, self._only) if before is None or self._only < before else None
        return iter([] if found is None else [found])

    def _matches(self, thread: Thread, entry: dict[str, Any]) -> bool:
        if not self._wanted:
            return True
        metadata = thread.metadata(entry)
        return all(metadata.get(name) == value for name, value in self._wanted.items())
