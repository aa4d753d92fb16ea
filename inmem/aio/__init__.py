"""inmem for asyncio: the same names, arguments, results and errors, awaited. Start with `inmem.aio.open`."""

from inmem.aio.database import AsyncDatabase as AsyncDatabase
from inmem.aio.database import open as open
from inmem.aio.held import AsyncHeldLease as AsyncHeldLease
from inmem.aio.scopes import AsyncPipeline as AsyncPipeline
from inmem.aio.scopes import AsyncRunScope as AsyncRunScope
from inmem.aio.scopes import AsyncSnapshot as AsyncSnapshot
from inmem.aio.scopes import AsyncTransaction as AsyncTransaction
