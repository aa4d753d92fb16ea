"""The store of items: `InmemStore`. See `items` for what is stored.

Invariant: what a batch reads is of one version, what it writes is one commit,
and texts are embedded before it begins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

from langgraph.store.base import BaseStore, IndexConfig, Op, Result, TTLConfig

import inmem
from inmem.adapters.langgraph.batch import StoreBatch
from inmem.adapters.langgraph.transactions import Transactions
from inmem.adapters.langgraph.vectors import ItemEmbedding
from inmem.aio import AsyncDatabase

RUN_ID: Final = "langgraph-store"


class InmemStore(BaseStore):
    """Items of LangGraph in a store of inmem: memory that many threads, agents and processes share.

    `db` is a `Database`, or an `AsyncDatabase` for programs that await. With
    a `Database` the awaited methods work too, in the loop; with an
    `AsyncDatabase` the others do in other threads than the loop's.

    `index` turns vector search on: `{"embed": function, "dims": 1536, "fields":
    ["text"]}`, as LangGraph describes it. `ttl` has what is used where a call
    says nothing: `default_ttl` in minutes, and `refresh_on_read`. Expired
    items are never seen; the writer removes them, so nothing is to be swept.
    `run_id` is the run that the items are in: another one is another store.

    Cost: `get` and `put` are a read and a commit. A read of an item with a
    time to live, which begins anew then, is a commit too. A search
    reads what is below its namespace until it has enough, in order of
    namespace and key; what a filter leaves out is read too. With a
    query it reads all vectors there: there is no index of them.

    >>> import inmem
    >>> from inmem.adapters.langgraph import InmemStore
    >>> with inmem.open() as db:
    ...     store = InmemStore(db)
    ...     store.put(("users", "ada"), "food", {"likes": "figs", "rating": 5})
    ...     [item.key for item in store.search(("users",), filter={"rating": {"$gte": 4}})]
    ['food']

    Raises:
        InvalidInputError: an argument is wrong.
    """

    supports_ttl = True

    def __init__(
        self, db: inmem.Database | AsyncDatabase, *, index: IndexConfig | None = None,
        ttl: TTLConfig | None = None, run_id: str = RUN_ID,
    ) -> None:
        super().__init__()
        self.db = db
        self.run_id = inmem.RunId(run_id)
        self._transactions = Transactions(db, self.run_id)
        self.ttl_config = ttl
        self._embedding = ItemEmbedding(index) if index else None
        self.index_config = index
        self.embeddings = self._embedding.embeddings if self._embedding else None
        self._is_made = False  # the run

    def __repr__(self) -> str:
        return f"InmemStore({self.db!r}, run_id={str(self.run_id)!r})"

    def batch(self, ops: Iterable[Op]) -> list[Result]:
        """Do several operations: they read what was there before, as one; then what they write is one commit.

        Raises:
            InvalidInputError: one is wrong, or a value cannot be stored; nothing was done.
            InvalidNamespaceError: so is a namespace.
            LimitError: what it stores is more than one commit takes, 16 MiB.
        """
        batch = StoreBatch(ops, self._embedding)
        texts, queries = batch.texts(), batch.queries()
        if self.embeddings and (texts or queries):
            vectors = self.embeddings.embed_documents(texts) if texts else []
            batch.embedded(texts, vectors, queries, [self.embeddings.embed_query(each) for each in queries])
        results = self._transactions.do(batch.read)
        if batch.writes:
            self._transactions.do(self._in_run(batch))
            self._is_made |= batch.puts
        return results

    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        """See `batch`."""
        batch = StoreBatch(ops, self._embedding)
        texts, queries = batch.texts(), batch.queries()
        if self.embeddings and (texts or queries):
            vectors = await self.embeddings.aembed_documents(texts) if texts else []
            of_queries = [await self.embeddings.aembed_query(each) for each in queries]
            batch.embedded(texts, vectors, queries, of_queries)
        results = await self._transactions.ado(batch.read)
        if batch.writes:
            await self._transactions.ado(self._in_run(batch))
            self._is_made |= batch.puts
        return results

    def _in_run(self, batch: StoreBatch) -> Callable[[Any], None]:
        """What a batch writes; the first that puts creates the run, so that it can be found."""
        if self._is_made or not batch.puts:
            return batch.write

        def begin(txn: Any) -> None:
            txn.runs.create_run(tags=["langgraph"], metadata={"holds": "items"}, exist_ok=True)
            batch.write(txn)

        return begin
