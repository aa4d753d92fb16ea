"""What a saver remembers of threads, so that it need not look: hints, which a commit or a read puts right."""

from __future__ import annotations

from typing import Final

_MOST: Final = 4096  # of each kind; then they are learnt anew


class KnownThreads:
    """The runs of threads, and what is stored in these for good.

    A run is of one thread for ever, and deleted before its thread can have
    another one. So who goes by an old hint finds nothing, or is refused.
    """

    def __init__(self) -> None:
        self._runs: dict[str, str] = {}
        self._stored: set[tuple[str, str]] = set()

    def run(self, thread_id: str) -> str | None:
        """The run of a thread."""
        return self._runs.get(thread_id)

    def learn(self, thread_id: str, run_id: str) -> None:
        """A thread has this run."""
        if len(self._runs) >= _MOST:
            self._runs.clear()
        self._runs[thread_id] = run_id

    def forget(self, thread_id: str) -> None:
        """Its run may be gone."""
        self._runs.pop(thread_id, None)

    def has(self, run_id: str | None, key: str) -> bool:
        """Whether a run has an entry that does not change, and goes only with what needs it."""
        return (run_id, key) in self._stored

    def add(self, run_id: str, *keys: str) -> None:
        """It has some."""
        if len(self._stored) >= _MOST:
            self._stored.clear()
        self._stored.update((run_id, key) for key in keys)
