"""inmem as it was: another checkout, measured beside this one in the same rounds (`--before CHECKOUT`).

Its package has the same name, so it lives in processes of its own: a keeper,
which holds a handle so that the writer stays, and the processes that measure
it. Both call `adopt` first. They use today's bench, so what the other checkout
does not have yet fails, and the table says so.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from bench.peers import CHECKOUT, Connector, Peer

_PATIENCE_S = 30.0


def adopt() -> None:
    """Have this process use the package of the other checkout; before it has opened anything."""
    checkout = os.environ[CHECKOUT]
    for name in [*sys.modules]:
        if name.partition(".")[0] == "inmem" or name in ("bench.peers.ours", "bench.peers.postgres"):
            del sys.modules[name]
    sys.path.insert(0, checkout)
    import inmem

    sys.path.remove(checkout)  # the bench is this one's
    found = Path(inmem.__file__).parents[1]
    if found != Path(checkout):
        raise RuntimeError(f"inmem is that of {found}, not of {checkout}")


def _keep(directory: str, durability: str, connection: Any) -> None:
    """Hold a store open, and tell the process of its writer when asked."""
    adopt()
    from bench.peers.ours import Ours

    store = Ours(durability)
    store.start(Path(directory))
    try:
        connection.send((str(store.path), store.facts()))
        with contextlib.suppress(EOFError):
            while True:
                connection.recv()
                connection.send(store.pids())
    finally:
        store.stop()


class Before(Peer):
    """The other checkout's store, and its keeper."""

    def __init__(self, durability: str) -> None:
        self._stored = durability
        self._keeper: Any = None

    def start(self, directory: Path) -> Connector:
        from bench.peers.ours import CONFIG, SURVIVES, OurClient

        self.durability = f"{self._stored}: {SURVIVES[self._stored]}"
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._keeper = context.Process(target=_keep, args=(str(directory), self._stored, theirs))
        self._keeper.start()
        theirs.close()
        path, self._facts = self._answer()
        return functools.partial(OurClient, path, str(CONFIG))

    def _answer(self) -> Any:
        if not self._connection.poll(_PATIENCE_S):
            raise TimeoutError(f"the keeper has not answered within {_PATIENCE_S} s")
        return self._connection.recv()

    def pids(self) -> Sequence[int]:
        self._connection.send(None)
        found: Sequence[int] = self._answer()
        return found

    def stop(self) -> None:
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            self._connection.close()
            keeper.join(2 * _PATIENCE_S)
            if keeper.is_alive():
                keeper.kill()
                keeper.join()

    def facts(self) -> str:
        return f"{self._facts} of {os.environ[CHECKOUT]}"


class BeforeOnPostgres(Peer):
    """The other checkout, on the server that all have; whoever opens it first makes the store."""

    durability = "a power cut"

    def __init__(self) -> None:
        self._has_server = False

    def start(self, directory: Path) -> Connector:
        from bench.peers.postgres import OursOnPostgresClient, Shared

        place = quote(str(Shared.take().place), safe="")
        self._has_server = True
        url = f"postgresql://inmem@{place}:5432/postgres?schema=inmem_before"
        return functools.partial(OursOnPostgresClient, url)

    def stop(self) -> None:
        if self._has_server:
            from bench.peers.postgres import Shared

            self._has_server = False
            Shared.let_go()

    def facts(self) -> str:
        return f"{os.environ[CHECKOUT]} on PostgreSQL"
